"""The filter language: text to a tree. Nothing is evaluated; ``tracker.services.filters`` binds the tree to SQL parameters.

``name OP value`` with ``= != < <= > >= ~ !~`` (contains, without case), ``IN (…)``, ``NOT IN (…)``, AND, OR, NOT, parentheses.
Names: fields of the run (``state``, ``name``, ``tags``, ``group``, ``created``, …), ``config.a.b``, ``summary.key``, and any other word
is a metric's or summary's key; odd names stand in quotes. Values: numbers, "text", words, true, false, null, and ``-7d`` for a time ago.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from lark import Lark, Transformer, v_args
from lark.exceptions import UnexpectedCharacters, UnexpectedEOF, UnexpectedInput, UnexpectedToken, VisitError

from tracker.domain.errors import FilterMistake

LONGEST = 4000
DEEPEST = 40
MOST_TERMS = 100


@dataclass(frozen=True)
class Ago:
    """A time so many seconds before now."""

    seconds: int


Value = float | int | str | bool | None | Ago


@dataclass(frozen=True)
class Compare:
    """``column`` (from 1) is where the name stands, for errors found later."""

    name: str
    op: str
    values: tuple[Value, ...]
    column: int
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


class _TooBig(Exception):
    pass


@v_args(inline=True)
class _Tree(Transformer):
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
        text, column = name
        return Compare(text, "=" if op == "==" else str(op), (value,), column)

    def isin(self, name, *values):
        return self._bounded(Compare(name[0], "in", values, name[1], terms=len(values)))

    def notin(self, name, *values):
        return Not(self.isin(name, *values), 2, len(values))

    def bare_name(self, token):
        return str(token), token.column

    def quoted_name(self, token):
        return _unquoted(token), token.column

    def number(self, token):
        return int(token) if re.fullmatch(r"[+-]?[0-9]{1,300}", token) else float(token)

    def ago(self, token):
        return Ago(int(token[1:-1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}[token[-1]])

    def string(self, token):
        return _unquoted(token)

    def word(self, token):
        return {"true": True, "false": False, "null": None, "none": None}.get(token.lower(), str(token))


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
        raise _mistake(text, error) from None
    except (_TooBig, VisitError):
        raise FilterMistake(f"A filter has at most {MOST_TERMS} terms, nested at most {DEEPEST} deep.", filter=text, column=1) from None


def _mistake(text: str, error: UnexpectedInput) -> FilterMistake:
    if isinstance(error, UnexpectedEOF) or (isinstance(error, UnexpectedToken) and error.token.type == "$END"):
        return FilterMistake(
            f"The filter ends too early, after column {len(text)}: a comparison like config.lr > 0.1 is missing something.",
            filter=text,
            column=len(text) + 1,
        )
    column = _column(text, error)
    if isinstance(error, UnexpectedCharacters):
        found = text[column - 1 : column]
        hint = " Names and values with odd characters stand in double quotes." if found not in "\"'" else " The quote is never closed."
        return FilterMistake(f"Column {column}: {found!r} cannot stand here.{hint}", filter=text, column=column)
    found = str(getattr(error, "token", ""))
    return FilterMistake(f"Column {column}: {found!r} is not expected here.", filter=text, column=column)


def _column(text: str, error: UnexpectedInput) -> int:
    at = getattr(error, "pos_in_stream", None)
    return (at if isinstance(at, int) else 0) + 1
