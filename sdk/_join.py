"""Ranks on several nodes that nothing but torch.distributed can bring together find the run of rank 0 (docs/decisions/0005).

Where no name of the launch is known to all nodes, each node opens its journal under an id of its own. Once the default process group is
up, rank 0 leaves its run's id in the group's key-value store and the others find it there. No collective is run, no stream is touched,
and the store is asked over a connection of our own and only in ways that cannot wait (check, compare_set, get of what is there), so the
program's own use of it is neither delayed nor reordered. The sender of a node that waits for this word sends nothing before it knows.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from . import _launch, _ordinals
from ._ids import is_id
from ._reader import read_json

DECISION = "joined.json"  # beside the writers' folders: which run they belong to; made once, never changed
HOLD_SECONDS = 900.0  # how long a node waits for torch.distributed before it opens a run of its own
NO_TORCH_SECONDS = 120.0  # … if the program has not even loaded it
AT_INIT_SECONDS = 0.25
AT_FINISH_SECONDS = 2.0
GRACE_SECONDS = 3.0  # that a restarted rank 0 which knows nothing gives to nodes that do


def decided(run_folder: Path) -> str | None:
    """The run that the writers of a folder belong to, once it is known."""
    found = (read_json(run_folder / DECISION) or {}).get("run")
    return found if is_id(found) else None


def decide(run_folder: Path, run: str, why: str) -> str:
    """Says it once and for all: whoever comes first, trainer or sender. Returns the run that stands. OSError if it cannot be written."""
    aside = run_folder / f".{DECISION}.{os.getpid()}.{threading.get_ident()}"
    try:
        aside.write_text(json.dumps({"format": 1, "run": run, "why": why}))
        with contextlib.suppress(FileExistsError):
            os.link(aside, run_folder / DECISION)
    finally:
        with contextlib.suppress(OSError):
            aside.unlink()
    return decided(run_folder) or run


class Joiner:
    """Asks, in a thread of its own, which run this launch has. `own`: the id under which this process opens its journal."""

    def __init__(self, launch: _launch.Launch, own: str, turn: int, root: Path) -> None:
        self.launch, self.own, self.root = launch, own, root
        self.key = f"encore/run/{turn}"
        known = _ordinals.noted(root, own)  # from an earlier start under the same launcher
        self.known: str | None = known if is_id(known) else None
        if self.known is None and launch.rank == launch.local_rank and not launch.restart_count:
            self.known = own  # rank 0's own node
        self.why: str | None = None  # nothing will come any more
        self._run: Any = None
        self._seen = False  # the process group is up
        self._stop = threading.Event()
        self._answered = threading.Event()
        self.found: str | None = None
        self._lock = threading.Lock()
        self._settled = False
        self._poke = threading.Event()
        self._original: Any = None
        self._thread = threading.Thread(target=self._follow, name="encore-join", daemon=True)

    @property
    def holds(self) -> bool:
        """Whether this process may not be sent under its own id yet."""
        return self.known is None

    def begin(self) -> str:
        """Starts asking. The run's id if it is known now: a group that is up already answers within a moment."""
        self._wrap()
        self._thread.start()
        if self.holds and _launch.torch_distributed() is not None:
            self._answered.wait(AT_INIT_SECONDS)
        return self.found or self.known or self.own

    def attach(self, run: Any) -> None:
        """The run is open; what is found from now on is its business."""
        self._run = run
        self._settle()

    def end(self) -> None:
        """At finish: a last moment for a word that must be about to come."""
        if self._run is not None and self.found is None and self.why is None and (self._seen or _launch.torch_distributed() is not None):
            self._answered.wait(AT_FINISH_SECONDS)
        self._stop.set()
        self._poke.set()

    @property
    def waits(self) -> bool:
        """Nobody knows yet where this process's records belong."""
        return self.holds and self.found is None

    # The thread -----------------------------------------------------------------------------------------------------------------

    def _follow(self) -> None:
        began = time.monotonic()
        store: Any = None
        try:
            while not self._stop.is_set() and self.found is None and self.why is None:
                waited = time.monotonic() - began
                if store is None:
                    group = _launch.torch_distributed()
                    if group is not None:
                        self._seen = True
                        store = _store()
                        if store is None:
                            self.why = "its process group has no key-value store"
                        up_since = time.monotonic()
                    elif waited > HOLD_SECONDS or (waited > NO_TORCH_SECONDS and "torch.distributed" not in sys.modules):
                        self.why = "torch.distributed did not come up"
                if store is not None and self.why is None:
                    found = self._ask(store, time.monotonic() - up_since)
                    if found is not None:
                        self.found = found
                        _ordinals.note(self.root, self.own, found)
                        return
                if self._original is None and store is None:
                    self._wrap()
                if self._stop.is_set():
                    break
                self._poke.wait(0.005 if store is not None and waited < 10 else 0.05 if waited < 60 else 0.5)
                self._poke.clear()
        except Exception as error:  # a store that went away, torch of another time
            self.why = f"torch's store could not be asked ({type(error).__name__}: {error})"
        finally:
            self._unwrap()
            with contextlib.suppress(Exception):
                self._settle()
            self._answered.set()

    def _settle(self) -> None:
        """Once, as soon as both the run is open and the question is over."""
        with self._lock:
            if self._run is None or self._settled or (self.found is None and self.why is None):
                return
            self._settled = True
        if self.found is not None:
            if self.found != self._run.id:
                self._tell()
        elif self.holds:
            self._say(f"{self.why}, so this node's records become a run of their own; set ENCORE_RUN_ID to one value on all nodes")
            with contextlib.suppress(OSError):
                decide(self._run.writer.folder.parent, self.own, str(self.why))

    def _wrap(self) -> None:
        """A program can be over within the time between two looks: so the group's start is also told by the function that makes it."""
        module, face = (sys.modules.get(name) for name in ("torch.distributed.distributed_c10d", "torch.distributed"))
        original = getattr(module, "init_process_group", None)
        if module is None or face is None or original is None or getattr(face, "init_process_group", None) is not original:
            return
        self._original = original
        for one in (module, face):
            one.init_process_group = _followed_by(original, self._group_is_up)  # type: ignore[attr-defined]

    def _group_is_up(self) -> None:
        self._poke.set()
        self._answered.wait(AT_INIT_SECONDS)

    def _unwrap(self) -> None:
        if self._original is None:
            return
        for name in ("torch.distributed.distributed_c10d", "torch.distributed"):
            module = sys.modules.get(name)
            if getattr(getattr(module, "init_process_group", None), "__wrapped__", None) is self._original:
                module.init_process_group = self._original  # type: ignore[union-attr]

    def _ask(self, store: Any, waited: float) -> str | None:
        mine = self.known
        if mine is None and self.launch.rank == 0 and waited > GRACE_SECONDS:
            mine = self.own
        if mine is not None and (self.launch.rank == 0 or self.launch.restart_count):
            word = store.compare_set(self.key, "", mine)  # the first word stands
        elif store.check([self.key]):
            word = store.get(self.key)
        else:
            return None
        said = word.decode() if isinstance(word, bytes) else str(word)
        if not is_id(said):
            raise ValueError(f"{self.key} holds no id")
        if self.known is not None and said != self.known:
            self._say(f"another node calls this launch's run {said}, this one {self.known}: each keeps its own")
            return self.known
        return said

    def _tell(self) -> None:
        """The open run learns its name: in its journal for whoever sends it, and beside it for later starts."""
        run, found = self._run, self.found
        writer = run.writer
        if writer is not None and found is not None:
            why = f"torch.distributed is up: rank 0 of this launch writes {found}"
            writer.emit({"type": "join", "run": found, "from": self.own, "why": why})
            with contextlib.suppress(OSError):
                if decide(writer.folder.parent, found, why) != found:
                    self._say(f"rank 0 writes run {found}, but this node's records went to run {self.own} before that was known")
                    return
        run.joined(found)

    def _say(self, sentence: str) -> None:
        if self.launch.local_rank == 0:
            with contextlib.suppress(Exception):
                print(f"encore: {sentence}", file=sys.stderr, flush=True)


def _followed_by(original: Any, then: Any) -> Any:
    @functools.wraps(original)
    def init_process_group(*arguments: Any, **named: Any) -> Any:
        made = original(*arguments, **named)
        then()
        return made

    return init_process_group


def _store() -> Any:
    """The default group's store, over a connection of our own where torch can make one (2.6 and newer)."""
    module = sys.modules.get("torch.distributed.distributed_c10d")
    store = module._get_default_store() if module is not None else None
    if store is not None and hasattr(store, "clone"):
        with contextlib.suppress(Exception):  # kinds of stores that cannot
            return store.clone()
    return store
