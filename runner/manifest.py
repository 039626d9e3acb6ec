"""The manifest of a source snapshot (docs/formats.md, Recipe): read as hostile input, restored as files, measured again."""

from __future__ import annotations

import base64
import json
import os
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blake3 import blake3

from runner.errors import RecipeFailure

FORMAT = 1
MODES = {"100644": 0o644, "100755": 0o755, "120000": None}
LINK = "120000"
MAX_LINK_BYTES = 4096


@dataclass(frozen=True)
class File:
    path: bytes
    mode: str
    digest: str
    bytes: int
    state: str

    @property
    def name(self) -> str:
        return os.fsdecode(self.path)


@dataclass(frozen=True)
class Manifest:
    files: tuple[File, ...]
    mounts: tuple[tuple[str, str], ...]
    """Original absolute folder -> prefix in this manifest."""


def parse(raw: bytes) -> Manifest:
    """Raises RecipeFailure ``source_differs`` for anything but a manifest whose every name stays inside the folder."""
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise _refuse(f"it is not JSON ({error})") from None
    if not isinstance(body, dict) or not isinstance(body.get("files"), list):
        raise _refuse("it has no list of files")
    if body.get("format") != FORMAT:
        raise _refuse(f"its format is {body.get('format')!r}, this worker reads {FORMAT}")
    files = tuple(_file(entry) for entry in body["files"])
    _check_tree(files)
    return Manifest(files, tuple(_mounts(body.get("mounts"))))


def _file(entry: Any) -> File:
    if not isinstance(entry, dict):
        raise _refuse(f"{entry!r} is no file")
    if isinstance(entry.get("path_b64"), str):
        try:
            path = base64.b64decode(entry["path_b64"], validate=True)
        except ValueError:
            raise _refuse(f"the name {entry['path_b64']!r} is not base64") from None
    elif isinstance(entry.get("path"), str):
        try:
            path = entry["path"].encode()
        except UnicodeEncodeError:
            raise _refuse(f"the name {entry['path']!r} is not UTF-8") from None
    else:
        raise _refuse("a file has no name")
    check_name(path)
    mode, digest = entry.get("mode"), entry.get("digest")
    if mode not in MODES:
        raise _refuse(f"{path!r} has mode {mode!r}; only regular files and symbolic links are restored")
    if not is_digest(digest):
        raise _refuse(f"{path!r} has no digest this worker knows")
    size = entry.get("bytes")
    return File(path, str(mode), str(digest), size if isinstance(size, int) and size >= 0 else 0, str(entry.get("state", "")))


def check_name(path: bytes) -> None:
    """Refuses what could leave the folder, or could make git (which runs outside the isolation) execute something."""
    parts = path.split(b"/")
    if not path or b"\0" in path or any(part in (b"", b".", b"..") for part in parts):
        raise _refuse(f"the name {path!r} does not stay inside the folder")
    if any(part.lower() == b".git" for part in parts):
        raise _refuse(f"the name {path!r} lies in a .git folder, which is never restored")
    if any(len(part) > 255 for part in parts) or len(path) > 4000:
        raise _refuse(f"the name {path[:80]!r}… is too long")


def _check_tree(files: Iterable[File]) -> None:
    names: set[bytes] = set()
    for file in files:
        if file.path in names:
            raise _refuse(f"{file.path!r} appears twice")
        names.add(file.path)
    for name in names:
        parts = name.split(b"/")
        for end in range(1, len(parts)):
            if b"/".join(parts[:end]) in names:
                raise _refuse(f"{b'/'.join(parts[:end])!r} is both a file and a folder")


def _mounts(value: Any) -> Iterable[tuple[str, str]]:
    for entry in value if isinstance(value, list) else []:
        at, prefix = (entry.get("at"), entry.get("prefix")) if isinstance(entry, dict) else (None, None)
        if not isinstance(at, str) or not at.startswith("/") or not isinstance(prefix, str):
            raise _refuse(f"{entry!r} is no mount")
        if prefix.strip("/"):
            check_name(prefix.strip("/").encode())
        yield os.path.normpath(at), prefix.strip("/")


def is_digest(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 71 and value.startswith("blake3:") and all(c in "0123456789abcdef" for c in value[7:])


def restore(manifest: Manifest, folder: Path, put: Callable[[str, Path], None]) -> None:
    """Writes every file below ``folder`` (which is empty). ``put(digest, path)`` writes a blob's checked bytes to a new file.

    Links come last, so that no file can be written through one.
    """
    links = [file for file in manifest.files if file.mode == LINK]
    for file in manifest.files:
        if file.mode == LINK:
            continue
        target = folder / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        put(file.digest, target)
        target.chmod(MODES[file.mode] or 0o644)
    for file in links:
        target = folder / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        text = folder / f".encore-link-{os.getpid()}"
        put(file.digest, text)
        content = text.read_bytes()
        text.unlink()
        if not content or len(content) > MAX_LINK_BYTES or b"\0" in content:
            raise _refuse(f"the link {file.path!r} has no usable target")
        os.symlink(content, os.fsencode(target))


def tree_digest(manifest: Manifest, folder: Path) -> str:
    """Of the files as they lie in ``folder`` now, over the manifest's names. Raises RecipeFailure if one is missing or of another kind."""
    tree = blake3()
    for file in manifest.files:
        path = folder / file.name
        try:
            status = path.lstat()
            if stat.S_ISLNK(status.st_mode):
                mode, digest = LINK, "blake3:" + blake3(os.fsencode(os.readlink(path))).hexdigest()
            elif stat.S_ISREG(status.st_mode):
                mode, digest = ("100755" if status.st_mode & 0o100 else "100644"), file_digest(path)
            else:
                raise _refuse(f"{file.path!r} is neither a file nor a link")
        except OSError as error:
            raise _refuse(f"{file.path!r} cannot be read back ({error})") from error
        tree.update(f"{mode} {digest} ".encode() + file.path + b"\n")
    return "blake3:" + tree.hexdigest()


def file_digest(path: Path) -> str:
    hasher = blake3(max_threads=blake3.AUTO)
    if path.stat().st_size > 1 << 20:
        hasher.update_mmap(path)
    else:
        hasher.update(path.read_bytes())
    return "blake3:" + hasher.hexdigest()


def _refuse(why: str) -> RecipeFailure:
    return RecipeFailure("source_differs", f"The recorded source cannot be restored: {why}.")
