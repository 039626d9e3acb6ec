"""Blobs: missing, pack, put, get; the digest is checked before a row exists."""

import json
import struct

import pytest
from blake3 import blake3

from tracker.domain.ids import new_id
from tracker.models import Blob


def digest_of(data: bytes) -> str:
    return "blake3:" + blake3(data).hexdigest()


def pack_of(*blobs: bytes, lie: bool = False) -> bytes:
    header = json.dumps([{"digest": digest_of(b"other" if lie else data), "bytes": len(data)} for data in blobs]).encode()
    header += b" " * (-len(header) % 8)
    return struct.pack("<4sHHII", b"ENCP", 1, 0, len(header), 0) + header + b"".join(blobs)


def read(answer) -> bytes:
    return b"".join(answer.streaming_content)


def put(api, run, data: bytes, digest: str | None = None):
    return api("PUT", f"ingest/blobs/{digest or digest_of(data)}?run={run.id}", data, content_type="application/octet-stream")


def test_what_was_put_is_read_again(alice, victor, run):
    data = bytes(range(256)) * 1000
    assert put(alice, run, data).json() == {"digest": digest_of(data), "bytes": len(data)}
    answer = victor.get(f"blobs/{digest_of(data)}?project=vision")
    assert read(answer) == data
    assert answer["Content-Type"] == "application/octet-stream"
    assert "attachment" in answer["Content-Disposition"]
    assert victor.get(f"blobs/{digest_of(data)}", **{"if-none-match": answer["ETag"]}).status_code == 304
    assert "content-length" in victor("HEAD", f"blobs/{digest_of(data)}").headers


def test_twice_is_one_blob(alice, run):
    put(alice, run, b"x")
    assert put(alice, run, b"x").status_code == 200
    assert Blob.objects.count() == 1


def test_other_bytes_than_the_digest_says_are_refused(alice, run):
    answer = put(alice, run, b"x", digest_of(b"y"))
    assert answer.status_code == 422
    assert answer.json()["code"] == "digest_differs"
    assert answer.json()["fields"]["found"] == digest_of(b"x")
    assert not Blob.objects.exists()


def test_the_empty_blob_is_a_blob(alice, run):
    assert put(alice, run, b"").status_code == 200
    assert read(alice.get(f"blobs/{digest_of(b'')}")) == b""


def test_missing_names_what_is_not_there(alice, run):
    put(alice, run, b"x")
    asked = {"run": run.id, "blobs": [{"digest": digest_of(b"x"), "bytes": 1}, {"digest": digest_of(b"y"), "bytes": 1}]}
    assert alice.post("ingest/blobs/missing", asked).json() == {"missing": [{"digest": digest_of(b"y"), "url": None, "headers": {}}]}


def test_a_pack_brings_many(alice, run):
    blobs = [str(number).encode() for number in range(50)]
    answer = alice("POST", f"ingest/blobs/pack?run={run.id}", pack_of(*blobs), content_type="application/vnd.encore.pack")
    assert answer.status_code == 200, answer.content
    assert len(answer.json()["stored"]) == 50
    assert read(alice.get(f"blobs/{digest_of(b'49')}")) == b"49"
    again = alice("POST", f"ingest/blobs/pack?run={run.id}", pack_of(*blobs), content_type="application/vnd.encore.pack")
    assert again.json() == answer.json()
    assert Blob.objects.count() == 50


@pytest.mark.parametrize("cut", [0, 3, 15, 20, -1])
def test_a_pack_that_is_cut_off_stores_nothing(alice, run, cut):
    body = pack_of(b"abc", b"defg")[:cut]
    answer = alice("POST", f"ingest/blobs/pack?run={run.id}", body, content_type="application/vnd.encore.pack")
    assert answer.status_code == 422
    assert not Blob.objects.exists()


def test_a_pack_that_lies_stores_nothing(alice, run):
    answer = alice("POST", f"ingest/blobs/pack?run={run.id}", pack_of(b"abc", lie=True), content_type="x/y")
    assert answer.status_code == 422
    assert not Blob.objects.exists()


def test_a_newer_pack_is_refused_by_name(alice, run):
    body = b"ENCP" + struct.pack("<HHII", 2, 0, 0, 0)
    answer = alice("POST", f"ingest/blobs/pack?run={run.id}", body, content_type="x/y")
    assert answer.status_code == 422
    assert "version 2" in answer.json()["message"]


@pytest.mark.parametrize("digest", ["x", "blake3:zz", "sha256:" + "0" * 64, "blake3:" + "0" * 63, "blake3:" + "A" * 64])
def test_a_malformed_digest_is_400(alice, run, digest):
    assert alice.get(f"blobs/{digest}").status_code == 400
    assert put(alice, run, b"x", digest).status_code == 400
    assert alice.post("ingest/blobs/missing", {"run": run.id, "blobs": [{"digest": digest}]}).status_code == 400


def test_wrong_people(alice, charlie, victor, nobody, run):
    put(alice, run, b"x")
    assert charlie.get(f"blobs/{digest_of(b'x')}").status_code == 404
    assert charlie.get(f"blobs/{digest_of(b'x')}?project=vision").status_code == 404
    assert put(charlie, run, b"z").status_code == 404
    assert put(victor, run, b"z").status_code == 403
    assert nobody.get(f"blobs/{digest_of(b'x')}").status_code == 401
    assert charlie.post("ingest/blobs/missing", {"run": run.id, "blobs": []}).status_code == 404


def test_unknown_runs_and_blobs(alice, people):
    assert alice.get(f"blobs/{digest_of(b'never')}").status_code == 404
    assert alice("PUT", f"ingest/blobs/{digest_of(b'x')}?run={new_id()}", b"x").status_code == 404
    assert alice("PUT", f"ingest/blobs/{digest_of(b'x')}", b"x").status_code == 400


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"blobs": 3}', b"[" * 5000])
def test_nonsense_questions_are_400(alice, run, body):
    assert alice("POST", "ingest/blobs/missing", body).status_code == 400


def test_wrong_method(alice, run):
    assert alice.post(f"blobs/{digest_of(b'x')}").status_code == 405
    assert alice.get("ingest/blobs/missing").status_code == 405


def test_blobs_of_one_project_are_not_anothers(alice, people, run):
    """The same bytes in a project that one may not see stay unseen, and are asked for again."""
    from tests.tracker.helpers import api_of, make_user, writer_json

    put(alice, run, b"x")
    dora = api_of(make_user("dora"))
    opened = dora.post("ingest/writers", writer_json(run={"project": "doras"})).json()
    asked = {"run": opened["run"]["id"], "blobs": [{"digest": digest_of(b"x"), "bytes": 1}]}
    assert len(dora.post("ingest/blobs/missing", asked).json()["missing"]) == 1
    assert dora.get(f"blobs/{digest_of(b'x')}").status_code == 404
