"""The built wheel, installed in empty environments, is the product: light alone, a server with its extra."""

import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from tests.e2e.conftest import clean_environment

ROOT = Path(__file__).resolve().parents[2]
BUDGET_BYTES = 15_000_000
SCRIPT = """
import sdk, encore
assert encore is sdk
run = sdk.init(project="wheel", config={"lr": 0.1})
for step in range(10):
    sdk.log({"loss": 1 / (step + 1)}, step=step)
sdk.finish()
assert run.config["lr"] == 0.1
heavy = {"numpy", "torch", "django", "boto3", "celery"} & set(__import__("sys").modules)
assert not heavy, heavy
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, ROOT], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def base(wheel, tmp_path_factory) -> Path:
    """An empty environment with the wheel and what it needs by the lock; nothing else."""
    return install(wheel, tmp_path_factory.mktemp("base") / "venv", extra="")


def install(wheel: Path, where: Path, extra: str) -> Path:
    sys.path.insert(0, str(ROOT / "make"))
    try:
        import install as installer
    finally:
        sys.path.pop(0)
    venv.create(where, with_pip=False, symlinks=True)
    # The lock as a constraint: the same versions as `make up` has, and with a warm cache no download.
    constraints = where / "constraints.txt"
    constraints.write_text("\n".join(entry.split(" \\")[0].strip() for entry in installer.lock_entries("server")))
    uv = Path(sys.executable).with_name("uv")
    done = subprocess.run(
        [uv, "pip", "install", "--quiet", "-p", where / "bin" / "python", "-c", constraints, f"encore-tracker{extra} @ {wheel.as_uri()}"],
        capture_output=True, text=True, check=False, env=installer.uv_environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return where


def test_the_wheel_holds_the_pages_and_nothing_private(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for needed in (
        "encore.py",
        "sdk/__init__.py",
        "tracker/wsgi.py",
        "runner/app.py",
        "tracker/_pages/static/vendor/uplot/uPlot.iife.min.js",
    ):
        assert needed in names
    assert any(name.startswith("tracker/_pages/templates/") for name in names)
    assert any(name.startswith("tracker/migrations/0001") for name in names)
    assert not [name for name in names if name.startswith(("tests/", "make/", "benchmarks/")) or "__pycache__" in name]


def test_the_base_install_is_at_most_15_mb(base):
    folder = next((base / "lib").glob("python*/site-packages"))
    total = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    assert total <= BUDGET_BYTES, f"{total / 1e6:.1f} MB"


def test_a_script_runs_on_the_base_install_without_a_server(base, tmp_path):
    """In a folder whose own ``sdk/`` would shadow nothing of ours, offline, leaving a complete journal."""
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [base / "bin" / "python", script], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120,
        env=clean_environment(ENCORE_HOME=str(tmp_path / "home"), ENCORE_MODE="offline"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    journals = list((tmp_path / "home" / "sdk").glob("*/*/writer.json"))
    assert journals
    assert json.loads(journals[0].read_text())["run"]["project"] == "wheel"


def test_a_command_that_needs_the_server_says_which_extra_is_missing(base, tmp_path):
    done = subprocess.run(
        [base / "bin" / "encore", "up"], capture_output=True, text=True, check=False, timeout=120,
        env=clean_environment(ENCORE_HOME=str(tmp_path / "home")),
    )  # fmt: skip
    assert done.returncode != 0
    assert "[server]" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_wheel_with_the_server_extra_starts_and_serves_its_pages(wheel, tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    where = install(wheel, folder / "venv", extra="[server,runner]")
    from tests.e2e import conftest

    home = folder / "home"
    process = subprocess.Popen(
        [where / "bin" / "encore", "up", "--json", "--home", home, "--port", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/", env=clean_environment(), process_group=0,
    )  # fmt: skip
    try:
        line = process.stdout.readline()
        assert line, process.stderr.read()
        access = json.loads(line)
        import urllib.request

        page = urllib.request.urlopen(access["login_url"], timeout=60).read().decode()
        assert "/static/" in page
        style = next(part for part in page.split('"') if part.startswith("/static/") and part.endswith(".css"))
        assert urllib.request.urlopen(access["url"] + style, timeout=60).status == 200
    finally:
        process.terminate()
        process.wait(60)
        process.stdout.close()
        process.stderr.close()
    conftest.poll(lambda: not os.path.exists(home / "run" / "processes.json"), 10)
