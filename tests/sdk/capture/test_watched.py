"""From when on the capture knows who wrote a file, and where a rerun's root lies."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .world import World

PREPARES = """\
import subprocess, sys
subprocess.run([sys.executable, "-c", f"open({sys.argv[1]!r}, 'w').write('1,2,3')"], check=True)
import sdk
sdk.init(project="p")
open(sys.argv[1]).read()
sdk.log({"loss": 1.0})
sdk.finish()
"""


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_data_prepared_before_the_import_is_an_input(world: World) -> None:
    """A rerun must find it with the same digest, or its change would go unseen."""
    table = world.folder / "elsewhere.csv"
    world.write("train.py", PREPARES)
    data = world.play(str(table))["data"]
    assert [each["path"] for each in data["inputs"]] == [str(table)]
    assert data["inputs"][0]["digest"].startswith("blake3:")
    assert str(table) not in [each["path"] for each in data["outputs"]]


def test_a_rerun_tells_its_paths_from_the_root_that_the_runner_restored(world: World) -> None:
    """A restored tree has no .git; a script in a subfolder must not seem to have moved to the top."""
    world.write("deep/er/train.py", (world.root / "train.py").read_text())
    restored = world.folder / "job" / "source"
    (restored / "deep" / "er").mkdir(parents=True)
    (restored / "deep" / "er" / "train.py").write_text((world.root / "train.py").read_text())
    (restored / "data.csv").write_text("1,2\n")
    rerun = world.folder / "rerun.json"
    rerun.write_text(json.dumps({"format": 1, "run": "a" * 26, "job_folder": str(world.folder), "root": str(restored), "config": {}}))
    recipes = [
        world.play(start=["deep/er/train.py"]),
        world.play(start=["deep/er/train.py"], cwd=restored, env={"ENCORE_RERUN": str(rerun), "ENCORE_WRITE_GUARD": "0"}),
    ]
    for recipe in recipes:
        assert recipe["command"]["cwd_in_root"] == "."
        assert recipe["command"]["entry"]["path_in_root"] == "deep/er/train.py"
    assert recipes[1]["source"]["root"] == str(restored)
