from __future__ import annotations

from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers
from rest_framework.response import Response

from tracker.api.views import View, listed, page_of
from tracker.domain.errors import Invalid
from tracker.services import lineage, metrics, runs, series


class RunRow(serializers.Serializer):
    id = serializers.CharField()
    name = serializers.CharField()
    project = serializers.CharField(source="project.slug")
    user = serializers.CharField(source="user.username", default=None, allow_null=True)
    state = serializers.CharField()
    group = serializers.CharField()
    job_type = serializers.CharField()
    tags = serializers.ListField(child=serializers.CharField())
    notes = serializers.CharField()
    config = serializers.DictField()
    summary = serializers.DictField()
    host = serializers.CharField()
    created_at = serializers.DateTimeField()
    started_at = serializers.DateTimeField(allow_null=True)
    finished_at = serializers.DateTimeField(allow_null=True)
    heartbeat_at = serializers.DateTimeField(allow_null=True)
    stop_requested_at = serializers.DateTimeField(allow_null=True)
    exit_code = serializers.IntegerField(allow_null=True)
    signal = serializers.IntegerField(allow_null=True)
    archived_at = serializers.DateTimeField(allow_null=True)
    metrics = serializers.DictField(default=dict, help_text="Last values of the keys asked for by ?keys=.")


class AttemptShape(serializers.Serializer):
    number = serializers.IntegerField()
    reason = serializers.CharField()
    rewound_to = serializers.IntegerField(allow_null=True, help_text="It went back: earlier attempts count up to this step.")
    world_size = serializers.IntegerField()
    launch = serializers.DictField()
    started_at = serializers.DateTimeField()


class WriterShape(serializers.Serializer):
    id = serializers.CharField()
    kind = serializers.CharField()
    rank = serializers.IntegerField()
    attempt = serializers.IntegerField(source="attempt.number")
    host = serializers.CharField()
    next = serializers.IntegerField()
    heartbeat_at = serializers.DateTimeField(allow_null=True)
    finish = serializers.DictField(allow_null=True)


class ForkedFromShape(serializers.Serializer):
    run = serializers.CharField()
    step = serializers.IntegerField(help_text="Up to which the history is inherited, inclusive.")
    name = serializers.CharField(allow_null=True)
    project = serializers.CharField(allow_null=True)
    state = serializers.ChoiceField(["inherited", "deleted", "unknown"], help_text="unknown: not here yet, or not for your eyes.")


class ForkShape(serializers.Serializer):
    run = serializers.CharField()
    name = serializers.CharField()
    step = serializers.IntegerField()
    state = serializers.CharField()


class RunShape(RunRow):
    error = serializers.DictField(allow_null=True)
    dropped = serializers.DictField()
    metrics = serializers.DictField(help_text="Per key: ranks, count, last, min, max, mean.")
    attempts = AttemptShape(many=True)
    writers = WriterShape(many=True)
    reproduction_of = serializers.CharField(allow_null=True, help_text="The original's id, if this run is a rerun.")
    forked_from = ForkedFromShape(allow_null=True)
    forks = ForkShape(many=True)


class RunChange(serializers.Serializer):
    name = serializers.CharField(max_length=250, required=False)
    tags = serializers.ListField(child=serializers.CharField(max_length=250), required=False, max_length=200)
    notes = serializers.CharField(required=False, allow_blank=True)
    group = serializers.CharField(max_length=250, required=False, allow_blank=True)
    archived = serializers.BooleanField(required=False)


class KeyShape(serializers.Serializer):
    key = serializers.CharField()
    ranks = serializers.ListField(child=serializers.IntegerField())
    count = serializers.IntegerField()
    last = serializers.JSONField()
    min = serializers.FloatField(allow_null=True)
    max = serializers.FloatField(allow_null=True)
    mean = serializers.FloatField(allow_null=True)
    definition = serializers.DictField()


class HistoryShape(serializers.Serializer):
    run = serializers.CharField()
    key = serializers.CharField()
    points = serializers.ListField(child=serializers.ListField(), help_text="[step, time in microseconds, value]; NaN and Inf as text.")
    branches = serializers.ListField(
        child=serializers.DictField(), required=False, help_text="With branch=all: {attempt, rewound_to, points} of each old branch."
    )


def shown(run, user) -> dict:
    run.metrics = metrics.of_run(run)
    found = RunShape(_Whole(run, user)).data
    return found


class _Whole:
    """A run with what its page shows; one query each."""

    def __init__(self, run, user) -> None:
        self._run = run
        for name, value in lineage.told(user=user, run=run).items():
            setattr(self, name, value)
        self.attempts = list(run.attempts.all())
        self.writers = list(run.writers.select_related("attempt").order_by("attempt__number", "rank", "started_us")[:2000])
        reproduction = getattr(run, "reproduction", None) if hasattr(run, "reproduction") else None
        self.reproduction_of = reproduction.original_id if reproduction else None

    def __getattr__(self, name):
        return getattr(self._run, name)


def boolean(text: str | None) -> bool | None:
    if text in (None, ""):
        return None
    if text.lower() in ("true", "1", "false", "0"):
        return text.lower() in ("true", "1")
    raise Invalid("archived is true or false.", archived="malformed")


class Runs(View):
    @extend_schema(
        operation_id="runs",
        parameters=[
            OpenApiParameter(name, OpenApiTypes.STR, description=text)
            for name, text in {
                "project": "a project's slug",
                "filter": "the filter language, e.g. state = finished AND config.lr > 0.001",
                "sort": "a column, config.… or summary.…; '-' in front for descending",
                "state": "states, comma separated",
                "archived": "true or false; both if absent",
                "keys": "metric keys whose last values are wanted, comma separated",
                "limit": "1 to 1000, default 50",
                "cursor": "from the page before",
            }.items()
        ],
        responses=page_of(RunRow, "RunPage"),
    )
    def get(self, request):
        asked = request.query_params
        found = runs.find(
            user=request.user,
            project=asked.get("project") or None,
            filter=asked.get("filter", ""),
            sort=asked.get("sort", ""),
            state=asked.get("state", ""),
            archived=boolean(asked.get("archived")),
            limit=asked.get("limit"),
            cursor=asked.get("cursor"),
        )
        keys = [key for key in asked.get("keys", "").split(",") if key][:100]
        last = metrics.last_of_runs([run.id for run in found.results], keys)
        for run in found.results:
            run.metrics = last.get(run.id, {})
        return listed(RunRow(found.results, many=True).data, found.next)


class Run(View):
    @extend_schema(operation_id="run", responses=RunShape)
    def get(self, request, id):
        return Response(shown(runs.get(user=request.user, run_id=id), request.user))

    @extend_schema(operation_id="change_run", request=RunChange, responses=RunShape)
    def patch(self, request, id):
        run = runs.get(user=request.user, run_id=id)
        return Response(shown(runs.update(user=request.user, run=run, **self.asked(RunChange)), request.user))

    @extend_schema(operation_id="delete_run", responses={204: None})
    def delete(self, request, id):
        runs.delete(user=request.user, run=runs.get(user=request.user, run_id=id))
        return Response(status=204)


class Stop(View):
    @extend_schema(operation_id="stop_run", request=None, responses=RunShape)
    def post(self, request, id):
        return Response(shown(runs.request_stop(user=request.user, run=runs.get(user=request.user, run_id=id)), request.user))


class Keys(View):
    @extend_schema(operation_id="run_keys", responses=page_of(KeyShape, "KeyPage"))
    def get(self, request, id):
        return listed(metrics.keys(runs.get(user=request.user, run_id=id)))


class History(View):
    @extend_schema(
        operation_id="run_history",
        parameters=[
            OpenApiParameter("key", OpenApiTypes.STR, required=True),
            OpenApiParameter("rank", OpenApiTypes.INT),
            OpenApiParameter("attempt", OpenApiTypes.INT, description="what this attempt logged itself, whatever came after it"),
            OpenApiParameter("branch", OpenApiTypes.STR, enum=["current", "all"], description="all: with the old branches beside it"),
        ],
        responses=HistoryShape,
    )
    def get(self, request, id):
        from tracker.api.views import whole

        run = runs.get(user=request.user, run_id=id)
        key = request.query_params.get("key")
        if not key:
            raise Invalid("key is missing: ?key=train/loss", key="missing")
        asked = request.query_params
        branch = series.branch_of(asked.get("branch") or None, whole(asked.get("attempt"), "attempt"))
        return Response(metrics.history(run, key, whole(asked.get("rank"), "rank"), user=request.user, branch=branch))
