"""No way to kill training: disks that are full, over quota, broken, read-only, or gone. The trainer lives, the loss is counted exactly."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from faults import ERRORS, can_refuse, mounted
from helpers import ROOT, Shop
from server import Server
from test_journal import everything, points

KEYS = 200
BEGIN = """
import json, os, resource, shutil, sys
sys.path[:0] = [ROOT, ROOT + "/tests/sdk"]
from pathlib import Path
from types import SimpleNamespace
import faults
from sdk._journal import Writer
mode, calls = MODE, 0
writer = Writer(Path(FOLDER), {"id": "a" * 26}, SimpleNamespace(strict=False, journal_mode=mode))
def train(number):
    global calls
    for _ in range(number):
        writer.log({f"k{i}": calls + i / 64 for i in range(KEYS)}, calls)
        calls += 1
def try_again():
    writer._full_until = 1e-9  # the five seconds are over
"""
END = """
writer.finish({"state": "finished", "exit_code": 0, "signal": None, "error": None})
print(json.dumps({"folder": str(writer.folder.absolute()), "calls": calls, "lost": writer.losses.all()}))
"""

both = pytest.mark.parametrize("mode", ["map", "write"])
needs_seccomp = pytest.mark.skipif(not can_refuse(), reason="the kernel cannot filter system calls here (seccomp)")


def train(folder: Path, mode: str, program: str) -> dict:
    """Runs the program between BEGIN and END; it must end well, and what it kept and lost must be all it logged."""
    values = {"ROOT": str(ROOT), "MODE": mode, "FOLDER": str(folder), "KEYS": KEYS}
    head = "".join(f"{name} = {value!r}\n" for name, value in values.items())
    done = subprocess.run([sys.executable, "-c", head + BEGIN + program + END], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, (done.returncode, done.stderr[-3000:])
    said = json.loads(done.stdout.splitlines()[-1])
    said["stderr"] = done.stderr
    return said


def kept(said: dict) -> int:
    """Points that can be read; each is true, none is there twice, and with the lost ones they are all."""
    steps = []
    for batch in everything(Path(said["folder"]), settled=True):
        for frame in batch["frames"]:
            steps += frame["steps"]
            for key, values in zip(frame["keys"], frame["values"], strict=True):
                part = int(key[1:]) / 64
                assert values == [step + part for step in frame["steps"]]
    assert len(set(steps)) == len(steps)
    return len(steps) * KEYS


def lost_points(said: dict) -> int:
    return sum(count for reason, count in said["lost"].items() if not reason.startswith("documents"))


@both
def test_a_full_tmpfs_costs_points_and_no_training(tmp_path: Path, mode: str) -> None:
    """Memory's own filesystem, 10 MiB: two segments fit. Space that comes back is used, and the page hears of the loss."""
    with mounted(tmp_path / "small", "-t", "tmpfs", "-o", "size=10m", "none") as folder:
        program = f"""
train(9_000)
for path in Path({str(folder)!r}).glob("*/*/0000000[01].seg"): path.unlink()  # as the sender does with what is delivered
try_again()
train(1000)
"""
        said = train(folder, mode, program)
        assert lost_points(said) > 0
        assert "No space left on device" in said["stderr"] or "free" in said["stderr"]
        batches = everything(Path(said["folder"]), settled=True)
        events = [doc["doc"] for batch in batches for doc in batch["docs"] if doc["doc"]["type"] == "event"]
        assert [event["name"] for event in events] == ["dropped", "finish"]
        assert sum(events[-1]["data"]["dropped"].values()) == lost_points(said)
        last = [step for batch in batches for frame in batch["frames"] for step in frame["steps"]][-1000:]
        assert last == list(range(9_000, 10_000))


@both
def test_a_disk_without_room_for_another_segment(tmp_path: Path, mode: str) -> None:
    """The same, every record accounted for: kept and lost are what was logged."""
    with mounted(tmp_path / "small", "-t", "tmpfs", "-o", "size=10m", "none") as folder:
        said = train(folder, mode, "train(7_000)")
        assert kept(said) + lost_points(said) == 7_000 * KEYS
        assert lost_points(said) > 0


@needs_seccomp
@both
@pytest.mark.parametrize("error", ["EDQUOT", "EIO", "ENOSPC"])
def test_a_kernel_that_refuses_space(tmp_path: Path, mode: str, error: str) -> None:
    """Over quota, a failing disk, a full one, in the middle of a run: no new segment, and in mode "write" no record either."""
    program = f"train(800); faults.refuse(('fallocate', 'pwrite64'), {ERRORS[error]}); train(7_000)"
    said = train(tmp_path, mode, program)
    lost = lost_points(said)
    assert kept(said) + lost == 7_800 * KEYS
    if mode == "write":
        assert lost == 7_000 * KEYS
    else:  # the segments that were reserved before go on
        assert 0 < lost < 7_000 * KEYS
    assert all(reason.removeprefix("documents: ").startswith("disk: ") for reason in said["lost"])
    assert said["stderr"].count("training goes on") <= 2


def test_a_record_cut_short_by_the_disk_is_no_record(tmp_path: Path) -> None:
    """A real short write (the file-size limit falls into a record): nothing of it is read, it is counted, and later ones follow it."""
    program = """
train(2000)
size = writer._where()[1]
limits = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, limits[1]))
train(1)
assert os.pread(writer._where()[0], 100, size) != bytes(100), "some of it was written"
train(99)
resource.setrlimit(resource.RLIMIT_FSIZE, limits)
train(500)
"""
    said = train(tmp_path, "write", program)
    assert lost_points(said) == 100 * KEYS
    assert kept(said) == 2500 * KEYS
    assert not [hole for batch in everything(Path(said["folder"]), settled=True) for hole in batch["holes"]]


@both
@pytest.mark.parametrize("more", [0, 6000])
def test_a_folder_deleted_under_us_is_made_again(tmp_path: Path, mode: str, more: int) -> None:
    """`rm -r` of the run while it trains: what the process holds (its current segment) is put back, earlier segments are an exact hole."""
    program = f"""
train(4000)
held = writer._segments.number
while writer.folder.parent.exists():  # the thread that makes segments ready may be making one
    shutil.rmtree(writer.folder.parent, ignore_errors=True)
train({more})
assert held == 1
"""
    said = train(tmp_path, mode, program)
    assert said["lost"] == {}
    batches = everything(Path(said["folder"]), settled=True)
    (hole,) = [tuple(hole) for batch in batches for hole in batch["holes"]]
    steps = [step for batch in batches for frame in batch["frames"] for step in frame["steps"]]
    assert steps == list(range(steps[0], 4000 + more))
    assert 0 < steps[0] < 4000
    assert hole == (0, steps[0] + 1)  # a key list before the first, an end record behind the last of the first segment
    assert batches[-1]["docs"][-1]["doc"]["name"] == "finish"
    assert (Path(said["folder"]) / "writer.json").exists()


@both
def test_a_folder_that_becomes_read_only(tmp_path: Path, mode: str) -> None:
    """As an ordinary user, the permission is taken away in the middle: what was reserved is filled, the rest is counted."""
    program = """
os.chmod(writer.folder, 0o555); os.chown(writer.folder, 65534, 65534)
if os.getuid() == 0: os.setgid(65534); os.setuid(65534)
train(9_000)
"""
    said = train(tmp_path, mode, program)
    assert lost_points(said) > 0
    assert kept(said) + lost_points(said) == 9_000 * KEYS
    assert "Permission denied" in " ".join(said["lost"])


def test_a_truncated_file_is_survived_by_write(tmp_path: Path) -> None:
    """Another program cuts the file to nothing: nothing would catch that under a map; mode "write" goes on, and later segments are read."""
    said = train(tmp_path, "write", "train(500)\nos.truncate(writer.folder / '00000000.seg', 0)\ntrain(4000)")
    batches = everything(Path(said["folder"]), settled=True)
    steps = [step for batch in batches for frame in batch["frames"] for step in frame["steps"]]
    assert 500 < steps[0] < 4000
    assert steps == list(range(steps[0], 4500))
    holes = [tuple(hole) for batch in batches for hole in batch["holes"]]
    assert holes[0][0] == 0
    assert all(later[0] == earlier[1] + 1 for earlier, later in pairwise(holes)), "one stretch: the cut segment"


def test_a_read_only_journal_from_the_start(shop: Shop, server: Server) -> None:
    """A read-only mount: the node's own folder serves instead, and the run says so."""
    with mounted(shop.folder / "locked", "-t", "tmpfs", "-o", "size=1m,ro", "none") as locked:
        spare = shop.folder / "tmp"
        spare.mkdir()
        program = "import sdk\nsdk.init(project='p')\nsdk.log({'x': 1.0})\nprint('trained')"
        done = shop.run(program, None, ENCORE_MODE="offline", ENCORE_JOURNAL=str(locked), ENCORE_LOCAL=str(spare))
        assert (done.returncode, done.stdout) == (0, "trained\n"), done.stderr
        assert "instead" in done.stderr
        (found,) = [path.parent for path in spare.glob("**/writer.json") if json.loads(path.read_text())["kind"] == "trainer"]
        assert [value for _, _, value in points(found)] == [1.0]


@both
def test_a_fork_after_mapping(shop: Shop, mode: str) -> None:
    """Loader workers of a run in either mode: each writes a journal of its own, the parent's is whole."""
    program = """
        import multiprocessing, os, sdk
        def load(number):
            for i in range(1000): sdk.log({f"child{number}": float(i)}, i)
        run = sdk.init(project="p")
        for i in range(1000): sdk.log({"parent": float(i)}, i)
        children = [multiprocessing.get_context("fork").Process(target=load, args=(n,)) for n in range(2)]
        for child in children: child.start()
        for i in range(1000, 20_000): sdk.log({"parent": float(i)}, i)
        for child in children: child.join(); assert child.exitcode == 0
        sdk.finish()
    """
    done = shop.run(program, None, ENCORE_MODE="offline", ENCORE_JOURNAL_MODE=mode)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    (parent,) = shop.writers()
    assert [value for _, key, value in points(parent, settled=True) if key == "parent"] == [float(i) for i in range(20_000)]
    children = [folder for folder in shop.writers("node") if "parent" in json.loads((folder / "writer.json").read_text())]
    found = {key: value for folder in children for _, key, value in points(folder, settled=True)}
    assert found == {"child0": 999.0, "child1": 999.0}
    assert (json.loads((parent / "writer.json").read_text()).get("journal_mode") == "write") == (mode == "write")


@both
def test_what_was_logged_in_either_mode_arrives_the_same(shop: Shop, server: Server, mode: str) -> None:
    """ENCORE_JOURNAL_MODE changes how bytes reach the file, not what they are: the sender needs no word of it."""
    program = """
        import sdk
        sdk.init(project="p")
        for i in range(20_000): sdk.log({f"k{j}": float(i + j) for j in range(30)}, i)
    """
    done = shop.run(program, server, ENCORE_JOURNAL_MODE=mode)
    assert done.returncode == 0, done.stderr
    assert server.points("k29") == [(i, float(i + 29)) for i in range(20_000)]


def test_a_mode_that_does_not_exist_is_said(shop: Shop) -> None:
    """ENCORE_JOURNAL_MODE=fast: taken as map, in one line."""
    done = shop.run("import sdk\nsdk.init(project='p')", None, ENCORE_MODE="offline", ENCORE_JOURNAL_MODE="fast")
    assert done.returncode == 0
    assert "ENCORE_JOURNAL_MODE='fast' is none of map, write" in done.stderr
