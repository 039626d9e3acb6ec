"""Stored reproductions are judged from what the store has: real batches in, a verdict out."""

from __future__ import annotations

import json
import struct
import zlib

import numpy as np
import pytest

from tracker.domain.ids import new_id
from tracker.models import Attempt, Event, Job, KeyDefinition, Project, Reproduction, Run, User, Writer
from tracker.services import accounts, ingest, verdicts
from tracker.services.preflight import preflight

LOSS = np.linspace(3.0, 1.0, 40)


def body(run: str, writer: str, columns: dict[str, np.ndarray], first: int = 0) -> bytes:
    """A batch of docs/formats.md with one dense frame."""
    rows = len(next(iter(columns.values())))
    types = "".join("q" if values.dtype.kind == "i" else "d" for values in columns.values())
    frame = {"kind": "dense", "keys": list(columns), "types": types, "rows": rows, "keylist": _keylist(types, list(columns))}
    header = json.dumps(
        {"run": run, "writer": writer, "first": first, "last": first + rows - 1, "frames": [frame], "docs": [], "holes": []}
    ).encode()
    header += b" " * (-len(header) % 8)
    parts = [np.arange(rows, dtype="<u4"), np.arange(rows, dtype="<i8"), np.arange(rows, dtype="<i8") * 1000, *columns.values()]
    raw = b"".join(part.tobytes() + b"\0" * (-part.nbytes % 8) for part in parts)
    return b"ENCW" + struct.pack("<HHII", 1, 0, len(header), zlib.crc32(header + raw)) + header + raw


def _keylist(types: str, keys: list[str]) -> str:
    import hashlib

    text = json.dumps([types, keys], separators=(",", ":"), ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


@pytest.fixture
def room(transactional_db, settings, tmp_path):
    settings.CELERY_BROKER_URL = ""
    settings.ENCORE_STORE = tmp_path / "store"
    user = User.objects.create_superuser("judge")
    token, _ = accounts.create_token(user=user, name="t", scopes=["api"])
    return Project.objects.create(slug="court", name="Court"), user, token


@pytest.fixture
def played(room):
    """played({rank: {key: values}}, state=…) makes a run whose points went through ingest."""
    project, user, token = room

    def make(ranks, state="finished", recipe=None, **fields):
        run = Run.objects.create(project=project, user=user, name="run", state=state, **fields)
        attempt = Attempt.objects.create(run=run, number=1, recipe=recipe or {}, world_size=max(1, len(ranks)))
        for rank, columns in ranks.items():
            writer = Writer.objects.create(
                id=new_id(), run=run, attempt=attempt, rank=rank, started_us=1, anchor_wall_us=1, finish={"state": state}
            )
            columns = {key: np.asarray(values) for key, values in columns.items()}
            ingest.append_batch(writer_id=writer.id, user=user, token=token, body=body(run.id, writer.id, columns), encoding="")
        return run

    return make


@pytest.fixture
def reproduction(room):
    def make(original, rerun, failure=None, evidence=None, state="finished", **fields):
        job = Job.objects.create(project=room[0], state=state, failure=failure, evidence=evidence)
        return Reproduction.objects.create(original=original, rerun=rerun, job=job, **fields)

    return make


def judged(reproduction):
    found = verdicts.judge(reproduction=reproduction)
    reproduction.refresh_from_db()
    assert reproduction.judged_at
    assert reproduction.verdict == found
    return found


def test_equal_runs_are_bit_exact_with_every_point_counted(played, reproduction):
    ranks = {rank: {"train/loss": LOSS + rank, "lr": LOSS, "correct": np.arange(40)} for rank in (0, 1)}
    found = judged(reproduction(played(ranks), played(ranks)))
    assert found["sentence"] == "Bit-exact: 160 of 160 points, 2 metrics, 2 ranks"
    assert {(row["key"], row["rank"]) for row in found["per_metric"]} == {(key, rank) for key in ranks[0] for rank in (0, 1)}


def test_one_ulp_on_rank_1_is_found_at_its_step_metric_and_rank(played, reproduction):
    other = LOSS.copy()
    other[17] = np.nextafter(other[17], 9)
    found = judged(reproduction(played({0: {"loss": LOSS}, 1: {"loss": LOSS}}), played({0: {"loss": LOSS}, 1: {"loss": other}})))
    assert (found["agreement"], found["step"], found["metric"], found["rank"]) == ("diverged", 17, "loss", 1)


def test_judging_again_gives_the_same_verdict(played, reproduction):
    row = reproduction(played({0: {"loss": LOSS}}), played({0: {"loss": LOSS + 1}}), overrides={"config": {"seed": 1}})
    assert judged(row) == judged(row)


def test_nan_and_infinity_go_through_the_store_and_into_json(played, reproduction):
    odd = LOSS.copy()
    odd[3], odd[4], odd[5] = np.nan, np.inf, -0.0
    assert judged(reproduction(played({0: {"loss": odd}}), played({0: {"loss": odd}})))["agreement"] == "bit_exact"
    found = judged(reproduction(played({0: {"loss": LOSS}}), played({0: {"loss": odd}})))
    assert (found["step"], found["found"]) == (3, "NaN")


def test_a_changed_config_is_the_first_suspect(played, reproduction):
    original, rerun = played({0: {"loss": LOSS}}, config={"seed": 0}), played({0: {"loss": LOSS + 1}}, config={"seed": 1})
    found = judged(reproduction(original, rerun, overrides={"config": {"seed": 1}, "argv": None, "env": {}, "files": {}}))
    assert found["differences"] == [{"fact": "config.seed", "was": 0, "is": 1, "numeric": True}]
    assert found["suspects"][0]["fact"] == "config.seed"
    assert not found["like_for_like"]


def test_a_definition_of_the_original_rules(played, reproduction):
    original = played({0: {"speed": LOSS, "loss": LOSS}})
    KeyDefinition.objects.create(run=original, pattern="speed", fields={"kind": "rate"})
    found = judged(reproduction(original, played({0: {"speed": LOSS + 1, "loss": LOSS}})))
    assert found["agreement"] == "bit_exact"


def test_a_job_that_never_ran_is_judged_by_its_failure(played, reproduction):
    failure = {"code": "data_missing", "message": "gone", "missing": "/x/y.csv"}
    for rerun in (None, Run.objects.create(project=Project.objects.get(), name="r", state="failed")):
        found = judged(reproduction(played({0: {"loss": LOSS}}), rerun, failure=failure, state="failed"))
        assert found["sentence"] == "Not runnable: data file /x/y.csv is missing"


def test_a_cancelled_job_is_inconclusive_even_without_a_word_of_the_worker(played, reproduction):
    found = judged(reproduction(played({0: {"loss": LOSS}}), played({0: {"loss": LOSS[:9]}}, state="killed"), state="cancelled"))
    assert found["execution"] == "inconclusive"


def test_a_hole_in_the_journal_forbids_bit_exact(played, reproduction):
    rerun = played({0: {"loss": LOSS[:30]}})
    Event.objects.create(run=rerun, name="hole", time_us=1, data={})
    found = judged(reproduction(played({0: {"loss": LOSS}}), rerun))
    assert found["agreement"] is None


def test_an_override_that_the_program_never_read_is_named(played, reproduction):
    rerun = played({0: {"loss": LOSS}})
    Event.objects.create(run=rerun, name="override_not_applied", time_us=1, data={"key": "lr"})
    found = judged(reproduction(played({0: {"loss": LOSS}}), rerun, overrides={"config": {"lr": 1}}))
    assert "override lr" in {item["key"] for item in found["not_compared"]}


def test_preflight_of_a_run_without_a_recipe_and_of_a_running_one(played):
    assert not preflight(played({}))["runnable"]
    assert any("still running" in item["why"] for item in preflight(played({}, state="running"))["items"])
