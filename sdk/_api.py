"""The face's functions. All speak of the current run; without one they do nothing but say so once."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from . import _mesh, _numbers, _run
from ._config import Config, Summary
from ._run import Run
from .errors import UsageError

_said: set[str] = set()
_seeded: dict[str, int] = {}


def init(
    project: str | None = None,
    config: Any = None,
    name: str | None = None,
    group: str | None = None,
    job_type: str | None = None,
    tags: Any = None,
    notes: str | None = None,
    resume: str | None = None,
    fork_from: Any = None,
    rewind_to: int | None = None,
    mode: str | None = None,
    id: str | None = None,
    checkpoint_dir: Any = None,
    mesh: Any = None,
    sync_tensorboard: bool | None = None,
) -> Run:
    """Opens a run and returns it; also the context manager of it. Never waits for the network and never fails a run.

    config: what was chosen (a dict, an argparse Namespace, a dataclass). resume: "allow" or "must", with `id`: a further start of that run;
    "auto" goes on with the run whose checkpoints lie in `checkpoint_dir` (else ENCORE_CHECKPOINT_DIR), as chained jobs do. rewind_to: what
    the run has beyond this step becomes an old branch. fork_from: (run, step), whose history the new run goes on.
    sync_tensorboard: what this process writes for TensorBoard becomes points too.
    mode: "online", "offline" or "disabled"; else ENCORE_MODE. All ranks of one launch join one run by themselves. mesh: see set_mesh.
    """
    held = config is not None and sys.getrefcount(config) > _LITERAL
    lineage = {"resume": resume, "fork_from": fork_from, "rewind_to": rewind_to}
    if any(value is not None for value in lineage.values()):
        from ._resume import check

        lineage = check(**lineage)
    arguments = {
        "project": project,
        "config": config,
        "name": name,
        "group": group,
        "job_type": job_type,
        "tags": tags,
        "notes": notes,
        **lineage,
        "mode": mode,
        "id": id,
        "checkpoint_dir": checkpoint_dir,
        "sync_tensorboard": sync_tensorboard,
    }
    run = _run.init(arguments, held)
    if _seeded:
        _tell_seeds(run)
    _mesh.begin(run, mesh)
    return run


def _references(config: Any = None) -> int:
    return sys.getrefcount(config)


_LITERAL = _references(config={})  # of an object that the caller does not keep: `sdk.init(config={"lr": 0.1})`


def log(data: Mapping[str, Any], step: int | None = None) -> None:
    """Log numbers: `log({"train/loss": loss}, step=i)`. Nested dicts join their keys by "/". Never raises, never waits.

    While a run is open `sdk.log` is the journal's own function; this one serves whoever imported the name before.
    """
    run = _run.current
    if run is not None:
        run.log(data, step)
    else:
        _no_run("log")


def log_later(data: Mapping[str, Any], step: int | None = None) -> None:
    """Log values that a GPU still computes, without waiting for them: `log_later({"loss": loss})` with `loss` a tensor of one element.

    Its copy is started now and the point is written, with this step and time, once it is there. For numbers it is log().
    """
    if _run.current is not None:
        _run.current.log_later(data, step)
    else:
        _no_run("log_later")


def finish(exit_code: int | None = None, preempted: bool = False) -> None:
    """Ends the current run and waits until it is delivered, at most ENCORE_FINISH_SECONDS.

    preempted: it ends early and a later job goes on with it (`init(resume="auto")`), as before a time limit.
    """
    if _run.current is not None:
        end = {"state": "preempted", "exit_code": exit_code or 0, "signal": None, "error": None} if preempted else None
        _run.current.finish(exit_code, _outcome=end)


def define(
    pattern: str,
    *,
    goal: str | None = None,
    x: str | None = None,
    kind: str | None = None,
    reduce: str | None = None,
    result: bool | None = None,
    over: Any = None,
    same: bool | None = None,
) -> None:
    """Say what keys mean, by glob: `define("val/*", goal="max", x="tokens", kind="quality", reduce="mean", result=True)`.

    reduce, over: how ranks go together (docs/ranks.md): `define("grad_norm", reduce="norm", over=["tp", "pp"])`. same: all ranks log
    equal values, so that other ones are pointed out.
    """
    for word, value, allowed in (
        ("goal", goal, ("min", "max")),
        ("kind", kind, ("quality", "loss", "time", "rate", "schedule")),
        ("reduce", reduce, ("mean", "sum", "max", "min", "last", "norm", "median")),
    ):
        if value is not None and value not in allowed:
            raise UsageError(f"{word} is one of {', '.join(allowed)}, not {value!r}")
    axes = None if over is None else _mesh.axes(over)
    if _run.current is not None:
        _run.current.define(pattern, goal=goal, x=x, kind=kind, reduce=reduce, result=result, over=axes, same=same)
    else:
        _no_run("define")


def coordinates(**axes: int) -> None:
    """Say where this rank stands: `coordinates(dp=0, tp=1)`. What a mesh, Megatron or ENCORE_COORDINATES say is found by itself."""
    if _run.current is not None:
        _mesh.given(_run.current, axes)
    else:
        _no_run("coordinates")


def set_mesh(mesh: Any) -> None:
    """Take this rank's coordinates from a torch DeviceMesh with named dimensions."""
    if _run.current is not None:
        _mesh.from_mesh(_run.current, mesh)
    else:
        _no_run("set_mesh")


def alert(title: str, text: str = "", level: str = "info") -> None:
    """Tell people: shown on the run's page. level: "info", "warn" or "error"."""
    if _run.current is not None:
        _run.current.alert(title, text, level)
    else:
        _no_run("alert")


def seed(number: int) -> int:
    """Seeds random, numpy and torch (those that are loaded) and notes it in the recipe. Returns the number."""
    _seeded.update(_numbers.seed(number))
    if _run.current is not None:
        _tell_seeds(_run.current)
    return int(number)


def _tell_seeds(run: Run) -> None:
    run._emit({"type": "recipe", "section": "numerics", "value": {"seeds": dict(_seeded)}, "merge": True})


def _no_run(what: str) -> None:
    if what not in _said:
        _said.add(what)
        print(f"encore: sdk.{what}() before sdk.init() or after finish() goes nowhere (said once)", file=sys.stderr)


class _Current:
    """`sdk.config` and `sdk.summary`: those of the run that is open when they are used."""

    def __init__(self, which: str, empty: Any) -> None:
        object.__setattr__(self, "_which", which)
        object.__setattr__(self, "_empty", empty)

    def _target(self) -> Any:
        run = _run.current
        return getattr(run, self._which) if run is not None else self._empty

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target(), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._target(), name, value)

    def __getitem__(self, key: str) -> Any:
        return self._target()[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self._target()[key] = value

    def __delitem__(self, key: str) -> None:
        del self._target()[key]

    def __contains__(self, key: object) -> bool:
        return key in self._target()

    def __iter__(self) -> Any:
        return iter(self._target())

    def __len__(self) -> int:
        return len(self._target())

    def __repr__(self) -> str:
        return repr(self._target())


config: Any = _Current("config", Config())
summary: Any = _Current("summary", Summary())


def current() -> Run | None:
    """The open run, if any."""
    return _run.current


def _rebind(run: Run | None) -> None:
    """`sdk.log` is the open journal's function itself: a layer between would cost a tenth of the call."""
    package = sys.modules[__package__]
    package.log = log if run is None else run.log  # type: ignore[attr-defined]


_run.on_change(_rebind)
