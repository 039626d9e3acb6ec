"""What the commands that ask the tracker share: options, output, errors in words."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

from .._query import Api
from ..errors import EncoreError

Handler = Callable[[Api, argparse.Namespace], int]


def add_server(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", help="the tracker (default: ENCORE_URL, else the one this machine is logged in to)")
    parser.add_argument("--token", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="print one JSON document and nothing else")


def asking(handler: Handler) -> Callable[[argparse.Namespace], int]:
    """The command's entry: opens the API, says errors in one sentence on stderr, exit status 1 for what did not work."""

    def run(args: argparse.Namespace) -> int:
        try:
            api = Api(args.url, args.token)
            try:
                return handler(api, args)
            finally:
                api.close()
        except EncoreError as error:
            print(f"encore: {error}", file=sys.stderr)
            return 1
        except BrokenPipeError:
            # `encore runs | head`: whoever reads has enough.
            sys.stderr.close()
            return 0

    return run


def print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False, allow_nan=False), flush=True)


def table(rows: list[list[str]], header: list[str]) -> str:
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in [header, *rows])  # noqa: B905
