"""The first page of runs, filtered by config and metric and sorted by a metric, through the API and as a page, at 10,000 and 100,000 runs.

On SQLite and on PostgreSQL, over HTTP, warm. Budgets: API 30 ms / 150 ms, page 100 ms / 300 ms.
"""

from __future__ import annotations

import argparse
import http.client
import statistics
import sys
import time
from pathlib import Path
from urllib.parse import urlencode

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks._server import Server, report, server

LOADER = Path(__file__).with_name("_runs_load.py")
SIZES = {"ten-thousand": 10_000, "hundred-thousand": 100_000}
API_MS = {10_000: 30.0, 100_000: 150.0}
PAGE_MS = {10_000: 100.0, 100_000: 300.0}
QUESTIONS = {
    "filter + sort on config and metric": ("config.lr > 0.001 AND val/loss < 2", "-summary.val/loss"),
    "rare runs": ("config.lr > 0.05 AND val/loss < 0.8 AND state = failed", "config.lr"),
    "many terms": (
        "(config.model.kind IN (gpt, bert) OR NOT config.seed = 3) AND (val/acc > 0.5 OR name =~ '7$') AND train/m1 < 0.1",
        "val/acc",
    ),
}
ROUNDS = 20


def ask(found: Server, path: str, headers: dict[str, str], connection: http.client.HTTPConnection) -> bytes:
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    body = answer.read()
    if answer.status != 200:
        raise RuntimeError(f"{path}: {answer.status} {body[:300]!r}")
    return body


def measure(found: Server, path: str, headers: dict[str, str], rounds: int) -> tuple[float, float, float]:
    """p50 ms, p99 ms, the server's CPU ms, after three rounds that warm it."""
    connection = http.client.HTTPConnection("127.0.0.1", found.port, timeout=60)
    for _ in range(3):
        ask(found, path, headers, connection)
    took, cpu = [], found.cpu_seconds()
    for _ in range(rounds):
        began = time.perf_counter()
        ask(found, path, headers, connection)
        took.append((time.perf_counter() - began) * 1000)
    cpu = (found.cpu_seconds() - cpu) * 1000 / rounds
    connection.close()
    return statistics.median(took), sorted(took)[min(len(took) - 1, int(len(took) * 0.99))], cpu


def rows_of(database: str, rounds: int) -> list[dict]:
    rows = []
    with server(maintenance=None, threads=4, database=database) as found:
        began = time.monotonic()
        session = found.python(LOADER.read_text(), *(f"{slug}={count}" for slug, count in SIZES.items())).splitlines()[-1]
        print(f"{database}: {sum(SIZES.values()):,} runs loaded in {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
        for slug, count in SIZES.items():
            for number, (what, (text, sort)) in enumerate(QUESTIONS.items()):
                asked = urlencode({"filter": text, "sort": sort})
                doors = {
                    "runs API": (f"/api/v1/runs?project={slug}&archived=false&{asked}", {"Authorization": f"Bearer {found.token}"}, API_MS),
                    "runs page": (f"/projects/{slug}?{asked}", {"Cookie": f"encore_session={session}"}, PAGE_MS),
                }
                for door, (path, headers, budgets) in doors.items():
                    if number and door == "runs page":
                        continue  # the page is the API's question and a table: once is enough
                    p50, p99, cpu = measure(found, path, headers, rounds)
                    budget = budgets[count] if number < 2 else ""
                    rows.append({
                        "what": f"{door}, {count:,} runs, {what}, {database}", "value": round(p50, 1), "unit": "ms", "budget": budget,
                        "ok": budget == "" or p50 <= budget, "beside": f"p99 {p99:.0f} ms, server CPU {cpu:.0f} ms",
                    })  # fmt: skip
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--databases", default="sqlite,postgres")
    args = parser.parse_args()
    return report([row for database in args.databases.split(",") for row in rows_of(database, args.rounds)], args.json)


if __name__ == "__main__":
    sys.exit(main())
