"""One house under load: writers, readers, what kills, and the account at the end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from sdk._ids import derived_id
from tests.torture.house import until
from tests.torture.ledger import Account
from tests.torture.store_house import HERE, ROOT, StoreHouse
from tests.torture.store_ledger import StoreLedger
from tests.torture.store_load import Reader

WRITERS = 3


class Load:
    """The writers' process of one run, and the run's readers."""

    def __init__(self, house: StoreHouse, seed: int, pause: float = 0.02, most: int = 60, readers: int = 1) -> None:
        self.house, self.seed = house, seed
        self.run = derived_id("store", f"run-{seed}-{time.time_ns()}")
        ids = [derived_id("store", f"writer-{self.run}-{rank}") for rank in range(WRITERS)]
        self.stop_file = house.folder / f"stop-{self.run}"
        self.spec = {
            "urls": house.urls, "token": house.token, "run": self.run, "ledger": str(house.folder / f"ledger-{self.run}"),
            "slots": WRITERS, "first_slot": 0, "writers": ids, "seed": seed, "pause": pause, "most": most, "stop": str(self.stop_file),
        }  # fmt: skip
        self.ledger = StoreLedger(Path(self.spec["ledger"]), WRITERS)
        self.process: subprocess.Popen[bytes] | None = None
        self.start()
        self.readers = [Reader(house, self.spec, self.ledger, seed * 10 + number) for number in range(readers)]

    def start(self) -> None:
        path = self.house.folder / f"spec-{self.run}.json"
        path.write_text(json.dumps(self.spec))
        with self.house.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(HERE / "store_load.py"), str(path)], cwd=ROOT, env=self.house.environment, stderr=log, process_group=0
            )

    def kill(self) -> int:
        """The writers, in the middle of whatever they do; they start again and go on."""
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.start()
        return 1

    def acknowledged(self) -> int:
        return sum(self.ledger.read(slot)[0] for slot in range(WRITERS))

    def moves_on(self, records: int = 100, seconds: float = 120) -> bool:
        """Each writer gets more acknowledged, now."""
        before = [self.ledger.read(slot)[0] for slot in range(WRITERS)]
        return bool(until(lambda: all(self.ledger.read(slot)[0] > at + records // WRITERS for slot, at in enumerate(before)), seconds))

    def sees(self, seconds: float = 120) -> bool:
        """Each reader gets an answer, now."""
        before = [reader.counts["answers"] for reader in self.readers]
        return bool(until(lambda: all(reader.counts["answers"] > at for reader, at in zip(self.readers, before, strict=True)), seconds))

    def end(self) -> tuple[Account, Counter]:
        """Stop the writers, then count: by the readers, beside the server, and once more when all is compacted and swept."""
        for reader in self.readers:
            reader.stop()
        self.stop_file.touch()
        assert self.process.wait(120) == 0, self.house.said()
        self.house.stop_maintenance()
        last = self.readers[0]
        for rank in range(WRITERS):
            for key in "xi":
                assert until(lambda rank=rank, key=key: last.look(rank, key) or last.wrong, 120), self.house.said()
        found = self.house.order(
            do="audit", finish=True, **{name: self.spec[name] for name in ("ledger", "slots", "run", "writers", "first_slot")}
        )
        assert not found.get("failed"), self.house.said()
        account = Account(acknowledged=found["acknowledged"], unknown=found["records"] - found["acknowledged"])
        for kind in ("lost", "doubled", "altered", "reordered", "phantom"):
            setattr(account, kind, found.get(kind, 0))
        # A row that does not fit, or an object that is not there, is as wrong as a point.
        account.altered += found.get("untidy", 0) + found.get("unreadable", 0)
        account.examples = found["examples"]
        counts: Counter[str] = Counter(again=found["again"], orphans=found.get("orphans", 0))
        for reader in self.readers:
            counts += reader.counts
            account.lost += reader.counts["wrong"]
            account.examples += reader.wrong
        Path(self.spec["ledger"]).unlink()
        return account, counts

    def abandon(self) -> None:
        for reader in self.readers:
            reader.stop()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


@contextlib.contextmanager
def siege(make: Callable[[], StoreHouse]) -> Iterator[StoreHouse]:
    house = make()
    try:
        yield house
    finally:
        house.close()
