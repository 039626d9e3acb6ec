"""Judging runs that were rewound or forked: own points of the branch that counts against own points of the branch that counts."""

from __future__ import annotations

import numpy as np

from tests.tracker.services.test_verdicts import LOSS, body, judged, played, reproduction, room  # noqa: F401
from tracker.domain.ids import new_id
from tracker.models import Attempt, Run, Writer
from tracker.services import ingest


def another_start(room, run, values, **fields) -> None:  # noqa: F811
    _, user, token = room
    number = run.attempts.count() + 1
    attempt = Attempt.objects.create(run=run, number=number, **fields)
    writer = Writer.objects.create(id=new_id(), run=run, attempt=attempt, started_us=number, anchor_wall_us=1, finish={"state": "finished"})
    ingest.append_batch(writer_id=writer.id, user=user, token=token, body=body(run.id, writer.id, {"loss": values}), encoding="")


def test_an_old_branch_is_no_evidence(room, played, reproduction):  # noqa: F811
    """A run that went back to its start: what it left behind, longer and other, is not what a rerun has to equal."""
    original = played({0: {"loss": np.linspace(9.0, 8.0, 60), "val/loss": np.ones(60)}})
    another_start(room, original, LOSS, rewound_to=-1)
    found = judged(reproduction(original, played({0: {"loss": LOSS}})))
    assert found["sentence"] == "Bit-exact: 40 of 40 points, 1 metric, 1 rank"
    assert [row["key"] for row in found["per_metric"]] == ["loss"], "a key of the old branch alone is not even listed"


def test_inherited_points_are_no_evidence(played, reproduction):  # noqa: F811
    """The rerun of a fork plays what the fork played, not what its parent did; whether or not it is a fork itself."""
    parent = played({0: {"loss": np.linspace(9.0, 8.0, 60)}})
    original = played({0: {"loss": LOSS}}, fork_run=parent.id, fork_step=59, is_stitched=True)
    plain, forked = played({0: {"loss": LOSS}}), played({0: {"loss": LOSS}}, fork_run=parent.id, fork_step=59, is_stitched=True)
    for rerun in (plain, forked):
        assert judged(reproduction(original, rerun))["sentence"].startswith("Bit-exact: 40 of 40 points")
    assert Run.objects.filter(fork_run=parent.id).count() == 2
