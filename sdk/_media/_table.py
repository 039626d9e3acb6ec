"""sdk.Table: columns and rows, numbers exactly; cells may be images and other media."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from .._plain import dumps, key_text, plain, scalar, text
from ._base import Encoded, Keep, Media, Refused
from ._image import Taken

MOST_ROWS = 100_000
MOST_COLUMNS = 1000
MOST_CELLS = 2_000_000
MOST_BYTES = 64 << 20
EXACT = 2**53  # beyond it a browser's numbers are not whole any more


class Table(Media):
    """`Table(columns=["text", "score"], rows=[["a", 0.5], …])`, `Table(dataframe)` of pandas or polars, or a list of dicts; `add(…)` a row.

    What is in it when it is logged is what is shown.
    """

    kind = "table"

    def __init__(
        self, data: Any = None, columns: Sequence[Any] | None = None, rows: Iterable[Any] | None = None, caption: Any = None
    ) -> None:
        self.columns: list[str] = []
        self.rows: list[Any] = []
        self._frame: Callable[[], tuple[list[str], list[Any]]] | None = None
        super().__init__(lambda: self._fill(data, columns, rows), caption)

    def add(self, *cells: Any) -> None:
        """Append a row."""
        self.rows.append(cells)
        self.cost += 64 * len(cells)

    def _fill(self, data: Any, columns: Any, rows: Any) -> Taken:
        if data is not None and is_frame(data):
            names = [key_text(name) for name in data.columns]
            _check(len(data), len(names))
            self._frame = _frame(data, names)
            return len(data) * len(names) * 16, self._job
        rows = rows if rows is not None else data if data is not None else ()
        rows = list(rows)
        if columns is None and rows and all(isinstance(row, Mapping) for row in rows):
            columns = list(dict.fromkeys(name for row in rows for name in row))
        if columns is None:
            if not rows:
                raise Refused("a table needs columns: sdk.Table(columns=[…], rows=[…])")
            columns = [str(at) for at in range(max(len(_cells(row)) for row in rows))]
        self._keys = list(columns)
        self.columns = [key_text(name) for name in columns]
        self.rows = [tuple(row.get(key) for key in columns) if isinstance(row, Mapping) else tuple(_cells(row)) for row in rows]
        _check(len(self.rows), len(self.columns))
        return 64 * len(self.rows) * max(1, len(self.columns)), self._job

    def frozen(self) -> Table:
        """As it is now: `add` may go on while it is encoded."""
        import copy

        still = copy.copy(self)
        still.rows = list(self.rows)
        still.job = still._job
        return still

    def _job(self, keep: Keep) -> Encoded:
        columns, rows = self._frame() if self._frame is not None else (self.columns, self.rows)
        _check(len(rows), len(columns))
        width = len(columns)
        if any(len(row) != width for row in rows):
            odd = next(at for at, row in enumerate(rows) if len(row) != width)
            raise Refused(f"row {odd} of the table has {len(rows[odd])} cells for {width} columns")
        cells = [[_cell(cell, keep) for cell in row] for row in rows]
        data = dumps({"format": 1, "columns": columns, "rows": cells})
        if len(data) > MOST_BYTES:
            raise Refused(f"a table of {len(data) / 2**20:.0f} MiB; one may have {MOST_BYTES >> 20}")
        return Encoded(data, "application/vnd.encore.table+json", {"rows": len(rows), "columns": width})


def _check(rows: int, columns: int) -> None:
    if rows > MOST_ROWS or columns > MOST_COLUMNS or rows * columns > MOST_CELLS:
        raise Refused(
            f"a table of {rows:,} × {columns:,} cells; one may have {MOST_ROWS:,} rows, {MOST_COLUMNS:,} columns and {MOST_CELLS:,} cells"
            " (log a sample of it, and the whole as a file)"
        )


def is_frame(value: Any) -> bool:
    """A DataFrame of pandas or polars."""
    return type(value).__name__ == "DataFrame" and type(value).__module__.partition(".")[0] in ("pandas", "polars")


def _frame(frame: Any, names: list[str]) -> Callable[[], tuple[list[str], list[Any]]]:
    if hasattr(frame, "iter_rows"):  # polars; its frames share immutable columns
        copied = frame.clone()
        return lambda: (names, copied.rows())
    copied = frame.copy()
    return lambda: (names, list(zip(*(copied.iloc[:, at].tolist() for at in range(copied.shape[1])), strict=True)) or [])


def _cells(row: Any) -> Sequence[Any]:
    if isinstance(row, (str, bytes)) or not isinstance(row, Iterable):
        return (row,)
    return list(row)


def _cell(value: Any, keep: Keep) -> Any:
    """A number, text, bool, null; {"number": "NaN"} where JSON or a browser cannot hold it; {"media": {…}}."""
    kind = type(value)
    if kind is str:
        return text(value)
    if value is None or kind is bool:
        return value
    if isinstance(value, Media):
        return {"media": value.encode(keep)}
    if kind is not int and kind is not float:
        value = scalar(value)
    if isinstance(value, bool):
        return bool(value)
    if isinstance(value, int):
        return int(value) if -EXACT <= value <= EXACT else {"number": str(int(value))}
    if isinstance(value, float):
        value = float(value)
        if math.isfinite(value):
            return value
        return {"number": "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"}
    if isinstance(value, str):
        return text(str(value))
    if type(value).__name__ in ("NaTType", "NAType"):
        return None
    isoformat = getattr(value, "isoformat", None)
    if callable(isoformat):
        return text(str(isoformat()))
    found = plain(value)
    return found if isinstance(found, (str, int, float, bool)) or found is None else text(dumps(found).decode())
