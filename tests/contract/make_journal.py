"""Makes the golden journal and its batch, once per format version: python tests/contract/make_journal.py (it refuses to overwrite).

Values that a run would take from the clock and the system are fixed, so that the bytes can be compared.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

GOLDEN = Path(__file__).parent / "golden"
RUN, WRITER = "a" * 26, "gezdgnbvgy3tqojqgezdgnbvgy"
WALL_US, MONO_NS = 1_700_000_000_000_000, 5_000_000_000


def make(folder: Path) -> Path:
    """Writes the journal of one small run below `folder`; returns the writer's folder."""
    from sdk import _journal

    ticks = iter(range(MONO_NS, MONO_NS + 10**12, 1_000_000))
    with (
        mock.patch.object(_journal, "monotonic_ns", side_effect=ticks),
        mock.patch.object(_journal, "new_id", return_value=WRITER),
        mock.patch.object(_journal.time, "time_ns", return_value=(WALL_US * 1000) + MONO_NS),
        mock.patch.object(_journal.os, "getpid", return_value=4242),
    ):
        run = {
            "id": RUN,
            "project": "golden",
            "name": "golden",
            "group": None,
            "job_type": None,
            "tags": ["a"],
            "notes": None,
            "resume": None,
        }
        run |= {"fork_from": None, "rewind_to": None, "created_us": WALL_US}
        facts = {
            "local_rank": 0,
            "world_size": 1,
            "host": "host",
            "pid": 4242,
            "pid_started": 12.5,
            "mode": "online",
            "url": None,
            "sdk_version": "0.1.0",
        }
        launch = {"kind": "python", "id": None, "restart_count": 0, "coordinates": {}}
        writer = _journal.Writer(folder, run, SimpleNamespace(strict=False), {**facts, "launch": launch})
        writer.emit({"type": "config", "value": {"lr": 0.1, "model": {"layers": 2}}, "update": False})
        writer.emit({"type": "define", "pattern": "val/*", "goal": "max", "kind": "quality"})
        for step in range(3):
            writer.log({"loss": 1.0 / (step + 1), "epoch": step}, step)
        writer.log({"odd": float("nan")}, -7)
        writer.log({"odd": float("-inf")}, -7)
        writer.log({"big": 2**63 - 1, "small": -(2**63), "minus zero": -0.0, "ünï/côde": True}, 2**40)
        writer.emit({"type": "log", "stream": "stdout", "text": "epoch 1\n"})
        writer.emit({"type": "opened", "path": "/data/x.csv", "mode": "r", "by": "open"})
        for number in range(_journal.MAX_KEY_LISTS + 2):
            writer.log({f"sparse/{number}": number + 0.5}, number)
        writer.finish({"state": "finished", "exit_code": 0, "signal": None, "error": None})
    return writer.folder


def batch(folder: Path) -> bytes:
    from sdk import _wire
    from sdk._reader import Reader

    chunk = Reader(folder).read(limit=1 << 30)
    assert chunk is not None
    return _wire.encode(RUN, WRITER, chunk)[0]


def main() -> int:
    import shutil
    import tempfile

    if (GOLDEN / "batch-1.bin").exists():
        print("the golden files of version 1 are made; a new version gets new names", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as aside:
        folder = make(Path(aside))
        target = GOLDEN / "journal" / RUN / WRITER
        target.mkdir(parents=True)
        for name in ("writer.json",):
            shutil.copy(folder / name, target / name)
        # The rest of the 4 MiB is zeros; the reader takes a segment of any size.
        data = (folder / "00000000.seg").read_bytes().rstrip(b"\0")
        (target / "00000000.seg").write_bytes(data + bytes(-len(data) % 8 + 64))
        (GOLDEN / "batch-1.bin").write_bytes(batch(folder))
    (GOLDEN / "batch-1.json").write_text(json.dumps({"records": _records(), "run": RUN, "writer": WRITER}, indent=1) + "\n")
    return 0


def _records() -> int:
    from sdk import _wire

    return _wire.decode((GOLDEN / "batch-1.bin").read_bytes())["last"] + 1


if __name__ == "__main__":
    sys.exit(main())
