"""The fields of a run that filters know by name, each as a Q over Run. Mistakes are ValueErrors with the column they stand at."""

from __future__ import annotations

import difflib
import math
from datetime import date, datetime, timedelta, timezone

from django.db.models import BooleanField, F, FloatField, Func, Q, Value
from django.db.models.functions import Coalesce

from tracker.domain import patterns
from tracker.domain.filter_tree import Ago, Compare, Duration, Items, Moment, Number
from tracker.domain.lifecycle import RunState
from tracker.services import matching

TEXTS = {
    "id": "id",
    "name": "name",
    "group": "group",
    "job_type": "job_type",
    "notes": "notes",
    "host": "host",
    "user": "user__username",
    "project": "project__slug",
    "state": "state",
}
TIMES = {"created": "created_at", "started": "started_at", "finished": "finished_at", "heartbeat": "heartbeat_at"}
NUMBERS = {"exit_code": "exit_code", "signal": "signal"}
NULLABLE = {"user__username", "exit_code", "signal", "started_at", "finished_at", "heartbeat_at"}
FIELDS = (*TEXTS, *TIMES, *NUMBERS, "duration", "archived", "tags", "tag")
LOOKUPS = {"<": "lt", "<=": "lte", ">": "gt", ">=": "gte"}
OPPOSITES = {"!~": "~", "!=~": "=~"}
_DAYS = {"today": 0, "yesterday": -1, "tomorrow": 1}
_OTHERS = {
    "status": "state", "runtime": "duration", "author": "user", "creator": "user", "username": "user", "owner": "user", "title": "name",
    "run": "name", "experiment": "project", "hostname": "host", "node": "host", "date": "created", "exitcode": "exit_code",
}  # fmt: skip
_STATES = [state.value for state in RunState]


class Mistake(ValueError):
    def __init__(self, column: int, message: str) -> None:
        super().__init__(message)
        self.column = column


class Seconds(Func):
    """Seconds between two times."""

    output_field = FloatField()

    def as_sqlite(self, compiler, connection, **more):
        return self.as_sql(compiler, connection, template="((JULIANDAY(%(expressions)s)) * 86400.0)", arg_joiner=") - JULIANDAY(", **more)

    def as_postgresql(self, compiler, connection, **more):
        return self.as_sql(compiler, connection, template="EXTRACT(EPOCH FROM (%(expressions)s))", arg_joiner=" - ", **more)


def duration(now: datetime) -> Seconds:
    """From the start to the end, to ``now`` where there is none."""
    return Seconds(Coalesce(F("finished_at"), Value(now)), Coalesce(F("started_at"), F("created_at")))


def condition(node: Compare, now: datetime) -> Q:
    """``node``, whose name is one of FIELDS but tags."""
    name, value, at = node.name.text, node.values[0] if node.values else None, node.value_columns[0] if node.value_columns else 1
    if node.op == "in":
        found = Q()
        for value, at in zip(node.values, node.value_columns, strict=True):
            found |= condition(Compare(node.name, "=", (value,), node.op_column, (at,)), now)
        return found
    if node.op == "has":
        node, value = Compare(node.name, "!=", (None,), node.op_column), None
    if node.op in OPPOSITES:
        return ~condition(Compare(node.name, OPPOSITES[node.op], node.values, node.op_column, node.value_columns), now)
    if name == "archived":
        if not isinstance(value, bool) or node.op not in ("=", "!="):
            raise Mistake(node.op_column if isinstance(value, bool) else at, "archived is true or false.")
        return Q(archived_at__isnull=value == (node.op == "!="))
    if name in TEXTS:
        return _text(node, TEXTS[name], value, at)
    if node.op not in ("=", "!=", *LOOKUPS):
        kind = "a time" if name in TIMES else "a length of time" if name == "duration" else "a number"
        raise Mistake(node.op_column, f"{name} is {kind}; compare it with =, <, <=, > or >=.")
    if name in TIMES:
        return _time(TIMES[name], node.op, value, at, name, now)
    if name == "duration":
        return _duration(node.op, value, at, now)
    return _number(NUMBERS[name], node.op, value, at, name)


def as_text(value, at: int) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Ago):
        raise Mistake(at, f"a time ago compares with {', '.join(TIMES)} only.")
    if isinstance(value, Items):
        raise Mistake(at, "a list compares with config and summary values only; one of several is IN (a, b).")
    if isinstance(value, Number | Duration | Moment):
        return value.text
    return "" if value is None else value.replace("\x00", "")


def matcher(op: str, word: str, at: int) -> tuple[str, patterns.Pattern]:
    """The lookup and its right side of ``~``, ``=~``, ``like`` and ``ilike``."""
    try:
        if op == "~":
            return "ilike", matching.containing(word)
        if op == "=~":
            if not matching.has_regex():
                raise Mistake(at, "regular expressions need the package google-re2 beside SQLite; use LIKE or ~.")
            return "matching", patterns.regex(word)
        return op, patterns.like(word, any_case=op == "ilike")
    except patterns.PatternMistake as mistake:
        raise Mistake(at, f"character {mistake.at + 1} of this pattern: {mistake}.") from None


def _text(node: Compare, column: str, value, at: int) -> Q:
    word = as_text(value, at)
    if column == "state" and node.op in ("=", "!=") and word not in _STATES:
        raise Mistake(at, f"{word!r} is no state;{meant(word, _STATES)} states are {', '.join(_STATES)}.")
    if node.op in ("=", "!="):
        found = _known(column, Q(**{column: word}))
        return ~found if node.op == "!=" else found
    if node.op in LOOKUPS:
        return _known(column, Q(**{f"{column}__{LOOKUPS[node.op]}": word}))
    lookup, pattern = matcher(node.op, word, at)
    return _known(column, Q(**{f"{column}__{lookup}": pattern}))


def _known(column: str, condition: Q) -> Q:
    """``condition``, and false where there is nothing: NULL would make the NOT of it neither true nor false."""
    return Q(**{f"{column}__isnull": False}) & condition if column in NULLABLE else condition


def field_like(word: str) -> str:
    """The field that somebody may have meant who wrote ``word``, which is none; empty if none is near."""
    if word.lower() in _OTHERS:
        return _OTHERS[word.lower()]
    close = difflib.get_close_matches(word.lower(), FIELDS, 1, 0.8)
    return close[0] if close else ""


def meant(word: str, known) -> str:
    close = difflib.get_close_matches(word.lower(), known, 1, 0.6)
    return f" did you mean {close[0]}?" if close else ""


def _time(column: str, op: str, value, at: int, name: str, now: datetime) -> Q:
    if value is None:
        return _null(column, op, at)
    start, end = _span(value, at, name, now)
    if op in ("=", "!="):
        within = Q(**{f"{column}__gte": start, f"{column}__lt": end}) if end > start else Q(**{column: start})
        return _known(column, within if op == "=" else ~within)
    # Behind a day is behind its end; before it, before its start.
    if end > start and op in (">", "<="):
        return _known(column, Q(**{f"{column}__{'gte' if op == '>' else 'lt'}": end}))
    return _known(column, Q(**{f"{column}__{LOOKUPS[op]}": start}))


def _span(value, at: int, name: str, now: datetime) -> tuple[datetime, datetime]:
    """From where to where (exclusive) a day goes; twice the same for a moment."""
    try:
        if isinstance(value, str) and value.lower() in _DAYS:
            value = Moment((now + timedelta(days=_DAYS[value.lower()])).date(), value)
        if isinstance(value, str) and value.lower() == "now":
            return now, now
        if isinstance(value, str):
            value = Moment(_written(value), value)
        if isinstance(value, Ago):
            moment = now - timedelta(seconds=value.seconds)
            return moment, moment
        if isinstance(value, Moment) and isinstance(value.at, datetime):
            moment = value.at.astimezone(timezone.utc)
            return moment, moment
        if isinstance(value, Moment):
            start = datetime(value.at.year, value.at.month, value.at.day, tzinfo=timezone.utc)
            return start, start + timedelta(days=1)
    except OverflowError:
        raise Mistake(at, f"{name} cannot lie so far back or ahead.") from None
    except ValueError:
        pass
    raise Mistake(at, f"{name} takes a time: 2026-01-31, 2026-01-31T12:00:00Z, today, yesterday or -7d.")


def _written(text: str) -> date | datetime:
    try:
        return date.fromisoformat(text)
    except ValueError:
        found = datetime.fromisoformat(text.replace("Z", "+00:00"))
        return found if found.tzinfo else found.replace(tzinfo=timezone.utc)


def _null(column: str, op: str, at: int) -> Q:
    if op not in ("=", "!="):
        raise Mistake(at, "null takes = or !=.")
    return Q(**{f"{column}__isnull": op == "="})


def _duration(op: str, value, at: int, now: datetime) -> Q:
    if isinstance(value, Number) and not isinstance(value.value, bool) and math.isfinite(value.value) and abs(value.value) < 1e15:
        seconds = float(value.value)
    elif isinstance(value, Duration):
        seconds = value.seconds
    else:
        raise Mistake(at, "duration takes a length of time: 90s, 2h, 2h30m, 1.5d, or a number of seconds.")
    if op == "!=":
        return ~Q(_Compared(duration(now), seconds, "="))
    return Q(_Compared(duration(now), seconds, op))


class _Compared(Func):
    """``expression op seconds`` as a condition."""

    output_field = BooleanField()
    template = "(%(expressions)s)"

    def __init__(self, expression, seconds: float = 0.0, op: str = "=", **more) -> None:
        super().__init__(expression, Value(seconds, output_field=FloatField()), arg_joiner=f" {op} ", **more)


def _number(column: str, op: str, value, at: int, name: str) -> Q:
    if value is None:
        return _null(column, op, at)
    if not isinstance(value, Number) or not abs(value.value) < 2**31:
        raise Mistake(at, f"{name} is a number.")
    if op in ("=", "!="):
        equal = Q(**{column: int(value.value)}) if value.value == int(value.value) else Q(pk__in=[])
        return _known(column, equal if op == "=" else ~equal)
    return _known(column, Q(**{f"{column}__{LOOKUPS[op]}": value.value}))
