"""Runs of every kind that an export must carry, made through the ingest."""

from __future__ import annotations

import math

from tests.tracker.store import wire_writer as wire
from tests.tracker.store.conftest import Room
from tracker.models import Attempt, Run
from tracker.services import compaction, lineage, stitched, summaries

TIME = 1_700_000_000_000_000
ODD_KEYS = ["π/日本", "a\"b'c", "x=1/y", "e\u0301", "\u00e9", "🦊", " ", "100%", "a;b\\c", "*", "run"]
SPECIAL = [math.nan, math.inf, -math.inf, -0.0, 0.0, 5e-324, 1.7976931348623157e308, 0.1]
INTS = [2**53 + 1, -(2**53) - 1, 2**63 - 1, -(2**63), 0, 7]


def post(room: Room, writer, first: int, keys, types: str, rows: list[tuple], known: bool = False) -> int:
    """``rows``: (step, [values]), a record each. The next record."""
    told = [(first + i, step, TIME + (first + i) * 1000, values) for i, (step, values) in enumerate(rows)]
    frame = wire.dense(first, keys, types, told, known)
    room.post(writer, wire.batch(writer.run_id, writer.id, first, first + len(rows) - 1, [frame]))
    return first + len(rows)


def attempt(run: Run, number: int, rewound_to: int | None) -> None:
    Attempt.objects.update_or_create(run=run, number=number, defaults={"rewound_to": rewound_to})
    if rewound_to is not None:
        run.is_stitched = True
        run.save(update_fields=["is_stitched"])
        lineage.mark_stale([run.id])


def mixture(room: Room, wide: int = 50) -> dict[str, Run]:
    """Runs by what they are: exact, ranks, rewound, fork, sparse, wide, empty, running. Every second one lies in blocks."""
    found = {}
    found["exact"] = run = room.run(state="finished", config={"lr": 0.1, "model": {"layers": 2}}, tags=["a", "b"])
    run.name = "a/name\\with:slashes ../x"
    run.save(update_fields=["name"])
    writer = room.writer(run)
    at = post(room, writer, 0, ["special"], "d", [(n, [value]) for n, value in enumerate(SPECIAL)])
    at = post(room, writer, at, ["ints"], "q", [(n - 3, [value]) for n, value in enumerate(INTS)])
    at = post(room, writer, at, ["mixed"], "d", [(5, [1.5]), (3, [math.nan]), (3, [-0.0])])
    post(room, writer, at, ["mixed"], "q", [(4, [2**53 + 1]), (5, [9])])

    found["ranks"] = run = room.run(state="finished")
    for rank in (0, 1, 7):
        post(room, room.writer(run, rank), 0, ["loss", "lr"], "dd", [(n, [n + rank / 10, -n]) for n in range(40)])

    found["rewound"] = run = room.run(state="finished")
    attempt(run, 1, None)
    post(room, room.writer(run, 0, 1), 0, ["loss", "system/cpu"], "dd", [(n, [n, n]) for n in range(30)])
    attempt(run, 2, 9)
    post(room, room.writer(run, 0, 2, TIME + 10**6), 0, ["loss", "system/cpu"], "dd", [(n, [n + 1000, n]) for n in range(10, 20)])
    attempt(run, 3, None)  # resumed, without going back: later attempts win
    post(room, room.writer(run, 0, 3, TIME + 2 * 10**6), 0, ["loss"], "d", [(n, [n + 2000]) for n in range(15, 25)])

    found["fork"] = run = room.run(state="finished", fork_run=found["rewound"].id, fork_step=12, is_stitched=True)
    post(room, room.writer(run, 0, 1, TIME + 3 * 10**6), 0, ["loss", "own"], "dq", [(n, [n + 3000, n]) for n in range(11, 16)])
    lineage.mark_stale([run.id])

    found["sparse"] = run = room.run(state="crashed")
    writer = room.writer(run)
    rows = [(n, ODD_KEYS[n % len(ODD_KEYS)], "dq"[n % 2], n // 3, TIME + n, n if n % 2 else n / 7) for n in range(90)]
    room.post(writer, wire.batch(run.id, writer.id, 0, 89, [wire.sparse(0, rows)]))

    found["wide"] = run = room.run(state="finished")
    post(
        room, room.writer(run), 0, [f"layer.{n}/norm" for n in range(wide)], "d" * wide, [(s, [s + n for n in range(wide)]) for s in (0, 1)]
    )

    found["empty"] = room.run(state="failed")
    found["running"] = run = room.run(state="running")
    post(room, room.writer(run), 0, ["loss"], "d", [(n, [n]) for n in range(5)])
    for place, run in enumerate(found.values()):
        if place % 2 == 0:
            compaction.compact_run(run.id, force=True)
        summaries.summarise_run(run.id)
    stitched.recompute_due()
    return found
