"""System metrics and energy. GPUs are stood in for at NVML's own boundary (nvml.py): no GPU is at hand. All else is this machine's."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, os.path.dirname(__file__))
sys.path.insert(0, os.path.dirname(os.path.dirname(__file__)))
from helpers import until
from nvml import Nvml

from sdk._capture import system
from sdk._capture.system import boards, cgroups, energy

KWH = 3.6e6


# Boards -------------------------------------------------------------------------------------------------------------------------


def test_every_sensor_of_every_board_is_told() -> None:
    """Utilisation, memory, power and its limit, temperature, clocks, slow-down and ECC errors, each board under its index."""
    found = system.Sampler(nvml=Nvml()).sample()
    assert {name.removeprefix("system/gpu.1/"): value for name, value in found.items() if name.startswith("system/gpu.1/")} == {
        "utilization_percent": 51,
        "memory_busy_percent": 20,
        "memory_bytes": 2 << 30,
        "memory_percent": 2.5,
        "power_watts": 300,
        "power_limit_watts": 700,
        "temperature_celsius": 60,
        "sm_clock_mhz": 1980,
        "memory_clock_mhz": 2619,
        "slowed": 1,
        "ecc_corrected": 7,
        "ecc_uncorrected": 0,
        "energy_kwh": 0,
    }
    assert found["system/gpu.0/slowed"] == 0  # 0x4, a power cap by choice, is no slow-down


def test_a_sensor_that_is_not_there_leaves_its_line_out_and_is_asked_once() -> None:
    nvml = Nvml()
    nvml.fail = {("GetTotalEccErrors", 0): 3, ("GetUtilizationRates", 0): 4}
    sampler = system.Sampler(nvml=nvml)
    for _ in range(3):
        found = sampler.sample()
    assert "system/gpu.0/ecc_corrected" not in found
    assert "system/gpu.0/utilization_percent" not in found
    assert found["system/gpu.1/ecc_corrected"] == 7
    assert found["system/gpu.0/temperature_celsius"] == 60
    assert nvml.calls.count(("GetUtilizationRates", 0)) == 1


def test_an_error_that_passes_is_asked_again() -> None:
    nvml = Nvml()
    nvml.fail = {("GetTemperature", 0): 999}
    sampler = system.Sampler(nvml=nvml)
    assert "system/gpu.0/temperature_celsius" not in sampler.sample()
    nvml.fail = {}
    assert sampler.sample()["system/gpu.0/temperature_celsius"] == 60


def test_a_board_that_falls_off_the_bus_is_told_once_and_the_others_go_on() -> None:
    nvml = Nvml()
    sampler = system.Sampler(nvml=nvml)
    sampler.sample()
    nvml.fail = {("*", 1): 15}
    lost = sampler.sample()
    sampler.sample()
    assert not [name for name in lost if name.startswith("system/gpu.1/") and "energy" not in name]
    assert lost["system/gpu.0/utilization_percent"] == 50
    assert sampler.news() == [{"name": "gpu_lost", "data": {"gpu": 1, "uuid": "GPU-b1", "error": "GPU is lost"}}]
    assert sampler.news() == []
    nvml.fail = {}
    for _ in range(boards.LOOK_AGAIN + 1):
        found = sampler.sample()
    assert found["system/gpu.1/utilization_percent"] == 51
    assert [one["name"] for one in sampler.news()] == ["gpu_back"]


def test_a_board_that_is_broken_from_the_start_does_not_renumber_the_others() -> None:
    nvml = Nvml(3)
    nvml.fail = {("GetHandleByIndex", 1): 15}
    found = system.Sampler(nvml=nvml).sample()
    assert found["system/gpu.2/utilization_percent"] == 52
    assert "system/gpu.1/utilization_percent" not in found


def test_parts_of_a_board_under_mig_have_their_own_memory() -> None:
    nvml = Nvml()
    nvml.parts = {0: [0, 3]}
    nvml.fail = {("GetUtilizationRates", 0): 3}
    found = system.Sampler(nvml=nvml).sample()
    assert found["system/gpu.0.mig.0/memory_bytes"] == 1 << 30
    assert found["system/gpu.0.mig.3/memory_percent"] == 40
    assert not [name for name in found if ".mig.1/" in name or "gpu.1.mig" in name]
    assert found["system/gpu.0/power_watts"] == 300


def test_without_nvml_there_are_no_lines_and_no_errors() -> None:
    class Broken:
        def nvmlInit(self) -> None:
            raise OSError("libnvidia-ml.so.1: cannot open shared object file")

    found = system.Sampler(nvml=Broken()).sample()
    assert "system/cpu_percent" in found
    assert not [name for name in found if "gpu" in name]


def test_the_stand_in_speaks_as_the_real_library_does() -> None:
    """What it stands in for is in nvidia-ml-py under these names, and NVML's numbers are these."""
    import pynvml

    assert not [name for name in dir(Nvml) if name.startswith("nvml") and not callable(getattr(pynvml, name, None))]
    numbers = {
        "NVML_ERROR_NOT_SUPPORTED": boards.NOT_SUPPORTED,
        "NVML_ERROR_NO_PERMISSION": boards.NO_PERMISSION,
        "NVML_ERROR_GPU_IS_LOST": boards.LOST,
        "NVML_ERROR_RESET_REQUIRED": boards.RESET_REQUIRED,
        "NVML_ERROR_UNINITIALIZED": boards.DEAD[0],
        "NVML_ERROR_DRIVER_NOT_LOADED": boards.DEAD[1],
        "NVML_CLOCK_SM": boards.CLOCK_SM,
        "NVML_CLOCK_MEM": boards.CLOCK_MEMORY,
        "NVML_TEMPERATURE_GPU": boards.TEMPERATURE_GPU,
        "NVML_MEMORY_ERROR_TYPE_CORRECTED": boards.CORRECTED,
        "NVML_MEMORY_ERROR_TYPE_UNCORRECTED": boards.UNCORRECTED,
        "NVML_VOLATILE_ECC": boards.VOLATILE,
    }
    assert {name: getattr(pynvml, name) for name in numbers} == numbers
    slowed = ("HwSlowdown", "SwThermalSlowdown", "HwThermalSlowdown", "HwPowerBrakeSlowdown")
    assert sum(getattr(pynvml, f"nvmlClocksThrottleReason{name}") for name in slowed) == boards.SLOWED
    assert pynvml.NVMLError(3).value == 3


@pytest.mark.parametrize(
    ("world", "local", "several"), [(1, None, False), (8, 8, False), (16, 8, True), (2, None, True)], ids=["alone", "one", "two", "unknown"]
)
def test_hosts_are_named_when_ranks_run_elsewhere_too(world: int, local: int | None, several: bool) -> None:
    from sdk._sender.node import _several_nodes

    trainer = SimpleNamespace(about={"world_size": world, "local_world_size": local}, child=False, attempt=1)
    assert _several_nodes(trainer, [trainer]) is several


def test_a_node_of_several_is_named_in_its_keys() -> None:
    found = system.Sampler(nvml=Nvml(1), node="host-7").sample()
    assert "system/host-7/gpu.0/power_watts" in found
    assert all(name.startswith("system/host-7/") for name in found)


# Energy -------------------------------------------------------------------------------------------------------------------------


def test_a_boards_own_counter_is_the_energy_also_over_a_gap() -> None:
    nvml = Nvml(1)
    found, meter = boards.Boards(nvml), energy.Energy()
    meter.measure(0.0, found)
    nvml.joules[0] += 3600
    meter.measure(5000.0, found)  # the sender slept: the counter did not
    assert meter.told(found)["gpu.0/energy_kwh"] == pytest.approx(0.001)
    assert meter.told(found)["energy_gap_seconds"] == 0
    nvml.joules[0] = 50  # the driver was loaded again
    meter.measure(5010.0, found)
    nvml.joules[0] += 3600
    meter.measure(5020.0, found)
    assert meter.told(found)["gpu.0/energy_kwh"] == pytest.approx(0.002)
    assert meter.told(found)["energy_gap_seconds"] == 10


def test_without_a_counter_power_is_integrated_by_trapezoids_and_long_gaps_are_told_not_filled() -> None:
    nvml = Nvml(1)
    nvml.fail = {("GetTotalEnergyConsumption", 0): 3}
    found, meter = boards.Boards(nvml), energy.Energy()
    for at, watts in ((0.0, 100.0), (10.0, 300.0), (20.0, 300.0), (120.0, 300.0), (130.0, 100.0)):
        nvml.watts[0] = watts
        meter.measure(at, found)
    # 10 s × 200 W + 10 s × 300 W, nothing for the 100 s without a sample, 10 s × 200 W
    assert meter.told(found)["gpu.0/energy_kwh"] * KWH == pytest.approx(2000 + 3000 + 2000)
    assert meter.told(found)["energy_gap_seconds"] == 100


def test_trapezoids_come_near_the_true_energy_of_a_changing_load() -> None:
    """A sine of 300 ± 200 W with a period of 60 s, sampled each second for an hour: within 0.1 %."""
    import math

    nvml = Nvml(1)
    nvml.fail = {("GetTotalEnergyConsumption", 0): 3}
    found, meter = boards.Boards(nvml), energy.Energy()
    for second in range(3601):
        nvml.watts[0] = 300 + 200 * math.sin(2 * math.pi * second / 60)
        meter.measure(float(second), found)
    assert meter.told(found)["energy_kwh"] == pytest.approx(0.3, rel=1e-3)


def test_energy_goes_on_where_it_was_after_a_restart(tmp_path: Path) -> None:
    nvml = Nvml(1)
    for _ in range(2):
        found, meter = boards.Boards(nvml), energy.Energy(tmp_path / "energy.json")
        meter.measure(0.0, found)
        nvml.joules[0] += 3600
        meter.measure(10.0, found)
        told = meter.told(found)
        nvml.joules[0] += 1e6  # somebody else's work between the two
    assert told["energy_kwh"] == pytest.approx(0.002)
    (tmp_path / "energy.json").write_text('{"meters": {"GPU-a0": {"joules": "x"}}}')
    assert energy.Energy(tmp_path / "energy.json").meters == {}


def test_the_runs_energy_is_that_of_the_boards_it_may_use() -> None:
    nvml = Nvml(4)
    found, meter = boards.Boards(nvml), energy.Energy()
    for variables, ours in (
        (["0,1", "2"], [0, 1, 2]),
        (["GPU-b1"], [1]),
        (["0", None], [0, 1, 2, 3]),
        (["MIG-xyz"], [0, 1, 2, 3]),
        (["", ""], []),
        (["2,-1,3"], [2]),
    ):
        found.may_use(variables)
        assert found.ours == ours
    found.may_use(["1"])
    meter.measure(0.0, found)
    nvml.joules = [joules + 3600 * (index + 1) for index, joules in enumerate(nvml.joules)]
    meter.measure(10.0, found)
    told = meter.told(found)
    assert told["gpu_energy_kwh"] == pytest.approx(0.002)
    assert told["gpu.3/energy_kwh"] == pytest.approx(0.004)


def test_processor_packages_count_where_they_may_be_read(tmp_path: Path) -> None:
    """RAPL's counter begins again at its range; its parts are not counted twice; over a long gap it is not guessed how often."""
    for name, joules in (("intel-rapl:0", 90), ("intel-rapl:0:0", 50)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "energy_uj").write_text(str(joules * 10**6))
        (tmp_path / name / "max_energy_range_uj").write_text(str(100 * 10**6))
    none = boards.Boards(SimpleNamespace())
    meter = energy.Energy(rapl=tmp_path)
    for at, joules in ((0.0, 90), (10.0, 95), (20.0, 5), (100.0, 50)):
        (tmp_path / "intel-rapl:0" / "energy_uj").write_text(str(joules * 10**6))
        meter.measure(at, none)
    told = meter.told(none)
    assert told["cpu_energy_kwh"] * KWH == pytest.approx(5 + 10)
    assert told["energy_gap_seconds"] == 80


# Processes ----------------------------------------------------------------------------------------------------------------------

PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "x = bytearray(40 << 20)\\nx[::4096] = b'1' * len(x[::4096])\\nwhile True: pass"])
print(child.pid, flush=True)
time.sleep(600)
"""


def test_a_rank_is_its_process_with_its_children() -> None:
    """A worker that burns a core and holds 40 MiB counts for its rank, and goes when it goes."""
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    try:
        sampler = system.Sampler(nvml=Nvml())
        sampler.boards.nvml.processes = [SimpleNamespace(pid=child, usedGpuMemory=3 << 30), SimpleNamespace(pid=1, usedGpuMemory=1 << 30)]
        sampler.follow(parent.pid, 3)
        sampler.follow(os.getpid(), 4)  # its parent: what is followed by itself is not counted there again
        sampler.sample()
        found = until(lambda: (one := sampler.sample()).get("system/rank.3/cpu_percent", 0) > 5 and one)
        assert found["system/rank.3/processes"] == 2
        assert found["system/rank.3/memory_bytes"] > 40 << 20
        assert found["system/rank.3/gpu_memory_bytes"] == 3 << 30
        assert found["system/process_count"] == 2 + found["system/rank.4/processes"]
        assert found["system/process_memory_bytes"] == found["system/rank.3/memory_bytes"] + found["system/rank.4/memory_bytes"]
        os.kill(child, 9)
        assert until(lambda: sampler.sample()["system/rank.3/memory_bytes"] < 40 << 20)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, 9)
        parent.kill()
        parent.wait()
    found = sampler.sample()
    assert not [name for name in found if "rank." in name]  # one rank is left: it is the whole
    assert found["system/process_count"] >= 1


def test_memory_shared_by_workers_is_told_once_by_pss() -> None:
    sampler = system.Sampler(nvml=Nvml(0))
    sampler.follow(os.getpid(), 0)
    found = sampler.sample()
    if "system/process_pss_bytes" not in found:
        pytest.skip("this system does not tell PSS (no smaps, or no permission)")
    assert 0 < found["system/process_pss_bytes"] <= found["system/process_memory_bytes"] * 1.01


# Containers ---------------------------------------------------------------------------------------------------------------------


def files(root: Path, **named: str) -> None:
    for name, text in named.items():
        path = root / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_limits_of_a_cgroup_are_told_version_2(tmp_path: Path) -> None:
    """The tightest limit of the group and those above it rules; memory is without the file cache that can be dropped."""
    files(tmp_path, cgroup_dot_controllers="cpu memory", slurm__memory_dot_max="8000", slurm__cpu_dot_max="max 100000")
    job = "slurm__job__"
    files(
        tmp_path,
        **{f"{job}memory_dot_current": "5000", f"{job}memory_dot_max": "max", f"{job}memory_dot_stat": "anon 1\ninactive_file 1000"},
    )
    files(tmp_path, **{f"{job}cpu_dot_max": "250000 100000", f"{job}cpu_dot_stat": "usage_usec 1000000\nthrottled_usec 0"})
    files(tmp_path, **{f"{job}memory_dot_events": "oom 1\noom_kill 2"})
    before: dict[str, float] = {}
    cgroups.sample(10.0, before, tmp_path, "0::/slurm/job\n")
    files(tmp_path, **{f"{job}cpu_dot_stat": "usage_usec 21000000\nthrottled_usec 1000000"})
    assert cgroups.sample(10.0, before, tmp_path, "0::/slurm/job\n") == {
        "cgroup/memory_bytes": 4000,
        "cgroup/memory_limit_bytes": 8000,
        "cgroup/memory_percent": 50,
        "cgroup/cpu_quota_cores": 2.5,
        "cgroup/cpu_percent": 200,
        "cgroup/cpu_throttled_percent": 10,
        "cgroup/cpu_percent_of_quota": 80,
        "cgroup/oom_kills": 2,
    }


def test_limits_of_a_cgroup_are_told_version_1(tmp_path: Path) -> None:
    files(
        tmp_path,
        memory__memory_dot_usage_in_bytes="5000",
        memory__memory_dot_limit_in_bytes="10000",
        memory__memory_dot_stat="total_inactive_file 1000",
        cpu__cpu_dot_cfs_quota_us="50000",
        cpu__cpu_dot_cfs_period_us="100000",
        cpu__cpu_dot_stat="throttled_time 0",
    )
    own = "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n"
    assert cgroups.sample(10.0, {}, tmp_path, own) == {
        "cgroup/memory_bytes": 4000,
        "cgroup/memory_limit_bytes": 10000,
        "cgroup/memory_percent": 40,
        "cgroup/cpu_quota_cores": 0.5,
    }
    files(tmp_path, memory__memory_dot_limit_in_bytes=str(2**63 - 4096), cpu__cpu_dot_cfs_quota_us="-1")
    assert set(cgroups.sample(10.0, {}, tmp_path, own)) == {"cgroup/memory_bytes"}


def test_where_there_are_no_cgroups_there_are_no_lines(tmp_path: Path) -> None:
    assert cgroups.sample(10.0, {}, tmp_path, "0::/../../elsewhere\n") == {}
    assert cgroups.sample(10.0, {}, tmp_path / "none", "") == {}
