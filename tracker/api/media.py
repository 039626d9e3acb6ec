"""What a run logged beside numbers."""

from __future__ import annotations

from django.http import HttpResponse, HttpResponseNotModified, StreamingHttpResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers
from rest_framework.response import Response

from tracker.api.run_parts import AFTER, LIMIT
from tracker.api.views import View, listed, page_of, whole
from tracker.domain.errors import Invalid
from tracker.services import media, runs


class MediaShape(serializers.Serializer):
    id = serializers.IntegerField()
    key = serializers.CharField()
    kind = serializers.CharField()
    step = serializers.IntegerField(allow_null=True)
    time_us = serializers.IntegerField()
    rank = serializers.IntegerField(source="writer.rank")
    digest = serializers.CharField(allow_blank=True, help_text="Empty: all of it is in meta.")
    bytes = serializers.IntegerField()
    mime = serializers.CharField(allow_blank=True)
    meta = serializers.DictField()


class MediaKeyShape(serializers.Serializer):
    key = serializers.CharField()
    kinds = serializers.ListField(child=serializers.CharField())
    count = serializers.IntegerField()
    first = serializers.IntegerField(allow_null=True, help_text="The first step.")
    last = serializers.IntegerField(allow_null=True)


KEY = OpenApiParameter("key", OpenApiTypes.STR)
RANK = OpenApiParameter("rank", OpenApiTypes.INT)
STEP = OpenApiParameter("step", OpenApiTypes.INT)


def _key(request) -> str:
    key = (request.query_params.get("key") or "").replace("\x00", "")
    if not key:
        raise Invalid("key is missing: ?key=samples", key="missing")
    return key


class Listing(View):
    @extend_schema(
        operation_id="run_media",
        parameters=[KEY, OpenApiParameter("kind", OpenApiTypes.STR), STEP, RANK, AFTER, LIMIT],
        responses=page_of(MediaShape, "MediaPage"),
    )
    def get(self, request, id):
        asked = request.query_params
        found = media.items(
            runs.get(user=request.user, run_id=id),
            key=asked.get("key"),
            kind=asked.get("kind"),
            step=whole(asked.get("step"), "step"),
            rank=whole(asked.get("rank"), "rank"),
            after=whole(asked.get("after") or asked.get("cursor"), "after"),
            limit=asked.get("limit"),
        )
        return listed(MediaShape(found.results, many=True).data, found.next)


class Keys(View):
    @extend_schema(operation_id="run_media_keys", responses=page_of(MediaKeyShape, "MediaKeyPage"))
    def get(self, request, id):
        return listed(media.keys(runs.get(user=request.user, run_id=id)))


class Steps(View):
    @extend_schema(operation_id="run_media_steps", parameters=[KEY], responses=OpenApiTypes.OBJECT)
    def get(self, request, id):
        run = runs.get(user=request.user, run_id=id)
        key = _key(request)
        return Response({"run": run.id, "key": key, "steps": media.steps(run, key)})


class At(View):
    """What the page shows: of what was logged twice at a step, the later."""

    @extend_schema(operation_id="run_media_at", parameters=[KEY, STEP], responses=page_of(MediaShape, "MediaAtPage"))
    def get(self, request, id):
        run = runs.get(user=request.user, run_id=id)
        found = media.at(run, _key(request), whole(request.query_params.get("step"), "step"))
        return listed(MediaShape(found, many=True).data)


class Spread(View):
    @extend_schema(operation_id="run_media_spread", parameters=[KEY, RANK, LIMIT], responses=page_of(MediaShape, "MediaSpreadPage"))
    def get(self, request, id):
        run = runs.get(user=request.user, run_id=id)
        asked = request.query_params
        most = whole(asked.get("limit"), "limit", default=200)
        return listed(MediaShape(media.spread(run, _key(request), whole(asked.get("rank"), "rank"), most or 200), many=True).data)


class Content(View):
    @extend_schema(
        operation_id="run_media_content",
        parameters=[OpenApiParameter("cell", OpenApiTypes.STR, description="the digest of a medium inside this table")],
        responses={(200, "application/octet-stream"): OpenApiTypes.BINARY},
    )
    def get(self, request, id, number):
        run = runs.get(user=request.user, run_id=id)
        found = media.content(run, media.get(run, whole(number, "number", least=0) or 0), request.query_params.get("cell"))
        tag = f'"{found.blob.digest}"'
        headers = {
            "ETag": tag,
            "Cache-Control": "private, max-age=31536000, immutable",
            "Content-Security-Policy": found.policy,
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "SAMEORIGIN",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Content-Disposition": f'{"inline" if found.inline else "attachment"}; filename="{found.name}"',
        }
        if request.headers.get("If-None-Match") == tag:
            return HttpResponseNotModified(headers=headers)
        headers["Accept-Ranges"] = "bytes"
        size = found.blob.bytes
        try:
            span = media.span(request.headers.get("Range"), size)
        except Invalid:
            return HttpResponse(status=416, headers={**headers, "Content-Range": f"bytes */{size}"})
        first, last = span or (0, size - 1)
        headers["Content-Length"] = str(last - first + 1)
        if span:
            headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        body = media.pieces(found.blob, first, last) if size else iter(())
        return StreamingHttpResponse(body, status=206 if span else 200, content_type=found.type, headers=headers)
