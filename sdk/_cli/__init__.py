"""The command `encore`. Subcommands are loaded by name when asked for; a missing part says what to install."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points
from typing import Any

from .. import _settings
from ..errors import EncoreError

OWN = ("sync", "status", "login", "run", "relay", "doctor")
QUERIES = ("runs", "history", "reproduce", "preflight", "export")
ELSEWHERE = {
    "up": "server",
    "user": "server",
    "token": "server",
    "project": "server",
    "retention": "server",
    "gc": "server",
    "worker": "runner",
}


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(prog="encore", description="Track training runs and play them again.")
    parser.add_argument("--version", action="version", version=f"encore {_settings.VERSION}")
    commands = parser.add_subparsers(dest="command", metavar="command")
    wanted = next((word for word in given if not word.startswith("-")), None)
    missing = _register(commands, wanted)
    if wanted is not None and wanted not in commands.choices and (wanted in missing or wanted in ELSEWHERE):
        part = ELSEWHERE.get(wanted, "server")
        why = missing.get(wanted) or missing.get(part) or "it is not installed here"
        print(f"encore {wanted}: {why}. Install it with: pip install 'encore-tracker[{part}]'", file=sys.stderr)
        return 2
    options = parser.parse_args(_joined(given))
    perform = getattr(options, "perform", None) or getattr(options, "run", None)  # the tracker's and the runner's call it run
    if not callable(perform):
        parser.print_help()
        for name, why in missing.items():
            print(f"(not shown: {name}: {why})", file=sys.stderr)
        return 0
    try:
        return int(perform(options) or 0)
    except EncoreError as error:
        print(f"encore {options.command}: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        extra = ELSEWHERE.get(options.command)
        if extra is None or (error.name or "").split(".")[0] in ("sdk", "tracker", "runner"):
            raise
        print(f"encore {options.command}: {error.name} is missing. Install it with: pip install 'encore-tracker[{extra}]'", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 141


def _joined(given: list[str]) -> list[str]:
    """``--sort -val/loss`` as ``--sort=-val/loss``: argparse takes the second word for an option of its own."""
    found: list[str] = []
    for word in given:
        if found and found[-1] == "--sort" and word.startswith("-") and not word.startswith("--"):
            found[-1] = f"--sort={word}"
        else:
            found.append(word)
    return found


def _register(commands: Any, wanted: str | None) -> dict[str, str]:
    """Fills the parser; returns what could not be loaded, by name, with the reason. Own commands are cheap; others load when needed."""
    missing: dict[str, str] = {}
    for name in OWN if wanted not in OWN else (wanted,):
        importlib.import_module(f"{__name__}.{name}").register(commands)
    if wanted in OWN:
        return missing
    for name in QUERIES if wanted not in QUERIES else (wanted,):
        try:
            importlib.import_module(f"{__name__}.{name}").register(commands)
        except ModuleNotFoundError as error:
            missing[name] = f"{error.name} is missing"
    if wanted in QUERIES:
        return missing
    for entry in entry_points(group="encore.commands"):
        try:
            entry.load()(commands)
        except ModuleNotFoundError as error:
            part = "server" if entry.name == "tracker" else entry.name
            missing[part] = f"{error.name} is missing"
        except Exception as error:  # a broken extra must not take the other commands with it
            missing[entry.name] = f"{type(error).__name__}: {error}"
    return missing
