"""Environments, with the real installer: built once, found again, and what is missing named."""

import json
import threading

import pytest

from runner.environments import interpreters, pip_settings, venv
from runner.errors import RecipeFailure


@pytest.fixture
def wanted():
    import platform

    return lambda *pins: venv.Wanted(pins, interpreters.find({"version": platform.python_version()}))


def get(home, asked):
    lines = []
    return venv.get(home, asked, stop=threading.Event(), check=lambda: None, on_line=lines.append), lines


def test_an_environment_is_built_once_and_found_again(tmp_path, wanted):
    """The second time nothing is installed; another pin is another environment."""
    first, _ = get(tmp_path, wanted("six==1.17.0"))
    again, lines = get(tmp_path, wanted("six==1.17.0"))
    other, _ = get(tmp_path, wanted("six==1.16.0"))
    assert (first.fresh, again.fresh, lines) == (True, False, [])
    assert first.folder == again.folder != other.folder
    assert venv.installed(first)["six"] == ("six", "1.17.0")
    assert venv.installed(other)["six"] == ("six", "1.16.0")


def test_two_jobs_of_one_key_build_it_once(tmp_path, wanted):
    """The second waits for the first and uses what it built."""
    found = []
    threads = [threading.Thread(target=lambda: found.append(get(tmp_path, wanted("six==1.17.0"))[0])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(environment.fresh for environment in found) == [False, False, False, True]


def test_an_interrupted_build_is_begun_again(tmp_path, wanted):
    """A folder without its marker is no environment."""
    folder = tmp_path / "environments" / wanted("six==1.17.0").key
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").touch()
    environment, _ = get(tmp_path, wanted("six==1.17.0"))
    assert environment.fresh
    assert json.loads((folder / venv.MARKER).read_text())["pins"] == ["six==1.17.0"]


def test_no_file_of_an_environment_names_a_place_that_is_gone(tmp_path, wanted):
    """Scripts start with the interpreter where the environment lies."""
    environment, _ = get(tmp_path, wanted("pip==24.0"))
    # A path too long for a "#!" line stands in a line of shell behind it.
    start = (environment.folder / "bin" / "pip").read_text()[:1000]
    assert f"{environment.folder}/bin/python" in start


def test_a_version_that_cannot_be_had_is_named_with_the_nearest(tmp_path, wanted):
    """And nothing half-built stays."""
    with pytest.raises(RecipeFailure) as caught:
        get(tmp_path, wanted("six==1.16.99"))
    assert caught.value.code == "package_missing"
    assert caught.value.detail["missing"] == "six==1.16.99"
    assert "1.17.0" in caught.value.detail["found"]
    assert list((tmp_path / "environments").iterdir()) == []


def test_another_python_is_refused_by_name():
    """An interpreter of the same minor version only where the operator allows it."""
    import platform

    minor = platform.python_version().rsplit(".", 1)[0]
    with pytest.raises(RecipeFailure) as caught:
        interpreters.find({"version": f"{minor}.99"})
    assert caught.value.code == "python_missing"
    assert platform.python_version() in caught.value.detail["found"]
    assert interpreters.find({"version": f"{minor}.99"}, allow_other_patch=True).version.startswith(minor)


def test_pips_settings_reach_uv():
    """Install's own options over the global ones, the environment over both."""
    listing = "global.find-links='/a'\nglobal.cert='/c'\ninstall.find-links='/b /d'\n:env:.cert='/e'\nfreeze.all='1'\n"
    assert pip_settings.parse(listing) == {"find-links": "/b /d", "cert": "/e"}


def test_an_editable_package_of_the_repository_is_imported_from_the_source(play):
    """And metadata of it is found, while the kept environment stays without it."""
    package = play.repository / "lib" / "src" / "mylib"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (play.repository / "train.py").write_text("import mylib, importlib.metadata as m; print(mylib.__file__, m.version('my-lib'))\n")
    packages = [{"name": "my-lib", "version": "3.2", "from": {"kind": "editable", "url": f"file://{play.repository}/lib"}}]
    ended = play(play.recipe(environment={"packages": packages}))
    assert ended.failure is None, (ended.failure, ended.output)
    assert ended.output.split() == [f"{ended.folder}/source/lib/src/mylib/__init__.py", "3.2"]


def test_an_editable_package_from_elsewhere_is_named(play):
    """Its files were not recorded."""
    (play.repository / "train.py").write_text("")
    packages = [{"name": "their-lib", "version": "1", "from": {"kind": "editable", "url": "file:///somewhere/else"}}]
    ended = play(play.recipe(environment={"packages": packages}))
    assert ended.failure["code"] == "package_missing"
    assert ended.failure["missing"] == "their-lib==1"


@pytest.mark.parametrize("name", ["-r/etc/passwd", "six; import os", "../six", "", "six @ file:///x"])
def test_no_name_of_a_package_can_be_an_option(play, name, monkeypatch):
    """Hostile names are refused before the installer sees them."""
    (play.repository / "train.py").write_text("")
    with monkeypatch.context() as patched:
        patched.setattr(venv, "get", lambda *_, **__: pytest.fail("the installer was asked"))
        ended = play(play.recipe(environment={"packages": [{"name": name, "version": "1"}]}))
    assert ended.failure["code"] == "package_missing"
