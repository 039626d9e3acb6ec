"""Metrics out of what a program prints: `loss=(?P<loss>[0-9.eE+-]+)` and the like, for scripts that have no line of ours.

Named groups become keys. `step` is the step; a pattern that has nothing else sets it for the lines that follow. `key` and `value`
together name one metric and its value. Without a step, a pattern counts its matches. "auto" stands for built-in patterns.

A line is looked at when it is whole, and at most its first 4,096 characters; a progress bar's states are lines too. A pattern that takes
exponential time takes it from training: it is its author's.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable
from typing import Any

AUTO = "auto"
MAX_LINE = 4096
MAX_PENDING = 64 << 10
_NUMBER = r"[+-]?(?:\d[\d,]*\.?\d*(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?|nan|NaN|inf|Infinity)(?![\w/]|\.\d)"
_WORDS = (
    r"loss|acc|accuracy|error|err|lr|learning[ _-]rate|grad[ _-]norm|ppl|perplexity|auc|auroc|f1|precision|recall|iou|miou|map|mse|mae|"
    r"rmse|psnr|ssim|bleu|rouge|wer|cer|reward|return|score|dice|kl|elbo|nll|bpc|r2"
)
# One word of what is measured, perhaps with words like train_ or -top1 about it, then a number.
_PAIRS = re.compile(
    rf"(?<![\w./-])['\"]?(?P<key>(?:[A-Za-z][A-Za-z0-9]*[/_. -]){{0,2}}(?:{_WORDS})(?:[_@/-][A-Za-z0-9]+|\d+)?)['\"]?"
    rf"(?:\s*[:=]\s*|\s+)(?P<value>{_NUMBER})",
    re.IGNORECASE,
)
_STEPS = re.compile(r"(?<![\w])(?:global[ _-]?step|step|iter|iteration|it|batch)['\"]?\s*[:=#]?\s*[\[(]?\s*(\d+)", re.IGNORECASE)
_EPOCHS = re.compile(r"(?<![\w])(?:epoch|ep)['\"]?\s*[:=#]?\s*[\[(]?\s*(\d+)(?![\d.]*\.\d)", re.IGNORECASE)
_LINE_END = re.compile(r"[\r\n]")
# Colours and cursor moves of terminals.
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")

Log = Callable[[dict[str, Any], int], Any]


def compiled(patterns: Iterable[str]) -> list[re.Pattern[str] | None]:
    """The patterns; None stands for "auto". re.error or ValueError with the reason for one that cannot work."""
    found: list[re.Pattern[str] | None] = []
    for text in patterns:
        if text.strip() == AUTO:
            found.append(None)
            continue
        pattern = re.compile(text)
        names = set(pattern.groupindex)
        if not names:
            raise ValueError(f"{text!r} has no named group; write loss=(?P<loss>[0-9.eE+-]+)")
        if "key" in names and "value" not in names:
            raise ValueError(f"{text!r} has (?P<key>…) without (?P<value>…)")
        found.append(pattern)
    return found


def number(text: str | None) -> float | int | None:
    if text is None:
        return None
    text = text.strip().replace(",", "")
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        return None


class Matcher:
    """Takes console text as it comes, by stream; logs what the patterns find."""

    def __init__(self, patterns: Iterable[re.Pattern[str] | None], log: Log) -> None:
        self.patterns, self.log = list(patterns), log
        self.pending: dict[str, str] = {}
        self.step: int | None = None
        self.counts: dict[Any, int] = {}
        self.before: dict[int, Any] = {}
        self.lock = threading.RLock()  # two streams may be heard by two threads

    def feed(self, stream: str, text: str) -> None:
        with self.lock:
            self._feed(stream, text)

    def _feed(self, stream: str, text: str) -> None:
        text = self.pending.get(stream, "") + text
        at = 0
        for end in _LINE_END.finditer(text):
            # "\r\n" is one end; a bar's "\r" comes before its next state.
            self._line(text[at : end.start()], end.group() == "\r" and text[end.end() : end.end() + 1] != "\n")
            at = end.end()
        self.pending[stream] = text[at:][:MAX_PENDING]

    def finish(self) -> None:
        """What was printed without a line end."""
        with self.lock:
            for stream, text in list(self.pending.items()):
                self.pending[stream] = ""
                self._line(text, False)

    def _line(self, line: str, redrawn: bool) -> None:
        line = line[:MAX_LINE]
        if not line.strip():
            return
        if "\x1b" in line:
            line = _ESCAPES.sub("", line)
        for place, pattern in enumerate(self.patterns):
            if pattern is None:
                self._auto(place, line, redrawn)
                continue
            for match in pattern.finditer(line):
                self._match(place, match.groupdict(), redrawn)

    def _match(self, place: int, groups: dict[str, str | None], redrawn: bool) -> None:
        step = number(groups.pop("step", None))
        if isinstance(step, float):
            step = int(step) if step.is_integer() else None
        values: dict[str, Any] = {}
        if "value" in groups:
            key, value = groups.pop("key", None), number(groups.pop("value"))
            if value is not None:
                values[(key or "value").strip()] = value
        values |= {key: found for key, text in groups.items() if (found := number(text)) is not None}
        if step is not None and not values:
            self.step = step
            return
        self._log(place, values, step, redrawn)

    def _auto(self, place: int, line: str, redrawn: bool) -> None:
        values = {}
        for match in _PAIRS.finditer(line):
            value = number(match["value"])
            if value is not None:
                values[match["key"].replace(" ", "_").lower()] = value
        if not values:
            return
        found = _STEPS.search(line) or _EPOCHS.search(line)
        self._log(place, values, int(found[1]) if found else None, redrawn)

    def _log(self, place: int, values: dict[str, Any], step: int | None, redrawn: bool) -> None:
        if not values:
            return
        if step is None:
            step = self.step
        # A bar drawn again says nothing new.
        said = (step, values)
        if redrawn and self.before.get(place) == said:
            return
        self.before[place] = said
        if step is None:
            name = (place, *sorted(values))
            step = self.counts.get(name, 0)
            self.counts[name] = step + 1
        self.log(values, step)


def matcher(patterns: Iterable[str], log: Log, complain: Callable[[str], Any]) -> Matcher | None:
    """For a run: what cannot work is said and left out."""
    found: list[re.Pattern[str] | None] = []
    for text in patterns:
        try:
            found += compiled([text])
        except (re.error, ValueError, RecursionError) as error:
            complain(f"the pattern {text!r} is left out: {error}")
    return Matcher(found, log) if found else None
