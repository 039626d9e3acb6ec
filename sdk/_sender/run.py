"""Delivers one run from this host: every writer's records, blobs, heartbeats, and the word about those that vanished."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from .. import _liveness, _process, _wire
from .._journal import write_json
from .._reader import read_json
from .._tensorboard.follower import Followers
from .._transport import Answer, Transport
from ..errors import EncoreError, ServerRefused, ServerUnreachable
from . import LOCK, STATUS, limits, oom
from .blobs import Blobs
from .durable import Durable
from .held import Hold
from .node import Node
from .outbox import Outbox
from .stacks import Stacks


class RunSender:
    """Call `step` until `done`. Elected by the run's lock where it can be had; without it (a sync beside a live sender) it only sends."""

    def __init__(
        self,
        folder: Path,
        url: str | None,
        token: str | None,
        *,
        capture: bool = False,
        sample: bool = False,
        liveness: bool = True,
        may_stop: bool = False,
        trust_acks: bool = True,
    ) -> None:
        self.folder, self.run = folder, folder.name
        self.transport = Transport(url, token, limits.ANSWER_SECONDS) if url else None
        self.trust_acks = trust_acks
        self.blobs = Blobs(self.run, Transport(url, token), folder / "blobs.sent" if trust_acks else None) if url else None
        self.capture, self.sample, self.liveness, self.may_stop = capture, sample, liveness, may_stop
        self.outboxes: dict[str, Outbox] = {}
        self.hold = Hold(folder)
        self.node: Node | None = None
        self._earlier: list[Node] = []  # those before it, which come to their ends
        self.followers = Followers(folder)  # TensorBoard's files; at work only in the elected sender
        self.known: set[str] = set()
        self.error: str | None = None
        self.fatal: str | None = None  # the server will have nothing of this run
        self.run_url: str | None = None
        self.stop_told = False
        self.only: str | None = None  # of one writer alone
        self.drain: Any = None  # into a spool, where there is one
        self.durable = Durable(folder, lambda: self.blobs.done if self.blobs is not None else ())
        self.failing_since: float | None = None  # nothing has been taken since
        self.taken_at = 0.0  # when the server last took something
        self._ending_since: float | None = None
        self._memory: dict[str, oom.Watch] = {}
        self._claimed: set[frozenset[str]] = set()
        self._generation = 0
        self._wait_until = 0.0
        self._wait_seconds = 0.0
        self._next_heartbeat = time.monotonic() + 1.0
        self._next_look = 0.0
        self._next_status = 0.0
        self._told: dict[str, Any] = {}
        self._lock: Any = None
        self._uploads: threading.Thread | None = None
        self._uploads_error: str | None = None
        self._uploads_asked = 0.0  # Retry-After
        self._uploads_failing_since: float | None = None
        self._uploads_after = 0.0
        self._uploads_wait = 0.0
        self.stacks = Stacks(self)

    # Election -------------------------------------------------------------------------------------------------------------------

    def elect(self) -> bool:
        """True if this process is now the run's one sender on this host."""
        try:
            import fcntl

            file = open(self.folder / LOCK, "ab")  # noqa: SIM115 - held as long as the sender lives
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.close()
                return False
            self._lock = file
            return True
        except ImportError:
            return True
        except OSError:  # a read-only folder: nobody else can hold it either
            return True

    def resign(self) -> None:
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.close()

    # One round ------------------------------------------------------------------------------------------------------------------

    def step(self) -> bool:
        """One round; True if there is more to do right now."""
        self.rescan()
        self._look()
        if self.drain is not None:
            self.drain.look(self)
        if self.node is not None:
            self.node.step(self.trainers)
        self._tell()  # also before a call that may take half a minute
        self.stacks.step()
        more = self._lock is not None and self.only is None and self.followers.step(self.trainers)
        busy = self._deliver() or more
        self._upload()
        self._heartbeat()
        if self.ending and self.node is not None and not self.node.closed and self.node.end():
            busy = True
        self._tell()
        return busy

    def rescan(self) -> None:
        try:
            names = sorted(entry.name for entry in os.scandir(self.folder) if entry.is_dir())
        except OSError:
            return
        before = set(self.outboxes)
        for name in names:
            if name not in self.outboxes and (self.only in (None, name) or (self.node is not None and name == self.node.writer.id)):
                about = read_json(self.folder / name / "writer.json")
                if about is not None and about.get("writer") and isinstance(about.get("run"), dict):
                    box = self.outboxes[name] = Outbox(self.folder / name, about, self.trust_acks)
                    self._watch_memory(box)
        if len(self.outboxes) > len(before):  # all at once: which start a writer is shows only beside the earlier ones
            self._new_attempt(before)

    def _watch_memory(self, box: Outbox) -> None:
        """While it lives: later nothing tells which control group it was in."""
        if self.liveness and self._here(box) and not box.ended and (box.kind != "node" or box.child):
            pid = int(box.about.get("pid") or 0)
            start = _process.started(pid) if pid > 1 else None
            if start is not None and abs(start - float(box.about.get("pid_started") or -1)) <= 0.02:
                self._memory[box.id] = oom.Watch(pid, start)

    @staticmethod
    def _here(box: Outbox) -> bool:
        """Whether its pid means something here."""
        about = box.about
        return about.get("pid_namespace", _process.pid_namespace()) == _process.pid_namespace() and about.get("host") == _process.host()

    @property
    def trainers(self) -> list[Outbox]:
        """Processes of the program: ranks, and children that a rank forked."""
        return [box for box in self.outboxes.values() if box.kind != "node" or box.child]

    def _new_attempt(self, before: set[str]) -> None:
        """A recipe belongs to an attempt: the k-th start of a rank opens a node writer; so do ranks that come when that one has ended."""
        if not (self.capture or self.sample):
            return
        starts: dict[int, int] = {}
        for box in sorted(self.trainers, key=lambda box: box.about.get("started_us") or 0):
            if not box.child:
                rank = int(box.about.get("rank") or 0)
                box.attempt = starts[rank] = starts.get(rank, 0) + 1
        newest = max(starts.values(), default=0)
        current = [box for box in self.trainers if not box.child and box.attempt == newest and not box.sealed and not box.gone_told]
        late = self.node is None or self.node.ending
        if newest > self._generation or late:
            current = [box for box in current if newest > self._generation or box.id not in before]
            if current:
                self._generation = newest
                self._open_node(min(current, key=lambda box: int(box.about.get("rank") or 0)))

    def _open_node(self, trainer: Outbox) -> Node | None:
        old = self.node
        try:
            same = old is not None and old.trainer.attempt == trainer.attempt
            self.node = Node(trainer, self.folder, self.capture, self.sample, old if same else None)
        except OSError as error:
            self.error = f"the node's own journal cannot be written: {error}"
            return None
        if old is not None:
            old.capture = False
            self._earlier.append(old)
            threading.Thread(target=_end_slowly, args=(old,), daemon=True).start()
        return self.node

    def _look(self) -> None:
        """Documents that concern this host, and processes that are gone."""
        now = time.monotonic()
        for box in self.outboxes.values():
            if (box.sealed and box.eyes.next >= box.next > 0) or box.broken or box.rested:
                box.rest()
                continue
            for doc in self._seen(box):
                if doc.get("type") == "opened" and self._lock is not None and self.only is None:
                    self.followers.opened(box, doc)
                if doc.get("type") == "opened" and self.node is not None:
                    self.node.opened(doc)
                elif doc.get("type") == "throughput" and self.node is not None:
                    self.node.throughput(box, doc)
            box.rest()
        if not self.liveness or now < self._next_look:
            return
        self._next_look = now + limits.LOOK_SECONDS
        self._see_claims()
        for box in self.trainers:
            if box.ended or box.check_alive(now) is not False:
                continue
            box.dead = True
            box.look()  # it may have finished between our last look and its end
            if box.finish is not None:
                continue
            word = box.last_word()
            if box.child:  # children end by os._exit and by their parent's SIGTERM: that is how they end, not a crash
                word = {"state": "finished", "exit_code": None, "signal": None, "error": None, "dropped": {}}
            try:
                if word is not None:
                    box.complete(word)
                    continue
            except OSError as error:
                self.error = f"{box.folder}: {error}"
            # A rank that came when all others had ended finds the node's own journal closed.
            node = self.node if self.node is not None and not self.node.closed else self._open_node(box)
            if node is not None and not node.closed:
                watch = self._memory.get(box.id)
                node.gone(box, watch.killed() if watch is not None else None)
                box.told_gone()
                self._memory.pop(box.id, None)

    def _seen(self, box: Outbox) -> list[dict[str, Any]]:
        try:
            return box.look()
        except Exception as error:  # a journal of a later version, or one that no reader foresaw: it must not stop the other ranks
            self._breaks(box, error)
            return []

    def _breaks(self, box: Outbox, error: Exception) -> None:
        box.broken = f"{box.folder} cannot be read and stays as it is: {type(error).__name__}: {error}"
        self.error, self.failing_since = box.broken, self.failing_since or time.monotonic()
        print(f"encore: {box.broken}", file=sys.stderr)
        if not isinstance(error, EncoreError):
            traceback.print_exception(error)

    def _see_claims(self) -> None:
        """Two living processes that say they are the same rank: both keep all they log, and the run's page says that there are two."""
        ranks: dict[int, list[Outbox]] = {}
        for box in self.trainers:
            if not box.child and not box.ended:
                ranks.setdefault(int(box.about.get("rank") or 0), []).append(box)
        for rank, boxes in ranks.items():
            ids = frozenset(box.id for box in boxes)
            if len(boxes) < 2 or ids in self._claimed or self.node is None:
                continue
            living = [box for box in boxes if _liveness.alive(box.folder, box.about)]
            if len(living) > 1:
                self._claimed.add(ids)
                data = {"rank": rank, "writers": [box.id for box in living], "pids": [box.about.get("pid") for box in living]}
                self.node.writer.emit({"type": "event", "name": "rank_claimed_twice", "data": data})

    # Sending --------------------------------------------------------------------------------------------------------------------

    def _deliver(self) -> bool:
        if self.transport is None or self.fatal or time.monotonic() < self._wait_until:
            return False
        if (held := self.hold.look(self.outboxes)) is not None:
            self.error = held
            return False
        if self.hold.run != self.run:
            self.run, self.error = self.hold.run, None
            if self.blobs is not None:
                self.blobs.run = self.run
        busy = False
        boxes = sorted(self.outboxes.values(), key=lambda box: (box.kind == "node", box.about.get("started_us") or 0))
        for box in boxes:
            if box.rested or box.deleted or box.broken or (box.sealed and box.delivered) or time.monotonic() < box.wait_until:
                continue
            if box.kind == "node" and not box.opened and not _attempt_is_open(boxes):
                continue
            try:
                busy |= self._send_some(box)
            except ServerUnreachable as error:
                self._back_off(str(error))
                break
            except ServerRefused as error:
                if error.status == 410 or error.code in ("run_deleted", "run_id_taken"):
                    box.deleted = error.code
                    self.error = error.message
                    self._write_refusal(box, error)
                    continue
                if error.status in (400, 404, 405, 409, 422):  # of this writer alone: it must not hold up the others
                    self.error, self.failing_since = str(error), self.failing_since or time.monotonic()
                    box.wait_until = time.monotonic() + self._jittered(box.wait())
                    continue
                if self._poisonous(box, error):
                    busy = True
                    continue
                self._back_off(str(error), error.fields.get("retry_after"))
                break
            except Exception as error:
                self._breaks(box, error)
        return busy

    def _send_some(self, box: Outbox) -> bool:
        """One batch of one writer at most."""
        assert self.transport is not None
        if not box.opened:
            said = box.open(self.transport)
            self._worked()
            self.run_url = (said.get("run") or {}).get("url") or self.run_url
            self._heed(said)
        chunk = box.read()
        if chunk is None:
            lost = box.lost_tail
            if lost is not None:
                return self._settle(box, box.post(self.transport, _wire.encode_hole(self.run, box.id, *lost), None), [])
            if not (self.folder / box.id / "ack.json").exists():
                box.acknowledged(box.next)
            return False
        if box.set_aside_next and chunk.last == chunk.first:
            box.set_aside_next = False
            failure = json.dumps({"code": "server_failed", "message": "the server fails on this record while it takes others"})
            holed = box.refuse(self.transport, chunk, Answer(500, {}, failure.encode()))
            return holed is None or self._settle(box, holed, [])
        body, encoding, hashes = box.encode(chunk, self.known)
        if len(body) > limits.BATCH_BYTES and chunk.last > chunk.first:
            box.max_records = max(1, (chunk.last - chunk.first + 1) // 2)
            box.again_from(chunk.first)
            return True
        try:
            answer = box.post(self.transport, body, encoding)
            holed = box.refuse(self.transport, chunk, answer) if answer.status in (413, 422) else None
        except ServerUnreachable:
            box.again_from(box.next)  # what was read goes again, also when no later record calls for it
            raise
        if answer.status in (413, 422):
            if holed is None:
                return True
            answer = holed
        if answer.status == 409 and (error := answer.error()).code == "range_conflict":
            # Another process has written under this writer's id: the server keeps what came first. Sending it again would never end.
            box.set_aside(chunk, answer)
            box.acknowledged(int(error.fields["next"]))
            return True
        return self._settle(box, answer, hashes)

    def _settle(self, box: Outbox, answer: Answer, hashes: list[str]) -> bool:
        if answer.ok:
            said = answer.json()
            self.taken_at = time.monotonic()
            self._worked()
            box.taken()
            self.known.update(hashes)
            box.acknowledged(int(said.get("next", box.reader.next)))
            self._heed(said)
            return True
        error = answer.error()
        if answer.status == 409 and error.code == "range":
            box.again_from(int(error.fields["next"]))
            return True
        if answer.status == 409 and error.code == "keylist_unknown":
            self.known.clear()
            box.again_from(box.next)
            return True
        if answer.status == 404 and error.code == "writer_unknown":
            box.opened = False
            self.known.clear()
            return True
        box.again_from(box.next)  # what was read goes again later
        raise error

    def _poisonous(self, box: Outbox, error: ServerRefused) -> bool:
        """The server fails on this writer's next records (500), again and again. Find the one that does it; set it aside only when
        the server has taken others meanwhile, for else it is the server that is broken, and all of it goes later."""
        if error.status != 500 or not box.opened:
            return False
        first_time, tries, size = box.failed(box.next)
        if tries >= 3 and size > 1:
            box.max_records = max(1, size // 2)
            box.again_from(box.next)
            return True
        if (
            size == 1
            and tries >= limits.POISON_TRIES
            and time.monotonic() - first_time >= limits.POISON_SECONDS
            and self.taken_at > first_time
        ):
            box.set_aside_next = True
            return True
        return False

    @property
    def _broken(self) -> str | None:
        return next((box.broken for box in self.outboxes.values() if box.broken), None)

    def _worked(self) -> None:
        self._wait_seconds, self.error = 0.0, self._broken
        if self._broken is None:
            self.failing_since = None

    def _back_off(self, why: str, seconds: Any = None) -> None:
        """Doubling, with jitter, so that a thousand senders do not come back in the same instant."""
        self.error = why
        now = time.monotonic()
        if self.failing_since is None:
            self.failing_since = now
        longest = limits.LONGEST_WAIT_SECONDS
        if self.ending and now - self.failing_since > limits.PATIENT_AFTER_SECONDS:
            longest = limits.PATIENT_WAIT_SECONDS
        self._wait_seconds = min(longest, max(limits.FIRST_WAIT_SECONDS, self._wait_seconds * 2))
        wait = self._jittered(self._wait_seconds)
        if isinstance(seconds, (int, float)):  # the server's own word: never before its time
            wait = max(wait, float(seconds) * random.uniform(1.0, 1.3))  # noqa: S311 - jitter
        self._wait_until = now + wait

    @staticmethod
    def _jittered(seconds: float) -> float:
        return seconds * random.uniform(0.7, 1.3)  # noqa: S311 - jitter

    @property
    def given_up(self) -> bool:
        """The trainers have ended and for a day nothing was taken: the next sender on this folder, or `encore sync`, goes on."""
        now = time.monotonic()
        if not self.ending:
            self._ending_since = None
            return False
        if self._ending_since is None:
            self._ending_since = now
        failing = [since for since in (self.failing_since, self._uploads_failing_since) if since is not None]
        return bool(failing) and now - max(min(failing), self._ending_since) > limits.GIVE_UP_SECONDS

    def _write_refusal(self, box: Outbox, error: ServerRefused) -> None:
        line = {"first": box.next, "last": None, "status": error.status, "code": error.code, "message": error.message}
        with contextlib.suppress(OSError), open(box.folder / "refused.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")

    # Heartbeats and stop --------------------------------------------------------------------------------------------------------

    def _heartbeat(self) -> None:
        now = time.monotonic()
        if self.transport is None or now < self._next_heartbeat or now < self._wait_until or self.fatal:
            return
        self._next_heartbeat = now + limits.HEARTBEAT_SECONDS
        boxes = [box for box in self.outboxes.values() if box.opened and not box.deleted and not (box.ended and box.delivered)]
        if not boxes or not self.liveness:
            return
        writers = [{"id": box.id, "alive": not box.dead, "unsent": box.unsent} for box in boxes]
        told = {"run": self.run, "host": _process.host(), "writers": writers, **self.stacks.words()}
        try:
            self._heed(self.transport.call("POST", "ingest/heartbeats", told))
        except ServerUnreachable as error:
            self._back_off(str(error))
        except ServerRefused as error:
            self.error = str(error)
            if error.status in (429, 503):
                self._back_off(str(error), error.fields.get("retry_after"))

    def _heed(self, answer: dict[str, Any]) -> None:
        self.stacks.heed(answer)
        if not answer.get("stop") or self.stop_told or not self.may_stop:
            return
        self.stop_told = True
        for box in self.trainers:
            about = box.about
            pid = int(about.get("pid") or 0)
            if box.ended or not self._here(box) or pid <= 1 or box.check_alive(time.monotonic()) is not True:
                continue
            start = _process.started(pid)
            if start is None or abs(start - float(about.get("pid_started") or -1)) > 0.02:
                continue
            if self.node is not None:
                self.node.writer.emit(
                    {
                        "type": "event",
                        "name": "signal",
                        "data": {"writer": box.id, "signal": int(signal.SIGTERM), "why": "stop was asked for"},
                    }
                )
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGTERM)

    # Blobs ----------------------------------------------------------------------------------------------------------------------

    def _blob_folders(self) -> list[Path]:
        return [box.folder / "blobs" for box in self.outboxes.values() if box.deleted is None]

    def blobs_waiting(self) -> int:
        return len(self.blobs.waiting(self._blob_folders())) if self.blobs is not None and not self.fatal else 0

    def _upload(self) -> None:
        """In a thread: a gigabyte on its way must not hold back the points."""
        now = time.monotonic()
        if (
            self.blobs is None
            or self.fatal
            or now < self._uploads_after
            or not any(box.opened or box.next for box in self.outboxes.values())
        ):
            return
        if self._uploads is not None:
            if self._uploads.is_alive():
                return
            self._uploads = None
            if self._uploads_error is not None:
                self._uploads_wait = min(limits.LONGEST_WAIT_SECONDS, max(limits.FIRST_WAIT_SECONDS, self._uploads_wait * 2))
                self._uploads_after = now + max(self._jittered(self._uploads_wait), self._uploads_asked)
                self._uploads_error, self._uploads_asked = None, 0.0
                self._uploads_failing_since = self._uploads_failing_since or now
                return
            self._uploads_wait, self._uploads_failing_since = 0.0, None
        waiting = self.blobs.waiting(self._blob_folders())
        if waiting:
            self._uploads = threading.Thread(target=self._send_blobs, args=(waiting,), name="encore-blobs", daemon=True)
            self._uploads.start()

    def _send_blobs(self, waiting: dict[str, Path]) -> None:
        assert self.blobs is not None
        try:
            self.blobs.send(waiting)
        except (EncoreError, OSError) as error:
            if isinstance(error, ServerRefused):
                self._uploads_asked = float(error.fields.get("retry_after") or 0.0)
            self._uploads_error = f"blobs: {error}"

    # How far --------------------------------------------------------------------------------------------------------------------

    @property
    def ending(self) -> bool:
        """Every trainer of this host has ended."""
        trainers = self.trainers
        return bool(trainers) and all(box.ended or box.deleted or box.broken for box in trainers)

    @property
    def delivered(self) -> bool:
        """All that is here is with the server."""
        if self.transport is None:
            return False
        return all(box.delivered for box in self.outboxes.values()) and not self.blobs_waiting()

    @property
    def done(self) -> bool:
        nodes = [*self._earlier, self.node] if self.node is not None else self._earlier
        if not self.ending or any(not node.closed or node.writer.id not in self.outboxes for node in nodes):
            return False
        if not self.followers.done(self.outboxes):
            return False
        if self.transport is None or self.fatal:
            return all(box.seen_all for box in self.outboxes.values())
        return self.delivered

    @property
    def unsent(self) -> int:
        return sum(box.unsent for box in self.outboxes.values())

    def _tell(self, over: bool = False) -> None:
        """sender.json, for the trainer's finish() and `encore status`."""
        now = time.monotonic()
        done = self.done
        # finish() goes by these two: a word that was written before a rank came must not stand when that rank's end is acknowledged.
        weighty = {
            "capturing": self.node is not None and self.node.capturing,  # before the files are counted, which it may add to
            "alive": [box.id for box in self.trainers if not box.ended],
        }
        due = now >= self._next_status or any(self._told.get(name) != value for name, value in weighty.items())
        status = {
            "pid": os.getpid(),
            "unsent": self.unsent,
            "blobs": self.blobs_waiting() if due else self._told.get("blobs", 0),
            "error": self.error or self._uploads_error,
            "url": self.run_url,
            "done": done or over,
            "delivered": self.delivered if over else done and self.transport is not None,
            **weighty,
            **({"refused": True} if any(box.deleted for box in self.outboxes.values()) else {}),
            **({"disk": self.durable.failed} if self.durable.failed else {}),
        }
        if status == self._told or not (due or status["done"]):
            return
        self._next_status = now + 0.2
        self._told = status
        if self._lock is not None:
            with contextlib.suppress(OSError):
                write_json(self.folder / STATUS, status)

    def tell_end(self) -> None:
        """The last word: nothing is left to do here."""
        self._next_status, self._told = 0.0, {}
        self._tell(over=True)

    def sync(self) -> None:
        """What the journals hold goes to the disk, so that a power loss costs a second at most."""
        self.durable.step(
            {name for name, box in list(self.outboxes.items()) if box.ended and (box.kind != "node" or box.child or box.sealed)}
        )


def _attempt_is_open(boxes: list[Outbox]) -> bool:
    """An attempt is made by a trainer's writer; the node's belongs to it."""
    trainers = [box for box in boxes if box.kind != "node"]
    return not trainers or any(box.opened or box.next for box in trainers)


def _end_slowly(node: Node) -> None:
    while not node.end():
        time.sleep(0.2)
