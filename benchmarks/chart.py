"""Charts over HTTP: every shape of read that pages make, on a warm server; SQLite and PostgreSQL; a cold dashboard from an S3 server.

Each row: the median of its requests; beside it p99 and the CPU of all server processes (PostgreSQL's too) for each request.
"""

from __future__ import annotations

import argparse
import base64
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks._chart_data import Writer, compact, dense_run, maintained, named_run
from benchmarks._server import POSTGRES, S3, SQLITE, Server, report, server

LOSS = "train/metric_00"
FIFTY = [f"train/metric_{n:02d}" for n in range(50)]
WIDE = [f"grad_norm/model.layers.{n}.ln1.weight" for n in range(5000)]
NAMES = [f"expert/{n:06d}/load" for n in range(100_000)]
MILLION, TEN_MILLION = 1_000_000, 10_000_000
REPEATS = 60
COLD_RUNS = 16
_SUMMARISE = "import sys, django; django.setup()\nfrom tracker.services import summaries\nsummaries.summarise_run(sys.argv[1])"


class Timed:
    """Sorted milliseconds of each request, and CPU milliseconds for each."""

    def __init__(self, found: Server, ask: Callable[[], bytes], repeats: int = REPEATS, warm: bool = True) -> None:
        if warm:
            ask()
            self.answer = ask()
        cpu, taken = found.cpu_seconds(), []
        for _ in range(repeats):
            began = time.perf_counter()
            self.answer = ask()
            taken.append((time.perf_counter() - began) * 1000)
        self.cpu = (found.cpu_seconds() - cpu) * 1000 / repeats
        self.taken = sorted(taken)

    @property
    def median(self) -> float:
        return statistics.median(self.taken)

    @property
    def beside(self) -> str:
        p99 = self.taken[min(round(len(self.taken) * 0.99), len(self.taken) - 1)]
        return f"p99 {p99:.1f} ms, CPU {self.cpu:.1f} ms"


def asking(found: Server, method: str, path: str, query: dict | None = None) -> Callable[[], bytes]:
    def ask() -> bytes:
        status, answer = found.request(method, path, query)
        if status != 200:
            raise RuntimeError(f"{path}: {status} {answer[:500]!r}")
        return answer

    return ask


def series(found: Server, runs: list[str], keys: list[str], **more) -> Callable[[], bytes]:
    return asking(found, "POST", "series", {"runs": runs, "keys": keys, "buckets": 1000, **more})


def told(answer: bytes) -> list[dict]:
    from tracker.domain import series_answer

    return series_answer.decode(answer)["series"]


def counts(answer: bytes) -> list[int]:
    return [int(entry["count"].sum()) if "count" in entry else entry["drawn"] for entry in told(answer)]


def extremes(found: Server, run: str) -> tuple[int, float, float]:
    """Over every stored point, read past the chart."""
    code = (
        "import sys, django; django.setup()\nfrom tracker.store import reading\n"
        f"c = reading.history([sys.argv[1]], ['{LOSS}'])[0]\nprint(len(c.steps), float(c.values.min()), float(c.values.max()))"
    )
    count, low, high = found.python(code, run).split()
    return int(count), float(low), float(high)


def is_exact(found: Server, run: str, answer: bytes, points: int) -> bool:
    entry = told(answer)[0]
    known = extremes(found, run)
    return known == (points, entry["min"].min(), entry["max"].max()) and entry["n"] == int(entry["count"].sum()) == points


def row(where: str, what: str, timed: Timed, budget: float | None, ok: bool, more: str = "") -> dict:
    kept = ok and (budget is None or timed.median <= budget)
    beside = timed.beside + ("" if ok else "; WRONG ANSWER") + more
    return {"what": f"{what}, {where}", "value": round(timed.median, 1), "unit": "ms", "budget": budget, "ok": kept, "beside": beside}


def compacted_rows(found: Server, where: str) -> Iterator[dict]:
    with maintained(found):
        million = dense_run(found, [LOSS], 10_000, 100).run
        ten = dense_run(found, [LOSS], 100_000, 100).run
        hundred = [dense_run(found, [LOSS], 10_000, 1, seed).run for seed in range(100)]
        fifty = dense_run(found, FIFTY, 1000, 10).run
        names = named_run(found, NAMES).run
    compact(found, [million, ten, fifty, names, *hundred])
    cold = Timed(found, series(found, [million], [LOSS]), 1, warm=False).median
    timed = Timed(found, series(found, [million], [LOSS]))
    ok = is_exact(found, million, timed.answer, MILLION)
    yield row(where, "chart of 1 series of 1 M points, warm", timed, 40, ok, f"; exact extremes; first {cold:.0f} ms")
    timed = Timed(found, series(found, hundred, [LOSS]))
    yield row(where, "chart of 1 key of 100 runs × 10 k points, warm", timed, 80, counts(timed.answer) == [10_000] * 100)
    timed = Timed(found, series(found, [fifty], FIFTY))
    yield row(where, "dashboard of 50 keys × 10 k points of a run, warm", timed, 60, counts(timed.answer) == [10_000] * 50)
    timed = Timed(found, series(found, [million], [LOSS], **{"from": 400_000, "to": 419_999, "buckets": 20_000}))
    entry = told(timed.answer)[0]
    yield row(where, "zoom: exact 20,000 points out of 1 M, warm", timed, 20, entry["exact"] and entry["drawn"] == 20_000)
    cold = Timed(found, series(found, [ten], [LOSS]), 1, warm=False).median
    timed = Timed(found, series(found, [ten], [LOSS]))
    ok = is_exact(found, ten, timed.answer, TEN_MILLION)
    yield row(where, "chart of 1 series of 10 M points, warm", timed, None, ok, f"; exact extremes; first {cold:.0f} ms")
    timed = Timed(found, series(found, [names], [NAMES[777]]), 30)
    yield row(where, "1 key of a run of 100,000 names, warm", timed, None, counts(timed.answer) == [1])
    timed = Timed(found, series(found, [names], NAMES[:50]), 30)
    yield row(where, "50 keys of a run of 100,000 names, warm", timed, None, counts(timed.answer) == [1] * 50)


def hot_rows(found: Server, where: str) -> Iterator[dict]:
    """What no compaction has touched."""
    wide = dense_run(found, WIDE, 2, 84)
    found.python(
        "import sys, django; django.setup()\nfrom tracker.services import summaries\nsummaries.summarise_run(sys.argv[1])", wide.run
    )
    timed = Timed(found, series(found, [wide.run], [WIDE[777]]), 30)
    yield row(where, "1 key of a hot run of 5,000 keys (84 batches), warm", timed, None, counts(timed.answer) == [168])
    timed = Timed(found, asking(found, "GET", f"runs/{wide.run}/keys"), 10)
    known = json.loads(timed.answer)["results"]
    ok = len(known) == 5000 and all(each["last_step"] == 167 and each["last"] is not None for each in known)
    yield row(where, "last value of all 5,000 keys of a hot run, as JSON", timed, None, ok)
    yield tail(found, where)


def tail(found: Server, where: str) -> dict:
    """New points of 20 keys after one more batch, over 60 that are not compacted: what a live page asks each time."""
    writer: Writer = dense_run(found, FIFTY[:20], 1000, 60)
    since = {"cursor": ""}

    def more() -> bytes:
        return asking(found, "POST", "series", {"runs": [writer.run], "keys": FIFTY[:20], "since": since["cursor"]})()

    since["cursor"] = cursor_of(series(found, [writer.run], FIFTY[:20])())
    taken, cpu, wrong = [], 0.0, 0
    for _ in range(10):
        writer.dense(10)
        before = found.cpu_seconds()
        began = time.perf_counter()
        answer = more()
        taken.append((time.perf_counter() - began) * 1000)
        cpu += found.cpu_seconds() - before
        wrong += counts(answer) != [10] * 20
        since["cursor"] = cursor_of(answer)
    timed = Timed.__new__(Timed)
    timed.taken, timed.cpu = sorted(taken), cpu * 100
    return row(where, "tail of 20 keys after one new batch over 60 hot ones", timed, None, not wrong)


def cursor_of(answer: bytes) -> str:
    from tracker.domain import series_answer

    found = series_answer.decode(answer)["cursor"]
    assert base64.urlsafe_b64decode(found + "=" * (-len(found) % 4))
    return found


def cold_row(found: Server) -> dict:
    """Each run is read for the first time, so nothing of it is in memory."""
    with maintained(found):
        runs = [dense_run(found, FIFTY, 1000, 4, seed).run for seed in range(COLD_RUNS + 1)]
    compact(found, runs)
    series(found, [runs.pop()], FIFTY)()  # opens connections
    rest = iter(runs)
    timed = Timed(found, lambda: series(found, [next(rest)], FIFTY)(), COLD_RUNS, warm=False)
    return row("SQLite, S3", "dashboard of 50 keys × 4 k points of a run, cold", timed, None, counts(timed.answer) == [4000] * 50)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rows = []
    for database, where in ((SQLITE, "SQLite"), (POSTGRES, "PostgreSQL")):
        with server(maintenance=0.1, database=database) as found:
            rows += [*compacted_rows(found, where), *hot_rows(found, where)]
    with server(maintenance=0.1, store=S3) as found:
        rows.append(cold_row(found))
    return report(rows, args.json)


if __name__ == "__main__":
    sys.exit(main())
