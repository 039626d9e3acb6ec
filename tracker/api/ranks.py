"""The ranks of a run side by side, and their stacks on demand."""

from __future__ import annotations

from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers
from rest_framework.response import Response

from tracker.api.views import View
from tracker.services import ranks, runs, stacks


class RankShape(serializers.Serializer):
    rank = serializers.IntegerField()
    host = serializers.CharField(allow_blank=True)
    attempt = serializers.IntegerField()
    coordinates = serializers.DictField(child=serializers.IntegerField())
    state = serializers.CharField()
    last_step = serializers.IntegerField(allow_null=True)
    behind = serializers.IntegerField(allow_null=True, help_text="Steps behind the first rank.")
    behind_seconds = serializers.FloatField(allow_null=True)
    quiet_seconds = serializers.FloatField(allow_null=True, help_text="Since its last point.")
    heard_seconds = serializers.FloatField(allow_null=True, help_text="Since its sender's last sign of life, by the tracker's clock.")
    step_seconds = serializers.FloatField(allow_null=True, help_text="Median of the recent steps, by its host's clock.")
    step_p90 = serializers.FloatField(allow_null=True)
    late_seconds = serializers.FloatField(allow_null=True, help_text="Median time after the first rank at the same step.")
    own_seconds = serializers.FloatField(allow_null=True, help_text="Median of the time that the ranks log themselves.")
    skew_seconds = serializers.FloatField(allow_null=True, help_text="The tracker's clock less its host's.")
    odd = serializers.ListField(child=serializers.CharField())


class FindingShape(serializers.Serializer):
    kind = serializers.CharField()
    level = serializers.CharField()
    ranks = serializers.ListField(child=serializers.IntegerField())
    text = serializers.CharField()


class RanksShape(serializers.Serializer):
    run = serializers.CharField(source="run.id")
    state = serializers.CharField(source="run.state")
    world_size = serializers.IntegerField()
    axes = serializers.ListField(child=serializers.CharField())
    pace_key = serializers.CharField(allow_null=True, help_text="The key whose points tell the pace.")
    own_key = serializers.CharField(allow_null=True, help_text="The same, if the ranks log a time of each step.")
    front = serializers.IntegerField(source="judged.front", allow_null=True)
    step_seconds = serializers.FloatField(source="judged.step_seconds", allow_null=True)
    findings = FindingShape(source="judged.findings", many=True)
    results = RankShape(source="judged.rows", many=True)
    heat = serializers.DictField(required=False, help_text="With ?heat=1: steps, ranks and seconds (a row for each rank, null unknown).")


class DumpShape(serializers.Serializer):
    rank = serializers.IntegerField()
    host = serializers.CharField(allow_blank=True)
    time_us = serializers.IntegerField()
    why = serializers.CharField(allow_blank=True)
    text = serializers.CharField(allow_blank=True)
    problem = serializers.CharField(allow_blank=True, help_text="Why there is no text.")
    state = serializers.CharField(allow_blank=True, help_text="R runs, S sleeps, D waits in the kernel, T is stopped.")
    waits_in = serializers.CharField(allow_blank=True)
    flight_recorder = serializers.CharField(allow_blank=True, help_text="Where NCCL's flight recorder wrote, on that host.")


class GroupShape(serializers.Serializer):
    ranks = serializers.ListField(child=serializers.IntegerField())
    where = serializers.CharField()


class StacksShape(serializers.Serializer):
    asked_at = serializers.DateTimeField(allow_null=True)
    asked_by = serializers.CharField(allow_blank=True)
    waiting = serializers.BooleanField(help_text="Asked for, and not every rank has answered.")
    sentence = serializers.CharField(allow_blank=True)
    groups = GroupShape(many=True)
    results = DumpShape(source="dumps", many=True)


class Ranks(View):
    @extend_schema(operation_id="run_ranks", parameters=[OpenApiParameter("heat", OpenApiTypes.BOOL)], responses=RanksShape)
    def get(self, request, id):
        found = ranks.view(runs.get(user=request.user, run_id=id))
        answer = RanksShape(found).data
        if request.query_params.get("heat") in ("1", "true"):
            answer["heat"] = ranks.heat(found)
        return Response(answer)


class Stacks(View):
    @extend_schema(operation_id="run_stacks", responses=StacksShape)
    def get(self, request, id):
        return Response(StacksShape(stacks.latest(runs.get(user=request.user, run_id=id))).data)

    @extend_schema(operation_id="dump_stacks", request=None, responses=StacksShape)
    def post(self, request, id):
        run = stacks.request(user=request.user, run=runs.get(user=request.user, run_id=id))
        return Response(StacksShape(stacks.latest(run)).data)
