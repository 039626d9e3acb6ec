"""What the API's views have in common."""

from __future__ import annotations

from rest_framework import serializers
from rest_framework.response import Response
from rest_framework.views import APIView

from tracker.api.auth import API, JOB, WORKER
from tracker.domain.errors import Invalid


class View(APIView):
    """For people's tokens and page sessions."""

    scopes = frozenset({API})

    def asked(self, shape: type[serializers.Serializer], **kwargs) -> dict:
        """The body, checked by ``shape``. Raises Invalid."""
        if not isinstance(self.request.data, dict):
            raise Invalid("The body is a JSON object.")
        found = shape(data=self.request.data, **kwargs)
        found.is_valid(raise_exception=True)
        return found.validated_data


class SenderView(View):
    """For whoever logs: people's tokens, and a job's key for its own new run."""

    scopes = frozenset({API, JOB})


class RunnerView(View):
    scopes = frozenset({WORKER})


class ErrorShape(serializers.Serializer):
    code = serializers.CharField()
    message = serializers.CharField(help_text="What happened and what to do.")
    fields = serializers.DictField()  # type: ignore[assignment]


def listed(results: list, next: str | None = None) -> Response:
    return Response({"results": results, "next": next})


def page_of(shape: type[serializers.Serializer], name: str) -> type[serializers.Serializer]:
    """The shape of a list's answer, for the schema."""
    return type(name, (serializers.Serializer,), {"results": shape(many=True), "next": serializers.CharField(allow_null=True)})


def whole(text: str | None, name: str, default: int | None = None, least: int = -(2**63)) -> int | None:
    """A query parameter that is a whole number."""
    if text in (None, ""):
        return default
    try:
        found = int(text)  # type: ignore[arg-type]
    except ValueError:
        raise Invalid(f"{name} is a whole number.", **{name: "malformed"}) from None
    if not least <= found < 2**63:
        raise Invalid(f"{name} is out of range.", **{name: "out of range"})
    return found
