"""``encore worker``: join a tracker as a worker, and tidy up its folders."""

from __future__ import annotations

import argparse
import os
from typing import Any


def register(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "worker", help="run reruns on this machine", description="Takes jobs from a tracker's queues and performs them on this machine."
    )
    parser.add_argument("--url", help="the tracker (ENCORE_URL)")
    parser.add_argument("--broker", help="the broker, redis://… (ENCORE_BROKER_URL)")
    parser.add_argument("--token-file", help="a file with a worker's token, readable by you alone (ENCORE_WORKER_TOKEN_FILE)")
    parser.add_argument("--queue", action="append", help="a queue to take jobs from; may be given again (default: default)")
    parser.add_argument("--home", help="caches and job folders (ENCORE_WORKER_HOME)")
    parser.add_argument("--name", help="this worker's name, unique on the tracker (default: the host's name)")
    parser.add_argument(
        "--isolation",
        choices=["auto", "overlay", "none"],
        help="how far programs are kept from this machine (default: the strongest that works)",
    )
    parser.set_defaults(perform=work)
    actions = parser.add_subparsers(title="more")
    tidy = actions.add_parser("prune", help="remove old job folders, and caches that no job has used for long")
    tidy.add_argument("--home", help="caches and job folders (ENCORE_WORKER_HOME)")
    tidy.add_argument("--keep", type=int, default=0, help="job folders to keep (default: 0)")
    tidy.add_argument("--days", type=float, default=30, help="remove cached environments and blobs unused for so many days (default: 30)")
    tidy.set_defaults(perform=tidy_up)


def work(args: argparse.Namespace) -> int:
    """Runs the Celery worker in this process until it is told to end."""
    given = {
        "ENCORE_URL": args.url,
        "ENCORE_BROKER_URL": args.broker,
        "ENCORE_WORKER_TOKEN_FILE": args.token_file,
        "ENCORE_WORKER_QUEUES": ",".join(args.queue) if args.queue else None,
        "ENCORE_WORKER_HOME": os.path.abspath(args.home) if args.home else None,
        "ENCORE_WORKER_NAME": args.name,
        "ENCORE_WORKER_ISOLATION": args.isolation,
    }
    os.environ.update({name: value for name, value in given.items() if value})
    from runner import settings

    try:
        chosen = settings.load()
    except ValueError as error:
        return _say(str(error))
    if not chosen.token:
        return _say("A worker needs its token: --token-file FILE, made with `encore token create --scope worker`.")
    if not os.environ.get("ENCORE_BROKER_URL"):
        return _say("A worker needs the tracker's broker: --broker redis://host:port/0.")
    from runner.app import app

    queues = ",".join(f"encore.jobs.{queue}" for queue in chosen.queues)
    app.worker_main(["worker", "-Q", queues, "-c", "1", "--without-gossip", "--without-mingle", "-l", "INFO", "-n", f"{chosen.name}@%h"])
    return 0


def tidy_up(args: argparse.Namespace) -> int:
    if args.home:
        os.environ["ENCORE_WORKER_HOME"] = os.path.abspath(args.home)
    from runner import settings, workspace

    home = settings.load().home
    gone = workspace.prune(home, keep=args.keep, keep_failed=args.keep) + workspace.prune_unused(home, days=args.days)
    print("\n".join(str(path) for path in gone) or f"Nothing to remove below {home}.")
    return 0


def _say(message: str) -> int:
    import sys

    print(message, file=sys.stderr)
    return 2
