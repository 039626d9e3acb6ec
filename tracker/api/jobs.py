"""Jobs and workers: lists for people, and the runner's doors."""

from __future__ import annotations

from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers
from rest_framework.response import Response

from tracker.api.auth import JOB, WORKER
from tracker.api.reproductions import StepShape
from tracker.api.views import RunnerView, View, listed, page_of
from tracker.domain import storable
from tracker.domain.lifecycle import JobState
from tracker.models import Job, Worker
from tracker.services import jobs, paging, workers
from tracker.services.paging import Key


class JobShape(serializers.Serializer):
    id = serializers.CharField()
    project = serializers.CharField(source="project.slug")
    kind = serializers.CharField()
    queue = serializers.CharField()
    state = serializers.CharField()
    worker = serializers.CharField(source="worker.name", default=None, allow_null=True)
    attempts = serializers.IntegerField()
    reproduction = serializers.CharField(source="reproduction.id", default=None, allow_null=True)
    run = serializers.CharField(source="reproduction.rerun_id", default=None, allow_null=True)
    original = serializers.CharField(source="reproduction.original_id", default=None, allow_null=True)
    failure = serializers.DictField(allow_null=True)
    cancel_requested_at = serializers.DateTimeField(allow_null=True)
    created_at = serializers.DateTimeField()
    started_at = serializers.DateTimeField(allow_null=True)
    finished_at = serializers.DateTimeField(allow_null=True)


class WorkerShape(serializers.Serializer):
    id = serializers.CharField()
    name = serializers.CharField()
    queues = serializers.ListField(child=serializers.CharField())
    info = serializers.DictField()
    first_seen_at = serializers.DateTimeField()
    last_seen_at = serializers.DateTimeField()
    here = serializers.SerializerMethodField(help_text="Whether it said hello within 30 seconds.")

    def get_here(self, worker) -> bool:
        return workers.is_here(worker)


class Hello(serializers.Serializer):
    name = serializers.CharField(max_length=200)
    queues = serializers.ListField(child=serializers.CharField(max_length=100), max_length=100)
    info = serializers.DictField(default=dict)


class HelloShape(serializers.Serializer):
    worker = serializers.CharField()


class Claim(serializers.Serializer):
    worker = serializers.CharField()


class Fence(serializers.Serializer):
    fence = serializers.IntegerField(min_value=0, max_value=2**31 - 1)


class LeaseShape(serializers.Serializer):
    cancel = serializers.BooleanField()
    lease_until = serializers.DateTimeField()


class Step(Fence):
    name = serializers.CharField(max_length=20)
    state = serializers.ChoiceField(choices=jobs.STEP_STATES)
    message = serializers.CharField(default="", allow_blank=True, trim_whitespace=False)
    detail = serializers.DictField(default=dict)

    def to_internal_value(self, data):
        return super().to_internal_value(storable.value(data))


class Log(Fence):
    number = serializers.IntegerField(min_value=0, max_value=2**31 - 1)
    step = serializers.CharField(max_length=20, allow_blank=True)
    text = serializers.CharField(allow_blank=True, trim_whitespace=False, max_length=2**20)

    def to_internal_value(self, data):
        # Output may hold any character; DRF would refuse NUL and lone surrogates.
        if isinstance(data, dict) and isinstance(data.get("text"), str):
            data = {**data, "text": storable.text(data["text"])}
        return super().to_internal_value(data)


class Finish(Fence):
    state = serializers.ChoiceField(choices=[JobState.FINISHED.value, JobState.FAILED.value, JobState.CANCELLED.value])
    evidence = serializers.DictField(default=None, allow_null=True)
    failure = serializers.DictField(default=None, allow_null=True)


class FinishedShape(serializers.Serializer):
    state = serializers.CharField()


class Jobs(View):
    @extend_schema(
        operation_id="jobs",
        parameters=[OpenApiParameter(name, OpenApiTypes.STR) for name in ("state", "cursor", "limit")],
        responses=page_of(JobShape, "JobPage"),
    )
    def get(self, request):
        asked = request.query_params
        rows = Job.objects.visible_to(request.user).select_related("project", "worker", "reproduction")
        if asked.get("state"):
            rows = rows.filter(state__in=asked["state"].split(","))
        found = paging.page(
            rows,
            keys=[Key("created_at", descending=True), Key("id")],
            limit=paging.limit_of(asked.get("limit")),
            cursor=paging.checked_times(asked.get("cursor"), 2),
        )
        return listed(JobShape(found.results, many=True).data, found.next)


class Workers(View):
    @extend_schema(operation_id="workers", responses=page_of(WorkerShape, "WorkerPage"))
    def get(self, request):
        return listed(WorkerShape(Worker.objects.order_by("name")[:1000], many=True).data)


class WorkerHello(RunnerView):
    @extend_schema(operation_id="worker_hello", request=Hello, responses=HelloShape)
    def post(self, request):
        worker = workers.hello(token=request.auth, **self.asked(Hello))
        return Response({"worker": worker.id})


class JobClaim(RunnerView):
    @extend_schema(operation_id="claim_job", request=Claim, responses=OpenApiTypes.OBJECT)
    def post(self, request, id):
        return Response(jobs.claim(job_id=id, token=request.auth, worker_id=self.asked(Claim)["worker"]))


class JobHeartbeat(RunnerView):
    scopes = frozenset({WORKER, JOB})

    @extend_schema(operation_id="job_heartbeat", request=Fence, responses=LeaseShape)
    def post(self, request, id):
        return Response(jobs.heartbeat(job_id=id, token=request.auth, **self.asked(Fence)))


class JobKeyView(RunnerView):
    scopes = frozenset({JOB})


class JobSteps(JobKeyView):
    @extend_schema(operation_id="job_step", request=Step, responses=StepShape)
    def post(self, request, id):
        return Response(StepShape(jobs.record_step(job_id=id, token=request.auth, **self.asked(Step))).data)


class JobLogs(JobKeyView):
    @extend_schema(operation_id="job_log", request=Log, responses=OpenApiTypes.OBJECT)
    def post(self, request, id):
        jobs.record_log(job_id=id, token=request.auth, **self.asked(Log))
        return Response({})


class JobFinish(JobKeyView):
    @extend_schema(operation_id="finish_job", request=Finish, responses=FinishedShape)
    def post(self, request, id):
        return Response({"state": jobs.finish(job_id=id, token=request.auth, **self.asked(Finish)).state})
