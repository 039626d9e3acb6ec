"""The SDK beside its peers, in one run, interleaved: what `log` costs, what import, init and close cost, what survives SIGKILL.

    python benchmarks/peers.py [--reps 5] [--only encore,wandb] [--json] [--write]     (make peers)

Each peer is installed by uv into an environment of its own under .make/peers (about 2 GB in all, once) and runs in a process of its own
without a network: in a network namespace with nothing but the loopback where that is allowed, else behind a proxy address where nobody is.
A round runs every contestant once; the table has medians over the rounds. CPU is user+sys. "all" counts the whole process tree with its
helpers, also those that detach (this process adopts them), less that of a run without a call. Under "busy", a loader worker a core never
waits, and the program has opened a data file of 1 GiB that the SDK then fingerprints.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / ".make" / "peers"
PACKAGES = {
    "wandb": ["wandb==0.31.0"],
    "mlflow": ["mlflow==3.17.2"],
    "aim": ["aim==3.29.1"],
    "trackio": ["trackio==0.43.0"],
    "tensorboardX": ["tensorboardX==2.6.5"],
    "torch-tensorboard": ["torch==2.13.0", "tensorboard==2.21.0"],
    "neptune-scale": ["neptune-scale==0.30.0"],
    "swanlab": ["swanlab==0.10.3"],
}
SIZES = {1: 100_000, 10: 100_000, 1000: 2_000}  # scalars a call: most calls
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "1",
    "WANDB_SILENT": "true",
    "WANDB_ERROR_REPORTING": "false",
    "GIT_PYTHON_REFRESH": "quiet",
    "http_proxy": "http://127.0.0.1:9",
    "https_proxy": "http://127.0.0.1:9",
    "no_proxy": "127.0.0.1,localhost",
}
LEFT_SECONDS = 60.0


def install(name: str) -> Path | None:
    """The interpreter of a contestant's own environment; None (said) where it does not install."""
    folder = HOME / name
    python = folder / "bin" / "python"
    stamp, wanted = folder / "installed", "\n".join(PACKAGES.get(name, ["encore"]))
    if stamp.exists() and stamp.read_text() == wanted and name != "encore":
        return python
    sys.path.insert(0, str(ROOT / "make"))
    import install as installer

    environment, uv = installer.uv_environment(), [str(ROOT / ".venv" / "bin" / "uv")]
    packages = PACKAGES.get(name, ["--reinstall-package", "encore-tracker", str(ROOT)])
    try:
        if not python.exists():
            subprocess.run([*uv, "venv", "--quiet", "--python", sys.executable, str(folder)], check=True, env=environment)
        subprocess.run([*uv, "pip", "install", "--quiet", "--python", str(python), *packages], check=True, env=environment)
    except subprocess.CalledProcessError:
        print(f"{name} does not install here; left out", file=sys.stderr)
        return None
    stamp.write_text(wanted)
    return python


def megabytes(name: str) -> float:
    """What the packages of a contestant take on disk: its environment less pip and its kind."""
    site = next((HOME / name / "lib").glob("python3*")) / "site-packages"
    sizes = (
        path.lstat().st_size
        for path in site.rglob("*")
        if not path.is_dir() and path.relative_to(site).parts[0] not in {"pip", "setuptools"}
    )
    return sum(sizes) / 2**20


def isolation() -> list[str]:
    """A prefix that starts a command without a network but the loopback, where this machine allows it."""
    prefix = ["unshare", "--net", "--", "sh", "-c", 'ip link set lo up 2>/dev/null; exec "$@"', "peers"]
    try:
        allowed = subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode == 0
    except OSError:
        allowed = False
    return prefix if allowed else []


def run(name: str, python: Path, *arguments: str, folder: Path, prefix: list[str]) -> tuple[dict[str, Any], float]:
    """(what the contestant printed, CPU seconds of its whole process tree). Its tree is waited for, then ended."""
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith(("ENCORE_", "WANDB_", "MLFLOW_"))},
        **QUIET,
        "HOME": str(folder),
        "TMPDIR": str(folder),
        "ENCORE_HOME": str(folder / "encore"),
        "ENCORE_MODE": "offline",
        "TRACKIO_DIR": str(folder / "trackio"),
        "MPLCONFIGDIR": str(folder),
    }
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [*prefix, str(python), str(Path(__file__).with_name("_contestants.py")), name, str(folder), *arguments]
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        start_new_session=True,
    )  # fmt: skip
    printed = process.communicate(timeout=900)[0]
    if "--die" in arguments:
        end_orphans(at_once=True)
    else:
        end_orphans(at_once=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    lines = [line for line in printed.splitlines() if line.startswith("{")]
    told = json.loads(lines[-1]) if lines else {}
    return told, (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)


def end_orphans(at_once: bool) -> None:
    """Helpers that detached are ours now: wait for them (their CPU counts), and end those that never do."""
    until = time.monotonic() + (0 if at_once else LEFT_SECONDS)
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            if time.monotonic() >= until:
                for child in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
                    os.kill(int(child), signal.SIGKILL)
            time.sleep(0.02)


def cell(name: str, python: Path, keys: int, busy: bool, data: str, seconds: float, prefix: list[str]) -> dict[str, Any]:
    cores = os.cpu_count() or 1
    load = ["--workers", str(cores), "--data", data] if busy else []
    with tempfile.TemporaryDirectory(prefix="encore-peers-") as folder:
        told, cpu = run(
            name,
            python,
            "--keys",
            str(keys),
            "--seconds",
            str(seconds),
            "--calls",
            str(SIZES[keys]),
            *load,
            folder=Path(folder),
            prefix=prefix,
        )
    return {**told, "tree": cpu}


def survivors(name: str, python: Path, prefix: list[str]) -> int | None:
    """Of 1,005 calls of one scalar, how many a fresh process finds after the whole process tree was killed right behind the last."""
    with tempfile.TemporaryDirectory(prefix="encore-peers-") as folder:
        where = Path(folder)
        told, _ = run(name, python, "--calls", "1000", "--seconds", "600", "--die", folder=where, prefix=prefix)
        left, _ = run(name, python, "--count", folder=where, prefix=prefix)
    if not told.get("calls") or left.get("left") is None:
        return None
    return min(1000, round(left["left"] * 1000 / told["calls"]))


def gather(names: dict[str, Path], reps: int, seconds: float) -> dict[tuple, list[dict[str, Any]]]:
    prefix = isolation()
    if not prefix:
        print("no network namespace is allowed here; the contestants run behind a proxy address where nobody is", file=sys.stderr)
    found: dict[tuple, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory(prefix="encore-peers-data-") as folder:
        data = os.path.join(folder, "data.bin")
        block = os.urandom(1 << 20)
        with open(data, "wb") as file:
            for _ in range(1024):
                file.write(block)
        for rep in range(reps):
            for name, python in names.items():
                print(f"round {rep + 1} of {reps}: {name}", file=sys.stderr, flush=True)
                idle = cell(name, python, 1, False, "", 0.0, prefix)
                idle["ready"] = idle["import_cpu"] + idle["init"] if idle.get("calls") is not None else None
                found.setdefault((name, "idle"), []).append(idle)
                for keys in SIZES:
                    for busy in (False, True):
                        told = cell(name, python, keys, busy, data, seconds, prefix)
                        if told.get("calls"):
                            if not busy:
                                told["all"] = max(0.0, told["tree"] - idle["tree"]) / told["calls"] * 1e6
                            found.setdefault((name, keys, busy), []).append(told)
                if rep == 0:
                    found[name, "left"] = [{"left": survivors(name, python, prefix)} for _ in range(3)]
    return found


def median(rows: list[dict[str, Any]] | None, field: str) -> float | None:
    values = [row[field] for row in rows or () if row.get(field) is not None]
    return statistics.median(values) if values else None


COLUMNS: list[tuple[str, str, Any]] = [
    *[
        (f"{keys:,} scalar{'s' * (keys > 1)}{', busy' * busy}: {field}", "µs", (keys, busy, field))
        for keys in SIZES
        for busy, fields in ((False, ("p50", "p99", "cpu", "all")), (True, ("p50", "p99", "cpu")))
        for field in fields
    ],
    ("import (CPU) and init", "s", ("idle", "ready")),
    ("close", "s", (1, False, "close")),
    ("of 1,000 survive SIGKILL of the tree", "", ("left", "left")),
    ("installed", "MB", "megabytes"),
]


def value_of(found: dict[tuple, list[dict[str, Any]]], sizes: dict[str, float], name: str, where: Any) -> float | None:
    if where == "megabytes":
        return sizes[name]
    if len(where) == 3:
        return median(found.get((name, where[0], where[1])), where[2])
    return median(found.get((name, where[0])), where[1])


def shown(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reps", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of the longest loop")
    parser.add_argument("--only", default="", help="names, separated by commas")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write", action="store_true", help="put the table into benchmarks/PEERS.md")
    options = parser.parse_args()
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: helpers that detach become our children
    wanted = [name for name in options.only.split(",") if name] or ["encore", *PACKAGES]
    names = {name: python for name in wanted if (python := install(name)) is not None}
    sizes = {name: megabytes(name) for name in names}
    from run import machine

    where = machine()
    found = gather(names, options.reps, options.seconds)
    rows, worse = [], []
    for title, unit, source in COLUMNS:
        values = {name: value_of(found, sizes, name, source) for name in names}
        there = {name: value for name, value in values.items() if value is not None}
        best = (max if "survive" in title else min)(there.values(), default=None)
        if "encore" in there and best is not None and there["encore"] != best:
            ahead = min((name for name in there if there[name] == best), default="")
            worse.append(f"{title}: encore {shown(there['encore'])}, {ahead} {shown(best)} {unit}".rstrip())
        rows.append((title, unit, values, best))
        if options.json:
            print(json.dumps({"what": title, "unit": unit, **values}, ensure_ascii=False))
    lines = ["| | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for title, unit, values, best in rows:
        cells = [f"**{shown(v)}**" if v is not None and v == best else shown(v) for v in values.values()]
        lines.append(f"| {title}{f', {unit}' if unit else ''} | " + " | ".join(cells) + " |")
    text = "\n".join(lines)
    print(f"\n{where}\n\n{text}\n")
    said = (
        "The SDK is the best in every row."
        if not worse
        else "Where the SDK is not the best:\n\n" + "\n".join(f"- {line}" for line in worse)
    )
    print(said)
    if options.write:
        versions = ", ".join(package for name in names for package in PACKAGES.get(name, []))
        head = f"Made by `make peers`. Medians of {options.reps} rounds, interleaved; the best of a row in bold."
        head += " What is measured, and how, stands in `benchmarks/peers.py`."
        page = f"# Beside the peers\n\n{head}\n\n{said}\n\nMachine: {where}.\n\n{text}\n\nVersions: {versions}.\n"
        (ROOT / "benchmarks" / "PEERS.md").write_text(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
