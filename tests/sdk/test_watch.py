"""sdk.watch: norms are the model's own, the global norm is right when the model is spread over ranks, and training never waits."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Shop, until
from server import Server

import sdk
from sdk import _wire
from sdk._reader import Reader


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("ENCORE_HOME", str(tmp_path))
    monkeypatch.setenv("ENCORE_MODE", "offline")
    monkeypatch.setenv("ENCORE_CONSOLE", "0")
    started = sdk.init(project="watch")
    yield started
    started.finish()


def logged(run: Any) -> tuple[dict[str, list[tuple[int, float]]], list[tuple[int, dict[str, Any]]]]:
    """(key -> [(step, value)], documents with their steps) of the run's journal."""
    reader, points, docs = Reader(run.writer.folder), {}, []
    while (chunk := reader.read()) is not None:
        docs += [(step, doc) for _, step, _, doc in chunk.docs]
        body, _ = _wire.encode(run.id, run.writer.id, chunk, set())
        for _, key, step, _, value in _wire.points(_wire.decode(body, {})):
            points.setdefault(key, []).append((step, value))
    return points, docs


def model_of(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))


def norm_of(tensors: list[torch.Tensor]) -> float:
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors))


def test_norms_are_those_of_the_gradients_at_the_step_that_logs_them(run: Any) -> None:
    model = model_of()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    other = torch.optim.SGD(torch.nn.Linear(2, 2).parameters(), lr=0.1)
    sdk.watch(model, log="all", log_freq=2)
    expected: dict[int, float] = {}
    each: dict[int, float] = {}
    for step in range(6):
        model(torch.randn(4, 6)).square().sum().backward()
        expected[step] = norm_of([parameter.grad for parameter in model.parameters()])
        each[step] = norm_of([model[0].weight.grad])
        optimizer.step()
        other.step()  # somebody else's optimizer: none of our steps
        optimizer.zero_grad()
        sdk.log({"loss": 1.0}, step=step)
    run.finish()
    points, docs = logged(run)
    assert [step for step, _ in points["gradients/global_norm"]] == [0, 2, 4]
    for step, value in points["gradients/global_norm"]:
        assert value == pytest.approx(expected[step], rel=1e-5)
    for step, value in points["gradients/0.weight"]:
        assert value == pytest.approx(each[step], rel=1e-5)
    assert [step for step, _ in points["loss"]] == list(range(6))
    assert len(points["parameters/2.bias"]) == 3
    meanings = {doc["pattern"]: doc["reduce"] for _, doc in docs if doc["type"] == "define"}
    assert meanings == {"gradients/*": "mean", "parameters/*": "mean"}


def test_watching_changes_nothing_of_the_training(run: Any) -> None:
    """Same weights, bit for bit, with and without; the random state is untouched."""

    def train(watched: bool) -> list[torch.Tensor]:
        model = model_of(3)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        if watched:
            sdk.watch(model, log="all", log_freq=1, histograms=True)
        for step in range(5):
            model(torch.randn(4, 6)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            sdk.log({"loss": 1.0}, step=step)
        return [*(parameter.detach() for parameter in model.parameters()), torch.rand(2)]

    assert all(torch.equal(one, other) for one, other in zip(train(True), train(False), strict=True))


def test_histograms_count_every_value_and_those_that_are_not_finite(run: Any) -> None:
    model = model_of()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    sdk.watch(model, log_freq=1, histograms=True, bins=8)
    model(torch.randn(4, 6)).square().sum().backward()
    model[0].weight.grad[0, 0] = math.nan
    expected = torch.histc(model[2].weight.grad, 8)
    optimizer.step()
    sdk.log({"loss": 1.0}, step=3)
    run.finish()
    points, docs = logged(run)
    found = {doc["key"]: (step, doc["meta"]) for step, doc in docs if doc["type"] == "media"}
    step, meta = found["gradients/0.weight"]
    assert (step, meta["n"], meta["not_finite"], sum(meta["counts"])) == (3, 48, 1, 47)
    assert found["gradients/2.weight"][1]["counts"] == [int(count) for count in expected]
    assert math.isnan(points["gradients/global_norm"][0][1])


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_norms_of_half_precision_are_summed_in_full(run: Any, kind: torch.dtype) -> None:
    model = torch.nn.Linear(100, 100, bias=False).to(kind)
    model.weight.grad = torch.full_like(model.weight, 0.01)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    sdk.watch(model, log_freq=1)
    optimizer.step()
    sdk.log({"loss": 1.0})
    run.finish()
    assert logged(run)[0]["gradients/global_norm"][0][1] == pytest.approx(norm_of([model.weight.grad]), rel=1e-4)


def test_a_failure_inside_ends_the_watch_and_not_the_training(run: Any, capfd: pytest.CaptureFixture[str]) -> None:
    model = model_of()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = sdk.watch(model, log_freq=1)

    def broken(tensors: Any) -> Any:
        raise RuntimeError("CUDA error: something")

    watch._norms = broken
    for step in range(3):
        model(torch.randn(4, 6)).square().sum().backward()
        optimizer.step()
        sdk.log({"loss": 1.0}, step=step)
    assert capfd.readouterr().err.count("watch() stopped: RuntimeError: CUDA error") == 1
    assert watch.handle is None


def test_stop_and_finish_let_go_of_the_hook(run: Any) -> None:
    from torch.optim.optimizer import _global_optimizer_pre_hooks as hooks

    before = len(hooks)
    watch = sdk.watch(model_of())
    assert len(hooks) == before + 1
    watch.stop()
    assert len(hooks) == before
    sdk.watch(model_of())
    run.finish()
    assert len(hooks) == before


SHARDED = """
import sys, torch, sdk
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
torch.manual_seed(5)
data = torch.randn(world * 4, 6)
sdk.init(project="p")
for turn, (how, who) in enumerate([("fsdp", "all"), ("ddp", "all"), ("fsdp", "one")]):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 7), torch.nn.Tanh(), torch.nn.Linear(7, 3))
    if how == "fsdp":
        mesh = init_device_mesh("cpu", (world,))
        for part in (model[0], model[2], model):
            fully_shard(part, mesh=mesh)
    else:
        model = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = sdk.watch(model, log="all", log_freq=1, prefix=f"{how}-{who}/") if who == "all" or rank == 0 else None
    for step in range(3):
        model(data[rank * 4 : rank * 4 + 4]).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        sdk.log({"loss": 0.5}, step=10 * turn + step)
    if watch:
        watch.stop()
sdk.finish()
dist.destroy_process_group()
"""


def whole() -> dict[int, dict[str, float]]:
    """The same training in one process: the norms that all ranks together must come to."""
    torch.manual_seed(5)
    data = torch.randn(8, 6)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 7), torch.nn.Tanh(), torch.nn.Linear(7, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = {}
    for step in range(3):
        model(data).square().mean().backward()
        found[step] = {
            "gradients/global_norm": norm_of([parameter.grad for parameter in model.parameters()]),
            "gradients/0.weight": norm_of([model[0].weight.grad]),
            "parameters/global_norm": norm_of([parameter.detach() for parameter in model.parameters()]),
        }
        optimizer.step()
        optimizer.zero_grad()
    return found


def test_the_global_norm_is_the_whole_models_under_fsdp_and_ddp_and_no_collective_is_run(shop: Shop, server: Server) -> None:
    """Sharded by FSDP each rank logs the norm of its shards: the root of the summed squares, which is what "norm" reduces by, is that of
    the whole. Under DDP every rank has it. Where one rank alone watches, both would hang if watching spoke to the other."""
    (shop.work / "sharded.py").write_text(SHARDED)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "sharded.py"]
    environment = shop.environment(server, OMP_NUM_THREADS="1")
    done = subprocess.run(command, cwd=shop.work, env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stdout + done.stderr
    assert until(lambda: len(server.points("fsdp-one/gradients/global_norm")) == 3)
    assert until(lambda: len(server.points("ddp-all/parameters/global_norm")) == 6)
    meanings = {doc["pattern"]: doc["reduce"] for doc in server.docs("define")}
    assert (meanings["fsdp-all/gradients/*"], meanings["ddp-all/gradients/*"]) == ("norm", "mean")
    for step, norms in whole().items():
        for key, expected in norms.items():
            parts = [value for at, value in server.points(f"fsdp-all/{key}") if at == step]
            assert len(parts) == 2
            assert math.sqrt(sum(part * part for part in parts)) == pytest.approx(expected, rel=1e-4)
        both = [value for at, value in server.points("ddp-all/gradients/global_norm") if at == 10 + step]
        assert both == [pytest.approx(norms["gradients/global_norm"], rel=1e-4)] * 2
