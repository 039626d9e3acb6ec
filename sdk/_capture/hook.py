"""What the program opens, makes and renames, heard by an audit hook; and, in a rerun, the guard that keeps it inside its folder.

The hook must be nearly free: it runs on every audit event of the process. A file is told once; a folder from which very many files are
read is told as a folder. Forked children write to ``opened.jsonl`` in the writer's folder (a journal of their own, 4 MiB each, would cost
more than what they tell); spawned ones find that file by ``ENCORE_OPENED``.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

from . import paths

MAX_BEFORE_INIT = 20_000
MAX_FILES = 20_000
MAX_PER_FOLDER = 1_000
SEEN_AT_MOST = 65_536
OPENED = "opened.jsonl"

_WRITE_FLAGS = os.O_WRONLY | os.O_RDWR
_SKIP_ENDINGS = (".pyc", ".pyo", ".pth")
_SKIP_PARTS = tuple(
    os.sep + each + os.sep
    for each in (
        "site-packages",
        "dist-packages",
        "__pycache__",
        ".git",
        ".ipynb_checkpoints",
        ".pytest_cache",
        ".mypy_cache",
        ".ruff_cache",
        ".triton",
        "ComputeCache",
        "torch_extensions",
        "matplotlib",
        "fontconfig",
    )
)
_SYSTEM = (
    "/proc/",
    "/sys/",
    "/dev/",
    "/etc/",
    "/run/",
    "/lib/",
    "/lib64/",
    "/usr/lib/",
    "/usr/lib64/",
    "/usr/share/zoneinfo/",
    "/usr/share/locale/",
    "/usr/share/fonts/",
    "/usr/share/mime/",
    "/usr/share/ca-certificates/",
)
# event: (place of a path that it changes, place of the open folder that the path counts from), …
_PATHS_TO_WRITE: dict[str, tuple[tuple[int, int], ...]] = {
    "os.rename": ((0, 2), (1, 3)),
    "os.link": ((1, 3),),
    "os.symlink": ((1, 2),),
    "os.mkdir": ((0, 2),),
    "os.rmdir": ((0, 1),),
    "os.remove": ((0, 1),),
    "os.truncate": ((0, 99),),
    "os.chmod": ((0, 2),),
    "os.chown": ((0, 3),),
    "os.utime": ((0, 3),),
    "shutil.rmtree": ((0, 1),),
}
_FOLLOWS = ("os.truncate", "os.chmod", "os.chown", "os.utime")


class Hook:
    """The state of the one audit hook of this process."""

    def __init__(self) -> None:
        self.emit: Callable[[dict[str, Any]], Any] | None = None
        self.before: list[tuple[str, str, str]] = []
        self.lost = 0
        self.seen: set[int] = set()
        # The same by what the event says, of absolute names opened for reading: nearly every open of a loader after its first round.
        self.fast: set[int] = set()
        self.folders: dict[str, int] = {}
        self.files = 0
        self.log: str | None = os.environ.get("ENCORE_OPENED") or None
        self.descriptor: int | None = None
        self.child = False
        self.local = threading.local()
        self.skip: tuple[str, ...] = ()
        self.allowed: tuple[str, ...] | None = None
        self.refresh()

    def refresh(self, *more: str) -> None:
        """Read the folders that are not data anew (the environment may name others at init than at import); `more` are the journal's."""
        own = [os.path.join(each, "") for each in more]
        self.skip = tuple(
            dict.fromkeys((*_SYSTEM, *paths.stdlib_folders(), os.path.join(paths.SDK_FOLDER, ""), *paths.encore_folders(), *own))
        )

    def heard(self, name: object, mode: str, by: str) -> None:
        """A path was opened (`r`, `w`, `a`, `r+`), renamed to, or made (`d`)."""
        path = paths.as_path(name)
        if not path or path.endswith(_SKIP_ENDINGS):
            return
        if not os.path.isabs(path):
            path = os.path.join(os.getcwd(), path)
        if ".." in path or "//" in path or "/./" in path:
            path = os.path.normpath(path)
        key = hash((path, mode))
        if key in self.seen:
            return
        if os.path.join(path, "").startswith(self.skip) or any(part in path for part in _SKIP_PARTS):
            if len(self.seen) < SEEN_AT_MOST:
                self.seen.add(key)
            return
        if len(self.seen) >= SEEN_AT_MOST:
            self.seen.clear()  # some are told again; the sender knows them
        self.seen.add(key)
        if mode == "r":
            if path.startswith("/") and not os.path.isfile(path) and os.path.exists(path):
                return  # a folder, pipe or device
            folder = os.path.dirname(path)
            count = self.folders.get(folder, 0) + 1
            if len(self.folders) < SEEN_AT_MOST:
                self.folders[folder] = count
            if count > MAX_PER_FOLDER or self.files > MAX_FILES:
                path = os.path.join(folder, "")
                if hash((path, mode)) in self.seen:
                    return
                self.seen.add(hash((path, mode)))
            self.files += 1
        self.tell(path, mode, by)

    def tell(self, path: str, mode: str, by: str) -> None:
        if self.child or (self.emit is None and self.log):
            self.append({"path": path, "mode": mode, "by": by})
        elif self.emit is not None:
            self.emit({"type": "opened", "path": path, "mode": mode, "by": by})
        elif len(self.before) < MAX_BEFORE_INIT:
            self.before.append((path, mode, by))
        else:
            self.lost += 1

    def append(self, line: dict[str, Any]) -> None:
        """One line by one write: lines of several processes do not mix."""
        if self.log is None:
            return
        if self.descriptor is None:
            self.descriptor = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_CLOEXEC", 0), 0o600)
        os.write(self.descriptor, json.dumps(line).encode() + b"\n")

    def begin(self, emit: Callable[[dict[str, Any]], Any], folder: str) -> None:
        """From now on everything goes to the journal; first what was heard before."""
        self.child = False
        self.log = os.path.join(folder, OPENED)
        os.environ["ENCORE_OPENED"] = self.log
        self.close_descriptor()
        before, self.before = self.before, []
        self.emit = emit
        for path, mode, by in before:
            if not path.startswith(self.skip):
                self.tell(path, mode, by)

    def end(self) -> None:
        self.emit = None
        self.close_descriptor()
        if os.environ.get("ENCORE_OPENED") == self.log:
            os.environ.pop("ENCORE_OPENED", None)
        self.log = None

    def close_descriptor(self) -> None:
        descriptor, self.descriptor = self.descriptor, None
        if descriptor is not None:
            with contextlib.suppress(OSError):
                os.close(descriptor)

    def after_fork(self) -> None:
        self.child = True
        self.local = threading.local()
        self.descriptor = None  # the parent's offset is shared, so a child opens its own; O_APPEND keeps both right

    def guard(self, name: object, follow: bool, at: object = -1) -> None:
        """In a rerun: refuse to change what lies outside the job's folder. `at`: the open folder that a relative name counts from."""
        path = paths.as_path(name)
        if path is None or self.allowed is None:
            return
        if isinstance(at, int) and at >= 0 and not os.path.isabs(path):
            path = os.path.join(os.readlink(f"/proc/self/fd/{at}"), path)
        folder, last = os.path.split(os.path.abspath(path))
        where = os.path.realpath(path) if follow else os.path.join(os.path.realpath(folder), last)
        if os.path.join(where, "").startswith(self.allowed):
            return
        raise PermissionError(
            13,
            "this is a rerun and may write only inside its own folder; the original's files are protected "
            "(make the path relative to the working directory, or start the worker with isolation so that it is redirected)",
            where,
        )


hook: Hook | None = None


def _mode(mode: object, flags: object) -> str:
    if isinstance(flags, int) and flags & _WRITE_FLAGS:
        if flags & os.O_APPEND:
            return "a"
        return "w" if flags & (os.O_TRUNC | os.O_EXCL) or (flags & os.O_CREAT and not flags & os.O_RDWR) else "r+"
    if isinstance(mode, str):
        if "a" in mode:
            return "a"
        if "w" in mode or "x" in mode:
            return "w"
        if "+" in mode:
            return "r+"
    return "r"


def _listen(event: str, args: tuple[Any, ...]) -> None:
    # The first line is all that most events cost.
    if event != "open" and event not in _PATHS_TO_WRITE and event != "sqlite3.connect":
        return
    state = hook
    if state is None:
        return
    if event == "open" and args[0].__class__ is str and hash((args[0], args[2])) in state.fast:
        return
    if getattr(state.local, "inside", False):
        return
    if event == "open":
        name = args[0]
        if name.__class__ is int:
            return
        reads = not isinstance(args[2], int) or not args[2] & _WRITE_FLAGS
        if name.__class__ is str and name.endswith(".pyc") and (reads or state.allowed is None):
            return  # an import
    state.local.inside = True
    try:
        if event == "open":
            mode = _mode(args[1], args[2])
            if state.allowed is not None and mode != "r":
                state.guard(name, True)
            state.heard(name, mode, "open")
            if mode == "r" and name.__class__ is str and name[:1] == "/":
                if len(state.fast) >= SEEN_AT_MOST:
                    state.fast.clear()
                state.fast.add(hash((name, args[2])))
        elif event == "sqlite3.connect":
            name = paths.as_path(args[0])
            if name and name != ":memory:" and not name.startswith("file:"):
                state.heard(name, "r+" if os.path.exists(name) else "w", "open")
        else:
            if state.allowed is not None:
                for place, at in _PATHS_TO_WRITE[event]:
                    state.guard(args[place], event in _FOLLOWS, args[at] if at < len(args) else -1)
            if event == "os.rename":
                state.heard(args[1], "w", "rename")
            elif event == "os.mkdir":
                if not os.path.isdir(args[0]):  # makedirs(exist_ok=True) asks for folders that are there
                    state.heard(args[0], "d", "mkdir")
            elif event in ("os.symlink", "os.link"):
                state.heard(args[1], "w", "link")
    except PermissionError:
        raise
    except Exception:  # noqa: S110 - hearing less is better than a program that fails to open its file
        pass
    finally:
        state.local.inside = False


def install() -> None:
    """Set the hook, once. It cannot be taken away again (Python has no way); without a run it does nearly nothing."""
    global hook
    if hook is not None:
        return
    state = Hook()
    state.allowed = _guarded_folders()
    hook = state
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=state.after_fork)
    sys.addaudithook(_listen)


def _guarded_folders() -> tuple[str, ...] | None:
    """Where a rerun may write; None outside a rerun or when the runner protects the original's files by mounts."""
    file = os.environ.get("ENCORE_RERUN")
    if not file or os.environ.get("ENCORE_WRITE_GUARD") == "0":
        return None
    try:
        with open(file, encoding="utf-8") as opened:
            job = json.load(opened).get("job_folder")
    except (OSError, ValueError, AttributeError):
        return None
    if not job:
        return None
    import tempfile

    allowed = [job, tempfile.gettempdir(), "/dev", "/proc/self", *paths.encore_folders()]
    journal = os.environ.get("ENCORE_JOURNAL")
    return tuple(sorted({os.path.join(os.path.realpath(each), "") for each in [*allowed, *([journal] if journal else [])]}))
