"""What sdk.Api brings of many runs over HTTP: 5,000 runs with config and summary, and one key of 1,000 runs × 1,000 points.

Streamed, as api.runs() and api.history() do it; beside it the same page after page (200 runs a request; a history a run).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks._server import Server, report, server
from benchmarks.ingest import Load, wait_until_queryable
from sdk._ids import new_id
from sdk._query import Api, Run
from sdk._query.tables import run_columns

RUNS, WITH_POINTS, POINTS = 5000, 1000, 1000
RUNS_BUDGET, HISTORY_BUDGET = 3.0, 3.0
REPEATS = 3
_FILL = """
import random, sys, django; django.setup()
from django.utils import timezone
from tracker.models import MetricSummary, Project, Run, User
draw = random.Random(5)
project, user = Project.objects.get(slug="bench"), User.objects.first()
made = []
for n in range(int(sys.argv[1])):
    config = {"lr": draw.random(), "seed": n, "model": {"layers": draw.randrange(64), "name": "gpt", "dropout": draw.random()},
              "optimizer": {"name": "adamw", "betas": [0.9, 0.95], "weight_decay": 0.1},
              **{f"option_{i}": draw.random() for i in range(20)}}
    summary = {f"val/metric_{i}": draw.random() for i in range(10)}
    told = {"name": f"run-{n}", "state": "finished", "started_at": timezone.now(), "config": config, "summary": summary}
    made.append(Run(project=project, user=user, **told))
Run.objects.bulk_create(made, batch_size=200)
"""


def fill(found: Server) -> None:
    last = ""
    for _ in range(WITH_POINTS):
        run, writer = new_id(), new_id()
        found.open_writer(run, writer)
        Load(run, writer, 1, POINTS, 1).post(found.port, found.token)
        last = run
    wait_until_queryable(found, last, "train/metric_00", POINTS)
    found.python(_FILL, str(RUNS - WITH_POINTS))


def median(what) -> float:
    taken = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        what()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    try:
        import pandas  # noqa: F401

        form, table = "pandas frame", lambda runs: len(runs.pandas())
    except ImportError:
        form, table = "columns (pandas is not installed)", lambda runs: len(run_columns(run.data for run in runs)["id"])
    with server(maintenance=0.5) as found:
        fill(found)
        api = Api(found.url, found.token)
        if (rows := table(api.runs())) != RUNS:
            raise RuntimeError(f"{rows} runs came, not {RUNS}")
        streamed = median(lambda: table(api.runs()))
        paged = median(lambda: len(run_columns(Run(api, data).data for data in api.pages("runs"))["id"]))
        series = list(api.history("train/metric_00"))
        if len(series) != WITH_POINTS or {len(one) for one in series} != {POINTS}:
            raise RuntimeError(f"{len(series)} series came, not {WITH_POINTS} of {POINTS} points")
        whole = median(lambda: sum(float(sum(one.values)) for one in api.history("train/metric_00")))
        some = [one.run for one in series[:100]]
        one_by_one = median(lambda: [api.run(run).raw_history("train/metric_00") for run in some]) * WITH_POINTS / len(some)
        import http.client

        connection = http.client.HTTPConnection("127.0.0.1", found.port, timeout=120)
        connection.request("GET", "/api/v1/export/runs", headers={"Authorization": f"Bearer {found.token}"})
        answer = connection.getresponse()
        began = time.perf_counter()
        answer.read(1)
        first = time.perf_counter() - began
        size = len(answer.read()) + 1
    rows = [
        {
            "what": f"5,000 runs with config and summary, streamed into a {form}", "value": round(streamed, 2), "unit": "s",
            "budget": RUNS_BUDGET, "ok": streamed <= RUNS_BUDGET,
            "beside": f"page after page {paged:.2f} s; {size / 1e6:.1f} MB, first byte after {first * 1000:.0f} ms more",
        },
        {
            "what": "history of 1 key of 1,000 runs × 1,000 points, streamed", "value": round(whole, 2), "unit": "s",
            "budget": HISTORY_BUDGET, "ok": whole <= HISTORY_BUDGET,
            "beside": f"run by run {one_by_one:.1f} s (from 100 of them)",
        },
    ]  # fmt: skip
    return report(rows, args.json)


if __name__ == "__main__":
    sys.exit(main())
