"""GPUs by NVML. Not every board has every sensor, and a board can fall off the bus in mid-run: what cannot be said is left out."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from typing import Any

NOT_SUPPORTED, NO_PERMISSION, LOST, RESET_REQUIRED = 3, 4, 15, 16  # NVML's error numbers
DEAD = (1, 9, LOST, RESET_REQUIRED)  # also: uninitialised, driver not loaded
LOOK_AGAIN = 6  # samples after which a lost board is tried again
CLOCK_SM, CLOCK_MEMORY, TEMPERATURE_GPU = 1, 2, 0
CORRECTED, UNCORRECTED, VOLATILE = 0, 1, 0
SLOWED = 0x8 | 0x20 | 0x40 | 0x80  # hardware slowdown, software and hardware thermal slowdown, power brake


def open_nvml(given: Any = None) -> tuple[Any, list[Any]]:
    """(NVML, its devices); (None, []) on a machine without, which is normal."""
    try:
        nvml = given if given is not None else importlib.import_module("pynvml")
        nvml.nvmlInit()
    except Exception:
        return None, []
    devices = []
    try:
        for index in range(nvml.nvmlDeviceGetCount()):
            try:
                devices.append(nvml.nvmlDeviceGetHandleByIndex(index))
            except Exception:  # one board that is broken does not hide the others, nor change their numbers
                devices.append(None)
    except Exception:
        return None, []
    return nvml, devices


class Boards:
    def __init__(self, nvml: Any = None) -> None:
        self._given = nvml
        self.nvml, self.devices = open_nvml(nvml)
        self.news: list[dict[str, Any]] = []
        self.visible: set[int] | None = None  # those that the run may use; None: all
        self._missing: set[tuple[Any, str]] = set()
        self._lost: dict[int, int] = {index: 0 for index, device in enumerate(self.devices) if device is None}
        self.uuids = [self._uuid(index) for index in range(len(self.devices))]

    # Asking ---------------------------------------------------------------------------------------------------------------------

    def ask(self, index: int, name: str, look: Callable[[Any], Any], place: Any = None) -> Any:
        """What `look` gives of a board (or of a part of it), or None. A sensor that is not there is not asked for again."""
        device = self.devices[index] if place is None else place
        if self.nvml is None or device is None or index in self._lost or (index, name) in self._missing:
            return None
        try:
            return look(device)
        except Exception as error:
            number = getattr(error, "value", None)
            if number in (NOT_SUPPORTED, NO_PERMISSION):
                self._missing.add((index, name))
            elif number in DEAD:
                self._lose(index, error)
            return None

    def _lose(self, index: int, error: Exception) -> None:
        self._lost[index] = 0
        self.news.append({"name": "gpu_lost", "data": {"gpu": index, "uuid": self.uuids[index], "error": str(error)[:200]}})

    def _look_again(self) -> None:
        """A board that was reset, or a driver that was loaded again, comes back under a new handle."""
        for index in list(self._lost):
            self._lost[index] += 1
            if self._lost[index] % LOOK_AGAIN:
                continue
            with contextlib.suppress(Exception):
                with contextlib.suppress(Exception):
                    self.nvml.nvmlInit()
                device = self.nvml.nvmlDeviceGetHandleByIndex(index)
                self.nvml.nvmlDeviceGetMemoryInfo(device)
                self.devices[index] = device
                del self._lost[index]
                self.news.append({"name": "gpu_back", "data": {"gpu": index, "uuid": self.uuids[index]}})

    def _uuid(self, index: int) -> str:
        found = self.ask(index, "uuid", lambda device: self.nvml.nvmlDeviceGetUUID(device))
        return found.decode() if isinstance(found, bytes) else str(found or index)

    # What is told ---------------------------------------------------------------------------------------------------------------

    def sample(self) -> dict[str, float]:
        if self.nvml is None:
            return {}
        if self._lost:
            self._look_again()
        found: dict[str, float] = {}
        for index in range(len(self.devices)):
            for name, value in self._board(index):
                found[f"gpu.{index}/{name}"] = float(value)
            found.update(self._parts(index))
        return found

    def _board(self, index: int) -> Iterator[tuple[str, float]]:
        nvml = self.nvml
        used = self.ask(index, "utilization", lambda device: nvml.nvmlDeviceGetUtilizationRates(device))
        if used is not None:
            yield "utilization_percent", used.gpu
            if hasattr(used, "memory"):
                yield "memory_busy_percent", used.memory
        memory = self.ask(index, "memory", lambda device: nvml.nvmlDeviceGetMemoryInfo(device))
        if memory is not None:
            yield "memory_bytes", memory.used
            if getattr(memory, "total", 0):
                yield "memory_percent", 100 * memory.used / memory.total
        sensors: tuple[tuple[str, Callable[[Any], Any]], ...] = (
            ("power_watts", lambda device: nvml.nvmlDeviceGetPowerUsage(device) / 1000),
            ("power_limit_watts", lambda device: nvml.nvmlDeviceGetEnforcedPowerLimit(device) / 1000),
            ("temperature_celsius", lambda device: nvml.nvmlDeviceGetTemperature(device, TEMPERATURE_GPU)),
            ("sm_clock_mhz", lambda device: nvml.nvmlDeviceGetClockInfo(device, CLOCK_SM)),
            ("memory_clock_mhz", lambda device: nvml.nvmlDeviceGetClockInfo(device, CLOCK_MEMORY)),
            ("slowed", lambda device: 1 if nvml.nvmlDeviceGetCurrentClocksThrottleReasons(device) & SLOWED else 0),
            ("ecc_corrected", lambda device: nvml.nvmlDeviceGetTotalEccErrors(device, CORRECTED, VOLATILE)),
            ("ecc_uncorrected", lambda device: nvml.nvmlDeviceGetTotalEccErrors(device, UNCORRECTED, VOLATILE)),
        )
        for name, look in sensors:
            value = self.ask(index, name, look)
            if value is not None:
                yield name, value

    def _parts(self, index: int) -> dict[str, float]:
        """MIG: the board is cut into parts with memory of their own; the parts have no sensors, the board no utilisation."""
        nvml = self.nvml
        mode = self.ask(index, "mig", lambda device: nvml.nvmlDeviceGetMigMode(device))
        if not mode or mode[0] != 1:
            return {}
        found = {}
        for part in range(self.ask(index, "mig_count", lambda device: nvml.nvmlDeviceGetMaxMigDeviceCount(device)) or 0):
            try:
                handle = nvml.nvmlDeviceGetMigDeviceHandleByIndex(self.devices[index], part)
                memory = nvml.nvmlDeviceGetMemoryInfo(handle)
            except Exception:  # noqa: S112 - a place that holds no part
                continue
            found[f"gpu.{index}.mig.{part}/memory_bytes"] = float(memory.used)
            if getattr(memory, "total", 0):
                found[f"gpu.{index}.mig.{part}/memory_percent"] = 100 * memory.used / memory.total
        return found

    def memory_by_process(self) -> dict[int, int]:
        """pid -> bytes on all boards. Inside a container NVML may tell the host's pids: then none of them is ours."""
        found: dict[int, int] = {}
        for index in range(len(self.devices)):
            for each in self.ask(index, "processes", lambda device: self.nvml.nvmlDeviceGetComputeRunningProcesses(device)) or ():
                used = getattr(each, "usedGpuMemory", None)
                if isinstance(used, int) and 0 < used < 1 << 50:
                    found[each.pid] = found.get(each.pid, 0) + used
        return found

    # Energy ---------------------------------------------------------------------------------------------------------------------

    def energy_millijoules(self, index: int) -> int | None:
        """The board's own counter since its driver was loaded (Volta and newer)."""
        return self.ask(index, "energy", lambda device: self.nvml.nvmlDeviceGetTotalEnergyConsumption(device))

    def watts(self, index: int) -> float | None:
        found = self.ask(index, "power_watts", lambda device: self.nvml.nvmlDeviceGetPowerUsage(device))
        return None if found is None else found / 1000

    def may_use(self, variables: list[str | None]) -> None:
        """variables: CUDA_VISIBLE_DEVICES of each rank. What cannot be told means all."""
        chosen: set[int] = set()
        for variable in variables:
            if variable is None:
                self.visible = None
                return
            for part in filter(None, (each.strip() for each in variable.split(","))):
                if part.lstrip("-").isdigit():
                    if int(part) < 0:
                        break
                    chosen.add(int(part))
                    continue
                named = [index for index, uuid in enumerate(self.uuids) if uuid.startswith(part)]
                if not named:
                    self.visible = None
                    return
                chosen.update(named)
        self.visible = chosen if variables else None

    @property
    def ours(self) -> list[int]:
        return [index for index in range(len(self.devices)) if self.visible is None or index in self.visible]

    def close(self) -> None:
        if self.nvml is not None:
            with contextlib.suppress(Exception):
                self.nvml.nvmlShutdown()
            self.nvml, self.devices = None, []
