"""What is odd about the ranks of a run, in sentences that name them: the slowest, who waits for whom, what should be equal and is not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tracker.domain.coordinates import PLACES
from tracker.domain.pace import Finding, Rank, Row
from tracker.domain.spans import spans

SLOW = 1.2
"""A rank is called slow from here on, times the median of all."""
LEAST_SECONDS = 0.002
"""Differences below this are no news."""
FEW = 0.25
"""If more than this share of the ranks is slow, it is not they who are odd."""
SILENT_SECONDS = 40.0
"""The senders speak each ten."""
SKEW_SECONDS = 2.0
NAMED = 8
"""At most so many findings of one kind are said one by one."""

Lines = Mapping[int, tuple[np.ndarray, np.ndarray]]
"""rank → (steps, values)"""


def found(
    ranks: Sequence[Rank],
    rows: list[Row],
    steps: np.ndarray,
    times: np.ndarray,
    *,
    front: int | None,
    pace: float | None,
    live: bool,
    pace_key: str | None,
    own_key: str | None,
    same: Mapping[str, Lines],
    world_size: int | None,
) -> list[Finding]:
    """The gravest first."""
    hang = _hang(rows, front, pace) if live else []
    return [
        *hang,
        *(_gone(rows) if live else ()),
        *_unequal(same),
        *_slow(rows, own_key, pace, len({one.host for one in ranks}) > 1),
        *(() if hang else _behind(rows, front, pace)),
        *_steps(ranks, steps, times, pace_key or "their key"),
        *_clocks(rows),
        *_missing(rows, world_size),
    ]


def _hang(rows: list[Row], front: int | None, pace: float | None) -> list[Finding]:
    """Nobody goes on: who waits at the front, and who has not come there."""
    going = [row for row in rows if row.state == "running" and row.quiet_seconds is not None]
    if front is None or not going:
        return []
    quiet = min(row.quiet_seconds or 0.0 for row in going)
    waiting, missing = [row for row in going if row.behind == 0], [row for row in going if row.behind]
    if missing and waiting and quiet > max(10.0, 5 * (pace or 0.0)):
        lasts = sorted({f"{row.last_step:,}" for row in missing})
        text = (
            f"{_named(waiting)} {_verb(waiting, 'waits', 'wait')} after step {front:,} for {seconds(quiet)};"
            f" {_named(missing)} {_verb(missing, 'has', 'have')} not come that far (last step {', '.join(lasts[:4])}){_where(missing)}"
        )
        return [Finding("awaited", "error", [row.rank for row in missing], text)]
    if quiet > max(60.0, 10 * (pace or 0.0)):
        everyone = "the run" if len(rows) == 1 else "every rank"
        return [Finding("stalled", "error", [row.rank for row in going], f"{everyone} has stood at step {front:,} for {seconds(quiet)}")]
    return []


def _gone(rows: list[Row]) -> list[Finding]:
    told = []
    silent = [row for row in rows if row.state == "running" and (row.heard_seconds or 0.0) > SILENT_SECONDS]
    if silent:
        longest = max(row.heard_seconds or 0.0 for row in silent)
        text = f"{_named(silent)} gave no sign of life for {seconds(longest)}{_where(silent)}"
        told.append(Finding("silent", "error", [row.rank for row in silent], text))
    ended = [row for row in rows if row.state != "running"]
    if ended and len(ended) < len(rows):
        states = ", ".join(sorted({row.state for row in ended}))
        text = f"{_named(ended)} ended ({states}) while others go on{_where(ended)}"
        told.append(Finding("ended", "warn" if states == "finished" else "error", [row.rank for row in ended], text))
    return told


def _slow(rows: list[Row], own_key: str | None, pace: float | None, hosts: bool) -> list[Finding]:
    """By what the ranks measured themselves, else by who comes late to each step, else by their own step time."""
    for name in ("own_seconds", "late_seconds", "step_seconds"):
        known: dict[int, float] = {row.rank: getattr(row, name) for row in rows if getattr(row, name) is not None}
        if len(known) < 2:
            continue
        usual = float(np.median(list(known.values())))
        limit = usual + max(LEAST_SECONDS, (SLOW - 1) * ((pace or 0.0) if name == "late_seconds" else usual))
        slow = sorted((rank for rank, value in known.items() if value > limit), key=lambda rank: -known[rank])
        if not slow or len(slow) > max(1, FEW * len(known)):
            continue
        value = known[slow[0]]
        if name == "late_seconds":
            told = f"it logs each step {seconds(value - usual)} after the others{', by the clocks of their hosts' if hosts else ''}"
        elif name == "own_seconds":
            told = f"its {own_key} is {seconds(value)}, the median of all ranks {seconds(usual)}"
        else:
            told = f"its step takes {seconds(value)}, the median of all ranks is {seconds(usual)}"
        more = f"; slow too: {spans(slow[1:])}" if len(slow) > 1 else ""
        worst = [row for row in rows if row.rank == slow[0]]
        return [Finding("slow", "warn", slow, f"rank {slow[0]} is the slowest{_where(worst)}: {told}{more}")]
    return []


def _behind(rows: list[Row], front: int | None, pace: float | None) -> list[Finding]:
    """Not merely one step on its way: a rank further back, while it goes on."""
    back = [row for row in rows if row.behind is not None and row.behind > 1 and (row.behind_seconds or 0.0) > 2 * (pace or 0.0)]
    if not back:
        return []
    most = max(back, key=lambda row: row.behind or 0)
    far = f"{most.behind:,} steps" + (f" ({seconds(most.behind_seconds)})" if most.behind_seconds else "")
    text = f"{_named(back)} {_verb(back, 'is', 'are')} behind step {front:,} by {'' if len(back) == 1 else 'up to '}{far}{_where(back)}"
    return [Finding("behind", "warn", [row.rank for row in back], text)]


def _steps(ranks: Sequence[Rank], steps: np.ndarray, times: np.ndarray, key: str) -> list[Finding]:
    """Steps that most ranks logged and some did not, or that some alone logged, between a rank's own first and last."""
    if len(ranks) < 2 or not len(steps):
        return []
    there = ~np.isnan(times)
    holders = there.sum(axis=0)
    common, rare = holders * 2 > len(ranks), holders * 2 < len(ranks)
    # Beyond the last common step somebody is merely ahead; of two ranks neither is the rule.
    inner = np.arange(len(steps)) < (np.flatnonzero(common)[-1] if common.any() else 0)
    told = []
    for at, one in enumerate(ranks):
        mine = np.flatnonzero(there[at])
        if not len(mine):
            continue
        within = (np.arange(len(steps)) >= mine[0]) & (np.arange(len(steps)) <= mine[-1])
        for what, which in (("did not log", within & common & ~there[at]), ("alone logged", there[at] & rare & inner)):
            odd = steps[which]
            if len(odd):
                listed = ", ".join(f"{step:,}" for step in odd[:4]) + (" …" if len(odd) > 4 else "")
                text = f"rank {one.rank} {what} {key} at {'step' if len(odd) == 1 else f'{len(odd)} steps:'} {listed}"
                told.append(Finding("steps", "warn", [one.rank], text))
    if len(told) > NAMED:
        who = sorted({rank for one in told for rank in one.ranks})
        return [Finding("steps", "warn", who, f"the steps of {key} differ: ranks {spans(who)} log others than most")]
    return told


def _unequal(same: Mapping[str, Lines]) -> list[Finding]:
    """The first step at which a key that all ranks should log alike differs, and who has what there."""
    told = []
    for key, lines in sorted(same.items()):
        at = first_difference(lines)
        if at is None:
            continue
        holders: dict[str, list[int]] = {}
        for rank, (steps, values) in sorted(lines.items()):
            where = np.searchsorted(steps, at)
            if where < len(steps) and steps[where] == at:
                holders.setdefault(repr(float(values[where])), []).append(rank)
        order = sorted(holders.items(), key=lambda item: -len(item[1]))
        said = "; ".join(f"{'ranks' if len(who) > 1 else 'rank'} {spans(who)}: {value}" for value, who in order[:4])
        more = f"; {len(order) - 4} more values" if len(order) > 4 else ""
        odd = sorted(rank for _, who in order[1:] for rank in who)
        told.append(Finding("desync", "error", odd, f"{key} should be the same on all ranks and differs at step {at:,}: {said}{more}"))
    return told


def first_difference(lines: Lines) -> int | None:
    """The lowest step at which two ranks logged different values; NaN equals NaN."""
    parts = [(steps, values) for steps, values in lines.values() if len(steps)]
    if len(parts) < 2:
        return None
    steps, values = np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])
    order = np.argsort(steps, kind="stable")
    steps, values = steps[order], values[order]
    starts = np.flatnonzero(np.r_[True, steps[1:] != steps[:-1]])
    nan = np.isnan(values)
    low, high = np.minimum.reduceat(np.where(nan, np.inf, values), starts), np.maximum.reduceat(np.where(nan, -np.inf, values), starts)
    nans, counts = np.add.reduceat(nan.astype("i8"), starts), np.diff(np.r_[starts, len(steps)])
    differs = (low < high) | ((nans > 0) & (nans < counts))
    return int(steps[starts][differs][0]) if differs.any() else None


def _clocks(rows: list[Row]) -> list[Finding]:
    by_host: dict[str, list[Row]] = {}
    for row in rows:
        if row.skew_seconds is not None and abs(row.skew_seconds) > SKEW_SECONDS:
            by_host.setdefault(row.host, []).append(row)
    told = []
    for host, mine in sorted(by_host.items()):
        skew = mine[0].skew_seconds or 0.0
        ahead = f"the clock of {host} is {seconds(-skew)} ahead of the tracker's"
        late = f"the clock of {host} is {seconds(skew)} behind the tracker's, or its heartbeats come that late"
        told.append(Finding("clock", "info", [row.rank for row in mine], ahead if skew < 0 else late))
    return told[:NAMED]


def _missing(rows: list[Row], world_size: int | None) -> list[Finding]:
    """Ranks that never opened a writer: often meant (only rank 0 calls init), so it is said and no alarm."""
    lacking = sorted(set(range(min(world_size or 0, 100_000))) - {row.rank for row in rows})
    if not lacking or not rows:
        return []
    text = f"{len(lacking):,} of {world_size:,} ranks log nothing here ({spans(lacking)}): call sdk.init on every rank to see them"
    return [Finding("missing", "info", lacking, text)]


# -- words -----------------------------------------------------------------------------------------------------------------------------


def _named(rows: Sequence[Row]) -> str:
    return f"rank {rows[0].rank}" if len(rows) == 1 else f"ranks {spans(row.rank for row in rows)}"


def _verb(rows: Sequence[Row], one: str, many: str) -> str:
    return one if len(rows) == 1 else many


def _where(rows: Sequence[Row]) -> str:
    """What the odd ones have in common: a place in the mesh, a host or two."""
    hosts = sorted({row.host for row in rows if row.host})
    places = {" ".join(f"{name}={value}" for name, value in row.coordinates.items() if name not in PLACES) for row in rows}
    told = [part for part in (*(places if len(places) == 1 else ()), " ".join(hosts) if len(hosts) <= 2 else "") if part]
    return f" ({', '.join(told)})" if told else ""


def seconds(value: float) -> str:
    if value < 0.9995:
        return f"{value * 1000:.3g} ms"
    if value < 60:
        return f"{value:.3g} s"
    whole = int(value)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
