"""`make demo`: nine real runs of examples/ in the project "demo": good ones, one killed, one failed, one diverged to NaN. About 2 minutes.

Uses the Encore that runs on this data folder; starts one if none does, and leaves it running until Ctrl-C.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = ROOT / ".venv" / "bin"
TORCHRUN = [str(BIN / "torchrun"), "--nproc-per-node", "2"]
GPT = ["examples/char_gpt.py", "--steps", "120", "--batch", "16"]
PYTHON = [str(BIN / "python")]
RUNS = [
    ("medical, logistic and trees", [*PYTHON, "examples/medical_cv.py", "--name", "medical-all"]),
    ("medical, deeper trees", [*PYTHON, "examples/medical_cv.py", "--models", "tree,forest", "--depth", "12", "--name", "medical-deep"]),
    ("digits on two ranks, lr 0.05", [*TORCHRUN, "examples/digits_ddp.py", "--epochs", "8", "--name", "digits-lr0.05"]),
    ("digits on two ranks, lr 0.005", [*TORCHRUN, "examples/digits_ddp.py", "--epochs", "8", "--lr", "0.005", "--name", "digits-lr0.005"]),
    ("digits that fail at epoch 3", [*PYTHON, "examples/digits_ddp.py", "--fail-at", "3", "--name", "digits-fails"]),
    ("char-GPT, lr 0.003", [*PYTHON, *GPT, "--name", "gpt-lr3e-3"]),
    ("char-GPT, lr 0.01", [*PYTHON, *GPT, "--lr", "1e-2", "--name", "gpt-lr1e-2"]),
    ("char-GPT, lr 10,000: diverges to NaN", [*PYTHON, *GPT, "--steps", "60", "--lr", "1e4", "--name", "gpt-diverges"]),
    ("char-GPT, killed on the way", [*PYTHON, *GPT, "--steps", "2000", "--name", "gpt-killed"]),
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, default=Path(os.environ.get("ENCORE_HOME") or Path.home() / ".encore"))
    parser.add_argument("--port", default=None)
    args = parser.parse_args()
    home = args.home.expanduser().resolve()
    server, access = start(home, args.port)
    # One thread each: two trainings at a time fight over the cores of a small machine otherwise, three times slower.
    threads = {"OMP_NUM_THREADS": "1"}
    env = {**os.environ, **threads, "ENCORE_HOME": str(home), "ENCORE_URL": access["url"], "ENCORE_TOKEN": access["token"]}
    try:
        print(f"Nine runs, two at a time. Watch them arrive:\n\n  {access['login_url']}\n", flush=True)
        perform(env)
        if server is None:
            return 0
        print("\nEncore keeps running. Ctrl-C stops it.", flush=True)
        return server.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        if server is not None:
            server.terminate()
            server.wait()


def start(home: Path, port: str | None) -> tuple[subprocess.Popen | None, dict]:
    """The running Encore of this folder, or one started here. `encore up` itself tells the two apart."""
    argv = [BIN / "encore", "up", "--json", "--home", home, *(["--port", port] if port else [])]
    # Its own group: a Ctrl-C here comes to us alone, and we stop it in order.
    server = subprocess.Popen([str(part) for part in argv], stdout=subprocess.PIPE, text=True, process_group=0)
    line = server.stdout.readline()
    if not line:
        sys.exit(server.wait() or 1)
    access = json.loads(line)
    with_own = True
    try:
        with_own = server.wait(timeout=1) != 0
    except subprocess.TimeoutExpired:
        return server, access
    if with_own:
        sys.exit("encore up ended at once; its words are above.")
    return None, access


def perform(env: dict[str, str]) -> None:
    began = time.monotonic()
    waiting, running = list(enumerate(RUNS, 1)), {}
    logs = ROOT / ".make" / "demo"
    logs.mkdir(parents=True, exist_ok=True)
    while waiting or running:
        while waiting and len(running) < 2:
            number, (title, argv) = waiting.pop(0)
            with (logs / f"{number}.log").open("wb") as log:
                process = subprocess.Popen(
                    [*argv, "--project", "demo"], cwd=ROOT, env=env, stdout=log, stderr=log, stdin=subprocess.DEVNULL
                )
            running[process] = (number, title, time.monotonic())
            print(f"  {number}/{len(RUNS)}  {title} …", flush=True)
        for process, (number, title, started) in list(running.items()):
            if title.endswith("killed on the way") and process.poll() is None and reached_step(logs / f"{number}.log", 50):
                process.send_signal(signal.SIGKILL)
                process.wait()
            if (status := process.poll()) is not None:
                how = "done" if status == 0 else "killed" if status == -signal.SIGKILL else f"ended with status {status}"
                print(f"  {number}/{len(RUNS)}  {title}: {how} ({time.monotonic() - started:.0f} s)", flush=True)
                del running[process]
        time.sleep(0.1)
    print(f"\nNine runs in {time.monotonic() - began:.0f} s. What they printed is in {logs}.")


def reached_step(log: Path, step: int) -> bool:
    lines = [line.split() for line in log.read_text(errors="replace").splitlines() if line.startswith("step ")]
    return bool(lines) and int(lines[-1][1]) >= step


if __name__ == "__main__":
    sys.exit(main())
