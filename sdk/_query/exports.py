"""Many runs at full resolution into a folder or a bucket: the server's stream of Parquet files, unpacked, checked and kept up.

Nothing here reads Parquet. A run's file appears once its digest is right; its ``_encore.json`` says what it is, so that the next export
brings only what changed, and one that was interrupted goes on.
"""

from __future__ import annotations

import http.client
import json
import random
import re
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from blake3 import blake3

from ..errors import FormatError, ServerRefused, ServerUnreachable, UsageError
from .places import Place

FORMAT = 1
TRIES = 4
STREAM_SECONDS = 300.0
MOST_DOCUMENT = 64 << 20
_RUN = re.compile(r"project=[A-Za-z0-9_-]{1,100}/run=([a-z2-7]{26})")
_NAME = re.compile(rf"(?:({_RUN.pattern})/(points\.parquet|_encore\.json)|runs\.parquet|_encore(?:\.error|\.progress)?\.json)")
_PIECE = 1 << 20
QUESTION = "_encore.question.json"


@dataclass
class Told:
    """What an export did."""

    runs: int = 0
    sent: int = 0
    unchanged: int = 0
    points: int = 0
    bytes: int = 0
    gone: list[str] = field(default_factory=list)
    """Folders of runs that the question no longer finds: deleted, hidden, or changed so that the filter passes them over."""
    pruned: list[str] = field(default_factory=list)
    failed: list[dict[str, str]] = field(default_factory=list)
    """Runs that the server could not read: ``{"run", "message"}``."""
    seconds: float = 0.0


class _BrokenOff(ServerUnreachable):
    """The stream ended before it said that it is complete."""


def export(
    api: Any, place: Place, question: Mapping[str, Any], *, prune: bool = False, mend: bool = False, said: Callable[[str], None] = print
) -> Told:
    """Bring ``place`` up to date with what the question finds. UsageError where another question's export lies there."""
    began = time.monotonic()
    _settle(place, {"url": api.url, **question})
    told = Told()
    tries = 0
    while True:
        have = _have(place, thorough=mend and not tries)
        before = told.sent
        try:
            body = json.dumps({**question, "have": {run: entry["mark"] for run, entry in have.items()}}).encode()
            opened = api._stream().open("POST", "export/parquet", body, STREAM_SECONDS)
            try:
                whole = _unpack(opened, place, told, said)
            finally:
                opened.close()
            break
        except (ServerUnreachable, tarfile.TarError, OSError, http.client.HTTPException) as error:
            if isinstance(error, OSError) and error.filename is not None:
                raise UsageError(f"{error.filename} cannot be written: {error.strerror}") from None
            tries = 1 if told.sent > before else tries + 1
            if tries >= TRIES:
                raise ServerUnreachable(
                    f"{error if str(error) else type(error).__name__} (asked {tries} times); what came is kept"
                ) from None
            time.sleep(0.5 * 2**tries * random.uniform(0.7, 1.3))  # noqa: S311 - jitter
        except ServerRefused as refused:
            tries += 1
            if refused.status not in (429, 502, 503, 504) or tries >= TRIES:
                raise
            wait = refused.fields.get("retry_after")
            time.sleep(float(wait) if isinstance(wait, (int, float)) else 2.0**tries)
    told.runs = int(whole["runs"])
    told.failed = list(whole.get("failed") or ())
    told.unchanged = told.runs - told.sent - len(told.failed)
    expected = set(whole["folders"])
    told.gone = sorted({found.group(0) for name, _ in place.names() if (found := _RUN.match(name))} - expected)
    if prune:
        for folder in told.gone:
            for name in ("_encore.json", "points.parquet"):
                place.remove(f"{folder}/{name}")
        told.pruned, told.gone = told.gone, []
    place.close()
    told.seconds = time.monotonic() - began
    return told


def size_of(count: int) -> str:
    """1234567 → 1.2 MB."""
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= scale:
            return f"{count / scale:,.1f} {unit}"
    return f"{count} bytes"


def _settle(place: Place, question: dict[str, Any]) -> None:
    """A place holds one question's export: what another one does not find would look like deleted runs."""
    told = {"format": FORMAT, **question}
    try:
        with place.open(QUESTION) as file:
            before = json.loads(file.read())
    except FileNotFoundError:
        before = None
    except ValueError:
        before = {}
    if before is not None and not isinstance(before, dict):
        before = {}
    holds = any(name != QUESTION for name, _ in place.names())
    if before is None and holds:
        raise UsageError("there are files already, but no export of Encore: choose an empty place")
    if not holds:
        _write(place, QUESTION, told)
    elif before != told:
        differs = [name for name in sorted({*told, *before}) if told.get(name) != before.get(name)]
        raise UsageError(f"the export that lies there was made with another {', '.join(differs)}: choose another place for this one")


def _write(place: Place, name: str, value: Any) -> None:
    file = place.aside()
    file.write(json.dumps(value, ensure_ascii=False).encode() + b"\n")
    place.keep(file, name)


def _have(place: Place, thorough: bool = False) -> dict[str, dict[str, Any]]:
    """Of each run that lies there whole (by size; ``thorough``: by digest) what its ``_encore.json`` says."""
    return {entry["run"]: entry for _, entry, why in _looked(place, thorough) if entry is not None and why is None}


def check(place: Place) -> tuple[int, list[tuple[str, str]]]:
    """Reads every file: how many runs are there, and (folder, what is wrong) of those that are not as they came."""
    count, wrong = 0, []
    for folder, _, why in _looked(place, thorough=True):
        count += 1
        if why is not None:
            wrong.append((folder, why))
    return count, wrong


def _looked(place: Place, thorough: bool) -> Iterator[tuple[str, dict[str, Any] | None, str | None]]:
    sizes = dict(place.names())
    folders = sorted({found.group(0) for name in sizes if (found := _RUN.match(name))})

    def look(folder: str) -> tuple[str, dict[str, Any] | None, str | None]:
        try:
            with place.open(f"{folder}/_encore.json") as file:
                entry = json.loads(file.read())
            if entry["format"] != FORMAT or not folder.endswith(f"/run={entry['run']}") or not isinstance(entry["mark"], str):
                raise ValueError
        except FileNotFoundError:
            return folder, None, "its _encore.json is missing"
        except (ValueError, KeyError, TypeError):
            return folder, None, "its _encore.json cannot be read"
        name = f"{folder}/points.parquet"
        if sizes.get(name, 0) != entry["bytes"]:
            return folder, entry, f"points.parquet has {sizes.get(name, 0)} bytes, not {entry['bytes']}"
        if thorough and entry["bytes"]:
            digest = blake3()
            with place.open(name) as file:
                while piece := file.read(_PIECE):
                    digest.update(piece)
            if f"blake3:{digest.hexdigest()}" != entry["digest"]:
                return folder, entry, "points.parquet has another digest than when it came"
        return folder, entry, None

    if type(place).__name__ == "Folder":
        yield from map(look, folders)
        return
    with ThreadPoolExecutor(16) as pool:
        yield from pool.map(look, folders)


def _unpack(opened: Any, place: Place, told: Told, said: Callable[[str], None]) -> dict[str, Any]:
    """Every entry of the stream into its place. The tree's last word, or an error."""
    waiting: tuple[str, Any, str, int] | None = None  # folder, file aside, digest, bytes
    try:
        with tarfile.open(fileobj=opened, mode="r|", bufsize=1 << 18) as stream:
            for info in stream:
                match = _NAME.fullmatch(info.name)
                source = stream.extractfile(info) if info.isreg() else None
                if match is None or source is None:
                    raise FormatError(f"the server sent {info.name[:200]!r}, which is no part of an export; update the SDK")
                if info.name == "runs.parquet":
                    file, _, _ = _copied(source, place)
                    place.keep(file, info.name)
                elif info.name.endswith("/points.parquet"):
                    waiting = (match.group(1), *_copied(source, place))
                else:
                    if info.size > MOST_DOCUMENT:
                        raise FormatError(f"{info.name} has {info.size} bytes")
                    words = json.loads(source.read())
                    if info.name == "_encore.json":
                        _write(place, info.name, words)
                        return dict(words)
                    if info.name == "_encore.error.json":
                        raise ServerRefused(int(words.get("status") or 500), str(words.get("code")), str(words.get("message")))
                    if info.name == "_encore.progress.json":
                        said(f"run {words.get('run')}: {words.get('rows'):,} points so far")
                        continue
                    _keep(place, match.group(1), words, waiting)
                    waiting = None
                    told.sent += 1
                    told.points += int(words["rows"])
                    told.bytes += int(words["bytes"])
                    if told.sent % 500 == 0:
                        said(f"{told.sent:,} runs, {told.points:,} points, {size_of(told.bytes)}")
    finally:
        if waiting is not None:
            waiting[1].close()
    raise _BrokenOff("the stream broke off before its end")


def _keep(place: Place, folder: str, words: dict[str, Any], waiting: tuple[str, Any, str, int] | None) -> None:
    if words["bytes"]:
        if waiting is None or waiting[0] != folder or waiting[2:] != (words["digest"], words["bytes"]):
            raise _BrokenOff(f"{folder}/points.parquet came with another digest than it was sent with")
        place.keep(waiting[1], f"{folder}/points.parquet")
    else:
        place.remove(f"{folder}/points.parquet")
    _write(place, f"{folder}/_encore.json", words)


def _copied(source: Any, place: Place) -> tuple[Any, str, int]:
    file = place.aside()
    digest = blake3()
    size = 0
    while piece := source.read(_PIECE):
        file.write(piece)
        digest.update(piece)
        size += len(piece)
    return file, f"blake3:{digest.hexdigest()}", size
