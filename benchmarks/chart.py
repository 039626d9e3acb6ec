"""One series of 1,000,000 points through HTTP: the answer a chart draws, with exact extremes, on a warm server. Budget: 40 ms."""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks._server import Server, report, server
from benchmarks.ingest import Load, wait_until_compacted, wait_until_queryable
from sdk._ids import new_id

POINTS = 1_000_000
BUDGET_MS = 40.0
ZOOM_BUDGET_MS = 20.0


def fill(found: Server) -> tuple[str, Load]:
    run, writer = new_id(), new_id()
    found.open_writer(run, writer)
    load = Load(run, writer, 1, 10_000, POINTS // 10_000)
    load.post(found.port, found.token)
    wait_until_queryable(found, run, "train/metric_00", POINTS)
    wait_until_compacted(found)
    return run, load


def extremes(found: Server, run: str) -> tuple[float, float]:
    """Over every stored point, read past the chart."""
    code = (
        "import sys, django; django.setup()\nfrom tracker.store import reading\n"
        "c = reading.history([sys.argv[1]], ['train/metric_00'])[0]\nprint(len(c.steps), repr(c.values.min()), repr(c.values.max()))"
    )
    count, low, high = found.python(code.replace("repr(", "float("), run).split()
    if int(count) != POINTS:
        raise RuntimeError(f"{count} points stored, not {POINTS}")
    return float(low), float(high)


def times(found: Server, query: dict, repeats: int = 40) -> tuple[list[float], bytes]:
    taken = []
    answer = b""
    for _ in range(repeats):
        began = time.perf_counter()
        status, answer = found.request("POST", "series", query)
        taken.append((time.perf_counter() - began) * 1000)
        if status != 200:
            raise RuntimeError(f"{status} {answer[:500]!r}")
    return sorted(taken), answer


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    from tracker.domain import series_answer

    with server(maintenance=0.5) as found:
        run, _ = fill(found)
        low, high = extremes(found, run)
        query = {"runs": [run], "keys": ["train/metric_00"], "buckets": 1000}
        cold = times(found, query, 1)[0][0]
        warm, answer = times(found, query)
        entry = series_answer.decode(answer)["series"][0]
        is_exact = entry["n"] == POINTS and entry["min"].min() == low and entry["max"].max() == high and int(entry["count"].sum()) == POINTS
        middle = statistics.median(warm)
        zoom, answer = times(found, {**query, "from": 400_000, "to": 419_999, "buckets": 20_000})
        entry = series_answer.decode(answer)["series"][0]
        zoomed = statistics.median(zoom)
    rows = [
        {
            "what": "chart of 1 series of 1 M points, HTTP answer, warm", "value": round(middle, 1), "unit": "ms", "budget": BUDGET_MS,
            "ok": middle <= BUDGET_MS and bool(is_exact),
            "beside": f"extremes exact: {bool(is_exact)}; fastest {warm[0]:.1f}, slowest {warm[-1]:.1f}, first {cold:.1f} ms",
        },
        {
            "what": "zoom: exact 20,000 points out of 1 M, warm", "value": round(zoomed, 1), "unit": "ms", "budget": ZOOM_BUDGET_MS,
            "ok": zoomed <= ZOOM_BUDGET_MS and entry["exact"] is True and entry["drawn"] == 20_000,
        },
    ]  # fmt: skip
    return report(rows, args.json)


if __name__ == "__main__":
    sys.exit(main())
