"""What a filter is once it is read: comparisons, held together by AND, OR and NOT. Columns count from 1, over the whole text."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime


@dataclass(frozen=True)
class Number:
    """``text``: as it was written, for the fields that are text (``group = 1.10``)."""

    value: int | float
    text: str


@dataclass(frozen=True)
class Ago:
    """A time so many seconds before now (``-7d``)."""

    seconds: float
    text: str


@dataclass(frozen=True)
class Duration:
    """A length of time (``2h30m``)."""

    seconds: float
    text: str


@dataclass(frozen=True)
class Moment:
    """A day, or a moment with its zone (UTC where none was written)."""

    at: date | datetime
    text: str


@dataclass(frozen=True)
class Items:
    """A list (``[0.9, 0.999]``)."""

    values: tuple[Value, ...]


Value = Number | str | bool | None | Ago | Duration | Moment | Items


@dataclass(frozen=True)
class Name:
    """``parts``: how the name begins matters (``config.…``), so what was quoted as a whole is one part. ``column``: where it stands."""

    text: str
    column: int
    is_quoted: bool = False


@dataclass(frozen=True)
class Compare:
    """``op``: ``= != < <= > >= ~ !~ =~ !=~ like ilike in has``. ``value_columns``: where each value stands."""

    name: Name
    op: str
    values: tuple[Value, ...]
    op_column: int
    value_columns: tuple[int, ...] = ()
    depth: int = 1
    terms: int = 1


@dataclass(frozen=True)
class Not:
    inner: Node
    depth: int
    terms: int


@dataclass(frozen=True)
class Many:
    """``op``: ``and`` or ``or``."""

    op: str
    items: tuple[Node, ...]
    depth: int
    terms: int


Node = Compare | Not | Many


def conjuncts(node: Node | None) -> list[Node]:
    """What must hold all together: the parts of an AND, through nested ones."""
    if node is None:
        return []
    if isinstance(node, Many) and node.op == "and":
        return [part for item in node.items for part in conjuncts(item)]
    return [node]
