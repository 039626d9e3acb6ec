"""Every installed distribution on the trainer's path, and what the machine's Python is made of."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from . import digests, git, paths, wheel

_LOCKS = (
    "requirements.txt", "requirements.in", "requirements.lock", "requirements-dev.txt", "pyproject.toml", "uv.lock", "poetry.lock",
    "pdm.lock", "pylock.toml", "Pipfile", "Pipfile.lock", "environment.yml", "environment.yaml", "conda-lock.yml", "pixi.toml",
    "pixi.lock", "setup.py", "setup.cfg", ".python-version",
)  # fmt: skip
MAX_LOCK_BYTES = 10 << 20


def canonical_name(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def packages(sys_path: list[str]) -> list[dict[str, Any]]:
    """`{"name", "version", "from"}` of each distribution on `sys_path`, the first on the path winning, sorted by name."""
    found: dict[str, dict[str, Any]] = {}
    for distribution in metadata.distributions(path=[each for each in dict.fromkeys(sys_path) if os.path.isdir(each)]):
        try:
            name, version = _name_version(distribution)
        except Exception:  # noqa: S112 - a half-removed distribution
            continue
        if not name or not version:
            continue
        found.setdefault(canonical_name(name), {"name": name, "version": version, "from": _origin(distribution)})
    return [found[name] for name in sorted(found)]


def _name_version(distribution: metadata.Distribution) -> tuple[str | None, str | None]:
    """From the head of METADATA: parsing all of it costs a millisecond a package."""
    text = distribution.read_text("METADATA") or distribution.read_text("PKG-INFO")
    if text is None:
        return distribution.metadata["Name"], distribution.version
    head = text.split("\n\n", 1)[0]
    fields = dict(re.findall(r"^(Name|Version):[ \t]*(.+?)[ \t\r]*$", head, flags=re.M))
    return fields.get("Name"), fields.get("Version")


def _origin(distribution: metadata.Distribution) -> dict[str, Any]:
    installer = (distribution.read_text("INSTALLER") or "").strip()
    record = distribution.read_text("RECORD")
    # Of the list of files and their digests: equal for equal wheels, up to what the installer adds.
    hashed = "sha256:" + hashlib.sha256(_wheel_lines(record).encode()).hexdigest() if record else None
    origin: dict[str, Any] = {"kind": "index", "url": None, "hash": hashed}
    if installer:
        origin["installer"] = installer
    try:
        direct = json.loads(distribution.read_text("direct_url.json") or "null")
    except ValueError:
        direct = None
    if not isinstance(direct, dict):
        origin["kind"] = "conda" if installer == "conda" else "index" if record or installer else "unknown"
        return origin
    url = str(direct.get("url", ""))
    origin["url"] = git.mask_url(url)
    if "vcs_info" in direct:
        info = direct["vcs_info"]
        origin.update(kind="vcs", vcs=info.get("vcs"), commit=info.get("commit_id"), revision=info.get("requested_revision"))
    elif "dir_info" in direct:
        origin["kind"] = "editable" if direct["dir_info"].get("editable") else "path"
    elif "archive_info" in direct:
        info = direct["archive_info"]
        hashes = info.get("hashes") or {}
        archive = info.get("hash", "").replace("=", ":") or next((f"{name}:{value}" for name, value in hashes.items()), None)
        origin["kind"] = "path" if url.startswith("file:") else "url"
        if archive:
            origin["archive_hash"] = archive
    if "subdirectory" in direct:
        origin["subdirectory"] = direct["subdirectory"]
    return origin


def _wheel_lines(record: str) -> str:
    keep = [
        line
        for line in record.splitlines()
        if not re.search(r"(\.pyc|/INSTALLER|/RECORD|/REQUESTED|/direct_url\.json|/uv_cache\.json|/uv_build\.json)(,|$)", line)
        and not line.startswith("../")
    ]
    return "\n".join(sorted(keep))


def lock(found: list[dict[str, Any]]) -> str:
    """Digest of the canonical JSON of `[[name, version], …]` sorted."""
    return digests.digest(digests.canonical(sorted([canonical_name(each["name"]), each["version"]] for each in found)))


def local_folders(found: list[dict[str, Any]]) -> list[str]:
    """Project folders of what was installed editable or from a folder (less Encore's own), which no index has."""
    folders = []
    for each in found:
        url = each["from"]["url"] or ""
        if (
            each["from"]["kind"] in ("editable", "path")
            and url.startswith("file://")
            and canonical_name(each["name"]) != wheel.DISTRIBUTION
        ):
            folder = unquote(urlsplit(url).path)
            if os.path.isdir(folder):
                folders.append(folder)
    return sorted(set(folders))


def facts(
    capture: dict[str, Any], root: str | None, put_blob: Callable[[bytes], str], all_found: list[dict[str, Any]] | None = None
) -> dict[str, Any]:
    """The environment section, of the trainer's interpreter (which need not be the sender's)."""
    all_found = all_found or packages(capture.get("sys_path") or sys.path)
    # Encore itself is no package of the program: it comes along as a wheel, below.
    found = [each for each in all_found if canonical_name(each["name"]) != wheel.DISTRIBUTION]
    python = {
        "version": platform.python_version(),
        "implementation": sys.implementation.name,
        "build": sys.version,
        **(capture.get("python") or {}),
        "prefix": capture.get("prefix") or sys.prefix,
        "base_prefix": capture.get("base_prefix") or sys.base_prefix,
        "executable": capture.get("executable") or sys.executable,
    }
    value: dict[str, Any] = {
        "python": python,
        "packages": found,
        "lock": lock(found),
        "platform": {"system": platform.system(), "machine": platform.machine(), "libc": " ".join(platform.libc_ver()).strip() or None},
        "files": lock_files(root, put_blob) if root else [],
        "conda": conda(str(python["prefix"]), capture.get("env") or {}),
        "container": container(),
        "sdk": {"version": wheel.version(), "wheel": put_blob(wheel.build()), "filename": wheel.filename()},
    }
    gaps = []
    for each in found:
        if each["from"]["kind"] in ("path", "editable"):
            why = f"installed from {each['from']['url']}, which another machine does not have"
            gaps.append(
                {"what": each["name"], "why": why, "mend": "its files are stored with the source; better, install a released version"}
            )
    if value["conda"]:
        gaps.append(
            {
                "what": "conda",
                "why": "packages of a conda environment that are no Python packages are named, not stored",
                "mend": "keep the environment's lock beside the code",
            }
        )
    if gaps:
        value["gaps"] = gaps
    return value


def lock_files(root: str, put_blob: Callable[[bytes], str]) -> list[dict[str, str]]:
    """Lock and requirement files at the root and one folder below `requirements/`."""
    found = []
    candidates = (
        [Path(root) / name for name in _LOCKS]
        + sorted(Path(root).glob("requirements*/*.txt"))
        + sorted(Path(root).glob("requirements-*.txt"))
    )
    for path in dict.fromkeys(candidates):
        try:
            if path.is_file() and path.stat().st_size <= MAX_LOCK_BYTES:
                found.append({"path": path.relative_to(root).as_posix(), "digest": put_blob(path.read_bytes())})
        except OSError:
            continue
    return found


def conda(prefix: str, env: dict[str, str]) -> dict[str, Any] | None:
    """The conda environment at `prefix`: its name and its packages (name, version, build, channel)."""
    folder = Path(prefix) / "conda-meta"
    if not folder.is_dir():
        return None
    listed = []
    for file in sorted(folder.glob("*.json")):
        try:
            each = json.loads(file.read_text(encoding="utf-8"))
            listed.append(
                {
                    "name": each["name"],
                    "version": each["version"],
                    "build": each.get("build"),
                    "channel": git.mask_url(str(each.get("channel") or "")),
                }
            )
        except (OSError, ValueError, KeyError):
            continue
    return {"prefix": prefix, "name": env.get("CONDA_DEFAULT_ENV") or Path(prefix).name, "packages": listed}


def container(root: str = "/", environ: dict[str, str] | None = None) -> dict[str, Any] | None:
    """The container this runs in, as far as it can be told from within: kind, id, image."""
    environ = dict(os.environ) if environ is None else environ
    kind = None
    if os.path.exists(os.path.join(root, ".dockerenv")):
        kind = "docker"
    elif os.path.exists(os.path.join(root, "run/.containerenv")):
        kind = "podman"
    elif environ.get("APPTAINER_CONTAINER") or environ.get("SINGULARITY_CONTAINER"):
        kind = "apptainer"
    elif environ.get("KUBERNETES_SERVICE_HOST"):
        kind = "kubernetes"
    identity = None
    for name in ("proc/self/cgroup", "proc/self/mountinfo"):
        try:
            text = Path(root, name).read_text()
        except OSError:
            continue
        match = re.search(r"(?:docker|containers|libpod|cri-containerd|crio|kubepods)[^\s]*?[/:-]([0-9a-f]{64})", text)
        if match:
            identity = match[1]
            kind = kind or ("kubernetes" if "kubepods" in text else "docker")
            break
    if kind is None:
        return None
    image = next(
        (
            environ[name]
            for name in ("ENCORE_IMAGE", "CONTAINER_IMAGE", "APPTAINER_CONTAINER", "SINGULARITY_CONTAINER", "IMAGE_NAME", "DOCKER_IMAGE")
            if environ.get(name)
        ),
        None,
    )
    return {"kind": kind, "id": identity, "image": git.mask_url(image) if image else None, "digest": environ.get("ENCORE_IMAGE_DIGEST")}


def is_installed(path: str) -> bool:
    return paths.is_library(path)
