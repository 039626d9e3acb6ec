"""How long a journal is kept. What the server has not confirmed never goes by itself.

Delivered segments go at once, but the last of each writer; a run's folder goes a day after the server had all of it; on a node, what lies
whole in the spool goes after an hour. `encore status --clean` does not wait for the day.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from .. import _liveness, _place, _process, _spool
from .._journal import write_json
from .._reader import read_json
from . import at_work, limits
from .outbox import Outbox

DRAINING_SECONDS = 3600.0  # a node that drained so lately may do so again; clocks of nodes differ by less
DELIVERED = "delivered.json"  # left by `encore sync` when it has brought all that was there: writer -> records, blobs


def note_delivered(sender: Any) -> None:
    """What the server has of this folder. Written again only when there is more of it, so that its age counts from then."""
    writers = {box.id: box.next for box in sender.outboxes.values()}
    sent = sender.blobs.done if sender.blobs is not None else set()  # a file may have come since we looked
    blobs = sorted({path.name for box in sender.outboxes.values() for path in _blobs(box.folder)} & sent)
    known = read_json(sender.folder / DELIVERED) or {}
    if known.get("writers") == writers and known.get("blobs") == blobs:
        return
    try:
        url = sender.transport.url if sender.transport else None
        write_json(sender.folder / DELIVERED, {"url": url, "time_us": time.time_ns() // 1000, "writers": writers, "blobs": blobs})
    except OSError:
        return


def _blobs(folder: Path) -> list[Path]:
    try:
        return [path for path in (folder / "blobs").iterdir() if len(path.name) == 64]
    except OSError:
        return []


def unconfirmed(folder: Path, boxes: list[Outbox] | None = None) -> list[str]:
    """Why this run's folder must be kept: a sentence for each reason; empty if the server has all of it and nobody writes there."""
    reasons = []
    if boxes is None:
        boxes = look(folder)
    told = read_json(folder / DELIVERED) or {}
    try:
        sent = set((folder / "blobs.sent").read_text().split())
    except OSError:
        sent = set()
    sent |= set(told.get("blobs") or ())
    if at_work(folder):
        reasons.append("a sender is at work on it")
    reasons += _perhaps_alive(folder, [box for box in boxes if not box.ended])
    left = sum(max(0, box.eyes.next - max(box.next, int((told.get("writers") or {}).get(box.id) or 0))) for box in boxes)
    files = len({path.name for box in boxes for path in _blobs(box.folder)} - sent)
    if left or files:
        reasons.append(f"{left} records and {files} files are not with the server")
    if not boxes or len(boxes) < len(list(folder.glob("*/writer.json"))):
        reasons.append("a writer.json cannot be read")
    if any((box.folder / "refused.jsonl").exists() for box in boxes):
        reasons.append("the server refused some of it, which is nowhere else")
    return reasons


def _perhaps_alive(folder: Path, boxes: list[Outbox]) -> list[str]:
    """Of writers that did not say their last word."""
    if any(_liveness.alive(box.folder, box.about) is True for box in boxes):
        return ["its program is running"]
    marks = _spool.marks(folder)
    if boxes and marks:
        newest = max(float(mark.get("time_us") or 0) / 1e6 for mark in marks)
        return ["a node drains into it"] if time.time() - newest < DRAINING_SECONDS else []
    hosts = {str(box.about.get("host")) for box in boxes} - {_process.host()}
    if hosts and not _place.is_copy(folder):
        return [f"its program may still be running on {', '.join(sorted(hosts))}"]
    return []


def look(folder: Path) -> list[Outbox]:
    """All writers of a run's folder, each journal read to its end."""
    boxes = []
    for path in sorted(folder.glob("*/writer.json")):
        about = read_json(path)
        if about is not None and isinstance(about.get("run"), dict) and about.get("writer"):
            box = Outbox(path.parent, about)
            box.look()
            boxes.append(box)
    return boxes


def sweep(folder: Path, after: float = limits.KEEP_SEALED_SECONDS) -> bool:
    """Removes the folder if the server has had all of it for that long. True if it is gone."""
    if time.time() - confirmed_at(folder) < after or unconfirmed(folder):
        return False
    shutil.rmtree(folder, ignore_errors=True)
    return not folder.exists()


def confirmed_at(folder: Path) -> float:
    """When the last word of the server about this run was noted; far ahead if there is none for some writer."""
    told = read_json(folder / DELIVERED)
    if told is not None:
        return float(told.get("time_us") or 0) / 1e6
    try:
        return max(path.with_name("ack.json").stat().st_mtime for path in folder.glob("*/writer.json"))
    except (OSError, ValueError):
        return float("inf")
