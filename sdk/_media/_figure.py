"""sdk.Plotly: a figure as its JSON. Taken in the caller's thread, since figures change; that costs what plotly's to_json costs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .._plain import dumps, plain
from ._base import Encoded, Media, Refused
from ._image import Taken

MOST_BYTES = 32 << 20


class Plotly(Media):
    """A Plotly figure, or its dict with `data` and `layout`."""

    kind = "plotly"

    def __init__(self, value: Any, caption: Any = None) -> None:
        super().__init__(lambda: _take(value), caption)


def _take(value: Any) -> Taken:
    if callable(getattr(value, "to_json", None)) and is_plotly(value):
        found = json.loads(value.to_json())
    elif isinstance(value, Mapping) and "data" in value:
        found = plain(value)
    else:
        raise Refused(f"a Plotly figure or a dict with data and layout, not {type(value).__name__}")
    data = dumps({name: found[name] for name in ("data", "layout", "frames") if name in found})
    if len(data) > MOST_BYTES:
        raise Refused(f"a figure of {len(data) / 2**20:.0f} MiB; one may have {MOST_BYTES >> 20}")
    return len(data), lambda keep: Encoded(data, "application/vnd.plotly+json", {"traces": len(found.get("data") or ())})


def is_plotly(value: Any) -> bool:
    return type(value).__module__.partition(".")[0] == "plotly" or any(
        base.__module__.partition(".")[0] == "plotly" for base in type(value).__mro__
    )
