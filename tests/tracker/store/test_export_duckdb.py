"""encore export --to: the tree that it makes is read by DuckDB, and agrees with the API point by point."""

from __future__ import annotations

import argparse
import io
import json
import os
import struct
import tarfile
import threading
import urllib.error
import urllib.request
import uuid
from types import SimpleNamespace

import duckdb
import pyarrow.parquet
import pytest
from django.db import connection

from sdk._cli import export as command
from sdk._query import Api, exports
from sdk._query.places import Folder, place
from sdk.errors import FormatError
from tests.tracker.store import wire_writer as wire
from tests.tracker.store.conftest import Room
from tests.tracker.store.export_room import INTS, ODD_KEYS, SPECIAL, mixture, post
from tracker.domain.errors import Busy, FilterMistake
from tracker.models import MetricBlock, Run
from tracker.services import compaction, export_points, export_tree, summaries
from tracker.store import parquet, reading
from tracker.store.blobs import blob_store


@pytest.fixture
def house(transactional_db, live_server, tmp_path, capsys, settings):
    """A room of runs behind a real server; ``encore(words…)`` runs the command."""
    room = Room()
    to = tmp_path / "out"

    def encore(*words: str, status: int = 0, to: object = to):
        parser = argparse.ArgumentParser("encore")
        command.register(parser.add_subparsers())
        args = parser.parse_args(["export", *words, "--to", str(to), "--url", live_server.url, "--token", room.secret, "--json"])
        found = args.run(args)
        out, err = capsys.readouterr()
        assert found == status, out + err
        return SimpleNamespace(err=err, **(json.loads(out.splitlines()[-1]) if out else {}))

    db = duckdb.connect(config={"threads": 1})

    def query(text: str, *values):
        db.execute("SET TimeZone = 'UTC'")
        db.execute(
            f"CREATE OR REPLACE VIEW points AS SELECT * FROM read_parquet('{to}/project=*/run=*/*.parquet', hive_partitioning = true, "
            "hive_types = {'run': VARCHAR, 'project': VARCHAR})"
        )
        db.execute(f"CREATE OR REPLACE VIEW runs AS SELECT * FROM read_parquet('{to}/runs.parquet')")
        return db.execute(text, list(values)).fetchall()

    yield SimpleNamespace(room=room, to=to, encore=encore, query=query, api=Api(live_server.url, room.secret), url=live_server.url)
    db.close()


def bits(value) -> object:
    """A value as the API tells it, so that NaN, -0.0 and integers beyond 2**53 are compared to the bit."""
    if isinstance(value, int):
        return value
    return struct.pack("<d", float({"NaN": "nan", "Infinity": "inf", "-Infinity": "-inf"}.get(value, value)))


def told(rows) -> list:
    return [(step, time, bits(value if value_int is None else value_int)) for step, time, value, value_int in rows]


def same(ours, theirs) -> bool:
    """Integers that the API gives as a number with a fraction (a key of both kinds) are compared as numbers."""
    return len(ours) == len(theirs) and all(
        a[:2] == tuple(b[:2]) and (a[2] == bits(b[2]) or (isinstance(a[2], int) and isinstance(b[2], float) and float(a[2]) == b[2]))
        for a, b in zip(ours, theirs, strict=True)
    )


def test_every_point_of_every_kind_of_run_agrees_with_the_history_route(house):
    """Ranks, restarts, old branches, forks, NaN, infinities, -0.0, 2**53+1, odd keys, 5,000 keys: DuckDB reads what the API says."""
    runs = mixture(house.room, wide=5000)
    done = house.encore()
    assert (done.runs, done.sent) == (len(runs), len(runs))
    assert {p.relative_to(house.to).as_posix() for p in house.to.rglob("*.parquet")} == {
        "runs.parquet",
        *(f"project={house.room.project.slug}/run={run.id}/points.parquet" for name, run in runs.items() if name != "empty"),
    }
    columns = "step, epoch_us(time), value, value_int"
    compared = 0
    for name, run in runs.items():
        series = house.query("SELECT key, rank, count(*) FROM points WHERE run = ? GROUP BY ALL ORDER BY ALL", run.id)
        there = {(key, rank): count for key, ranks in reading.keys_of(run.id).items() for rank, count in ranks.items()}
        own = dict(house.query("SELECT (key, rank)::VARCHAR, count(*) FROM points WHERE run = ? AND attempt > 0 GROUP BY ALL", run.id))
        assert sum(own.values()) == sum(there.values()), name  # own points, each once, whatever became of them
        if name != "fork":
            assert {(key, rank): count for key, rank, count in series} == there
        for key, rank, _ in series[:: 250 if name == "wide" else 1]:
            answer = house.api.get(f"runs/{run.id}/history", key=key, rank=rank, branch="all")
            where = f"SELECT {columns} FROM points WHERE run = ? AND key = ? AND rank = ?"
            rows = told(house.query(f"{where} AND wins ORDER BY step", run.id, key, rank))
            assert same(rows, answer["points"]), (name, key, rank)
            compared += len(rows)
            for branch in answer["branches"]:
                left = house.query(f"{where} AND branch = ? ORDER BY step", run.id, key, rank, branch["attempt"])
                assert same(told(left), branch["points"]), (name, key, rank)
                compared += len(left)
    assert compared > 450
    exact = dict.fromkeys(("special", "ints"))
    for key in exact:
        exact[key] = house.query("SELECT value, value_int FROM points WHERE run = ? AND key = ? ORDER BY step", runs["exact"].id, key)
    assert [bits(value) for value, _ in exact["special"]] == [bits(value) for value in SPECIAL]
    assert [value for _, value in exact["ints"]] == INTS
    assert {key for (key,) in house.query("SELECT DISTINCT key FROM points WHERE run = ?", runs["sparse"].id)} == set(ODD_KEYS)
    wide = house.query("SELECT key, value FROM points WHERE run = ? AND step = 1", runs["wide"].id)
    assert dict(wide) == {f"layer.{n}/norm": n + 1 for n in range(5000)}
    inherited = house.query("SELECT step, value FROM points WHERE run = ? AND key = 'loss' AND attempt = 0 ORDER BY step", runs["fork"].id)
    assert inherited == [(n, n + (1000 if n > 9 else 0)) for n in range(13)]


def test_rows_lie_sorted_and_row_groups_can_be_passed_over(house, monkeypatch):
    """By key, rank, then step, in groups of bounded size with statistics, so that a reader of one key reads a part of the file."""
    monkeypatch.setattr(parquet, "ROW_GROUP", 1000)
    runs = mixture(house.room, wide=1500)
    house.encore(runs["wide"].id, runs["ranks"].id)
    for name in ("wide", "ranks"):
        file = next(house.to.rglob(f"run={runs[name].id}/*.parquet"))
        table = pyarrow.parquet.read_table(file, partitioning=None).to_pydict()
        rows = list(zip(table["key"], table["rank"], table["step"], strict=True))
        assert rows == sorted(rows)
        found = pyarrow.parquet.ParquetFile(file).metadata
        assert [found.row_group(n).num_rows for n in range(found.num_row_groups)] == ([1000, 1000, 1000] if name == "wide" else [240])
        assert found.row_group(0).column(0).statistics.min == rows[0][0]
        assert found.row_group(0).column(4).compression == "ZSTD"


def test_a_long_series_is_written_in_windows_of_steps(house, monkeypatch):
    """However many points a series has, no more than a portion of them is in memory; nothing is lost or doubled at the cuts."""
    monkeypatch.setattr(export_points, "POINTS_AT_ONCE", 1000)
    monkeypatch.setattr(export_points, "SAMPLE", 16)
    monkeypatch.setattr(export_tree, "SMALL_POINTS", 100)
    run = house.room.run(state="finished")
    writer = house.room.writer(run)
    steps = [(n * 7919) % 5000 // 2 for n in range(6000)]  # out of order, most twice
    at = 0
    for start in range(0, 6000, 1500):
        at = post(house.room, writer, at, ["loss", "other"], "dd", [(step, [step, at]) for step in steps[start : start + 1500]])
        compaction.compact_run(run.id, force=True)
    summaries.summarise_run(run.id)
    largest = []
    history = reading.history

    def watched(*args, **more):
        found = history(*args, **more)
        largest.append(sum(len(column.steps) for column in found))
        return found

    monkeypatch.setattr(reading, "history", watched)
    house.encore(run.id)
    assert len(largest) > 8
    assert max(largest) <= 1500
    monkeypatch.undo()
    assert house.query("SELECT key, count(*) FROM points GROUP BY key ORDER BY key") == [("loss", 6000), ("other", 6000)]
    points = house.api.get(f"runs/{run.id}/history", key="other")["points"]
    rows = house.query("SELECT step, epoch_us(time), value, value_int FROM points WHERE key = 'other' AND wins ORDER BY step")
    assert same(told(rows), points)


def test_the_table_of_runs_has_typed_columns_where_the_runs_agree(house):
    """runs.parquet: config and summary as JSON text, and flat where all are of one type; numbers of both kinds are numbers."""
    room = house.room
    one = room.run(state="finished", config={"lr": 1, "model": {"name": "gpt"}, "odd": "x", "nan": "NaN"}, summary={"best": 3}, tags=["t"])
    two = room.run(state="failed", config={"lr": 0.5, "model": {"name": None}, "odd": 2, "nan": 1.0}, exit_code=3)
    post(room, room.writer(one), 0, ["val/acc"], "d", [(0, [0.25])])
    summaries.summarise_run(one.id)
    house.encore()
    rows = house.query(
        'SELECT id, state, tags, exit_code, "config.lr", "config.model.name", "summary.best", "summary.val/acc", config FROM runs '
        'ORDER BY "config.lr"'
    )
    assert [row[:8] for row in rows] == [
        (two.id, "failed", [], 3, 0.5, None, None, None),
        (one.id, "finished", ["t"], None, 1.0, "gpt", 3, 0.25),
    ]
    assert json.loads(rows[1][8]) == one.config
    names = {name for name, *_ in house.query("DESCRIBE runs")}
    assert "config.odd" not in names
    assert "config.nan" in names
    assert house.query("SELECT runs.state, count(*) FROM points JOIN runs ON points.run = runs.id GROUP BY 1") == [("finished", 1)]


def test_only_what_changed_is_brought_again(house):
    """A second export sends nothing; a run that got points is replaced; moving points into blocks changes nothing."""
    runs = mixture(house.room)
    assert house.encore().sent == len(runs)
    files = {path: path.stat().st_mtime_ns for path in house.to.rglob("points.parquet")}
    for run in runs.values():
        compaction.compact_run(run.id, force=True)
    again = house.encore()
    assert (again.sent, again.unchanged, again.points) == (0, len(runs), 0)
    writer = runs["running"].writers.get()
    post(house.room, writer, 5, ["loss"], "d", [(5, [5.0])], known=True)
    assert (house.encore().sent, house.query("SELECT max(step) FROM points WHERE run = ?", writer.run_id)) == (1, [(5,)])
    changed = {path for path in house.to.rglob("points.parquet") if files[path] != path.stat().st_mtime_ns}
    assert {path.parent.name for path in changed} == {f"run={writer.run_id}"}
    # What a parent gets up to a fork's step is the fork's history too.
    parent = runs["rewound"].writers.get(attempt__number=3)
    post(house.room, parent, 10, ["loss"], "d", [(12, [4.0])], known=True)
    assert house.encore().sent == 2


def test_a_deleted_run_is_named_and_pruned_when_asked(house):
    runs = mixture(house.room)
    house.encore()
    house.api.delete(f"runs/{runs['ranks'].id}")
    folder = f"project={house.room.project.slug}/run={runs['ranks'].id}"
    assert house.encore().gone == [folder]
    assert (house.to / folder / "points.parquet").exists()
    assert house.encore("--prune").pruned == [folder]
    assert not (house.to / folder).exists()


def test_damage_is_found_and_mended(house):
    """--check reads every byte; --mend brings anew what is not as it came; a file that is short is brought anew anyway."""
    runs = mixture(house.room)
    house.encore()
    assert house.encore("--check").wrong == []
    files = [next(house.to.rglob(f"run={runs[name].id}/points.parquet")) for name in ("ranks", "exact")]
    raw = bytearray(files[0].read_bytes())
    raw[len(raw) // 2] ^= 1
    files[0].write_bytes(raw)
    files[1].write_bytes(files[1].read_bytes()[:-1])
    wrong = house.encore("--check", status=1).wrong
    assert {entry["folder"].rpartition("=")[2] for entry in wrong} == {runs["ranks"].id, runs["exact"].id}
    assert house.encore().sent == 1
    assert house.encore("--mend").sent == 1
    assert house.encore("--check").wrong == []


def test_an_interrupted_export_goes_on(house, monkeypatch):
    """A stream that breaks off leaves whole files only; what came is kept, and the command asks again for the rest by itself."""
    runs = mixture(house.room)
    whole = export_tree._stream
    calls = []

    def breaking(user, question, wanted, have, pages):
        calls.append(len(have))
        for at, part in enumerate(whole(user, question, wanted, have, pages)):
            if len(calls) == 1 and at == 12:
                yield part[: len(part) // 2]
                raise ConnectionResetError
            yield part

    monkeypatch.setattr(export_tree, "_stream", breaking)
    done = house.encore()
    assert done.runs == len(runs)
    assert len(calls) == 2
    assert 0 < calls[1] < len(runs)
    assert not list(house.to.glob(".*"))
    assert house.encore("--check").wrong == []


def test_a_place_holds_the_export_of_one_question(house, tmp_path):
    """Another filter, or a folder with something else in it, is refused before anything is written."""
    mixture(house.room)
    house.encore("--filter", "lr >", status=1)
    house.encore("--project", house.room.project.slug)  # a question that was refused binds nobody
    assert "another project" in house.encore(status=1).err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    assert "choose an empty place" in house.encore(status=1, to=tmp_path / "mine").err
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_one_export_at_a_time_writes_into_a_folder(house):
    """A second one is refused and touches nothing of the first."""
    mixture(house.room)
    with command.place_of(str(house.to)) as first:
        half = first.aside()
        assert "another export" in house.encore(status=1).err
        half.write(b"x")
        first.keep(half, "_encore.json")


def test_a_run_that_cannot_be_read_is_named_and_the_others_come(house):
    """A damaged block: what lies there of that run stays, the exit status is 1, and the next export tries it again."""
    runs = mixture(house.room)
    key = MetricBlock.objects.get(run=runs["exact"]).object_key
    raw = blob_store().read(key)
    blob_store().put(key, raw[: len(raw) // 2])
    reading.forget()
    done = house.encore(status=1)
    assert [each["run"] for each in done.failed] == [runs["exact"].id]
    assert done.sent == len(runs) - 1
    blob_store().put(key, raw)
    reading.forget()
    assert house.encore().sent == 1


def test_an_export_while_points_come_in_and_are_compacted_is_a_prefix(house):
    """At any moment a run can be exported whole: its first n points, each once, never a hole while segments become blocks."""
    runs = [house.room.run(state="running") for _ in range(3)]
    writers = [house.room.writer(run) for run in runs]
    over = threading.Event()

    def log(at: int) -> None:
        for writer in writers:
            post(house.room, writer, at, ["loss"], "d", [(at + n, [at + n]) for n in range(20)], known=at > 0)

    def work() -> None:
        at = 20
        while not over.is_set() and at < 20_000:
            log(at)
            at += 20
            compaction.compact_run(runs[at % 3].id, force=True)
        connection.close()

    log(0)
    thread = threading.Thread(target=work)
    thread.start()
    try:
        seen = 0
        for _ in range(6):
            assert house.encore().runs == 3
            rows = house.query(
                "SELECT run, count(*), count(DISTINCT step), min(step), max(step), sum(value - step) FROM points GROUP BY run"
            )
            for _, count, steps, low, high, off in rows:
                assert (count, low, high, off) == (steps, 0, count - 1, 0)
                seen = max(seen, count)
    finally:
        over.set()
        thread.join()
    assert seen > 20


def test_times_and_steps_at_the_ends_of_64_bits_are_kept(house):
    run = house.room.run(state="finished")
    writer = house.room.writer(run)
    ends = [-(2**63) + 1, -1, 0, 2**63 - 1]
    rows = [(n, end, time, [1.0]) for n, (end, time) in enumerate(zip(ends, reversed(ends), strict=True))]
    house.room.post(writer, wire.batch(run.id, writer.id, 0, 3, [wire.dense(0, ["x"], "d", rows)]))
    house.encore()
    table = pyarrow.parquet.read_table(next(house.to.rglob("points.parquet")), partitioning=None)
    assert table["step"].to_pylist() == ends
    assert table["time"].cast(pyarrow.int64()).to_pylist() == list(reversed(ends))


def test_metrics_and_runs_can_be_chosen(house):
    runs = mixture(house.room)
    house.encore(runs["exact"].id, runs["rewound"].id, "--keys", "in*", "system/*", "nothing")
    assert house.query("SELECT DISTINCT run, key FROM points ORDER BY key") == [
        (runs["exact"].id, "ints"),
        (runs["rewound"].id, "system/cpu"),
    ]


def test_what_somebody_may_not_see_is_not_exported(house):
    """A stranger's export holds no run; a fork shows him own points only."""
    runs = mixture(house.room)
    other = Room()
    fork = Run.objects.create(
        project=other.project, user=other.user, name="f", state="finished", fork_run=runs["rewound"].id, fork_step=12, is_stitched=True
    )
    post(other, other.writer(fork, 0, 1, 1_800_000_000_000_000), 0, ["loss"], "d", [(13, [1.0])])
    house.room.secret = other.secret
    done = house.encore()
    assert done.runs == 1
    assert house.query("SELECT run, step, attempt FROM points") == [(fork.id, 13, 1)]


MALFORMED = [
    b"[]", b"nonsense", b'{"keys": "loss"}', b'{"keys": [""]}', b'{"runs": ["no id"]}', b'{"filter": "lr >"}', b'{"have": []}',
    b'{"have": {"a": 1}}', b'{"archived": 1}', b'{"unheard": 1}', b'{"state": "sleeping"}', b'{"project": 3}',
]  # fmt: skip


def test_a_malformed_question_is_answered_400_in_words(house):
    """Nothing of an export is sent for it."""
    for question in MALFORMED:
        headers = {"Authorization": f"Bearer {house.room.secret}", "Content-Type": "application/json"}
        request = urllib.request.Request(f"{house.url}/api/v1/export/parquet", question, headers)
        with pytest.raises(urllib.error.HTTPError) as found:
            urllib.request.urlopen(request)
        assert found.value.code == 400, question
        assert json.loads(found.value.read())["message"]


def test_one_run_comes_as_one_file(house, tmp_path):
    """GET export/runs/{id}.parquet, also of a run without points."""
    runs = mixture(house.room)
    for name, count in (("ranks", 240), ("empty", 0)):
        with (tmp_path / f"{name}.parquet").open("wb") as file:
            house.api.download(f"export/runs/{runs[name].id}.parquet", file)
        with duckdb.connect() as db:
            assert db.execute(f"SELECT count(*) FROM read_parquet('{tmp_path}/{name}.parquet')").fetchall() == [(count,)]


def test_an_export_into_a_bucket_is_kept_up_like_a_folder(house, monkeypatch):
    """s3://bucket/prefix on a real S3 server: brought once, checked, mended, pruned."""
    if "ENCORE_TEST_S3" not in os.environ:
        pytest.skip("no S3 server was started (python -m tests.services run)")
    s3 = json.loads(os.environ["ENCORE_TEST_S3"])
    for name, value in {"ENDPOINT_URL": "endpoint", "ACCESS_KEY_ID": "access_key", "SECRET_ACCESS_KEY": "secret_key"}.items():
        monkeypatch.setenv(f"AWS_{name}", s3[value])
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    runs = mixture(house.room)
    to = f"s3://{s3['bucket']}/exports/{uuid.uuid4().hex}"
    assert house.encore(to=to).sent == len(runs)
    assert house.encore(to=to).sent == 0
    assert house.encore("--check", to=to).wrong == []
    bucket = place(to)
    folder = f"project={house.room.project.slug}/run={runs['ranks'].id}"
    with bucket.open(f"{folder}/points.parquet") as file:
        raw = file.read()
    table = duckdb.from_arrow(pyarrow.parquet.read_table(io.BytesIO(raw)))
    assert table.count("*").fetchall() == [(240,)]
    spoiled = bucket.aside()
    spoiled.write(raw[:-1] + bytes([raw[-1] ^ 1]))
    bucket.keep(spoiled, f"{folder}/points.parquet")
    assert [entry["folder"] for entry in house.encore("--check", to=to, status=1).wrong] == [folder]
    assert house.encore("--mend", to=to).sent == 1
    house.api.delete(f"runs/{runs['ranks'].id}")
    assert house.encore("--prune", to=to).pruned == [folder]
    assert folder not in {name.rpartition("/")[0] for name, _ in bucket.names()}


def test_a_reader_that_leaves_gives_its_place_back(house):
    """As many exports as the server takes at once; one more is told to wait; all that break off or end make room again."""
    mixture(house.room)
    question = export_tree.Question()
    for _ in range(2):
        going = [export_tree.stream(user=house.room.user, question=question) for _ in range(export_tree.AT_ONCE)]
        with pytest.raises(Busy):
            export_tree.stream(user=house.room.user, question=question)
        next(going[0])
        for stream in going:
            stream.close()
    with pytest.raises(FilterMistake):
        export_tree.stream(user=house.room.user, question=export_tree.Question(filter="lr >"))
    whole = export_tree.stream(user=house.room.user, question=question)
    with tarfile.open(fileobj=io.BytesIO(b"".join(whole))) as found:
        assert found.getnames()[-1] == "_encore.json"
    assert all(export_tree._places.acquire(blocking=False) for _ in range(export_tree.AT_ONCE))
    for _ in range(export_tree.AT_ONCE):
        export_tree._places.release()


class Hostile:
    """A server that sends a tree of its own making."""

    def __init__(self, *entries: tuple[tarfile.TarInfo, bytes]) -> None:
        held = io.BytesIO()
        with tarfile.open(fileobj=held, mode="w") as made:
            for info, raw in entries:
                info.size = len(raw)
                made.addfile(info, io.BytesIO(raw))
        self.url, self.body = "http://x", held.getvalue()

    def _stream(self):
        return SimpleNamespace(open=lambda *_: io.BytesIO(self.body))


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "project=a/run=../points.parquet", "project=a/run=b/../../evil", "link", "x"])
def test_nothing_that_a_server_sends_is_written_elsewhere(tmp_path, name):
    """Names are checked against what an export consists of; links, devices and foreign names are refused."""
    info = tarfile.TarInfo("runs.parquet" if name == "link" else name)
    if name == "link":
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
    to = tmp_path / "out"
    with pytest.raises(FormatError):
        exports.export(Hostile((info, b"" if name == "link" else b"evil")), Folder(to), {"keys": []})
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()) == ["out/_encore.question.json"]
