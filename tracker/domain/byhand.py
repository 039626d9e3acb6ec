"""The README of a bundle: how a person plays the run again with nothing but the files beside it."""

from __future__ import annotations

import json
import shlex
from typing import Any

RESTORE = """\
import base64, json, os, pathlib

recipe = json.load(open("recipe.json", encoding="utf-8"))
blob = lambda digest: pathlib.Path("blobs", digest.removeprefix("blake3:")).read_bytes()
manifest = json.loads(blob(recipe["source"]["manifest"]))
root = pathlib.Path("source").absolute()
links = []
for entry in manifest["files"]:
    name = entry["path"] if "path" in entry else os.fsdecode(base64.b64decode(entry["path_b64"]))
    if name.startswith("/") or ".." in name.split("/"):
        raise SystemExit(f"refused: {name!r} leads out of the folder")
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if entry["mode"] == "120000":
        links.append((path, os.fsdecode(blob(entry["digest"]))))
    else:
        path.write_bytes(blob(entry["digest"]))
        path.chmod(0o755 if entry["mode"] == "100755" else 0o644)
for path, target in links:  # last, so that nothing is written through one
    path.symlink_to(target)
print(len(manifest["files"]), "files are in", root)
"""


_ABOUT = """\
This folder was made by Encore and needs no Encore to be read. `bundle.json` lists each file with its BLAKE3 digest and bytes, and
under `left_out` what belongs here and could not be had. `recipe.json` is all that was captured of the run, `run.json` what became
of it, `blobs/` the captured bytes under their digests, `series/` the metrics, `verdicts/` how earlier reproductions compared."""
_METRICS = """\
`series/<writer>/<first>-<last>.block` holds the points that one process wrote (`writers` in `run.json` gives its rank and attempt):
columns of step, time in microseconds UTC, and value (float64 or int64), raw or packed with pcodec (`pip install pcodec`). The
layout is in Encore's docs/formats.md under *Metric store*. Of points with the same step, key and rank the later attempt's counts."""


def readme(run: dict[str, Any], recipe: dict[str, Any]) -> str:
    """Markdown. What the recipe says is text of somebody else: it stands in code blocks, a line each, control characters escaped."""
    command, source, environment = (_object(recipe.get(name)) for name in ("command", "source", "environment"))
    parts = [
        "# A run, to be played again by hand",
        _block([f"{name}: {_plain(run.get(name))}" for name in ("project", "name", "id", "state", "created_at")]),
        _ABOUT,
        "## 1. The source",
        _source(source),
        "## 2. The environment",
        _environment(environment),
        "## 3. The data",
        _data(_object(recipe.get("data"))),
        "## 4. The command",
        _command(command),
        "## 5. The metrics",
        _METRICS,
    ]
    return "\n\n".join(parts) + "\n"


def _source(source: dict[str, Any]) -> str:
    if not source.get("manifest"):
        return "No source was captured."
    git = _object(source.get("git"))
    lines = [f"original folder: {_plain(source.get('root'))}"]
    if git:
        lines.append(f"git: {_plain(git.get('remote'))} {_plain(git.get('commit'))}, uncommitted changes: {_plain(git.get('dirty'))}")
    lines += [f"left out of the copy: {_plain(each.get('path'))} ({_plain(each.get('why'))})" for each in _objects(source.get("left_out"))]
    return (
        f"{_block(lines)}\n\nThe blob `source.manifest` of `recipe.json` lists each file with its digest.\n"
        f"Run this here (Python 3.9 or later); it writes the folder `source`:\n\n```python\n{RESTORE}```\n\n"
        "`mounts` in the manifest says which of its folders lay elsewhere (editable installs): put their original places on `PYTHONPATH`."
    )


def _environment(environment: dict[str, Any]) -> str:
    python, platform = _object(environment.get("python")), _object(environment.get("platform"))
    lines = [f"Python {_plain(python.get('version'))} ({_plain(python.get('implementation'))})"]
    lines.append(" ".join(_plain(platform[name]) for name in ("system", "machine", "libc") if platform.get(name)))
    pins = []
    for package in _objects(environment.get("packages")):
        origin = _object(package.get("from"))
        note = "" if origin.get("kind") in (None, "index") else f"  # {_plain(origin.get('kind'))} {_plain(origin.get('url'))}"
        pins.append(f"{_plain(package.get('name'))}=={_plain(package.get('version'))}{note}")
    wheel = _object(environment.get("sdk")).get("wheel")
    own = ""
    if isinstance(wheel, str):
        named = "(pip wants it named as a wheel: `encore_tracker-VERSION-py3-none-any.whl`)"
        own = f"\n\nEncore's own package is `blobs/{wheel.removeprefix('blake3:')}`\n{named}."
    return f"{_block(lines)}\n\nPackages, as `requirements.txt`:\n\n{_block(pins or ['(none captured)'])}{own}"


def _data(data: dict[str, Any]) -> str:
    lines = []
    for each in _objects(data.get("inputs")):
        where = ", in this bundle" if each.get("stored") else ", not in this bundle: put it there yourself"
        facts = [_plain(each.get(name)) for name in ("path", "bytes", "digest", "strength")]
        lines.append("{}  {} bytes  {} ({}{})".format(*facts, where))
    if not lines:
        return "No input files were seen."
    return (
        "The program read these files, by absolute path. A digest of strength `full` is BLAKE3 of the whole file (`b3sum FILE`);\n"
        f"what is in this bundle lies in `blobs/` under it.\n\n{_block(lines)}"
    )


def _command(command: dict[str, Any]) -> str:
    launcher = _object(command.get("launcher"))
    words = _words(launcher.get("argv"))
    if not words:
        entry = _object(command.get("entry"))
        argv = _words(command.get("argv"))
        program = ["-m", str(entry.get("name")), *argv[1:]] if entry.get("kind") == "module" else argv
        words = ["python", *_words(command.get("interpreter_options")), *program]
    folder = "source" if command.get("cwd_in_root") in (None, ".") else f"source/{command['cwd_in_root']}"
    env = _object(command.get("env"))
    lines = [f"cd {_shell(folder)}", *(f"export {_plain(n)}={_shell(str(env[n]))}" for n in sorted(env))]
    text = _block([*lines, " ".join(_shell(word) for word in words)])
    masked = _words(command.get("env_masked"))
    secrets = f"\n\nSecrets are never stored. Set them yourself:\n\n{_block(sorted(masked))}" if masked else ""
    return f"{text}\n\nLeave out what names folders of the other machine. It ran in:\n\n{_block([_plain(command.get('cwd'))])}{secrets}"


def _block(lines: list[str]) -> str:
    return "\n".join(f"    {_plain(line)}" for line in lines)


def _plain(value: Any) -> str:
    """One line without control characters, whatever it is."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)


def _shell(word: str) -> str:
    """One word for bash, on one line."""
    if word.isprintable():
        return shlex.quote(word)
    return "$'" + _plain(word.replace("\\", "\\\\").replace("'", "\\'")) + "'"


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _objects(value: Any) -> list[dict[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _words(value: Any) -> list[str]:
    return [str(word) for word in value] if isinstance(value, list) else []
