"""`encore status`: which runs lie on this machine, what of them the server does not have, and why."""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from .. import _liveness, _place, _settings, _spool
from .._reader import read_json
from .._sender import at_work, keeping
from .._sender.fleet import SPOOL_SILENT_SECONDS
from .._sender.process import run_folders

HELP = """Which runs lie on this machine, what of them the server does not have, and why. How long a journal is kept: delivered segments go
at once, but the last of each writer; a run's folder goes a day after the server had all of it (by the next sender or `encore sync` that
passes by); the copy on a node goes an hour after all of it lay in the spool. What the server has not confirmed never goes by itself.
--clean does not wait: it removes what the server has confirmed whole, and says of everything else why it is kept."""


def register(commands: Any) -> None:
    parser = commands.add_parser("status", help="what is not sent yet, and how to clean up", description=HELP)
    parser.add_argument("folder", nargs="?", help="a journal root, a spool or a run's folder (default: all of this user on this machine)")
    parser.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
    parser.add_argument("--clean", action="store_true", help="remove what the server has confirmed; say what is kept and why")
    parser.set_defaults(perform=perform)


def perform(options: argparse.Namespace) -> int:
    roots = [Path(options.folder).absolute()] if options.folder else _place.roots(_settings.read())
    folders = [folder for root in roots for folder in ([root] if any(root.glob("*/writer.json")) else run_folders(root))]
    if options.clean:
        return clean(folders, options.json)
    rows = [row(folder) for folder in folders]
    if options.json:
        print(json.dumps({"results": rows}, ensure_ascii=False))
        return 0
    if not rows:
        print(f"no journal in {', '.join(map(str, roots))}")
        return 0
    for each in rows:
        show(each)
    waiting = sum(bool(each["unsent"] or each["unsent_files"]) and not each["sender"] for each in rows)
    if waiting:
        print(f"{waiting} of {len(rows)} runs wait for somebody to send them: encore sync", file=sys.stderr)
    elif any(each["confirmed"] for each in rows):
        print("what is with the server goes a day later, or now: encore status --clean", file=sys.stderr)
    return 0


def show(each: dict[str, Any]) -> None:
    left = f"{each['unsent']} records, {each['unsent_files']} files ({size(each['unsent_bytes'])}) unsent" if each["unsent"] else "all sent"
    if not each["unsent"] and each["unsent_files"]:
        left = f"{each['unsent_files']} files ({size(each['unsent_bytes'])}) unsent"
    since = f", {ago(each['age_seconds'])} old" if each["age_seconds"] is not None and (each["unsent"] or each["unsent_files"]) else ""
    print(f"{each['run']}  {each['project'] or '?':<20.20} {each['writers']} writers, {each['alive']} alive  {left}{since}  {each['why']}")
    if each["error"]:
        print(f"  {each['error']}")
    for line in each["refused"]:
        print(f"  refused {line.get('first')} to {line.get('last')}: {line.get('message')}")


def row(folder: Path) -> dict[str, Any]:
    boxes = keeping.look(folder)
    refused = []
    for box in boxes:
        try:
            refused += [json.loads(line) for line in (box.folder / "refused.jsonl").read_text(encoding="utf-8").splitlines()]
        except (OSError, ValueError):
            continue
    state = read_json(folder / _spool.STATE) or {}
    status = read_json(folder / "sender.json") or {}
    told = read_json(folder / keeping.DELIVERED) or {}
    sent = set(told.get("blobs") or ())
    with contextlib.suppress(OSError):
        sent |= set((folder / "blobs.sent").read_text().split())
    unsent = sum(max(0, box.eyes.next - max(box.next, int((told.get("writers") or {}).get(box.id) or 0))) for box in boxes)
    files = {path.name: path for box in boxes for path in keeping._blobs(box.folder) if path.name not in sent}
    sender = at_work(folder)
    alive = sum(_liveness.alive(box.folder, box.about) is True for box in boxes if box.kind == "trainer" and not box.ended)
    left = bool(unsent or files)
    return {
        "run": folder.name,
        "project": boxes[0].about["run"].get("project") if boxes else None,
        "name": boxes[0].about["run"].get("name") if boxes else None,
        "folder": str(folder),
        "writers": len(boxes),
        "alive": alive,
        "unsent": unsent,
        "unsent_files": len(files),
        "unsent_bytes": sum(_bytes(box) for box in boxes if unsent) + sum(_size(path) for path in files.values()),
        "age_seconds": _age(folder, boxes),
        "sender": sender,
        "spool": state.get("spool"),
        "drained": bool(boxes) and set(state.get("whole") or ()) >= {box.id for box in boxes},
        "why": _why(folder, boxes, left, sender, state, status),
        "error": status.get("error") if sender or left else None,
        **({"error": state["error"]} if state.get("error") else {}),
        "refused": refused,
        "confirmed": not keeping.unconfirmed(folder, boxes),
    }


def _why(folder: Path, boxes: list[Any], left: bool, sender: bool, state: dict[str, Any], status: dict[str, Any]) -> str:
    """In a few words: who is on it, or why nobody is."""
    marks = _spool.marks(folder)
    if marks:
        newest = time.time() - max(float(mark.get("time_us") or 0) for mark in marks) / 1e6
        live = "nodes are draining into it" if newest < SPOOL_SILENT_SECONDS else f"last drained {ago(newest)} ago"
        answered = (read_json(folder / _spool.ANSWER) or {}).get("time_us")
        return f"a spool; {live}" + (f"; a word to the nodes {ago(time.time() - answered / 1e6)} ago" if answered else "")
    if sender:
        return "a sender is at work" + (", in trouble" if status.get("error") else "")
    if not left:
        return "nothing to do"
    if state.get("spool"):
        return (
            f"the spool {state['spool']} has it; send it from there" if state.get("whole") else f"not all is in the spool {state['spool']}"
        )
    if _place.is_copy(folder):
        return "a copy of a folder; no sender at work"
    if any(box.about.get("mode") == "offline" for box in boxes):
        return "offline by choice; no sender at work"
    if not any(box.about.get("url") for box in boxes):
        return "no server was known; no sender at work"
    if (read_json(folder / "sender.json") or {}).get("pid") and not status.get("done"):
        return "its sender died; the next run of this machine, or encore sync, takes it up"
    return "no sender at work"


def _bytes(box: Any) -> int:
    """Of the journal that holds what is unsent, to its last record."""
    segment, total = box.eyes._segment, 0
    for path in box.eyes.segments():
        total += box.eyes._position if segment is not None and path == segment.path else _size(path)
    return total


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _age(folder: Path, boxes: list[Any]) -> float | None:
    """Since the first of these writers began."""
    started = [int(box.about["started_us"]) for box in boxes if box.about.get("started_us")]
    return round(max(0.0, time.time() - min(started) / 1e6), 1) if started else None


def size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" or count >= 10 else f"{count:.1f} {unit}"
        count /= 1024
    return ""


def ago(seconds: float) -> str:
    for unit, each in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * each:
            return f"{seconds / each:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def clean(folders: list[Path], as_json: bool) -> int:
    removed: list[dict[str, Any]] = []
    kept: list[dict[str, Any]] = []
    for folder in folders:
        reasons = keeping.unconfirmed(folder)
        if reasons:
            kept.append({"run": folder.name, "folder": str(folder), "why": reasons})
            continue
        shutil.rmtree(folder, ignore_errors=True)
        if folder.exists():
            kept.append({"run": folder.name, "folder": str(folder), "why": ["it cannot be removed: no permission"]})
        else:
            removed.append({"run": folder.name, "folder": str(folder)})
    if as_json:
        print(json.dumps({"removed": removed, "kept": kept}, ensure_ascii=False))
        return 0
    for each in kept:
        print(f"kept     {each['folder']}: {'; '.join(each['why'])}")
    for each in removed:
        print(f"removed  {each['folder']}")
    print(f"{len(removed)} runs removed, {len(kept)} kept")
    return 0
