"""The store beside its peers, in one run: what taking in costs, and the reads that a chart makes. MLflow's server, trackio, Encore.

    python benchmarks/peers_store.py [--reps 3] [--write]     (make peers)

All get the same load: one run of 20 keys × 5,000 steps in batches of 50 steps (1,000 points, MLflow's most), then 100 runs of one key ×
500 steps. MLflow and Encore answer over HTTP on SQLite, Encore with a sync for each batch; trackio has no server and stores in the
program's own process. CPU is that of the whole tree of processes, the client's included. Environments are those of peers.py.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from peers import PACKAGES, QUIET, ROOT, install, isolation, shown
from run import machine

NAMES = ["encore", "mlflow", "trackio"]
COLUMNS = [
    ("taken in, 20 keys a step", "points/s", "points_s", max),
    ("CPU of it, all processes", "s per M points", "cpu_s", min),
    ("chart of 1 key of 5,000 points", "ms", "one", min),
    ("chart of 1 key of 100 runs × 500 points", "ms", "many", min),
]


def measure(name: str, python: Path, prefix: list[str]) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="encore-peers-") as folder:
        environment = {
            **QUIET,
            "PATH": f"{python.parent}:/usr/bin:/bin",
            "HOME": folder,
            "TMPDIR": folder,
            "TRACKIO_DIR": f"{folder}/trackio",
        }
        argv = [*prefix, str(python), str(Path(__file__).with_name("_store_contestants.py")), name, folder]
        done = subprocess.run(argv, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, timeout=900, check=False)
        lines = [line for line in done.stdout.splitlines() if line.startswith('{"points_s"')]
        if not lines:
            print(f"{name} ended with status {done.returncode} and no figures", file=sys.stderr)
        return json.loads(lines[-1]) if lines else {}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reps", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="put the table into benchmarks/PEERS_STORE.md")
    options = parser.parse_args()
    prefix, where = isolation(), machine()
    # Encore's server is what the project's own environment has; the peers have one each.
    pythons = {name: ROOT / ".venv" / "bin" / "python" if name == "encore" else install(name) for name in NAMES}
    found: dict[str, list[dict[str, float]]] = {name: [] for name, python in pythons.items() if python is not None}
    for rep in range(options.reps):
        for name in found:
            print(f"round {rep + 1} of {options.reps}: {name}", file=sys.stderr, flush=True)
            found[name].append(measure(name, pythons[name] or Path(), prefix))
    lines = ["| | " + " | ".join(found) + " |", "|---|" + "---|" * len(found)]
    for title, unit, field, better in COLUMNS:
        values = {name: statistics.median([row[field] for row in rows if field in row] or [float("nan")]) for name, rows in found.items()}
        best = better(value for value in values.values() if value == value)
        cells = [f"**{shown(v)}**" if v == best else shown(v) if v == v else "–" for v in values.values()]
        lines.append(f"| {title}, {unit} | " + " | ".join(cells) + " |")
    text = "\n".join(lines)
    print(f"\n{where}\n\n{text}")
    if options.write:
        versions = ", ".join(package for name in found for package in PACKAGES.get(name, []))
        head = f"Made by `make peers`. Medians of {options.reps} rounds, interleaved; the best of a row in bold."
        head += " What is measured, and how, stands in `benchmarks/peers_store.py`."
        page = f"# The store beside its peers\n\n{head}\n\nMachine: {where}.\n\n{text}\n\nVersions: {versions}.\n"
        (ROOT / "benchmarks" / "PEERS_STORE.md").write_text(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
