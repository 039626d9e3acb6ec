"""Senders for journals that were written elsewhere: a spool that grows under our eyes, and a folder that was copied from another place."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import _spool
from .._reader import Chunk, Reader, _Segment, read_json
from .._records import SEGMENT_HEADER
from ..errors import FormatError
from .outbox import Outbox
from .run import RunSender

LOOK_EVERY_SECONDS = 1.0


class _Read(_Segment):
    """A segment that was read, not mapped: a map of a file that another machine removes is a SIGBUS."""

    def __init__(self, path: Path, about: Mapping[str, Any], kept: bytes = b"") -> None:
        self._kept = kept
        super().__init__(path, about)

    def _bytes(self) -> bytes:
        data = bytearray(self._kept)
        with open(self.path, "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            while len(data) < size:
                piece = os.pread(file.fileno(), size - len(data), len(data))
                if not piece:
                    break
                data += piece
        if len(data) < SEGMENT_HEADER.size:
            raise FileNotFoundError(f"{self.path} has no header yet")  # it comes with the next look
        return bytes(data)


class SpoolReader(Reader):
    """Follows a journal whose files grow, on a filesystem that shows it late."""

    _looked = 0.0

    def _open(self, path: Path) -> _Segment | None:
        if self._about is None:
            self._about = read_json(self.folder / "writer.json")
        try:
            return _Read(path, self._about or {})
        except FormatError as error:
            if "newer" in str(error):
                raise
            return None
        except OSError:
            return None

    def _grow(self) -> bool:
        """The segment as it is now, without moving."""
        segment = self._segment
        if segment is None:
            return False
        try:
            fresh = _Read(segment.path, self._about or {}, segment.map[: self._position])
        except (OSError, FormatError):
            return False
        if fresh.size == segment.size and fresh.map == segment.map:
            return False
        self._segment, self._dead_end = fresh, None
        return True

    def waiting(self) -> bool:
        if super().waiting():
            return True
        now = time.monotonic()
        if now - self._looked < LOOK_EVERY_SECONDS:
            return False
        self._looked = now
        return self._grow() and super().waiting()

    def read(self, limit: int = 3 << 20, settled: bool = False, records: int = 1 << 40, docs_only: bool = False) -> Chunk | None:
        self._grow()  # what another reader of the same file has seen is seen here too, else it would be taken for lost
        return super().read(limit, settled, records, docs_only)

    def _following(self) -> _Segment | None:
        found = super()._following()
        # The node writes a segment to its end before it begins the next: what we have of this one may be older than that.
        return None if found is not None and self._grow() else found


class CopyReader(Reader):
    """Of a folder that was copied, perhaps while it was written: a gap here may be whole in the original, so it is no hole to be told."""

    torn_at: int | None = None

    def seek(self, record: int) -> None:
        self.torn_at = None
        super().seek(record)

    def waiting(self) -> bool:
        return self.torn_at is None and super().waiting()

    def read(self, limit: int = 3 << 20, settled: bool = False, records: int = 1 << 40, docs_only: bool = False) -> Chunk | None:
        began = self.next
        chunk = super().read(limit, settled, records, docs_only)
        if chunk is None or not chunk.holes:
            return chunk
        torn = min(first for first, _ in chunk.holes)
        self.seek(began)
        if torn <= began:
            self.torn_at = torn
            return None
        return super().read(limit, settled, torn - began, docs_only)


class CopyOutbox(Outbox):
    """Of a copied folder: what cannot be read here is no hole."""

    def __init__(self, folder: Path, about: dict[str, Any], trust_acks: bool) -> None:
        super().__init__(folder, about, trust_acks)
        self.reader = CopyReader(folder)

    @property
    def lost_tail(self) -> tuple[int, int] | None:
        return None


class SyncSender(RunSender):
    """As `encore sync` needs it: it remembers why files did not go."""

    blobs_error: str | None = None

    def _send_blobs(self, waiting: dict[str, Path]) -> None:
        super()._send_blobs(waiting)
        self.blobs_error = self._uploads_error


class CopySender(SyncSender):
    """Sends what a copied folder holds without a gap."""

    def rescan(self) -> None:
        before = set(self.outboxes)
        super().rescan()
        for name in set(self.outboxes) - before:
            self.outboxes[name] = CopyOutbox(self.folder / name, self.outboxes[name].about, self.trust_acks)

    @property
    def torn(self) -> dict[str, int]:
        """writer -> the record at which its copy breaks off."""
        found = {box.id: getattr(box.reader, "torn_at", None) for box in self.outboxes.values()}
        return {name: record for name, record in found.items() if record is not None}


class SpoolSender(SyncSender):
    """Sends what nodes drain into a spool, says that a run lives as long as its nodes say so, and hands the server's word to them.

    No lock is taken there: several may watch one spool, which the record ranges make harmless.
    """

    def __init__(self, folder: Path, url: str | None, token: str | None, watch: bool) -> None:
        super().__init__(folder, url, token, liveness=False, trust_acks=False)
        self.watch = watch
        self.count: tuple[Any, ...] | None = None
        self.beaten: tuple[Any, ...] | None = None
        self.moved_at = 0.0
        self._answered: dict[str, Any] | None = None

    def elect(self) -> bool:
        return True

    def rescan(self) -> None:
        before = set(self.outboxes)
        super().rescan()
        for name in set(self.outboxes) - before:
            box = self.outboxes[name]
            box.reader, box.eyes = SpoolReader(box.folder), SpoolReader(box.folder)

    def look(self) -> bool:
        """Whether a node has given a sign since the last look. What nodes say of their trainers is taken over."""
        marks = _spool.marks(self.folder)
        count = tuple(sorted((str(mark.get("node")), mark.get("count")) for mark in marks))
        if count == self.count:
            return False
        first, self.count = self.count is None, count
        if not first:
            self.moved_at = time.monotonic()
        for name in {name for mark in marks for name in mark.get("gone") or ()}:
            box = self.outboxes.get(name)
            if box is not None and not box.gone_told:
                box.dead = True
                box.told_gone()
        return True

    def step(self) -> bool:
        self.look()
        return super().step()

    def _heartbeat(self) -> None:
        # Only if a node moved since the last one: a node that vanished falls silent at the server too, by the server's clock.
        if not self.watch or not self.moved_at or self.beaten == self.count or time.monotonic() < self._next_heartbeat:
            return
        self.beaten, self.liveness = self.count, True
        try:
            super()._heartbeat()
        finally:
            self.liveness = False

    def _heed(self, answer: dict[str, Any]) -> None:
        """To the nodes. What asks for something is written each time anew, since they heed only news."""
        said = {key: value for key, value in answer.items() if key in ("stop", "ask") and value}
        if not self.watch or (not said and not self._answered):
            self._answered = said
            return
        self._answered = said
        _spool.put_answer(self.folder, answer)
