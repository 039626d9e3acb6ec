"""`encore run -- python train.py …`: tracks a program that has no line of ours in it.

A Python program is started as it would be, but through a bootstrap that opens the run before its first line; anything else runs as a child
whose output is kept. PYTHONHASHSEED is set if it was not, since it cannot be read back later. The exit status is the program's own.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from .. import _patterns, _settings
from .._run import NOTE_VARIABLE
from ..errors import UsageError

BOOTSTRAP = Path(__file__).resolve().parents[1] / "_bootstrap.py"
_PYTHON = re.compile(r"^(python|pypy)[0-9.]*(\.exe)?$")
_ALONE = frozenset("bBdEiIOPqsSuvVx?h")  # interpreter options without a value


def register(commands: Any) -> None:
    parser = commands.add_parser(
        "run", help="track a program without changing it", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--project")
    parser.add_argument("--name")
    parser.add_argument(
        "--pattern",
        action="append",
        default=[],
        metavar="REGEX",
        help="metrics in printed lines: named groups are keys, `step` is the step; may be given several times",
    )
    parser.add_argument("--patterns", choices=["auto", "off"], help="auto: find the usual metrics in printed lines")
    parser.add_argument("--no-tensorboard", action="store_true", help="do not follow TensorBoard's event files")
    parser.add_argument("program", nargs=argparse.REMAINDER, metavar="-- COMMAND …")
    parser.set_defaults(perform=perform)


def perform(options: argparse.Namespace) -> int:
    program = options.program[1:] if options.program[:1] == ["--"] else options.program
    if not program:
        raise UsageError("what shall run? encore run -- python train.py --lr 0.1")
    environment = dict(os.environ)
    environment.setdefault("PYTHONHASHSEED", "0")
    for name, value in (("ENCORE_PROJECT", options.project), ("ENCORE_NAME", options.name)):
        if value:
            environment[name] = value
    patterns = _patterns_asked(options.pattern, options.patterns)
    if patterns is not None:
        environment["ENCORE_PATTERNS"] = patterns
    if options.no_tensorboard:
        environment["ENCORE_TENSORBOARD"] = "0"
    return supervise(bootstrapped(program), environment)


def _patterns_asked(given: list[str], builtin: str | None) -> str | None:
    """For ENCORE_PATTERNS, one a line; None leaves what the environment says. A pattern that cannot work is said before anything runs."""
    if not given and builtin is None:
        return None
    for text in given:
        try:
            _patterns.compiled([text])
        except (re.error, ValueError, RecursionError) as error:
            raise UsageError(f"--pattern {text}: {error}") from None
        if "\n" in text:
            raise UsageError("a pattern is one line")
    return "\n".join([*given, *(["auto"] if builtin == "auto" else [])])


def bootstrapped(program: list[str]) -> list[str]:
    """The command with our bootstrap between the interpreter and the script, or as it is when it is not `python SCRIPT` or `python -m`."""
    if not _PYTHON.match(os.path.basename(program[0])):
        if program[0].endswith(".py") and os.path.exists(program[0]):
            return [sys.executable, str(BOOTSTRAP), *program]
        return [sys.executable, str(BOOTSTRAP), "--command", *program]
    at = 1
    while at < len(program) and program[at].startswith("-") and program[at] not in ("-m", "-c", "-"):
        option = program[at]
        if option in ("-W", "-X", "--check-hash-based-pycs"):
            at += 2
        elif set(option[1:]) <= _ALONE or option.startswith(("-W", "-X", "--")):
            at += 1
        else:
            break
    if at >= len(program):
        raise UsageError("python without a script cannot be tracked: encore run -- python train.py")
    interpreter = program[:at] if os.path.basename(program[0]) != "python" or _on_path(program[0]) else [sys.executable, *program[1:at]]
    return [*interpreter, str(BOOTSTRAP), *program[at:]]


def _on_path(name: str) -> bool:
    import shutil

    return shutil.which(name) is not None


def supervise(command: list[str], environment: dict[str, str]) -> int:
    """Runs the program in our place: signals go to it, its status is ours. What it could not say of its end, the sender hears from us."""
    with tempfile.TemporaryDirectory(prefix="encore-run-") as folder:
        note = Path(folder) / "writers"
        status = _wait(_settings.start_process(command, env={**environment, NOTE_VARIABLE: str(note)}))
        _leave_status(note, status)
    if status < 0:  # end as the child did
        if -status not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
        return 128 - status
    return status


def _leave_status(note: Path, status: int) -> None:
    """Beside the journal of the process that we started: os._exit and SIGKILL leave no other trace."""
    try:
        folders = note.read_text().splitlines()
    except OSError:
        return
    for folder in folders[:1]:
        with contextlib.suppress(OSError):
            if status < 0:
                (Path(folder) / f"signal-{-status}").write_text("seen by encore run")
            else:
                (Path(folder) / "exit-status").write_bytes(status.to_bytes(4, "little"))


def _wait(child: Any) -> int:
    previous: dict[int, Any] = {}
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2"):
        number = getattr(signal, name, None)
        if number is not None:
            # Ctrl-C reaches the whole foreground group by itself; the others are passed on.
            handler = signal.SIG_IGN if name == "SIGINT" else (lambda got, _: child.send_signal(got))
            previous[number] = signal.signal(number, handler)
    return int(child.wait())
