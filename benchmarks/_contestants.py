"""One contestant of peers.py in its own interpreter: ``python _contestants.py NAME FOLDER --keys 10 --seconds 1 …`` prints a line of JSON.

Each contestant is a function that takes a folder and gives (log, close): ``log(data, step)`` takes a dict of floats the way its users would
write it in a training loop. Nothing here is imported before its contestant is, so that importing can be measured.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Log = Callable[[dict, int], Any]
Opened = tuple[Log, Callable[[], Any]]


def encore(folder: str) -> Opened:
    import sdk

    sdk.init(project="bench", config={"lr": 0.1})
    return sdk.log, sdk.finish


def tensorboardx(folder: str) -> Opened:
    from tensorboardX import SummaryWriter

    return _tensorboard(SummaryWriter(folder))


def torch_tensorboard(folder: str) -> Opened:
    from torch.utils.tensorboard import SummaryWriter

    return _tensorboard(SummaryWriter(folder))


def _tensorboard(writer: Any) -> Opened:
    add = writer.add_scalar

    def log(data: dict, step: int) -> None:
        for key, value in data.items():
            add(key, value, step)

    return log, writer.close


def wandb(folder: str) -> Opened:
    import wandb

    run = wandb.init(project="bench", mode="offline", dir=folder, config={"lr": 0.1})
    return (lambda data, step: run.log(data, step=step)), run.finish


def mlflow(folder: str) -> Opened:
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    mlflow.set_experiment("bench")
    mlflow.start_run()
    return (lambda data, step: mlflow.log_metrics(data, step=step)), mlflow.end_run


def aim(folder: str) -> Opened:
    import aim

    run = aim.Run(repo=folder)
    track = run.track

    def log(data: dict, step: int) -> None:
        for key, value in data.items():
            track(value, name=key, step=step)

    return log, run.close


def trackio(folder: str) -> Opened:
    import trackio

    trackio.init(project="bench", name="bench", config={"lr": 0.1}, embed=False)
    return (lambda data, step: trackio.log(data, step=step)), trackio.finish


def neptune_scale(folder: str) -> Opened:
    from neptune_scale import Run

    run = Run(run_id="bench", project="bench/bench", mode="offline", log_directory=folder)
    return (lambda data, step: run.log_metrics(data=data, step=step)), run.close


def swanlab(folder: str) -> Opened:
    import swanlab

    swanlab.init(project="bench", mode="offline", logdir=f"{folder}/swanlab")
    return (lambda data, step: swanlab.log(data, step=step)), swanlab.finish


CONTESTANTS = {
    "encore": encore,
    "wandb": wandb,
    "mlflow": mlflow,
    "aim": aim,
    "trackio": trackio,
    "tensorboardX": tensorboardx,
    "torch-tensorboard": torch_tensorboard,
    "neptune-scale": neptune_scale,
    "swanlab": swanlab,
}


# What is left after SIGKILL, counted by a fresh process ---------------------------------------------------------------------------------


def count(name: str, folder: Path) -> int | None:
    """How many of the points logged under ``folder`` can be read back; None where no reader was written."""
    if name == "encore":
        from sdk._reader import Reader

        writers = {path.parent for path in folder.glob("**/*.seg")}
        return sum(_points(Reader, writer) for writer in writers)
    if name in ("tensorboardX", "torch-tensorboard"):
        return sum(_framed(path) for path in folder.glob("**/*tfevents*"))
    if name == "wandb":
        from wandb.proto import wandb_internal_pb2

        found = 0
        for path in folder.glob("**/*.wandb"):
            for data in _leveldb_log(path.read_bytes()):
                record = wandb_internal_pb2.Record()
                record.ParseFromString(data)
                found += record.WhichOneof("record_type") == "history"
        return found
    question = {
        "mlflow": ("**/mlflow.db", "select count(*) from metrics"),
        "trackio": ("**/bench.db", "select count(*) from metrics"),
        "neptune-scale": ("**/*.sqlite3", "select count(*) from run_operations where operation_type = 0"),
    }.get(name)
    if question is None:
        return None
    import sqlite3

    found = 0
    for path in folder.glob(question[0]):
        try:
            with sqlite3.connect(path) as connection:
                found += connection.execute(question[1]).fetchone()[0]
        except sqlite3.Error:
            continue
    return found


def _points(reader: Any, folder: Path) -> int:
    if json.loads((folder / "writer.json").read_text())["kind"] != "trainer":
        return 0
    from sdk._records import RECORD_BYTES

    found, journal = 0, reader(folder)
    while (chunk := journal.read(settled=True)) is not None:
        for list_id, rows in chunk.dense.items():
            keys = len(chunk.lists[list_id][0])
            found += sum(len(part) for part in rows) // (RECORD_BYTES + 8 * keys) * keys
        found += sum(len(payload) // 16 for _, _, _, payload in chunk.sparse)
    return found


def _leveldb_log(data: bytes) -> list[bytes]:
    """The whole records of a LevelDB log behind a file header of 7 bytes: blocks of 32 KiB, pieces of (checksum, length u16, kind u8)."""
    found, at, parts = [], 7, b""
    while at + 7 <= len(data):
        room = 32768 - at % 32768
        if room < 7:
            at += room
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        piece = data[at + 7 : at + 7 + length]
        if not kind or len(piece) < length:
            break
        parts = piece if kind in (1, 2) else parts + piece
        if kind in (1, 4):
            found.append(parts)
        at += 7 + length
    return found


def _framed(path: Path) -> int:
    """Events of a TensorBoard file: length (8), its checksum (4), payload, its checksum (4); less the two that open the file."""
    data, at, found = path.read_bytes(), 0, 0
    while at + 12 <= len(data):
        at += 16 + int.from_bytes(data[at : at + 8], "little")
        found += at <= len(data)
    return max(0, found - 1)


# The measured loop ----------------------------------------------------------------------------------------------------------------------


def measure(options: argparse.Namespace) -> dict[str, Any]:
    before = time.process_time()
    open_run = CONTESTANTS[options.name]
    module = {"encore": "sdk", "torch-tensorboard": "torch.utils.tensorboard", "neptune-scale": "neptune_scale"}.get(
        options.name, options.name
    )
    __import__(module)
    imported = time.process_time() - before
    began, before = time.perf_counter(), time.process_time()
    log, close = open_run(options.folder)
    opened, opened_cpu = time.perf_counter() - began, time.process_time() - before
    if options.data:
        with open(options.data, "rb") as file:  # the training data; whoever fingerprints it does so now
            file.read(1)
    workers = [_busy() for _ in range(options.workers)]
    # Two dicts in turn: a step's values differ from the last one's, and making them is the program's own work.
    names = [f"train/metric_{i}" for i in range(options.keys)]
    data = [{name: i * 0.37 + shift for i, name in enumerate(names)} for shift in (0.1, 0.2)]
    clock = time.perf_counter_ns
    took: list[int] = []
    for step in range(5):
        log(data[step % 2], step)
    before, until, step = time.process_time(), time.perf_counter() + options.seconds, 5
    while step < options.calls + 5 and time.perf_counter() < until:
        start = clock()
        log(data[step % 2], step)
        took.append(clock() - start)
        step += 1
    cpu = time.process_time() - before
    if options.die:
        print(json.dumps({"calls": step}), flush=True)
        os.kill(os.getpid(), 9)
    began = time.perf_counter()
    close()
    closed = time.perf_counter() - began
    for worker in workers:
        worker.kill()
    took.sort()
    at = (lambda share: took[min(len(took) - 1, int(len(took) * share))] / 1000) if took else (lambda share: None)
    return {
        "calls": len(took),
        "p50": at(0.5),
        "p99": at(0.99),
        "cpu": cpu / len(took) * 1e6 if took else None,
        "import_cpu": imported,
        "init": opened,
        "init_cpu": opened_cpu,
        "close": closed,
    }


def _busy() -> Any:
    """A loader worker that never waits: a plain process, so that it costs the contestant nothing but its core."""
    import subprocess

    program = "import os, zlib\nparent = os.getppid()\nwhile os.getppid() == parent:\n    zlib.crc32(bytes(1 << 20))\n"
    return subprocess.Popen([sys.executable, "-S", "-c", program])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=CONTESTANTS)
    parser.add_argument("folder")
    parser.add_argument("--keys", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--data", default="")
    parser.add_argument("--die", action="store_true")
    parser.add_argument("--count", action="store_true")
    options = parser.parse_args()
    told = {"left": count(options.name, Path(options.folder))} if options.count else measure(options)
    print("\n" + json.dumps(told), flush=True)


if __name__ == "__main__":
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]
    main()
