"""What lies below the store fails: an object store that is away, late or breaks off, disks that are full. No acknowledged record is
lost, no reader is told less than before, and all goes on by itself when the fault is over."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests import services
from tests.torture.house import TORTURE, until
from tests.torture.results import Results
from tests.torture.store_house import StoreHouse
from tests.torture.store_postgres import Cluster
from tests.torture.store_proxy import FAULTS, StoreProxy
from tests.torture.store_siege import Load, siege

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(3000 if TORTURE else 300)]

ROUNDS = 2 if TORTURE else 1
FAULT_SECONDS = 3.0 if TORTURE else 0.2
FILLS = 10
MODES = FAULTS if TORTURE else ["swallow", "half", "mixed"]

in_torture = pytest.mark.skipif(not TORTURE, reason="a minute or more: make torture runs it")


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="encore-store-", dir="/tmp"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture
def s3(folder: Path) -> Iterator[dict[str, str]]:
    """The suite's S3 server where there is one, with a prefix of our own."""
    if "ENCORE_TEST_S3" in os.environ:
        yield json.loads(os.environ["ENCORE_TEST_S3"]) | {"prefix": folder.name}
    else:
        with services.s3(folder) as found:
            yield found | {"prefix": folder.name}


@pytest.fixture
def cluster(folder: Path) -> Iterator[Cluster]:
    made = Cluster(folder)
    yield made
    made.close()


@contextlib.contextmanager
def volume(place: Path, size: str) -> Iterator[Path]:
    """A filesystem of its own, so that it can be full."""
    place.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(place)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"mounting is not possible here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], capture_output=True, check=False)


def fill(place: Path) -> Path:
    """A file that takes all that is left, but for what others free meanwhile."""
    ballast = place / "ballast"
    with ballast.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(2**16))
    with ballast.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(512))
    return ballast


def is_met(proxy: StoreProxy, mode: str, struck: int) -> bool:
    """Whether a connection has met the fault; by turns, one that lives on unharmed is cut, so that the next draws anew."""
    if proxy.struck == struck and mode == "mixed":
        proxy.set(mode)
    return proxy.struck > struck


@pytest.mark.parametrize("database", ["SQLite", "PostgreSQL"] if TORTURE else ["SQLite"])
def test_an_object_store_that_fails_or_is_late_loses_nothing(
    database: str, folder: Path, s3: dict[str, str], results: Results, request
) -> None:
    """Refused, reset, mute, cut, half an answer, an answer lost after the object was stored, late, 500, 503, and all by turns:
    batches are taken all the while, and whoever cannot be answered hears 503."""
    proxy = StoreProxy(urlsplit(s3["endpoint"]).port, seed=3)
    chance = random.Random(11)
    url = request.getfixturevalue("cluster").url if database == "PostgreSQL" else None
    with siege(lambda: StoreHouse(folder / "house", url, s3 | {"endpoint": proxy.url})) as house:
        load = Load(house, 900)
        try:
            assert load.moves_on()
            order = [mode for _ in range(ROUNDS) for mode in chance.sample(MODES, len(MODES))]
            for mode in order:
                struck = proxy.struck
                proxy.set(mode)
                assert load.moves_on(), (mode, house.said())  # to take batches no store is needed
                assert mode == "down" or until(lambda mode=mode, struck=struck: is_met(proxy, mode, struck), 120, 0.2), (mode, house.said())
                time.sleep(FAULT_SECONDS)
                if chance.random() < 0.5:  # what it remembered is gone: it has to ask
                    house.kill_web(chance)
                    time.sleep(FAULT_SECONDS)
                proxy.set("pass")
                assert load.sees(), (mode, house.said())
            assert load.moves_on()
            account, seen = load.end()
        finally:
            load.abandon()
            proxy.set("pass")
        note = f"{proxy.struck} connections struck; {seen['not now']} × 503 to readers"
        results.add(f"store on {database} and S3: the object store fails or is late, {len(MODES)} ways", len(order), account, note)
        assert account.exact, (account.examples, house.said())
    proxy.close()


def besiege_with_full_disks(house: StoreHouse, place: Path, seed: int, takes_batches: bool) -> tuple:
    """Fill `place` again and again; readers are answered while it is full, and batches are taken unless they need it."""
    chance = random.Random(seed)
    load = Load(house, seed)
    try:
        assert load.moves_on()
        for _ in range(FILLS):
            time.sleep(chance.uniform(0.05, 0.5))
            fill(place)
            time.sleep(0.3)
            ballast = fill(place)  # what compaction freed meanwhile
            time.sleep(FAULT_SECONDS)
            assert load.sees(), house.said()
            if takes_batches:
                assert load.moves_on(), house.said()
            house.kill_maintenance(chance)
            if chance.random() < 0.5:
                house.kill_web(chance)
                assert load.sees(), house.said()
            ballast.unlink()
            assert load.moves_on(), house.said()
            assert load.sees(), house.said()
        return load.end()
    finally:
        load.abandon()


@in_torture
@pytest.mark.parametrize("what", ["all", "store"])
def test_a_full_disk_loses_nothing_and_stops_no_reader(what: str, folder: Path, results: Results) -> None:
    """The volume of database and store, or of the store alone, is full: no batch is acknowledged that is not stored, readers and even
    a new web process go on, and with room again so do the writers."""
    place = folder / "house" / "home"
    with volume(place if what == "all" else place / "store", "96m") as full, siege(lambda: StoreHouse(folder / "house")) as house:
        account, seen = besiege_with_full_disks(house, full, 950, takes_batches=what == "store")
        assert "disk is full" in house.log.read_text() if what == "all" else "No space left" in house.log.read_text()
        disk = "database and store" if what == "all" else "the store alone"
        results.add(f"store on SQLite: the disk of {disk} full", FILLS, account, f"{seen['not now']} × 503 to readers")
        assert account.exact, (account.examples, house.said())


@in_torture
def test_a_full_disk_of_postgres_loses_nothing(folder: Path, results: Results) -> None:
    """PostgreSQL runs out of room and may panic: started again once there is some, it has all that was acknowledged."""
    chance = random.Random(13)
    with volume(folder / "disk", "300m") as full:
        full.chmod(0o755)
        cluster = Cluster(full)
        try:
            with siege(lambda: StoreHouse(folder / "house", cluster.url)) as house:
                load = Load(house, 970)
                panics = 0
                try:
                    assert load.moves_on()
                    for _ in range(FILLS):
                        time.sleep(chance.uniform(0.05, 0.5))
                        ballast = fill(full)
                        time.sleep(0.5 + FAULT_SECONDS)
                        ballast.unlink()
                        if not cluster.is_ready():
                            panics += 1
                            cluster.kill("cluster", chance)
                        assert load.moves_on(), (house.said(), cluster.log.read_text()[-3000:])
                        assert load.sees(), house.said()
                    account, seen = load.end()
                finally:
                    load.abandon()
                assert "No space left" in cluster.log.read_text()
                results.add("store on PostgreSQL: its disk full", FILLS, account, f"{panics} panics; {seen['not now']} × 503 to readers")
                assert account.exact, (account.examples, house.said())
        finally:
            cluster.close()
