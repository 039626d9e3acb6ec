"""Media of a run: listed by key and step, handed out as what they are and never as what a browser would run on our origin."""

from __future__ import annotations

import json
from urllib.parse import urlencode

import numpy as np
import pytest

import sdk
from tests.tracker.helpers import api_of
from tests.tracker.web import fill, media_fill
from tracker.models import Event, Media, Run
from tracker.services import media


class Door:
    """The API with query parameters and headers, as one user."""

    def __init__(self, user) -> None:
        self.api = api_of(user)

    def get(self, path: str, query=None, headers=None):
        return self.api.get(path.lstrip("/") + (f"?{urlencode(query)}" if query else ""), **(headers or {}))


@pytest.fixture
def trainer(people):
    return fill.Trainer(people.alice, "vision", "painter")


def logged(trainer, *entries) -> Run:
    trainer.batch(docs=[media_fill.doc(trainer, key, value, step, **place) for key, value, step, place in entries])
    return Run.objects.get(id=trainer.run_id)


def content_of(people, run: Run, key: str, **query):
    row = media.at(run, key, Media.objects.filter(run=run, key=key).latest("id").step)[0]
    return Door(people.alice).get(f"/runs/{run.id}/media/{row.id}/content", query)


def body_of(answer) -> bytes:
    return b"".join(answer.streaming_content)


PICTURE = np.arange(48, dtype="uint8").reshape(4, 4, 3)


def test_what_was_logged_is_listed_by_key_kind_and_step(people, trainer):
    run = logged(trainer, *[("samples", sdk.Image(PICTURE, caption=f"c{at}"), at, {}) for at in range(3)], ("words", sdk.Text("hi"), 2, {}))
    api = Door(people.alice)
    rows = api.get(f"/runs/{run.id}/media").json()["results"]
    assert [(row["key"], row["step"]) for row in rows] == [("samples", 0), ("samples", 1), ("samples", 2), ("words", 2)]
    assert rows[0]["meta"] == {"width": 4, "height": 4, "caption": "c0"}
    assert [row["step"] for row in api.get(f"/runs/{run.id}/media", {"key": "samples", "step": 1}).json()["results"]] == [1]
    assert [row["key"] for row in api.get(f"/runs/{run.id}/media", {"kind": "text"}).json()["results"]] == ["words"]
    first = api.get(f"/runs/{run.id}/media", {"limit": 2}).json()
    rest = api.get(f"/runs/{run.id}/media", {"after": first["next"]}).json()
    assert len(first["results"]) == len(rest["results"]) == 2
    assert rest["next"] is None
    assert api.get(f"/runs/{run.id}/media/keys").json()["results"] == [
        {"key": "samples", "kinds": ["image"], "count": 3, "first": 0, "last": 2},
        {"key": "words", "kinds": ["text"], "count": 1, "first": 2, "last": 2},
    ]
    assert api.get(f"/runs/{run.id}/media/steps", {"key": "samples"}).json()["steps"] == [0, 1, 2]
    assert api.get(f"/runs/{run.id}/media", {"kind": "virus"}).status_code == 400
    assert api.get(f"/runs/{run.id}/media/at").status_code == 400


def test_of_what_was_logged_twice_at_a_step_the_later_call_is_shown_and_both_stay(people, trainer):
    many = [("s", sdk.Image(PICTURE, caption=f"first {n}"), 5, {"index": n, "of": 3}) for n in range(3)]
    again = [("s", sdk.Image(PICTURE, caption=f"second {n}"), 5, {"index": n, "of": 2}) for n in range(2)]
    run = logged(trainer, *many, *again)
    shown = Door(people.alice).get(f"/runs/{run.id}/media/at", {"key": "s", "step": 5}).json()["results"]
    assert [row["meta"]["caption"] for row in shown] == ["second 0", "second 1"]
    assert Media.objects.filter(run=run).count() == 5


def test_the_later_attempt_wins_and_ranks_stand_side_by_side(people):
    first = fill.Trainer(people.alice, "vision", "p", ago=100)
    other = fill.Trainer(people.alice, "vision", "p", run=first.run_id, rank=1, world=2, ago=99)
    again = fill.Trainer(people.alice, "vision", "p", run=first.run_id, ago=50)
    run = logged(again, ("s", sdk.Text("rank 0, attempt 2"), 1, {}))
    logged(first, ("s", sdk.Text("rank 0, attempt 1"), 1, {}))
    logged(other, ("s", sdk.Text("rank 1"), 1, {}))
    assert [row.meta["text"] for row in media.at(run, "s", 1)] == ["rank 0, attempt 2", "rank 1"]


def test_bytes_come_back_as_they_were_logged_with_ranges_for_players(people, trainer):
    sound = np.sin(np.arange(4000) / 5).astype("float32")
    run = logged(trainer, ("voice", sdk.Audio(sound, rate=8000), 1, {}))
    answer = content_of(people, run, "voice")
    whole = body_of(answer)
    assert answer["Content-Type"] == "audio/wav"
    assert whole[:4] == b"RIFF"
    assert len(whole) == 44 + 8000 == int(answer["Content-Length"])
    row = Media.objects.get(run=run)
    part = Door(people.alice).get(f"/runs/{run.id}/media/{row.id}/content", headers={"Range": "bytes=10-19"})
    assert part.status_code == 206
    assert part["Content-Range"] == "bytes 10-19/8044"
    assert body_of(part) == whole[10:20]
    tail = Door(people.alice).get(f"/runs/{run.id}/media/{row.id}/content", headers={"Range": "bytes=-4"})
    assert body_of(tail) == whole[-4:]
    assert Door(people.alice).get(f"/runs/{run.id}/media/{row.id}/content", headers={"Range": "bytes=9000-"}).status_code == 416
    same = Door(people.alice).get(f"/runs/{run.id}/media/{row.id}/content", headers={"If-None-Match": answer["ETag"]})
    assert same.status_code == 304


@pytest.mark.parametrize(
    ("value", "kind", "mime"),
    [
        (sdk.Html(media_fill.HOSTILE), "text/html; charset=utf-8", "html"),
        (sdk.Image(media_fill.SVG), "image/svg+xml", "svg"),
        (sdk.Plotly({"data": [], "layout": {}}), "application/json", "plotly"),
        (sdk.Text("<script>1</script>" * 400), "text/plain; charset=utf-8", "text"),
    ],
    ids=["html", "svg", "plotly", "text"],
)
def test_every_answer_is_sandboxed_and_not_sniffed(people, trainer, value, kind, mime):
    run = logged(trainer, ("x", value, 1, {}))
    answer = content_of(people, run, "x")
    assert answer["Content-Type"] == kind
    assert answer["X-Content-Type-Options"] == "nosniff"
    policy = answer["Content-Security-Policy"]
    assert policy.startswith("sandbox")
    assert "default-src 'none'" in policy
    assert "allow-same-origin" not in policy
    assert ("allow-scripts" in policy) == (mime == "html")


def test_a_lying_type_is_never_believed(people, trainer):
    """A document says its PNG is HTML, or a type that browsers run: HTML stays in the sandbox, the unknown is only to be saved."""
    run = Run.objects.get(id=trainer.run_id)
    digest = fill.put(run, b"<script>alert(1)</script>")
    odd = "../../etc/passwd\r\nX: y"
    for key, mime in (("a", "text/html"), ("b", "application/xhtml+xml"), (odd, "x/y")):
        trainer.batch(docs=[{"type": "media", "key": key, "kind": "image", "digest": digest, "bytes": 5, "mime": mime, "_step": 1}])
    assert content_of(people, run, "a")["Content-Security-Policy"] == media.PAGE
    unknown = content_of(people, run, "b")
    assert unknown["Content-Type"] == "application/octet-stream"
    assert unknown["Content-Disposition"].startswith("attachment")
    assert content_of(people, run, odd)["Content-Disposition"] == 'attachment; filename="etc-passwd-X-y-1.bin"'


def test_a_digest_that_was_never_stored_or_is_none_is_404(people, trainer):
    for key, digest in (("later", "blake3:" + "0" * 64), ("odd", "../../secret"), ("inline", None)):
        trainer.batch(docs=[{"type": "media", "key": key, "kind": "image", "digest": digest, "bytes": 5, "mime": "image/png", "_step": 1}])
    run = Run.objects.get(id=trainer.run_id)
    assert content_of(people, run, "later").status_code == 404
    assert content_of(people, run, "odd").status_code == 400
    assert content_of(people, run, "inline").status_code == 404
    assert Door(people.alice).get(f"/runs/{run.id}/media/999999/content").status_code == 404


def test_media_of_another_run_or_of_a_project_one_may_not_see_is_404(people, trainer):
    run = logged(trainer, ("s", sdk.Image(PICTURE), 1, {}))
    other = fill.Trainer(people.alice, "vision", "other")
    row = Media.objects.get(run=run)
    assert Door(people.charlie).get(f"/runs/{run.id}/media/{row.id}/content").status_code == 404
    assert Door(people.charlie).get(f"/runs/{run.id}/media").status_code == 404
    assert Door(people.alice).get(f"/runs/{other.run_id}/media/{row.id}/content").status_code == 404


def test_a_tables_cells_open_what_the_table_names_and_nothing_else(people, trainer):
    table = sdk.Table(columns=["n", "x"], rows=[[1, sdk.Image(PICTURE)], [2, 'quoted "digest":"blake3:' + "a" * 64 + '"']])
    run = logged(trainer, ("t", table, 1, {}))
    found = json.loads(body_of(content_of(people, run, "t")))
    digest = found["rows"][0][1]["media"]["digest"]
    cell = content_of(people, run, "t", cell=digest)
    assert cell["Content-Type"] == "image/png"
    assert body_of(cell)[:8] == b"\x89PNG\r\n\x1a\n"
    secret = fill.put(run, b"not in the table")
    assert content_of(people, run, "t", cell=secret).status_code == 404
    assert content_of(people, run, "t", cell="blake3:" + "a" * 64).status_code == 404
    assert content_of(people, run, "t", cell="../x").status_code == 400


def test_histograms_over_many_steps_come_thinned_with_the_first_and_the_last(people, trainer):
    run = logged(trainer, *[("h", sdk.Histogram([0.0, float(at)], bins=4), at * 10, {}) for at in range(500)])
    found = Door(people.alice).get(f"/runs/{run.id}/media/spread", {"key": "h", "limit": 50}).json()["results"]
    assert len(found) == 50
    assert (found[0]["step"], found[-1]["step"]) == (0, 4990)
    assert found[1]["meta"]["counts"] == [1, 0, 0, 1]


def test_a_malformed_media_document_is_kept_as_an_event_and_stops_nothing(people, trainer):
    trainer.batch(docs=[{"type": "media", "key": "x", "kind": "image", "bytes": -1, "meta": []}, {"type": "media"}])
    logged(trainer, ("fine", sdk.Text("t"), 1, {}))
    assert Event.objects.filter(run_id=trainer.run_id, name="malformed_document").count() == 2
    assert Media.objects.filter(run_id=trainer.run_id).count() == 1
