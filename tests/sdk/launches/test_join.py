"""A node of a launch that has no name in common: what it holds back, and what becomes of it when the word comes, comes late, or never."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
from datetime import timedelta
from pathlib import Path

import pytest
from helpers import until
from launching import Launcher, free_port

from sdk import _join, _launch
from sdk._ids import new_id

NODE = """
    import os, sys, time, sdk
    run = sdk.init(project="launched")
    sdk.log({"rank": float(os.environ["RANK"])}, step=0)
    print(run.id, flush=True)
    how = sys.argv[1] if len(sys.argv) > 1 else "ends"
    if how in ("joins", "fails first") and not (how == "fails first" and not os.path.exists("failed")):
        import torch.distributed as dist
        dist.init_process_group("gloo", init_method=os.environ["INIT"], rank=int(os.environ["RANK"]), world_size=2)
    if how == "fails first" and not os.path.exists("failed"):
        open("failed", "w").close()
        sys.exit(3)
    if how == "waits":
        time.sleep(600)
    print(run.id, flush=True)
    sys.exit(4 if how == "fails" else 0)
"""

SPREAD = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0", "TORCHELASTIC_RESTART_COUNT": "0"}
FIRST, SECOND = SPREAD | {"RANK": "0", "GROUP_RANK": "0"}, SPREAD | {"RANK": "1", "GROUP_RANK": "1"}


def node(launcher: Launcher, how: str, **env: str) -> subprocess.Popen[str]:
    """A process under an agent of its own, as on a node of its own."""
    script = launcher.script(NODE)
    return launcher.start("bash", "-c", f"{launcher.interpreter} {script} {how}; exit $?", **env)


def test_a_node_that_ends_without_torch_is_a_run_of_its_own(launcher: Launcher) -> None:
    """A program that never makes a process group: nothing can join its nodes, nothing is lost, and finish does not wait for it."""
    launcher.done(node(launcher, "ends", **FIRST), node(launcher, "ends", **SECOND))
    runs = launcher.runs(2)
    assert [[w["rank"] for w in writers] for writers in sorted(runs.values(), key=lambda found: found[0]["rank"])] == [[0], [1]]
    assert launcher.server.points("rank", rank=1) == [(0, 1.0)]


def test_nothing_of_a_node_is_sent_before_its_run_is_known(online: Launcher) -> None:
    """It waits in the journal while its sender says why; what nobody will ever name is a run of its own."""
    process = online.python(online.script(NODE), "waits", **SECOND)
    assert process.stdout is not None  # it waits until it is killed
    own = process.stdout.readline().strip()
    status = online.shop.journal / own / "sender.json"
    assert until(lambda: status.exists() and "wait until torch.distributed" in (json.loads(status.read_text())["error"] or ""))
    assert not online.server.writers
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    # Its launcher, this test, is alive and could start it again. A copy on another machine waits no longer than is said.
    copy = online.shop.folder / "copy"
    shutil.copytree(online.shop.journal, copy)
    for path in copy.glob("*/*/writer.json"):
        about = json.loads(path.read_text())
        path.write_text(json.dumps(about | {"host": "elsewhere", "started_us": about["started_us"] - 1_000_000_000}))
    sent = online.shop.encore("sync", str(copy), server=online.server)
    assert sent.returncode == 0, sent.stderr
    assert {about["run"]["id"] for about in online.server.writers.values()} == {own}
    assert online.server.points("rank") == [(0, 1.0)]


def test_a_start_that_failed_before_the_word_came_goes_where_the_next_one_goes(online: Launcher) -> None:
    """The node's program fails before it makes its process group; its launcher starts it again, and then both starts have their run."""
    pytest.importorskip("torch")
    script = online.script(NODE)
    init = f"tcp://127.0.0.1:{free_port()}"
    both = f"{online.interpreter} {script} 'fails first' || {online.interpreter} {script} 'fails first'; exit $?"
    other = online.start("bash", "-c", both, INIT=init, **SECOND)
    assert until(lambda: (online.shop.work / "failed").exists())
    online.done(other, node(online, "joins", INIT=init, **FIRST))
    runs = online.runs(3)
    assert [sorted(w["rank"] for w in writers) for writers in runs.values()] == [[0, 1, 1]]
    assert online.server.points("rank", rank=1) == [(0, 1.0), (0, 1.0)]


def test_a_sender_killed_while_it_waits_costs_nothing(online: Launcher) -> None:
    """And a journal that reaches the server by a copy of its writers' folders alone finds the run by what it holds itself."""
    pytest.importorskip("torch")
    init = f"tcp://127.0.0.1:{free_port()}"
    other = node(online, "joins", INIT=init, **SECOND)
    assert other.stdout is not None
    own = other.stdout.readline().strip()
    assert until(lambda: online.shop.senders())
    for pid in online.shop.senders():
        os.kill(pid, signal.SIGKILL)
    online.done(other, node(online, "joins", INIT=init, **FIRST))
    runs = online.runs(2)
    assert [sorted(w["rank"] for w in writers) for writers in runs.values()] == [[0, 1]]
    decision = online.shop.journal / own / "joined.json"
    assert json.loads(decision.read_text())["run"] in runs
    decision.unlink()
    online.server.writers.clear()
    online.server.next.clear()
    sent = online.shop.encore("sync", str(online.shop.journal / own), server=online.server)
    assert sent.returncode == 0, sent.stderr
    assert {about["run"]["id"] for about in online.server.writers.values()} == set(runs)


def test_the_store_is_asked_in_ways_that_neither_wait_nor_hold_others_up(tmp_path: Path) -> None:
    """While the program itself waits in its store, ours is answered; a key that is not there costs no waiting; the first word stands."""
    torch = pytest.importorskip("torch")
    dist = torch.distributed
    store = dist.TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False, timeout=timedelta(seconds=20))
    shared = dist.PrefixStore("default_pg", store)
    waiting = threading.Thread(target=lambda: shared.get("later"), daemon=True)
    waiting.start()
    ours = shared.clone()
    first, second = new_id(), new_id()

    def joiner(rank: int, own: str) -> _join.Joiner:
        launch = _launch.Launch(kind="torchrun", rank=rank, world_size=2, local_world_size=1, one_node=False, starter="1:1")
        return _join.Joiner(launch, own, 0, tmp_path)

    assert joiner(1, second)._ask(ours, 0.0) is None
    assert joiner(0, first)._ask(ours, 0.0) == first
    assert joiner(1, second)._ask(ours, 0.0) == first
    assert waiting.is_alive()
    ours.set("later", "1")
    waiting.join(20)
    assert not waiting.is_alive()
