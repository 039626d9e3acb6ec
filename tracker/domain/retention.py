"""A retention rule as somebody says it, checked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tracker.domain import filter as language
from tracker.domain.errors import Invalid

KEEP, TRASH, POINTS, LOGS, COLD = "keep", "trash", "points", "logs", "cold"
ACTIONS = (KEEP, TRASH, POINTS, LOGS, COLD)
MOST_DAYS = 36_500
MOST_KEYS = 100
MOST_RULES = 50
PIN = "keep"
"""A run with this tag is left alone by every rule."""


@dataclass(frozen=True)
class Rule:
    action: str
    after_days: int = 0
    keys: tuple[str, ...] = ()
    filter: str = ""
    archived: bool | None = None
    id: int | None = None

    @property
    def detail(self) -> str:
        """What makes two rules of one action do different things to a run."""
        return hashlib.blake2b(json.dumps(sorted(self.keys)).encode(), digest_size=16).hexdigest() if self.action == POINTS else ""

    def told(self) -> dict[str, Any]:
        return {**asdict(self), "keys": list(self.keys)}

    def sentence(self) -> str:
        which = "runs" if self.archived is None else "archived runs" if self.archived else "runs that are not archived"
        which += f" that match {self.filter}" if self.filter else ""
        when = f"{self.after_days} days after their end" if self.after_days != 1 else "a day after their end"
        what = {
            KEEP: "nothing is done here, whatever the instance's rules say",
            TRASH: f"{which} go to the trash {when}",
            POINTS: f"points of {', '.join(self.keys)} of {which} go {when}",
            LOGS: f"console lines of {which} go {when}",
            COLD: f"blocks of {which} move to the cold store {when}",
        }
        return what[self.action]


def rule_of(told: Any) -> Rule:
    """Raises Invalid with the field that is wrong, FilterMistake."""
    if not isinstance(told, Mapping):
        raise Invalid("A rule is a JSON object: action, after_days, keys, filter, archived.", rules="malformed")
    if unknown := sorted(str(name)[:50] for name in set(told) - {"action", "after_days", "keys", "filter", "archived", "id", "sentence"}):
        raise Invalid(f"A rule has no {unknown[0]!r}: it has action, after_days, keys, filter, archived.", rules="unknown field")
    action = told.get("action")
    if action not in ACTIONS:
        raise Invalid(f"action is one of {', '.join(ACTIONS)}.", action="unknown")
    days = told.get("after_days", None if action != KEEP else 0)
    if not isinstance(days, int) or isinstance(days, bool) or not 0 <= days <= MOST_DAYS:
        raise Invalid(f"after_days is a whole number of days since the run's end, up to {MOST_DAYS}.", after_days="malformed")
    keys = told.get("keys") or []
    if not isinstance(keys, list) or len(keys) > MOST_KEYS or not all(isinstance(k, str) and 0 < len(k) <= 500 for k in keys):
        raise Invalid(f"keys is a list of at most {MOST_KEYS} metric names or globs.", keys="malformed")
    if bool(keys) != (action == POINTS):
        raise Invalid("keys says which metrics lose their points: it belongs to the action points, and to no other.", keys="misplaced")
    text = told.get("filter") or ""
    if not isinstance(text, str) or "\0" in text:
        raise Invalid("filter is a text in the filter language.", filter="malformed")
    language.parse(text)
    archived = told.get("archived")
    if archived is not None and not isinstance(archived, bool):
        raise Invalid("archived is true, false or null (both).", archived="malformed")
    if action == TRASH and not text.strip() and not archived:
        raise Invalid("A rule that trashes runs says which: by filter, or archived: true.", filter="missing")
    return Rule(action, days, tuple(dict.fromkeys(keys)), text, archived)
