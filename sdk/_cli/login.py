"""`encore login`: remembers the server and this user's token, readable by this user alone."""

from __future__ import annotations

import argparse
import getpass
import os
import sys
from typing import Any

from .. import _settings
from .._transport import Transport
from ..errors import ServerRefused, UsageError


def register(commands: Any) -> None:
    parser = commands.add_parser("login", help="remember the server and the token", description=__doc__)
    parser.add_argument("url", nargs="?", help="the server's address, such as https://encore.example.org (default: ENCORE_URL)")
    parser.add_argument(
        "--token-file",
        help="a file with the token; else it is asked for, or read from standard input (never from the command line: others see that)",
    )
    parser.add_argument("--force", action="store_true", help="remember it even if the server does not answer")
    parser.set_defaults(perform=perform)


def perform(options: argparse.Namespace) -> int:
    url = options.url or os.environ.get("ENCORE_URL")
    if not url:
        raise UsageError("which server? encore login https://encore.example.org")
    url = url if "://" in url else f"https://{url}"
    if options.token_file:
        with open(options.token_file) as file:
            token = file.read().strip()
    elif sys.stdin.isatty():
        token = getpass.getpass(f"Token for {url} (make one on its page Settings, Tokens): ").strip()
    else:
        token = (sys.stdin.readline() or os.environ.get("ENCORE_TOKEN", "")).strip()
    if not token:
        raise UsageError("no token was given")
    if not options.force:
        try:
            who = Transport(url, token, answer_seconds=20).call("GET", "me")
        except ServerRefused as error:
            if error.status in (401, 403):
                raise UsageError(f"{url} does not know this token; nothing is changed") from None
            raise
        print(f"{url}: {who.get('user')}")
    print(f"remembered in {_settings.save_credentials(url, token)}")
    return 0
