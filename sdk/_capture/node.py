"""The slow half of a capture, in the sender: source, environment, hardware, and the files that the hook in the trainer cannot see."""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .. import _secrets
from . import environment, hardware, hook, paths, source
from .data import Fingerprints

__all__ = ["Fingerprints", "run"]

# The trainer's maps are looked at soon and then ever more rarely: a file that C code reads stays mapped or open for long, or is small.
_LOOK_AT_SECONDS = (0.3, 1.0, 2.0, 4.0, 8.0, 15.0)
_LOOK_EVERY_SECONDS = 30.0
_FOLLOW_SECONDS = 0.5
_LIBRARY_FILE = re.compile(r"\.so(\.[0-9.]+)?$|\.(pyc|pyd|mo|ttf|otf|cache)$|/(gconv-modules|locale-archive|ld\.so)")
MAX_SCANNED = 20_000


def run(
    folder: Path, capture: dict[str, Any], emit: Callable[[dict[str, Any]], Any], put_blob: Callable[[Any], str], stop: threading.Event
) -> None:
    """Capture for the writer in `folder` until `stop`; in a thread of the sender. Never raises.

    Only rank 0 tells the sections that all ranks share. `emit` and `put_blob` must take calls from this thread and from one that it starts.
    """
    folder = Path(folder)
    errors: list[str] = []
    seconds: dict[str, float] = {}

    def guarded(what: str, do: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        try:
            return do()
        except Exception as error:
            errors.append(_secrets.mask_text(f"{what}: {type(error).__name__}: {error}")[:1000])
            return None
        finally:
            seconds[what] = round(seconds.get(what, 0.0) + time.perf_counter() - start, 4)

    def tell(section: str, value: dict[str, Any] | None, merge: bool = False) -> None:
        if value is None:
            value, merge = (
                {
                    "gaps": [
                        {"what": section, "why": errors[-1] if errors else "nothing was found", "mend": "see the errors of the sdk section"}
                    ]
                },
                True,
            )
        guarded(section, lambda: emit({"type": "recipe", "section": section, "value": value, "merge": merge}))

    fingerprints: Fingerprints | None = guarded("data", lambda: Fingerprints(emit, put_blob, capture))
    snapshot: source.Snapshot | None = None
    facts: dict[str, Any] | None = None
    root: str | None = capture.get("root")
    if capture.get("rank", 0) == 0:
        packages: list[dict[str, Any]] = guarded("packages", lambda: environment.packages(capture.get("sys_path") or [])) or []
        taken = guarded("source", lambda: source.take(capture, put_blob, editables=environment.local_folders(packages)))
        if taken:
            snapshot, value, root = taken
            facts = value["git"]
            tell("source", value)
            _know_source(fingerprints, snapshot, root)
        else:
            tell("source", None)
        tell("environment", guarded("environment", lambda: environment.facts(capture, root, put_blob, packages)))
        tell("hardware", guarded("hardware", hardware.facts), merge=True)
        tell("sdk", {"capture_seconds_sender": dict(seconds), "errors": list(errors)}, merge=True)
        errors.clear()

    follower = Follower(folder, capture, fingerprints)
    guarded("follow", lambda: follower.until(stop))
    if snapshot is not None:
        guarded("source at finish", lambda: _late_modules(folder, snapshot, facts, root or "", emit))
    if fingerprints is not None:
        if capture.get("rank", 0) == 0:
            guarded("outputs", lambda: _scan_outputs(fingerprints, capture, root))
        guarded("data", lambda: fingerprints.flush(None))
    if errors:
        tell("sdk", {"errors": list(errors)}, merge=True)


def _know_source(fingerprints: Fingerprints | None, snapshot: source.Snapshot, root: str) -> None:
    if fingerprints is not None:
        fingerprints.know_source(
            root, {os.fsdecode(each) for each in snapshot.absolute}, {entry["digest"] for entry in snapshot.entries.values()}
        )


def _late_modules(
    folder: Path, snapshot: source.Snapshot, facts: dict[str, Any] | None, root: str, emit: Callable[[dict[str, Any]], Any]
) -> None:
    """Modules imported after init that no snapshot has: taken now, and the section told again."""
    try:
        modules = json.loads((folder / "capture.json").read_text(encoding="utf-8")).get("modules") or {}
    except (OSError, ValueError):
        return
    before = len(snapshot.entries)
    snapshot.stop = threading.Event()
    snapshot.modules(modules, root)
    if len(snapshot.entries) > before:
        emit({"type": "recipe", "section": "source", "value": snapshot.value(root, facts), "merge": False})


class Follower:
    """Watches a trainer from outside: `opened.jsonl` of its children, and /proc for files that C code reads."""

    def __init__(self, folder: Path, capture: dict[str, Any], fingerprints: Fingerprints | None) -> None:
        self.file, self.capture, self.fingerprints = folder / hook.OPENED, capture, fingerprints
        self.offset = 0
        self.looks = 0
        self.next = time.monotonic() + _LOOK_AT_SECONDS[0]

    def until(self, stop: threading.Event) -> None:
        while True:
            stopped = stop.wait(_FOLLOW_SECONDS)
            self.read_log()
            if not stopped and time.monotonic() >= self.next:
                self.look()
            if stopped:
                return

    def read_log(self) -> None:
        """What forked and spawned children wrote since last time; a torn last line waits."""
        if self.fingerprints is None:
            return
        try:
            with open(self.file, "rb") as file:
                file.seek(self.offset)
                text = file.read(4 << 20)
        except OSError:
            return
        whole = text.rfind(b"\n") + 1
        self.offset += whole
        for line in text[:whole].splitlines():
            try:
                doc = json.loads(line)
                self.fingerprints.opened(doc["path"], doc["mode"], doc["by"])
            except (ValueError, KeyError, TypeError):
                continue
        if whole and len(text) == 4 << 20:
            self.read_log()

    def look(self) -> None:
        self.looks += 1
        self.next = time.monotonic() + (_LOOK_AT_SECONDS[self.looks] if self.looks < len(_LOOK_AT_SECONDS) else _LOOK_EVERY_SECONDS)
        if self.fingerprints is None or not is_trainer(self.capture):
            return
        for pid in family(self.capture["pid"]):
            for path, mode in held(pid):
                self.fingerprints.opened(path, mode, "mapped")


def is_trainer(capture: dict[str, Any]) -> bool:
    """Whether the pid of `capture.json` is still that process, here (a journal may come from another machine or a sandbox)."""
    pid = capture.get("pid")
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            ticks = int(file.read().rpartition(b")")[2].split()[19])
        started_us = (time.time() - (time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))) * 1e6
        return abs(started_us - (capture.get("started_us") or 0)) < 2_000_000 and os.stat(f"/proc/{pid}").st_uid == os.getuid()
    except (OSError, ValueError, AttributeError, IndexError):
        return False


def family(pid: int) -> list[int]:
    """`pid` and its descendants that were forked or spawned to load data."""
    found: list[int] = []
    waiting = [pid]
    while waiting and len(found) < 256:
        current = waiting.pop()
        found.append(current)
        try:
            for task in os.listdir(f"/proc/{current}/task"):
                with open(f"/proc/{current}/task/{task}/children") as file:
                    waiting += [int(each) for each in file.read().split()]
        except (OSError, ValueError):
            continue
    return found


def held(pid: int) -> Iterator[tuple[str, str]]:
    """(path, mode) of the regular files that a process holds mapped or open, less libraries and what is deleted."""
    found: dict[str, str] = {}
    try:
        with open(f"/proc/{pid}/maps", encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                fields = line.rstrip("\n").split(None, 5)
                if len(fields) == 6 and fields[5].startswith("/") and "x" not in fields[1]:
                    shared_write = fields[1][1] == "w" and fields[1][3] == "s"
                    path = fields[5]
                    found[path] = "r+" if shared_write else found.get(path, "r")
    except OSError:
        pass
    try:
        for each in os.listdir(f"/proc/{pid}/fd"):
            try:
                path = os.readlink(f"/proc/{pid}/fd/{each}")
                if not path.startswith("/"):
                    continue
                with open(f"/proc/{pid}/fdinfo/{each}") as info:
                    flags = next((int(line.split()[1], 8) for line in info if line.startswith("flags:")), 0)
                found[path] = ("r", "w", "r+")[flags & os.O_ACCMODE] if flags & os.O_ACCMODE < 3 else "r"
            except (OSError, ValueError):
                continue
    except OSError:
        pass
    mapped_code = {path for path in found if _LIBRARY_FILE.search(path)}
    for path, mode in found.items():
        if (
            path in mapped_code
            or path.endswith(" (deleted)")
            or path.startswith(hook._SYSTEM)
            or paths.is_library(path)
            or any(part in path for part in hook._SKIP_PARTS)
        ):
            continue
        if (
            path.startswith(("/usr/bin/", "/bin/", "/usr/sbin/", "/usr/local/lib/"))
            or re.search(r"/bin/python[0-9.]*$", path)
            or not os.path.isfile(path)
        ):
            continue
        yield path, mode


def _scan_outputs(fingerprints: Fingerprints, capture: dict[str, Any], root: str | None) -> None:
    """Files that C code wrote (torch.save to a path, HDF5) are seen by their time, below the root and the folders written to."""
    started = capture.get("started_us") or 0
    if not started:
        return
    folders = {each for each in (capture.get("cwd"), root) if each and not paths.too_wide(each)}
    with fingerprints.lock:
        known = set(fingerprints.outputs)
        read = set(fingerprints.inputs)
    folders |= {os.path.dirname(each) for each in known if not paths.too_wide(os.path.dirname(each))}
    scanned = 0
    visited: set[str] = set()
    for top in sorted(folders):
        for here, below, names in os.walk(top):
            if here in visited:
                below[:] = []
                continue
            visited.add(here)
            below[:] = [
                each
                for each in below
                if not each.startswith(".")
                and each not in ("__pycache__", "node_modules", "site-packages")
                and not os.path.exists(os.path.join(here, each, "pyvenv.cfg"))
            ]
            for name in names:
                scanned += 1
                path = os.path.join(here, name)
                if path in known or path in read or name.endswith((".pyc", ".py")) or path.startswith(fingerprints.skip):
                    continue
                try:
                    stat = os.lstat(path)
                except OSError:
                    continue
                if stat.st_mtime_ns // 1000 > started and stat.st_ctime_ns // 1000 > started:
                    fingerprints.opened(path, "w", "mtime")
            if scanned > MAX_SCANNED:
                return
