"""Virtual environments of exact pins, kept by what they hold.

An environment is built where it stays, under the machine's lock for its key, and counts only once its marker is written: an interrupted
build is removed and begun again, two jobs of one key build it once, and no script in it names a place that is gone.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from blake3 import blake3

from runner import shell
from runner.environments import pip_settings
from runner.environments.interpreters import Interpreter
from runner.errors import RecipeFailure, WorkerFault
from runner.workspace import lock, remove

MARKER = ".encore.json"
SDK = "encore-tracker"
FORMAT = 1


@dataclass(frozen=True)
class Wanted:
    """What an environment must hold. ``pins`` are requirements, one each; ``sdk`` a wheel file, "own" for this worker's SDK, or None."""

    pins: tuple[str, ...]
    interpreter: Interpreter
    sdk: Path | str | None = None
    sdk_digest: str = ""

    @property
    def key(self) -> str:
        about = {
            "format": FORMAT,
            "pins": sorted(self.pins),
            "python": [self.interpreter.implementation, self.interpreter.version, self.interpreter.executable],
            "machine": [platform.system(), platform.machine(), *platform.libc_ver()],
            "sdk": self.sdk_digest or str(self.sdk),
        }
        return blake3(json.dumps(about, sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Environment:
    folder: Path
    interpreter: Interpreter
    fresh: bool
    """Built just now, not found."""
    overlay: Path | None = None
    """A virtual environment of this job alone, over the kept one, that adds what was installed editable."""
    notes: tuple[str, ...] = field(default=())

    @property
    def prefix(self) -> Path:
        return self.overlay or self.folder

    @property
    def python(self) -> Path:
        return self.prefix / "bin" / "python"

    @property
    def site_packages(self) -> Path:
        return site_packages(self.folder)


def site_packages(folder: Path) -> Path:
    return next((folder / "lib").glob("python*")) / "site-packages"


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def get(home: Path, wanted: Wanted, *, stop: threading.Event, check: Callable[[], None], on_line: Callable[[str], None]) -> Environment:
    """The kept environment, built if need be. Raises RecipeFailure ``package_missing`` or ``environment_failed``."""
    folder = home / "environments" / wanted.key
    if _is_ready(folder):
        return Environment(folder, wanted.interpreter, fresh=False)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with lock(home, f"environment-{wanted.key}", check=check):
        if _is_ready(folder):  # somebody built it while we waited
            return Environment(folder, wanted.interpreter, fresh=False)
        remove(folder)
        begun = time.monotonic()
        try:
            _build(folder, wanted, stop, check, on_line)
            text = json.dumps(
                {"format": FORMAT, "pins": sorted(wanted.pins), "python": wanted.interpreter.version, "seconds": time.monotonic() - begun}
            )
            temporary = folder / (MARKER + ".new")
            temporary.write_text(text)
            temporary.rename(folder / MARKER)
        except BaseException:
            remove(folder)
            raise
    return Environment(folder, wanted.interpreter, fresh=True)


def _is_ready(folder: Path) -> bool:
    marker = folder / MARKER
    try:
        os.utime(marker)
    except OSError:
        return False
    return (folder / "bin" / "python").exists()  # the interpreter behind it may have been removed


def _build(folder: Path, wanted: Wanted, stop: threading.Event, check: Callable[[], None], on_line: Callable[[str], None]) -> None:
    env = pip_settings.uv_environment(stop)
    made = shell.run([uv(), "venv", "--python", wanted.interpreter.executable, "--no-project", folder], env=env, stop=stop, seconds=300)
    check()
    if made.returncode != 0:
        raise WorkerFault(f"uv could not make a virtual environment of {wanted.interpreter.executable}: {made.output.strip()[-1000:]}")
    python = folder / "bin" / "python"
    if wanted.pins:
        pins = folder / "pins.txt"
        pins.write_text("\n".join(sorted(wanted.pins)) + "\n")
        command: list[str | Path] = [uv(), "pip", "install", "--python", python, "--no-deps", "-r", pins]
        installed = shell.run(command, env=env, stop=stop, seconds=3600, on_line=on_line)
        check()
        if installed.returncode != 0:
            raise _why(installed.output, python, env, stop)
    if isinstance(wanted.sdk, Path):
        wheel = _named(wanted.sdk, folder)
        installed = shell.run(
            [uv(), "pip", "install", "--python", python, "--no-deps", "--no-index", wheel], env=env, stop=stop, seconds=300, on_line=on_line
        )
        wheel.unlink()
        check()
        if installed.returncode != 0:
            raise RecipeFailure(
                "environment_failed", f"The SDK that the run used could not be installed: {installed.output.strip()[-1000:]}"
            )
    elif wanted.sdk == "own":
        install_own_sdk(site_packages(folder))


def _named(wheel: Path, folder: Path) -> Path:
    """A copy of a stored wheel under the file name that installers ask for."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            info = next(name for name in archive.namelist() if name.count("/") == 1 and name.endswith(".dist-info/WHEEL"))
            tag = next(line.split(":", 1)[1].strip() for line in archive.read(info).decode().splitlines() if line.startswith("Tag:"))
    except (zipfile.BadZipFile, StopIteration, KeyError, OSError) as error:
        raise RecipeFailure("environment_failed", f"The stored wheel of the SDK is no wheel ({error!r}).") from error
    named = folder / f"{info.split('/')[0].removesuffix('.dist-info')}-{tag}.whl"
    if "/" in tag or named.parent != folder:
        raise RecipeFailure("environment_failed", "The stored wheel of the SDK has a name that is none.")
    shutil.copyfile(wheel, named)
    return named


def install_own_sdk(site: Path) -> None:
    """Puts this worker's SDK there, for recipes that carry none. Found, not imported: the two meet only in a program."""
    found = importlib.util.find_spec("sdk")
    if not found or not found.submodule_search_locations:
        raise WorkerFault("the recipe carries no SDK and this worker has none installed; install encore-tracker beside it")
    package = Path(next(iter(found.submodule_search_locations)))
    shutil.copytree(package, site / "sdk", ignore=shutil.ignore_patterns("__pycache__"))
    if (package.parent / "encore.py").exists():
        shutil.copyfile(package.parent / "encore.py", site / "encore.py")
    try:
        version = importlib.metadata.version(SDK)
    except importlib.metadata.PackageNotFoundError:
        version = "0"
    write_metadata(site, SDK, version)


def write_metadata(site: Path, name: str, version: str) -> None:
    """So that ``importlib.metadata`` finds a package that was put in by hand."""
    info = site / f"{re.sub(r'[^A-Za-z0-9.]+', '_', name)}-{re.sub(r'[^A-Za-z0-9.+!]+', '_', version)}.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "INSTALLER").write_text("encore\n")


def _why(output: str, python: Path, env: dict[str, str], stop: threading.Event) -> RecipeFailure:
    """Which pin cannot be had, and what there is instead."""
    text = re.sub(r"\s+", " ", re.sub(r"[│╰─▶├]", " ", output))
    pin = re.search(r"no versions? of ([A-Za-z0-9._-]+)\s*==\s*([^\s,]+)", text) or re.search(
        r"([A-Za-z0-9._-]+)==([^\s,]+) has no (?:usable )?wheels", text
    )
    unknown = re.search(r"(?:Because|because|and) ([A-Za-z0-9._-]+) was not found in the", text)
    if pin:
        name, version = pin[1], pin[2].rstrip(".,;")
        near = [found for ask in (f"{name}<={version.split('+')[0]}", name) if (found := _nearest(ask, python, env, stop))]
        have = ", ".join(dict.fromkeys(near)) or "no other version"
        return RecipeFailure(
            "package_missing",
            f"{name} {version} cannot be had from the package sources of this worker, which offer {have}. "
            "Give it that version (pip's find-links or index settings are used), or run on a worker that has it.",
            missing=f"{name}=={version}",
            expected=version,
            found=have,
        )
    if unknown:
        return RecipeFailure(
            "package_missing",
            f"The package {unknown[1]} is not known to the package sources of this worker. "
            "Give them (pip's find-links or index settings are used).",
            missing=unknown[1],
        )
    if built := re.search(r"Failed to build [`']?([A-Za-z0-9._-]+)==([^\s`',]+)", text):
        return RecipeFailure(
            "environment_failed",
            f"{built[1]} {built[2]} is offered only as source here, and "
            "building it failed (its output is in the job's log). Offer a wheel of it.",
            missing=f"{built[1]}=={built[2]}",
        )
    return RecipeFailure("environment_failed", f"The packages could not be installed: {output.strip()[-1500:]}")


def _nearest(requirement: str, python: Path, env: dict[str, str], stop: threading.Event) -> str | None:
    command: list[str | Path] = [uv(), "pip", "compile", "--python", python, "--no-deps", "--no-header", "--no-annotate", "--quiet", "-"]
    found = shell.run(command, env=env, input=requirement + "\n", stop=stop, seconds=60, stderr=False)
    match = re.search(r"==(\S+)", found.output)
    return match[1] if found.returncode == 0 and match else None


def installed(environment: Environment) -> dict[str, tuple[str, str]]:
    """Normal name -> (name, version) of every distribution in the environment and its overlay."""
    folders = [str(environment.site_packages)]
    if environment.overlay:
        folders.append(str(site_packages(environment.overlay)))
    found: dict[str, tuple[str, str]] = {}
    for distribution in importlib.metadata.distributions(path=folders):
        name = distribution.metadata["Name"]
        if name:
            found.setdefault(normal(name), (name, distribution.version))
    return found


def with_editables(environment: Environment, folder: Path, packages: list[tuple[str, str, list[Path]]]) -> Environment:
    """An environment of this job alone over the kept one, to which ``packages`` (name, version, import roots) are added."""
    interpreter = environment.interpreter
    minor = ".".join(interpreter.version.split(".")[:2])
    site = folder / "lib" / f"python{minor}" / "site-packages"
    site.mkdir(parents=True)
    (folder / "bin").mkdir()
    (folder / "bin" / "python").symlink_to(interpreter.executable)
    for name in ("python3", f"python{minor}"):
        (folder / "bin" / name).symlink_to("python")
    (folder / "pyvenv.cfg").write_text(
        f"home = {Path(interpreter.executable).parent}\nversion = {interpreter.version}\ninclude-system-site-packages = false\n"
    )
    lines = [f"import site; site.addsitedir({str(environment.site_packages)!r})"]
    for name, version, roots in packages:
        lines += [str(root) for root in roots]
        write_metadata(site, name, version)
    (site / "_encore_editable.pth").write_text("\n".join(lines) + "\n")
    return Environment(environment.folder, interpreter, environment.fresh, overlay=folder, notes=environment.notes)


def compile_quietly(environment: Environment, log: Path) -> subprocess.Popen:
    """Compiles a new environment's bytecode beside whatever runs, so that the next run starts faster. Nobody waits for it."""
    command: list[str | Path] = [
        "nice",
        "-n",
        "19",
        environment.folder / "bin" / "python",
        "-I",
        "-m",
        "compileall",
        "-q",
        environment.site_packages,
    ]
    return shell.start_quietly(command, env=shell.bare_environment(), log=log)


def uv() -> str:
    beside = Path(sys.executable).parent / "uv"
    if beside.exists():
        return str(beside)
    found = shutil.which("uv")
    if not found:
        raise WorkerFault("uv is not installed beside this worker; install encore-tracker[runner]")
    return found
