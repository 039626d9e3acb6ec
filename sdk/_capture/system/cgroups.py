"""What a container or a scheduler's job may use: memory limit, CPU quota, throttling. The host's numbers hide it (cgroup v2 and v1)."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

ROOT = Path("/sys/fs/cgroup")
UNLIMITED = 1 << 60  # v1 says "no limit" by a number near 2**63


def sample(seconds: float, before: dict[str, float], root: Path = ROOT, own: str | None = None) -> dict[str, Any]:
    """seconds: since the sample before. before: the counters then; kept by the caller. own: the text of /proc/self/cgroup."""
    if own is None:
        own = _text(Path("/proc/self/cgroup"))
    two = next((line[3:] for line in own.splitlines() if line.startswith("0::")), None)
    if two is not None and (root / "cgroup.controllers").exists():
        found = _two(root, two)
    else:
        parts = [line.split(":", 2) for line in own.splitlines() if line.count(":") >= 2]
        found = _one(root, {name: folder for _, names, folder in parts for name in names.split(",")})
    return _rates(found, seconds, before)


def _rates(found: dict[str, Any], seconds: float, known: dict[str, float]) -> dict[str, Any]:
    """Counters as shares of the time since the last sample."""
    told = {name: value for name, value in found.items() if not name.startswith("_")}
    for counter, name in (("_used_seconds", "cpu_percent"), ("_throttled_seconds", "cpu_throttled_percent")):
        value = found.get(counter)
        if value is None:
            continue
        before, known[counter] = known.get(counter), value
        if before is not None and seconds > 0.5:
            told[f"cgroup/{name}"] = 100 * max(0.0, value - before) / seconds
    quota = told.get("cgroup/cpu_quota_cores")
    if quota and "cgroup/cpu_percent" in told:
        told["cgroup/cpu_percent_of_quota"] = told["cgroup/cpu_percent"] / quota
    return told


def _two(root: Path, own: str) -> dict[str, Any]:
    folders = _upward(root, own)
    found: dict[str, Any] = {}
    limits = [limit for folder in folders if (limit := _number(folder / "memory.max")) is not None]
    found |= _memory(
        _number(folders[0] / "memory.current"), min(limits, default=None), _stat(folders[0] / "memory.stat").get("inactive_file")
    )
    quotas = []
    for folder in folders:
        parts = _text(folder / "cpu.max").split()
        if len(parts) == 2 and parts[0] != "max":
            quotas.append(int(parts[0]) / int(parts[1]))
    if quotas:
        found["cgroup/cpu_quota_cores"] = min(quotas)
    cpu = _stat(folders[0] / "cpu.stat")
    for counter, name in (("usage_usec", "_used_seconds"), ("throttled_usec", "_throttled_seconds")):
        if counter in cpu and (counter != "throttled_usec" or quotas):
            found[name] = cpu[counter] / 1e6
    kills = _stat(folders[0] / "memory.events").get("oom_kill")
    if kills:
        found["cgroup/oom_kills"] = kills
    return found


def _one(root: Path, own: dict[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for controller, folder_of in (("memory", "memory"), ("cpu", "cpu"), ("cpuacct", "cpuacct")):
        if controller not in own or not (root / folder_of).is_dir():
            continue
        folder = _upward(root / folder_of, own[controller])[0]
        if controller == "memory":
            limit = _number(folder / "memory.limit_in_bytes")
            limit = None if limit is None or limit >= UNLIMITED else limit
            cache = _stat(folder / "memory.stat").get("total_inactive_file")
            found |= _memory(_number(folder / "memory.usage_in_bytes"), limit, cache)
        elif controller == "cpu":
            quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
            if quota and period and quota > 0:
                found["cgroup/cpu_quota_cores"] = quota / period
                throttled = _stat(folder / "cpu.stat").get("throttled_time")
                if throttled is not None:
                    found["_throttled_seconds"] = throttled / 1e9
        elif (used := _number(folder / "cpuacct.usage")) is not None:
            found["_used_seconds"] = used / 1e9
    return found


def _memory(used: float | None, limit: float | None, cache: float | None) -> dict[str, Any]:
    """Used without the file cache that can be dropped: what the limit is compared with before anything is killed."""
    if used is None:
        return {}
    used = max(0.0, used - (cache or 0.0))
    found = {"cgroup/memory_bytes": used}
    if limit:
        found |= {"cgroup/memory_limit_bytes": limit, "cgroup/memory_percent": 100 * used / limit}
    return found


def _upward(root: Path, own: str) -> list[Path]:
    """The process's own group and those above it, as far as they can be seen from here (in a container the own is the root)."""
    folder = root / own.strip("/")
    if ".." in own or not folder.is_dir():
        folder = root
    found = [folder]
    while folder != root:
        folder = folder.parent
        found.append(folder)
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, ValueError):
        return ""


def _number(path: Path) -> float | None:
    with contextlib.suppress(ValueError):
        return float(_text(path))
    return None  # "max", or not there


def _stat(path: Path) -> dict[str, float]:
    found = {}
    for line in _text(path).splitlines():
        name, _, value = line.partition(" ")
        with contextlib.suppress(ValueError):
            found[name] = float(value)
    return found
