"""The counts of a run of torture, with what they say about the next kill."""

from __future__ import annotations

import math
import os
import platform
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.torture.ledger import Account


def upper_bound(failures: int, trials: int, confidence: float = 0.95) -> float:
    """Clopper-Pearson's upper end of the interval for a share, by bisection of the binomial sum (for 0 failures: about 3 / n)."""
    if failures >= trials:
        return 1.0
    tail = (1 - confidence) / 2 if failures else 1 - confidence

    def below(share: float) -> float:
        logs = [
            math.lgamma(trials + 1)
            - math.lgamma(k + 1)
            - math.lgamma(trials - k + 1)
            + k * math.log(share)
            + (trials - k) * math.log1p(-share)
            for k in range(failures + 1)
        ]
        return sum(math.exp(value) for value in logs)

    low, high = 1e-12, 1 - 1e-12
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if below(middle) > tail else (low, middle)
    return high


@dataclass
class Results:
    rows: list[tuple[str, int, Account | None, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    def add(self, what: str, kills: int, account: Account | None, note: str = "") -> None:
        self.rows.append((what, kills, account, note))

    def note(self, line: str) -> None:
        self.notes.append(line)

    def seconds(self) -> float:
        return time.monotonic() - self.began

    def write(self, path: Path) -> None:
        """Rows and notes that this run did not measure stay as they stand: parts of the torture may be run alone."""
        rows, notes = self._lines()
        kept = path.read_text().splitlines() if path.exists() else []
        old = {line.split(" | ")[0]: line for line in kept if line.startswith("| ") and not line.startswith("| what |")}
        old_notes = {line.split(":")[0]: line for line in kept if line.startswith("- ")}
        lines = [
            "# Results of `make torture`",
            "",
            f"{time.strftime('%d %b %Y')}, Python {platform.python_version()}, {os.cpu_count()} cores, {self.seconds():.0f} s.",
            "Fixed seeds; the instants of the kills are random in time. What a run leaves out keeps its row of the run before.",
            "",
            "*Acknowledged*: points whose `log()` had returned before the kill, by a ledger outside the journal; of the store: records",
            "(of two or three points) that the server had acknowledged, by the writers' ledger. *Unknown*: of calls that a kill",
            "interrupted, found stored. *Bound*: with 95 % confidence, at most this share of kills loses, doubles, alters or reorders",
            "anything (Clopper-Pearson; about 3 / n when none did).",
            "",
            "| what | n | acknowledged | lost | doubled | altered | reordered | phantom | unknown | bound | |",
            "|---|---|---|---|---|---|---|---|---|---|---|",
            *(old | rows).values(),
            "",
            *(old_notes | notes).values(),
        ]
        path.write_text("\n".join(lines).rstrip() + "\n")

    def _lines(self) -> tuple[dict[str, str], dict[str, str]]:
        """The table's lines by their first cell, the notes by their first words."""
        found = {}
        for what, kills, account, note in self.rows:
            if account is None:
                found[f"| {what}"] = f"| {what} | {kills:,} | | | | | | | | | {note} |"
                continue
            wrong = account.lost + account.doubled + account.altered + account.reordered + account.phantom
            bound = f"{upper_bound(min(wrong, kills), kills):.2g}" if kills else ""
            counts = (
                account.acknowledged,
                account.lost,
                account.doubled,
                account.altered,
                account.reordered,
                account.phantom,
                account.unknown,
            )
            found[f"| {what}"] = f"| {what} | {kills:,} | {' | '.join(f'{count:,}' for count in counts)} | {bound} | {note} |"
        return found, {line.split(":")[0]: line for line in self.notes}
