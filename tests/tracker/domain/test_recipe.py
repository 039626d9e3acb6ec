"""Preflight: each gap of a recipe is named with how to mend it, and moves the score."""

import copy

import pytest

from tracker.domain.recipe import CHECKS, Surroundings, preflight

WHOLE = {
    "command": {
        "argv": ["train.py"],
        "entry": {"kind": "script"},
        "launcher": None,
        "world_size": 1,
        "env": {"PYTHONHASHSEED": "0"},
        "env_masked": [],
    },
    "source": {"manifest": "blake3:m", "files": 3, "left_out": [], "changed_since_start": [], "git": {"remote": "git@x:y", "unpushed": 0}},
    "environment": {
        "python": {"version": "3.11.7"},
        "packages": [{"name": "numpy", "version": "2", "from": {"kind": "index"}}],
        "sdk": {"wheel": "blake3:w"},
    },
    "data": {
        "inputs": [{"path": "/x.csv", "digest": "blake3:x", "stored": True}],
        "outputs": [{"path": "/p/out", "in_root": "out"}],
        "seen_by_hook": True,
    },
    "numerics": {"seeds": {"torch": 0}, "rng": {}, "determinism": {}, "threads": {"torch_intra": 2}},
    "hardware": {"cpu": {"model": "X"}},
}
STORED = Surroundings(stored={"blake3:m", "blake3:w", "blake3:x"})


def changed(path, value):
    recipe = copy.deepcopy(WHOLE)
    *folders, name = path.split(".")
    at = recipe
    for folder in folders:
        at = at[folder]
    at[name] = value
    return recipe


def test_a_whole_recipe_scores_a_hundred_and_runs():
    found = preflight(WHOLE, STORED)
    assert (found["score"], found["runnable"]) == (100, True)
    assert {item["state"] for item in found["items"]} == {"ok"}


def test_the_weights_add_up_to_a_hundred():
    assert sum(weight for _, weight, _ in CHECKS) == 100


@pytest.mark.parametrize(
    ("path", "value", "state", "words", "runnable"),
    [
        ("source.manifest", None, "missing", "source copied", False),
        ("source.manifest", "blake3:other", "missing", "source stored", False),
        ("source.left_out", [{"path": "big.bin", "bytes": 9, "why": "larger than 10 MB"}], "warn", "big.bin left out", True),
        ("source.left_out", [{"path": ".env", "bytes": 9, "why": "it holds a secret"}], "warn", ".env left out", True),
        ("source.changed_since_start", ["train.py"], "warn", "train.py changed since the start", True),
        ("source.git", None, "warn", "in a git repository", True),
        ("source.git", {"remote": None}, "warn", "repository has a remote", True),
        ("source.git", {"remote": "x", "unpushed": 2}, "warn", "commit is pushed", True),
        ("environment.packages", [], "missing", "packages recorded", False),
        ("environment.packages", [{"name": "a", "from": {"kind": "path"}}], "warn", "a from a local path or URL", True),
        ("environment.packages", [{"name": "a", "from": {"kind": "vcs"}}], "warn", "a from a branch", True),
        ("environment.packages", [{"name": "a"}], "warn", "a of unknown origin", True),
        ("environment.sdk", {}, "warn", "the SDK's wheel is stored", True),
        ("environment.python", {}, "missing", "Python version", False),
        ("environment.container", {"image": "x"}, "warn", "container", True),
        ("data.inputs", [{"path": "/y.csv", "digest": None}], "warn", "/y.csv fingerprinted", True),
        ("data.inputs", [{"path": "/y.csv", "digest": "blake3:gone", "stored": True}], "missing", "/y.csv stored", True),
        ("data.outputs", [{"path": "/abs/out", "in_root": None}], "warn", "writes outside its folder: /abs/out", True),
        ("data.seen_by_hook", False, "warn", "what the program opens is seen", True),
        ("numerics.seeds", {}, "missing", "seeds set", True),
        ("numerics.threads", {}, "missing", "thread counts recorded", True),
        ("numerics.threads", {"cores": 2}, "warn", "thread counts set", True),
        ("numerics.determinism", {"cudnn_benchmark": True}, "warn", "deterministic kernels", True),
        ("hardware.gpus", [{"model": "G"}], "warn", "deterministic kernels", True),
        ("command.env", {}, "warn", "PYTHONHASHSEED", True),
        ("command.env_masked", ["API_KEY"], "warn", "secret API_KEY", True),
        ("command.entry", {"kind": "interactive"}, "missing", "program is a file", False),
        ("command.argv", [], "missing", "command recorded", False),
        ("command.world_size", 2, "missing", "launcher known", False),
        ("command.launcher", {"kind": "mpi"}, "warn", "launcher known", True),
    ],
)
def test_each_gap_is_named_with_its_mend_and_costs_points(path, value, state, words, runnable):
    found = preflight(changed(path, value), STORED)
    item = next(item for item in found["items"] if item["what"] == words)
    assert item["state"] == state
    assert item["mend"]
    assert item["why"]
    assert found["runnable"] is runnable
    assert found["score"] < 100


def test_while_the_capture_goes_on_what_is_missing_is_only_a_warning():
    found = preflight({"command": WHOLE["command"]}, Surroundings(stored=set(), capturing=True))
    assert {item["state"] for item in found["items"]} == {"ok", "warn"}
    assert not found["runnable"]
    assert any("still running" in item["why"] for item in found["items"])


def test_an_empty_recipe_is_not_runnable_and_scores_nothing():
    found = preflight({}, Surroundings())
    assert (found["score"], found["runnable"]) == (0, False)


def test_what_the_capture_says_it_missed_is_listed():
    found = preflight(changed("environment.gaps", [{"what": "conda", "why": "no conda here", "mend": "install it"}]), STORED)
    assert {"section": "environment", "what": "conda", "state": "warn", "why": "no conda here", "mend": "install it"} in found["items"]


def test_unseeded_with_captured_random_state_is_fine():
    found = preflight({**WHOLE, "numerics": {**WHOLE["numerics"], "seeds": {}, "rng": {"0": {"python": "blake3:r"}}}}, STORED)
    assert found["score"] == 100


def test_what_is_missing_comes_first():
    states = [item["state"] for item in preflight(changed("numerics.seeds", {}), STORED)["items"]]
    assert states == sorted(states, key=["missing", "warn", "ok"].index)


def test_what_blocks_comes_before_what_is_only_missing():
    recipe = changed("numerics.seeds", {})
    recipe["command"]["argv"] = []
    assert [item["what"] for item in preflight(recipe, STORED)["items"]][:2] == ["command recorded", "seeds set"]
