"""Every recorded input found, compared and put where the program will look for it."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from runner.errors import RecipeFailure
from runner.job import Job
from runner.manifest import file_digest, is_digest
from runner.order import inside, relative

NOT_FILES = ("/dev", "/proc", "/sys")


def run(job: Job) -> str:
    found: list[dict[str, Any]] = []
    job.evidence["data"] = found
    for entry in job.order.inputs:
        job.report.check()
        path = entry["path"]
        if re.match(r"[a-z][a-z0-9+.-]*://", path) or not path.startswith("/") or any(inside(path, at) for at in NOT_FILES):
            found.append(_told(entry, None, "not a file here"))
        elif entry.get("in_root") is not None:
            found.append(_in_source(job, entry))
        else:
            found.append(_outside(job, entry))
    link_home(job)
    for _, below in job.order.folders_written_to():
        if below:
            (job.folder.source / relative(below, "a folder of outputs")).mkdir(parents=True, exist_ok=True)
    how = [str(entry["how"]) for entry in found]
    return ", ".join(f"{how.count(kind)} {kind}" for kind in dict.fromkeys(how)) or "the run read no data files"


def _in_source(job: Job, entry: dict[str, Any]) -> dict[str, Any]:
    """A file below the source's root: part of the snapshot, or (ignored by git, large) beside it."""
    place = job.folder.source / relative(entry["in_root"], "an input")
    if place.is_file():
        digest = _measure(place, entry)
        if _same(entry, digest, place) or entry["in_root"] in (job.order.overrides.get("files") or {}):
            return _told(entry, digest, "in the source")
        if not entry.get("stored"):
            raise _differs(entry, digest)
        place.unlink()
    if entry.get("stored") and is_digest(entry.get("digest")):
        job.stored(entry["digest"], entry["path"], place)
        return _told(entry, entry["digest"], "restored")
    original, how = _look(job, entry)
    job.placement.into_source.append((original, place))
    return _told(entry, _check(original, entry), how)


def _outside(job: Job, entry: dict[str, Any]) -> dict[str, Any]:
    path = entry["path"]
    if mapped := _in_environment(job, entry):
        return mapped
    stored = bool(entry.get("stored")) and is_digest(entry.get("digest"))
    if os.path.exists(path):
        digest = _measure(Path(path), entry)
        if _same(entry, digest, Path(path)):
            job.placement.in_place.append(path)
            return _told(entry, digest, "in place")
        if not stored:
            raise _differs(entry, digest)
    if stored:
        target = job.folder.stage / f"{len(job.placement.restored):06}"
        job.stored(entry["digest"], path, target)
        job.placement.restored.append((target, path))
        return _told(entry, entry["digest"], "restored")
    original, how = _look(job, entry)
    digest = _check(original, entry)
    job.placement.mapped.append((str(original), path))
    return _told(entry, digest, how)


def _look(job: Job, entry: dict[str, Any]) -> tuple[str, str]:
    """Where an input that is not stored lies now: its old path, or through the worker's mount map."""
    path = entry["path"]
    if os.path.exists(path):
        return path, "in place"
    for old, new in sorted(job.settings.mounts.items(), key=lambda pair: len(pair[0]), reverse=True):
        below = inside(path, old)
        if below is not None and os.path.exists(candidate := os.path.normpath(os.path.join(new, below))):
            return candidate, "mapped"
    raise RecipeFailure(
        "data_missing",
        f"{path} was read by the run and is not on this worker; only its fingerprint was stored. "
        "Put the file back there, or tell the worker where its folder "
        f'is now: ENCORE_WORKER_MOUNTS=\'{{"{os.path.dirname(path)}": "/new/folder"}}\'.',
        missing=path,
        expected=entry.get("digest"),
    )


def _in_environment(job: Job, entry: dict[str, Any]) -> dict[str, Any] | None:
    """A file that a package ships lies in the new environment at the same place."""
    python = job.order.environment.get("python") or {}
    prefix = python.get("prefix")
    if job.environment is None or not isinstance(prefix, str) or prefix in ("", "/", "/usr"):
        return None
    below = inside(entry["path"], prefix)
    if below is None:
        return None
    here = job.environment.folder / below
    if not here.is_file():
        return None
    digest = _measure(here, entry)
    return _told(entry, digest, "mapped") if _same(entry, digest, here) else None


def link_home(job: Job) -> None:
    """HOME is new and empty, so what was found below the old one (model and data caches) is linked into it."""
    home = job.order.original_home
    if not home:
        return
    for entry in job.order.inputs:
        below = inside(entry["path"], home)
        if below is None or below == "." or entry.get("in_root") is not None or ".." in below.split("/"):
            continue
        link = job.folder.home / below
        link.parent.mkdir(parents=True, exist_ok=True)
        if not os.path.lexists(link):
            link.symlink_to(entry["path"])


def _measure(path: Path, entry: dict[str, Any]) -> str | None:
    if path.is_dir() or entry.get("strength", "full") != "full":
        return None
    try:
        return file_digest(path)
    except OSError as error:
        raise RecipeFailure("data_missing", f"{entry['path']} cannot be read by the worker ({error}).", missing=entry["path"]) from error


def _same(entry: dict[str, Any], digest: str | None, path: Path) -> bool:
    if digest is not None and is_digest(entry.get("digest")):
        return digest == entry["digest"]
    size = entry.get("bytes")
    return path.is_dir() or not isinstance(size, int) or path.stat().st_size == size


def _check(path: str, entry: dict[str, Any]) -> str | None:
    digest = _measure(Path(path), entry)
    if not _same(entry, digest, Path(path)):
        raise _differs(entry, digest)
    return digest


def _differs(entry: dict[str, Any], found: str | None) -> RecipeFailure:
    return RecipeFailure(
        "data_differs",
        f"{entry['path']} is not the file that the run read: recorded {entry.get('digest') or entry.get('bytes')}, "
        f"found {found or 'another size'}. Put the recorded file back.",
        missing=entry["path"],
        expected=entry.get("digest"),
        found=found,
    )


def _told(entry: dict[str, Any], found: str | None, how: str) -> dict[str, Any]:
    expected = entry.get("digest")
    equal = found == expected if found and expected else None
    return {"path": entry["path"], "expected": expected, "found": found, "equal": equal, "how": how}
