"""Stack dumps of this host's ranks: asked for through a heartbeat's answer, or when no step came for too long."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import _process, _secrets, _stacks
from .._reader import read_json

if TYPE_CHECKING:
    from .outbox import Outbox
    from .run import RunSender

VARIABLE = "ENCORE_STALL_SECONDS"
LEAST_STALL_SECONDS = 300.0  # an evaluation or a checkpoint takes minutes, and is no hang
USUAL_STEPS = 10  # of steps that take minutes themselves: so many of them
LONGEST_PAUSES = 3  # a run that pauses regularly (evaluation) is known by its longest pause so far
ANSWER_SECONDS = 5.0  # what a process may take to dump
SETTLED_SECONDS = 0.5  # a dump that has not grown for so long is whole
TEXT_BYTES = 48 << 10
FILE_BYTES = 16 << 20  # beyond this nobody is asked any more: an hour's worth of clicks
LOOK_SECONDS = 1.0


class Stacks:
    """`step` each round; `heed` with each heartbeat's answer."""

    def __init__(self, sender: RunSender) -> None:
        self.sender = sender
        self.fixed = stall_seconds(os.environ)
        self.paces: dict[str, Pace] = {}
        self.open: dict[str, _Dump] = {}
        self._next_look = 0.0

    def words(self) -> dict[str, Any]:
        """What a heartbeat says beside the writers: the time here, and what this sender can be asked for."""
        return {"time_us": time.time_ns() // 1000, "can": ["stacks"] if self.sender.may_stop else []}

    def heed(self, answer: dict[str, Any]) -> None:
        if "stacks" in (answer.get("ask") or ()):
            self.dump("asked")

    def step(self) -> None:
        """Never raises."""
        try:
            self._collect()
            now = time.monotonic()
            if self.fixed != 0 and now >= self._next_look:
                self._next_look = now + LOOK_SECONDS
                self._watch(now)
        except Exception as error:
            self.sender.error = f"stacks: {type(error).__name__}: {error}"

    # Stalls ---------------------------------------------------------------------------------------------------------------------

    def _watch(self, now: float) -> None:
        if not self.sender.may_stop:  # a sync beside the run, or of a copied folder: those processes are not ours
            return
        for box in self.sender.trainers:
            if box.child:
                continue
            pace = self.paces.setdefault(box.id, Pace(self.fixed))
            if box.ended or box.dead:
                pace.over = True
            elif not pace.over and pace.look(box.eyes.next - box.docs, now):
                if self.fixed is None and by_hand(box):
                    pace.over = True
                    continue
                self.stalled(pace, now)
                return

    def stalled(self, pace: Pace, now: float) -> None:
        """One dump and one alert a stall, however many ranks stand still."""
        for other in self.paces.values():
            other.told = True
        quiet = now - (now if pace.since is None else pace.since)
        self.dump(f"stalled for {quiet:.0f} s")
        self._emit("alert", {"title": f"No step for {quiet:.0f} s", "text": STALL_TEXT, "level": "warn"})

    # Dumps ----------------------------------------------------------------------------------------------------------------------

    def dump(self, why: str) -> None:
        """Ask every living rank of this host; the answers are collected by later steps."""
        for box in self.sender.trainers:
            if box.child or box.ended or box.dead or box.id in self.open or not is_here(box):
                continue
            problem, at = self._signal(box)
            self.open[box.id] = _Dump(box, why, at, time.monotonic(), problem)

    def _signal(self, box: Outbox) -> tuple[str | None, int]:
        pid, number = int(box.about.get("pid") or 0), _stacks.number_of(box.folder)
        if number is None:
            return "this process takes no stack dumps: ENCORE_STACKS=off, or a system without real-time signals", 0
        at = len(_stacks.written(box.folder))
        if at > FILE_BYTES:
            return f"{_stacks.FILE} has grown beyond {FILE_BYTES >> 20} MiB; look into the process itself", 0
        caught = _stacks.mask(pid, "SigCgt") or 0
        if not caught >> (number - 1) & 1:  # it has become another program (exec): the signal would kill that
            return "the process has given up its signal handlers", 0
        try:
            os.kill(pid, number)
        except OSError as error:
            return f"the process cannot be signalled: {error.strerror}", 0
        return None, at

    def _collect(self) -> None:
        now = time.monotonic()
        for name, one in list(self.open.items()):
            text = b"" if one.problem else _stacks.written(one.box.folder, one.at)
            if len(text) != one.size:
                one.size, one.changed = len(text), now
            waited = now - one.began
            whole = one.size and now - one.changed >= SETTLED_SECONDS
            if not (one.problem or whole or waited >= ANSWER_SECONDS or one.box.ended):
                continue
            if not text and not one.problem:
                one.problem = f"no answer within {ANSWER_SECONDS:.0f} s: the process is stopped, or waits inside the system"
            # A writer of ours may be about to open (a new attempt): the dump waits for it.
            if self._emit("stacks", one.told(text)) or waited > 60:
                del self.open[name]

    def _emit(self, name: str, data: dict[str, Any]) -> bool:
        node = self.sender.node
        if node is None or node.closed:
            return False
        node.writer.emit({"type": "event", "name": name, "data": data})
        return True


STALL_TEXT = (
    "The stacks of all ranks are on the run's page under Ranks. If this is an evaluation or a checkpoint that takes long,"
    f" set {VARIABLE} to more seconds, or to off."
)


class Pace:
    """When steps came, as one rank's journal shows it."""

    def __init__(self, fixed: float | None) -> None:
        self.fixed = fixed
        self.points = 0
        self.began: float | None = None
        self.since: float | None = None
        self.longest = 0.0
        self.rounds = 0
        self.told = False
        self.over = False

    def look(self, points: int, now: float) -> bool:
        """True once for each time that no step came for too long. `points`: records with points so far."""
        if points != self.points:
            if self.since is not None:
                self.longest = max(self.longest, now - self.since)
                self.rounds += points - self.points
            else:
                self.began = now
            self.points, self.since, self.told = points, now, False
            return False
        if self.since is None or self.told or now - self.since <= self.limit:
            return False
        self.told = True
        return True

    @property
    def limit(self) -> float:
        if self.fixed is not None:
            return self.fixed
        usual = (self.since - self.began) / self.rounds if self.rounds and self.since is not None and self.began is not None else 0.0
        return max(LEAST_STALL_SECONDS, USUAL_STEPS * usual, LONGEST_PAUSES * self.longest)


class _Dump:
    def __init__(self, box: Outbox, why: str, at: int, began: float, problem: str | None) -> None:
        self.box, self.why, self.at, self.began, self.problem = box, why, at, began, problem
        self.size, self.changed = 0, began

    def told(self, text: bytes) -> dict[str, Any]:
        pid = int(self.box.about.get("pid") or 0)
        words = _secrets.mask_text(shortened(text).decode("utf-8", "replace"))
        data: dict[str, Any] = {"writer": self.box.id, "rank": int(self.box.about.get("rank") or 0), "why": self.why, "text": words}
        if self.problem:
            data["problem"] = self.problem
        return {**data, **process_facts(pid), **flight_recorder(pid, data["rank"])}


def shortened(text: bytes) -> bytes:
    """The main thread comes last, the newest threads first: of a dump that is too long the middle goes."""
    if len(text) <= TEXT_BYTES:
        return text
    return text[: TEXT_BYTES // 3].rsplit(b"\n", 1)[0] + b"\n...\n" + text[-TEXT_BYTES * 2 // 3 :].split(b"\n", 1)[-1]


def stall_seconds(environ: Any) -> float | None:
    """None: found by the run's own pace. 0: never."""
    text = str(environ.get(VARIABLE) or "").strip().lower()
    if text in ("off", "no", "false"):
        return 0.0
    try:
        return max(0.0, float(text)) if text else None
    except ValueError:
        return None


def by_hand(box: Outbox) -> bool:
    """A notebook or a prompt: there no step comes whenever nobody runs a cell."""
    return ((read_json(box.folder / "capture.json") or {}).get("entry") or {}).get("kind") in ("interactive", "notebook")


def is_here(box: Outbox) -> bool:
    """The process is of this host and this pid namespace, lives, and is the one that wrote the journal."""
    about = box.about
    if about.get("host") != _process.host() or about.get("pid_namespace", _process.pid_namespace()) != _process.pid_namespace():
        return False
    pid = int(about.get("pid") or 0)
    start = _process.started(pid) if pid > 1 else None
    return start is not None and abs(start - float(about.get("pid_started") or -1)) < 0.02


def process_facts(pid: int) -> dict[str, Any]:
    """How the system sees it: R runs, S sleeps, D waits inside the kernel (disk, NFS, driver), T is stopped; and what it waits for."""
    facts: dict[str, Any] = {}
    with contextlib.suppress(OSError, IndexError, ValueError):
        stat = Path(f"/proc/{pid}/stat").read_bytes()
        facts["state"] = stat[stat.rindex(b")") + 2 :].split()[0].decode()
    with contextlib.suppress(OSError):
        waits = Path(f"/proc/{pid}/wchan").read_text().strip()
        if waits and waits != "0":
            facts["waits_in"] = waits[:100]
    return facts


def flight_recorder(pid: int, rank: int) -> dict[str, Any]:
    """Where NCCL's flight recorder left its file, if this process has one."""
    try:
        variables = dict(entry.split(b"=", 1) for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") if b"=" in entry)
    except OSError:
        return {}
    if variables.get(b"TORCH_NCCL_TRACE_BUFFER_SIZE", variables.get(b"TORCH_FR_BUFFER_SIZE", b"0")) in (b"0", b""):
        return {}
    prefix = variables.get(b"TORCH_FR_DUMP_TEMP_FILE") or variables.get(b"TORCH_NCCL_DEBUG_INFO_TEMP_FILE") or b"/tmp/nccl_trace_rank_"
    path = os.fsdecode(prefix) + str(rank)
    return {"flight_recorder": path} if os.path.exists(path) else {}
