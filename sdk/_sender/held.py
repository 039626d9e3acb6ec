"""Writers of a launch over several nodes that has no name of its own: nothing is sent before it is known which run they belong to.

Who knows: the trainer, once torch.distributed is up (joined.json beside the writers, and a `join` document in the journals for whoever
sends a copy of them); else the sender, when nothing can come any more: then they are a run of their own.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from .. import _join, _liveness, _names, _process
from .._ids import is_id
from .outbox import Outbox

WAIT = f"{_join.HOLD_SECONDS / 60:.0f} minutes from its start"


class Hold:
    def __init__(self, folder: Path) -> None:
        self.folder, self.run = folder, folder.name
        self._known = False

    def look(self, boxes: dict[str, Outbox]) -> str | None:
        """Why nothing may be sent yet, or None. Each box then knows its run."""
        if not self._known:
            held = [box for box in boxes.values() if box.kind == "trainer" and not box.child]
            if not held or not all(box.about.get("provisional") for box in held):
                return None  # as nearly always; or rank 0's own node
            found = _join.decided(self.folder) or self._decide(held)
            if found is None:
                return f"this node's records wait until torch.distributed says which run its launch writes (at most {WAIT})"
            self.run, self._known = found, True
        for box in boxes.values():
            if box.run != self.run:
                box.run, box.told = self.run, _told(box.about, self.run)
        return None

    def _decide(self, held: list[Outbox]) -> str | None:
        told = next((box.join for box in held if box.join and is_id(box.join.get("run"))), None)
        if told is not None:
            run, why = str(told.get("run")), str(told.get("why"))
        elif all(_over(box) for box in held):
            run, why = self.folder.name, "torch.distributed never said which run this node's launch writes"
        else:
            return None
        with contextlib.suppress(OSError):
            return _join.decide(self.folder, run, why)
        return run  # a folder that cannot be written


def _over(box: Outbox) -> bool:
    """No word will come: the program ended well without one, or its launcher is gone too and will not start it again."""
    if time.time() - (box.about.get("started_us") or 0) / 1e6 > _join.HOLD_SECONDS:
        return True
    if not box.ended and not box.dead and _liveness.alive(box.folder, box.about) is not False:
        return False
    if (box.finish or {}).get("state") == "finished":
        return True
    here = (_process.host(), _process.boot_id(), _process.pid_namespace())
    if (box.about.get("host"), box.about.get("boot"), box.about.get("pid_namespace")) != here:
        return True
    pid, _, start = str((box.about.get("provisional") or {}).get("starter") or "").partition(":")
    return not (pid.isdigit() and str(_process.started(int(pid))) == start)


def _told(about: dict, run: str) -> dict:
    """writer.json as the server gets it: under the run it belongs to, whose automatic name is made from its id."""
    said = dict(about["run"])
    if said.get("name") == _names.readable(str(said.get("id"))):
        said["name"] = _names.readable(run)
    return {**about, "run": {**said, "id": run, "opened_as": said.get("id")}}
