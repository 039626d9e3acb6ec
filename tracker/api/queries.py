"""Questions that come as JSON, in a body or in the URL: read once, alike for charts and exports. Their fields: domain/asked.py."""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any

from django.http import HttpRequest

from tracker.domain import asked
from tracker.domain.errors import Invalid
from tracker.domain.ids import is_id

MOST_BYTES = 2**20
HISTORY = ("runs", "keys", "project", "filter", "state", "sort", "archived", "ranks", "from", "to", "attempt", "cursor")


def body(request: HttpRequest) -> Any:
    """Raises Invalid; the object's fields are for the caller to check."""
    return _json(request.body, "The body")


def parameter(request: HttpRequest, name: str = "q") -> Any:
    """A question in the URL, so that browsers may keep its answer: base64url of JSON, padded or not."""
    text = request.GET.get(name, "")
    if not text:
        raise Invalid(f"{name} is the query: base64url of its JSON.", **{name: "missing"})
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars="-_", validate=True)
    except (ValueError, binascii.Error):
        raise Invalid(f"{name} is no base64url.", **{name: "malformed"}) from None
    return _json(raw, name)


def _json(raw: bytes, what: str) -> Any:
    if len(raw) > MOST_BYTES:
        raise Invalid("The query is longer than 1 MiB: ask in portions.")
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        raise Invalid(f"{what} is no JSON: send an object with runs and keys.") from None


def history(query: Any, *, most_keys: int) -> tuple[dict[str, Any], tuple[str, ...], int | None, int | None, str | int]:
    """Of an export of histories: (the runs as ``export.pages`` takes them, keys, first and last step, branch). Raises Invalid."""
    asked.known(query, HISTORY)
    keys = asked.texts(query, "keys", most_keys)
    if not keys:
        raise Invalid("keys is a list of metric names or globs, at least one.", keys="malformed")
    lo, hi = (asked.whole(query, name, -(2**63), 2**63 - 1) for name in ("from", "to"))
    runs: dict[str, Any] = {name: asked.text(query, name) or None for name in ("project", "cursor")}
    runs |= {name: asked.text(query, name) or "" for name in ("filter", "sort", "state")}
    runs["archived"] = asked.flag(query, "archived")
    ids = query.get("runs")
    if ids is not None and (not isinstance(ids, list) or not all(isinstance(one, str) and is_id(one) for one in ids)):
        raise Invalid("runs is a list of ids.", runs="malformed")
    return {**runs, "ids": ids}, keys, lo, hi, asked.branch_of(None, query.get("attempt"))
