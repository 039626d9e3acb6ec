"""Many short-lived trainers, each killed at a random instant: one process that forks them, so that a kill costs milliseconds.

    python writers.py SPEC.json

Each child is a writer of its own (the process start of a rank, as the journal sees it) and logs through the journal's own `log`, which
`sdk.log` is bound to. SPEC: {"root", "run", "ledger", "slots", "first_slot", "kills", "ranks", "seed", "mode"}.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from sdk import _process
from sdk._journal import Writer
from tests.torture.ledger import Ledger, value_of

WIDE = [f"w{i:03d}" for i in range(400)]


def trainer(spec: dict, ledger: Ledger, slot: int, rank: int, first: int, kind: str, chance: random.Random) -> None:
    pid = os.getpid()
    writer = Writer(
        Path(spec["root"]),
        spec["run"],
        SimpleNamespace(strict=False, journal_mode=spec.get("mode", "map")),
        {
            "rank": rank,
            "world_size": spec["ranks"],
            "host": _process.host(),
            "boot": _process.boot_id(),
            "pid": pid,
            "pid_started": _process.started(pid),
            "pid_namespace": _process.pid_namespace(),
            "launch": {"kind": "python"},
            "mode": "online",
        },
    )
    ledger.open(slot, writer.id, rank, first)
    log, returned, step = writer.log, ledger.returned, first
    wide = dict.fromkeys(WIDE, 0.5)
    while True:
        data = {"x": value_of(slot, step), "i": step}
        if kind == "wide":  # rolls segments within the window
            data |= wide
        log(data, step)
        step += 1
        returned(slot, step - first)
        if kind != "wide":
            if step % 50 == 0:
                writer.emit({"type": "event", "name": "note", "data": {"at": step}}, step)
            until = time.perf_counter() + chance.random() * 2e-4
            while time.perf_counter() < until:
                pass


def main(path: str) -> None:
    spec = json.loads(Path(path).read_text())
    ledger = Ledger(Path(spec["ledger"]), spec["slots"])
    chance = random.Random(spec["seed"])
    reached = [0] * spec["ranks"]
    for k in range(spec["kills"]):
        slot, rank = spec["first_slot"] + k, k % spec["ranks"]
        kind = "wide" if chance.random() < 0.03 else "narrow"
        first = max(0, reached[rank] - (chance.randrange(20) if chance.random() < 0.3 else 0))  # from a checkpoint some steps back
        # Half of them early, while the journal is being opened and its first records are written.
        window = chance.random() * (0.008 if chance.random() < 0.4 else 0.04)
        seed = chance.random()
        child = os.fork()
        if child == 0:
            try:
                trainer(spec, ledger, slot, rank, first, kind, random.Random(seed))
            finally:
                os._exit(3)
        until = time.perf_counter() + window
        while time.perf_counter() < until:
            time.sleep(0.0002)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), f"a trainer ended by itself: {status}"
        found = ledger.read(slot)
        if found is not None:
            reached[rank] = max(reached[rank], found[1] + found[0])
    print(json.dumps({"kills": spec["kills"]}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
