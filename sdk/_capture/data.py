"""The data section: what the program read is fingerprinted (by the sender, never in the trainer), what it wrote is named."""

from __future__ import annotations

import contextlib
import os
import queue
import stat as stat_
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import _secrets
from . import digests, paths, source

Emit = Callable[[dict[str, Any]], Any]
Put = Callable[[Any], str]

STORE_BYTES = 8 << 20
STORE_ALL_BYTES = 512 << 20
MAX_INPUTS = 100_000
MAX_OUTPUTS = 20_000
MAX_FOLDER_FILES = 200_000
EMIT_EVERY_SECONDS = 1.0
EMIT_AT_MOST = 200
# An output is told when it has stayed: files written aside and renamed, or deleted again, are none.
OUTPUT_RESTS_SECONDS = 5.0

# (kind, variable that names the folder, its place below HOME when the variable is unset)
_CACHES = (
    ("huggingface", "HF_HOME", ".cache/huggingface"),
    ("huggingface", "HF_HUB_CACHE", None),
    ("huggingface", "HF_DATASETS_CACHE", None),
    ("huggingface", "TRANSFORMERS_CACHE", None),
    ("torch", "TORCH_HOME", ".cache/torch"),
    ("keras", "KERAS_HOME", ".keras"),
    ("nltk", "NLTK_DATA", "nltk_data"),
    ("scikit-learn", "SCIKIT_LEARN_DATA", "scikit_learn_data"),
    ("kaggle", "KAGGLEHUB_CACHE", ".cache/kagglehub"),
    ("tensorflow", "TFDS_DATA_DIR", "tensorflow_datasets"),
    ("tensorflow", "TFHUB_CACHE_DIR", None),
    ("gensim", "GENSIM_DATA_DIR", "gensim-data"),
)

# How long files wait for the trainer's facts before they are judged without them.
KNOW_SECONDS = 10.0

# By the writer that the results go to: what the journal tells and what /proc shows of one trainer must not be listed twice.
_shared: weakref.WeakValueDictionary[int, Fingerprints] = weakref.WeakValueDictionary()
_shared_lock = threading.Lock()


def store_limit() -> int:
    """Files up to this many bytes are stored, larger ones are fingerprinted only (`ENCORE_STORE_LIMIT`)."""
    try:
        return max(0, int(os.environ["ENCORE_STORE_LIMIT"]))
    except (KeyError, ValueError):
        return STORE_BYTES


def for_run(run: str, make: Callable[[], Fingerprints]) -> Fingerprints:
    """The Fingerprints of a run: `make`'s, which is one and the same for one writer."""
    return make()


class Fingerprints:
    """Turns `opened` documents into `recipe` documents of section `data`.

    `opened` and `declare` only queue; a thread of its own hashes, so that a large file never holds up the sending. `emit` must take calls
    from that thread. `capture` (the trainer's capture.json) says what is source, what is the run's start, and which folders are caches.
    """

    def __new__(cls, emit: Emit, put_blob: Put, capture: dict[str, Any] | None = None) -> Fingerprints:
        """The one object for the writer whose `put_blob` this is: made by whoever comes first. (`emit` may be wrapped: that is no sign.)"""
        owner = getattr(put_blob, "__self__", put_blob)
        with _shared_lock:
            found = _shared.get(id(owner))
            if found is None or found.owner is not owner or found.stop.is_set():
                found = super().__new__(cls)
                found._begin(owner, emit, put_blob)
                _shared[id(owner)] = found
        return found

    def __init__(self, emit: Emit, put_blob: Put, capture: dict[str, Any] | None = None) -> None:
        if capture and capture.get("format"):
            self.know(capture)

    def _begin(self, owner: object, emit: Emit, put_blob: Put) -> None:
        self.owner, self.emit, self.put_blob = owner, emit, put_blob
        self.root: str | None = None
        self.started_us = 0
        self.home = os.path.expanduser("~")
        self.skip: tuple[str, ...] = (os.path.join(paths.SDK_FOLDER, ""),)
        self.console: set[str] = set()
        self.caches: list[tuple[str, str]] = []
        self.in_source: set[str] = set()
        self.stored: set[str] = set()
        self.inputs: dict[str, dict[str, Any]] = {}
        self.outputs: set[str] = set()
        self.made: set[str] = set()
        self.used_caches: set[str] = set()
        self.resting: list[tuple[float, dict[str, Any]]] = []
        self.pending: dict[str, list[Any]] = {}
        self.stored_bytes = 0
        self.more = 0
        self.lock = threading.RLock()
        self.queue: queue.Queue[tuple[str, str, str, str | None] | threading.Event] = queue.Queue()
        self.thread: threading.Thread | None = None
        self.remembered = digests.Remembered()
        self.known = threading.Event()
        self.stop = threading.Event()

    def know(self, capture: dict[str, Any]) -> None:
        """Take the trainer's facts (again)."""
        self.root = capture.get("root") or self.root
        # What was written before the hook watched is an input, also if this program had it made: only from then on is it known who wrote.
        started = capture.get("watched_us") or capture.get("started_us") or 0
        self.started_us = min(started, self.started_us) if started and self.started_us else started or self.started_us  # the first rank's
        self.skip = tuple(dict.fromkeys([*self.skip, *(capture.get("skip") or [])]))
        self.console |= set(capture.get("console") or [])
        env = capture.get("env") or {}
        self.caches = []
        for kind, variable, below in _CACHES:
            folder = env.get(variable) or (os.path.join(self.home, below) if below else None)
            if folder and not folder.startswith("${"):
                self.caches.append((os.path.join(os.path.abspath(folder), ""), kind))
        self.known.set()

    def know_source(self, root: str, files: set[str], stored: set[str]) -> None:
        """The snapshot is taken: absolute paths of its files, and the digests that are stored with it."""
        with self.lock:
            self.root = root
            self.in_source |= files
            self.stored |= stored

    def opened(self, path: str, mode: str = "r", by: str = "open") -> None:
        """The program opened `path` (`r`, `w`, `a`, `r+`), renamed something to it (`w`), or made it as a folder (`d`)."""
        self._put((path, mode, by, None))

    def declare(self, path: str, name: str | None = None) -> None:
        """`sdk.use_data(path, name)`: fingerprinted whatever rules say; a folder as a manifest, an address by its name alone."""
        self._put((path, "r", "declared", name))

    def flush(self, timeout: float | None = 0.0) -> bool:
        """Emit what is fingerprinted. Waits at most `timeout` seconds (None: as long as it takes) for the rest; False when some is left.

        Without an argument it does not wait, so that the sender's loop may call it at any time.
        """
        done = threading.Event()
        if self.thread is None or not self.thread.is_alive():
            done.set()
        else:
            self.queue.put(done)
        finished = done.wait(timeout)
        self._emit(final=timeout is None)
        self.remembered.save()
        return finished

    def close(self) -> None:
        """Stop hashing at once; what is queued is given up."""
        self.stop.set()
        self.queue.put(threading.Event())

    def _put(self, item: tuple[str, str, str, str | None]) -> None:
        with self.lock:
            self.queue.put(item)
            if self.thread is None or not self.thread.is_alive():
                self.thread = threading.Thread(target=self._work, name="encore-fingerprints", daemon=True)
                self.thread.start()

    def _work(self) -> None:
        self.known.wait(KNOW_SECONDS)
        last = time.monotonic()
        while not self.stop.is_set():
            try:
                item = self.queue.get(timeout=EMIT_EVERY_SECONDS if self.pending else None)
            except queue.Empty:
                self._emit()
                continue
            if isinstance(item, threading.Event):
                item.set()
                continue
            path, mode, by, name = item
            try:
                self._take(path, mode, by, name)
            except Exception as error:
                self._gap(path, f"it could not be fingerprinted: {error}", "see whether the file can be read")
            if time.monotonic() - last >= EMIT_EVERY_SECONDS or sum(map(len, self.pending.values())) >= EMIT_AT_MOST:
                self._emit()
                last = time.monotonic()

    def _gap(self, what: str, why: str, mend: str) -> None:
        self._pend("gaps", {"what": what, "why": why, "mend": mend})

    def _pend(self, part: str, value: Any) -> None:
        with self.lock:
            self.pending.setdefault(part, []).append(value)

    def _emit(self, final: bool = False) -> None:
        until = time.monotonic() - (0 if final else OUTPUT_RESTS_SECONDS)
        with self.lock:
            rested = [value for at, value in self.resting if at <= until]
            self.resting = [each for each in self.resting if each[0] > until]
            pending, self.pending = self.pending, {}
        outputs = [value for value in rested if os.path.lexists(value["path"])]
        if outputs:
            pending["outputs"] = outputs
        if pending:
            self.emit({"type": "recipe", "section": "data", "value": pending, "merge": True})

    def _take(self, path: str, mode: str, by: str, name: str | None) -> None:
        if "://" in path and by == "declared":
            if path not in self.inputs:
                self._input(
                    {
                        "path": path,
                        "in_root": None,
                        "bytes": None,
                        "mtime_us": None,
                        "digest": None,
                        "strength": "path",
                        "stored": False,
                        "by": by,
                        "name": name,
                    }
                )
            return
        slash = path.endswith(os.sep)
        path = os.path.abspath(path)
        if by != "declared" and (path.startswith(self.skip) or path in self.console or paths.is_library(path)):
            return
        if mode == "d":
            self.made.add(os.path.join(path, ""))
            self._output(path, "folder")
            return
        if mode in ("w", "a"):
            self._output(path, by)
            return
        if mode == "r+":
            self._read(path, by, name, slash)
            self._output(path, by)
            return
        self._read(path, by, name, slash)

    def _output(self, path: str, by: str) -> None:
        if path in self.outputs:
            return
        if len(self.outputs) >= MAX_OUTPUTS:
            if not self.more:
                self._gap("outputs", f"more than {MAX_OUTPUTS} files were written; the others are not listed", "")
            self.more += 1
            return
        self.outputs.add(path)
        known = self.inputs.get(path)
        if known is not None:
            self._gap(path, "the run changed a file that it had read", "write results to a file of their own")
        value: dict[str, Any] = {"path": path, "in_root": self._in_root(path)}
        if by not in ("open", "mapped"):
            value["by"] = by
        with self.lock:
            self.resting.append((time.monotonic(), value))

    def _read(self, path: str, by: str, name: str | None, folder: bool = False) -> None:
        known = self.inputs.get(path)
        if known is not None and not (by == "declared" and known["by"] != "declared"):
            return
        in_root = self._in_root(path)
        if by != "declared":
            if path in self.outputs or (in_root is not None and source.is_code(path)) or (path in self.in_source and source.is_code(path)):
                return
            if any(path.startswith(made) for made in self.made):
                return
        if len(self.inputs) >= MAX_INPUTS:
            return
        value: dict[str, Any] = {
            "path": path,
            "in_root": in_root,
            "bytes": None,
            "mtime_us": None,
            "digest": None,
            "strength": "path",
            "stored": False,
            "by": by,
            "name": name,
        }
        try:
            stat = os.stat(path)
        except FileNotFoundError:
            if by == "declared":
                self._gap(path, "it was declared and does not exist", "correct the path given to use_data")
                self._input(value)
            return  # opened in vain, or gone already
        except OSError as error:
            self._gap(path, f"it could not be read: {error.strerror}", "make it readable for the sender's user")
            self._input(value)
            return
        value["mtime_us"] = stat.st_mtime_ns // 1000
        cache = next(((prefix, kind) for prefix, kind in self.caches if path.startswith(prefix)), None)
        if cache:
            value["cache"] = cache[1]
            self._cache(*cache)
        if by != "declared" and not cache and self.started_us and stat.st_mtime_ns // 1000 > self.started_us and not folder:
            # Written since the hook watches, by a writer that it does not see (C code, a child): the run's own.
            self._output(path, "mtime")
            return
        real = os.path.realpath(path)
        if real != path:
            value["target"] = real
        if stat_.S_ISDIR(stat.st_mode):
            if folder or by == "declared":
                self._folder(path, value)
            return
        if not stat_.S_ISREG(stat.st_mode):
            return
        value["bytes"] = stat.st_size
        if self._file(path, stat, value):
            self._input(value)

    def _file(self, path: str, stat: os.stat_result, value: dict[str, Any]) -> bool:
        """Fill in digest, strength and whether it is stored; False for what must not be listed as an input."""
        limit = store_limit()
        small = stat.st_size <= limit
        if small and stat.st_size <= source.MAX_FILE_BYTES:
            with open(path, "rb") as file:
                data = file.read(limit + 1)
            why = _secrets.secret_in_file(path, data)
            if why:
                self._gap(path, why + "; it is neither stored nor fingerprinted", "supply it to a rerun by name")
                return False
            value.update(digest=digests.digest(data), strength="full", bytes=len(data))
            if value["digest"] not in self.stored:
                if self.stored_bytes + len(data) > STORE_ALL_BYTES:
                    self._gap(
                        path,
                        f"more than {STORE_ALL_BYTES >> 20} MiB of small files; this one is fingerprinted only",
                        "keep the data where the rerun finds it",
                    )
                    return True
                self.put_blob(data)
                self.stored_bytes += len(data)
                self.stored.add(value["digest"])
            value["stored"] = True
            return True
        for _ in range(3):
            try:
                digest, strength, stat = self.remembered.of_file(path, self.stop)
                break
            except digests.Changed:
                continue
        else:
            self._gap(path, "it changes while it is read", "let the data rest during a run")
            return True
        value.update(digest=digest, strength=strength, bytes=stat.st_size, mtime_us=stat.st_mtime_ns // 1000)
        if strength == "sampled":
            self._gap(path, f"larger than {digests.FULL_BYTES >> 30} GiB: {digests.SAMPLES} samples of it are fingerprinted", "")
        if small and strength == "full":
            self.put_blob(Path(path))
            value["stored"] = True
        return True

    def _folder(self, path: str, value: dict[str, Any]) -> None:
        """A folder as a manifest: names, sizes and, up to the full limit, digests of its files; its digest is the manifest's."""
        files: list[tuple[str, os.stat_result]] = []
        for here, folders, names in os.walk(path):
            folders.sort()
            for each in sorted(names):
                file = os.path.join(here, each)
                try:
                    stat = os.stat(file)
                except OSError:
                    continue
                if stat_.S_ISREG(stat.st_mode):
                    files.append((file, stat))
            if len(files) > MAX_FOLDER_FILES:
                self._gap(path, f"more than {MAX_FOLDER_FILES} files; the first of them are fingerprinted", "pack them into fewer files")
                break
            if value["by"] != "declared":
                break  # the hook tells each folder by itself
        total = sum(stat.st_size for _, stat in files)
        entries: list[dict[str, Any]] = []
        for file, stat in files:
            digest = None
            if total <= digests.FULL_BYTES and not self.stop.is_set():
                with contextlib.suppress(OSError, digests.Changed):
                    digest = self.remembered.of_file(file, self.stop)[0]
            entries.append({"path": os.path.relpath(file, path).replace(os.sep, "/"), "bytes": stat.st_size, "digest": digest})
        entries.sort(key=lambda each: each["path"])
        manifest = digests.canonical({"format": 1, "files": entries})
        value.update(
            bytes=total, digest=digests.digest(manifest), strength="manifest", files=len(entries), manifest=self.put_blob(manifest)
        )
        self._input(value)

    def _input(self, value: dict[str, Any]) -> None:
        self.inputs[value["path"]] = value
        self._pend("inputs", value)

    def _cache(self, prefix: str, kind: str) -> None:
        if prefix not in self.used_caches:
            self.used_caches.add(prefix)
            self._pend("caches", {"path": prefix.rstrip(os.sep), "kind": kind})

    def _in_root(self, path: str) -> str | None:
        return paths.inside(path, self.root) if self.root else None
