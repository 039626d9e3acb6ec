"""`encore sync`: sends journals that a death, a cut or an offline machine left behind. Any number of times; also while the run goes on."""

from __future__ import annotations

import argparse
import contextlib
import signal
import threading
from pathlib import Path
from typing import Any

from .. import _place, _settings
from .._sender.fleet import AT_ONCE, Fleet
from .._transport import Transport
from ..errors import ServerRefused, ServerUnreachable, UsageError

HELP = """Sends journals to the server: of runs that were offline, whose machine was cut off or whose processes were killed, on this or
another machine (a copied folder, a spool). What the server has is not sent twice, whoever sends it, so it may run at any time, also while
the run goes on: then it sends what there is by then. If the program has ended and the sender on this machine is still noting source and
data, it waits for that. Exit status: 0 all is with the server (of a run that goes on: so far), 1 something is not (it says what and
why)."""


def register(commands: Any) -> None:
    parser = commands.add_parser("sync", help="send journals to the server", description=HELP)
    parser.add_argument("folder", nargs="?", help="a journal root, a spool, a run's or a writer's folder (default: all of this user)")
    parser.add_argument("--watch", action="store_true", help="go on as journals grow; keeps pages live and brings Stop to a spool's nodes")
    parser.add_argument(
        "--capture", action="store_true", help="also capture source, environment and data for the trainers found (as the sender does)"
    )
    parser.add_argument(
        "--until-finished", action="store_true", help="with --watch: exit when every writer has finished and is acknowledged"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=None,
        help="give up after so long without an answer from the server (default 60; with --watch never)",
    )
    parser.add_argument("--jobs", type=int, default=AT_ONCE, help=f"runs that are sent at the same time (default {AT_ONCE})")
    parser.add_argument(
        "--with-holes",
        action="store_true",
        help="of a copied folder, also send what lies behind a gap; only if the original is lost, since the gap is then final",
    )
    parser.set_defaults(perform=perform)


def perform(options: argparse.Namespace) -> int:
    settings = _settings.read()
    if settings.url is None:
        raise UsageError("no server is known: encore login, or set ENCORE_URL and ENCORE_TOKEN")
    if options.folder:
        roots = [Path(options.folder).absolute()]
        if not roots[0].exists() and not options.watch:
            raise UsageError(f"{roots[0]} does not exist")
    else:
        roots = _place.roots(settings)
    if not options.watch:
        _ask_who(settings)
    stopping = threading.Event()
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    fleet = Fleet(
        roots,
        settings,
        watch=options.watch,
        capture=options.capture,
        until_finished=options.until_finished,
        patience=options.seconds if options.seconds is not None else (None if options.watch else 60.0),
        at_once=max(1, options.jobs),
        with_holes=options.with_holes,
    )
    return fleet.run(stopping)


def _ask_who(settings: _settings.Settings) -> None:
    """A token that nobody knows is said once, not once a run."""
    transport = Transport(str(settings.url), settings.token, answer_seconds=20)
    try:
        transport.call("GET", "me")
    except ServerRefused as error:
        if error.status == 401:
            raise UsageError(f"{settings.url} does not take this token ({error.message}): encore login, or set ENCORE_TOKEN") from None
    except ServerUnreachable:
        return
    finally:
        transport.close()
