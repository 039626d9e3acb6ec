"""Files that are whole or not there: documents, blobs, and the lock that shows a process alive."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from pathlib import Path
from time import monotonic_ns
from typing import Any


def put_blob(folder: Path, data: bytes | bytearray | memoryview | str | os.PathLike[str]) -> str:
    """Bytes (or a copy of a file) under their digest; returns "blake3:<hex>"."""
    from blake3 import blake3

    aside = folder / f".{os.getpid()}-{threading.get_ident()}-{monotonic_ns()}"
    try:
        if isinstance(data, (bytes, bytearray, memoryview)):
            digest = blake3(data).hexdigest()
            target = folder / digest
            if target.exists():
                return f"blake3:{digest}"
            aside.write_bytes(data)
        else:
            hasher = blake3()
            with open(data, "rb") as source, open(aside, "wb") as copy:
                while chunk := source.read(1 << 20):
                    hasher.update(chunk)
                    copy.write(chunk)
            digest = hasher.hexdigest()
            target = folder / digest
        os.replace(aside, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(aside)
        raise
    return f"blake3:{digest}"


def write_json(path: Path, value: Any) -> None:
    """Whole or not at all."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_bytes(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace"))
    os.replace(aside, path)


def hold(path: Path) -> Any:
    """A lock that the system drops with this process, however it dies: the sender sees life and death by it, also across pid namespaces."""
    try:
        import fcntl

        file = open(path, "wb")  # noqa: SIM115 - open as long as the process
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return file
    except (ImportError, OSError):
        return None
