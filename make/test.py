"""The whole test run of `make test`: lint, contracts, types, then pytest on SQLite and again, where it stores, on PostgreSQL.

Every step runs even when an earlier one failed; the exit status says whether all passed, and the last lines say which did not.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = ROOT / ".venv" / "bin"
sys.path.insert(0, str(ROOT))

from tests import services  # noqa: E402

POSTGRES_TESTS = ["tests/tracker"]


def step(name: str, argv: list, env: dict[str, str]) -> tuple[str, int, float]:
    print(f"\n=== {name}", flush=True)
    began = time.monotonic()
    status = subprocess.run([str(part) for part in argv], cwd=ROOT, env=env, stdin=subprocess.DEVNULL, check=False).returncode
    return name, status, time.monotonic() - began


def main(arguments: list[str]) -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the services are stopped then too
    began = time.monotonic()
    env = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("ENCORE_", "DATABASE_URL")) or name.startswith("ENCORE_TEST_")
    }
    done = [
        step("ruff check", [BIN / "ruff", "check", "."], env),
        step("ruff format", [BIN / "ruff", "format", "--check", "."], env),
        step("import contracts", [BIN / "lint-imports"], env),
        step("mypy", [BIN / "mypy"], env),
    ]
    pytest = [BIN / "python", "-m", "pytest", "-q", *arguments]
    with services.environment() as found:
        env |= found
        # The whole product and its processes want the machine for themselves, so those tests run alone, after the others.
        done.append(
            step(
                "tests on PostgreSQL",
                [*pytest, "-n", "2", "-m", "not e2e", *POSTGRES_TESTS],
                {**env, "DATABASE_URL": found["ENCORE_TEST_POSTGRES"]},
            )
        )
        done.append(step("end-to-end tests", [*pytest, "-m", "e2e", "tests"], env))
        done.append(step("tests on SQLite", [*pytest, "-n", "2", "-m", "not e2e", "tests"], env))
    print("\n=== all steps")
    for name, status, seconds in done:
        print(f"  {'passed' if status == 0 else 'FAILED'}  {name}  ({seconds:.0f} s)")
    failed = sum(status != 0 for _, status, _ in done)
    print(f"{len(done) - failed} of {len(done)} steps passed in {time.monotonic() - began:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
