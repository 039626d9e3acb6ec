"""How a run ended, told from its state, its exit, and what the worker says of the job."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tracker.domain import sentences as say


@dataclass(frozen=True)
class End:
    """A run's end as stored; ``error``: ``{"type", "message"}``, ``dropped``: reason → count of what was lost."""

    state: str
    exit_code: int | None = None
    signal: int | None = None
    error: Mapping[str, Any] | None = None
    dropped: Mapping[str, int] = field(default_factory=dict)
    world_size: int | None = None


@dataclass(frozen=True)
class Ending:
    """``kind``: finished | failed (by its program) | cut (from outside) | unsure (ended well, but its last records are not here) |
    inconclusive | not_runnable. ``words`` go into sentences, ``reason`` into the document."""

    kind: str
    words: str = ""
    reason: Mapping[str, Any] = field(default_factory=dict)


_CUT = {
    "killed": "it was stopped",
    "preempted": "it was preempted",
    "crashed": "it ended without a word",
    "running": "it is still running",
    "queued": "it has not started",
}


def of_original(end: End) -> Ending:
    if end.state == "finished":
        return Ending("finished")
    if end.state == "failed":
        return Ending("failed", _failure_words(end.error, end.exit_code, end.signal))
    return Ending("cut", _CUT.get(end.state, end.state))


def of_rerun(end: End | None, failure: Mapping[str, Any] | None, evidence: Mapping[str, Any] | None) -> Ending:
    failure, evidence = dict(failure or {}), evidence or {}
    code, message = failure.get("code"), say.first_line(failure.get("message"))
    if code in say.NOT_RUNNABLE:
        return Ending("not_runnable", message, failure)
    if code == "cancelled":
        return Ending("inconclusive", "it was cancelled", failure)
    if code == "lost":
        return Ending("inconclusive", "the worker was lost" + (f": {message}" if message else ""), failure)
    if code == "limit":
        return Ending("cut", message or "it reached its limit", failure)
    if end is None:
        return Ending("inconclusive", message or "the rerun left no run to compare", failure or {"code": "no_rerun"})
    exit_code = evidence.get("exit_code") if evidence.get("exit_code") is not None else end.exit_code
    signal = evidence.get("signal") if evidence.get("signal") is not None else end.signal
    failed = code == "program_failed" or end.state == "failed" or exit_code not in (None, 0) or signal is not None
    if end.state in ("killed", "preempted") and code != "program_failed":
        return Ending("cut", _CUT[end.state], failure or {"code": end.state})
    if failed:
        told = end.error or exit_code not in (None, 0) or signal is not None
        words = _failure_words(end.error, exit_code, signal) if told else message
        if not end.error and (last := _last_exception(failure.get("output"))):
            words += f" ({last})"
        error = {"type": end.error.get("type"), "error": say.exception(end.error)} if end.error else {}
        return Ending(
            "failed", words or "an error", {"code": "program_failed", **failure, **error, "exit_code": exit_code, "signal": signal}
        )
    if code:
        return Ending("inconclusive", message or str(code), failure)
    if end.state == "finished":
        return Ending("finished")
    if exit_code == 0 and end.state in ("running", "queued", "crashed"):
        return Ending("unsure", "the program ended well, but its last points have not arrived", {"code": "incomplete"})
    if end.state in ("running", "queued"):
        return Ending("inconclusive", _CUT[end.state], {"code": "incomplete"})
    return Ending("cut", _CUT.get(end.state, end.state), {"code": end.state})


_EXCEPTION = re.compile(r"^(?:\[[\w ]+\]:? ?)?((?:\w+\.)*[A-Z]\w*(?:Error|Exception|Interrupt|Exit)\b.*)$", re.MULTILINE)


def _last_exception(output: Any) -> str:
    """The last line of a program's output that looks like the end of a traceback: all there is of one that died before init."""
    found = _EXCEPTION.findall(str(output or ""))
    return say.first_line(found[-1]) if found else ""


def same_failure(original: End, rerun: End, ending: Ending) -> bool:
    """The same exception type; without an exception, the same exit status and signal."""
    if original.error or rerun.error:
        return bool(original.error and rerun.error and original.error.get("type") == rerun.error.get("type"))
    return original.exit_code == ending.reason.get("exit_code") and original.signal == ending.reason.get("signal")


def _failure_words(error: Mapping[str, Any] | None, exit_code: int | None, signal: int | None) -> str:
    if error:
        return say.exception(error)
    if signal is not None:
        return say.died_of(signal)
    return f"exit status {exit_code}" if exit_code not in (None, 0) else "an error"
