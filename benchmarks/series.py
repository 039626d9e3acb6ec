"""The chart API's heavier questions over HTTP, warm: groups of 100 runs, smoothing of 1 M points, a page of 50 runs × 12 metrics, and
what a poll or a repeated question costs when nothing came. p50 and p99 by the client's clock; CPU of all the server's processes.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import sys
import time
from pathlib import Path

import zstandard

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks._server import Server, report, server
from benchmarks.ingest import Load, wait_until_compacted, wait_until_queryable
from sdk._ids import new_id

RUNS, POINTS = 100, 10_000
PAGE_RUNS, PAGE_KEYS, PAGE_PIXELS = 50, 12, 300
LONG = 1_000_000
MOST_PAGE_BYTES = 4_000_000


def load(found: Server, runs: int, keys: int, rows: int, batches: int) -> list[str]:
    """Finished runs of ``keys`` metrics × ``rows`` × ``batches`` points."""
    names = []
    for _ in range(runs):
        run, writer = new_id(), new_id()
        found.open_writer(run, writer)
        Load(run, writer, keys, rows, batches).post(found.port, found.token)
        names.append(run)
    for run in names[-2:]:
        wait_until_queryable(found, run, "train/metric_00", rows * batches)
    return names


class Asker:
    """Asks on one connection and keeps time and CPU."""

    def __init__(self, found: Server) -> None:
        self.found = found
        self.connection = http.client.HTTPConnection("127.0.0.1", found.port, timeout=120)

    def ask(self, query: dict, **headers: str) -> tuple[int, dict, bytes]:
        headers = {"Authorization": f"Bearer {self.found.token}", "Content-Type": "application/json", **headers}
        self.connection.request("POST", "/api/v1/series", json.dumps(query), headers)
        answer = self.connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()

    def times(self, query: dict, repeats: int, expected: int = 200, **headers: str) -> dict:
        """``p50``, ``p99`` and ``cpu`` in ms, after two to warm up."""
        for _ in range(2):
            self.ask(query, **headers)
        cpu, taken = self.found.cpu_seconds(), []
        status, body = 0, b""
        for _ in range(repeats):
            began = time.perf_counter()
            status, _, body = self.ask(query, **headers)
            taken.append((time.perf_counter() - began) * 1000)
            if status != expected:
                raise RuntimeError(f"{status} {body[:500]!r}")
        cpu = (self.found.cpu_seconds() - cpu) / repeats * 1000
        taken.sort()
        return {"p50": statistics.median(taken), "p99": taken[min(len(taken) - 1, int(len(taken) * 0.99))], "cpu": cpu, "body": body}


def row(what: str, found: dict, budget: float, ok: bool = True, beside: str = "") -> dict:
    told = f"p99 {found['p99']:.1f} ms, {found['cpu']:.1f} ms of CPU in the server"
    return {
        "what": what, "value": round(found["p50"], 2), "unit": "ms", "budget": budget, "ok": found["p50"] <= budget and ok,
        "beside": "; ".join(part for part in (told, beside) if part),
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    from tracker.domain import series_answer

    with server(maintenance=0.5) as found:
        many = load(found, RUNS, 1, POINTS, 1)
        page = load(found, PAGE_RUNS, PAGE_KEYS, 5_000, 1)
        (long,) = load(found, 1, 1, 10_000, LONG // 10_000)
        wait_until_compacted(found)
        asker = Asker(found)
        group = [{"name": "all", "runs": many}]
        grouped = asker.times({"group_by": group, "keys": ["train/metric_00"], "buckets": 1000}, 15)
        (entry,) = series_answer.decode(grouped["body"])["series"]
        whole = entry["n"] == RUNS * POINTS and int(entry["count"].sum()) == POINTS
        key = {"runs": [long], "keys": ["train/metric_00"], "buckets": 1000}
        raw = asker.times(key, 10)
        ema = asker.times({**key, "smooth": {"kind": "ema", "weight": 0.99}}, 10)
        spaced = asker.times({**key, "smooth": {"kind": "time_ema", "scale": 100.0}}, 10)
        query = {
            "runs": page, "keys": [f"train/metric_{n:02d}" for n in range(PAGE_KEYS)], "buckets": PAGE_PIXELS,
            "arrays": ["min", "max", "mean", "steps", "odd"],
        }  # fmt: skip
        compare = asker.times(query, 10, **{"Accept-Encoding": "zstd"})
        size, length = len(compare["body"]), len(zstandard.ZstdDecompressor().decompress(compare["body"], max_output_size=2**30))
        lines = len(series_answer.decode(zstandard.ZstdDecompressor().decompress(compare["body"]))["series"])
        _, headers, body = asker.ask(query)
        cursor = series_answer.decode(body)["cursor"]
        tag = {name.lower(): value for name, value in headers.items()}["etag"]
        poll = asker.times({**query, "since": cursor}, 100)
        known = asker.times(query, 100, 304, **{"If-None-Match": tag})
    name = f"{PAGE_RUNS} runs × {PAGE_KEYS} metrics"
    rows = [
        row(f"chart: {RUNS} runs × 10 k points as one group, mean ± std", grouped, 80.0, whole),
        row("chart: 1 M points with an exponential mean beside them", ema, 80.0, beside=f"raw alone {raw['p50']:.1f} ms"),
        row("chart: 1 M points with one by distance in x", spaced, 100.0),
        row(f"page: {name} × {PAGE_PIXELS} buckets, one answer", compare, 400.0, lines == PAGE_RUNS * PAGE_KEYS),
        {
            "what": f"page: {name}, bytes compressed", "value": size, "unit": "bytes", "budget": MOST_PAGE_BYTES,
            "ok": size <= MOST_PAGE_BYTES, "beside": f"{length:,} before",
        },
        row(f"poll of {name} to which nothing came", poll, 10.0),
        row(f"the same question again, 304 ({name})", known, 15.0),
    ]  # fmt: skip
    return report(rows, args.json)


if __name__ == "__main__":
    sys.exit(main())
