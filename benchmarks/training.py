"""How much training is slowed: 2 ranks, steps of 50 ms, 1,000 metrics a step, the real sender, a server that takes what the others leave.

    python benchmarks/training.py [--json] [--steps 40] [--rounds 9]

Steps are CPU work of a fixed amount, so whatever the SDK takes shows. Runs with ENCORE_MODE=disabled and online follow each other in
turns; of each pair of runs the medians of their steps are compared, and the median of these ratios counts: a machine's speed drifts by
several per cent from run to run, which the quartiles beside it show. "Loaders": as many busy processes as there are cores beside it, on
both sides.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from _conditions import ROOT, _end_senders, _row, server

STEP_SECONDS = 0.05
METRICS = 1000


def work(amount: int) -> float:
    x = 0.5
    for _ in range(amount):
        x = x * 1.0000001 + 1e-9
    return x


def calibrated() -> int:
    """How much work a step is here."""
    best = min(_timed(200_000) for _ in range(5))
    return int(200_000 * STEP_SECONDS / best)


def _timed(amount: int) -> float:
    before = time.perf_counter()
    work(amount)
    return time.perf_counter() - before


def rank(steps: int, amount: int) -> None:
    """One rank; prints the seconds of each step, the CPU seconds a step, and those of log() alone."""
    import sdk

    sdk.init(project="training", config={"steps": steps})
    metrics = {f"layer{i}/norm": i * 0.5 for i in range(METRICS)}
    took, logging = [], []
    cpu = time.process_time()
    for step in range(steps):
        began = time.perf_counter()
        work(amount)
        before = time.thread_time_ns()
        sdk.log(metrics, step=step)
        logging.append(time.thread_time_ns() - before)
        took.append(time.perf_counter() - began)
    cpu = (time.process_time() - cpu) / steps
    print(json.dumps({"steps": took[3:], "cpu": cpu, "log": statistics.median(logging) / 1e9}), flush=True)


def launch(online: bool, url: str, steps: int, amount: int) -> list[dict]:
    """Two ranks of one run, as a launcher starts them."""
    folder = tempfile.mkdtemp(prefix="encore-training-")
    env = {name: value for name, value in os.environ.items() if not name.startswith("ENCORE_")}
    env |= {"ENCORE_HOME": folder, "ENCORE_URL": url, "ENCORE_TOKEN": "none", "ENCORE_FINISH_SECONDS": "0", "PYTHONPATH": str(ROOT)}
    env |= {"ENCORE_MODE": "online" if online else "disabled", "ENCORE_RUN_ID": "bench", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, "--rank", str(steps), str(amount)],
            env=env | {"RANK": str(number), "LOCAL_RANK": str(number)},
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for number in range(2)
    ]
    found = [json.loads(process.communicate()[0].splitlines()[-1]) for process in processes]
    _end_senders(Path(folder))
    shutil.rmtree(folder, ignore_errors=True)
    return found


@contextlib.contextmanager
def loaders(number: int):
    """Busy processes, as loader workers that decode images are."""
    code = "import hashlib\nwhile True: hashlib.sha256(bytes(1 << 20))"
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(number)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def compare(what: str, busy: int, steps: int, rounds: int, amount: int) -> list[dict]:
    cpu_of: dict[bool, list[float]] = {True: [], False: []}
    logging, ratios = [], []
    with server("up", elsewhere=True) as url, loaders(busy):
        for turn in range(rounds):
            own_steps: dict[bool, list[float]] = {True: [], False: []}
            for online in (True, False) if turn % 2 else (False, True):
                for found in launch(online, url, steps, amount):
                    own_steps[online] += found["steps"]
                    cpu_of[online].append(found["cpu"])
                    if online:
                        logging.append(found["log"])
            ratios.append(100 * (statistics.median(own_steps[True]) / statistics.median(own_steps[False]) - 1))
    slowed = statistics.median(ratios)
    low, _, high = statistics.quantiles(ratios, n=4)
    own = 100 * statistics.median(logging) / STEP_SECONDS
    cpu = 100 * (statistics.median(cpu_of[True]) / statistics.median(cpu_of[False]) - 1)
    beside = f"{rounds} pairs of {2 * (steps - 3)} steps, quartiles {low:+.1f} and {high:+.1f} %; the rank's CPU {cpu:+.2f} %"
    return [
        _row(f"training slowed, {what}", slowed, 1.0, beside, "%"),
        _row(f"log()'s own CPU of a step, {what}", own, 1.0, "needs no quiet machine", "%"),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON line a row")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--rank", nargs=2, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank:
        rank(*options.rank)
        return 0
    amount = calibrated()
    rows = compare("2 ranks × 1,000 metrics a step of 50 ms", 0, options.steps, options.rounds, amount)
    rows += compare("the same with loaders on all cores", os.cpu_count() or 1, options.steps, options.rounds, amount)
    for row in rows:
        if options.json:
            print(json.dumps(row, ensure_ascii=False))
        else:
            state = "ok    " if row["ok"] else "MISSED"
            print(f"{state} {row['what']:<60} {row['value']:>8} {row['unit']:<3} budget {row['budget']}   {row['beside']}")
    return 0 if all(row["ok"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
