"""The accounting itself: it finds each kind of fault, so that a 0 means something."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.torture.ledger import Account, Ledger, compare, value_of
from tests.torture.results import upper_bound


def books(folder: Path) -> tuple[Ledger, list[list]]:
    """Two writers of rank 0: ten acknowledged steps, then ten more from step 8 on; each was interrupted in one more call."""
    ledger = Ledger(folder / "ledger", 2)
    ledger.open(0, "a", 0, 0)
    ledger.returned(0, 10)
    ledger.open(1, "b", 0, 8)
    ledger.returned(1, 10)
    return ledger, [[step, step * 10, value_of(0 if step < 8 else 1, step)] for step in range(18)]


def test_what_is_exact_is_exact_with_or_without_the_interrupted_call(tmp_path: Path) -> None:
    ledger, points = books(tmp_path)
    assert compare(ledger, [0, 1], 0, points, stored=20) == Account(acknowledged=20)
    account = compare(ledger, [0, 1], 0, [*points, [18, 180, value_of(1, 18)]], stored=22)
    assert (account.exact, account.unknown) == (True, 1)


@pytest.mark.parametrize(
    ("what", "spoil"),
    [
        ("lost", lambda points: points.pop(5)),
        ("doubled", lambda points: points.insert(5, points[5])),
        ("altered", lambda points: points.__setitem__(5, [5, 50, points[6][2]])),
        ("altered", lambda points: points.__setitem__(9, [9, 90, value_of(0, 9)])),  # the earlier start's value won
        ("reordered", lambda points: points.__setitem__(5, [5, 0, points[5][2]])),
        ("phantom", lambda points: points.append([18, 180, 0.5])),
    ],
)
def test_every_fault_is_found(tmp_path: Path, what: str, spoil) -> None:
    ledger, points = books(tmp_path)
    spoil(points)
    account = compare(ledger, [0, 1], 0, points)
    assert getattr(account, what) == 1
    assert not account.exact


@pytest.mark.parametrize(("stored", "what"), [(19, "lost"), (23, "doubled")])
def test_what_no_history_shows_is_found_by_the_count(tmp_path: Path, stored: int, what: str) -> None:
    ledger, points = books(tmp_path)
    assert getattr(compare(ledger, [0, 1], 0, points, stored=stored), what) == 1


def test_the_bound_is_the_textbooks() -> None:
    """The rule of three, and Clopper-Pearson's published values for 1 of 10 and 10 of 10."""
    assert upper_bound(0, 10_000) == pytest.approx(3 / 10_000, rel=0.01)
    assert upper_bound(1, 10) == pytest.approx(0.4450, abs=1e-3)
    assert upper_bound(10, 10) == 1.0
