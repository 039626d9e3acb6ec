"""The sender's doors: opening writers, heartbeats."""

from __future__ import annotations

from django.conf import settings
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.response import Response

from tracker.api.views import SenderView
from tracker.services import writers


class OpenedRun(serializers.Serializer):
    id = serializers.CharField()
    name = serializers.CharField()
    url = serializers.CharField()
    state = serializers.CharField()


class OpenedShape(serializers.Serializer):
    run = OpenedRun()
    attempt = serializers.IntegerField()
    next = serializers.IntegerField(help_text="Records below are stored.")
    stop = serializers.BooleanField()


class BeatShape(serializers.Serializer):
    stop = serializers.BooleanField()
    state = serializers.CharField()
    next = serializers.DictField(child=serializers.IntegerField())
    ask = serializers.ListField(child=serializers.CharField(), required=False, help_text="What this host's sender is asked for: stacks.")


class Writers(SenderView):
    @extend_schema(operation_id="open_writer", request=OpenApiTypes.OBJECT, responses=OpenedShape)
    def post(self, request):
        opened = writers.open_writer(user=request.user, token=request.auth, doc=request.data)
        run = opened.run
        return Response(
            {
                "run": {"id": run.id, "name": run.name, "url": f"{settings.ENCORE_URL}/runs/{run.id}", "state": run.state},
                "attempt": opened.writer.attempt.number,
                "next": opened.writer.next,
                "stop": opened.stop,
            }
        )


class Heartbeats(SenderView):
    @extend_schema(operation_id="heartbeat", request=OpenApiTypes.OBJECT, responses=BeatShape)
    def post(self, request):
        return Response(writers.heartbeat(user=request.user, token=request.auth, doc=request.data))
