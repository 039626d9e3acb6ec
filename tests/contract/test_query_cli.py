"""The commands that ask the tracker, run as programs run them, against the real server over HTTP."""

from __future__ import annotations

import argparse
import json
from types import SimpleNamespace

import numpy as np
import pytest
from django.utils import timezone

from sdk import _query, errors
from sdk._cli import history, preflight, reproduce, runs
from tracker.domain.ids import new_id
from tracker.models import Attempt, JobStep, LogChunk, Membership, Project, Reproduction, Run, Writer
from tracker.services import accounts, export, verdicts

WHOLE = {
    "command": {"argv": ["train.py"], "entry": {"kind": "script", "path_in_root": "train.py"}, "env": {}, "world_size": 1},
    "source": {"manifest": None, "tree": "blake3:t", "files": 1, "git": None},
    "environment": {"python": {"version": "3.11.7"}, "packages": [{"name": "numpy", "version": "2", "from": {"kind": "index"}}]},
    "data": {"inputs": [], "outputs": []},
    "numerics": {"seeds": {"torch": 0}, "threads": {"torch_intra": 1}},
    "hardware": {"cpu": {"model": "X"}},
}


@pytest.fixture
def room(live_server, transactional_db, settings, tmp_path):
    """A server with one user, one project and a way to make runs."""
    settings.CELERY_BROKER_URL = ""
    user = accounts.create_user(username="alice")
    project = Project.objects.create(slug="vision", name="Vision")
    Membership.objects.create(project=project, user=user, role="owner")
    _, token = accounts.create_token(user=user, name="test", scopes=["api"])

    def make(name="a run", state="finished", recipe=None, **fields):
        run = Run.objects.create(project=project, user=user, name=name, state=state, started_at=timezone.now(), **fields)
        attempt = Attempt.objects.create(run=run, number=1, recipe=recipe if recipe is not None else WHOLE)
        Writer.objects.create(id=new_id(), run=run, attempt=attempt, started_us=1, anchor_wall_us=1, finish={"state": state})
        return run

    return SimpleNamespace(url=live_server.url, token=token, user=user, project=project, make=make)


@pytest.fixture
def encore(room, capsys):
    """Runs a command; answers status, stdout (parsed where it is JSON), stderr."""

    def call(*words):
        parser = argparse.ArgumentParser("encore")
        subparsers = parser.add_subparsers()
        for module in (runs, history, preflight, reproduce):
            module.register(subparsers)
        capsys.readouterr()
        args = parser.parse_args([*words, "--url", room.url, "--token", room.token])
        status = args.run(args)
        out, err = capsys.readouterr()
        return SimpleNamespace(status=status, out=out, err=err, json=json.loads(out) if "--json" in words and out else None)

    return call


# runs -------------------------------------------------------------------------------------------------------------------------


def test_runs_prints_one_document_with_id_name_and_state(room, encore):
    run = room.make("first", config={"lr": 0.1})
    found = encore("runs", "--project", "vision", "--json")
    assert found.status == 0
    assert [(row["id"], row["name"], row["state"]) for row in found.json["results"]] == [(run.id, "first", "finished")]


def test_runs_are_streamed_over_pages(room, encore, monkeypatch):
    monkeypatch.setattr(export, "PAGE", 3)
    made = {room.make(f"run {n}").id for n in range(8)}
    assert {row["id"] for row in encore("runs", "--json").json["results"]} == made
    assert len(encore("runs", "--json", "--limit", "4").json["results"]) == 4


def test_a_filter_reaches_the_server_and_its_mistakes_come_back(room, encore):
    room.make("kept")
    room.make("other", state="failed")
    assert [row["name"] for row in encore("runs", "--filter", 'name = "kept"', "--json").json["results"]] == ["kept"]
    wrong = encore("runs", "--filter", "name = (", "--json")
    assert wrong.status == 1
    assert wrong.out == ""
    assert wrong.err.startswith("encore: ")


def test_runs_prints_a_table_for_people(room, encore):
    run = room.make("first")
    found = encore("runs")
    assert run.id in found.out
    assert "vision/first" in found.out


def test_a_wrong_token_is_said_and_is_no_success(room, encore):
    room.token = "enc_wrong"
    found = encore("runs", "--json")
    assert (found.status, found.out) == (1, "")
    assert "401" in found.err


# which run --------------------------------------------------------------------------------------------------------------------


def test_a_run_is_found_by_id_prefix_name_and_project_name(room):
    run = room.make("the one")
    api = _query.Api(room.url, room.token)
    for reference in (run.id, run.id[:12], "the one", "vision/the one", f"vision/{run.id[:10]}"):
        assert api.run(reference).id == run.id


def test_an_ambiguous_name_lists_the_runs_that_fit(room, encore):
    made = [room.make("twin"), room.make("twin")]
    found = encore("preflight", "twin", "--json")
    assert found.status == 1
    assert all(run.id in found.err for run in made)


@pytest.mark.parametrize("reference", ["nothing", "vision/nothing", "nowhere/x", "a" * 26, 'odd "name"\\', "."])
def test_an_unknown_run_is_said_in_words(room, encore, reference):
    found = encore("preflight", reference)
    assert found.status == 1
    assert found.err.startswith("encore: ")


# history ----------------------------------------------------------------------------------------------------------------------


def test_history_prints_every_point_and_keeps_what_json_cannot_say(room, encore):
    from tests.tracker.services.test_verdicts import body
    from tracker.models import Token
    from tracker.services import ingest

    run = room.make("first")
    writer = run.writers.get()
    values = np.array([0.5, np.nan, np.inf, 3.0])
    batch = body(run.id, writer.id, {"loss": values})
    ingest.append_batch(writer_id=writer.id, user=room.user, token=Token.objects.get(), body=batch, encoding="")
    found = encore("history", run.id, "loss", "--json")
    assert found.status == 0
    assert (found.json["run"], found.json["key"]) == (run.id, "loss")
    assert [point[0] for point in found.json["points"]] == [0, 1, 2, 3]
    assert [point[2] for point in found.json["points"]] == [0.5, "NaN", "Infinity", 3.0]
    assert str(_query.Api(room.url, room.token).run(run.id).history("loss")[1][2]) == "nan"
    missing = encore("history", run.id, "nothing", "--json")
    assert missing.status == 1
    assert "no metric" in missing.err


# preflight and logs -----------------------------------------------------------------------------------------------------------


def test_preflight_prints_the_score_and_what_to_mend(room, encore):
    room.make("first")
    found = encore("preflight", "first", "--json")
    assert {"score", "runnable", "items", "run"} <= found.json.keys()
    assert found.status == 1
    told = encore("preflight", "first").out
    assert "source copied" in told
    assert "mend:" in told


def test_logs_are_streamed_in_order(room):
    run = room.make("first")
    writer = run.writers.get()
    lines = [LogChunk(run=run, writer=writer, number=n, stream="stdout", time_us=n, text=f"line {n}\n") for n in range(2500)]
    LogChunk.objects.bulk_create(lines)
    api = _query.Api(room.url, room.token)
    assert [chunk["text"] for chunk in api.run(run.id).logs()] == [f"line {n}\n" for n in range(2500)]


# reproduce --------------------------------------------------------------------------------------------------------------------


def test_a_recipe_that_lacks_its_source_is_not_runnable_with_status_5(room, encore):
    run = room.make("first")
    found = encore("reproduce", run.id, "--wait", "--json")
    assert found.status == 5, found.err
    assert found.json["execution"] == "not_runnable"
    assert found.json["sentence"].startswith("Not runnable: ")
    assert found.json["original"] == run.id
    assert {"scope", "agreement", "step", "metric", "rank", "compared", "reason", "suspects", "run"} <= found.json.keys()


@pytest.fixture
def worker(room, monkeypatch):
    """Plays the worker's part on the rows when the command first waits: the five steps, the end, the judgement."""

    def later(run, *, failure=None, evidence=None, state="finished"):
        def work(_seconds):
            reproduction = Reproduction.objects.filter(original=run, judged_at=None).select_related("job", "rerun", "original").first()
            if reproduction is None:
                return
            job, now = reproduction.job, timezone.now()
            for name in ("checkout", "environment", "data", "execute", "evidence"):
                done = {"state": "done", "message": f"{name} is fine", "started_at": now, "finished_at": now}
                JobStep.objects.create(job=job, fence=1, name=name, **done)
            job.state, job.failure, job.evidence, job.finished_at = state, failure, evidence, now
            job.save()
            verdicts.judge(reproduction=reproduction)

        monkeypatch.setattr(_query.time, "sleep", work)

    return later


@pytest.fixture
def playable(room, monkeypatch):
    """A run whose source is stored, as far as preflight looks."""
    from tracker.models import Blob

    recipe = {**WHOLE, "source": {**WHOLE["source"], "manifest": "blake3:" + "0" * 64}}
    Blob.objects.create(project=room.project, digest="blake3:" + "0" * 64, bytes=1, object_key="x")
    return room.make("playable", recipe=recipe)


@pytest.mark.parametrize(
    ("failure", "status", "execution"),
    [
        ({"code": "data_missing", "message": "gone", "missing": "/x/y.csv"}, 5, "not_runnable"),
        ({"code": "lost", "message": "no heartbeat"}, 7, "inconclusive"),
    ],
)
def test_the_verdict_is_printed_flat_and_sets_the_exit_status(playable, encore, worker, failure, status, execution):
    worker(playable, failure=failure, state="failed")
    changes = ("--set", "config.model.layers=3", "--env", "A=b", "--steps", "5")
    found = encore("reproduce", "playable", "--wait", "--json", "--timeout", "120", *changes)
    assert found.json["execution"] == execution, found.err
    assert found.status == status
    reproduction = Reproduction.objects.get()
    assert reproduction.overrides["config"] == {"model.layers": 3}
    assert reproduction.overrides["env"] == {"A": "b"}
    assert reproduction.scope == {"steps": 5}
    assert found.json["run"] == reproduction.rerun_id
    assert [line for line in found.err.splitlines() if line.startswith("5/5 evidence done")]


def test_without_wait_the_reproduction_s_id_is_enough(playable, encore):
    found = encore("reproduce", "playable", "--json", "--queue", "other")
    assert found.status == 0
    assert found.json["id"] == Reproduction.objects.get().id
    assert Reproduction.objects.get().job.queue == "other"


def test_a_wait_that_is_too_long_leaves_the_reproduction_alone(playable, encore):
    found = encore("reproduce", "playable", "--wait", "--json", "--timeout", "0")
    assert found.status == 7
    assert "goes on" in found.err
    assert Reproduction.objects.get().job.state == "queued"


# What needs no server ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verdict", "status"),
    [
        ({"execution": "completed", "agreement": "bit_exact"}, 0),
        ({"execution": "completed", "agreement": "within_tolerance"}, 0),
        ({"execution": "completed", "agreement": "diverged"}, 3),
        ({"execution": "completed", "agreement": "same_outcome"}, 3),
        ({"execution": "completed", "agreement": "not_comparable"}, 7),
        ({"execution": "stopped_early", "agreement": None}, 4),
        ({"execution": "stopped_early", "agreement": "diverged"}, 4),
        ({"execution": "not_runnable", "agreement": None}, 5),
        ({"execution": "rerun_failed", "agreement": "diverged"}, 6),
        ({"execution": "inconclusive", "agreement": None}, 7),
    ],
)
def test_exit_statuses(verdict, status):
    assert reproduce.exit_status(verdict) == status


def parsed(*words):
    parser = argparse.ArgumentParser()
    reproduce.register(parser.add_subparsers())
    return reproduce.overrides_of(parser.parse_args(["reproduce", "x", *words]))


def test_overrides_are_json_where_they_are_json(tmp_path):
    file = tmp_path / "train.py"
    file.write_text("print(1)\n")
    sets = ["config.lr=1e-3", "config.name=big one", "config.flag=true", "config.dims=[1, 2]", "config.nan=NaN", "config.a.b=null"]
    words = [word for text in sets for word in ("--set", text)]
    found = parsed(*words, "--env", "A=b=c", "--file", f"src/train.py={file}", "--argv", "train.py --lr '0.1 '")
    assert found == {
        "config": {"lr": 1e-3, "name": "big one", "flag": True, "dims": [1, 2], "nan": "NaN", "a.b": None},
        "env": {"A": "b=c"},
        "files": {"src/train.py": "print(1)\n"},
        "argv": ["train.py", "--lr", "0.1 "],
    }
    assert parsed("--argv", '["a", "b c"]') == {"argv": ["a", "b c"]}
    assert parsed("--argv", "--lr 0.1") == {"argv": ["--lr", "0.1"]}


@pytest.mark.parametrize(
    "words", [("--set", "lr=1"), ("--set", "config.lr"), ("--env", "A"), ("--file", "a=/no/such/file"), ("--argv", "[1]"), ("--argv", "'")]
)
def test_overrides_that_mean_nothing_are_refused_in_words(words):
    with pytest.raises(errors.UsageError):
        parsed(*words)


def test_values_come_back_as_the_numbers_they_were():
    assert str(_query.number("NaN")) == "nan"
    assert _query.number("-Infinity") == float("-inf")
    assert str(_query.number("-0.0")) == "-0.0"
    assert _query.number(str(2**60 + 1)) == 2**60 + 1


def test_without_a_server_the_way_to_one_is_said(monkeypatch, tmp_path):
    monkeypatch.setenv("ENCORE_HOME", str(tmp_path))
    monkeypatch.delenv("ENCORE_URL", raising=False)
    with pytest.raises(errors.UsageError, match="encore login"):
        _query.Api()
