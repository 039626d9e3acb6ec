"""Seeding all sources of random numbers by one call. Libraries are used if loaded, never imported. (States are put back by the capture.)"""

from __future__ import annotations

import random
import sys
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
