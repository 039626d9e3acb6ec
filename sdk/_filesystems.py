"""Which filesystem a folder lies on, and what a journal may do there.

Tried on a disk that was filled to the last block: a segment reserved by posix_fallocate, mapped, written, written back and written again
lives on ext4, xfs, tmpfs and overlay; on btrfs the store is SIGBUS (the second write takes new blocks), which kills training. So only the
tried ones are mapped; other local ones go by write(2), whose full disk is an error that can be counted; and what lies across a network or
in another process (NFS, Lustre, GPFS, FUSE, …) or is not known here is not trusted with the hot part at all.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

MAPPED = frozenset(("ext2", "ext3", "ext4", "xfs", "tmpfs", "overlay", "apfs", "hfs", "ntfs"))
LOCAL = frozenset(("btrfs", "zfs", "f2fs", "bcachefs", "jfs", "nilfs2", "reiserfs", "ntfs3", "vfat", "exfat", "msdos", "ufs"))
MAGIC = {  # statfs f_type, where /proc/self/mountinfo cannot be read
    0xEF53: "ext4",
    0x58465342: "xfs",
    0x01021994: "tmpfs",
    0x794C7630: "overlay",
    0x9123683E: "btrfs",
    0x2FC12FC1: "zfs",
    0xF2F52010: "f2fs",
    0xCA451A4E: "bcachefs",
    0x6969: "nfs",
    0x0BD00BD0: "lustre",
    0x47504653: "gpfs",
    0x65735546: "fuse",
    0x19830326: "beegfs",
    0x00C36400: "ceph",
    0xFF534D42: "cifs",
    0xFE534D42: "smb2",
    0x01021997: "9p",
    0x5346414F: "afs",
}


@dataclass(frozen=True)
class Filesystem:
    kind: str  # as the system calls it: "ext4", "nfs4", "fuse.sshfs", …
    journal: str  # "map", "write" or "none": how a journal may be written there

    @property
    def shared(self) -> bool:
        """Not this machine's own, or nobody knows."""
        return self.journal == "none"


def of(path: Path | str) -> Filesystem:
    """Of the folder, or of the next one above it that exists. Never raises."""
    place = _existing(Path(path))
    kind = _kind(place)
    if kind in MAPPED and not (kind == "overlay" and _no_inode_count(place)):
        return Filesystem(kind, "map")
    if kind in MAPPED or kind in LOCAL:
        return Filesystem(kind, "write")
    if kind == "" and not sys.platform.startswith("linux"):
        return Filesystem("unknown", "map")  # macOS and Windows: local disks by far; network ones there are named
    return Filesystem(kind or "unknown", "none")


def _existing(path: Path) -> str:
    try:
        path = path.absolute()
        while not path.exists() and path != path.parent:
            path = path.parent
        return os.path.realpath(path)
    except (OSError, ValueError):
        return str(path)


def _kind(place: str) -> str:
    try:
        with open("/proc/self/mountinfo", "rb") as file:
            return kind_in(file.read(), place) or _by_statfs(place)
    except OSError:
        return _by_statfs(place)


def kind_in(mountinfo: bytes, place: str) -> str:
    """The type of the mount that `place` (a real path) lies on: the longest mount point above it, the last one mounted there."""
    best, kind = -1, ""
    sought = os.fsencode(place).rstrip(b"/") + b"/"
    for line in mountinfo.splitlines():
        before, _, after = line.partition(b" - ")
        fields = before.split(b" ")
        if len(fields) < 5 or not after:
            continue
        point = _plain(fields[4]).rstrip(b"/") + b"/"
        if sought.startswith(point) and len(point) >= best:
            best, kind = len(point), after.split(b" ", 1)[0].decode("ascii", "replace")
    return kind


def _plain(point: bytes) -> bytes:
    """Blanks and the like are written as octal there."""
    for octal, character in ((b"\\040", b" "), (b"\\011", b"\t"), (b"\\012", b"\n"), (b"\\134", b"\\")):
        point = point.replace(octal, character)
    return point


def _by_statfs(place: str) -> str:
    """By the C library. "" where that cannot be told."""
    try:
        import ctypes

        buffer = ctypes.create_string_buffer(4096)
        libc = ctypes.CDLL(None, use_errno=True)
        if sys.platform == "darwin":
            call = getattr(libc, "statfs$INODE64", None) or libc.statfs
            if call(os.fsencode(place), buffer) != 0:
                return ""
            return buffer.raw[72:88].split(b"\0", 1)[0].decode("ascii", "replace")
        if not sys.platform.startswith("linux") or libc.statfs(os.fsencode(place), buffer) != 0:
            return ""
        magic = int.from_bytes(buffer.raw[:4], sys.byteorder)
        return MAGIC.get(magic, f"0x{magic:x}")
    except (OSError, AttributeError, ValueError, ImportError):
        return ""


def _no_inode_count(place: str) -> bool:
    """An overlay answers as its upper layer does, and btrfs counts no inodes: so a container on btrfs shows."""
    try:
        return os.statvfs(place).f_files == 0
    except (OSError, AttributeError):
        return False
