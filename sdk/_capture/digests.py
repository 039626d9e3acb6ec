"""Digests of bytes and files; large files by chunks and remembered between runs by size, mtime and inode."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

from . import paths

CHUNK_BYTES = 8 << 20
# Above this a file is sampled, and said to be: hashing 16 GiB takes some 4 s of a core.
FULL_BYTES = 16 << 30
SAMPLE_BYTES = 4 << 20
SAMPLES = 64
REMEMBER_BYTES = 1 << 20
MAX_REMEMBERED = 10_000


def digest(data: bytes) -> str:
    from blake3 import blake3

    return "blake3:" + blake3(data).hexdigest()


def canonical(value: Any) -> bytes:
    """Canonical JSON (docs/formats.md)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")


class Changed(Exception):
    """The file was changed while it was read."""


def of_file(path: str, stop: threading.Event | None = None) -> tuple[str, str, os.stat_result]:
    """(digest, strength `full` or `sampled`, stat) of the file's content as it is now. Raises OSError, Changed."""
    from blake3 import blake3

    with open(path, "rb", buffering=0) as file:
        before = os.fstat(file.fileno())
        hasher = blake3()
        if before.st_size <= FULL_BYTES:
            strength = "full"
            buffer = bytearray(min(CHUNK_BYTES, max(1, before.st_size)))
            view = memoryview(buffer)
            while count := file.readinto(buffer):
                hasher.update(view[:count])
                if stop is not None and stop.is_set():
                    raise Changed("stopped")
        else:
            strength = "sampled"
            hasher.update(before.st_size.to_bytes(8, "little"))
            for index in range(SAMPLES):  # first and last bytes are always among them
                file.seek((before.st_size - SAMPLE_BYTES) * index // (SAMPLES - 1))
                hasher.update(file.read(SAMPLE_BYTES) or b"")
        after = os.fstat(file.fileno())
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise Changed("it was changed while it was read")
    return "blake3:" + hasher.hexdigest(), strength, after


class Remembered:
    """Digests of large files from earlier runs: a 200 GB data set is hashed once. Only an unchanged file is answered from it."""

    def __init__(self, folder: str | None = None) -> None:
        self.file = Path(folder or paths.cache_folder()) / "digests.json"
        self.lock = threading.Lock()
        self.values: dict[str, list[Any]] = {}
        self.changed = False
        try:
            loaded = json.loads(self.file.read_text(encoding="utf-8"))
            if isinstance(loaded, dict):
                self.values = {str(key): value for key, value in loaded.items() if isinstance(value, list) and len(value) == 3}
        except (OSError, ValueError):
            pass

    def of_file(self, path: str, stop: threading.Event | None = None) -> tuple[str, str, os.stat_result]:
        """As `of_file`, from memory where size, mtime, ctime and inode are those of last time."""
        stat = os.stat(path)
        mark = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_dev]
        with self.lock:
            known = self.values.get(path)
        if known and known[0] == mark:
            return str(known[1]), str(known[2]), stat
        found, strength, stat = of_file(path, stop)
        if stat.st_size >= REMEMBER_BYTES:
            with self.lock:
                self.values.pop(path, None)
                self.values[path] = [[stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_dev], found, strength]
                self.changed = True
        return found, strength, stat

    def save(self) -> None:
        """Write aside and rename; a cache that cannot be written is no loss."""
        with self.lock:
            if not self.changed:
                return
            kept = dict(list(self.values.items())[-MAX_REMEMBERED:])
            self.changed = False
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            aside = self.file.with_name(f".{self.file.name}.{os.getpid()}")
            aside.write_text(json.dumps(kept), encoding="utf-8")
            os.replace(aside, self.file)
        except OSError:
            pass
