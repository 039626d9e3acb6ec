"""From logged points to durable, compacted and queryable ones, over HTTP, on one machine: throughput and CPU of all processes.

The rows "through the SDK" are what the budgets of design section 12 are for: a program calls ``sdk.log``, the real journal, sender,
server and maintenance do the rest; the program's own CPU is left out, as there. The rows "packed bodies" post batches that were encoded
before, by threads of one client: they show what the server alone can take, and keep the same budgets as a yardstick.
"""

from __future__ import annotations

import argparse
import ctypes
import http.client
import json
import multiprocessing
import os
import random
import subprocess
import sys
import threading
import time
import zlib
from array import array
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks._server import POSTGRES, ROOT, SQLITE, Server, report, server
from sdk._ids import new_id
from sdk._wire import key_list_hash, pack


class Load:
    """Batches of one writer: ``keys`` × ``rows``, noisy fp32 values, times with jitter."""

    def __init__(self, run: str, writer: str, keys: int, rows: int, batches: int) -> None:
        self.writer = writer
        names = [f"train/metric_{i:02d}" if keys < 100 else f"grad_norm/model.layers.{i}.ln1.weight" for i in range(keys)]
        types = "d" * keys
        digest = key_list_hash(names, types)
        draw = random.Random(writer)
        self.bodies = []
        self.seconds: list[float] = []
        self.points = keys * rows * batches
        noise = array("f", [2 + 0.1 * draw.gauss(0, 1) for _ in range(50_000)])
        for batch in range(batches):
            first = batch * rows
            frame = {"kind": "dense", "keylist": digest, "rows": rows}
            if batch == 0:
                frame |= {"keys": names, "types": types}
            now = time.time_ns() // 1000
            columns = [
                array("I", range(rows)).tobytes(),
                array("q", range(first, first + rows)).tobytes(),
                array("q", [now + i * 1000 + draw.randrange(200) for i in range(first, first + rows)]).tobytes(),
            ]
            for _ in range(keys):
                at = draw.randrange(50_000 - rows)
                columns.append(array("d", noise[at : at + rows]).tobytes())
            last = first + rows - 1
            docs = []
            if batch == batches - 1:  # the run is over: all of it is compacted at once
                last += 1
                finish = {"type": "event", "name": "finish", "data": {"state": "finished", "exit_code": 0}}
                docs = [{"n": last, "step": None, "time": now, "doc": finish}]
            header = {"run": run, "writer": writer, "first": first, "last": last, "frames": [frame], "docs": docs, "holes": []}
            self.bodies.append(zlib.compress(pack(header, columns), 1))

    def post(self, port: int, token: str) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/vnd.encore.batch", "Content-Encoding": "deflate"}
        path = f"/api/v1/ingest/writers/{self.writer}/batches"
        for body in self.bodies:
            while True:
                began = time.perf_counter()
                connection.request("POST", path, body, headers)
                answer = connection.getresponse()
                told = answer.read()
                if answer.status == 200:
                    self.seconds.append(time.perf_counter() - began)
                    break
                if answer.status not in (429, 503):
                    raise RuntimeError(f"{answer.status} {told[:500]!r}")
                time.sleep(float(answer.headers.get("Retry-After") or 1))


def generate(port: int, token: str, plans: list[tuple], ready, go, done) -> None:
    loads = [Load(*plan) for plan in plans]
    ready.set()
    go.wait()
    began = os.times()
    threads = [threading.Thread(target=load.post, args=(port, token)) for load in loads]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ended = os.times()
    seconds = sorted(one for load in loads for one in load.seconds)
    done.put((sum(load.points for load in loads), ended.user + ended.system - began.user - began.system, seconds))


def measure(found: Server, what: str, writers: int, keys: int, rows: int, batches: int) -> dict:
    """Posts and waits until all is compacted (what is due) and the last point can be read."""
    context = multiprocessing.get_context("spawn")
    runs = [new_id() for _ in range(writers)]
    plans = [(run, new_id(), keys, rows, batches) for run in runs]
    for run, writer, *_ in plans:
        found.open_writer(run, writer)
    ready, go, done = context.Event(), context.Event(), context.Queue()
    child = context.Process(target=generate, args=(found.port, found.token, plans, ready, go, done))
    child.start()
    ready.wait()
    cpu, began = found.cpu_seconds(), time.monotonic()
    go.set()
    points, client_cpu, each = done.get()
    posted = time.monotonic() - began
    for run in runs:  # finished runs are compacted at once
        wait_until_queryable(found, run, f"{'train/metric_00' if keys < 100 else 'grad_norm/model.layers.0.ln1.weight'}", rows * batches)
    wait_until_compacted(found)
    seconds = time.monotonic() - began
    child.join()
    cpu = found.cpu_seconds() - cpu
    return {
        "what": what, "points": points, "batches": writers * batches, "posted": posted, "seconds": seconds,
        "server_cpu": cpu, "client_cpu": client_cpu, "each": each,
    }  # fmt: skip


def wait_until_queryable(found: Server, run: str, key: str, points: int) -> None:
    while True:
        status, answer = found.request("POST", "series", {"runs": [run], "keys": [key], "buckets": 10}, Accept="application/json")
        if status == 200:
            series = json.loads(answer)["series"]
            if series and series[0]["n"] == points:
                return
        time.sleep(0.02)


def wait_until_compacted(found: Server) -> None:
    """Until no writer has more in segments than the compactor leaves there."""
    unfinished = 'SELECT COUNT(*) FROM tracker_writer WHERE hot_bytes >= 65536 OR summarised < "next"'
    if url := found.environment.get("DATABASE_URL"):
        import psycopg

        with psycopg.connect(url, autocommit=True) as connection:
            while connection.execute(unfinished).fetchone()[0]:
                time.sleep(0.05)
        return
    import sqlite3

    with sqlite3.connect(found.home / "encore.sqlite3", timeout=60) as connection:
        while connection.execute(unfinished).fetchone()[0]:
            time.sleep(0.05)


_PROGRAM = """
import json, os, sys, time
import sdk
keys, steps, how = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
run = sdk.init(project="bench", name="sdk")
names = [f"train/metric_{i:02d}" for i in range(keys)]
values = [[2 + 0.1 * ((7919 * i + 31 * j) % 1009) / 1009 for i in range(keys)] for j in range(97)]
calls = [dict(zip(names, row)) for row in values]
began, cpu = time.monotonic(), time.process_time()
points, of_first = keys * steps, steps
for step in range(steps):
    if how == "together":
        sdk.log(calls[step % 97], step=step)
    elif how == "one by one":
        for name, value in calls[step % 97].items():
            sdk.log({name: value}, step=step)
    else:  # ever-changing subsets
        sdk.log(dict(zip(names[step % keys :: 7], calls[step % 97].values())), step=step)
if how == "subsets":
    points, of_first = sum(len(names[step % keys :: 7]) for step in range(steps)), len(range(0, steps, keys))
logged, cpu = time.monotonic() - began, time.process_time() - cpu
print(json.dumps({"run": run.id, "began": began, "logged": logged, "cpu": cpu, "points": points, "of_first": of_first}), flush=True)
sdk.finish()
"""


def measure_sdk(found: Server, what: str, keys: int, steps: int, how: str = "together") -> dict:
    """One training program without a training step, with the sender that it starts; until all its points are compacted."""
    adopt_orphans()
    before = {child.pid for child in psutil.Process().children()}
    environment = {**found.environment, "ENCORE_TOKEN": found.token, "ENCORE_JOURNAL": str(found.home / "journal"), "ENCORE_CONSOLE": "off"}
    cpu = found.cpu_seconds()
    program = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, str(keys), str(steps), how], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    )
    told = json.loads(program.stdout.readline())
    wait_until_queryable(found, told["run"], "train/metric_00", told["of_first"])
    wait_until_compacted(found)
    seconds = time.monotonic() - told["began"]
    if program.wait(60) != 0:
        raise RuntimeError("the program failed")
    cpu = found.cpu_seconds() - cpu
    sender = 0.0  # it is no child of the program, so that it outlives it; it ends when all is acknowledged
    for child in psutil.Process().children():
        if child.pid not in before:
            usage = os.wait4(child.pid, 0)[2]
            sender += usage.ru_utime + usage.ru_stime
    return {
        "what": what, "points": told["points"], "batches": 0, "posted": told["logged"], "seconds": seconds, "server_cpu": cpu,
        "client_cpu": sender,
    }  # fmt: skip


def adopt_orphans() -> None:
    """A sender outlives its program; its exact CPU is told to whoever waits for it, so it becomes this process's child."""
    subreaper = 36  # PR_SET_CHILD_SUBREAPER
    ctypes.CDLL(None).prctl(subreaper, 1, 0, 0, 0)


def rows_of(found: dict, rate_budget: float | None, cpu_budget: float | None, unit: str) -> list[dict]:
    amount = found["batches"] if unit == "batches/s" else found["points"]
    rate = amount / found["seconds"]
    cpu = (found["server_cpu"] + found["client_cpu"]) / found["points"] * 1e6
    first = "acknowledged" if found["batches"] else "logged"
    client = "client" if found["batches"] else "sender"
    beside = (
        f"{found['points'] / 1e6:.1f} M points in {found['seconds']:.1f} s; {first} {amount / found['posted']:,.0f} {unit}; "
        f"CPU server {found['server_cpu']:.1f} s, {client} {found['client_cpu']:.1f} s"
    )
    rows = [
        {
            "what": f"ingest {found['what']}",
            "value": round(rate),
            "unit": unit,
            "budget": rate_budget or "",
            "ok": rate_budget is None or rate >= rate_budget,
            "beside": beside,
        }
    ]
    rows.append(
        {
            "what": f"ingest {found['what']}, CPU of all processes",
            "value": round(cpu, 3),
            "unit": "s per M points",
            "budget": "" if cpu_budget is None else cpu_budget,
            "ok": cpu_budget is None or cpu <= cpu_budget,
        }
    )
    if each := found.get("each"):
        p50, p99 = (each[int(part * (len(each) - 1))] * 1000 for part in (0.5, 0.99))
        beside = f"p50 {p50:.1f} ms, most {each[-1] * 1000:.0f} ms; {found['batches']} batches at full speed"
        rows.append(
            {
                "what": f"ingest {found['what']}, a batch p99",
                "value": round(p99, 1),
                "unit": "ms",
                "budget": "",
                "ok": True,
                "beside": beside,
            }
        )
    return rows


def measure_all(database: str, only: str | None, threads: int) -> list[dict]:
    more = "" if database == SQLITE else ", PostgreSQL"
    rows: list[dict] = []

    def is_wanted(name: str) -> bool:
        return only in (None, name)

    with server(maintenance=1.0, threads=threads, database=database) as found:
        measure(found, "warm-up", 1, 3, 5, 20)
        if is_wanted("sdk"):
            rows += rows_of(measure_sdk(found, f"through the SDK, 20 keys a step{more}", 20, 600_000), 2.5e6, 0.8, "points/s")
            rows += rows_of(measure_sdk(found, f"through the SDK, 5,000 keys a step{more}", 5000, 1200), 1e6, 1.3, "points/s")
        if is_wanted("names") and database == SQLITE:
            done = measure_sdk(found, "through the SDK, 100,000 names one by one", 100_000, 2, "one by one")
            rows += rows_of(done, None, None, "points/s")
            done = measure_sdk(found, "through the SDK, ever-changing subsets of 700 keys", 700, 5000, "subsets")
            rows += rows_of(done, None, None, "points/s")
        if is_wanted("dense"):
            rows += rows_of(measure(found, f"packed bodies, 20 keys × 1,000{more}", 2, 20, 1000, 256), 2.5e6, 0.8, "points/s")
        if is_wanted("wide"):
            rows += rows_of(measure(found, f"packed bodies, 5,000 keys × 2{more}", 2, 5000, 2, 240), 1e6, 1.3, "points/s")
        if is_wanted("small"):
            small = measure(found, f"packed bodies, small (3 keys × 5), 32 writers{more}", 32, 3, 5, 500)
            rows += rows_of(small, 1500, None, "batches/s")
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", choices=["sdk", "names", "dense", "wide", "small"])
    parser.add_argument("--database", choices=[SQLITE, POSTGRES])
    parser.add_argument("--threads", type=int, default=32, help="of the server; as `encore up` starts it")
    args = parser.parse_args()
    rows = [row for name in (SQLITE, POSTGRES) if args.database in (None, name) for row in measure_all(name, args.only, args.threads)]
    return report(rows, args.json)


if __name__ == "__main__":
    sys.exit(main())
