"""What became of each recorded input, rule by rule."""

import os

from blake3 import blake3


def recorded(path, data: bytes, **more):
    return {
        "path": str(path), "in_root": None, "bytes": len(data), "digest": "blake3:" + blake3(data).hexdigest(), "strength": "full",
        "stored": False, "by": "open", **more,
    }  # fmt: skip


def reading(play, path, data: bytes, **more):
    (play.repository / "train.py").write_text(f"print(open({str(path)!r}).read())\n")
    return play.recipe(data={"inputs": [recorded(path, data, **more)]})


def test_the_same_file_at_the_same_place_is_used(play, tmp_path):
    """Equal digest: read where it lies."""
    path = tmp_path / "data.csv"
    path.write_bytes(b"one,two")
    ended = play(reading(play, path, b"one,two"))
    assert ended.failure is None, (ended.failure, ended.output)
    assert ended.output.strip() == "one,two"
    assert [(d["how"], d["equal"]) for d in ended.evidence["data"]] == [("in place", True)]


def test_one_byte_changed_is_refused_with_both_digests(play, tmp_path):
    """Before the program starts."""
    path = tmp_path / "data.csv"
    path.write_bytes(b"one,twO")
    recipe = reading(play, path, b"one,two")
    ended = play(recipe)
    assert ended.failure["code"] == "data_differs"
    assert ended.failure["missing"] == str(path)
    assert ended.failure["expected"] == recipe["data"]["inputs"][0]["digest"]
    assert ended.failure["found"] == "blake3:" + blake3(b"one,twO").hexdigest()
    assert "execute" not in ended.steps


def test_a_fingerprinted_file_that_is_gone_is_named(play, tmp_path):
    """With how to mend it."""
    ended = play(reading(play, tmp_path / "gone.csv", b"one,two"))
    assert ended.failure["code"] == "data_missing"
    assert ended.failure["missing"] == str(tmp_path / "gone.csv")
    assert "ENCORE_WORKER_MOUNTS" in ended.failure["message"]


def test_a_stored_file_that_is_gone_appears_where_it_was(play, tmp_path):
    """In the program's view alone; the machine's folder stays as it is."""
    path = tmp_path / "folder that is gone" / "data.csv"
    play.tracker.blob(b"one,two")
    ended = play(reading(play, path, b"one,two", stored=True))
    assert ended.failure is None, (ended.failure, ended.output)
    assert ended.output.strip() == "one,two"
    assert not path.parent.exists()
    assert ended.evidence["data"][0]["how"] == "restored"
    assert ended.evidence["redirected"] == []


def test_a_stored_file_that_changed_since_is_restored_as_it_was(play, tmp_path):
    """The recorded bytes are what the program reads; today's file is untouched."""
    path = tmp_path / "data.csv"
    path.write_bytes(b"today")
    play.tracker.blob(b"one,two")
    ended = play(reading(play, path, b"one,two", stored=True))
    assert ended.output.strip() == "one,two"
    assert path.read_bytes() == b"today"


def test_a_folder_that_moved_is_found_through_the_mount_map(play, tmp_path):
    """Old folder to new folder, digest compared, and the program still uses the old name."""
    (tmp_path / "new place").mkdir()
    (tmp_path / "new place" / "data.csv").write_bytes(b"one,two")
    path = tmp_path / "old place" / "data.csv"
    mounts = {str(tmp_path / "old place"): str(tmp_path / "new place")}
    ended = play(reading(play, path, b"one,two"), settings={"mounts": mounts})
    assert ended.failure is None, (ended.failure, ended.output)
    assert ended.output.strip() == "one,two"
    assert ended.evidence["data"][0]["how"] == "mapped"
    (tmp_path / "new place" / "data.csv").write_bytes(b"three")
    assert play(reading(play, path, b"one,two"), settings={"mounts": mounts}).failure["code"] == "data_differs"


def test_an_ignored_file_inside_the_repository_is_restored_or_brought(play):
    """Stored: put back. Only fingerprinted: brought from the original repository, read-only."""
    for stored in (True, False):
        (play.repository / "data").mkdir(exist_ok=True)
        (play.repository / "data" / "train.csv").write_bytes(b"one,two")
        (play.repository / "train.py").write_text("print(open('data/train.csv').read())\n")
        play.tracker.blob(b"one,two")
        source = play.snapshot()
        import json

        files = [f for f in json.loads(play.tracker.blobs[source["manifest"]])["files"] if not f["path"].startswith("data/")]
        entry = recorded(play.repository / "data/train.csv", b"one,two", in_root="data/train.csv", stored=stored)
        recipe = play.recipe(source=play.source(files), data={"inputs": [entry]})
        ended = play(recipe)
        assert ended.failure is None, (ended.failure, ended.output)
        assert ended.output.strip() == "one,two"
        assert ended.evidence["data"][0]["how"] == ("restored" if stored else "in place")


def test_a_cache_below_the_old_home_is_found_below_the_new_one(play, tmp_path):
    """HOME is fresh, and ~/.cache/model is there all the same."""
    home = tmp_path / "home-of-someone"
    (home / ".cache").mkdir(parents=True)
    (home / ".cache" / "model").write_bytes(b"weights")
    (play.repository / "train.py").write_text("import os; print(open(os.path.expanduser('~/.cache/model')).read())\n")
    recipe = play.recipe(command={"env": {"HOME": str(home)}}, data={"inputs": [recorded(home / ".cache/model", b"weights")]})
    ended = play(recipe)
    assert ended.failure is None, (ended.failure, ended.output)
    assert ended.output.strip() == "weights"


def test_data_changed_during_the_run_is_in_the_evidence(play, tmp_path):
    """Inputs used in place are measured again at the end."""
    path = tmp_path / "data.csv"
    path.write_bytes(b"one,two")
    (play.repository / "train.py").write_text("import time\nprint('started', flush=True)\nopen('go').read() if False else time.sleep(1)\n")
    recipe = play.recipe(data={"inputs": [recorded(path, b"one,two")]})
    import threading
    import time

    def change():
        for _ in range(600):
            if any("$ " in body.get("text", "") for _, body in list(play.tracker.said)) or list(play.home.glob("jobs/*/program.log")):
                break
            time.sleep(0.02)
        path.write_bytes(b"changed")

    before = set(play.home.glob("jobs/*/program.log"))
    for log in before:
        os.unlink(log)
    thread = threading.Thread(target=change)
    thread.start()
    ended = play(recipe)
    thread.join()
    if ended.failure is None:  # else it was changed before the first look, which is refused
        assert ended.evidence["data"][0]["equal"] is False
