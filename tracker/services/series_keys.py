"""Which metrics a question means: names as they are; globs and regular expressions as the names that match them in these runs."""

from __future__ import annotations

import fnmatch
import re
from collections import defaultdict
from collections.abc import Callable, Sequence

from tracker.domain.errors import Invalid
from tracker.domain.series_query import MOST_KEYS
from tracker.models import MetricSummary
from tracker.services import summaries
from tracker.store import reading

REGEX = "re:"
LONGEST_REGEX = 300
_GLOB = re.compile(r"[*?\[]")


def keys_of_runs(runs: Sequence[str], asked: Sequence[str]) -> list[str]:
    """The keys to read, in the order of ``asked``, the matches of a pattern sorted. A name that is there stands for itself.

    ``re:…`` is a regular expression that the name contains (RE2: its time is linear in the name's length). Raises Invalid.
    """
    if not any(is_pattern(key) for key in asked):
        return list(dict.fromkeys(asked))
    matchers = {key: _matcher(key) for key in asked if is_pattern(key)}
    there = _names(runs)
    found: dict[str, None] = {}
    for key in asked:
        if key in there or key not in matchers:
            found[key] = None
            continue
        matches = matchers[key]
        found.update(dict.fromkeys(sorted(name for name in there if matches(name))))
    if len(found) > MOST_KEYS:
        raise Invalid(f"{len(found)} keys match; at most {MOST_KEYS} are answered: use a narrower pattern.", keys="too many")
    return list(found)


def is_pattern(key: str) -> bool:
    return key.startswith(REGEX) or _GLOB.search(key) is not None


def _names(runs: Sequence[str]) -> set[str]:
    by_run: dict[str, set[str]] = defaultdict(set)
    for run, key in MetricSummary.objects.filter(run_id__in=list(runs)).values_list("run_id", "key").distinct():
        by_run[run].add(key)
    there: set[str] = set()
    for run, names in by_run.items():  # a run of very many keys has rows of the first only
        there |= set(reading.keys_of(run)) if len(names) >= summaries.MOST_KEYS else names
    return there


def _matcher(key: str) -> Callable[[str], object]:
    if not key.startswith(REGEX):
        return re.compile(fnmatch.translate(key)).match
    text = key[len(REGEX) :]
    if len(text) > LONGEST_REGEX:
        raise Invalid(f"A regular expression has at most {LONGEST_REGEX} characters.", keys="malformed")
    try:
        import re2
    except ImportError:  # no wheel for this system; Python's own takes for ever on some patterns
        raise Invalid(
            "Regular expressions over keys need google-re2 on the server: use a glob, such as val/*.", keys="re2 missing"
        ) from None
    options = re2.Options()
    options.max_mem = 2**20
    options.log_errors = False
    try:
        return re2.compile(text, options).search
    except re2.error as problem:
        raise Invalid(f"keys has a regular expression that is none: {_words(problem)}.", keys="malformed") from None


def _words(problem: Exception) -> str:
    told = problem.args[0] if problem.args else problem
    return (told.decode(errors="replace") if isinstance(told, bytes) else str(told))[:200]
