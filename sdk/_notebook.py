"""A small live summary in a notebook: link, state, last values. Where no Jupyter kernel runs this program, nothing happens.

It costs training nothing but a look once a second, by a thread of its own, at the newest 64 KiB of the journal; the log path knows nothing
of it.
"""

from __future__ import annotations

import contextlib
import html
import sys
import threading
from typing import Any

from ._journal import Writer
from ._reader import good_number
from ._records import DENSE, RECORD, RECORD_BYTES, SEGMENT_BYTES, SEGMENT_HEADER, SPARSE, SPARSE_ENTRY
from ._segments import load

EVERY_SECONDS = 1.0
WINDOW_BYTES = 64 << 10
MAX_KEYS = 200
MAX_ROWS = 12
MAX_NAMES = 5000


def start(run: Any) -> Panel | None:
    """Shows the summary in the cell that runs; None where there is no kernel."""
    shell = kernel_shell()
    if shell is None or run.writer is None or run.rank != 0:
        return None
    return Panel(run, shell)


def kernel_shell() -> Any:
    """Jupyter's shell. IPython in a terminal has no kernel, and no place for HTML."""
    ipython: Any = sys.modules.get("IPython")
    with contextlib.suppress(Exception):
        shell = ipython.get_ipython()
        if getattr(shell, "kernel", None) is not None:
            return shell
    return None


class Panel:
    def __init__(self, run: Any, shell: Any) -> None:
        from IPython.display import HTML, display

        self.run, self.shell, self.html = run, shell, HTML
        self.tail = Tail(run.writer)
        self.state = "running"
        self._shown = ""
        self._ended = threading.Event()
        self._turn = threading.Lock()
        self._shown = self._text()
        self.handle = display(HTML(self._shown), display_id=True)
        shell.events.register("post_run_cell", self._after_cell)
        threading.Thread(target=self._follow, name="encore-notebook", daemon=True).start()

    def _follow(self) -> None:
        while not self._ended.wait(EVERY_SECONDS):
            self.update()

    def _after_cell(self, *_: Any) -> None:
        self.update()

    def update(self) -> None:
        """Looks and shows, if there is anything new. Never raises: a notebook that is closed is no error of training."""
        if not self._turn.acquire(blocking=False):
            return
        try:
            self.tail.look()
            text = self._text()
            if text != self._shown and self.handle is not None:
                self._shown = text
                self.handle.update(self.html(text))
        except Exception:
            return
        finally:
            self._turn.release()

    def close(self, state: str) -> None:
        """The last look, before the journal is closed."""
        self._ended.set()
        with contextlib.suppress(Exception):
            self.shell.events.unregister("post_run_cell", self._after_cell)
        self.tail.look(SEGMENT_BYTES)
        self.state = state
        self.update()

    def _text(self) -> str:
        return summary(self.run, self.state, self.tail.last)


def summary(run: Any, state: str, last: dict[str, tuple[Any, int]]) -> str:
    """The HTML, readable on light and dark pages alike."""
    name = html.escape(str(run.name or run.id))
    if run.url:
        title = f'<a href="{html.escape(run.url)}" target="_blank" rel="noopener" style="color:inherit;font-weight:600">{name}</a>'
    else:
        folder = html.escape(str(run.writer.folder.parent)) if run.writer is not None else ""
        title = f"<b>{name}</b> <span style='opacity:.7'>kept in <code>{folder}</code></span>"
    rows = "".join(
        f"<tr><th style='text-align:left;font-weight:normal;padding:1px 16px 1px 0'>{html.escape(key)}</th>"
        f"<td style='text-align:right;font-variant-numeric:tabular-nums;padding:1px 0'>{number(value)}</td>"
        f"<td style='text-align:right;opacity:.7;padding:1px 0 1px 16px'>step {step}</td></tr>"
        for key, (value, step) in list(last.items())[:MAX_ROWS]
    )
    more = f"<div style='opacity:.7'>and {len(last) - MAX_ROWS} more</div>" if len(last) > MAX_ROWS else ""
    return (
        "<div style='font:13px/1.5 system-ui,sans-serif;border-left:3px solid currentColor;padding:2px 0 2px 12px;margin:4px 0'>"
        f"<div>{title} <span style='opacity:.7'>· {html.escape(str(run.project))} · {html.escape(state)}</span></div>"
        f"<table style='border:0;margin:0;background:none;font:inherit;color:inherit'>{rows}</table>{more}</div>"
    )


def number(value: Any) -> str:
    return f"{value:,}" if type(value) is int else f"{value:.6g}".replace("nan", "NaN").replace("inf", "Inf")


class Tail:
    """The last values of a writer's keys, by looking at the newest bytes of its journal."""

    def __init__(self, writer: Writer) -> None:
        self.writer = writer
        self.last: dict[str, tuple[Any, int]] = {}
        self._at: tuple[Any, int] = (None, 0)
        self._lists: dict[int, tuple[str, tuple[str, ...]]] = {}

    def look(self, window: int = WINDOW_BYTES) -> None:
        segment, position, _, _, _ = self.writer._where()
        if segment is None:
            return
        before, since = self._at
        self._at = (segment, position)
        begin = since if before is segment else SEGMENT_HEADER.size  # both are where a record begins
        view = memoryview(load(segment, begin, min(position - begin, window)))
        at = 0
        while at + RECORD_BYTES <= len(view) and good_number(view, at) is not None:
            _, _, kind, _, length, list_id, _, step, _ = RECORD.unpack_from(view, at)
            payload = view[at + RECORD_BYTES : at + length]
            if kind == DENSE:
                self._dense(list_id, step, payload)
            elif kind == SPARSE:
                self._sparse(step, payload)
            at += length

    def _dense(self, list_id: int, step: int, payload: memoryview) -> None:
        import struct

        if list_id not in self._lists:
            self._lists = {entry[4]: (signature[0], signature[1:]) for signature, entry in list(self.writer._lists.items())}
        types, keys = self._lists[list_id]
        for key, value in zip(keys, struct.unpack("<" + types, payload), strict=True):
            self._put(key, value, step)

    def _sparse(self, step: int, payload: memoryview) -> None:
        if len(self.writer._key_ids) > MAX_NAMES:
            return
        names = {number: key for key, number in list(self.writer._key_ids.items())}
        for number_, kind, raw in SPARSE_ENTRY.iter_unpack(payload):
            value = memoryview(raw).cast("q" if kind else "d")[0]
            self._put(names.get(number_, ""), value, step)

    def _put(self, key: str, value: Any, step: int) -> None:
        if key and (key in self.last or len(self.last) < MAX_KEYS):
            self.last[key] = (value, step)
