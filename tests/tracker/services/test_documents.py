"""Documents of every type, applied as a batch brings them."""

import json

import pytest

from tests.tracker.helpers import writer_json
from tracker.domain.ids import new_id
from tracker.models import Event, KeyDefinition, LogChunk, Media, Run, RunValue, Writer
from tracker.services import documents, values

TIME = 1_700_000_000_000_000


@pytest.fixture
def send(open_writer):
    """Applies documents for a writer, numbering them as a batch does."""
    run, writer = open_writer()

    def sent(*docs, by: Writer | None = None):
        by = by or writer
        entries = [{"n": n, "step": None, "time": TIME + n, "doc": doc} for n, doc in enumerate(docs, start=sent.next)]
        sent.next += len(docs)
        documents.apply(run=run, writer=by, docs=entries)
        return Run.objects.get(id=run.id)

    sent.next, sent.run, sent.writer, sent.open = 0, run, writer, open_writer
    return sent


def test_config_replaces_then_updates_by_top_level_key(send):
    assert send({"type": "config", "value": {"lr": 1, "model": {"a": 1}}}).config == {"lr": 1, "model": {"a": 1}}
    assert send({"type": "config", "value": {"model": {"b": 2}}, "update": True}).config == {"lr": 1, "model": {"b": 2}}
    assert send({"type": "config", "value": {"x": 1}}).config == {"x": 1}
    assert list(RunValue.objects.filter(kind="config").values_list("path", "number")) == [("x", 1.0)]


def test_rank_zeros_config_stands_others_only_add(send):
    """Which rank's config arrives last must not decide."""
    _, other = send.open(send.run.id, rank=1)
    send({"type": "config", "value": {"lr": 1, "rank": 1, "only": 1}}, by=other)
    assert send({"type": "config", "value": {"lr": 1, "rank": 0}, "update": True}).config["rank"] == 0
    assert send({"type": "config", "value": {"rank": 1, "late": 2}}, by=other).config == {"lr": 1, "rank": 0, "only": 1, "late": 2}


def test_values_are_typed_leaves(send):
    config = {"b": True, "n": None, "t": "adam", "l": [1, "x"], "d": {"e": {"f": 2.5}}, "nan": float("nan"), "big": 10**400, "empty": {}}
    send({"type": "config", "value": config})
    found = {row.path: (row.number, row.text) for row in RunValue.objects.filter(kind="config")}
    assert found["b"] == (1.0, "true")
    assert found["n"] == (None, None)
    assert found["t"] == (None, "adam")
    assert found["l"] == (None, '[1, "x"]')
    assert found["d.e.f"] == (2.5, None)
    assert found["nan"] == (None, "NaN")
    assert found["big"][0] == float("inf")


def test_odd_unicode_nul_and_huge_integers_are_stored_and_sent_as_json(send, alice):
    """PostgreSQL takes neither NUL nor lone surrogates, JSON no NaN; nothing of a run may be lost for that."""
    huge = 10**60
    config = {"nul\x00": "a\x00b", "lone": "\ud800x", "pair": "\ud83d\ude00", "huge": huge, "inf": float("-inf"), "neg": -(2**63) - 1}
    run = send({"type": "config", "value": config}, {"type": "log", "stream": "stdout", "text": "x\x00\udfff\n"})
    assert run.config == {"nul\u2400": "a\u2400b", "lone": "\ufffdx", "pair": "😀", "huge": huge, "inf": "-Infinity", "neg": -(2**63) - 1}
    assert LogChunk.objects.get().text == "x\u2400\ufffd\n"
    assert json.loads(alice.get(f"runs/{run.id}").content)["config"]["huge"] == huge


def test_deep_nesting_ends_as_text(send):
    deep: dict = {}
    inner = deep
    for _ in range(200):
        inner["x"] = {}
        inner = inner["x"]
    run = send({"type": "config", "value": deep})
    assert isinstance(run.config["x"], dict)


def test_summary_merges_and_can_be_sorted_by(send):
    send({"type": "summary", "values": {"best": 0.5, "note": "x"}})
    run = send({"type": "summary", "values": {"best": 0.75}})
    assert run.summary == {"best": 0.75, "note": "x"}
    assert RunValue.objects.get(kind="summary", path="best").number == 0.75


def test_define_adds_up_by_pattern(send):
    send({"type": "define", "pattern": "val/*", "goal": "min"}, {"type": "define", "pattern": "val/*", "x": "tokens", "unknown": 1})
    assert KeyDefinition.objects.get().fields == {"goal": "min", "x": "tokens"}


def test_meta_changes_what_it_names(send):
    run = send({"type": "meta", "name": "n", "tags": ["a", "a"], "notes": "t", "group": "g"})
    assert (run.name, run.tags, run.notes, run.group) == ("n", ["a"], "t", "g")
    assert send({"type": "meta", "name": "m"}).tags == ["a"]


def test_recipe_sections_merge_or_replace(send):
    send({"type": "recipe", "section": "data", "value": {"inputs": [{"path": "a"}], "seen_by_hook": False}})
    send({"type": "recipe", "section": "data", "value": {"inputs": [{"path": "b"}], "seen_by_hook": True}, "merge": True})
    send({"type": "recipe", "section": "sdk", "value": {"version": "1"}}, {"type": "recipe", "section": "sdk", "value": {"x": 1}})
    send.writer.attempt.refresh_from_db()
    assert send.writer.attempt.recipe == {"data": {"inputs": [{"path": "a"}, {"path": "b"}], "seen_by_hook": True}, "sdk": {"x": 1}}


def test_media_and_events_are_rows(send):
    send({"type": "media", "key": "img", "kind": "image", "digest": "blake3:" + "0" * 64, "bytes": 3, "mime": "image/png", "meta": {}})
    send({"type": "event", "name": "checkpoint", "data": {"path": "x"}})
    assert Media.objects.get().key == "img"
    assert Event.objects.get().data == {"path": "x"}


@pytest.mark.parametrize(
    "doc",
    [
        {"type": "tomorrow", "value": [1]},
        {"type": "config", "value": 3},
        {"type": "config"},
        {"type": "log"},
        {"type": "media", "key": "x", "kind": "image", "digest": "d", "bytes": -1},
        {"type": 3},
        {"no": "type"},
        None,
        "text",
        {"type": "config", "blob": "blake3:" + "1" * 64},
    ],
)
def test_what_is_unknown_or_malformed_is_kept_as_an_event_and_harms_nothing(send, doc):
    run = send({"type": "config", "value": {"a": 1}}, doc, {"type": "summary", "values": {"s": 1}})
    assert (run.config, run.summary) == ({"a": 1}, {"s": 1})
    assert Event.objects.filter(run=run).count() == 1


def test_a_document_in_a_blob_is_read_from_there(send, alice):
    from tests.tracker.api.test_blobs import digest_of, put

    whole = json.dumps({"type": "config", "value": {"long": "x" * 300_000}}).encode()
    put(alice, send.run, whole)
    assert len(send({"type": "config", "blob": digest_of(whole)}).config["long"]) == 300_000


class TestTheEnd:
    def finish(self, state="finished", **more):
        return {
            "type": "event",
            "name": "finish",
            "data": {"state": state, "exit_code": 0, "signal": None, "error": None, "dropped": {}, **more},
        }

    def test_a_run_ends_when_its_last_rank_has(self, send):
        _, other = send.open(send.run.id, rank=1)
        assert send(self.finish()).state == "running"
        run = send(self.finish("failed", exit_code=3, error={"type": "ValueError", "message": "m"}), by=other)
        assert (run.state, run.exit_code, run.error["type"]) == ("failed", 3, "ValueError")
        assert int(run.finished_at.timestamp()) == TIME // 1_000_000

    def test_dropped_counts_of_all_ranks_add_up(self, send):
        _, other = send.open(send.run.id, rank=1)
        send(self.finish(dropped={"full": 2}))
        assert send(self.finish(dropped={"full": 3, "odd": 1}), by=other).dropped == {"full": 5, "odd": 1}

    def test_losses_are_shown_while_the_run_goes_on_and_counted_once(self, send):
        """``dropped`` events and ``finish`` say the writer's whole count each time; a word without counts takes nothing back."""
        _, other = send.open(send.run.id, rank=1)
        dropped = {"type": "event", "name": "dropped", "data": {"disk: full": 2}}
        run = send(dropped)
        assert (run.state, run.dropped) == ("running", {"disk: full": 2})
        more = {**dropped, "data": {"disk: full": 5, "str is no number": 1}}
        assert send(dropped, more).dropped == {"disk: full": 5, "str is no number": 1}
        assert send(dropped, by=other).dropped == {"disk: full": 7, "str is no number": 1}
        assert send(self.finish(dropped={"disk: full": 6, "str is no number": 1})).dropped == {"disk: full": 8, "str is no number": 1}
        assert send(self.finish(), by=other).dropped == {"disk: full": 8, "str is no number": 1}

    def test_a_vanished_trainer_crashed(self, send):
        _, node = send.open(send.run.id, kind="node")
        gone = {"type": "event", "name": "gone", "data": {"writer": send.writer.id, "exit_code": None}}
        assert send(gone, by=node).state == "crashed"

    def test_a_trainer_that_the_system_ended_for_memory_says_so(self, send):
        _, node = send.open(send.run.id, kind="node")
        error = {"type": "OutOfMemory", "message": "killed by the system for want of memory (OOM)", "traceback": ""}
        gone = {"type": "event", "name": "gone", "data": {"writer": send.writer.id, "exit_code": None, "signal": 9, "error": error}}
        run = send(gone, by=node)
        assert (run.state, run.signal, run.error) == ("crashed", 9, error)

    def test_its_own_late_word_counts_more_than_gone(self, send):
        _, node = send.open(send.run.id, kind="node")
        gone = {"type": "event", "name": "gone", "data": {"writer": send.writer.id, "exit_code": None}}
        send(gone, by=node)
        assert send(self.finish()).state == "finished"
        assert send(gone, by=node).state == "finished"

    def test_gone_never_touches_a_writer_of_another_run(self, send, open_writer):
        _, foreign = open_writer()
        send({"type": "event", "name": "gone", "data": {"writer": foreign.id}})
        foreign.refresh_from_db()
        assert foreign.finish is None

    def test_only_the_latest_attempt_decides(self, send):
        send(self.finish("killed"))
        run, second = send.open(send.run.id, started_us=TIME + 10**9)
        assert run.state == "running"
        assert send(self.finish(), by=second).state == "finished"

    def test_a_forked_child_neither_counts_as_a_start_nor_ends_the_run(self, send, alice):
        _, child = send.open(send.run.id, kind="node", parent=send.writer.id)
        assert child.attempt_id == send.writer.attempt_id
        assert send(self.finish(), by=child).state == "running"

    def test_an_unknown_word_for_the_end_is_a_crash(self, send):
        assert send(self.finish("exploded")).state == "crashed"


def test_opening_again_after_the_end_does_not_start_the_run_again(send, alice):
    """A copied journal that is synced later opens its writer again: the run stays finished."""
    send(TestTheEnd().finish())
    doc = writer_json(send.run.id)
    doc["writer"] = send.writer.id
    assert alice.post("ingest/writers", doc).json()["run"]["state"] == "finished"
    assert Writer.objects.filter(run=send.run).count() == 1
    assert new_id() != send.writer.id


def test_a_dictionary_in_the_summary_is_filtered_by_its_leaves(run):
    """``summary.best.acc`` is a name, and goes when the program leaves it out of the dictionary."""
    values.summary_changed(run, {"best": {"acc": 0.5, "at": {"step": 3}}, "n": 1})
    assert dict(RunValue.objects.filter(run=run).values_list("path", "number")) == {"best.acc": 0.5, "best.at.step": 3.0, "n": 1.0}
    values.summary_changed(run, {"best": {"acc": 0.75}})
    assert dict(RunValue.objects.filter(run=run).values_list("path", "number")) == {"best.acc": 0.75, "n": 1.0}
