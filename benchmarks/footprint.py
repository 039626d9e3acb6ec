"""What the SDK takes besides time: memory of the trainer and of the sender, disk of the base package, and what a kill costs (nothing).

    python benchmarks/footprint.py [--json]

Memory of the trainer is RssAnon, which leaves out the mapped segments (at most two of 4 MiB at a time); the sender's is its highest
resident size while it brings the points to a real server. Kills hit right behind the last of 1,000 calls, the trainer alone or the whole
process tree; a fresh process then counts the journal.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks._server import ROOT, report, server

_MEMORY = """
import gc, json, os, sys
def anonymous():
    gc.collect()
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon")) / 1024
names = [f"train/metric_{i:02d}" for i in range(20)]
calls = [{name: i * 0.37 + j for i, name in enumerate(names)} for j in range(97)]
before = anonymous()
import sdk
run = sdk.init(project="bench", name="footprint")
opened = anonymous()
for step in range(100_000):
    sdk.log(calls[step % 97], step=step)
told = {"opened": opened - before, "logged": anonymous() - before}
sdk.finish()
print(json.dumps({**told, "finished": anonymous() - before}), flush=True)
"""
_KILLED = """
import os, sdk
sdk.init(project="bench")
for step in range(1000):
    sdk.log({"loss": step * 0.5}, step=step)
os.kill(os.getpid() if TREE == 0 else 0, 9)
"""


def memory() -> list[dict]:
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: the sender outlives its program, and its usage is told to us
    with server(maintenance=None) as found:
        known = {process.pid for process in found.processes}
        environment = {**found.environment, "ENCORE_TOKEN": found.token, "ENCORE_JOURNAL": str(found.home / "journal")}
        program = subprocess.run(
            [sys.executable, "-c", _MEMORY],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            check=True,
        )
        told = json.loads(program.stdout.splitlines()[-1])
        highest, cpu = 0.0, 0.0
        children = Path(f"/proc/self/task/{os.getpid()}/children")
        while left := {int(pid) for pid in children.read_text().split()} - known:
            _, _, usage = os.wait4(left.pop(), 0)
            highest, cpu = max(highest, usage.ru_maxrss / 1024), cpu + usage.ru_utime + usage.ru_stime
    return [
        row("trainer's private memory added", round(told["logged"], 1), "MB", 10, f"{told['opened']:.1f} after init, 2 M points logged"),
        row("the sender's highest memory", round(highest, 1), "MB", 45, "resident, mapped journal included"),
        row("sender, CPU of a short run", round(cpu / 2, 3), "s per M points", None, "2 M points; start and capture included"),
    ]


def survivors(tree: bool) -> int:
    from sdk._reader import Reader
    from sdk._records import RECORD_BYTES

    with tempfile.TemporaryDirectory(prefix="encore-footprint-", ignore_cleanup_errors=True) as folder:
        environment = {**os.environ, "ENCORE_MODE": "offline", "ENCORE_HOME": folder, "ENCORE_CONSOLE": "off", "PYTHONPATH": str(ROOT)}
        environment.pop("ENCORE_JOURNAL", None)
        program = subprocess.Popen(
            [sys.executable, "-c", f"TREE = {int(tree)}\n{_KILLED}"], env=environment, stderr=subprocess.DEVNULL, start_new_session=True
        )
        assert program.wait() == -signal.SIGKILL
        found = 0
        for path in Path(folder).glob("sdk/*/*/writer.json"):
            if json.loads(path.read_text())["kind"] != "trainer":
                continue
            reader = Reader(path.parent)
            while (chunk := reader.read(settled=True)) is not None:
                found += sum(len(part) for rows in chunk.dense.values() for part in rows) // (RECORD_BYTES + 8)
        for path in Path(folder).glob("sdk/*/sender.json"):  # it would go on beside the next measurement
            try:
                os.kill(json.loads(path.read_text())["pid"], signal.SIGKILL)
            except (OSError, ValueError, KeyError):
                continue
    return found


def installed() -> float:
    """The base package and what it needs, installed as users do into an empty folder, without bytecode."""
    sys.path.insert(0, str(ROOT / "make"))
    import install as installer

    with tempfile.TemporaryDirectory(prefix="encore-footprint-", ignore_cleanup_errors=True) as folder:
        environment = {**installer.uv_environment(), "UV_COMPILE_BYTECODE": "0"}
        command = [ROOT / ".venv" / "bin" / "uv", "pip", "install", "--quiet", "--python", sys.executable, "--target", folder, ROOT]
        subprocess.run([str(part) for part in command], env=environment, check=True)
        return sum(path.lstat().st_size for path in Path(folder).rglob("*") if not path.is_dir()) / 2**20


def row(what: str, value: float, unit: str, budget: float | None, beside: str = "", least: bool = False) -> dict:
    ok = budget is None or (value >= budget if least else value <= budget)
    return {"what": what, "value": value, "unit": unit, "budget": budget, "ok": ok, "beside": beside}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--kills", type=int, default=10, help="of each kind")
    options = parser.parse_args()
    rows = memory()
    for tree, what in ((False, "the trainer alone"), (True, "its process group")):
        left = [survivors(tree) for _ in range(options.kills)]
        rows.append(row(f"of 1,000 calls, left after SIGKILL of {what}", min(left), "", 1000, f"the least of {options.kills}", least=True))
    rows.append(row("base package with its dependencies, installed", round(installed(), 1), "MB", 15, "without bytecode"))
    return report(rows, options.json)


if __name__ == "__main__":
    sys.exit(main())
