"""Points of many runs as they come from a history stream: arrays, and pandas or Arrow where those are installed."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterator
from typing import Any

from . import tables

Points = list[tuple[int, int, Any]]


class Series:
    """All winning points of one metric of one run and rank, by rising step.

    ``steps`` and ``times`` (µs since 1970) are sequences of ints; ``values`` holds floats, or ints where only ints were logged; a key that
    logged both has each as it was. All three have ``tolist()`` and lie in flat memory that numpy and Arrow take as it is.
    """

    __slots__ = ("bits", "is_int", "key", "kind", "rank", "run", "steps", "times")

    def __init__(self, run: str, key: str, rank: int, steps: Any, times: Any, kind: str, bits: Any, is_int: Any) -> None:
        self.run, self.key, self.rank = run, key, rank
        self.steps, self.times, self.kind, self.bits, self.is_int = steps, times, kind, bits, is_int

    @property
    def values(self) -> Any:
        if self.kind == "q":
            return self.bits
        if self.kind == "d":
            return self.bits.cast("B").cast("d")
        return [i if whole else d for i, d, whole in zip(self.bits, self.bits.cast("B").cast("d"), self.is_int, strict=True)]

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[tuple[int, int, Any]]:
        return iter(self.list())

    def __repr__(self) -> str:
        return f"<Series {self.key} of run {self.run}, rank {self.rank}, {len(self)} points>"

    def list(self) -> Points:
        """[(step, time in µs since 1970, value), …]."""
        return list(zip(self.steps, self.times, self.values, strict=True))

    def pandas(self) -> Any:
        """A frame with step, time (UTC) and value."""
        return tables.points_to_pandas([self], names=False)

    def arrow(self) -> Any:
        """A table with step, time (UTC) and value."""
        return tables.points_to_arrow([self], names=False)


class Histories:
    """What ``api.history`` answers: goes through the series as they arrive, or gathers them all into one table."""

    def __init__(self, source: Iterator[Series], about: str) -> None:
        self._source, self._about = source, about

    def __iter__(self) -> Iterator[Series]:
        return self._source

    def __next__(self) -> Series:
        return next(self._source)

    def __len__(self) -> int:
        raise TypeError("series are streamed and not counted before they are read: len(list(api.history(…)))")

    def __repr__(self) -> str:
        return f"<Histories of {self._about}; iterate over it, or call .pandas() or .arrow()>"

    def pandas(self) -> Any:
        """One frame of all points: run, key, rank, step, time (UTC), value."""
        return tables.points_to_pandas(list(self._source))

    def arrow(self) -> Any:
        """One table of all points: run, key, rank, step, time (UTC), value."""
        return tables.points_to_arrow(list(self._source))


def decode(header: dict[str, Any], body: bytes) -> Series:
    """A frame as a series, without copying its columns."""
    n, at, view = int(header["n"]), 0, memoryview(body)

    def column(code: str) -> Any:
        nonlocal at
        size = n * (1 if code == "B" else 8)
        part = view[at : at + size]
        at += size + -size % 8
        if sys.byteorder == "big" and code != "B":
            turned = array(code, part.tobytes())
            turned.byteswap()
            return memoryview(turned)
        return part.cast("B" if code == "B" else "q")

    steps = header.get("steps")
    if steps is not None:
        start, stride = int(steps["start"]), int(steps["stride"])
        given = array("q", range(start, start + n * stride, stride)) if stride else array("q", [start]) * n
        all_steps: Any = memoryview(given)
    else:
        all_steps = column("q")
    times, bits = column("q"), column("q")
    is_int = column("B") if header["type"] == "m" else None
    return Series(header["run"], header["key"], int(header["rank"]), all_steps, times, header["type"], bits, is_int)
