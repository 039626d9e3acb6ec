"""`make bench`: runs every benchmark beside this file, prints the table, missed budgets first. Exits 1 on a missed one.

Each benchmark, called with ``--json``, prints a line of JSON for each row: ``{"what", "value", "unit", "budget", "ok", "beside"}``.
``--write`` puts the table into RESULTS.md. Names as arguments choose benchmarks: ``python benchmarks/run.py log_cost``.
"""

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
FIRST = ["log_cost", "ingest", "chart"]
APART = {"run", "peers", "peers_store", "scale"}
"""Not for each time: they install other trackers or take minutes."""


def machine() -> str:
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        model = next(
            line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")
        )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    load = os.getloadavg()[0]
    system = f"{platform.system()} {platform.release()}, Python {platform.python_version()}"
    return f"{os.cpu_count()} cores of {model}, {memory:.0f} GiB, {system}, load {load:.1f} at the start"


def measure(name: str) -> list[dict]:
    print(f"{name} …", file=sys.stderr, flush=True)
    began = time.monotonic()
    done = subprocess.run([sys.executable, HERE / f"{name}.py", "--json"], cwd=HERE.parent, stdout=subprocess.PIPE, text=True, check=False)
    rows = []
    for line in done.stdout.splitlines():
        if line.startswith("{"):
            rows.append({"beside": "", **json.loads(line)})
    if done.returncode != 0 and not any(not row["ok"] for row in rows):
        rows.append({"what": name, "value": None, "unit": "", "budget": "", "ok": False, "beside": f"ended with status {done.returncode}"})
    print(f"{name}: {len(rows)} rows in {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return rows


def number(value) -> str:
    if isinstance(value, float):
        return f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def table(rows: list[dict]) -> str:
    lines = ["| what | measured | budget | | beside it |", "|---|---|---|---|---|"]
    for row in sorted(rows, key=lambda row: row["ok"] is not False):
        ok = "" if row["budget"] in (None, "") and row["ok"] else "kept" if row["ok"] else "**missed**"
        lines.append(f"| {row['what']} | {number(row['value'])} {row['unit']} | {number(row['budget'])} | {ok} | {row['beside'] or ''} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--write", action="store_true", help="put the table into benchmarks/RESULTS.md")
    args = parser.parse_args()
    there = sorted(path.stem for path in HERE.glob("*.py") if path.stem not in APART and not path.stem.startswith("_"))
    names = args.names or [name for name in FIRST if name in there] + [name for name in there if name not in FIRST]
    if unknown := set(names) - set(there):
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}; there are {', '.join(there)}")
    where = machine()
    rows = [row for name in names for row in measure(name)]
    text = table(rows)
    print(f"\n{where}\n\n{text}")
    missed = [row["what"] for row in rows if row["ok"] is False]
    if args.write:
        (HERE / "RESULTS.md").write_text(
            f"# Results\n\nMade by `make bench ARGS=--write`. Missed budgets come first.\n\nMachine: {where}.\n\n{text}\n"
        )
    if missed:
        print(f"\n{len(missed)} missed: {'; '.join(missed)}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
