"""Ranks by where they stand on the axes of a mesh (dp, tp, pp, …), for reductions over some of them and for people's eyes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

PLACES = ("node", "local")
"""Axes of the machines, which the launcher tells; they cut across those of the mesh."""
ORDER = ("pp", "dp", "dp_replicate", "dp_shard", "fsdp", "cp", "tp", "ep", *PLACES)
MOST_AXES = 18


def clean(told: object) -> dict[str, int]:
    """What a writer says of itself; anything else than names and numbers from 0 on is passed over."""
    if not isinstance(told, Mapping):
        return {}
    found = {}
    for name, value in told.items():
        if isinstance(name, str) and 0 < len(name) <= 32 and isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31:
            found[name] = value
    return dict(list(found.items())[:MOST_AXES])


def axes(found: Sequence[Mapping[str, int]]) -> list[str]:
    """The axes that any rank has, from the outermost as they are commonly laid out; those not known by name in between."""
    names = {name for one in found for name in one}
    known = [name for name in ORDER if name in names and name not in PLACES]
    return [*known, *sorted(names - set(ORDER)), *(name for name in PLACES if name in names)]


def groups(ranks: Sequence[int], where: Mapping[int, Mapping[str, int]], over: Sequence[str]) -> list[tuple]:
    """For each rank the name of its group: ranks that differ along the axes ``over`` alone share one.

    An axis that a rank does not have is one of size one. The axes of machines count only when ``over`` names nothing else.
    """
    names = axes([where.get(rank, {}) for rank in ranks])
    of_machines = bool(over) and all(name in PLACES for name in over)
    fixed = [name for name in names if (name in PLACES) == of_machines and name not in over]
    if not any(name in names for name in over):
        return [(rank,) for rank in ranks]  # nobody says where it stands along these axes: each rank for itself
    return [tuple(where.get(rank, {}).get(name, 0) for name in fixed) for rank in ranks]
