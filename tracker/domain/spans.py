"""Rank numbers as people write them."""

from __future__ import annotations

from collections.abc import Iterable


def spans(numbers: Iterable[int], most: int = 12) -> str:
    """``0-62, 70``; what is beyond ``most`` pieces is counted."""
    pieces: list[list[int]] = []
    for number in sorted(set(numbers)):
        if pieces and number == pieces[-1][1] + 1:
            pieces[-1][1] = number
        else:
            pieces.append([number, number])
    told = [f"{a}" if a == b else f"{a}, {b}" if b == a + 1 else f"{a}-{b}" for a, b in pieces[:most]]
    left = sum(b - a + 1 for a, b in pieces[most:])
    return ", ".join(told) + (f" and {left} more" if left else "")
