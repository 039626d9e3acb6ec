"""The bundle: what version 1 wrote is read for ever, what is written holds every bit, and nothing hostile gets through."""

from __future__ import annotations

import io
import json
import socket
import stat
import subprocess
import sys
import threading
import zipfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from blake3 import blake3

from sdk import _query, errors
from sdk._cli import export
from tests.contract import make_bundle
from tests.tracker.helpers import api_of
from tracker.models import MetricBlock, Token
from tracker.services import accounts, bundles, compaction, ingest
from tracker.store import blocks, bundle, reading
from tracker.store.blobs import blob_store


@pytest.fixture
def tiny(transactional_db, people):
    reading.forget()
    ingest.forget()
    accounts.create_token(user=people.alice, name="t", scopes=["api"])
    token = Token.objects.filter(user=people.alice).first()
    people.project.slug = "golden"
    people.project.save()
    yield make_bundle.tiny_run(people.project, people.alice, token)
    reading.forget()
    ingest.forget()


def written(run, user, **more) -> bundle.Bundle:
    file = io.BytesIO()
    bundles.write(user=user, run=run, file=file, **more)
    return bundle.read(file)


def points_of(found: bundle.Bundle) -> dict:
    """(key, rank) to sorted (step, time, bits, is integer), as anybody would read them: blocks, and the writers of run.json."""
    ranks = {writer["id"]: writer["rank"] for writer in found.json("run.json")["writers"]}
    points = defaultdict(list)
    for writer, raw in found.blocks():
        directory, columns = blocks.decode(raw)
        assert directory.writer == writer
        for key, axis, values in columns:
            rows = zip(axis.steps.tolist(), axis.times.tolist(), values.view("<i8").tolist(), strict=True)
            points[key, ranks[writer]] += [(*row, values.dtype.kind == "i") for row in rows]
    return {name: sorted(rows) for name, rows in points.items()}


def stored_points(run) -> dict:
    points = {}
    for column in reading.history([run.id], list(reading.keys_of(run.id))):
        rows = zip(column.steps.tolist(), column.times.tolist(), column.values.view("<i8").tolist(), strict=True)
        points[column.key, column.rank] = sorted((*row, column.values.dtype.kind == "i") for row in rows)
    return points


# The golden one -------------------------------------------------------------------------------------------------------------------


def test_the_reader_reads_the_golden_bundle():
    with open(make_bundle.GOLDEN, "rb") as file:
        found = bundle.read(file)
        assert (found.run, found.created_us) == (make_bundle.RUN, make_bundle.WALL_US)
        assert found.json("recipe.json")["command"]["argv"] == ["train.py", "--text", "two words"]
        assert found.json(f"verdicts/{make_bundle.REPRODUCTION}.json")["verdict"]["agreement"] == "bit_exact"
        assert [entry["what"] for entry in found.left_out] == ["RNG state"]
        points = points_of(found)
        assert [(step, bits) for step, _, bits, is_int in points["tokens", 1] if is_int] == [(n, 2**60 + n) for n in range(4)]
        odd = np.array([bits for _, _, bits, _ in sorted(points["odd", 0], reverse=True)], "<i8").view("<f8")
        assert [str(value) for value in odd] == ["nan", "inf", "-inf", "-0.0"]


def test_a_bundle_of_the_same_run_today_has_the_same_contents(tiny, people):
    """Digest for digest, but for the README, whose words may get better."""
    found = written(tiny, people.alice, created_us=make_bundle.WALL_US)
    with open(make_bundle.GOLDEN, "rb") as file:
        golden = bundle.read(file)
    assert [c.path for c in found.contents] == [c.path for c in golden.contents]
    assert [c for c in found.contents if c.path != "README.md"] == [c for c in golden.contents if c.path != "README.md"]
    assert found.left_out == golden.left_out


def test_the_golden_bundle_is_small_and_names_nothing_of_the_machine_that_made_it():
    raw = make_bundle.GOLDEN.read_bytes()
    assert len(raw) <= 60 * 1024
    with zipfile.ZipFile(make_bundle.GOLDEN) as archive:
        text = b"".join(archive.read(name) for name in archive.namelist())
    assert not [word for word in (str(make_bundle.ROOT), str(Path.home()) + "/", "/tmp/") if word.encode() in text]


# What is written ------------------------------------------------------------------------------------------------------------------


def test_every_point_comes_back_to_the_bit_from_blocks_and_from_segments(tiny, people):
    before = stored_points(tiny)
    assert set(before) == {(key, rank) for key in ("train/loss", "tokens", "odd") for rank in (0, 1)}
    assert points_of(written(tiny, people.alice)) == before
    compaction._compact_writer(tiny.id, make_bundle.WRITERS[0], force=True)
    assert MetricBlock.objects.filter(run=tiny).count() == 1
    reading.forget()
    assert points_of(written(tiny, people.alice)) == before == stored_points(tiny)


def test_the_same_run_gives_the_same_bytes(tiny, people):
    first, second = io.BytesIO(), io.BytesIO()
    for file in (first, second):
        bundles.write(user=people.alice, run=tiny, file=file, created_us=1)
    assert first.getvalue() == second.getvalue()


def test_the_readme_s_own_lines_restore_the_source(tiny, people, tmp_path):
    """A person with Python and unzip alone gets the source back, links and modes too, and the command to run it."""
    file = io.BytesIO()
    bundles.write(user=people.alice, run=tiny, file=file)
    with zipfile.ZipFile(file) as archive:
        archive.extractall(tmp_path)
    readme = (tmp_path / "README.md").read_text()
    script = readme.partition("```python\n")[2].partition("```")[0]
    done = subprocess.run([sys.executable, "-I", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "source/link.py").read_bytes() == make_bundle.TRAIN
    assert (tmp_path / "source/link.py").is_symlink()
    assert (tmp_path / "source/pkg/run.sh").stat().st_mode & 0o111
    for wanted in ("numpy==2.0.0", "python train.py --text 'two words'", "export OMP_NUM_THREADS=1", "API_KEY", "/data/large.bin"):
        assert wanted in readme, wanted
    assert blake3(b"a,b\n1,2\n").hexdigest() in readme


def test_what_a_recipe_says_cannot_leave_its_code_block(tiny, people):
    attempt = tiny.attempts.get()
    attempt.recipe["command"]["cwd"] = "/x\n# not a heading\x1b[31m"
    attempt.recipe["environment"] = ["not an object"]
    attempt.save()
    readme = written(tiny, people.alice).read("README.md").decode()
    assert "\n# not a heading" not in readme
    assert "\x1b" not in readme


def test_bytes_that_the_store_has_lost_are_named_not_hidden(tiny, people):
    digest = blake3(make_bundle.TRAIN).hexdigest()
    blob_store().delete(people.project.blobs.get(digest=f"blake3:{digest}").object_key)
    found = written(tiny, people.alice)
    assert f"blobs/{digest}" not in [content.path for content in found.contents]
    assert [entry["why"] for entry in found.left_out if entry["digest"].endswith(digest)] == ["the store has lost its bytes"]


def test_bytes_that_the_store_has_damaged_make_no_bundle(tiny, people):
    digest = blake3(make_bundle.TRAIN).hexdigest()
    key = people.project.blobs.get(digest=f"blake3:{digest}").object_key
    blob_store().delete(key)
    blob_store().put(key, b"others")
    with pytest.raises(bundles.BundleFailed, match=digest):
        written(tiny, people.alice)


# The door -------------------------------------------------------------------------------------------------------------------------


def test_who_may_see_the_run_may_take_its_bundle_and_charlie_gets_404(tiny, people):
    answer = api_of(people.victor).get(f"runs/{tiny.id}/bundle")
    assert (answer.status_code, answer["Content-Type"]) == (200, "application/zip")
    assert bundle.read(io.BytesIO(b"".join(answer.streaming_content))).run == tiny.id
    assert api_of(people.charlie).get(f"runs/{tiny.id}/bundle").status_code == 404
    assert api_of(people.alice).get(f"runs/{'z' * 26}/bundle").status_code == 404
    assert api_of(people.alice).get("runs/nothing/bundle").status_code == 400
    assert api_of(people.alice).post(f"runs/{tiny.id}/bundle").status_code == 405


def test_encore_export_writes_a_whole_bundle_or_nothing(live_server, tiny, people, tmp_path, capsys):
    import argparse

    _, token = accounts.create_token(user=people.bob, name="t", scopes=["api"])
    _, strange = accounts.create_token(user=people.charlie, name="t", scopes=["api"])
    parser = argparse.ArgumentParser()
    export.register(parser.add_subparsers())
    folder = tmp_path / "exports"
    folder.mkdir()
    target = folder / "run.zip"

    def call(secret):
        args = parser.parse_args(["export", tiny.id, "--bundle", str(target), "--url", live_server.url, "--token", secret, "--json"])
        return args.run(args)

    assert call(strange) == 1
    assert list(folder.iterdir()) == []
    assert call(token) == 0
    assert json.loads(capsys.readouterr().out) == {"run": tiny.id, "file": str(target), "bytes": target.stat().st_size}
    with open(target, "rb") as file:
        assert bundle.read(file).run == tiny.id
    assert call(token) == 1
    assert "exists already" in capsys.readouterr().err
    assert list(folder.iterdir()) == [target]


def test_a_download_that_breaks_off_leaves_no_file(tmp_path):
    class Broken:
        def bundle(self, file):
            file.write(b"half")
            raise errors.ServerUnreachable("the answer broke off")

    with pytest.raises(errors.ServerUnreachable):
        export.save(Broken(), tmp_path / "run.zip")
    with pytest.raises(errors.UsageError, match="cannot be written"):
        export.save(Broken(), tmp_path / "no" / "run.zip")
    assert list(tmp_path.iterdir()) == []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")

        thread = threading.Thread(target=answer)
        thread.start()
        api = _query.Api(f"http://127.0.0.1:{server.getsockname()[1]}", "x")
        with pytest.raises(errors.ServerUnreachable, match="4 of 100 bytes"):
            export.save(_query.Run(api, {"id": "a" * 26}), tmp_path / "run.zip")
        thread.join()
    assert list(tmp_path.iterdir()) == []


# Hostile zips ---------------------------------------------------------------------------------------------------------------------


def entries() -> dict[str, bytes]:
    with zipfile.ZipFile(make_bundle.GOLDEN) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(files, **marks) -> io.BytesIO:
    """``files``: (name, bytes, …) in order; ``marks``: attributes of the last entry's ZipInfo."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for number, (name, data) in enumerate(files := list(files), 1):
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            for mark, value in marks.items() if number == len(files) else ():
                setattr(info, mark, value)
            archive.writestr(info, data)
    return file


def changed(**documents) -> dict[str, bytes]:
    """The golden entries with some changed and the index brought in line, as a careful forger would."""
    files = entries() | {name.replace("__", ".").replace("_SLASH_", "/"): data for name, data in documents.items()}
    index = json.loads(files["bundle.json"])
    for entry in index["contents"]:
        data = files[entry["path"]]
        entry["digest"], entry["bytes"] = f"blake3:{blake3(data).hexdigest()}", len(data)
    return files | {"bundle.json": json.dumps(index).encode()}


def index_with(**fields) -> dict[str, bytes]:
    files = entries()
    return files | {"bundle.json": json.dumps(json.loads(files["bundle.json"]) | fields).encode()}


def refused(file, words: str, kind=bundle.BadBundle) -> None:
    with pytest.raises(kind, match=words):
        bundle.read(file)


@pytest.mark.parametrize(
    "name",
    ["../evil", "/etc/passwd", "blobs/../../x", "blobs/" + "a" * 63, "Run.json", "run.json\\x", "blobs/", "series/x/0-1.block", "a b"],
)
def test_a_name_that_is_not_a_bundle_s_is_refused(name):
    refused(zipped([*entries().items(), (name, b"x")]), "no name of a bundle's content")


def test_a_name_that_hides_behind_nul_is_refused():
    raw = zipped([*entries().items(), ("run.jsonXevil", b"x")]).getvalue().replace(b"run.jsonXevil", b"run.json\0evil")
    refused(io.BytesIO(raw), "no name of a bundle's content")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFDIR, stat.S_IFCHR, stat.S_IFIFO])
def test_a_link_or_device_is_refused(kind):
    files = entries()
    last = "run.json", files.pop("run.json")
    refused(zipped([*files.items(), last], external_attr=(kind | 0o777) << 16), "run.json is no regular file")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_comes_twice_is_refused():
    refused(zipped([*entries().items(), ("run.json", b"{}")]), "run.json is there twice")
    listed = json.loads(entries()["bundle.json"])["contents"]
    refused(zipped(index_with(contents=[*listed, listed[0]]).items()), "lists a content twice")


def test_other_bytes_than_the_digest_says_are_refused():
    files = entries()
    for name in ("recipe.json", "README.md", next(name for name in files if name.startswith("blobs/"))):
        flipped = bytes([files[name][0] ^ 1]) + files[name][1:]
        refused(zipped((files | {name: flipped}).items()), f"{name} has other bytes")


def test_a_blob_under_a_false_name_is_refused_even_when_the_index_agrees():
    name = next(name for name in entries() if name.startswith("blobs/"))
    refused(zipped(changed(**{name.replace("/", "_SLASH_"): b"other"}).items()), f"{name} is listed under another digest")


def test_a_block_of_another_writer_or_range_is_refused_even_when_the_index_agrees():
    first, second = (name for name in entries() if name.startswith("series/"))
    swapped = changed(**{first.replace("/", "_SLASH_").replace(".block", "__block"): entries()[second]})
    refused(zipped(swapped.items()), f"{first} is no block of version 1 of this writer and range")


def test_a_missing_or_unlisted_entry_is_refused():
    for name in entries():
        files = entries()
        del files[name]
        refused(zipped(files.items()), name)
    extra = "blobs/" + blake3(b"extra").hexdigest()
    refused(zipped([*entries().items(), (extra, b"extra")]), f"{extra} is not listed")


def test_a_bomb_is_refused_before_it_is_inflated():
    """Whether the index tells its size, or lies about it, or the zip itself lies."""
    bomb = bytes(50 * 2**20)
    told = changed(README__md=bomb)
    with pytest.raises(bundle.BadBundle, match="more than 1048576 bytes"):
        bundle.read(zipped(told.items()), most=2**20)
    refused(zipped((entries() | {"README.md": bomb}).items()), "README.md has 52428800 bytes, not the")
    size = json.loads(entries()["bundle.json"])["contents"][0]["bytes"]
    assert json.loads(entries()["bundle.json"])["contents"][0]["path"] == "README.md"
    raw = zipped((entries() | {"README.md": bomb}).items()).getvalue()
    lying = raw.replace(len(bomb).to_bytes(4, "little"), size.to_bytes(4, "little"))
    assert lying != raw
    refused(io.BytesIO(lying), "README.md")
    refused(zipped((entries() | {"bundle.json": b" " * (bundle.MOST_DOCUMENT + 1)}).items()), "bundle.json inflates to more than")


def test_a_newer_format_is_refused_by_name():
    refused(zipped(index_with(format=2).items()), "format 2; this program reads 1. Update it", bundle.NewerBundle)


@pytest.mark.parametrize(
    "fields",
    [{"format": None}, {"format": True}, {"format": "1"}, {"run": "../x"}, {"created_us": None}, {"contents": {}}, {"left_out": 1}],
)
def test_an_index_that_is_none_is_refused(fields):
    refused(zipped(index_with(**fields).items()), "bundle.json")


@pytest.mark.parametrize("index", [b"", b"[]", b"\xff", b"[" * 10**6, b"null"])
def test_an_index_that_is_no_object_is_refused(index):
    refused(zipped((entries() | {"bundle.json": index}).items()), "bundle.json")


def test_a_run_of_another_id_is_refused_even_when_the_index_agrees():
    refused(zipped(changed(run__json=b'{"id": "' + b"b" * 26 + b'"}').items()), "run.json is not of the run")
    refused(zipped(changed(recipe__json=b"[]").items()), "recipe.json is no object")


def test_a_file_that_is_cut_or_flipped_anywhere_is_refused_or_read_whole():
    """No other error than BadBundle, wherever the damage lies; what is read all the same has every digest right."""
    raw = make_bundle.GOLDEN.read_bytes()
    for at in range(0, len(raw), max(1, len(raw) // 150)):
        for damaged in (raw[:at], raw[:at] + bytes([raw[at] ^ 0x55]) + raw[at + 1 :]):
            try:
                found = bundle.read(io.BytesIO(damaged))
            except bundle.BadBundle:
                continue
            assert found.run == make_bundle.RUN
    refused(io.BytesIO(b"not a zip at all"), "no whole zip")
