"""A trainer that the system ended for want of memory is told from one that somebody killed.

The counters are files here, since a suite may not limit its own machine: what the kernel writes into `memory.events` (v2) and
`memory.oom_control` (v1) is written by the test, into a folder in place of /sys/fs/cgroup; all else is the real thing. Where
ENCORE_TEST_CGROUP names a memory control group that this user may write to, the kernel itself kills.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from helpers import Shop, until
from server import Server

from sdk._sender import oom
from sdk._sender.adopt import run_folders
from sdk._sender.run import RunSender

V2 = "low 0\nhigh 0\nmax 7\noom 1\noom_kill {}\noom_group_kill 0\n"
V1 = "oom_kill_disable 0\nunder_oom 0\noom_kill {}\n"


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Counters in place of the kernel's; call it with the number of kills."""
    files = [(tmp_path / "cgroup/job/memory.events", V2), (tmp_path / "cgroup/memory/job/memory.oom_control", V1)]
    for path, _ in files:
        path.parent.mkdir(parents=True)
    monkeypatch.setattr(oom, "CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(oom, "KERNEL_LOG", tmp_path / "kmsg")

    def counted(kills: int) -> None:
        for path, words in files:
            path.write_text(words.format(kills))

    counted(3)
    return counted


@pytest.mark.parametrize("line", ["0::/job", "12:pids:/x\n4:memory:/job", "0::/elsewhere/in/the/host\n4:cpu,memory:/job"])
def test_the_counters_of_its_own_control_group_are_found(tmp_path: Path, kernel, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    """Version 2, version 1, and both at once."""
    monkeypatch.setattr(oom, "PROC", tmp_path)
    (tmp_path / "77").mkdir()
    (tmp_path / "77" / "cgroup").write_text(line + "\n")
    watch = oom.Watch(77)
    assert watch.killed() is None
    kernel(4)
    assert watch.killed() == oom.REASON


def test_the_kernels_log_tells_where_no_counter_does(tmp_path: Path, kernel) -> None:
    """By pid, and only after the process started: pids come again."""
    (tmp_path / "kmsg").write_bytes(
        b"6,1,50000000,-;Memory cgroup out of memory: Killed process 77 (python3) total-vm:1kB\n"
        b"6,2,90000000,-;oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),task=python3,pid=78,uid=0\n"
    )
    for pid, started, told in ((77, 40.0, True), (77, 60.0, False), (78, 60.0, True), (79, 0.0, False)):
        watch = oom.Watch(pid, started)
        watch.counters = []
        assert (watch.killed() is not None) is told, (pid, started)


@pytest.mark.parametrize("for_memory", [True, False])
def test_a_trainer_killed_for_memory_says_so_and_another_does_not(
    shop: Shop, server: Server, kernel, monkeypatch: pytest.MonkeyPatch, for_memory: bool
) -> None:
    """The run's page says crashed, by signal 9, `killed by the system for want of memory (OOM)`."""
    process = shop.start("import sdk, time\nsdk.init(project='p'); sdk.log({'x': 1.0}); time.sleep(600)", None, ENCORE_SENDER="external")
    (folder,) = until(lambda: run_folders(shop.journal))
    monkeypatch.setattr(oom, "counters_of", lambda pid: [oom.CGROUP / "job" / "memory.events"] if pid == process.pid else [])
    sender = RunSender(folder, server.url, "t")
    assert until(lambda: sender.step() or server.points("x"))
    process.kill()
    process.wait()
    if for_memory:
        kernel(4)
    deadline = time.monotonic() + 60
    while not sender.done and time.monotonic() < deadline:
        sender.step()
        time.sleep(0.02)
    (gone,) = server.docs("event", "gone")
    if for_memory:
        assert (gone["data"]["signal"], gone["data"]["error"]["message"]) == (9, oom.REASON)
    else:
        assert "error" not in gone["data"]


@pytest.mark.skipif(not os.environ.get("ENCORE_TEST_CGROUP"), reason="ENCORE_TEST_CGROUP names no memory control group to write to")
def test_the_kernels_own_kill_is_seen(shop: Shop, server: Server) -> None:
    """In a control group of 64 MB a program asks for a gigabyte."""
    group = Path(os.environ["ENCORE_TEST_CGROUP"]) / f"encore-{os.getpid()}"
    group.mkdir()
    try:
        limit = group / "memory.max"
        (limit if limit.exists() else group / "memory.limit_in_bytes").write_text(str(64 << 20))
        program = f"""
            import os, sdk, time
            open({str(group / "cgroup.procs")!r}, "w").write(str(os.getpid()))
            sdk.init(project="p"); sdk.log({{"x": 1.0}})
            while not os.path.exists("go"): time.sleep(0.01)
            hog = bytearray(1 << 30)
        """
        process = shop.start(program, server)
        assert until(lambda: server.points("x"))
        (shop.work / "go").touch()
        assert process.wait(120) == -signal.SIGKILL
        assert until(lambda: server.docs("event", "gone"))
        assert server.docs("event", "gone")[0]["data"]["error"]["message"] == oom.REASON
    finally:
        shop.close()
        assert until(lambda: not (group / "cgroup.procs").read_text())
        group.rmdir()
