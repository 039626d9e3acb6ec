"""How a program ends is told, and never changed."""

from __future__ import annotations

import re
import signal
import sys

import pytest
from helpers import Shop, until
from server import Server

from sdk._sender import at_work

START = "import sdk, sys, os, signal, time\nrun = sdk.init(project='p'); sdk.log({'x': 1.0})\n"


def finished(server: Server) -> dict:
    assert until(lambda: server.finishes())
    ((_, data),) = server.finishes().items()
    return data


@pytest.mark.parametrize(
    ("end", "status", "state", "code"),
    [
        ("sdk.finish()", 0, "finished", 0),
        ("", 0, "finished", 0),
        ("sys.exit()", 0, "finished", 0),
        ("sys.exit(3)", 3, "failed", 3),
        ("sys.exit('a message')", 1, "failed", 1),
        ("raise SystemExit(4)", 4, "failed", 4),
        ("def main(): return 0\nraise SystemExit(main())", 0, "finished", 0),
        ("try: sys.exit(9)\nexcept SystemExit: pass", 0, "finished", 0),
        ("sdk.finish(exit_code=7)", 0, "failed", 7),
        ("with sdk.init(project='p') as r: r.log({'y': 1.0})", 0, "finished", 0),
    ],
)
def test_ends_and_their_states(shop: Shop, server: Server, end: str, status: int, state: str, code: int) -> None:
    """The status is the program's own; the tracker is told the state and the code."""
    done = shop.run(START + end, server)
    assert done.returncode == status, done.stderr
    assert until(lambda: len(server.finishes()) >= 1)
    data = list(server.finishes().values())[-1]
    assert (data["state"], data["exit_code"]) == (state, code)


def test_an_unhandled_exception_is_told_with_a_masked_traceback(shop: Shop, server: Server) -> None:
    """Type, message and traceback arrive, without the secret; stderr shows what it always showed."""
    program = START + "def train():\n    raise ValueError('bad batch with hf_abcdefghijklmnopqrstuvwxyzABCDEFGH')\ntrain()\n"
    done = shop.run(program, server)
    assert done.returncode == 1
    assert done.stderr.count("Traceback (most recent call last)") == 1
    data = finished(server)
    assert data["state"] == "failed"
    assert data["error"]["type"] == "ValueError"
    assert "in train" in data["error"]["traceback"]
    assert "hf_abcdefgh" not in str(data)
    assert server.docs("event", "exception")


def test_an_exception_in_the_with_block_is_told_and_goes_on_up(shop: Shop, server: Server) -> None:
    """`with sdk.init()` does not swallow."""
    done = shop.run("import sdk\ntry:\n    with sdk.init(project='p'): 1 / 0\nexcept ZeroDivisionError: print('up')", server)
    assert done.stdout.strip() == "up"
    assert finished(server)["error"]["type"] == "ZeroDivisionError"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_signals_end_the_program_as_ever_and_are_told(shop: Shop, server: Server, number: int) -> None:
    """Same status as without us; killed, with the signal."""
    process = shop.start(START + "time.sleep(600)", server)
    assert until(lambda: server.points("x"))
    process.send_signal(number)
    assert process.wait(timeout=120) == -number
    data = finished(server)
    assert (data["state"], data["signal"]) == ("killed", number)


def test_a_signal_ends_it_even_inside_c_code(shop: Shop, server: Server) -> None:
    """No Python handler of ours has to get its turn: a program stuck in C dies of SIGTERM at once."""
    process = shop.start(START + "import re; re.match(r'(a+)+$', 'a' * 60 + 'b')", server)
    assert until(lambda: server.points("x"))
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == -signal.SIGTERM
    assert finished(server)["signal"] == signal.SIGTERM


def test_the_programs_own_handlers_are_its_own(shop: Shop, server: Server) -> None:
    """A handler set before or after init works; getsignal shows nothing of us."""
    program = (
        START
        + "assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL\n"
        + "signal.signal(signal.SIGTERM, lambda *_: (print('saved', flush=True), sys.exit(0)))\ntime.sleep(600)\n"
    )
    process = shop.start(program, server)
    assert until(lambda: server.points("x"))
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=120)
    assert (process.returncode, out.strip()) == (0, "saved")
    assert finished(server)["state"] == "finished"


@pytest.mark.parametrize("end", ["os._exit(5)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_what_cannot_speak_is_seen_to_be_gone(shop: Shop, server: Server, end: str) -> None:
    """os._exit and SIGKILL: the sender tells that the process vanished; the status is unknown to it."""
    shop.run(START + end, server)
    assert until(lambda: server.docs("event", "gone"))
    (gone,) = server.docs("event", "gone")
    assert gone["data"]["exit_code"] is None
    assert gone["data"]["writer"] in server.writers
    assert not server.finishes()


def test_encore_run_knows_the_status_of_what_it_started(shop: Shop, server: Server) -> None:
    """A program without a line of ours: tracked, its output kept, its status returned, also after os._exit."""
    script = shop.work / "plain.py"
    script.write_text(
        "import os, sys\nprint('hello', sys.argv[1:], __name__, os.environ['PYTHONHASHSEED'], flush=True)\nos._exit(int(sys.argv[1]))\n"
    )
    done = shop.encore("run", "--project", "q", "--", sys.executable, str(script), "5", server=server)
    assert done.returncode == 5, done.stderr
    assert done.stdout.strip() == "hello ['5'] __main__ 0"
    data = finished(server)
    assert (data["state"], data["exit_code"]) == ("failed", 5)
    (about,) = [about for about in server.writers.values() if about["kind"] == "trainer"]
    assert about["run"]["project"] == "q"
    command, more = (doc["value"] for doc in server.docs("recipe") if doc["section"] == "command")
    assert more == {"bootstrap": "encore run"}
    assert command["argv"] == [str(script), "5"]
    assert command["entry"]["path"] == str(script)


def test_encore_run_of_a_module_and_of_a_command(shop: Shop, server: Server) -> None:
    """`python -m`, a program that is not Python, `python -c`: each is recorded as what it is, not as our bootstrap."""
    (shop.work / "pkg").mkdir()
    (shop.work / "pkg" / "__main__.py").write_text("import sys\nprint(sys.argv[1:], __package__)\n")
    done = shop.encore("run", "--", sys.executable, "-m", "pkg", "a", server=server)
    assert (done.returncode, done.stdout.strip()) == (0, "['a'] pkg"), done.stderr
    done = shop.encore("run", "--", "sh", "-c", "echo from the shell; exit 3", server=server)
    assert (done.returncode, done.stdout.strip()) == (3, "from the shell"), done.stderr
    assert until(lambda: any("from the shell" in doc["text"] for doc in server.docs("log")))
    done = shop.encore("run", "--", sys.executable, "-O", "-c", "import sys; print(sys.argv)", "b", server=server)
    assert (done.returncode, done.stdout.strip()) == (0, "['-c', 'b']"), done.stderr
    assert until(lambda: {data["exit_code"] for data in server.finishes().values()} == {0, 3} and len(server.finishes()) == 3)
    module, shell, code = (doc["value"] for doc in server.docs("recipe") if doc["section"] == "command" and "entry" in doc["value"])
    assert (module["entry"]["kind"], module["entry"]["name"], module["argv"][1:]) == ("module", "pkg", ["a"])
    assert (shell["entry"]["kind"], shell["entry"]["name"], shell["entry"]["path"]) == ("command", "sh", None)
    assert shell["argv"] == ["sh", "-c", "echo from the shell; exit 3"]
    assert (code["entry"]["kind"], code["entry"]["code"], code["argv"][1:]) == ("code", "import sys; print(sys.argv)", ["b"])
    assert [each["interpreter_options"] for each in (module, shell, code)] == [[], [], ["-O"]]


def test_a_second_init_ends_the_first_run(shop: Shop, server: Server) -> None:
    """Two runs in one program are two runs, both finished."""
    done = shop.run("import sdk\nfor i in range(2):\n    sdk.init(project='p'); sdk.log({'x': float(i)})\n", server)
    assert done.returncode == 0, done.stderr
    assert until(lambda: len(server.finishes()) == 2)
    assert len({about["run"]["id"] for about in server.writers.values()}) == 2


def test_children_of_all_kinds_do_not_end_the_run(shop: Shop, server: Server) -> None:
    """os.fork and multiprocessing children log into writers of their own; SIGTERM to a child is not the run's end."""
    program = """
        import os, sys, time, multiprocessing, signal
        import sdk
        def work(n):
            sdk.log({"child": float(n)}, step=n)
        if __name__ == "__main__":
            sdk.init(project="p")
            sdk.log({"parent": 1.0})
            context = multiprocessing.get_context("fork")
            children = [context.Process(target=work, args=(n,)) for n in range(3)]
            for child in children: child.start()
            for child in children: child.join()
            idle = os.fork()
            if idle == 0:
                time.sleep(600)
            os.kill(idle, signal.SIGTERM)
            assert os.waitpid(idle, 0)[1] == signal.SIGTERM
            quick = os.fork()
            if quick == 0:
                sdk.log({"child": 9.0}, step=9)
                os._exit(0)
            os.waitpid(quick, 0)
            sdk.log({"parent": 2.0})
    """
    done = shop.run(program, server)
    assert done.returncode == 0, done.stderr
    assert finished(server)["state"] == "finished"
    assert until(lambda: sorted(value for _, value in server.points("child", kind="node")) == [0.0, 1.0, 2.0, 9.0])
    assert [value for _, value in server.points("parent")] == [1.0, 2.0]
    assert not server.docs("event", "gone")
    assert len({about["run"]["id"] for about in server.writers.values()}) == 1


def test_ctrl_c_while_waiting_at_the_end_hands_over(shop: Shop, down: Server) -> None:
    """The wait of finish() can be cut short; the sender goes on."""
    process = shop.start(START + "sdk.finish()", down)
    assert until(lambda: any(b'"finish"' in path.read_bytes() for folder in shop.writers() for path in folder.glob("00000000.seg")))
    process.send_signal(signal.SIGINT)
    process.wait(timeout=120)
    down.start()
    assert finished(down)["state"] == "finished"


def test_finish_is_bounded(shop: Shop, down: Server) -> None:
    """ENCORE_FINISH_SECONDS=1 with no server: the program ends soon, says what is left and how to send it."""
    done = shop.run(START, down, ENCORE_FINISH_SECONDS="1")
    assert done.returncode == 0
    assert "encore sync" in done.stderr


# Nothing of the program's own changes -------------------------------------------------------------------------------------------------

ENDS = {
    "the last line": "pass",
    "sys.exit": "sys.exit(3)",
    "sys.exit of a message": "sys.exit('no')",
    "SystemExit": "raise SystemExit(4)",
    "SystemExit beyond a byte": "raise SystemExit(260)",
    "an exception": "raise ValueError('x')",
    "KeyboardInterrupt": "raise KeyboardInterrupt",
    "os._exit": "os._exit(5)",
    "SIGTERM": "os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)",
    "SIGINT": "os.kill(os.getpid(), signal.SIGINT); time.sleep(60)",
    "SIGKILL": "os.kill(os.getpid(), signal.SIGKILL)",
    "SIGSEGV": "ctypes.string_at(1)",
    "SIGABRT": "os.abort()",
    "SIGUSR1": "os.kill(os.getpid(), signal.SIGUSR1); time.sleep(60)",
    "an exception in a thread": "t = threading.Thread(target=lambda: 1 / 0); t.start(); t.join()",
    "an exception at exit": "import atexit; atexit.register(lambda: 1 / 0)",
}


@pytest.mark.parametrize("end", ENDS)
def test_the_exit_status_is_the_one_without_us(shop: Shop, server: Server, end: str) -> None:
    """Also what stderr says of it."""
    head = "import sys, os, signal, time, threading, ctypes\n"
    bare = shop.run(head + ENDS[end])
    ours = shop.run(head + "import sdk\nsdk.init(project='p'); sdk.log({'x': 1.0})\n" + ENDS[end], server)
    assert ours.returncode == bare.returncode, ours.stderr

    def without_us(text: str) -> list[str]:
        return [re.sub("0x[0-9a-f]+", "0x", line) for line in text.splitlines() if not line.startswith(("encore:", "  File"))]

    assert without_us(ours.stderr) == without_us(bare.stderr)


def test_signals_show_in_python_as_without_us(shop: Shop, server: Server) -> None:
    """getsignal of each signal is the same before and after init, and a handler set before it still runs."""
    program = """
        import faulthandler, os, signal, sys
        heard = []
        signal.signal(signal.SIGUSR1, lambda *_: heard.append("usr1"))
        signal.signal(signal.SIGTERM, lambda *_: heard.append("term"))
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        def view(): return {n: signal.getsignal(n) for n in signal.valid_signals()}
        before, wakeup = view(), signal.set_wakeup_fd(-1)
        import sdk
        sdk.init(project="p")
        assert view() == before
        assert signal.set_wakeup_fd(-1) == wakeup
        for n in (signal.SIGUSR1, signal.SIGTERM, signal.SIGHUP): os.kill(os.getpid(), n)
        assert heard == ["usr1", "term"], heard
        sdk.finish()
        assert view() == before
    """
    done = shop.run(program, server)
    assert done.returncode == 0, done.stderr


def test_the_programs_own_faulthandler_is_its_own(shop: Shop, server: Server) -> None:
    """Enabled or registered before init, its output goes where it went; after a crash with it enabled the status is as ever."""
    program = """
        import faulthandler, os, signal, sys
        mine = open("mine.txt", "w")
        faulthandler.register(signal.SIGUSR2, file=mine, all_threads=False)
        faulthandler.register(signal.SIGHUP, file=mine, all_threads=False)
        faulthandler.enable()
        import sdk
        sdk.init(project="p"); sdk.log({"x": 1.0})
        os.kill(os.getpid(), signal.SIGUSR2)
        os.kill(os.getpid(), signal.SIGHUP)
        import ctypes; ctypes.string_at(1)
    """
    done = shop.run(program, server)
    assert done.returncode == -signal.SIGSEGV
    assert "Fatal Python error: Segmentation fault" in done.stderr
    assert (shop.work / "mine.txt").read_text().count("most recent call first") == 2
    assert until(lambda: server.docs("event", "gone"))


def test_a_program_that_closes_all_files_finds_nothing_of_ours_in_its_own(shop: Shop, server: Server) -> None:
    """Daemons do that; the next file gets the lowest free number, and a signal's mark must not go there."""
    program = START + (
        "os.closerange(3, 256)\nfiles = [open(f'own-{i}', 'w') for i in range(40)]\n"
        "print('on', flush=True); os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)"
    )
    done = shop.run(program, server)
    assert done.returncode == -signal.SIGTERM
    assert [path.read_text() for path in sorted(shop.work.glob("own-*"))] == [""] * 40
    assert finished(server)["signal"] == signal.SIGTERM


def test_children_of_the_programs_own_are_its_own(shop: Shop, server: Server) -> None:
    """subprocess, os.wait and multiprocessing see their own children and none of ours."""
    program = """
        import os, subprocess, sys, multiprocessing
        import sdk
        def work(n): return n * n
        if __name__ == "__main__":
            sdk.init(project="p"); sdk.log({"x": 1.0})
            child = subprocess.Popen([sys.executable, "-c", "raise SystemExit(7)"])
            assert os.wait() == (child.pid, 7 << 8)
            assert subprocess.run(["false"]).returncode == 1
            try: os.waitpid(-1, 0)
            except ChildProcessError: print("none left")
            with multiprocessing.get_context("spawn").Pool(2) as pool: assert pool.map(work, range(4)) == [0, 1, 4, 9]
            bad = multiprocessing.get_context("spawn").Process(target=sys.exit, args=(3,))
            bad.start(); bad.join(); assert bad.exitcode == 3
    """
    done = shop.run(program, server)
    assert (done.returncode, done.stdout.strip()) == (0, "none left"), done.stderr


@pytest.mark.parametrize(("body", "status"), [("assert True", 0), ("assert False", 1), ("raise KeyboardInterrupt", 2)])
def test_pytest_ends_as_ever(shop: Shop, server: Server, body: str, status: int) -> None:
    """A training in a test: pytest's own status; the run ends, too."""
    import subprocess

    (shop.work / "test_it.py").write_text(f"import sdk\ndef test_it():\n    sdk.init(project='p'); sdk.log({{'x': 1.0}})\n    {body}\n")
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_it.py"]
    done = subprocess.run(argv, env=shop.environment(server), cwd=shop.work, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    assert until(lambda: server.finishes())


# What is told -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("end", "number", "words"), [("ctypes.string_at(1)", signal.SIGSEGV, "Segmentation fault"), ("os.abort()", signal.SIGABRT, "Aborted")]
)
def test_a_crash_in_c_code_is_told_with_the_stacks(shop: Shop, server: Server, end: str, number: int, words: str) -> None:
    """Failed, with the signal and where each thread stood."""
    done = shop.run(START + f"import ctypes\ndef inner(): {end}\ninner()", server)
    assert done.returncode == -number
    data = finished(server)
    assert (data["state"], data["signal"], data["error"]["message"]) == ("failed", number, words)
    assert "in inner" in data["error"]["traceback"]


def test_a_loader_workers_crash_is_not_the_trainers(shop: Shop, server: Server) -> None:
    """A forked child dies of SIGSEGV; its parent goes on, is then killed, and is not said to have crashed in C code."""
    program = START + (
        "import ctypes\npid = os.fork()\nif pid == 0: ctypes.string_at(1)\nassert os.waitpid(pid, 0)[1] & 127 == signal.SIGSEGV\n"
        "sdk.log({'y': 1.0}); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert shop.run(program, server).returncode == -signal.SIGKILL
    assert until(lambda: server.docs("event", "gone"))
    assert not server.finishes()


def test_an_exception_that_ends_a_thread_is_an_event(shop: Shop, server: Server) -> None:
    """Masked, with its traceback and the thread's name; the program ends well all the same. The program's own hook still runs."""
    program = """
        import sys, threading
        threading.excepthook = lambda args: print("mine", args.exc_type.__name__)
        import sdk
        sdk.init(project="p")
        def load(): raise RuntimeError("shard of hf_abcdefghijklmnopqrstuvwxyzABCDEFGH is broken")
        thread = threading.Thread(target=load, name="loader-3"); thread.start(); thread.join()
    """
    done = shop.run(program, server)
    assert (done.returncode, done.stdout.strip()) == (0, "mine RuntimeError"), done.stderr
    assert finished(server)["state"] == "finished"
    (event,) = server.docs("event", "exception")
    assert (event["data"]["type"], event["data"]["thread"]) == ("RuntimeError", "loader-3")
    assert "in load" in event["data"]["traceback"]
    assert "hf_abcdefgh" not in str(event)


# The wait at the end ------------------------------------------------------------------------------------------------------------------


def test_finish_seconds_zero_waits_for_nothing(shop: Shop, down: Server) -> None:
    """It hands over at once; the sender brings the rest when the server is there."""
    import time

    program = START + "began = time.monotonic(); sdk.finish(); print(time.monotonic() - began)"
    done = shop.run(program, down, ENCORE_FINISH_SECONDS="0")
    assert done.returncode == 0
    assert "goes on by itself" in done.stderr
    assert float(done.stdout) < 5
    began = time.monotonic()
    down.start()
    assert finished(down)["state"] == "finished"
    assert time.monotonic() - began < 60


def test_finish_seconds_zero_brings_back_a_killed_sender(shop: Shop, down: Server) -> None:
    """Even who does not wait leaves somebody behind who sends."""
    import os

    program = START + "while not os.path.exists('go'): time.sleep(0.01)"
    process = shop.start(program, down, ENCORE_FINISH_SECONDS="0")
    (pid,) = until(lambda: shop.senders())
    os.kill(pid, signal.SIGKILL)
    # A dying process loses its command line a moment before its locks.
    assert until(lambda: not any(at_work(folder) for folder in shop.journal.iterdir() if folder.is_dir()))
    (shop.work / "go").touch()
    process.communicate(timeout=120)
    down.start()
    assert finished(down)["state"] == "finished"


@pytest.mark.parametrize(("end", "status"), [("sdk.finish()", -signal.SIGINT), ("", 0)], ids=["explicit", "at exit"])
def test_ctrl_c_in_the_wait_ends_the_wait_alone(shop: Shop, down: Server, end: str, status: int) -> None:
    """Within a call of finish it is the KeyboardInterrupt it always is; at exit the status stays and no traceback frightens."""
    process = shop.start(START + end, down)
    assert until(lambda: any(b'"finish"' in path.read_bytes() for folder in shop.writers() for path in folder.glob("00000000.seg")))
    assert until(lambda: shop.senders())
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == status
    assert "no longer waiting; the sender goes on by itself" in err
    assert end or "Traceback" not in err
    down.start()
    assert finished(down)["state"] == "finished"


def test_a_server_that_takes_and_never_answers_is_not_waited_for_to_the_end(shop: Shop, server: Server) -> None:
    """The sender hangs in its call and can say nothing; the wait ends all the same, long before the deadline."""
    import threading
    import time

    over = threading.Event()
    server.faults.append(lambda request: over.wait(120) and None if request.path.endswith("/batches") else None)
    patience = "import sdk._finish\nsdk._finish.STILL_SECONDS = sdk._finish.UNREACHABLE_SECONDS = 2.0\n"
    began = time.monotonic()
    try:
        done = shop.run(patience + START, server, ENCORE_FINISH_SECONDS="100")
    finally:
        over.set()
    assert time.monotonic() - began < 90
    assert (done.returncode, "does not answer" in done.stderr, "goes on by itself" in done.stderr) == (0, True, True), done.stderr
    assert finished(server)["state"] == "finished"


def test_the_progress_is_one_line_on_a_terminal_and_lines_in_a_file(shop: Shop, server: Server) -> None:
    """How many records are left, and for how long it still waits."""
    import os
    import pty
    import subprocess

    server.faults.append(lambda request: (503, {"Retry-After": "2"}, {"code": "busy", "message": "wait", "fields": {}}))
    done = shop.run(START, server, ENCORE_FINISH_SECONDS="3")
    told = [line for line in done.stderr.splitlines() if "sending:" in line]
    assert told
    assert "records left" in told[-1] or "starting" in told[-1]
    assert "\r" not in done.stderr
    ours, theirs = pty.openpty()
    script = shop.work / "train.py"
    process = subprocess.Popen(
        [sys.executable, str(script)], env=shop.environment(server, ENCORE_FINISH_SECONDS="3"), stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    seen = b""
    while True:
        try:
            data = os.read(ours, 65536)
        except OSError:
            break
        if not data:
            break
        seen += data
    assert process.wait(120) == 0
    assert b"s left" in seen.partition(b"\r")[2] or seen.count(b"\r") > 1
    assert b"goes on by itself" in seen


def node_docs(shop: Shop) -> list[dict]:
    """What the journals of the node's writers hold."""
    from sdk._reader import Reader

    chunks = [Reader(folder).read() for folder in shop.writers("node")]
    return [doc for chunk in chunks if chunk for _, _, _, doc in chunk.docs]


def test_a_rank_0_that_comes_when_the_others_have_ended_is_captured(shop: Shop) -> None:
    """The node's writer has said its last word then, and the sender is still there, since the server is not."""
    nowhere = {"ENCORE_URL": "http://127.0.0.1:9", "ENCORE_TOKEN": "t", "ENCORE_FINISH_SECONDS": "1"}
    told = {"WORLD_SIZE": "2", "ENCORE_RUN_ID": "c" * 26, **nowhere}
    assert shop.run(START, RANK="1", LOCAL_RANK="1", **told).returncode == 0
    assert until(lambda: [doc for doc in node_docs(shop) if doc.get("name") == "finish"])
    (sender,) = shop.senders()
    assert shop.run(START, RANK="0", LOCAL_RANK="0", **told).returncode == 0
    assert until(lambda: len([doc for doc in node_docs(shop) if doc.get("name") == "finish"]) == 2)
    assert [doc["value"]["files"] for doc in node_docs(shop) if doc.get("section") == "source"] == [1]
    assert shop.senders() == [sender]


def test_finish_waits_until_the_source_is_copied(shop: Shop, server: Server) -> None:
    """Four ranks of an instant at once: when rank 0 is back, the source that was there is recorded, and may be changed."""
    program = START
    script = shop.work / "train.py"
    ranks = []
    for rank in range(4):
        env = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "4", "ENCORE_RUN_ID": "b" * 26}
        ranks.append(shop.start(program, server, **env))
    _, err = ranks[0].communicate(timeout=120)
    script.write_text("changed")
    assert "is complete" in err, err
    for process in ranks[1:]:
        process.communicate(timeout=120)
    assert until(lambda: server.docs("recipe"))
    (source,) = [doc for doc in node_docs(shop) if doc.get("section") == "source"]
    assert until(lambda: source["value"]["manifest"] in server.blobs)
    assert any(data.startswith(b"import sdk, sys, os") for data in server.blobs.values())
