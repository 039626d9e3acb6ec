"""Going on with a run (`resume`), going back in it (`rewind_to`), going on from another (`fork_from`): what `init` checks and where
steps go on. Which points count afterwards is the server's (docs/resume.md): here nothing waits for it. Loaded only where one is used.
"""

from __future__ import annotations

import contextlib
import json
import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zlib import crc32

from . import _values
from ._ids import derived_id, is_id
from ._records import DENSE, END, MAGIC, NO_STEP, RECORD, RECORD_BYTES, SEGMENT_HEADER, SPARSE
from .errors import UsageError

if TYPE_CHECKING:
    from ._journal import Writer

RESUME = ("allow", "must", "never", "auto")
GOES_ON = ("allow", "must", "auto")


def check(resume: Any, fork_from: Any, rewind_to: Any) -> dict[str, Any]:
    """The three as writer.json has them. UsageError for what cannot mean anything."""
    if resume not in (None, *RESUME):
        raise UsageError(f'resume is "allow", "must", "never", "auto" or None, not {resume!r}')
    step = None if rewind_to is None else _step(rewind_to, "rewind_to")
    if step is not None and resume == "never":
        raise UsageError('rewind_to goes back in a run that exists; resume="never" begins a new one')
    return {"resume": resume, "fork_from": _fork(fork_from), "rewind_to": step}


def _step(given: Any, what: str) -> int:
    step = None if isinstance(given, (bool, float, str)) else _values.step(given)
    if step is None or step == NO_STEP:
        raise UsageError(f"{what}: a step is an int, not {type(given).__name__} {given!r:.40}")
    return step


def _fork(given: Any) -> dict[str, Any] | None:
    """(run, step), "run:step" or {"run": …, "step": …}; run is an id, a page's address, a name given as `id=`, or an object with `.id`."""
    if given is None:
        return None
    if isinstance(given, str):
        run, colon, number = given.rpartition(":")
        try:
            pair = [run, int(number)] if colon else None
        except ValueError:
            pair = None
    elif isinstance(given, Mapping):
        pair = [given["run"], given["step"]] if set(given) == {"run", "step"} else None
    else:
        pair = list(given) if isinstance(given, (tuple, list)) and len(given) == 2 else None
    if pair is None:
        raise UsageError(f'fork_from is (run, step) or "run:step", for example ("{"a" * 26}", 1000), not {given!r:.80}')
    name = str(getattr(pair[0], "id", None) or pair[0]).strip() if pair[0] is not None else ""
    if "/runs/" in name:  # the address of a run's page
        name = name.partition("/runs/")[2].partition("/")[0].partition("?")[0]
    if not name:
        raise UsageError("fork_from names no run")
    step = _step(pair[1], "fork_from")
    if is_id(name):
        return {"run": name, "step": step}
    return {"run": derived_id("named", name), "step": step, "given": name[:250]}


def check_id(about: Mapping[str, Any], is_named: bool) -> None:
    """What can be told once the run's id is known; is_named: the run may be there already. UsageError."""
    if about["rewind_to"] is not None and not is_named:
        raise UsageError("rewind_to needs the run's id: pass id=… to init, or set ENCORE_RUN_ID")
    if about["fork_from"] is not None and about["fork_from"]["run"] == about["id"]:
        raise UsageError("fork_from names the run itself; to go back in a run, give id=… and rewind_to=…")


def go_on(writer: Writer, about: Mapping[str, Any]) -> None:
    """Steps that are not given go on from here: after rewind_to, after what this machine's journals (else the
    spool) have of the run, after the fork."""
    fork, base = about["fork_from"], about["rewind_to"]
    if base is None and about["resume"] in GOES_ON:
        folders = [writer.folder.parent]
        if writer.about.get("spool"):  # of a job that was on another node before
            folders.append(Path(str(writer.about["spool"])) / str(about["id"]))
        for folder in folders:
            with contextlib.suppress(Exception):
                base = last_step(folder, writer.folder.name, writer.rank) if base is None else base
    if base is None and fork is not None:
        base = fork["step"]
    if base is not None:
        writer.last_step = base
    elif about["resume"] == "must" and writer.rank == 0:
        writer.say("no journal of this run is on this machine, so steps that log() is not given begin at 0 again; pass step=…")


def last_step(run_folder: Path, but: str, rank: int) -> int | None:
    """Where the last start of this rank that this machine knows came to; None if it knows nothing. Another rank's journal tells nothing:
    it may be of this very start."""
    found = []
    for path in run_folder.glob("*/writer.json"):
        if path.parent.name == but:
            continue
        with contextlib.suppress(OSError, ValueError):
            told = json.loads(path.read_bytes())
            if told.get("kind") == "trainer" and told.get("rank") == rank:
                found.append((int(told.get("started_us") or 0), path.parent, told.get("run") or {}))
    for _, folder, run in sorted(found, key=lambda each: each[0], reverse=True):
        step = _logged_last(folder)
        for given in (run.get("rewind_to"), (run.get("fork_from") or {}).get("step")):
            if step is None and isinstance(given, int):
                step = given  # it ended before it logged anything: on from where it would have gone on
        if step is not None:
            return step
    return None


def _logged_last(folder: Path) -> int | None:
    """The step of the last points in a writer's journal. Delivered segments go, but never the last one that has been begun."""
    for path in sorted(folder.glob("*.seg"), reverse=True):
        with contextlib.suppress(OSError, ValueError), open(path, "rb") as file:  # ValueError: an empty file cannot be mapped
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                step = _last_in(data)
            if step is not None:
                return step
    return None


def _last_in(data: mmap.mmap) -> int | None:
    """The step of the last record of points that is whole: a power loss can tear the last one."""
    at, end, found = SEGMENT_HEADER.size, len(data), -1
    before = -1  # the record of points before that one
    unpack = RECORD.unpack_from
    while at + RECORD_BYTES <= end:
        _, magic, kind, _, length, _, _, _, _ = unpack(data, at)
        if magic != MAGIC or length < RECORD_BYTES or length % 8 or kind == END or at + length > end:
            break
        if kind in (DENSE, SPARSE):
            before, found = found, at
        at += length
    for at in (found, before):
        if at >= 0:
            crc, _, _, _, length, _, _, step, _ = unpack(data, at)
            if crc32(data[at + 4 : at + length]) == crc:
                return int(step)
    return None
