"""A view of the file system in which everything looks as it was and every write lands in a folder of ours (Linux).

Carried out by the supervisor in its own mount namespace, from a plan that is plain data. Targets are resolved only after the root has
been changed, so that a symbolic link of the machine can never lead a mount or a copy back to the real file system.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import stat
from collections.abc import Callable
from typing import Any

CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE, MS_RELATIME = 1, 32, 4096, 16384, 1 << 18, 1 << 21
MNT_DETACH = 2
OLD = "/.encore-old-root"


def enter(plan: dict[str, Any]) -> None:
    """Afterwards this process and its children see only the view that ``plan`` describes.

    ``plan``: ``{"root": {"lower", "upper", "work", "at"}, "then": [op, …]}``.
    A root without ``lower`` begins empty.

    An op is ``{"op", …, "optional": bool}``: ``overlay`` (lower, upper, work, at; or else a read-only bind), ``bind`` (source, at,
    readonly, recursive; ``inside``: the source is a path of the view, with what was mounted on it so far), ``tmpfs`` (at), ``remove``
    (at), ``copy`` (source, at, mode), ``mkdir`` (at), ``link`` (at, to). Raises OSError.
    """
    _own_namespace()
    root = plan["root"]
    if root.get("lower"):
        _overlay(root["lower"], root["upper"], root["work"], root["at"])
    else:
        _mount("tmpfs", root["at"], "tmpfs", 0, "mode=0755")
    os.makedirs(root["at"] + OLD, mode=0o700, exist_ok=True)
    os.chdir(root["at"])
    _check(_libc().pivot_root(b".", os.fsencode(root["at"] + OLD)), "pivot_root")
    os.chdir("/")
    for op in plan["then"]:
        try:
            OPS[op["op"]](op)
        except OSError:
            if not op.get("optional"):
                raise
    _check(_libc().umount2(OLD.encode(), MNT_DETACH), "umount2")
    os.rmdir(OLD)


def _own_namespace() -> None:
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0:
        _check(_libc().unshare(CLONE_NEWNS), "unshare")
    else:
        _check(_libc().unshare(CLONE_NEWNS | CLONE_NEWUSER), "unshare")
        # The same ids inside: capabilities last until exec, so the mounts below are ours and the program gets none.
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    _mount(None, "/", None, MS_REC | MS_PRIVATE, None)


def _overlay(lower: str, upper: str, work: str, at: str) -> None:
    options = ",".join(f"{k}={_escape(v)}" for k, v in (("lowerdir", lower), ("upperdir", upper), ("workdir", work)))
    _mount("overlay", at, "overlay", 0, options + ("" if os.geteuid() == 0 and _initial_user_namespace() else ",userxattr"))


def _initial_user_namespace() -> bool:
    with open("/proc/self/uid_map") as file:
        return file.read().split() == ["0", "0", "4294967295"]


def _op_overlay(op: dict[str, Any]) -> None:
    try:
        os.makedirs(op["at"], exist_ok=True)
        _overlay(OLD + op["lower"], OLD + op["upper"], OLD + op["work"], op["at"])
    except OSError:
        # Some file systems cannot lie under an overlay: readable, then, and refused for writing.
        _bind(OLD + op["lower"], op["at"], readonly=True, recursive=True)


def _op_bind(op: dict[str, Any]) -> None:
    source = op["source"] if op.get("inside") else OLD + op["source"]
    _bind(source, op["at"], readonly=op.get("readonly", False), recursive=op.get("recursive", False))


def _op_tmpfs(op: dict[str, Any]) -> None:
    os.makedirs(op["at"], exist_ok=True)
    _mount("tmpfs", op["at"], "tmpfs", 0, "mode=" + op.get("mode", "0755"))


def _op_remove(op: dict[str, Any]) -> None:
    try:
        if stat.S_ISDIR(os.lstat(op["at"]).st_mode):
            return  # a folder is no recorded output; what lies in it is named by itself
        os.unlink(op["at"])
    except (FileNotFoundError, NotADirectoryError):
        pass


def _op_copy(op: dict[str, Any]) -> None:
    os.makedirs(os.path.dirname(op["at"]), exist_ok=True)
    _op_remove(op)
    shutil.copyfile(OLD + op["source"], op["at"])
    os.chmod(op["at"], op.get("mode", 0o644))


def _op_mkdir(op: dict[str, Any]) -> None:
    os.makedirs(op["at"], exist_ok=True)


def _op_link(op: dict[str, Any]) -> None:
    os.makedirs(os.path.dirname(op["at"]), exist_ok=True)
    _op_remove(op)
    os.symlink(op["to"], op["at"])


OPS: dict[str, Callable[[dict[str, Any]], None]] = {
    "overlay": _op_overlay,
    "bind": _op_bind,
    "tmpfs": _op_tmpfs,
    "remove": _op_remove,
    "copy": _op_copy,
    "mkdir": _op_mkdir,
    "link": _op_link,
}


def _bind(source: str, at: str, *, readonly: bool, recursive: bool) -> None:
    if os.path.isdir(source):
        os.makedirs(at, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(at), exist_ok=True)
        if not os.path.lexists(at):
            with open(at, "x"):
                pass
    _mount(source, at, None, MS_BIND | (MS_REC if recursive else 0), None)
    if readonly:
        # In a user namespace the flags that the mount has already are locked and must be given again.
        flags = os.statvfs(at).f_flag
        kept = flags & (2 | 4 | 8 | 1024 | 2048) | (MS_RELATIME if flags & 4096 else 0)
        _mount(None, at, None, MS_REMOUNT | MS_BIND | MS_RDONLY | kept, None)


def _escape(path: str) -> str:
    return path.replace("\\", "\\\\").replace(",", "\\,").replace(":", "\\:")


def _mount(source: str | None, at: str, kind: str | None, flags: int, data: str | None) -> None:
    def raw(text: str | None) -> bytes | None:
        return None if text is None else os.fsencode(text)

    _check(_libc().mount(raw(source), raw(at), raw(kind), ctypes.c_ulong(flags), raw(data)), f"mount {kind or source} on {at}")


_LIBC: ctypes.CDLL | None = None


def _libc() -> ctypes.CDLL:
    global _LIBC
    if _LIBC is None:
        _LIBC = ctypes.CDLL(None, use_errno=True)
    return _LIBC


def _check(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
