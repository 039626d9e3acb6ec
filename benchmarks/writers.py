"""1,000 writers of 1,000 runs, each with one batch a second and a heartbeat each ten, on one server: nothing refused, lost or doubled.

One client process with a connection a writer, as senders have. Every twentieth batch is sent twice. At the end each run's points are
counted over the API, before and after all of it is compacted.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from array import array
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from zlib import compress

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks._server import POSTGRES, SQLITE, Server, report, server
from sdk._ids import new_id
from sdk._wire import key_list_hash, pack

KEYS = [f"train/metric_{i}" for i in range(10)]
ROWS = 5
HEARTBEAT_SECONDS = 10.0
NAMES = {SQLITE: "SQLite", POSTGRES: "PostgreSQL"}


def bodies_of(run: str, writer: str, batches: int, at: int) -> list[bytes]:
    digest, bodies = key_list_hash(KEYS, "d" * len(KEYS)), []
    for batch in range(batches):
        first = batch * ROWS
        frame: dict = {"kind": "dense", "keylist": digest, "rows": ROWS}
        if batch == 0:
            frame |= {"keys": KEYS, "types": "d" * len(KEYS)}
        columns = [
            array("I", range(ROWS)).tobytes(),
            array("q", range(first, first + ROWS)).tobytes(),
            array("q", [1_700_000_000_000_000 + (first + i) * 200_000 for i in range(ROWS)]).tobytes(),
            *(array("d", [((at * 7919 + key * 31 + first + i) % 1009) / 1009 for i in range(ROWS)]).tobytes() for key in range(len(KEYS))),
        ]
        header = {"run": run, "writer": writer, "first": first, "last": first + ROWS - 1, "frames": [frame], "docs": [], "holes": []}
        bodies.append(compress(pack(header, columns), 1))
    return bodies


class Client:
    """One writer's connection; HTTP by hand, since 1,000 writers in one process must cost little."""

    def __init__(self, found: Server, run: str, writer: str, bodies: list[bytes]) -> None:
        self.run, self.writer, self.port = run, writer, found.port
        head = f"HTTP/1.1\r\nHost: 127.0.0.1:{found.port}\r\nAuthorization: Bearer {found.token}\r\n"
        batch = f"POST /api/v1/ingest/writers/{writer}/batches {head}Content-Encoding: deflate\r\nContent-Length: "
        beat = json.dumps({"run": run, "host": "bench", "writers": [{"id": writer, "alive": True, "unsent": 0}]}).encode()
        self.beat = (
            f"POST /api/v1/ingest/heartbeats {head}Content-Type: application/json\r\nContent-Length: {len(beat)}\r\n\r\n".encode() + beat
        )
        self.requests = [f"{batch}{len(body)}\r\n\r\n".encode() + body for body in bodies]
        self.seconds: list[float] = []
        self.beat_seconds: list[float] = []
        self.errors: list[str] = []

    async def work(self, start: float, period: float) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(max(0.0, start - loop.time()))
        self.reader, self.writer_ = await asyncio.open_connection("127.0.0.1", self.port)
        beat_at = start + (start * 7919 % 1.0) * HEARTBEAT_SECONDS
        for number, request in enumerate(self.requests):
            await asyncio.sleep(max(0.0, start + number * period - loop.time()))
            for _ in range(2 if number % 20 == 19 else 1):
                self.seconds.append(await self.ask(request, f'"next":{(number + 1) * ROWS},'))
            if loop.time() >= beat_at:
                beat_at += HEARTBEAT_SECONDS
                self.beat_seconds.append(await self.ask(self.beat, '"next":{'))
        self.writer_.close()

    async def ask(self, request: bytes, expected: str) -> float:
        began = time.perf_counter()
        self.writer_.write(request)
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        body = await self.reader.readexactly(length)
        took = time.perf_counter() - began
        if not head.startswith(b"HTTP/1.1 200") or expected not in body.decode().replace(" ", ""):
            self.errors.append(f"{head[:20]!r} {body[:300]!r}")
        return took


async def work(clients: list[Client], period: float) -> None:
    start = asyncio.get_running_loop().time() + 0.5
    done = await asyncio.gather(
        *(one.work(start + at * period / len(clients), period) for at, one in enumerate(clients)), return_exceptions=True
    )
    for one, outcome in zip(clients, done, strict=True):
        if isinstance(outcome, BaseException):
            one.errors.append(repr(outcome))


def count(found: Server, runs: list[str]) -> dict[str, int]:
    """Points of the first and the last key of each run, as the API tells; a run whose two differ counts as -1."""
    counts: dict[str, int] = {}
    for at in range(0, len(runs), 100):
        told = {"runs": runs[at : at + 100], "keys": [KEYS[0], KEYS[-1]], "buckets": 10}
        status, answer = found.request("POST", "series", told, Accept="application/json")
        if status != 200:
            raise RuntimeError(f"{status} {answer[:500]!r}")
        for series in json.loads(answer)["series"]:
            counts[series["run"]] = series["n"] if counts.get(series["run"], series["n"]) == series["n"] else -1
    return counts


def percentile(values: list[float], part: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] * 1000 if ordered else 0.0


def measure(database: str, writers: int, batches: int, period: float) -> list[dict]:
    with server(database=database) as found:
        clients = []
        plans = [(new_id(), new_id()) for _ in range(writers)]
        began = time.monotonic()
        open_all(found, plans)
        opened = time.monotonic() - began
        clients = [Client(found, run, writer, bodies_of(run, writer, batches, at)) for at, (run, writer) in enumerate(plans)]
        cpu, own, began = found.cpu_seconds(), os.times(), time.monotonic()
        asyncio.run(work(clients, period))
        seconds, cpu, after = time.monotonic() - began, found.cpu_seconds() - cpu, os.times()
        runs = [run for run, _ in plans]
        counts = count(found, runs)
        found.python(_COMPACT, *runs[:50])
        counts_after = count(found, runs)
        expected = batches * ROWS
        lost = sum(max(0, expected - min(counts.get(run, 0), counts_after.get(run, 0))) for run in runs)
        doubled = sum(max(0, max(counts.get(run, 0), counts_after.get(run, 0)) - expected) for run in runs)
        errors = [problem for one in clients for problem in one.errors]
    for problem in errors[:5]:
        print(problem, file=sys.stderr)
    took = [one for client in clients for one in client.seconds]
    beats = [one for client in clients for one in client.beat_seconds]
    requests = len(took) + len(beats)
    what = f"{writers:,} writers at one batch a second, {NAMES[database]}"
    beside = (
        f"p50 {percentile(took, 0.5):.1f} ms, max {max(took) * 1000:.0f} ms; {len(took) / seconds:,.0f} batches/s; server CPU "
        f"{cpu / seconds * 100:.0f} % of a core, {cpu / requests * 1000:.2f} ms a request, client {sum(after[:2]) - sum(own[:2]):.1f} s; "
        f"opened in {opened:.1f} s"
    )
    p99, beat99, bad = percentile(took, 0.99), percentile(beats, 0.99), len(errors) + lost + doubled
    told = f"{len(errors)} errors, {lost} lost, {doubled} doubled of {writers * expected:,} records"
    return [
        {"what": f"{what}: p99", "value": round(p99, 1), "unit": "ms", "budget": 1000, "ok": p99 <= 1000, "beside": beside},
        {"what": f"{what}: errors, lost, doubled", "value": bad, "unit": "", "budget": 0, "ok": bad == 0, "beside": told},
        {
            "what": f"{what}: heartbeats beside, p99", "value": round(beat99, 1), "unit": "ms", "budget": 1000, "ok": beat99 <= 1000,
            "beside": f"{len(beats):,} of them, p50 {percentile(beats, 0.5):.1f} ms",
        },
    ]  # fmt: skip


_COMPACT = """
import sys, django; django.setup()
from tracker.services import compaction
for run in sys.argv[1:]:
    compaction.compact_run(run, force=True)
"""


def open_all(found: Server, plans: list[tuple[str, str]]) -> None:
    def some(mine: list[tuple[str, str]]) -> None:
        own = Server(found.url, found.port, found.token, found.home, found.environment)
        for run, writer in mine:
            own.open_writer(run, writer)

    own = plans[0]
    found.open_writer(*own)  # makes the project
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(some, [plans[1:][at::4] for at in range(4)]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", choices=[SQLITE, POSTGRES])
    parser.add_argument("--writers", type=int, default=1000)
    parser.add_argument("--seconds", type=int, default=12)
    parser.add_argument("--period", type=float, default=1.0)
    args = parser.parse_args()
    import resource

    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    rows = []
    for database in (SQLITE, POSTGRES):
        if args.only in (None, database):
            rows += measure(database, args.writers, int(args.seconds / args.period), args.period)
    return report(rows, args.json)


if __name__ == "__main__":
    sys.exit(main())
