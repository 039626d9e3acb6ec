"""What lies in a run: logs, events, recipe, preflight, the source snapshot."""

from __future__ import annotations

import tempfile

from django.http import FileResponse, HttpResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers
from rest_framework.response import Response

from tracker.api.views import View, listed, page_of, whole
from tracker.domain.errors import Invalid
from tracker.services import bundles, console, preflight, runs, sources


class LogShape(serializers.Serializer):
    id = serializers.IntegerField()
    rank = serializers.IntegerField()
    stream = serializers.CharField()
    time_us = serializers.IntegerField()
    text = serializers.CharField()


class EventShape(serializers.Serializer):
    id = serializers.IntegerField()
    name = serializers.CharField()
    step = serializers.IntegerField(allow_null=True)
    time_us = serializers.IntegerField()
    rank = serializers.IntegerField(source="writer.rank", default=None, allow_null=True)
    data = serializers.DictField()


class RecipeShape(serializers.Serializer):
    run = serializers.CharField()
    attempt = serializers.IntegerField(allow_null=True)
    recipe = serializers.DictField()


class FileShape(serializers.Serializer):
    path = serializers.CharField()
    bytes = serializers.IntegerField()
    digest = serializers.CharField()
    mode = serializers.CharField()
    state = serializers.CharField(allow_blank=True)


AFTER = OpenApiParameter("after", OpenApiTypes.INT, description="the id of the last one you have")
LIMIT = OpenApiParameter("limit", OpenApiTypes.INT)


class Logs(View):
    @extend_schema(
        operation_id="run_logs",
        parameters=[OpenApiParameter("rank", OpenApiTypes.INT), OpenApiParameter("stream", OpenApiTypes.STR), AFTER, LIMIT],
        responses=page_of(LogShape, "LogPage"),
    )
    def get(self, request, id):
        asked = request.query_params
        found = console.lines(
            runs.get(user=request.user, run_id=id),
            rank=whole(asked.get("rank"), "rank"),
            stream=asked.get("stream"),
            after=whole(asked.get("after") or asked.get("cursor"), "after"),
            limit=asked.get("limit"),
        )
        return listed(LogShape(found.results, many=True).data, found.next)


class Events(View):
    @extend_schema(
        operation_id="run_events",
        parameters=[AFTER, LIMIT, OpenApiParameter("name", OpenApiTypes.STR)],
        responses=page_of(EventShape, "EventPage"),
    )
    def get(self, request, id):
        asked = request.query_params
        found = console.events(
            runs.get(user=request.user, run_id=id),
            name=asked.get("name"),
            after=whole(asked.get("after") or asked.get("cursor"), "after"),
            limit=asked.get("limit"),
        )
        return listed(EventShape(found.results, many=True).data, found.next)


class Recipe(View):
    @extend_schema(operation_id="run_recipe", parameters=[OpenApiParameter("attempt", OpenApiTypes.INT)], responses=RecipeShape)
    def get(self, request, id):
        run = runs.get(user=request.user, run_id=id)
        attempt, recipe = runs.recipe_of(run, whole(request.query_params.get("attempt"), "attempt"))
        return Response({"run": run.id, "attempt": attempt.number if attempt else None, "recipe": recipe})


class Preflight(View):
    @extend_schema(operation_id="run_preflight", responses=OpenApiTypes.OBJECT)
    def get(self, request, id):
        return Response(preflight.preflight(runs.get(user=request.user, run_id=id)))


class Files(View):
    @extend_schema(
        operation_id="run_files", parameters=[OpenApiParameter("attempt", OpenApiTypes.INT)], responses=page_of(FileShape, "FilePage")
    )
    def get(self, request, id):
        run = runs.get(user=request.user, run_id=id)
        return listed(sources.files(run, whole(request.query_params.get("attempt"), "attempt")))


class FileContent(View):
    @extend_schema(
        operation_id="run_file",
        parameters=[OpenApiParameter("path", OpenApiTypes.STR, required=True), OpenApiParameter("attempt", OpenApiTypes.INT)],
        responses={(200, "text/plain"): OpenApiTypes.BINARY},
    )
    def get(self, request, id):
        run = runs.get(user=request.user, run_id=id)
        path = request.query_params.get("path")
        if not path:
            raise Invalid("path is missing: ?path=train.py", path="missing")
        content = sources.content(run, path, whole(request.query_params.get("attempt"), "attempt"))
        # Never a type that a browser would run, whatever the file is called.
        return HttpResponse(content, content_type="text/plain; charset=utf-8", headers={"X-Content-Type-Options": "nosniff"})


class Bundle(View):
    @extend_schema(operation_id="run_bundle", responses={(200, "application/zip"): OpenApiTypes.BINARY})
    def get(self, request, id):
        run = runs.get(user=request.user, run_id=id)
        # Whole before the first byte goes out: what is wrong is answered as an error, not as half a file.
        file = tempfile.TemporaryFile()  # noqa: SIM115 the response closes it
        try:
            bundles.write(user=request.user, run=run, file=file)
            file.seek(0)
        except BaseException:
            file.close()
            raise
        headers = {"Cache-Control": "private, no-store", "Content-Security-Policy": "sandbox; default-src 'none'"}
        return FileResponse(file, as_attachment=True, filename=f"{run.id}.zip", content_type="application/zip", headers=headers)
