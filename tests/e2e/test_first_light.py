"""The whole loop as a newcomer meets it: start, train, watch, reproduce, read the verdict."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.e2e.conftest import ENCORE, ROOT, Up, clean_environment, poll

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(900)]
PYTHON = sys.executable
TORCHRUN = [str(Path(PYTHON).with_name("torchrun")), "--nproc-per-node", "2"]
BROWSER = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-sync"]


@pytest.fixture(scope="module")
def house():
    """One Encore for this file, and a copy of examples/ in a repository of its own, as a user would have it."""
    import shutil

    folder = Path(tempfile.mkdtemp(prefix="encore-light-"))
    up = Up(folder / "home")
    work = folder / "work"
    shutil.copytree(ROOT / "examples", work)
    for command in (["init", "-q"], ["add", "-A"], ["-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "-qm", "Examples"]):
        subprocess.run(["git", *command], cwd=work, check=True)
    up.work = work
    up.environment = clean_environment(ENCORE_HOME=str(up.home), EXAMPLES_DATA=str(folder / "data"))
    yield up
    if up.process.poll() is None:
        up.stop()
    up.process.stdout.close()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def page(house):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=os.environ.get("CHROMIUM") or "/usr/bin/chromium", args=BROWSER)
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.set_default_timeout(200_000)
        page.problems = []
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        yield page
        browser.close()


def run_named(house, name: str) -> dict | None:
    return next((run for run in house.get("runs?limit=100")["results"] if run["name"] == name), None)


def wait_finished(house, name: str) -> dict:
    """Ended, and its source recorded: on a slow machine that takes longer than the program."""
    run = poll(lambda: (run := run_named(house, name)) and run["state"] not in ("running", "queued") and run, what=f"{name} has ended")
    poll(lambda: house.get(f"runs/{run['id']}/preflight")["runnable"], what=f"{name} can be reproduced")
    return run


def test_a_training_is_seen_live_and_reproduced_by_a_click(house, page):
    """Log in by the link, see a two-rank run while it runs, open it, press Reproduce, read "bit-exact" on the page."""
    page.goto(house.login_url)
    page.wait_for_url(lambda url: "/login" not in url)
    argv = [*TORCHRUN, "digits_ddp.py", "--epochs", "2", "--pause", "0.1", "--name", "seen-live"]
    training = subprocess.Popen(argv, cwd=house.work, env=house.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        run = poll(lambda: run_named(house, "seen-live"), what="the run is known")
        page.goto(house.url)
        poll(lambda: (run := run_named(house, "seen-live")) and run["state"] == "running", what="the run is running")
        page.goto(f"{house.url}/runs/{run['id']}")
        page.get_by_role("heading", name="seen-live").wait_for()
        page.locator("#run-head").get_by_text("running", exact=False).first.wait_for()
    finally:
        output, _ = training.communicate(timeout=300)
    assert training.returncode == 0, output
    run = wait_finished(house, "seen-live")
    assert run["state"] == "finished"
    page.locator("#run-head").get_by_text("finished", exact=False).first.wait_for()  # by itself, without a reload
    page.locator("#run-head [data-reproduce]").click()
    page.locator("dialog[open] button.btn-go").last.click()
    verdict = page.locator("section.verdict")
    try:
        verdict.wait_for(timeout=400_000)
    except Exception:
        pytest.fail(f"no verdict; the page says:\n{page.locator('main').inner_text()[:4000]}")
    assert "bit-exact" in verdict.inner_text().lower(), page.locator("main").inner_text()[:4000]
    assert page.problems == []


@pytest.mark.parametrize(
    ("name", "argv"),
    [
        ("text", ["char_gpt.py", "--steps", "20", "--eval-every", "10"]),
        ("table", ["medical_cv.py", "--rows", "1500", "--models", "logistic,forest", "--trees", "5"]),
    ],
)
def test_an_example_reproduces_bit_exact_from_the_shell(house, name, argv):
    """``encore reproduce --wait --json`` answers bit-exact, with every point compared, and exits 0."""
    done = subprocess.run(
        [PYTHON, *argv, "--name", name], cwd=house.work, env=house.environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    run = wait_finished(house, name)
    assert run["state"] == "finished"
    done = subprocess.run(
        [ENCORE, "reproduce", run["id"], "--wait", "--json"],
        env=house.environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    verdict = json.loads(done.stdout)
    assert verdict["agreement"] == "bit_exact", verdict
    assert verdict["compared"]["points"] == verdict["compared"]["logged"] > 0
