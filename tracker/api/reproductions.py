from __future__ import annotations

from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers
from rest_framework.response import Response

from tracker.api.views import View, listed, page_of
from tracker.models import Reproduction as Row
from tracker.services import paging, reproductions, runs
from tracker.services.paging import Key


class StepShape(serializers.Serializer):
    name = serializers.CharField()
    state = serializers.CharField()
    message = serializers.CharField()
    detail = serializers.DictField()
    fence = serializers.IntegerField()
    started_at = serializers.DateTimeField()
    finished_at = serializers.DateTimeField(allow_null=True)


class JobLogShape(serializers.Serializer):
    id = serializers.IntegerField()
    fence = serializers.IntegerField()
    number = serializers.IntegerField()
    step = serializers.CharField()
    text = serializers.CharField()


class ReproductionRow(serializers.Serializer):
    id = serializers.CharField()
    project = serializers.CharField(source="original.project.slug")
    original = serializers.CharField(source="original_id")
    run = serializers.CharField(source="rerun_id", allow_null=True, help_text="The new run.")
    run_state = serializers.CharField(source="rerun.state", default=None, allow_null=True)
    job = serializers.CharField(source="job_id")
    state = serializers.CharField(source="job.state")
    queue = serializers.CharField(source="job.queue")
    worker = serializers.CharField(source="job.worker.name", default=None, allow_null=True)
    attempts = serializers.IntegerField(source="job.attempts")
    cancel_requested_at = serializers.DateTimeField(source="job.cancel_requested_at", allow_null=True)
    failure = serializers.DictField(source="job.failure", allow_null=True)
    requested_by = serializers.CharField(source="requested_by.username", default=None, allow_null=True)
    verdict = serializers.DictField(allow_null=True)
    judged_at = serializers.DateTimeField(allow_null=True)
    created_at = serializers.DateTimeField()
    started_at = serializers.DateTimeField(source="job.started_at", allow_null=True)
    finished_at = serializers.DateTimeField(source="job.finished_at", allow_null=True)


class ReproductionShape(ReproductionRow):
    overrides = serializers.DictField()
    scope = serializers.DictField()
    preflight = serializers.DictField()
    evidence = serializers.DictField(source="job.evidence", allow_null=True)
    steps = StepShape(source="job.steps.all", many=True)
    logs = serializers.SerializerMethodField(help_text="The latest 500 pieces of the steps' output.")

    def get_logs(self, reproduction) -> list[dict]:
        latest = list(reproduction.job.logs.order_by("-id")[:500])
        return JobLogShape(reversed(latest), many=True).data


class ReproductionRequest(serializers.Serializer):
    queue = serializers.CharField(max_length=100, default="default")
    overrides = serializers.DictField(default=dict, help_text="Any of config, argv, env, files (path in the source root to text).")
    scope = serializers.DictField(default=dict, help_text='{"steps": n} for the first n steps.')


class OfRun(View):
    """The reproductions asked of one run."""

    @extend_schema(operation_id="reproduce", request=ReproductionRequest, responses={201: ReproductionShape})
    def post(self, request, id):
        run = runs.get(user=request.user, run_id=id)
        found = reproductions.request(run=run, user=request.user, **self.asked(ReproductionRequest))
        return Response(ReproductionShape(reproductions.get(user=request.user, reproduction_id=found.id)).data, status=201)


class Reproductions(View):
    @extend_schema(
        operation_id="reproductions",
        parameters=[OpenApiParameter(name, OpenApiTypes.STR) for name in ("run", "cursor", "limit")],
        responses=page_of(ReproductionRow, "ReproductionPage"),
    )
    def get(self, request):
        asked = request.query_params
        rows = Row.objects.visible_to(request.user).filter(original__deleted_at=None)
        if asked.get("run"):
            rows = rows.filter(original=runs.get(user=request.user, run_id=asked["run"]))
        rows = rows.select_related("job__worker", "original__project", "rerun", "requested_by")
        found = paging.page(
            rows,
            keys=[Key("created_at", descending=True), Key("id")],
            limit=paging.limit_of(asked.get("limit")),
            cursor=paging.checked_times(asked.get("cursor"), 2),
        )
        return listed(ReproductionRow(found.results, many=True).data, found.next)


class Reproduction(View):
    @extend_schema(operation_id="reproduction", responses=ReproductionShape)
    def get(self, request, id):
        return Response(ReproductionShape(reproductions.get(user=request.user, reproduction_id=id)).data)


class Cancel(View):
    @extend_schema(operation_id="cancel_reproduction", request=None, responses=ReproductionShape)
    def post(self, request, id):
        found = reproductions.get(user=request.user, reproduction_id=id)
        return Response(ReproductionShape(reproductions.cancel(reproduction=found, user=request.user)).data)


class Judge(View):
    @extend_schema(operation_id="judge_reproduction", request=None, responses=ReproductionShape)
    def post(self, request, id):
        found = reproductions.get(user=request.user, reproduction_id=id)
        return Response(ReproductionShape(reproductions.judge(reproduction=found, user=request.user)).data)
