"""`encore relay`: on a login node, takes the traffic of trainings on compute nodes and passes it on to the tracker."""

from __future__ import annotations

import argparse
import contextlib
import signal
import socket
import sys
import threading
from typing import Any

from .. import _settings
from ..errors import UsageError

EVERYWHERE = "0.0.0.0:8266"  # nodes must reach it
HELP = """Runs on a machine that reaches both the compute nodes and the tracker. Trainings set ENCORE_URL to its address and keep their own
ENCORE_TOKEN. It passes on what the SDK's sender asks for and nothing else, to one tracker; it keeps nothing, and gives nobody a right that
their token has not. While the tracker is away it says so (503), and senders come again. Traffic from the nodes is not encrypted: use it
inside a cluster."""


def register(commands: Any) -> None:
    parser = commands.add_parser("relay", help="stand between compute nodes and the tracker", description=HELP)
    parser.add_argument("--url", help="the tracker (default: ENCORE_URL, else the one this machine is logged in to)")
    parser.add_argument("--listen", default=EVERYWHERE, metavar="ADDRESS:PORT", help=f"default {EVERYWHERE}; port 0 takes a free one")
    parser.add_argument("--ca", metavar="FILE", help="certificates that the tracker's is checked against (default: the system's)")
    parser.add_argument(
        "--lend-token",
        action="store_true",
        help="calls without a token get this machine's own: whoever reaches the port then writes as you",
    )
    parser.set_defaults(perform=perform)


def perform(options: argparse.Namespace) -> int:
    from .._relay import Relay, Upstream

    url, token = _settings.credentials()
    url = options.url or url
    if not url:
        raise UsageError("which tracker? encore relay --url https://encore.example.org, or encore login first")
    if options.lend_token and (not token or options.url not in (None, _settings.credentials()[0])):
        raise UsageError("there is no token of this machine to lend: encore login, or set ENCORE_TOKEN")
    host, _, port = options.listen.rpartition(":")
    if not port.isdigit():
        raise UsageError(f"--listen is ADDRESS:PORT, not {options.listen!r}")
    threading.stack_size(512 << 10)
    try:
        relay = Relay((host.strip("[]") or "0.0.0.0", int(port)), Upstream(url, options.ca), token if options.lend_token else None)  # noqa: S104
    except OSError as error:
        raise UsageError(f"{options.listen} cannot be listened on: {error.strerror or error}") from None
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=relay.shutdown).start())
    listening = relay.server_address[1]
    name = host if host not in ("", "0.0.0.0", "[::]") else socket.gethostname()  # noqa: S104
    print(f"encore relay to {relay.upstream.url}; on the nodes: export ENCORE_URL=http://{name}:{listening}", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        relay.serve_forever(poll_interval=0.2)
    relay.server_close()
    counts = relay.counts
    print(
        f"encore relay: {counts['requests']} requests, {counts['bytes'] >> 20} MiB; {counts['refused']} refused, {counts['failed']} failed",
        file=sys.stderr,
    )
    return 0
