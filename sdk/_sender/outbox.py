"""One writer's way to the server: what is read, sent, acknowledged, refused."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from pathlib import Path
from typing import Any

from .. import _liveness, _secrets, _wire
from .._ids import id_bytes
from .._journal import write_json
from .._plain import dumps, text
from .._reader import Chunk, Reader, first_record, read_json
from .._records import DOC, NO_STEP, RECORD, RECORD_BYTES, SEGMENT_HEADER, SEGMENT_MAGIC, padded, segment_name
from .._transport import Answer, Transport, compress
from . import limits

CRASH_BYTES = 64 << 10
CRASHES = {  # faulthandler's words
    "Segmentation fault": "SIGSEGV",
    "Aborted": "SIGABRT",
    "Bus error": "SIGBUS",
    "Floating-point exception": "SIGFPE",
    "Floating point exception": "SIGFPE",
    "Illegal instruction": "SIGILL",
}


class Outbox:
    """Follows one writer folder. Two readers: `eyes` for what concerns this host (documents), and one for what the server lacks."""

    def __init__(self, folder: Path, about: dict[str, Any], trust_acks: bool = True) -> None:
        """trust_acks: believe ack.json; not when the folder may have been sent to another server."""
        self.folder, self.about = folder, about
        self.id, self.run, self.kind = str(about["writer"]), str(about["run"]["id"]), str(about.get("kind", "trainer"))
        self.attempt = 1  # the k-th start of its rank on this host
        self.child = bool(about.get("parent"))
        self.told = about  # what the server gets as writer.json (held.py)
        self.join: dict[str, Any] | None = None  # the document that names the launch's run
        ack = read_json(folder / "ack.json") or {}
        self.next = int(ack.get("next") or 0) if trust_acks else 0
        self.sealed, self.gone_told = bool(ack.get("sealed")) and trust_acks, bool(ack.get("gone"))
        self.deleted: str | None = None
        self.broken: str | None = None  # why it cannot be read
        self.rested = False
        self.opened = False
        self._stalled: tuple[tuple[int, bool], float] | None = None  # bytes that do not become a record, and since when
        self.finish: dict[str, Any] | None = None
        self.finish_record: int | None = None
        self.missing_since: float | None = None
        self.dead = False
        self.max_records = 1 << 40
        self.wait_until = 0.0  # after a refusal that concerns this writer alone
        self._wait = 0.0
        self._stuck: tuple[int, float, int] = (-1, 0.0, 0)  # (record, since, tries) that makes the server fail
        self._posted = 0  # records of the last batch
        self.set_aside_next = False
        self.reader = Reader(folder)
        self.eyes = Reader(folder)
        self.docs = 0  # seen; what is seen beside them are points

    # Seeing ---------------------------------------------------------------------------------------------------------------------

    def look(self) -> list[dict[str, Any]]:
        """New documents of the journal, whether sent or not."""
        docs = []
        before = self.eyes.next
        while self.eyes.waiting() or self.dead:
            chunk = self.eyes.read(settled=self.dead, docs_only=True)
            if chunk is None:
                at = (self.eyes.next, self.dead)
                if self._stalled is None or self._stalled[0] != at:
                    self._stalled = (at, time.monotonic())
                break
            self.eyes.relax()
            self.docs += len(chunk.docs)
            self._stalled = None
            for number, _, _, doc in chunk.docs:
                docs.append(doc)
                if doc.get("type") == "join":
                    self.join = doc
                if doc.get("type") == "event" and doc.get("name") == "finish":
                    self.finish, self.finish_record = dict(doc.get("data") or {}), number
                    if self.next > number and not self.sealed and self.opened:  # it was sent before it was seen here
                        self.sealed = True
                        self._write_ack()
        if self.eyes.next != before or self.dead:
            self.eyes.relax()
        return docs

    def rest(self) -> None:
        """Nothing of it will ever change again: no more looks at it, and no memory for it. A node has hundreds of such in a long run."""
        if not self.rested and (self.sealed or self.gone_told or self.deleted is not None) and self.delivered:
            self.rested = True
            self.reader.close()
            self.eyes.close()

    @property
    def seen_all(self) -> bool:
        """Nothing readable is left: what still lies there is the torn record of a process that died in it, and stays so."""
        if self.rested:
            return True
        if not self.eyes.waiting():
            return True
        return self._stalled is not None and (self.dead or time.monotonic() - self._stalled[1] > limits.TORN_SECONDS)

    @property
    def lost_tail(self) -> tuple[int, int] | None:
        """Records that are counted but cannot be read, behind all that can (first, last): told as a hole."""
        if (self.dead or self.finish is not None) and self.seen_all and self.reader.next == self.next < self.eyes.next:
            return self.next, self.eyes.next - 1
        return None

    @property
    def ended(self) -> bool:
        """It will write no more: it said so, or its process is gone."""
        return self.finish is not None or self.sealed or self.gone_told

    @property
    def delivered(self) -> bool:
        """Everything of it that is known here has been acknowledged (or the server wants none of it)."""
        return self.deleted is not None or (self.broken is None and self.next >= self.eyes.next and self.seen_all)

    @property
    def unsent(self) -> int:
        return 0 if self.deleted else max(0, self.eyes.next - self.next)

    def check_alive(self, now: float) -> bool | None:
        """False only when its process has been missing for two looks in a row."""
        found = _liveness.alive(self.folder, self.about)
        if found is not False:
            self.missing_since = None
            return found
        if self.missing_since is None:
            self.missing_since = now
            return True
        return False

    # Sending --------------------------------------------------------------------------------------------------------------------

    def open(self, transport: Transport) -> dict[str, Any]:
        answer = transport.call("POST", "ingest/writers", self.told)
        self.opened = True
        self._go_to(int(answer.get("next") or 0))
        return answer

    def read(self) -> Chunk | None:
        if not (self.reader.waiting() or self.dead or self.finish is not None):
            return None
        return self.reader.read(limits.BATCH_RECORD_BYTES, settled=self.dead or self.finish is not None, records=self.max_records)

    def encode(self, chunk: Chunk, known: set[str]) -> tuple[bytes, str | None, list[str]]:
        self._posted = chunk.last - chunk.first + 1
        body, hashes = _wire.encode(self.run, self.id, chunk, known)
        self.reader.relax()
        packed, encoding = compress(body)
        return packed, encoding, hashes

    def post(self, transport: Transport, body: bytes, encoding: str | None) -> Answer:
        headers = {"Content-Type": "application/vnd.encore.batch"}
        if encoding:
            headers["Content-Encoding"] = encoding
        return transport.send("POST", f"ingest/writers/{self.id}/batches", body, headers)

    def wait(self) -> float:
        """The next wait of this writer alone, doubled each time."""
        self._wait = min(limits.LONGEST_WAIT_SECONDS, max(limits.FIRST_WAIT_SECONDS, self._wait * 2))
        return self._wait

    def taken(self) -> None:
        self._wait, self._stuck = 0.0, (-1, 0.0, 0)

    def failed(self, record: int) -> tuple[float, int, int]:
        """(since when, how often, with how many records) a batch from this record on has made the server fail."""
        at, since, tries = self._stuck
        self._stuck = (record, since, tries + 1) if at == record else (record, time.monotonic(), 1)
        return self._stuck[1], self._stuck[2], self._posted

    def acknowledged(self, next_record: int) -> None:
        """The server has everything below: say so on disk, and let go of segments that are wholly delivered (but the last)."""
        if next_record != self.reader.next:
            self._go_to(next_record)
        self.next = next_record
        if self.max_records < 1 << 40:
            self.max_records = min(1 << 40, self.max_records * 2)
        if self.finish_record is not None and next_record > self.finish_record:
            self.sealed = True
        self._write_ack()
        self._unlink()
        self.reader.relax()

    def _go_to(self, record: int) -> None:
        self.next = record
        self.reader.seek(record)

    def again_from(self, record: int) -> None:
        self._go_to(record)

    def refuse(self, transport: Transport, chunk: Chunk, answer: Answer) -> Answer | None:
        """The server will never take this. Halve the range until the poison stands alone, then send a hole in its place."""
        if chunk.last > chunk.first:
            self.max_records = max(1, (chunk.last - chunk.first + 1) // 2)
            self.reader.seek(chunk.first)
            return None
        self.set_aside(chunk, answer)
        return self.post(transport, _wire.encode_hole(self.run, self.id, chunk.first, chunk.last), None)

    def set_aside(self, chunk: Chunk, answer: Answer) -> None:
        """Keep what the server will not take, with its reason, beside the journal."""
        error = answer.error()
        self._keep_refused(chunk)
        line = {"first": chunk.first, "last": chunk.last, "status": answer.status, "code": error.code, "message": error.message}
        with open(self.folder / "refused.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def _keep_refused(self, chunk: Chunk) -> None:
        """The segment goes once all around it is delivered; what was refused stays, as the batch that it was."""
        body, _ = _wire.encode(self.run, self.id, chunk)
        with contextlib.suppress(OSError):
            folder = self.folder / "refused"
            folder.mkdir(exist_ok=True)
            (folder / f"{chunk.first}-{chunk.last}.batch").write_bytes(body)

    def told_gone(self) -> None:
        self.gone_told = True
        self._write_ack()

    def _write_ack(self) -> None:
        try:
            write_json(self.folder / "ack.json", {"next": self.next, "sealed": self.sealed, **({"gone": True} if self.gone_told else {})})
        except OSError:
            return  # a full or read-only disk: the server knows what it has

    def _unlink(self) -> None:
        upto = min(self.next, self.eyes.next)
        paths = self.reader.segments()
        firsts = []
        for path in paths[1:]:
            try:
                first = first_record(path)
            except Exception:
                return
            if first is None:
                break
            firsts.append(first)
        for path, following_first in zip(paths, firsts, strict=False):
            if following_first > upto:
                return
            path.unlink(missing_ok=True)

    # The last word of the dead --------------------------------------------------------------------------------------------------

    def last_word(self) -> dict[str, Any] | None:
        """How a process ended that could not say it itself: what its C-level marks in the folder tell. None: nobody knows."""
        crashed = self._crash()
        if crashed is not None:
            return crashed
        for path in self.folder.glob("signal-*"):
            try:
                if path.stat().st_size:
                    return {"state": "killed", "exit_code": None, "signal": int(path.name.partition("-")[2]), "error": None, "dropped": {}}
            except (OSError, ValueError):
                continue
        try:
            status = (self.folder / "exit-status").read_bytes()[-4:]
        except OSError:
            return None
        if len(status) != 4:
            return None
        code = int.from_bytes(status, "little", signed=True) & 0xFF
        return {"state": "failed" if code else "finished", "exit_code": code, "signal": None, "error": None, "dropped": {}}

    def _crash(self) -> dict[str, Any] | None:
        """What faulthandler wrote as the process died in C code: `Fatal Python error: Segmentation fault` and the stacks."""
        try:
            said = (self.folder / "crash").read_bytes()[:CRASH_BYTES].decode("utf-8", "replace")
        except OSError:
            return None
        first = said.partition("\n")[0]
        if not first.startswith("Fatal Python error: "):
            return None
        what = first.removeprefix("Fatal Python error: ")
        name = CRASHES.get(what)
        number = getattr(signal, name, None) if name else None
        error = {"type": name or "Fatal Python error", "message": what, "traceback": text(_secrets.mask_text(said))}
        return {"state": "failed", "exit_code": None, "signal": number and int(number), "error": error, "dropped": {}}

    def complete(self, data: dict[str, Any]) -> None:
        """Ends a dead writer's journal with its finish event, in a segment of its own. OSError if the folder cannot be written."""
        self.dead = True
        self.look()
        record = self.eyes.next
        payload = padded(dumps({"type": "event", "name": "finish", "data": data}))
        number = max([int(path.stem) for path in self.reader.segments()], default=-1) + 1
        time_ns = (time.time_ns() // 1000 - self.about["anchor_wall_us"]) * 1000
        body = RECORD.pack(0, 0x4E45, DOC, 0, RECORD_BYTES + len(payload), 0, record, NO_STEP, time_ns)[4:] + payload
        head = SEGMENT_HEADER.pack(
            SEGMENT_MAGIC, SEGMENT_HEADER.size, 0, number, record, id_bytes(self.id), self.about["anchor_wall_us"], 0
        )
        from zlib import crc32

        aside = self.folder / f".{segment_name(number)}"
        aside.write_bytes(head + crc32(body).to_bytes(4, "little") + body)
        aside.replace(self.folder / segment_name(number))
        self.look()
