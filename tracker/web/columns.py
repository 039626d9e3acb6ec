"""Which columns a runs table has, and what stands in them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from django.db.models import Count, Q

from tracker.domain import keys
from tracker.models import RunValue
from tracker.web import format

DEFAULT_CONFIG = 4
DEFAULT_SUMMARY = 5
MOST_CHOICES = 400


def first_look(key: str, definitions=()) -> tuple:
    """Sorts keys by what one wants to see first: what is evidence, losses and accuracies by name, validation before training."""
    common = key.rpartition("/")[2] in ("loss", "accuracy", "acc")
    return (not keys.meaning(key, definitions).evidence, not common, not key.startswith(("val", "test", "eval")), key)


@dataclass
class Column:
    kind: str
    path: str
    first: bool = False
    numeric: bool = False
    decimal: bool = False

    @property
    def unit(self) -> str:
        return format.unit(self.path) if self.kind == "summary" else ""

    @property
    def name(self) -> str:
        return f"{self.kind}.{self.path}"


def choices(run_ids: list[str]) -> list[dict]:
    """Each config path and summary key of these runs: how many have it, how many different values it has."""
    return list(
        RunValue.objects.filter(run__in=run_ids, kind__in=["config", "summary"])
        .values("kind", "path")
        .annotate(runs=Count("run"), numbers=Count("number", distinct=True), texts=Count("text", distinct=True))
        .order_by("kind", "-runs", "path")[:MOST_CHOICES]
    )


def is_constant(row: dict) -> bool:
    return row["numbers"] + row["texts"] <= 1


def default(found: list[dict], told: Collection[tuple[str, str]] = ()) -> list[str]:
    """Config keys that differ between the runs, and the summary metrics that most of them have; system metrics are never the point.

    ``told``: (kind, path) of what another column says already, such as a config's own copy of the run's name.
    """
    config = [row for row in found if row["kind"] == "config" and ("config", row["path"]) not in told]
    differing = [row for row in config if not is_constant(row)] or config
    summary = [row for row in found if row["kind"] == "summary" and not row["path"].startswith("system/")]
    summary.sort(key=lambda row: (-row["runs"], *first_look(row["path"])))
    chosen = [f"config.{row['path']}" for row in differing[:DEFAULT_CONFIG]]
    return chosen + [f"summary.{row['path']}" for row in summary[:DEFAULT_SUMMARY]]


def told_already(runs: list) -> set[tuple[str, str]]:
    """Config paths whose value is in each run its name or its project: the table has columns for those."""
    told: set[tuple[str, str]] = set()
    for say in (lambda run: {run.name, run.name.removesuffix(" (rerun)")}, lambda run: {run.project.slug, run.project.name}):
        having = [run for run in runs if isinstance(run.config, dict)]
        paths = {path for run in having for path, value in run.config.items() if isinstance(value, str)}
        told |= {("config", path) for path in paths if all(run.config.get(path, None) in {*say(run), None} for run in having)}
    return told


def parse(names: list[str]) -> list[Column]:
    columns = []
    for name in names[:40]:
        kind, dot, path = name.partition(".")
        if dot and path and kind in ("config", "summary") and all(column.name != name for column in columns):
            columns.append(Column(kind, path))
    columns.sort(key=lambda column: column.kind)
    for at, column in enumerate(columns):
        column.first = at == 0 or columns[at - 1].kind != column.kind
    return columns


def fill(runs: list, columns: list[Column]) -> None:
    """Give each run ``cells``: (column, value) in the columns' order, by one query for all of them."""
    wanted = Q()
    for kind in {column.kind for column in columns}:
        wanted |= Q(kind=kind, path__in=[column.path for column in columns if column.kind == kind])
    values: dict[tuple, object] = {}
    if columns and runs:
        for row in RunValue.objects.filter(wanted, run__in=[run.id for run in runs]).values_list(
            "run_id", "kind", "path", "number", "text"
        ):
            run_id, kind, path, number, text = row
            values[run_id, kind, path] = leaf(number, text)
    for column in columns:
        found = [values.get((run.id, column.kind, column.path)) for run in runs]
        present = [value for value in found if value is not None]
        column.numeric = bool(present) and all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in present)
        column.decimal = column.numeric and any(isinstance(value, float) for value in present)
    for run in runs:
        run.cells = [(column, values.get((run.id, column.kind, column.path))) for column in columns]


def leaf(number: float | None, text: str | None):
    """The value of a RunValue: whole numbers lose their point, special ones come back from their text."""
    if number is not None and text in ("true", "false"):
        return text == "true"
    if number is not None:
        return int(number) if number.is_integer() and abs(number) < 2**53 else number
    if text in ("NaN", "Infinity", "-Infinity"):
        return float(text.replace("Infinity", "inf"))
    return text
