"""encore export: a run in one file."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from .._query import Api
from ..errors import UsageError
from ._common import add_server, asking, print_json


def register(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "export",
        help="write a run into one file",
        description="Write a run with its source, environment, metrics and verdicts into one zip that can be followed without Encore.",
    )
    parser.add_argument("reference", metavar="RUN", help="id, a unique beginning of it, or project/name")
    parser.add_argument("--bundle", metavar="FILE", required=True, type=Path, help="where to; it must not be there yet")
    add_server(parser)
    parser.set_defaults(run=asking(_run))


def _run(api: Api, args: argparse.Namespace) -> int:
    run = api.run(args.reference)
    size = save(run, args.bundle)
    if args.json:
        print_json({"run": run.id, "file": str(args.bundle), "bytes": size})
    else:
        print(f"{run.project}/{run.name}: {size} bytes in {args.bundle}", file=sys.stderr)
    return 0


def save(run: Any, target: Path) -> int:
    """Written aside, then renamed: ``target`` is never half a bundle. UsageError when it exists or its folder cannot be written."""
    if os.path.lexists(target):
        raise UsageError(f"{target} exists already; remove it, or choose another name")
    try:
        descriptor, aside = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    except OSError as error:
        raise UsageError(f"{target} cannot be written: {error.strerror}") from None
    try:
        with open(descriptor, "wb") as file:
            size: int = run.bundle(file)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(aside, 0o666 & ~umask)
        os.replace(aside, target)
    except OSError as error:
        raise UsageError(f"{target} cannot be written: {error.strerror or error}") from None
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(aside)
    return size
