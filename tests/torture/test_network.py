"""Whatever the network does, training does not notice, and all is there within 300 s after it has stopped doing it."""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.torture.house import PATIENCE, TORTURE, House, senders, until
from tests.torture.ledger import Ledger
from tests.torture.proxy import MODES, Proxy
from tests.torture.results import Results
from tests.torture.test_kills import HERE, PROGRAM, account_of, new_run

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(3000 if TORTURE else 300)]

FAULT_SECONDS = 10.0 if TORTURE else 0.5
FAULTS = [mode for mode in MODES if mode != "pass"]


def paced(house: House, run: str, ledger: Path, stop: Path, slots: int = 1) -> Path:
    """A program that logs about a thousand times a second until `stop` exists."""
    script = house.folder / f"paced-{run}.py"
    program = PROGRAM.format(root=str(HERE.parents[1]), ledger=str(ledger), slots=slots, run=run)
    pause = f"    import time; time.sleep(0.001)\n    if os.path.exists({str(stop)!r}): break\n"
    script.write_text(program.replace("    sdk.log(", pause + "    sdk.log("))
    return script


def test_every_fault_of_the_network_in_turn_loses_and_doubles_nothing(house: House, results: Results) -> None:
    """Down at the start, then dead, mute, cut, reset, slow, half an answer, an answer cut after the commit: all while a program logs."""
    proxy = Proxy(house.up.port, seed=5)
    run = new_run(house, "network")
    ledger_path, stop = house.folder / "ledger-network", house.folder / "stop-network"
    ledger = Ledger(ledger_path, 1)
    script = paced(house, run["id"], ledger_path, stop)
    proxy.set("down")
    process = subprocess.Popen(
        [sys.executable, str(script), "0", "0", "100000000"],
        env=house.environment(proxy.url, ENCORE_FINISH_SECONDS="0"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    order = ["down", *random.Random(9).sample(FAULTS, len(FAULTS))]
    folder = house.journal / run["id"]
    try:
        process.stdout.readline()
        assert until(lambda: senders(folder))
        for mode in order:
            proxy.set(mode)
            before, struck, calls = proxy.struck, proxy.struck, ledger.read(0)[0]
            began = time.monotonic()
            # A fault counts when a connection has met it; refused connections leave no trace here.
            while time.monotonic() - began < FAULT_SECONDS or (mode != "down" and proxy.struck == before and time.monotonic() - began < 60):
                time.sleep(0.02)
            struck = proxy.struck - before
            assert mode == "down" or struck, mode
            assert until(lambda calls=calls: ledger.read(0)[0] > calls), "training stands still"
            proxy.set("pass")
            connections = proxy.connections
            assert until(lambda connections=connections: proxy.connections > connections), mode  # the sender has come back
    finally:
        stop.touch()
        _, err = process.communicate(timeout=120)
        stop.unlink()
    assert process.returncode == 0, err
    ended = time.monotonic()
    assert until(lambda: json.loads((folder / "sender.json").read_text()).get("done")), (folder / "sender.json").read_text()
    waited = time.monotonic() - ended
    proxy.close()
    account = account_of(house, run["id"], ledger, 1)
    results.add("network faults: " + ", ".join(order), len(order), account, f"all there {waited:.0f} s after the last")
    assert account.exact, account.examples
    assert waited < PATIENCE
    assert house.state(run["id"]) == "finished"


HURRIED = """
import sys, os, types, time
scale = float(os.environ["TIME_SCALE"])
real, nap, start = time.monotonic, time.sleep, time.monotonic()
time.monotonic = lambda: start + (real() - start) * scale
time.sleep = lambda seconds: nap(seconds / scale)
package = types.ModuleType("sdk"); package.__path__ = [os.path.join({root!r}, "sdk")]; sys.modules["sdk"] = package
from sdk._sender import process
sys.exit(process.main(sys.argv[1]))
"""


def test_an_hour_without_a_network_is_over_300_seconds_after_it(house: House, results: Results) -> None:
    """The sender's clock runs hundreds of times as fast (its `time.monotonic` and `sleep`, nothing else), so that the outage is an
    hour to it: it comes back within 300 of its seconds, and in between it has not hammered the network."""
    scale, hour = (120.0 if TORTURE else 480.0), 3600.0
    proxy = Proxy(house.up.port, seed=6)
    run = new_run(house, "hour")
    ledger_path, stop = house.folder / "ledger-hour", house.folder / "stop-hour"
    ledger = Ledger(ledger_path, 1)
    script = paced(house, run["id"], ledger_path, stop)
    environment = house.environment(proxy.url, ENCORE_SENDER="external")
    process = subprocess.Popen([sys.executable, str(script), "0", "0", "100000000"], env=environment, stdout=subprocess.PIPE, text=True)
    process.stdout.readline()
    proxy.set("dead")
    code = HURRIED.format(root=str(HERE.parents[1]))
    hurried = {**environment, "TIME_SCALE": str(scale)}
    sender = subprocess.Popen([sys.executable, "-c", code, str(house.journal / run["id"])], env=hurried, stderr=subprocess.PIPE, text=True)
    try:
        time.sleep(hour / scale)
        tried = proxy.connections
        stop.touch()
        assert process.wait(120) == 0
        stop.unlink()
        proxy.set("pass")
        began, before = time.monotonic(), proxy.connections
        assert until(lambda: proxy.connections > before)
        came_back = (time.monotonic() - began) * scale
        sender.wait(PATIENCE)
    finally:
        sender.kill()
        process.kill()
        proxy.close()
    account = account_of(house, run["id"], ledger, 1)
    results.add("an hour without a network, simulated", 1, account, f"{tried} tries in it; back after {came_back:.0f} s of its clock")
    assert account.exact, account.examples
    # 30 s apart with jitter once the back-off has grown, points and blobs each; the machine's own slowness makes it fewer, never more.
    assert tried < 2 * hour / (30 * 0.7) + 40


LOOP = """
import sys, time
sys.path.insert(0, {root!r})
import sdk
run = sdk.init(project="torture")
data = {{f"k{{i}}": 0.5 for i in range(20)}}
def step():
    x = 0
    for i in range(60_000): x += i * i
    sdk.log(data)
for _ in range(50): step()
for line in sys.stdin:
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(int(line)): step()
    print(time.perf_counter() - wall, time.process_time() - cpu, flush=True)
"""


@pytest.mark.skipif(not TORTURE, reason="a measurement wants a quiet machine and minutes: make torture")
def test_training_time_is_the_same_within_one_percent_under_every_fault(house: House, results: Results) -> None:
    """CPU and wall time of the training loop with each fault beside without, interleaved; medians of the pairs' quotients."""
    proxy = Proxy(house.up.port, seed=7)
    environment = house.environment(proxy.url, ENCORE_FINISH_SECONDS="0")
    argv = [sys.executable, "-c", LOOP.format(root=str(HERE.parents[1]))]
    process = subprocess.Popen(argv, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    def measured() -> tuple[float, float]:
        process.stdin.write("60\n")
        process.stdin.flush()
        wall, cpu = process.stdout.readline().split()
        return float(wall), float(cpu)

    worst = 0.0
    try:
        for mode in FAULTS:
            quotients: list[tuple[float, float]] = []
            for turn in range(15):
                pair = {}
                for each in ("pass", mode) if turn % 2 else (mode, "pass"):
                    proxy.set(each)
                    pair[each] = measured()
                quotients.append((pair[mode][0] / pair["pass"][0], pair[mode][1] / pair["pass"][1]))
            wall, cpu = (statistics.median(column) for column in zip(*quotients, strict=True))
            results.note(f"- Training loop under `{mode}` ({MODES[mode]}): wall x {wall:.4f}, CPU x {cpu:.4f} of without (15 pairs).")
            worst = max(worst, cpu)
    finally:
        process.stdin.close()
        process.kill()
        process.wait()
        proxy.close()
    assert worst < 1.01 or os.getloadavg()[0] > 1.5, worst
