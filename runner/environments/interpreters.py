"""An interpreter of the recorded version on this machine."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from runner import shell
from runner.errors import RecipeFailure

ASK = (
    "import json,platform,sys,sysconfig;print(json.dumps({'version':platform.python_version(),"
    "'implementation':platform.python_implementation().lower(),"
    "'executable':getattr(sys,'_base_executable',sys.executable),'base_prefix':sys.base_prefix,"
    "'stdlib':sysconfig.get_path('stdlib'),"
    "'platstdlib':sysconfig.get_path('platstdlib')}))"
)


@dataclass(frozen=True)
class Interpreter:
    executable: str
    version: str
    implementation: str
    base_prefix: str
    stdlib: tuple[str, ...]


def find(python: dict[str, Any], *, executable: str | None = None, allow_other_patch: bool = False) -> Interpreter:
    """For the recipe's ``environment.python``. Raises RecipeFailure ``python_missing`` naming what there is instead."""
    wanted = str(python.get("version") or "")
    match = re.match(r"(\d+)\.(\d+)\.\d+", wanted)
    if not match:
        raise RecipeFailure("python_missing", "The recipe does not say which Python it ran with.", missing="environment.python.version")
    minor = f"{match[1]}.{match[2]}"
    implementation = str(python.get("implementation") or "cpython").lower()
    near: dict[str, Interpreter] = {}
    for candidate in candidates(minor, python.get("base_prefix"), executable):
        found = ask(candidate)
        if found is None or found.implementation != implementation:
            continue
        if found.version == wanted:
            return found
        near.setdefault(found.version, found)
    same_minor = [found for version, found in near.items() if version.startswith(minor + ".")]
    if allow_other_patch and same_minor:
        return same_minor[0]
    have = ", ".join(sorted(near)) or "none"
    raise RecipeFailure(
        "python_missing",
        f"The run used Python {wanted} ({implementation}); this worker has {have}. Install {wanted}"
        + (", or set ENCORE_WORKER_ALLOW_OTHER_PATCH=1 to accept another patch release." if same_minor else "."),
        missing=f"python {wanted}",
        expected=wanted,
        found=have,
    )


def candidates(minor: str, base_prefix: Any, executable: Any) -> Iterator[str]:
    """Paths that may be such an interpreter: the recorded one first, then this worker's, PATH, and where version managers put them."""
    major = minor.split(".")[0]
    if isinstance(base_prefix, str) and base_prefix.startswith("/"):
        yield from (f"{base_prefix}/bin/python{minor}", f"{base_prefix}/bin/python{major}")
    if isinstance(executable, str) and executable.startswith("/"):
        yield os.path.realpath(executable)
    yield getattr(sys, "_base_executable", sys.executable)
    home = Path.home()
    folders = [Path(folder) for folder in os.environ.get("PATH", "").split(":") if folder.startswith("/")]
    folders += [Path("/usr/local/bin"), Path("/usr/bin"), Path("/opt/homebrew/bin")]
    for root in (Path(os.environ.get("PYENV_ROOT") or home / ".pyenv") / "versions", home / ".local/share/uv/python", Path("/opt")):
        try:
            folders += [path / "bin" for path in sorted(root.iterdir(), reverse=True)]
        except OSError:
            continue
    for folder in folders:
        if folder.name == "shims":
            continue  # pyenv's shims answer for whatever version is selected there
        for name in (f"python{minor}", f"python{major}"):
            if (folder / name).is_file():
                yield str(folder / name)


def ask(executable: str) -> Interpreter | None:
    """What an executable is, or None if it is no working Python."""
    try:
        status = os.stat(executable)
    except OSError:
        return None
    return _ask(os.path.realpath(executable), status.st_mtime_ns)


@lru_cache(maxsize=64)
def _ask(executable: str, _mtime: int) -> Interpreter | None:
    try:
        answer = shell.run([executable, "-I", "-c", ASK], env=shell.bare_environment(), seconds=30, stderr=False)
        told = json.loads(answer.output)
        return Interpreter(
            told["executable"], told["version"], told["implementation"], told["base_prefix"], (told["stdlib"], told["platstdlib"])
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
