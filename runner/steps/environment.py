"""The recorded interpreter and packages, as a kept virtual environment; the SDK the run used, from its recipe."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from runner.environments import interpreters, venv
from runner.errors import RecipeFailure
from runner.job import Job
from runner.manifest import is_digest
from runner.order import inside

NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+!_-]*")


def run(job: Job) -> str:
    recorded = job.order.environment
    python = recorded.get("python") or {}
    interpreter = interpreters.find(
        python, executable=job.order.command.get("executable"), allow_other_patch=job.settings.allow_other_patch
    )
    if interpreter.version != python.get("version"):
        job.differs("python", python.get("version"), interpreter.version)
    pins, editables = requirements(job, recorded.get("packages"))
    wheel, digest = _sdk(job, recorded.get("sdk") or {})
    wanted = venv.Wanted(tuple(pins), interpreter, wheel, digest)
    environment = venv.get(
        job.settings.home,
        wanted,
        stop=job.report.stopped,
        check=job.report.check,
        on_line=lambda line: job.report.say("environment", line),
    )
    if editables:
        environment = venv.with_editables(environment, job.folder.path / "venv", editables)
    job.environment = environment
    compare(job, recorded)
    how = "built" if environment.fresh else "found in the cache"
    return f"Python {interpreter.version}, {len(pins)} packages, {how}" + (f", {len(editables)} from the source" if editables else "")


def requirements(job: Job, packages: Any) -> tuple[list[str], list[tuple[str, str, list[Path]]]]:
    """Pins for the installer, and (name, version, import roots) of what was installed editable or from a folder."""
    pins: dict[str, str] = {}
    editables: dict[str, tuple[str, str, list[Path]]] = {}
    for package in packages if isinstance(packages, list) else []:
        name, version = str(package.get("name") or ""), str(package.get("version") or "")
        if not NAME.fullmatch(name) or not VERSION.fullmatch(version):
            raise RecipeFailure(
                "package_missing", f"The recipe names a package {name!r} {version!r} that no index could have.", missing=name
            )
        if venv.normal(name) == venv.SDK:
            continue  # comes as the recipe's wheel
        origin = package.get("from") if isinstance(package.get("from"), dict) else {}
        kind, url = origin.get("kind"), str(origin.get("url") or "")
        if kind in ("editable", "path") and not url.endswith((".whl", ".tar.gz", ".zip")):
            roots = import_roots(job, url)
            if roots:
                editables[venv.normal(name)] = (name, version, roots)
                continue
            if kind == "editable":
                raise RecipeFailure(
                    "package_missing",
                    f"{name} {version} was installed editable from {url or 'a folder'}, whose files are not in the recorded source. "
                    "Keep it inside the repository, or install a released version.",
                    missing=f"{name}=={version}",
                )
        pins[venv.normal(name)] = f"{name} @ {_vcs(url, origin)}" if kind == "vcs" and _vcs(url, origin) else f"{name}=={version}"
    return list(pins.values()), list(editables.values())


def _vcs(url: str, origin: dict[str, Any]) -> str | None:
    if re.fullmatch(r"git\+(https|ssh)://[^\s;#]+", url):
        return url
    commit = str(origin.get("hash") or "")
    if re.fullmatch(r"https://[^\s;#@]+", url) and re.fullmatch(r"[0-9a-f]{7,64}", commit):
        return f"git+{url}@{commit}"
    return None


def import_roots(job: Job, url: str) -> list[Path]:
    """Where the files of a project folder lie in the restored source: the folder itself, or its ``src``."""
    path = url.removeprefix("file://") if url.startswith(("file:///", "/")) else ""
    if not path:
        return []
    found: Path | None = None
    mounts = sorted(job.manifest.mounts if job.manifest else (), key=lambda mount: len(mount[0]), reverse=True)
    for at, prefix in mounts:
        if (below := inside(path, at)) is not None:
            found = job.folder.source / prefix / below
            break
    if found is None and job.order.root and (below := inside(path, job.order.root)) is not None:
        found = job.folder.source / below
    if found is None or not found.is_dir():
        return []
    return [found / "src"] if (found / "src").is_dir() else [found]


def _sdk(job: Job, sdk: dict[str, Any]) -> tuple[Path | str | None, str]:
    digest = sdk.get("wheel")
    if is_digest(digest):
        wheel = job.folder.stage / "sdk.whl"
        try:
            job.stored(str(digest), "the SDK's wheel", wheel)
            return wheel, str(digest)
        except RecipeFailure as failure:
            job.report.say("environment", f"{failure.message} This worker's own SDK is used instead.")
    job.differs("sdk", digest or sdk.get("version"), "this worker's")
    return "own", ""


def compare(job: Job, recorded: dict[str, Any]) -> None:
    assert job.environment is not None
    here = venv.installed(job.environment)
    expected = {venv.normal(str(p.get("name"))): (str(p.get("name")), str(p.get("version"))) for p in recorded.get("packages") or []}
    for key, (name, version) in sorted(expected.items()):
        found = here.get(key, (name, None))[1]
        if found != version:
            job.differs(f"package {name}", version, found)
    for key, (name, version) in sorted(here.items()):
        if key not in expected and key != venv.SDK:
            job.differs(f"package {name}", None, version)
