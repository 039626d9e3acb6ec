"""Which points are a run's history, once attempts went back to earlier steps and runs were forked from others.

One rule by attempt number and step, none by time of arrival. Of a run's attempts, a point at step s counts as long as no later attempt
was rewound to a step below s; what does not count is the *old branch* that this attempt left, and stays readable. A fork inherits of its
parent what counts there up to the fork's step, from the attempts that the parent had begun when the fork began: what the parent does
later is not the fork's history. Measurements of the machine (``system/``) are neither rewound nor inherited.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

LO, HI = -(2**63), 2**63 - 1
MOST_ANCESTORS = 32
INHERITED = 0
"""The attempt number that inherited points are told under."""


@dataclass(frozen=True, slots=True)
class Start:
    """An attempt as the rule sees it."""

    attempt: int
    rewound_to: int | None = None
    started_us: int = 0
    last_step: int | None = None


@dataclass(frozen=True, slots=True)
class Fork:
    """Whose history goes on, and up to which step (inclusive)."""

    run: str
    step: int


@dataclass(frozen=True, slots=True)
class Span:
    """The steps lo … hi (inclusive) of one attempt of ``run``. Spans come in the order in which their points win."""

    run: str
    attempt: int
    lo: int
    hi: int
    branch: int | None = None
    """None: the run's history. A number: the old branch that this attempt left."""
    generation: int = 0
    """0: the run's own points; 1: its parent's; 2: the parent's parent's."""


def is_measured(key: str) -> bool:
    """Whether a key counts samples of the machine and not steps of the training."""
    return key.startswith("system/")


def plan(run: str, starts: Mapping[str, Sequence[Start]], forks: Sequence[Fork] = ()) -> list[Span]:
    """The spans of a run and its old branches. ``forks``: its parent, the parent's parent, …, as far as known and visible."""
    own = sorted(starts.get(run, ()), key=lambda start: start.attempt)
    rewinds = _rewinds(own)
    spans: list[Span] = []
    cap, child = HI, own
    for generation, fork in enumerate(forks[:MOST_ANCESTORS], 1):
        cap = min(cap, fork.step)
        child = _begun(starts.get(fork.run, ()), child, fork.step)
        inherited = []
        for start in child:
            limit = min([cap, *(step for number, step in _rewinds(child) if number > start.attempt)])
            inherited += _cut(fork.run, start.attempt, generation, limit, rewinds)
        spans = inherited + spans
        cap = min([cap, *(step for _, step in _rewinds(child))])
    for start in own:
        spans += _cut(run, start.attempt, 0, HI, [each for each in rewinds if each[0] > start.attempt])
    return spans


def _rewinds(starts: Iterable[Start]) -> list[tuple[int, int]]:
    return [(start.attempt, start.rewound_to) for start in starts if start.rewound_to is not None]


def _begun(parent: Sequence[Start], child: Sequence[Start], step: int) -> list[Start]:
    """The parent's attempts that had begun when the child did; as many more as it takes to reach the step, should clocks differ."""
    parent = sorted(parent, key=lambda start: start.attempt)
    moment = min((start.started_us for start in child), default=HI)
    count = sum(start.started_us <= moment for start in parent)
    while count < len(parent) and not any(s.last_step is not None and s.last_step >= step for s in parent[:count]):
        count += 1
    return parent[:count]


def _cut(run: str, attempt: int, generation: int, limit: int, rewinds: list[tuple[int, int]]) -> list[Span]:
    """What lies up to ``limit``, parted at the rewinds that came later: each takes what lies above its step and nobody took before."""
    spans = []
    for number, step in rewinds:
        if step < limit:
            spans.append(Span(run, attempt, step + 1, limit, number, generation))
            limit = step
    return [*spans, Span(run, attempt, LO, limit, None, generation)]


def mark(spans: Sequence[Span]) -> int:
    """A number that differs when the spans do: what was drawn before is then no longer the run's history."""
    text = ";".join(f"{s.run},{s.attempt},{s.lo},{s.hi},{s.branch},{s.generation}" for s in spans)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest(), "little")
