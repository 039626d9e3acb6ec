"""What no tracked file may contain, and what no code of the product may do."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Put together from pieces, so that this file does not find itself.
REGISTRIES = ["pypi." + "org", "registry.npm" + "js.org", "files.pythonhosted" + ".org", "download.pytorch" + ".org"]
MACHINE_PATHS = [r"/home/\w+/", r"/Users/\w+/", "/wo" + "rk/", "/op" + "t/(wheels|pypi)"]
LOCKS = {"package-lock.json"}
HTML_ALLOWED = {
    "templates/run/_file.html": "what Pygments made, which escapes the file's text",
    "static/js/morph.js": "fragments that this server rendered and escaped",
}


# `encore run -- python -c "…"` runs the program that the user typed; that is its work.
RUNS_THE_USERS_PROGRAM = {"sdk/_bootstrap.py": {"exec"}}


def tracked(*patterns: str) -> list[Path]:
    names = subprocess.run(["git", "ls-files", "-z", "--", *patterns], cwd=ROOT, capture_output=True, check=True).stdout.decode()
    return [ROOT / name for name in names.split("\0") if name and (ROOT / name).is_file()]


def test_no_tracked_file_names_a_package_registry_or_a_path_of_a_machine():
    pattern = re.compile("|".join([*(re.escape(host) for host in REGISTRIES), *MACHINE_PATHS]))
    found = []
    for path in tracked():
        if path.name in LOCKS or path.suffix in {".png", ".bin"} or ROOT / "tests" in path.parents:
            continue
        for number, line in enumerate(path.read_bytes().decode(errors="replace").splitlines(), 1):
            if (match := pattern.search(line)) and "guard: allowed" not in line:
                found.append(f"{path.relative_to(ROOT)}:{number}: {match.group()}")
    assert not found, "\n".join(found)


def product() -> list[Path]:
    return tracked("sdk/*.py", "tracker/*.py", "runner/*.py", "encore.py")


@pytest.mark.parametrize("path", product(), ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_unpickled_or_evaluated(path: Path):
    """No pickle, marshal, eval, exec, yaml.load or torch.load: what a user or a network sends can never become code in these processes."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            found += [
                f"line {node.lineno}: import {n}"
                for n in names
                if n.split(".")[0] in {"pickle", "marshal", "shelve", "dill", "cloudpickle"}
            ]
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in RUNS_THE_USERS_PROGRAM.get(str(path.relative_to(ROOT)), set()):
                continue
            if called in {"eval", "exec", "yaml.load", "torch.load", "joblib.load", "numpy.load", "np.load"}:
                found.append(f"line {node.lineno}: {called}()")
            if called in {"mark_safe", "SafeString"} and not (node.args and isinstance(node.args[0], ast.Constant)):
                found.append(f"line {node.lineno}: {called}() of more than a literal; use format_html")
    assert not found, "\n".join(found)


def test_templates_escape_and_scripts_build_no_html():
    """No ``|safe``, ``autoescape off`` or inline script in templates; no ``innerHTML`` and its kin in scripts of ours."""
    found = []
    pages = [path for path in tracked("templates/*.html", "static/*.js") if str(path.relative_to(ROOT)) not in HTML_ALLOWED]
    for path in (page for page in pages if page.suffix == ".html"):
        text = re.sub(r"\{#.*?#\}|\{% comment %\}.*?\{% endcomment %\}", "", path.read_text(), flags=re.DOTALL)
        for match in re.finditer(r"\|\s*safe\b|autoescape\s+off|<script(?![^>]*\bsrc=)[^>]*>|\son\w+=\"|style=\"", text):
            found.append(f"{path.relative_to(ROOT)}: {match.group().strip()}")
    for path in (page for page in pages if page.suffix == ".js"):
        for match in re.finditer(r"\b(innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function)", path.read_text()):
            found.append(f"{path.relative_to(ROOT)}: {match.group()}")
    assert not found, "\n".join(found)
