"""Points as Parquet: one schema, sorted rows, row groups that a reader can pass over. docs/export.md says what the columns mean.

pyarrow is loaded at the first export only: it takes 40 MB that most processes never need.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

import numpy as np

from tracker.store.reading import Column

ROW_GROUP = 131_072
"""Rows. At 3 to 10 bytes a point a group is about a megabyte: small enough to be passed over, large enough to be read at speed."""
FORMAT = 1
_SCHEMA: Any = None
_PLAIN = {"step": "DELTA_BINARY_PACKED", "time": "DELTA_BINARY_PACKED", "value": "PLAIN", "value_int": "PLAIN"}
"""Encodings that every reader knows: Spark's refuses BYTE_STREAM_SPLIT, which would save a sixth of the values' bytes."""


def schema() -> Any:
    global _SCHEMA
    if _SCHEMA is None:
        import pyarrow as pa

        fields = [
            pa.field("key", pa.string(), nullable=False),
            pa.field("rank", pa.int32(), nullable=False),
            pa.field("attempt", pa.int32(), nullable=False),
            pa.field("branch", pa.int32()),
            pa.field("step", pa.int64(), nullable=False),
            pa.field("time", pa.timestamp("us", tz="UTC"), nullable=False),
            pa.field("value", pa.float64(), nullable=False),
            pa.field("value_int", pa.int64()),
            pa.field("wins", pa.bool_(), nullable=False),
        ]
        _SCHEMA = pa.schema(fields)
    return _SCHEMA


def batch(column: Column) -> Any:
    """The rows of a column by rising step; of one step in the order in which they win, so that the last one does."""
    import pyarrow as pa

    count = len(column.steps)
    steps = column.steps
    order = None if bool((steps[1:] >= steps[:-1]).all()) else np.argsort(steps, kind="stable")

    def sorted_(array: np.ndarray) -> np.ndarray:
        return array if order is None else array[order]

    values = sorted_(column.values)
    if column.bits is not None and column.is_int is not None:
        is_int = sorted_(column.is_int)
        ints = pa.array(sorted_(column.bits), mask=~is_int)
    else:
        ints = pa.array(values) if values.dtype.kind == "i" else pa.nulls(count, pa.int64())
    wins = sorted_(column.winner) if column.branch is None else np.zeros(count, bool)
    name = pa.DictionaryArray.from_arrays(np.zeros(count, "i4"), pa.array([column.key], pa.string())).cast(pa.string())
    arrays = [
        name,
        pa.array(np.full(count, column.rank, "i4")),
        pa.array(sorted_(column.attempt)),
        pa.nulls(count, pa.int32()) if column.branch is None else pa.array(np.full(count, column.branch, "i4")),
        pa.array(sorted_(steps)),
        pa.array(sorted_(column.times)).view(pa.timestamp("us", tz="UTC")),
        pa.array(values.astype("f8", copy=False)),
        ints,
        pa.array(wins),
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema())


def write(sink: BinaryIO, columns: Iterable[Column], told: dict[str, str]) -> Iterator[int]:
    """Write one file of ``columns``, which come sorted by key, rank and step; after each row group the rows so far.

    ``told`` goes into the file's own metadata. Holds a row group and one column at a time, however many there are. Nothing is
    written without a point: then ``sink`` stays empty.
    """
    import pyarrow as pa

    writer = None
    waiting: list[Any] = []
    rows = done = 0

    def flush(upto: int) -> None:
        nonlocal waiting, rows, writer
        table = pa.Table.from_batches(waiting, schema())
        writer = writer or _writer(sink, told)
        writer.write_table(table.slice(0, upto), row_group_size=ROW_GROUP)
        left = table.slice(upto)
        waiting, rows = left.to_batches() if left.num_rows else [], left.num_rows

    try:
        for column in columns:
            waiting.append(batch(column))
            rows += len(column.steps)
            if rows >= ROW_GROUP:
                full = rows - rows % ROW_GROUP
                flush(full)
                done += full
                yield done
        if rows:
            done += rows
            flush(rows)
    finally:
        if writer is not None:
            writer.close()
    yield done


def write_empty(sink: BinaryIO) -> None:
    """A file of no rows."""
    _writer(sink, {}).close()


def _writer(sink: BinaryIO, told: dict[str, str]) -> Any:
    import pyarrow.parquet as pq

    return pq.ParquetWriter(
        sink,
        schema().with_metadata({f"encore.{name}": value for name, value in told.items()}),
        compression="zstd",
        compression_level=3,
        use_dictionary=["key", "rank", "attempt", "branch"],
        column_encoding=_PLAIN,
        store_schema=False,
        write_page_index=True,
        sorting_columns=pq.SortingColumn.from_ordering(schema(), [("key", "ascending"), ("rank", "ascending")]),
    )
