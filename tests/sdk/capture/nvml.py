"""A stand-in for NVIDIA's library at its boundary: no GPU is at hand where these tests run.

It has the functions of pynvml that we call, and fails as NVML fails: by an error with a number. `Nvml.fail` says what fails how.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any


class NVMLError(Exception):
    def __init__(self, value: int) -> None:
        super().__init__({3: "Not Supported", 6: "Not Found", 15: "GPU is lost"}.get(value, "Unknown Error"))
        self.value = value


class Nvml:
    def __init__(self, boards: int = 2) -> None:
        self.boards = boards
        self.fail: dict[tuple[str, int], int] = {}  # (function without nvmlDevice, board) -> error number
        self.calls: list[tuple[str, int]] = []
        self.joules = [1000.0] * boards
        self.watts = [300.0] * boards
        self.parts: dict[int, list[int]] = {}  # board -> places that hold a MIG part
        self.processes: list[Any] = []

    def nvmlInit(self) -> None: ...

    def nvmlShutdown(self) -> None: ...

    def nvmlDeviceGetCount(self) -> int:
        return self.boards

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return self._said("GetHandleByIndex", index, index)

    def _said(self, name: str, device: int, value: Any) -> Any:
        self.calls.append((name, device))
        for which in ((name, device), ("*", device)):
            if which in self.fail:
                raise NVMLError(self.fail[which])
        return value

    def nvmlDeviceGetUUID(self, device: int) -> str:
        return self._said("GetUUID", device, f"GPU-{'ab'[device % 2]}{device}")

    def nvmlDeviceGetMemoryInfo(self, device: Any) -> Any:
        if isinstance(device, tuple):
            return SimpleNamespace(total=10 << 30, used=(device[1] + 1) << 30)
        return self._said("GetMemoryInfo", device, SimpleNamespace(total=80 << 30, used=(device + 1) << 30))

    def nvmlDeviceGetUtilizationRates(self, device: int) -> Any:
        return self._said("GetUtilizationRates", device, SimpleNamespace(gpu=50 + device, memory=20))

    def nvmlDeviceGetPowerUsage(self, device: int) -> int:
        return self._said("GetPowerUsage", device, int(self.watts[device] * 1000))

    def nvmlDeviceGetEnforcedPowerLimit(self, device: int) -> int:
        return self._said("GetEnforcedPowerLimit", device, 700_000)

    def nvmlDeviceGetTotalEnergyConsumption(self, device: int) -> int:
        return self._said("GetTotalEnergyConsumption", device, int(self.joules[device] * 1000))

    def nvmlDeviceGetTemperature(self, device: int, sensor: int) -> int:
        return self._said("GetTemperature", device, 60)

    def nvmlDeviceGetClockInfo(self, device: int, clock: int) -> int:
        return self._said("GetClockInfo", device, {1: 1980, 2: 2619}[clock])

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, device: int) -> int:
        return self._said("GetCurrentClocksThrottleReasons", device, 0x40 if device else 0x4)

    def nvmlDeviceGetTotalEccErrors(self, device: int, kind: int, counter: int) -> int:
        return self._said("GetTotalEccErrors", device, 7 if kind == 0 else 0)

    def nvmlDeviceGetMigMode(self, device: int) -> tuple[int, int]:
        return self._said("GetMigMode", device, (1, 1) if device in self.parts else (0, 0))

    def nvmlDeviceGetMaxMigDeviceCount(self, device: int) -> int:
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, device: int, place: int) -> tuple[int, int]:
        if place not in self.parts[device]:
            raise NVMLError(6)
        return device, place

    def nvmlDeviceGetComputeRunningProcesses(self, device: int) -> list[Any]:
        return self._said("GetComputeRunningProcesses", device, self.processes if device == 0 else [])
