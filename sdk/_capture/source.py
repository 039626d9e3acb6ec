"""The source snapshot: the program's files as they lie in the working tree, by content, so that a rerun needs no remote."""

from __future__ import annotations

import base64
import fnmatch
import os
import stat as stat_
import threading
from collections.abc import Callable, Iterable
from typing import Any

from .. import _secrets
from . import digests, git, paths

MAX_FILE_BYTES = 10 << 20
MAX_ALL_BYTES = 200 << 20
MAX_FILES = 50_000
MAX_LEFT_OUT = 1_000
# Without git: text of any kind up to this, anything that is plainly code or configuration up to MAX_FILE_BYTES.
MAX_TEXT_BYTES = 1 << 20

CODE = frozenset(
    """
    .py .pyi .pyx .pxd .ipynb .c .cc .cpp .cxx .cu .cuh .h .hpp .rs .go .jl .lua .r .R .m .f90 .js .ts .sh .bash .so .pyd .proto
    .jinja .j2 .mako
    """.split()  # noqa: SIM905 - a list of words reads best as words
)
_CONFIG = frozenset(
    """
    .toml .cfg .ini .conf .json .yaml .yml .txt .md .rst .lock .gin .libsonnet .jsonnet .xml .properties .in .csv .tsv .jsonl
    .sql .vocab .bpe .model
    """.split()  # noqa: SIM905 - a list of words reads best as words
)
_NAMES = frozenset(["Makefile", "Dockerfile", "Pipfile", "Procfile", "Snakefile", "LICENSE", "Justfile"])
_SKIPPED_FOLDERS = frozenset(
    """
    __pycache__ node_modules site-packages dist-packages .git .hg .svn .tox .nox wandb mlruns .aim lightning_logs tb_logs
    .ipynb_checkpoints
    """.split()  # noqa: SIM905 - a list of words reads best as words
)


def is_code(path: str) -> bool:
    return os.path.splitext(path)[1] in CODE


class Snapshot:
    """Gathers files under their manifest names. Paths are bytes: names that are not UTF-8 exist."""

    def __init__(self, put_blob: Callable[[bytes], str], started_us: int, stop: threading.Event | None = None) -> None:
        self.put_blob, self.started_us = put_blob, started_us
        self.stop = stop or threading.Event()
        self.entries: dict[bytes, dict[str, Any]] = {}
        self.absolute: dict[bytes, bytes] = {}
        self.left_out: list[dict[str, Any]] = []
        self.left_out_more = 0
        self.changed: list[str] = []
        self.gaps: list[dict[str, str]] = []
        self.mounts: list[dict[str, str]] = []
        self.own: tuple[bytes, ...] = ()  # Encore's own folders below the root: journals, and a server's data with its keys
        self.bytes = 0

    def add(self, file: bytes, name: bytes, state: str, by_rule: bool = False) -> None:
        """Take the file at absolute path `file` under `name`; what cannot be taken is left out and named.

        `by_rule`: only what looks like a program's.
        """
        if name in self.entries or self.stop.is_set() or paths.is_own(os.path.realpath(os.fsdecode(file))):
            return
        if self.own and os.path.realpath(file).startswith(self.own):
            return
        try:
            found = os.lstat(file)
            if stat_.S_ISLNK(found.st_mode):
                return self._put(file, name, "120000", os.readlink(file), state, found)
            if stat_.S_ISDIR(found.st_mode):
                return None
            if not stat_.S_ISREG(found.st_mode):
                return self.leave(name, found.st_size, "it is no regular file")
            changed = found.st_mtime_ns // 1000 > self.started_us
            if changed and state == "untracked" and not is_code(os.fsdecode(file)):
                return None  # written after the start: an output (the data section names those), never a part of the program
            if found.st_size > MAX_FILE_BYTES:
                return self.leave(name, found.st_size, f"it is larger than {MAX_FILE_BYTES >> 20} MiB")
            if len(self.entries) >= MAX_FILES:
                return self.leave(name, found.st_size, f"more than {MAX_FILES} files")
            if self.bytes + found.st_size > MAX_ALL_BYTES:
                return self.leave(name, found.st_size, f"the snapshot would be larger than {MAX_ALL_BYTES >> 20} MiB")
            with open(file, "rb") as opened:
                data = opened.read(MAX_FILE_BYTES + 1)
            if by_rule and not _is_program_text(name, data):
                return self.leave(name, found.st_size, "it is data by its name or content; it is fingerprinted when the program reads it")
            why = _secrets.secret_in_file(os.fsdecode(name), data)
            if why:
                self.gaps.append({"what": _text(name), "why": why, "mend": "move the secret into an environment variable"})
                return self.leave(name, found.st_size, why)
            if changed:
                self.changed.append(_text(name))
            return self._put(file, name, "100755" if found.st_mode & 0o100 else "100644", data, state, found)
        except OSError as error:
            return self.leave(name, None, f"it could not be read: {error.strerror or error}")

    def _put(self, file: bytes, name: bytes, mode: str, data: bytes, state: str, found: os.stat_result) -> None:
        digest = self.put_blob(data)
        self.entries[name] = {**_named(name), "mode": mode, "bytes": len(data), "digest": digest, "state": state}
        self.absolute[file] = name
        self.bytes += len(data)

    def leave(self, name: bytes, size: int | None, why: str) -> None:
        if len(self.left_out) < MAX_LEFT_OUT:
            self.left_out.append({"path": _text(name), "bytes": size, "why": why})
        else:
            self.left_out_more += 1

    def repository(
        self, root: str, prefix: bytes = b"", untracked: bool = True, depth: int = 0, state: str | None = None
    ) -> dict[str, Any]:
        """Take a git repository's working tree, with its submodules. Returns its facts. Raises git.GitFailed."""
        status = git.look(root, untracked)
        base = os.fsencode(root)
        submodules = []
        # Programs before data and small before large, so that the limit hits what can be missed most easily.
        wanted = [(path, status.states.get(path, "tracked")) for path, mode in status.tracked.items() if mode != "160000"]
        wanted += [(path, "untracked") for path in status.untracked if not path.endswith(b"/")]
        for path, found in sorted(wanted, key=lambda each: _weight(base, each[0])):
            self.add(os.path.join(base, path), prefix + path, state or found)
        # A file that the run itself has written by now does not make the source dirty.
        status.facts["dirty"] |= any(prefix + path in self.entries for path in status.untracked)
        nested = [(path, "submodule") for path, mode in status.tracked.items() if mode == "160000"]
        nested += [(path.rstrip(b"/"), "nested") for path in status.untracked if path.endswith(b"/")]
        for path, kind in nested:
            inner = os.fsdecode(os.path.join(base, path))
            if depth >= 5 or not os.path.exists(os.path.join(inner, ".git")):
                self.leave(
                    prefix + path, None, "a submodule that is not checked out" if kind == "submodule" else "a repository within, too deep"
                )
                continue
            try:
                facts = self.repository(inner, prefix + path + b"/", depth=depth + 1, state=state)
                submodules.append({"path": _text(prefix + path), **facts})
            except git.GitFailed as error:
                self.leave(prefix + path, None, f"git: {error}")
        return {**status.facts, **({"submodules": submodules} if submodules else {})}

    def folder(self, root: str, prefix: bytes = b"", state: str = "untracked") -> None:
        """Take a folder that no git describes, by rule."""
        base = os.fsencode(root)
        ignored = _ignore_lines(root)
        found: list[bytes] = []
        for here, folders, names in os.walk(base):
            relative = os.path.relpath(here, base)
            lead = b"" if relative == b"." else relative + b"/"
            folders[:] = sorted(each for each in folders if not _is_skipped(os.path.join(here, each), each))
            for link in [each for each in folders if os.path.islink(os.path.join(here, each))]:
                found.append(lead + link)
            found += [lead + each for each in names if not each.endswith((b".pyc", b".pyo", b".swp", b"~")) and each != b".DS_Store"]
            if len(found) > 4 * MAX_FILES:
                self.gaps.append(
                    {"what": _text(base), "why": "the folder holds too many files", "mend": "put the program into a git repository"}
                )
                break
        for path in sorted(found, key=lambda each: _weight(base, each)):
            if not any(
                fnmatch.fnmatch(os.fsdecode(path), line) or fnmatch.fnmatch(os.path.basename(os.fsdecode(path)), line) for line in ignored
            ):
                self.add(os.path.join(base, path), prefix + path, state, by_rule=True)

    def modules(self, modules: dict[str, str], root: str) -> None:
        """Take what was imported and lies in no snapshot yet: ignored modules of the root, and packages outside it as mounts."""
        known = {os.path.realpath(os.fsdecode(each)) for each in self.absolute}
        outside: dict[str, set[str]] = {}
        for name, file in sorted(modules.items()):
            real = os.path.realpath(file)
            if real in known or paths.is_library(real) or paths.is_own(real) or not os.path.isfile(real):
                continue
            inner = paths.inside(file, root)
            if inner is not None:
                self.add(os.fsencode(os.path.join(root, inner)), os.fsencode(inner), "untracked")
                continue
            mount = next((each for each in self.mounts if paths.inside(real, each["at"])), None)
            if mount is not None:
                self.add(os.fsencode(real), os.fsencode(mount["prefix"] + (paths.inside(real, mount["at"]) or "")), "editable")
                continue
            base = _import_base(name, os.path.abspath(file))
            if base is not None and not paths.is_library(os.path.join(base, "")):
                outside.setdefault(base, set()).add(name.partition(".")[0])
        for base in sorted(outside):
            prefix = self.mount(base)
            for top in sorted(outside[base]):
                package = os.path.join(base, top)
                if os.path.isdir(package):
                    self.folder(package, os.fsencode(prefix + top + "/"), "editable")
                else:
                    for file in {each for name, each in modules.items() if name == top}:
                        self.add(os.fsencode(file), os.fsencode(prefix + os.path.basename(file)), "editable")

    def editables(self, folders: Iterable[str], root: str) -> None:
        """Take project folders outside the root that are installed editable: no index has them."""
        for folder in folders:
            if (
                paths.inside(folder, root) is not None
                or paths.too_wide(folder)
                or any(paths.inside(folder, each["at"]) for each in self.mounts)
            ):
                continue
            prefix = os.fsencode(self.mount(folder))
            if os.path.exists(os.path.join(folder, ".git")):
                try:
                    self.repository(folder, prefix, state="editable")
                    continue
                except git.GitFailed:
                    pass
            self.folder(folder, prefix, "editable")

    def mount(self, at: str) -> str:
        """The prefix in the manifest for files from folder `at` outside the root."""
        prefix = f".encore/mounts/{len(self.mounts)}-{os.path.basename(at) or 'root'}/"
        self.mounts.append({"at": at, "prefix": prefix})
        return prefix

    def manifest(self) -> dict[str, Any]:
        return {"format": 1, "files": [self.entries[name] for name in sorted(self.entries)], "mounts": self.mounts}

    def tree(self) -> str:
        """The tree digest: blake3 of `mode SP digest SP path LF` of all files in order of their paths' bytes."""
        return tree_digest((name, entry["mode"], entry["digest"]) for name, entry in sorted(self.entries.items()))

    def value(self, root: str, facts: dict[str, Any] | None) -> dict[str, Any]:
        """The source section; its manifest is stored."""
        gaps = list(self.gaps)
        large = [each for each in self.left_out if "larger" in each["why"] or "more than" in each["why"]]
        if large:
            names = ", ".join(each["path"] for each in large[:5])
            gaps.append(
                {
                    "what": "source files",
                    "why": f"{len(large) + self.left_out_more} files were left out by size: {names}",
                    "mend": "keep large files outside the source tree; files that the program reads are fingerprinted",
                }
            )
        if self.changed:
            gaps.append(
                {
                    "what": "source files",
                    "why": f"changed after the program had started: {', '.join(self.changed[:5])}",
                    "mend": "do not edit files in the first second of a run",
                }
            )
        value: dict[str, Any] = {
            "root": root,
            "git": facts,
            "manifest": self.put_blob(digests.canonical(self.manifest())),
            "tree": self.tree(),
            "files": len(self.entries),
            "bytes": self.bytes,
            "left_out": self.left_out,
            "changed_since_start": sorted(self.changed),
        }
        if self.left_out_more:
            value["left_out_more"] = self.left_out_more
        if gaps:
            value["gaps"] = gaps
        return value


def take(
    capture: dict[str, Any], put_blob: Callable[[bytes], str], stop: threading.Event | None = None, editables: Iterable[str] = ()
) -> tuple[Snapshot, dict[str, Any], str]:
    """The snapshot for a trainer's `capture.json`: (snapshot, source section, root). `editables`: folders installed editable."""
    entry = (capture.get("entry") or {}).get("path")
    cwd = capture.get("cwd") or os.getcwd()
    root = capture.get("root")
    if not root or not os.path.isdir(root):
        root, _ = paths.source_root(entry, cwd)
    snapshot = Snapshot(put_blob, capture.get("started_us") or 0, stop)
    inside = os.path.join(os.path.realpath(root), "")
    below = [os.path.join(os.path.realpath(each), "") for each in paths.encore_folders()]
    snapshot.own = tuple(os.fsencode(each) for each in below if each != inside and each.startswith(inside))
    facts: dict[str, Any] | None = None
    wide = paths.too_wide(root)
    if os.path.exists(os.path.join(root, ".git")):
        try:
            facts = snapshot.repository(root, untracked=not wide)
        except git.GitFailed as error:
            snapshot.gaps.append({"what": "git", "why": str(error), "mend": "install git, or make the repository readable for it"})
    if facts is None and not wide:
        snapshot.folder(root)
    if entry and os.path.isfile(entry) and paths.inside(entry, root) is not None:
        inner = paths.inside(entry, root)
        snapshot.add(os.fsencode(entry), os.fsencode(inner or os.path.basename(entry)), "untracked")
    snapshot.editables(editables, root)
    snapshot.modules(capture.get("modules") or {}, root)
    if facts is None and os.path.exists(os.path.join(root, ".git")) is False:
        snapshot.gaps.append(
            {
                "what": "git",
                "why": "the program lies in no git repository",
                "mend": "git init && git add -A: then each run names its commit",
            }
        )
    return snapshot, snapshot.value(root, facts), root


def tree_digest(files: Iterable[tuple[bytes, str, str]]) -> str:
    """The digest of (path, mode, digest) triples in the order given."""
    return digests.digest(b"".join(f"{mode} {digest} ".encode() + name + b"\n" for name, mode, digest in files))


def entry_path(entry: dict[str, Any]) -> bytes:
    """A manifest entry's path as bytes."""
    return base64.b64decode(entry["path_b64"]) if "path_b64" in entry else entry["path"].encode()


def _named(name: bytes) -> dict[str, str]:
    try:
        return {"path": name.decode()}
    except UnicodeDecodeError:
        return {"path_b64": base64.b64encode(name).decode()}


def _text(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")


def _weight(base: bytes, path: bytes) -> tuple[bool, int, bytes]:
    try:
        size = os.lstat(os.path.join(base, path)).st_size
    except OSError:
        size = 0
    return (not is_code(os.fsdecode(path)), size, path)


def _is_program_text(name: bytes, data: bytes) -> bool:
    text = os.fsdecode(os.path.basename(name))
    suffix = os.path.splitext(text)[1]
    if suffix in CODE or text in _NAMES:
        return True
    if suffix.lower() in _CONFIG:
        return len(data) <= MAX_TEXT_BYTES
    return len(data) <= MAX_TEXT_BYTES // 4 and b"\0" not in data[:8192]


def _is_skipped(path: bytes, name: bytes) -> bool:
    text = os.fsdecode(name)
    return (
        text in _SKIPPED_FOLDERS
        or text.startswith(".")
        or text.endswith(".egg-info")
        or os.path.exists(os.path.join(path, b"pyvenv.cfg"))
        or os.path.exists(os.path.join(path, b"conda-meta"))
    )


def _ignore_lines(root: str) -> list[str]:
    try:
        with open(os.path.join(root, ".encoreignore"), encoding="utf-8") as file:
            return [line.strip().rstrip("/") for line in file if line.strip() and not line.startswith("#")]
    except (OSError, UnicodeDecodeError):
        return []


def _import_base(name: str, file: str) -> str | None:
    """The folder on sys.path from which module `name` came, by its file; None where they do not fit (`__main__`, generated modules)."""
    parts = name.split(".")
    stem, path = os.path.splitext(os.path.basename(file))[0].partition(".")[0], os.path.dirname(file)
    if stem == "__init__":
        stem, path = os.path.basename(path), os.path.dirname(path)
    for part in reversed(parts):
        if part != stem:
            return None
        stem, base, path = os.path.basename(path), path, os.path.dirname(path)
    return base
