"""Writers that append without end, and readers that watch what they do. The writers' program:

    python store_load.py SPEC.json

SPEC: {"urls", "token", "run", "ledger", "slots", "first_slot", "writers": [ids], "seed", "pause", "most"}. A thread a writer. It dies by
SIGKILL or by a `stop` file; started again it goes on where the server says that it stands.
"""

from __future__ import annotations

import ctypes
import http.client
import json
import random
import signal
import socket
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from tests.torture.store_ledger import StoreLedger, batch, expected, winners

BROKEN = (OSError, http.client.HTTPException)
TIMEOUT = 30.0


class Client:
    """One connection to one of several web processes; the next one after a failure."""

    def __init__(self, urls: list[str], token: str, chance: random.Random) -> None:
        self.urls, self.token, self.chance = urls, token, chance
        self.connection: http.client.HTTPConnection | None = None

    def request(self, method: str, path: str, body: bytes | None = None, kind: str = "application/json") -> tuple[int, bytes]:
        """Raises BROKEN; whether the server did it is unknown then."""
        if self.connection is None:
            self.connection = http.client.HTTPConnection(urlsplit(self.chance.choice(self.urls)).netloc, timeout=TIMEOUT)
        try:
            if self.connection.sock is None:
                self.connection.connect()
                self.connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.connection.request(method, f"/api/v1/{path}", body, {"Authorization": f"Bearer {self.token}", "Content-Type": kind})
            answer = self.connection.getresponse()
            return answer.status, answer.read()
        except BROKEN:
            self.close()
            raise

    def close(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.connection = None


def write(spec: dict, ledger: StoreLedger, rank: int, stop: Path) -> None:
    slot, run, writer = spec["first_slot"] + rank, spec["run"], spec["writers"][rank]
    chance = random.Random(spec["seed"] * 1000 + rank)
    client = Client(spec["urls"], spec["token"], chance)
    now = time.time_ns() // 1000
    doc = {
        "format": 1, "writer": writer, "kind": "trainer", "run": {"id": run, "project": "torture", "name": "store"}, "rank": rank,
        "world_size": len(spec["writers"]), "host": "h", "pid": 1, "started_us": now, "anchor_wall_us": now, "launch": {"kind": "python"},
    }  # fmt: skip
    next_: int | None = None
    doubt: tuple[int, int] | None = None  # a range whose answer never came
    while not stop.exists():
        try:
            if next_ is None:
                status, answer = client.request("POST", "ingest/writers", json.dumps(doc).encode())
                if status == 200:
                    next_ = json.loads(answer)["next"]
                    ledger.told(slot, next_)
                elif not _waits(status, answer):
                    raise AssertionError(f"opening was answered {status}: {answer[:500]!r}")
                continue
            first, count = doubt or (next_, chance.randrange(1, spec["most"]) if chance.random() < 0.95 else spec["most"] * 10)
            if doubt:
                ledger.again(slot)
            ledger.sending(slot, first + count)
            doubt = (first, count)
            body = batch(slot, run, writer, first, count)
            status, answer = client.request("POST", f"ingest/writers/{writer}/batches", body, "application/vnd.encore.batch")
        except BROKEN:
            time.sleep(0.01 + 0.05 * chance.random())
            continue
        told = json.loads(answer) if answer[:1] == b"{" else {}
        if status == 200:
            ledger.told(slot, told["next"])
            next_, doubt = told["next"], None
        elif status == 409 and told.get("code") == "range":
            next_, doubt = told["fields"]["next"], None
            ledger.told(slot, next_)
        elif status == 404 and told.get("code") == "writer_unknown":
            next_ = doubt = None
        elif not _waits(status, answer):
            raise AssertionError(f"a batch was answered {status}: {answer[:500]!r}")
        time.sleep(spec["pause"] * chance.random())


def _waits(status: int, answer: bytes) -> bool:
    """Whether the answer is an honest "not now"; all else is a mistake."""
    if status in (429, 503):
        time.sleep(0.1)
        return True
    return False


def main(path: str) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # dies with the test
    spec = json.loads(Path(path).read_text())
    ledger = StoreLedger(Path(spec["ledger"]), spec["slots"])
    stop, failed = Path(spec["stop"]), []

    def one(rank: int) -> None:
        try:
            write(spec, ledger, rank, stop)
        except BaseException as problem:
            failed.append(problem)
            raise

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(len(spec["writers"]))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.exit(1 if failed else 0)


# -- readers -------------------------------------------------------------------------------------------------------------------------


class Reader:
    """A thread that reads the writers' histories again and again: each answer holds all that was acknowledged or seen before it was
    asked for, each point once and as it was sent. An honest 503 and a broken connection are no answers, and counted."""

    def __init__(self, house, spec: dict, ledger: StoreLedger, seed: int) -> None:
        self.spec, self.ledger = spec, ledger
        self.chance = random.Random(seed)
        self.client = Client(house.urls, house.token, self.chance)
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.seen = [0] * len(spec["writers"])
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while not self._over.wait(0.02):
            try:
                self.look(self.chance.randrange(len(self.seen)))
            except Exception as problem:
                self._note(f"{type(problem).__name__}: {problem}")

    def look(self, rank: int, key: str | None = None) -> bool:
        key = key or self.chance.choice("xi")
        slot = self.spec["first_slot"] + rank
        least = max(self.ledger.read(slot)[0], self.seen[rank])
        try:
            status, answer = self.client.request("GET", f"runs/{self.spec['run']}/history?key={key}&rank={rank}")
        except BROKEN:
            self.counts["broken"] += 1
            return False
        if status in (429, 503):
            self.counts["not now"] += 1
            return False
        if status == 404 and least == 0:
            return False
        if status != 200:
            self._note(f"{status} for {key} of rank {rank}: {answer[:300]!r}")
            return False
        points = json.loads(answer)["points"]
        self.counts["answers"] += 1
        self.counts["points"] += len(points)
        end = end_of(slot, key, points)
        if end is None:
            self._note(f"{key} of rank {rank}: {len(points)} points that are no state of the writer, {least} records acknowledged")
        elif end < least:
            self._note(f"{key} of rank {rank}: {end} records, {least} were acknowledged or seen before")
        else:
            self.seen[rank] = max(self.seen[rank], end)
            return True
        return False

    def _note(self, problem: str) -> None:
        self.counts["wrong"] += 1
        if len(self.wrong) < 10:
            self.wrong.append(problem)

    def stop(self) -> None:
        self._over.set()
        self._thread.join()
        self.client.close()


def end_of(slot: int, key: str, points: list[list]) -> int | None:
    """The number of records whose history this is, exactly; None if it is no such history."""
    if not points:
        return 0
    last = points[-1][0] + 1  # its greatest step is its last record's, or the one before's where that went back
    for end in (last, last + 1):
        steps, bits = winners(expected(slot, key, end))
        if len(steps) != len(points) or [point[0] for point in points] != steps.tolist():
            continue
        if key == "i":
            same = [point[2] for point in points] == bits.view("i8").tolist()
        else:
            found = np.array([float(point[2]) for point in points])
            wanted = bits.view("f8")
            nan = np.isnan(wanted)  # JSON has one NaN; its payload is the audit's
            same = np.array_equal(nan, np.isnan(found)) and np.array_equal(found[~nan].view("u8"), wanted[~nan].view("u8"))
        if same:
            return end
    return None


if __name__ == "__main__":
    main(sys.argv[1])
