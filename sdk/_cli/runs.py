"""encore runs: list runs."""

from __future__ import annotations

import argparse
from typing import Any

from .._query import Api
from ._common import add_server, asking, print_json, table


def register(subparsers: Any) -> None:
    parser = subparsers.add_parser("runs", help="list runs", description="List runs, newest first.")
    parser.add_argument("--project", help="of this project only")
    parser.add_argument("--filter", help='for example: config.lr > 1e-4 AND state = finished AND tags = "baseline"')
    parser.add_argument("--sort", help="for example: -summary.val/loss")
    parser.add_argument("--state", help="queued, running, finished, failed, crashed, killed or preempted")
    parser.add_argument("--limit", type=int, default=None, help="at most so many (default: all with --json, else 50)")
    add_server(parser)
    parser.set_defaults(run=asking(_run))


def _run(api: Api, args: argparse.Namespace) -> int:
    limit = args.limit if args.limit is not None else (None if args.json else 50)
    runs = list(api.runs(project=args.project, filter=args.filter, sort=args.sort, state=args.state, limit=limit))
    if args.json:
        print_json({"results": [run.data for run in runs]})
    elif runs:
        rows = [[run.id, f"{run.project}/{run.name}", run.state, str(run.data.get("created_at") or "")[:19]] for run in runs]
        print(table(rows, ["ID", "RUN", "STATE", "CREATED"]))
    else:
        print("No runs.")
    return 0
