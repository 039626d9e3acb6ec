"""A table of facts: for each, the world is changed and the recipe must say so, with the right value before and after.

The programs run for real: SDK, journal, sender; only the server is absent (offline). Worlds are played once and shared by their facts.
"""

# ruff: noqa: E501 - tables read best with a row a line
from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from .world import World

TORCH = """\
import random, sys
import numpy
import torch
import sdk

changed = "--changed" in sys.argv
random.seed(1 if changed else 0)
numpy.random.seed(42 if changed else 7)
torch.manual_seed(6 if changed else 5)
if changed:
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = False
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)
else:
    torch.set_num_threads(2)
    torch.set_num_interop_threads(2)
sdk.init(project="facts")
if changed:
    torch.backends.cudnn.benchmark = False
sdk.finish()
"""


def _digest(data: bytes) -> str:
    return "blake3:" + blake3(data).hexdigest()


def _get(recipe: dict[str, Any], path: str) -> Any:
    value: Any = recipe
    for name in path.split("."):
        value = value[int(name)] if isinstance(value, list) else value.get(name) if value is not None else None
    return value


def _package(name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda recipe: next((each for each in recipe["environment"]["packages"] if each["name"] == name), None)


def _input(name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda recipe: next((each for each in recipe["data"]["inputs"] if Path(each["path"]).name == name), None)


class Worlds:
    """Plays each named world once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.played: dict[str, dict[str, Any]] = {}
        self.facts: dict[str, Any] = {}

    def __getitem__(self, name: str) -> dict[str, Any]:
        if name not in self.played:
            world = World(self.folder / name)
            self.played[name] = getattr(self, name)(world)
        return self.played[name]

    def plain(self, world: World) -> dict[str, Any]:
        self.facts["first"] = world.git("rev-parse", "HEAD")
        return world.play("--lr", "0.1", env={"LANG": "C.UTF-8"})

    def command(self, world: World) -> dict[str, Any]:
        world.write("pkg/__init__.py", "")
        shutil.copy(world.root / "train.py", world.root / "pkg" / "train.py")
        (world.root / "sub").mkdir()
        world.write("sub/data.csv", "1\n")
        world.commit("package")
        return world.play(
            "--lr", "0.2", "--seed", "3", "--note", "x",
            start=["-O", "-X", "utf8", "-m", "pkg.train"], cwd=world.root / "sub", before=lambda: os.umask(0o077),
            env={
                "PYTHONPATH": str(world.root), "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "2", "CUBLAS_WORKSPACE_CONFIG": ":4096:8", "NVIDIA_TF32_OVERRIDE": "0",
                "NCCL_DEBUG": "WARN", "CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false", "LANG": "C", "MY_OPTION": "fast", "HF_TOKEN": "correct-horse-9",
                "MKL_NUM_THREADS": "1", "UNRELATED": "1",
            },
        )  # fmt: skip

    def source(self, world: World) -> dict[str, Any]:
        world.git("remote", "add", "origin", "https://ann:" + "pw-of-ann-1@" + "example.com/lab/work.git")
        world.git("update-ref", "refs/remotes/origin/main", "HEAD")
        world.git("checkout", "-q", "-b", "feature")
        world.write("second.py", "x = 1\n")
        world.commit("second")
        self.facts["second"] = world.git("rev-parse", "HEAD")
        world.write("train.py", (world.root / "train.py").read_text() + "# changed\n")
        world.write("second.py", "x = 2\n")
        world.git("add", "second.py")
        world.write("third.py", "y = 3\n")
        os.chmod(world.root / "train.py", 0o755)
        world.write("big.bin", os.urandom(11 << 20))
        world.write("config.py", "API_KEY = 'ghp_" + "a1B2c3D4e5" * 4 + "'\n")
        self.facts["tree of source"] = len(list(world.root.glob("*")))
        recipe = world.play("--lr", "0.1")
        self.facts["manifest"] = {each["path"]: each for each in world.manifest(recipe)["files"]}
        return recipe

    def environment(self, world: World) -> dict[str, Any]:
        site = world.folder / "other" / "site-packages"
        for name, version, direct in (
            ("facty", "1.2.3", None),
            ("vcsy", "0.1", {"url": "https://u:secret-pw-9@example.com/v.git", "vcs_info": {"vcs": "git", "commit_id": "c" * 40}}),
        ):
            info = site / f"{name}-{version}.dist-info"
            info.mkdir(parents=True)
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n\n")
            (info / "INSTALLER").write_text("pip\n")
            (info / "RECORD").write_text(f"{name}.py,sha256=x,1\n")
            if direct:
                (info / "direct_url.json").write_text(json.dumps(direct))
        project = world.folder / "library"
        (project / "src" / "locally").mkdir(parents=True)
        (project / "src" / "locally" / "__init__.py").write_text("HERE = 1\n")
        info = site / "locally-2.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: locally\nVersion: 2.0\n\n")
        (info / "direct_url.json").write_text(json.dumps({"url": project.as_uri(), "dir_info": {"editable": True}}))
        world.write("requirements.txt", "facty==1.2.3\n")
        world.write("train.py", "import locally\n" + (world.root / "train.py").read_text())
        world.commit("requirements")
        recipe = world.play(
            env={"PYTHONPATH": f"{site}:{project / 'src'}", "ENCORE_IMAGE": "registry/train:3", "APPTAINER_CONTAINER": "x.sif"}
        )
        self.facts["mounts"] = world.manifest(recipe)["mounts"]
        self.facts["environment files"] = [each["path"] for each in world.manifest(recipe)["files"]]
        self.facts["project"] = str(project)
        self.facts["wheel"] = world.blob(recipe["environment"]["sdk"]["wheel"])
        return recipe

    def python(self, world: World) -> dict[str, Any]:
        other = world.folder / "venv"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(other)], check=True)
        site = next(other.glob("lib/python*/site-packages"))
        (site / "borrowed.pth").write_text(
            "\n".join(each for each in sys.path if each.endswith("site-packages")) + f"\n{Path(__file__).parents[3]}\n"
        )
        launcher = [str(other / "bin" / "python"), "train.py"]
        return world.play(start=["-c", f"import os; os.execv({launcher[0]!r}, {launcher!r})"])

    def data(self, world: World) -> dict[str, Any]:
        outside = world.folder / "outside" / "table.csv"
        outside.parent.mkdir()
        outside.write_bytes(b"a,b\n" * 1000)
        cache = world.folder / "cache" / "hub" / "weights.bin"
        cache.parent.mkdir(parents=True)
        cache.write_bytes(b"w" * 5000)
        world.write(".gitignore", "ignored.csv\n")
        world.write("ignored.csv", "3,4\n")
        world.write(
            "train.py",
            (world.root / "train.py")
            .read_text()
            .replace("sdk.log(", f"open({str(cache)!r}, 'rb').read(); open('ignored.csv').read(); sdk.log("),
        )
        world.commit("reads more")
        result = world.folder / "results" / "out.txt"
        result.parent.mkdir()
        self.facts["outside"], self.facts["result"] = str(outside), str(result)
        return world.play(
            "--data", str(outside), "--out", str(result), env={"ENCORE_STORE_LIMIT": "100", "HF_HOME": str(world.folder / "cache")}
        )

    def torch(self, world: World) -> dict[str, Any]:
        world.write("train.py", TORCH)
        return world.play(env={"OMP_NUM_THREADS": "2"})

    def torch_changed(self, world: World) -> dict[str, Any]:
        world.write("train.py", TORCH)
        cores = sorted(os.sched_getaffinity(0))
        return world.play("--changed", env={"OMP_NUM_THREADS": "1"}, before=lambda: os.sched_setaffinity(0, cores[:1]))

    def torchrun(self, world: World) -> dict[str, Any]:
        self.facts["torchrun"] = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--nnodes", "1", "train.py"]
        return world.play(start=["-m", "torch.distributed.run", "--nproc-per-node", "2", "--nnodes", "1", "train.py"], ranks=2)

    def notgit(self, world: World) -> dict[str, Any]:
        shutil.rmtree(world.root / ".git")
        world.write("picture.bin", b"\0" * 5000)
        return world.play()

    def code(self, world: World) -> dict[str, Any]:
        return world.play(start=["-c", "import sdk; sdk.init(project='facts'); sdk.finish()"])


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Worlds:
    return Worlds(tmp_path_factory.mktemp("worlds"))


def _is(expected: Any) -> Callable[[Any, Worlds], bool]:
    return lambda value, worlds: value == expected


ABSENT = _is(None)
ANY = lambda value, worlds: value is not None  # noqa: E731

# (the fact: its path in the recipe or how it is read, the changed world, before, after[, the world before])
FACTS: list[tuple[Any, ...]] = [
    ("command.argv", "command", ["train.py", "--lr", "0.1"], lambda v, w: v[1:] == ["--lr", "0.2", "--seed", "3", "--note", "x"]),
    ("command.interpreter_options", "command", [], ["-O", "-X", "utf8"]),
    ("command.cwd", "command", lambda v, w: v.endswith("/plain/repository"), lambda v, w: v.endswith("/command/repository/sub")),
    ("command.cwd_in_root", "command", ".", "sub"),
    ("command.entry.kind", "command", "script", "module"),
    ("command.entry.name", "command", "train.py", "pkg.train"),
    ("command.entry.path_in_root", "command", "train.py", "pkg/train.py"),
    ("command.entry.code", "code", None, "import sdk; sdk.init(project='facts'); sdk.finish()"),
    ("command.executable", "python", lambda v, w: v == sys.executable, lambda v, w: v.endswith("/venv/bin/python")),
    ("command.python", "plain", platform.python_version(), platform.python_version()),
    ("command.umask", "command", lambda v, w: v != "0077", "0077"),
    ("command.env.PYTHONHASHSEED", "command", None, "0"),
    ("command.env.OMP_NUM_THREADS", "command", None, "2"),
    ("command.env.CUBLAS_WORKSPACE_CONFIG", "command", None, ":4096:8"),
    ("command.env.NVIDIA_TF32_OVERRIDE", "command", None, "0"),
    ("command.env.NCCL_DEBUG", "command", None, "WARN"),
    ("command.env.CUDA_VISIBLE_DEVICES", "command", None, ""),
    ("command.env.TOKENIZERS_PARALLELISM", "command", None, "false"),
    ("command.env.LANG", "command", "C.UTF-8", "C"),
    ("command.env.MY_OPTION", "command", None, "fast"),
    ("command.env.HF_TOKEN", "command", None, "${secret:HF_TOKEN}"),
    ("command.env_masked", "command", [], ["HF_TOKEN"]),
    ("command.unset", "command", lambda v, w: {"PYTHONHASHSEED", "OMP_NUM_THREADS", "MY_OPTION"} <= set(v), lambda v, w: not {"PYTHONHASHSEED", "MY_OPTION"} & set(v)),
    ("command.pythonpath", "command", [], lambda v, w: len(v) == 1 and v[0].endswith("/command/repository")),
    ("command.launcher", "torchrun", None, lambda v, w: v["kind"] == "torchrun" and v["argv"][1:] == w.facts["torchrun"]),
    ("command.launcher.nproc_per_node", "torchrun", None, 2),
    ("command.world_size", "torchrun", 1, 2),
    ("source.root", "command", lambda v, w: v.endswith("/plain/repository"), lambda v, w: v.endswith("/command/repository")),
    ("source.git.commit", "source", lambda v, w: v == w.facts["first"], lambda v, w: v == w.facts["second"]),
    ("source.git.branch", "source", "main", "feature"),
    ("source.git.remote", "source", None, "https://example.com/lab/work.git"),
    ("source.git.dirty", "source", False, True),
    ("source.git.unpushed", "source", None, 1),
    ("source.git", "notgit", ANY, None),
    ("source.files", "source", 2, 4),
    ("source.left_out", "source", [], lambda v, w: {each["path"]: each["why"][:4] for each in v} == {"big.bin": "it i", "config.py": "a se"}),
    ("source.tree", "source", ANY, lambda v, w: v != w["plain"]["source"]["tree"]),
    ("source.bytes", "source", ANY, lambda v, w: v != w["plain"]["source"]["bytes"]),
    (lambda r: [g["what"] for g in r["source"].get("gaps", [])], "source", [], lambda v, w: "config.py" in v),
    ("environment.python.prefix", "python", lambda v, w: v == sys.prefix, lambda v, w: v.endswith("/python/venv")),
    ("environment.python.base_prefix", "python", lambda v, w: v == sys.base_prefix, lambda v, w: v == sys.base_prefix),
    (_package("facty"), "environment", None, lambda v, w: v["version"] == "1.2.3" and v["from"]["kind"] == "index" and v["from"]["hash"]),
    (_package("vcsy"), "environment", None, lambda v, w: v["from"]["kind"] == "vcs" and v["from"]["commit"] == "c" * 40 and "secret-pw" not in str(v)),
    (_package("locally"), "environment", None, lambda v, w: v["from"]["kind"] == "editable"),
    (lambda r: len(r["environment"]["packages"]), "environment", ANY, lambda v, w: v == len(w["plain"]["environment"]["packages"]) + 3),
    ("environment.lock", "environment", ANY, lambda v, w: v != w["plain"]["environment"]["lock"]),
    ("environment.files", "environment", [], [{"path": "requirements.txt", "digest": _digest(b"facty==1.2.3\n")}]),
    ("environment.container.image", "environment", None, "registry/train:3"),
    (_input("data.csv"), "data", lambda v, w: v["in_root"] == "data.csv" and v["stored"] and v["digest"] == _digest(b"1,2\n"), None),
    (_input("table.csv"), "data", None, lambda v, w: (v["path"], v["in_root"], v["bytes"], v["stored"], v["strength"], v["by"], v["digest"]) == (w.facts["outside"], None, 4000, False, "full", "open", _digest(b"a,b\n" * 1000))),
    (_input("ignored.csv"), "data", None, lambda v, w: v["in_root"] == "ignored.csv" and v["stored"] is True),
    ("data.caches", "data", [], lambda v, w: [each["kind"] for each in v] == ["huggingface"]),
    (lambda r: [each["path"] for each in r["data"]["outputs"]], "data", [], lambda v, w: v == [w.facts["result"]]),
    ("hyper.argparse", "command", lambda v, w: v["lr"] == 0.1 and v["seed"] == 0, lambda v, w: v["lr"] == 0.2 and v["seed"] == 3),
    ("hyper.flags", "command", {"lr": 0.1}, {"lr": 0.2, "seed": 3, "note": "x"}),
    ("numerics.seeds.random", "command", 0, 3),
    ("numerics.rng.0.python", "command", ANY, lambda v, w: v != w["plain"]["numerics"]["rng"]["0"]["python"]),
    ("numerics.rng.1.python", "torchrun", None, ANY),
    ("numerics.rng.0.numpy", "torch", None, ANY),
    ("numerics.rng.0.torch", "torch", None, ANY),
    ("numerics.rng.0.torch", "torch_changed", ANY, lambda v, w: v != w["torch"]["numerics"]["rng"]["0"]["torch"], "torch"),
    ("numerics.seeds.numpy", "torch_changed", 7, 42, "torch"),
    ("numerics.seeds.torch", "torch_changed", 5, 6, "torch"),
    ("numerics.determinism.torch_deterministic_algorithms", "torch_changed", False, True, "torch"),
    ("numerics.determinism.cudnn_deterministic", "torch_changed", False, True, "torch"),
    ("numerics.determinism.cudnn_benchmark", "torch_changed", False, True, "torch"),
    ("numerics.determinism.cudnn_allow_tf32", "torch_changed", True, False, "torch"),
    ("numerics.determinism.float32_matmul_precision", "torch_changed", "highest", "high", "torch"),
    ("numerics.at_finish.determinism.cudnn_benchmark", "torch_changed", None, False, "torch"),
    ("numerics.determinism.hash_randomization", "command", True, False),
    ("numerics.dtypes.torch_default", "torch_changed", "float32", "float64", "torch"),
    ("numerics.threads.OMP_NUM_THREADS", "torch_changed", "2", "1", "torch"),
    ("numerics.threads.torch_intra", "torch_changed", 2, 1, "torch"),
    ("numerics.threads.torch_inter", "torch_changed", 2, 1, "torch"),
    ("numerics.threads.affinity", "torch_changed", lambda v, w: v == sorted(os.sched_getaffinity(0)), lambda v, w: v == sorted(os.sched_getaffinity(0))[:1], "torch"),
    ("numerics.loaded", "torch", [], ["numpy", "torch"]),
]  # fmt: skip


def _name(fact: tuple[Any, ...]) -> str:
    return f"{fact[0] if isinstance(fact[0], str) else 'read' + str(FACTS.index(fact))}-{fact[1]}"


@pytest.mark.parametrize("fact", FACTS, ids=[_name(each) for each in FACTS])
def test_a_changed_world_changes_the_fact(worlds: Worlds, fact: tuple[Any, ...]) -> None:
    """The recipe names the fact rightly before and after the world is changed."""
    read, changed, before, after, *plain = fact
    look = read if callable(read) else lambda recipe: _get(recipe, read)
    for world, expected in ((plain[0] if plain else "plain", before), (changed, after)):
        value = look(worlds[world])
        right = expected(value, worlds) if callable(expected) else value == expected
        assert right, f"in the world {world!r} it is {value!r}"


def test_the_recipe_of_a_plain_run_has_all_sections_and_no_errors(worlds: Worlds) -> None:
    """A run of a script in a git repository leaves a whole recipe without one error."""
    recipe = worlds["plain"]
    assert {"command", "source", "environment", "data", "numerics", "hardware", "hyper", "sdk"} <= set(recipe)
    assert recipe["sdk"]["errors"] == []
    assert recipe["hardware"]["cpu"]["cores"] == os.cpu_count()
    assert recipe["hardware"]["memory_bytes"] > 0
    assert recipe["environment"]["platform"]["machine"] == platform.machine()
    assert "encore-tracker" not in {each["name"] for each in recipe["environment"]["packages"]}


def test_states_and_modes_in_the_manifest(worlds: Worlds) -> None:
    """The manifest tells modified, staged and untracked files apart, and keeps the executable bit."""
    worlds["source"]
    manifest = worlds.facts["manifest"]
    assert {path: each["state"] for path, each in manifest.items()} == {
        "train.py": "modified",
        "second.py": "staged",
        "third.py": "untracked",
        "data.csv": "tracked",
    }
    assert manifest["train.py"]["mode"] == "100755"


def test_an_editable_install_comes_along_as_a_mount(worlds: Worlds) -> None:
    """A project installed editable outside the repository is in the manifest under a mount of its project folder."""
    worlds["environment"]
    [mount] = worlds.facts["mounts"]
    assert mount["at"] == worlds.facts["project"]
    assert mount["prefix"] + "src/locally/__init__.py" in worlds.facts["environment files"]
    assert not any(path.endswith("sdk/__init__.py") for path in worlds.facts["environment files"])


def test_the_sdk_is_stored_as_a_wheel_that_installs(worlds: Worlds, tmp_path: Path) -> None:
    """The stored wheel is the running SDK: it imports from a folder where nothing else of ours is."""
    worlds["environment"]
    shutil.unpack_archive(str(_written(tmp_path / "sdk.zip", worlds.facts["wheel"])), tmp_path / "site")
    deps = os.pathsep.join([str(tmp_path / "site"), *(each for each in sys.path if each.endswith("site-packages"))])
    told = subprocess.run(
        [sys.executable, "-S", "-c", "import sdk, encore; print(sdk.__file__, encore.__version__ == sdk.__version__)"],
        env={"PYTHONPATH": deps, "HOME": str(tmp_path)}, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert told.stdout.strip() == f"{tmp_path / 'site' / 'sdk' / '__init__.py'} True", told.stderr


def _written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_the_table_is_long_enough() -> None:
    """At least forty different facts stand in the table."""
    assert len({_name(each).rsplit("-", 1)[0] for each in FACTS}) >= 40
