"""The store loses, doubles and alters nothing, whichever of its processes is killed, and a reader never sees less than it saw.

Small here; ENCORE_TORTURE=1 does hundreds of kills a database.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.torture.house import TORTURE
from tests.torture.ledger import Account
from tests.torture.results import Results
from tests.torture.store_house import StoreHouse
from tests.torture.store_postgres import DEATHS, Cluster
from tests.torture.store_siege import Load, siege

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(3000 if TORTURE else 300)]

KILLS = int(os.environ.get("ENCORE_TORTURE_KILLS", "320")) if TORTURE else 4
"""Of web processes, and as many of maintenance, on each database."""
A_RUN = 40
"""Kills for one run's writers; then its account is made and a new run begins."""
CLUSTER_EACH = 12 if TORTURE else 2
"""After so many of them PostgreSQL is killed."""
DAY = 86400.0
CLOCKS = (0.0, 0.0, 0.0, -2 * DAY, 2 * DAY, 400 * DAY)
"""A process that is started in another's place has one of these for its clock's error."""


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="encore-store-", dir="/tmp"))
    made.chmod(0o755)  # PostgreSQL's user passes through
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture
def cluster(folder: Path) -> Iterator[Cluster]:
    made = Cluster(folder)
    yield made
    made.close()


def besiege(house: StoreHouse, kills: int, seed: int, cluster: Cluster | None = None) -> tuple[Account, Counter, Counter]:
    """`kills` of web and as many of maintenance, writers and `cluster` killed beside, at random instants: (account, kills, readers)."""
    chance = random.Random(seed)
    total, dead, seen = Account(), Counter(), Counter()
    while dead["web"] + dead["maintenance"] < 2 * kills:
        load = Load(house, seed + dead["web"])
        try:
            assert load.moves_on(), house.said()
            assert load.sees(), house.said()
            for number in range(min(A_RUN, 2 * kills - dead["web"] - dead["maintenance"])):
                time.sleep(chance.uniform(0.02, 0.4))
                if dead["web"] > dead["maintenance"] or (dead["web"] == dead["maintenance"] and chance.random() < 0.5):
                    dead["maintenance"] += house.kill_maintenance(chance, CLOCKS)
                else:
                    dead["web"] += house.kill_web(chance, CLOCKS)
                if chance.random() < 0.15:
                    dead["writers"] += load.kill()
                if cluster is not None and number % CLUSTER_EACH == CLUSTER_EACH - 1:
                    kill_cluster(cluster, DEATHS[dead["PostgreSQL"] % len(DEATHS)], chance)
                    dead["PostgreSQL"] += 1
                    assert load.moves_on(), house.said()  # all is well again, by itself
                    assert load.sees(), house.said()
            assert load.moves_on(), house.said()
            assert load.sees(), house.said()
            account, counts = load.end()
        finally:
            load.abandon()
        total, seen = total + account, seen + counts
        house.start_maintenance()
        house.start_maintenance(chance.choice(CLOCKS))
        assert total.exact, (total.examples, house.said())
    return total, dead, seen


def kill_cluster(cluster: Cluster, death: str, chance: random.Random) -> None:
    time.sleep(chance.uniform(0.05, 0.4))
    while not cluster.kill(death, chance):
        time.sleep(0.01)


def told(seen: Counter, dead: Counter) -> str:
    answers = f"{seen['answers']:,} answers to readers, none short of one before"
    return f"{answers}; {dead['writers']} SIGKILLs of the writers; {seen['again']} batches sent again"


def record(results: Results, name: str, account: Account, dead: Counter, seen: Counter) -> None:
    results.add(f"store on {name}: SIGKILL of the web server", dead["web"], account, told(seen, dead))
    results.add(f"store on {name}: SIGKILL of compaction, merging, summaries and sweeps, in the same siege", dead["maintenance"], account)
    if dead["PostgreSQL"]:
        note = f"{', '.join(DEATHS)} in turn; {seen['not now']} × 503 to readers"
        results.add(f"store on {name}: PostgreSQL killed, in the same siege", dead["PostgreSQL"], account, note)


def test_on_sqlite_whatever_is_killed_loses_nothing(folder: Path, results: Results) -> None:
    """Two web and two maintenance processes, some with clocks that are days wrong, each killed again and again while writers append and
    readers read: every acknowledged record is there once, in order, bit for bit, and rows, objects and trash agree."""
    with siege(lambda: StoreHouse(folder / "house")) as house:
        account, dead, seen = besiege(house, KILLS, 100)
        record(results, "SQLite", account, dead, seen)
        assert min(dead["web"], dead["maintenance"]) >= KILLS


def test_on_postgres_whatever_is_killed_loses_nothing(cluster: Cluster, folder: Path, results: Results) -> None:
    """The same, with PostgreSQL killed too: one backend, an immediate shutdown, the whole cluster in one instant, the postmaster alone.
    Whoever asks meanwhile hears 503 with a time to wait, never a wrong or shorter answer."""
    with siege(lambda: StoreHouse(folder / "house", cluster.url)) as house:
        account, dead, seen = besiege(house, KILLS, 200, cluster)
        record(results, "PostgreSQL", account, dead, seen)
        assert min(dead["web"], dead["maintenance"]) >= KILLS
        assert dead["PostgreSQL"] >= 2 * KILLS // A_RUN * (A_RUN // CLUSTER_EACH)
