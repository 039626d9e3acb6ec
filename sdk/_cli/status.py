"""`encore status`: which runs lie on this machine, and what of them the server does not have."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from .. import _liveness, _settings
from .._reader import read_json
from .._sender import at_work
from .._sender.outbox import Outbox
from .._sender.process import run_folders


def register(commands: Any) -> None:
    parser = commands.add_parser("status", help="what is not sent yet", description=__doc__)
    parser.add_argument("folder", nargs="?", help="a journal root (default: this user's journals)")
    parser.add_argument("--json", action="store_true")
    parser.set_defaults(perform=perform)


def perform(options: argparse.Namespace) -> int:
    root = Path(options.folder).absolute() if options.folder else _settings.read().journal
    rows = [row(folder) for folder in run_folders(root)]
    if options.json:
        print(json.dumps({"results": rows}, ensure_ascii=False))
        return 0
    if not rows:
        print(f"no journal in {root}")
        return 0
    for each in rows:
        state = "sending" if each["sender"] else "no sender at work"
        left = f"{each['unsent']} records unsent" if each["unsent"] else "all sent"
        print(f"{each['run']}  {each['project']:<24.24} {each['writers']} writers, {each['alive']} alive  {left}  {state}")
        if each["error"]:
            print(f"  {each['error']}")
        for line in each["refused"]:
            print(f"  refused {line.get('first')} to {line.get('last')}: {line.get('message')}")
    if any(each["unsent"] and not each["sender"] for each in rows):
        print("send it with: encore sync", file=sys.stderr)
    return 0


def row(folder: Path) -> dict[str, Any]:
    boxes = []
    for path in sorted(folder.glob("*/writer.json")):
        about = read_json(path)
        if about is not None:
            box = Outbox(path.parent, about)
            box.look()
            boxes.append(box)
    refused = []
    for box in boxes:
        try:
            refused += [json.loads(line) for line in (box.folder / "refused.jsonl").read_text(encoding="utf-8").splitlines()]
        except (OSError, ValueError):
            continue
    return {
        "run": folder.name,
        "project": boxes[0].about["run"].get("project") if boxes else None,
        "folder": str(folder),
        "writers": len(boxes),
        "alive": sum(_liveness.alive(box.folder, box.about) is True for box in boxes if box.kind == "trainer" and not box.ended),
        "unsent": sum(box.unsent for box in boxes),
        "sender": at_work(folder),
        "error": (read_json(folder / "sender.json") or {}).get("error"),
        "refused": refused,
    }
