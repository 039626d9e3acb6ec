"""sdk.Histogram: edges and counts, in the document itself."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Iterable
from typing import Any

from ._arrays import Snapshot, is_array, torch_of
from ._base import Encoded, Media, Refused
from ._image import Taken

MOST_BINS = 512
BINS = 64


class Histogram(Media):
    """How values are spread: `Histogram(values, bins=64)`, or what np.histogram gave: `Histogram(np_histogram=(counts, edges))`.

    NaN and infinite values are counted beside the bins.
    """

    kind = "histogram"

    def __init__(self, values: Any = None, bins: int = BINS, caption: Any = None, np_histogram: Any = None) -> None:
        self._given = np_histogram is not None
        super().__init__(lambda: _take(values, bins, np_histogram), caption)

    @property
    def quick(self) -> bool:
        return self._given or self.cost <= 8 * 1024


def _take(values: Any, bins: Any, given: Any) -> Taken:
    if given is not None:
        counts, edges = (_floats(part) for part in given)
        if len(edges) != len(counts) + 1 or not 1 <= len(counts) <= MOST_BINS:
            raise Refused(f"np_histogram is (counts, edges) with one edge more than counts, at most {MOST_BINS} bins")
        if any(not math.isfinite(edge) for edge in edges) or any(b < a for a, b in itertools.pairwise(edges)):
            raise Refused("the edges of a histogram are finite and rise")
        whole = [int(count) if count == int(count) else count for count in counts if math.isfinite(count) and count >= 0]
        if len(whole) != len(counts):
            raise Refused("the counts of a histogram are finite and not below zero")
        return 0, lambda keep: Encoded(None, "", {"counts": whole, "edges": edges})
    bins = int(bins)
    if not 1 <= bins <= MOST_BINS:
        raise Refused(f"a histogram has 1 to {MOST_BINS} bins, not {bins}")
    if is_array(values):
        snapshot = Snapshot(values)
        return snapshot.size, lambda keep: Encoded(None, "", _array(snapshot.get(), bins))
    if values is None or not isinstance(values, Iterable):
        raise Refused(f"a histogram needs values, not {type(values).__name__}")
    numbers = [float(value) for value in values]
    return 8 * len(numbers), lambda keep: Encoded(None, "", of_numbers(numbers, bins))


def _floats(part: Any) -> list[float]:
    return [float(value) for value in (part.tolist() if hasattr(part, "tolist") else part)]


def of_numbers(numbers: list[float], bins: int) -> dict[str, Any]:
    finite = [number for number in numbers if math.isfinite(number)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    low, high = spread(low, high)
    counts, scale = [0] * bins, bins / (high - low)
    for number in finite:
        counts[min(bins - 1, int((number - low) * scale))] += 1
    return answer(counts, low, high, numbers=len(numbers), odd=len(numbers) - len(finite))


def _array(array: Any, bins: int) -> dict[str, Any]:
    if torch_of(array) is not None:
        torch = sys.modules["torch"]
        flat = array.flatten().to(torch.float32 if array.element_size() <= 4 else torch.float64)
        finite = flat[torch.isfinite(flat)]
        low, high = spread(*(float(edge) for edge in torch.aminmax(finite))) if finite.numel() else (0.0, 1.0)
        counts = torch.histc(finite, bins, low, high).tolist() if finite.numel() else [0] * bins
        return answer([int(count) for count in counts], low, high, flat.numel(), flat.numel() - finite.numel())
    numpy = sys.modules["numpy"]
    if array.dtype.kind not in "buif":
        raise Refused(f"a histogram is of numbers, not {array.dtype}")
    flat = array.ravel().astype("float64")
    finite = flat[numpy.isfinite(flat)]
    low, high = spread(float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    counts = numpy.histogram(finite, bins, (low, high))[0].tolist() if finite.size else [0] * bins
    return answer(counts, low, high, flat.size, flat.size - finite.size)


def spread(low: float, high: float) -> tuple[float, float]:
    """All values alike: a bin around them."""
    if high > low:
        return low, high
    half = abs(low) * 1e-6 or 0.5
    return low - half, low + half


def answer(counts: list[int], low: float, high: float, numbers: int, odd: int) -> dict[str, Any]:
    bins = len(counts)
    edges = [low + (high - low) * at / bins for at in range(bins)] + [high]
    return {"counts": counts, "edges": edges, "n": numbers, **({"not_finite": odd} if odd else {})}
