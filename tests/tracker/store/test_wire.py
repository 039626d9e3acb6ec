"""The decoder of batches: takes all that docs/formats.md allows, names what is wrong in the rest, never falls over."""

from __future__ import annotations

import json
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tracker.store import wire_writer as write
from tracker.domain.errors import EncoreError, KeylistUnknown, Refused, TooLarge
from tracker.domain.ids import new_id
from tracker.domain.limits import INFLATED_BYTES
from tracker.store import wire
from tracker.store.inflate import inflate

RUN, WRITER = new_id(), new_id()
I64 = st.integers(-(2**63), 2**63 - 1)
ODD = [float("nan"), float("inf"), -float("inf"), -0.0, 5e-324, 1.7976931348623157e308]


def bits(kind: str, value) -> int:
    return struct.unpack("<q", struct.pack("<" + kind, value))[0]


@st.composite
def batches(draw):
    """(body, expected points {(record, key): (kind, step, time, bits)})"""
    first = draw(st.integers(0, 2**40))
    count = draw(st.integers(1, 12))
    records = [first + i for i in range(count)]
    expected, frames = {}, []
    names = draw(
        st.lists(
            st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), min_size=1, max_size=12),
            min_size=1,
            max_size=4,
            unique=True,
        )
    )
    value = {"d": st.floats(allow_nan=True, width=64) | st.sampled_from(ODD), "q": I64}
    types = draw(st.text("dq", min_size=len(names), max_size=len(names)))
    chosen = sorted(draw(st.sets(st.sampled_from(records))))
    rows = [(n, draw(I64), draw(I64), [draw(value[kind]) for kind in types]) for n in chosen]
    frames.append(write.dense(first, names, types, rows))
    for n, step, time, values in rows:
        for key, kind, found in zip(names, types, values, strict=True):
            expected[n, key] = (kind, step, time, bits(kind, found))
    sparse_rows = []
    for n in sorted(draw(st.lists(st.sampled_from(records), max_size=6))):
        kind = draw(st.sampled_from("dq"))
        row = (n, "s/" + draw(st.sampled_from("abc")), kind, draw(I64), draw(I64), draw(value[kind]))
        sparse_rows.append(row)
    frames.append(write.sparse(first, sparse_rows))
    return write.batch(RUN, WRITER, first, records[-1], frames), expected, sparse_rows


@given(batches())
@settings(max_examples=60, deadline=None)
def test_what_is_encoded_is_decoded_to_the_bit(made):
    """Every value, step, time and record number comes out as it went in, to the bit, dense and sparse."""
    body, expected, sparse_rows = made
    batch = wire.decode(body)
    dense, sparse = batch.frames
    found = {}
    for at, key in enumerate(dense.keys):
        for row, n in enumerate(dense.records.tolist()):
            found[n, key] = (dense.types[at], int(dense.steps[row]), int(dense.times[row]), int(dense.matrix[at, row]))
    assert found == expected
    got = [
        (n, sparse.keys[i], "dq"[t], s, tm, b)
        for n, i, t, s, tm, b in zip(
            *(x.tolist() for x in (sparse.records, sparse.index, sparse.types, sparse.steps, sparse.times, sparse.bits)), strict=True
        )
    ]
    assert got == [(n, key, kind, step, time, bits(kind, value)) for n, key, kind, step, time, value in sparse_rows]


@given(batches(), st.data())
@settings(max_examples=100, deadline=None)
def test_a_damaged_body_is_refused_by_name(made, data):
    """Cut, changed or lengthened anywhere, a body is refused with a named error (or is still valid), never an accident."""
    body = bytearray(made[0])
    how = data.draw(st.sampled_from(["cut", "flip", "grow", "flip with a right checksum"]))
    if how == "cut":
        body = body[: data.draw(st.integers(0, len(body) - 1))]
    elif how == "grow":
        body += data.draw(st.binary(min_size=1, max_size=20))
    else:
        at = data.draw(st.integers(16 if "right" in how else 0, len(body) - 1))
        body[at] ^= data.draw(st.integers(1, 255))
        if "right" in how:
            body[12:16] = struct.pack("<I", zlib.crc32(bytes(body[16:])))
    try:
        wire.decode(bytes(body))
    except EncoreError as problem:
        outcome = (problem.status // 100, bool(problem.message))
    else:
        outcome = (4, "right" in how)
    assert outcome == (4, True)


HEADER = {"run": RUN, "writer": WRITER, "first": 0, "last": 9, "frames": [], "docs": [], "holes": []}
KEYS = {"kind": "dense", "keylist": write.keylist(["a"], "d"), "keys": ["a"], "types": "d", "rows": 0}


@pytest.mark.parametrize(
    "change",
    [
        {"run": "x"},
        {"writer": None},
        {"first": -1},
        {"first": 10},
        {"last": 2**63},
        {"last": 2**40},
        {"first": True},
        {"frames": {}},
        {"frames": [7]},
        {"frames": [{"kind": "other", "rows": 0}]},
        {"frames": [{**KEYS, "rows": -1}]},
        {"frames": [{**KEYS, "rows": 2**40}]},
        {"frames": [{**KEYS, "rows": 1.5}]},
        {"frames": [{**KEYS, "keys": ["a\0b"], "keylist": write.keylist(["a\0b"], "d")}]},
        {"frames": [{**KEYS, "keys": ["x" * 501], "keylist": write.keylist(["x" * 501], "d")}]},
        {"frames": [{**KEYS, "keys": [""]}]},
        {"frames": [{**KEYS, "keys": ["a", "a"], "types": "dd", "keylist": write.keylist(["a", "a"], "dd")}]},
        {"frames": [{**KEYS, "keys": [3]}]},
        {"frames": [{**KEYS, "types": "z"}]},
        {"frames": [{**KEYS, "types": "dd"}]},
        {"frames": [{**KEYS, "keylist": "0" * 16}]},
        {"frames": [{**KEYS, "keylist": "../../etc/passwd"}]},
        {"frames": [{**KEYS, "rows": 5}]},
        {"docs": 3},
        {"docs": [3]},
        {"docs": [{"n": 10, "step": None, "time": 0, "doc": {}}]},
        {"docs": [{"n": 1, "step": 2**63, "time": 0, "doc": {}}]},
        {"docs": [{"n": 1, "step": None, "time": None, "doc": {}}]},
        {"holes": [[5, 3]]},
        {"holes": [[0, 10]]},
        {"holes": [3]},
    ],
)
def test_a_malformed_header_is_refused(change):
    """Each rule of the header is checked and named; nothing of such a batch is taken."""
    with pytest.raises((Refused, TooLarge)):
        wire.decode(write.pack({**HEADER, **change}))


def test_a_key_may_have_500_characters_of_any_script():
    key = "ü" * 500
    batch = wire.decode(write.simple(RUN, WRITER, 0, [1.0], key=key))
    assert batch.frames[0].keys == (key,)


def test_a_lone_surrogate_in_a_key_is_refused():
    text = json.dumps({**HEADER, "frames": [{**KEYS, "keys": ["\ud800"]}]}).encode()
    with pytest.raises(Refused, match="Unicode"):
        wire.decode(write.pack(write.pad(text, b" ")))


def test_a_newer_version_is_refused_by_name():
    with pytest.raises(Refused, match="version 2") as caught:
        wire.decode(write.pack(HEADER, version=2))
    assert caught.value.code == "version"


def test_an_unknown_key_list_asks_for_its_keys():
    """A frame without keys needs a server that knows its list; else 409 keylist_unknown, and with it the batch is taken."""
    body = write.simple(RUN, WRITER, 0, [1.0, 2.0], known=True)
    with pytest.raises(KeylistUnknown):
        wire.decode(body)
    known = {write.keylist(["loss"], "d"): ("d", ("loss",))}
    assert wire.decode(body, known.get).points == 2


def test_a_key_list_that_lies_about_known_keys_is_refused():
    """The keys sent with a known hash must be those the hash stands for."""
    known = {KEYS["keylist"]: ("d", ("a",))}
    with pytest.raises(Refused, match="hash"):
        wire.decode(write.pack({**HEADER, "frames": [{**KEYS, "keys": ["b"]}]}), known.get)


@pytest.mark.parametrize(("encoding", "compress"), [("deflate", write.deflate), ("zstd", write.zstd), ("", bytes), ("identity", bytes)])
def test_every_encoding_is_read(encoding, compress):
    raw = write.simple(RUN, WRITER, 0, np.arange(1000.0))
    assert inflate(compress(raw), encoding) == raw


@pytest.mark.parametrize(("encoding", "compress"), [("deflate", write.deflate), ("zstd", write.zstd)])
def test_a_bomb_is_refused_before_it_is_unpacked(encoding, compress):
    """A small body that inflates beyond the limit is 413, and its memory is bounded."""
    bomb = compress(bytes(INFLATED_BYTES + 1))
    assert len(bomb) < 4 * 2**20
    with pytest.raises(TooLarge):
        inflate(bomb, encoding)


def test_a_zstd_stream_without_a_size_is_bounded_too():
    import zstandard

    bomb = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(INFLATED_BYTES + 1))
    with pytest.raises(TooLarge):
        inflate(bomb, "zstd")


@pytest.mark.parametrize("encoding", ["deflate", "zstd", "gzip", "br, br"])
@given(body=st.binary(max_size=200))
@settings(max_examples=30, deadline=None)
def test_noise_in_any_encoding_is_refused(encoding, body):
    with pytest.raises(EncoreError) as caught:
        wire.decode(inflate(body, encoding))
    assert 400 <= caught.value.status < 500


def test_a_cut_stream_is_refused():
    whole = write.deflate(write.simple(RUN, WRITER, 0, [1.0]))
    for damaged in (whole[:-3], whole + b"x"):
        with pytest.raises(Refused):
            inflate(damaged, "deflate")
