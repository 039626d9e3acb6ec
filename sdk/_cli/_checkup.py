"""What `encore doctor` can see without a server. Each check gives (state, sentence) pairs."""

from __future__ import annotations

import difflib
import importlib
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from .. import _filesystems, _place, _settings
from .._segments import MIN_FREE_BYTES, MIN_FREE_SHARE, reserve
from .._settings import Settings, start_process

OK, LOOK, ILL = "ok", "look", "ill"
Findings = list[tuple[str, str]]
NOT_OURS = ("ENCORE_TEST_", "ENCORE_WORKER_", "ENCORE_S3_", "ENCORE_BENCH_")  # read by parts that need not be installed here
ASK = "import sdk, sys; print(getattr(sys.modules[sdk.__name__ + '._settings'], 'VERSION', '?'), sdk.__file__)"


def shadowed() -> Findings:
    """A folder or file `sdk` beside the user's script comes before ours on sys.path."""
    ours = Path(__file__).resolve().parents[1]
    found: Findings = []
    for folder in dict.fromkeys([os.getcwd(), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]):
        for candidate in (Path(folder or ".") / "sdk", Path(folder or ".") / "sdk.py"):
            if candidate.exists() and candidate.resolve() != ours:
                found.append(
                    (ILL, f"{candidate.absolute()} shadows the SDK for scripts started there: `import encore as sdk`, or rename it")
                )
    return found or [(OK, f"sdk {_settings.VERSION} in {ours} is not shadowed here")]


def pythons() -> Findings:
    """The Python on the PATH is what `python train.py` uses; it may be another one than this command's."""
    found: Findings = []
    seen = {_installation(sys.executable)}
    for name in ("python", "python3"):
        path = shutil.which(name)
        if path is None or _installation(path) in seen:
            continue
        seen.add(_installation(path))
        said = _ask(path)
        if said is None:
            found.append((LOOK, f"`{name}` is {path}, without an sdk; this command's Python is {sys.executable}: install Encore there too"))
        elif (version := said.split(" ", 1)[0]) != _settings.VERSION:
            found.append((LOOK, f"`{name}` ({path}) has sdk {version}, this command {_settings.VERSION}: install the same in both"))
    return found or [(OK, f"Python {sys.version.split()[0]} at {sys.executable}")]


def _installation(python: str) -> str:
    """A virtual environment's Python is a link to another's: the folder tells them apart."""
    return f"{os.path.realpath(python)} {Path(python).absolute().parent}"


def _ask(python: str) -> str | None:
    try:
        process = start_process([python, "-c", ASK], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, cwd="/")
        out, _ = process.communicate(timeout=20)
        return out.decode("utf-8", "replace").strip() if process.returncode == 0 else None
    except (OSError, subprocess.SubprocessError):
        return None


def dependencies() -> Findings:
    """Without these there is no sender, no digest, no system metric."""
    missing = []
    for name in ("blake3", "psutil"):
        try:
            importlib.import_module(name)
        except Exception as error:
            missing.append((ILL, f"{name} cannot be imported ({error}): pip install --force-reinstall {name}"))
    return missing


# The environment --------------------------------------------------------------------------------------------------------------------


def variables(settings: Settings, environ: Mapping[str, str]) -> Findings:
    found: Findings = [(ILL, complaint) for complaint in settings.complaints]
    known = known_variables()
    for name in sorted(name for name in environ if name.startswith("ENCORE_")):
        if name not in known and not name.startswith(NOT_OURS):
            near = difflib.get_close_matches(name, sorted(known), 1, 0.75)
            found.append((ILL if near else LOOK, f"{name} means nothing to Encore" + (f": did you mean {near[0]}?" if near else "")))
    for name in sorted(environ):
        if re.fullmatch(r"ENCOR_\w+|ENCORES_\w+|(?i:encore_\w+)", name) and not name.startswith("ENCORE_"):
            found.append((LOOK, f"{name} is not read; the variables of Encore are written ENCORE_…"))
    if settings.mode == "disabled":
        found.append((LOOK, "ENCORE_MODE=disabled: nothing is kept of any run"))
    if settings.mode == "offline":
        found.append((LOOK, "ENCORE_MODE=offline: runs are kept here and sent by `encore sync`, not by themselves"))
    if settings.sender == "external":
        found.append((LOOK, "ENCORE_SENDER=external: runs are sent only if somebody runs `encore sync --watch` on the journal"))
        if settings.spool is not None:
            found.append((ILL, "ENCORE_SENDER=external and ENCORE_SPOOL contradict each other: without a sender nothing is drained"))
    if settings.spool is not None and os.path.abspath(settings.spool) == os.path.abspath(settings.journal):
        found.append((ILL, "ENCORE_SPOOL and ENCORE_JOURNAL are the same folder: leave ENCORE_JOURNAL unset, or give it a local one"))
    if environ.get("ENCORE_RUN_ID"):
        found.append((LOOK, f"ENCORE_RUN_ID={environ['ENCORE_RUN_ID']}: every training started here joins that one run"))
    if settings.rerun_error:
        found.append((LOOK, settings.rerun_error))
    if environ.get("ENCORE_TOKEN", "").strip() != environ.get("ENCORE_TOKEN", ""):
        found.append((ILL, "ENCORE_TOKEN has blanks around it: set it without them"))
    url, remembered = environ.get("ENCORE_URL"), _settings.credentials({k: v for k, v in environ.items() if k != "ENCORE_URL"})[0]
    if url and remembered and url.rstrip("/") != remembered and not environ.get("ENCORE_TOKEN"):
        found.append(
            (LOOK, f"ENCORE_URL={url} is not the server that `encore login` remembered ({remembered}), so that one's token is not used")
        )
    credentials = settings.home / "credentials.json"
    try:
        if os.name == "posix" and stat.S_IMODE(credentials.stat().st_mode) & 0o077:
            found.append((ILL, f"{credentials} can be read by others: chmod 600 {credentials}"))
    except OSError:
        pass
    return found or [(OK, "the ENCORE_ variables say nothing odd")]


def known_variables() -> set[str]:
    """Every ENCORE_ name that the installed packages know."""
    found: set[str] = set()
    for package in ("sdk", "tracker", "runner"):
        for path in (Path(__file__).resolve().parents[2] / package).rglob("*.py"):
            try:
                found.update(re.findall(r"\bENCORE_[A-Z0-9_]*[A-Z0-9]\b", path.read_text(encoding="utf-8")))
            except (OSError, ValueError):
                continue
    return found


# Folders ----------------------------------------------------------------------------------------------------------------------------


def journal(settings: Settings) -> Findings:
    found: Findings = []
    wanted = _filesystems.of(settings.journal)
    for place in _place.choose(settings):
        try:
            place.ready()
            _try(place.root)
        except OSError as error:
            found.append(
                (ILL, f"the journal {place.root} cannot be written ({error.strerror or error}): free space, or set ENCORE_JOURNAL")
            )
            continue
        how = "mapped" if place.mode == "map" else "by write(2)"
        if place.root == settings.journal:
            say = f"journal {place.root} ({wanted.kind}) can be written, {how}"
            if wanted.shared:
                found.append((LOOK, f"{say}; it is no local disk, so log() waits for it: set ENCORE_LOCAL to a folder on this node's disk"))
            else:
                found.append((OK, say))
        elif wanted.shared:
            where = f"{settings.journal} is on {wanted.kind}, where memory maps are not trusted"
            found.append((OK, f"{where}: the journal lies in {place.root} ({how}) and is drained into {place.spool}"))
        else:
            found.append((LOOK, f"the journal lies in {place.root} instead"))
        found += _room(place.root)
        break
    else:
        found.append((ILL, "no folder here can take a journal: of runs on this machine nothing is kept"))
    return found


def spool(settings: Settings) -> Findings:
    if settings.spool is None:
        return []
    there = _filesystems.of(settings.spool)
    try:
        _try(settings.spool, 1 << 16)
    except OSError as error:
        return [(ILL, f"the spool {settings.spool} cannot be written ({error.strerror or error})")]
    found = _room(settings.spool)
    if not there.shared:
        found.append((LOOK, f"the spool {settings.spool} is on {there.kind}, a disk of this machine: no other one sees it there"))
    else:
        found.append((OK, f"spool {settings.spool} ({there.kind}) can be written"))
    return found


def _try(folder: Path, size: int | None = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as aside:
        if size is None:
            reserve(Path(aside) / "trial.seg")
        else:
            (Path(aside) / "trial").write_bytes(bytes(size))


def _room(folder: Path) -> Findings:
    if not hasattr(os, "statvfs"):
        return []
    disk = os.statvfs(folder)
    free, total = disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize
    if free < MIN_FREE_BYTES and free < MIN_FREE_SHARE * total:
        return [(ILL, f"{folder}: {free >> 20} MiB of {total >> 30} GiB are free; below {MIN_FREE_SHARE:.0%} nothing is kept: free some")]
    if free < MIN_FREE_BYTES:
        return [(LOOK, f"{folder}: only {free >> 20} MiB are free")]
    if disk.f_files and disk.f_favail < 1000:
        return [(ILL, f"{folder}: only {disk.f_favail} more files can be made there (inodes): remove some")]
    return []


def unsent(settings: Settings) -> Findings:
    from .._sender.process import run_folders
    from .status import ago, row

    rows = [row(folder) for root in _place.roots(settings) for folder in run_folders(root)]
    found: Findings = []
    left = [each for each in rows if (each["unsent"] or each["unsent_files"]) and not each["sender"] and not each["drained"]]
    died = [each for each in left if "died" in each["why"]]
    for each in died[:3]:
        log = Path(each["folder"]) / "sender.log"
        lines = log.read_text(errors="replace").strip().splitlines()[-1:] if log.exists() else []
        found.append((ILL, f"the sender of run {each['run']} died{f' ({lines[0][:200]})' if lines else ''}: encore sync {each['folder']}"))
    if len(left) > len(died[:3]):
        oldest = max(each["age_seconds"] or 0 for each in left)
        found.append((ILL, f"{len(left)} runs have records that no sender is bringing, the oldest {ago(oldest)} old: encore sync"))
    for each in rows:
        if each["refused"]:
            found.append(
                (LOOK, f"of run {each['run']} the server refused {len(each['refused'])} ranges: {each['refused'][-1].get('message')}")
            )
        if each["sender"] and each["error"]:
            found.append((LOOK, f"run {each['run']}: {each['error']}"))
    newest = max((path.stat().st_mtime for root in _place.roots(settings) for path in root.glob("*/*/writer.json")), default=0.0)
    if newest > time.time() + 300:
        found.append((LOOK, f"a journal here is from the future ({ago(newest - time.time())} ahead): was the clock set back?"))
    return found or [(OK, f"{len(rows)} runs lie here, none left behind")]
