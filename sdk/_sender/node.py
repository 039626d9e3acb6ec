"""The node's own writer: what is captured beside training, system metrics, and word of processes that vanished."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from .. import _process
from .._journal import Writer
from .._reader import read_json
from . import limits
from .outbox import Outbox


class Node:
    """One per attempt of the run on this host, and one more for ranks of it that come when it has ended (`before`).

    Capture runs in a thread, since it reads files and starts git.
    """

    def __init__(self, trainer: Outbox, run_folder: Path, capture: bool, sample: bool, before: Node | None = None) -> None:
        about = trainer.about
        told = ("rank", "local_rank", "world_size", "launch", "mode", "url", "sdk_version")
        self.writer = Writer(
            run_folder.parent,
            about["run"],
            SimpleNamespace(strict=False, journal_mode="write"),  # a few records a second are not worth 8 MiB of mapped pages
            {
                **{name: about[name] for name in told if name in about},
                "kind": "node",
                "of": trainer.id,
                "host": _process.host(),
                "boot": _process.boot_id(),
                "pid_namespace": _process.pid_namespace(),
                "pid": os.getpid(),
                "pid_started": _process.started(os.getpid()),
            },
        )
        self.trainer = trainer
        self.stop = threading.Event()
        self.closed = False
        self._sampler: Any = None
        self._samples: int = before._samples if before is not None else 0  # one row of samples an attempt
        self._gauge: Any = None
        self._followed: set[str] = set()
        self._next_sample = time.monotonic() + limits.FIRST_SAMPLE_SECONDS if sample else None
        self._next_flush = time.monotonic() + limits.FLUSH_SECONDS
        self._fingerprints: Any = None
        self._threads: dict[str, threading.Thread] = {}
        self._copied: set[str] = set()
        self._awaited: set[str] = set()  # rank 0 is here, its facts are not yet
        self._taken: set[str] = before._taken | set(before._threads) if before is not None else set()
        self._ending_since: float | None = None
        self.capture = capture

    def step(self, trainers: list[Outbox]) -> None:
        """Starts capture for each rank whose capture.json is there; samples and flushes when due. Never raises."""
        now = time.monotonic()
        for box in trainers:
            if (
                not self.capture
                or box.child
                or box.id in self._threads
                or box.id in self._taken
                or box.attempt != self.trainer.attempt
                or self._ending_since is not None
            ):
                continue
            facts = read_json(box.folder / "capture.json")
            if facts is None:
                if box.ended or int(box.about.get("rank") or 0) != 0:
                    self._awaited.discard(box.id)
                else:
                    self._awaited.add(box.id)
            else:
                thread = threading.Thread(target=self._capture, args=(box.folder, facts), name="encore-capture", daemon=True)
                self._threads[box.id] = thread
                if facts.get("rank", 0) != 0:
                    self._copied.add(box.id)  # rank 0's capture copies for all
                thread.start()
                self._awaited.discard(box.id)
        if self._next_sample is not None and self._ending_since is None:
            if self._sampler is not None:
                self._sampler.tick()
            if now >= self._next_sample:
                self._next_sample = now + limits.SAMPLE_SECONDS
                self._sample(trainers)
        if now >= self._next_flush:
            self._next_flush = now + limits.FLUSH_SECONDS
            self.flush()

    def opened(self, doc: dict[str, Any]) -> None:
        """The trainer opened a file for reading or writing."""
        if not self.capture:
            return
        try:
            if self._fingerprints is None:
                from .._capture import data

                facts = read_json(self.trainer.folder / "capture.json") or {}
                key = str(facts.get("run") or self.trainer.folder)  # shared with node.run, so that no file is listed twice
                self._fingerprints = data.for_run(key, lambda: data.Fingerprints(self.writer.emit, self.writer.put_blob, facts))
            self._fingerprints.opened(doc.get("path"), doc.get("mode"), doc.get("by"))
        except Exception as error:
            self._failed("data", error)

    def flush(self) -> None:
        if self._fingerprints is not None:
            try:
                self._fingerprints.flush()
            except Exception as error:
                self._failed("data", error)

    def gone(self, writer: Outbox, reason: str | None = None) -> None:
        """reason: why the system ended it, where that is known."""
        data: dict[str, Any] = {"writer": writer.id, "exit_code": None}
        if reason is not None:
            data |= {"signal": 9, "error": {"type": "OutOfMemory", "message": reason, "traceback": ""}}
        self.writer.emit({"type": "event", "name": "gone", "data": data})

    @property
    def capturing(self) -> bool:
        """The source is still being copied, or not yet: whoever changes it now changes what is recorded."""
        return bool(self._awaited) or any(thread.is_alive() for box, thread in self._threads.items() if box not in self._copied)

    @property
    def ending(self) -> bool:
        """Ranks that come now are too late for it."""
        return self._ending_since is not None

    def end(self) -> bool:
        """Asks everything to come to its end; True when the writer has said its last word."""
        if self.closed:
            return True
        if self._ending_since is None:
            self._ending_since = time.monotonic()
            self.stop.set()
            if self._next_sample is not None and self._sampler is not None:
                self._sample([])  # the last seconds' energy and steps count too
        overdue = time.monotonic() - self._ending_since > limits.CAPTURE_END_SECONDS
        if any(thread.is_alive() for thread in self._threads.values()) and not overdue:
            return False
        self.flush()
        if overdue:
            self._failed("capture", TimeoutError(f"not done {limits.CAPTURE_END_SECONDS:.0f} s after training ended"))
        self.writer.finish({"state": "finished", "exit_code": None, "signal": None, "error": None})
        self.closed = True
        return True

    def _capture(self, folder: Path, facts: dict[str, Any]) -> None:
        try:
            from .._capture import node

            node.run(folder, facts, lambda doc: self._told(folder.name, doc), self.writer.put_blob, self.stop)
        except Exception as error:
            self._failed("capture", error)

    def _told(self, box: str, doc: dict[str, Any]) -> None:
        self.writer.emit(doc)
        if doc.get("type") == "recipe" and doc.get("section") == "hardware":  # the last of what is copied at the start
            self._copied.add(box)

    def throughput(self, writer: Outbox, doc: dict[str, Any]) -> None:
        """sdk.throughput() was called: from now on rank 0's steps are gauged."""
        if writer.child or int(writer.about.get("rank") or 0) != 0:
            return
        from . import throughput

        self._gauge = throughput.Gauge(writer.folder, doc)
        for key in throughput.KEYS:
            self.writer.emit({"type": "define", "pattern": key, "kind": "rate", "reduce": "mean"})

    def _sample(self, trainers: list[Outbox]) -> None:
        try:
            if self._sampler is None:
                from .._capture import system

                several = _several_nodes(self.trainer, trainers)
                folder = (read_json(self.trainer.folder / "capture.json") or {}).get("cwd")
                ledger = self.writer.folder.parent / "energy.json"
                self._sampler = system.Sampler(node=_node_name() if several else None, ledger=ledger, folder=folder)
            self._follow(trainers)
            self.writer.log(self._sampler.sample(), self._samples)
            self._samples += 1
            for news in self._sampler.news():
                self.writer.emit({"type": "event", **news})
            gauged = self._gauge.read() if self._gauge is not None else None
            if gauged is not None:
                self.writer.log(gauged[1], gauged[0])
        except Exception as error:
            self._next_sample = None
            self._failed("system metrics", error)

    def _follow(self, trainers: list[Outbox]) -> None:
        """The ranks' processes on this host, by pid and start time; and the boards that they may use."""
        variables = []
        for box in trainers:
            if box.child or box.ended or box.attempt != self.trainer.attempt:
                continue
            facts = read_json(box.folder / "capture.json") or {}
            variables.append((facts.get("env") or {}).get("CUDA_VISIBLE_DEVICES"))
            about = box.about
            here = about.get("pid_namespace") == _process.pid_namespace() and about.get("host") == _process.host()
            pid = int(about.get("pid") or 0)
            if box.id in self._followed or not here or pid <= 1:
                continue
            start = _process.started(pid)
            if start is not None and abs(start - float(about.get("pid_started") or -1)) < 0.02:
                self._followed.add(box.id)
                self._sampler.follow(pid, int(about.get("rank") or 0))
        if variables:
            self._sampler.boards.may_use(variables)

    def _failed(self, what: str, error: BaseException) -> None:
        with contextlib.suppress(Exception):
            gap = {"what": what, "why": f"{type(error).__name__}: {error}", "mend": "see sender.log in the run's journal folder"}
            self.writer.emit({"type": "recipe", "section": "sdk", "value": {"errors": [gap]}, "merge": True})
        import traceback

        traceback.print_exception(type(error), error, error.__traceback__)


def _several_nodes(trainer: Outbox, trainers: list[Outbox]) -> bool:
    """Whether the run has ranks elsewhere: then the host is named in its keys."""
    world, local = int(trainer.about.get("world_size") or 1), trainer.about.get("local_world_size")
    here = int(local) if local else len([box for box in trainers if not box.child and box.attempt == trainer.attempt])
    return world > max(1, here)


def _node_name() -> str:
    return _process.host().replace("/", "_").replace(" ", "_")[:100] or "node"
