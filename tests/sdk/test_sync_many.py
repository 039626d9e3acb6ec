"""Offline for days, then `encore sync`: of hundreds of runs, of copies, from several places at once, and what stays behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import Shop, until
from server import Request, Server

from sdk import _place, _process, _spool
from sdk._ids import new_id
from sdk._journal import Writer
from sdk._sender import keeping

ALONE = os.path.dirname(sys.executable)  # no other Python on the PATH, which doctor would ask
ENDED = {"state": "finished", "exit_code": 0, "signal": None, "error": None}


def journal(root: Path, points: int, run: str | None = None, keys: int = 1) -> Writer:
    """A journal as a run on another machine leaves it, still open."""
    about = {"id": run or new_id(), "project": "p", "name": "n"}
    made = Writer(root, about, SimpleNamespace(strict=False, journal_mode="map"), {"host": "elsewhere", "boot": "other", "mode": "offline"})
    _place.note(made.folder.parent, _place.Place(root, "map"))
    for i in range(points):
        made.log({f"k{key}": float(i) for key in range(keys)}, step=i)
    return made


def seen(writer: str, **more: object) -> dict:
    return {"writers": {writer: 0}, "settled": set(), "alive": [], "gone": [], "blobs": set(), **more}


def small(root: Path, target: Path, points: int) -> str:
    """A finished run as a spool holds it: without the room that a journal keeps ready."""
    made = journal(root, points)
    made.finish(ENDED)
    _spool.RunCopy(made.folder.parent, target).copy(lambda: seen(made.id, settled={made.id}))
    shutil.rmtree(made.folder.parent)
    return made.id


def steps(server: Server, writer: str, key: str = "k0") -> list[int]:
    from sdk import _wire

    return [step for batch in server.batches.get(writer, []) for _, k, step, _, _ in _wire.points(batch) if k == key]


def start_sync(shop: Shop, server: Server, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", "import sys; from sdk._cli import main; sys.exit(main())", "sync", *arguments]
    return subprocess.Popen(command, env=shop.environment(server), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_hundred_runs_go_with_one_command(shop: Shop, server: Server) -> None:
    """100 runs, two of them refused: the others arrive, several at a time; each is told, a last line sums up, the status says so."""
    spool = shop.folder / "many"
    writers = [small(shop.folder / "hot", spool, 5) for _ in range(100)]
    refused = {json.loads(path.read_text())["run"]["id"] for path in sorted(spool.glob("*/*/writer.json"))[:2]}

    def refuse(request: Request) -> tuple[int, dict[str, str], dict[str, object]] | None:
        if request.path.endswith("ingest/writers") and json.loads(request.body)["run"]["id"] in refused:
            return 403, {}, {"code": "forbidden", "message": "this project is not yours", "fields": {}}
        return None

    server.faults.append(refuse)
    process = start_sync(shop, server, str(spool))
    threads = set()
    while process.poll() is None:
        threads.add(len(os.listdir(f"/proc/{process.pid}/task")) if Path(f"/proc/{process.pid}").exists() else 0)
        until(lambda: process.poll() is not None, 0.1)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1, err
    assert max(threads) > 4
    assert sum(steps(server, writer) == list(range(5)) for writer in writers) == 98
    assert out.count("are with the server") == 98
    assert "98 of 100 runs" in out.splitlines()[-1]
    assert "2 are not whole" in out.splitlines()[-1]
    assert err.count("this project is not yours") == 2
    server.faults.clear()
    again = shop.encore("sync", str(spool), server=server)
    assert again.returncode == 0, again.stderr
    assert "all is with the server" in again.stdout.splitlines()[-1]
    assert all(steps(server, writer) == list(range(5)) for writer in writers)


def test_a_copy_that_was_made_while_the_run_wrote_costs_nothing(shop: Shop, server: Server) -> None:
    """A torn copy is sent up to where it breaks off, never a hole for what the original still has; then the original goes whole."""
    made = journal(shop.journal, 3000, keys=100)
    copy = shop.folder / "copy"
    shutil.copytree(shop.journal, copy)
    for i in range(3000, 9000):
        made.log({f"k{key}": float(i) for key in range(100)}, step=i)
    made.finish(ENDED)
    torn = copy / made.folder.parent.name / made.id
    later = sorted(path for path in made.folder.glob("*.seg") if path.stem.isdigit())[1:]
    assert later
    for path in later:  # the copy's first file is older than its last ones
        shutil.copy(path, torn)
    sent = shop.encore("sync", str(copy), server=server)
    assert sent.returncode == 1
    assert "breaks off at record" in sent.stderr
    found = steps(server, made.id)
    assert found == list(range(len(found)))
    assert 0 < len(found) < 9000
    assert not [hole for batch in server.batches[made.id] for hole in batch["holes"]]
    whole = shop.encore("sync", str(shop.journal), server=server)
    assert whole.returncode == 0, whole.stderr
    assert steps(server, made.id) == list(range(9000))


def test_if_the_original_is_lost_what_lies_behind_a_gap_goes_too(shop: Shop, server: Server) -> None:
    """--with-holes is the user's word that nothing better will come."""
    made = journal(shop.journal, 2000)
    made.finish(ENDED)
    copy = shop.folder / "copy"
    shutil.copytree(shop.journal, copy)
    (segment,) = (copy / made.folder.parent.name / made.id).glob("0*.seg")
    with open(segment, "r+b") as file:
        file.seek(20_000)
        file.write(b"\0" * 4096)
    assert shop.encore("sync", str(copy), server=server).returncode == 1
    assert len(steps(server, made.id)) < 500
    sent = shop.encore("sync", str(copy), "--with-holes", server=server)
    assert sent.returncode == 0, sent.stderr
    assert 1900 < len(steps(server, made.id)) < 2000


def test_two_machines_sync_their_copies_at_once(shop: Shop, server: Server) -> None:
    """Two copied folders and the original, all at the same time, with answers lost on the way: every point once."""
    writers = []
    for _ in range(4):
        made = journal(shop.journal, 1500, keys=20)
        made.finish(ENDED)
        writers.append(made.id)
    for name in ("one", "two"):
        shutil.copytree(shop.journal, shop.folder / name)
    count = 0

    def lose(request: Request) -> str | None:
        nonlocal count
        count += request.path.endswith("/batches")
        return "cut" if request.path.endswith("/batches") and count % 3 == 0 else None

    server.faults.append(lose)
    running = [start_sync(shop, server, str(folder)) for folder in (shop.folder / "one", shop.folder / "two", shop.journal)]
    for process in running:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    for writer in writers:
        assert steps(server, writer) == list(range(1500))
        assert sorted(server.ranges(writer)) == server.ranges(writer)


def test_a_running_program_is_synced_beside_it_again_and_again(shop: Shop, server: Server) -> None:
    """Offline while it trains: each `encore sync` brings what there is by then, the last one the end."""
    program = """
        import sdk, sys
        run = sdk.init(project="p", mode="offline")
        for i in range(3):
            for step in range(100 * i, 100 * i + 100): sdk.log({"k0": float(step)}, step=step)
            print(run.id, flush=True)
            sys.stdin.readline()
    """
    script = shop.work / "train.py"
    script.write_text(textwrap.dedent(program))
    trainer = subprocess.Popen(
        [sys.executable, str(script)], env=shop.environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert trainer.stdin is not None
    assert trainer.stdout is not None
    for i in range(3):
        assert trainer.stdout.readline()
        done = shop.encore("sync", server=server)
        assert done.returncode == 0, done.stderr
        assert [step for step, _ in server.points("k0")] == list(range(100 * (i + 1)))
        if i == 1:
            status = json.loads(shop.encore("status", "--json").stdout)["results"]
            assert [each["alive"] for each in status] == [1]
            assert not json.loads(shop.encore("status", "--clean", "--json").stdout)["removed"]
        trainer.stdin.write("\n")
        trainer.stdin.flush()
    trainer.wait(timeout=120)
    assert until(lambda: shop.encore("sync", server=server).returncode == 0 and server.finishes())


def test_a_program_that_logs_without_a_pause_is_synced_as_far_as_it_was(shop: Shop, server: Server) -> None:
    """There is always something new: what there was by then counts, and it is said that the run goes on."""
    program = """
        import sdk, itertools, time
        sdk.init(project="p", mode="offline")
        for step in itertools.count():
            sdk.log({"k0": float(step)}, step=step)
            if step == 100: print("trains", flush=True)
            time.sleep(0.0005)
    """
    trainer = shop.start(program)
    assert trainer.stdout is not None
    assert trainer.stdout.readline()
    done = shop.encore("sync", server=server)
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith("; the run goes on")
    assert trainer.poll() is None
    assert len(server.points("k0")) >= 100


def test_the_last_words_of_the_sender_here_are_waited_for(shop: Shop, server: Server) -> None:
    """The program has ended; what is captured of it, and its files, come a moment later and are sent too."""
    here = {"host": _process.host(), "boot": _process.boot_id(), "mode": "offline"}
    here |= {"pid": os.getpid(), "pid_started": _process.started(os.getpid()), "pid_namespace": _process.pid_namespace()}
    about, settings = {"id": new_id(), "project": "p", "name": "n"}, SimpleNamespace(strict=False, journal_mode="map")
    trainer = Writer(shop.journal, about, settings, here)
    trainer.log({"k0": 1.0}, step=0)
    trainer.finish(ENDED)
    node = Writer(shop.journal, about, settings, {**here, "kind": "node", "of": trainer.id})
    node.emit({"type": "recipe", "section": "hardware", "value": {}, "merge": True})
    sync = start_sync(shop, server)
    try:
        assert until(lambda: server.finishes() and server.docs("recipe"))
        assert not until(lambda: sync.poll() is not None, seconds=3)
        digest = node.put_blob(b"the source")
        node.emit({"type": "recipe", "section": "source", "value": {"manifest": digest}, "merge": True})
        node.finish(ENDED)
        out, err = sync.communicate(timeout=120)
    finally:
        sync.kill()
    assert sync.returncode == 0, err
    assert "goes on" not in out
    assert digest in server.blobs
    assert {doc["section"] for doc in server.docs("recipe")} == {"hardware", "source"}


# What stays behind --------------------------------------------------------------------------------------------------------------------


def test_status_says_what_is_unsent_and_clean_removes_what_is_not(shop: Shop, server: Server) -> None:
    """Records, files, bytes, age and reason for each run; --clean removes what the server confirmed, and says why it keeps the rest."""
    sent = journal(shop.journal, 10)
    sent.finish(ENDED)
    assert shop.encore("sync", str(sent.folder.parent), server=server).returncode == 0
    kept = journal(shop.journal, 20)
    kept.put_blob(b"a file")
    kept.finish(ENDED)
    rows = {each["run"]: each for each in json.loads(shop.encore("status", "--json").stdout)["results"]}
    left = rows[kept.folder.parent.name]
    assert (left["unsent"], left["unsent_files"], left["confirmed"], left["writers"]) == (22, 1, False, 1)
    assert left["unsent_bytes"] > 20 * 48
    assert left["age_seconds"] is not None
    assert "offline" in left["why"]
    done = rows[sent.folder.parent.name]
    assert (done["unsent"], done["unsent_files"], done["confirmed"]) == (0, 0, True)
    shown = shop.encore("status").stdout
    assert "22 records, 1 files" in shown
    cleaned = json.loads(shop.encore("status", "--clean", "--json").stdout)
    assert [each["run"] for each in cleaned["removed"]] == [sent.folder.parent.name]
    assert "22 records and 1 files are not with the server" in cleaned["kept"][0]["why"]
    assert (sent.folder.exists(), kept.folder.exists()) == (False, True)


def test_a_delivered_run_goes_a_day_later_by_whoever_passes_by(shop: Shop, server: Server) -> None:
    """A sync, or the sender of a later run: both remove what was delivered a day ago, neither what was not."""
    old, other, unsent = (journal(shop.journal, 5) for _ in range(3))
    for made in (old, other, unsent):
        made.finish(ENDED)
    for made in (old, other):
        assert shop.encore("sync", str(made.folder.parent), server=server).returncode == 0
        told = json.loads((made.folder.parent / keeping.DELIVERED).read_text())
        (made.folder.parent / keeping.DELIVERED).write_text(json.dumps({**told, "time_us": told["time_us"] - 25 * 3600 * 10**6}))
    assert shop.encore("sync", str(old.folder.parent), server=server).returncode == 0
    assert not old.folder.parent.exists()
    done = shop.run("import sdk; sdk.init(project='p'); sdk.log({'x': 1.0})", server)
    assert done.returncode == 0
    assert until(lambda: not other.folder.parent.exists())
    assert until(lambda: not shop.senders())
    assert unsent.folder.exists()


# What is wrong ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "sentence"),
    [
        ({"ENCORE_RUNID": "x"}, "did you mean ENCORE_RUN_ID?"),
        ({"ENCORE_MODE": "ofline"}, "ENCORE_MODE='ofline' is none of"),
        ({"ENCORE_FINISH_SECONDS": "soon"}, "is no number"),
        ({"ENCORE_SENDER": "external", "ENCORE_SPOOL": "/x"}, "contradict each other"),
        ({"ENCORE_SPOOL": "/x", "ENCORE_JOURNAL": "/x/"}, "the same folder"),
        ({"ENCORE_RUN_ID": "night"}, "joins that one run"),
        ({"ENCORE_TOKEN": "abc\n"}, "has blanks around it"),
        ({"ENCORE_RERUN": "/nowhere.json"}, "could not be read"),
    ],
)
def test_doctor_reads_the_environment(tmp_path: Path, environ: dict[str, str], sentence: str) -> None:
    """Misspelt names, values that mean nothing, and settings that contradict each other, each named."""
    from sdk import _settings
    from sdk._cli import _checkup

    env = {"ENCORE_HOME": str(tmp_path), **environ}
    said = _checkup.variables(_settings.read(env), env)
    assert any(sentence in each for _, each in said), said


def test_doctor_knows_every_documented_variable() -> None:
    """What docs/operations.md names is never called a mistake."""
    import re

    from sdk._cli import _checkup

    named = set(re.findall(r"`(ENCORE_[A-Z0-9_]+)`", (Path(__file__).resolve().parents[2] / "docs" / "operations.md").read_text()))
    assert not {name for name in named - _checkup.known_variables() if not name.startswith((*_checkup.NOT_OURS, "ENCORE_TORTURE"))}


@pytest.mark.parametrize(
    ("me", "sentence"),
    [
        ((401, {}, {"code": "unauthenticated", "message": "This token expired at 2026-01-01."}), "This token expired at 2026-01-01."),
        ((200, {}, {"user": "ada", "scopes": ["worker"], "projects": []}), "for worker only"),
        ((200, {}, {"user": "ada", "scopes": ["api"], "projects": [{"slug": "p", "role": "viewer"}]}), "may only look at project p"),
    ],
)
def test_doctor_tries_the_token(shop: Shop, server: Server, me: tuple[int, dict[str, str], dict[str, object]], sentence: str) -> None:
    """Expired, of another kind, or of somebody who may only look."""
    server.faults.append(lambda request: me if request.path == "/api/v1/me" else None)
    done = shop.encore("doctor", PATH=ALONE, server=server, ENCORE_PROJECT="p")
    assert done.returncode == 1
    assert sentence in done.stdout


def test_doctor_says_why_a_server_is_not_reached(shop: Shop, server: Server, down: Server) -> None:
    """A port where nobody listens, a name that nobody knows, another kind of server, a server of another time and version."""
    cases = {
        down.url: "nobody listens on port",
        "http://no-such-host.invalid:80": "is not known here",
        "ftp://x": "is no server's address",
    }
    for url, sentence in cases.items():
        done = shop.encore("doctor", PATH=ALONE, ENCORE_URL=url, ENCORE_TOKEN="t")
        assert (done.returncode, sentence in done.stdout) == (1, True), done.stdout
    server.faults.append(lambda request: (404, {}, {}) if request.path == "/healthz" else None)
    assert "is no Encore server" in shop.encore("doctor", server=server, PATH=ALONE).stdout
    server.faults[:] = [
        lambda request: (
            (200, {"Date": "Thu, 01 Jan 2026 00:00:00 GMT"}, {"status": "ok", "version": "0.0.9"}) if request.path == "/healthz" else None
        )
    ]
    said = json.loads(shop.encore("doctor", "--json", server=server, PATH=ALONE).stdout)
    sentences = " ".join(each["says"] for each in said["results"] if each["state"] == "ill")
    assert "older than this SDK's" in sentences
    assert "clock is" in sentences


def test_doctor_finds_a_sender_that_died(shop: Shop, server: Server) -> None:
    """Killed with records left: which run, and what to do."""
    server.faults.append(lambda request: "drop" if "ingest" in request.path else None)
    trainer = shop.start("import sdk, time\nsdk.init(project='p'); sdk.log({'x': 1.0}); print('x', flush=True); time.sleep(600)", server)
    assert trainer.stdout is not None
    trainer.stdout.readline()
    assert until(shop.senders)
    for pid in shop.senders():
        os.kill(pid, signal.SIGKILL)
    trainer.kill()
    trainer.communicate()
    done = shop.encore("doctor", server=server, PATH=ALONE)
    assert done.returncode == 1
    assert "the sender of run" in done.stdout
    assert "encore sync" in done.stdout
    status = json.loads(shop.encore("status", "--json").stdout)["results"]
    assert "died" in status[0]["why"]


def test_doctor_says_where_the_journal_lies(shop: Shop, server: Server) -> None:
    """The filesystem and the way of writing; a spool on a disk of this machine, which no other one sees; a full small disk."""
    spool = shop.folder / "spool"
    said = shop.encore("doctor", PATH=ALONE, server=server, ENCORE_SPOOL=str(spool)).stdout
    assert "can be written, mapped" in said or "by write(2)" in said
    assert "a disk of this machine" in said
    (shop.folder / "file").write_text("")
    done = shop.encore("doctor", PATH=ALONE, server=server, ENCORE_SPOOL=str(shop.folder / "file"))
    assert "the spool" in done.stdout
    assert done.returncode == 1
