"""Reading from Python what the tracker has: ``sdk.Api()``.

    api = sdk.Api()                                  # the server of ENCORE_URL, or the one this machine is logged in to
    for run in api.runs(project="gpt", filter="config.lr > 1e-4 AND state = finished"):
        print(run.name, run.summary.get("val/loss"), run.history("train/loss", form="pandas"))

Lists are streamed: the next page is fetched when the last one is used up. Errors are those of ``sdk.errors``.
"""

from __future__ import annotations

import importlib
import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO
from urllib.parse import urlencode

from . import _settings
from ._transport import Transport
from .errors import EncoreError, ServerRefused, UsageError

PAGE = 200
DOWNLOAD_SECONDS = 1800.0
_ID = re.compile(r"[a-z2-7]{26}")
_PREFIX = re.compile(r"[a-z2-7]{4,25}")
_SPECIAL = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf"), "-0.0": -0.0}


class Ambiguous(EncoreError):
    """Several runs fit what was asked for; ``.runs`` has them."""

    def __init__(self, reference: str, runs: list[Run]) -> None:
        listed = "\n".join(f"  {run.id}  {run.project}/{run.name}  {run.state}" for run in runs[:20])
        more = "" if len(runs) <= 20 else f"\n  … and {len(runs) - 20} more"
        super().__init__(f"{reference!r} fits {len(runs)} runs; give the id of one:\n{listed}{more}")
        self.runs = runs


class NotFound(EncoreError):
    """No run fits what was asked for."""


class Api:
    """One server, one token. Not for several threads at once."""

    def __init__(self, url: str | None = None, token: str | None = None) -> None:
        known_url, known_token = _settings.credentials()
        self.url = (url or known_url or "").rstrip("/")
        if not self.url:
            raise UsageError("No server is known: run `encore login URL`, or set ENCORE_URL and ENCORE_TOKEN.")
        # A token goes only to the server that it was made for.
        self._transport = Transport(self.url, token or (known_token if known_url and self.url == known_url.rstrip("/") else None))

    def get(self, path: str, **query: Any) -> dict[str, Any]:
        """A GET below /api/v1; what is None is left out of the query."""
        given = {name: value for name, value in query.items() if value not in (None, "")}
        return self._transport.call("GET", f"{path}?{urlencode(given)}" if given else path)

    def download(self, path: str, file: BinaryIO) -> int:
        """A GET whose bytes go into ``file``; how many. The server may take minutes to put them together."""
        return self._transport.download(path, file, DOWNLOAD_SECONDS)

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        return self._transport.call("POST", path, dict(body or {}))

    def pages(self, path: str, **query: Any) -> Iterator[dict[str, Any]]:
        """The items of a list, page after page."""
        query.setdefault("limit", PAGE)
        while True:
            page = self.get(path, **query)
            yield from page.get("results", ())
            if not page.get("next"):
                return
            query["cursor"] = page["next"]

    def me(self) -> dict[str, Any]:
        return self.get("me")

    def projects(self) -> Iterator[dict[str, Any]]:
        """``{"slug", "name", …}`` of every project that the token may see."""
        return self.pages("projects")

    def runs(
        self, project: str | None = None, filter: str | None = None, sort: str | None = None, state: str | None = None
    ) -> Iterator[Run]:
        """Runs, newest first, or by ``sort`` (``-summary.val/loss``); ``filter`` in the filter language."""
        for data in self.pages("runs", project=project, filter=filter, sort=sort, state=state):
            yield Run(self, data)

    def run(self, reference: str) -> Run:
        """A run by its id, a unique beginning of it (four characters or more), its name, or project/name. Ambiguous, NotFound."""
        reference = reference.strip().strip("/")
        if not reference:
            raise UsageError("Say which run: its id, a unique beginning of it, or project/name.")
        if _ID.fullmatch(reference):
            try:
                return Run(self, self.get(f"runs/{reference}"))
            except ServerRefused as refused:
                if refused.status != 404:
                    raise
                raise NotFound(f"There is no run {reference} on {self.url}, or your token may not see it.") from None
        found = {run.id: run for run in self._candidates(reference)}
        if len(found) == 1:
            return Run(self, self.get(f"runs/{next(iter(found))}"))
        if found:
            raise Ambiguous(reference, list(found.values()))
        raise NotFound(f"No run on {self.url} has an id that begins with {reference!r}, or that name (encore runs lists them).")

    def _candidates(self, reference: str) -> Iterator[Run]:
        if _PREFIX.fullmatch(reference):
            # The filter can only say "contains"; which of those begin with it is told here.
            yield from (run for run in self.runs(filter=f'id ~ "{reference}"') if run.id.startswith(reference))
        yield from self.runs(filter=f"name = {_quoted(reference)}")
        project, slash, name = reference.partition("/")
        if slash and name:
            try:
                yield from self.runs(project=project, filter=f"name = {_quoted(name)}")
                if _PREFIX.fullmatch(name):
                    yield from (run for run in self.runs(project=project, filter=f'id ~ "{name}"') if run.id.startswith(name))
            except ServerRefused as refused:
                if refused.status != 404:
                    raise

    def reproduction(self, id: str) -> Reproduction:
        return Reproduction(self, self.get(f"reproductions/{id}"))

    def close(self) -> None:
        self._transport.close()


class Run:
    """A run as the tracker has it. ``.data`` is the API's whole answer; of a list it may lack what only ``api.run(id)`` brings."""

    def __init__(self, api: Api, data: Mapping[str, Any]) -> None:
        self._api, self.data = api, dict(data)
        self.id: str = self.data["id"]

    def __repr__(self) -> str:
        return f"<Run {self.project}/{self.name} {self.id} {self.state}>"

    @property
    def name(self) -> str:
        return str(self.data.get("name", ""))

    @property
    def project(self) -> str:
        project = self.data.get("project")
        return str(project.get("slug") if isinstance(project, Mapping) else project)

    @property
    def state(self) -> str:
        return str(self.data.get("state", ""))

    @property
    def config(self) -> dict[str, Any]:
        return self._whole("config")

    @property
    def summary(self) -> dict[str, Any]:
        return self._whole("summary")

    @property
    def tags(self) -> list[str]:
        return list(self.data.get("tags") or ())

    def _whole(self, name: str) -> dict[str, Any]:
        if name not in self.data:
            self.refresh()
        return dict(self.data.get(name) or {})

    def refresh(self) -> Run:
        self.data = self._api.get(f"runs/{self.id}")
        return self

    def keys(self) -> list[dict[str, Any]]:
        """``[{"key", "ranks", "count", "last", "min", "max", "mean", "definition"}]``."""
        answer = self._api.get(f"runs/{self.id}/keys")
        return list(answer.get("results", ()))

    def history(self, key: str, rank: int | None = None, form: str = "list", attempt: int | None = None) -> Any:
        """All points of a metric at full resolution. ``form``: ``list`` of (step, time, value), ``pandas`` (a frame), ``arrow`` (a table).
        Values are floats or exact integers; time is in seconds since 1970. ``attempt``: what that start of the run logged, also where it
        was rewound; else the stitched history."""
        points = [(step, when, number(value)) for step, when, value in self.raw_history(key, rank, attempt)["points"]]
        if form == "list":
            return points
        names = ("step", "time", "value")
        columns = {name: [point[index] for point in points] for index, name in enumerate(names)}
        if form == "pandas":
            return _library("pandas").DataFrame(columns, columns=list(names))
        if form == "arrow":
            return _library("pyarrow").table(columns)
        raise UsageError(f"form is list, pandas or arrow, not {form!r}")

    def raw_history(self, key: str, rank: int | None = None, attempt: int | None = None, branch: str | None = None) -> dict[str, Any]:
        """``{"run", "key", "points": [[step, time, value], …]}`` as the API gives it: NaN and infinities as text.
        ``branch="all"``: with ``branches``, what was rewound."""
        return self._api.get(f"runs/{self.id}/history", key=key, rank=rank, attempt=attempt, branch=branch)

    def logs(self, rank: int | None = None, stream: str | None = None) -> Iterator[dict[str, Any]]:
        """Console output: ``{"id", "rank", "stream", "time_us", "text"}``, in order."""
        after: Any = None
        while True:
            page = self._api.get(f"runs/{self.id}/logs", rank=rank, stream=stream, after=after, limit=1000)
            yield from page.get("results", ())
            if not page.get("results") or not page.get("next"):
                return
            after = page["next"]

    def events(self) -> Iterator[dict[str, Any]]:
        return self._api.pages(f"runs/{self.id}/events")

    def recipe(self, attempt: int | None = None) -> dict[str, Any]:
        return self._api.get(f"runs/{self.id}/recipe", attempt=attempt)

    def preflight(self) -> dict[str, Any]:
        return self._api.get(f"runs/{self.id}/preflight")

    def bundle(self, file: BinaryIO) -> int:
        """Writes the run's bundle (a zip that can be followed without Encore) into ``file``; its bytes."""
        return self._api.download(f"runs/{self.id}/bundle", file)

    def stop(self) -> None:
        self._api.post(f"runs/{self.id}/stop")

    def reproduce(self, queue: str = "default", overrides: Mapping[str, Any] | None = None, steps: int | None = None) -> Reproduction:
        """Ask for this run to be played again; ``.wait()`` for the verdict."""
        body = {"queue": queue, "overrides": dict(overrides or {}), "scope": {"steps": steps} if steps is not None else {}}
        return Reproduction(self._api, self._api.post(f"runs/{self.id}/reproductions", body))


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


def number(value: Any) -> int | float:
    """A value of the API as the number it was: NaN, infinities, -0.0 and integers beyond 2**53 come as text."""
    if isinstance(value, str):
        return _SPECIAL[value] if value in _SPECIAL else int(value)
    found: int | float = value
    return found


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _id_of(value: Any) -> str | None:
    if isinstance(value, Mapping):
        value = value.get("id")
    return str(value) if value else None


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UsageError(f"form={'arrow' if name == 'pyarrow' else name!r} needs {name}: pip install {name}") from None
