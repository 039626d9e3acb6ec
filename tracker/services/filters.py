"""The filter tree bound to the database: every value is a parameter, every name one of a table or a parameter too."""

from __future__ import annotations

from datetime import timedelta

from django.db.models import Q
from django.utils import timezone
from django.utils.dateparse import parse_date, parse_datetime

from tracker.domain import filter as language
from tracker.domain.errors import FilterMistake
from tracker.domain.filter import Ago, Compare, Many, Node, Not
from tracker.domain.lifecycle import RunState
from tracker.models import RunValue
from tracker.models.key import RunValue as Value

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
NUMBERS = {"exit_code": "exit_code"}
_LOOKUP = {"<": "lt", "<=": "lte", ">": "gt", ">=": "gte"}


def bound(text: str, *, projects=None) -> Q:
    """``text`` as a Q over runs. ``projects``: ids that narrow the index of values; what they leave out is not visible anyway.

    Raises FilterMistake with the column.
    """
    tree = language.parse(text)
    return Q() if tree is None else _node(tree, text, projects)


def _node(node: Node, text: str, projects) -> Q:
    if isinstance(node, Many):
        parts = [_node(item, text, projects) for item in node.items]
        found = parts[0]
        for part in parts[1:]:
            found = found & part if node.op == "and" else found | part
        return found
    if isinstance(node, Not):
        return ~_node(node.inner, text, projects)
    try:
        return _compare(node, projects)
    except ValueError as problem:
        raise FilterMistake(f"Column {node.column}: {problem}", filter=text, column=node.column) from None


def value_name(name: str) -> tuple[str, str]:
    """Which leaf of RunValue a name means: (kind, path)."""
    prefix, _, rest = name.partition(".")
    if prefix == "config" and rest:
        return Value.Kind.CONFIG.value, rest
    if prefix in ("summary", "metrics") and rest:
        return Value.Kind.SUMMARY.value, rest
    return Value.Kind.SUMMARY.value, name


def _compare(node: Compare, projects) -> Q:
    name, op, values = node.name, node.op, node.values
    if op == "in":
        found = Q()
        for value in values:
            found |= _compare(Compare(name, "=", (value,), node.column), projects)
        return found
    value = values[0]
    if name in ("tags", "tag"):
        return _tags(op, value, projects)
    if name in TEXTS:
        if name == "state" and op in ("=", "!=") and value not in [state.value for state in RunState]:
            raise ValueError(f"{value!r} is no state; states are {', '.join(state.value for state in RunState)}.")
        return _text(TEXTS[name], op, value)
    if name in TIMES:
        return _time(TIMES[name], op, value, name)
    if name in NUMBERS:
        return _number(NUMBERS[name], op, value, name)
    if name == "archived":
        if not isinstance(value, bool) or op not in ("=", "!="):
            raise ValueError("archived is true or false.")
        return Q(archived_at__isnull=value == (op == "!="))
    return _value(*value_name(name), op, value, projects)


def _as_text(value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Ago):
        raise ValueError("a time ago compares with created, started or finished only.")
    return "" if value is None else str(value)


def _text(column: str, op: str, value) -> Q:
    word = _as_text(value).replace("\x00", "")
    if op == "=":
        return Q(**{column: word})
    if op == "!=":
        return ~Q(**{column: word})
    if op == "~":
        return Q(**{f"{column}__icontains": word})
    if op == "!~":
        return ~Q(**{f"{column}__icontains": word})
    return Q(**{f"{column}__{_LOOKUP[op]}": word})


def _time(column: str, op: str, value, name: str) -> Q:
    if value is None and op in ("=", "!="):
        return Q(**{f"{column}__isnull": op == "="})
    if isinstance(value, Ago):
        try:
            moment = timezone.now() - timedelta(seconds=value.seconds)
        except OverflowError:
            raise ValueError(f"{name} cannot lie so far back.") from None
    else:
        day = parse_date(str(value))
        moment = parse_datetime(str(value)) or (day and parse_datetime(f"{day}T00:00:00+00:00"))
        if moment is None:
            raise ValueError(f'{name} takes a time like "2026-01-31", "2026-01-31T12:00:00Z" or -7d.')
        if timezone.is_naive(moment):
            moment = timezone.make_aware(moment)
        if day and op in ("=", "!="):
            within = Q(**{f"{column}__gte": moment, f"{column}__lt": moment + timedelta(days=1)})
            return within if op == "=" else ~within
    if op in ("~", "!~"):
        raise ValueError(f"{name} is a time; compare it with <, <=, > or >=.")
    if op in ("=", "!="):
        return Q(**{column: moment}) if op == "=" else ~Q(**{column: moment})
    return Q(**{f"{column}__{_LOOKUP[op]}": moment})


def _number(column: str, op: str, value, name: str) -> Q:
    if value is None and op in ("=", "!="):
        return Q(**{f"{column}__isnull": op == "="})
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) >= 2**31:
        raise ValueError(f"{name} is a number.")
    if op in ("~", "!~"):
        raise ValueError(f"{name} is a number; compare it with =, <, <=, > or >=.")
    if op in ("=", "!="):
        return Q(**{column: value}) if op == "=" else Q(**{f"{column}__isnull": False}) & ~Q(**{column: value})
    return Q(**{f"{column}__{_LOOKUP[op]}": value})


def _rows(kind: str, path: str, condition: Q, projects) -> Q:
    rows = RunValue.objects.filter(kind=kind, path=path.replace("\x00", "")).filter(condition)
    if projects is not None:
        rows = rows.filter(project__in=projects)
    return Q(id__in=rows.values("run_id"))


def _tags(op: str, value, projects) -> Q:
    word = _as_text(value).replace("\x00", "")
    kind = Value.Kind.TAG.value
    if op in ("=", "!="):
        found = _rows(kind, word, Q(), projects)
        return found if op == "=" else ~found
    if op in ("~", "!~"):
        rows = RunValue.objects.filter(kind=kind, path__icontains=word)
        if projects is not None:
            rows = rows.filter(project__in=projects)
        found = Q(id__in=rows.values("run_id"))
        return found if op == "~" else ~found
    raise ValueError("tags take =, !=, ~, !~ or IN.")


def _value(kind: str, path: str, op: str, value, projects) -> Q:
    """A leaf that is missing fulfils no comparison but ``= null`` and ``!~``."""
    there = Q(number__isnull=False) | Q(text__isnull=False)
    if value is None:
        if op not in ("=", "!="):
            raise ValueError("null takes = or !=.")
        found = _rows(kind, path, there, projects)
        return found if op == "!=" else ~found
    if op in ("~", "!~"):
        found = _rows(kind, path, Q(text__icontains=_as_text(value).replace("\x00", "")), projects)
        return found if op == "~" else ~found
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            raise ValueError("the number is too large.") from None
        is_equal, side = Q(number=number), "number"
        operand: float | str = number
    else:
        operand = _as_text(value).replace("\x00", "")
        is_equal, side = Q(text=operand), "text"
    if op == "=":
        return _rows(kind, path, is_equal, projects)
    if op == "!=":
        return _rows(kind, path, there, projects) & ~_rows(kind, path, is_equal, projects)
    return _rows(kind, path, Q(**{f"{side}__{_LOOKUP[op]}": operand}), projects)
