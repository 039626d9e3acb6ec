"""One tracker's store under the load of peers_store.py, run by that tracker's own interpreter: ``_store_contestants.py NAME FOLDER``.

Prints one line of JSON: points/s and CPU seconds per million points of taking in, milliseconds of the reads a chart makes.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

KEYS, STEPS, BATCH = 20, 5_000, 50
RUNS, RUN_STEPS = 100, 500
REPEATS = 5
DRAW = random.Random(11)
VALUES = [2 + 0.1 * DRAW.gauss(0, 1) for _ in range(10_007)]


def value(key: int, step: int) -> float:
    return VALUES[(key * 7919 + step) % len(VALUES)]


def cpu_of(pids: list[int]) -> float:
    """User and system seconds of these processes and all below them, the ended ones that were waited for included."""
    children: dict[int, list[int]] = {}
    spent: dict[int, float] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            children.setdefault(int(fields[1]), []).append(int(folder.name))
            spent[int(folder.name)] = sum(int(part) for part in fields[11:15]) / os.sysconf("SC_CLK_TCK")
    total, left = 0.0, list(pids)
    while left:
        pid = left.pop()
        total += spent.get(pid, 0.0)
        left += children.get(pid, [])
    return total


def timed(ask: Callable[[], int]) -> float:
    """Median milliseconds; ``ask`` tells how many points came, which must be some."""
    taken = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        if not ask():
            raise RuntimeError("no points came")
        taken.append((time.perf_counter() - began) * 1000)
    return statistics.median(taken)


def told(points: int, seconds: float, cpu: float, **reads: float) -> None:
    print(json.dumps({"points_s": points / seconds, "cpu_s": cpu / points * 1e6, **reads}), flush=True)


# -- MLflow's server on SQLite --------------------------------------------------------------------------------------------------------


class Mlflow:
    def __init__(self, folder: Path) -> None:
        with socket.socket() as trial:
            trial.bind(("127.0.0.1", 0))
            self.port = trial.getsockname()[1]
        store = f"sqlite:///{folder}/mlflow.db"
        argv = [
            sys.executable,
            "-m",
            "mlflow",
            "server",
            "--backend-store-uri",
            store,
            "--default-artifact-root",
            str(folder / "artifacts"),
        ]
        log = (folder / "server.log").open("ab")
        self.process = subprocess.Popen(
            [*argv, "--host", "127.0.0.1", "--port", str(self.port), "--workers", "2"], stdout=log, stderr=log, cwd=folder
        )
        until = time.monotonic() + 120
        while True:
            try:
                self.experiment = self.ask("POST", "experiments/create", {"name": f"bench-{time.time()}"})["experiment_id"]
                return
            except (OSError, http.client.HTTPException, KeyError, ValueError):
                if time.monotonic() > until or self.process.poll() is not None:
                    raise RuntimeError((folder / "server.log").read_text()[-2000:]) from None
                time.sleep(0.2)

    def ask(self, method: str, path: str, body: dict | None = None, prefix: str = "/api/2.0/mlflow/") -> dict:
        door = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        door.request(method, prefix + path, json.dumps(body) if body is not None else None, {"Content-Type": "application/json"})
        answer = door.getresponse()
        text = answer.read()
        if answer.status != 200:
            raise ValueError(f"{path}: {answer.status} {text[:300]!r}")
        return json.loads(text)

    def make_run(self) -> str:
        made = self.ask("POST", "runs/create", {"experiment_id": self.experiment, "start_time": int(time.time() * 1000)})
        return made["run"]["info"]["run_id"]

    def send(self, run: str, rows: Iterator[tuple[str, int, float]]) -> None:
        """At most 1,000 metrics a request, which is its limit."""
        batch: list[dict] = []
        for key, step, number in rows:
            batch.append({"key": key, "value": number, "timestamp": int(time.time() * 1000), "step": step})
            if len(batch) == 1000:
                self.ask("POST", "runs/log-batch", {"run_id": run, "metrics": batch})
                batch = []
        if batch:
            self.ask("POST", "runs/log-batch", {"run_id": run, "metrics": batch})

    def chart(self, runs: list[str], key: str) -> int:
        """What its page asks for a chart: at most 2,500 points a run."""
        names = "&".join(f"run_ids={run}" for run in runs)
        path = f"metrics/get-history-bulk-interval?{names}&metric_key={key}&max_results=2500"
        return len(self.ask("GET", path, prefix="/ajax-api/2.0/mlflow/").get("metrics", ()))


def mlflow(folder: Path) -> None:
    server = Mlflow(folder)
    try:
        pids = [os.getpid()]
        before, began = cpu_of(pids), time.perf_counter()
        run = server.make_run()
        server.send(run, ((f"metric_{k:02d}", s, value(k, s)) for s in range(STEPS) for k in range(KEYS)))
        seconds, cpu = time.perf_counter() - began, cpu_of(pids) - before
        runs = [server.make_run() for _ in range(RUNS)]
        for at, one in enumerate(runs):
            server.send(one, (("loss", s, value(at, s)) for s in range(RUN_STEPS)))
        one = timed(lambda: server.chart([run], "metric_07"))
        many = timed(lambda: server.chart(runs, "loss"))
        told(KEYS * STEPS, seconds, cpu, one=one, many=many)
    finally:
        server.process.terminate()
        server.process.wait(30)


# -- trackio, which stores in the program's own process -------------------------------------------------------------------------------


def trackio(folder: Path) -> None:
    from trackio.sqlite_storage import SQLiteStorage

    pids = [os.getpid()]
    before, began = cpu_of(pids), time.perf_counter()
    for first in range(0, STEPS, BATCH):
        steps = list(range(first, first + BATCH))
        SQLiteStorage.bulk_log("bench", "one", [{f"metric_{k:02d}": value(k, s) for k in range(KEYS)} for s in steps], steps=steps)
    seconds, cpu = time.perf_counter() - began, cpu_of(pids) - before
    for at in range(RUNS):
        rows = [{"loss": value(at, s)} for s in range(RUN_STEPS)]
        SQLiteStorage.bulk_log("bench", f"run-{at}", rows, steps=list(range(RUN_STEPS)))

    def ask(*names: str) -> int:
        return sum(len(SQLiteStorage.get_logs("bench", name)) for name in names)

    one = timed(lambda: ask("one"))
    many = timed(lambda: ask(*(f"run-{at}" for at in range(RUNS))))
    told(KEYS * STEPS, seconds, cpu, one=one, many=many)


# -- Encore's server on SQLite --------------------------------------------------------------------------------------------------------


def encore(folder: Path) -> None:
    import zlib
    from array import array

    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from benchmarks._server import server
    from benchmarks.ingest import wait_until_queryable
    from sdk._ids import new_id
    from sdk._wire import key_list_hash, pack

    def send(found, run: str, names: list[str], steps: int, batch: int, seed: int) -> None:
        writer, digest = new_id(), key_list_hash(names, "d" * len(names))
        found.open_writer(run, writer)
        for first in range(0, steps, batch):
            frame: dict = {"kind": "dense", "keylist": digest, "rows": batch}
            if first == 0:
                frame |= {"keys": names, "types": "d" * len(names)}
            now = time.time_ns() // 1000
            columns = [array("I", range(batch)), array("q", range(first, first + batch)), array("q", [now + i for i in range(batch)])]
            columns += [array("d", [value(k + seed, s) for s in range(first, first + batch)]) for k in range(len(names))]
            header = {"run": run, "writer": writer, "first": first, "last": first + batch - 1, "frames": [frame], "docs": [], "holes": []}
            body = zlib.compress(pack(header, [column.tobytes() for column in columns]), 1)
            path = f"ingest/writers/{writer}/batches"
            status, answer = found.request(
                "POST", path, body, **{"Content-Type": "application/vnd.encore.batch", "Content-Encoding": "deflate"}
            )
            if status != 200:
                raise RuntimeError(f"{status} {answer[:300]!r}")

    with server(maintenance=0.5) as found:
        pids = [os.getpid()]
        run = new_id()
        before, began = cpu_of(pids), time.perf_counter()
        send(found, run, [f"metric_{k:02d}" for k in range(KEYS)], STEPS, BATCH, 0)
        wait_until_queryable(found, run, "metric_07", STEPS)
        seconds, cpu = time.perf_counter() - began, cpu_of(pids) - before
        runs = [new_id() for _ in range(RUNS)]
        for at, one in enumerate(runs):
            send(found, one, ["loss"], RUN_STEPS, RUN_STEPS, at)
        wait_until_queryable(found, runs[-1], "loss", RUN_STEPS)

        def ask(query: dict) -> int:
            status, answer = found.request("POST", "series", {"buckets": 1000, **query})
            return len(answer) if status == 200 else 0

        one = timed(lambda: ask({"runs": [run], "keys": ["metric_07"]}))
        many = timed(lambda: ask({"runs": runs, "keys": ["loss"]}))
        told(KEYS * STEPS, seconds, cpu, one=one, many=many)


if __name__ == "__main__":
    {"mlflow": mlflow, "trackio": trackio, "encore": encore}[sys.argv[1]](Path(sys.argv[2]))
