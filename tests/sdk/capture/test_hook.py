"""What a program opens and writes is heard in it and in its children; a rerun is kept inside its folder."""

# ruff: noqa: E501 - tables read best with a row a line
from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .world import World

ROOT = Path(__file__).parents[3]


def _inputs(recipe: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {Path(each["path"]).name: each for each in recipe["data"]["inputs"]}


def _outputs(recipe: dict[str, Any]) -> set[str]:
    return {Path(each["path"]).name for each in recipe["data"]["outputs"]}


def _play(world: World, body: str, **more: Any) -> dict[str, Any]:
    world.write("train.py", "import os, sys\nimport sdk\n" + body)
    return world.play(**more)


def test_ways_to_read_and_write(tmp_path: Path) -> None:
    """open, os.open, pathlib, bytes names, descriptors, sqlite, rename, mkdir: reads are inputs, writes are outputs, code is neither."""
    world = World(tmp_path)
    for name in "abcdefg":
        world.write(f"{name}.dat", name * 10)
    world.write("helper.py", "x = 1\n")
    recipe = _play(
        world,
        """
import pathlib, sqlite3, tempfile, json, helper
open("a.dat").close()
sdk.init(project="p")
os.close(os.open("b.dat", os.O_RDONLY))
pathlib.Path("c.dat").read_bytes()
open(b"d.dat").close()
with open("e.dat", "r+") as f: f.read()
with open("f.dat", "a") as f: f.write("more")
open("helper.py").read(); open(json.__file__).read(); open("/proc/self/stat").read()
os.makedirs("made/deep", exist_ok=True)
with open("made/deep/own.dat", "w") as f: f.write("1")
open("made/deep/own.dat").read()
with open("aside.tmp", "w") as f: f.write("1")
os.replace("aside.tmp", "renamed.dat")
sqlite3.connect("base.sqlite").execute("create table t (x)")
with open("short-lived", "w") as f: f.write("1")
os.remove("short-lived")
try: open("missing.dat")
except OSError: pass
sdk.finish()
""",
    )
    assert set(_inputs(recipe)) == {"a.dat", "b.dat", "c.dat", "d.dat", "e.dat"}
    assert _outputs(recipe) == {"e.dat", "f.dat", "made", "deep", "own.dat", "renamed.dat", "base.sqlite"}


def test_files_that_take_the_console_are_no_outputs(tmp_path: Path) -> None:
    """What a shell redirects stdout and stderr to belongs to the caller, below the root and outside; a file that the program names stays."""
    world = World(tmp_path)
    (tmp_path / "logs").mkdir()

    def redirect() -> None:
        os.dup2(os.open(tmp_path / "logs" / "err.txt", os.O_WRONLY | os.O_CREAT), 2)
        os.dup2(os.open(world.root / "out.txt", os.O_WRONLY | os.O_CREAT), 1)

    body = """
sdk.init(project="p")
import time
print("said", flush=True); print("said", file=sys.stderr, flush=True)
os.system("echo said by a child >> out.txt")
open("own.txt", "w").write("1")
time.sleep(1)  # the sender looks at what the process holds open
sdk.finish()
"""
    recipe = _play(world, body, before=redirect)
    assert (world.root / "out.txt").read_text().startswith("said")
    assert "said" in (tmp_path / "logs" / "err.txt").read_text()
    assert _outputs(recipe) == {"own.txt"}
    assert not {"out.txt", "err.txt"} & set(_inputs(recipe))


def test_forked_and_spawned_workers_are_heard(tmp_path: Path) -> None:
    """Files that loader workers read are inputs, whether they were forked or spawned; no journal is made for them."""
    world = World(tmp_path)
    for name in ("forked.dat", "spawned.dat"):
        world.write(name, name)
    recipe = _play(
        world,
        """
import multiprocessing
def read(name):
    with open(name) as f: f.read()
if __name__ == "__main__":
    sdk.init(project="p")
    for kind in ("fork", "spawn"):
        worker = multiprocessing.get_context(kind).Process(target=read, args=(kind + "ed.dat" if kind == "fork" else kind + "ed.dat",))
        worker.start(); worker.join()
        assert worker.exitcode == 0
    sdk.finish()
""",
    )
    assert {"forked.dat", "spawned.dat"} <= set(_inputs(recipe))
    assert len(list(world.journal.glob("*/*/writer.json"))) == 2


def test_a_file_read_by_c_code_is_seen_in_the_process(tmp_path: Path) -> None:
    """A file that only a C library opens is found among the process's open files; one that C code wrote is an output."""
    world = World(tmp_path)
    world.write("quiet.dat", "q" * 100)
    recipe = _play(
        world,
        """
import ctypes, time, glob
sdk.init(project="p")
libc = ctypes.CDLL(None)
libc.open(b"quiet.dat", 0)
libc.creat(b"written.dat", 0o644)
end = time.monotonic() + 100
while time.monotonic() < end and not any(b"quiet.dat" in open(f, "rb").read() for f in glob.glob(os.environ["ENCORE_JOURNAL"] + "/*/*/*.seg")):
    time.sleep(0.05)
sdk.finish()
""",
    )
    assert _inputs(recipe)["quiet.dat"]["by"] == "mapped"
    assert "written.dat" in _outputs(recipe)


def test_very_many_files_of_a_folder_become_one_manifest(tmp_path: Path) -> None:
    """A data set of thousands of small files does not fill the journal: its folder is fingerprinted as a manifest."""
    world = World(tmp_path)
    for number in range(1500):
        world.write(f"images/{number}.txt", str(number))
    world.commit("data")
    recipe = _play(world, "import glob\nsdk.init(project='p')\nfor f in sorted(glob.glob('images/*')): open(f).read()\nsdk.finish()\n")
    [folder] = [each for each in recipe["data"]["inputs"] if each["strength"] == "manifest"]
    assert folder["path"].endswith("/images")
    manifest = json.loads(world.blob(folder["manifest"]))
    assert len(manifest["files"]) == 1500
    assert folder["digest"] == folder["manifest"]
    assert len(recipe["data"]["inputs"]) <= 1002


def test_a_secret_that_is_read_is_neither_stored_nor_fingerprinted(tmp_path: Path) -> None:
    """A program that reads .netrc gives a gap, not a blob and not a digest."""
    world = World(tmp_path)
    (world.home / ".netrc").write_text("machine h login l password p\n")
    recipe = _play(world, "sdk.init(project='p')\nopen(os.path.expanduser('~/.netrc')).read()\nsdk.finish()\n")
    assert ".netrc" not in _inputs(recipe)
    assert any(each["what"].endswith(".netrc") for each in recipe["data"]["gaps"])


def _guarded(tmp_path: Path, body: str, **env: str) -> subprocess.CompletedProcess[str]:
    job = tmp_path / "job"
    (job / "home").mkdir(parents=True, exist_ok=True)
    (tmp_path / "outside").mkdir(exist_ok=True)
    (tmp_path / "outside" / "old.txt").write_text("old")
    (job / "rerun.json").write_text(
        json.dumps({"format": 1, "run": "r", "job_folder": str(job), "config": {}, "rng": None, "redirect": {}})
    )
    (job / "program.py").write_text(f"import os, sys, shutil, pathlib\nout = {str(tmp_path / 'outside')!r}\nimport sdk\n{body}")
    environment = {
        "PATH": os.environ["PATH"], "HOME": str(job / "home"), "PYTHONPATH": str(ROOT), "ENCORE_RERUN": str(job / "rerun.json"), "ENCORE_HOME": str(job / "home" / ".encore"),
        "TMPDIR": str(job / "tmp"), "ENCORE_MODE": "offline", "ENCORE_SENDER": "external", **env,
    }  # fmt: skip
    (job / "tmp").mkdir(exist_ok=True)
    return subprocess.run(
        [sys.executable, "program.py"], cwd=job, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize(
    "attempt",
    [
        "open(out + '/new.txt', 'w')", "open(out + '/old.txt', 'a')", "open(out + '/old.txt', 'r+')", "pathlib.Path(out, 'new.txt').write_text('x')", "os.mkdir(out + '/d')",
        "os.remove(out + '/old.txt')", "os.rename(out + '/old.txt', 'mine')", "os.rename('program.py', out + '/p')", "shutil.rmtree(out)", "open('../outside/new.txt', 'w')",
        "os.symlink(out, 'inside'); open('inside/new.txt', 'w')", "os.open(out + '/new.txt', os.O_CREAT | os.O_WRONLY)", "os.truncate(out + '/old.txt', 0)", "os.symlink('x', out + '/l')",
    ],
)  # fmt: skip
def test_a_rerun_cannot_touch_what_lies_outside_its_folder(tmp_path: Path, attempt: str) -> None:
    """Each way to write outside the job's folder raises PermissionError with the path in it, and changes nothing."""
    done = _guarded(tmp_path, attempt)
    assert done.returncode == 1
    assert "PermissionError" in done.stderr
    assert "outside" in done.stderr.splitlines()[-1]
    assert {each.name: each.read_text() for each in (tmp_path / "outside").iterdir()} == {"old.txt": "old"}


def test_a_rerun_may_write_inside_its_folder_and_read_anywhere(tmp_path: Path) -> None:
    """The guard lets a whole run pass: its folder, the temp folder, devices, the journal, reading outside."""
    done = _guarded(
        tmp_path,
        "import tempfile\nsdk.init(project='p'); sdk.log({'x': 1})\nopen('result.txt', 'w').write('1'); os.makedirs('a/b'); os.rename('result.txt', 'a/b/r')\n"
        "tempfile.NamedTemporaryFile().close(); open('/dev/null', 'w').write('x'); print(open(out + '/old.txt').read()); sdk.finish()",
    )
    assert done.returncode == 0, done.stderr
    assert "old" in done.stdout


def test_the_guard_stands_back_where_mounts_protect(tmp_path: Path) -> None:
    """With ENCORE_WRITE_GUARD=0 the runner's mounts rule alone."""
    assert _guarded(tmp_path, "open(out + '/new.txt', 'w').write('1')", ENCORE_WRITE_GUARD="0").returncode == 0


def test_random_states_are_put_back_at_init_of_a_rerun(tmp_path: Path) -> None:
    """random, NumPy and torch go on from the states of the original although the rerun seeded otherwise."""
    world = World(tmp_path)
    body = (
        "import random, sys, numpy, torch, sdk\nseed = int(sys.argv[1])\nrandom.seed(seed); numpy.random.seed(seed); torch.manual_seed(seed); numpy.random.randn()\n"
        "sdk.init(project='p')\nsys.stdout.write(repr((random.random(), numpy.random.randn(3).tolist(), torch.randn(3).tolist())))\nsdk.finish()\n"
    )
    world.write("train.py", body)
    first = world.play("11")
    output = world.output
    states = {}
    for name in ("python", "numpy", "torch"):
        states[name] = str(world.folder / name)
        Path(states[name]).write_bytes(world.blob(first["numerics"]["rng"]["0"][name]))
    rerun = world.folder / "rerun.json"
    rerun.write_text(
        json.dumps({"format": 1, "run": "r", "job_folder": str(world.folder), "config": {}, "rng": {"0": states}, "redirect": {}})
    )
    second = world.play("99", env={"ENCORE_RERUN": str(rerun)})
    assert world.output == output
    assert second["numerics"]["restored"] == ["python", "numpy", "torch"]
    assert second["numerics"]["rng"]["0"] == first["numerics"]["rng"]["0"]
