"""Who is to blame for a divergence: the differences of facts, ranked by how likely each is to change numbers, with a reason each.

What was changed on purpose comes first, then what the program computes with. Where nothing differs, the recipe's own weaknesses
(no seed, no hash seed, non-deterministic kernels) are named. The shape of the divergence nudges the order: a difference at the
first step speaks for data, seed, config and code; a late one for arithmetic order and for random state.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tracker.domain.facts import Difference, numeric_package
from tracker.domain.recipe import chosen_seeds

# (beginning of the fact's name, weight, why), the first that fits rules.
_KNOWN: tuple[tuple[str, float, str], ...] = (
    ("data.", 0.9, "the data that were read differ"),
    ("source.git.", 0.05, "only the repository's state differs, not the files"),
    ("source.", 0.88, "the code differs"),
    ("seeds.", 0.85, "another seed starts other random numbers"),
    ("rng.", 0.8, "the random state at the start differs"),
    ("config.", 0.78, "a setting of the run differs"),
    ("hyper.", 0.76, "a setting of the run differs"),
    ("command.world_size", 0.75, "another number of ranks cuts batches and orders sums differently"),
    ("command.launcher.n", 0.74, "another number of processes cuts batches and orders sums differently"),
    ("command.argv", 0.72, "the program was given other arguments"),
    ("python.version", 0.4, "another Python may order and round differently"),
    ("package.torch", 0.68, "kernels change between versions"),
    ("package.numpy", 0.66, "kernels and random generators change between versions"),
    ("env.PYTHONHASHSEED", 0.64, "the order of sets and hashes depends on it"),
    ("threads.cores", 0.45, "the number of cores sets default thread counts, which order sums"),
    ("threads.affinity", 0.4, "fewer or more usable cores change default thread counts, which order sums"),
    ("threads.", 0.62, "another number of threads adds numbers in another order"),
    ("env.OMP_", 0.62, "another number of threads adds numbers in another order"),
    ("env.MKL_", 0.6, "the maths library chooses other code paths"),
    ("determinism.", 0.6, "the choice of kernels depends on it"),
    ("dtypes.", 0.6, "numbers are kept or multiplied in another precision"),
    ("env.NVIDIA_TF32", 0.6, "matrices are multiplied in another precision"),
    ("env.CUBLAS", 0.55, "the choice of GPU kernels depends on it"),
    ("hardware.gpu", 0.55, "another GPU runs other kernels"),
    ("hardware.cpu.cores", 0.4, "the number of cores sets default thread counts, which order sums"),
    ("hardware.cpu.", 0.5, "another CPU takes other vector instructions"),
    ("hardware.cu", 0.5, "GPU libraries change kernels between versions"),
    ("hardware.nccl", 0.45, "reductions between ranks may be added in another order"),
    ("env.NCCL", 0.45, "reductions between ranks may be added in another order"),
    ("platform.libc", 0.35, "exp, log and friends are rounded by the C library"),
    ("platform.", 0.4, "another platform runs other code"),
    ("container.", 0.35, "another image may hold other libraries"),
    ("command.cwd", 0.2, "relative paths may find other files"),
)
_FROM_START = ("data.", "source.", "seeds.", "rng.", "config.", "hyper.", "command.")


def rank(differences: Iterable[Difference], *, at_start: bool, recipe: Mapping[str, Any], limit: int = 10) -> list[dict[str, Any]]:
    """``[{"fact", "why", "weight"}]``, the likeliest first, weights between 0 and 1. ``at_start``: the first step already differs."""
    found: list[dict[str, Any]] = []
    for difference in differences:
        weight, why = _weigh(difference)
        if at_start and difference.fact.startswith(_FROM_START):
            weight = min(1.0, weight + 0.05)
        found.append({"fact": difference.fact, "why": why, "weight": round(weight, 2)})
    if not any(suspect["weight"] >= 0.3 for suspect in found):
        found += list(_weaknesses(recipe))
    return sorted(found, key=lambda suspect: -suspect["weight"])[:limit]


def _weigh(difference: Difference) -> tuple[float, str]:
    weight, why = 0.3, "known to affect numerics"
    if difference.fact.startswith("package."):
        weight, why = (
            (0.5, "a library that computes") if numeric_package(difference.fact[8:]) else (0.1, "probably harmless: not known to compute")
        )
    for beginning, known, reason in _KNOWN:
        if difference.fact.startswith(beginning):
            weight, why = known, reason
            break
    if difference.override:
        # What somebody changed on purpose is the first thing to look at; the order among overrides stays.
        return 0.95 + weight / 25, f"changed on purpose for this rerun: {why}"
    return (weight, why) if difference.numeric else (min(weight, 0.1), why if weight <= 0.1 else "probably harmless")


def _weaknesses(recipe: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    """Why a program may not repeat itself though every recorded fact is the same."""
    numerics = recipe.get("numerics") or {}
    command, hardware = recipe.get("command") or {}, recipe.get("hardware") or {}
    if numerics and not chosen_seeds(numerics) and not any((numerics.get("rng") or {}).values()):
        yield {"fact": "seeds", "why": "no seed was set and no random state was captured", "weight": 0.6}
    determinism = numerics.get("determinism") or {}
    if hardware.get("gpus") and not determinism.get("torch_deterministic_algorithms"):
        yield {
            "fact": "determinism.torch_deterministic_algorithms",
            "why": "GPU kernels may add in any order unless told otherwise",
            "weight": 0.55,
        }
    if determinism.get("cudnn_benchmark") is True:
        yield {"fact": "determinism.cudnn_benchmark", "why": "cuDNN picks kernels by timing them", "weight": 0.5}
    if command and "PYTHONHASHSEED" not in (command.get("env") or {}):
        yield {"fact": "env.PYTHONHASHSEED", "why": "it was unset, so the order of sets of text changes from start to start", "weight": 0.3}
    unread = [item for item in (recipe.get("data") or {}).get("inputs") or () if not item.get("digest")]
    if unread:
        yield {
            "fact": f"data.{unread[0].get('path')}",
            "why": "its content was never fingerprinted, so it may have changed",
            "weight": 0.35,
        }
    yield {
        "fact": "program",
        "why": "no recorded fact explains it: the program may not be deterministic (threads, time, network)",
        "weight": 0.2,
    }
