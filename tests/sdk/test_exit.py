"""How a program ends is told, and never changed."""

from __future__ import annotations

import signal
import sys

import pytest
from helpers import Shop, until
from server import Server

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
    assert process.wait(timeout=60) == -number
    data = finished(server)
    assert (data["state"], data["signal"]) == ("killed", number)


def test_a_signal_ends_it_even_inside_c_code(shop: Shop, server: Server) -> None:
    """No Python handler of ours has to get its turn: a program stuck in C dies of SIGTERM at once."""
    process = shop.start(START + "import re; re.match(r'(a+)+$', 'a' * 60 + 'b')", server)
    assert until(lambda: server.points("x"))
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == -signal.SIGTERM
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
    out, _ = process.communicate(timeout=90)
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
    (folder,) = until(lambda: shop.writers())
    assert until(lambda: b'"finish"' in (folder / "00000000.seg").read_bytes())
    process.send_signal(signal.SIGINT)
    process.wait(timeout=30)
    down.start()
    assert finished(down)["state"] == "finished"


def test_finish_is_bounded(shop: Shop, down: Server) -> None:
    """ENCORE_FINISH_SECONDS=1 with no server: the program ends soon, says what is left and how to send it."""
    done = shop.run(START, down, ENCORE_FINISH_SECONDS="1")
    assert done.returncode == 0
    assert "encore sync" in done.stderr
