"""The filter tree bound to the database: every value is a parameter, every name one of a table or a parameter too.

Each comparison of a value is a question of one index of RunValue (which runs?), asked once; a run is in its answer or not. They are held
by CASE, so that no planner turns them into joins: guesses on how many rows a key has are wrong by orders of magnitude, since all keys
share one table. Measured at 100,000 runs: 40 ms this way, 300 to 800 ms joined.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from datetime import datetime

from django.db.models import BooleanField, Case, Exists, OuterRef, Q, Value, When
from django.utils import timezone

from tracker.domain import filter as language
from tracker.domain.errors import FilterMistake
from tracker.domain.filter_tree import Ago, Compare, Duration, Items, Many, Name, Node, Not, Number, conjuncts
from tracker.models import Project, Run, RunValue
from tracker.models.key import slot_of
from tracker.services import filter_fields as fields
from tracker.services import wide_keys
from tracker.services.filter_fields import LOOKUPS, OPPOSITES, Mistake

MOST_SLOTS = 200_000
"""Comparisons times projects."""
MOST_LOOKED_AT = 10
_BY_INDEX = ("=", "in", *LOOKUPS)
_HOLD_WITHOUT = ("!~", "!=~")
"""Comparisons that hold for a run without the value."""
PRESENT = (Q(number__isnull=False), Q(text__isnull=False))
"""The two halves of what has a value, each with its index; true and false, and the infinities, are in both."""


class Filter:
    """A filter over the runs of ``projects`` (their ids). Raises FilterMistake with the column."""

    def __init__(self, text: str, projects: list[str]) -> None:
        self.text, self.projects, self.now = text, projects, timezone.now()
        self.tree = language.parse(text)
        if self.tree is not None and self.tree.terms * len(projects) > MOST_SLOTS:
            raise FilterMistake("A filter of so many terms is too much for all projects: choose one.", filter=text, column=1)
        for name in _bare(self.tree):
            self._check(name)

    def metrics(self) -> list[str]:
        """The metrics whose values it compares."""
        named = {value_name(node.name) for node in _comparisons(self.tree) if node.op != "has" and not _is_field(node.name)}
        return sorted(path for kind, path in named if kind == RunValue.Kind.SUMMARY.value)

    def _check(self, name: Name) -> None:
        """A word that is no metric here, but looks like something that is."""
        close = fields.field_like(name.text)
        if not close and "." not in name.text and self._is_known("config", name.text):
            close = f"config.{name.text}"
        if close and not self._is_known("summary", name.text):
            raise FilterMistake(
                f"Column {name.column}: there is no field or metric {name.text!r}; did you mean {close}? "
                f"If a metric of that name is still to come, write summary.{name.text}.",
                filter=self.text,
                column=name.column,
            )

    def _is_known(self, kind: str, path: str) -> bool:
        slots = [slot_of(project, kind, path) for project in self.projects] or [0]
        return any(_rows(slots, half).exists() for half in PRESENT)

    def on_runs(self, *, one_by_one: bool = False) -> Q:
        """As a Q over Run. ``one_by_one``: each run is looked at, which is cheaper for some hundreds than the sets that are else made."""
        return Q() if self.tree is None else self._bound(self.tree, _OneByOne if one_by_one else _Binder, "id")

    def few(self, most: int) -> list[str] | None:
        """The runs that fulfil one part of it which must hold, if a part is so selective that fewer than ``most`` do."""
        parts = [node for node in conjuncts(self.tree) if isinstance(node, Compare) and not _is_of_runs(node) and node.op in _BY_INDEX]
        for node in parts[:MOST_LOOKED_AT]:
            if None in node.values:
                continue
            asked = _Asked(self.projects, self.now, "id")
            self._bound_by(asked, node)
            found: set[str] = set()
            for ids in asked.asked:
                found.update(ids[: most - len(found)].values_list("run_id", flat=True))
                if len(found) >= most:
                    break
            else:
                return sorted(found)
        return None

    def near(self, kind: str, path: str) -> Q:
        """What of it narrows the numbers of (kind, path) in their own index, as a Q over those rows."""
        found = Q()
        for node in conjuncts(self.tree):
            if (number := self._bound_of(node, kind, path)) is not None:
                assert isinstance(node, Compare)
                found &= Q(**{f"number__{LOOKUPS[node.op]}": number})
        return found

    def far(self, kind: str, path: str) -> Q:
        """The rest of it, as a Q over RunValue rows."""
        found = Q()
        for node in conjuncts(self.tree):
            if self._bound_of(node, kind, path) is None:
                found &= self._bound(node, _Binder, "run_id")
        return found

    def _bound_of(self, node: Node, kind: str, path: str) -> float | None:
        if not isinstance(node, Compare) or not self._is_about(node, kind, path) or node.op not in LOOKUPS:
            return None
        return _number(node.values[0])

    def needs(self, kind: str, path: str) -> bool:
        """Whether only runs fit that have a value of this name."""
        return any(
            self._is_about(node, kind, path) and node.op not in (*_HOLD_WITHOUT, "has") and not (node.op == "=" and None in node.values)
            for node in conjuncts(self.tree)
        )

    def _is_about(self, node: Node, kind: str, path: str) -> bool:
        return isinstance(node, Compare) and not _is_field(node.name) and value_name(node.name) == (kind, path) and node.op != "in"

    def _bound(self, node: Node, how: type[_Binder], column: str) -> Q:
        return self._bound_by(how(self.projects, self.now, column), node)

    def _bound_by(self, binder: _Binder, node: Node) -> Q:
        try:
            return binder.bound(node)
        except Mistake as mistake:
            raise FilterMistake(f"Column {mistake.column}: {mistake}", filter=self.text, column=mistake.column) from None


def bound(text: str, *, projects=None) -> Q:
    """``text`` as a Q over Run. ``projects``: ids that narrow the index of values (all, if None); what they leave out is not visible
    anyway. Ask the database within ``matching.bounded()``. Raises FilterMistake with the column.
    """
    return Filter(text, list(Project.objects.values_list("id", flat=True) if projects is None else projects)).on_runs()


def value_name(name: Name | str) -> tuple[str, str]:
    """Which leaf of RunValue a name means: (kind, path)."""
    text, is_quoted = (name.text, name.is_quoted) if isinstance(name, Name) else (name, False)
    prefix, _, rest = text.partition(".")
    if not is_quoted and prefix == "config" and rest:
        return RunValue.Kind.CONFIG.value, rest
    if not is_quoted and prefix in ("summary", "metrics") and rest:
        return RunValue.Kind.SUMMARY.value, rest
    return RunValue.Kind.SUMMARY.value, text


def is_there(column: str, slots: list[int]) -> Q:
    """Runs that have a value under one of ``slots``."""
    return member(column, _rows(slots, PRESENT[0])) | member(column, _rows(slots, PRESENT[1]))


def member(column: str, ids) -> Q:
    """``column`` is one of ``ids``, a query that is asked once and whose answer is kept at hand."""
    return Q(Case(When(Q(**{f"{column}__in": ids}), then=Value(True)), default=Value(False), output_field=BooleanField()))


def _rows(slots: list[int], condition: Q):
    rows = RunValue.objects.filter(slot=slots[0]) if len(slots) == 1 else RunValue.objects.filter(slot__in=slots)
    return rows.filter(condition).values("run_id")


def _comparisons(node: Node | None) -> Iterator[Compare]:
    left = [] if node is None else [node]
    while left:
        node = left.pop()
        if isinstance(node, Many):
            left += node.items
        elif isinstance(node, Not):
            left.append(node.inner)
        else:
            yield node


def _bare(node: Node | None) -> list[Name]:
    """Names that are no field and say neither config nor summary, each once."""
    found: dict[str, Name] = {}
    for one in _comparisons(node):
        if not one.name.is_quoted and not _is_field(one.name) and value_name(one.name) == ("summary", one.name.text):
            found.setdefault(one.name.text, one.name)
    return sorted(found.values(), key=lambda name: name.column)


def _is_field(name: Name) -> bool:
    return not name.is_quoted and name.text in fields.FIELDS


def _number(value) -> float | None:
    """What compares with numbers: they themselves, lengths of time as seconds, true and false as 1 and 0. None for all else."""
    if isinstance(value, bool):
        return float(value)
    if isinstance(value, Duration):
        return value.seconds
    if not isinstance(value, Number) or math.isnan(value.value):
        return None
    try:
        return float(value.value)
    except OverflowError:
        return math.inf if value.value > 0 else -math.inf


class _Binder:
    """``column``: where the run's id stands in the outer query: ``id`` over Run, ``run_id`` over RunValue."""

    def __init__(self, projects: list[str], now: datetime, column: str) -> None:
        self.projects, self.now, self.column = projects, now, column

    def bound(self, node: Node) -> Q:
        if self.column != "id" and _is_of_runs(node):
            inner = _Binder(self.projects, self.now, "id").bound(node)
            return member(self.column, Run.objects.filter(inner, project__in=self.projects).values("id"))
        if isinstance(node, Many):
            found = self.bound(node.items[0])
            for item in node.items[1:]:
                found = found & self.bound(item) if node.op == "and" else found | self.bound(item)
            return found
        if isinstance(node, Not):
            return ~self.bound(node.inner)
        if not _is_field(node.name):
            return self._value(node)
        return self._tags(node) if node.name.text in ("tags", "tag") else fields.condition(node, self.now)

    def _among(self, kind: str, paths: list[str], *conditions: Q) -> Q:
        """Runs with a row of one of these names that fulfils one of the conditions."""
        slots, found = self._slots(kind, paths), Q()
        for condition in conditions:
            found |= member(self.column, _rows(slots, condition))
        return found

    def _tagged(self, condition: Q) -> Q:
        rows = RunValue.objects.filter(condition, project__in=self.projects, kind=RunValue.Kind.TAG.value)
        return member(self.column, rows.values("run_id"))

    def _slots(self, kind: str, paths: list[str]) -> list[int]:
        return [slot_of(project, kind, path) for project in self.projects for path in paths] or [0]

    # -- tags --------------------------------------------------------------------------------------------------------------------------

    def _tags(self, node: Compare) -> Q:
        kind = RunValue.Kind.TAG.value
        if node.op in OPPOSITES:
            return ~self._tags(Compare(node.name, OPPOSITES[node.op], node.values, node.op_column, node.value_columns))
        if node.op == "has" or (node.op in ("=", "!=") and node.values[0] is None):
            found = self._tagged(Q())
            return ~found if node.op == "=" else found
        words = [fields.as_text(value, at) for value, at in zip(node.values, node.value_columns, strict=True)]
        if node.op in ("=", "!=", "in"):
            found = self._among(kind, words, PRESENT[1])
            return ~found if node.op == "!=" else found
        if node.op in LOOKUPS:
            raise Mistake(node.op_column, "tags take =, !=, ~, !~, LIKE, =~ or IN.")
        lookup, pattern = fields.matcher(node.op, words[0], node.value_columns[0])
        return self._tagged(Q(**{f"path__{lookup}": pattern}))

    # -- config and summary ------------------------------------------------------------------------------------------------------------

    def _value(self, node: Compare) -> Q:
        """A value that is missing fulfils no comparison but ``= null`` and the opposites of ``~``, ``=~``, ``LIKE`` and ``IN``."""
        kind, path = value_name(node.name)
        where = (kind, [path.replace("\x00", "")])
        if node.op == "has":
            found = self._among(*where, *PRESENT)
            wide = wide_keys.runs_with(path, self.projects) if kind == RunValue.Kind.SUMMARY.value else []
            return found | Q(**{f"{self.column}__in": wide}) if wide else found
        if node.op == "in":
            return self._among_values(where, node)
        if node.op in OPPOSITES:
            return ~self._value(Compare(node.name, OPPOSITES[node.op], node.values, node.op_column, node.value_columns))
        return self._compared(where, node.op, node.values[0], node)

    def _among_values(self, where: tuple[str, list[str]], node: Compare) -> Q:
        numbers, words, found = [], [], Q()
        for value in node.values:
            if value is None:
                found |= ~self._among(*where, *PRESENT)
            elif not isinstance(value, bool) and (number := _number(value)) is not None:
                numbers.append(number)
                words += [value.text] if isinstance(value, Duration) else []
            else:
                words.append(_word(value, node))
        if numbers:
            found |= self._among(*where, Q(number__in=numbers))
        if words:
            found |= self._among(*where, Q(text__in=words))
        return found

    def _compared(self, where: tuple[str, list[str]], op: str, value, node: Compare) -> Q:
        if value is None:
            if op not in ("=", "!="):
                raise Mistake(node.value_columns[0], "null takes = or !=.")
            found = self._among(*where, *PRESENT)
            return found if op == "!=" else ~found
        if op not in ("=", "!=", *LOOKUPS):
            lookup, pattern = fields.matcher(op, _word(value, node), node.value_columns[0])
            return self._among(*where, Q(**{f"text__{lookup}": pattern}))
        number = _number(value)
        if isinstance(value, Number) and number is None and op in LOOKUPS:
            raise Mistake(node.value_columns[0], "NaN has no order: it takes = or !=.")
        if op in LOOKUPS:
            if number is not None:
                return self._among(*where, Q(**{f"number__{LOOKUPS[op]}": number}))
            return self._among(*where, Q(**{f"text__{LOOKUPS[op]}": _word(value, node)}))
        equal = []
        if number is not None and not isinstance(value, bool):
            equal.append(Q(number=number))
        if number is None or isinstance(value, bool | Duration):
            equal.append(Q(text=_word(value, node)))
        if op == "=":
            return self._among(*where, *equal)
        # What is of the other type is unequal too. Those that are in both indexes are looked at in the first.
        if isinstance(value, Duration):
            return self._among(*where, *PRESENT) & ~self._among(*where, *equal)
        if number is not None and not isinstance(value, bool):
            return self._among(*where, Q(number__isnull=False) & ~Q(number=number), Q(text__isnull=False, number__isnull=True))
        word = _word(value, node)
        return self._among(*where, Q(text__isnull=False) & ~Q(text=word), Q(number__isnull=False, text__isnull=True))


class _OneByOne(_Binder):
    """Each run of the outer query is looked up in RunValue's index by run."""

    def _among(self, kind: str, paths: list[str], *conditions: Q) -> Q:
        found = Q()
        for condition in conditions:
            found |= self._has(condition, kind=kind, path__in=paths)
        return found

    def _tagged(self, condition: Q) -> Q:
        return self._has(condition, kind=RunValue.Kind.TAG.value)

    def _has(self, condition: Q, **which) -> Q:
        own = Exists(RunValue.objects.filter(condition, run_id=OuterRef(self.column), **which))
        return Q(Case(When(own, then=Value(True)), default=Value(False), output_field=BooleanField()))


class _Asked(_Binder):
    """Only notes which runs it would ask for."""

    def __init__(self, projects: list[str], now: datetime, column: str) -> None:
        super().__init__(projects, now, column)
        self.asked: list = []

    def _among(self, kind: str, paths: list[str], *conditions: Q) -> Q:
        self.asked += [_rows(self._slots(kind, paths), condition) for condition in conditions]
        return Q()


def _is_of_runs(node: Node) -> bool:
    """Nothing but the run's own fields."""
    if isinstance(node, Many):
        return all(_is_of_runs(item) for item in node.items)
    if isinstance(node, Not):
        return _is_of_runs(node.inner)
    return _is_field(node.name) and node.name.text not in ("tags", "tag")


def _word(value, node: Compare) -> str:
    """``value`` as the text that config and summary rows hold."""
    if isinstance(value, Items):
        return json.dumps([_plain(item) for item in value.values], ensure_ascii=False)[: RunValue._meta.get_field("text").max_length]
    if isinstance(value, Number) and not math.isfinite(value.value):
        return "NaN" if math.isnan(value.value) else "Infinity" if value.value > 0 else "-Infinity"
    if isinstance(value, Ago):
        raise Mistake(node.value_columns[0], f"a time ago compares with {', '.join(fields.TIMES)} only.")
    return fields.as_text(value, node.value_columns[0])


def _plain(value):
    if isinstance(value, Items):
        return [_plain(item) for item in value.values]
    return value.value if isinstance(value, Number) else value if isinstance(value, str | bool | None) else value.text
