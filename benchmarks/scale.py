"""One per cent of 10 billion points and 100,000 runs on one machine, measured beside what docs/scaling.md predicts.

    python benchmarks/scale.py                         # 1 % on SQLite and a folder: about three minutes on two cores
    python benchmarks/scale.py --database postgres --store s3 --fraction 0.001

Real batches go over HTTP to a real server with its maintenance; then all is compacted, merged and read again. The last column says
measured / predicted; exits 1 where a figure that other machines must share (rows, bytes, points) is off by more than a quarter.
"""

from __future__ import annotations

import argparse
import http.client
import json
import math
import queue
import resource
import statistics
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks._server import FOLDER, POSTGRES, S3, SQLITE, Server, server
from benchmarks.ingest import wait_until_compacted
from sdk._ids import new_id
from sdk._wire import key_list_hash, pack


@dataclass(frozen=True)
class Kind:
    """``runs`` at full scale, each of one writer with ``keys`` × ``steps`` points, sent in batches of ``rows`` steps."""

    name: str
    runs: int
    keys: int
    steps: int
    rows: int

    @property
    def points(self) -> int:
        return self.runs * self.keys * self.steps

    @property
    def batches(self) -> int:
        return self.runs * math.ceil(self.steps / self.rows)


MIX = (
    Kind("small: 5 keys × 500 steps", 90_000, 5, 500, 100),
    Kind("medium: 50 keys × 10,000 steps", 9_000, 50, 10_000, 500),
    Kind("large: 20 keys × 200,000 steps", 990, 20, 200_000, 2_000),
    Kind("wide: 5,000 keys × 25,000 steps", 10, 5_000, 25_000, 5),
)


# -- the arithmetic of docs/scaling.md ----------------------------------------------------------------------------------------------

STORED_BYTES = {"narrow": 2.7, "wide": 2.85}
"""A point in a block, on fp32 noise: pcodec's share of a value, and its share of the axis and the directory."""
HOT_BYTES = 6.2
"""A point of a small run, which stays in segments as it was sent."""
ROW_BYTES = {"run": 2_600, "summary": 330, "segment": 260, "block": 420, "keylist": 140}
"""What a row costs with its indexes, without the body of a segment and the names of a key list."""
CPU_PER_MILLION = {"narrow": 0.20, "wide": 0.45}
"""CPU seconds of server, maintenance and database for a million points, from the body to the merged block."""
CPU_PER_BATCH, CPU_PER_RUN = 0.0006, 0.006
POSTGRES_FACTOR = 1.4
"""Of CPU on PostgreSQL and S3, the database's own included."""
POSTGRES_BASE_MB = 12
"""Its catalogue and the empty tables."""
SMALL_BYTES, WIDE_KEYS = 65_536, 1_000
FULL_ROWS, FULL_POINTS, MOST_POINTS, MOST_BYTES = 32_768, 1_500_000, 8_000_000, 32 * 2**20


def predict(mix: tuple[Kind, ...], database: str = SQLITE) -> dict[str, float]:
    found: dict[str, float] = dict.fromkeys(("runs", "points", "batches", "segments", "blocks", "database MB", "store MB", "CPU s"), 0.0)
    for kind in mix:
        wide = "wide" if kind.keys > WIDE_KEYS else "narrow"
        is_small = kind.keys * kind.steps * HOT_BYTES < SMALL_BYTES
        found["runs"] += kind.runs
        found["points"] += kind.points
        found["batches"] += kind.batches
        summaries = kind.runs * min(kind.keys, 500) * 2  # MetricSummary and RunValue
        in_rows = kind.runs * (ROW_BYTES["run"] + ROW_BYTES["keylist"] + kind.keys * 8) + summaries * ROW_BYTES["summary"]
        if is_small:
            found["segments"] += kind.batches
            in_rows += kind.points * HOT_BYTES + kind.batches * ROW_BYTES["segment"]
        else:
            blocks = kind.runs * blocks_of(kind)
            found["blocks"] += blocks
            in_rows += blocks * ROW_BYTES["block"]
            found["store MB"] += kind.points * STORED_BYTES[wide] / 1e6
        found["database MB"] += in_rows / 1e6
        found["CPU s"] += kind.points / 1e6 * CPU_PER_MILLION[wide] + kind.batches * CPU_PER_BATCH + kind.runs * CPU_PER_RUN
    if database == POSTGRES:
        found["CPU s"] *= POSTGRES_FACTOR
        found["database MB"] += POSTGRES_BASE_MB
    return found


def blocks_of(kind: Kind) -> int:
    """Blocks of a finished run, by the bounds of docs/metric-store.md: a long run's have one to two million points."""
    points = kind.keys * kind.steps
    if kind.steps >= FULL_ROWS:
        return max(1, round(points / FULL_POINTS))
    return math.ceil(max(points / MOST_POINTS, points * STORED_BYTES["wide"] / MOST_BYTES))


# -- the load -------------------------------------------------------------------------------------------------------------------------


@dataclass
class Job:
    kind: Kind
    run: str
    writer: str

    def names(self) -> list[str]:
        form = "train/metric_{:02d}" if self.kind.keys <= WIDE_KEYS else "grad_norm/model.layers.{}.ln1.weight"
        return [form.format(i) for i in range(self.kind.keys)]

    def bodies(self, noise: np.ndarray) -> Iterator[bytes]:
        kind, names = self.kind, self.names()
        digest = key_list_hash(names, "d" * kind.keys)
        draw = np.random.default_rng(zlib.crc32(self.writer.encode()))
        began = time.time_ns() // 1000
        for first in range(0, kind.steps, kind.rows):
            count = min(kind.rows, kind.steps - first)
            frame: dict = {"kind": "dense", "keylist": digest, "rows": count}
            if first == 0:
                frame |= {"keys": names, "types": "d" * kind.keys}
            steps = np.arange(first, first + count, dtype="<i8")
            times = began + steps * 1000 + draw.integers(0, 200, count)
            size = kind.keys * count
            at = int(draw.integers(0, len(noise) - size))
            columns = [np.arange(count, dtype="<u4").tobytes(), steps.tobytes(), times.astype("<i8").tobytes()]
            values = noise[at : at + size]
            columns += [values[i * count : (i + 1) * count].tobytes() for i in range(kind.keys)]
            last, docs = first + count - 1, []
            if first + count == kind.steps:
                last += 1
                finish = {"type": "event", "name": "finish", "data": {"state": "finished", "exit_code": 0}}
                docs = [{"n": last, "step": None, "time": int(times[-1]), "doc": finish}]
            header = {"run": self.run, "writer": self.writer, "first": first, "last": last, "frames": [frame], "docs": docs, "holes": []}
            yield zlib.compress(pack(header, columns), 1)


def load(found: Server, mix: tuple[Kind, ...], threads: int) -> tuple[dict[str, list[str]], list[float]]:
    """The runs of each kind, and the seconds of each batch."""
    noise = (2 + 0.1 * np.random.default_rng(7).standard_normal(4_000_000)).astype("f4").astype("<f8")
    jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
    runs: dict[str, list[str]] = {}
    for kind in sorted(mix, key=lambda kind: -kind.keys * kind.steps):  # the longest first, so that no thread is left with one
        for _ in range(kind.runs):
            job = Job(kind, new_id(), new_id())
            runs.setdefault(kind.name, []).append(job.run)
            jobs.put(job)
    for _ in range(threads):
        jobs.put(None)
    latencies: list[float] = []
    problems: list[BaseException] = []

    def work() -> None:
        try:
            door = http.client.HTTPConnection("127.0.0.1", found.port, timeout=300)
            while (job := jobs.get()) is not None and not problems:
                _open(found, door, job)
                for body in job.bodies(noise):
                    latencies.append(_post(found, door, job.writer, body))
        except BaseException as problem:
            problems.append(problem)
            raise

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if problems:
        raise RuntimeError("the load broke off") from problems[0]
    return runs, latencies


def _open(found: Server, door: http.client.HTTPConnection, job: Job) -> None:
    now = time.time_ns() // 1000
    about = {
        "format": 1, "writer": job.writer, "kind": "trainer", "run": {"id": job.run, "project": "bench", "name": job.kind.name}, "rank": 0,
        "world_size": 1, "host": "bench", "pid": 1, "started_us": now, "anchor_wall_us": now, "launch": {"kind": "python"},
    }  # fmt: skip
    _send(found, door, "/api/v1/ingest/writers", json.dumps(about).encode(), "application/json", "")


def _post(found: Server, door: http.client.HTTPConnection, writer: str, body: bytes) -> float:
    return _send(found, door, f"/api/v1/ingest/writers/{writer}/batches", body, "application/vnd.encore.batch", "deflate")


def _send(found: Server, door: http.client.HTTPConnection, path: str, body: bytes, kind: str, encoding: str) -> float:
    headers = {"Authorization": f"Bearer {found.token}", "Content-Type": kind} | ({"Content-Encoding": encoding} if encoding else {})
    while True:
        began = time.perf_counter()
        door.request("POST", path, body, headers)
        answer = door.getresponse()
        told = answer.read()
        if answer.status == 200:
            return time.perf_counter() - began
        if answer.status not in (429, 503):
            raise RuntimeError(f"{answer.status} {told[:500]!r}")
        time.sleep(float(answer.headers.get("Retry-After") or 1))


# -- the figures ----------------------------------------------------------------------------------------------------------------------

_FINISH = """
import django; django.setup()
from tracker.models import MetricBlock
from tracker.services import merging
for run in MetricBlock.objects.values_list("run_id", flat=True).distinct():
    merging.finish_run(run)
"""
_COUNT = """
import json, django; django.setup()
from django.db import connection
from django.db.models import Sum
from tracker.models import MetricBlock, MetricSegment, Run
told = {"runs": Run.objects.count(), "segments": MetricSegment.objects.count(), "blocks": MetricBlock.objects.count()}
hot = MetricSegment.objects.aggregate(n=Sum("points"))["n"] or 0
told["points"] = hot + (MetricBlock.objects.aggregate(n=Sum("points"))["n"] or 0)
told["store MB"] = (MetricBlock.objects.aggregate(n=Sum("bytes"))["n"] or 0) / 1e6
with connection.cursor() as cursor:
    if connection.vendor == "sqlite":
        cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        cursor.execute("SELECT (SELECT * FROM pragma_page_count()) - (SELECT * FROM pragma_freelist_count()), * FROM pragma_page_size()")
        used, size = cursor.fetchone()
        told["database MB"] = used * size / 1e6
    else:
        cursor.execute("SELECT pg_database_size(current_database())")
        told["database MB, with room that later batches use again"] = cursor.fetchone()[0] / 1e6
        cursor.execute("VACUUM FULL")
        cursor.execute("SELECT pg_database_size(current_database())")
        told["database MB"] = cursor.fetchone()[0] / 1e6
        cursor.execute("SELECT relname, pg_total_relation_size(oid) FROM pg_class WHERE relname ~ '^tracker_metricsegment_[0-9]+$'")
        sizes = [size for _, size in cursor.fetchall()]
        told["partitions"], told["largest / smallest partition"] = len(sizes), max(sizes) / max(min(sizes), 1)
print(json.dumps(told))
"""


def reads(found: Server, runs: dict[str, list[str]], mix: tuple[Kind, ...]) -> dict[str, float]:
    """Median milliseconds of warm requests over HTTP."""
    medium, large, wide = (runs[kind.name] for kind in mix[1:])
    asked = {
        "chart of one series of a large run": ("POST", "series", {"runs": large[:1], "keys": ["train/metric_00"], "buckets": 1000}),
        "one key of up to 100 medium runs": ("POST", "series", {"runs": medium[:100], "keys": ["train/metric_00"], "buckets": 1000}),
        "50 keys of a medium run": ("POST", "series", {"runs": medium[:1], "keys": ["train/metric_*"], "buckets": 1000}),
        "one of 5,000 keys of the wide run": (
            "POST", "series", {"runs": wide[:1], "keys": ["grad_norm/model.layers.7.ln1.weight"], "buckets": 1000},
        ),
        "first page of runs by a metric": ("GET", "runs?project=bench&sort=-summary.train/metric_00&limit=50", None),
    }  # fmt: skip
    told = {}
    for what, (method, path, body) in asked.items():
        taken = []
        for _ in range(15):
            began = time.perf_counter()
            status, answer = found.request(method, path, body)
            taken.append((time.perf_counter() - began) * 1000)
            if status != 200:
                raise RuntimeError(f"{what}: {status} {answer[:300]!r}")
        told[what] = statistics.median(taken[5:])
    return told


def _cpu_of_children(act: Callable[[], object]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    act()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def part_of(fraction: float) -> tuple[Kind, ...]:
    """That fraction of the mix: fewer runs; of a kind with less than one run, one shorter run."""
    found = []
    for kind in MIX:
        runs = kind.runs * fraction
        steps = kind.steps if runs >= 1 else max(kind.rows, round(kind.steps * runs / kind.rows) * kind.rows)
        found.append(replace(kind, runs=max(1, round(runs)), steps=steps))
    return tuple(found)


EXACT = ("runs", "points", "segments", "blocks", "store MB", "database MB")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fraction", type=float, default=0.01)
    parser.add_argument("--database", choices=[SQLITE, POSTGRES], default=SQLITE)
    parser.add_argument("--store", choices=[FOLDER, S3], default=FOLDER)
    parser.add_argument("--threads", type=int, default=8, help="that send")
    args = parser.parse_args()
    mix = part_of(args.fraction)
    predicted = predict(mix, args.database)
    print(
        f"{args.fraction:.1%} of {sum(kind.points for kind in MIX) / 1e9:.2f} billion points: {predicted['points'] / 1e6:.1f} M points in"
    )
    for kind in mix:
        print(f"  {kind.runs:,} × {kind.name}" + (f" (here {kind.steps:,} steps)" if kind.steps not in {k.steps for k in MIX} else ""))
    with server(maintenance=1.0, database=args.database, store=args.store) as found:
        cpu, began = found.cpu_seconds(), time.monotonic()
        runs, latencies = load(found, mix, args.threads)
        posted = time.monotonic() - began
        wait_until_compacted(found)
        took = time.monotonic() - began
        cpu -= _cpu_of_children(lambda: found.python(_FINISH))  # what the maintenance does an hour after a run's last block
        measured = json.loads(found.python(_COUNT)) | {"batches": len(latencies), "CPU s": found.cpu_seconds() - cpu}
        read = reads(found, runs, mix)
    latencies.sort()
    full = predict(MIX, args.database)
    print(f"\nloaded in {posted:.0f} s ({measured['points'] / posted:,.0f} points/s), compacted after {took:.0f} s; ", end="")
    print(f"a batch p50 {latencies[len(latencies) // 2] * 1000:.0f} ms, p99 {latencies[int(len(latencies) * 0.99)] * 1000:.0f} ms\n")
    print("| what | predicted | measured | measured / predicted | predicted for all of it |\n|---|---|---|---|---|")
    off = []
    for what, expected in predicted.items():
        ratio = measured[what] / expected if expected else math.nan
        print(f"| {what} | {expected:,.0f} | {measured[what]:,.0f} | {ratio:.2f} | {full[what]:,.0f} |")
        if what in EXACT and not 0.75 <= ratio <= 1.25:
            off.append(what)
    for what in measured.keys() - predicted.keys():
        print(f"| {what} | | {measured[what]:,.3g} | | |")
    print("\n| read, warm, over HTTP | ms |\n|---|---|")
    for what, ms in read.items():
        print(f"| {what} | {ms:.1f} |")
    if off:
        print(f"\noff by more than a quarter: {', '.join(off)}")
    return 1 if off else 0


if __name__ == "__main__":
    sys.exit(main())
