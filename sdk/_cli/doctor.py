"""`encore doctor`: what keeps runs from arriving, each with how to mend it."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from typing import Any

from .. import _settings
from . import _checkup
from ._checkup_server import Server

HELP = """Looks for what keeps runs from arriving and says of each in a sentence how to mend it. Changes nothing. Exit status: 0 all is well
(or worth a look), 1 something is ill."""


def register(commands: Any) -> None:
    parser = commands.add_parser("doctor", help="look for what keeps runs from arriving", description=HELP)
    parser.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
    parser.set_defaults(perform=perform)


def perform(options: argparse.Namespace) -> int:
    settings = _settings.read()
    server = Server(settings)
    checks: list[tuple[str, Callable[[], _checkup.Findings]]] = [
        ("sdk", _checkup.shadowed),
        ("pythons", _checkup.pythons),
        ("dependencies", _checkup.dependencies),
        ("variables", lambda: _checkup.variables(settings, os.environ)),
        ("journal", lambda: _checkup.journal(settings)),
        ("spool", lambda: _checkup.spool(settings)),
        ("server", server.reach),
        ("version", server.version),
        ("token", server.token),
        ("clock", server.clock),
        ("unsent", lambda: _checkup.unsent(settings)),
    ]
    found: list[tuple[str, str, str]] = []
    for name, check in checks:
        try:
            found += [(name, state, sentence) for state, sentence in check()]
        except Exception as error:
            found.append((name, _checkup.ILL, f"{name}: {type(error).__name__}: {error}"))
    ill = any(state == _checkup.ILL for _, state, _ in found)
    if options.json:
        print(json.dumps({"ill": ill, "results": [{"check": name, "state": state, "says": says} for name, state, says in found]}))
    else:
        for _, state, sentence in found:
            print(f"{'ILL ' if state == _checkup.ILL else 'look' if state == _checkup.LOOK else 'ok  '}  {sentence}")
        if ill:
            print("something is ill; training itself is never held up by it", file=sys.stderr)
    return 1 if ill else 0
