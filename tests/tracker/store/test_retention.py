"""Retention: what a rule says goes, to the byte, and nothing else; what is cold reads as before; the account of bytes is true."""

from __future__ import annotations

import argparse
import json
import os
import uuid
from datetime import timedelta

import numpy as np
import pytest
from django.utils import timezone

from tests.tracker.helpers import api_of
from tests.tracker.store import wire_writer as wire
from tests.tracker.store.export_room import post
from tracker import commands
from tracker.domain.errors import EncoreError, Invalid
from tracker.models import Event, Job, LogChunk, MetricBlock, MetricSummary, MetricTrash, Reproduction, RetentionDone, Run
from tracker.services import cold, compaction, dropping, freeing, retention, summaries, values
from tracker.store import blocks, reading
from tracker.store.blobs import blob_store

KEYS = ["loss", "system/cpu", "system/gpu"]


def old_run(room, state: str = "finished", days: int = 40, **fields) -> Run:
    return room.run(state=state, finished_at=timezone.now() - timedelta(days=days), **fields)


def filled(room, run: Run | None = None, rows: int = 200, compact: bool = True) -> Run:
    """Three keys in two blocks of one writer, one of them in another as well, and points that are still hot."""
    run = run or old_run(room)
    draw = np.random.default_rng(3)
    writer = room.writer(run)
    at = 0
    for part in range(3):
        made = draw.normal(size=(rows, 3)).tolist()
        made[1] = [float("nan"), -0.0, float("inf")]
        at = post(room, writer, at, KEYS, "ddd", [(at + n, made[n]) for n in range(rows)], known=part > 0)
        if compact and part < 2:
            compaction.compact_run(run.id, force=True)
    post(room, writer, at, ["loss", "system/cpu"], "dd", [(at + n, [n, n]) for n in range(rows)])
    post(room, room.writer(run, 1), 0, ["system/gpu"], "q", [(n, [2**53 + n]) for n in range(rows)])
    summaries.summarise_run(run.id)
    return run


def told(run: Run, *keys: str) -> list:
    return [
        (c.key, c.rank, c.records.tobytes(), c.steps.tobytes(), c.times.tobytes(), c.values.tobytes())
        for c in reading.history([run.id], keys)
    ]


def stored() -> int:
    return sum(size for prefix in ("blocks", "cold") for _, size, _ in blob_store().list(prefix))


def rule(room, **said) -> None:
    retention.replace(user=room.user, project=room.project, told=[{"after_days": 30, **said}])


def after_the_hour() -> None:
    MetricTrash.objects.update(delete_after=timezone.now() - timedelta(seconds=1))


@pytest.fixture
def room(room, settings, tmp_path):
    settings.ENCORE_COLD = {"store": str(tmp_path / "cold"), "bucket": "", "class": ""}
    return room


@pytest.fixture
def s3_store():
    if "ENCORE_TEST_S3" not in os.environ:
        pytest.skip("no S3 server was started (python -m tests.services run)")
    return {**json.loads(os.environ["ENCORE_TEST_S3"]), "region": "us-east-1", "prefix": f"t-{uuid.uuid4().hex}"}


def test_points_of_chosen_keys_go_and_all_others_stay_to_the_bit(room):
    """Blocks are written anew without them; a dry run says the same numbers and changes nothing; what they amounted to stays."""
    run = filled(room)
    kept = told(run, "loss")
    rule(room, action="points", keys=["system/*"])
    before = list(MetricBlock.objects.order_by("id").values())
    would = retention.apply(dry_run=True)[0]
    assert (would.runs, would.points) == (1, 200 * (3 * 2 + 1 + 1))
    assert list(MetricBlock.objects.order_by("id").values()) == before
    compaction.compact_run(run.id, force=True)
    would = retention.apply(dry_run=True)[0]
    logged, size = sum(MetricBlock.objects.values_list("points", flat=True)), sum(MetricBlock.objects.values_list("bytes", flat=True))
    done = retention.apply()[0]
    assert (done.runs, done.points) == (would.runs, would.points) == (1, 200 * (3 * 2 + 1 + 1))
    assert told(run, "loss") == kept
    assert told(run, "system/cpu", "system/gpu") == []
    assert sum(MetricBlock.objects.values_list("points", flat=True)) == logged - done.points
    assert sum(MetricBlock.objects.values_list("bytes", flat=True)) == size - done.bytes
    assert 0.5 * done.bytes < would.bytes < 1.5 * done.bytes
    assert MetricSummary.objects.filter(run=run, key="system/cpu", count=800).exists()
    assert Event.objects.get(run=run, name="retention").data["points"] == done.points
    on_disk = stored()
    after_the_hour()
    freed = freeing.empty_trash()
    assert freed.object_bytes == on_disk - stored() > done.bytes
    assert told(run, "loss") == kept
    assert retention.apply()[0].runs == 0


def test_a_run_that_is_resumed_is_looked_at_again_when_it_is_over(room):
    """What the new start logged goes too, as many days after its end."""
    run = filled(room)
    rule(room, action="points", keys=["system/cpu"])
    assert retention.apply()[0].points == 800
    later = room.writer(run, attempt=2)
    post(room, later, 0, ["system/cpu"], "d", [(n, [n]) for n in range(50)])
    summaries.summarise_run(run.id)
    assert retention.apply()[0].points == 0
    Run.objects.filter(id=run.id).update(finished_at=timezone.now() + timedelta(days=1))
    again = retention.apply(now=timezone.now() + timedelta(days=32))[0]
    assert (again.runs, again.points) == (1, 50)
    assert RetentionDone.objects.get(run=run).points == 850


def test_small_runs_in_the_database_lose_their_points_too(room):
    run = filled(room, compact=False)
    kept = told(run, "loss")
    rule(room, action="points", keys=["system/cpu", "system/gpu"])
    assert retention.apply()[0].points == 200 * (3 * 2 + 1 + 1)
    assert (told(run, "loss"), told(run, "system/cpu")) == (kept, [])


def test_points_go_out_of_columns_that_many_keys_share(room):
    """Hundreds of keys logged one by one lie in shared columns; half of them go, the others stay to the bit, whatever their type."""
    run = old_run(room)
    writer = room.writer(run)
    rows = [(n, f"{'ab'[n % 2]}/{n % 400}", "dq"[n % 3 == 0], n // 7, 10**15 + n, n if n % 3 == 0 else n / 7) for n in range(3000)]
    room.post(writer, wire.batch(run.id, writer.id, 0, 2999, [wire.sparse(0, rows)]))
    compaction.compact_run(run.id, force=True)
    summaries.summarise_run(run.id)
    keys = sorted({key for _, key, *_ in rows})
    kept = told(run, *(key for key in keys if key[0] == "b"))
    rule(room, action="points", keys=["a/*"])
    would, done = retention.apply(dry_run=True)[0], retention.apply()[0]
    assert would.points == done.points == 1500
    assert 0.3 * done.bytes < would.bytes < 3 * done.bytes
    assert told(run, *keys) == kept


def test_a_run_at_which_a_rule_fails_does_not_hold_up_the_others(room):
    """A damaged block: said, counted, and tried again at the next pass."""
    bad, good = filled(room, old_run(room, days=50)), filled(room)
    block = MetricBlock.objects.filter(run=bad).first()
    raw = blob_store().read(block.object_key)
    blob_store().put(block.object_key, raw[:100])
    rule(room, action="points", keys=["system/*"])
    found = retention.apply()[0]
    assert (found.runs, found.failed) == (1, 1)
    assert told(good, "system/cpu") == []
    blob_store().put(block.object_key, raw)
    assert (again := retention.apply()[0]).runs == 1
    assert again.failed == 0
    assert told(bad, "system/cpu") == []


def test_a_block_that_is_replaced_meanwhile_is_looked_for_anew(room, monkeypatch):
    """A merge between reading a block and writing it anew: nothing is lost, doubled or left half done."""
    run = filled(room)
    kept = told(run, "loss")
    decode = blocks.decode
    raced = []

    def racing(data):
        if not raced:
            block = MetricBlock.objects.filter(bytes=len(data)).first()
            raced.append(block.object_key)
            blob_store().put("blocks/elsewhere/x.block", data)
            MetricBlock.objects.filter(id=block.id).update(object_key="blocks/elsewhere/x.block")
        return decode(data)

    monkeypatch.setattr(blocks, "decode", racing)
    found = dropping.points(run, ["system/*"])
    assert raced
    assert found.points == 200 * (3 * 2 + 1 + 1)
    assert (told(run, "loss"), told(run, "system/cpu")) == (kept, [])
    rows = set(MetricBlock.objects.values_list("object_key", flat=True)) | set(MetricTrash.objects.values_list("object_key", flat=True))
    assert {key for key, _, _ in blob_store().list("blocks")} - rows == set(raced)  # which the merge itself would have put there


def test_what_is_protected_is_left_alone(room):
    """Runs that go on, are young, are pinned, have a verdict, or that others were forked from; and what the filter does not mean."""
    hit = old_run(room, tags=["scratch"])
    over = {name: old_run(room, tags=["scratch"]) for name in ("pinned", "parent", "original", "rerun")}
    over["pinned"].tags = ["scratch", "keep"]
    over["pinned"].save()
    old_run(room, state="running", tags=["scratch"])
    old_run(room, days=29, tags=["scratch"])
    old_run(room, tags=["other"])
    room.run(state="running", fork_run=over["parent"].id, fork_step=3)
    job = Job.objects.create(project=room.project, kind="reproduce", queue="default")
    Reproduction.objects.create(original=over["original"], rerun=over["rerun"], job=job)
    for run in Run.objects.all():
        values.tags_changed(run)
    rule(room, action="trash", filter='tags = "scratch"')
    assert retention.apply(dry_run=True)[0].runs == 1
    assert not Run.objects.exclude(deleted_at=None).exists()
    assert retention.apply()[0].runs == 1
    assert list(Run.objects.exclude(deleted_at=None)) == [hit]


def test_a_trashed_run_frees_its_bytes_after_its_days_and_says_how_many(room, settings):
    """The account of the dry run, of the pass and of the emptying agree with what the store holds."""
    run = filled(room)
    LogChunk.objects.create(run=run, writer=run.writers.first(), number=1, stream="stdout", time_us=1, text="größer")
    other = filled(room, old_run(room, days=1))
    there = told(other, *KEYS)
    run.archived_at = timezone.now()
    run.save()
    size = freeing.size_of(run.id)
    assert size.log_bytes == 8
    rule(room, action="trash", archived=True)
    found = retention.apply()[0]
    assert (found.points, found.bytes) == (size.points, size.bytes) == (200 * (3 * 3 + 2 + 1), size.bytes)
    assert found.freed_at - timezone.now() > timedelta(days=7)
    assert freeing.empty_trash().bytes == 0
    assert (freeing.waiting().runs, freeing.waiting().run_bytes) == (1, size.bytes)
    Run.objects.filter(id=run.id).update(deleted_at=timezone.now() - timedelta(days=8))
    first = freeing.empty_trash()
    assert (first.runs, first.row_bytes, first.objects) == (1, size.hot_bytes + size.log_bytes, 0)
    on_disk = stored()
    after_the_hour()
    second = freeing.empty_trash()
    assert second.object_bytes == on_disk - stored() == size.block_bytes
    assert told(other, *KEYS) == there


def test_console_lines_go(room):
    run = old_run(room)
    writer = room.writer(run)
    for number in range(5):
        LogChunk.objects.create(run=run, writer=writer, number=number, stream="stdout", time_us=1, text="é" * 10)
    rule(room, action="logs")
    assert [each.bytes for each in (retention.apply(dry_run=True)[0], retention.apply()[0])] == [100, 100]
    assert not LogChunk.objects.exists()


def test_cold_blocks_read_as_before(room, tmp_path):
    """They lie in the other folder, the old objects go with their hour, orphans of both are swept, and points can still be dropped."""
    run = filled(room)
    there = told(run, *KEYS)
    rule(room, action="cold")
    would = retention.apply(dry_run=True)[0]
    assert would.bytes == sum(MetricBlock.objects.values_list("bytes", flat=True))
    done = retention.apply()[0]
    size = sum(MetricBlock.objects.values_list("bytes", flat=True))  # of what they were merged to, for good
    assert (done.runs, done.bytes, done.points, MetricBlock.objects.count()) == (1, size, 200 * 3 * 2, 1)
    on_disk = stored()
    after_the_hour()
    assert freeing.empty_trash().object_bytes == on_disk - stored() > would.bytes
    reading.forget()
    assert told(run, *KEYS) == there
    assert list(blob_store().list("blocks")) == []
    assert sum(path.stat().st_size for path in (tmp_path / "cold").rglob("*.block")) == size
    blob_store().put("cold/blocks/orphan.block", b"x")
    assert cold.sweep_orphans() == 0  # too young
    assert cold.sweep_orphans(timedelta(seconds=-5)) == 1
    assert dropping.points(run, ["system/*"]).points > 0
    assert MetricBlock.objects.filter(object_key__startswith="cold/blocks/").count() == 1  # it stays where it lay
    assert told(run, "loss") == [each for each in there if each[0] == "loss"]


def test_cold_blocks_on_s3_have_their_storage_class(room, s3_store, settings):
    """A bucket's own storage class, by the same bucket and keys of their own."""
    settings.ENCORE_S3 = s3_store
    settings.ENCORE_COLD = {"store": "", "bucket": "", "class": "STANDARD_IA"}
    run = filled(room)
    there = told(run, *KEYS)
    rule(room, action="cold")
    assert retention.apply()[0].runs == 1
    reading.forget()
    assert told(run, *KEYS) == there
    store = blob_store().cold
    for key in MetricBlock.objects.values_list("object_key", flat=True):
        assert key.startswith("cold/")
        assert store.client.head_object(Bucket=store.bucket, Key=store._name(key))["StorageClass"] == "STANDARD_IA"


def test_a_project_without_rules_follows_the_instance(room):
    """Its own rules take the place of the instance's; ``keep`` is a rule too."""
    filled(room)
    assert retention.apply() == []
    with pytest.raises(EncoreError):
        retention.replace(user=room.user, project=None, told=[])
    retention.replace(user=None, project=None, told=[{"action": "points", "after_days": 30, "keys": ["system/*"]}])
    assert [each.runs for each in retention.apply(dry_run=True)] == [1]
    rule(room, action="keep")
    assert retention.apply(dry_run=True) == []


MISTAKES = [
    {}, {"action": "burn", "after_days": 1}, {"action": "logs"}, {"action": "logs", "after_days": -1},
    {"action": "logs", "after_days": True},
    {"action": "points", "after_days": 1}, {"action": "logs", "after_days": 1, "keys": ["a"]}, {"action": "trash", "after_days": 1},
    {"action": "trash", "after_days": 1, "filter": "lr >"}, {"action": "logs", "after_days": 1, "archived": "yes"},
    {"action": "logs", "after_days": 1, "delete": "all"}, {"action": "points", "after_days": 1, "keys": [3]}, "logs",
]  # fmt: skip


def test_a_mistake_in_a_rule_is_said_and_the_old_rules_stay(room):
    """One malformed rule of several: 400 in words, nothing changed."""
    api = api_of(room.user)
    good = {"action": "logs", "after_days": 90}
    path = f"projects/{room.project.slug}/retention"
    assert api("PUT", path, {"rules": [good]}).json()["rules"][0]["sentence"] == "console lines of runs go 90 days after their end"
    for mistake in MISTAKES:
        answer = api("PUT", path, {"rules": [good, mistake]})
        assert answer.status_code == 400, mistake
        assert answer.json()["message"]
    for body in ([], {}, {"rules": {}}, {"rules": [good] * 51}):
        assert api("PUT", path, body).status_code == 400, body
    assert [each["action"] for each in api.get(path).json()["rules"]] == ["logs"]
    assert api.get(f"{path}/preview").json()["results"][0]["runs"] == 0


def test_a_cold_rule_needs_a_cold_store(room, settings):
    settings.ENCORE_COLD = {"store": "", "bucket": "", "class": ""}
    with pytest.raises(Invalid, match="ENCORE_COLD_STORE"):
        rule(room, action="cold")


def test_the_command_line_sets_tries_and_applies_rules(room, capsys, monkeypatch):
    """encore retention, encore gc: in words and as JSON."""
    # Django runs already; started once more, its log would go to this test's captured output for good.
    monkeypatch.setattr(commands, "_start_django", lambda home: None)
    run = filled(room)
    parser = argparse.ArgumentParser("encore")
    commands.register(parser.add_subparsers())

    def encore(*words, status: int = 0):
        args = parser.parse_args(words)
        assert args.run(args) == status
        out, err = capsys.readouterr()
        return json.loads(out) if "--json" in words else out + err

    slug = room.project.slug
    assert "nothing ever goes by itself" in encore("retention")
    made = encore("retention", "add", "points", "--after", "30", "--keys", "system/*", "--project", slug, "--json")
    assert f"{made['id']}  {slug}: points of system/* of runs go 30 days after their end" in encore("retention")
    said = encore("retention", "--dry-run")
    assert "1 run, 1,600 points" in said
    assert "Nothing was changed." in said
    done = encore("retention", "run", "--json")
    assert (done["runs"], done["points"]) == (1, 1600)
    assert told(run, "system/cpu") == []
    assert "In the store's trash: 4 objects" in encore("gc", "--dry-run")
    after_the_hour()
    assert encore("gc", "--json")["object_bytes"] > 0
    assert "trash is empty" in encore("gc", "--dry-run")
    assert "is gone" in encore("retention", "remove", str(made["id"]))
    assert "no rule" in encore("retention", "remove", "999999", status=1)
    assert "no project" in encore("retention", "--project", "nowhere", status=1)
