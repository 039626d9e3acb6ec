"""``encore up`` keeps Encore alive, leaves nothing behind, and says what to do when it cannot start."""

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest

from tests.e2e.conftest import ENCORE, Up, clean_environment, poll

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


def test_it_starts_prints_one_line_and_stops_on_ctrl_c(start):
    """One line of JSON; secrets readable by the owner alone; the token works; after Ctrl-C no process of it is left."""
    up = start()
    assert set(up.access) == {"url", "token", "login_url"}
    assert up.healthy()
    assert up.get("me")["user"]
    for name in ("credentials.json", "secret-key", "worker/token"):
        assert stat.S_IMODE((up.home / name).stat().st_mode) == 0o600
    assert json.loads((up.home / "credentials.json").read_text()) == {"url": up.url, "token": up.token}
    assert up.stop(signal.SIGINT) == 0
    assert up.process.stdout.read() == ""
    poll(lambda: not up.everything(), 120, "all processes are gone")


@pytest.fixture(scope="module")
def up():
    """One for the tests that only ask it."""
    folder = Path(tempfile.mkdtemp(prefix="encore-e2e-"))
    running = Up(folder / "home")
    yield running
    running.stop()
    running.process.stdout.close()
    shutil.rmtree(folder, ignore_errors=True)


def test_a_wrong_token_is_refused(up):
    request = urllib.request.Request(f"{up.url}/api/v1/me", headers={"Authorization": "Bearer enc_wrong"})
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=60)
    assert refused.value.code == 401


def test_every_killed_child_comes_back(start):
    """kill -9 of each child in turn: it is there again with another process id, and the pages answer."""
    up = start()
    names = {"broker", "web", "maintenance", "runner", "beat"}
    poll(lambda: set(up.children()) == names, what="all five children are up")
    for name in sorted(names):
        before = up.children()[name]
        os.kill(before, signal.SIGKILL)
        poll(lambda name=name, before=before: up.children().get(name, before) != before, what=f"{name} is started again")
        poll(up.healthy, what=f"the pages answer after the death of {name}")


def test_killed_itself_it_leaves_no_orphan_and_starts_again_on_the_same_port(start):
    up = start()
    up.process.kill()
    up.process.wait()
    poll(lambda: not up.everything(), 120, "no process of it is left")
    again = start(up.home, port=up.port)
    assert again.healthy()
    assert again.token == up.token


def test_killed_together_with_its_guard_the_next_start_recovers(start):
    """Even when nothing was left to clean up after it, the next start finds the orphans by their mark and takes the port."""
    up = start()
    guards = [p for p in psutil.Process(up.process.pid).children() if p.pid not in up.children().values()]
    for process in guards:
        process.kill()
    up.process.kill()
    up.process.wait()
    again = start(up.home, port=up.port)
    assert again.healthy()


def test_a_taken_port_is_named_with_a_way_out(scratch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        port = taken.getsockname()[1]
        done = subprocess.run(
            [ENCORE, "up", "--home", scratch / "home", "--port", str(port)],
            capture_output=True, text=True, env=clean_environment(), timeout=120, check=False,
        )  # fmt: skip
    assert done.returncode == 2
    assert f"port {port} is taken" in done.stderr
    assert "--port" in done.stderr
    assert done.stdout == ""


def test_a_second_start_on_the_same_folder_gives_the_link_of_the_first(up):
    second = subprocess.run(
        [ENCORE, "up", "--home", up.home, "--json"], capture_output=True, text=True, env=clean_environment(), timeout=120, check=False
    )
    assert second.returncode == 0, second.stderr
    answer = json.loads(second.stdout)
    assert answer["url"] == up.url
    assert answer["token"] == up.token
    assert answer["login_url"] != up.login_url
    assert "already running" in second.stderr


def test_a_login_link_works_once(up):
    opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
    page = opener.open(up.login_url, timeout=60)
    # The link's page may ask for a click, so that a mail scanner cannot use it up; following it again must not log anybody in.
    assert page.status == 200


def test_a_folder_that_cannot_be_used_is_refused_with_the_reason(scratch):
    (scratch / "file").write_text("not a folder")
    done = subprocess.run(
        [ENCORE, "up", "--home", scratch / "file"], capture_output=True, text=True, env=clean_environment(), timeout=120, check=False
    )
    assert done.returncode == 2
    assert "--home" in done.stderr
    assert "Traceback" not in done.stderr
