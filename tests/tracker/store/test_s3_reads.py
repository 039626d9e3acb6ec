"""How many requests a read costs on a real S3 server: two rounds a block at most, neighbours in one range, blocks side by side."""

from __future__ import annotations

import json
import os
import threading
import uuid

import pytest
from django.conf import settings as django_settings

from tests.tracker.store.test_reading import compacted, send
from tracker.models import MetricBlock
from tracker.services import compaction
from tracker.store import block_reads, reading
from tracker.store.backends.base import StoreTrouble
from tracker.store.blobs import blob_store

KEYS = tuple(f"train/metric_{n:02d}" for n in range(50))


@pytest.fixture
def requests(settings):
    """The GETs that leave for the server; ``most``: how many were under way at once."""
    if "ENCORE_TEST_S3" not in os.environ:
        pytest.skip("no S3 server was started (python -m tests.services run)")
    settings.ENCORE_S3 = {**json.loads(os.environ["ENCORE_TEST_S3"]), "region": "us-east-1", "prefix": f"t-{uuid.uuid4().hex}"}
    assert django_settings.ENCORE_S3["bucket"]
    found = Requests()
    events = blob_store().client.meta.events
    events.register("before-send.s3.GetObject", found.begins)
    events.register("needs-retry.s3.GetObject", found.ends)
    yield found
    events.unregister("before-send.s3.GetObject", found.begins)
    events.unregister("needs-retry.s3.GetObject", found.ends)


class Requests:
    def __init__(self) -> None:
        self.count = self.now = self.most = 0
        self.lock = threading.Lock()

    def begins(self, **_) -> None:
        with self.lock:
            self.count += 1
            self.now += 1
            self.most = max(self.most, self.now)

    def ends(self, **_) -> None:
        with self.lock:
            self.now -= 1

    def of(self, read) -> int:
        reading.forget()
        self.count = self.most = 0
        read()
        return self.count


@pytest.fixture
def large(monkeypatch):
    """Blocks as if too large for one request."""
    monkeypatch.setattr(block_reads, "WHOLE_BYTES", 100)


def test_fifty_keys_of_a_large_block_are_two_requests(room, requests, large):
    """The directory, then all wanted columns as one range; nothing at all when it is warm."""
    writer = compacted(room, blocks_=1, rows=30, keys=KEYS, types="d" * 50)
    columns = []
    assert requests.of(lambda: columns.extend(reading.history([writer.run_id], KEYS))) == 2
    assert [len(column.values) for column in columns] == [30] * 50
    requests.count = 0
    reading.history([writer.run_id], KEYS)
    assert requests.count == 0
    assert requests.of(lambda: reading.keys_of(writer.run_id)) == 1
    assert requests.of(lambda: reading.last_values([writer.run_id])) == 1


def test_a_small_block_is_one_request(room, requests):
    writer = compacted(room, blocks_=1, rows=30)
    assert requests.of(lambda: reading.history([writer.run_id], ["loss", "acc"])) == 1


def test_many_runs_are_read_side_by_side(room, requests, large):
    """Two rounds for each block, and the blocks of many runs do not wait for each other."""
    writers = [compacted(room, blocks_=1, rows=20) for _ in range(8)]
    runs = [writer.run_id for writer in writers]
    assert MetricBlock.objects.filter(run__in=runs).count() == 8
    found = []
    assert requests.of(lambda: found.extend(reading.history(runs, ["loss"]))) == 16
    assert [column.run for column in found] == runs
    assert all(len(column.values) == 20 for column in found)
    assert 1 < requests.most <= block_reads.AT_ONCE


def test_a_window_reads_only_its_blocks(room, requests, large):
    writer = room.writer()
    for n in range(4):
        send(room, writer, n * 30, 30, known=n > 0)
        compaction.compact_run(writer.run_id, force=True)
    assert requests.of(lambda: reading.history([writer.run_id], ["loss"], lo_step=95, hi_step=110)) == 2


def test_a_body_that_breaks_off_is_asked_for_again(room, requests, monkeypatch):
    """A connection cut in the middle of a body costs a request more and nothing else; one that always is becomes trouble, named."""
    writer = compacted(room, blocks_=1)
    key = MetricBlock.objects.get(run=writer.run).object_key
    store = blob_store()
    real, broken = store._get, []

    class Body:
        def read(self):
            broken.append(1)
            raise ConnectionResetError("cut")

    monkeypatch.setattr(store, "_get", lambda *args, **more: {"Body": Body()} if len(broken) < 2 else real(*args, **more))
    whole = store.read(key)
    assert len(broken) == 2
    assert store.read(key, 0, 8) == whole[:8] == b"ENCOREB1"
    monkeypatch.setattr(store, "_get", lambda *args, **more: {"Body": Body()})
    with pytest.raises(StoreTrouble, match=key):
        store.read(key, 0, 8)
