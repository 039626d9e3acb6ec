"""The recorded command as one would type it."""

import shlex
from pathlib import PurePath


def command_line(command: dict) -> str:
    """``torchrun --nproc-per-node 2 train.py --lr 0.1``; paths below the source's root are relative, the interpreter is its name."""
    argv = [str(word) for word in command.get("argv") or []]
    if not argv:
        return ""
    entry = command.get("entry") or {}
    if entry.get("kind") == "script" and entry.get("path_in_root") and entry.get("path") == argv[0]:
        argv[0] = entry["path_in_root"]
    elif entry.get("kind") == "module" and entry.get("name"):
        argv = ["-m", entry["name"], *argv[1:]]
    launcher = command.get("launcher")
    if launcher and launcher.get("argv"):
        words = [str(word) for word in launcher["argv"]]
        if len(words) > 1 and PurePath(words[0]).name.startswith("python") and not words[1].startswith("-"):
            words = words[1:]  # an installed command's first line names the interpreter; people type the command
        words[0] = PurePath(words[0]).name
        return shlex.join(words)
    interpreter = PurePath(command.get("executable") or "python").name
    if PurePath(argv[0]).name.startswith("python") and len(argv) > 1:
        interpreter, argv = PurePath(argv[0]).name, argv[1:]
    return shlex.join([interpreter, *argv])
