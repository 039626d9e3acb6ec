"""The running SDK as a wheel, built the same byte for byte each time, so that a rerun installs just the SDK that logged the original."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import zipfile
from importlib import metadata
from pathlib import Path

from . import paths

DISTRIBUTION = "encore-tracker"
_REQUIRES = ("blake3>=1.0.5", "psutil>=6.0", "nvidia-ml-py>=12.560")
_SUFFIXES = (".py", ".pyi", ".typed", ".json", ".txt")
_EPOCH = (1980, 1, 1, 0, 0, 0)


def version() -> str:
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return "0"


def requires() -> list[str]:
    """The base requirements of the installed distribution (those without an extra), else those this version was written with."""
    try:
        found = [each for each in metadata.requires(DISTRIBUTION) or [] if "extra ==" not in each.replace("'", '"')]
    except metadata.PackageNotFoundError:
        found = []
    return sorted(found) or list(_REQUIRES)


def filename() -> str:
    return f"encore_tracker-{version()}-py3-none-any.whl"


def build() -> bytes:
    """The wheel's bytes. Equal files give equal bytes: fixed times, modes, order; stored, so no compressor's version shows."""
    package = Path(paths.SDK_FOLDER)
    files: list[tuple[str, bytes]] = []
    for folder, folders, names in os.walk(package):
        folders[:] = sorted(each for each in folders if each != "__pycache__" and not each.startswith("."))
        for name in sorted(names):
            if name.endswith(_SUFFIXES):
                path = Path(folder) / name
                files.append((f"{package.name}/{path.relative_to(package).as_posix()}", path.read_bytes()))
    alias = Path(paths.SDK_ALIAS)
    if alias.is_file():
        files.append((alias.name, alias.read_bytes()))
    info = f"encore_tracker-{version()}.dist-info"
    requirements = "".join(f"Requires-Dist: {each}\n" for each in requires())
    files += [
        (
            f"{info}/METADATA",
            f"Metadata-Version: 2.1\nName: {DISTRIBUTION}\nVersion: {version()}\nRequires-Python: >=3.10\n{requirements}".encode(),
        ),
        (f"{info}/WHEEL", b"Wheel-Version: 1.0\nGenerator: encore\nRoot-Is-Purelib: true\nTag: py3-none-any\n"),
        (f"{info}/entry_points.txt", b"[console_scripts]\nencore = sdk._cli:main\n"),
        (f"{info}/top_level.txt", f"{package.name}\nencore\n".encode()),
    ]
    files.sort()
    record = "".join(f"{name},sha256={_b64(hashlib.sha256(data).digest())},{len(data)}\n" for name, data in files) + f"{info}/RECORD,,\n"
    files.append((f"{info}/RECORD", record.encode()))
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, data in files:
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.external_attr = 0o100644 << 16
            entry.create_system = 3
            archive.writestr(entry, data)
    return out.getvalue()


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
