"""Random numbers: seeding them all by one call, and putting recorded states back in a rerun. Libraries are used if loaded, never imported."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def seed(number: int) -> dict[str, int]:
    """Seeds random, and numpy and torch where they are loaded; returns what was seeded."""
    number = int(number)
    done = {"random": number}
    random.seed(number)
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(number % 2**32)
        done["numpy"] = number % 2**32
    torch: Any = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "manual_seed"):
        torch.manual_seed(number)
        done["torch"] = number
    return done


def restore(states: Mapping[str, Any]) -> list[str]:
    """Puts the states of the rerun file back: {"python": path, "numpy": path, "torch": path}. Returns what could not be done, in words."""
    problems = []
    for name, put_back in (("python", _python), ("numpy", _numpy), ("torch", _torch)):
        path = states.get(name)
        if not path:
            continue
        try:
            put_back(Path(path))
        except Exception as error:
            problems.append(f"the {name} random state could not be put back: {type(error).__name__}: {error}")
    return problems


def _python(path: Path) -> None:
    version, internal, gauss = json.loads(path.read_text())
    random.setstate((version, tuple(internal), gauss))


def _numpy(path: Path) -> None:
    numpy: Any = sys.modules.get("numpy")
    if numpy is None:
        raise RuntimeError("numpy is not loaded at init, and was when the run was recorded")
    state = json.loads(path.read_text())
    state["state"]["key"] = numpy.asarray(state["state"]["key"], dtype=numpy.uint32)
    numpy.random.set_state(state)


def _torch(path: Path) -> None:
    torch: Any = sys.modules.get("torch")
    if torch is None:
        raise RuntimeError("torch is not loaded at init, and was when the run was recorded")
    torch.set_rng_state(torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8))
