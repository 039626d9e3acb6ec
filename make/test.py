"""The whole test run of `make test`: lint, contracts, types, then pytest on SQLite and again, where it stores, on PostgreSQL.

Every step runs even when an earlier one failed; the exit status says whether all passed, and the last lines say which did not.
"""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = ROOT / ".venv" / "bin"
sys.path.insert(0, str(ROOT))

from tests import services  # noqa: E402

POSTGRES_TESTS = ["tests/tracker"]
E2E_TESTS = ["tests/e2e", "tests/torture"]


Step = tuple[str, list, dict[str, str]]
WORKERS = max(4, min(8, os.cpu_count() or 1))  # most tests wait for a process that they have started: two of them fill no two cores


class Steps:
    """Lanes of steps side by side. What a step prints comes whole when it ends, so that two do not mix."""

    def __init__(self) -> None:
        self.done: list[tuple[str, int, float]] = []
        self._running: list[subprocess.Popen] = []
        self._over = False
        self._lock = threading.Lock()

    def run(self, *lanes: list[Step]) -> None:
        """Returns when all are through; an exception (Ctrl-C, SIGTERM) ends what runs."""
        threads = [threading.Thread(target=self._lane, args=(lane,), daemon=True) for lane in lanes]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                while thread.is_alive():
                    thread.join(0.5)  # so that a signal is heard
        except BaseException:
            self._over = True
            for process in self._running:
                process.terminate()
            for process in self._running:
                process.wait()
            raise

    def _lane(self, lane: list[Step]) -> None:
        for name, argv, env in lane:
            with self._lock:
                if self._over:
                    return
                print(f"    {name} …", flush=True)
            began = time.monotonic()
            with tempfile.TemporaryFile() as said:
                process = subprocess.Popen(
                    [str(part) for part in argv], cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT
                )
                self._running.append(process)
                status = process.wait()
                said.seek(0)
                text = said.read().decode(errors="replace")
            with self._lock:
                self.done.append((name, status, time.monotonic() - began))
                print(f"\n=== {name} ({time.monotonic() - began:.0f} s)\n{text}", flush=True)


def main(arguments: list[str]) -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the services are stopped then too
    began = time.monotonic()
    env = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("ENCORE_", "DATABASE_URL")) or name.startswith("ENCORE_TEST_")
    }
    env["ENCORE_SENDER_NICE"] = "0"  # a sender that steps back behind four workers of pytest would get nothing
    pytest = [BIN / "python", "-m", "pytest", "-q", *arguments]
    steps = Steps()
    with services.environment() as found:
        env |= found
        postgres = {**env, "DATABASE_URL": found["ENCORE_TEST_POSTGRES"]}
        # The whole product and its processes are slow to come up and use little of the machine; so are not the checks and PostgreSQL's
        # tests. The two databases' tests come after each other: workers of one number share names in Redis and S3.
        steps.run(
            [
                ("ruff check", [BIN / "ruff", "check", "."], env),
                ("ruff format", [BIN / "ruff", "format", "--check", "."], env),
                ("import contracts", [BIN / "lint-imports"], env),
                ("mypy", [BIN / "mypy"], env),
                ("tests on PostgreSQL", [*pytest, "-n", "2", "-m", "not e2e", *POSTGRES_TESTS], postgres),
            ],
            [("end-to-end tests", [*pytest, "-n", "2", "--dist", "loadfile", "-m", "e2e", *E2E_TESTS], env)],
        )
        steps.run([("tests on SQLite", [*pytest, "-n", str(WORKERS), "--dist", "loadgroup", "-m", "not e2e", "tests"], env)])
    done = steps.done
    print("\n=== all steps")
    for name, status, seconds in done:
        print(f"  {'passed' if status == 0 else 'FAILED'}  {name}  ({seconds:.0f} s)")
    failed = sum(status != 0 for _, status, _ in done)
    print(f"{len(done) - failed} of {len(done)} steps passed in {time.monotonic() - began:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
