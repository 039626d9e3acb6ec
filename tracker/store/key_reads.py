"""Which keys a run has, and their last values: from directories and key lists, with as little decoded as possible."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from tracker.store import blocks, hot_reads, wire
from tracker.store.block_reads import BlockReader, BlockRow
from tracker.store.blocks import Directory
from tracker.store.columns import ALL
from tracker.store.hot_reads import DenseFrame, Head, HotBatch
from tracker.store.metrics import metric_store
from tracker.store.snapshot import Asked, Snapshot
from tracker.store.stitching import in_order


class Last(NamedTuple):
    step: int
    value: float | int


def keys_of_snapshot(run_id: str) -> dict[str, dict[int, int]]:
    """Every key with its points by rank. Raises DamagedBlock, MissingObject."""
    snapshot = Snapshot(Asked([run_id], branch=ALL)).take(lambda heads: [head for head in heads if _rows(head) is None])
    by_rank: dict[int, dict[str, int]] = defaultdict(dict)
    reader = BlockReader()
    for row, directory in reader.directories(snapshot.blocks):
        _add(by_rank[snapshot.writers[row.writer].rank], directory.all_names(), directory.columns["rows"].tolist())
    _raise_damaged(reader)
    dense: dict[tuple[int, str], int] = defaultdict(int)
    for head in snapshot.heads:
        if (count := _rows(head)) is not None:
            dense[snapshot.writers[head.writer].rank, head.keylists] += count
    for (rank, keylist), count in dense.items():
        found = metric_store().keylist(run_id, keylist)
        assert found is not None  # _rows has asked
        _add(by_rank[rank], found[1], [count] * len(found[1]))
    for batch in snapshot.hot:
        mine = by_rank[snapshot.writers[batch.writer].rank]
        for frame in batch.frames:
            if isinstance(frame, DenseFrame):
                _add(mine, frame.frame.keys, [len(frame.frame.steps)] * len(frame.frame.keys))
            else:
                at, counts = np.unique(frame.frame.index, return_counts=True)
                _add(mine, [frame.frame.keys[n] for n in at.tolist()], counts.tolist())
    ranks = sorted(by_rank)
    if len(ranks) == 1:
        return {key: {ranks[0]: count} for key, count in sorted(by_rank[ranks[0]].items())}
    every = sorted({key for counts in by_rank.values() for key in counts})
    return {key: {rank: by_rank[rank][key] for rank in ranks if key in by_rank[rank]} for key in every}


def _add(counts: dict[str, int], names: Sequence[str], more: Sequence[int]) -> None:
    if not counts and len(set(names)) == len(names):
        counts.update(zip(names, more, strict=True))
        return
    for key, count in zip(names, more, strict=True):
        counts[key] = counts.get(key, 0) + count


def _rows(head: Head) -> int | None:
    """The rows of a segment that has one key list, told without its body; None where it must be decoded."""
    if head.only_keylist is None:
        return None
    found = metric_store().keylist(head.run, head.keylists)
    return None if found is None else head.points // len(found[1])


# -- last values -------------------------------------------------------------------------------------------------------------------------


def lasts_of_snapshot(asked: Asked) -> tuple[dict[tuple[str, str, int], Last], list[str]]:
    """(run, key, rank) → last point, and the runs that are stitched, which are left out. Raises DamagedBlock, MissingObject."""
    sieve = None if asked.keys is None else hot_reads.Sieve(asked.keys)
    snapshot = Snapshot(asked).take(lambda heads: _newest([head for head in heads if sieve is None or sieve.lets_through(head)]))
    plain = [run for run in snapshot.runs if run not in snapshot.plans]
    reader = BlockReader()
    lasts: dict[tuple[str, int], dict[str, dict[str, tuple[int, Last]]]] = defaultdict(lambda: defaultdict(dict))
    for row, directory in reader.directories([row for row in snapshot.blocks if row.run not in snapshot.plans]):
        mine = lasts[row.run, snapshot.writers[row.writer].rank][row.writer]
        for key, record, last in _of_block(row, directory, asked.keys, reader):
            if key not in mine or record >= mine[key][0]:
                mine[key] = record, last
    _raise_damaged(reader)
    for batch in snapshot.hot:
        info = snapshot.writers[batch.writer]
        if info.run in snapshot.plans:
            continue
        mine = lasts[info.run, info.rank][batch.writer]
        for key, record, last in _of_batch(batch, asked.keys):
            if key not in mine or record >= mine[key][0]:
                mine[key] = record, last
    found: dict[tuple[str, str, int], Last] = {}
    for (run, rank), by_writer in lasts.items():
        for _, by_key in in_order(by_writer, snapshot.writers):  # type: ignore[arg-type]
            found.update({(run, key, rank): last for key, (_, last) in by_key.items()})  # type: ignore[attr-defined]
    return found, [run for run in snapshot.runs if run not in plain]


def _newest(heads: list[Head]) -> list[Head]:
    """Of dense segments the newest for each writer and set of key lists has all their last values; sparse ones may each have others."""
    newest: dict[tuple[str, str], Head] = {}
    loose = []
    for head in heads:
        if "*" in head.keylists:
            loose.append(head)
        elif (there := newest.get((head.writer, head.keylists))) is None or head.first > there.first:
            newest[head.writer, head.keylists] = head
    return [*newest.values(), *loose]


def _of_block(row: BlockRow, directory: Directory, keys: Sequence[str] | None, reader: BlockReader) -> Iterator[tuple[str, int, Last]]:
    if keys is None:
        names = list(zip(directory.all_names(), range(len(directory.columns)), strict=True))
    else:
        names = directory.find_all(keys, np.array([blocks.key_hash(key) for key in keys], np.uint64))
    if not names:
        return
    entries = directory.columns[[column for _, column in names]]
    last = np.ascontiguousarray(entries["last"])
    values = [
        whole if kind == blocks.I64 else real
        for kind, whole, real in zip(entries["type"].tolist(), last.tolist(), last.view("<f8").tolist(), strict=True)
    ]
    steps = entries["last_step"].tolist()
    several = {key for key, times in Counter(key for key, _ in names).items() if times > 1}
    for (key, column), step, value in zip(names, steps, values, strict=True):
        record = reader.last_record(row, directory, column) if key in several else row.first
        yield key, record, Last(step, value)


def _of_batch(batch: HotBatch, keys: Sequence[str] | None) -> Iterator[tuple[str, int, Last]]:
    for each in batch.frames:
        if isinstance(each, DenseFrame):
            frame = each.frame
            ends = np.ascontiguousarray(frame.matrix[:, -1])
            record, step = int(frame.records[-1]), int(frame.steps[-1])
            wanted = None if keys is None else set(keys)
            for key, kind, whole, real in zip(frame.keys, frame.types, ends.tolist(), ends.view("<f8").tolist(), strict=True):
                if wanted is None or key in wanted:
                    yield key, record, Last(step, whole if kind == "q" else real)
        else:
            yield from _of_sparse(each.frame, keys)


def _of_sparse(frame: wire.Sparse, keys: Sequence[str] | None) -> Iterator[tuple[str, int, Last]]:
    at = len(frame.index) - 1 - np.unique(frame.index[::-1], return_index=True)[1]  # the last place of each key
    bits = frame.bits[at]
    wanted = None if keys is None else set(keys)
    rows = zip(
        frame.index[at].tolist(), frame.records[at].tolist(), frame.steps[at].tolist(), frame.types[at].tolist(), bits.tolist(),
        bits.view("<f8").tolist(), strict=True,
    )  # fmt: skip
    for index, record, step, kind, whole, real in rows:
        key = frame.keys[index]
        if wanted is None or key in wanted:
            yield key, record, Last(step, whole if kind else real)


def _raise_damaged(reader: BlockReader) -> None:
    if reader.damaged:
        raise reader.damaged[0]
