"""Whatever bytes of a journal rot, are torn off or lost: what is read is true, what is missing is a hole, and nothing raises."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import Shop, until
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from server import Server

from sdk import _journal, _reader, _wire
from sdk._journal import Writer
from sdk._reader import Reader, first_record
from sdk._records import DENSE, DOC, KEYLIST, KEYS, RECORD, SEGMENT_HEADER, SPARSE

TORTURE = os.environ.get("ENCORE_TORTURE") == "1"


@dataclass(repr=False)
class Truth:
    """A journal of three short segments as it was written, record by record."""

    files: list[bytes] = field(default_factory=list)
    about: bytes = b""
    content: dict[int, list] = field(default_factory=dict)  # record -> its points and documents
    place: dict[int, tuple[int, int, int]] = field(default_factory=dict)  # record -> (segment, first byte, behind the last)
    needs: dict[int, list[int]] = field(default_factory=dict)  # record -> declarations, any one of which is enough for it


def content(batches: list[dict]) -> dict[int, list]:
    found: dict[int, list] = {}
    for batch in batches:
        for number, *point in _wire.points(batch):
            found.setdefault(number, []).append(tuple(point))
        for doc in batch["docs"]:
            found.setdefault(doc["n"], []).append(json.dumps(doc["doc"], sort_keys=True))
    return {number: sorted(map(repr, items)) for number, items in found.items()}


def batches(folder: Path, settled: bool = True, limit: int = 3 << 20) -> list[dict]:
    reader, found = Reader(folder), []
    while chunk := reader.read(limit, settled=settled):
        found.append(_wire.decode(_wire.encode("r", "w", chunk)[0]))
    return found


@pytest.fixture(scope="module")
def truth(tmp_path_factory) -> Truth:
    patch = pytest.MonkeyPatch()
    patch.setattr(_journal, "MAX_KEY_LISTS", 2)
    writer = Writer(tmp_path_factory.mktemp("truth"), {"id": "a" * 26, "project": "p"}, SimpleNamespace(strict=False))
    for part in range(3):
        for i in range(12):
            writer.log({"loss": i / 8 + part}, i)
            writer.log({"a": i, "b": -i / 2}, i)
            writer.log({f"rare/{i % 5}": i * 0.5, "other": i}, i)
            if i % 4 == 0:
                writer.emit({"type": "event", "name": "note", "data": {"i": i, "part": part}})
        if part < 2:
            segment, position, record, last, _ = writer._where()
            writer._move(segment, position, record, last, 0)
            writer._go_on_in(writer._segments.next(record + 1))
    writer.finish({"state": "finished"})
    patch.undo()
    made = Truth(about=(writer.folder / "writer.json").read_bytes(), content=content(batches(writer.folder)))
    for number, path in enumerate(sorted(writer.folder.glob("0*.seg"))):
        data = path.read_bytes().rstrip(b"\0")
        data += bytes(-len(data) % 8 + 128)
        made.files.append(data)
        position, lists, names = SEGMENT_HEADER.size, {}, {}
        while data[position + 4 : position + 6] == b"EN":
            _, _, kind, _, length, list_id, record, _, _ = RECORD.unpack_from(data, position)
            made.place[record] = (number, position, position + length)
            payload = data[position + RECORD.size : position + length]
            if kind == KEYLIST:
                lists[list_id] = record
            elif kind == KEYS:
                names |= {int(key): record for key in json.loads(payload)}
            made.needs[record] = [lists[list_id]] if kind == DENSE else []
            if kind == SPARSE:
                made.needs[record] = sorted({names[key] for key, *_ in _journal.SPARSE_ENTRY.iter_unpack(payload)})
            assert kind != DOC or record in made.content
            position += length
    assert len(made.files) == 3
    return made


places = st.tuples(st.integers(0, 2), st.one_of(st.integers(0, 63), st.integers(64, 400), st.integers(0, 4000)))
damage = st.one_of(
    st.tuples(st.just("flip"), places, st.integers(0, 7)),
    st.tuples(st.just("zero"), places, st.integers(1, 300)),
    st.tuples(st.just("noise"), places, st.binary(min_size=1, max_size=200)),
    st.tuples(st.just("cut"), places, st.none()),
    st.tuples(st.just("gone"), places, st.none()),
)


def damaged(truth: Truth, wounds: list) -> tuple[list[bytes | None], list[set[int]]]:
    """(the files, the bytes of each that are not what they were)"""
    files: list[bytes | None] = []
    for number, data in enumerate(truth.files):
        rotten, there = bytearray(data), True
        for kind, (segment, place), what in wounds:
            if segment != number:
                continue
            place = min(place, len(rotten))
            if kind == "flip" and place < len(rotten):
                rotten[place] ^= 1 << what
            elif kind == "zero":
                rotten[place : place + what] = bytes(len(rotten[place : place + what]))
            elif kind == "noise":
                rotten[place : place + len(what)] = what[: len(rotten[place : place + len(what)])]
            elif kind == "cut":
                del rotten[place:]
            elif kind == "gone":
                there = False
        files.append(bytes(rotten) if there else None)
    changed = []
    for data, original in zip(files, truth.files, strict=True):
        data = data or b""
        changed.append({at for at, byte in enumerate(original) if at >= len(data) or data[at] != byte})
    return files, changed


def good(truth: Truth, changed: list[set[int]], record: int) -> bool:
    segment, first, behind = truth.place[record]
    if segment is not None and changed[segment] and not changed[segment].isdisjoint(range(first, behind)):
        return False
    return all(good(truth, changed, need) for need in truth.needs[record])


@settings(max_examples=3000 if TORTURE else 250, deadline=None, suppress_health_check=list(HealthCheck))
@given(wounds=st.lists(damage, min_size=1, max_size=4), limit=st.sampled_from([1, 300, 3 << 20]))
def test_any_damage_gives_true_records_and_exact_holes(truth: Truth, tmp_path_factory, wounds, limit: int) -> None:
    """Flipped bits, zeroed pages, noise, cut and missing files, headers too: every record is whole, or in a hole, or behind the end."""
    folder = tmp_path_factory.mktemp("rot")
    note(f"wounds={wounds!r} limit={limit}")
    files, changed = damaged(truth, wounds)
    (folder / "writer.json").write_bytes(truth.about)
    for number, data in enumerate(files):
        if data is not None:
            (folder / f"{number:08d}.seg").write_bytes(data)
    read = batches(folder, limit=limit)
    found = content(read)
    upto = 0
    missing: set[int] = set()
    for batch in read:
        assert batch["first"] == upto
        upto = batch["last"] + 1
        for first, last in batch["holes"]:
            assert batch["first"] <= first <= last <= batch["last"]
            assert missing.isdisjoint(range(first, last + 1))
            missing.update(range(first, last + 1))
    for record, (segment, _, _) in truth.place.items():
        if record in found:
            assert found[record] == truth.content[record], "only true records"
            assert record not in missing
        elif record in truth.content:
            assert record in missing or record >= upto, "what is missing is said"
        readable = files[segment] is not None and len(files[segment]) >= SEGMENT_HEADER.size
        if readable and good(truth, changed, record):
            assert record not in missing, f"record {record} is good and called a hole"
            assert record < upto
    assert not set(found) - set(truth.place)
    # Somebody who follows it while it is written, and the sender's look at the documents alone, see nothing untrue either.
    live = content(batches(folder, settled=False, limit=limit))
    assert all(truth.content[record] == items for record, items in live.items())
    eyes, docs = Reader(folder), set()
    while chunk := eyes.read(settled=True, docs_only=True):
        docs |= {number for number, *_ in chunk.docs}
    is_doc = {record for record, items in truth.content.items() if items[0].startswith("'{")}
    assert docs <= is_doc
    sound = {r for r in is_doc if files[truth.place[r][0]] is not None and good(truth, changed, r) and len(files[truth.place[r][0]]) >= 64}
    assert docs >= sound
    assert not eyes.waiting(), "what is no record any more does not keep the sender for ever"


def test_a_rotten_header_costs_nothing(truth: Truth, tmp_path: Path) -> None:
    """Each byte of each header turned over, one after the other: all points come, at their times, without a hole."""
    (tmp_path / "writer.json").write_bytes(truth.about)
    whole = {f"{number:08d}.seg": data for number, data in enumerate(truth.files)}
    for name, data in whole.items():
        for at in range(SEGMENT_HEADER.size):
            for other, bytes_ in whole.items():
                (tmp_path / other).write_bytes(bytes_)
            (tmp_path / name).write_bytes(data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :])
            read = batches(tmp_path)
            assert content(read) == truth.content
            assert not any(batch["holes"] for batch in read)
            assert first_record(tmp_path / name) == min(record for record, place in truth.place.items() if f"{place[0]:08d}.seg" == name)


def test_a_rotten_record_does_not_stop_a_run_that_goes_on(truth: Truth, tmp_path: Path, monkeypatch) -> None:
    """While the writer lives: what is no record, with good ones behind it for a second, is a hole; before that it may still be written."""
    (tmp_path / "writer.json").write_bytes(truth.about)
    data = bytearray(truth.files[0])
    _, first, _ = truth.place[20]
    data[first + 30] ^= 1
    (tmp_path / "00000000.seg").write_bytes(data)
    reader = Reader(tmp_path)
    chunk = reader.read()
    assert (chunk.last, reader.read()) == (19, None)
    monkeypatch.setattr(_reader, "ROTTEN_SECONDS", 0.0)
    chunk = reader.read()
    assert chunk.holes == [(20, 20)]
    assert chunk.last == max(record for record, place in truth.place.items() if place[0] == 0)


def test_no_descriptors_left_is_no_hole(truth: Truth, tmp_path: Path, monkeypatch) -> None:
    """A segment that cannot be opened just now is waited for, not passed over."""
    (tmp_path / "writer.json").write_bytes(truth.about)
    for number, data in enumerate(truth.files):
        (tmp_path / f"{number:08d}.seg").write_bytes(data)
    really, allowed = _reader._Segment, []

    def opened(path: Path, about):
        if path.name not in allowed:
            raise OSError(24, "Too many open files")
        return really(path, about)

    monkeypatch.setattr(_reader, "_Segment", opened)
    reader = Reader(tmp_path)
    assert reader.read(settled=True) is None
    allowed.append("00000000.seg")
    reader.read(settled=True)
    allowed.append("00000001.seg")
    allowed.append("00000002.seg")
    chunk = reader.read(settled=True)
    assert chunk.holes == []
    assert chunk.last == max(truth.place)


CLOCK = """
import os, time
_offset = os.environ.get("CLOCK_FILE")
_time, _time_ns = time.time, time.time_ns
def _days():
    try: return float(open(_offset).read())
    except (OSError, ValueError, TypeError): return 0.0
time.time = lambda: _time() + _days() * 86400
time.time_ns = lambda: _time_ns() + int(_days() * 86400 * 10**9)
"""


def test_a_clock_that_jumps_a_day_moves_nothing(shop: Shop, server: Server) -> None:
    """A day forth, then two back, in the middle of a run, in the trainer and in its sender: times go on from the start's, in order.

    The wall clock is turned in Python's own functions, since a test may not set the machine's.
    """
    site = shop.folder / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(CLOCK)
    clock = shop.folder / "clock"
    program = """
        import os, sys, time, sdk
        began = time.time()
        sdk.init(project="p")
        for days in (0, 1, -1):
            with open(os.environ["CLOCK_FILE"], "w") as file: file.write(str(days))
            assert abs(time.time() - began - days * 86400) < 3600
            for i in range(50): sdk.log({"x": float(i)}); time.sleep(0.002)
        print(began)
    """
    done = shop.run(program, server, CLOCK_FILE=str(clock), PYTHONPATH=f"{site}:{shop.environment()['PYTHONPATH']}")
    assert done.returncode == 0, done.stderr
    assert until(lambda: len(server.points("x")) == 150)
    (writer,) = [name for name, about in server.writers.items() if about["kind"] == "trainer"]
    times = [time for batch in server.batches[writer] for _, _, _, time, _ in _wire.points(batch)]
    assert times == sorted(times)
    began = float(done.stdout.split()[-1])
    assert -5 < times[0] / 1e6 - began < 60
    assert times[-1] - times[0] < 60e6
    assert until(lambda: server.finishes())
