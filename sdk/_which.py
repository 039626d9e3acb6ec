"""Which run a process opens: the one it was told, the one its checkpoints belong to, or that of its launch."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import _launch, _liveness, _process
from ._ids import derived_id, is_id
from ._plain import text
from ._settings import Settings
from .errors import UsageError

MARKER = ".encore-run.json"  # in the checkpoint folder: the run whose checkpoints lie there


@dataclass
class Which:
    id: str
    joiner: Any = None  # of a launch over several nodes that has no name of its own (_join.Joiner)
    marker: Path | None = None  # to be written by rank 0
    own: str | None = None  # what the ranks of this launch would write if nobody had said anything else
    is_named: bool = True  # somebody says which run, so it may be there already


def which(arguments: Mapping[str, Any], settings: Settings, launch: _launch.Launch, project: str, turn: int) -> Which:
    """Never raises but UsageError, under ENCORE_STRICT, for resume="must" with nothing to resume."""
    resume = arguments.get("resume")
    folder = _checkpoints(arguments, settings)
    marker = folder / MARKER if folder is not None else None
    # A rerun is a new run of its own, whatever id the script names.
    given = (settings.rerun or {}).get("run") or arguments.get("id") or _told(settings, launch)
    if resume == "never" and given is not None and settings.rerun is None:
        _say(f'resume="never" begins a new run: the id {given} is not used')
        given = None
    if given is not None:
        return Which(_as_id(given), marker=marker)
    own, certain = launch.run_id(turn, settings.journal if settings.mode != "disabled" else None)
    if resume in ("auto", "allow", "must"):
        found, why, keep = _resumed(marker, str(resume), project, own)
        if found is not None:
            return Which(found, marker=marker, own=own)
        if why is not None and (resume != "allow" or marker is not None):
            if resume == "must" and settings.strict:
                raise UsageError(f'resume="must": {why}')
            if launch.rank == 0:
                _say(f'resume="{resume}": {why}; this is a new run')
        marker = None if keep else marker
    is_named = launch.kind != "python" or launch.joins is not None or resume == "auto"
    if settings.mode == "disabled" or (certain and not launch.is_spread):
        return Which(own, marker=marker, own=own, is_named=is_named)
    from ._join import Joiner

    joiner = Joiner(launch, own, turn, settings.journal)
    return Which(joiner.begin(), joiner, marker, own)


def mark(path: Path, run: Any, state: str, own: str | None) -> None:
    """Leaves word in the checkpoint folder, whole or not at all. By rank 0, at init and at the end."""
    try:
        if state != "running" and (_read(path) or {}).get("run") != run.id:
            return  # another run has taken the folder over meanwhile
        path.parent.mkdir(parents=True, exist_ok=True)
        pid = os.getpid()
        word = {"format": 1, "run": run.id, "project": run.project, "state": state, "launch": own, "time_us": time.time_ns() // 1000}
        who = {"host": _process.host(), "boot": _process.boot_id(), "pid_namespace": _process.pid_namespace(), "pid": pid}
        aside = path.with_name(f"{path.name}.{who['host']}.{pid}")
        aside.write_text(json.dumps({**word, **who, "pid_started": _process.started(pid)}))
        aside.replace(path)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        _say(f"{path} cannot be written ({why}): a later job will not find this run by its checkpoints")


def _checkpoints(arguments: Mapping[str, Any], settings: Settings) -> Path | None:
    if settings.rerun is not None:  # a rerun leaves the folder of the run that it repeats alone
        return None
    given = arguments.get("checkpoint_dir") or os.environ.get("ENCORE_CHECKPOINT_DIR")
    try:
        return Path(os.fspath(given)).expanduser().absolute() if given else None
    except (TypeError, RuntimeError, OSError) as error:
        _say(f"checkpoint_dir={given!r} is no path ({error})")
        return None


def _told(settings: Settings, launch: _launch.Launch) -> str | None:
    """ENCORE_RUN_ID; but a program that a tracked one starts inherits it with all else, and is a run of its own."""
    given = settings.run_id
    if given is not None and launch.parent is not None and _as_id(given) == launch.parent:
        return None
    return given


def _as_id(given: Any) -> str:
    return str(given) if is_id(str(given)) else derived_id("named", given)


def _resumed(marker: Path | None, resume: str, project: str, own: str) -> tuple[str | None, str | None, bool]:
    """(run, why not, leave the marker as it is)."""
    if marker is None:
        return None, "nothing says which run: give checkpoint_dir=… (or ENCORE_CHECKPOINT_DIR), or an id (or ENCORE_RUN_ID)", False
    try:
        found = _read(marker)
    except ValueError as error:
        return None, f"{marker} cannot be read ({error})", False
    except OSError as error:
        return None, f"{marker} cannot be read ({error.strerror or error})", True
    if found is None:
        return None, f"{marker} is not there" if resume == "must" else None, False
    run = found["run"]
    if own in (run, found.get("launch")):  # another rank of this launch was faster
        return run, None, False
    if found.get("project") != text(project):
        return None, f"the checkpoints in {marker.parent} are of run {run} in project {found.get('project')}, not {project}", False
    if resume == "auto" and found.get("state") == "finished":
        return None, f"run {run}, whose checkpoints lie in {marker.parent}, has finished", False
    if found.get("pid") != os.getpid() and found.get("state") == "running" and _liveness.alive(marker.parent, found) is True:
        return None, f"run {run}, whose checkpoints lie in {marker.parent}, is still written by process {found.get('pid')}", True
    return run, None, False


def _read(marker: Path) -> dict[str, Any] | None:
    """None if there is none. ValueError for what is no marker of ours."""
    try:
        found = json.loads(marker.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not isinstance(found, dict) or not is_id(found.get("run")):
        raise ValueError("it names no run")
    if found.get("format") != 1:
        raise ValueError(f"it has format {found.get('format')!r}, and this version reads 1")
    return found


def _say(sentence: str) -> None:
    with contextlib.suppress(Exception):
        print(f"encore: {sentence}", file=sys.stderr, flush=True)
