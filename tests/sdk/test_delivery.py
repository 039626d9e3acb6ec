"""What is logged arrives once, whatever the server, the sender and the network do."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

from helpers import Shop, until
from server import Request, Server

TRAIN = """
    import sdk, sys, time
    run = sdk.init(project="p", config={"lr": 0.1})
    for i in range(N):
        sdk.log({"loss": 1 / (i + 1), "epoch": i}, step=i)
        time.sleep(PAUSE)
    sdk.finish()
"""


def training(n: int = 200, pause: float = 0.0) -> str:
    return TRAIN.replace("N)", f"{n})").replace("PAUSE", str(pause))


def whole(server: Server, n: int) -> bool:
    """Every point once, in order."""
    return server.points("loss") == [(i, 1 / (i + 1)) for i in range(n)] and server.points("epoch") == [(i, i) for i in range(n)]


def contiguous(server: Server) -> bool:
    for writer in server.writers:
        upto = 0
        for first, last in server.ranges(writer):
            if first != upto:
                return False
            upto = last + 1
    return True


def test_everything_arrives_by_the_end_of_finish(shop: Shop, server: Server) -> None:
    """Points, config, command, source, environment, system metrics and the end itself; no token in the journal or in any argument."""
    done = shop.run(training(500), server)
    assert done.returncode == 0, done.stderr
    assert whole(server, 500), done.stderr
    assert contiguous(server)
    assert [data["state"] for data in server.finishes().values()] == ["finished"]
    assert server.docs("config")[0]["value"] == {"lr": 0.1}
    sections = {doc["section"] for doc in server.docs("recipe")}
    assert {"command", "source", "environment", "numerics", "hardware"} <= sections
    manifest = next(doc["value"]["manifest"] for doc in server.docs("recipe") if doc["section"] == "source")
    assert manifest in server.blobs
    assert "is complete" in done.stderr
    for path in shop.journal.rglob("*"):
        if path.is_file():
            assert b"secret-token-of-ada" not in path.read_bytes(), path


def test_the_senders_process_ends_by_itself(shop: Shop, server: Server) -> None:
    """Nothing is left running, and nothing of us is the trainer's child."""
    done = shop.run(
        "import sdk, os\nsdk.init(project='p'); sdk.log({'x': 1})\n"
        "try: print(os.waitpid(-1, os.WNOHANG))\nexcept ChildProcessError: print('no child')",
        server,
    )
    assert "no child" in done.stdout, done.stderr
    assert until(lambda: not shop.senders())


def test_the_server_may_be_down_at_init_and_come_later(shop: Shop, down: Server) -> None:
    """Training does not notice; everything arrives when it is up."""
    process = shop.start(training(100), down, ENCORE_FINISH_SECONDS="0")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "goes on by itself" in err
    down.start()
    assert until(lambda: whole(down, 100))
    assert until(lambda: not shop.senders())


def test_the_server_may_vanish_midway(shop: Shop, server: Server) -> None:
    """Cut in the middle and back again: nothing lost, nothing doubled."""
    process = shop.start(training(300, 0.01), server)
    assert until(lambda: server.points("loss"))
    server.close()
    time.sleep(0.5)
    server.start()
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert until(lambda: whole(server, 300)), err
    assert contiguous(server)


def test_an_answer_cut_after_the_commit_doubles_nothing(shop: Shop, server: Server) -> None:
    """The server has stored the batch, but the sender never hears of it and sends again."""
    cuts = []

    def fault(request: Request):
        if request.path.endswith("/batches") and len(cuts) < 4:
            cuts.append(request.path)
            return "cut"
        return None

    server.faults.append(fault)
    done = shop.run(training(200), server)
    assert done.returncode == 0
    assert until(lambda: whole(server, 200)), done.stderr
    assert contiguous(server)
    assert len(cuts) == 4


def test_the_last_batch_goes_again_when_the_server_was_away_and_no_record_follows(shop: Shop, server: Server) -> None:
    """Each batch of the trainer's fails without an answer until the program has ended and its last record was tried."""
    refused: list[str] = []
    away = [True]

    def fault(request: Request):
        trainers = [name for name, writer in server.writers.items() if writer["kind"] == "trainer"]
        if away and request.path.endswith("/batches") and any(name in request.path for name in trainers):
            refused.append(request.path)
            return "drop"
        return None

    server.faults.append(fault)
    done = shop.run(training(3), server, ENCORE_FINISH_SECONDS="0")
    assert done.returncode == 0
    tried = len(refused)
    assert until(lambda: len(refused) > tried + 1)  # each wait is twice the one before
    away.clear()
    assert until(lambda: whole(server, 3)), done.stderr
    assert until(lambda: server.finishes())


def test_a_sender_killed_between_post_and_answer_neither_loses_nor_doubles(shop: Shop, server: Server) -> None:
    """kill -9 of the sender while the server holds its answer; finish() starts another, which goes on."""
    killed: list[int] = []

    def fault(request: Request):
        if request.path.endswith("/batches") and len(killed) < 3:
            (pid, *_) = shop.senders() or [0]
            if pid and pid not in killed and any(writer["kind"] == "trainer" for writer in server.writers.values()):
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
                return "cut"
        return None

    server.faults.append(fault)
    done = shop.run(training(300, 0.005), server)
    assert done.returncode == 0
    assert until(lambda: whole(server, 300)), done.stderr
    assert contiguous(server)
    assert killed
    assert until(lambda: server.finishes())


def test_429_is_obeyed(shop: Shop, server: Server) -> None:
    """Retry-After: not a request before its time, and everything afterwards."""
    told: list[float] = []
    early: list[float] = []

    def fault(request: Request):
        if not request.path.endswith("/batches"):
            return None
        if not told:
            told.append(time.monotonic())
            return 429, {"Retry-After": "2"}, {"code": "too_many", "message": "wait", "fields": {}}
        if time.monotonic() - told[0] < 1.3:  # jitter takes up to 30 %
            early.append(time.monotonic() - told[0])
        return None

    server.faults.append(fault)
    done = shop.run(training(100), server)
    assert until(lambda: whole(server, 100)), done.stderr
    assert told
    assert not early


def test_range_and_unknown_writer_and_key_list_are_healed(shop: Shop, server: Server) -> None:
    """409 range, 409 keylist_unknown, 404 writer_unknown: cut again, say again, open again."""
    faults = {
        "keylist": (409, {}, {"code": "keylist_unknown", "message": "send it", "fields": {}}),
        "writer": (404, {}, {"code": "writer_unknown", "message": "open it", "fields": {}}),
        "range": (409, {}, {"code": "range", "message": "cut", "fields": {"next": 0}}),
    }

    def fault(request: Request):
        if request.path.endswith("/batches") and faults and not any(server.batches.values()):
            return faults.pop(next(iter(faults)))
        return None

    server.faults.append(fault)
    done = shop.run(training(50), server)
    assert until(lambda: whole(server, 50)), done.stderr
    assert contiguous(server)
    assert not faults


def test_a_record_the_server_refuses_for_good_is_set_aside_alone(shop: Shop, server: Server) -> None:
    """422 on one document: it becomes a hole with the reason beside it, all others arrive."""
    from sdk import _wire

    def fault(request: Request):
        if request.path.endswith("/batches"):
            body = request.body
            encoding = request.headers.get("content-encoding")
            if encoding == "zstd":
                import zstandard

                body = zstandard.ZstdDecompressor().decompressobj().decompress(body)
            elif encoding == "deflate":
                import zlib

                body = zlib.decompress(body)
            batch = _wire.decode(body, server.keylists)
            if any(doc["doc"].get("pattern") == "poison" for doc in batch["docs"]):
                return 422, {}, {"code": "bad_document", "message": "a pattern of poison", "fields": {}}
        return None

    server.faults.append(fault)
    program = training(100).replace("sdk.finish()", "sdk.define('poison', goal='min'); sdk.define('good', goal='min'); sdk.finish()")
    done = shop.run(program, server)
    assert until(lambda: whole(server, 100) and server.finishes()), done.stderr
    assert contiguous(server)
    holes = [tuple(hole) for batches in server.batches.values() for batch in batches for hole in batch["holes"]]
    assert len(holes) == 1
    assert holes[0][0] == holes[0][1]
    (line,) = [json.loads(line) for path in shop.journal.rglob("refused.jsonl") for line in path.read_text().splitlines()]
    assert (line["first"], line["status"], line["code"]) == (holes[0][0], 422, "bad_document")
    assert any(doc["pattern"] == "good" for doc in server.docs("define"))


def test_a_deleted_run_stops_the_sender_and_keeps_the_journal(shop: Shop, server: Server) -> None:
    """410: no more is sent; the journal stays."""
    server.faults.append(
        lambda r: (410, {}, {"code": "run_deleted", "message": "it is deleted", "fields": {}}) if r.path.endswith("/batches") else None
    )
    done = shop.run(training(50), server, ENCORE_FINISH_SECONDS="5")
    assert done.returncode == 0
    assert until(lambda: not shop.senders())
    (folder,) = shop.writers()
    assert (folder / "00000000.seg").exists()
    assert "run_deleted" in (folder / "refused.jsonl").read_text()


def test_sync_of_a_copied_folder_twice_and_beside_the_original(shop: Shop, server: Server) -> None:
    """A journal made offline, copied, sent from both places, twice: every point once."""
    done = shop.run(training(300), None, ENCORE_MODE="offline")
    assert done.returncode == 0, done.stderr
    assert "encore sync" in done.stderr
    assert until(lambda: not shop.senders() or (shop.journal / "x").exists())
    copy = shop.folder / "copy"
    shutil.copytree(shop.journal, copy)
    for folder in (copy, shop.journal, copy):
        sent = shop.encore("sync", str(folder), server=server)
        assert sent.returncode == 0, sent.stdout + sent.stderr
    assert whole(server, 300)
    assert contiguous(server)
    assert [data["state"] for data in server.finishes().values()] == ["finished"]
    assert any(doc["section"] == "source" for doc in server.docs("recipe"))
    (writer,) = shop.writers()
    alone = shop.encore("sync", str(writer), server=server)
    assert alone.returncode == 0


def test_sync_says_what_is_wrong_and_fails(shop: Shop, down: Server) -> None:
    """No server, no folder: a sentence and a status."""
    shop.run(training(5), None, ENCORE_MODE="offline")
    assert "no server is known" in shop.encore("sync").stderr
    answer = shop.encore("sync", "--seconds", "1", server=down)
    assert answer.returncode == 1
    assert "connection refused" in answer.stderr


def test_sync_watch_sends_another_ones_journal_until_it_is_finished(shop: Shop, server: Server) -> None:
    """ENCORE_SENDER=external: no sender, no wait; `sync --watch --capture --until-finished` brings it over."""
    import subprocess
    import sys

    job = shop.folder / "job"
    command = [
        sys.executable,
        "-c",
        "import sys; from sdk._cli import main; sys.exit(main())",
        "sync",
        "--watch",
        str(job),
        "--capture",
        "--until-finished",
    ]
    watcher = subprocess.Popen(command, env=shop.environment(server), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        done = shop.run(training(100, 0.01), None, ENCORE_SENDER="external", ENCORE_JOURNAL=str(job), ENCORE_RUN_ID="a" * 26)
        assert done.returncode == 0, done.stderr
        _, err = watcher.communicate(timeout=120)
    finally:
        watcher.kill()
    assert watcher.returncode == 0, err
    assert whole(server, 100)
    assert {about["run"]["id"] for about in server.writers.values()} == {"a" * 26}
    assert {doc["section"] for doc in server.docs("recipe")} >= {"source", "environment", "command"}
    assert not (job / ("a" * 26) / "sender.log").exists()


def test_what_a_death_left_behind_goes_with_the_next_run(shop: Shop, server: Server) -> None:
    """Trainer and sender killed while the server is down: the next run's sender delivers the first one's journal too."""
    process = shop.start(training(2000, 0.01), server)
    assert until(lambda: shop.senders() and server.points("loss"))
    server.faults.append(lambda request: "drop")
    for pid in shop.senders():
        os.kill(pid, signal.SIGKILL)
    process.kill()
    process.communicate()
    server.faults.clear()
    before = len(server.points("loss"))
    done = shop.run("import sdk\nsdk.init(project='q'); sdk.log({'other': 1.0})", server)
    assert done.returncode == 0
    assert until(lambda: server.docs("event", "gone"))
    found = [step for step, _ in server.points("loss")]
    assert found == list(range(len(found)))
    assert len(found) >= before


def test_stop_asked_for_on_the_server_reaches_the_trainer(shop: Shop, server: Server) -> None:
    """`stop: true` becomes a SIGTERM; the program dies of it as ever, and the run is told as killed."""
    process = shop.start(training(100_000, 0.01), server)
    assert until(lambda: server.points("loss"))
    server.stop = True
    assert process.wait(timeout=120) == -signal.SIGTERM
    assert until(lambda: server.finishes())
    ((_, data),) = server.finishes().items()
    assert (data["state"], data["signal"]) == ("killed", signal.SIGTERM)
    assert server.docs("event", "signal")


def test_blobs_large_and_small_and_straight_to_the_store(shop: Shop, server: Server) -> None:
    """Small ones in packs, large ones one by one, each once; what is there already is not sent."""
    program = """
        import sdk
        run = sdk.init(project="p")
        for i in range(50): run.writer.put_blob(b"small %d" % i)
        run.writer.put_blob(b"large" * 100_000)
        sdk.finish()
    """
    done = shop.run(program, server)
    assert done.returncode == 0, done.stderr
    assert sum(data.startswith(b"small ") for data in server.blobs.values()) == 50
    assert b"large" * 100_000 in server.blobs.values()
    assert [path for method, path in server.requests if method == "PUT"]
    before = len(server.requests)
    assert shop.encore("sync", server=server).returncode == 0
    assert not [path for method, path in server.requests[before:] if method == "PUT" or "pack" in path]


def test_delivered_segments_are_let_go_but_the_last(shop: Shop, server: Server) -> None:
    """A long run does not keep its whole journal on the disk."""
    program = """
        import sdk
        run = sdk.init(project="p")
        data = {f"k{i}": float(i) for i in range(500)}
        for i in range(6000): sdk.log(data, step=i)
        sdk.finish()
        print(run.writer._segments.number)
    """
    done = shop.run(program, server)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 4
    (folder,) = shop.writers()
    assert len(list(folder.glob("*.seg"))) == 1
    assert len(server.points("k7")) == 6000
    assert Path(folder / "ack.json").exists()
