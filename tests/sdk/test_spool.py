"""Clusters without a route: the journal is drained into a shared folder, and `encore sync --watch` elsewhere keeps the page live."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import Shop, until
from server import Server

from sdk import _filesystems, _place, _settings, _spool
from sdk._ids import new_id
from sdk._journal import Writer
from sdk._reader import Reader, read_json
from sdk._sender import keeping
from sdk._sender.drain import sweep
from sdk._sender.elsewhere import SpoolSender

TRAIN = """
    import sdk, sys, time
    run = sdk.init(project="p", config={"a": 1})
    for i in range(int(sys.argv[1])):
        sdk.log({"loss": float(i)}, step=i)
        time.sleep(float(sys.argv[2]))
    print("trained")
"""


def allowed(*how: str) -> bool:
    return shutil.which("unshare") is not None and subprocess.run(["unshare", *how, "true"], capture_output=True).returncode == 0


no_route = pytest.mark.skipif(not allowed("--net"), reason="network namespaces are not permitted here")


class Site:
    """A login node (the watcher, which reaches the server) and compute nodes (no route), with one shared folder."""

    def __init__(self, shop: Shop, server: Server) -> None:
        self.shop, self.server, self.spool = shop, server, shop.folder / "spool"
        self.processes: list[subprocess.Popen[str]] = []

    def node(self, program: str, *arguments: str, wrap: tuple[str, ...] = ("unshare", "--net"), **env: str) -> subprocess.Popen[str]:
        import textwrap

        script = self.shop.work / "train.py"
        script.write_text(textwrap.dedent(program))
        process = subprocess.Popen(
            [*wrap, sys.executable, str(script), *arguments],
            env=self.shop.environment(self.server, **{"ENCORE_SPOOL": str(self.spool), **env}),
            cwd=self.shop.work,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.processes.append(process)
        return process

    def watch(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", "import sys; from sdk._cli import main; sys.exit(main())", "sync", "--watch", str(self.spool)]
        env = self.shop.environment(self.server, ENCORE_HOME=str(self.shop.folder / "login"))
        process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.processes.append(process)
        return process

    def sync(self, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
        return self.shop.encore("sync", str(folder or self.spool), server=self.server)

    def marks(self) -> list[dict]:
        return [mark for run in self.spool.glob("*") for mark in _spool.marks(run)]

    def drained(self) -> int:
        return sum(each["next"] for mark in self.marks() for each in mark["writers"].values())

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.communicate()


@pytest.fixture
def site(shop: Shop, server: Server):
    made = Site(shop, server)
    yield made
    made.close()


def remove(folder: Path) -> None:
    """The sender may still be writing its last word there."""

    def gone() -> bool:
        shutil.rmtree(folder, ignore_errors=True)
        return not folder.exists()

    assert until(gone)


def steps(server: Server) -> list[int]:
    return [step for step, _ in server.points("loss")]


# A node without a route ---------------------------------------------------------------------------------------------------------------


@no_route
def test_a_node_without_a_route_is_live_and_can_be_stopped(site: Site, server: Server) -> None:
    """Only loopback in its network namespace: points, heartbeats and the recipe come by the spool; Stop goes back the same way."""
    site.watch()
    trainer = site.node(TRAIN, "100000", "0.01")
    assert until(lambda: len(steps(server)) > 100 and server.heartbeats), trainer.poll()
    assert trainer.poll() is None
    server.stop = True
    assert until(lambda: trainer.poll() is not None)
    assert trainer.returncode == -signal.SIGTERM
    assert until(server.finishes)
    (data,) = server.finishes().values()
    assert (data["state"], data["signal"]) == ("killed", signal.SIGTERM)
    assert until(lambda: {doc["section"] for doc in server.docs("recipe")} >= {"source", "environment", "command"})
    assert until(lambda: server.blobs)
    assert steps(server) == list(range(len(steps(server))))


@no_route
def test_finish_waits_for_the_spool_and_not_for_the_server(site: Site, server: Server) -> None:
    """When finish returns, all of the run lies in the shared folder; it says how to send it. The node's copy is not needed any more."""
    trainer = site.node(TRAIN, "500", "0")
    out, err = trainer.communicate(timeout=120)
    assert "trained" in out, err
    assert "encore sync" in err
    assert not server.requests
    drained = [mark["writers"] for mark in site.marks()]
    (writer,) = site.shop.writers()
    assert drained[0][writer.name]["next"] == Reader(writer).read().last + 1
    remove(site.shop.journal)
    assert site.sync().returncode == 0
    assert steps(server) == list(range(500))
    assert [data["state"] for data in server.finishes().values()] == ["finished"]


@pytest.mark.skipif(not allowed("--pid", "--fork", "--net"), reason="pid namespaces are not permitted here")
def test_a_node_that_is_killed_whole_loses_what_was_not_drained(site: Site, server: Server) -> None:
    """Trainer and sender die in one instant and the node's disk is gone: the spool alone gives everything up to the last drain."""
    program = """
        import sdk, time
        run = sdk.init(project="p")
        for i in range(1000): sdk.log({"loss": float(i)}, step=i)
        print("logged", flush=True)
        while True: i += 1; sdk.log({"loss": float(i)}, step=i); time.sleep(0.005)
    """
    trainer = site.node(program, wrap=("unshare", "--net", "--pid", "--fork", "--kill-child"))
    assert trainer.stdout is not None
    assert trainer.stdout.readline() == "logged\n"
    assert until(lambda: site.drained() > 1000)
    before, began = site.drained(), time.monotonic()
    assert until(lambda: site.drained() > before)
    assert time.monotonic() - began < 60  # it is 2 s and the drain's own time; a slow machine is no fault
    kept = site.drained()
    trainer.kill()
    trainer.wait()
    assert until(lambda: not any(_held(path) for path in site.shop.journal.rglob("alive")))
    remove(site.shop.journal)
    done = site.sync()
    assert done.returncode == 0, done.stderr
    found = steps(server)
    assert found == list(range(len(found)))
    assert len(found) >= 1000
    assert sum(server.next.values()) >= kept


def test_a_run_of_a_spool_lives_as_long_as_its_nodes_say_so(tmp_path: Path, server: Server) -> None:
    """A heartbeat only if a node has moved since the last one: one that vanished falls silent at the server too, and may come back."""
    made = journal(tmp_path / "hot", 10)
    node = _spool.RunCopy(made.folder.parent, tmp_path / "spool")
    node.copy(lambda: seen(made.id, alive=[made.id]))
    watcher = SpoolSender(tmp_path / "spool" / made.folder.parent.name, server.url, "t", True)

    def turn() -> int:
        watcher._next_heartbeat = 0.0
        while watcher.step():
            pass
        return len(server.heartbeats)

    assert [turn(), turn(), turn()] == [0, 0, 0]  # it may be of last week
    assert server.next[made.id] > 10
    node.copy(lambda: seen(made.id, alive=[made.id]))
    assert [turn(), turn(), turn()] == [1, 1, 1]
    node.copy(lambda: seen(made.id, alive=[made.id]))
    assert [turn(), turn()] == [2, 2]
    server.stop = True
    node.copy(lambda: seen(made.id, alive=[made.id]))
    assert turn() == 3
    assert (node.answer() or {}).get("stop") is True
    assert node.answer() is None  # heeded once
    node.copy(lambda: seen(made.id, settled={made.id}, gone=[made.id]))
    turn()
    assert watcher.outboxes[made.id].gone_told


def _held(path: Path) -> bool:
    import fcntl

    with open(path, "r+b") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def test_sigterm_to_the_whole_job_drains_at_once(site: Site, server: Server) -> None:
    """SLURM's way: every process gets SIGTERM and has some seconds. The last point and the way it ended are in the spool."""
    trainer = site.node(
        """
        import sdk, time
        sdk.init(project="p")
        for i in range(300): sdk.log({"loss": float(i)}, step=i)
        print("x", flush=True)
        time.sleep(600)
        """,
        wrap=(),
        ENCORE_URL="http://127.0.0.1:9",
    )
    assert trainer.stdout is not None
    assert trainer.stdout.readline() == "x\n"
    assert until(site.shop.senders)
    for pid in (trainer.pid, *site.shop.senders()):
        os.kill(pid, signal.SIGTERM)
    assert until(lambda: not site.shop.senders())
    remove(site.shop.journal)
    assert site.sync().returncode == 0
    assert steps(server) == list(range(300))
    assert [data["signal"] for data in server.finishes().values()] == [signal.SIGTERM]


def test_an_answer_to_an_earlier_start_stops_no_later_one(site: Site, server: Server) -> None:
    """A requeued job finds yesterday's `stop` in its spool; only what is said after its start counts."""
    run = site.spool / ("a" * 26)
    run.mkdir(parents=True)
    _spool.put_answer(run, {"stop": True})
    trainer = site.node(TRAIN, "100000", "0.01", wrap=(), ENCORE_RUN_ID="a" * 26, ENCORE_URL="http://127.0.0.1:9")
    assert until(lambda: site.drained() > 200)
    assert trainer.poll() is None
    _spool.put_answer(run, {"stop": True})
    assert until(lambda: trainer.poll() is not None)
    assert trainer.returncode == -signal.SIGTERM


def test_while_the_server_takes_everything_nothing_is_drained(site: Site, server: Server) -> None:
    """With a route the spool costs nothing; when the route goes, the spool takes over with all that the server lacks."""
    trainer = site.node(TRAIN, "100000", "0.01", wrap=())
    state = lambda: next((read_json(path) or {} for path in site.shop.journal.glob("*/drain.json")), {})  # noqa: E731
    assert until(lambda: state().get("delivering"))
    assert until(lambda: len(steps(server)) > 50)
    server.faults.append(lambda request: "drop")
    reached = len(steps(server))
    assert until(lambda: site.drained() > reached + 200), (site.drained(), reached)
    trainer.kill()
    trainer.wait()
    for pid in site.shop.senders():
        os.kill(pid, signal.SIGKILL)
    assert until(lambda: not site.shop.senders())
    remove(site.shop.journal)
    server.faults.clear()
    assert site.sync().returncode == 0
    assert len(steps(server)) > reached + 200
    assert steps(server) == list(range(len(steps(server))))


def test_a_rank_that_comes_while_the_last_words_wait_for_the_spool_is_drained_too(site: Site, server: Server) -> None:
    """The sender has seen the end of all that it knows and waits for a spool that fails: a rank that starts now is followed to its end."""
    env = {"ENCORE_URL": "", "ENCORE_FINISH_SECONDS": "1", "ENCORE_RUN_ID": "b" * 26, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    program = """
        import sdk
        sdk.init(project="p")
        for i in range(100): sdk.log({"loss": float(i)}, step=i)
        sdk.finish()
    """
    site.spool.write_text("no folder")
    first = site.node(program, wrap=(), RANK="0", LOCAL_RANK="0", **env)
    assert first.wait(120) == 0
    assert until(lambda: any((read_json(path) or {}).get("done") for path in site.shop.journal.glob("*/sender.json")))
    (sender,) = site.shop.senders()
    second = site.node(program, wrap=(), RANK="1", LOCAL_RANK="1", **env)
    assert second.wait(120) == 0
    assert site.shop.senders() == [sender]
    site.spool.unlink()
    assert until(lambda: not site.shop.senders())
    remove(site.shop.journal)
    done = site.sync()
    assert done.returncode == 0, done.stderr
    for rank in range(2):
        assert [step for step, _ in server.points("loss", rank=rank)] == list(range(100))
    assert [data["state"] for data in server.finishes().values()] == ["finished"] * 2


def test_64_ranks_of_a_node_have_one_sender(site: Site, server: Server) -> None:
    """One launch of 64 real processes: one sender is elected, every rank's every point arrives, its memory stays small."""
    program = """
        import os, sys
        import sdk
        ranks = int(sys.argv[1])
        read, write = os.pipe()
        children = []
        for rank in range(ranks):
            pid = os.fork()
            if pid == 0:
                os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_WORLD_SIZE=str(ranks),
                                  MASTER_ADDR="127.0.0.1", MASTER_PORT="1", TORCHELASTIC_RUN_ID="sixty-four", GROUP_RANK="0")
                run = sdk.init(project="p")
                for i in range(100): sdk.log({"loss": float(i)}, step=i)
                sdk.finish()
                os._exit(0)
            children.append(pid)
        for pid in children: assert os.waitpid(pid, 0)[1] == 0
    """
    trainer = site.node(program, "64", wrap=(), ENCORE_URL="http://127.0.0.1:9", ENCORE_FINISH_SECONDS="240", ENCORE_CONSOLE="0")
    said: list[tuple[str, str]] = []
    listening = threading.Thread(target=lambda: said.append(trainer.communicate()))  # 64 ranks that wait fill a pipe that nobody reads
    listening.start()
    most, senders = 0, set()

    def look() -> bool:
        nonlocal most
        for pid in site.shop.senders():
            senders.add(pid)
            try:
                status = Path(f"/proc/{pid}/status").read_text()
                most = max(most, int(status.split("RssAnon:")[1].split()[0]))
            except (OSError, IndexError):
                continue
        return not listening.is_alive()

    assert until(look, 270)
    ((_, err),) = said
    assert trainer.returncode == 0, err
    assert err.count("draining to") <= 240 // 5, "one rank speaks for its node"
    assert len(senders) == 1
    assert most < 80 << 10, f"{most} KiB"
    assert len({writer.parent for writer in site.shop.writers()}) == 1
    done = site.sync()
    assert done.returncode == 0, done.stderr
    for rank in range(64):
        assert [step for step, _ in server.points("loss", rank=rank)] == list(range(100))


# The copy -----------------------------------------------------------------------------------------------------------------------------


def journal(root: Path, points: int = 0, run: str | None = None, finish: bool = False) -> Writer:
    about = {"id": run or new_id(), "project": "p", "name": "n"}
    made = Writer(root, about, SimpleNamespace(strict=False, journal_mode="map"), {"host": "elsewhere", "boot": "other"})
    for i in range(points):
        made.log({"loss": float(i)}, step=i)
    if finish:
        made.finish({"state": "finished", "exit_code": 0, "signal": None, "error": None})
    return made


def seen(writer: str, **more: object) -> dict:
    return {"writers": {writer: 0}, "settled": set(), "alive": [], "gone": [], "blobs": set(), **more}


def everything(folder: Path) -> tuple[list[int], list[tuple[int, int]]]:
    """Record numbers of a journal in order, and its holes."""
    from sdk._records import RECORD

    reader, numbers, holes = Reader(folder), [], []
    while (chunk := reader.read(settled=True)) is not None:
        numbers += sorted(RECORD.unpack_from(row)[6] for rows in chunk.dense.values() for row in rows)
        holes += chunk.holes
    return numbers, holes


def test_the_spool_holds_whole_records_whenever_the_drain_dies(tmp_path: Path) -> None:
    """Cut at a random byte, with an old mark or none, again and again: what is there stays a prefix, and the end equals the original."""
    dice = random.Random(7)
    writer = journal(tmp_path / "hot")
    target = tmp_path / "spool" / writer.id
    step, mark = 0, None
    for _ in range(15):
        for _ in range(dice.randrange(1, 2000)):
            writer.log({f"k{i}": float(step) for i in range(40 + step % 3)}, step=step)
            step += 1
        copy = _spool.WriterCopy(writer.folder, target, mark)
        copy.begin()
        copy.points(False)
        numbers, holes = everything(target)
        assert not holes
        assert len(numbers) == step
        mark = dice.choice([copy.mark(), mark, None])
        last = max(target.glob("*.seg"))
        os.truncate(last, dice.randrange(0, last.stat().st_size + 1))  # a power loss of the file server
    copy = _spool.WriterCopy(writer.folder, target, None)
    copy.points(True)
    assert everything(target) == everything(writer.folder)
    assert len(list(target.glob("*.seg"))) > 1


def test_a_record_that_is_being_written_is_not_drained(tmp_path: Path) -> None:
    """The last one counts only with its checksum; damage in the middle is drained as it is and told as a hole over there."""
    writer = journal(tmp_path / "hot", 1000)
    (path,) = [path for path in writer.folder.glob("*.seg") if path.stem.isdigit()]
    target = tmp_path / "spool" / writer.id
    copy = _spool.WriterCopy(writer.folder, target)
    copy.begin()
    position = writer._where()[1]
    with open(path, "r+b", buffering=0) as file:
        file.seek(position - 8)
        value = file.read(8)
        file.seek(position - 8)
        file.write(b"\xff" * 8)
        copy.points(False)
        assert len(everything(target)[0]) == 999
        file.seek(position - 8)
        file.write(value)
        file.seek(position - 480 - 8)
        file.write(b"\xff" * 8)
    copy.points(False)
    assert len(everything(target)[0]) == 1000
    fresh = tmp_path / "fresh" / writer.id
    copy = _spool.WriterCopy(writer.folder, fresh)
    copy.begin()
    copy.points(False)
    numbers, holes = everything(fresh)
    assert (len(numbers), len(holes), holes[0][0] == holes[0][1]) == (999, 1, True)


def test_a_spool_that_fails_costs_nothing_and_is_tried_again(site: Site, server: Server) -> None:
    """The shared folder cannot be written: training and finish go on, the status says why; once it can, all of it is drained."""
    site.spool.parent.joinpath("spool").write_text("in the way")
    trainer = site.node(TRAIN, "200", "0.001", wrap=(), ENCORE_URL="http://127.0.0.1:9", ENCORE_FINISH_SECONDS="2")
    out, err = trainer.communicate(timeout=120)
    assert "trained" in out
    assert "not all of run" in err
    status = json.loads(site.shop.encore("status", "--json").stdout)["results"]
    assert "spool" in str(status[0]["error"])
    site.spool.unlink()
    assert until(lambda: site.drained() >= 200)
    assert until(lambda: site.sync().returncode == 0)
    assert until(lambda: steps(server) == list(range(200)))


# Where the journal lies ---------------------------------------------------------------------------------------------------------------

MOUNTS = rb"""22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw
30 22 0:40 / /home rw,relatime shared:7 - nfs4 filer:/home rw,vers=4.2
31 30 0:41 / /home/ada/scratch rw - lustre mgs@tcp:/scratch rw
32 22 0:42 / /mnt/with\040blank rw - fuse.sshfs host:/ rw
33 22 0:43 / /var/lib rw - btrfs /dev/sdb rw
34 22 0:44 / /homework rw - xfs /dev/sdc rw
35 34 0:45 / /homework rw - tmpfs tmpfs rw
"""


@pytest.mark.parametrize(
    ("place", "kind"),
    [
        ("/tmp", "ext4"),
        ("/home/ada", "nfs4"),
        ("/home/ada/scratch/runs", "lustre"),
        ("/mnt/with blank/x", "fuse.sshfs"),
        ("/var/lib/x", "btrfs"),
        ("/homework/x", "tmpfs"),
    ],
)
def test_the_mount_that_a_folder_lies_on_decides(place: str, kind: str) -> None:
    """The longest mount point above it, the last one mounted there; names are not confused with their beginnings."""
    assert _filesystems.kind_in(MOUNTS, place) == kind


@pytest.mark.parametrize(
    ("kind", "journal"), [("ext4", "map"), ("nfs", "none"), ("fuse.sshfs", "none"), ("lustre", "none"), ("btrfs", "write"), ("", "none")]
)
def test_only_tried_filesystems_are_mapped(monkeypatch: pytest.MonkeyPatch, kind: str, journal: str) -> None:
    """Network, FUSE and unknown ones get no hot part; local ones that fail on a full disk (btrfs) go by write(2)."""
    monkeypatch.setattr(_filesystems, "_kind", lambda place: kind)
    assert _filesystems.of("/x").journal == journal


def test_what_the_system_says_of_this_machine_is_the_same_both_ways(tmp_path: Path) -> None:
    """mountinfo and statfs agree on the folder of this test."""
    real = os.path.realpath(tmp_path)
    assert _filesystems.kind_in(Path("/proc/self/mountinfo").read_bytes(), real).replace("ext3", "ext4") == _filesystems._by_statfs(real)


@pytest.mark.skipif(not allowed("--mount"), reason="mounting is not permitted here")
def test_a_journal_on_an_untried_filesystem_lies_on_this_node_and_is_drained_there(site: Site, server: Server) -> None:
    """A real one that is not on the list (ramfs): the hot part lies in a private local folder, its spool in ENCORE_JOURNAL."""
    shared = site.shop.folder / "shared"
    shared.mkdir()
    script = f'mount -t ramfs ramfs {shared} && "$@" && cp -r {shared}/sdk {shared}.copied'
    trainer = site.node(
        TRAIN,
        *("100", "0.001"),
        wrap=("unshare", "--mount", "sh", "-c", script, "x"),
        ENCORE_JOURNAL=str(shared / "sdk"),
        ENCORE_SPOOL="",
        ENCORE_URL="http://127.0.0.1:9",
    )
    out, err = trainer.communicate(timeout=120)
    assert "trained" in out, err
    assert "is on ramfs" in err
    (hot,) = (site.shop.folder / "local").glob("encore-*")
    assert hot.stat().st_mode & 0o777 == 0o700
    (about,) = [json.loads(path.read_text()) for path in hot.glob("sdk/*/*/writer.json") if '"kind":"trainer"' in path.read_text()]
    assert (about["journal_mode"], about["spool"]) == ("map", str(shared / "sdk"))
    done = site.sync(Path(f"{shared}.copied"))
    assert done.returncode == 0, done.stderr
    assert steps(server) == list(range(100))


def test_a_trap_in_the_local_folder_is_not_stepped_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody put a link where our folder would be: it is refused, and the journal itself is written by write(2)."""
    victim = tmp_path / "victim"
    victim.mkdir()
    (tmp_path / _place._own_name()).symlink_to(victim)
    settings = _settings.Settings(journal=tmp_path / "nfs", local=tmp_path)
    monkeypatch.setattr(_filesystems, "of", lambda path: _filesystems.Filesystem("nfs", "none" if path == settings.journal else "map"))
    near, own = _place.choose(settings)
    with pytest.raises(PermissionError):
        near.ready()
    assert (own.root, own.mode) == (settings.journal, "write")
    (tmp_path / _place._own_name()).unlink()
    near.ready()
    assert (near.mode, near.spool, "nfs" in str(near.why)) == ("map", settings.journal, True)
    assert near.root.parent.stat().st_mode & 0o777 == 0o700


# How long it is kept ------------------------------------------------------------------------------------------------------------------


def test_a_journal_goes_after_its_time_and_not_before(site: Site, server: Server) -> None:
    """Delivered: after a day. Drained whole: from the node after an hour. What the server lacks never goes by itself."""
    made = journal(site.shop.journal, 50, finish=True)
    run = made.folder.parent
    assert not keeping.sweep(run, 0)
    assert keeping.unconfirmed(run)
    (made.folder / "blobs" / ("0" * 64)).write_bytes(b"x")
    server.faults.append(lambda r: (422, {}, {"code": "digest", "message": "that is not its digest"}) if "blobs/pack" in r.path else None)
    refused = site.sync(run)
    assert refused.returncode == 1
    assert "not its digest" in refused.stderr
    assert keeping.unconfirmed(run)
    (made.folder / "blobs" / ("0" * 64)).unlink()
    assert site.sync(run).returncode == 0
    assert not keeping.unconfirmed(run)
    before = (run / keeping.DELIVERED).stat().st_mtime_ns
    assert site.sync(run).returncode == 0
    assert (run / keeping.DELIVERED).stat().st_mtime_ns == before  # a second sync does not begin the day anew
    assert not keeping.sweep(run)
    (made.folder / "refused.jsonl").write_text("{}\n")
    assert not keeping.sweep(run, 0)
    (made.folder / "refused.jsonl").unlink()
    told = read_json(run / keeping.DELIVERED) or {}
    (run / keeping.DELIVERED).write_text(json.dumps({**told, "time_us": told["time_us"] - 25 * 3600 * 10**6}))
    assert keeping.sweep(run)
    assert not run.exists()

    hot = journal(site.shop.journal, 50, finish=True).folder.parent
    (hot / _spool.STATE).write_text(json.dumps({"whole": []}))
    os.utime(hot / _spool.STATE, (1, 1))
    assert not sweep(hot)
    (hot / _spool.STATE).write_text(json.dumps({"whole": [path.parent.name for path in hot.glob("*/writer.json")]}))
    assert not sweep(hot)
    os.utime(hot / _spool.STATE, (1, 1))
    assert sweep(hot)
