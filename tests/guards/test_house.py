"""The house stays as it is described: layers, documents, one place for each thing."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import tomllib

ROOT = Path(__file__).resolve().parents[2]
VARIABLE = re.compile(r"[\"'](ENCORE_[A-Z0-9_]*[A-Z0-9]|DATABASE_URL|CHROMIUM)[\"']")
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]


def test_imports_go_downward_only():
    """The import-linter contracts of pyproject.toml hold; no module of the tracker stands outside them by accident."""
    done = subprocess.run([Path(sys.executable).with_name("lint-imports")], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr


def test_every_environment_variable_is_documented():
    """docs/operations.md names each variable that the code reads or sets."""
    used = {
        name
        for folder in ("sdk", "tracker", "runner", "examples", "make", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
        for name in VARIABLE.findall(path.read_text())
    }
    text = (ROOT / "docs" / "operations.md").read_text()
    assert not sorted(name for name in used if f"`{name}`" not in text)


def test_every_documented_variable_exists():
    code = (
        "".join(p.read_text() for f in ("sdk", "tracker", "runner", "examples", "make", "tests") for p in (ROOT / f).rglob("*.py"))
        + (ROOT / "Makefile").read_text()
    )
    named = set(re.findall(r"`(ENCORE_[A-Z0-9_]+)`", (ROOT / "docs" / "operations.md").read_text()))
    assert not sorted(name for name in named if name not in code)


def test_every_command_is_documented():
    """Each subcommand of ``encore --help`` stands in a document."""
    done = subprocess.run([Path(sys.executable).with_name("encore"), "--help"], cwd=ROOT, capture_output=True, text=True, check=False)
    listed = re.search(r"\{([a-z,_-]+)\}", done.stdout)
    commands = listed.group(1).split(",") if listed else re.findall(r"^ {2,4}([a-z][a-z-]+) {2,}", done.stdout, re.MULTILINE)
    assert commands, done.stdout + done.stderr
    text = "".join(path.read_text() for path in DOCUMENTS)
    assert not [command for command in commands if f"encore {command}" not in text]


def test_links_between_documents_lead_somewhere():
    broken = []
    for path in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text()):
            if not re.match(r"[a-z]+:", target) and not (path.parent / target).exists():
                broken.append(f"{path.relative_to(ROOT)}: {target}")
    assert not broken


@pytest.mark.parametrize("name", ["server", "examples", "test", "node"])
def test_locks_pin_every_package_by_hash_and_name_no_index(name: str):
    text = (ROOT / "requirements" / f"{name}.txt").read_text()
    entries = re.findall(r"^[A-Za-z0-9].*(?:\n    .*)*", text, re.MULTILINE)
    assert entries
    assert not [entry.split()[0] for entry in entries if "==" not in entry or "--hash=sha256:" not in entry]
    assert "--index" not in text
    assert not re.search(r"^torch==", text, re.MULTILINE)


def test_the_base_install_stays_light():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {re.split(r"[<>=;\[ ]", need)[0] for need in project["dependencies"]}
    assert names == {"blake3", "psutil", "nvidia-ml-py"}


def test_the_sdk_imports_no_heavy_package():
    """``import sdk`` loads none of numpy, torch, Django, boto3, asyncio; they may only be looked up in sys.modules."""
    code = "import sys, sdk; print(*sorted({'numpy','torch','django','boto3','asyncio','requests','pandas'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
