"""encore runs: list runs."""

from __future__ import annotations

import argparse
import json
from typing import Any

from .._query import Api, Run
from ._common import add_server, asking, print_json, table


def register(subparsers: Any) -> None:
    parser = subparsers.add_parser("runs", help="list runs", description="List runs, newest first.")
    parser.add_argument("--project", help="of this project only")
    parser.add_argument("--filter", help='for example: config.lr > 1e-4 AND state = finished AND tags = "baseline" (docs/search.md)')
    parser.add_argument("--sort", help="for example: -summary.val/loss, or state,-created")
    parser.add_argument("--state", help="queued, running, finished, failed, crashed, killed or preempted")
    parser.add_argument("--columns", default="", help="values to show too, commas between: config.lr,val/loss")
    archived = parser.add_mutually_exclusive_group()
    archived.add_argument("--archived", action="store_true", default=None, help="archived runs alone (default: all)")
    archived.add_argument("--no-archived", dest="archived", action="store_false", help="none of them")
    parser.add_argument("--limit", type=int, default=None, help="at most so many (default: all with --json, else 50)")
    add_server(parser)
    parser.set_defaults(run=asking(_run))


def _run(api: Api, args: argparse.Namespace) -> int:
    limit = args.limit if args.limit is not None else (None if args.json else 50)
    columns = [name.strip() for name in args.columns.split(",") if name.strip()]
    keys = [_key(name) for name in columns if not name.startswith("config.")]
    asked = {"project": args.project, "filter": args.filter, "sort": args.sort, "state": args.state, "archived": args.archived}
    runs = list(api.runs(**asked, keys=keys, limit=limit))
    if args.json:
        print_json({"results": [run.data for run in runs]})
    elif runs:
        rows = []
        for run in runs:
            created = str(run.data.get("created_at") or "")[:19]
            rows.append([run.id, f"{run.project}/{run.name}", run.state, created, *(_cell(run, name) for name in columns)])
        print(table(rows, ["ID", "RUN", "STATE", "CREATED", *columns]))
    else:
        print("No runs.")
    return 0


def _key(name: str) -> str:
    return name.removeprefix("summary.")


def _cell(run: Run, name: str) -> str:
    """What the run has under ``config.a.b``, or of a metric its last value, else what the program set in its summary."""
    if not name.startswith("config."):
        key = _key(name)
        found = run.metrics.get(key, _leaf(run.summary, key))
    else:
        found = _leaf(run.config, name.removeprefix("config."))
    if isinstance(found, float):
        return f"{found:.6g}"
    return "" if found is None else found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)


def _leaf(document: Any, path: str) -> Any:
    """By dotted path; keys may have dots themselves."""
    if not isinstance(document, dict):
        return None
    if path in document:
        return document[path]
    for at, character in enumerate(path):
        if character == "." and isinstance(document.get(path[:at]), dict):
            found = _leaf(document[path[:at]], path[at + 1 :])
            if found is not None:
                return found
    return None
