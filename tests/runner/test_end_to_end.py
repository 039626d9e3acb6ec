"""The proof that counts: a tracked run of a repository, played again by a real worker while the original is out of the way."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import urllib.request
from pathlib import Path

import pytest

from runner.environments.venv import uv

ROOT = Path(__file__).parents[2]
ENCORE = [sys.executable, "-c", "import sys; from sdk._cli import main; sys.exit(main())"]
SCRIPT = """
import argparse, os, random
import sdk, helper
parser = argparse.ArgumentParser()
parser.add_argument("--seed", type=int)
parser.add_argument("--data")
options = parser.parse_args()
if options.seed is not None:
    random.seed(options.seed)
sdk.init(project="runner-proof", config={"seed": options.seed})
text = open(options.data).read()
os.makedirs("out", exist_ok=True)
loss = 1.0
for step in range(20):
    loss = helper.smaller(loss) + random.random() * 1e-3 + len(text) * 1e-6
    sdk.log({"train/loss": loss}, step=step)
open("out/model", "w").write(str(loss))
sdk.finish()
"""


class House:
    """One Encore of its own, and a user's repository and environment beside it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(("ENCORE_", "DJANGO_"))} | {"ENCORE_HOME": str(folder / "home")}
        command = [*ENCORE, "up", "--home", str(folder / "home"), "--port", "0", "--json"]
        log = (folder / "up.log").open("w")
        self.up = subprocess.Popen(command, env=self.env, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True)
        timer = threading.Timer(240, self.up.kill)
        timer.start()
        line = self.up.stdout.readline()
        timer.cancel()
        assert line, (folder / "up.log").read_text()
        self.told = json.loads(line)

    def encore(self, *arguments: str, timeout: float = 280):
        return subprocess.run([*ENCORE, *arguments], env=self.env, cwd=ROOT, capture_output=True, text=True, timeout=timeout)

    def log(self, run: str) -> str:
        request = urllib.request.Request(
            f"{self.told['url']}/api/v1/runs/{run}/logs?limit=1000", headers={"Authorization": f"Bearer {self.told['token']}"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return "".join(each["text"] for each in json.load(answer)["results"] if each["stream"] == "stdout")

    def close(self) -> None:
        self.up.send_signal(signal.SIGINT)
        self.up.wait(60)
        self.up.stdout.close()


@pytest.fixture(scope="module")
def house():
    # Not pytest's own folder: data below the temporary folder is scratch to the capture.
    folder = Path(tempfile.mkdtemp(prefix="encore-runner-", dir="/var/tmp"))
    house = House(folder)
    yield house
    house.close()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def run(house):
    """The id of a finished run; afterwards its repository and environment are renamed away."""
    repository, data = house.folder / "repository", house.folder / "data"
    environment = house.folder / "environment"
    subprocess.run([uv(), "venv", "-q", "--python", sys.executable, environment], check=True)
    from runner.environments import pip_settings

    install = [uv(), "pip", "install", "-q", "--python", environment / "bin/python", ROOT, "six==1.17.0"]
    subprocess.run(install, check=True, env=os.environ | pip_settings.uv_environment())
    repository.mkdir()
    data.mkdir()
    (data / "small.txt").write_text("data " * 100)
    (repository / "train.py").write_text(SCRIPT)
    (repository / "helper.py").write_text("import six\ndef smaller(x): return x * 0.9\n")
    (repository / "plain.py").write_text("import random\nprint('untouched', random.random())\n")
    for command in (["init", "-q"], ["add", "-A"], ["-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "-qm", "x"]):
        subprocess.run(["git", *command], cwd=repository, check=True)
    (repository / "helper.py").write_text("import six\ndef smaller(x): return x * 0.8  # changed and not committed\n")
    command = [environment / "bin/python", "train.py", "--data", str(data / "small.txt")]
    trained = subprocess.run(command, cwd=repository, env=house.env, capture_output=True, text=True, timeout=240)
    assert trained.returncode == 0, trained.stderr
    # A script with no line of ours, started by this run's own command line.
    command = [environment / "bin/encore", "run", "--project", "runner-plain", "--", environment / "bin/python", "plain.py"]
    plain = subprocess.run(command, cwd=repository, env=house.env, capture_output=True, text=True, timeout=240)
    assert plain.returncode == 0, plain.stderr
    results = json.loads(house.encore("runs", "--project", "runner-proof", "--json").stdout)["results"]
    repository.rename(house.folder / "repository-away")
    environment.rename(house.folder / "environment-away")
    return results[0]["id"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_unseeded_run_is_bit_exact_while_its_repository_and_environment_are_away(house, run):
    """Changed files, an unseeded generator and stored data included; all imports come from the job and the cache."""
    ended = house.encore("reproduce", run, "--wait", "--json")
    verdict = json.loads(ended.stdout)
    assert (ended.returncode, verdict["agreement"]) == (0, "bit_exact"), (verdict, ended.stderr)
    assert verdict["compared"]["points"] == 20
    assert verdict["like_for_like"], verdict["differences"]
    assert "0 imports from outside" in ended.stderr
    assert not (house.folder / "repository").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_stored_data_that_was_deleted_is_restored(house, run):
    """The file is back in the program's view and nowhere else."""
    path = house.folder / "data" / "small.txt"
    path.rename(path.with_suffix(".away"))
    try:
        ended = house.encore("reproduce", run, "--wait", "--json")
        assert json.loads(ended.stdout)["agreement"] == "bit_exact", ended.stderr
        assert not path.exists()
    finally:
        path.with_suffix(".away").rename(path)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_untouched_script_is_played_again_through_the_same_bootstrap(house, run):
    """It logs no metric, so there is nothing to compare; but its console is there, with the random state put back."""
    (original,) = json.loads(house.encore("runs", "--project", "runner-plain", "--json").stdout)["results"]
    ended = house.encore("reproduce", original["id"], "--wait", "--json")
    verdict = json.loads(ended.stdout)
    assert (ended.returncode, verdict["execution"], verdict["agreement"]) == (7, "completed", "not_comparable"), (verdict, ended.stderr)
    said = [house.log(each) for each in (original["id"], verdict["run"])]
    assert said[0].startswith("untouched 0.")
    assert said[0] == said[1]
