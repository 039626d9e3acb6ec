"""A hang gives evidence, and taking it harms nobody."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import Shop, until
from server import Request, Server

from sdk import _stacks
from sdk._sender import stacks as sender_stacks

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGRTMIN") or not Path("/proc").exists(), reason="dumps are Linux's alone")
HANG = """
import os, sys, time
import torch, torch.distributed as dist
import sdk

def load_slowly():
    while not os.path.exists(sys.argv[1]):
        time.sleep(0.05)

dist.init_process_group("gloo")
rank = dist.get_rank()
sdk.init(project="p")
value = torch.ones(1)
for step in range(5):
    sdk.log({"loss": 1.0}, step=step)
    dist.all_reduce(value)
if rank == 1:
    load_slowly()  # here rank 1
dist.all_reduce(value)  # here rank 0
sdk.log({"loss": 0.5}, step=5)
sdk.finish()
dist.destroy_process_group()
"""


def line_of(program: str, mark: str) -> int:
    return next(number for number, line in enumerate(program.splitlines(), 1) if mark in line)


def test_ranks_that_stand_still_are_dumped_with_the_lines_they_stand_in_and_go_on_unharmed(shop: Shop, server: Server) -> None:
    """Two real ranks: one sleeps, the other waits for it in all_reduce. Evidence and an alert come; then the run ends as it should."""
    script, go = shop.work / "train.py", shop.work / "go"
    script.write_text(HANG)
    process = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(script), str(go)],
        env=shop.environment(server, ENCORE_STALL_SECONDS="2"), cwd=shop.work, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        until(lambda: len(server.docs("event", "stacks")) >= 2, 120)
        dumps = {doc["data"]["rank"]: doc["data"] for doc in server.docs("event", "stacks")}
    finally:
        go.touch()
        _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert sorted(dumps) == [0, 1], err
    assert f'train.py", line {line_of(HANG, "# here rank 0")} in <module>' in dumps[0]["text"]
    assert "in all_reduce" in dumps[0]["text"]
    assert "in load_slowly" in dumps[1]["text"]
    assert f'train.py", line {line_of(HANG, "# here rank 1")} in <module>' in dumps[1]["text"]
    assert dumps[0]["why"].startswith("stalled for ")
    assert dumps[0]["state"] in ("S", "R")
    assert len(server.docs("event", "alert")) == 1
    assert [end["state"] for end in server.finishes().values()] == ["finished", "finished"]
    assert len(server.points("loss", rank=0)) == len(server.points("loss", rank=1)) == 6


ASKED = """
import os, sys, threading, time
import sdk
sdk.init(project="p")
sdk.log({"loss": 1.0})
password = "s3cret"
def waits_for_a_lock():
    lock = threading.Lock()
    lock.acquire()
    lock.acquire(timeout=float(sys.argv[1]))
waits_for_a_lock()
sdk.log({"loss": 0.5})
sdk.finish()
"""


def asks(server: Server) -> None:
    """The server asks once, as the tracker does."""
    asked: list[int] = []

    def fault(request: Request) -> Any:
        if request.path.endswith("/heartbeats") and not asked:
            status, headers, said = server.answer(request)
            asked.append(status)
            return status, headers, {**said, "ask": ["stacks", "something newer"]}
        return None

    server.faults.append(fault)


def test_a_dump_that_was_asked_for_through_a_heartbeat_comes_once(shop: Shop, server: Server) -> None:
    asks(server)
    process = shop.start(ASKED, server, arguments=("600",))
    until(lambda: server.docs("event", "stacks"), 120)
    (dump,) = [doc["data"] for doc in server.docs("event", "stacks")]
    assert (dump["rank"], dump["why"]) == (0, "asked")
    assert "in waits_for_a_lock" in dump["text"]
    assert process.poll() is None
    process.kill()
    process.communicate()
    assert server.heartbeats[0]["can"] == ["stacks"]
    assert abs(server.heartbeats[0]["time_us"] / 1e6 - os.stat(shop.work / "train.py").st_mtime) < 600


def test_with_stacks_off_no_signal_is_taken_and_the_asking_is_answered_in_words(shop: Shop, server: Server) -> None:
    asks(server)
    process = shop.start(ASKED, server, arguments=("600",), ENCORE_STACKS="off")
    until(lambda: server.docs("event", "stacks"), 120)
    assert "ENCORE_STACKS=off" in server.docs("event", "stacks")[0]["data"]["problem"]
    (writer,) = shop.writers()
    assert not (writer / "stacks.txt").exists()
    assert process.poll() is None
    process.kill()
    process.communicate()


def test_a_process_that_is_stopped_is_said_to_give_no_answer_and_dumps_when_it_goes_on(shop: Shop, server: Server) -> None:
    asks(server)
    process = shop.start(ASKED, server, arguments=("3",))
    until(lambda: server.points("loss"), 120)
    os.kill(process.pid, signal.SIGSTOP)
    until(lambda: server.docs("event", "stacks"), 120)
    data = server.docs("event", "stacks")[0]["data"]
    assert "no answer" in data["problem"]
    assert data["state"] == "T"
    os.kill(process.pid, signal.SIGCONT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err


PLAIN = """
import os, signal, sys
import sdk
from sdk import _stacks
{before}
sdk.init(project="p", mode="offline")
number = _stacks._number
print(number, flush=True)
{after}
"""
THIRTEEN = "signal.SIGRTMIN + 13"


def plain(shop: Shop, before: str = "", after: str = "") -> subprocess.CompletedProcess[str]:
    return shop.run(PLAIN.format(before=before, after=after))


def test_python_sees_none_of_it(shop: Shop) -> None:
    done = plain(shop, after=f"assert signal.getsignal({THIRTEEN}) is signal.SIG_DFL\nassert number == {THIRTEEN}")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "taken",
    [
        f"signal.signal({THIRTEEN}, lambda *_: print('mine', flush=True))",
        f"signal.signal({THIRTEEN}, signal.SIG_IGN)",
        f"signal.pthread_sigmask(signal.SIG_BLOCK, [{THIRTEEN}])",
        f"import ctypes; mine = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda _: None); ctypes.CDLL(None).signal({THIRTEEN}, mine)",
    ],
    ids=["python", "ignored", "blocked", "c"],
)
def test_a_signal_that_somebody_uses_is_left_to_them(shop: Shop, taken: str) -> None:
    """Python's handlers, C's, ignored and blocked ones alike: another is taken."""
    done = plain(shop, before=taken)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[0]) == signal.SIGRTMIN + 12


def test_a_handler_that_the_user_sets_later_is_the_users(shop: Shop) -> None:
    done = plain(shop, after="signal.signal(number, lambda *_: print('mine', flush=True)); os.kill(os.getpid(), number); sdk.finish()")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[1:] == ["mine"]


def test_a_signal_after_finish_or_while_the_interpreter_ends_is_harmless(shop: Shop) -> None:
    """faulthandler puts the old action back at its end; a late signal must not find the deadly default there."""
    late = """
sdk.finish()
os.kill(os.getpid(), number)
import ctypes
libc = ctypes.CDLL(None)
import faulthandler
assert faulthandler.unregister(number)  # what the interpreter does when it ends
os.kill(os.getpid(), number)
"""
    done = plain(shop, after=late)
    assert done.returncode == 0, done.stderr


def test_a_second_run_of_the_process_dumps_into_its_own_folder(shop: Shop) -> None:
    done = plain(shop, after="sdk.finish(); sdk.init(project='p', mode='offline'); os.kill(os.getpid(), number); sdk.finish()")
    assert done.returncode == 0, done.stderr
    dumps = sorted(b"most recent call first" in _stacks.written(folder) for folder in shop.writers())
    assert dumps == [False, True]


def test_a_process_that_became_another_program_is_not_signalled(shop: Shop, server: Server) -> None:
    """After exec the handlers are gone and the signal would kill."""
    asks(server)
    program = "import os, sdk\nsdk.init(project='p')\nsdk.log({'loss': 1.0})\nos.execvp('sleep', ['sleep', '600'])\n"
    process = shop.start(program, server)
    until(lambda: server.docs("event", "stacks") or process.poll() is not None, 120)
    assert process.poll() is None
    process.kill()
    process.communicate()
    problems = [doc["data"]["problem"] for doc in server.docs("event", "stacks")]
    assert problems == ["the process has given up its signal handlers"]


def test_the_room_for_a_dump_is_there_before_a_disk_is_full(tmp_path: Path) -> None:
    """In a process of its own: the file has its blocks from init on, and reads as if they were not there."""
    code = (
        f"import os, pathlib, signal; from sdk import _stacks; folder = pathlib.Path({str(tmp_path)!r}); n = _stacks.install(folder)\n"
        "size = os.stat(folder / 'stacks.txt'); assert size.st_blocks * 512 >= 65536, size\n"
        "before = len(_stacks.written(folder)); os.kill(os.getpid(), n)\n"
        "assert b'most recent call first' in _stacks.written(folder, before)[:200]; assert _stacks.number_of(folder) == n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_flight_recorders_file_is_named_when_there_is_one(tmp_path: Path) -> None:
    (tmp_path / "trace_3").touch()
    for variables, expected in (
        ({"TORCH_NCCL_TRACE_BUFFER_SIZE": "2000", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE": str(tmp_path / "trace_")}, str(tmp_path / "trace_3")),
        ({"TORCH_NCCL_TRACE_BUFFER_SIZE": "0", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE": str(tmp_path / "trace_")}, None),
        ({"TORCH_FR_BUFFER_SIZE": "2000", "TORCH_FR_DUMP_TEMP_FILE": str(tmp_path / "nothing_")}, None),
    ):
        process = subprocess.Popen(["cat"], env={"PATH": os.environ["PATH"], **variables}, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            process.stdin.write(b"up\n")
            process.stdin.flush()
            assert process.stdout.readline() == b"up\n"  # right behind its start the kernel may show no environment yet
            assert sender_stacks.flight_recorder(process.pid, 3).get("flight_recorder") == expected
            assert sender_stacks.process_facts(process.pid)["state"] in ("S", "R", "D")
        finally:
            process.communicate()
    assert sender_stacks.process_facts(2**22 + 1) == {}


# When a stall is one -----------------------------------------------------------------------------------------------------------------


def told(pace: sender_stacks.Pace, looks: list[tuple[float, int]]) -> list[float]:
    return [now for now, points in looks if pace.look(points, now)]


def test_a_program_that_logs_no_steps_never_stalls() -> None:
    assert told(sender_stacks.Pace(1.0), [(now, 0) for now in range(1000)]) == []


def test_a_stall_is_told_once_until_a_step_comes_again() -> None:
    looks = [(0.0, 1), (1.0, 2), *[(float(now), 2) for now in range(2, 100)], (100.0, 3), *[(float(now), 3) for now in range(101, 200)]]
    assert told(sender_stacks.Pace(10.0), looks) == [12.0, 111.0]


def test_by_itself_the_limit_is_minutes_and_grows_with_slow_steps_and_regular_pauses() -> None:
    quick, slow, pausing = (sender_stacks.Pace(None) for _ in range(3))
    told(quick, [(float(now), now + 1) for now in range(100)])
    told(slow, [(now * 60.0, now + 1) for now in range(10)])
    told(pausing, [(0.0, 1), (1.0, 2), (401.0, 3), (402.0, 4)])
    assert (quick.limit, slow.limit, pausing.limit) == (300.0, 600.0, pytest.approx(1336, abs=150))


def test_the_variable_is_read_with_patience() -> None:
    read = {text: sender_stacks.stall_seconds({"ENCORE_STALL_SECONDS": text}) for text in ("", "off", "0", "45", "soon", "-3")}
    assert read == {"": None, "off": 0.0, "0": 0.0, "45": 45.0, "soon": None, "-3": 0.0}


def test_a_dump_that_is_too_long_keeps_its_end_where_the_main_thread_stands() -> None:
    text = b"".join(b"  File %d\n" % n for n in range(20_000)) + b"Current thread\n  File main\n"
    short = sender_stacks.shortened(text)
    assert len(short) <= sender_stacks.TEXT_BYTES + 10
    assert short.startswith(b"  File 0\n")
    assert short.endswith(b"Current thread\n  File main\n")
    assert b"\n...\n" in short
