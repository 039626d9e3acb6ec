"""How long a sender lives, what it does for others, how it waits, and what it brings to the disk."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from email.utils import formatdate
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import ROOT, Shop, until
from server import Request, Server

from sdk._ids import new_id
from sdk._journal import Writer
from sdk._sender import adopt, durable, limits
from sdk._sender.run import RunSender
from sdk._transport import Answer

SENDER = """
import os, sys, types
package = types.ModuleType("sdk"); package.__path__ = [os.path.join({root!r}, "sdk")]; sys.modules["sdk"] = package
from sdk._sender import limits, process
{patches}
sys.exit(process.main(sys.argv[1]))
"""


def sender(shop: Shop, server: Server, run_folder: Path, patches: str) -> subprocess.Popen[str]:
    """The sender's process with limits of seconds instead of hours."""
    code = SENDER.format(root=str(ROOT), patches=patches)
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(run_folder)], env=shop.environment(server), stderr=subprocess.PIPE, text=True
    )
    shop.started.append(process)
    return process


def left_behind(shop: Shop, points: int = 50, **more: object) -> Path:
    """The folder of a run that was killed without a sender."""
    program = f"import sdk, os\nrun = sdk.init(project='p')\nfor i in range({points}): sdk.log({{'x': i}}, step=i)\nos.kill(os.getpid(), 9)"
    before = set(adopt.run_folders(shop.journal))
    assert shop.run(program, None, ENCORE_SENDER="external").returncode == -9
    (folder,) = set(adopt.run_folders(shop.journal)) - before
    return folder


def a_writer(root: Path, run: str, **about: object) -> Writer:
    """A writer of this process; `finish` ends it."""
    from sdk import _process

    facts = {"host": _process.host(), "boot": _process.boot_id(), "pid": os.getpid(), "pid_started": _process.started(os.getpid())}
    return Writer(root, {"id": run, "project": "p"}, SimpleNamespace(strict=False), {**facts, "mode": "online", **about})


def rounds(sender: RunSender, what, seconds: float = 30.0) -> bool:
    """Steps of a sender in this process until something holds."""
    deadline = time.monotonic() + seconds
    while not what() and time.monotonic() < deadline:
        if not sender.step():
            time.sleep(0.01)
    return bool(what())


# Life -------------------------------------------------------------------------------------------------------------------------------


def test_a_sender_killed_while_training_goes_on_comes_back(shop: Shop, server: Server) -> None:
    """The run does not look dead until its end: the trainer's keeper starts another, which goes on where the first one stood."""
    program = """
        import sdk, sdk._keeper, time, os
        sdk._keeper.LOOK_SECONDS = 0.3
        sdk.init(project="p")
        for i in range(100_000):
            sdk.log({"x": i}, step=i)
            time.sleep(0.01)
            if os.path.exists("stop"): break
        print(i)
    """
    process = shop.start(program, server)
    (first,) = until(lambda: server.points("x") and shop.senders())
    os.kill(first, signal.SIGKILL)
    assert until(lambda: [pid for pid in shop.senders() if pid != first])
    reached = len(server.points("x"))
    assert until(lambda: len(server.points("x")) > reached)
    assert process.poll() is None
    (shop.work / "stop").touch()
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert until(lambda: server.points("x") == [(i, i) for i in range(int(out) + 1)])


def test_after_a_day_without_a_server_the_sender_leaves_and_the_next_one_goes_on(shop: Shop, down: Server) -> None:
    """A day is a second here. Nothing is removed, and why it left stands in its log; it does not leave while the trainer lives."""
    program = "import sdk, sys\nsdk.init(project='p')\nfor i in range(50): sdk.log({'x': i}, step=i)\n"
    program += "print('on', flush=True); sys.stdin.readline()"
    script = shop.work / "program.py"
    script.write_text(program)
    trainer = subprocess.Popen(
        [sys.executable, str(script)],
        env=shop.environment(down, ENCORE_SENDER="external"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    shop.started.append(trainer)
    trainer.stdout.readline()
    (folder,) = adopt.run_folders(shop.journal)
    process = sender(shop, down, folder, "limits.GIVE_UP_SECONDS = 1.0; limits.LONGEST_WAIT_SECONDS = 0.3")
    assert until(lambda: (json.loads((folder / "sender.json").read_text()) if (folder / "sender.json").exists() else {}).get("error"))
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(2)
    trainer.communicate("\n", timeout=120)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0
    assert "nothing was taken" in err
    down.start()
    assert shop.encore("sync", server=down).returncode == 0
    assert down.points("x") == [(i, i) for i in range(50)]


def test_what_a_death_left_goes_over_while_another_run_goes_on(shop: Shop, server: Server) -> None:
    """Not only when that one has ended: a training of weeks must not keep an earlier one's last points waiting."""
    left = left_behind(shop)
    own = a_writer(shop.journal, new_id())
    process = sender(shop, server, own.folder.parent, "limits.ADOPT_AFTER_SECONDS = 0.1")
    assert until(lambda: server.points("x") == [(i, i) for i in range(50)])
    assert until(lambda: server.docs("event", "gone"))
    assert process.poll() is None
    assert until(lambda: adopt.is_settled(left))
    own.finish({"state": "finished", "exit_code": 0, "signal": None, "error": None})
    assert process.wait(120) == 0


def test_adoption_leaves_alone_what_is_not_its_own(shop: Shop, server: Server, down: Server) -> None:
    """Runs that live, that are offline by wish, or that belong to another server; a broken folder stops nothing."""
    (shop.journal / "broken" / "w").mkdir(parents=True)
    (shop.journal / "broken" / "w" / "writer.json").write_text("{")
    alive = a_writer(shop.journal, new_id())
    offline, elsewhere = a_writer(shop.journal, new_id(), mode="offline"), a_writer(shop.journal, new_id(), url=down.url)
    for writer in (offline, elsewhere):
        writer.finish({"state": "finished"})
    left = left_behind(shop, 7)
    adopt.adopt(shop.journal, shop.journal / "none", server.url, "t", lambda: False)
    assert {about["run"]["id"] for about in server.writers.values()} == {left.name}
    assert [adopt.is_settled(writer.folder.parent) for writer in (alive, offline, elsewhere)] == [False, False, False]
    assert alive.finish({"state": "finished"}) is None


def test_an_adopted_run_that_somebody_resumes_is_not_said_to_be_over(shop: Shop, server: Server) -> None:
    """A start of the same run in the midst of it: who has adopted it lets go, so that the start's own sender can be the one."""
    left = left_behind(shop, 7)
    came: list[Writer] = []

    def fault(request: Request) -> None:
        if not came:
            came.append(a_writer(shop.journal, left.name))

    server.faults.append(fault)
    adopt.adopt(shop.journal, shop.journal / "none", server.url, "t", lambda: False)
    assert came
    assert not adopt.is_settled(left)
    assert not json.loads((left / "sender.json").read_text())["done"]
    came[0].finish({"state": "finished"})


def test_a_delivered_run_is_cleared_after_a_day_and_never_what_was_not_taken(shop: Shop, server: Server) -> None:
    """The folder of a settled run goes; one with something refused, or not sent, stays for good."""
    shop.run("import sdk\nsdk.init(project='p'); sdk.log({'x': 1})", server)
    assert until(lambda: not shop.senders())
    (done,) = adopt.run_folders(shop.journal)
    assert adopt.is_settled(done)
    assert not adopt.sweep(done)
    refused = shop.folder / "refused"
    import shutil

    shutil.copytree(done, refused)
    next(refused.glob("*/writer.json")).with_name("refused.jsonl").write_text("{}\n")
    unsent = left_behind(shop)
    long_ago = time.time() - 2 * limits.KEEP_SEALED_SECONDS
    for folder in (done, refused, unsent):
        for path in [*folder.glob("*/*.json"), folder / "sender.json"]:
            if path.exists():
                os.utime(path, (long_ago, long_ago))
    assert [adopt.sweep(folder) for folder in (done, refused, unsent)] == [True, False, False]
    assert [folder.exists() for folder in (done, refused, unsent)] == [False, True, True]


def test_a_schedulers_sigterm_lets_the_sender_wait_for_the_trainers_last_words(shop: Shop, server: Server) -> None:
    """Both get it at once; the trainer saves its checkpoint first, and what it logs then still goes over."""
    program = """
        import sdk, signal, sys, time
        sdk.init(project="p")
        def end(*_):
            time.sleep(2)
            sdk.log({"last": 1.0})
            sys.exit(0)
        signal.signal(signal.SIGTERM, end)
        sdk.log({"x": 1.0})
        time.sleep(600)
    """
    process = shop.start(program, server, ENCORE_FINISH_SECONDS="0")
    (first,) = until(lambda: server.points("x") and shop.senders())
    os.kill(first, signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 0
    assert until(lambda: server.points("last") and server.finishes())


def test_a_sender_is_light(shop: Shop, server: Server) -> None:
    """Nice 19 and at most 45 MB while a program logs; it is the only one however many ranks start."""
    program = (
        "import sdk, time\nsdk.init(project='p')\nfor i in range(20_000): sdk.log({f'k{j}': i for j in range(20)}, step=i)\ntime.sleep(600)"
    )
    env = {"WORLD_SIZE": "2", "ENCORE_RUN_ID": "a" * 26, "ENCORE_SENDER_NICE": ""}
    processes = [shop.start(program, server, RANK=str(r), LOCAL_RANK=str(r), **env) for r in range(2)]
    assert until(
        lambda: sum(server.next.values()) > 40_000 and len(server.points("k7")) == 40_000, 200
    )  # beside whatever else this machine does
    (pid,) = shop.senders()
    status = Path(f"/proc/{pid}/status").read_text()
    assert int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[16]) == 19
    anonymous = int(re.search(r"RssAnon:\s+(\d+) kB", status)[1])
    assert anonymous < 45_000, status
    for process in processes:
        process.kill()


@pytest.mark.parametrize(("given", "steps"), [("", 19), ("5", 5), ("0", 0), ("99", 19), ("-3", 19), ("much", 19)])
def test_how_far_a_sender_steps_back_can_be_said(given: str, steps: int) -> None:
    """ENCORE_SENDER_NICE, where something else than training occupies every core; what means nothing is the default."""
    code = "import os; from sdk._sender.process import _step_back; print(os.nice(0)); _step_back(); print(os.nice(0))"
    env = {**os.environ, "ENCORE_SENDER_NICE": given}
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=ROOT, capture_output=True, text=True, start_new_session=True)
    before, after = map(int, done.stdout.split())
    assert after == min(19, before + steps), done.stderr


def test_the_dead_cost_a_sender_neither_memory_nor_looks(shop: Shop, server: Server) -> None:
    """A long run leaves hundreds of ended starts and forked children; each would hold 8 MiB mapped and be read again each tick."""
    run = new_id()
    program = """
        import os, sdk
        sdk.init(project="p")
        for n in range(40):
            if os.fork() == 0:
                sdk.log({"child": float(n)}, step=n)
                os._exit(0)
            os.wait()
        os.kill(os.getpid(), 9)
    """
    assert shop.run(program, None, ENCORE_SENDER="external", ENCORE_RUN_ID=run).returncode == -9
    sender = RunSender(shop.journal / run, server.url, "t")
    assert rounds(sender, lambda: sender.done)
    sender.step()
    assert len(sender.outboxes) >= 41
    assert all(box.rested for box in sender.trainers)
    mapped = sum(line.count(".seg") for line in Path("/proc/self/maps").read_text().splitlines() if run in line)
    assert mapped <= 4, mapped
    assert len(server.points("child", kind="node")) == 40


# Waiting ----------------------------------------------------------------------------------------------------------------------------


def test_back_off_grows_to_half_a_minute_and_for_the_dead_to_less_than_five(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """While a trainer lives it comes back within 39 s; an hour after the last one's end within 234 s: all is over 300 s after the cut."""
    clock = [1000.0]
    monkeypatch.setattr("sdk._sender.run.time", SimpleNamespace(monotonic=lambda: clock[0], time=time.time))
    ended = [False]
    sender = RunSender(tmp_path, "http://127.0.0.1:9", "t")
    monkeypatch.setattr(RunSender, "ending", property(lambda self: ended[0]))
    waits = []
    for _ in range(400):
        sender._back_off("down")
        waits.append(sender._wait_until - clock[0])
        clock[0] += waits[-1]
    assert waits[0] <= limits.FIRST_WAIT_SECONDS * 1.3
    assert 20 < max(waits) <= limits.LONGEST_WAIT_SECONDS * 1.3
    ended[0] = True
    for _ in range(10):
        sender._back_off("down")
    assert limits.LONGEST_WAIT_SECONDS * 1.3 < sender._wait_until - clock[0] < 300
    assert limits.PATIENT_WAIT_SECONDS * 1.3 < 300


@pytest.mark.parametrize("path", ["ingest/writers", "/batches", "ingest/heartbeats", "ingest/blobs/missing"])
def test_retry_after_is_obeyed_on_every_path(shop: Shop, server: Server, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a request of that kind before its time, and everything afterwards."""
    told: list[float] = []
    early: list[float] = []
    monkeypatch.setattr(limits, "HEARTBEAT_SECONDS", 0.1)

    def fault(request: Request):
        if not request.path.partition("?")[0].endswith(path):
            return None
        if not told:
            told.append(time.monotonic())
            return 429, {"Retry-After": "1"}, {"code": "busy", "message": "wait", "fields": {}}
        if time.monotonic() - told[0] < 1.0:
            early.append(time.monotonic() - told[0])
        return None

    server.faults.append(fault)
    writer = a_writer(shop.journal, new_id())
    writer.log({"x": 1.0})
    writer.put_blob(b"a blob")
    sender = RunSender(writer.folder.parent, server.url, "t")
    sender._next_heartbeat = 0.0
    assert rounds(sender, lambda: told and time.monotonic() - told[0] > 1.5)
    assert not early
    writer.finish({"state": "finished"})
    assert rounds(sender, lambda: sender.done)
    assert server.points("x") == [(0, 1.0)]
    assert len(server.blobs) == 1


def test_retry_after_may_be_a_date() -> None:
    """As HTTP has it and proxies send it; rubbish is no time at all."""
    assert 50 < Answer(503, {"retry-after": formatdate(time.time() + 60, usegmt=True)}, b"").retry_after <= 60
    assert Answer(503, {"retry-after": formatdate(time.time() - 60, usegmt=True)}, b"").retry_after == 0
    assert Answer(503, {"retry-after": "soon"}, b"").retry_after is None
    assert Answer(429, {"retry-after": "99999"}, b"").error().fields["retry_after"] == 600


def test_a_refusal_of_one_writer_does_not_hold_up_the_others(shop: Shop, server: Server) -> None:
    """A rank whose writer.json the server will not have waits for itself alone."""
    run = new_id()
    bad, good = a_writer(shop.journal, run, rank=0), a_writer(shop.journal, run, rank=1)
    server.faults.append(
        lambda r: (
            (400, {}, {"code": "invalid", "message": "no", "fields": {}})
            if r.path.endswith("writers") and bad.id.encode() in r.body
            else None
        )
    )
    for writer in (bad, good):
        writer.log({"x": 1.0})
        writer.finish({"state": "finished"})
    sender = RunSender(good.folder.parent, server.url, "t")
    assert rounds(sender, lambda: server.points("x", rank=1) == [(0, 1.0)])
    assert not sender.done
    server.faults.clear()
    assert rounds(sender, lambda: sender.done)
    assert server.points("x", rank=0) == [(0, 1.0)]


def test_a_record_that_the_server_fails_on_is_set_aside_only_while_it_takes_others(
    shop: Shop, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """500 again and again: its neighbours arrive, it becomes a hole with its bytes kept; a server that fails on all gets all later."""
    for name, value in (("FIRST_WAIT_SECONDS", 0.01), ("LONGEST_WAIT_SECONDS", 0.02), ("POISON_TRIES", 4), ("POISON_SECONDS", 0.2)):
        monkeypatch.setattr(limits, name, value)
    from sdk import _wire

    run = new_id()
    poisoned, other = a_writer(shop.journal, run, rank=0), a_writer(shop.journal, run, rank=1)
    broken = threading.Event()
    broken.set()

    def fault(request: Request):
        if not request.path.endswith("/batches"):
            return None
        body = request.body
        if request.headers.get("content-encoding") == "deflate":
            import zlib

            body = zlib.decompress(body)
        elif request.headers.get("content-encoding") == "zstd":
            import zstandard

            body = zstandard.ZstdDecompressor().decompressobj().decompress(body)
        docs = _wire.decode(body, dict(server.keylists))["docs"]
        failing = broken.is_set() or any(doc["doc"].get("name") == "poison" for doc in docs)
        return (500, {}, {"code": "error", "message": "a mistake of ours", "fields": {}}) if failing else None

    server.faults.append(fault)
    for i in range(40):
        poisoned.log({"x": i}, i)
        if i == 20:
            poisoned.emit({"type": "event", "name": "poison", "data": {}})
    poisoned.finish({"state": "finished"})
    sender = RunSender(poisoned.folder.parent, server.url, "t")
    assert not rounds(sender, lambda: sender.done, 1.0)
    assert not (poisoned.folder / "refused.jsonl").exists()  # the server is broken as a whole
    broken.clear()

    def go_on() -> bool:
        other.log({"y": 1.0})  # what it takes meanwhile
        return server.points("x", rank=0) == [(i, i) for i in range(40)]

    assert rounds(sender, go_on)
    other.finish({"state": "finished"})
    assert rounds(sender, lambda: sender.done)
    (line,) = (poisoned.folder / "refused.jsonl").read_text().splitlines()
    refused = json.loads(line)
    assert refused["first"] == refused["last"]
    kept = (poisoned.folder / "refused" / f"{refused['first']}-{refused['last']}.batch").read_bytes()
    assert _wire.decode(kept)["docs"][0]["doc"]["name"] == "poison"


def test_a_journal_that_cannot_be_read_stops_no_other(shop: Shop, server: Server) -> None:
    """One of a later version: it stays as it is, and why is said; the run's other writers arrive."""
    run = new_id()
    newer, good = a_writer(shop.journal, run, rank=0), a_writer(shop.journal, run, rank=1)
    for writer in (newer, good):
        writer.log({"x": 1.0})
        writer.finish({"state": "finished"})
    segment = newer.folder / "00000000.seg"
    segment.write_bytes(b"ENCOREJ2" + segment.read_bytes()[8:])
    about = json.loads((newer.folder / "writer.json").read_text())
    (newer.folder / "writer.json").write_text(json.dumps(about | {"format": 2}))
    sender = RunSender(good.folder.parent, server.url, "t")
    assert sender.elect()
    assert rounds(sender, lambda: server.points("x", rank=1) == [(0, 1.0)])
    assert rounds(sender, lambda: "newer than this SDK" in (json.loads((good.folder.parent / "sender.json").read_text())["error"] or ""))
    assert not sender.done
    sender.resign()
    answer = shop.encore("sync", str(good.folder.parent), "--seconds", "1", server=server)
    assert answer.returncode == 1
    assert "newer than this SDK" in answer.stderr


# The disk ---------------------------------------------------------------------------------------------------------------------------


def test_every_second_each_open_file_of_the_journal_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The segment written to, each round; the one before it once more after it was left; blobs, writer.json and the folders once."""
    synced: list[str] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        synced.append(os.path.relpath(os.readlink(f"/proc/self/fd/{fd}"), tmp_path))
        real(fd)

    monkeypatch.setattr(durable.os, "fsync", fsync)
    run = new_id()
    writer = a_writer(tmp_path, run)
    disk = durable.Durable(tmp_path / run)
    at = f"{run}/{writer.id}"

    def round_of(ended: set[str] = frozenset()) -> list[str]:
        synced.clear()
        disk.step(set(ended))
        return [name.removeprefix(at + "/") for name in synced]

    first = round_of()
    assert {"00000000.seg", "writer.json", at, run, "."} <= set(first)
    assert first.index("00000000.seg") < first.index(at)  # a name only when what it names is there
    assert round_of() == ["00000000.seg"]
    digest = writer.put_blob(b"a file of the program").partition(":")[2]
    assert [name for name in round_of() if name != "00000000.seg"] == [f"blobs/{digest}", "blobs"]
    values = {f"k{i}": 0.5 for i in range(1000)}
    while not (writer.folder / "00000001.seg").exists():
        writer.log(values)
    rolled = round_of()
    assert rolled.count("00000000.seg") == rolled.count("00000001.seg") == 1
    assert rolled.index("00000001.seg") < rolled.index(at)
    assert round_of() == ["00000001.seg"]
    writer.finish({"state": "finished"})
    assert "00000001.seg" in round_of({writer.id})
    assert round_of({writer.id}) == []


def test_a_sync_that_the_disk_refuses_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed fsync is no fsync: `encore status` and the trainer can read it."""

    def refuse(fd: int) -> None:
        raise OSError(5, "Input/output error")

    run = new_id()
    writer = a_writer(tmp_path, run)
    monkeypatch.setattr(durable.os, "fsync", refuse)
    sender = RunSender(tmp_path / run, None, None)
    assert sender.elect()
    sender.step()
    sender.sync()
    sender.tell_end()
    assert "Input/output error" in json.loads((tmp_path / run / "sender.json").read_text())["disk"]
    writer.finish({"state": "finished"})
    sender.resign()
