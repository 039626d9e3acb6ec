"""encore export: many runs as Parquet files, or one run in a bundle."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .._query import Api, exports
from .._query.places import Folder, Place, place
from ..errors import EncoreError, UsageError
from ._common import add_server, asking, print_json


def register(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "export",
        help="write runs into Parquet files, or one run into a bundle",
        description="Write runs at full resolution into Parquet files (--to), project=<slug>/run=<id>/points.parquet and runs.parquet; "
        "done again, it brings what changed. Or write one run with its source, environment, metrics and verdicts into one zip (--bundle).",
    )
    parser.add_argument("references", metavar="RUN", nargs="*", help="id, a unique beginning of it, or project/name; all without one")
    parser.add_argument("--runs", metavar="RUN", nargs="+", default=[], help="the same, as an option")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--to", metavar="DIR", help="a folder, or s3://bucket/prefix (by boto3 and its settings)")
    where.add_argument("--bundle", metavar="FILE", type=Path, help="one run's zip; it must not be there yet")
    parser.add_argument("--project", help="of this project only")
    parser.add_argument("--filter", help='for example: config.lr > 1e-4 AND state = finished AND tags = "baseline"')
    parser.add_argument("--state", help="queued, running, finished, failed, crashed, killed or preempted; several by comma")
    parser.add_argument("--keys", metavar="GLOB", nargs="+", default=[], help="metrics (names or globs); all without it")
    parser.add_argument("--prune", action="store_true", help="remove the folders of runs that are gone or no longer found")
    parser.add_argument("--mend", action="store_true", help="look at every digest first, and bring anew what is damaged")
    parser.add_argument("--check", action="store_true", help="bring nothing: read every file of --to and say what is not as it came")
    add_server(parser)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    if args.check:
        try:
            return _check(args)
        except EncoreError as error:
            print(f"encore: {error}", file=sys.stderr)
            return 1
    return asking(_bundle if args.bundle else _export)(args)


def _export(api: Api, args: argparse.Namespace) -> int:
    references = [*args.references, *args.runs]
    question = {
        "project": args.project,
        "filter": args.filter or "",
        "state": args.state or "",
        "runs": sorted({api.run(reference).id for reference in references}) if references else None,
        "keys": sorted(set(args.keys)),
    }
    with place_of(args.to) as where:
        told = exports.export(api, where, question, prune=args.prune, mend=args.mend, said=_say)
    if args.json:
        print_json({**vars(told), "seconds": round(told.seconds, 3), "to": args.to})
        return int(bool(told.failed))
    _say(f"{args.to}: {told.runs:,} runs, {told.sent:,} of them new or changed ({told.points:,} points, {exports.size_of(told.bytes)}) "
         f"in {told.seconds:,.1f} s")  # fmt: skip
    for each in told.failed:
        _say(f"run {each['run']} could not be exported: {each['message']}")
    for folder in told.pruned:
        _say(f"removed {folder}: the server no longer finds it")
    if told.gone:
        _say(f"{len(told.gone)} runs lie there that the server no longer finds (--prune removes them): {', '.join(told.gone[:5])}"
             + (", …" if len(told.gone) > 5 else ""))  # fmt: skip
    return int(bool(told.failed))


@contextlib.contextmanager
def place_of(to: str, must_exist: bool = False) -> Iterator[Place]:
    """The place, which no other export on this machine writes meanwhile."""
    if must_exist and not to.startswith("s3://") and not Path(to).is_dir():
        raise UsageError(f"{to} is no folder")
    where = place(to)
    if to.startswith("s3://"):
        yield where
        return
    try:
        import fcntl
    except ImportError:  # Windows
        yield where
        return
    descriptor = os.open(to, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"another export writes into {to} just now") from None
        if isinstance(where, Folder):
            where.clean()
        yield where
    finally:
        os.close(descriptor)


def _check(args: argparse.Namespace) -> int:
    if not args.to:
        raise UsageError("--check looks at what lies at --to")
    with place_of(args.to, must_exist=True) as where:
        count, wrong = exports.check(where)
    if args.json:
        print_json({"runs": count, "wrong": [{"folder": folder, "why": why} for folder, why in wrong]})
    else:
        for folder, why in wrong:
            print(f"{folder}: {why}")
        _say(f"{args.to}: {count - len(wrong):,} of {count:,} runs are as they came"
             + (" (export again with --mend)" if wrong else ""))  # fmt: skip
    return int(bool(wrong))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _bundle(api: Api, args: argparse.Namespace) -> int:
    references = [*args.references, *args.runs]
    if len(references) != 1:
        raise UsageError("--bundle is for one run: encore export RUN --bundle FILE")
    run = api.run(references[0])
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
