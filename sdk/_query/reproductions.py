"""A request to play a run again, as the tracker has it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import Api


class Reproduction:
    """A request to play a run again. ``.data`` is the API's answer: state, steps, verdict."""

    def __init__(self, api: Api, data: Mapping[str, Any]) -> None:
        self._api, self.data = api, dict(data)
        self.id: str = self.data["id"]

    @property
    def state(self) -> str:
        job = self.data.get("job")
        return str(self.data.get("state") or (job.get("state") if isinstance(job, Mapping) else "") or "queued")

    @property
    def steps(self) -> list[dict[str, Any]]:
        job = self.data.get("job")
        return list(self.data.get("steps") or (job.get("steps") if isinstance(job, Mapping) else None) or ())

    @property
    def verdict(self) -> dict[str, Any] | None:
        """The Verdict of docs/formats.md, or None until it is judged."""
        verdict = self.data.get("verdict")
        if isinstance(verdict, Mapping):
            return dict(verdict)
        return dict(self.data) if self.data.get("sentence") else None

    def refresh(self) -> Reproduction:
        self.data = self._api.get(f"reproductions/{self.id}")
        return self

    def cancel(self) -> None:
        self._api.post(f"reproductions/{self.id}/cancel")

    def flat(self) -> dict[str, Any]:
        """The verdict with the ids beside it, as ``encore reproduce --json`` prints it."""
        ids = {
            "reproduction": self.id,
            "original": _id_of(self.data.get("original")),
            "run": _id_of(self.data.get("rerun") or self.data.get("run")),
        }
        return {**(self.verdict or {"sentence": None}), **ids, "state": self.state}

    def wait(self, timeout: float | None = None, tell: Callable[[Reproduction], None] | None = None) -> Reproduction:
        """Until the verdict is there, asking ever less often, at most each two seconds. TimeoutError when ``timeout`` seconds are over.
        ``tell`` is called after each look."""
        end = None if timeout is None else time.monotonic() + timeout
        pause = 0.2
        while True:
            self.refresh()
            if tell is not None:
                tell(self)
            if self.verdict is not None and self.state not in ("queued", "running"):
                return self
            if end is not None and time.monotonic() >= end:
                raise TimeoutError(f"no verdict after {timeout:.0f} s; the reproduction goes on: {self.id}")
            time.sleep(pause)
            pause = min(2.0, pause * 1.2)


def _id_of(value: Any) -> str | None:
    if isinstance(value, Mapping):
        value = value.get("id")
    return str(value) if value else None
