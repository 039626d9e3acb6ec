"""The source snapshot: whatever a repository holds, what is restored from manifest and blobs is the same tree."""

# ruff: noqa: E501 - tables read best with a row a line
from __future__ import annotations

import json
import os
import stat
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from sdk._capture import digests, source

from .fake import Fake
from .world import World

ODD = os.fsdecode(b"latin-\xe9.txt")


def _restore(manifest: dict[str, Any], blobs: dict[str, bytes], target: Path) -> None:
    for entry in manifest["files"]:
        path = Path(os.fsdecode(os.path.join(os.fsencode(target), source.entry_path(entry))))
        path.parent.mkdir(parents=True, exist_ok=True)
        data = blobs[entry["digest"]]
        if entry["mode"] == "120000":
            path.symlink_to(os.fsdecode(data))
        else:
            path.write_bytes(data)
            path.chmod(0o755 if entry["mode"] == "100755" else 0o644)


def _tree(root: Path) -> str:
    """The tree digest read from a folder alone."""
    files = []
    for here, folders, names in os.walk(os.fsencode(root)):
        folders[:] = [each for each in folders if each != b".git"]
        for name in names + [each for each in folders if os.path.islink(os.path.join(here, each))]:
            path = os.path.join(here, name)
            mode = os.lstat(path).st_mode
            link = stat.S_ISLNK(mode)
            data = os.readlink(path) if link else Path(os.fsdecode(path)).read_bytes()
            files.append(
                (
                    os.path.relpath(path, os.fsencode(root)),
                    "120000" if link else "100755" if mode & 0o100 else "100644",
                    digests.digest(data),
                )
            )
    return source.tree_digest(sorted(files))


def _take(world: World, entry: str = "train.py", **more: Any) -> tuple[Fake, dict[str, Any], dict[str, Any]]:
    fake = Fake(world.folder / "writer")
    capture = {"cwd": str(world.root), "entry": {"path": str(world.root / entry)}, "started_us": int(time.time() * 1e6) + 1_000_000, **more}
    _, value, _ = source.take(capture, fake.put_blob)
    return fake, value, json.loads(fake.blobs[value["manifest"]])


def _torture(world: World) -> None:
    world.write("crlf.txt", b"a\r\nb\r\n")
    world.write("binary.dat", bytes(range(256)) * 10)
    world.write("données/日本 語.py", "x = 1\n")
    world.write(ODD, "odd\n")
    world.write("name with\nline end.txt", "odd\n")
    world.write(".gitattributes", "*.txt text eol=lf\n")
    world.write("run.sh", "#!/bin/sh\n")
    os.chmod(world.root / "run.sh", 0o755)
    world.write("gone.py", "gone\n")
    world.write("staged.py", "1\n")
    world.write("both.py", "1\n")
    (world.root / "link").symlink_to("train.py")
    (world.root / "broken").symlink_to("/nowhere/at/all")
    (world.root / "to-folder").symlink_to("données")
    world.write(".gitignore", "ignored/\n*.log\n")
    world.commit("torture")
    world.write("staged.py", "2\n")
    world.write("both.py", "2\n")
    world.git("add", "staged.py", "both.py")
    world.write("both.py", "3\n")
    world.write("crlf.txt", b"a\r\nc\r\n")
    (world.root / "gone.py").unlink()
    world.write("new/untracked.py", "y\n")
    world.write("empty.txt", "")
    (world.root / "new" / "link").symlink_to("../train.py")
    world.write("ignored/secret.bin", "no\n")
    world.write("noise.log", "no\n")
    world.write("big.bin", b"\1" * (source.MAX_FILE_BYTES + 1))
    os.mkfifo(world.root / "pipe")
    nested = world.root / "nested"
    nested.mkdir()
    world.git("init", "-q", "-b", "main", at=nested)
    (nested / "inner.py").write_text("z\n")
    world.git("add", "-A", at=nested)
    world.git("commit", "-q", "-m", "inner", at=nested)


def test_a_tree_restored_from_manifest_and_blobs_has_the_equal_digest(tmp_path: Path) -> None:
    """Staged, unstaged, untracked, links, modes, CRLF, binary and odd names all come back byte for byte."""
    world = World(tmp_path)
    _torture(world)
    fake, value, manifest = _take(world)
    restored = tmp_path / "restored"
    _restore(manifest, fake.blobs, restored)
    assert _tree(restored) == value["tree"]
    for path in ("crlf.txt", "binary.dat", "both.py", "données/日本 語.py", ODD, "name with\nline end.txt", "nested/inner.py", "empty.txt"):
        assert (restored / path).read_bytes() == (world.root / path).read_bytes()
    assert os.access(restored / "run.sh", os.X_OK)
    assert [os.readlink(restored / each) for each in ("link", "broken", "to-folder", "new/link")] == [
        "train.py",
        "/nowhere/at/all",
        "données",
        "../train.py",
    ]
    assert not any((restored / each).exists() for each in ("gone.py", "ignored", "noise.log", "big.bin", "pipe"))
    assert {each["path"] for each in value["left_out"]} >= {"big.bin"}
    assert all("path_b64" in each or each["path"].isprintable() or "\n" in each["path"] for each in manifest["files"])
    assert value["bytes"] == sum(each["bytes"] for each in manifest["files"])


def test_the_same_tree_gives_the_same_digest_and_one_changed_byte_another(tmp_path: Path) -> None:
    """The digest depends on content, mode and names, and on nothing else."""
    world = World(tmp_path)
    first = _take(world)[1]["tree"]
    os.utime(world.root / "train.py", (1, 1))
    assert _take(world)[1]["tree"] == first
    os.chmod(world.root / "data.csv", 0o755)
    second = _take(world)[1]["tree"]
    world.write("data.csv", "1,3\n")
    assert len({first, second, _take(world)[1]["tree"]}) == 3


def test_a_submodule_is_taken_with_its_own_commit(tmp_path: Path) -> None:
    """Files of a checked-out submodule are in the snapshot; one that is not checked out is named."""
    other = World(tmp_path / "other")
    world = World(tmp_path / "world")
    world.git("submodule", "add", "-q", str(other.root), "part")
    world.commit("submodule")
    _, value, manifest = _take(world)
    assert "part/train.py" in {each["path"] for each in manifest["files"]}
    assert value["git"]["submodules"][0]["commit"] == other.git("rev-parse", "HEAD")
    world.git("submodule", "deinit", "-q", "-f", "part")
    _, value, _ = _take(world)
    assert [each["path"] for each in value["left_out"]] == ["part"]


def test_looking_writes_nothing_and_runs_nothing_of_the_repository(tmp_path: Path) -> None:
    """Neither hooks nor the file-system monitor of a repository run, and its index stays the same bytes."""
    world = World(tmp_path)
    trap = world.folder / "trap.sh"
    trap.write_text(f"#!/bin/sh\ntouch {world.folder}/sprung\n")
    trap.chmod(0o755)
    world.git("config", "core.fsmonitor", str(trap))
    for hook in ("post-index-change", "fsmonitor-watchman", "post-checkout"):
        (world.root / ".git" / "hooks" / hook).write_bytes(trap.read_bytes())
        (world.root / ".git" / "hooks" / hook).chmod(0o755)
    (world.folder / "sprung").unlink(missing_ok=True)
    os.utime(world.root / "train.py", (1, 1))  # a plain `git status` would now refresh the index
    before = (world.root / ".git" / "index").read_bytes()
    assert _take(world)[1]["git"]["commit"]
    assert (world.root / ".git" / "index").read_bytes() == before
    assert not (world.folder / "sprung").exists()


def test_a_file_changed_since_the_start_is_flagged(tmp_path: Path) -> None:
    """A tracked file edited after the program started is named; an untracked output is left to the data section."""
    world = World(tmp_path)
    started = int(time.time() * 1e6)
    time.sleep(0.05)
    world.write("train.py", "changed = True\n")
    world.write("result.csv", "1\n")
    _, value, manifest = _take(world, started_us=started)
    assert value["changed_since_start"] == ["train.py"]
    assert {each["path"] for each in manifest["files"]} == {"data.csv", "train.py"}


def test_a_file_with_a_secret_is_left_out_and_named(tmp_path: Path) -> None:
    """A token in a tracked file keeps that file out of the snapshot, and preflight is told why."""
    world = World(tmp_path)
    world.write("settings.py", 'TOKEN = "gh' + "p_" + "a1B2c3D4e5" * 4 + '"\n')
    world.write(".env", "X=1\n")
    world.commit("oops")
    fake, value, _ = _take(world)
    assert {each["path"] for each in value["left_out"]} == {"settings.py", ".env"}
    assert {"settings.py", ".env"} <= {each["what"] for each in value["gaps"]}
    assert not any(b"a1B2c3D4e5" in data for data in fake.blobs.values())


def test_without_git_the_folder_is_taken_by_rule(tmp_path: Path) -> None:
    """Python, configuration and small text are taken; virtual environments, caches and data are not."""
    world = World(tmp_path)
    subprocess.run(["rm", "-rf", str(world.root / ".git")], check=True)
    world.write("config/model.yaml", "layers: 2\n")
    world.write("weights.bin", b"\0" * 4096)
    world.write("venv/pyvenv.cfg", "")
    world.write("venv/lib/x.py", "")
    world.write("__pycache__/x.py", "")
    world.write(".hidden/x.py", "")
    _, value, manifest = _take(world)
    assert {each["path"] for each in manifest["files"]} == {"train.py", "data.csv", "config/model.yaml"}
    assert [each["path"] for each in value["left_out"]] == ["weights.bin"]
    assert value["git"] is None


def test_ignored_and_outside_modules_that_were_imported_are_taken(tmp_path: Path) -> None:
    """What the program imported is in the snapshot: an ignored module in place, a package elsewhere as a mount."""
    world = World(tmp_path)
    world.write(".gitignore", "generated.py\n")
    world.write("generated.py", "v = 1\n")
    library = tmp_path / "lib"
    (library / "tools" / "deep").mkdir(parents=True)
    for path in ("tools/__init__.py", "tools/deep/__init__.py", "tools/deep/more.py", "single.py", "unused.py"):
        (library / path).write_text("")
    modules = {
        "generated": str(world.root / "generated.py"), "tools": str(library / "tools/__init__.py"), "tools.deep.more": str(library / "tools/deep/more.py"),
        "single": str(library / "single.py"), "__mp_main__": str(world.root / "train.py"), "sdk": source.__file__, "json": json.__file__,
    }  # fmt: skip
    _, _, manifest = _take(world, modules=modules)
    [mount] = manifest["mounts"]
    paths = {each["path"] for each in manifest["files"]}
    assert mount["at"] == str(library)
    assert {"generated.py", *(mount["prefix"] + each for each in ("tools/__init__.py", "tools/deep/more.py", "single.py"))} <= paths
    assert mount["prefix"] + "unused.py" not in paths


@pytest.mark.parametrize("broken", ["no git", "corrupt"])
def test_a_repository_that_git_cannot_read_is_taken_as_a_folder(tmp_path: Path, broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without git, or with a broken repository, the files are still taken and the gap is said."""
    world = World(tmp_path)
    if broken == "no git":
        monkeypatch.setenv("PATH", str(tmp_path))
    else:
        (world.root / ".git" / "HEAD").write_text("nonsense")
    _, value, manifest = _take(world)
    assert {each["path"] for each in manifest["files"]} == {"train.py", "data.csv"}
    assert value["git"] is None
    assert any(each["what"] == "git" for each in value["gaps"])


def test_total_limits_hit_data_before_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the snapshot would grow too large, programs and small files stay, the large ones are named."""
    world = World(tmp_path)
    world.write("a.dat", b"x" * 60_000)
    world.write("z.py", "#" * 30_000)
    monkeypatch.setattr(source, "MAX_ALL_BYTES", 50_000)
    _, value, manifest = _take(world)
    assert "z.py" in {each["path"] for each in manifest["files"]}
    assert [each["path"] for each in value["left_out"]] == ["a.dat"]


@pytest.mark.parametrize("git", [True, False])
def test_encores_own_folder_below_the_root_is_no_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, git: bool) -> None:
    """`encore up --home ./encore` beside the program: neither its keys nor its journals are copied; a root within it is still taken."""
    world = World(tmp_path)
    for name in ("secret-key", "worker/token", "sdk/run/notes.txt"):
        world.write(f"encore/{name}", "not for anybody")
    if not git:
        import shutil

        shutil.rmtree(world.root / ".git")
    monkeypatch.setenv("ENCORE_HOME", str(world.root / "encore"))
    _, _, manifest = _take(world)
    names = [entry["path"] for entry in manifest["files"]]
    assert "train.py" in names
    assert not [name for name in names if name.startswith("encore/")]
    monkeypatch.setenv("ENCORE_HOME", str(world.folder))
    _, _, manifest = _take(world)
    assert "train.py" in [entry["path"] for entry in manifest["files"]]
