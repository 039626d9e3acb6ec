"""Runs at full resolution as one stream: a tar of Parquet files, ``project=<slug>/run=<id>/points.parquet`` (docs/export.md).

Each run's file is made aside, so that memory stays bounded, and its ``_encore.json`` follows it; ``runs.parquet`` and the tree's own
``_encore.json`` come last and say that all is there. A run whose mark the asker has already is passed over.
"""

from __future__ import annotations

import json
import tarfile
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, BinaryIO

import structlog
from blake3 import blake3

from tracker.domain.errors import Busy, EncoreError
from tracker.models import Run, User
from tracker.services import export, export_points, export_runs, lineage
from tracker.services.export_points import Exported
from tracker.store import parquet
from tracker.store.blobs import MissingObject
from tracker.store.blocks import DamagedBlock
from tracker.store.reading import Column

FORMAT = 1
SMALL_POINTS = 50_000
AT_ONCE = 3
"""Exports that one process serves at a time: each holds some hundred megabytes at its peak."""
BREATH_SECONDS = 10
"""A file that takes longer is announced by a small entry, so that no proxy takes the stream for dead."""
_PIECE = 2**20
_MEMORY = 4 * 2**20
_UNREADABLE = (MissingObject, DamagedBlock)
_places = threading.BoundedSemaphore(AT_ONCE)
log = structlog.get_logger()


@dataclass
class Question:
    """What is exported. The same words mean the same runs and the same columns at any time."""

    project: str | None = None
    filter: str = ""
    state: str = ""
    archived: bool | None = None
    runs: list[str] | None = None
    keys: list[str] = field(default_factory=list)

    def asked(self) -> dict[str, Any]:
        return {"project": self.project, "filter": self.filter, "state": self.state, "archived": self.archived, "ids": self.runs}


def stream(*, user: User, question: Question, have: dict[str, str] | None = None) -> Iterator[bytes]:
    """The tar. ``have``: marks of runs that need not come again. A mistake in the question is raised at once, before a byte is sent.

    Raises Invalid, FilterMistake, NotFound, Busy.
    """
    pages = export.pages(user=user, limit=export.RUNS_AT_ONCE, asked=question.asked())
    wanted = export_points.matcher(question.keys)
    return _Guarded(_stream(user, question, wanted, have or {}, pages))


class _Guarded:
    """Has one of the places, and gives it back when the answer is over, also one that nobody began to read."""

    open = False

    def __init__(self, parts: Iterator[bytes]) -> None:
        if not _places.acquire(blocking=False):
            raise Busy(f"{AT_ONCE} exports are going on already: try again when one of them is through.", retry_after=10)
        self.parts, self.open = parts, True

    def __iter__(self) -> _Guarded:
        return self

    def __next__(self) -> bytes:
        try:
            return next(self.parts)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self.open:
            self.open = False
            _places.release()
            self.parts.close()  # type: ignore[attr-defined]

    __del__ = close


def _stream(user: User, question: Question, wanted, have: dict[str, str], pages: Iterator[export.Page]) -> Iterator[bytes]:
    folders: list[str] = []
    failed: list[dict[str, str]] = []
    sent = points = size = 0
    try:
        for page in pages:
            folders += [folder_of(run) for run in page.results]
            for exported, columns in _in_turn(_changed(user, page.results, question, have), wanted):
                try:
                    for entry in _run(exported, columns):
                        if isinstance(entry, bytes):
                            yield entry
                        else:
                            sent, points, size = sent + 1, points + entry["rows"], size + entry["bytes"]
                except _UNREADABLE as problem:  # nothing of it has been sent, and the other runs can be had
                    log.error("a run cannot be exported", run=exported.run.id, problem=repr(problem))
                    failed.append({"run": exported.run.id, "message": f"a block of it is lost or damaged: {problem}"})
        with _aside() as file:
            export_runs.write(lambda: export.pages(user=user, limit=export.PAGE, asked=question.asked()), file)
            yield from _file("runs.parquet", file)
        told = {"format": FORMAT, "complete": True, "question": asdict(question), "made_us": time.time_ns() // 1000}
        told |= {"runs": len(folders), "sent": sent, "unchanged": len(folders) - sent - len(failed), "points": points, "bytes": size}
        yield _document("_encore.json", told | {"failed": failed, "folders": folders})
        yield bytes(1024)  # a tar's end
    except EncoreError as error:
        yield _document("_encore.error.json", {"code": error.code, "message": error.message, "status": error.status})
        yield bytes(1024)
    except OSError as error:
        log.error("an export broke off", problem=repr(error))
        words = f"The server cannot write its temporary files ({error.strerror or error}): its operator can make room or set TMPDIR."
        yield _document("_encore.error.json", {"code": "no_room", "message": words, "status": 507})
        yield bytes(1024)


def folder_of(run: Run) -> str:
    """Names of people's choosing are never part of a path."""
    return f"project={run.project.slug}/run={run.id}"


def _changed(user: User, found: list[Run], question: Question, have: dict[str, str]) -> list[Exported]:
    forks = lineage.forks_of([(run.id, run.fork_run, run.fork_step) for run in found], Run.objects.visible_to(user))
    planned = export_points.planned(found, forks, question.keys)
    return [each for each in planned if have.get(each.run.id) != each.mark]


def _in_turn(planned: list[Exported], wanted) -> Iterator[tuple[Exported, Iterator[Column]]]:
    """Each run with its columns; small ones of the same keys are read together."""
    alike: dict[tuple[str, ...], list[Exported]] = defaultdict(list)
    for each in planned:
        if each.counts is not None and not each.forks and (each.points or 0) <= SMALL_POINTS:
            alike[tuple(sorted(key for key in each.counts if wanted is None or wanted.match(key)))].append(each)
        else:
            yield each, export_points.columns(each, wanted)
    for keys, group in alike.items():
        while group:
            some, points = [], 0
            while group and (not some or points + (group[-1].points or 0) <= export_points.POINTS_AT_ONCE):
                some.append(group.pop())
                points += some[-1].points or 0
            try:
                found = export_points.columns_of_many(some, keys) if keys else {}
            except _UNREADABLE:  # one of them; which, shows when each is read by itself
                yield from ((each, export_points.columns(each, wanted)) for each in some)
                continue
            for each in some:
                yield each, iter(found.get(each.run.id, ()))


def _run(exported: Exported, columns: Iterator[Column]) -> Iterator[bytes | dict[str, Any]]:
    """The entries of one run, and at the end what its ``_encore.json`` says."""
    folder = folder_of(exported.run)
    rows, spoken = 0, time.monotonic()
    with _aside() as file:
        for rows in parquet.write(file, columns, {"run": exported.run.id, "mark": exported.mark, "format": str(FORMAT)}):
            if time.monotonic() - spoken > BREATH_SECONDS:
                spoken = time.monotonic()
                yield _document("_encore.progress.json", {"run": exported.run.id, "rows": rows})
        size = file.seek(0, 2)
        digest = blake3()
        file.seek(0)
        while piece := file.read(_PIECE):
            digest.update(piece)
        if size:
            yield from _file(f"{folder}/points.parquet", file)
    told = {"format": FORMAT, "run": exported.run.id, "mark": exported.mark, "rows": rows, "bytes": size}
    told["digest"] = f"blake3:{digest.hexdigest()}" if size else None
    yield _document(f"{folder}/_encore.json", told)
    yield told


def points_of(*, user: User, run: Run, keys: list[str]) -> Iterator[bytes]:
    """One run's file as it is made, a row group in memory at a time. The answer of a run without points is a file without rows.

    Raises Busy.
    """
    return _Guarded(_points_of(user, run, keys))


def _points_of(user: User, run: Run, keys: list[str]) -> Iterator[bytes]:
    planned = _changed(user, [run], Question(keys=keys), {})[0]
    sink = _Pieces()
    rows = 0
    for rows in parquet.write(sink, export_points.columns(planned, export_points.matcher(keys)), {"run": run.id, "mark": planned.mark}):
        if rows:
            yield sink.take()
    if not rows:
        parquet.write_empty(sink)
    yield sink.take()


class _Pieces:
    """What is written, handed on in pieces."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.at = 0
        self.closed = False

    def write(self, data: Any) -> int:
        self.parts.append(bytes(data))
        self.at += len(self.parts[-1])
        return len(self.parts[-1])

    def take(self) -> bytes:
        found, self.parts = b"".join(self.parts), []
        return found

    def tell(self) -> int:
        return self.at

    def flush(self) -> None: ...

    def close(self) -> None: ...

    def readable(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False


# -- tar -------------------------------------------------------------------------------------------------------------------------------


def _aside() -> Any:
    return tempfile.SpooledTemporaryFile(max_size=_MEMORY)


def _head(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size, 0o644, int(time.time())
    return info.tobuf(tarfile.PAX_FORMAT)


def _file(name: str, file: BinaryIO) -> Iterator[bytes]:
    size = file.seek(0, 2)
    file.seek(0)
    yield _head(name, size)
    while piece := file.read(_PIECE):
        yield piece
    yield bytes(-size % 512)


def _document(name: str, value: Any) -> bytes:
    raw = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
    return _head(name, len(raw)) + raw + bytes(-len(raw) % 512)
