"""encore history: all points of a metric."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from .._query import Api
from ._common import add_server, asking, print_json


def register(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "history", help="print a metric's points", description="Print all points of a metric at full resolution."
    )
    parser.add_argument("reference", metavar="RUN", help="id, a unique beginning of it, or project/name")
    parser.add_argument("key", metavar="KEY", help="the metric, for example train/loss")
    parser.add_argument("--rank", type=int, default=None, help="of this rank (default: as the key is reduced over ranks)")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--attempt", type=int, default=None, help="what this start of the run logged, also where it was rewound")
    which.add_argument("--branch", choices=("current", "all"), default=None, help="all: the old branches too, each under a comment line")
    add_server(parser)
    parser.set_defaults(run=asking(_run))


def _run(api: Api, args: argparse.Namespace) -> int:
    run = api.run(args.reference)
    answer = run.raw_history(args.key, args.rank, args.attempt, args.branch)
    if args.json:
        print_json({"run": run.id, "key": args.key, **answer})
    else:
        _print(answer["points"])
        for branch in answer.get("branches", ()):
            print(f"# old branch: attempt {branch['attempt']} went back to step {branch['rewound_to']}")
            _print(branch["points"])
    if not answer["points"] and not answer.get("branches"):
        which = "" if args.attempt is None else f"attempt {args.attempt} of "
        print(
            f"encore: {which}{run.project}/{run.name} has no metric {args.key!r}; `encore runs` and the run's page list what it has",
            file=sys.stderr,
        )
        return 1
    return 0


def _print(points: list[list[Any]]) -> None:
    for step, time, value in points:
        print(f"{step}\t{time}\t{value}")
