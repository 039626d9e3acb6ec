"""Who logged what, kept outside the journal: a shared mapping that any death of a process leaves as it was.

A slot a writer: its id, the step it began with, and how many calls of `log()` have returned. The call that the kill interrupted may or
may not have left its record: it is counted apart, as Jepsen does with operations of unknown outcome.
"""

from __future__ import annotations

import mmap
import os
import struct
from dataclasses import dataclass, field
from pathlib import Path

SLOT = struct.Struct("<QqqI28s")  # returned calls, first step, rank, opened, writer id
MASK = (1 << 64) - 1


def value_of(writer: int, step: int) -> float:
    """What a writer logs at a step: 53 random bits, so that no other pair gives it."""
    x = (writer * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return ((x ^ (x >> 31)) >> 11) * 2.0**-53


class Ledger:
    def __init__(self, path: Path, slots: int) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.posix_fallocate(fd, 0, slots * SLOT.size)
        self.map = mmap.mmap(fd, slots * SLOT.size)
        os.close(fd)
        self.slots = slots

    def open(self, slot: int, writer: str, rank: int, first_step: int) -> None:
        SLOT.pack_into(self.map, slot * SLOT.size, 0, first_step, rank, 1, writer.encode())

    def returned(self, slot: int, calls: int) -> None:
        struct.pack_into("<Q", self.map, slot * SLOT.size, calls)

    def read(self, slot: int) -> tuple[int, int, int, str] | None:
        """(returned calls, first step, rank, writer id) of a slot that was opened."""
        calls, step, rank, opened, name = SLOT.unpack_from(self.map, slot * SLOT.size)
        return (calls, step, rank, name.rstrip(b"\0").decode()) if opened else None


@dataclass
class Account:
    """The comparison's result; all but the first two have to be 0."""

    acknowledged: int = 0
    unknown: int = 0  # of calls that a kill interrupted, found stored
    lost: int = 0
    doubled: int = 0
    altered: int = 0
    reordered: int = 0
    phantom: int = 0
    examples: list[str] = field(default_factory=list)

    @property
    def exact(self) -> bool:
        return not (self.lost or self.doubled or self.altered or self.reordered or self.phantom)

    def note(self, what: str, example: str) -> None:
        setattr(self, what, getattr(self, what) + 1)
        if len(self.examples) < 10:
            self.examples.append(f"{what}: {example}")

    def __add__(self, other: Account) -> Account:
        names = ("acknowledged", "unknown", "lost", "doubled", "altered", "reordered", "phantom")
        return Account(*(getattr(self, name) + getattr(other, name) for name in names), [*self.examples, *other.examples][:10])


def compare(ledger: Ledger, slots: list[int], rank: int, points: list[list], stored: int | None = None) -> Account:
    """One rank's history (`[[step, time, value], …]` of key `x`, as the API gives it) against the ledger.

    slots: the rank's writers in the order of their starts. A later one's word counts where two said the same step.
    stored: how many points of the key the server holds in all, superseded ones too.
    """
    account = Account()
    expected: dict[int, tuple[int, int]] = {}  # step -> (slot, when that was never acknowledged: an earlier slot or -1)
    interrupted: dict[int, list[int]] = {}
    for slot in slots:
        found = ledger.read(slot)
        if found is None:
            continue
        calls, first, _, _ = found
        account.acknowledged += calls
        for step in range(first, first + calls):
            expected[step] = (slot, slot)
            interrupted.pop(step, None)
        interrupted.setdefault(first + calls, []).append(slot)
    seen: set[int] = set()
    latest: dict[int, float] = {}  # writer -> time of its last step: its own clock never goes back, whatever the wall's does
    for step, time, value in points:
        if step in seen:
            account.note("doubled", f"rank {rank}: step {step} twice")
            continue
        seen.add(step)
        candidates = interrupted.get(step, [])
        slot = expected.get(step, (-1, -1))[0]
        if slot >= 0 and value == value_of(slot, step):
            if time < latest.get(slot, time):
                account.note("reordered", f"rank {rank}: step {step} of writer {slot} is older than the one before it")
            latest[slot] = time
        if slot >= 0 and value == value_of(slot, step) and not any(other > slot and value == value_of(other, step) for other in candidates):
            continue
        if any(value == value_of(other, step) for other in candidates):
            account.unknown += 1
        elif slot >= 0:
            account.note("altered", f"rank {rank}: step {step} is {value!r}, logged {value_of(slot, step)!r}")
        else:
            account.note("phantom", f"rank {rank}: step {step}, which nobody logged")
    for step, (slot, _) in expected.items():
        if step not in seen:
            account.note("lost", f"rank {rank}: step {step} of writer {slot}")
    if stored is not None:
        most = account.acknowledged + len(slots)
        if stored > most:
            account.note("doubled", f"rank {rank}: {stored} points stored, {most} logged at most")
        if stored < account.acknowledged:
            account.note("lost", f"rank {rank}: {stored} points stored, {account.acknowledged} acknowledged")
    return account
