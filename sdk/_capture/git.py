"""The one module of the capture that starts a process: git, with fixed arguments, reading only."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from typing import Any

from .. import _secrets

TIMEOUT_SECONDS = 120
# Nothing that the repository names is run, nothing is written, no prompt is shown.
_FIXED = (
    "git", "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", "-c", "core.untrackedCache=false", "-c",
    "core.quotePath=false", "-c", "safe.directory=*", "-c", "submodule.recurse=false", "-c", "gc.auto=0", "-c", "credential.helper=",
    "-c", "core.askPass=true", "--no-pager",
)  # fmt: skip
_DROPPED = re.compile(
    r"^GIT_(DIR|WORK_TREE|INDEX_FILE|OBJECT_DIRECTORY|NAMESPACE|CONFIG.*|COMMON_DIR|EXTERNAL_DIFF|TRACE.*|SSH.*|ASKPASS|CEILING_DIRECTORIES)$"
)


class GitFailed(Exception):
    """git is not there, said no, or took too long; the text says which."""


def run(root: str, *arguments: str) -> bytes:
    """Standard output of `git <arguments>` in `root`."""
    environ = {name: value for name, value in os.environ.items() if not _DROPPED.match(name)}
    environ.update(GIT_OPTIONAL_LOCKS="0", GIT_TERMINAL_PROMPT="0", LC_ALL="C", GIT_NO_LAZY_FETCH="1")
    try:
        done = subprocess.run(
            [*_FIXED, "-C", root, *arguments],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            env=environ,
            timeout=TIMEOUT_SECONDS,
            check=False,
        )
    except FileNotFoundError:
        raise GitFailed("git is not installed") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise GitFailed(f"git could not be run: {error}") from None
    if done.returncode:
        raise GitFailed(
            _secrets.mask_text(done.stderr.decode("utf-8", "replace").strip()[:500])
            or f"git {arguments[0]} ended with status {done.returncode}"
        )
    return done.stdout


class Status:
    """A repository as `git status` and `git ls-files` see it.

    `tracked`: {path: git mode} of the index; `states`: {path: "modified" | "staged"}; `untracked`: paths not ignored (a trailing `/` is a
    repository within); paths are bytes, relative to the root.
    """

    def __init__(self) -> None:
        self.facts: dict[str, Any] = {}
        self.tracked: dict[bytes, str] = {}
        self.states: dict[bytes, str] = {}
        self.untracked: list[bytes] = []
        self.gaps: list[dict[str, str]] = []


def look(root: str, untracked: bool = True) -> Status:
    """Everything the snapshot needs of the repository at `root`. Raises GitFailed."""
    status = Status()
    head: dict[str, str] = {}
    entries = run(
        root,
        "status",
        "--porcelain=v2",
        "-z",
        "--branch",
        "--no-renames",
        "--ignore-submodules=none",
        "--untracked-files=" + ("all" if untracked else "no"),
    ).split(b"\0")
    dirty = False
    for entry in entries:
        if entry.startswith(b"# branch."):
            name, _, value = entry[9:].decode("utf-8", "replace").partition(" ")
            head[name] = value
        elif entry.startswith((b"1 ", b"u ")):
            dirty = True
            fields = entry.split(b" ", 8 if entry[:1] == b"1" else 10)
            index, tree = fields[1][:1], fields[1][1:2]
            status.states[fields[-1]] = (
                "modified" if tree not in (b".", b" ") or entry[:1] == b"u" else "staged" if index != b"." else "tracked"
            )
        elif entry.startswith(b"? "):
            status.untracked.append(entry[2:])
    for line in run(root, "ls-files", "--stage", "-z").split(b"\0"):
        if line:
            meta, _, path = line.partition(b"\t")
            status.tracked[path] = meta.split(b" ")[0].decode()
    commit = head.get("oid")
    remotes = _remotes(root)
    status.facts = {
        "remote": remotes.get("origin") or next(iter(remotes.values()), None),
        "branch": None if head.get("head") == "(detached)" else head.get("head"),
        "commit": None if commit in (None, "(initial)") else commit,
        "dirty": dirty,
        "unpushed": None,
    }
    if len(remotes) > 1:
        status.facts["remotes"] = remotes
    if remotes and status.facts["commit"]:
        with contextlib.suppress(GitFailed, ValueError):
            status.facts["unpushed"] = int(run(root, "rev-list", "--count", "HEAD", "--not", "--remotes"))
    return status


def _remotes(root: str) -> dict[str, str]:
    try:
        lines = run(root, "config", "--local", "-z", "--get-regexp", r"^remote\..*\.url$").split(b"\0")
    except GitFailed:
        return {}
    found: dict[str, str] = {}
    for line in lines:
        name, _, url = line.decode("utf-8", "replace").partition("\n")
        if url:
            found.setdefault(name[len("remote.") : -len(".url")], mask_url(url))
    return found


def mask_url(url: str) -> str:
    """A remote's address without what logs in: `https://user:token@host/x` becomes `https://host/x`."""
    return _secrets.mask_text(
        re.sub(r"^([a-z][a-z0-9+.-]*://)[^/@\s]*@", lambda m: m[1] if m[1].startswith("http") else m[0], url, flags=re.I)
    )
