"""encore reproduce: play a run again and say whether it came out the same."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from .._query import Api, Reproduction
from ..errors import UsageError
from ._common import add_server, asking, print_json

STATUSES = {"stopped_early": 4, "not_runnable": 5, "rerun_failed": 6, "inconclusive": 7}
STEPS = ("checkout", "environment", "data", "execute", "evidence")
_EPILOG = """exit status: 0 bit-exact or within tolerance, 3 diverged, 4 stopped early, 5 not runnable, 6 rerun failed,
7 not comparable or inconclusive, 1 anything else that did not work, 2 usage"""


def register(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "reproduce",
        help="play a run again, with a verdict",
        description="Play a recorded run again on a worker and compare it with the original.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("reference", metavar="RUN", help="id, a unique beginning of it, or project/name")
    parser.add_argument("--wait", action="store_true", help="wait for the verdict; progress goes to stderr")
    parser.add_argument("--timeout", type=float, default=None, metavar="SECONDS", help="wait at most so long (the reproduction goes on)")
    parser.add_argument("--queue", default="default")
    parser.add_argument("--steps", type=_steps, default=None, metavar="N", help="compare the first N steps only (a probe)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="config.KEY=VALUE", dest="settings", help="change a config value (JSON, else text)"
    )
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="change an environment variable")
    parser.add_argument("--file", action="append", default=[], metavar="PATH=LOCALFILE", help="put a local text file at PATH of the source")
    parser.add_argument(
        "--argv", default=None, metavar="'train.py --lr 0.1'", help="the program's whole argument list instead: one text, or a JSON list"
    )
    add_server(parser)
    parser.set_defaults(run=asking(_run))


def _steps(text: str) -> int:
    steps = int(text)
    if steps < 1:
        raise argparse.ArgumentTypeError("a probe has at least one step")
    return steps


def _run(api: Api, args: argparse.Namespace) -> int:
    overrides = overrides_of(args)
    run = api.run(args.reference)
    reproduction = run.reproduce(queue=args.queue, overrides=overrides, steps=args.steps)
    print(f"reproducing {run.project}/{run.name}: {reproduction.id}", file=sys.stderr, flush=True)
    if not args.wait:
        if args.json:
            print_json({**reproduction.data, "original": run.id})
        else:
            print(reproduction.id)
        return 0
    try:
        reproduction.wait(args.timeout, Progress())
    except TimeoutError as late:
        print(f"encore: {late}", file=sys.stderr)
        if args.json:
            print_json({**reproduction.flat(), "original": run.id})
        return 7
    except KeyboardInterrupt:
        print(f"\nencore: not waiting any more; the reproduction goes on: {reproduction.id}", file=sys.stderr)
        return 130
    found = {**reproduction.flat(), "original": run.id}
    if args.json:
        print_json(found)
    else:
        print(found["sentence"])
        for suspect in found.get("suspects", ())[:3]:
            print(f"  suspect: {suspect['fact']} ({suspect['why']})")
    return exit_status(found)


def exit_status(verdict: dict[str, Any]) -> int:
    """The execution rules; of a completed one, the agreement."""
    execution, agreement = verdict.get("execution"), verdict.get("agreement")
    if execution in STATUSES:
        return STATUSES[execution]
    if agreement in ("bit_exact", "within_tolerance"):
        return 0
    return 3 if agreement in ("diverged", "same_outcome") else 7


def overrides_of(args: argparse.Namespace) -> dict[str, Any]:
    """``{"config", "argv", "env", "files"}`` of docs/api.md, only what was given. UsageError for what cannot be understood."""
    overrides: dict[str, Any] = {}
    for text in args.settings:
        name, value = _pair(text, "--set config.KEY=VALUE")
        if not name.startswith("config.") or name == "config.":
            raise UsageError(f"--set changes config values: --set config.{name}=…")
        # A dotted name reaches inside a value of the script's config: config.model.layers.
        overrides.setdefault("config", {})[name.removeprefix("config.")] = _value(value)
    for text in args.env:
        name, value = _pair(text, "--env NAME=VALUE")
        overrides.setdefault("env", {})[name] = value
    for text in args.file:
        path, local = _pair(text, "--file PATH=LOCALFILE")
        try:
            overrides.setdefault("files", {})[path] = Path(local).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--file {path}: {local} cannot be read as text: {error}") from None
    if args.argv is not None:
        overrides["argv"] = _words(args.argv)
    return overrides


def _words(text: str) -> list[str]:
    try:
        words = json.loads(text) if text.lstrip().startswith("[") else shlex.split(text)
    except ValueError as error:
        raise UsageError(f"--argv {text!r}: {error}") from None
    if not words or not all(isinstance(word, str) for word in words):
        raise UsageError("--argv is one text such as 'train.py --lr 0.1', or a JSON list of texts")
    return list(words)


def _pair(text: str, form: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise UsageError(f"{text!r} is not of the form {form}")
    return name, value


def _value(text: str) -> Any:
    """JSON where it is JSON (0.1, true, [1, 2], "text"), else the text itself. NaN is text: JSON has none."""
    try:
        value = json.loads(text, parse_constant=str)
    except ValueError:
        return text
    return value


class Progress:
    """Says each state of the five steps once, on stderr."""

    def __init__(self) -> None:
        self._said: set[tuple[str, str]] = set()

    def __call__(self, reproduction: Reproduction) -> None:
        if reproduction.state == "queued":
            self._say("queued", "", "waiting for a worker")
        for step in reproduction.steps:
            self._say(str(step.get("name")), str(step.get("state")), str(step.get("message") or ""))

    def _say(self, name: str, state: str, message: str) -> None:
        if (name, state) in self._said:
            return
        self._said.add((name, state))
        place = f"{STEPS.index(name) + 1}/{len(STEPS)} " if name in STEPS else ""
        print(f"{place}{name} {state}".rstrip() + (f": {message.splitlines()[0]}" if message.strip() else ""), file=sys.stderr, flush=True)
