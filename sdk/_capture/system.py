"""System metrics by psutil and NVML: the host's, and of each trainer that is followed."""

from __future__ import annotations

import contextlib
import importlib
import time
from collections.abc import Iterable
from typing import Any

PREFIX = "system/"


class Sampler:
    """Each `sample()` gives rates since the one before: `{"system/cpu_percent": 12.5, …}`.

    What a machine cannot say is left out; never raises.

    `nvml` is the pynvml module or an object with its functions; None means: look for it.
    """

    def __init__(self, pids: Iterable[int] = (), nvml: Any = None) -> None:
        self.pids = list(pids)
        self.processes: dict[int, Any] = {}
        self.before: dict[str, float] = {}
        self.at = time.monotonic()
        self.psutil: Any = None
        try:
            import psutil

            self.psutil = psutil
            psutil.cpu_percent(None)
        except Exception:
            self.psutil = None
        self.nvml, self.devices = _open_nvml(nvml)
        self._counters()

    def follow(self, pid: int) -> None:
        """Sample the process `pid` too."""
        if pid not in self.pids:
            self.pids.append(pid)

    def sample(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for part in (self._host, self._rates, self._trainers, self._gpus):
            try:
                found.update({PREFIX + name: float(value) for name, value in part().items() if value is not None})
            except Exception:  # noqa: S112 - a machine without this counter
                continue
        return found

    def _host(self) -> dict[str, Any]:
        psutil = self.psutil
        if psutil is None:
            return {}
        memory = psutil.virtual_memory()
        found = {"cpu_percent": psutil.cpu_percent(None), "memory_percent": memory.percent, "memory_bytes": memory.total - memory.available}
        try:
            found["load_1m"] = psutil.getloadavg()[0]
            found["swap_bytes"] = psutil.swap_memory().used
        except Exception:  # noqa: S110
            pass
        return found

    def _counters(self) -> dict[str, float]:
        psutil = self.psutil
        if psutil is None:
            return {}
        found: dict[str, float] = {}
        for name, look in (("disk", psutil.disk_io_counters), ("network", psutil.net_io_counters)):
            try:
                counters = look()
            except Exception:
                counters = None
            if counters is None:
                continue
            if name == "disk":
                found["disk_read_bytes"], found["disk_write_bytes"] = counters.read_bytes, counters.write_bytes
            else:
                found["network_sent_bytes"], found["network_received_bytes"] = counters.bytes_sent, counters.bytes_recv
        return found

    def _rates(self) -> dict[str, float]:
        now, counters = time.monotonic(), self._counters()
        seconds = max(1e-3, now - self.at)
        rates = {
            f"{name}_per_second": max(0.0, value - self.before[name]) / seconds for name, value in counters.items() if name in self.before
        }
        self.before, self.at = counters, now
        return rates

    def _trainers(self) -> dict[str, float]:
        psutil = self.psutil
        if psutil is None or not self.pids:
            return {}
        cpu = rss = threads = 0.0
        alive = 0
        for pid in list(self.pids):
            try:
                process = self.processes.get(pid)
                if process is None:
                    process = self.processes[pid] = psutil.Process(pid)
                    process.cpu_percent(None)
                family = [process, *process.children(recursive=True)]
                for each in family:
                    known = self.processes.setdefault(each.pid, each)
                    try:
                        with known.oneshot():
                            cpu += known.cpu_percent(None)
                            rss += known.memory_info().rss
                            threads += known.num_threads()
                    except psutil.Error:
                        self.processes.pop(each.pid, None)
                alive += 1
            except psutil.Error:
                self.processes.pop(pid, None)
                self.pids.remove(pid)
        return {"process_cpu_percent": cpu, "process_memory_bytes": rss, "process_threads": threads} if alive else {}

    def _gpus(self) -> dict[str, float]:
        found: dict[str, float] = {}
        nvml = self.nvml
        for index, device in enumerate(self.devices):

            def add(name: str, look: Any, index: int = index) -> None:
                with contextlib.suppress(Exception):  # not every board has every sensor
                    found[f"gpu.{index}/{name}"] = look()

            add("utilization_percent", lambda device=device: nvml.nvmlDeviceGetUtilizationRates(device).gpu)
            add("memory_bytes", lambda device=device: nvml.nvmlDeviceGetMemoryInfo(device).used)
            add("power_watts", lambda device=device: nvml.nvmlDeviceGetPowerUsage(device) / 1000)
            add(
                "temperature_celsius", lambda device=device: nvml.nvmlDeviceGetTemperature(device, getattr(nvml, "NVML_TEMPERATURE_GPU", 0))
            )
        return found

    def close(self) -> None:
        if self.nvml is not None:
            with contextlib.suppress(Exception):
                self.nvml.nvmlShutdown()
            self.nvml, self.devices = None, []


def _open_nvml(given: Any = None) -> tuple[Any, list[Any]]:
    """(NVML, its devices); (None, []) on a machine without, which is normal."""
    try:
        nvml = given if given is not None else importlib.import_module("pynvml")
        nvml.nvmlInit()
        return nvml, [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
    except Exception:
        return None, []
