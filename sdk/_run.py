"""A run as the program sees it: opened by `init`, ended by `finish`. `init` is a list of calls; each has a module of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from . import _capture, _console, _exit, _keeper, _launch, _names, _place, _process, _sender, _settings, _stacks, _which
from ._config import Config, Summary
from ._finish import wait_until_sent
from ._journal import Writer
from ._plain import plain, text
from .errors import UsageError

NOTE_VARIABLE = (
    "ENCORE_RUN_NOTE"  # set by `encore run`: a file that takes the writer's folder, so that the parent can leave the exit status there
)

_turns = 0  # runs this process has begun


class Run:
    """One training. `log` is the journal's own function, without a layer between."""

    def __init__(
        self,
        settings: _settings.Settings,
        launch: _launch.Launch,
        about: dict[str, Any],
        config: Any,
        held: bool,
        which: _which.Which | None = None,
    ) -> None:
        self.settings, self.launch, self.about = settings, launch, about
        self.id: str = about["id"]
        self.project: str = about["project"]
        self.finished = False
        self.state = "running"  # then how it ended
        self.coordinates: dict[str, int] = {}
        self.url: str | None = f"{settings.url}/runs/{self.id}" if settings.url and settings.mode == "online" else None
        self.writer: Writer | None = None
        self._pid = os.getpid()
        self._closing = threading.Lock()
        self._stop_console: Callable[[], None] | None = None
        self._panel: Any = None  # in a notebook
        self._sender_started = False
        self._which = which or _which.Which(self.id)
        self._joiner: Any = self._which.joiner
        self._matcher: Any = None
        self.adoptable = False  # begun by `encore run`: the program's own init may go on with it
        self._leave_sender: Callable[[], None] = _no_keeper
        self.log: Callable[..., None] = _nothing
        if settings.mode != "disabled":
            self.writer = self._open_journal()
        overrides = (settings.rerun or {}).get("config") or {}
        applied = lay_over(config, overrides) if held else set()
        self.config = Config(config, overrides, self._emit, over=_goes_on(about))
        self.config._read.update(applied)
        self.summary = Summary(self._emit)
        if self.writer is not None:
            self.log = self.writer.log

    @property
    def name(self) -> str | None:
        return self.about.get("name")

    @property
    def rank(self) -> int:
        return self.launch.rank

    # Opening --------------------------------------------------------------------------------------------------------------------

    def _open_journal(self) -> Writer | None:
        """The journal in the best place that can be written: a read-only HOME must not cost the points."""
        wanted = self.settings.journal
        for place in _place.choose(self.settings):
            self.settings = dataclasses.replace(self.settings, journal_mode=place.mode, spool=place.spool)
            try:
                place.ready()
                writer = Writer(place.root, self.about, self.settings, self._writer_facts())
            except (OSError, ValueError) as error:
                _settings_say(f"the journal cannot be written to {place.root}: {error}")
                continue
            _place.note(writer.folder.parent, place)
            if place.root != wanted and self.launch.local_rank == 0:
                _settings_say(f"the journal lies in {place.root} instead{f' ({place.why})' if place.why else ''}")
            return writer
        _settings_say(
            "training goes on, but nothing of this run is kept: free some space or set ENCORE_JOURNAL to a folder that can be written"
        )
        return None

    def _writer_facts(self, parent: str | None = None) -> dict[str, Any]:
        launch, pid = self.launch, os.getpid()
        facts = {
            "kind": "trainer",
            "rank": launch.rank,
            "local_rank": launch.local_rank,
            "world_size": launch.world_size,
            "local_world_size": launch.local_world_size,
            "host": _process.host(),
            "boot": _process.boot_id(),
            "pid": pid,
            "pid_started": _process.started(pid),
            "pid_namespace": _process.pid_namespace(),
            "launch": launch.as_json(),
            "mode": self.settings.mode,
            "url": self.settings.url,
            "journal_mode": self.settings.journal_mode,
            "spool": str(self.settings.spool) if self.settings.spool else None,
            "sdk_version": _settings.VERSION,
            **({"tensorboard": True} if self.settings.tensorboard else {}),
        }
        if self._joiner is not None and self._joiner.waits:
            facts["provisional"] = {"starter": launch.starter}  # its sender waits for the launch's run (_join.py)
        # A forked child is no start of the rank: it is not counted as an attempt, and its end is not the run's.
        return facts if parent is None else {**facts, "kind": "node", "parent": parent}

    def open(self) -> None:
        """What follows the journal: facts, capture, marks, sender, console. None of it may fail the run."""
        writer = self.writer
        if writer is None:
            return
        note = os.environ.pop(NOTE_VARIABLE, None)
        writer.emit({"type": "event", "name": "start", "data": {"rank": self.rank, "world_size": self.launch.world_size}})
        for step in (
            self._mark,
            self._begin_capture,
            lambda: self._bootstrapped(writer, note),
            lambda: self._where_metrics_come_from(note is not None),
            lambda: _exit.mark_signals(writer.folder),
            lambda: _stacks.install(writer.folder),
            lambda: _exit.mark_crashes(writer.folder),
            self._start_sender,
            self._start_console,
            self._start_notebook,
        ):
            try:
                step()
            except Exception as error:
                writer.say(f"{type(error).__name__}: {error} (training goes on)")

    def _where_metrics_come_from(self, bootstrapped: bool) -> None:
        """Whoever plays the run again has to look for its numbers in the same places; the bootstrap follows TensorBoard by itself."""
        asked = {"tensorboard": self.settings.tensorboard and not bootstrapped, "patterns": list(self.settings.patterns)}
        if any(asked.values()):
            self._emit({"type": "recipe", "section": "command", "value": {name: v for name, v in asked.items() if v}, "merge": True})

    def _bootstrapped(self, writer: Writer, note: str | None) -> None:
        if note is None:
            return
        with contextlib.suppress(OSError), open(note, "a") as file:
            file.write(f"{writer.folder}\n")
        # The program has no line of ours: whoever plays it again has to start it by `encore run` too.
        writer.emit({"type": "recipe", "section": "command", "value": {"bootstrap": "encore run"}, "merge": True})

    def _mark(self, state: str = "running") -> None:
        if self._joiner is not None and state == "running":
            self._joiner.attach(self)
        if self._which.marker is not None and self.rank == 0:
            _which.mark(self._which.marker, self, state, self._which.own)

    def joined(self, run_id: str) -> None:
        """The launch's run is known now: this one was opened under another id."""
        self.id = run_id
        if self.url is not None:
            self.url = f"{self.settings.url}/runs/{run_id}"
        if self._which.marker is not None and self.rank == 0:
            _which.mark(self._which.marker, self, "running", self._which.own)

    def _begin_capture(self) -> None:
        if self.writer is not None:
            _capture.begin(self.writer)

    def _start_sender(self) -> None:
        if self.settings.sender == "external" or self.writer is None:
            return
        self._sender_started = True
        _sender.start(self.writer.folder.parent, self.settings)
        self._leave_sender = _keeper.keep(self.writer.folder.parent, self.settings)

    def _start_console(self) -> None:
        if self.settings.console:
            self._stop_console = _console.start(self._emit_console, self._metrics_in_lines())

    def _metrics_in_lines(self) -> Callable[[str, str], None] | None:
        """Hears the console where patterns were given (ENCORE_PATTERNS, `encore run --pattern`)."""
        if not self.settings.patterns or self.writer is None:
            return None
        from . import _patterns

        self._matcher = _patterns.matcher(self.settings.patterns, lambda values, step: self.log(values, step), self.writer.say)
        return self._matcher.feed if self._matcher is not None else None

    def _last_metrics(self) -> None:
        """What TensorBoard's writers still hold, and the last printed line."""
        if self._matcher is not None:
            self._matcher.finish()
        if self.settings.tensorboard:
            from . import _tensorboard

            _tensorboard.flush_writers()

    def _start_notebook(self) -> None:
        if "IPython" in sys.modules:
            from . import _notebook

            self._panel = _notebook.start(self)

    # Saying ---------------------------------------------------------------------------------------------------------------------

    def _emit(self, doc: dict[str, Any]) -> None:
        if self.writer is not None:
            self.writer.emit(doc)

    def _emit_console(self, doc: dict[str, Any], step: int | None = None) -> None:
        if self.writer is not None and not self.writer.finished:
            self.writer.emit(doc, step)

    def event(self, name: str, data: Mapping[str, Any] | None = None, step: int | None = None) -> None:
        """Note something at a time (and a step): `run.event("checkpoint", {"path": …})`."""
        if self.writer is not None:
            self.writer.emit({"type": "event", "name": str(name), "data": plain(dict(data or {}))}, step)

    def log_later(self, data: Mapping[str, Any], step: int | None = None) -> None:
        """See sdk.log_later."""
        if self.writer is not None:
            from . import _later

            _later.log_later(self.writer, data, step)

    def define(self, pattern: str, **meaning: Any) -> None:
        """See sdk.define."""
        self._emit({"type": "define", "pattern": str(pattern), **{key: value for key, value in meaning.items() if value is not None}})

    def alert(self, title: str, text: str = "", level: str = "info") -> None:
        """See sdk.alert."""
        self.event("alert", {"title": str(title), "text": str(text), "level": str(level)})

    # Ending ---------------------------------------------------------------------------------------------------------------------

    def finish(self, exit_code: int | None = None, _outcome: Mapping[str, Any] | None = None) -> None:
        """Ends the run and waits for delivery, at most ENCORE_FINISH_SECONDS; the sender goes on with what is left. Never raises."""
        if self._pid != os.getpid():
            return self._finish_child()
        with self._closing:
            if self.finished:
                return
            self.finished = True
        writer = self.writer
        try:
            if self._joiner is not None:
                self._joiner.end()
            if writer is not None:
                self._last_words(writer, exit_code, _outcome)
        except Exception as error:
            _settings_say(f"finish: {type(error).__name__}: {error}")
        finally:
            _forget(self)
        # A failed start of a launch whose run nobody knows yet is kept until the next one knows it: its launcher must not be delayed.
        kept = self._joiner is not None and self._joiner.waits and self.state != "finished"
        if writer is None or kept or not self._sender_started or (self.settings.spool is not None and _drained(self, writer)):
            return
        if self.settings.mode == "online":
            wait_until_sent(self, writer)

    def _last_words(self, writer: Writer, exit_code: int | None, given: Mapping[str, Any] | None) -> None:
        for key in self.config.unread_overrides():
            self.event("override_not_applied", {"key": key, "value": self.config._overrides[key]})
        with contextlib.suppress(Exception):
            _capture.complete(writer)
        if self._stop_console is not None:
            with contextlib.suppress(Exception):
                self._stop_console()
        with contextlib.suppress(Exception):
            self._last_metrics()
        if given is None:
            code = exit_code or 0
            given = {"state": "failed" if code else "finished", "exit_code": code, "signal": None, "error": None}
        if given["error"] is not None:
            error = given["error"]
            self.event("exception", {"type": error["type"], "message": error["message"]})
        if self._panel is not None:
            with contextlib.suppress(Exception):
                self._panel.close(given["state"])
        writer.finish(given)
        self.state = str(given["state"])
        self._mark(self.state)
        self._leave_sender()
        _exit.unmark_signals(writer.folder)

    def leave_open(self) -> bool:
        """At exit with a status only libc knows: the journal is ended by the sender. False if that cannot work here."""
        writer = self.writer
        if writer is None or self.finished or self._pid != os.getpid() or not _exit.leave_status(writer.folder):
            return False
        self.finished = True
        with contextlib.suppress(Exception):
            _capture.complete(writer)
        if self._stop_console is not None:
            with contextlib.suppress(Exception):
                self._stop_console()
        with contextlib.suppress(Exception):
            self._last_metrics()
        writer.settle()
        writer.drain()
        if self._sender_started:
            _sender.start(writer.folder.parent, self.settings)
        return True

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self.finish(_outcome=_exit.outcome_of(error))

    def __repr__(self) -> str:
        return f"<Run {self.id} of {self.project}, rank {self.rank}>"

    def _repr_html_(self) -> str:
        """What a notebook shows for `run` at the end of a cell."""
        from . import _notebook

        return _notebook.summary(self, "ended" if self.finished else "open", self._panel.tail.last if self._panel is not None else {})

    # Forks ----------------------------------------------------------------------------------------------------------------------

    def forked(self) -> None:
        """In a child of os.fork: nothing is opened before the child logs something."""
        parent, self._stop_console = self.writer, None
        if parent is None or self.finished:
            return
        opening = threading.Lock()
        parent_id, root, last_step = parent.id, parent.folder.parent.parent, parent.last_step

        def own() -> Writer | None:
            with opening:
                if self.writer is parent:
                    try:
                        self.writer = Writer(root, self.about, self.settings, self._writer_facts(parent_id))
                        self.writer.last_step = last_step
                        self.log = self.writer.log
                        _rebind(self)
                        _finalize_child(self)
                        if self._sender_started:
                            _sender.start(self.writer.folder.parent, self.settings)
                    except (OSError, ValueError) as error:
                        self.writer = None
                        _settings_say(f"a forked child cannot write its journal: {error}")
                return self.writer

        def log(data: Mapping[str, Any], step: int | None = None) -> None:
            writer = own()
            if writer is not None:
                writer.log(data, step)

        def emit(doc: Mapping[str, Any], step: int | None = None) -> None:
            writer = own()
            if writer is not None:
                writer.emit(doc, step)

        parent.abandon(log, emit)
        self.log = log
        _rebind(self)

    def _finish_child(self) -> None:
        writer = self.writer
        if writer is not None and writer.pid == os.getpid():
            writer.finish({"state": "finished", "exit_code": None, "signal": None, "error": None})


def _finalize_child(run: Run) -> None:
    """multiprocessing ends its children by os._exit, after its own finalizers."""
    util = sys.modules.get("multiprocessing.util")
    if util is not None:
        util.Finalize(None, run._finish_child, exitpriority=-100)


# The current run ----------------------------------------------------------------------------------------------------------------

current: Run | None = None


def _rebind_face(run: Run | None) -> None:
    """Replaced by the face (`on_change`): this module does not know it."""


def _rebind(run: Run) -> None:
    if current is run:
        _rebind_face(run)


def _forget(run: Run) -> None:
    global current
    if current is run:
        current = None
        _rebind_face(None)


def on_change(rebind: Callable[[Run | None], None]) -> None:
    global _rebind_face
    _rebind_face = rebind  # type: ignore[assignment]


def init(arguments: Mapping[str, Any], held: bool) -> Run:
    """Opens a run and makes it the current one. `arguments`: those of sdk.init. held: the caller keeps the config object."""
    global current, _turns
    settings = _settings.read()
    if arguments.get("mode") is not None:
        if arguments["mode"] not in _settings.MODES:
            raise UsageError(f"mode is one of {', '.join(_settings.MODES)}, not {arguments['mode']!r}")
        settings = dataclasses.replace(settings, mode=arguments["mode"])
    if arguments.get("sync_tensorboard") is not None:
        settings = dataclasses.replace(settings, tensorboard=bool(arguments["sync_tensorboard"]))
    for complaint in (*settings.complaints, *([settings.rerun_error] if settings.rerun_error else [])):
        _settings_say(complaint)
    if current is not None and current.adoptable:
        from ._adopt import adopt

        if adopt(current, arguments, held):
            return current
    if current is not None:
        current.finish()
    launch = _launch.detect()
    project = text(str(arguments.get("project") or settings.project or _settings.default_project()))
    which = _which.which(arguments, settings, launch, project, _turns)
    run = Run(settings, launch, _about(arguments, settings, launch, which, project), arguments.get("config"), held, which)
    if run.writer is not None and (_goes_on(run.about) or run.about["fork_from"] is not None):
        from ._resume import go_on

        go_on(run.writer, run.about)
    _turns += 1
    current = run
    _rebind_face(run)
    if settings.mode != "disabled":
        _exit.install(_at_exit, _thread_died)
        _greet(run)
        run.open()
        _launch.announce(run.id, launch)
    return run


def _about(
    arguments: Mapping[str, Any], settings: _settings.Settings, launch: _launch.Launch, which: _which.Which, project: str
) -> dict[str, Any]:
    """The `run` object of writer.json."""
    tags = arguments.get("tags")
    tags = [tags] if isinstance(tags, str) else list(tags) if tags is not None else list(settings.tags)
    words = {name: arguments.get(name) for name in ("job_type", "notes")}
    lineage = {name: arguments.get(name) for name in ("resume", "fork_from", "rewind_to")}
    if any(value is not None for value in lineage.values()):
        from ._resume import check_id

        check_id({"id": which.id, **lineage}, which.is_named)
    return {
        "id": which.id,
        "project": project,
        "name": _text_or_none(arguments.get("name") or settings.name) or _names.readable(which.id),
        "group": _text_or_none(arguments.get("group") or settings.group or launch.group),
        **{name: _text_or_none(value) for name, value in words.items()},
        "tags": [text(str(tag)) for tag in tags],
        **lineage,
        "created_us": time.time_ns() // 1000,
    }


def _goes_on(about: Mapping[str, Any]) -> bool:
    """Whether this start goes on with a run that may be there already."""
    return about["resume"] in ("allow", "must", "auto") or about["rewind_to"] is not None


def _text_or_none(value: Any) -> str | None:
    return None if value is None else text(str(value))


def _greet(run: Run) -> None:
    if run.rank != 0 or run.writer is None:
        return
    if run.settings.mode == "offline":
        _settings_say(f"run {run.id} is kept in {run.writer.folder.parent}; send it with: encore sync {run.writer.folder.parent}")
    elif run.settings.sender == "external":
        return
    elif run.url is None and run.settings.spool is not None:
        _settings_say(f"run {run.id} is drained into {run.settings.spool}; where there is a way to the server: encore sync --watch FOLDER")
    elif run.url is None:
        _settings_say(
            f"no server is known (encore login, or ENCORE_URL); run {run.id} is kept, send it with: encore sync {run.writer.folder.parent}"
        )
    else:
        _settings_say(f"run {run.url}")


def lay_over(config: Any, overrides: Mapping[str, Any]) -> set[str]:
    """In a rerun: put the overrides into the program's own config object (a dict or Namespace it goes on using). Returns those put."""
    put: set[str] = set()
    from ._config import _like

    for key, value in overrides.items():
        with contextlib.suppress(Exception):
            if isinstance(config, dict) and key in config:
                config[key] = _like(config[key], value)
                put.add(key)
            elif config is not None and not isinstance(config, Mapping) and hasattr(config, key):
                setattr(config, key, _like(getattr(config, key), value))
                put.add(key)
    return put


def _thread_died(error: dict[str, Any]) -> None:
    if current is not None:
        current.event("exception", error)


def _at_exit() -> None:
    run = current
    if run is None:
        return
    if run._pid != os.getpid():
        return run._finish_child()
    outcome = _exit.outcome()
    if outcome is None:
        if run.leave_open():
            return
        outcome = {"state": "finished", "exit_code": None, "signal": None, "error": None}
    run.finish(_outcome=outcome)


def _after_fork() -> None:
    run = current
    if run is not None:
        _exit.after_fork()
        run.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _drained(run: Run, writer: Writer) -> bool:
    from ._spool import wait_until_drained

    return wait_until_drained(run, writer)


def _no_keeper() -> None:
    """No sender of ours is to be kept at work."""


def _nothing(data: Mapping[str, Any], step: int | None = None) -> None:
    """log() of a run that keeps nothing."""


def _settings_say(sentence: str) -> None:
    with contextlib.suppress(Exception):
        print(f"encore: {sentence}", file=sys.stderr, flush=True)
