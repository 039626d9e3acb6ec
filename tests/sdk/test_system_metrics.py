"""What the sender measures beside training: throughput from the steps, and the machine's metrics through the whole way to the server."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import Shop, until
from server import Server

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "capture"))
from nvml import Nvml

from sdk._journal import Writer
from sdk._sender import limits
from sdk._sender.run import RunSender
from sdk._sender.throughput import Gauge


def test_throughput_and_mfu_are_gauged_by_the_sender(shop: Shop, server: Server) -> None:
    """The program says what a step is worth, once; its steps and times do the rest, and no call of it costs anything in the loop."""
    done = shop.run(
        """
        import time, sdk
        sdk.init(project="p")
        sdk.throughput(tokens_per_step=1000, flops_per_token=6e6, peak_flops=1e12, devices=2)
        for step in range(100):
            sdk.log({"loss": 0.5}, step=step)
            time.sleep(0.04)
        """,
        server,
    )
    assert done.returncode == 0, done.stderr
    assert until(lambda: server.points("perf/mfu", kind="node"))
    rates = dict(server.points("perf/steps_per_second", kind="node"))
    tokens = dict(server.points("perf/tokens_per_second", kind="node"))
    for step, mfu in server.points("perf/mfu", kind="node"):
        assert 1 < rates[step] <= 25
        assert tokens[step] == pytest.approx(rates[step] * 1000)
        assert mfu == pytest.approx(tokens[step] * 6e6 / 2e12)
        assert 0 < step < 100
    assert {doc["kind"] for doc in server.docs("define") if doc["pattern"].startswith("perf/")} == {"rate"}


def test_tokens_may_be_a_key_that_the_program_logs(tmp_path: Path) -> None:
    """Steps of different lengths: what each one logged is summed, exactly between two looks."""
    writer = Writer(tmp_path, {"id": "a" * 26, "project": "p"}, SimpleNamespace(strict=False))
    gauge = Gauge(writer.folder, {"tokens_per_step": "tokens"})
    for step in range(3):
        writer.log({"tokens": 100 * (step + 1), "loss": 0.1}, step=step)
    assert gauge.read() is None  # nothing to compare with yet
    begun = gauge.last[1]
    writer.log({"tokens": 1000}, step=3)
    writer.log({"tokens": 500.5}, step=4)
    step, found = gauge.read()
    seconds = (gauge.last[1] - begun) / 1e9
    assert step == 4
    assert found["perf/tokens_per_second"] == pytest.approx(1500.5 / seconds)
    assert found["perf/steps_per_second"] == pytest.approx(2 / seconds)
    assert gauge.read() is None
    writer.log({"tokens": 1}, step=0)  # the program went back: no rate over that
    assert gauge.read() is None
    writer.finish({"state": "finished", "exit_code": 0, "signal": None, "error": None})


def test_a_runs_system_metrics_reach_the_server_with_gpus_and_ranks(shop: Shop, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the sender, run here; NVML alone is stood in for, in the place of the module pynvml: no GPU is at hand."""
    monkeypatch.setitem(sys.modules, "pynvml", Nvml(2))
    monkeypatch.setattr(limits, "SAMPLE_SECONDS", 0.3)
    training = shop.start(
        """
        import os, time, sdk
        sdk.init(project="p")
        sdk.log({"loss": 0.5}, step=0)
        while not os.path.exists("enough"):
            time.sleep(0.05)
        """,
        server,
        CUDA_VISIBLE_DEVICES="1",
        ENCORE_SENDER="external",
        ENCORE_CONSOLE="0",
    )
    folder = until(lambda: next((path.parent for path in shop.writers()), None))
    sender = RunSender(folder, server.url, "secret-token-of-ada", capture=False, sample=True)
    seen = lambda key: server.points(f"system/{key}", kind="node")  # noqa: E731
    wanted = ("gpu.1/power_watts", "gpu.0/sm_clock_mhz", "process_memory_bytes", "cpu_percent", "energy_kwh", "disk_free_bytes")
    assert until(lambda: (sender.step(), all(len(seen(key)) > 1 for key in wanted))[1])
    (shop.work / "enough").touch()
    assert training.wait(120) == 0
    assert until(lambda: (sender.step(), sender.done)[1])
    assert seen("gpu.1/power_watts")[0] == (0, 300.0)
    assert [step for step, _ in seen("cpu_percent")] == list(range(len(seen("cpu_percent"))))
    assert sender.node._sampler.boards.ours == [1]
    assert json.loads((folder / "energy.json").read_text())["meters"].keys() == {"GPU-a0", "GPU-b1"}
    assert seen("process_memory_bytes")[0][1] > 1 << 20
