"""``MetricStore``: segments in rows, blocks in objects, and the moves between them. Callers hold the transaction."""

from __future__ import annotations

import functools
import json
import threading
import zlib
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

from django.db import connection
from django.utils import timezone

from tracker.domain.errors import EncoreError, RangeConflict
from tracker.models import MetricBlock, MetricTrash
from tracker.store import blocks, rows, wire
from tracker.store.inflate import inflate

CACHED_KEYLISTS = 4096
_POSITION = 'run_id, "next", hot_bytes, hot_segments'
_SEGMENT = (
    'run_id', 'writer_id', '"first"', '"last"', 'points', 'lo_step', 'hi_step', 'keylists', 'encoding', 'body', 'received_at',
)  # fmt: skip


@functools.cache
def _insert_segments(count: int) -> str:
    row = f"({', '.join(['%s'] * len(_SEGMENT))})"
    return f"INSERT INTO tracker_metricsegment ({', '.join(_SEGMENT)}) VALUES {', '.join([row] * count)}"  # noqa: S608


@functools.cache
def _update_positions(count: int) -> str:
    row = "(%s, CAST(%s AS bigint), CAST(%s AS bigint), CAST(%s AS integer), CAST(%s AS bigint))"
    return (
        f"WITH v (id, following, bytes, segments, step) AS (VALUES {', '.join([row] * count)}) "  # noqa: S608
        'UPDATE tracker_writer SET "next" = v.following, hot_bytes = v.bytes, hot_segments = v.segments, '
        "last_step = CASE WHEN tracker_writer.last_step >= v.step THEN tracker_writer.last_step "
        "ELSE COALESCE(v.step, tracker_writer.last_step) END FROM v WHERE tracker_writer.id = v.id"
    )


@dataclass(slots=True)
class Position:
    """Where a writer's row stands; kept up while a group of batches is stored."""

    run: str
    next: int
    hot_bytes: int
    hot_segments: int
    last_step: int | None = None
    """The highest step of what this transaction adds."""


@dataclass(slots=True)
class News:
    """What one transaction will add: rows of segments and key lists, and where the writers stand then."""

    now: Any
    segments: list[tuple] = field(default_factory=list)
    keysets: list[tuple] = field(default_factory=list)
    positions: dict[str, Position] = field(default_factory=dict)

    @classmethod
    def begin(cls) -> News:
        return cls(connection.ops.adapt_datetimefield_value(timezone.now()))


@dataclass(slots=True)
class SegmentHead:
    writer: str
    first: int
    last: int
    points: int
    bytes: int
    keylists: str


class DamagedSegment(Exception):
    """A segment, which was whole when it was stored, cannot be decoded."""


class MetricStore:
    """One for the process (``metric_store()``); safe for many threads."""

    def __init__(self) -> None:
        self._keylists: OrderedDict[tuple[str, str], wire.Keylist] = OrderedDict()
        self._lock = threading.Lock()

    # -- key lists ------------------------------------------------------------------------------------------------------------------

    def lookup(self, run: str) -> wire.Lookup:
        """For ``wire.decode``: the key lists this run has told of, from memory or the database."""
        return lambda keylist: self.keylist(run, keylist)

    def keylist(self, run: str, keylist: str) -> wire.Keylist | None:
        with self._lock:
            if (found := self._keylists.get((run, keylist))) is not None:
                self._keylists.move_to_end((run, keylist))
                return found
        with rows.cursor() as cursor:
            cursor.execute("SELECT names FROM tracker_metrickeyset WHERE run_id = %s AND keylist = %s", [run, keylist])
            row = cursor.fetchone()
        if row is None:
            return None
        types, keys = json.loads(zlib.decompress(bytes(row[0])))
        found = types, tuple(keys)
        self.remember(run, keylist, found)
        return found

    def remember(self, run: str, keylist: str, found: wire.Keylist) -> None:
        """Only what is committed: another writer's batch may leave its keys out from then on."""
        with self._lock:
            self._keylists[run, keylist] = found
            while len(self._keylists) > CACHED_KEYLISTS:
                self._keylists.popitem(last=False)

    # -- segments -------------------------------------------------------------------------------------------------------------------

    def positions(self, cursor, writers: list[str]) -> dict[str, Position]:
        """These writers' rows, locked until the transaction ends; unknown ones are left out."""
        if rows.on_postgres():
            cursor.execute(f"SELECT id, {_POSITION} FROM tracker_writer WHERE id = ANY(%s) ORDER BY id FOR UPDATE", [writers])  # noqa: S608
            return {writer: Position(*row) for writer, *row in cursor.fetchall()}
        # SQLite's whole transaction is the lock. One row of JSON: each row fetched gives the interpreter's lock away.
        cursor.execute(
            f"SELECT json_group_array(json_array(id, {_POSITION})) FROM tracker_writer "  # noqa: S608
            "WHERE id IN (SELECT value FROM json_each(%s))",
            [json.dumps(writers)],
        )
        return {writer: Position(*row) for writer, *row in json.loads(cursor.fetchone()[0])}

    def append(self, position: Position, batch: wire.Batch, body: bytes, encoding: str, news: News) -> bool:
        """Add the batch to ``news`` if it starts at the writer's next record; False if all of it is stored already. Raises RangeConflict.

        ``body`` is kept as it was sent. A batch without points (documents, holes) only moves ``next``.
        """
        if batch.last < position.next:
            return False
        if batch.first != position.next:
            raise RangeConflict(next=position.next)
        if batch.points:
            for frame in batch.frames:
                if isinstance(frame, wire.Dense) and frame.is_new:
                    names = zlib.compress(json.dumps([frame.types, frame.keys], separators=(",", ":"), ensure_ascii=False).encode())
                    news.keysets.append((batch.run, frame.keylist, names))
            news.segments.append((
                batch.run, batch.writer, batch.first, batch.last, batch.points, batch.lo_step, batch.hi_step, batch.keylists(), encoding,
                body, news.now,
            ))  # fmt: skip
            position.hot_bytes += len(body)
            position.hot_segments += 1
        if batch.hi_step is not None:
            position.last_step = batch.hi_step if position.last_step is None else max(batch.hi_step, position.last_step)
        position.next = batch.last + 1
        news.positions[batch.writer] = position
        return True

    def write(self, cursor, news: News) -> None:
        """All of ``news`` in one statement a table, however many batches: statements, not bytes, are what a small batch costs."""
        for keyset in news.keysets:
            cursor.execute("INSERT INTO tracker_metrickeyset (run_id, keylist, names) VALUES (%s, %s, %s) ON CONFLICT DO NOTHING", keyset)
        if news.segments:
            cursor.execute(_insert_segments(len(news.segments)), [value for row in news.segments for value in row])
        if news.positions:
            moved = [(writer, at.next, at.hot_bytes, at.hot_segments, at.last_step) for writer, at in sorted(news.positions.items())]
            cursor.execute(_update_positions(len(moved)), [value for row in moved for value in row])

    def segment_heads(self, cursor, run: str, writer: str | None = None, since: int = 0) -> list[SegmentHead]:
        """The hot segments of a run (or one writer's) whose last record is ``since`` or later, without their bodies, in order."""
        where, args = 'run_id = %s AND "last" >= %s', [run, since]
        if writer is not None:
            where, args = where + " AND writer_id = %s", [*args, writer]
        cursor.execute(
            'SELECT writer_id, "first", "last", points, LENGTH(body), keylists FROM tracker_metricsegment '  # noqa: S608
            f'WHERE {where} ORDER BY writer_id, "first"',
            args,
        )
        return [SegmentHead(*row) for row in cursor.fetchall()]

    def batches(self, cursor, run: str, writer: str, first: int, last: int) -> list[wire.Batch]:
        """The segments first … last (both are numbers of first records), decoded."""
        cursor.execute(
            'SELECT "first", encoding, body FROM tracker_metricsegment WHERE run_id = %s AND writer_id = %s AND "first" BETWEEN %s AND %s '
            'ORDER BY "first"',
            [run, writer, first, last],
        )
        return [self._decoded(run, writer, *row) for row in cursor.fetchall()]

    def _decoded(self, run: str, writer: str, first: int, encoding: str, body: bytes) -> wire.Batch:
        try:
            return wire.decode(inflate(bytes(body), encoding), self.lookup(run))
        except EncoreError as problem:
            raise DamagedSegment(f"of writer {writer}, from record {first} on: {problem.message}") from problem

    # -- blocks ---------------------------------------------------------------------------------------------------------------------

    def move_to_block(
        self,
        cursor,
        *,
        run: str,
        writer: str,
        was_upto: int,
        heads: list[SegmentHead],
        block: blocks.Encoded,
        object_key: str,
        tier: int = 0,
    ) -> bool:
        """In the caller's transaction: segments out, block in. False if another compaction was faster; then nothing was changed."""
        first, last = heads[0].first, heads[-1].last
        # First of all: it takes the writer's lock (waiting for an append in flight) and tells the loser of a race.
        cursor.execute(
            "UPDATE tracker_writer SET upto = %s, hot_bytes = hot_bytes - %s, hot_segments = hot_segments - %s, compact_after = NULL "
            "WHERE id = %s AND upto = %s",
            [last + 1, sum(head.bytes for head in heads), len(heads), writer, was_upto],
        )
        if cursor.rowcount != 1:
            return False
        MetricBlock.objects.create(
            run_id=run, writer_id=writer, first=first, last=last, points=block.points, lo_step=block.lo_step, hi_step=block.hi_step,
            bytes=len(block.data), directory_bytes=block.directory_bytes, object_key=object_key, tier=tier,
        )  # fmt: skip
        cursor.execute(
            'DELETE FROM tracker_metricsegment WHERE run_id = %s AND writer_id = %s AND "first" BETWEEN %s AND %s',
            [run, writer, first, last],
        )
        if cursor.rowcount != len(heads):
            raise RuntimeError(
                f"compaction of writer {writer} found {cursor.rowcount} segments to move, not {len(heads)}; nothing was moved"
            )
        return True

    def replace_blocks(self, old: list[MetricBlock], block: blocks.Encoded, *, object_key: str, tier: int, delete_after) -> bool:
        """In the caller's transaction: one writer's blocks ``old`` out, ``block`` in. False if one of them is gone: then roll back."""
        ids = [each.id for each in old]
        # In order: two that merge the same wait for each other and do not lock each other out.
        there = MetricBlock.objects.filter(id__in=ids).order_by("id")
        if len(there.select_for_update() if rows.on_postgres() else there) != len(ids):
            return False
        if there.delete()[0] != len(ids):
            return False
        MetricBlock.objects.create(
            run_id=old[0].run_id, writer_id=old[0].writer_id, first=min(each.first for each in old), last=max(each.last for each in old),
            points=block.points, lo_step=block.lo_step, hi_step=block.hi_step, bytes=len(block.data),
            directory_bytes=block.directory_bytes, object_key=object_key, tier=tier,
        )  # fmt: skip
        for each in old:
            self.discard(each.object_key, delete_after)
        return True

    def discard(self, object_key: str, delete_after) -> None:
        """Let the object be deleted later, when no reader can still be at it."""
        MetricTrash.objects.get_or_create(object_key=object_key, defaults={"delete_after": delete_after})

    def forget(self) -> None:
        """Drop what is remembered (tests that empty the database)."""
        with self._lock:
            self._keylists.clear()


_STORE = MetricStore()


def metric_store() -> MetricStore:
    return _STORE
