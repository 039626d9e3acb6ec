"""Damaged journals, jumping clocks, poison, two claims to one rank: what can be read arrives as it was, the rest is told as a hole."""

from __future__ import annotations

import json
import random
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path
from zlib import crc32

import pytest

from sdk._ids import new_id
from sdk._records import DOC, NO_STEP, RECORD, RECORD_BYTES, padded
from sdk._sender import limits
from sdk._sender.run import RunSender
from tests.torture.house import TORTURE, House, until
from tests.torture.ledger import Account, value_of
from tests.torture.results import Results
from tests.torture.test_kills import HERE, new_run

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(3000 if TORTURE else 300)]

DAMAGED = 300 if TORTURE else 12
POINTS = 400

JOURNAL = """
import os, sys
sys.path.insert(0, {root!r})
from tests.torture.ledger import value_of
import sdk
run = sdk.init(project="torture", id={run!r})
for step in range({points}):
    sdk.log({{"x": value_of(0, step), "i": step}}, step=step)
os.kill(os.getpid(), 9)
"""


def journal_of(house: House, run: str) -> Path:
    """The folder of a run that logged POINTS calls without a sender and was killed."""
    code = JOURNAL.format(root=str(HERE.parents[1]), run=run, points=POINTS)
    environment = house.environment(ENCORE_SENDER="external", ENCORE_CONSOLE="0")
    process = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert process.returncode == -9, process.stderr
    return house.journal / run


def copy_as(folder: Path, target: Path, run: str) -> Path:
    """The same journal as another run's, another writer's: every id in it is new."""
    (writer,) = (path.parent for path in folder.glob("*/writer.json"))
    about = json.loads((writer / "writer.json").read_text())
    about["writer"] = new_id()
    about["run"]["id"] = run
    copied = target / run / about["writer"]
    shutil.copytree(writer, copied)
    (copied / "writer.json").write_text(json.dumps(about))
    return copied


def sent(house: House, folder: Path) -> None:
    """By a sender in this process, as `encore sync` runs one."""
    sender = RunSender(folder, house.up.url, house.up.token)
    patient, limits.LOOK_SECONDS = limits.LOOK_SECONDS, 0.05  # two looks are needed to see that the process is gone
    deadline = time.monotonic() + 120
    while not sender.done and time.monotonic() < deadline:
        if not sender.step():
            time.sleep(0.02)
    limits.LOOK_SECONDS = patient
    assert sender.done, (sender.error, sender.unsent, [(box.next, box.eyes.next, box.seen_all) for box in sender.outboxes.values()])


def lengths(raw: bytes) -> list[tuple[int, int]]:
    """(position, length) of a segment's records."""
    found, at = [], 64
    while at + RECORD_BYTES <= len(raw) and raw[at + 4 : at + 6] == b"EN":
        (length,) = struct.unpack_from("<I", raw, at + 8)
        found.append((at, length))
        at += length
    return found


def examined(house: House, run: str, key: str, value) -> tuple[set[int], Account]:
    """Steps that arrived, and whether each is what was logged there, once."""
    account, seen = Account(), set()
    last = None
    for step, at, found in house.history(run, key):
        if step in seen:
            account.note("doubled", f"{key} at {step}")
        if found != value(step):
            account.note("altered", f"{key} at {step}: {found!r}")
        if last is not None and at < last:
            account.note("reordered", f"{key} at {step}")
        last = at
        seen.add(step)
    return seen, account


def test_flipped_bits_and_torn_tails_alter_nothing_and_cost_only_what_they_hit(house: House, results: Results) -> None:
    """Bits flipped anywhere behind the header of the segment, or the tail overwritten: all records but those hit arrive as they were."""
    chance = random.Random(31)
    original = journal_of(house, new_run(house, "damage")["id"])
    raw = next(original.glob("*/00000000.seg")).read_bytes()
    records = lengths(raw)
    used = records[-1][0] + records[-1][1]
    total, hit_points = Account(), 0
    spare = house.folder / "damaged"
    for trial in range(DAMAGED):
        run = new_run(house, "damaged", trial)["id"]
        writer = copy_as(original, spare, run)
        damaged = bytearray(raw)
        if trial % 3 == 2:  # a torn tail: the last record half written, or rubbish behind it
            at, length = records[-1]
            cut = at + chance.randrange(8, length)
            damaged[cut : cut + 64] = chance.randbytes(64) if trial % 2 else bytes(64)
        else:
            for _ in range(chance.randrange(1, 4)):
                damaged[chance.randrange(64, used)] ^= 1 << chance.randrange(8)
        (writer / "00000000.seg").write_bytes(damaged)
        hit = {number for number, (at, length) in enumerate(records) if damaged[at : at + length] != raw[at : at + length]}
        declarations = {n for n, (at, _) in enumerate(records) if raw[at + 6] == 3}
        sent(house, spare / run)
        if hit & declarations:  # without its key list a row means nothing: all of it is a hole then
            shutil.rmtree(spare / run)
            continue
        seen, account = examined(house, run, "x", lambda step: value_of(0, step))
        _, more = examined(house, run, "i", lambda step: step)
        lost = {step for step in range(POINTS) if step not in seen}
        hit_points += len(lost)
        # The records of a step: exactly those that were hit may be missing.
        (first,) = [n for n, (at, _) in enumerate(records) if raw[at + 6] == 1][:1]
        steps_hit = {struct.unpack_from("<q", raw, records[n][0] + 24)[0] for n in hit if n >= first and raw[records[n][0] + 6] == 1}
        for step in lost - steps_hit:
            account.note("lost", f"step {step} was not hit")
        holes = [event["data"] for event in house.up.get(f"runs/{run}/events")["results"] if event["name"] == "hole"]
        if lost and max(lost) < POINTS - 1 and not holes:
            account.note("lost", "without a word")
        total += account + more
        total.acknowledged += len(seen)
        shutil.rmtree(spare / run)
    results.add("journals with flipped bits or a torn tail", DAMAGED, total, f"{hit_points} points hit, told as holes")
    assert total.exact, total.examples
    assert hit_points


def test_a_poisoned_record_neither_stops_the_sender_nor_harms_its_neighbours(house: House, results: Results) -> None:
    """A document that no parser bears (100,000 levels), one with a text that no database takes, one that is no object: all else arrives."""
    folder = journal_of(house, new_run(house, "poison")["id"])
    path = next(folder.glob("*/00000000.seg"))
    raw = bytearray(path.read_bytes())
    records = lengths(bytes(raw))
    at = records[-1][0] + records[-1][1]
    number = struct.unpack_from("<Q", raw, records[-1][0] + 16)[0]
    deep = b'{"type":"config","value":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    huge = json.dumps({"type": "event", "name": "e" * 5000, "data": {"n": 10**400, "t": "\x00\ud800"}}).encode()
    poison = [deep, huge, b"[1, 2]", b'{"type": "config", "value": 7}', b'{"type": "define", "pattern": "(", "goal": ["x"]}', b"\xff\xfe"]
    for body in poison:
        number += 1
        payload = padded(body)
        record = RECORD.pack(0, 0x4E45, DOC, 0, RECORD_BYTES + len(payload), 0, number, NO_STEP, 1)[4:] + payload
        raw[at : at + 4 + len(record)] = crc32(record).to_bytes(4, "little") + record
        at += 4 + len(record)
    good = padded(b'{"type":"event","name":"behind","data":{}}')
    record = RECORD.pack(0, 0x4E45, DOC, 0, RECORD_BYTES + len(good), 0, number + 1, NO_STEP, 1)[4:] + good
    raw[at : at + 4 + len(record)] = crc32(record).to_bytes(4, "little") + record
    path.write_bytes(raw)
    sent(house, folder)
    seen, account = examined(house, folder.name, "x", lambda step: value_of(0, step))
    assert seen == set(range(POINTS))
    assert account.exact, account.examples
    names = [event["name"] for event in house.up.get(f"runs/{folder.name}/events")["results"]]
    assert "behind" in names
    results.add("poisoned records", len(poison), None, "all else arrived")


CLOCK = """
import os, sys, time
sys.path.insert(0, {root!r})
real = time.time_ns
jump = [0]
time.time_ns = lambda: real() + jump[0]
time.time = lambda: time.time_ns() / 1e9
from tests.torture.ledger import value_of
import sdk
jump[0] = int(float(sys.argv[1]) * 1e9)
run = sdk.init(project="torture", id={run!r})
for step in range({points}):
    if step == {points} // 3: jump[0] += 86_400 * 10**9
    if step == 2 * {points} // 3: jump[0] -= 2 * 86_400 * 10**9
    sdk.log({{"x": value_of(0, step), "i": step}}, step=step)
sdk.finish()
"""


@pytest.mark.parametrize("start", [0, -86_400, 86_400], ids=["right", "a-day-behind", "a-day-ahead"])
def test_a_clock_that_jumps_a_day_both_ways_moves_no_point(house: House, start: int) -> None:
    """The system's clock cannot be set here, so `time.time_ns` jumps in the trainer: a day ahead, then two back. Steps, order and the
    distance between points stay; only the run's first instant is the clock's."""
    run = new_run(house, "clock")["id"]
    code = CLOCK.format(root=str(HERE.parents[1]), run=run, points=POINTS)
    done = subprocess.run(
        [sys.executable, "-c", code, str(start)], env=house.environment(), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert until(lambda: house.state(run) == "finished")
    points = house.history(run, "x")
    assert [(step, value) for step, _, value in points] == [(step, value_of(0, step)) for step in range(POINTS)]
    times = [at for _, at, _ in points]
    assert times == sorted(times)
    assert times[-1] - times[0] < 60_000_000


CLAIM = """
import os, sys, time
sys.path.insert(0, {root!r})
import sdk
run = sdk.init(project="torture", id={run!r}, resume="allow")
mine = float(sys.argv[1])
print("open", flush=True)
sys.stdin.readline()
for step in range({points}):
    sdk.log({{"x": step + mine}}, step=step)
sys.stdin.readline()
sdk.finish()
"""


def test_two_processes_that_claim_one_rank_both_keep_all_points(house: House) -> None:
    """The later start's value counts at each step, both are stored, and the run's events say that the rank was claimed twice."""
    run = new_run(house, "claim")["id"]
    code = CLAIM.format(root=str(HERE.parents[1]), run=run, points=POINTS)
    argv = [sys.executable, "-c", code]
    both = []
    for mine in ("0.25", "0.5"):
        process = subprocess.Popen(
            [*argv, mine], env=house.environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        both.append(process)
        process.stdout.readline()

    def events() -> list[dict]:
        return [event for event in house.up.get(f"runs/{run}/events")["results"] if event["name"] == "rank_claimed_twice"]

    try:
        for process in reversed(both):  # the earlier start logs last: its writer still does not win
            process.stdin.write("\n")
            process.stdin.flush()
        assert until(lambda: house.state(run) is not None)
        (event,) = until(events) or [None]
        assert event is not None
        assert event["data"]["rank"] == 0
        assert sorted(event["data"]["pids"]) == sorted(process.pid for process in both)
    finally:
        for process in both:
            process.communicate("\n", timeout=120)
    assert [process.returncode for process in both] == [0, 0]
    assert until(lambda: house.state(run) == "finished")
    assert [(step, value) for step, _, value in house.history(run, "x")] == [(step, step + 0.5) for step in range(POINTS)]
    assert until(lambda: next((row["count"] for row in house.up.get(f"runs/{run}/keys")["results"] if row["key"] == "x"), 0) == 2 * POINTS)
