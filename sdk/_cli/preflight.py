"""encore preflight: what would stop a reproduction, before any machine is taken."""

from __future__ import annotations

import argparse
from typing import Any

from .._query import Api
from ._common import add_server, asking, print_json

_MARKS = {"ok": "  ok     ", "warn": "  weak   ", "missing": "  MISSING"}


def register(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "preflight",
        help="say what would stop a reproduction",
        description="Say what would stop a reproduction of a run, and how to mend it.",
    )
    parser.add_argument("reference", metavar="RUN", help="id, a unique beginning of it, or project/name")
    add_server(parser)
    parser.set_defaults(run=asking(_run))


def _run(api: Api, args: argparse.Namespace) -> int:
    run = api.run(args.reference)
    found = run.preflight()
    if args.json:
        print_json({"run": run.id, **found})
    else:
        can = "can be played again" if found["runnable"] else "cannot be played again yet"
        print(f"{run.project}/{run.name}: {found['score']} of 100, {can}")
        for item in found["items"]:
            print(
                f"{_MARKS.get(item['state'], item['state'])}  {item['section']}: {item['what']}"
                + (f" ({item['why']})" if item["why"] else "")
            )
            if item["state"] != "ok" and item["mend"]:
                print(f"             mend: {item['mend']}")
    return 0 if found["runnable"] else 1
