"""The chart API over HTTP: tags and 304, what browsers may keep, compression, damaged blocks, polls that cost next to nothing."""

from __future__ import annotations

import base64
import json
import zlib

import numpy as np
import pytest
import zstandard
from django.test import Client

from tests.tracker.store import wire_writer as write
from tracker.domain import series_answer
from tracker.domain.series_query import parse
from tracker.models import MetricBlock, Run, Writer
from tracker.services import compaction, series, series_cursor, summaries
from tracker.services.series_runs import Plan
from tracker.store import reading
from tracker.store.blobs import blob_store


class Door:
    def __init__(self, room) -> None:
        self.client, self.headers = Client(), {"authorization": f"Bearer {room.secret}"}

    def post(self, query, **headers):
        return self.client.post("/api/v1/series", json.dumps(query), content_type="application/json", headers={**self.headers, **headers})

    def get(self, query, v: str = "", **headers):
        q = base64.urlsafe_b64encode(json.dumps(query).encode()).decode().rstrip("=")
        return self.client.get(f"/api/v1/series?q={q}" + (f"&v={v}" if v else ""), headers={**self.headers, **headers})


@pytest.fixture
def door(room):
    return Door(room)


def finish(run) -> None:
    Writer.objects.filter(run=run).update(finish={"state": "finished", "exit_code": 0})
    Run.objects.filter(id=run.id).update(state="finished")
    summaries.summarise_due()


# -- tags -----------------------------------------------------------------------------------------------------------------------------


def test_an_unchanged_answer_is_304_and_reads_no_point(room, door, monkeypatch):
    """The tag is made of rows alone; whatever changes the answer changes it."""
    writer = room.writer()
    room.simple(writer, 0, [1.0, 2.0])
    query = {"runs": [writer.run_id], "keys": ["loss"]}
    first = door.post(query)
    with monkeypatch.context() as patched:
        patched.setattr(reading, "read", None)
        for sent in (first["ETag"], f'W/{first["ETag"]}, "x"', "*"):
            assert door.post(query, **{"if-none-match": sent}).status_code == 304
        assert door.get(query, **{"if-none-match": first["ETag"]}).status_code == 304
    tags = {first["ETag"]}
    for change in (
        lambda: room.simple(writer, 2, [3.0], known=True),
        lambda: writer.run.key_definitions.create(pattern="loss", fields={"reduce": "max"}),
        lambda: room.simple(room.writer(writer.run, rank=1), 0, [5.0]),
        lambda: room.writer(writer.run, attempt=2),
    ):
        change()
        answer = door.post(query, **{"if-none-match": first["ETag"]})
        assert answer.status_code == 200
        tags.add(answer["ETag"])
    assert len(tags) == 5
    assert door.post({**query, "buckets": 7})["ETag"] not in tags
    assert door.post(query, accept="application/json")["ETag"] not in tags


def test_finished_runs_by_id_may_be_kept_and_a_resumed_one_is_seen(room, door):
    """With the tag in the URL for good; without it a minute; what is live, found by a question or a pattern is always looked up again."""
    writer = room.writer()
    room.simple(writer, 0, [1.0, 2.0])
    query = {"runs": [writer.run_id], "keys": ["loss"]}
    assert door.get(query)["Cache-Control"] == "private, no-cache"
    finish(writer.run)
    first = door.get(query)
    assert first["Cache-Control"] == "private, max-age=60, immutable"
    tag = first["ETag"].strip('"')
    assert door.get(query, v=tag)["Cache-Control"] == "private, max-age=31536000, immutable"
    assert door.post(query)["Cache-Control"] == "private, no-cache"
    assert door.get({**query, "keys": ["l*"]})["Cache-Control"] == "private, no-cache"
    assert door.get({"project": room.project.slug, "keys": ["loss"]})["Cache-Control"] == "private, no-cache"
    again = room.writer(writer.run, attempt=2)
    room.simple(again, 0, [9.0], step=5)
    late = door.get(query, v=tag)
    assert late["Cache-Control"] == "private, no-cache"
    assert series_answer.decode(late.content)["series"][0]["y"].tolist() == [1.0, 2.0, 9.0]


def test_what_is_no_query_in_the_url_is_named(room, door):
    for q in ("", "%%%", "e30x", base64.urlsafe_b64encode(b"{").decode()):
        answer = door.client.get(f"/api/v1/series?q={q}", headers=door.headers)
        assert answer.status_code == 400
        assert answer.json()["code"] == "invalid"
    assert door.client.post("/api/v1/series", b"\xff\x00", content_type="application/json", headers=door.headers).status_code == 400
    assert door.client.post("/api/v1/series", b"[" * 100_000, content_type="application/json", headers=door.headers).status_code == 400
    assert door.client.put("/api/v1/series", b"{}", headers=door.headers).status_code == 405


# -- compression ------------------------------------------------------------------------------------------------------------------------


def test_an_answer_is_compressed_where_that_is_possible_and_pays(room, door):
    writer = room.writer()
    room.simple(writer, 0, [float(n) for n in range(2000)])
    room.simple(writer, 2000, [1.0], key="small")
    query = {"runs": [writer.run_id], "keys": ["loss"], "points": 5000}
    plain = door.post(query)
    assert "Content-Encoding" not in plain
    packed = door.post(query, **{"accept-encoding": "gzip, deflate, br, zstd"})
    assert packed["Content-Encoding"] == "zstd"
    assert "Accept-Encoding" in packed["Vary"]
    assert zstandard.ZstdDecompressor().decompress(packed.content) == plain.content
    assert len(packed.content) < len(plain.content) / 3
    zipped = door.post(query, **{"accept-encoding": "gzip, zstd;q=0"})
    assert (zipped["Content-Encoding"], zlib.decompress(zipped.content, 31)) == ("gzip", plain.content)
    assert len({answer["ETag"] for answer in (plain, packed, zipped)}) == 3
    assert "Content-Encoding" not in door.post({**query, "keys": ["small"]}, **{"accept-encoding": "zstd"})


def test_noise_is_sent_as_it_is(room, door):
    writer = room.writer()
    bits = np.random.default_rng(0).integers(0, 2**62, 50_000).view("f8")
    room.simple(writer, 0, bits.tolist())
    query = {"runs": [writer.run_id], "keys": ["loss"], "points": 50_000, "arrays": ["y"]}
    assert "Content-Encoding" not in door.post(query, **{"accept-encoding": "zstd"})


# -- what cannot be read ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("harm", ["cut", "gone"])
def test_a_damaged_block_costs_its_own_series_alone(room, door, harm):
    """The series that lie in it come as entries that say why; all others are answered."""
    good, bad = room.writer(), room.writer()
    for writer in (good, bad):
        rows = [(n, n, 1, [float(n), 2.0 * n]) for n in range(5)]
        room.post(writer, write.batch(writer.run_id, writer.id, 0, 4, [write.dense(0, ["loss", "acc"], "dd", rows)]))
        compaction.compact_run(writer.run_id, force=True)
    key = MetricBlock.objects.get(run=bad.run_id).object_key
    whole = blob_store().read(key, 0, MetricBlock.objects.get(run=bad.run_id).bytes)
    blob_store().delete(key)
    if harm == "cut":  # the last column's bytes are others than they were
        blob_store().put(key, whole[:-8] + bytes(8 * [0xA5]))
    reading.forget()
    query = {"runs": [good.run_id, bad.run_id], "keys": ["loss", "acc"]}
    answer = door.post(query)
    assert answer.status_code == 200
    entries = {(one["run"], one["key"]): one for one in series_answer.decode(answer.content)["series"]}
    broken = [name for name, one in entries.items() if "error" in one]
    assert len(entries) == 4
    assert len(broken) == (1 if harm == "cut" else 2)
    assert all(run == bad.run_id for run, _ in broken)
    for (_, name), one in entries.items():
        if "error" in one:
            assert "cannot be read" in one["error"]
            assert "x" not in one
        else:
            assert one["y"].tolist() == [n * (1.0 if name == "loss" else 2.0) for n in range(5)]
    along = series_answer.decode(door.post({**query, "keys": ["loss"], "x": {"metric": "acc"}}).content)["series"]
    assert [("error" in one) for one in along] == [False, True]
    cursor = series_answer.decode(answer.content)["cursor"]
    assert series_answer.decode(door.post({**query, "since": cursor}).content)["series"] == []


# -- polls ----------------------------------------------------------------------------------------------------------------------------


def test_a_poll_to_which_nothing_came_is_two_queries_whatever_the_ranks(room, django_assert_max_num_queries, monkeypatch):
    """Who may see, and one row for each run; no writer's row, no segment, no block."""
    run = room.run()
    for rank in range(30):
        room.simple(room.writer(run, rank=rank), 0, [1.0])
    query = {"runs": [run.id], "keys": ["loss"]}
    cursor = series.answer(user=room.user, query=query, as_json=True)["cursor"]
    monkeypatch.setattr(reading, "writers_of", None)
    monkeypatch.setattr(reading, "read", None)
    with django_assert_max_num_queries(2):
        answer = series.answer(user=room.user, query={**query, "since": cursor}, as_json=True)
    assert (answer["series"], answer["cursor"]) == ([], cursor)


def test_the_cursor_of_many_writers_stays_small_and_brings_what_came(room):
    writers = {f"{n:026d}": reading.WriterInfo(f"{n:026d}", "a" * 26, n, 1, 0, n * 1000) for n in range(20_000)}
    cursor = series_cursor.of(Plan(parse({"runs": [], "keys": []}), [], {}, []), writers, {})
    assert len(cursor.text()) < 500_000
    again = series_cursor.read(cursor.text())
    assert again.totals == cursor.totals
    assert again.since(dict(list(writers.items())[:1])) == {f"{0:026d}": 0}  # those alike in their first letters share the lowest


def test_a_hostile_cursor_is_refused(room):
    deep = "[" * 100_000
    bomb = zlib.compress(b"[" + b" " * 20_000_000 + b"]", 9)
    wrong = [b"{}", b"[1,2,3,4]", b'[{"a":"b"},{},{},0]', b'[{"a":1e999},{},{},0]', b'[{"a":%d},{},{},0]' % 10**30, b'[{},{},{"a":[1]},0]']
    for raw in (b"", b"x", bomb, *map(zlib.compress, (deep.encode(), *wrong))):
        text = base64.urlsafe_b64encode(raw).decode().rstrip("=")
        with pytest.raises(series.Invalid, match="no cursor"):
            series.answer(user=room.user, query={"runs": [], "keys": [], "since": text})
