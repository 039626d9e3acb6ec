"""What the SDK is told, read once at init: arguments over environment over credentials.json over defaults."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MODES = ("online", "offline", "disabled")
JOURNAL_MODES = ("map", "write")
VERSION = "0.1.0"
FINISH_SECONDS = 60.0


@dataclass(frozen=True)
class Settings:
    mode: str = "online"
    sender: str = "own"  # "external": somebody else sends the journal
    url: str | None = None
    token: str | None = field(default=None, repr=False)
    home: Path = field(default_factory=lambda: Path.home() / ".encore")
    journal: Path = field(default_factory=lambda: Path.home() / ".encore" / "sdk")
    journal_mode: str = "map"
    spool: Path | None = None  # a shared folder that the journal is drained into
    local: Path | None = None  # the folder of this node where the journal may lie
    run_id: str | None = None
    project: str | None = None
    name: str | None = None
    group: str | None = None
    tags: tuple[str, ...] = ()
    finish_seconds: float = FINISH_SECONDS
    strict: bool = False
    console: bool = True
    tensorboard: bool = False  # event files that the program writes become points
    patterns: tuple[str, ...] = ()  # of console lines that become points
    rerun: dict[str, Any] | None = None
    rerun_error: str | None = None
    complaints: tuple[str, ...] = ()  # what the environment said that means nothing, for one line on stderr


def read(environ: Mapping[str, str] | None = None) -> Settings:
    """Settings of this process; never raises."""
    env = os.environ if environ is None else environ
    complaints = []
    mode = (env.get("ENCORE_MODE") or "online").strip().lower()
    if mode not in MODES:
        complaints.append(f"ENCORE_MODE={mode!r} is none of {', '.join(MODES)}; taken as online")
        mode = "online"
    try:
        finish_seconds = max(0.0, float(env.get("ENCORE_FINISH_SECONDS") or FINISH_SECONDS))
    except ValueError:
        complaints.append(f"ENCORE_FINISH_SECONDS={env['ENCORE_FINISH_SECONDS']!r} is no number; taken as {FINISH_SECONDS:.0f}")
        finish_seconds = FINISH_SECONDS
    journal_mode = (env.get("ENCORE_JOURNAL_MODE") or "map").strip().lower()
    if journal_mode not in JOURNAL_MODES:
        complaints.append(f"ENCORE_JOURNAL_MODE={journal_mode!r} is none of {', '.join(JOURNAL_MODES)}; taken as map")
        journal_mode = "map"
    home = home_folder(env)
    url, token = credentials(env)
    rerun, rerun_error = _rerun(env.get("ENCORE_RERUN"))
    return Settings(
        mode=mode,
        sender="external" if env.get("ENCORE_SENDER", "").strip().lower() == "external" else "own",
        url=url,
        token=token,
        home=home,
        journal=Path(env.get("ENCORE_JOURNAL") or home / "sdk").absolute(),
        spool=_folder(env.get("ENCORE_SPOOL")),
        local=_folder(env.get("ENCORE_LOCAL")),
        journal_mode=journal_mode,
        run_id=env.get("ENCORE_RUN_ID") or (rerun or {}).get("run"),
        project=env.get("ENCORE_PROJECT") or None,
        name=env.get("ENCORE_NAME") or None,
        group=env.get("ENCORE_GROUP") or None,
        tags=tuple(tag.strip() for tag in env.get("ENCORE_TAGS", "").split(",") if tag.strip()),
        finish_seconds=finish_seconds,
        strict=_true(env.get("ENCORE_STRICT")),
        console=env.get("ENCORE_CONSOLE", "").strip().lower() not in ("0", "off", "false", "no"),
        tensorboard=_true(env.get("ENCORE_TENSORBOARD")),
        patterns=tuple(line for line in env.get("ENCORE_PATTERNS", "").split("\n") if line.strip()),
        rerun=rerun,
        rerun_error=rerun_error,
        complaints=tuple(complaints),
    )


def _true(value: str | None) -> bool:
    return (value or "").strip().lower() in ("1", "true", "yes", "on")


def _folder(value: str | None) -> Path | None:
    return Path(value).expanduser().absolute() if value and value.strip() else None


def home_folder(env: Mapping[str, str] | None = None) -> Path:
    env = os.environ if env is None else env
    if env.get("ENCORE_HOME"):
        return Path(env["ENCORE_HOME"]).expanduser().absolute()
    try:
        return Path.home() / ".encore"
    except RuntimeError:  # no HOME and no such user: a container started with a bare uid
        return Path(tempfile.gettempdir()) / f"encore-{os.getuid() if hasattr(os, 'getuid') else 'home'}"


def credentials(env: Mapping[str, str] | None = None) -> tuple[str | None, str | None]:
    """(url, token): the environment, else credentials.json. The file's token goes only to the file's own server."""
    env = os.environ if env is None else env
    url, token = env.get("ENCORE_URL") or None, env.get("ENCORE_TOKEN") or None
    stored: dict[str, Any] = {}
    try:
        found = json.loads((home_folder(env) / "credentials.json").read_text())
        stored = found if isinstance(found, dict) else {}
    except (OSError, ValueError):
        pass
    stored_url = str(stored.get("url") or "") or None
    if url is None:
        url = stored_url
    if token is None and stored_url is not None and url is not None and stored_url.rstrip("/") == url.rstrip("/"):
        token = stored.get("token") or None
    return (url.rstrip("/") if url else None), token


def save_credentials(url: str, token: str, home: Path | None = None) -> Path:
    """Writes credentials.json, readable by its owner alone."""
    folder = home or home_folder()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = folder / "credentials.json"
    aside = folder / f".credentials.json.{os.getpid()}"
    fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "w") as file:
        json.dump({"url": url.rstrip("/"), "token": token}, file)
    os.replace(aside, path)
    return path


def _rerun(path: str | None) -> tuple[dict[str, Any] | None, str | None]:
    if not path:
        return None, None
    try:
        value = json.loads(Path(path).read_text())
        if not isinstance(value, dict) or value.get("format") != 1:
            return None, f"{path} is not a rerun file of format 1"
        return value, None
    except (OSError, ValueError) as error:
        return None, f"ENCORE_RERUN={path} could not be read: {error}"


def default_project() -> str:
    """The git repository's folder name, else the script's folder name, else "default"."""
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    folder = Path(script).absolute().parent if script else Path.cwd()
    root = _git_root(folder)
    return (root or folder).name or "default"


def _git_root(folder: Path) -> Path | None:
    """By looking for .git upward: no process is started on the way to training."""
    for candidate in (folder, *folder.parents):
        if (candidate / ".git").exists():
            return candidate
    return None


def start_process(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
    """The one place of the SDK that starts processes."""
    return subprocess.Popen(command, **options)
