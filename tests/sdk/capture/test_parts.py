"""Parts of the capture that a whole run cannot show on every machine."""

# ruff: noqa: E501 - tables read best with a row a line

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sdk import _capture
from sdk._capture import data, digests, environ, environment, hardware, hook, launcher, node, numerics, system, wheel

from .fake import Fake


class Nvml:
    """NVML's functions as the driver's library offers them, for a machine with two boards; the second lacks a power sensor."""

    NVML_TEMPERATURE_GPU = 0

    def __init__(self) -> None:
        self.open = 0

    def nvmlInit(self) -> None:
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlSystemGetDriverVersion(self) -> bytes:
        return b"550.1"

    def nvmlSystemGetCudaDriverVersion(self) -> int:
        return 12040

    def nvmlDeviceGetName(self, device: int) -> str:
        return "Board 80GB"

    def nvmlDeviceGetUUID(self, device: int) -> str:
        return f"GPU-{device}"

    def nvmlDeviceGetMemoryInfo(self, device: int) -> Any:
        return SimpleNamespace(total=80 << 30, used=(device + 1) << 30)

    def nvmlDeviceGetCudaComputeCapability(self, device: int) -> tuple[int, int]:
        return 9, 0

    def nvmlDeviceGetUtilizationRates(self, device: int) -> Any:
        return SimpleNamespace(gpu=50 + device)

    def nvmlDeviceGetPowerUsage(self, device: int) -> int:
        if device == 1:
            raise RuntimeError("Not Supported")
        return 300_000

    def nvmlDeviceGetTemperature(self, device: int, sensor: int) -> int:
        return 60


def test_boards_are_named_through_nvml() -> None:
    """Model, uuid, memory, driver and compute capability of each GPU are in the hardware section (NVML stood in for)."""
    nvml = Nvml()
    value = hardware.facts(nvml)
    assert value["gpus"][1] == {"model": "Board 80GB", "uuid": "GPU-1", "memory_bytes": 80 << 30, "driver": "550.1", "compute": "9.0"}
    assert value["driver_cuda"] == "12.4"
    assert nvml.open == 0


def test_samples_of_boards_leave_out_what_they_cannot_say() -> None:
    """Utilisation, memory, power and temperature of each GPU are sampled; a missing sensor is left out (NVML stood in for)."""
    sample = system.Sampler(nvml=Nvml()).sample()
    assert sample["system/gpu.0/utilization_percent"] == 50
    assert sample["system/gpu.1/memory_bytes"] == 2 << 30
    assert sample["system/gpu.0/power_watts"] == 300
    assert "system/gpu.1/power_watts" not in sample
    assert sample["system/gpu.1/temperature_celsius"] == 60


def test_samples_of_the_host_and_of_a_trainer() -> None:
    """CPU, memory, disk and network of the host and the trainer's CPU and memory are numbers; a vanished trainer is left out."""
    sampler = system.Sampler([os.getpid()])
    sampler.sample()
    sample = sampler.sample()
    assert {
        "system/cpu_percent",
        "system/memory_bytes",
        "system/memory_percent",
        "system/process_memory_bytes",
        "system/process_cpu_percent",
    } <= set(sample)
    assert all(isinstance(value, float) for value in sample.values())
    assert sample["system/process_memory_bytes"] > 1 << 20
    sampler.pids = [2**22 + 1]
    assert "system/process_memory_bytes" not in sampler.sample()


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["/venv/bin/python", "/venv/bin/torchrun", "--nproc-per-node=4", "--nnodes", "2", "train.py", "--n", "9"], ("torchrun", 4, 2)),
        (["python", "-m", "torch.distributed.run", "--nproc_per_node", "8", "train.py"], ("torchrun", 8, 1)),
        (["python3.11", "/bin/accelerate", "launch", "--num_processes", "4", "--num_machines", "2", "train.py"], ("accelerate", 2, 2)),
        (["mpirun", "-np", "4", "python", "train.py"], ("mpi", 4, 1)),
        (["srun", "--ntasks-per-node=2", "-N", "3", "python", "train.py"], ("slurm", 2, 3)),
        (["python", "/bin/deepspeed", "--num_gpus", "2", "train.py"], ("deepspeed", 2, 1)),
        (["bash", "-c", "torchrun x"], None),
        (["python", "train.py", "torchrun"], None),
        (["vim", "torchrun"], None),
    ],
)
def test_launchers_are_known_by_their_command_line(argv: list[str], expected: Any) -> None:
    """The launcher, its ranks a node and its nodes are read from the parent's command line; other parents are none."""
    tree = {10: (9, ["python", "train.py"]), 9: (8, ["sh"]), 8: (1, argv)}
    found = launcher.facts(10, {}, tree.get)
    assert (found and (found["kind"], found["nproc_per_node"], found["nnodes"])) == expected


def test_a_launcher_that_is_gone_is_known_by_its_environment() -> None:
    """When the parent cannot be seen (another namespace), the variables it set still tell."""
    found = launcher.facts(10, {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "3"}, {}.get)
    assert found == {"kind": "torchrun", "argv": None, "nproc_per_node": 2, "nnodes": 3}


def test_containers_and_conda(tmp_path: Path) -> None:
    """A container is known by its marks and named by its environment; a conda environment lists its packages."""
    assert environment.container(str(tmp_path), {}) is None
    (tmp_path / ".dockerenv").touch()
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/docker/" + "ab" * 32 + "\n")
    found = environment.container(str(tmp_path), {"ENCORE_IMAGE": "train:3", "ENCORE_IMAGE_DIGEST": "sha256:1"})
    assert found == {"kind": "docker", "id": "ab" * 32, "image": "train:3", "digest": "sha256:1"}
    assert environment.conda(str(tmp_path), {}) is None
    (tmp_path / "conda-meta").mkdir()
    (tmp_path / "conda-meta" / "blas.json").write_text(
        json.dumps({"name": "blas", "version": "1", "build": "mkl", "channel": "https://conda.example.com/t/x"})
    )
    assert environment.conda(str(tmp_path), {"CONDA_DEFAULT_ENV": "lab"})["name"] == "lab"
    assert environment.conda(str(tmp_path), {})["packages"][0]["build"] == "mkl"


def test_the_wheel_is_the_same_bytes_each_time() -> None:
    """Two builds of the SDK's wheel are equal, so equal SDKs are stored once."""
    assert wheel.build() == wheel.build()


def _fingerprints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **more: Any) -> tuple[Fake, data.Fingerprints]:
    monkeypatch.setenv("ENCORE_HOME", str(tmp_path / "encore"))
    fake = Fake(tmp_path / "writer")
    return fake, data.Fingerprints(
        fake.emit, fake.put_blob, {"format": 1, "root": str(tmp_path / "root"), "started_us": int(time.time() * 1e6) + 10**9, **more}
    )


def test_a_file_is_fingerprinted_once_and_large_ones_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often a file is opened it is listed once; a large unchanged file is not hashed again by the next run; a changed one is."""
    large = tmp_path / "large.bin"
    large.write_bytes(os.urandom(2 << 20))
    monkeypatch.setenv("ENCORE_STORE_LIMIT", "1000")
    found = []
    for _ in range(3):
        fake, fingerprints = _fingerprints(tmp_path, monkeypatch)
        for _ in range(5):
            fingerprints.opened(str(large), "r", "open")
        assert fingerprints.flush(None)
        [value] = fake.recipe()["data"]["inputs"]
        found.append(value)
        assert value["stored"] is False
        monkeypatch.setattr(digests, "of_file", lambda *a: pytest.fail("hashed again"))
    assert len({each["digest"] for each in found}) == 1
    monkeypatch.undo()
    content = bytearray(large.read_bytes())
    content[7] ^= 1
    large.write_bytes(content)
    fake, fingerprints = _fingerprints(tmp_path, monkeypatch)
    fingerprints.opened(str(large), "r", "open")
    fingerprints.flush(None)
    assert fake.recipe()["data"]["inputs"][0]["digest"] != found[0]["digest"]


def test_huge_files_are_sampled_and_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the full limit first, last and spread samples are hashed: a change there is seen, and the strength says `sampled`."""
    huge = tmp_path / "huge.bin"
    huge.write_bytes(b"a" * (1 << 20))
    monkeypatch.setattr(digests, "FULL_BYTES", 1 << 19)
    monkeypatch.setattr(digests, "SAMPLE_BYTES", 1024)
    monkeypatch.setenv("ENCORE_STORE_LIMIT", "1000")
    seen = []
    for change in (None, 0, (1 << 20) - 1):
        if change is not None:
            content = bytearray(huge.read_bytes())
            content[change] ^= 1
            huge.write_bytes(content)
        fake, fingerprints = _fingerprints(tmp_path, monkeypatch)
        fingerprints.opened(str(huge), "r", "open")
        fingerprints.flush(None)
        [value] = fake.recipe()["data"]["inputs"]
        seen.append(value["digest"])
        assert value["strength"] == "sampled"
        assert fake.recipe()["data"]["gaps"]
    assert len(set(seen)) == 3


def test_declared_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A declared file keeps its name, a folder becomes a manifest, an address is kept by name, a missing path is a gap."""
    folder = tmp_path / "set"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.txt").write_text("a")
    (folder / "deep" / "b.txt").write_text("b")
    fake, fingerprints = _fingerprints(tmp_path, monkeypatch)
    for path, name in ((str(folder), "set"), (str(folder / "a.txt"), "a"), ("s3://bucket/x", "far"), (str(tmp_path / "none"), "none")):
        fingerprints.declare(path, name)
    fingerprints.flush(None)
    section = fake.recipe()["data"]
    found = {each["name"]: each for each in section["inputs"]}
    assert {name: each["strength"] for name, each in found.items()} == {"set": "manifest", "a": "full", "far": "path", "none": "path"}
    assert [each["path"] for each in json.loads(fake.blobs[found["set"]["digest"]])["files"]] == ["a.txt", "deep/b.txt"]
    assert [each["what"] for each in section["gaps"]] == [str(tmp_path / "none")]


def test_one_writer_has_one_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who comes second for a writer gets the first one's object: journal and /proc do not list a file twice."""
    fake, first = _fingerprints(tmp_path, monkeypatch)
    assert data.Fingerprints(fake.emit, fake.put_blob) is first
    assert data.Fingerprints(lambda doc: fake.emit(doc), fake.put_blob) is first, "the sender listens to what the capture tells"
    other = Fake(tmp_path / "other")
    assert data.Fingerprints(other.emit, other.put_blob) is not first


def test_a_failing_section_is_a_gap_and_never_an_exception(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each section of the trainer's side fails by itself: the others are told, the error is named, begin returns."""

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("boom with hf_" + "a" * 34)

    monkeypatch.setattr(_capture.command, "facts", fail)
    monkeypatch.setattr(_capture.numerics, "determinism", fail)
    fake = Fake(tmp_path / "run" / "writer")
    _capture.begin(fake)
    _capture.complete(fake)
    recipe = fake.recipe()
    assert recipe["command"]["gaps"][0]["what"] == "command"
    assert recipe["hyper"]["flags"] is not None
    assert any(each.startswith("command: RuntimeError: boom") and "hf_" not in each for each in recipe["sdk"]["errors"])


def test_a_failing_sender_side_is_a_gap_and_never_an_exception(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nonsense in capture.json, a store that fails: the sender's side ends in order and says what is missing."""
    stop = threading.Event()
    stop.set()
    fake = Fake(tmp_path / "writer")

    def full(content: Any) -> str:
        raise OSError(28, "No space left on device")

    node.run(
        fake.folder, {"rank": 0, "cwd": "/nowhere", "root": 7, "sys_path": None, "entry": None, "modules": None}, fake.emit, full, stop
    )
    recipe = fake.recipe()
    assert recipe["source"]["gaps"]
    assert recipe["environment"]["gaps"]
    assert any("No space left" in each or "root" in each or "TypeError" in each for each in recipe["sdk"]["errors"])


def test_a_writer_that_fails_does_not_fail_begin(tmp_path: Path) -> None:
    """Even a journal that refuses everything leaves init standing."""

    class Broken(Fake):
        def emit(self, doc: dict[str, Any], step: int | None = None) -> None:
            raise OSError("disk full")

    broken = Broken(tmp_path / "run" / "writer")
    _capture.begin(broken)
    _capture.complete(broken)


def test_only_rank_zero_tells_what_all_ranks_share(tmp_path: Path) -> None:
    """Another rank tells its random state alone."""
    fake = Fake(tmp_path / "run" / "writer", rank=3)
    _capture.begin(fake)
    _capture.complete(fake)
    sections = [doc["section"] for doc in fake.docs if doc["type"] == "recipe"]
    assert sections == ["numerics"]
    assert list(fake.recipe()["numerics"]) == ["rng"]
    assert list(fake.recipe()["numerics"]["rng"]) == ["3"]


def test_seed_sets_every_generator_that_is_loaded() -> None:
    """sdk.seed gives the same numbers from random, NumPy and torch, and is remembered."""
    import random

    import numpy
    import torch

    drawn = []
    for _ in range(2):
        assert numerics.seed(1234) == 1234
        drawn.append((random.random(), float(numpy.random.rand()), float(torch.rand(1))))
    assert drawn[0] == drawn[1]
    assert numerics.seeds([]) | {"torch_is_default": None} == {"random": 1234, "numpy": 1234, "torch": 1234, "torch_is_default": None}


def test_argparse_is_heard_however_late_it_is_imported(tmp_path: Path) -> None:
    """argparse imported after the SDK is patched when it comes; parse_args gives what it gave before."""
    import subprocess

    program = (
        "import sys; assert 'argparse' not in sys.modules\nfrom sdk import _capture\nfrom sdk._capture import hyper\nhyper.install()\n"
        "import argparse\np = argparse.ArgumentParser(); p.add_argument('--lr', type=float); a, rest = p.parse_known_args(['--lr', '0.5', 'more'])\n"
        "assert (a.lr, rest) == (0.5, ['more']); assert hyper.facts(['x', '--lr', '0.5'])['argparse'] == {'lr': 0.5}"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[3], capture_output=True, text=True, check=False)
    if "'argparse' not in sys.modules" in done.stderr:
        pytest.skip("this interpreter loads argparse at start")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--lr", "0.1", "--epochs=3", "--amp", "-v", "pos", "--no-x"], {"lr": 0.1, "epochs": 3, "amp": True, "v": "pos", "no-x": True}),
        (["model.layers=12", "+new=x", "lr=-1e-3"], {"model.layers": 12, "new": "x", "lr": -0.001}),
        (["--x", "1", "--x", "2", "--y=-5", "--flag", "true"], {"x": [1, 2], "y": -5, "flag": True}),
        (["--", "--not", "1"], {}),
    ],
)
def test_flags_of_a_command_line(argv: list[str], expected: dict[str, Any]) -> None:
    """Flags become names and values of their kind, without a parser's help."""
    assert _capture.hyper.flags(argv) == expected


@pytest.mark.parametrize(
    ("orig", "expected"),
    [
        (["python", "t.py", "-c"], ([], ["-c"], "script")),
        (["python", "-OW", "ignore", "-X", "utf8", "-m", "pkg", "a"], (["-OW", "ignore", "-X", "utf8"], ["a"], "-m")),
        (["python", "-Ic", "print()", "a"], (["-I"], ["a"], "-c")),
        (["python", "-mpkg", "a"], ([], ["a"], "-m")),
        (["python", "-"], ([], [], "-")),
        (["python"], ([], [], "-")),
    ],
)
def test_the_interpreters_own_options_are_told_from_the_programs(orig: list[str], expected: Any) -> None:
    """Interpreter options end where the program begins."""
    assert _capture.command.split_orig_argv(orig) == expected


def test_the_examples_own_variable_is_recorded() -> None:
    """What an entry script asks for by name is recorded; what steers Encore itself never is."""
    text = (Path(__file__).parents[3] / "examples" / "medical_cv.py").read_text()
    asked = environ.asked_for(text + "os.environ['ENCORE_MODE']")
    assert asked == {"EXAMPLES_DATA"}
    assert environ.facts({"EXAMPLES_DATA": "/data", "ENCORE_MODE": "offline"}, asked=asked)["env"] == {"EXAMPLES_DATA": "/data"}


def test_the_hook_is_set_once() -> None:
    """Installing again adds no second hook."""
    hook.install()
    first = hook.hook
    hook.install()
    assert hook.hook is first
