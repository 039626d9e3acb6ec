"""A logger for Lightning: ``Trainer(logger=EncoreLogger(project="…"))``, for ``lightning`` and for ``pytorch_lightning``.

Rank 0 logs, as with Lightning's own loggers. Hyper-parameters become the config, each checkpoint an event with its path and score.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Mapping
from typing import Any

from ._shared import Joined, numbers, settle


def _package() -> str:
    """Both packages hold the same code under their own names; a Trainer of the one wants a logger of the one."""
    loaded = [name for name in ("lightning.pytorch", "pytorch_lightning") if name in sys.modules]
    for name in (*loaded, "lightning.pytorch", "pytorch_lightning"):
        with contextlib.suppress(ImportError):
            importlib.import_module(f"{name}.loggers.logger")
            return name
    raise ImportError("EncoreLogger needs Lightning: pip install lightning")


_loggers: Any = importlib.import_module(f"{_package()}.loggers.logger")
Logger, rank_zero_experiment = _loggers.Logger, _loggers.rank_zero_experiment
rank_zero_only: Any = importlib.import_module(f"{_package()}.utilities.rank_zero").rank_zero_only


class EncoreLogger(Logger):  # type: ignore[misc,valid-type,unused-ignore]
    """``prefix`` goes before each key; all else are arguments of ``sdk.init`` for the run that it begins where none is open."""

    def __init__(self, *, prefix: str = "", **init: Any) -> None:
        super().__init__()
        self._joined = Joined(init)
        self._prefix = f"{prefix}/" if prefix else ""
        self._checkpoints: set[tuple[str, Any]] = set()

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The run: ``logger.experiment.event(…)``, ``logger.experiment.summary[…] = …``."""
        return self._joined.begin()

    @property
    def name(self) -> str:
        run = self._joined.run
        return str(run.project if run is not None else self._joined.arguments.get("project") or "encore")

    @property
    def version(self) -> str | None:
        run = self._joined.run
        return run.id if run is not None else self._joined.arguments.get("id")

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        values = numbers(metrics, self._prefix)
        if values:
            self.experiment.log(values, step)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *_: Any, **__: Any) -> None:
        given = params if isinstance(params, Mapping) else getattr(params, "__dict__", None)
        if given:
            settle(self.experiment, given)

    @rank_zero_only
    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        best = dict(getattr(checkpoint_callback, "best_k_models", None) or {})
        last = getattr(checkpoint_callback, "last_model_path", None)
        for path, score in {**({last: None} if last else {}), **best}.items():
            with contextlib.suppress(Exception):
                score = None if score is None else float(score)
            if path and (path, score) not in self._checkpoints:
                self._checkpoints.add((path, score))
                step = getattr(checkpoint_callback, "_last_global_step_saved", None)
                data = {"path": path, "score": score, "monitor": getattr(checkpoint_callback, "monitor", None)}
                self.experiment.event("checkpoint", data, step)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Called at the end of each fit, validate and test, so it is not the run's end: that is the program's, or run.finish()."""
        run = self._joined.run
        if run is not None and status != "success":
            run.event("note", {"source": "lightning", "status": status})

    def __getstate__(self) -> dict[str, Any]:
        """Spawned ranks get a copy; rank 0 of them joins the launch's run by itself."""
        return {**self.__dict__, "_joined": Joined(self._joined.arguments)}
