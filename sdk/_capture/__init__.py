"""What a run's recipe holds, gathered on both sides of the journal.

In the trainer: `install` (at import), `begin` (at init: only what the trainer alone knows, within some 20 ms, no child process) and
`complete` (at finish). In the sender: `node.run` (source, environment, hardware), `data.Fingerprints` and `system.Sampler`.
Each section is gathered in a try of its own: a capture that fails leaves a gap that preflight shows, never a failed run.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from .. import _secrets
from . import command, hook, hyper, numerics, paths


class Writer(Protocol):
    """What capture needs of a run's writer."""

    folder: Path
    rank: int
    settings: Any

    def emit(self, doc: dict[str, Any], step: int | None = None) -> Any: ...

    def put_blob(self, data: bytes) -> str: ...


_argv: list[str] = list(sys.argv)
_cwd: str = ""
_installed_us = 0


class _State:
    """What `complete` compares with."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.errors: list[str] = []
        self.numerics: dict[str, Any] = {}
        self.loaded: list[str] = []
        self.capture: dict[str, Any] = {}
        self.modules: set[str] = set()


_states: dict[int, _State] = {}


def install() -> None:
    """At `import sdk`: remember the command line before the program changes it, and hear what it opens. Cheap; never raises."""
    global _argv, _cwd, _installed_us
    try:
        if not _installed_us:
            _installed_us = time.time_ns() // 1000
            _argv = list(sys.argv)
            _cwd = os.getcwd()
        hook.install()
        hyper.install()
    except Exception:  # noqa: S110 - a tracker that cannot look is no reason to stop an import
        pass


def begin(writer: Writer | None) -> None:
    """Gather what only this process knows, hand the rest to the sender by `capture.json`. Never raises."""
    install()
    if writer is None:
        return
    state = _State()
    _states[id(writer)] = state
    rerun = _guard(state, "rerun", _read_rerun)
    if rerun and rerun.get("rng"):
        restored = _guard(state, "rng", lambda: numerics.restore(rerun, writer.rank))
        state.numerics["restored"] = restored
    started_us = _guard(state, "started", paths.process_started_us) or _installed_us
    found_entry = _guard(state, "entry", command.entry) or {"kind": "script", "name": None, "path": None}
    cwd = _cwd or os.getcwd()
    root = _rerun_root(rerun, found_entry.get("path"), cwd)
    if root is None:
        root, _ = _guard(state, "root", lambda: paths.source_root(found_entry.get("path"), cwd)) or (cwd, False)
    world = _world_size(writer)
    argv = _argv or list(sys.argv)

    if hook.hook is not None:
        hook.hook.refresh(os.path.abspath(writer.folder.parent), os.path.realpath(writer.folder.parent))
    _guard(state, "capture.json", lambda: _write_capture(writer, state, found_entry, cwd, root, argv, started_us))
    if writer.rank == 0:
        _section(writer, state, "command", lambda: command.facts(
            cwd=cwd, root=root, world_size=world, argv=argv, found_entry=found_entry,
            asked=command.environ.asked_for(command.entry_text(found_entry.get("path"))),
        ))  # fmt: skip
        _section(writer, state, "hyper", lambda: hyper.facts(argv))
        hyper.listen(lambda: _section(writer, state, "hyper", lambda: hyper.facts(argv)))
    _section(writer, state, "numerics", lambda: _numerics(writer, state, argv), merge=True)
    if writer.rank == 0:
        _section(writer, state, "hardware", numerics.libraries, merge=True)
        _section(
            writer, state, "data", lambda: {"inputs": [], "outputs": [], "caches": [], "seen_by_hook": hook.hook is not None}, merge=True
        )
    _guard(state, "hook", lambda: hook.hook.begin(writer.emit, str(writer.folder)) if hook.hook else None)
    _tell_sdk(writer, state)


def complete(writer: Writer | None) -> None:
    """At finish: what the program loaded and switched after init. Never raises."""
    state = _states.pop(id(writer), None)
    if writer is None or state is None:
        return
    hyper.listen(None)
    before = len(state.errors)
    if writer.rank == 0:
        late = _guard(state, "at_finish", lambda: _at_finish(state)) or {}
        if late:
            _guard(state, "at_finish", lambda: writer.emit({"type": "recipe", "section": "numerics", "value": late, "merge": True}))
        _guard(state, "capture.json", lambda: _add_modules(writer, state))
    if hook.hook is not None:
        lost = hook.hook.lost
        if lost:
            _guard(
                state,
                "lost",
                lambda: writer.emit(
                    _gap("data", "opened files", f"{lost} files were opened before init and not noted", "call sdk.init earlier")
                ),
            )
        _guard(state, "hook", hook.hook.end)
    if len(state.errors) > before:
        _tell_sdk(writer, state)


def _guard(state: _State, what: str, do: Callable[[], Any]) -> Any:
    """The result of `do`, or None with a line in `sdk.errors`."""
    start = time.perf_counter()
    try:
        return do()
    except Exception as error:
        state.errors.append(_secrets.mask_text(f"{what}: {type(error).__name__}: {error}")[:1000])
        return None
    finally:
        state.seconds[what] = round(state.seconds.get(what, 0.0) + time.perf_counter() - start, 6)


def _section(writer: Writer, state: _State, name: str, gather: Callable[[], dict[str, Any]], merge: bool = False) -> None:
    errors = len(state.errors)
    value = _guard(state, name, gather)
    if value is None:
        value, merge = (
            {
                "gaps": [
                    {
                        "what": name,
                        "why": state.errors[-1] if len(state.errors) > errors else "nothing was found",
                        "mend": "report this line to Encore's maintainers",
                    }
                ]
            },
            True,
        )
    _guard(state, name, lambda: writer.emit({"type": "recipe", "section": name, "value": value, "merge": merge}))


def _gap(section: str, what: str, why: str, mend: str) -> dict[str, Any]:
    return {"type": "recipe", "section": section, "value": {"gaps": [{"what": what, "why": why, "mend": mend}]}, "merge": True}


def _tell_sdk(writer: Writer, state: _State) -> None:
    if writer.rank == 0 or state.errors:
        face = sys.modules.get(__package__.rpartition(".")[0])
        value: dict[str, Any] = {"version": getattr(face, "__version__", None), "errors": list(state.errors)}
        if writer.rank == 0:
            value["capture_seconds"] = dict(state.seconds)
        state.errors = []
        _guard(state, "sdk", lambda: writer.emit({"type": "recipe", "section": "sdk", "value": value, "merge": True}))


def _read_rerun() -> dict[str, Any] | None:
    file = os.environ.get("ENCORE_RERUN")
    if not file:
        return None
    value = json.loads(Path(file).read_text(encoding="utf-8"))
    if not isinstance(value, dict) or value.get("format", 1) > 1:
        raise ValueError(f"{file} is no rerun file that this version knows")
    return value


def _rerun_root(rerun: dict[str, Any] | None, entry: str | None, cwd: str) -> str | None:
    """A restored tree has no .git to tell its root, so the runner says it; else a script in a subfolder would seem to have moved."""
    root = (rerun or {}).get("root")
    if not isinstance(root, str) or paths.inside(entry or cwd, root) is None:
        return None
    return root


def _world_size(writer: Writer) -> int:
    for source in (writer, getattr(writer, "settings", None), getattr(writer, "launch", None)):
        value = getattr(source, "world_size", None)
        if isinstance(value, int) and value > 0:
            return value
    for name in ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_NTASKS"):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return 1


def _numerics(writer: Writer, state: _State, argv: list[str]) -> dict[str, Any]:
    value: dict[str, Any] = {"rng": {str(writer.rank): numerics.rng(writer.put_blob)}}
    if writer.rank == 0:
        state.loaded = numerics.loaded()
        value.update(
            seeds=numerics.seeds(hyper.seed_candidates(argv)),
            determinism=numerics.determinism(),
            threads=numerics.threads(),
            dtypes=numerics.dtypes(),
            loaded=state.loaded,
        )
        if state.numerics.get("restored") is not None:
            value["restored"] = state.numerics["restored"]
        state.numerics = value
    return value


def _at_finish(state: _State) -> dict[str, Any]:
    """What differs from init: the later value is beside the earlier one, under `at_finish`."""
    now: dict[str, Any] = {"determinism": numerics.determinism(), "threads": numerics.threads(), "dtypes": numerics.dtypes()}
    changed: dict[str, Any] = {}
    for part, values in now.items():
        before = state.numerics.get(part, {})
        different = {name: value for name, value in values.items() if before.get(name) != value}
        if different:
            changed[part] = different
    late: dict[str, Any] = {}
    if changed:
        late["at_finish"] = changed
    torch = numerics._module("torch")
    if torch is not None:
        seed = numerics._quiet(torch.initial_seed)
        if seed is not None and seed != state.numerics.get("seeds", {}).get("torch"):
            late.setdefault("at_finish", {})["seeds"] = {"torch": seed}
    new = [name for name in numerics.loaded() if name not in state.loaded]
    if new:
        late["gaps"] = [
            {"what": f"random state of {name}", "why": f"{name} was imported after sdk.init", "mend": f"import {name} first, or seed it"}
            for name in new
            if name in ("numpy", "torch")
        ]
    return late


def _modules() -> dict[str, str]:
    """Loaded modules of the program's own: what lies in no library and is not ours."""
    found = {}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if isinstance(file, str) and not paths.is_library(file) and not paths.is_own(file) and not file.startswith("<"):
            found[name] = os.path.abspath(file)
    return found


def _write_capture(
    writer: Writer, state: _State, found_entry: dict[str, Any], cwd: str, root: str, argv: list[str], started_us: int
) -> None:
    modules = _modules()
    state.modules = set(modules)
    state.capture = {
        "format": 1,
        "cwd": cwd,
        "root": root,
        "argv": _secrets.mask_argv(argv),
        "sys_path": [os.path.abspath(each) if each else cwd for each in sys.path if isinstance(each, str)],
        "executable": sys.executable,
        "prefix": sys.prefix,
        "base_prefix": sys.base_prefix,
        "python": {"version": ".".join(map(str, sys.version_info[:3])), "implementation": sys.implementation.name, "build": sys.version},
        "entry": found_entry,
        "pid": os.getpid(),
        "started_us": started_us,
        "watched_us": _installed_us,
        "rank": writer.rank,
        "run": Path(writer.folder).parent.name,
        "modules": modules,
        "skip": list(hook.hook.skip) if hook.hook else [],
        "console": paths.console_files(),
        "env": command.environ.facts()["env"],
    }
    _store_capture(writer, state)


def _store_capture(writer: Writer, state: _State) -> None:
    target = Path(writer.folder) / "capture.json"
    aside = target.with_name(f".capture.json.{os.getpid()}")
    aside.write_text(json.dumps(state.capture), encoding="utf-8")
    os.replace(aside, target)


def _add_modules(writer: Writer, state: _State) -> None:
    """Modules that were imported after init are told too: the sender looks whether the snapshot has them."""
    modules = _modules()
    if set(modules) - state.modules and state.capture:
        state.capture["modules"] = {**state.capture["modules"], **modules}
        _store_capture(writer, state)
