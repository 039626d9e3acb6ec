"""What log() has taken can be read back exactly, whatever the values, the threads, the forks and the deaths."""

from __future__ import annotations

import itertools
import math
import os
import signal
import struct
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import ROOT, Shop, until
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sdk import _wire
from sdk._ids import new_id
from sdk._journal import Writer
from sdk._reader import Reader
from sdk._records import MAX_KEY_LISTS, RECORD_BYTES, SEGMENT_BYTES
from sdk.errors import FormatError, ValueRefused


def writer(folder: Path, strict: bool = False) -> Writer:
    return Writer(folder, {"id": new_id(), "project": "p"}, SimpleNamespace(strict=strict))


def everything(folder: Path, settled: bool = False) -> list[dict]:
    reader, batches = Reader(folder), []
    while chunk := reader.read(settled=settled):
        batches.append(_wire.decode(_wire.encode("r", "w", chunk)[0]))
    return batches


def points(folder: Path, settled: bool = False) -> list[tuple]:
    return [(step, key, value) for batch in everything(folder, settled) for _, key, step, _, value in _wire.points(batch)]


def same(one, other) -> bool:
    """Bit for bit: NaN equals NaN, 0.0 is not -0.0, 1 is not 1.0."""
    if type(one) is not type(other):
        return False
    return struct.pack("<d", one) == struct.pack("<d", other) if isinstance(one, float) else one == other


numbers = st.one_of(st.floats(), st.integers(-(2**63), 2**63 - 1), st.booleans())
calls = st.lists(
    st.tuples(
        st.dictionaries(st.text(min_size=1, max_size=8), numbers, min_size=1, max_size=6),
        st.one_of(st.none(), st.integers(-(2**62), 2**62)),
    ),
    min_size=1,
    max_size=30,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(calls=calls)
def test_every_number_comes_back_bit_for_bit_in_order(tmp_path: Path, calls) -> None:
    """Any keys, floats, ints, booleans, steps: what was logged is what is read."""
    log = writer(tmp_path)
    expected, last = [], -1
    for data, step in calls:
        log.log(data, step)
        last = last + 1 if step is None else step
        for key, value in data.items():
            key = key.encode("utf-8", "replace").decode().replace("\0", "\ufffd")
            expected.append((last, key, int(value) if isinstance(value, bool) else value))
    found = points(log.folder)
    # Keys that differ only in what UTF-8 cannot hold fall together; hypothesis rarely makes two of them in one call.
    if all(len({k.encode("utf-8", "replace") for k in data}) == len(data) for data, _ in calls):
        assert sorted(map(repr, found)) == sorted(map(repr, expected))
        assert [step for step, _, _ in found] == [step for step, _, _ in expected]


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        (float("nan"), float("nan")),
        (math.inf, math.inf),
        (-math.inf, -math.inf),
        (-0.0, -0.0),
        (5e-324, 5e-324),
        (2**63 - 1, 2**63 - 1),
        (-(2**63), -(2**63)),
        (2**53 + 1, 2**53 + 1),
        (2**63, float(2**63)),
        (10**400, math.inf),
        (True, 1),
    ],
)
def test_odd_numbers(tmp_path: Path, value, stored) -> None:
    """NaN, infinities, -0.0, denormals, 64-bit ints exactly; larger ints as the nearest float, counted as inexact."""
    log = writer(tmp_path)
    log.log({"x": value})
    log.log({"x": value})
    ((_, _, first), (_, _, second)) = points(log.folder)
    assert same(first, stored)
    assert same(second, stored)
    assert bool(log.dropped_counts().get("inexact")) == (isinstance(value, int) and value >= 2**63)


def test_numpy_and_torch_scalars_are_points(tmp_path: Path) -> None:
    """numpy's and torch's scalars of all kinds, 0-d and one-element arrays; nothing is imported for it."""
    numpy = pytest.importorskip("numpy")
    torch = pytest.importorskip("torch")
    log = writer(tmp_path)
    for _ in range(2):  # the second call takes the fast path where there is one
        log.log(
            {"f64": numpy.float64(0.1), "f32": numpy.float32(0.1), "i": numpy.int64(2**62), "u": numpy.uint8(7), "b": numpy.bool_(True)}
        )
        log.log(
            {
                "zero": numpy.array(1.5),
                "one": numpy.array([2]),
                "t": torch.tensor(2.5),
                "ti": torch.tensor(3),
                "tg": torch.tensor(1.0, requires_grad=True),
            }
        )
        log.log({"big": numpy.uint64(2**63 + 5)}, step=numpy.int32(4))
    found = {(key, type(value)): value for _, key, value in points(log.folder)}
    assert found[("f64", float)] == 0.1
    assert found[("f32", float)] == float(numpy.float32(0.1))
    assert found[("i", int)] == 2**62
    assert found[("u", int)] == 7
    assert found[("b", int)] == 1
    assert (found[("zero", float)], found[("one", int)], found[("t", float)], found[("ti", int)], found[("tg", float)]) == (
        1.5,
        2,
        2.5,
        3,
        1.0,
    )
    assert found[("big", float)] == float(2**63 + 5)
    assert log.dropped == {}


def test_what_is_no_number_is_dropped_counted_and_said_once(tmp_path: Path, capfd) -> None:
    """Strings, None, arrays, complex: dropped by reason, the rest of the call is kept, one line each on stderr."""
    log = writer(tmp_path)
    for _ in range(3):
        log.log({"loss": 0.5, "name": "adam", "nothing": None, "z": 1j})
    log.log("not a dict")
    log.log({"x": 1.0}, step=1.5)
    log.log({"x": 1.0}, step="3")
    assert [value for _, _, value in points(log.folder)] == [0.5, 0.5, 0.5]
    assert log.dropped["str is no number"] == log.dropped["NoneType is no number"] == log.dropped["complex is no number"] == 3
    assert log.dropped["step is no int"] == 2
    assert log.dropped["data is no dict"] == 1
    assert capfd.readouterr().err.count("str is no number") == 1


def test_strict_raises(tmp_path: Path) -> None:
    """ENCORE_STRICT=1: what would be dropped raises, and logging goes on afterwards."""
    log = writer(tmp_path, strict=True)
    with pytest.raises(ValueRefused, match="'name': str is no number"):
        log.log({"name": "adam"})
    with pytest.raises(ValueRefused, match="step must be an int"):
        log.log({"x": 1.0}, step=0.5)
    log.log({"x": 1.0})
    assert len(points(log.folder)) == 1


def test_nested_keys_join_by_slashes(tmp_path: Path) -> None:
    """{"train": {"loss": 1}} is train/loss."""
    log = writer(tmp_path)
    log.log({"train": {"loss": 1.0, "acc": {"top1": 0.5}}, "lr": 0.1})
    assert {key for _, key, _ in points(log.folder)} == {"train/loss", "train/acc/top1", "lr"}


def test_steps_follow_the_last_one(tmp_path: Path) -> None:
    """Without a step: the last step of this writer plus one. Negative, repeated and falling steps are data."""
    log = writer(tmp_path)
    for step in (None, None, 10, None, -5, None, 10, 10):
        log.log({"x": 1.0}, step)
    assert [step for step, _, _ in points(log.folder)] == [0, 1, 10, 11, -5, -4, 10, 10]


def test_ever_new_names_fall_back_to_sparse_and_cross_segments(tmp_path: Path) -> None:
    """100,000 names, one by one: 256 key lists, then sparse records, all there over many segments."""
    log = writer(tmp_path)
    for number in range(100_000):
        log.log({f"layer/{number}/norm": float(number)}, number)
    assert len(log._lists) == MAX_KEY_LISTS
    found = points(log.folder)
    assert len(found) == 100_000
    assert all(key == f"layer/{step}/norm" and value == step for step, key, value in found)


def test_a_later_segment_needs_no_earlier_one(tmp_path: Path) -> None:
    """Key lists are declared again in each segment, so those that are delivered can be unlinked."""
    log = writer(tmp_path)
    while log._segments.number < 3:
        log.log({"a": 1.0, "b": 2})
    log.log({"last": 1.0})
    for number in range(3):
        (log.folder / f"{number:08d}.seg").unlink()
    batches = everything(log.folder)
    assert batches[0]["holes"][0][0] == 0
    assert {key for batch in batches for _, key, _, _, _ in _wire.points(batch)} == {"a", "b", "last"}
    numbers = [n for batch in batches for n in range(batch["first"], batch["last"] + 1)]
    assert numbers == list(range(log.next_record))


def test_wide_calls(tmp_path: Path) -> None:
    """20,000 keys in one call are all kept."""
    log = writer(tmp_path)
    for step in range(2):
        log.log({f"k{i}": float(i) for i in range(20_000)}, step)
    assert len(points(log.folder)) == 40_000


def test_threads_lose_and_double_nothing(tmp_path: Path) -> None:
    """Eight threads at once."""
    log = writer(tmp_path)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=lambda t=t: [log.log({f"t{t}": float(i)}, i) for i in range(2000)]) for t in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    log.drain()
    found = points(log.folder)
    for t in range(8):
        assert sorted(value for _, key, value in found if key == f"t{t}") == [float(i) for i in range(2000)]


def test_a_signal_handler_may_log_while_log_is_at_work(tmp_path: Path) -> None:
    """A handler that hits inside log() leaves its record for the interrupted call; nothing blocks, nothing is lost."""
    log = writer(tmp_path)
    hits, count = [], itertools.count(1)

    def handler(*_) -> None:  # which may itself be interrupted by the next signal
        hits.append(number := next(count))
        log.log({"handler": float(number)})

    previous = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    try:
        for i in range(100_000):
            log.log({"main": float(i)}, i)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    log.drain()
    found = points(log.folder)
    assert [v for _, k, v in found if k == "main"] == [float(i) for i in range(100_000)]
    assert sorted(v for _, k, v in found if k == "handler") == [float(i + 1) for i in range(len(hits))]
    assert hits


def test_a_token_lost_to_an_exception_is_found_again(tmp_path: Path) -> None:
    """An exception raised by a handler between taking the token and the try: later calls notice that nobody holds it."""
    log = writer(tmp_path)
    log._tokens.pop()
    log.log({"x": 1.0})
    log._pending_since -= 10
    log.log({"x": 2.0})
    assert sorted(value for _, _, value in points(log.folder)) == [1.0, 2.0]


def test_asyncio_tasks_log(tmp_path: Path) -> None:
    """Tasks interleave; each one's order is kept."""
    import asyncio

    log = writer(tmp_path)

    async def task(name: str) -> None:
        for i in range(100):
            log.log({name: float(i)}, i)
            await asyncio.sleep(0)

    async def main() -> None:
        await asyncio.gather(*(task(f"t{i}") for i in range(5)))

    # In a thread of its own: another test of this process may have left a running loop in the main one.
    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    thread.join()
    found = points(log.folder)
    assert all([v for _, k, v in found if k == f"t{i}"] == [float(n) for n in range(100)] for i in range(5))


def test_a_torn_tail_is_no_hole_and_a_bad_record_is_one(tmp_path: Path) -> None:
    """A record cut short at the end was never returned from; one that rotted in the middle is reported by its number."""
    log = writer(tmp_path)
    for i in range(10):
        log.log({"x": float(i)}, i)
    path = log.folder / "00000000.seg"
    data = bytearray(path.read_bytes())
    position = log._where()[1]
    torn = data[position - RECORD_BYTES - 8 : position]
    data[position : position + 30] = torn[:30]  # as a kill in the middle of a copy leaves it
    path.write_bytes(data)
    assert len(points(log.folder)) == 10
    assert all(not batch["holes"] for batch in everything(log.folder, settled=True))
    data[position - 3 * (RECORD_BYTES + 8) + 20] ^= 1  # the third from last
    path.write_bytes(data)
    batches = everything(log.folder, settled=True)
    assert [hole for batch in batches for hole in batch["holes"]] == [[log.next_record - 3] * 2]
    assert len(points(log.folder, settled=True)) == 9


def test_pages_lost_to_a_power_cut_are_a_hole(tmp_path: Path) -> None:
    """Pages reach the disk in any order: zeros in the middle, good records behind them."""
    log = writer(tmp_path)
    for i in range(1000):
        log.log({"x": float(i)}, i)
    path = log.folder / "00000000.seg"
    data = bytearray(path.read_bytes())
    data[4096:8192] = bytes(4096)
    path.write_bytes(data)
    batches = everything(log.folder, settled=True)
    holes = [tuple(hole) for batch in batches for hole in batch["holes"]]
    lost = sum(b - a + 1 for a, b in holes)
    assert len(holes) == 1
    assert len(points(log.folder, settled=True)) == 1000 - lost
    assert lost in range(84, 89)


def test_a_segment_of_garbage_does_not_stop_the_reader(tmp_path: Path) -> None:
    """Whatever bytes lie there: no crash, and what is good behind them is found."""
    import random

    log = writer(tmp_path)
    while log._segments.number < 2:
        log.log({"x": 1.0})
    path = log.folder / "00000001.seg"
    path.write_bytes(random.Random(7).randbytes(SEGMENT_BYTES))
    batches = everything(log.folder, settled=True)
    numbers = [n for batch in batches for n in range(batch["first"], batch["last"] + 1)]
    assert numbers == list(range(log.next_record))
    assert any(batch["holes"] for batch in batches)


def test_a_newer_journal_is_refused_by_name(tmp_path: Path) -> None:
    """A version this SDK does not know is not guessed at."""
    log = writer(tmp_path)
    path = log.folder / "00000000.seg"
    path.write_bytes(b"ENCOREJ2" + path.read_bytes()[8:])
    about = log.folder / "writer.json"
    about.write_text(about.read_text().replace('"format":1', '"format":2'))
    with pytest.raises(FormatError, match="newer"):
        Reader(log.folder).read()


def test_reading_from_any_record(tmp_path: Path) -> None:
    """seek(n) gives the records from n on, whatever segment they lie in."""
    log = writer(tmp_path)
    while log._segments.number < 1:
        log.log({"x": 1.0, "y": 2.0})
    for i in range(100):
        log.log({"z": float(i)}, i)
    for start in (0, 1, 5, log.next_record // 2, log.next_record - 50, log.next_record):
        reader = Reader(log.folder)
        reader.seek(start)
        seen = []
        while chunk := reader.read():
            assert chunk.first == (seen[-1] + 1 if seen else start)
            seen.append(chunk.last)
        assert (seen[-1] if seen else start - 1) == log.next_record - 1


def test_documents_of_any_size_and_content(tmp_path: Path) -> None:
    """Large ones go to blobs/; NaN, surrogates, NUL and unknown objects become strict JSON."""
    log = writer(tmp_path)
    log.emit({"type": "config", "value": {"a": float("nan"), "b": "\udc80\0x", "c": object(), "d": {1: (2, 3)}, "e": b"\xff"}})
    log.emit({"type": "note", "text": "x" * 600_000})
    (batch,) = everything(log.folder)
    small, large = (entry["doc"] for entry in batch["docs"])
    assert small["value"]["a"] == "NaN"
    assert small["value"]["d"] == {"1": [2, 3]}
    assert "\0" not in small["value"]["b"]
    assert (log.folder / "blobs" / large["blob"].removeprefix("blake3:")).stat().st_size > 600_000


def test_kill_9_right_after_log_loses_nothing(tmp_path: Path) -> None:
    """Twenty programs that kill themselves right after log() returned: every point is there."""
    program = (
        "import os, signal, sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path; from sdk._journal import Writer\n"
        "w = Writer(Path(sys.argv[2]), {'id': 'a' * 26}, None)\n"
        "for i in range(int(sys.argv[3])): w.log({'x': float(i)}, i)\n"
        "print(w.folder, flush=True); w.log({'last': 1.0}); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    for number in range(20):
        done = subprocess.run(
            [sys.executable, "-c", program, str(ROOT), str(tmp_path), str(number * 37)], capture_output=True, text=True, timeout=120
        )
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert len(points(Path(done.stdout.strip()), settled=True)) == number * 37 + 1


def test_a_forked_child_is_a_writer_of_its_own(tmp_path: Path) -> None:
    """After os.fork the parent's file belongs to the parent alone."""
    log = writer(tmp_path)
    log.log({"parent": 1.0})
    child_folder = tmp_path / "child"
    pid = os.fork()
    if pid == 0:
        try:
            child = writer(child_folder)
            log.abandon(child.log, child.emit)
            log.log({"child": 2.0})
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    log.log({"parent": 3.0})
    assert [(k, v) for _, k, v in points(log.folder)] == [("parent", 1.0), ("parent", 3.0)]
    (found,) = until(lambda: list(child_folder.glob("*/*/writer.json")))
    assert [(k, v) for _, k, v in points(found.parent)] == [("child", 2.0)]


def test_the_thread_that_makes_segments_is_never_waited_for(tmp_path: Path, monkeypatch) -> None:
    """While its disk call hangs, log() makes the next segment itself: no lock is shared with another thread's I/O."""
    from sdk import _segments

    hangs, go_on, really = threading.Event(), threading.Event(), _segments.reserve

    def reserve(*args, **kwargs):
        if threading.current_thread().name == "encore-segments":
            hangs.set()
            assert go_on.wait(120)
        return really(*args, **kwargs)

    monkeypatch.setattr(_segments, "reserve", reserve)
    log = writer(tmp_path)
    data = {f"k{i}": float(i) for i in range(500)}
    count = 0
    while log._segments.number < 3:
        log.log(data)
        count += 1
        if log._segments.number == 0 and log._where()[1] > SEGMENT_BYTES * 0.9:
            assert hangs.wait(30)
    go_on.set()
    log.finish({"state": "finished"})
    assert len([1 for batch in everything(log.folder) for frame in batch["frames"] for _ in frame["steps"]]) == count
    assert until(lambda: not list(log.folder.glob("next-*"))), "spares that are not needed go"


def test_spares_are_ready_before_they_are_needed(tmp_path: Path) -> None:
    """One ahead; two for a writer in a hurry."""
    log = writer(tmp_path)
    data = {f"k{i}": float(i) for i in range(500)}
    while log._where()[1] < SEGMENT_BYTES * 0.6:
        log.log(data)
    assert until(lambda: len(log._segments._spares) == 2)
    log.finish({"state": "finished"})


SPAWNED = """
    import multiprocessing, sdk
    def work(number):
        sdk.init(project="p")
        for i in range(500): sdk.log({f"child{number}": float(i)}, i)
    if __name__ == "__main__":
        run = sdk.init(project="p")
        children = [multiprocessing.get_context("spawn").Process(target=work, args=(n,)) for n in range(2)]
        for child in children: child.start()
        for i in range(2000): sdk.log({"parent": float(i)}, i)
        for child in children: child.join(); assert child.exitcode == 0
        sdk.finish()
"""


@pytest.mark.parametrize("mode", ["map", "write"])
def test_spawned_processes_write_journals_of_their_own(shop: Shop, mode: str) -> None:
    """multiprocessing spawn: every point of parent and children, each in order, whatever run the children belong to."""
    done = shop.run(SPAWNED, None, ENCORE_MODE="offline", ENCORE_JOURNAL_MODE=mode)
    assert done.returncode == 0, done.stderr
    found: dict[str, list[float]] = {}
    for folder in {path.parent for path in shop.journal.glob("*/*/writer.json")}:
        for _, key, value in points(folder, settled=True):
            found.setdefault(key, []).append(value)
    assert found["parent"] == [float(i) for i in range(2000)]
    assert found["child0"] == found["child1"] == [float(i) for i in range(500)]


def test_a_crowd_of_deferred_calls_is_bounded_and_counted(tmp_path: Path, monkeypatch) -> None:
    """While one thread hangs inside log(), what others leave for it does not grow without bound."""
    from sdk import _journal

    monkeypatch.setattr(_journal, "MAX_PENDING_CALLS", 100)
    log = writer(tmp_path)
    token = log._tokens.pop()
    log._abandoned = lambda: False  # as if its thread were inside
    for i in range(250):
        log.log({"x": float(i), "y": 0.0}, i)
    log._tokens.append(token)
    log.drain()
    assert len(points(log.folder)) == 200
    assert log.dropped == {"the journal was busy": 300}
