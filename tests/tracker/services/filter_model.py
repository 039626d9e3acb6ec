"""What a filter and a sort mean, told a second time: in Python, over plain runs in memory. The database's answers are compared with it."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone

from tracker.domain import patterns
from tracker.domain.filter_tree import Ago, Duration, Items, Many, Moment, Not, Number

FIELDS = {"name", "state", "group", "host", "user", "exit_code", "created", "finished", "duration", "archived", "tags"}


@dataclass
class Known:
    """A run as the model sees it. ``values``: leaves by (kind, path)."""

    id: str
    name: str
    state: str
    group: str
    host: str
    user: str | None
    exit_code: int | None
    created: datetime
    started: datetime | None
    finished: datetime | None
    archived: bool
    tags: list[str]
    values: dict[tuple[str, str], object] = field(default_factory=dict)


def number_of(value) -> float | None:
    if isinstance(value, bool):
        return float(value)
    if value in ("Infinity", "-Infinity"):
        return math.inf if value == "Infinity" else -math.inf
    if isinstance(value, int | float) and not math.isnan(value):
        return float(value)
    return None


def text_of(value) -> str | None:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, str):
        return value
    return None if value is None or isinstance(value, int | float) else json.dumps(value, ensure_ascii=False)


def fits(node, run: Known, now: datetime) -> bool:
    if isinstance(node, Many):
        return (all if node.op == "and" else any)(fits(item, run, now) for item in node.items)
    if isinstance(node, Not):
        return not fits(node.inner, run, now)
    name, op = node.name.text, node.op
    if op in ("!~", "!=~"):
        return not any(_one(name, op[1:] if op == "!~" else "=~", value, node, run, now) for value in node.values)
    if op == "in":
        return any(_one(name, "=", value, node, run, now) for value in node.values)
    return _one(name, op, node.values[0] if node.values else None, node, run, now)


def _one(name: str, op: str, value, node, run: Known, now: datetime) -> bool:
    if node.name.is_quoted or name not in FIELDS:
        kind, _, path = name.partition(".")
        where = (kind, path) if kind in ("config", "summary") and not node.name.is_quoted else ("summary", name)
        return _value(run.values.get(where), op, value)
    if name == "tags" and value is None:
        return bool(run.tags) == (op == "!=")
    if name == "tags":
        if op in ("=", "!="):
            return (value in run.tags) == (op == "=")
        return any(_text(tag, op, value) for tag in run.tags)
    if name == "archived":
        return (run.archived == value) == (op == "=")
    if name == "duration":
        took = ((run.finished or now) - (run.started or run.created)).total_seconds()
        return _order(took, op, value.seconds if isinstance(value, Duration) else value.value)
    found = getattr(run, name)
    if name in ("created", "finished"):
        return _time(found, op, value, now)
    if name == "exit_code":
        if value is None:
            return (found is None) == (op == "=")
        return found is not None and _order(found, op, value.value)
    if found is None:  # no user
        return op == "!="
    return _text(found, op, _word(value))


def _word(value) -> str:
    if isinstance(value, Number | Duration | Moment):
        return value.text
    return ("true" if value else "false") if isinstance(value, bool) else value


def _time(found, op, value, now) -> bool:
    if value is None:
        return (found is None) == (op == "=")
    if found is None:
        return False
    if isinstance(value, Ago):
        start = end = now - timedelta(seconds=value.seconds)
    elif isinstance(value, str):
        start = datetime.combine(now.date() + timedelta(days={"today": 0, "yesterday": -1}[value]), datetime.min.time(), timezone.utc)
        end = start + timedelta(days=1)
    elif isinstance(value.at, datetime):
        start = end = value.at
    else:
        start = datetime.combine(value.at, datetime.min.time(), timezone.utc)
        end = start + timedelta(days=1)
    within = found == start or start <= found < end
    return {"=": within, "!=": not within, "<": found < start, ">=": found >= start, ">": found > start and not within,
            "<=": found < start or within}[op]  # fmt: skip


def _value(found, op: str, value) -> bool:
    number, text = number_of(found), text_of(found)
    is_there = number is not None or text is not None
    if op == "has":
        return is_there
    if value is None:
        return is_there == (op == "!=")
    if not is_there:
        return False
    if op in ("~", "=~", "like", "ilike"):
        return text is not None and _text(text, op, _word(value))
    if isinstance(value, Number) and math.isnan(value.value):
        return (text == "NaN") == (op == "=")
    if isinstance(value, Number):
        return _order(number, op, float(value.value)) if number is not None else op == "!="
    if isinstance(value, bool) and op not in ("=", "!="):
        return number is not None and _order(number, op, float(value))
    if isinstance(value, Duration):
        same = number == value.seconds or text == value.text
        return same == (op == "=") if op in ("=", "!=") else number is not None and _order(number, op, value.seconds)
    word = json.dumps([v.value if isinstance(v, Number) else v for v in value.values]) if isinstance(value, Items) else _word(value)
    return _order(text, op, word) if text is not None else op == "!="


def _order(left, op: str, right) -> bool:
    return {"=": left == right, "!=": left != right, "<": left < right, "<=": left <= right, ">": left > right, ">=": left >= right}[op]


def _text(text: str, op: str, word: str) -> bool:
    if op == "~":
        return lower(word) in lower(text)
    if op in ("like", "ilike"):
        return re.match(_like(lower(word) if op == "ilike" else word), lower(text) if op == "ilike" else text, re.DOTALL) is not None
    if op == "=~":
        return re.search(patterns.regex(word).re2.replace("$", r"\Z"), text, re.ASCII) is not None
    return _order(text, op, word)


def lower(text: str) -> str:
    return re.sub("[A-Z]+", lambda found: found[0].lower(), text)


def _like(pattern: str) -> str:
    return "".join({"%": ".*", "_": "."}.get(part) or re.escape(part[-1]) for part in re.findall(r"\\.|.", pattern, re.DOTALL)) + r"\Z"


def ordered(runs: list[Known], where: tuple[str, str], *, descending: bool) -> list[str]:
    """Numbers before texts before runs without the value, whichever the direction."""
    numbers, texts, rest = [], [], []
    for run in runs:
        found = run.values.get(where)
        if (number := number_of(found)) is not None:
            numbers.append((number, run.id))
        elif (text := text_of(found)) is not None:
            texts.append((text, run.id))
        else:
            rest.append(run.id)
    sections = (sorted(numbers, reverse=descending), sorted(texts, reverse=descending), sorted(rest, reverse=descending))
    return [*[id for section in sections[:2] for _, id in section], *sections[2]]
