"""What differs between two recipes, by stable names."""

import copy

from tracker.domain.facts import differences, facts, flatten

RECIPE = {
    "command": {
        "argv": ["train.py", "--data", "/home/a/proj/data/x.csv", "--lr", "0.1"],
        "executable": "/home/a/venv/bin/python",
        "python": "3.11.7",
        "cwd": "/home/a/proj",
        "cwd_in_root": "",
        "entry": {"kind": "script", "name": "train.py", "path": "/home/a/proj/train.py", "path_in_root": "train.py"},
        "launcher": None,
        "world_size": 1,
        "env": {
            "OMP_NUM_THREADS": "1",
            "HOME": "/home/a",
            "MASTER_PORT": "2",
            "ENCORE_RUN_ID": "x",
            "CUDA_VISIBLE_DEVICES": "0",
            "MY_FLAG": "a",
        },
    },
    "source": {"root": "/home/a/proj", "tree": "blake3:1", "git": {"commit": "c"}},
    "environment": {
        "python": {"version": "3.11.7", "implementation": "CPython", "prefix": "/home/a/venv", "base_prefix": "/usr"},
        "packages": [{"name": "NumPy", "version": "2.0"}, {"name": "rich", "version": "13"}, {"name": "pip", "version": "23"}],
        "platform": {"system": "Linux", "machine": "x86_64", "libc": "glibc 2.36"},
    },
    "data": {"inputs": [{"path": "/home/a/proj/data/x.csv", "in_root": "data/x.csv", "digest": "blake3:d", "strength": "full"}]},
    "numerics": {
        "threads": {"torch_intra": 1, "affinity": [0, 1]},
        "determinism": {"cudnn_benchmark": False},
        "seeds": {"torch": 0},
        "rng": {"0": {"python": "blake3:r"}},
    },
    "hardware": {"host": "a", "kernel": "5", "cpu": {"model": "X", "cores": 2}, "gpus": [{"model": "G", "uuid": "1", "driver": "5"}]},
}


def moved():
    """The same recipe as a worker captures it: in its own folders, on its own host, with its own ids."""
    recipe = copy.deepcopy(RECIPE)
    text = recipe["command"]
    text["argv"] = ["/job/1/source/train.py", "--data", "/job/1/source/data/x.csv", "--lr", "0.1"]
    text.update(cwd="/job/1/source", executable="/cache/env/bin/python")
    text["env"].update({"HOME": "/job/1/home", "MASTER_PORT": "9", "ENCORE_RUN_ID": "y", "CUDA_VISIBLE_DEVICES": "3"})
    recipe["source"]["root"] = "/job/1/source"
    recipe["environment"]["python"].update(prefix="/cache/env")
    recipe["environment"]["packages"].pop()
    recipe["numerics"]["threads"]["affinity"] = [4, 5]
    recipe["hardware"].update(host="b", gpus=[{"model": "G", "uuid": "2", "driver": "5"}])
    recipe["data"]["inputs"][0]["path"] = "/job/1/source/data/x.csv"
    return recipe


def named(*args, **kwargs):
    return {difference.fact: difference for difference in differences(*args, **kwargs)}


def test_a_recipe_does_not_differ_from_itself():
    assert differences(RECIPE, copy.deepcopy(RECIPE)) == []


def test_what_must_differ_in_a_job_is_no_fact():
    assert set(named(RECIPE, moved())) == {"env.CUDA_VISIBLE_DEVICES"}
    assert not named(RECIPE, moved())["env.CUDA_VISIBLE_DEVICES"].numeric


def test_each_kind_of_change_has_its_stable_name():
    other = moved()
    other["command"]["env"].update({"OMP_NUM_THREADS": "2", "MY_FLAG": "b"})
    other["command"]["argv"][-1] = "0.2"
    other["command"]["world_size"] = 2
    other["environment"]["packages"] = [{"name": "numpy", "version": "2.1"}, {"name": "rich", "version": "14"}]
    other["environment"]["python"]["version"] = "3.12.1"
    other["numerics"]["threads"].update(torch_intra=2, affinity=[1])
    other["numerics"]["seeds"]["torch"] = 1
    other["numerics"]["determinism"]["cudnn_benchmark"] = True
    other["hardware"]["cpu"]["model"] = "Y"
    other["hardware"]["gpus"][0]["driver"] = "6"
    other["data"]["inputs"][0]["digest"] = "blake3:e"
    config = ({"lr": 1, "m": {"n": 1}}, {"lr": 2, "m": {"n": 3}})
    found = named(RECIPE, other, config=config, files=({"train.py": "1"}, {"train.py": "2"}))
    numeric = {name for name, difference in found.items() if difference.numeric}
    assert numeric == {
        "env.OMP_NUM_THREADS",
        "command.argv",
        "command.world_size",
        "package.numpy",
        "python.version",
        "threads.torch_intra",
        "threads.affinity",
        "seeds.torch",
        "determinism.cudnn_benchmark",
        "hardware.cpu.model",
        "hardware.gpu.0.driver",
        "data.data/x.csv",
        "config.lr",
        "config.m.n",
        "source.train.py",
    }
    assert set(found) - numeric == {"package.rich", "env.MY_FLAG", "env.CUDA_VISIBLE_DEVICES"}
    assert (found["config.m.n"].was, found["config.m.n"].now) == (1, 3)


def test_overrides_come_first_and_count_as_numeric():
    found = differences(
        RECIPE,
        moved(),
        config=({"seed": 0}, {"seed": 1}),
        overrides={"config": {"seed": 1}, "env": {"MY_FLAG": "b"}, "files": {"a.py": "x"}},
    )
    assert [d.fact for d in found if d.override] == ["config.seed", "env.MY_FLAG", "source.a.py"]
    assert found[0].was == 0
    assert found[0].now == 1
    assert all(d.numeric for d in found[:3])


def test_an_override_to_the_same_value_is_no_difference():
    assert differences(RECIPE, RECIPE, config=({"seed": 0}, {"seed": 0}), overrides={"config": {"seed": 0}}) == []


def test_the_worker_s_check_of_the_source_rules_over_a_second_capture():
    files = ({"train.py": "1"}, {"train.py": "1", "out/log": "2"})
    assert named(RECIPE, RECIPE, files=files).keys() == {"source.out/log"}
    assert not named(RECIPE, RECIPE, files=files, evidence={"source": {"equal": True}})
    assert named(RECIPE, RECIPE, evidence={"source": {"equal": False, "tree": "blake3:2"}}).keys() == {"source.tree"}


def test_data_that_the_worker_found_changed_are_named_by_their_path():
    evidence = {"data": [{"path": "/data/y.csv", "expected": "blake3:1", "found": "blake3:2", "equal": False, "how": "in place"}]}
    assert named(RECIPE, RECIPE, evidence=evidence).keys() == {"data./data/y.csv"}


def test_a_section_that_was_not_captured_is_silent():
    assert differences(RECIPE, {}) == []
    assert differences({}, RECIPE) == []


def test_broken_recipes_do_not_break_it():
    assert (
        facts({"command": None, "environment": {"packages": [{}]}, "numerics": {"threads": None}, "hardware": {}, "data": {"inputs": None}})
        is not None
    )
    assert differences({"command": "x"}, {"data": {"inputs": [{}]}}) == []


def test_flatten_dots_the_path_and_keeps_lists_whole():
    assert flatten({"a": {"b": [1, 2]}, "c": None}) == {"a.b": [1, 2], "c": None}
