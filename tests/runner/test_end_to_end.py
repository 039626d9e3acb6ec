"""The proof that counts: a tracked run of a repository, played again by a real worker while the original is out of the way."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

import psutil
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

UNTOUCHED = """
import argparse, os, sys
parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float)
parser.add_argument("--deep", action="store_true")
options = parser.parse_args()
print("untouched", __name__, options.lr, options.deep, sys.argv, "sdk" in sys.modules and sys.modules["sdk"].__file__)
"""
PRINTING = """
import random
random.seed(3)
import sdk._tensorboard.records as records, struct, os  # only its checksum: a writer of event files without tensorboard
os.makedirs("logs", exist_ok=True)
def record(data):
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", records.masked(length)) + data + struct.pack("<I", records.masked(data))
with open("logs/events.out.tfevents.1.host", "wb") as file:
    for step in range(10):
        value = b"\\x0a\\x01x\\x15" + struct.pack("<f", random.random())
        summary = b"\\x0a" + bytes([len(value)]) + value
        event = b"\\x09" + struct.pack("<d", 1.7e9 + step) + b"\\x10" + bytes([step]) + b"\\x2a" + bytes([len(summary)]) + summary
        file.write(record(event))
        print(f"step {step}: loss={random.random()}")
"""
ENDLESS = """
import os, subprocess, sys, time
import sdk
sdk.init(project="runner-proof")
sdk.log({"loss": 1.0}, step=0)
if "ENCORE_RERUN" in os.environ:  # the original ends; the rerun does not, and leaves a grandchild in a session of its own
    child = "import os, time; os.setsid(); time.sleep(1000)"
    subprocess.Popen([sys.executable, "-c", f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {child!r}])"])
    time.sleep(1000)
sdk.finish()
"""


def until(answer, seconds=200):
    """The first true answer."""
    end = time.monotonic() + seconds
    while not (found := answer()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.1)
    return found


class House:
    """One Encore of its own, and a user's repository and environment beside it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(("ENCORE_", "DJANGO_"))} | {"ENCORE_HOME": str(folder / "home")}
        self.env["ENCORE_SENDER_NICE"] = "0"
        command = [*ENCORE, "up", "--home", str(folder / "home"), "--port", "0", "--json"]
        log = (folder / "up.log").open("w")
        self.up = subprocess.Popen(command, env=self.env, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True)
        timer = threading.Timer(240, self.up.kill)
        timer.start()
        line = self.up.stdout.readline()
        timer.cancel()
        assert line, (folder / "up.log").read_text()
        self.told = json.loads(line)
        self.browser = None

    def ask(self, path: str, body: dict | None = None) -> dict:
        request = urllib.request.Request(self.told["url"] + "/api/v1/" + path, data=None if body is None else json.dumps(body).encode())
        request.add_header("Authorization", f"Bearer {self.token}")
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())

    @property
    def token(self) -> str:
        return json.loads((self.folder / "home" / "credentials.json").read_text())["token"]

    def recipe(self, run: str) -> dict:
        return self.ask(f"runs/{run}/recipe")["recipe"]

    def console(self, run: str) -> str:
        return "".join(line["text"] for line in self.ask(f"runs/{run}/logs?limit=1000")["results"])

    def page(self, path: str) -> str:
        """As a person sees it who came by the login link of `encore up`."""
        if self.browser is None:
            self.browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
            self.browser.open(self.told["login_url"], timeout=60).close()
        with self.browser.open(self.told["url"] + path, timeout=60) as answer:
            return answer.read().decode()

    def programs(self, run: str) -> list[int]:
        """Processes of a rerun: its program and whatever that started."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("ENCORE_RERUN") and process.environ().get("ENCORE_RUN_ID") == run:
                    found.append(process.pid)
        return found

    def encore(self, *arguments: str, timeout: float = 280):
        return subprocess.run([*ENCORE, *arguments], env=self.env, cwd=ROOT, capture_output=True, text=True, timeout=timeout)

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
def runs(house):
    """The ids of finished runs by their script's name; afterwards their repository and environment are renamed away."""
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
    (repository / "untouched.py").write_text(UNTOUCHED)
    (repository / "printing.py").write_text(PRINTING)
    (repository / "endless.py").write_text(ENDLESS)
    for command in (["init", "-q"], ["add", "-A"], ["-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "-qm", "x"]):
        subprocess.run(["git", *command], cwd=repository, check=True)
    (repository / "helper.py").write_text("import six\ndef smaller(x): return x * 0.8  # changed and not committed\n")
    python, found = environment / "bin/python", {}
    for name, command in {
        "train": [python, "train.py", "--data", str(data / "small.txt")],
        "endless": [python, "endless.py"],
        "untouched": [environment / "bin/encore", "run", "--", python, "-O", "untouched.py", "--lr", "0.25", "--deep"],
        "printing": [
            environment / "bin/encore",
            "run",
            "--pattern",
            "step (?P<step>[0-9]+): loss=(?P<loss>[0-9.e-]+)",
            "--",
            python,
            "printing.py",
        ],
        "shell": [environment / "bin/encore", "run", "--", "sh", "-c", "echo shell; python untouched.py --lr 0.5"],
    }.items():
        trained = subprocess.run(command, cwd=repository, env=house.env, capture_output=True, text=True, timeout=240)
        assert trained.returncode == 0, trained.stderr
        results = json.loads(house.encore("runs", "--json").stdout)["results"]
        [found[name]] = {result["id"] for result in results} - set(found.values())
    # A program of an instant may end before the sender has copied its source: nothing moves until each recipe is whole.
    end = time.monotonic() + 120
    while not all(house.ask(f"runs/{run}/preflight")["runnable"] for run in found.values()):
        assert time.monotonic() < end, [house.ask(f"runs/{run}/preflight") for run in found.values()]
        time.sleep(0.2)
    repository.rename(house.folder / "repository-away")
    environment.rename(house.folder / "environment-away")
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_unseeded_run_is_bit_exact_while_its_repository_and_environment_are_away(house, runs):
    """Changed files, an unseeded generator and stored data included; all imports come from the job and the cache."""
    ended = house.encore("reproduce", runs["train"], "--wait", "--json")
    verdict = json.loads(ended.stdout)
    assert (ended.returncode, verdict["agreement"]) == (0, "bit_exact"), (verdict, ended.stderr)
    assert verdict["compared"]["points"] == 20
    assert verdict["like_for_like"], verdict["differences"]
    assert "0 imports from outside" in ended.stderr
    assert not (house.folder / "repository").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_stored_data_that_was_deleted_is_restored(house, runs):
    """The file is back in the program's view and nowhere else."""
    path = house.folder / "data" / "small.txt"
    path.rename(path.with_suffix(".away"))
    try:
        ended = house.encore("reproduce", runs["train"], "--wait", "--json")
        assert json.loads(ended.stdout)["agreement"] == "bit_exact", ended.stderr
        assert not path.exists()
    finally:
        path.with_suffix(".away").rename(path)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("untouched", ["untouched __main__ 0.25 True ['untouched.py', '--lr', '0.25', '--deep']", "environments"]),
        ("shell", ["shell", "untouched __main__ 0.5 False ['untouched.py', '--lr', '0.5'] False"]),
    ],
)
def test_a_program_without_a_line_of_ours_is_started_by_encore_run_again(house, runs, name, said):
    """The rerun is tracked through the SDK of its own environment, prints what the original printed, and has no points to compare."""
    ended = house.encore("reproduce", runs[name], "--wait", "--json")
    verdict = json.loads(ended.stdout)
    assert ended.returncode == 7, (verdict, ended.stderr)
    assert verdict["agreement"] == "not_comparable", verdict
    [reproduction] = house.ask(f"reproductions?run={runs[name]}")["results"]
    rerun = house.ask(f"runs/{reproduction['run']}")
    assert (rerun["state"], rerun["exit_code"]) == ("finished", 0), rerun
    printed = house.console(reproduction["run"])
    assert all(words in printed for words in said), printed
    commands = [house.recipe(each)["command"] for each in (runs[name], reproduction["run"])]
    for part in ("bootstrap", "entry", "interpreter_options"):
        first, second = (command[part] for command in commands)
        assert first == second or (part == "entry" and first["name"] == second["name"]), commands


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_untouched_script_is_compared_by_what_it_printed_and_wrote_for_tensorboard(house, runs):
    """Its rerun finds the same metrics in the same ways, so that there is something to compare: bit-exact."""
    ended = house.encore("reproduce", runs["printing"], "--wait", "--json")
    verdict = json.loads(ended.stdout)
    assert (ended.returncode, verdict["agreement"]) == (0, "bit_exact"), (verdict, ended.stderr)
    assert (verdict["compared"]["points"], verdict["compared"]["metrics"]) == (20, 2), verdict


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_cancelled_reproduction_ends_with_its_whole_tree_and_says_so(house, runs):
    """Cancel by the API: the program and a grandchild in a session of its own are gone, and job, rerun, steps and page are cancelled."""
    asked = house.ask(f"runs/{runs['endless']}/reproductions", {})
    until(lambda: len(house.programs(asked["run"])) >= 2)
    house.ask(f"reproductions/{asked['id']}/cancel", {})
    ended = until(lambda: (now := house.ask(f"reproductions/{asked['id']}"))["state"] not in ("queued", "running") and now)
    assert (ended["state"], ended["failure"]["code"]) == ("cancelled", "cancelled"), ended
    assert house.programs(asked["run"]) == []
    assert house.ask(f"runs/{asked['run']}")["state"] == "killed"
    assert [step["state"] for step in ended["steps"]] == ["done", "done", "done", "cancelled"]
    page = house.page(f"/reproductions/{asked['id']}")
    assert "s-cancelled" in page
    assert "s-running" not in page.replace("i-s-running", "")
    assert "s-failed" not in page.replace("i-s-failed", "")
