"""The filter language: text to a tree. Nothing is evaluated; ``tracker.services.filters`` binds the tree to SQL parameters.

docs/search.md describes it for users, ``filter.lark`` is the grammar. Names: fields of the run (``state``, ``name``, ``tags``, …),
``config.a.b``, ``summary.key``, and any other word is a metric's or summary's key; odd names stand in quotes, whole or by part.
"""

from __future__ import annotations

import math
import re
from datetime import date, datetime, timezone
from functools import lru_cache
from pathlib import Path
from typing import Any

from lark import Lark, Transformer, v_args
from lark.exceptions import UnexpectedInput, VisitError

from tracker.domain.errors import FilterMistake
from tracker.domain.filter_mistakes import explained
from tracker.domain.filter_tree import Ago, Compare, Duration, Items, Many, Moment, Name, Node, Not, Number

LONGEST = 4000
DEEPEST = 40
MOST_TERMS = 100
_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_PART = re.compile(r"""("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')|([^."']+)""", re.DOTALL)


class _TooBig(Exception):
    pass


class _NoMoment(Exception):
    def __init__(self, token: Any) -> None:
        self.token = token


@v_args(inline=True)
class _Tree(Transformer):
    """Values travel as (value, column)."""

    def start(self, node):
        return node

    def either(self, *items):
        return self._many("or", items)

    def both(self, *items):
        return self._many("and", items)

    def _many(self, op, items):
        if len(items) == 1:
            return items[0]
        return self._bounded(Many(op, items, 1 + max(item.depth for item in items), sum(item.terms for item in items)))

    def negated(self, inner):
        return self._bounded(Not(inner, inner.depth + 1, inner.terms))

    def _bounded(self, node):
        if node.depth > DEEPEST or node.terms > MOST_TERMS:
            raise _TooBig
        return node

    def compare(self, name, op, value):
        return Compare(name, "=" if op == "==" else str(op), (value[0],), _column(op), (value[1],))

    def isin(self, name, op, *values):
        return Compare(name, "in", tuple(value for value, _ in values), _column(op), tuple(column for _, column in values))

    def notin(self, name, op, *values):
        return Not(self.isin(name, op, *values), 2, 1)

    def like(self, name, op, value):
        return Compare(name, str(op).lower(), (value[0],), _column(op), (value[1],))

    def notlike(self, name, op, value):
        return Not(self.like(name, op, value), 2, 1)

    def isnull(self, name, op):
        return Compare(name, "=", (None,), _column(op), (_column(op),))

    def notnull(self, name, op):
        return Compare(name, "!=", (None,), _column(op), (_column(op),))

    def has(self, op, name):
        return Compare(name, "has", (), _column(op))

    def has_metric(self, op, name):
        return Compare(Name(name.text, name.column, is_quoted=True), "has", (), _column(op))

    def bare_name(self, token):
        return Name(str(token), _column(token))

    def path_name(self, token):
        parts = [_unquoted(quoted) if quoted else plain for quoted, plain in _PART.findall(str(token))]
        return Name(".".join(parts), _column(token))

    def quoted_name(self, token):
        return Name(_unquoted(token), _column(token), is_quoted=True)

    def number(self, token):
        value = int(token) if re.fullmatch(r"[+-]?[0-9]{1,300}", token) else float(token)
        return Number(value, str(token)), _column(token)

    def special(self, token):
        word = token.lower()
        value = math.nan if "nan" in word else -math.inf if word.startswith("-") else math.inf
        return Number(value, str(token)), _column(token)

    def ago(self, token):
        return Ago(_seconds(token[1:]), str(token)), _column(token)

    def duration(self, token):
        return Duration(_seconds(token), str(token)), _column(token)

    def moment(self, token):
        return Moment(_moment(token), str(token)), _column(token)

    def string(self, token):
        return _unquoted(token), _column(token)

    def word(self, token):
        return {"true": True, "false": False, "null": None, "none": None}.get(token.lower(), str(token)), _column(token)

    def plain(self, found):
        return found

    def items(self, *values):
        found = [value for value in values if value is not None]
        return Items(tuple(value for value, _ in found)), found[0][1] if found else 1


def _column(token) -> int:
    return int(token.start_pos) + 1


def _seconds(text: str) -> float:
    return sum(float(count) * _SECONDS[unit] for count, unit in re.findall(r"([0-9.]+)(ms|[smhdw])", text))


def _moment(token) -> date | datetime:
    try:
        if len(token) == 10:
            return date.fromisoformat(token)
        text = re.sub(r"([+-][0-9]{2})([0-9]{2})$", r"\1:\2", token.replace("Z", "+00:00").replace(" ", "T"))
        # Python 3.10 takes three or six digits of a second's fraction, nothing else.
        found = datetime.fromisoformat(re.sub(r"\.([0-9]+)", lambda fraction: "." + fraction[1].ljust(6, "0"), text))
        return found if found.tzinfo else found.replace(tzinfo=timezone.utc)
    except ValueError:
        raise _NoMoment(token) from None


def _unquoted(token: str) -> str:
    return re.sub(r"\\(.)", r"\1", str(token)[1:-1], flags=re.DOTALL)


@lru_cache(maxsize=1)
def _parser() -> Lark:
    grammar = Path(__file__).with_name("filter.lark").read_text(encoding="utf-8")
    return Lark(grammar, parser="lalr", transformer=_Tree(), maybe_placeholders=False)


def parse(text: str) -> Node | None:
    """The tree of ``text``; None for an empty filter. Raises FilterMistake with the column (from 1) of the mistake."""
    if not text.strip():
        return None
    if len(text) > LONGEST:
        raise FilterMistake(f"A filter has at most {LONGEST} characters.", filter=text[:100], column=LONGEST + 1)
    try:
        return _parser().parse(text)  # type: ignore[return-value]
    except UnexpectedInput as error:
        raise explained(text, error) from None
    except (_TooBig, _NoMoment, VisitError) as error:
        cause = error.orig_exc if isinstance(error, VisitError) else error
        if isinstance(cause, _NoMoment):
            column = _column(cause.token)
            raise FilterMistake(f"Column {column}: there is no such day or time: {cause.token}.", filter=text, column=column) from None
        raise FilterMistake(f"A filter has at most {MOST_TERMS} terms, nested at most {DEEPEST} deep.", filter=text, column=1) from None
