"""What the chart benchmark reads: runs of every shape, posted as packed bodies (noisy fp32 values, times with jitter) and compacted."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import time
from collections.abc import Iterator

import numpy as np
import zstandard

from benchmarks._server import Server
from sdk._ids import new_id
from sdk._wire import key_list_hash, pack

_COMPACT = """
import sys, django; django.setup()
from tracker.services import compaction, summaries
for run in sys.argv[1:]:
    summaries.summarise_run(run)
    compaction.compact_run(run, force=True)
"""


class Writer:
    """One run's writer. ``names`` of its keys; each call of ``dense`` or ``sparse`` is a batch."""

    def __init__(self, found: Server, names: list[str], seed: int = 0) -> None:
        self.run, self.id, self.names, self.next = new_id(), new_id(), names, 0
        self.draw = np.random.default_rng(seed)
        self.found = found
        self.types = "d" * len(names)
        self.digest = key_list_hash(names, self.types)
        self.connection = http.client.HTTPConnection("127.0.0.1", found.port, timeout=120)
        found.open_writer(self.run, self.id)

    def _axis(self, rows: int) -> list[bytes]:
        steps = np.arange(self.next, self.next + rows, dtype="<i8")
        times = 1_700_000_000_000_000 + steps * 1000 + self.draw.integers(0, 200, rows)
        return [steps.tobytes(), times.astype("<i8").tobytes()]

    def dense(self, rows: int) -> None:
        frame = {"kind": "dense", "keylist": self.digest, "rows": rows}
        if self.next == 0:
            frame |= {"keys": self.names, "types": self.types}
        values = (2 + 0.1 * self.draw.standard_normal((len(self.names), rows), dtype="f4")).astype("<f8")
        self._post(frame, [np.arange(rows, dtype="<u4").tobytes(), *self._axis(rows), *(row.tobytes() for row in values)], rows)

    def sparse(self, first: int, count: int) -> None:
        """One point of each of ``count`` names, as a program logs that names them one by one."""
        frame = {"kind": "sparse", "keys": self.names[first : first + count], "rows": count}
        index = np.arange(count, dtype="<u4").tobytes()
        self._post(frame, [index, index, bytes(count), *self._axis(count), self.draw.standard_normal(count).tobytes()], count)

    def _post(self, frame: dict, columns: list[bytes], rows: int) -> None:
        last = self.next + rows - 1
        header = {"run": self.run, "writer": self.id, "first": self.next, "last": last, "frames": [frame], "docs": [], "holes": []}
        body = zstandard.ZstdCompressor(level=1).compress(pack(header, columns))
        headers = {
            "Authorization": f"Bearer {self.found.token}", "Content-Type": "application/vnd.encore.batch", "Content-Encoding": "zstd",
        }  # fmt: skip
        while True:
            self.connection.request("POST", f"/api/v1/ingest/writers/{self.id}/batches", body, headers)
            answer = self.connection.getresponse()
            told = answer.read()
            if answer.status == 200:
                break
            if answer.status not in (429, 503):
                raise RuntimeError(f"{answer.status} {told[:500]!r}")
            time.sleep(0.2)  # the maintenance beside it is at work
        self.next = last + 1


def dense_run(found: Server, names: list[str], rows: int, batches: int, seed: int = 0) -> Writer:
    writer = Writer(found, names, seed)
    for _ in range(batches):
        writer.dense(rows)
    return writer


def named_run(found: Server, names: list[str]) -> Writer:
    writer = Writer(found, names)
    for first in range(0, len(names), 10_000):
        writer.sparse(first, 10_000)
    return writer


def compact(found: Server, runs: list[str]) -> None:
    found.python(_COMPACT, *runs)


@contextlib.contextmanager
def maintained(found: Server) -> Iterator[None]:
    """The server's maintenance works within, and no longer: what is read later stands still."""
    yield
    process = found.processes.pop()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    process.wait(60)
