"""Runs as the tracker has them, and the stream that brings many."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import urlencode

from ..errors import NOT_YET, FormatError, UsageError
from . import tables
from .reproductions import Reproduction
from .series import Histories

if TYPE_CHECKING:
    from .api import Api

OVER = ("finished", "failed", "crashed", "killed", "preempted")


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

    @property
    def url(self) -> str:
        return f"{self._api.url}/runs/{self.id}"

    @property
    def metrics(self) -> dict[str, Any]:
        """Of a list: the last values that were asked for by ``keys=``; of one run: count, last, min, max and mean of every key."""
        return dict(self.data.get("metrics") or {})

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
        """All points of a metric at full resolution, of the lowest rank that logged it unless ``rank`` says another.

        ``form``: ``list`` of (step, time in µs since 1970, value), ``pandas`` (a frame; time in UTC), ``arrow`` (a table). Values are
        floats or exact integers. ``attempt``: what that start of the run logged itself, also where it was rewound; else the stitched
        history.
        """
        if form not in ("list", "pandas", "arrow"):
            raise UsageError(f"form is list, pandas or arrow, not {form!r}")
        found = self._api.history([key], runs=[self.id], ranks=None if rank is None else [rank], attempt=attempt)
        series = [one for one in found if one.key == key]  # a name may look like a glob
        if form == "pandas":
            return tables.points_to_pandas(series, names=False)
        if form == "arrow":
            return tables.points_to_arrow(series, names=False)
        return series[0].list() if series else []

    def histories(self, keys: str | Sequence[str] = "*", ranks: Any = None) -> Histories:
        """The points of many metrics (names or globs) at once; see ``Api.history``."""
        return self._api.history(keys, runs=[self.id], ranks=ranks)

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

    # Files, media, blobs ----------------------------------------------------------------------------------------------------------

    def files(self) -> list[dict[str, Any]]:
        """The source snapshot: ``[{"path", "bytes", "digest", "mode", "state"}]``."""
        return list(self._api.get(f"runs/{self.id}/files").get("results", ()))

    def file(self, path: str, to: str | os.PathLike[str] | None = None) -> bytes | Path:
        """A file of the source snapshot: its bytes, or where they were written when ``to`` names a file or a folder."""
        return self._fetched(f"runs/{self.id}/files/content?{urlencode({'path': path})}", to, path)

    def media(self, key: str | None = None) -> Iterator[dict[str, Any]]:
        """What was logged beside numbers: ``{"key", "kind", "rank", "step", "time_us", "digest", "bytes", "mime", "meta"}``."""
        return self._api.pages(f"runs/{self.id}/media", key=key)

    def blob(self, digest: str, to: str | os.PathLike[str] | None = None) -> bytes | Path:
        """Bytes by digest (of ``media()``, of a recipe), checked against it; or the file they were written to."""
        query = urlencode({"project": self.project})
        return self._fetched(f"blobs/{digest}?{query}", to, digest.partition(":")[2], digest)

    def _fetched(self, path: str, to: str | os.PathLike[str] | None, name: str, digest: str | None = None) -> bytes | Path:
        if to is None:
            held = io.BytesIO()
            self._api.download(path, held)
            _checked(held.getvalue(), digest)
            return held.getvalue()
        target = Path(to)
        if target.is_dir():
            target = target / PurePosixPath(name).name  # never a path of the server's choosing
        aside = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            with open(aside, "wb") as file:
                self._api.download(path, file)
            _checked(aside, digest)
            os.replace(aside, target)
        finally:
            aside.unlink(missing_ok=True)
        return target

    def artifacts(self) -> list[Any]:
        raise UsageError(f"the artifact store {NOT_YET}; until then there are run.files(), run.media() and run.blob(digest)")

    # Changing ---------------------------------------------------------------------------------------------------------------------

    def update(
        self,
        *,
        name: str | None = None,
        tags: Sequence[str] | None = None,
        notes: str | None = None,
        group: str | None = None,
        archived: bool | None = None,
    ) -> Run:
        """Change what people say about the run; what is None stays as it is."""
        if isinstance(tags, str):
            raise UsageError(f"tags is a list of texts: tags=[{tags!r}]")
        given = {"name": name, "tags": None if tags is None else list(tags), "notes": notes, "group": group, "archived": archived}
        asked = {key: value for key, value in given.items() if value is not None}
        if not asked:
            raise UsageError("say what to change: run.update(name=…, tags=[…], notes=…, group=…, archived=True)")
        self.data = self._api.patch(f"runs/{self.id}", asked)
        return self

    def wait(self, timeout: float | None = None) -> Run:
        """Until the run is over (finished, failed, crashed, killed, preempted). TimeoutError after ``timeout`` seconds."""
        end = None if timeout is None else time.monotonic() + timeout
        pause = 0.2
        while self.refresh().state not in OVER:
            if end is not None and time.monotonic() >= end:
                raise TimeoutError(f"run {self.id} is still {self.state} after {timeout:.0f} s")
            time.sleep(pause)
            pause = min(5.0, pause * 1.2)
        return self

    def delete(self) -> None:
        """To the trash: gone from every list, for good after some days."""
        self._api.delete(f"runs/{self.id}")

    def stop(self) -> None:
        """Ask the trainer to stop."""
        self._api.post(f"runs/{self.id}/stop")

    def reproduce(self, queue: str = "default", overrides: Mapping[str, Any] | None = None, steps: int | None = None) -> Reproduction:
        """Ask for this run to be played again; ``.wait()`` for the verdict."""
        body = {"queue": queue, "overrides": dict(overrides or {}), "scope": {"steps": steps} if steps is not None else {}}
        return Reproduction(self._api, self._api.post(f"runs/{self.id}/reproductions", body))


class Runs:
    """The runs of a question, in its order, as they arrive: iterate over it, or gather it into a table. One pass; ask anew for another."""

    def __init__(self, source: Iterator[Run], about: str) -> None:
        self._source, self._about = source, about

    def __iter__(self) -> Iterator[Run]:
        return self._source

    def __next__(self) -> Run:
        return next(self._source)

    def __len__(self) -> int:
        raise TypeError("runs are streamed and not counted before they are read: len(list(api.runs(…)))")

    def __repr__(self) -> str:
        return f"<Runs {self._about}; iterate over it, or call .pandas() or .arrow()>"

    def pandas(self) -> Any:
        """A frame with a row a run: what it is, ``config.…``, ``summary.…`` and ``metrics.…``."""
        return tables.runs_to_pandas(run.data for run in self._source)

    def arrow(self) -> Any:
        """The same as a table."""
        return tables.runs_to_arrow(run.data for run in self._source)


def _checked(found: bytes | Path, digest: str | None) -> None:
    if digest is None:
        return
    from blake3 import blake3

    hasher = blake3()
    if isinstance(found, bytes):
        hasher.update(found)
    else:
        with open(found, "rb") as file:
            while piece := file.read(1 << 20):
                hasher.update(piece)
    if digest != f"blake3:{hasher.hexdigest()}":
        raise FormatError(f"the bytes that came are not those of {digest}")
