"""Stack dumps of many ranks, told in a few lines: equal stacks together, each by the call that it stands in.

The text is what Python's faulthandler writes: threads, newest first, each with its innermost frame first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from tracker.domain.spans import spans

_THREAD = re.compile(r"^(?:Current thread|Thread) 0x[0-9a-fA-F]+(?: \[([^\]]*)\])?.*\(most recent call first\):")
_FRAME = re.compile(r'^\s+File "(.*)", line (\d+|\?\?\?) in (.*)$')
_LIBRARY = re.compile(r"/(?:site-packages|dist-packages)/|/lib(?:64)?/python3[^/]*/|^<")

_WRAPPERS = frozenset("wrapper inner wrapped _fn decorate_context __call__ _call_impl _wrapped_call_impl __exit__ __enter__".split())  # noqa: SIM905
"""Names that say nothing of what was called."""


@dataclass(frozen=True)
class Frame:
    file: str
    line: str
    function: str

    @property
    def name(self) -> str:
        return self.file.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class Group:
    """Ranks whose main threads stand at the same place."""

    ranks: tuple[int, ...]
    where: str
    frames: tuple[Frame, ...]
    who: str


def threads(text: str) -> list[tuple[str, list[Frame]]]:
    """(heading, frames innermost first) of each thread, as written; the main thread is the last one."""
    found: list[tuple[str, list[Frame]]] = []
    for line in text.splitlines():
        if _THREAD.match(line):
            found.append((line.rstrip(":"), []))
        elif found and (match := _FRAME.match(line)):
            found[-1][1].append(Frame(match[1], match[2], match[3]))
    return found


def main(text: str) -> tuple[Frame, ...]:
    known = threads(text)
    return tuple(known[-1][1]) if known else ()


def place(frames: tuple[Frame, ...]) -> str:
    """``all_reduce in train.py:88``: the innermost call that the program itself made; without one, where it stands."""
    for at, frame in enumerate(frames):
        if not _LIBRARY.search(frame.file):
            if at == 0:
                return f"{frame.function} at {frame.name}:{frame.line}"
            called = next((inner.function for inner in reversed(frames[:at]) if inner.function not in _WRAPPERS), frames[at - 1].function)
            return f"{called} in {frame.name}:{frame.line}"
    return f"{frames[0].function} at {frames[0].name}:{frames[0].line}" if frames else "no Python frame"


def grouped(dumps: Iterable[tuple[int, str]]) -> list[Group]:
    """``dumps``: (rank, text). The smallest group first: in a hang it is the odd one that says why."""
    by_stack: dict[tuple[Frame, ...], list[int]] = {}
    for rank, text in dumps:
        by_stack.setdefault(main(text), []).append(rank)
    groups = []
    for frames, ranks in by_stack.items():
        who = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {spans(ranks)}"
        groups.append(Group(tuple(sorted(ranks)), place(frames), frames, who))
    return sorted(groups, key=lambda group: (len(group.ranks), group.ranks))


def sentence(groups: list[Group]) -> str:
    """``ranks 0-62: all_reduce in train.py:88; rank 63: load at dataloader.py:12``."""
    return "; ".join(f"{group.who}: {group.where}" for group in sorted(groups, key=lambda group: group.ranks))
