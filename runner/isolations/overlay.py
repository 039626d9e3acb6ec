"""The whole file system as it was, with every write landing below ``<job>/overlay/`` (Linux: a mount namespace and overlayfs).

The restored source is also laid over the original's root, so absolute names in scripts meet the recorded files and write into the job's
folder. What the original wrote elsewhere is hidden, so a rerun neither resumes nor skips. The worker's own state is out of sight.
"""

from __future__ import annotations

import os
import stat
import sys
import tempfile
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

from runner.isolations import Placement, Prepared
from runner.order import Order, inside
from runner.settings import Settings
from runner.shell import Program
from runner.workspace import JobFolder, remove

KERNEL = ("/proc", "/sys", "/dev")
SCRATCH = "/tmp"  # noqa: S108  # replaced by a folder of the job's
SKIPPED = {
    "autofs",
    "proc",
    "sysfs",
    "devtmpfs",
    "devpts",
    "cgroup",
    "cgroup2",
    "mqueue",
    "debugfs",
    "tracefs",
    "securityfs",
    "pstore",
    "bpf",
    "binfmt_misc",
}
MOST_REDIRECTED = 1000


class Overlay:
    name = "overlay"

    def works(self, settings: Settings) -> str | None:
        return _try(str(settings.home))

    def prepare(self, order: Order, folder: JobFolder, settings: Settings, placement: Placement, needed: list[str]) -> Prepared:
        hidden = _hidden(settings, needed)
        root, then = _ground(folder.overlay, [SCRATCH, *hidden])
        then.append({"op": "bind", "source": str(folder.tmp.resolve()), "at": SCRATCH})
        then += [{"op": "tmpfs", "at": path, "mode": "0700"} for path in hidden]
        covered = [SCRATCH, *hidden]
        seen = {str(folder.path)}
        for own in (folder.source, folder.journal, folder.home, folder.tmp):
            then.append({"op": "bind", "source": str(own.resolve()), "at": str(own)})
        for own in (folder.rerun, folder.rng):
            then.append({"op": "bind", "source": str(own.resolve()), "at": str(own), "readonly": True})
        for path in needed:
            # Never written through, whatever it lies under; and brought back where its surroundings were replaced.
            if path not in seen and os.path.exists(path):
                seen.add(path)
                then.append({"op": "bind", "source": os.path.realpath(path), "at": path, "readonly": True})
        for source, place in placement.into_source:
            then.append({"op": "bind", "source": os.path.realpath(source), "at": str(place), "readonly": True})
        covers = bool(order.root) and _may_cover(order.root, [*needed, str(settings.home), str(folder.path)])
        if covers:
            then.append({"op": "bind", "source": str(folder.source), "at": order.root, "inside": True, "recursive": True})
            covered.append(order.root)
        for path in placement.in_place:
            if any(inside(path, at) for at in covered):
                then.append({"op": "bind", "source": os.path.realpath(path), "at": path, "readonly": True})
        for path, below in order.folders_written_to():
            if below is None and not any(inside(path, at) is not None for at in (*KERNEL, *hidden)):
                then.append({"op": "mkdir", "at": path, "optional": True})
        inputs = {entry["path"] for entry in order.inputs}
        for entry in order.outputs:
            path = entry["path"]
            if path.startswith("/") and path not in inputs and not any(inside(path, at) for at in (*KERNEL, *covered)) and path not in seen:
                then.append({"op": "remove", "at": path, "optional": True})
        restored = set()
        for copy, path in placement.restored:
            then.append({"op": "copy", "source": str(copy.resolve()), "at": path})
            restored.add(os.path.normpath(path))
        for source, path in placement.mapped:
            then.append({"op": "bind", "source": os.path.realpath(source), "at": path, "readonly": True})
            restored.add(os.path.normpath(path))
        return Prepared(view={"root": root, "then": then}, env={"ENCORE_WRITE_GUARD": "0"}, redirect={}, restored=frozenset(restored))

    def redirected(self, folder: JobFolder, prepared: Prepared) -> list[dict[str, str]]:
        found: list[dict[str, str]] = []
        for at, upper in _uppers(folder):
            for directory, _, names in os.walk(upper):
                for name in sorted(names):
                    full = os.path.join(directory, name)
                    path = os.path.normpath(os.path.join(at, os.path.relpath(full, upper)))
                    status = os.lstat(full)
                    if (
                        stat.S_ISCHR(status.st_mode)
                        or path in prepared.restored
                        or (status.st_size == 0 and _is_mount_point(path, prepared))
                    ):
                        continue
                    found.append({"path": path, "to": full})
                    if len(found) >= MOST_REDIRECTED:
                        return found
        return found

    def where(self, path: str, folder: JobFolder) -> Path:
        if (below := inside(path, SCRATCH)) is not None:
            return folder.tmp / below
        best = max(
            ((at, upper) for at, upper in _uppers(folder) if inside(path, at) is not None), key=lambda pair: len(pair[0]), default=None
        )
        return Path(best[1]) / (inside(path, best[0]) or "") if best else Path(path)


def _ground(overlay: Path, replaced: list[str]) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """The machine's file systems under overlays, and the kernel's as they are. ``replaced``: folders that get something else anyway."""
    place = overlay / "root"
    place.mkdir()
    root: dict[str, str] = {"at": str(place.resolve())}
    layers = _Layers(overlay)
    then: list[dict[str, Any]] = [{"op": "bind", "source": path, "at": path, "recursive": True} for path in KERNEL if os.path.isdir(path)]
    then.append({"op": "tmpfs", "at": "/dev/shm", "mode": "1777", "optional": True})  # noqa: S108  # the program's own
    mounts = [
        (at, kind)
        for at, kind in _mounts()
        if kind not in SKIPPED and not any(inside(at, path) is not None for path in (*KERNEL, *replaced))
    ]
    if os.geteuid() == 0:
        root |= layers.add("/")
        for at, _ in mounts:
            if os.path.isdir(at):
                then.append({"op": "overlay", **layers.add(at), "at": at, "optional": True})
            else:
                then.append({"op": "bind", "source": at, "at": at, "readonly": True, "optional": True})
    else:
        # A user namespace may not look below mounts it did not make, so the kernel refuses a folder with mounts in it as a lower layer.
        points = [at for at, _ in _mounts()]
        then += _tiles("/", points, layers, (*KERNEL, *replaced))
    return root, then


class _Layers:
    def __init__(self, overlay: Path):
        self._overlay, self._count = overlay, 0

    def add(self, at: str) -> dict[str, str]:
        base = self._overlay / f"{self._count:02}"
        self._count += 1
        for part in ("upper", "work"):
            (base / part).mkdir(parents=True)
        (base / "at").write_text(at)
        return {"lower": at, "upper": str((base / "upper").resolve()), "work": str((base / "work").resolve())}


def _tiles(folder: str, points: list[str], layers: _Layers, skip: tuple[str, ...]) -> list[dict[str, Any]]:
    """One overlay for each folder that holds no mounts; folders that do are made anew and gone into."""
    ops: list[dict[str, Any]] = []
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return ops
    for entry in entries:
        at = entry.path
        if at in skip:
            continue
        if entry.is_symlink():
            ops.append({"op": "link", "at": at, "to": os.readlink(at), "optional": True})
        elif entry.is_dir():
            if any(point != at and inside(point, at) is not None for point in points):
                ops.append({"op": "mkdir", "at": at, "optional": True})
                ops += _tiles(at, points, layers, skip)
            elif os.access(at, os.R_OK | os.X_OK):
                ops.append({"op": "overlay", **layers.add(at), "at": at, "optional": True})
            else:
                ops.append({"op": "bind", "source": at, "at": at, "readonly": True, "optional": True})
        elif entry.is_file():
            ops.append({"op": "bind", "source": at, "at": at, "readonly": True, "optional": True})
    return ops


def _mounts() -> list[tuple[str, str]]:
    """(mount point, kind) of all below /, outer ones first."""
    found: dict[str, str] = {}
    with open("/proc/self/mountinfo") as file:
        for line in file:
            fields, _, rest = line.partition(" - ")
            point = fields.split()[4].encode().decode("unicode_escape").encode("latin-1").decode(errors="surrogateescape")
            if point != "/":
                found[point] = rest.split()[0]
    return sorted(found.items())


def _hidden(settings: Settings, needed: list[str]) -> list[str]:
    """Folders with the worker's and the tracker's state, unless hiding them would hide half of the machine."""
    keep = ["/", os.path.expanduser("~"), sys.prefix]
    candidates = [str(path) for path in (settings.encore_home, settings.home) if path is not None and path.is_dir()]
    hidden: list[str] = []
    for path in candidates:
        if any(inside(known, path) is not None for known in keep) or any(inside(path, other) is not None for other in [*hidden, SCRATCH]):
            continue
        hidden.append(path)
    return hidden


def _may_cover(root: str, needed: list[str]) -> bool:
    """Whether the original's root can be covered by the restored source without hiding something the program needs."""
    if root == "/" or any(inside(root, at) is not None for at in KERNEL) or root in (SCRATCH, os.path.expanduser("~")):
        return False
    return not any(inside(path, root) is not None for path in needed)


def _uppers(folder: JobFolder) -> list[tuple[str, str]]:
    return [((layer / "at").read_text(), str(layer / "upper")) for layer in sorted(folder.overlay.iterdir()) if (layer / "at").is_file()]


def _is_mount_point(path: str, prepared: Prepared) -> bool:
    """An empty file that was made only to mount something on it."""
    return any(op.get("at") == path for op in (prepared.view or {}).get("then", ()))


@lru_cache(maxsize=4)
def _try(home: str) -> str | None:
    """Writes a file outside through an overlay and looks where it went."""
    if sys.platform != "linux":
        return "overlayfs needs Linux"
    os.makedirs(home, exist_ok=True)
    base = Path(tempfile.mkdtemp(dir=home, prefix="try-"))
    probe = Path(home) / f".encore-probe-{os.getpid()}"
    try:
        (base / "overlay").mkdir()
        root, then = _ground(base / "overlay", [SCRATCH] if inside(home, SCRATCH) is None else [])
        probe.write_text("real")
        program = Program(
            ["/bin/sh", "-c", f'echo changed > "{probe}"'], env={}, cwd="/", output=base / "output", view={"root": root, "then": then}
        )
        end = time.monotonic() + 60
        while (ended := program.wait(1)) is None:
            if time.monotonic() > end:
                program.kill()
                return "it did not answer within a minute"
        if ended.error or ended.exit_code != 0:
            return ended.error or f"a shell inside ended with {ended.exit_code}: {(base / 'output').read_text(errors='replace')[-300:]}"
        return None if probe.read_text() == "real" else "a write inside went through to the real file system"
    except OSError as error:
        return str(error)
    finally:
        probe.unlink(missing_ok=True)
        remove(base)
