"""Values on a GPU: log() reads them together, log_later() does not wait for them. The GPU is a stand-in (gpu.py): none is at hand."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import gpu  # noqa: E402 - behind the skip: it is made of torch
from test_journal import everything, points, writer  # noqa: E402

from sdk import _later, _wire  # noqa: E402
from sdk.errors import ValueRefused  # noqa: E402


@pytest.fixture
def device(monkeypatch) -> gpu.Device:
    return gpu.install(monkeypatch)


def on_gpu(value, dtype=torch.float32, **more) -> gpu.Tensor:
    return gpu.Tensor(torch.tensor(value, dtype=dtype, **more))


def test_one_device_value_costs_one_reading(tmp_path: Path, device) -> None:
    """What reading one scalar must cost, and nothing more."""
    log = writer(tmp_path)
    log.log({"loss": on_gpu(0.5), "lr": 0.1})
    assert points(log.folder) == [(0, "loss", 0.5), (0, "lr", 0.1)]
    assert device.transfers == ["aten._local_scalar_dense.default"]


def test_many_device_values_of_a_call_come_in_one_transfer(tmp_path: Path, device) -> None:
    """Twenty losses: stacked on the device, one transfer; one more for another dtype. Values, order and types are as given."""
    log = writer(tmp_path)
    data = {f"loss/{i}": on_gpu(i / 8, requires_grad=i % 2 == 0) for i in range(20)}
    data |= {"lr": 0.1, "tokens": on_gpu(2**62 + 1, torch.int64), "seen": on_gpu([7], torch.int64), "cpu": torch.tensor(2.5)}
    log.log(data, 3)
    assert points(log.folder) == [
        *[(3, f"loss/{i}", i / 8) for i in range(20)],
        (3, "lr", 0.1),
        (3, "tokens", 2**62 + 1),
        (3, "seen", 7),
        (3, "cpu", 2.5),
    ]
    assert len(device.transfers) == 2
    assert log.dropped == {}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64", "float8_e4m3fn", "float8_e5m2", "bool", "int8", "uint8"])
def test_every_dtype_comes_exactly(tmp_path: Path, device, dtype: str) -> None:
    """Two of each: stacked where torch can, else one by one; never lost."""
    kind = getattr(torch, dtype, None)
    if kind is None:
        pytest.skip(f"this torch has no {dtype}")
    values = {"a": torch.tensor(1.0).to(kind), "b": torch.tensor(0.0).to(kind)}
    log = writer(tmp_path)
    log.log({key: gpu.Tensor(value) for key, value in values.items()})
    log.log(values)
    assert [value for _, _, value in points(log.folder)] == [1, 0, 1, 0]
    assert log.dropped == {}


def test_tensors_that_are_no_numbers_are_refused_by_shape(tmp_path: Path, device) -> None:
    """A whole layer, on the device or not, and one without data."""
    log = writer(tmp_path)
    log.log({"w": on_gpu([1.0, 2.0]), "v": torch.zeros(2, 3), "m": torch.empty((), device="meta"), "ok": 1.0})
    assert [key for _, key, _ in points(log.folder)] == ["ok"]
    assert sorted(log.dropped.values()) == [1, 1, 1]
    assert any("of shape (2, 3)" in reason for reason in log.dropped)
    assert device.transfers == []


def test_nothing_is_read_while_a_graph_is_captured(tmp_path: Path, device, monkeypatch) -> None:
    """Reading inside a CUDA graph's capture would break the capture: refused, counted, said."""
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    log = writer(tmp_path)
    log.log({"loss": on_gpu(0.5), "lr": 0.1})
    _later.log_later(log, {"loss": on_gpu(0.5), "lr": 0.1})
    assert [key for _, key, _ in points(log.folder)] == ["lr", "lr"]
    assert log.dropped == {"value of a CUDA graph under capture is no number": 2}
    assert device.transfers == []


def test_a_later_value_is_not_waited_for_and_keeps_its_step_and_time(tmp_path: Path, device) -> None:
    """log_later() starts one copy into pinned memory; a later log() writes the record once the copy is there."""
    log = writer(tmp_path)
    loss = on_gpu(0.25)
    _later.log_later(log, {"loss": loss, "acc": on_gpu(0.75), "lr": 0.1}, step=7)
    assert (device.transfers, device.pinned) == (["aten.copy_.default"], 1)
    log.log({"a": 1.0})
    log.log({"a": 2.0})
    assert [(step, key) for step, key, _ in points(log.folder)] == [(8, "a"), (9, "a")]
    device.run()
    log.log({"a": 3.0})
    log.log({"a": 4.0})
    assert points(log.folder) == [
        (8, "a", 1.0),
        (9, "a", 2.0),
        (10, "a", 3.0),
        *[(7, "loss", 0.25), (7, "acc", 0.75), (7, "lr", 0.1)],
        (11, "a", 4.0),
    ]
    times = {(step, key): time for batch in everything(log.folder) for _, key, step, time, _ in _wire.points(batch)}
    assert times[7, "loss"] <= times[8, "a"]
    assert device.transfers == ["aten.copy_.default"], "nothing was read in any other way"


def test_later_calls_are_written_in_their_order(tmp_path: Path, device) -> None:
    """Also when a call without device values stands between, and whatever arrives first."""
    log = writer(tmp_path)
    _later.log_later(log, {"x": on_gpu(0.0)})
    changing = torch.tensor(1.0)
    _later.log_later(log, {"x": changing})
    changing.fill_(9.0)
    _later.log_later(log, {"x": on_gpu(2.0)})
    device.run(1)
    log.drain()
    assert [value for _, _, value in points(log.folder)] == [0.0, 1.0]
    device.run()
    log.drain()
    assert [(step, value) for step, _, value in points(log.folder)] == [(0, 0.0), (1, 1.0), (2, 2.0)]


def test_numbers_and_cpu_tensors_go_at_once(tmp_path: Path, device) -> None:
    """With nothing on a device log_later() is log()."""
    log = writer(tmp_path)
    _later.log_later(log, {"a": 1, "b": torch.tensor(2.5), "n": {"c": True}, "s": "text"})
    assert points(log.folder) == [(0, "a", 1), (0, "b", 2.5), (0, "n/c", 1)]
    assert log.dropped == {"str is no number": 1}
    assert not log.waiting


def test_finish_waits_for_what_comes_and_counts_what_does_not(tmp_path: Path, device, monkeypatch) -> None:
    """A device that hangs holds up the end for a bounded time; what it still owes is a counted loss."""
    monkeypatch.setattr(_later, "FINISH_SECONDS", 0.05)
    log = writer(tmp_path)
    _later.log_later(log, {"x": on_gpu(1.0)})
    device.run()
    _later.log_later(log, {"x": on_gpu(2.0), "y": on_gpu(2.0)})
    log.finish({"state": "finished"})
    assert [value for _, _, value in points(log.folder)] == [1.0]
    (finish,) = [doc["doc"]["data"] for batch in everything(log.folder) for doc in batch["docs"] if doc["doc"]["name"] == "finish"]
    assert finish["dropped"] == {"device values did not come": 2}


def test_it_never_grows_without_bound(tmp_path: Path, device, monkeypatch) -> None:
    """A thousand calls wait at most; more are dropped and counted, and logging goes on."""
    monkeypatch.setattr(_later, "MAX_WAITING", 10)
    log = writer(tmp_path)
    for i in range(25):
        _later.log_later(log, {"x": on_gpu(float(i))}, i)
    assert len(log.waiting) == 10
    device.run()
    log.drain()
    assert [value for _, _, value in points(log.folder)] == [float(i) for i in range(10)]
    assert log.dropped == {"too many device values wait": 15}


def test_a_device_that_fails_costs_its_values_alone(tmp_path: Path, device) -> None:
    """A device-side assert shows at whatever is asked next: not in log(), which drops and counts."""
    log = writer(tmp_path)
    _later.log_later(log, {"x": on_gpu(1.0)})
    device.broken = True
    log.log({"y": 1.0})
    assert [key for _, key, _ in points(log.folder)] == ["y"]
    assert log.dropped == {"device values could not be read": 1}


def test_a_wrong_step_is_refused_as_by_log(tmp_path: Path, device) -> None:
    log = writer(tmp_path)
    _later.log_later(log, {"x": on_gpu(1.0)}, step=0.5)
    assert not log.waiting
    assert log.dropped == {"step is no int": 1}
    strict = writer(tmp_path, strict=True)
    with pytest.raises(ValueRefused):
        _later.log_later(strict, {"x": on_gpu(1.0)}, step="7")


def test_a_forked_child_takes_nothing_of_it_along(tmp_path: Path, device) -> None:
    """CUDA does not work after a fork: what waits is the parent's alone."""
    log = writer(tmp_path / "a")
    _later.log_later(log, {"x": on_gpu(1.0)})
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            child = writer(tmp_path / "b")
            log.abandon(child.log, child.emit)
            code = 0 if not log.waiting and not child.waiting else 1
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    device.run()
    log.drain()
    assert [value for _, _, value in points(log.folder)] == [1.0]


class Array:
    """As jax's: computed on its own time."""

    ready = False
    started = 0

    def __init__(self, value: float) -> None:
        self.value = value

    def copy_to_host_async(self) -> None:
        self.started += 1

    def is_ready(self) -> bool:
        return self.ready

    def item(self) -> float:
        assert self.ready, "read before it was there"
        return self.value


def test_jax_arrays_wait_too(tmp_path: Path, device) -> None:
    """By what jax's arrays can do (copy_to_host_async, is_ready): a stand-in, jax is not installed here."""
    log = writer(tmp_path)
    array = Array(1.5)
    _later.log_later(log, {"x": array, "y": 2.0})
    log.log({"z": 1.0})
    assert array.started == 1
    assert [key for _, key, _ in points(log.folder)] == ["z"]
    array.ready = True
    log.drain()
    assert points(log.folder)[1:] == [(0, "x", 1.5), (0, "y", 2.0)]
