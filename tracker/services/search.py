"""A page of runs, filtered and sorted, without reading more runs than needed (docs/search.md).

Sorted by one value, the runs come from that value's own index in its order, in three sections: numbers, then texts, then runs without
the value. Sorted by a column of the run, they come from its table. Either way the filter is asked once for each of its comparisons.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from django.db.models import Case, F, FilteredRelation, Q, When
from django.utils.dateparse import parse_datetime

from tracker.domain.errors import Invalid
from tracker.models import RunValue
from tracker.models.key import slot_of
from tracker.services import filters, paging, values, wide_keys
from tracker.services.filter_fields import NULLABLE
from tracker.services.filters import Filter
from tracker.services.paging import Key, Page

COLUMNS = {
    "created": "created_at",
    "started": "started_at",
    "finished": "finished_at",
    "heartbeat": "heartbeat_at",
    "name": "name",
    "state": "state",
    "group": "group",
    "job_type": "job_type",
    "host": "host",
    "id": "id",
    "user": "user__username",
    "project": "project__slug",
    "exit_code": "exit_code",
    "signal": "signal",
}
MOST_SORTS = 4
MOST_PROJECTS = 1000
"""Beyond that many projects at once, a sort by a value joins."""
FEW = 1000
"""If a part of the filter finds fewer runs, they are all looked at."""
STRIDES = (200, 1000, 4000)
MOST_LOOKS = 20_000
"""Runs times comparisons: some microseconds each."""
_TIMES = {"created_at", "started_at", "finished_at", "heartbeat_at"}
_SORT = re.compile(r"""\s*([-+]?)\s*("(?:[^"\\]|\\.)*"|[^",][^,]*|)\s*(?:,|$)""")
NEWEST = (Key("created_at", descending=True), Key("id"))
"""The order of an index, so that the first page reads only its own rows."""


@dataclass(frozen=True)
class Sort:
    """``column`` of the run, else the value (kind, path)."""

    descending: bool
    column: str = ""
    kind: str = ""
    path: str = ""


def sorts(text: str) -> list[Sort]:
    """``-config.lr, name``: a ``-`` in front is descending; names with commas stand in double quotes. Raises Invalid."""
    found, at = [], 0
    while at < len(text):
        match = _SORT.match(text, at)
        if match is None or not match[2]:
            raise Invalid(
                'sort reads like -summary.val/loss or state,-created; a name with a comma stands in "double quotes".', sort="malformed"
            )
        sign, name, at = match[1], match[2].strip(), match.end()
        is_quoted = name.startswith('"')
        name = re.sub(r"\\(.)", r"\1", name[1:-1]) if is_quoted else name
        if not is_quoted and name in COLUMNS:
            found.append(Sort(sign == "-", column=COLUMNS[name]))
            continue
        kind, path = filters.value_name(name.replace("\x00", ""))
        if not 0 < len(path) <= values.LONGEST:
            raise Invalid("sort names a column, config.… or summary.…", sort="malformed")
        found.append(Sort(sign == "-", kind=kind, path=path))
    if len(found) > MOST_SORTS:
        raise Invalid(f"sort has at most {MOST_SORTS} names.", sort="too many")
    return found


def page(rows, *, chosen: Filter, sort: str, limit: int, cursor: str | None, is_narrow: bool) -> Page:
    """``rows``: the runs in question. ``is_narrow``: they are fewer than those of ``chosen.projects`` that are not deleted or archived."""
    by = sorts(sort)
    if asked := [*chosen.metrics(), *(one.path for one in by if one.kind == RunValue.Kind.SUMMARY.value)]:
        wide_keys.searched(asked, chosen.projects)
    few = chosen.few(FEW)
    if few is not None:
        rows, keys = _ordered(rows.filter(chosen.on_runs(one_by_one=True), id__in=few), by)
    elif by in ([], [Sort(True, "created_at")]) and chosen.tree is not None:
        return _newest(rows, chosen, limit, cursor)
    elif len(by) == 1 and by[0].kind and len(chosen.projects) <= MOST_PROJECTS:
        return _by_value(rows, chosen, by[0], limit, cursor, is_narrow)
    else:
        rows, keys = _ordered(rows.filter(chosen.on_runs()), by)
    return paging.page(rows, keys=keys, limit=limit, cursor=_revived(cursor, keys))


def _strides(chosen: Filter) -> Iterator[int]:
    """How many runs to look at one by one, in order, before sets are made: a filter that many runs fit has filled a page by then."""
    terms = chosen.tree.terms if chosen.tree is not None else 0
    yield from (stride for stride in STRIDES if terms * stride <= MOST_LOOKS)


# -- in the order of columns, or of several names --------------------------------------------------------------------------------------


def _ordered(rows, by: list[Sort]):
    if not by:
        return rows, list(NEWEST)
    keys: list[Key] = []
    for at, sort in enumerate(by):
        if sort.column:
            keys.append(Key(sort.column, sort.descending, sort.column in NULLABLE))
            continue
        value, number, text = f"sorted_{at}", f"number_{at}", f"text_{at}"
        rows = rows.annotate(
            **{
                value: FilteredRelation("values", condition=Q(values__kind=sort.kind, values__path=sort.path)),
                number: F(f"{value}__number"),
                text: Case(When(**{f"{value}__number__isnull": True}, then=F(f"{value}__text"))),
            }
        )
        keys += [Key(number, sort.descending, True), Key(text, sort.descending, True)]
    return rows, keys if by[-1].column == "id" else [*keys, Key("id", by[0].descending and bool(by[0].kind))]


def _newest(rows, chosen: Filter, limit: int, cursor: str | None) -> Page:
    keys, found = list(NEWEST), []
    at = _revived(cursor, keys)
    for stride in _strides(chosen):
        part = paging.narrow(rows, keys, at, stride)
        fits = set(rows.filter(chosen.on_runs(one_by_one=True), id__in=[row[-1] for row in part]).values_list("id", flat=True))
        found += [row for row in part if row[-1] in fits]
        if len(found) > limit or len(part) < stride:
            return paging.page_of(rows, found, limit)
        at = paging.cursor_of(part[-1])
    found += paging.narrow(rows.filter(chosen.on_runs()), keys, at, limit + 1 - len(found))
    return paging.page_of(rows, found, limit)


def _revived(cursor: str | None, keys: list[Key]) -> str | None:
    """The cursor, once its times are known to be times: the database would answer a malformed one with an error of its own."""
    if cursor:
        for key, value in zip(keys, paging.decode(cursor, len(keys)), strict=True):
            if key.column in _TIMES and value is not None and parse_datetime(str(value)) is None:
                raise ValueError
            if key.column.startswith("number_") and isinstance(value, str):
                raise ValueError
            if key.column in ("exit_code", "signal") and not (value is None or (isinstance(value, int) and abs(value) < 2**31)):
                raise ValueError
    return cursor


# -- in the order of one value ---------------------------------------------------------------------------------------------------------


def _by_value(rows, chosen: Filter, sort: Sort, limit: int, cursor: str | None, is_narrow: bool) -> Page:
    start = _start(cursor)
    found: list[tuple[float | None, str | None, str]] = []
    for section in _sections(rows, chosen, sort, start, is_narrow):
        for entry in section(limit + 1 - len(found)):
            found.append(entry)
        if len(found) > limit:
            break
    more, found = len(found) > limit, found[:limit]
    return Page(paging.whole(rows, [run for _, _, run in found]), paging.encode(list(found[-1])) if more else None)


def _start(cursor: str | None) -> tuple[float | None, str | None, str | None]:
    """(number, text, id) behind which the page begins; all None for the first."""
    if not cursor:
        return None, None, None
    number, text, run = paging.decode(cursor, 3)
    right = (
        isinstance(number, int | float | None) and not isinstance(number, bool) and isinstance(text, str | None) and isinstance(run, str)
    )
    if not right or (isinstance(number, float) and math.isnan(number)) or (number is not None and text is not None):
        raise ValueError
    return number, text, run


def _sections(rows, chosen: Filter, sort: Sort, start, is_narrow: bool) -> Iterator:
    """Functions that answer up to so many (number, text, id) each, in order."""
    number, text, run = start
    slots = [slot_of(project, sort.kind, sort.path) for project in chosen.projects] or [0]
    near = chosen.near(sort.kind, sort.path)

    def far() -> Q:
        asked = chosen.far(sort.kind, sort.path)
        return filters.member("run_id", rows.values("id")) & asked if is_narrow else asked

    own = RunValue.objects.filter(slot=slots[0]) if len(slots) == 1 else RunValue.objects.filter(slot__in=slots)
    if run is None or number is not None:
        numbers = own.filter(near, number__isnull=False)
        yield lambda most: ((value, None, id) for value, id in _walk(rows, chosen, numbers, far, sort, ("number", number, run), most))
    if near:
        return  # only numbers can fulfil that
    if run is None or text is not None or number is not None:
        after = run if text is not None else None
        texts = own.filter(text__isnull=False, number__isnull=True)
        yield lambda most: ((None, value, id) for value, id in _walk(rows, chosen, texts, far, sort, ("text", text, after), most))
    if not chosen.needs(sort.kind, sort.path):
        after = run if number is None and text is None else None
        yield lambda most: ((None, None, id) for id in _without(rows, chosen, slots, sort, after, most))


def _walk(rows, chosen: Filter, own, far: Callable[[], Q], sort: Sort, place: tuple, most: int) -> Iterator[tuple]:
    """(value, id) of the index's rows ``own`` that fit, in order, ``most`` of them. First each is looked at, then all that fit ``far``
    are asked for: in strides still, since whether a run is deleted or archived stands with the run."""
    column, value, run = place
    sign, op = ("-", "lt") if sort.descending else ("", "gt")
    one_by_one = list(_strides(chosen)) if chosen.tree is not None else []
    stride = most + 50
    while True:
        part = own
        if run is not None:
            # The first condition alone is a bound of the index; the second is what is meant.
            part = part.filter(**{f"{column}__{op}e": value}).exclude(Q(**{column: value}) & ~Q(**{f"run_id__{op}": run}))
        each = bool(one_by_one)
        wanted = one_by_one.pop(0) if each else stride
        part = part if each else part.filter(far())
        ids = list(part.order_by(f"{sign}{column}", f"{sign}run_id").values_list(column, "run_id")[:wanted])
        shown = rows.filter(id__in=[id for _, id in ids])
        fits = set((shown.filter(chosen.on_runs(one_by_one=True)) if each else shown).values_list("id", flat=True))
        for entry in ids:
            if entry[1] in fits:
                yield entry
                most -= 1
                if not most:
                    return
        if len(ids) < wanted:
            return
        value, run = ids[-1]
        stride = stride if each else min(stride * 10, 100_000)


def _without(rows, chosen: Filter, slots: list[int], sort: Sort, run: str | None, most: int) -> Iterator[str]:
    found = rows.filter(~filters.is_there("id", slots)).filter(chosen.on_runs())
    if run is not None:
        found = found.filter(**{f"id__{'lt' if sort.descending else 'gt'}": run})
    yield from found.order_by("-id" if sort.descending else "id").values_list("id", flat=True)[:most]
