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


def __getattr__(name: str):
    """`sdk.Api` is loaded when it is used: training does not pay for queries."""
    if name == "Api":
        from ._query import Api

        return Api
    raise AttributeError(f"module 'sdk' has no attribute {name!r}")
