"""What `sdk.log` costs while the network is well or ill: a loopback server in a process of its own, the real sender, the real journal.

`trainer` is the program that is measured: bursts of calls with a pause between, as steps of a training leave them, so that the sender is
at work meanwhile.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONDITIONS = ("up", "refused", "stalled", "resetting")


def serve(condition: str) -> None:
    """Prints its port. up: acknowledges what it is sent; stalled: takes and never answers; resetting: cuts with a RST."""
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    kept = []
    while True:
        connection, _ = listener.accept()
        if condition == "stalled":
            kept.append(connection)
        elif condition == "resetting":
            connection.recv(100)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()
        else:
            threading.Thread(target=_answer, args=(connection,), daemon=True).start()


def _answer(connection: socket.socket) -> None:
    file = connection.makefile("rwb")
    with contextlib.suppress(OSError, ValueError, IndexError):
        while first := file.readline():
            path, length, encoding = first.split()[1].decode(), 0, b""
            while (line := file.readline().strip()) != b"":
                name, _, value = line.partition(b":")
                if name.lower() == b"content-length":
                    length = int(value)
                elif name.lower() == b"content-encoding":
                    encoding = value.strip()
            body = file.read(length)
            said: dict = {"next": 0, "stop": False, "state": "running", "missing": []}
            if path.endswith("/batches"):
                body = zlib.decompress(body) if encoding == b"deflate" else body
                if encoding != b"zstd":
                    said["next"] = json.loads(body[16 : 16 + struct.unpack_from("<I", body, 8)[0]])["last"] + 1
            elif path.endswith("/writers"):
                said |= {"run": {"id": json.loads(body)["run"]["id"], "url": None}, "attempt": 1}
            text = json.dumps(said).encode()
            file.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(text) + text)
            file.flush()


def trainer(seconds: float, keys: int, threads: int) -> None:
    """Prints {"p50", "p99", "p999", "calls"} in µs."""
    import sdk

    sdk.init(project="log-cost")
    data = {f"train/metric_{i}": i * 0.37 + 0.1 for i in range(keys)}
    burst = 500 if keys < 1000 else 10
    clock = time.perf_counter_ns
    log, took, end = sdk.log, [], time.monotonic() + seconds

    def steps() -> None:
        mine, step = [], 0
        while time.monotonic() < end:
            for _ in range(burst):
                step += 1
                before = clock()
                log(data, step)
                mine.append(clock() - before)
            time.sleep(0.005)
        took.extend(mine)

    workers = [threading.Thread(target=steps) for _ in range(threads - 1)]
    for worker in workers:
        worker.start()
    steps()
    for worker in workers:
        worker.join()
    took.sort()
    at = {name: took[min(len(took) - 1, int(len(took) * share))] / 1000 for name, share in (("p50", 0.5), ("p99", 0.99), ("p999", 0.999))}
    print(json.dumps({**at, "calls": len(took)}), flush=True)


@contextlib.contextmanager
def server(condition: str, elsewhere: bool = False) -> Iterator[str]:
    """The url of a server in this condition. elsewhere: it runs only when nobody else wants a core, as if on another machine."""
    if condition == "refused":
        with socket.create_server(("127.0.0.1", 0)) as held:
            port = held.getsockname()[1]
        yield f"http://127.0.0.1:{port}"
        return
    process = subprocess.Popen([sys.executable, __file__, "serve", condition], stdout=subprocess.PIPE, text=True)
    if elsewhere:
        os.sched_setscheduler(process.pid, os.SCHED_IDLE, os.sched_param(0))
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.wait()


def measured(condition: str | None, seconds: float, keys: int = 1, threads: int = 1, mode: str = "map") -> dict:
    """One trainer, with its sender; condition None: offline."""
    folder = tempfile.mkdtemp(prefix="encore-log-cost-")
    env = {name: value for name, value in os.environ.items() if not name.startswith("ENCORE_")}
    env |= {"ENCORE_HOME": folder, "ENCORE_JOURNAL_MODE": mode, "ENCORE_CONSOLE": "off", "ENCORE_FINISH_SECONDS": "0"}
    env["PYTHONPATH"] = str(ROOT)
    with contextlib.ExitStack() as stack:
        if condition is None:
            env["ENCORE_MODE"] = "offline"
        else:
            env |= {"ENCORE_URL": stack.enter_context(server(condition)), "ENCORE_TOKEN": "none"}
        command = [sys.executable, __file__, "trainer", str(seconds), str(keys), str(threads)]
        done = subprocess.run(command, env=env, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
        _end_senders(Path(folder))
    shutil.rmtree(folder, ignore_errors=True)
    return json.loads(done.stdout.splitlines()[-1])


def _end_senders(folder: Path) -> None:
    """Those that were started for this folder: its name stands in their command."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError, ValueError):
            if str(folder).encode() in path.read_bytes():
                os.kill(int(path.parent.name), 9)


def rows(seconds: float, repeats: int) -> list[dict]:
    """p99 in each condition, interleaved; the best of the repeats, since the others measure the neighbours."""
    best: dict[tuple, dict] = {}
    cases = [(condition, 1, 1, "map") for condition in CONDITIONS]
    cases += [("up", 1000, 1, "map"), ("stalled", 1000, 1, "map"), (None, 1, 1, "write"), (None, 10, 1, "write"), ("up", 1, 4, "map")]
    for _ in range(repeats):
        for case in cases:
            condition, keys, threads, mode = case
            found = measured(condition, seconds, keys, threads, mode)
            if case not in best or found["p99"] < best[case]["p99"]:
                best[case] = found
    table = []
    for case, found in best.items():
        condition, keys, threads, mode = case
        beside = f"p50 {found['p50']:.2f}, p99.9 {found['p999']:.1f} µs, {found['calls']:,} calls"
        what = f"sdk.log of {keys:,} scalar{'s' if keys > 1 else ''}"
        if mode == "write":
            table.append(_row(f"{what} by write(2), p50", found["p50"], 3.0 if keys == 1 else 3.5, f"p99 {found['p99']:.2f} µs"))
        elif threads > 1:
            table.append(_row(f"{what}, {threads} threads at once, p99", found["p99"], None, beside))
        else:
            table.append(_row(f"{what}, server {condition}, p99", found["p99"], 50 if keys == 1 else 250, beside))
    p99 = [best[condition, 1, 1, "map"]["p99"] for condition in CONDITIONS]
    ratio = max(p99) / min(p99)
    table.append(_row("p99 of the worst network / of the best", ratio, 2.0, "1 scalar; up, refused, stalled, resetting", "x"))
    return table


def _row(what: str, value: float, budget: float | None, beside: str, unit: str = "µs") -> dict:
    ok = budget is None or value <= budget
    return {"what": what, "value": round(value, 3), "unit": unit, "budget": budget, "ok": ok, "beside": beside}


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    else:
        trainer(float(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
