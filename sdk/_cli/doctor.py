"""`encore doctor`: what keeps runs from arriving, each with how to mend it."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from .. import _settings
from .._segments import MIN_FREE_BYTES, MIN_FREE_SHARE, reserve
from .._transport import Transport
from ..errors import EncoreError

MUCH_SKEW_SECONDS = 5


def register(commands: Any) -> None:
    parser = commands.add_parser("doctor", help="look for what keeps runs from arriving", description=__doc__)
    parser.set_defaults(perform=perform)


def perform(options: argparse.Namespace) -> int:
    settings = _settings.read()
    checks: list[Callable[[], tuple[bool, str]]] = [
        shadowed,
        lambda: journal(settings),
        lambda: server(settings),
        lambda: token(settings),
        lambda: clock(settings),
        lambda: unsent(settings),
    ]
    ill = 0
    for check in checks:
        try:
            well, sentence = check()
        except Exception as error:
            well, sentence = False, f"{type(error).__name__}: {error}"
        ill += not well
        print(f"{'ok ' if well else 'ILL'}  {sentence}")
    return 1 if ill else 0


def shadowed() -> tuple[bool, str]:
    """A folder or file `sdk` beside the user's script comes before ours on sys.path."""
    ours = Path(__file__).resolve().parents[1]
    for folder in dict.fromkeys([os.getcwd(), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]):
        for candidate in (Path(folder or ".") / "sdk", Path(folder or ".") / "sdk.py"):
            if candidate.exists() and candidate.resolve() != ours:
                return False, f"{candidate.absolute()} shadows the SDK for scripts started there: `import encore as sdk`, or rename it"
    return True, f"sdk {_settings.VERSION} in {ours} is not shadowed here"


def journal(settings: _settings.Settings) -> tuple[bool, str]:
    folder = settings.journal
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as aside:
            reserve(Path(aside) / "trial.seg")
    except OSError as error:
        return (
            False,
            f"the journal {folder} cannot be written ({error.strerror or error}): free space, or set ENCORE_JOURNAL to a local folder",
        )
    if hasattr(os, "statvfs"):
        disk = os.statvfs(folder)
        free, total = disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize
        if free < MIN_FREE_BYTES and free < MIN_FREE_SHARE * total:
            return False, f"{folder}: {free >> 20} MiB of {total >> 30} GiB are free; below {MIN_FREE_SHARE:.0%} nothing is kept"
    return True, f"journal {folder} can be written"


def server(settings: _settings.Settings) -> tuple[bool, str]:
    if settings.url is None:
        return False, "no server is known: encore login, or set ENCORE_URL (runs are kept and can be sent later)"
    began = time.monotonic()
    answer = Transport(settings.url, None, answer_seconds=10).send("GET", "/healthz")
    took = (time.monotonic() - began) * 1000
    return answer.ok, f"{settings.url} answers {answer.status} in {took:.0f} ms"


def token(settings: _settings.Settings) -> tuple[bool, str]:
    if settings.url is None or settings.token is None:
        return False, "no token: encore login, or set ENCORE_TOKEN"
    try:
        who = Transport(settings.url, settings.token, answer_seconds=10).call("GET", "me")
    except EncoreError as error:
        return False, f"the token does not work: {error}"
    return True, f"the token is {who.get('user')}'s, for {', '.join(who.get('scopes') or []) or 'everything'}"


def clock(settings: _settings.Settings) -> tuple[bool, str]:
    if settings.url is None:
        return True, "clock: nothing to compare with"
    answer = Transport(settings.url, None, answer_seconds=10).send("GET", "/healthz")
    if "date" not in answer.headers:
        return True, "clock: the server tells no time"
    skew = time.time() - parsedate_to_datetime(answer.headers["date"]).timestamp()
    if abs(skew) > MUCH_SKEW_SECONDS:
        return False, f"this machine's clock is {skew:+.0f} s off the server's: wall times will look odd (nothing is lost)"
    return True, f"clock within {MUCH_SKEW_SECONDS} s of the server's"


def unsent(settings: _settings.Settings) -> tuple[bool, str]:
    from .._sender.process import run_folders
    from .status import row

    rows = [row(folder) for folder in run_folders(settings.journal)]
    waiting = [each for each in rows if each["unsent"] and not each["sender"]]
    if waiting:
        return False, f"{len(waiting)} runs have records that no sender is bringing: encore sync"
    return True, f"{len(rows)} runs lie here, none left behind ({sys.version.split()[0]})"
