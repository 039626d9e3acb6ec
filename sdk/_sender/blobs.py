"""Brings the blobs of a run to the store: asks what is missing, packs the small ones, sends the large ones one by one."""

from __future__ import annotations

import contextlib
import http.client
import json
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from .._transport import Transport
from ..errors import ServerRefused, ServerUnreachable
from . import limits

PACK_HEAD = struct.Struct("<4sHHII")


class Blobs:
    """Not thread-safe; lives in the sender's upload thread with a connection of its own."""

    def __init__(self, run: str, transport: Transport, ledger: Path | None = None) -> None:
        """ledger: a file that remembers what is in the store, a name a line."""
        self.run, self.transport, self.ledger = run, transport, ledger
        self.done: set[str] = set()
        if ledger is not None and ledger.exists():
            self.done.update(ledger.read_text().split())
        self.refused: dict[str, str] = {}

    def waiting(self, folders: Iterable[Path]) -> dict[str, Path]:
        """hex -> file of all blobs not yet known to be in the store."""
        found = {}
        for folder in folders:
            try:
                for path in folder.iterdir():
                    if len(path.name) == 64 and path.name not in self.done and path.name not in self.refused:
                        found[path.name] = path
            except OSError:
                continue
        return found

    def send(self, waiting: dict[str, Path]) -> None:
        """ServerUnreachable or ServerRefused (of the whole) when it has to be tried again."""
        names = sorted(waiting)
        for start in range(0, len(names), limits.ASK_AT_ONCE):
            some = names[start : start + limits.ASK_AT_ONCE]
            sizes = {name: waiting[name].stat().st_size for name in some}
            question = {"run": self.run, "blobs": [{"digest": f"blake3:{name}", "bytes": size} for name, size in sizes.items()]}
            answer = self.transport.call("POST", "ingest/blobs/missing", question)
            missing = {str(item["digest"]).partition(":")[2]: item for item in answer.get("missing", [])}
            self._remember([name for name in some if name not in missing])
            pack: list[tuple[str, bytes]] = []
            for name in some:
                if name not in missing:
                    continue
                if missing[name].get("url"):
                    self._put_outside(name, waiting[name], missing[name])
                elif sizes[name] > limits.PACK_BYTES:
                    self._put(name, waiting[name])
                else:
                    pack.append((name, waiting[name].read_bytes()))
                    if sum(len(data) for _, data in pack) > limits.PACK_TOTAL_BYTES:
                        self._send_pack(pack)
                        pack = []
            if pack:
                self._send_pack(pack)

    def _send_pack(self, pack: list[tuple[str, bytes]]) -> None:
        header = json.dumps([{"digest": f"blake3:{name}", "bytes": len(data)} for name, data in pack], separators=(",", ":")).encode()
        header += b" " * (-len(header) % 8)
        body = PACK_HEAD.pack(b"ENCP", 1, 0, len(header), 0) + header + b"".join(data for _, data in pack)
        answer = self.transport.send("POST", f"ingest/blobs/pack?run={self.run}", body, {"Content-Type": "application/vnd.encore.pack"})
        if answer.status in (400, 413, 422) and len(pack) > 1:  # one of them is at fault: find it
            self._send_pack(pack[: len(pack) // 2])
            return self._send_pack(pack[len(pack) // 2 :])
        self._settle([name for name, _ in pack], answer)

    def _put(self, name: str, path: Path) -> None:
        with open(path, "rb") as file:
            headers = {"Content-Type": "application/octet-stream", "Content-Length": str(path.stat().st_size)}
            answer = self.transport.send("PUT", f"ingest/blobs/blake3:{name}?run={self.run}", file, headers)
        self._settle([name], answer)

    def _put_outside(self, name: str, path: Path, item: dict[str, Any]) -> None:
        """Straight to the store, by the address the tracker signed for this one blob."""
        parts = urlsplit(item["url"])
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ServerUnreachable(f"the store's address {item['url'][:80]!r} is none")
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(parts.hostname, parts.port, timeout=60)
        try:
            with open(path, "rb") as file:
                headers = {"Content-Length": str(path.stat().st_size), **(item.get("headers") or {})}
                connection.request("PUT", f"{parts.path}?{parts.query}" if parts.query else parts.path, file, headers)
                response = connection.getresponse()
                response.read()
            if response.status >= 300 and response.status not in (409, 412):  # 412: somebody else has put it meanwhile
                raise ServerUnreachable(f"the store answered {response.status} for a blob")
        except (OSError, http.client.HTTPException) as error:
            raise ServerUnreachable(f"the store: {error}") from None
        finally:
            connection.close()
        self._remember([name])

    def _settle(self, names: list[str], answer: Any) -> None:
        if answer.ok:
            self._remember(names)
        elif answer.status in (400, 413, 422):
            self.refused.update(dict.fromkeys(names, f"{answer.status}: {answer.error().message}"))
        else:
            raise answer.error()

    def _remember(self, names: list[str]) -> None:
        if names and self.ledger is not None:
            with contextlib.suppress(OSError), open(self.ledger, "a") as file:
                file.write("".join(f"{name}\n" for name in names))
        self.done.update(names)


__all__ = ["Blobs", "ServerRefused", "ServerUnreachable"]
