"""TensorBoard's event files as a run's points: read beside training by the sender, without tensorboard, protobuf or numpy.

`records` frames a file, `proto` and `events` read what is in it, `follower` brings it into a journal exactly once. Here: what the
trainer's side does, which is nearly nothing.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from typing import Any

FLUSH_SECONDS = 5.0
_WRITERS = (("tensorboard.summary.writer.event_file_writer", "EventFileWriter"), ("tensorboardX.event_file_writer", "EventFileWriter"))


def is_event_file(path: str) -> bool:
    return "tfevents" in path.rpartition("/")[2]


def flush_writers() -> None:
    """Before the run's last word: what TensorBoard's writers still hold goes to their files (they write each 120 s). Never raises."""
    classes = [getattr(sys.modules[name], kind, None) for name, kind in _WRITERS if name in sys.modules]
    tensorflow = sys.modules.get("tensorflow")
    if not any(classes) and tensorflow is None:
        return
    thread = threading.Thread(target=_flush, args=(classes, tensorflow), name="encore-flush", daemon=True)
    with contextlib.suppress(RuntimeError):
        thread.start()
        thread.join(FLUSH_SECONDS)


def _wait_for_queue(queue: Any) -> None:
    """tensorboardX hands events to a thread by a queue that its flush() does not wait for."""
    until = time.monotonic() + FLUSH_SECONDS / 2
    while queue is not None and time.monotonic() < until:
        if not getattr(queue, "_buffer", None) and queue.empty():
            time.sleep(0.05)  # the one that was just taken is being written
            return
        time.sleep(0.01)


def _flush(classes: list[Any], tensorflow: Any) -> None:
    import gc

    for kind in filter(None, classes):
        for found in gc.get_referrers(kind):
            if isinstance(found, kind):
                with contextlib.suppress(Exception):  # closed ones say so
                    _wait_for_queue(getattr(found, "_event_queue", None))
                    found.flush()
    if tensorflow is not None:
        with contextlib.suppress(Exception):
            tensorflow.summary.flush()
