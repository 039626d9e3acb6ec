"""What was started and how: the command section of the recipe."""

from __future__ import annotations

import os
import sys
from typing import Any

from .. import _secrets
from . import environ, launcher, paths

MAX_ENTRY_BYTES = 1 << 20
_BOOTSTRAP = os.path.join(paths.SDK_FOLDER, "_bootstrap.py")


def split_orig_argv(orig: list[str]) -> tuple[list[str], list[str], str]:
    """The interpreter's own options, the program's arguments, and how the program was named: `script`, `-m`, `-c` or `-`."""
    index = 1
    while index < len(orig):
        argument = orig[index]
        if argument == "-" or not argument.startswith("-"):
            return orig[1:index], orig[index + 1 :], "-" if argument == "-" else "script"
        if argument.startswith("--"):
            index += 2 if argument == "--check-hash-based-pycs" else 1
            continue
        for place, letter in enumerate(argument[1:], 1):
            if letter in "cm":  # the rest of this argument, or the next one, is the program
                taken = argument[place + 1 :]
                rest = orig[index + 1 :] if taken else orig[index + 2 :]
                options = orig[1:index] + ([argument[:place]] if place > 1 else [])
                return options, rest, "-" + letter
            if letter in "WX":
                index += 0 if argument[place + 1 :] else 1
                break
        index += 1
    return orig[1:], [], "-"


def started() -> list[str]:
    """`sys.orig_argv` without the bootstrap that `encore run` puts between the interpreter and the program."""
    orig = list(getattr(sys, "orig_argv", []))
    options, _, how = split_orig_argv(orig)
    at = 1 + len(options)
    if how == "script" and at < len(orig) and os.path.realpath(orig[at]) == os.path.realpath(_BOOTSTRAP):
        del orig[at]
    return orig


def _other_program(orig: list[str]) -> str | None:
    """What `encore run` was given to start, where that is no Python program."""
    at = orig.index("--command") if "--command" in orig else 0
    return orig[at + 1] if at and at + 1 < len(orig) and len(split_orig_argv(orig[:at])[0]) == at - 1 else None


def entry(main: Any = None) -> dict[str, Any]:
    """The program's entry: `{"kind", "name", "path"}`; `path` is absolute or None."""
    main = main if main is not None else sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    file = getattr(main, "__file__", None)
    if spec is not None and getattr(spec, "name", None):
        name = spec.name.removesuffix(".__main__")
        return {"kind": "module", "name": name, "path": os.path.abspath(str(spec.origin or file)) if spec.origin or file else None}
    shell = _ipython()
    if shell == "notebook":
        path = _notebook_path(main)
        return {"kind": "notebook", "name": os.path.basename(path) if path else None, "path": path}
    orig = started()
    other = _other_program(orig)
    if other:
        # A bare name was looked for in PATH, and is no file of the user's.
        path = os.path.abspath(other) if os.sep in other and not os.path.isabs(other) else None
        return {"kind": "command", "name": os.path.basename(other), "path": path}
    how = split_orig_argv(orig)[2]
    if file and how not in ("-c",):
        path = os.path.abspath(file)
        return {"kind": "script", "name": os.path.basename(path), "path": path}
    if how == "-c":
        return {"kind": "code", "name": "-c", "path": None}
    return {"kind": "interactive", "name": shell, "path": None}


def _ipython() -> str | None:
    module = sys.modules.get("IPython")
    shell = getattr(module, "get_ipython", lambda: None)() if module else None
    if shell is None:
        return None
    return "notebook" if type(shell).__name__ == "ZMQInteractiveShell" or hasattr(shell, "kernel") else "ipython"


def _notebook_path(main: Any) -> str | None:
    for candidate in (getattr(main, "__vsc_ipynb_file__", None), os.environ.get("JPY_SESSION_NAME")):
        if candidate:
            return os.path.abspath(candidate)
    return None


def _code(orig: list[str]) -> str | None:
    """The text given to `-c`."""
    for index, argument in enumerate(orig[1:], 1):
        if argument.startswith("-") and not argument.startswith("--") and "c" in argument and split_orig_argv(orig[: index + 2])[2] == "-c":
            taken = argument[argument.index("c") + 1 :]
            return taken or (orig[index + 1] if index + 1 < len(orig) else None)
    return None


def facts(*, cwd: str, root: str, world_size: int, argv: list[str], found_entry: dict[str, Any], asked: set[str]) -> dict[str, Any]:
    """The command section. `argv` is the one at import (programs change theirs); `asked` as in `environ.facts`."""
    orig = started()
    options, _, how = split_orig_argv(orig)
    if found_entry["kind"] == "command":
        options, how = options[: options.index("--command")], "command"
    value: dict[str, Any] = {
        "argv": _secrets.mask_argv(argv),
        "executable": sys.executable,
        "interpreter_options": options,
        "python": ".".join(map(str, sys.version_info[:3])),
        "cwd": cwd,
        "cwd_in_root": paths.inside(cwd, root),
        "entry": {**found_entry, "path_in_root": paths.inside(found_entry.get("path"), root)},
        "launcher": launcher.facts(os.getpid(), os.environ),
        "world_size": world_size,
        "umask": _umask(),
        **environ.facts(asked=asked),
    }
    if how == "-c":
        value["entry"]["code"] = _secrets.mask_text((_code(orig) or "")[:65536])
    gaps = []
    kind = found_entry["kind"]
    if kind in ("interactive", "notebook"):
        gaps.append(
            {
                "what": "command",
                "why": f"the run was started from {'a notebook' if kind == 'notebook' else 'an interactive session'}",
                "mend": "put the training into a script and start that",
            }
        )
    if how == "-":
        gaps.append({"what": "command", "why": "the program came from standard input", "mend": "put it into a file and start that"})
    if "PYTHONHASHSEED" in value["unset"] and sys.flags.hash_randomization:
        gaps.append(
            {
                "what": "PYTHONHASHSEED",
                "why": "it was unset, so the order of sets of text differs from run to run",
                "mend": "set PYTHONHASHSEED=0, or start with `encore run`",
            }
        )
    if gaps:
        value["gaps"] = gaps
    return value


def _umask() -> str | None:
    """From /proc: asking by `os.umask` would set it for a moment under other threads."""
    try:
        with open("/proc/self/status") as file:
            return next((line.split()[1] for line in file if line.startswith("Umask:")), None)
    except OSError:
        return None


def entry_text(path: str | None) -> str:
    try:
        if not path or os.path.getsize(path) > MAX_ENTRY_BYTES:
            return ""
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
