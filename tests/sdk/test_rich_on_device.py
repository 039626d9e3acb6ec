"""Images and norms of a GPU's tensors: nothing of ours waits for the device. The GPU is stood in for (gpu.py): none is at hand."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gpu
import numpy as np
import pytest
import torch
from test_media import encoded, pixels
from test_watch import logged, run  # noqa: F401 - a fixture

import sdk


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> gpu.Device:
    found = gpu.install(monkeypatch)
    monkeypatch.setattr(gpu.Event, "synchronize", lambda self: found.calls.append("synchronize") or found.run(), raising=False)
    return found


def test_an_image_of_a_gpu_is_cloned_there_and_read_only_where_it_is_encoded(device: gpu.Device) -> None:
    source = torch.rand(3, 4, 5)
    value = sdk.Image(gpu.Tensor(source))
    assert any(call.startswith("aten.clone") for call in device.calls)
    assert device.transfers == []
    assert "synchronize" not in device.calls
    _, data = encoded(value)
    assert np.abs(pixels(data) - source.permute(1, 2, 0).numpy() * 255).max() <= 0.5
    order = [call for call in device.calls if call == "synchronize" or call.startswith("aten._to_copy")]
    assert order[0] == "synchronize"  # the copy to the CPU comes behind the event, whichever stream made the tensor
    assert len(order) == 2


def test_a_tensor_under_graph_capture_is_refused_and_the_capture_goes_on(device: gpu.Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    value = sdk.Image(gpu.Tensor(torch.rand(4, 4)))
    assert "capture" in str(value.problem)
    assert device.calls == ["aten.detach.default"]  # a view: no kernel


class Model:
    """Parameters whose gradients lie on the device."""

    def __init__(self, gradients: list[torch.Tensor]) -> None:
        self.parameters = [SimpleNamespace(grad=gpu.Tensor(gradient)) for gradient in gradients]

    def named_parameters(self) -> Any:
        return [(f"w{at}", parameter) for at, parameter in enumerate(self.parameters)]

    def modules(self) -> list[Any]:
        return []


@pytest.mark.parametrize("histograms", [False, True], ids=["norms", "histograms"])
def test_norms_are_copied_once_without_waiting_and_logged_when_they_have_come(run: Any, device: gpu.Device, histograms: bool) -> None:  # noqa: F811
    gradients = [torch.randn(6, 7), torch.randn(9)]
    watch = sdk.watch(Model(gradients), log_freq=1, histograms=histograms, bins=4)
    watch.step()
    assert device.transfers == ["aten.copy_.default"]  # all in one, and nothing was read back on the way
    assert (device.pinned, len(device.queue)) == (1, 1)
    sdk.log({"loss": 1.0}, step=0)
    watch.step()
    assert len(watch.waiting) == 2  # the device has not come to it: nobody waits
    device.run()
    sdk.log({"loss": 1.0}, step=1)
    watch.step()
    assert len(watch.waiting) == 1
    watch.stop()
    run.finish()
    points, docs = logged(run)
    norm = torch.cat([gradient.flatten() for gradient in gradients]).norm().item()
    assert points["gradients/global_norm"][0][1] == pytest.approx(norm, rel=1e-5)
    found = [doc["meta"]["counts"] for _, doc in docs if doc["type"] == "media" and doc["key"] == "gradients/w1"]
    assert (found[0] == torch.histc(gradients[1], 4).int().tolist()) if histograms else found == []


def test_a_device_that_fails_ends_the_watch_alone(run: Any, device: gpu.Device, capfd: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    watch = sdk.watch(Model([torch.randn(3)]), log_freq=1)
    watch.step()
    device.broken = True
    watch.step()
    assert watch.handle is None
    assert "watch() stopped: RuntimeError: CUDA error" in capfd.readouterr().err
    assert Path(run.writer.folder).exists()
