"""Hostile bodies: each limit has its clear 4xx, nothing of a refused body is stored, and no body at all makes a 5xx."""

from __future__ import annotations

import json
import os
import struct
import zlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.tracker.helpers import Api
from tests.tracker.store import wire_writer as wire
from tracker.domain import limits
from tracker.models import Event, LogChunk, Media, MetricKeyset, MetricSegment, Run, Writer
from tracker.services import compaction, summaries
from tracker.store import reading
from tracker.store.inflate import inflate

TIME = 1_700_000_000_000_000


class Door:
    """The route of one writer, over Django's request handling."""

    def __init__(self, room) -> None:
        self.writer = room.writer()
        self.api = Api(room.secret)
        self.path = f"ingest/writers/{self.writer.id}/batches"

    def post(self, body: bytes, kind: str = "application/vnd.encore.batch", **headers):
        return self.api.post(self.path, body, content_type=kind, **headers)

    def header(self, **changes) -> dict:
        return {
            "run": self.writer.run_id, "writer": self.writer.id, "first": 0, "last": 9, "frames": [], "docs": [], "holes": [], **changes
        }  # fmt: skip

    def stored(self) -> dict:
        run = self.writer.run_id
        tables = (MetricSegment, MetricKeyset, Event, LogChunk, Media)
        counts = {table.__name__: table.objects.filter(run_id=run).count() for table in tables}
        fields = Writer.objects.filter(id=self.writer.id).values("next", "hot_bytes", "hot_segments", "last_step", "finish").get()
        return {**counts, **fields, **Run.objects.filter(id=run).values("state", "config", "summary", "tags").get()}


@pytest.fixture
def door(room):
    return Door(room)


def keys_frame(keys, rows=0, types=None):
    types = types or "d" * len(keys)
    return {"kind": "dense", "keylist": wire.keylist(keys, types), "keys": keys, "types": types, "rows": rows}


def names(count: int, prefix: str = "") -> list[str]:
    return [f"{prefix}{n}" for n in range(count)]


def deep(levels: int):
    found: object = 1
    for _ in range(levels):
        found = [found]
    return found


LOG = {"n": 1, "step": None, "time": 0, "doc": {"type": "log", "text": "x"}}
REFUSED = {
    "a body over 4 MiB": (413, "too_large", "4 MiB", lambda d: bytes(limits.SENT_BYTES + 1)),
    "too many names": (413, "too_large", "names", lambda d: d.header(frames=[keys_frame(names(limits.KEYS_PER_BATCH + 1))])),
    "too many names over frames": (
        413, "too_large", "names",
        lambda d: d.header(frames=[keys_frame(names(1 + limits.KEYS_PER_BATCH // 2, f"{at}/")) for at in range(2)]),
    ),
    "too many frames": (413, "too_large", "frames", lambda d: d.header(frames=[keys_frame(["a"])] * (limits.FRAMES_PER_BATCH + 1))),
    "too many rows": (413, "too_large", "rows", lambda d: d.header(frames=[keys_frame(["a"], limits.ROWS_PER_FRAME + 1)])),
    "too many documents": (413, "too_large", "documents", lambda d: d.header(docs=[LOG] * (limits.DOCS_PER_BATCH + 1))),
    "too many holes": (413, "too_large", "holes", lambda d: d.header(holes=[[0, 0]] * (limits.HOLES_PER_BATCH + 1))),
    "too many records": (413, "too_large", "records", lambda d: d.header(last=limits.RECORDS_PER_BATCH)),
    "a key that is too long": (422, "malformed", "500 characters", lambda d: d.header(frames=[keys_frame(["k" * 501])])),
    "an empty key": (422, "malformed", "500 characters", lambda d: d.header(frames=[keys_frame([""])])),
    "NUL in a key": (422, "malformed", "NUL", lambda d: d.header(frames=[keys_frame(["a\0b"])])),
    "a key that is a number": (422, "malformed", "no text", lambda d: d.header(frames=[{**keys_frame(["a"]), "keys": [1]}])),
    "half a surrogate pair": (
        422, "malformed", "Unicode",
        lambda d: wire.pad(json.dumps(d.header(frames=[{**keys_frame(["a"]), "keys": ["\ud800"]}])).encode(), b" "),
    ),
    "bytes that are no UTF-8": (422, "malformed", "UTF-8", lambda d: wire.pad(b'{"run": "\xff\xfe"}', b" ")),
    "a document that is too deep": (422, "malformed", "levels", lambda d: d.header(docs=[{**LOG, "doc": {"type": "a", "b": deep(300)}}])),
    "a header that is too deep": (422, "malformed", "levels", lambda d: wire.pad(b"[" * 100_000 + b"]" * 100_000, b" ")),
    "a number that is too long": (422, "malformed", "JSON", lambda d: wire.pad(b'{"first": ' + b"9" * 5000 + b"}", b" ")),
    "a reversed range": (422, "malformed", "range", lambda d: d.header(first=5, last=4)),
    "a negative record": (422, "malformed", "range", lambda d: d.header(first=-1)),
    "a record beyond 64 bits": (422, "malformed", "range", lambda d: d.header(first=2**63 - 1, last=2**63 - 1)),
    "a range of fractions": (422, "malformed", "range", lambda d: d.header(first=0.0)),
    "a reversed hole": (422, "malformed", "hole", lambda d: d.header(holes=[[5, 3]])),
    "a hole outside": (422, "malformed", "hole", lambda d: d.header(holes=[[5, 10]])),
    "rows that are not there": (422, "malformed", "cut short", lambda d: d.header(frames=[keys_frame(["a"], 5)])),
    "a count that is text": (422, "malformed", "count", lambda d: d.header(frames=[{**keys_frame(["a"]), "rows": "5"}])),
    "bytes behind the last column": (422, "malformed", "follow", lambda d: (d.header(frames=[keys_frame(["a"])]), bytes(8))),
    "a document beyond the range": (422, "malformed", "range", lambda d: d.header(docs=[{**LOG, "n": 10}])),
    "a document's time beyond 64 bits": (422, "malformed", "64-bit", lambda d: d.header(docs=[{**LOG, "time": 2**63}])),
    "another run's id": (422, "malformed", "another run", lambda d: d.header(run="a" * 26)),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_each_limit_is_a_clear_refusal_and_nothing_is_stored(door, what):
    """The status and code say whether cutting helps (413) or nothing does (422), the words say what; no row of it is there."""
    status, code, words, make = REFUSED[what]
    made = make(door)
    before = door.stored()
    if what == "a body over 4 MiB":
        answer = door.post(made)
    else:
        answer = door.post(wire.deflate(wire.pack(*made) if isinstance(made, tuple) else wire.pack(made)), content_encoding="deflate")
    told = answer.json()
    assert (answer.status_code, told["code"]) == (status, code), told
    assert words in told["message"]
    if status == 413:
        assert "cut it into smaller" in told["message"]
    assert door.stored() == before


@pytest.mark.parametrize("encoding", ["deflate", "zstd"])
@pytest.mark.parametrize("what", ["zeros", "brackets"])
def test_a_bomb_is_refused_within_bounds(door, encoding, what):
    """A body of a few kB that would become gigabytes of bytes, or of Python objects, is refused before it does."""
    if what == "zeros":
        inflated = bytes(limits.INFLATED_BYTES + 1)
    else:
        inflated = wire.pack(wire.pad(b'{"docs": [' + b"{}," * 4_000_000 + b"{}]}", b" "))
    body = wire.deflate(inflated) if encoding == "deflate" else wire.zstd(inflated)
    assert len(body) < 400_000
    answer = door.post(body, content_encoding=encoding)
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")


def test_a_zstd_window_that_would_take_gigabytes_is_refused(door):
    """A frame may ask its reader to hold a window of 2 GiB; this one is told no."""
    import zstandard

    huge = zstandard.ZstdCompressionParameters(window_log=31, enable_ldm=True, write_content_size=False)
    machine = zstandard.ZstdCompressor(compression_params=huge).compressobj()
    frame = machine.compress(wire.pack(door.header())) + machine.flush()
    answer = door.post(frame, content_encoding="zstd")
    assert (answer.status_code, answer.json()["code"]) == (422, "damaged")


def test_what_the_limits_allow_is_taken(door):
    """500 characters of any script, 262,144 names, nesting that the SDK sends, steps and times at the ends of their range."""
    keys = ["ü" * limits.KEY_LENGTH, *(f"layer/{n}" for n in range(limits.KEYS_PER_BATCH - 1))]
    frame = wire.dense(0, keys, "d" * len(keys), [])
    docs = [{"n": 0, "step": None, "time": -1, "doc": {"type": "config", "value": {"a": deep(60)}, "update": True}}]
    header = door.header(frames=[frame[0]], docs=docs, last=0)
    assert door.post(wire.deflate(wire.pack(header, frame[1])), content_encoding="deflate").status_code == 200
    frame = wire.sparse(1, [(1, keys[0], "q", 2**63 - 1, -(2**63), 2**53 + 1)])
    answer = door.post(wire.batch(door.writer.run_id, door.writer.id, 1, 2, [frame]))
    assert answer.json() == {"next": 3, "stop": False, "state": "running"}
    (column,) = reading.history([door.writer.run_id], [keys[0]])
    assert (column.steps.tolist(), column.times.tolist(), column.values.tolist()) == ([2**63 - 1], [-(2**63)], [2**53 + 1])


# -- fuzz ------------------------------------------------------------------------------------------------------------------------------

ODD = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=8), st.just("\ud800"), st.just("\0"),
    st.just([]), st.just({}), st.just([[]]), st.lists(st.integers(-3, 12), max_size=3),
    st.sampled_from(["dense", "sparse", "log", "event", "config", "summary", "define", "meta", "recipe", "media", "finish", "gone"]),
)  # fmt: skip
DOCS = [
    {"type": "log", "stream": "stdout", "text": "x"},
    {"type": "event", "name": "note", "data": {"a": 1}},
    {"type": "event", "name": "finish", "data": {"state": "finished", "exit_code": 0, "dropped": {"a": 1}}},
    {"type": "event", "name": "gone", "data": {"writer": "a" * 26, "state": "crashed"}},
    {"type": "event", "name": "dropped", "data": {"a": 1}},
    {"type": "event", "name": "coordinates", "data": {"dp": 0, "tp": 1}},
    {"type": "config", "value": {"lr": 1.0, "model": {"layers": [1, 2]}}, "update": True},
    {"type": "summary", "values": {"acc": 1.0}},
    {"type": "define", "pattern": "loss*", "goal": "min"},
    {"type": "meta", "name": "n", "tags": ["a"], "notes": "x", "group": "g"},
    {"type": "recipe", "section": "command", "value": {"argv": ["a"]}, "merge": True},
    {"type": "media", "key": "k", "kind": "image", "digest": "blake3:" + "0" * 64, "bytes": 1, "mime": "image/png", "meta": {}},
]


def mutated(draw, value, odds: int = 12):
    """``value`` with odd things in the place of some of its parts."""
    if draw(st.integers(0, odds)) == 0:
        return draw(ODD)
    if isinstance(value, dict):
        found = {key: mutated(draw, inner, odds) for key, inner in value.items()}
        if draw(st.integers(0, odds)) == 0:
            found.pop(draw(st.sampled_from(sorted(found))), None) if found else None
        return found
    if isinstance(value, list):
        return [mutated(draw, inner, odds) for inner in value]
    return value


@given(data=st.data())
@settings(max_examples=500 if os.environ.get("ENCORE_TORTURE") else 60, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_change_to_a_good_batch_makes_a_5xx_or_a_half(room, data):
    """A good batch with any of its parts changed, header or bytes: taken whole, or refused by name with nothing of it stored; and what
    was taken can be read, summarised and compacted."""
    door = Door(room)
    rows = [(n, n, TIME + n, [float(n), n]) for n in range(3)]
    frames = [wire.dense(0, ["loss", "n"], "dq", rows), wire.sparse(0, [(3, "acc", "d", 3, TIME, 0.5), (4, "n", "q", 4, TIME, 2**53 + 1)])]
    chosen = data.draw(st.lists(st.sampled_from(DOCS), max_size=3))
    docs = [{"n": 5 + at, "step": None, "time": TIME, "doc": doc} for at, doc in enumerate(chosen)]
    header = mutated(
        data.draw,
        door.header(last=9, frames=[frame for frame, _ in frames], docs=docs, holes=[[8, 9]]),
        data.draw(st.sampled_from([8, 30, 80])),
    )
    columns = bytearray(b"".join(part for _, part in frames))
    for _ in range(data.draw(st.integers(0, 2))):
        columns[data.draw(st.integers(0, len(columns) - 1))] = data.draw(st.integers(0, 255))
    text = wire.pad(json.dumps(header).encode(), b" ")
    body = wire.pack(
        text, bytes(columns[: data.draw(st.sampled_from([len(columns), len(columns) - 8]))] if data.draw(st.booleans()) else columns)
    )
    before = door.stored()
    answer = door.post(body)
    assert answer.status_code in (200, 404, 409, 413, 422), answer.content
    if answer.status_code != 200:
        told = answer.json()
        assert told["code"]
        assert told["message"]
        assert door.stored() == before
        return
    run = door.writer.run_id
    points = wire_points(body)
    assert Writer.objects.get(id=door.writer.id).next == answer.json()["next"] == header["last"] + 1
    for compacted in (False, True):
        if compacted:
            compaction.compact_run(run, force=True)
        assert sum(sum(ranks.values()) for ranks in reading.keys_of(run).values()) == points
    summaries.summarise_run(run)


def wire_points(body: bytes) -> int:
    from tracker.store import wire as decoder

    return decoder.decode(body).points


@given(
    raw=st.one_of(
        st.binary(max_size=300), st.binary(max_size=100).map(lambda rest: struct.pack("<4sHHII", b"ENCW", 1, 0, 0, zlib.crc32(rest)) + rest)
    ),
    encoding=st.sampled_from(["", "deflate", "zstd", "identity", "gzip"]),
    kind=st.sampled_from(["application/json", "application/vnd.encore.batch"]),
)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_noise_is_refused_by_name(room, raw, encoding, kind):
    """Bytes without sense, in any encoding and under either name: 4xx with a code, and the writer stands where it stood."""
    door = Door(room)
    answer = door.post(raw, kind=kind, **({"content_encoding": encoding} if encoding else {}))
    assert 400 <= answer.status_code < 500, answer.content
    assert answer.json()["code"]
    assert Writer.objects.get(id=door.writer.id).next == 0


# -- JSON ------------------------------------------------------------------------------------------------------------------------------


def as_json(doc) -> dict:
    return {"body": json.dumps(doc).encode(), "kind": "application/json"}


def test_a_batch_of_json_is_taken_exactly(door):
    """As curl sends it: numbers, specials by name, integers beyond 2**53 exact, documents after points; repeated, stored once."""
    points = [
        {"key": "loss", "value": 0.1, "step": 0, "time_us": TIME},
        {"key": "loss", "value": "NaN", "step": 1},
        {"key": "loss", "value": "-0.0", "step": 2},
        {"key": "n", "value": 2**53 + 1, "step": -7},
        {"key": "n", "value": 10**400, "step": 2**63 - 1},
        {"key": "ok", "value": True, "step": 0},
    ]
    docs = [{"type": "config", "value": {"lr": 0.1}}, {"type": "event", "name": "finish", "data": {"state": "finished"}}]
    for _ in range(2):
        answer = door.post(**as_json({"first": 0, "points": points, "docs": docs}))
        assert answer.json() == {"next": 8, "stop": False, "state": "finished"}
    found = {column.key: column for column in reading.history([door.writer.run_id], ["loss", "n", "ok"])}
    assert [struct.pack("<d", value) for value in found["loss"].values.tolist()] == [
        struct.pack("<d", v) for v in (0.1, float("nan"), -0.0)
    ]
    assert found["n"].steps.tolist() == [-7, 2**63 - 1]
    assert [float(value) for value in found["n"].values.tolist()][1] == float("inf")
    assert Run.objects.get(id=door.writer.run_id).config == {"lr": 0.1}


def test_json_without_first_goes_on_where_the_writer_stands(door):
    for n in range(3):
        assert door.post(**as_json({"points": [{"key": "loss", "value": n, "step": n}]})).json()["next"] == n + 1
    assert reading.history([door.writer.run_id], ["loss"])[0].values.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("doc", "words"),
    [
        ([], "no object"),
        ({}, "neither"),
        ({"points": []}, "neither"),
        ({"points": [1]}, "no object with a key"),
        ({"points": [{"key": "a", "value": 1}]}, "step is no 64-bit integer"),
        ({"points": [{"key": "a", "value": 1, "step": 2**63}]}, "step is no 64-bit integer"),
        ({"points": [{"key": "a", "value": 1, "step": 1.5}]}, "step is no 64-bit integer"),
        ({"points": [{"key": "a", "value": "1", "step": 1}]}, "value is no number"),
        ({"points": [{"key": "a", "value": None, "step": 1}]}, "value is no number"),
        ({"points": [{"key": "a\0", "value": 1, "step": 1}]}, "NUL"),
        ({"points": [{"key": "\ud800", "value": 1, "step": 1}]}, "Unicode"),
        ({"points": [{"key": "k" * 501, "value": 1, "step": 1}]}, "500 characters"),
        ({"points": [{"key": "a", "value": 1, "step": 1}], "first": -1}, "record number"),
        ({"points": [{"key": "a", "value": 1, "step": 1}], "first": 2**63}, "record number"),
        ({"docs": [3]}, "no object with doc"),
        ({"point": []}, "is not known"),
    ],
)
def test_json_that_is_malformed_is_told_what_is_wrong(door, doc, words):
    before = door.stored()
    answer = door.post(**as_json(doc))
    assert (answer.status_code, answer.json()["code"]) == (422, "malformed")
    assert words in answer.json()["message"]
    assert door.stored() == before


def test_json_of_too_many_points_is_told_to_come_in_parts(door):
    points = [{"key": "a", "value": 1, "step": 1}] * (limits.JSON_POINTS + 1)
    raw = zlib.compress(json.dumps({"points": points}).encode())
    answer = door.post(raw, kind="application/json", content_encoding="deflate")
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
    assert inflate(raw, "deflate")
