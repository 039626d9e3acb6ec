"""What the plug-ins have in common: whose run it is, and what of a framework's values is worth a config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .. import _run
from .._run import Run


class Joined:
    """The open run, or one that is begun here. Only the latter is ours to end."""

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        self.arguments = dict(arguments)
        self._run: Run | None = None
        self.ours = False

    def begin(self, **more: Any) -> Run:
        """`more`: arguments of init that the framework knows; those given by the user come first."""
        if self._run is None or self._run.finished:
            if _run.current is not None:
                self._run, self.ours = _run.current, False
            else:
                from .._api import init

                given = {**{name: value for name, value in more.items() if value is not None}, **self.arguments}
                self._run, self.ours = init(**given), True
        return self._run

    @property
    def run(self) -> Run | None:
        return self._run if self._run is not None and not self._run.finished else None

    def end(self, exit_code: int | None = None) -> None:
        """Ends the run if it was begun here."""
        run, self._run = self._run, None
        if run is not None and self.ours:
            run.finish(exit_code)


def numbers(values: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Those of `values` that log() takes: what else a framework puts among its metrics is text, and no fault of the user."""
    from .._values import number_of

    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= numbers(value, f"{prefix}{key}/")
        elif (number := number_of(value)) is not None:
            found[f"{prefix}{key}"] = number
    return found


def settle(run: Run, values: Mapping[str, Any]) -> None:
    """Into the config, where the program has not said the same word itself."""
    news = {str(key): value for key, value in values.items() if str(key) not in run.config}
    if news:
        run.config.update(news)
