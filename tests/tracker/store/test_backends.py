"""Every backend keeps the same promises: a folder, memory, and a real S3 server where the suite started one."""

from __future__ import annotations

import io
import json
import os
import urllib.request
import uuid
from datetime import datetime, timedelta, timezone

import pytest

from tracker.store.backends.base import BadKey, MissingObject
from tracker.store.backends.folder import Folder
from tracker.store.backends.stub import Stub


@pytest.fixture(params=["folder", "stub", "s3"])
def backend(request, tmp_path):
    if request.param == "folder":
        return Folder(tmp_path / "store")
    if request.param == "stub":
        return Stub()
    if "ENCORE_TEST_S3" not in os.environ:
        pytest.skip("no S3 server was started (python -m tests.services run)")
    from tracker.store.backends.s3 import S3

    return S3({**json.loads(os.environ["ENCORE_TEST_S3"]), "region": "us-east-1", "prefix": f"t-{uuid.uuid4().hex}"})


def test_what_is_put_is_read_whole_and_in_ranges(backend):
    data = os.urandom(100_000)
    assert backend.put("a/b.block", data) == len(data)
    assert backend.open("a/b.block").read() == data
    assert backend.read("a/b.block") == data
    assert backend.read("a/b.block", 10, 20) == data[10:20]
    assert backend.read("a/b.block", 99_990, 200_000) == data[99_990:]
    assert backend.ranges("a/b.block", [(90_000, 90_010), (0, 4), (4, 4), (3, 9)]) == [data[90_000:90_010], data[:4], b"", data[3:9]]
    assert backend.size("a/b.block") == len(data)


def test_a_large_file_is_streamed_in(backend):
    """Files beyond one part go in pieces and come out the same."""
    data = os.urandom(20 * 2**20)
    assert backend.put("big/file", io.BytesIO(data)) == len(data)
    assert backend.read("big/file", len(data) - 100, len(data)) == data[-100:]
    assert backend.size("big/file") == len(data)


def test_an_object_can_be_replaced_listed_and_deleted(backend):
    for key in ("x/1", "x/y/2", "z/3"):
        backend.put(key, b"1")
    backend.put("x/1", b"22")
    found = sorted((key, size) for key, size, at in backend.list("x") if at > datetime.now(timezone.utc) - timedelta(hours=1))
    assert found == [("x/1", 2), ("x/y/2", 1)]
    backend.delete("x/1")
    backend.delete("x/1")
    assert not backend.exists("x/1")
    assert backend.exists("x/y/2")


def test_a_missing_object_is_named(backend):
    for read in (
        lambda: backend.open("no/such"),
        lambda: backend.read("no/such"),
        lambda: backend.size("no/such"),
        lambda: backend.ranges("no/such", [(0, 3)]),
    ):
        with pytest.raises(MissingObject):
            read()


@pytest.mark.parametrize(
    "key",
    ["", "/etc/passwd", "../up", "a/../b", "a//b", "a/", ".hidden", "a/.aside/x", "a\0b", "a\nb", "a b", "ü", "x" * 201, "a\\b", None],
)
def test_a_hostile_key_is_refused_by_every_method(backend, key):
    """No key can leave the store or mean another object elsewhere."""
    for use in (
        lambda: backend.put(key, b""),
        lambda: backend.open(key),
        lambda: backend.read(key),
        lambda: backend.delete(key),
        lambda: backend.exists(key),
        lambda: backend.presign_get(key, 60),
    ):
        with pytest.raises(BadKey):
            use()


def test_a_presigned_url_reads_and_writes_without_a_login(backend):
    backend.put("p/1", b"hello")
    url = backend.presign_get("p/1", 60)
    if url is None:
        pytest.skip("this store is carried by the tracker itself")
    assert urllib.request.urlopen(url, timeout=30).read() == b"hello"
    url, headers = backend.presign_put("p/2", 5, 60)
    request = urllib.request.Request(url, data=b"12345", headers=headers, method="PUT")
    assert urllib.request.urlopen(request, timeout=30).status == 200
    assert backend.read("p/2") == b"12345"


def test_a_folder_never_shows_a_half_written_object(tmp_path):
    """A source that breaks midway leaves no object and no rubbish; what a killed writer left aside is swept."""
    folder = Folder(tmp_path / "store")

    class Breaks(io.RawIOBase):
        def readable(self):
            return True

        def read(self, size=-1):
            if getattr(self, "read_once", False):
                raise OSError("gone")
            self.read_once = True
            return b"half"

    with pytest.raises(OSError, match="gone"):
        folder.put("a/b", Breaks())
    assert not folder.exists("a/b")
    assert list(folder.list("a")) == []
    aside = tmp_path / "store" / ".aside"
    assert list(aside.iterdir()) == []
    (aside / "left").write_bytes(b"x")
    assert folder.sweep_aside(datetime.now(timezone.utc) + timedelta(hours=1)) == 1
