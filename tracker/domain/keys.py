"""What a metric key means: better is which way, how ranks are put together, and whether it proves anything about a rerun.

Definitions (``sdk.define``, or set on the page) are globs; a later one wins, field by field, over an earlier one and over the
defaults by name. A name says what kind of number it is: ``train/loss`` falls, ``val/acc`` rises, ``step_seconds`` measures the
machine and ``lr`` is set by the program. Only quality and loss depend on the data, so only they are evidence.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import translate
from functools import lru_cache
from typing import Any

KINDS = ("quality", "loss", "time", "rate", "schedule")
REDUCTIONS = ("mean", "sum", "max", "min", "last", "norm", "median")
GOALS = ("min", "max")


@dataclass(frozen=True)
class KeyMeaning:
    """``evidence``: whether equal values say that two runs agree; ``why_not`` says why they do not.

    ``reduce`` puts together the ranks along the coordinate axes ``over`` (none named: all ranks); what is then left along the other
    axes, by mean. ``same``: every rank logs the same value, so that another one is a desync.
    """

    goal: str | None = None
    kind: str = "quality"
    reduce: str = "mean"
    x: str = "step"
    evidence: bool = True
    result: bool = False
    why_not: str | None = None
    over: tuple[str, ...] = ()
    same: bool = False


def _set(names: str) -> frozenset[str]:
    return frozenset(names.split())


_TIME = _set(
    """
    time times runtime walltime duration elapsed seconds secs sec ms msec latency eta timestamp minutes hours
    """
)
_RATE = _set(
    """
    throughput fps sps mfu hfu flops tflops gflops bandwidth memory mem vram rss watts power utilization utilisation goodput
    """
)
_LOSS = _set(
    """
    loss losses err error errors mse mae rmse mape rmsle nll bce ce xent entropy perplexity ppl kl fid kid wer cer bpc bpb brier
    logloss regret hinge deviance impurity
    """
)
_BETTER_HIGH = _set(
    """
    acc accuracy f1 fbeta auc auroc auprc ap map map50 map75 precision recall sensitivity specificity bleu rouge rouge1 rouge2
    rougel meteor iou miou dice jaccard reward rewards return returns score r2 psnr ssim top1 top5 ndcg mrr hits success winrate
    kappa mcc correct likelihood elbo silhouette correlation pearson spearman
    """
)
_SCHEDULE = _set(
    """
    lr lrs momentum epoch epochs step steps iteration iterations iter iters temperature timestep timesteps progress wd
    """
)
_COUNTED = _set("seen num tokens samples examples timesteps timestep progress iter iters iteration iterations steps")
_SCHEDULE_PHRASES = (
    "learning rate",
    "weight decay",
    "tokens seen",
    "samples seen",
    "examples seen",
    "batch size",
    "num tokens",
    "global step",
)
_RATE_PHRASES = ("per sec", "per second", "per s", "per ms", "per minute", "per hour", "it s")
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_NAMES_WITH_DIGITS = re.compile(r"(?<![a-z0-9])(?:f1|r2|top1|top5|map50|map75|rouge[12]|fbeta)(?![a-z0-9])")

_WHY_NOT = {
    "time": "a time: it depends on the machine's speed, not on the data",
    "rate": "a rate or load: it depends on the machine, not on the data",
    "schedule": "a schedule or counter: the program sets it, the data do not",
}


def meaning(key: str, definitions: Any = ()) -> KeyMeaning:
    """What ``key`` means under ``definitions``: pairs ``(pattern, fields)`` in the order they were made, a mapping pattern → fields,
    objects ``{"pattern", …fields}`` or rows with ``pattern`` and ``fields``. Fields with unknown values are passed over."""
    given: dict[str, Any] = {}
    for pattern, fields in _pairs(definitions):
        if glob(pattern).match(key):
            given.update({name: value for name, value in fields.items() if value is not None})
    default = _by_name(key)
    kind = _one_of(given.get("kind"), KINDS) or default.kind
    result = given.get("result") is True
    evidence = result or kind in ("quality", "loss")
    why_not = None if evidence else (default.why_not if kind == default.kind else _WHY_NOT[kind])
    goal = _one_of(given.get("goal"), GOALS) or (default.goal if kind == default.kind else "min" if kind == "loss" else None)
    reduce = _one_of(given.get("reduce"), REDUCTIONS) or (default.reduce if kind == default.kind else _reduction(kind))
    x = given.get("x")
    same = given["same"] if isinstance(given.get("same"), bool) else default.same and kind == default.kind
    x = x if isinstance(x, str) and x else "step"
    return KeyMeaning(goal, kind, reduce, x, evidence, result, why_not, _axes(given.get("over")), same)


def _axes(value: Any) -> tuple[str, ...]:
    names = [value] if isinstance(value, str) else value if isinstance(value, list | tuple) else []
    return tuple(dict.fromkeys(name for name in names if isinstance(name, str) and name))


def _one_of(value: Any, allowed: tuple[str, ...]) -> str | None:
    return value if isinstance(value, str) and value in allowed else None


def _reduction(kind: str) -> str:
    # The slowest rank sets the pace; what is counted per second adds up; a schedule is the same everywhere.
    return {"time": "max", "rate": "sum", "schedule": "last"}.get(kind, "mean")


def _pairs(definitions: Any) -> Iterable[tuple[str, Mapping[str, Any]]]:
    if isinstance(definitions, Mapping):
        definitions = definitions.items()
    for item in definitions:
        if isinstance(item, Mapping):
            yield str(item.get("pattern", "")), item
        elif isinstance(item, tuple | list):
            yield str(item[0]), item[1]
        else:
            yield item.pattern, item.fields


@lru_cache(maxsize=4096)
def glob(pattern: str) -> re.Pattern[str]:
    """``pattern`` of a definition (``train/*``), to match whole keys with."""
    return re.compile(translate(pattern))


@lru_cache(maxsize=65536)
def _by_name(key: str) -> KeyMeaning:
    if key.startswith("system/"):
        return KeyMeaning(None, "rate", "mean", evidence=False, why_not="a measurement of the machine")
    path = key.replace(".", "/").split("/")
    last = _words(path[-1])
    words = last | {word for part in path[:-1] for word in _words(part)}
    phrase = " ".join(re.split(r"[^a-z0-9]+", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", key).lower()))
    if any(f" {p} " in f" {phrase} " for p in _RATE_PHRASES) or words & _RATE:
        load = bool(words & {"memory", "mem", "vram", "rss", "utilization", "utilisation", "mfu", "hfu"})
        return KeyMeaning(
            "max" if last & {"throughput", "mfu", "hfu"} else None,
            "rate",
            "mean" if load else "sum",
            evidence=False,
            why_not=_WHY_NOT["rate"],
        )
    if words & _TIME or (last and path[-1].lower().endswith(("_s", "_us", "_ns"))):
        return KeyMeaning(None, "time", "max", evidence=False, why_not=_WHY_NOT["time"])
    if last & _LOSS and "scale" not in last:
        return KeyMeaning("min", "loss")
    if last & _BETTER_HIGH:
        return KeyMeaning("max", "quality")
    if last & _SCHEDULE or "lr" in words or any(p in phrase for p in _SCHEDULE_PHRASES):
        # What is counted may differ from rank to rank; what is set may not.
        return KeyMeaning(None, "schedule", "last", evidence=False, why_not=_WHY_NOT["schedule"], same=not words & _COUNTED)
    if words & _LOSS and "scale" not in words:
        return KeyMeaning("min", "loss")  # losses/box, loss/total
    if words & _BETTER_HIGH:
        return KeyMeaning("max", "quality")
    return KeyMeaning()


def _words(text: str) -> set[str]:
    """``valLoss_step2`` → {val, loss, step, 2}; names such as f1 and top5 stay whole."""
    return {word.lower() for word in _WORDS.findall(text)} | set(_NAMES_WITH_DIGITS.findall(text.lower()))
