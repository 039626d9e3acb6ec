"""The wait at the end: until the sender has brought everything over, at most as long as was allowed, with a line that says how far."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import Any

from . import _sender
from ._journal import Writer
from ._reader import read_json

POLL_SECONDS, LONGEST_POLL_SECONDS = 0.05, 0.5
SAY_AFTER_SECONDS = 1.0
SAY_EVERY_SECONDS = 1.0
SAY_IN_A_FILE_EVERY_SECONDS = 10.0
UNREACHABLE_SECONDS = 10.0  # nobody waits a minute for a server that is down: what is left goes over later anyway
STILL_SECONDS = 5.0  # a sender that has said nothing new for so long, with records unsent, hangs in a call
RESTART_SECONDS = 3.0
GOES_ON = "the sender goes on by itself. If this machine goes away: encore sync"


def wait_until_sent(run: Any, writer: Writer) -> None:
    """Never raises, but KeyboardInterrupt, which ends the waiting as one would think."""
    with contextlib.suppress(Exception):
        _sender.start(writer.folder.parent, run.settings)  # unless one is at work: it goes on where a killed one stood
    try:
        sealed, status, error = _wait(run, writer)
    except KeyboardInterrupt:
        _say(f"no longer waiting; {GOES_ON} {writer.folder.parent}")
        raise
    if run.rank != 0:
        return
    if sealed and status.get("done"):
        _say(f"run {status.get('url') or run.url} is complete")
    elif sealed and not status.get("blobs"):
        _say(f"run {status.get('url') or run.url}: rank {run.rank} is complete")
    elif run.url is not None:
        why = f" ({error})" if error else ""
        _say(f"{_left(status)}, not yet sent{why}; {GOES_ON} {writer.folder.parent}")


def _wait(run: Any, writer: Writer) -> tuple[bool, dict[str, Any], str | None]:
    """(whether the server has this writer's last word, the sender's status, what is in the way)."""
    folder, run_folder = writer.folder, writer.folder.parent
    began = time.monotonic()
    deadline = began + run.settings.finish_seconds
    next_look, next_word, unreachable_since, shown = began + RESTART_SECONDS, began + SAY_AFTER_SECONDS, None, 0
    before, moved = None, began
    error: str | None = None
    try:
        while True:
            now = time.monotonic()
            sealed = bool((read_json(folder / "ack.json") or {}).get("sealed"))
            status = read_json(run_folder / _sender.STATUS) or {}  # after it: the sender says that it copies before it seals
            others = [name for name in status.get("alive", []) if name != writer.id]
            if sealed and (status.get("done") or (others and not status.get("blobs") and not status.get("capturing"))):
                break
            error = status.get("error")
            if status != before:
                before, moved = status, now
            if status and not error and not sealed and now - moved > STILL_SECONDS:
                error = "the server takes the connection and does not answer"
            unreachable_since = (unreachable_since or moved) if error else None
            if run.url is None or now >= deadline or (status.get("done") and status.get("refused")):
                break
            if unreachable_since is not None and now - max(unreachable_since, began) > min(
                UNREACHABLE_SECONDS, run.settings.finish_seconds
            ):
                break
            if now >= next_look:
                next_look = now + RESTART_SECONDS
                _sender.start(run_folder, run.settings)
            if now >= next_word and run.launch.local_rank == 0:
                next_word = now + (SAY_EVERY_SECONDS if _terminal() else SAY_IN_A_FILE_EVERY_SECONDS)
                sentence = f"sending: {_left(status)}{f' ({error})' if error else ''}, {deadline - now:.0f} s left"
                shown = _progress(sentence, shown)
            time.sleep(pause(now - began))
    finally:
        if shown:
            _say("", end="\n")
    return sealed, status, error


def pause(waited: float) -> float:
    """Until the next look: a twentieth of what was waited. Dozens of ranks that look often would take the time of whom they wait for."""
    return min(LONGEST_POLL_SECONDS, max(POLL_SECONDS, waited / 20))


def _progress(sentence: str, shown: int) -> int:
    """On a terminal one line that changes, wiped to its old length; in a file a line now and then. Returns what there is to wipe."""
    if not _terminal():
        _say(sentence)
        return 0
    _say(sentence.ljust(shown), end="\r")
    return len(sentence)


def _left(status: dict[str, Any]) -> str:
    unsent, blobs = status.get("unsent"), status.get("blobs")
    if unsent is None:
        return "starting"
    return f"{unsent} records left" + (f", {blobs} files" if blobs else "")


def _terminal() -> bool:
    with contextlib.suppress(Exception):
        return sys.stderr.isatty()
    return False


def _say(sentence: str, end: str = "\n") -> None:
    with contextlib.suppress(Exception):
        print(f"encore: {sentence}" if sentence else "", end=end, file=sys.stderr, flush=True)
