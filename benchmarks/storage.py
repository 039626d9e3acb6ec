"""Stored bytes a point before and after compaction and merging, their CPU and memory, and how often a point is written.

Batches are stored past HTTP, which costs them nothing here; the work on them is the maintenance's own, in a process of its own for each
load, as a worker does it. CPU leaves out reading the segments' summaries, which a run has anyway (see ``ingest``).
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks._server import report, server

BYTES_BUDGET, CPU_BUDGET, WIDE_CPU_BUDGET = 4.2, 0.15, 0.35
BATCHES_A_COMMIT = 32


def noisy(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """fp32 values whose noise no codec can take away, as losses have it."""
    return (2 + 0.1 * rng.standard_normal(shape)).astype("f4").astype("f8")


def times_of(rng: np.random.Generator, records: np.ndarray) -> np.ndarray:
    return 1_700_000_000_000_000 + records * 1000 + rng.integers(0, 200, len(records))


def dense(keys: int, rows: int, batches: int) -> Iterator[tuple[int, int, list]]:
    from tracker.store import wire

    rng = np.random.default_rng(0)
    names = tuple(f"grad_norm/model.layers.{n}.ln1.weight" if keys > 100 else f"train/metric_{n:02}" for n in range(keys))
    name = wire.keylist_hash("d" * keys, names)
    for first in range(0, rows * batches, rows):
        records = np.arange(first, first + rows)
        matrix = noisy(rng, keys, rows).view("<i8")
        yield first, first + rows - 1, [wire.Dense(name, "d" * keys, names, records, records, times_of(rng, records), matrix, first == 0)]


def sparse(keys: int, records: int, a_record: int, per: int) -> Iterator[tuple[int, int, list]]:
    """Each record has ``a_record`` of the keys: the next ones in turn if it is one, else a random subset."""
    from tracker.store import wire

    rng = np.random.default_rng(0)
    names = [f"model.layers.{n}/some/metric" for n in range(keys)]
    for first in range(0, records, per):
        mine = np.arange(first, first + per)
        subsets = [np.sort(rng.choice(keys, a_record, replace=False)) for _ in range(per if a_record > 1 else 0)]
        which = np.concatenate(subsets) if subsets else mine % keys
        rows = np.repeat(mine, a_record)
        used, index = np.unique(which, return_inverse=True)
        times = np.repeat(times_of(rng, mine), a_record)
        bits = noisy(rng, len(rows)).view("<i8")
        frame = wire.Sparse(tuple(names[at] for at in used), rows, index.astype("u4"), np.zeros(len(rows), "u1"), rows, times, bits)
        yield first, first + per - 1, [frame]


LOADS = {
    "20 keys, 1,000 rows a batch": lambda: dense(20, 1000, 200),
    "5,000 keys, 2 rows a batch": lambda: dense(5000, 2, 840),
    "one key, 10 M points": lambda: dense(1, 10_000, 1000),
    "200 keys, half of them in each record": lambda: sparse(200, 20_000, 100, 50),
    "100,000 names one by one, 8 points each": lambda: sparse(100_000, 800_000, 1, 1000),
}


def measure(what: str) -> None:
    """In the child: store the load, compacting as it comes, then finish the run; prints what it found."""
    import django

    django.setup()
    from django.db import transaction

    from tracker.domain.ids import new_id
    from tracker.models import Attempt, MetricBlock, Project, Run, User, Writer
    from tracker.services import compaction, merging
    from tracker.store import joining, rows, wire
    from tracker.store.blobs import blob_store
    from tracker.store.metrics import News, metric_store

    project, _ = Project.objects.get_or_create(slug="storage", defaults={"name": "Storage"})
    run = Run.objects.create(project=project, user=User.objects.first(), name=what)
    attempt = Attempt.objects.create(run=run, number=1)
    writer = Writer.objects.create(id=new_id(), run=run, attempt=attempt, started_us=1, anchor_wall_us=1)
    store = metric_store()
    wire_bytes = 0
    cpu = {"compact": 0.0, "merge": 0.0}
    written = [0]
    put = type(blob_store()).put

    def counted(self, key, data):
        written[0] += len(data)
        return put(self, key, data)

    type(blob_store()).put = counted  # type: ignore[method-assign]
    merge = merging.merge_writer

    def timed_merge(*args, **more):
        began = time.process_time()
        try:
            return merge(*args, **more)
        finally:
            spent = time.process_time() - began
            cpu["merge"] += spent
            cpu["compact"] -= spent

    merging.merge_writer = timed_merge

    def keep(batches: list) -> int:
        with transaction.atomic(), rows.cursor() as cursor:
            news = News.begin()
            position = store.positions(cursor, [writer.id])[writer.id]
            total = 0
            for first, last, frames in batches:
                body = zlib.compress(packed(run.id, writer.id, first, last, frames), 1)
                total += len(body)
                points = sum(frame.points for frame in frames)
                steps = frames[0].steps
                batch = wire.Batch(run.id, writer.id, first, last, frames, points=points, lo_step=int(steps[0]), hi_step=int(steps[-1]))
                store.append(position, batch, body, "deflate", news)
            store.write(cursor, news)
        # Not what is measured here.
        Writer.objects.filter(id=writer.id).update(summarised=position.next)
        return total

    def work() -> None:
        began = time.process_time()
        compaction.run_due(600)
        cpu["compact"] += time.process_time() - began

    batches, points = [], 0
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for batch in LOADS[what]():
        batches.append(batch)
        points += sum(frame.points for frame in batch[2])
        if len(batches) == BATCHES_A_COMMIT:
            wire_bytes += keep(batches)
            batches = []
            work()
    wire_bytes += keep(batches) if batches else 0
    Writer.objects.filter(id=writer.id).update(finish={"state": "finished"})
    work()
    compaction.compact_run(run.id, force=True)
    mine = MetricBlock.objects.filter(run=run)
    before = {"blocks": mine.count(), "bytes": sum(mine.values_list("bytes", flat=True))}
    began = time.process_time()
    merging.finish_run(run.id)
    cpu["merge"] += time.process_time() - began
    stored = sum(mine.values_list("bytes", flat=True))
    if sum(mine.values_list("points", flat=True)) != points:
        raise RuntimeError("points are missing")
    largest = max(mine, key=lambda block: block.points)
    began = time.perf_counter()
    joining.Directory(blob_store().read(largest.object_key, 0, 64 + largest.directory_bytes))
    found = {
        "points": points, "hot": wire_bytes / points, "stored": stored / points, "before": before["bytes"] / points, "blocks": mine.count(),
        "compact": cpu["compact"] / points * 1e6, "merge": cpu["merge"] / points * 1e6, "written": written[0] / stored,
        "directory_ms": (time.perf_counter() - began) * 1000,
        "memory": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) / 1024,
    }  # fmt: skip
    print(json.dumps(found))


def packed(run: str, writer: str, first: int, last: int, frames: list) -> bytes:
    """A batch's body of these frames (docs/formats.md, Wire)."""
    from sdk._wire import pack
    from tracker.store.wire import Dense

    header, columns = [], []
    for frame in frames:
        if isinstance(frame, Dense):
            entry = {"kind": "dense", "keylist": frame.keylist, "rows": len(frame.steps)}
            header.append(entry | ({"keys": frame.keys, "types": frame.types} if frame.is_new else {}))
            columns += [(frame.records - first).astype("<u4").tobytes(), frame.steps.tobytes(), frame.times.tobytes()]
            columns += [row.tobytes() for row in frame.matrix]
        else:
            header.append({"kind": "sparse", "keys": frame.keys, "rows": len(frame.steps)})
            columns += [(frame.records - first).astype("<u4").tobytes(), frame.index.astype("<u4").tobytes(), frame.types.tobytes()]
            columns += [frame.steps.tobytes(), frame.times.tobytes(), frame.bits.tobytes()]
    told = {"run": run, "writer": writer, "first": first, "last": last, "frames": header, "docs": [], "holes": []}
    return pack(told, columns)


def rows_of(what: str, found: dict) -> list[dict]:
    is_plain, is_wide = what.startswith("20 keys"), what.startswith("5,000")
    is_noisy = is_plain or is_wide or what.startswith("one key")
    cpu = found["compact"]
    cpu_budget = CPU_BUDGET if is_plain else WIDE_CPU_BUDGET if is_wide else None
    return [
        {
            "what": f"stored bytes a point: {what}", "value": round(found["stored"], 2), "unit": "B",
            "budget": BYTES_BUDGET if is_noisy else "", "ok": not is_noisy or found["stored"] <= BYTES_BUDGET,
            "beside": f"as sent {found['hot']:.2f}, before the last merge {found['before']:.2f}; {found['points']:,} points in "
            f"{found['blocks']} blocks; each byte written {found['written']:.1f} times",
        },
        {
            "what": f"CPU of compaction: {what}", "value": round(cpu, 3), "unit": "s/M points", "budget": cpu_budget or "",
            "ok": cpu_budget is None or cpu <= cpu_budget,
            "beside": f"and merging {found['merge']:.3f}; memory above the start {found['memory']:.0f} MB; "
            f"the largest directory is read in {found['directory_ms']:.1f} ms",
        },
    ]  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("loads", nargs="*", help="only those that begin so")
    args = parser.parse_args()
    chosen = [what for what in LOADS if not args.loads or what.startswith(tuple(args.loads))]
    missed = 0
    with server(maintenance=None) as found:
        for what in chosen:
            answer = found.python("import sys; from benchmarks import storage; storage.measure(sys.argv[1])", what)
            missed |= report(rows_of(what, json.loads(answer.splitlines()[-1])), args.json)
    return missed


if __name__ == "__main__":
    sys.exit(main())
