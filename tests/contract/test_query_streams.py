"""sdk.Api against the real server over HTTP: streamed answers are whole, exact, filtered, seen by the right people, or an error by name."""

from __future__ import annotations

import datetime
import math
import socket
import threading
from array import array
from types import SimpleNamespace

import pytest
from django.utils import timezone

from sdk import _wire, errors
from sdk._query import Api, streams
from tracker.domain.ids import new_id
from tracker.models import Attempt, Blob, Media, Membership, Project, Run, Token, Writer
from tracker.services import accounts, compaction, export, ingest, summaries

TIME = 1_700_000_000_000_000


@pytest.fixture
def room(live_server, transactional_db, settings):
    """A server, alice who owns the project vision, charlie who may see nothing, and a way to make runs with points."""
    settings.CELERY_BROKER_URL = ""
    alice, charlie = (accounts.create_user(username=name) for name in ("alice", "charlie"))
    project = Project.objects.create(slug="vision", name="Vision")
    Membership.objects.create(project=project, user=alice, role="owner")
    tokens = {user.username: accounts.create_token(user=user, name="test", scopes=["api"])[1] for user in (alice, charlie)}

    def make(name="a run", **fields):
        fields = {"state": "finished", "started_at": timezone.now(), **fields}
        run = Run.objects.create(project=project, user=alice, name=name, **fields)
        Attempt.objects.create(run=run, number=1)
        return run

    def points(run, columns, rank=0, steps=None):
        """columns: key -> list of floats or of ints."""
        writer = Writer.objects.create(id=new_id(), run=run, attempt=run.attempts.get(), rank=rank, started_us=TIME, anchor_wall_us=TIME)
        rows = len(next(iter(columns.values())))
        keys, types = list(columns), "".join("q" if all(type(v) is int for v in values) else "d" for values in columns.values())
        frame = {"kind": "dense", "keylist": _wire.key_list_hash(keys, types), "keys": keys, "types": types, "rows": rows}
        parts = [array("I", range(rows)), array("q", steps or range(rows)), array("q", [TIME + 1000 * n for n in range(rows)])]
        parts += [array(code, values) for code, values in zip(types, columns.values(), strict=True)]
        header = {"run": run.id, "writer": writer.id, "first": 0, "last": rows - 1, "frames": [frame], "docs": [], "holes": []}
        body = _wire.pack(header, [part.tobytes() for part in parts])
        ingest.append_batch(writer_id=writer.id, user=alice, token=Token.objects.filter(user=alice).first(), body=body, encoding="")
        return writer

    return SimpleNamespace(
        url=live_server.url,
        project=project,
        alice=alice,
        make=make,
        points=points,
        tokens=tokens,
        api=Api(live_server.url, tokens["alice"]),
    )


# Runs ---------------------------------------------------------------------------------------------------------------------------


def test_runs_are_streamed_with_config_summary_and_metrics_in_the_order_asked_for(room, monkeypatch):
    """Over several of the server's pages: all of them, once, filtered and sorted as the paged list does it."""
    monkeypatch.setattr(export, "PAGE", 7)
    made = [room.make(f"run {n}", config={"lr": n / 10, "model": {"layers": n}}, summary={"best": n}) for n in range(20)]
    room.points(made[3], {"loss": [0.5, math.nan]})
    summaries.summarise_run(made[3].id)
    found = list(room.api.runs(project="vision", keys=["loss"]))
    assert [run.id for run in found] == [run.id for run in reversed(made)]
    assert found[16].config == {"lr": 0.3, "model": {"layers": 3}}
    assert (found[16].summary, found[16].metrics) == ({"best": 3}, {"loss": "NaN"})
    paged = [row["id"] for row in room.api.pages("runs", filter="name ~ run", sort="name", limit=6)]
    assert [run.id for run in room.api.runs(filter="name ~ run", sort="name")] == paged
    rows = {row["id"]: row for row in room.api.pages("runs", limit=50)}
    for run in room.api.runs():
        assert run.data == rows[run.id], "the streamed row is not the listed one"


def test_a_limit_takes_so_many_and_no_more(room, monkeypatch):
    """Small ones in one request, large ones off the stream; a negative one is refused."""
    for n in range(9):
        room.make(f"run {n}")
    monkeypatch.setattr(export, "PAGE", 4)
    assert [len(list(room.api.runs(limit=n))) for n in (0, 1, 5, 100, 1000)] == [0, 1, 5, 9, 9]
    with pytest.raises(errors.UsageError):
        room.api.runs(limit=-1)


def test_a_stranger_is_streamed_nothing_and_mistakes_are_errors_by_name(room):
    """Visibility holds in streams; a filter's mistake and an unknown project answer as they do in lists."""
    run = room.make("hidden")
    room.points(run, {"loss": [1.0]})
    stranger = Api(room.url, room.tokens["charlie"])
    assert list(stranger.runs()) == []
    assert list(stranger.history("loss")) == []
    assert list(stranger.history("loss", runs=[run.id])) == []
    for wrong, code in (
        ({"filter": "name = ("}, "filter_mistake"),
        ({"project": "nowhere"}, "not_found"),
        ({"state": "tired"}, "invalid"),
    ):
        with pytest.raises(errors.ServerRefused) as refused:
            list(room.api.runs(**wrong))
        assert refused.value.code == code, wrong
        with pytest.raises(errors.ServerRefused) as refused:
            list(room.api.history("loss", **wrong))
        assert refused.value.code == code
    with pytest.raises(errors.ServerRefused) as refused:
        list(Api(room.url, "enc_wrong").runs())
    assert refused.value.status == 401


def test_other_questions_may_be_asked_while_a_stream_is_read(room, monkeypatch):
    """A history for each run of a stream in progress."""
    monkeypatch.setattr(export, "PAGE", 2)
    for n in range(5):
        room.points(room.make(f"run {n}"), {"loss": [float(n)]})
    assert [run.history("loss")[0][2] for run in room.api.runs(sort="name")] == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_words_are_clear_where_a_stream_is_no_list(room):
    """repr and len say what to do instead."""
    found = room.api.runs(project="vision", filter="state = finished")
    assert repr(found) == "<Runs project = vision AND (state = finished); iterate over it, or call .pandas() or .arrow()>"
    with pytest.raises(TypeError, match="len\\(list"):
        len(found)
    with pytest.raises(TypeError, match="len\\(list"):
        len(room.api.history("loss"))
    assert repr(room.api) == f"<Api of {room.url}>"


# Histories ----------------------------------------------------------------------------------------------------------------------

ODD = [0.1, -0.0, math.nan, math.inf, -math.inf, 5e-324, 1.7976931348623157e308]
INTS = [0, -1, 2**53 + 1, -(2**63), 2**63 - 1, 7, 8]


@pytest.mark.parametrize("compacted", [False, True])
def test_histories_are_exact_from_segments_and_from_blocks(room, compacted):
    """Every float's bits, every integer of 64 bits, odd steps, times in µs."""
    run = room.make("exact", state="running")
    steps = [-(2**62), -5, 0, 1, 2, 1000, 2**62]
    room.points(run, {"real": ODD, "whole": INTS}, steps=steps)
    summaries.summarise_run(run.id)
    if compacted:
        assert compaction.compact_run(run.id, force=True) == 1
    found = {series.key: series for series in room.api.history(["real", "whole"], runs=[run.id])}
    assert list(map(str, found["real"].values)) == list(map(str, ODD))
    assert list(found["whole"].values) == INTS
    for series in found.values():
        assert list(series.steps) == steps
        assert list(series.times) == [TIME + 1000 * n for n in range(7)]
        assert (series.rank, len(series), series.run) == (0, 7, run.id)
    assert [point[2] for point in room.api.run(run.id).history("whole")] == INTS


def test_a_key_that_logged_both_keeps_each_as_it_was(room):
    """Ints beyond 2**53 beside floats, in lists, pandas and Arrow."""
    pandas, pyarrow = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
    run = room.make("both")
    room.points(run, {"x": [2**60 + 1, 3]})
    room.points(run, {"x": [0.5, math.nan]}, steps=[2, 3])
    series = next(room.api.history("x", runs=[run.id]))
    assert [type(value) for value in series.values] == [int, int, float, float]
    assert series.list()[0] == (0, TIME, 2**60 + 1)
    frame = series.pandas()
    assert frame["value"][0] == 2**60 + 1
    assert isinstance(frame, pandas.DataFrame)
    table = series.arrow()
    assert isinstance(table, pyarrow.Table)
    assert table["integer"].to_pylist() == [2**60 + 1, 3, None, None]


def test_only_winners_come_and_only_of_the_ranks_asked_for(room):
    """Repeated steps: the later write; ranks: the lowest that logged a key, all, or those named."""
    run = room.make("ranks")
    for rank in (2, 1):
        room.points(run, {"loss": [float(rank), 5.0 + rank, 9.0 + rank]}, rank=rank, steps=[0, 1, 1])
    room.points(run, {"only": [4.0]}, rank=3)
    summaries.summarise_run(run.id)

    def found(**asked):
        return {(one.key, one.rank): [(step, value) for step, _, value in one.list()] for one in room.api.history(**asked)}

    assert found(keys=["loss", "only"]) == {("loss", 1): [(0, 1.0), (1, 10.0)], ("only", 3): [(0, 4.0)]}
    assert set(found(keys="*", ranks="all")) == {("loss", 1), ("loss", 2), ("only", 3)}
    assert found(keys="l*", ranks=[2], steps=(1, None)) == {("loss", 2): [(1, 11.0)]}
    assert found(keys="loss", steps=(None, 0)) == {("loss", 1): [(0, 1.0)]}


def test_many_runs_come_in_portions_that_hold_a_bounded_number_of_points(room, monkeypatch):
    """Over pages of runs, portions of points and a run that alone is larger than one: everything once, in the runs' order."""
    monkeypatch.setattr(export, "RUNS_AT_ONCE", 3)
    monkeypatch.setattr(export, "POINTS_AT_ONCE", 25)
    asked = []
    real = export.reading.history
    monkeypatch.setattr(export.reading, "history", lambda runs, keys, *a, **k: asked.append((runs, keys)) or real(runs, keys, *a, **k))
    made = [room.make(f"run {n}") for n in range(8)]
    for n, run in enumerate(made):
        room.points(run, {f"k{key}": [float(n)] * (10 if n != 4 else 20) for key in range(3)})
        summaries.summarise_run(run.id)
    found = [(one.run, one.key, len(one)) for one in room.api.history("k*", project="vision", sort="name")]
    assert found == [(run.id, f"k{key}", 20 if n == 4 else 10) for n, run in enumerate(made) for key in range(3)]
    assert max(len(runs) * len(keys) for runs, keys in asked) <= 2


def test_tables_of_many_runs(room):
    """One frame of all points, one of all runs: columns, types, times in UTC, missing values."""
    pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    a = room.make("a", config={"lr": 0.1, "opt": {"name": "adam"}}, summary={"acc": 0.5})
    b = room.make("b", config={"lr": 1}, summary={"acc": "Infinity"}, tags=["x"])
    room.points(a, {"loss": [3.0, 2.0]})
    room.points(b, {"loss": [1.0]})
    frame = room.api.history("loss", sort="name").pandas()
    assert frame["run"].tolist() == [a.id, a.id, b.id]
    assert frame[["rank", "step", "value"]].to_numpy().tolist() == [[0, 0, 3.0], [0, 1, 2.0], [0, 0, 1.0]]
    assert frame["time"][1].to_pydatetime() == datetime.datetime.fromtimestamp((TIME + 1000) / 1e6, datetime.timezone.utc)
    table = room.api.history("loss", sort="name").arrow()
    assert table["value"].to_pylist() == [3.0, 2.0, 1.0]
    assert table["run"].to_pylist() == frame["run"].tolist()
    runs = room.api.runs(sort="name").pandas()
    assert runs["config.lr"].tolist() == [0.1, 1]
    assert runs["config.opt.name"].tolist()[0] == "adam"
    assert runs["config.opt.name"].isna().tolist() == [False, True]
    assert runs["summary.acc"].tolist() == [0.5, math.inf]
    assert str(runs["created_at"].dtype).startswith("datetime64[")
    assert room.api.runs(sort="name").arrow()["tags"].to_pylist() == [[], ["x"]]
    assert room.api.history("nothing").pandas().empty
    assert room.api.history("nothing").arrow().num_rows == 0
    assert room.api.runs(filter="name = none").pandas().empty


def test_wrong_questions_are_refused_by_name(room):
    """No keys, ranks that are none, steps that are none, a malformed id, a stale cursor."""
    with pytest.raises(errors.UsageError, match="which metrics"):
        room.api.history([])
    for asked in ({"ranks": "some"}, {"ranks": [-1]}, {"steps": (0.5, None)}, {"runs": ["x"]}):
        with pytest.raises(errors.ServerRefused) as refused:
            list(room.api.history("loss", **asked))
        assert refused.value.status == 400, asked
    with pytest.raises(errors.ServerRefused) as refused:
        room.api.get("export/runs", cursor="nonsense")
    assert refused.value.status == 400


# Broken off ---------------------------------------------------------------------------------------------------------------------


class Cutting:
    """A proxy on the loopback that lets only so many bytes of an answer through, for the first answers, then all."""

    def __init__(self, url: str, cuts: list[int]) -> None:
        self.target = ("127.0.0.1", int(url.rsplit(":", 1)[1]))
        self.cuts, self.served = cuts, 0
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self.socket.accept()
            except OSError:
                return
            most = self.cuts[self.served] if self.served < len(self.cuts) else 1 << 40
            self.served += 1
            threading.Thread(target=self._pass, args=(client, most), daemon=True).start()

    def _pass(self, client: socket.socket, most: int) -> None:
        with client, socket.create_connection(self.target) as server:
            request = b""
            while b"\r\n\r\n" not in request:
                request += client.recv(65536)
            head, _, body = request.partition(b"\r\n\r\n")
            length = next((int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")), 0)
            while len(body) < length:
                body += client.recv(65536)
            server.sendall(head.replace(b"\r\nConnection: keep-alive", b"") + b"\r\nConnection: close\r\n\r\n" + body)
            while most > 0 and (piece := server.recv(min(65536, most))):
                client.sendall(piece)
                most -= len(piece)

    def close(self) -> None:
        self.socket.close()


def test_a_stream_that_breaks_off_anywhere_goes_on_and_gives_everything_once(room, monkeypatch):
    """Cut after any number of bytes, several times: no run and no series is missing or doubled, for runs and for histories."""
    monkeypatch.setattr(streams, "FIRST_WAIT_SECONDS", 0.001)
    monkeypatch.setattr(export, "PAGE", 5)
    monkeypatch.setattr(export, "RUNS_AT_ONCE", 3)
    made = [room.make(f"run {n:02d}", config={"text": "x" * 300}) for n in range(12)]
    for run in made:
        room.points(run, {"loss": [float(n) for n in range(50)]})
    names = [run.name for run in made]
    for cut in (0, 10, 300, 700, 1500, 2500, 4000, 6000):
        proxy = Cutting(room.url, [cut, cut // 2])
        api = Api(proxy.url, room.tokens["alice"])
        assert [run.name for run in api.runs(sort="name")] == names, cut
        assert proxy.served >= 2
        proxy.close()
        proxy = Cutting(room.url, [cut, cut // 2 + 1])
        api = Api(proxy.url, room.tokens["alice"])
        found = list(api.history("loss", sort="name"))
        assert [one.run for one in found] == [run.id for run in made], cut
        assert all(list(one.values) == [float(n) for n in range(50)] for one in found)
        proxy.close()


def test_a_stream_that_never_ends_well_is_an_error_and_not_a_short_answer(room, monkeypatch):
    """After a few tries: ServerUnreachable."""
    monkeypatch.setattr(streams, "FIRST_WAIT_SECONDS", 0.001)
    for n in range(30):
        room.make(f"run {n}", config={"text": "x" * 200})
    proxy = Cutting(room.url, [900] * 50)
    with pytest.raises(errors.ServerUnreachable, match="asked 4 times"):
        list(Api(proxy.url, room.tokens["alice"]).runs())
    proxy.close()


# A run ----------------------------------------------------------------------------------------------------------------------------


def test_a_run_is_changed_waited_for_and_deleted(room):
    """update, wait, delete, and project/name as a reference."""
    run = room.make("old name", state="running")
    found = room.api.run("vision/old name")
    found.update(name="new name", tags=["a", "b"], notes="words", group="g")
    again = room.api.run("vision/new name")
    assert (again.id, again.tags, again.data["notes"], again.data["group"]) == (run.id, ["a", "b"], "words", "g")
    for wrong in ({}, {"tags": "a"}):
        with pytest.raises(errors.UsageError):
            found.update(**wrong)
    with pytest.raises(TimeoutError, match="still running"):
        found.wait(timeout=0.01)
    threading.Timer(0.3, lambda: Run.objects.filter(id=run.id).update(state="failed")).start()
    assert found.wait(timeout=30).state == "failed"
    found.delete()
    assert list(room.api.runs()) == []


def test_files_media_and_blobs_of_a_run(room, tmp_path):
    """Listed, downloaded whole and checked; the artifact store is named as what it is: not there yet."""
    from blake3 import blake3

    from tracker.store.blobs import blob_store

    run = room.make("files")
    writer = room.points(run, {"loss": [1.0]})
    data = b"\x89PNG not really"
    digest = f"blake3:{blake3(data).hexdigest()}"
    blob_store().put("blobs/x", data)
    Blob.objects.create(project=room.project, digest=digest, bytes=len(data), object_key="blobs/x")
    for step in range(3):
        Media.objects.create(
            run=run, writer=writer, number=step, key="sample", kind="image", step=step, time_us=TIME, digest=digest, bytes=len(data)
        )
    found = room.api.run(run.id)
    assert [(one["key"], one["step"], one["kind"]) for one in found.media("sample")] == [("sample", n, "image") for n in range(3)]
    assert found.blob(digest) == data
    assert found.blob(digest, to=tmp_path) == tmp_path / digest.partition(":")[2]
    assert (tmp_path / digest.partition(":")[2]).read_bytes() == data
    with pytest.raises(errors.ServerRefused):
        found.blob("blake3:" + "0" * 64, to=tmp_path / "none")
    assert not (tmp_path / "none").exists()
    with pytest.raises(errors.UsageError, match="later version"):
        found.artifacts()
