"""Source snapshots: hostile ones refused by name, awkward ones restored to the byte."""

import base64
import os

import pytest

from runner import manifest
from runner.errors import RecipeFailure


def entry(play, path, data=b"x", mode="100644", **more):
    name = {"path": path} if isinstance(path, str) else {"path_b64": base64.b64encode(path).decode()}
    return {**name, "mode": mode, "bytes": len(data), "digest": play.tracker.blob(data), "state": "tracked", **more}


HOSTILE = [
    "../outside.txt", "/etc/encore-was-here", "a/../../outside.txt", "a/./b", "a//b", "", "a\0b", ".git/hooks/post-checkout",
    "sub/.git/config", "sub/.GIT/config", "x/" * 2500 + "y", "n" * 300,
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_a_name_that_leaves_the_folder_is_refused(play, name):
    """No manifest can write outside the job's folder or plant a git configuration."""
    recipe = play.recipe(source=play.source([entry(play, "train.py", b"print(1)"), entry(play, name)]))
    ended = play(recipe)
    assert ended.failure["code"] == "source_differs"
    assert ended.steps == {"checkout": "failed"}
    assert not list(ended.folder.parent.glob("outside.txt"))
    assert not os.path.exists("/etc/encore-was-here")


@pytest.mark.parametrize("mode", ["160000", "040000", "100600", "020666", None, 33188])
def test_only_files_and_links_are_restored(play, mode):
    """Devices, folders, submodules and unknown modes are refused."""
    ended = play(play.recipe(source=play.source([entry(play, "train.py"), entry(play, "x", mode=mode)])))
    assert ended.failure["code"] == "source_differs"


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"files": 1}', b'{"format": 2, "files": []}', b'{"format": 1, "files": [1]}', b"[" * 100000, b"\xff\xfe"]
)
def test_what_is_no_manifest_is_refused_in_words(body):
    """Broken documents raise the named failure and nothing else."""
    with pytest.raises(RecipeFailure, match="cannot be restored"):
        manifest.parse(body)


@pytest.mark.parametrize("names", [["a", "a"], ["a", "a/b"], ["a/b/c", "a/b"]])
def test_a_name_twice_or_file_and_folder_at_once_is_refused(play, names):
    """So that no file is written through another."""
    ended = play(play.recipe(source=play.source([entry(play, "train.py"), *[entry(play, name) for name in names]])))
    assert ended.failure["code"] == "source_differs"


def test_a_link_cannot_be_written_through(play, tmp_path):
    """A link and a file below its name cannot both be in a manifest, and an override through a link is refused."""
    outside = tmp_path / "outside"
    outside.mkdir()
    files = [entry(play, "link", str(outside).encode(), mode="120000"), entry(play, "train.py", b"print(1)")]
    ended = play(play.recipe(source=play.source([*files, entry(play, "link/planted")])))
    assert ended.failure["code"] == "source_differs"
    ended = play(play.recipe(source=play.source(files)), overrides={"files": {"link/planted": "x"}})
    assert ended.failure["code"] == "source_differs"
    assert list(outside.iterdir()) == []


def test_awkward_files_come_back_to_the_byte(play):
    """Names with spaces, newlines, no UTF-8; empty and binary files; executables; links that dangle, climb or loop."""
    repository = play.repository
    (repository / "train.py").write_text("import subprocess; print(subprocess.run(['./run me.sh'], capture_output=True).stdout)\n")
    (repository / "run me.sh").write_text("#!/bin/sh\necho executable\n")
    (repository / "run me.sh").chmod(0o755)
    (repository / "empty").touch()
    (repository / "new\nline").write_bytes(bytes(range(256)))
    (repository / "déjà 測試").write_text("x")
    (repository / "deep/er/est").mkdir(parents=True)
    (repository / "deep/er/est/file").write_text("x")
    os.symlink("nowhere", repository / "dangling")
    os.symlink("../../..", repository / "climbing")
    os.symlink("loop", repository / "loop")
    source = play.snapshot()
    body = manifest.parse(play.tracker.blobs[source["manifest"]])
    odd = entry(play, b"not-utf8-\xff\xfe", b"odd")
    import json

    files = [*json.loads(play.tracker.blobs[source["manifest"]])["files"], odd]
    ended = play(play.recipe(source=play.source(files)))
    assert ended.failure is None, (ended.failure, ended.log, ended.output)
    assert len(body.files) == 9
    assert "executable" in ended.output
    assert (ended.folder / "source" / os.fsdecode(b"not-utf8-\xff\xfe")).read_bytes() == b"odd"
    assert (ended.folder / "source/new\nline").read_bytes() == bytes(range(256))
    assert os.readlink(ended.folder / "source/loop") == "loop"


def test_a_wrong_tree_digest_is_refused_with_both(play):
    """The restored source is measured again, and what was recorded is not believed."""
    (play.repository / "train.py").write_text("print(1)\n")
    source = play.snapshot()
    ended = play(play.recipe(source={**source, "tree": "blake3:" + "0" * 64}))
    assert ended.failure["code"] == "source_differs"
    assert ended.failure["expected"] == "blake3:" + "0" * 64
    assert ended.failure["found"] == source["tree"]
    assert ended.evidence["source"]["equal"] is False


def test_a_blob_with_other_bytes_is_refused(play):
    """A store that hands out other bytes under a digest is found out."""
    (play.repository / "train.py").write_text("print('a store that lies')\n")
    recipe = play.recipe()
    digest = play.tracker.blob(b"print('a store that lies')\n")
    play.tracker.blobs[digest] = b"print('something else')\n"
    assert play(recipe).failure["code"] == "source_differs"


def test_a_blob_that_is_gone_is_named(play):
    """The file is named, not only its digest."""
    (play.repository / "train.py").write_text("print('a blob that is gone')\n")
    recipe = play.recipe()
    del play.tracker.blobs[play.tracker.blob(b"print('a blob that is gone')\n")]
    ended = play(recipe)
    assert ended.failure["code"] == "source_missing"


def test_a_damaged_cache_is_mended(play):
    """Cached blobs are measured whenever they are used."""
    (play.repository / "train.py").write_text("print('cached')\n")
    recipe = play.recipe()
    assert play(recipe).failure is None
    digest = play.tracker.blob(b"print('cached')\n").removeprefix("blake3:")
    (play.home / "blobs" / digest[:2] / digest).write_bytes(b"print('damaged')\n")
    ended = play(recipe)
    assert ended.failure is None
    assert ended.output.strip() == "cached"


def test_no_snapshot_is_said(play):
    """A recipe without a source names that."""
    assert play(play.recipe(source={"root": "/x"})).failure["code"] == "source_missing"


def test_files_of_the_request_are_laid_over_and_named(play):
    """An override changes the rerun, not the proof that the source was restored."""
    (play.repository / "train.py").write_text("print('recorded')\n")
    ended = play(play.recipe(), overrides={"files": {"train.py": "print('changed')\n", "new/file.txt": "x"}})
    assert ended.output.strip() == "changed"
    assert ended.evidence["source"]["equal"] is True
    assert {d["fact"] for d in ended.evidence["environment"]["differences"]} >= {"file train.py", "file new/file.txt"}
