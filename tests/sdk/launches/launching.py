"""Programs started by real launchers, and what of them arrived."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
from typing import Any

from helpers import Shop, until
from server import Server

TRAIN = """
    import os, sdk
    run = sdk.init(project="launched")
    for i in range(5):
        sdk.log({"rank": float(os.environ.get("RANK", 0)), "loss": 1.0 / (i + 1)}, step=i)
"""

GROUP_FIRST = """
    import os, torch, torch.distributed as dist, sdk
    dist.init_process_group("gloo")
    run = sdk.init(project="launched")
"""

INIT_FIRST = """
    import os, torch, torch.distributed as dist, sdk
    run = sdk.init(project="launched")
    dist.init_process_group("gloo")
"""

STEPS = """
    for i in range(5):
        x = torch.tensor(float(dist.get_rank())); dist.all_reduce(x)
        sdk.log({"sum": x, "rank": dist.get_rank()}, step=i)
    dist.barrier()
    dist.destroy_process_group()
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Launcher:
    def __init__(self, shop: Shop, server: Server, offline: bool) -> None:
        self.shop, self.server, self.offline = shop, server, offline
        self.interpreter = sys.executable
        self.processes: list[subprocess.Popen[str]] = []

    def script(self, text: str, name: str = "train.py") -> str:
        path = self.shop.work / name
        path.write_text(textwrap.dedent(text))
        return str(path)

    def environment(self, **more: str) -> dict[str, str]:
        told = {"OMP_NUM_THREADS": "1", "ENCORE_FINISH_SECONDS": "60", "GLOO_SOCKET_IFNAME": "lo"}
        if self.offline:
            told["ENCORE_MODE"] = "offline"
        launchers = ("SLURM_", "PMI", "OMPI_", "TORCHELASTIC", "PBS_", "LSB_")
        kept = self.shop.environment(self.server, **told)
        return {name: value for name, value in kept.items() if not name.startswith(launchers)} | more

    def start(self, *command: str, stdin: str | None = None, **env: str) -> subprocess.Popen[str]:
        told = self.shop.folder / "stdin"
        told.write_text(stdin or "")
        process = subprocess.Popen(
            command,
            stdin=told.open(),
            env=self.environment(**env),
            cwd=self.shop.work,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.processes.append(process)
        return process

    def python(self, script: str, *arguments: str, **env: str) -> subprocess.Popen[str]:
        return self.start(sys.executable, script, *arguments, **env)

    def torchrun(self, script: str, *options: str, **env: str) -> subprocess.Popen[str]:
        return self.start(sys.executable, "-m", "torch.distributed.run", *options, script, **env)

    def done(self, *processes: subprocess.Popen[str], status: int | None = 0) -> str:
        """Waits for their ends; all that they said on stderr."""
        said = ""
        for process in processes:
            _, err = process.communicate(timeout=120)
            said += err
            assert status is None or process.returncode == status, err
        return said

    def bash(self, lines: str, **env: str) -> str:
        return self.done(self.start("bash", "-ec", textwrap.dedent(lines), **env))

    def runs(self, trainers: int, ended: int | None = None) -> dict[str, list[dict[str, Any]]]:
        """run id -> writer.json of its trainers, once so many of them have arrived and (or `ended` of them) said how they ended."""
        if self.offline:
            done = self.shop.encore("sync", server=self.server)
            assert done.returncode == 0, done.stderr
        enough = trainers if ended is None else ended
        assert until(lambda: len(self.server.finishes()) >= enough and len(self._trainers()) >= trainers, 200), self.explain()
        found: dict[str, list[dict[str, Any]]] = {}
        for about in sorted(self._trainers(), key=lambda about: (about["started_us"], about["rank"])):
            found.setdefault(about["run"]["id"], []).append(about)
        assert sum(map(len, found.values())) == trainers, found
        return found

    def _trainers(self) -> list[dict[str, Any]]:
        return [about for about in list(self.server.writers.values()) if about["kind"] == "trainer"]

    def explain(self) -> str:
        logs = [path.read_text() for path in self.shop.journal.glob("*/sender.log")]
        return f"{self.server.writers.keys()} {self.server.finishes()} {logs}"

    def end(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                with contextlib.suppress(OSError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
