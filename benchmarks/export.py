"""encore export: 5,000 runs of 3 keys × 100 points and one of 1 M points into Parquet files; the same again, when nothing changed.

The rows are put into the database beside the server, as the ingest would have; the export goes over HTTP, in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import psutil

from benchmarks._server import POSTGRES, ROOT, SQLITE, Server, report, server

RUNS, POINTS, LONG = 5000, 100, 1_000_000
BUDGET, AGAIN_BUDGET = 120.0, 15.0
_FILL = """
import json, struct, sys, zlib, django; django.setup()
import numpy as np
from django.utils import timezone
from tracker.domain.ids import new_id
from tracker.models import Attempt, MetricSegment, MetricSummary, Project, Run, User, Writer
from tracker.services import compaction
from tracker.store.wire import keylist_hash
runs, points, long = (int(word) for word in sys.argv[1:])
user = User.objects.first()
project = Project.objects.create(slug="bench", name="bench")
draw = np.random.default_rng(5)
KEYS = ["train/loss", "train/acc", "lr"]
TIME = 1_700_000_000_000_000

def body(run, writer, keys, first, n):
    frame = {"kind": "dense", "keylist": keylist_hash("d" * len(keys), keys), "keys": keys, "types": "d" * len(keys), "rows": n}
    header = {"run": run, "writer": writer, "first": first, "last": first + n - 1, "frames": [frame], "docs": [], "holes": []}
    text = json.dumps(header).encode(); text += b" " * (-len(text) % 8)
    parts = [np.arange(n, dtype="<u4"), np.arange(first, first + n, dtype="<i8"), TIME + 1000 * np.arange(first, first + n, dtype="<i8")]
    parts += [draw.normal(size=n).astype("f4").astype("<f8") for _ in keys]
    rest = text + b"".join(raw + bytes(-len(raw) % 8) for raw in (part.tobytes() for part in parts))
    return zlib.compress(struct.pack("<4sHHII", b"ENCW", 1, 0, len(text), zlib.crc32(rest)) + rest, 1)

made, attempts, writers, segments, sums = [], [], [], [], []
def run_of(name, keys, n, piece):
    config = {"lr": float(draw.random()), "seed": len(made), "model": {"layers": 12, "name": "gpt"}}
    run = Run(id=new_id(), project=project, user=user, name=name, state="finished", started_at=timezone.now(), config=config)
    attempt = Attempt(run=run, number=1)
    told = {"next": n, "summarised": n, "finish": {"state": "finished"}}
    writer = Writer(id=new_id(), run=run, attempt=attempt, started_us=TIME, anchor_wall_us=TIME, **told)
    for first in range(0, n, piece):
        count = min(piece, n - first)
        raw = body(run.id, writer.id, keys, first, count)
        segments.append(MetricSegment(run=run, writer=writer, first=first, last=first + count - 1, points=count * len(keys), lo_step=first,
            hi_step=first + count - 1, keylists=keylist_hash("d" * len(keys), keys), encoding="deflate", body=raw))
        writer.hot_bytes += len(raw); writer.hot_segments += 1
    sums.extend(MetricSummary(run=run, key=key, rank=0, count=n, last=0.5) for key in keys)
    made.append(run); attempts.append(attempt); writers.append(writer)
for n in range(runs):
    run_of(f"run {n}", KEYS, points, points)
run_of("long", ["train/loss"], long, 20_000)
Run.objects.bulk_create(made, batch_size=500); Attempt.objects.bulk_create(attempts, batch_size=500)
Writer.objects.bulk_create(writers, batch_size=500); MetricSegment.objects.bulk_create(segments, batch_size=500)
MetricSummary.objects.bulk_create(sums, batch_size=2000)
compaction.compact_run(made[-1].id, force=True)
"""


class Peaks:
    """The most resident memory of processes, sampled while it runs."""

    def __init__(self, processes: list[psutil.Process]) -> None:
        self.processes, self.most, self.over = processes, 0, threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self.over.wait(0.02):
            total = 0
            for process in self.processes:
                try:
                    total += process.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            self.most = max(self.most, total)

    def __enter__(self) -> Peaks:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()


def export(found: Server, to: Path) -> tuple[dict, float, float]:
    """What the command says, its wall seconds, its peak memory in MB."""
    argv = [sys.executable, "-c", "import sys; from sdk._cli import main; sys.exit(main())", "export", "--to", str(to), "--json"]
    argv += ["--url", found.url, "--token", found.token]
    began = time.perf_counter()
    process = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    with Peaks([psutil.Process(process.pid)]) as peak:
        said = process.communicate()[0]
    if process.returncode:
        raise RuntimeError(f"encore export ended with status {process.returncode}")
    return json.loads(said), time.perf_counter() - began, peak.most / 2**20


def measure(database: str) -> list[dict]:
    with server(maintenance=None, database=database) as found, tempfile.TemporaryDirectory(prefix="encore-export-") as folder:
        found.python(_FILL, str(RUNS), str(POINTS), str(LONG))
        top = psutil.Process(found.processes[0].pid)
        family = [top, *top.children(recursive=True)]
        before = sum(process.memory_info().rss for process in family) / 2**20
        cpu = found.cpu_seconds()
        with Peaks(family) as peak:
            told, seconds, client = export(found, Path(folder, "out"))
        cpu = found.cpu_seconds() - cpu
        expected = RUNS * 3 * POINTS + LONG
        if (told["runs"], told["points"]) != (RUNS + 1, expected):
            raise RuntimeError(f"{told['runs']} runs and {told['points']} points came, not {RUNS + 1} and {expected}")
        again, again_seconds, _ = export(found, Path(folder, "out"))
        if again["sent"]:
            raise RuntimeError(f"{again['sent']} runs came again")
        import duckdb

        with duckdb.connect() as db:
            began = time.perf_counter()
            query = f"SELECT count(*) FROM read_parquet('{folder}/out/project=*/run=*/*.parquet', hive_partitioning = true)"
            count = db.execute(query).fetchall()[0][0]
            reading = time.perf_counter() - began
        if count != expected:
            raise RuntimeError(f"DuckDB finds {count} points")
    per_point = told["bytes"] / told["points"]
    return [
        {
            "what": f"encore export of 5,000 runs × 300 points and one of 1 M points into Parquet, {database}", "value": round(seconds, 1),
            "unit": "s", "budget": BUDGET, "ok": seconds <= BUDGET,
            "beside": f"{told['points'] / seconds:,.0f} points/s, {told['bytes'] / 1e6:.1f} MB ({per_point:.1f} bytes a point), server CPU "
            f"{cpu:.1f} s; peak memory: server {peak.most / 2**20:.0f} MB ({before:.0f} before), client {client:.0f} MB; DuckDB counts "
            f"the 5,001 files in {reading:.1f} s",
        },
        {
            "what": f"the same export again, nothing changed, {database}", "value": round(again_seconds, 1), "unit": "s",
            "budget": AGAIN_BUDGET, "ok": again_seconds <= AGAIN_BUDGET, "beside": "",
        },
    ]  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    return report([row for database in (SQLITE, POSTGRES) for row in measure(database)], args.json)


if __name__ == "__main__":
    sys.exit(main())
