"""Modes, surroundings that are broken, and names that shadow: training goes on as if nothing were there."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from helpers import ROOT, Shop, until
from server import Server

TRAIN = """
    import sdk
    run = sdk.init(project="p", config={"lr": 0.1, "seed": 1}, name="n", tags=["a"])
    for i in range(20): sdk.log({"loss": 1.0 / (i + 1)}, step=i)
    sdk.summary["best"] = 0.5
    print("trained", run.id)
"""


def test_disabled_writes_and_sends_nothing(shop: Shop, server: Server) -> None:
    """ENCORE_MODE=disabled: the same program, no file, no process, no request."""
    done = shop.run(
        TRAIN + "    assert sdk.config.lr == 0.1\n    sdk.alert('a'); sdk.define('x', goal='min'); sdk.seed(3)\n",
        server,
        ENCORE_MODE="disabled",
    )
    assert done.returncode == 0, done.stderr
    assert not shop.journal.exists()
    assert not server.requests


def test_offline_keeps_a_whole_run_for_later(shop: Shop, server: Server) -> None:
    """Points and recipe lie in the folder; nothing is sent, by this run or by the next one's sender."""
    done = shop.run(TRAIN, server, ENCORE_MODE="offline")
    assert done.returncode == 0, done.stderr
    assert until(lambda: not shop.senders())
    assert not server.requests
    (writer,) = shop.writers()
    about = json.loads((writer / "writer.json").read_text())
    assert (about["mode"], about["run"]["name"], about["run"]["tags"]) == ("offline", "n", ["a"])
    assert until(lambda: any((folder / "blobs").iterdir() for folder in shop.writers("node")))


def test_without_a_server_a_run_is_kept_and_says_so(shop: Shop) -> None:
    """No ENCORE_URL, no login: one line, no wait."""
    done = shop.run(TRAIN)
    assert done.returncode == 0
    assert "encore sync" in done.stderr
    assert shop.writers()


def test_credentials_come_from_the_home_and_go_nowhere_else(shop: Shop, server: Server, down: Server) -> None:
    """`encore login` remembers, mode 600; another server does not get that token."""
    (shop.folder / "token").write_text("secret-token-of-ada\n")
    logged = shop.encore("login", server.url, "--token-file", str(shop.folder / "token"))
    assert logged.returncode == 0, logged.stderr
    stored = shop.home / "credentials.json"
    assert stored.stat().st_mode & 0o777 == 0o600
    assert shop.run(TRAIN).returncode == 0
    assert until(lambda: len(server.points("loss")) == 20)
    from sdk import _settings

    assert _settings.credentials({"ENCORE_HOME": str(shop.home), "ENCORE_URL": down.url}) == (down.url, None)
    assert _settings.credentials({"ENCORE_HOME": str(shop.home)}) == (server.url, "secret-token-of-ada")


def test_the_environment_names_project_run_group_and_tags(shop: Shop, server: Server) -> None:
    """ENCORE_RUN_ID, NAME, GROUP, TAGS, PROJECT; arguments come first; the project defaults to the repository's folder."""
    program = "import sdk; sdk.init(); sdk.log({'x': 1.0})"
    done = shop.run(
        program, server, ENCORE_RUN_ID="b" * 26, ENCORE_NAME="night", ENCORE_GROUP="g", ENCORE_TAGS="a, b", ENCORE_PROJECT="proj"
    )
    assert done.returncode == 0, done.stderr
    run = next(iter(server.writers.values()))["run"]
    assert (run["id"], run["name"], run["group"], run["tags"], run["project"]) == ("b" * 26, "night", "g", ["a", "b"], "proj")
    (shop.work / ".git").mkdir()
    server.writers.clear()
    shop.run(program, server)
    assert next(iter(server.writers.values()))["run"]["project"] == "work"


def test_a_users_folder_of_our_name_shadows_no_part_of_the_sender(shop: Shop, server: Server) -> None:
    """Folders `sdk`, `json`, `zlib`… beside the script: `import encore as sdk` by another path works, and the sender is whole."""
    for name in ("json", "http", "blake3"):
        (shop.work / f"{name}_").mkdir()
    (shop.work / "elsewhere").mkdir()
    for name in ("sdk.py", "json.py", "http.py"):
        (shop.work / "elsewhere" / name).write_text("raise RuntimeError('the wrong module')\n")
    program = """
        import os, sys, sdk
        os.chdir("elsewhere")
        sys.path.insert(0, os.getcwd())
        os.environ["PYTHONPATH"] = os.getcwd()
        sdk.init(project="p"); sdk.log({"loss": 1.0})
    """
    done = shop.run(program, server)
    assert done.returncode == 0, done.stderr
    assert until(lambda: server.finishes())
    assert not list(shop.journal.glob("*/sender.log")) or "wrong module" not in "".join(
        p.read_text() for p in shop.journal.glob("*/sender.log")
    )


def test_doctor_names_the_shadowing_folder(shop: Shop, server: Server) -> None:
    """A folder `sdk` in the working directory is named; a healthy place is healthy."""
    assert shop.encore("doctor", server=server).returncode == 0
    (shop.work / "sdk").mkdir()
    (shop.work / "sdk" / "__init__.py").write_text("")
    code = f"import sys; sys.path[:0] = [{str(ROOT)!r}]; from sdk._cli import main; sys.exit(main())"
    import subprocess

    done = subprocess.run(
        [sys.executable, "-c", code, "doctor"], cwd=shop.work, env=shop.environment(server), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1
    assert str(shop.work / "sdk") in done.stdout


@pytest.mark.parametrize("readable_tmp", [True, False])
def test_a_journal_that_cannot_be_written_costs_no_training(shop: Shop, readable_tmp: bool) -> None:
    """A file stands where the journal should be: the temporary folder serves; without that too, training goes on and says it once."""
    (shop.home / "sdk").write_text("not a folder")
    spare = shop.folder / "tmp"
    spare.mkdir()
    if not readable_tmp:
        (spare / f"encore-{os.getuid()}").write_text("nor this")
    done = shop.run(TRAIN, None, ENCORE_MODE="offline", ENCORE_LOCAL=str(spare))
    assert done.returncode == 0, done.stderr
    assert "trained" in done.stdout
    assert bool(list(spare.glob("encore-*/sdk/*/*/writer.json"))) == readable_tmp
    assert ("instead" in done.stderr) == readable_tmp
    assert ("nothing of this run is kept" in done.stderr) != readable_tmp


def test_a_disk_that_fills_up_costs_points_but_no_training(shop: Shop, server: Server) -> None:
    """No new segment can be had (RLIMIT_FSIZE): the loss is counted, said once and told with the finish event; what was kept arrives."""
    program = """
        import resource, sdk
        run = sdk.init(project="p")
        data = {f"k{i}": float(i) for i in range(1000)}
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        for i in range(1500): sdk.log(data, step=i)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        print(sum(run.writer.dropped.values()))
    """
    done = shop.run(program, server)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0
    assert done.stderr.count("training goes on") == 1
    assert until(lambda: server.finishes())
    (data,) = server.finishes().values()
    kept = len(server.points("k0"))
    assert kept > 0
    assert sum(data["dropped"].values()) + kept * 1000 == 1_500_000


def test_strict_mode_raises_in_the_program(shop: Shop) -> None:
    """ENCORE_STRICT=1."""
    done = shop.run("import sdk\nsdk.init(project='p')\nsdk.log({'x': 'text'})", None, ENCORE_MODE="offline", ENCORE_STRICT="1")
    assert done.returncode == 1
    assert "ValueRefused" in done.stderr


def test_a_rerun_lays_its_values_over_the_scripts(shop: Shop, server: Server) -> None:
    """ENCORE_RERUN: config wins over what the script passes, also in the script's own dict; what nobody reads is reported."""
    rerun = shop.folder / "rerun.json"
    rerun.write_text(
        json.dumps(
            {
                "format": 1,
                "run": "c" * 26,
                "job_folder": str(shop.folder),
                "config": {"seed": 7, "model.layers": 3, "unused": 1, "lr": 1},
                "rng": None,
                "redirect": {},
            }
        )
    )
    program = """
        import sdk
        mine = {"lr": 0.1, "seed": 1, "model": {"layers": 12, "width": 4}}
        run = sdk.init(project="p", config=mine)
        print(mine["seed"], run.config.seed, sdk.config["model"], repr(mine["lr"]))
        sdk.config.lr = 0.5
        sdk.log({"x": 1.0})
    """
    done = shop.run(program, server, ENCORE_RERUN=str(rerun))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "7 7 {'layers': 3, 'width': 4} 1.0"
    assert until(lambda: server.finishes())
    assert next(iter(server.writers.values()))["run"]["id"] == "c" * 26
    assert [doc["data"]["key"] for doc in server.docs("event", "override_not_applied")] == ["unused"]
    assert [doc["value"] for doc in server.docs("config")][-1] == {"lr": 1.0}


def test_an_override_the_script_cannot_see_is_reported(shop: Shop, server: Server) -> None:
    """A literal passed to init and a variable of its own: the rerun says that the value was not applied."""
    rerun = shop.folder / "rerun.json"
    rerun.write_text(
        json.dumps({"format": 1, "run": "d" * 26, "job_folder": str(shop.folder), "config": {"lr": 0.9}, "rng": None, "redirect": {}})
    )
    shop.run("import sdk\nlr = 0.1\nsdk.init(project='p', config={'lr': lr})\nsdk.log({'lr': lr})", server, ENCORE_RERUN=str(rerun))
    assert until(lambda: server.docs("event", "override_not_applied"))


def test_the_face_is_complete_and_small() -> None:
    """What the documents promise is there; everything exported exists."""
    import encore
    import sdk

    assert encore is sdk
    assert all(hasattr(sdk, name) for name in sdk.__all__)
    assert {"init", "log", "config", "summary", "define", "finish", "alert", "seed"} <= set(sdk.__all__)
    assert len(Path(sdk.__file__).read_text().splitlines()) < 50


def test_logging_without_a_run_is_harmless(shop: Shop) -> None:
    """Before init and after finish: said once, nothing raised; a name imported before init works after it."""
    program = """
        from sdk import log
        import sdk
        log({"x": 1}); log({"x": 1}); sdk.config.lr = 3
        run = sdk.init(project="p", mode="offline")
        log({"x": 2.0}, step=4)
        assert run.writer.last_step == 4
        sdk.finish(); sdk.finish()
        log({"x": 3}); run.log({"x": 4})
        assert run.writer.dropped == {"after finish": 1}
    """
    done = shop.run(program)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("sdk.log() before sdk.init()") == 1


def test_nothing_heavy_is_imported(shop: Shop) -> None:
    """No numpy, torch, django, boto3, psutil, ssl in the trainer by our doing; the journal's first file is there when init returns."""
    program = """
        import sys, sdk
        run = sdk.init(project="p", mode="offline")
        sdk.log({"x": 1.0})
        print([name for name in ("numpy", "torch", "django", "boto3", "http.client", "ssl", "psutil") if name in sys.modules])
    """
    assert shop.run(program).stdout.strip() == "[]"
