"""The console: everything printed is in the log, and nobody who prints notices."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

FRAME = """
import json, os, sys, threading, time
from sdk import _console
docs = []
lock = threading.Lock()
def emit(doc):
    with lock:
        docs.append(doc)
before = (id(sys.stdout), id(sys.stderr))
{before}
stop = _console.start(emit)
{body}
stop()
assert before == (id(sys.stdout), id(sys.stderr))
with open(sys.argv[1], "w") as file:
    json.dump(docs, file)
"""


def _run(tmp_path: Path, body: str, before: str = "", options: tuple[str, ...] = ()) -> tuple[dict[str, str], Any]:
    program = tmp_path / "program.py"
    program.write_text(FRAME.format(body=textwrap.dedent(body), before=textwrap.dedent(before)))
    out = tmp_path / "docs.json"
    done = subprocess.run(
        [sys.executable, *options, str(program), str(out)], capture_output=True, cwd=Path(__file__).parents[3], timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    docs = json.loads(out.read_text())
    return {name: "".join(doc["text"] for doc in docs if doc["stream"] == name) for name in ("stdout", "stderr")}, (done, docs)


@pytest.mark.parametrize("options", [(), ("-u",)])
def test_what_is_printed_is_logged_and_shown(tmp_path: Path, options: tuple[str, ...]) -> None:
    """print, write, writelines, bytes and stderr all reach both the log and the terminal, once."""
    logged, (done, _) = _run(
        tmp_path,
        """
        print("one", flush=True); sys.stdout.write("two\\n"); sys.stdout.writelines(["three\\n", "four\\n"])
        sys.stdout.flush(); sys.stdout.buffer.write(b"bytes\\n"); sys.stdout.buffer.flush()
        print("error", file=sys.stderr); print("no newline", end="")
        """,
        options=options,
    )
    assert logged["stdout"] == "one\ntwo\nthree\nfour\nbytes\nno newline"
    assert logged["stderr"] == "error\n"
    assert done.stdout.decode().split("\n") == ["one", "two", "three", "four", "bytes", "no newline"]
    assert done.stderr.decode() == "error\n"


def test_a_logging_handler_from_before_init_is_heard(tmp_path: Path) -> None:
    """A handler that took sys.stderr before the run began writes into the log as well."""
    logged, _ = _run(tmp_path, "logging.warning('careful')", before="import logging; logging.basicConfig(format='%(message)s')")
    assert logged["stderr"] == "careful\n"


def test_secrets_are_masked_even_across_batches(tmp_path: Path) -> None:
    """A token written in two halves of one line is masked in the log, and shown as it is on the terminal."""
    token = "gh" + "p_" + "a1B2c3D4e5" * 4
    logged, (done, _) = _run(tmp_path, f"sys.stdout.write('x' * 5000 + ' {token[:20]}'); sys.stdout.write('{token[20:]}\\n')")
    assert token not in logged["stdout"]
    assert "${secret:GITHUB_TOKEN}" in logged["stdout"]
    assert token in done.stdout.decode()


def test_a_lone_line_arrives_while_the_program_is_silent(tmp_path: Path) -> None:
    """What is printed before a long silence is handed on by itself, not only with the next line."""
    _run(
        tmp_path,
        """
        print("alone", end="")
        end = time.monotonic() + 60
        while not docs and time.monotonic() < end: time.sleep(0.01)
        assert docs[0]["text"] == "alone"
        """,
    )


def test_a_progress_bar_becomes_its_last_state(tmp_path: Path) -> None:
    """A thousand states of a bar in one batch are one line of the log; the carriage return stays."""
    logged, _ = _run(tmp_path, "for i in range(200): sys.stderr.write(f'\\r{i}%')\nsys.stderr.write('\\n')")
    assert logged["stderr"].endswith("\r199%\n")
    assert len(logged["stderr"]) < 200


def test_threads_do_not_lose_or_double_lines(tmp_path: Path) -> None:
    """Eight threads print at once; each line is logged exactly once."""
    logged, _ = _run(
        tmp_path,
        """
        def work(k):
            for i in range(200): sys.stdout.write(f"{k}-{i}\\n")
        threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
        [t.start() for t in threads]; [t.join() for t in threads]
        """,
    )
    assert sorted(logged["stdout"].split()) == sorted(f"{k}-{i}" for k in range(8) for i in range(200))


def test_a_forked_child_does_not_repeat_its_parents_lines(tmp_path: Path) -> None:
    """What had gathered before a fork is sent by the parent alone; the child's own lines are its own."""
    logged, _ = _run(
        tmp_path,
        """
        sys.stdout.write("parent\\n"); sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            print("child", flush=True); stop()
            os._exit(0 if "".join(d["text"] for d in docs) == "child\\n" else 7)
        assert os.waitpid(pid, 0)[1] == 0
        """,
    )
    assert logged["stdout"] == "parent\n"


def test_an_emit_that_prints_or_raises_harms_nobody(tmp_path: Path) -> None:
    """The journal may speak or fail while it takes a line: no recursion, no exception in print."""
    _run(
        tmp_path,
        """
        stop()
        calls = []
        def bad(doc):
            calls.append(doc); print("from within"); raise RuntimeError
        stop = _console.start(bad)
        for _ in range(2000): print("line")
        stop()
        assert 0 < len(calls) < 100
        """,
    )


def test_a_signal_handler_may_print(tmp_path: Path) -> None:
    """Printing inside a signal handler that interrupts printing does not lock up."""
    _run(
        tmp_path,
        """
        import signal
        signal.signal(signal.SIGALRM, lambda *a: sys.stderr.write("tick\\n"))
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        for i in range(3000): sys.stderr.write("tock\\n")
        signal.setitimer(signal.ITIMER_REAL, 0)
        """,
    )


def test_streams_that_are_missing_or_odd_are_left_alone(tmp_path: Path) -> None:
    """No console, a replaced one, one that forbids attributes: start still works."""
    _run(
        tmp_path,
        """
        stop()
        class Odd:
            __slots__ = ("target",)
            def write(self, text): return len(text)
        real = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = None, Odd()
        stop = _console.start(emit)
        sys.stderr.write("x")
        stop()
        sys.stdout, sys.stderr = real
        assert sys.stdout.isatty() is False and sys.stdout.fileno() == 1 and sys.stdout.encoding
        """,
    )
