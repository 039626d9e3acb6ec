"""Encore's SDK: ``import sdk``; ``sdk.init()``, ``sdk.log()``, ``sdk.finish()``.

Training never waits for it and never fails because of it. The tracker lies behind HTTP; nothing of it is imported here.
"""

from . import _capture
from ._api import alert, config, coordinates, current, define, finish, init, log, log_later, seed, set_mesh, summary
from ._run import Run
from ._settings import VERSION as __version__
from .errors import EncoreError

_capture.install()

__all__ = [
    "EncoreError",
    "Run",
    "__version__",
    "alert",
    "config",
    "coordinates",
    "current",
    "define",
    "finish",
    "init",
    "log",
    "log_later",
    "seed",
    "set_mesh",
    "summary",
]


_LATE = {
    "Api": "_query",
    "watch": "_watch",
    "throughput": "_throughput",
    **dict.fromkeys(("Audio", "Histogram", "Html", "Image", "Plotly", "Table", "Text", "Video", "Media"), "_media"),
}


def __getattr__(name: str):
    """What training does not pay for unless it is used: queries, rich values, norms."""
    if name in _LATE:
        from importlib import import_module

        return getattr(import_module(f".{_LATE[name]}", __name__), name)
    raise AttributeError(f"module 'sdk' has no attribute {name!r}")
