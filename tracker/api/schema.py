"""OpenAPI of the whole API: what DRF's views say of themselves, and the plain views' part written here."""

from __future__ import annotations

from functools import lru_cache

from django.http import JsonResponse
from drf_spectacular.extensions import OpenApiAuthenticationExtension
from drf_spectacular.generators import SchemaGenerator

from tracker.api import series_schema
from tracker.api.views import ErrorShape

_BYTES = {"type": "string", "format": "binary"}
_OBJECT = {"type": "object", "additionalProperties": {}}
_ERROR = {"$ref": "#/components/schemas/Error"}
_ID = {"type": "string", "pattern": "^[a-z2-7]{26}$"}


class _Bearer(OpenApiAuthenticationExtension):
    target_class = "tracker.api.auth.BearerAuthentication"
    name = "token"

    def get_security_definition(self, auto_schema):
        return {"type": "http", "scheme": "bearer", "description": "A personal token, a worker's token, or the key of one job."}


class _Session(OpenApiAuthenticationExtension):
    target_class = "tracker.api.auth.PageSession"
    name = "session"

    def get_security_definition(self, auto_schema):
        return {"type": "apiKey", "in": "cookie", "name": "encore_session", "description": "The page's session; writes need X-CSRFToken."}


def _parameter(name: str, where: str, required: bool = True) -> dict:
    return {"name": name, "in": where, "required": required, "schema": {"type": "string"}}


def _plain(operation: str, summary: str, *, body: dict | None = None, answer: dict, parameters: tuple = ()) -> dict:
    found = {
        "operationId": operation,
        "summary": summary,
        "tags": [operation.partition("_")[0]],
        "security": [{"token": []}, {"session": []}],
        "parameters": list(parameters),
        "responses": {"200": {"description": "", "content": answer}},
    }
    if body:
        found["requestBody"] = {"required": True, "content": body}
    return found


_PLAIN = {
    "/api/v1/series": {
        "post": _plain(
            "series",
            "Many series of many runs in one binary answer, or JSON if asked for (docs/series.md).",
            body={"application/json": {"schema": series_schema.QUERY}},
            answer={"application/vnd.encore.series": {"schema": _BYTES}, "application/json": {"schema": series_schema.ANSWER}},
        ),
        "get": _plain(
            "series_cached",
            "The same with the query in the URL, so that its answer can be kept.",
            parameters=(_parameter("q", "query"), _parameter("v", "query", required=False)),
            answer={"application/vnd.encore.series": {"schema": _BYTES}, "application/json": {"schema": series_schema.ANSWER}},
        ),
    },
    "/api/v1/export/runs": {
        "get": _plain(
            "export_runs",
            "All runs of a question in one streamed answer, a run a line (docs/api.md, Export).",
            parameters=tuple(
                _parameter(name, "query", required=False) for name in ("project", "filter", "sort", "state", "keys", "cursor")
            ),
            answer={"application/x-ndjson": {"schema": _BYTES}},
        )
    },
    "/api/v1/export/history": {
        "post": _plain(
            "export_history",
            "All points of many runs in one streamed answer (docs/formats.md, Histories).",
            body={"application/json": {"schema": _OBJECT}},
            answer={"application/vnd.encore.history": {"schema": _BYTES}},
        )
    },
    "/api/v1/export/parquet": {
        "get": _plain(
            "export_parquet",
            "Runs at full resolution as a tar of Parquet files (docs/export.md).",
            parameters=tuple(
                _parameter(name, "query", required=False) for name in ("project", "filter", "state", "archived", "runs", "keys")
            ),
            answer={"application/x-tar": {"schema": _BYTES}},
        ),
        "post": _plain(
            "export_parquet_since",
            "The same, without the runs whose marks are sent along.",
            body={"application/json": {"schema": _OBJECT}},
            answer={"application/x-tar": {"schema": _BYTES}},
        ),
    },
    "/api/v1/export/runs/{id}.parquet": {
        "get": _plain(
            "export_run_parquet",
            "All points of one run as one Parquet file (docs/export.md).",
            parameters=({**_parameter("id", "path"), "schema": _ID}, _parameter("keys", "query", required=False)),
            answer={"application/vnd.apache.parquet": {"schema": _BYTES}},
        )
    },
    "/api/v1/ingest/writers/{writer_id}/batches": {
        "post": _plain(
            "append_batch",
            "One batch of a writer's records (docs/formats.md, Wire).",
            parameters=({**_parameter("writer_id", "path"), "schema": _ID},),
            body={"application/vnd.encore.batch": {"schema": _BYTES}, "application/json": {"schema": _OBJECT}},
            answer={"application/json": {"schema": _OBJECT}},
        )
    },
    "/api/v1/ingest/blobs/missing": {
        "post": _plain(
            "missing_blobs",
            "Which of these blobs the run's project has not.",
            body={"application/json": {"schema": _OBJECT}},
            answer={"application/json": {"schema": _OBJECT}},
        )
    },
    "/api/v1/ingest/blobs/pack": {
        "post": _plain(
            "put_blobs",
            "Many small blobs in one body.",
            parameters=(_parameter("run", "query"),),
            body={"application/vnd.encore.pack": {"schema": _BYTES}},
            answer={"application/json": {"schema": _OBJECT}},
        )
    },
    "/api/v1/ingest/blobs/{digest}": {
        "put": _plain(
            "put_blob",
            "One blob, streamed.",
            parameters=(_parameter("digest", "path"), _parameter("run", "query")),
            body={"application/octet-stream": {"schema": _BYTES}},
            answer={"application/json": {"schema": _OBJECT}},
        )
    },
    "/api/v1/blobs/{digest}": {
        "get": _plain(
            "blob",
            "A blob's bytes, or a redirect to the store.",
            parameters=(_parameter("digest", "path"), _parameter("project", "query", required=False)),
            answer={"application/octet-stream": {"schema": _BYTES}},
        )
    },
}


def complete(result: dict, generator, request, public) -> dict:
    """drf-spectacular's post-processing hook: the plain views, and the one error shape on every operation."""
    result["paths"].update(_PLAIN)
    result["paths"] = dict(sorted(result["paths"].items()))
    shapes = result.setdefault("components", {}).setdefault("schemas", {})
    shapes["Error"] = {
        "type": "object",
        "required": list(ErrorShape().fields),
        "properties": {"code": {"type": "string"}, "message": {"type": "string"}, "fields": _OBJECT},
    }
    for operations in result["paths"].values():
        for operation in operations.values():
            operation["responses"].setdefault("default", {"description": "Refused.", "content": {"application/json": {"schema": _ERROR}}})
    return result


@lru_cache(maxsize=1)
def document() -> dict:
    return SchemaGenerator().get_schema(request=None, public=True)


def openapi(request):
    """Open to all: it holds no data of anybody."""
    return JsonResponse(document(), headers={"Cache-Control": "max-age=300"})


openapi.scopes = frozenset({"public"})
openapi.methods = ("GET",)
