"""A callback for Hugging Face's Trainer: ``Trainer(…, callbacks=[EncoreCallback()])``.

Metrics get the keys that the Trainer's own integrations use (``train/loss``, ``eval/accuracy``) at its global step; arguments and the
model's configuration become the config; each checkpoint becomes an event with its path. The Trainer averages over ranks before it logs,
so rank 0 logs the metrics; every rank opens the run, so that its console, its exit and its machine are seen.
"""

from __future__ import annotations

import os
from typing import Any

from transformers import TrainerCallback  # type: ignore[import-not-found,unused-ignore]

from ._shared import Joined, numbers, settle

# At the end of training the Trainer logs these beside no loss: they speak of the training as a whole.
_WHOLE = ("train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss", "total_flos")


class EncoreCallback(TrainerCallback):
    """Takes the arguments of ``sdk.init``, for the run that it begins where none is open."""

    def __init__(self, **init: Any) -> None:
        self._joined = Joined(init)
        self._told = False

    @property
    def run(self) -> Any:
        """The run it logs into; None before training begins."""
        return self._joined.run

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.is_hyper_param_search:  # each trial is a run of its own
            self._joined.end()
            self._told = False
        self._begin(args, state, model)

    def _begin(self, args: Any, state: Any, model: Any = None) -> Any:
        trial = getattr(state, "trial_name", None)
        name = trial or (args.run_name if args.run_name != args.output_dir else None)
        run = self._joined.begin(name=name, group=args.run_name if trial else None)
        if not self._told and state.is_world_process_zero:
            self._told = True
            settle(run, _config(args, model))
            if getattr(state, "trial_params", None):
                settle(run, state.trial_params)
        return run

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, model: Any = None, **_: Any) -> None:
        if not logs:
            return
        run = self._begin(args, state, model)
        if not state.is_world_process_zero:
            return
        values = {_key(key): value for key, value in numbers(logs).items()}
        whole = {key: value for key, value in values.items() if key.removeprefix("train/") in _WHOLE}
        for key, value in whole.items():
            run.summary[key] = value
        rest = {key: value for key, value in values.items() if key not in whole}
        if rest:
            run.log(rest, int(state.global_step))

    def on_predict(self, args: Any, state: Any, control: Any, metrics: Any = None, model: Any = None, **_: Any) -> None:
        if metrics and state.is_world_process_zero:
            run = self._begin(args, state, model)
            run.log({_key(key): value for key, value in numbers(metrics).items()}, int(state.global_step))

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        run = self._joined.run
        if run is not None and state.is_world_process_zero:
            path = os.path.abspath(os.path.join(args.output_dir, f"checkpoint-{state.global_step}"))
            data = {"path": path, "epoch": state.epoch, "best": getattr(state, "best_model_checkpoint", None)}
            run.event("checkpoint", data, int(state.global_step))

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        run = self._joined.run
        if run is None or not state.is_world_process_zero:
            return
        if getattr(state, "best_metric", None) is not None:
            run.summary[f"best/{args.metric_for_best_model or 'loss'}"] = state.best_metric
        # Not finished here: evaluate() and predict() come after train(). The run ends with the program, or by run.finish().


def _key(key: str) -> str:
    for kind in ("eval", "test"):
        if key.startswith(f"{kind}_"):
            return f"{kind}/{key[len(kind) + 1 :]}"
    return key if "/" in key else f"train/{key}"


def _config(args: Any, model: Any) -> dict[str, Any]:
    found = {key: value for key, value in args.to_dict().items() if key not in ("push_to_hub_token", "hub_token")}
    about = getattr(model, "config", None)
    if about is not None:
        found["model"] = about if isinstance(about, dict) else about.to_dict()
    count = getattr(model, "num_parameters", None)
    if callable(count):
        found["model_parameters"] = int(count())
    return found
