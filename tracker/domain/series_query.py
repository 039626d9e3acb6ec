"""What a chart asks (docs/series.md): the fields, their bounds, and the one function that reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tracker.domain import asked
from tracker.domain.across import BANDS, LINES, Across
from tracker.domain.errors import Invalid
from tracker.domain.ids import is_id
from tracker.domain.smoothing import KINDS, MOST_SIGMA, MOST_WINDOW, Smoothing

MOST_RUNS = 1000
MOST_KEYS = 1000
MOST_SERIES = 5000
MOST_BUCKETS = 100_000
MOST_POINTS = 1_000_000
MOST_DRAWN = 1_000_000
"""Of one answer, all lines together: about 72 MB at the very most. What asks for more gets fewer buckets, and is told how many."""
BUCKETS = 1000
DRAWN = 200_000
"""Where the question names no buckets: BUCKETS each, fewer where that would be more than so many."""
LIMIT = 100
X = ("step", "relative", "wall")
ALONG = ("step", "relative", "wall", "metric")
REDUCED = ("reduce", "band")
COLUMNS = ("group", "job_type", "name", "user", "project", "state", "host", "tags")
ARRAYS = ("y", "min", "max", "mean", "first", "last", "count", "steps", "smooth", "lo", "hi", "spread", "members", "odd")
CURRENT, ALL = "current", "all"
WHICH = ("project", "filter", "state", "sort", "limit", "archived")
FIELDS = (
    "runs", "keys", *WHICH, "ranks", "x", "from", "to", "buckets", "points", "smooth", "group_by", "line", "band", "ddof", "since",
    "branch", "attempt", "floats", "arrays",
)  # fmt: skip


@dataclass(frozen=True)
class Which:
    """Runs by a question (as GET runs takes it) instead of by ids."""

    project: str | None
    filter: str
    state: str
    sort: str
    limit: int
    archived: bool | None


@dataclass(frozen=True)
class Groups:
    """``by``: a column, tags, config.… or summary.…; else ``named``: (name, ids) as told."""

    by: str | None
    named: tuple[tuple[str, tuple[str, ...]], ...]
    how: Across


@dataclass(frozen=True)
class Query:
    runs: tuple[str, ...]
    keys: tuple[str, ...]
    which: Which | None = None
    x: str = "step"
    x_key: str | None = None
    """With x "metric": which."""
    lo: float | None = None
    hi: float | None = None
    buckets: int | None = None
    points: int | None = None
    ranks: str | tuple[int, ...] = "reduce"
    since: str | None = None
    branch: str | int = CURRENT
    """CURRENT or ALL; a number: what this attempt logged itself."""
    smooth: Smoothing | None = None
    groups: Groups | None = None
    floats: str = "f8"
    arrays: frozenset[str] | None = None

    @property
    def comes_whole(self) -> bool:
        """Whether a line with news cannot be gone on with from its news alone."""
        return self.x_key is not None or self.groups is not None or (self.smooth is not None and self.smooth.looks_ahead)


def parse(query: Any) -> Query:
    """Raises Invalid with the field that is wrong and what is allowed."""
    asked.known(query, FIELDS)
    x, x_key = _x(query.get("x"))
    groups = _groups(query)
    runs, which = _runs(query, groups)
    lo, hi = asked.number(query, "from"), asked.number(query, "to")
    ranks = query.get("ranks", "reduce")
    if isinstance(ranks, list):
        ranks = asked.rank_list(ranks)
    if not (isinstance(ranks, tuple) or (isinstance(ranks, str) and (ranks in REDUCED or ranks == "all"))):
        raise Invalid('ranks is "reduce", "band", "all" or a list of ranks from 0.', ranks="unknown")
    since = query.get("since")
    if since is not None and not isinstance(since, str):
        raise Invalid("since is the cursor of an earlier answer.", since="malformed")
    found = Query(
        runs, asked.texts(query, "keys", MOST_KEYS), which, x, x_key, lo, hi,
        asked.whole(query, "buckets", 1, MOST_BUCKETS), asked.whole(query, "points", 0, MOST_POINTS),
        ranks, since, asked.branch(query), _smooth(query.get("smooth")), groups,
        asked.choice(query, "floats", ("f8", "f4"), "f8"), _arrays(query),
    )  # fmt: skip
    _require_fitting(found)
    return found


def _require_fitting(query: Query) -> None:
    """Fields that are right each by itself, and wrong together."""
    if query.groups is None:
        return
    if query.ranks in ("all", "band"):
        raise Invalid('With group_by, ranks is "reduce" or a list of ranks, which go together within each run.', ranks="with group_by")
    if query.branch == ALL:
        raise Invalid("With group_by the current history of each run is drawn: leave branch out.", branch="with group_by")
    if query.smooth is not None and query.x != "step":
        raise Invalid('With group_by, smooth goes with x "step" alone.', smooth="with group_by and x")


def _runs(query: asked.Query, groups: Groups | None) -> tuple[tuple[str, ...], Which | None]:
    by_question = [name for name in WHICH if query.get(name) is not None]
    if "runs" in query and query["runs"] is not None:
        if by_question:
            raise Invalid(
                f"runs are ids; {by_question[0]} asks for runs by a question: send one of the two.", runs="with " + by_question[0]
            )
        runs = asked.texts(query, "runs", MOST_RUNS)
        if wrong := [run for run in runs if not is_id(run)]:
            raise Invalid(f"runs has {wrong[0][:50]!r}, which is no id: 26 characters of a-z and 2-7.", runs="malformed")
        return runs, None
    if not by_question:
        if groups is not None and groups.named:
            return tuple(dict.fromkeys(run for _, ids in groups.named for run in ids)), None
        raise Invalid("Which runs? Send runs (ids), or project and filter.", runs="missing")
    return (), Which(
        asked.text(query, "project", 250) or None, asked.text(query, "filter") or "", asked.text(query, "state", 250) or "",
        asked.text(query, "sort", 600) or "", asked.whole(query, "limit", 1, MOST_RUNS, LIMIT) or LIMIT, asked.flag(query, "archived"),
    )  # fmt: skip


def _x(found: Any) -> tuple[str, str | None]:
    if found is None:
        return "step", None
    if isinstance(found, str) and found in X:
        return found, None
    if isinstance(found, dict) and set(found) == {"metric"}:
        key = found["metric"]
        if isinstance(key, str) and 0 < len(key) <= asked.KEY_LENGTH and "\0" not in key:
            return "metric", key
    raise Invalid(f'x is one of {", ".join(X)}, or {{"metric": key}}.', x="unknown")


def _smooth(found: Any) -> Smoothing | None:
    if found is None:
        return None
    kinds = "; ".join(f'{{"kind": "{kind}", "{name}": …}}' for kind, name in KINDS.items())
    if not isinstance(found, dict) or not isinstance(found.get("kind"), str) or found["kind"] not in KINDS:
        raise Invalid(f"smooth is one of {kinds}.", smooth="unknown")
    kind = found["kind"]
    name = KINDS[kind]
    asked.known(found, ("kind", name), "smooth")
    amount = asked.number(found, name)
    bounds = {
        "weight": (lambda a: 0 <= a < 1, "from 0 to less than 1"),
        "scale": (lambda a: a > 0, "above 0, in the unit of x"),
        "sigma": (lambda a: 0.1 <= a <= MOST_SIGMA, f"from 0.1 to {MOST_SIGMA:g}, in points"),
        "window": (lambda a: isinstance(a, int) and a % 2 and 1 <= a <= MOST_WINDOW, f"an odd whole number of points up to {MOST_WINDOW}"),
    }
    is_right, words = bounds[name]
    if amount is None or not is_right(amount):
        raise asked.wrong(f"smooth.{name}", "out of range", f"smooth.{name} is {words}.")
    return Smoothing(kind, float(amount))


def _groups(query: asked.Query) -> Groups | None:
    by = query.get("group_by")
    if by is None:
        for name in ("line", "band", "ddof"):
            if query.get(name) is not None:
                raise asked.wrong(name, "without group_by", f"{name} goes with group_by.")
        return None
    how = Across(
        asked.choice(query, "line", LINES, "mean"), asked.choice(query, "band", BANDS, "std"), asked.whole(query, "ddof", 0, 1, 0) or 0
    )
    if isinstance(by, str):
        prefix, _, rest = by.partition(".")
        if by in COLUMNS or (prefix in ("config", "summary") and rest and len(rest) <= asked.KEY_LENGTH and "\0" not in rest):
            return Groups(by, (), how)
    elif isinstance(by, list):
        if len(by) > MOST_RUNS:
            raise Invalid(f"group_by has more than {MOST_RUNS} groups.", group_by="too many")
        return Groups(None, tuple(_named(one) for one in by), how)
    raise Invalid(f'group_by is one of {", ".join(COLUMNS)}, config.…, summary.…, or a list of {{"name", "runs"}}.', group_by="unknown")


def _named(found: Any) -> tuple[str, tuple[str, ...]]:
    asked.known(found, ("name", "runs"), "A group of group_by")
    if not isinstance(found.get("name"), str) or len(found["name"]) > 250:
        raise Invalid("A group of group_by has a name (a text) and runs (ids).", group_by="malformed")
    runs = asked.texts(found, "runs", MOST_RUNS)
    if not all(is_id(run) for run in runs):
        raise Invalid("A group of group_by names a run that is no id: 26 characters of a-z and 2-7.", group_by="malformed")
    return found["name"], runs


def _arrays(query: asked.Query) -> frozenset[str] | None:
    if query.get("arrays") is None:
        return None
    names = asked.texts(query, "arrays", len(ARRAYS) + 1)
    if unknown := [name for name in names if name not in ARRAYS]:
        raise Invalid(f"arrays has {unknown[0][:50]!r}; there are {', '.join(ARRAYS)} (x always comes).", arrays="unknown")
    return frozenset(names)
