"""A run in one file (docs/formats.md, Bundle): a zip that a person can follow by hand, and a reader that trusts nothing in it."""

from __future__ import annotations

import io
import json
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from blake3 import blake3

from tracker.domain.ids import id_from_bytes
from tracker.store import blocks
from tracker.store.backends.base import MissingObject

FORMAT = 1
INDEX = "bundle.json"
NEEDED = ("README.md", "run.json", "recipe.json")
NAME = re.compile(
    r"README\.md|run\.json|recipe\.json|blobs/[0-9a-f]{64}|series/[a-z2-7]{26}/(?:0|[1-9][0-9]{0,18})-(?:0|[1-9][0-9]{0,18})\.block"
    r"|verdicts/[a-z2-7]{26}\.json"
)
MOST_BYTES = 64 * 2**30
"""Of all contents together, inflated. They pass through in pieces, so this bounds time, not memory."""
MOST_DOCUMENT = 64 * 2**20
"""Of a JSON document, which is read whole."""
MOST_ENTRIES = 500_000
_CHUNK = 2**20
_DATE = (1980, 1, 1, 0, 0, 0)  # the earliest a zip can say; the same run gives the same bytes


class BadBundle(Exception):
    """The file is no bundle, or not what its index says. The message names the entry."""


class NewerBundle(BadBundle):
    """Made by a later version of this program."""


@dataclass(slots=True)
class Part:
    """One file of the bundle: its bytes, or how to open them, and then how many there are."""

    path: str
    data: bytes | Callable[[], BinaryIO]
    bytes: int = 0


@dataclass(slots=True)
class Content:
    path: str
    digest: str
    bytes: int


# -- writing ------------------------------------------------------------------------------------------------------------------------


def write(file: BinaryIO, *, run: str, created_us: int, parts: Iterable[Part], left_out: Iterable[dict[str, str]] = ()) -> list[Content]:
    """Write the bundle of ``run`` to ``file``; the same parts give the same bytes. Returns its contents, by path.

    ``left_out``: ``{"digest", "what", "why"}`` of what belongs here and cannot be had; bytes that the store turns out to have lost
    join it. Raises BadBundle for a part that no reader would accept.
    """
    contents: list[Content] = []
    lost: list[dict[str, str | None]] = [dict(entry) for entry in left_out]
    with zipfile.ZipFile(file, "w") as archive:
        for part in sorted(parts, key=lambda part: part.path):
            if not NAME.fullmatch(part.path) or (contents and contents[-1].path == part.path):
                raise BadBundle(f"{part.path!r} is no name of a bundle's content, or it is there twice")
            try:
                source = io.BytesIO(part.data) if isinstance(part.data, bytes) else part.data()
            except MissingObject:
                digest = f"blake3:{part.path[6:]}" if part.path.startswith("blobs/") else None
                lost.append({"digest": digest, "what": part.path, "why": "the store has lost its bytes"})
                continue
            with source:
                contents.append(_add(archive, part, source))
        index = {"format": FORMAT, "run": run, "created_us": created_us, "contents": [vars_of(content) for content in contents]}
        index["left_out"] = sorted(lost, key=lambda entry: (entry["what"], str(entry["digest"])))
        archive.writestr(_info(INDEX, zipfile.ZIP_DEFLATED), document(index))
    return contents


def document(value: Any) -> bytes:
    """Canonical JSON (docs/formats.md, Recipe)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")


def vars_of(content: Content) -> dict[str, Any]:
    return {"path": content.path, "digest": content.digest, "bytes": content.bytes}


def _info(path: str, method: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(path, _DATE)
    info.create_system = 3  # Unix, wherever it is written: the mode below says "regular file"
    info.external_attr = (stat.S_IFREG | 0o644) << 16
    info.compress_type = method
    return info


def _add(archive: zipfile.ZipFile, part: Part, source: BinaryIO) -> Content:
    hasher, size = blake3(), 0
    # Blocks are packed already.
    info = _info(part.path, zipfile.ZIP_STORED if part.path.endswith(".block") else zipfile.ZIP_DEFLATED)
    known = len(part.data) if isinstance(part.data, bytes) else part.bytes
    with archive.open(info, "w", force_zip64=known >= 2**31) as target:
        while chunk := source.read(_CHUNK):
            hasher.update(chunk)
            size += len(chunk)
            target.write(chunk)
    digest = hasher.hexdigest()
    if part.path.startswith("blobs/") and part.path != f"blobs/{digest}":
        raise BadBundle(f"the store holds other bytes for {part.path} than its digest says: they were damaged there")
    return Content(part.path, f"blake3:{digest}", size)


# -- reading ------------------------------------------------------------------------------------------------------------------------


@dataclass
class Bundle:
    """A bundle whose every byte was checked once. ``file`` must stay as it is as long as this is used."""

    run: str
    created_us: int
    contents: list[Content]
    left_out: list[dict[str, Any]]
    _archive: zipfile.ZipFile
    _by_path: dict[str, Content] = field(default_factory=dict)

    def read(self, path: str, most: int = MOST_DOCUMENT) -> bytes:
        """All of one content. Raises KeyError, BadBundle (more than ``most`` bytes, or changed since)."""
        content = self._by_path[path]
        if content.bytes > most:
            raise BadBundle(f"{path} has {content.bytes} bytes; at most {most} are read at once")
        kept = io.BytesIO()
        _verify(self._archive, content, kept.write)
        return kept.getvalue()

    def json(self, path: str) -> Any:
        return _json(path, self.read(path))

    def blocks(self) -> Iterable[tuple[str, bytes]]:
        """(writer's id, block object) of all series, by writer and record."""
        found = [content.path for content in self.contents if content.path.startswith("series/")]
        for path in sorted(found, key=lambda path: (path.split("/")[1], int(path.split("/")[2].partition("-")[0]))):
            yield path.split("/")[1], self.read(path, MOST_BYTES)


def read(file: BinaryIO, most: int = MOST_BYTES) -> Bundle:
    """Check the whole bundle: names, kinds, sizes (while inflating) and every digest. Nothing is written anywhere.

    Raises NewerBundle, BadBundle.
    """
    try:
        archive = zipfile.ZipFile(file)
        infos = _entries(archive)
        index = _index(archive, infos)
        contents = [_content(entry) for entry in index["contents"]]
        _agree(infos, contents, most)
        for content in contents:
            head = bytearray()
            _verify(archive, content, lambda chunk, head=head: head.extend(chunk[: max(0, blocks.HEAD.size - len(head))]))
            _named_rightly(content, bytes(head))
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError, RuntimeError, ValueError, OSError) as problem:
        raise BadBundle(f"this is no whole zip of a bundle: {problem}") from None
    bundle = Bundle(index["run"], index["created_us"], contents, index["left_out"], archive, {each.path: each for each in contents})
    told = bundle.json("run.json")
    if not isinstance(told, dict) or told.get("id") != bundle.run:
        raise BadBundle(f"run.json is not of the run {bundle.run} that {INDEX} names")
    if not isinstance(bundle.json("recipe.json"), dict):
        raise BadBundle("recipe.json is no object")
    return bundle


def _entries(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    infos: dict[str, zipfile.ZipInfo] = {}
    if len(archive.infolist()) > MOST_ENTRIES:
        raise BadBundle(f"it has more than {MOST_ENTRIES} entries")
    for info in archive.infolist():
        # As it stands in the file: zipfile cuts names at NUL and turns separators.
        name = info.orig_filename
        if name != info.filename or not (name == INDEX or NAME.fullmatch(name)):
            raise BadBundle(f"{name[:200]!r} is no name of a bundle's content")
        if name in infos:
            raise BadBundle(f"{name} is there twice")
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG):
            raise BadBundle(f"{name} is no regular file (a link, or a device)")
        if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise BadBundle(f"{name} is encrypted, or neither stored nor deflated")
        infos[name] = info
    return infos


def _index(archive: zipfile.ZipFile, infos: dict[str, zipfile.ZipInfo]) -> dict[str, Any]:
    if INDEX not in infos:
        raise BadBundle(f"it has no {INDEX}")
    found = _json(INDEX, b"".join(_pieces(archive, INDEX, MOST_DOCUMENT)))
    version = found.get("format") if isinstance(found, dict) else None
    if _is_int(version) and version > FORMAT:
        raise NewerBundle(f"the bundle has format {version}; this program reads {FORMAT}. Update it.")
    if version != FORMAT or not isinstance(version, int) or isinstance(version, bool):
        raise BadBundle(f"{INDEX} names no format")
    if not isinstance(found.get("run"), str) or not re.fullmatch("[a-z2-7]{26}", found["run"]) or not _is_int(found.get("created_us")):
        raise BadBundle(f"{INDEX} lacks run or created_us")
    found.setdefault("left_out", [])
    if not isinstance(found.get("contents"), list) or not isinstance(found["left_out"], list):
        raise BadBundle(f"{INDEX} lacks contents")
    return found


def _content(entry: Any) -> Content:
    if not isinstance(entry, dict) or not isinstance(entry.get("path"), str) or not NAME.fullmatch(entry["path"]):
        raise BadBundle(f"{INDEX} lists a content whose path is no name of a bundle's content")
    path, digest, size = entry["path"], entry.get("digest"), entry.get("bytes")
    if not isinstance(digest, str) or not re.fullmatch("blake3:[0-9a-f]{64}", digest) or not _is_int(size) or size < 0:
        raise BadBundle(f"{INDEX} has no digest and bytes for {path}")
    if path.startswith("blobs/") and digest != f"blake3:{path[6:]}":
        raise BadBundle(f"{path} is listed under another digest than its name")
    return Content(path, digest, size)


def _agree(infos: dict[str, zipfile.ZipInfo], contents: list[Content], most: int) -> None:
    listed = {content.path: content for content in contents}
    if len(listed) != len(contents):
        raise BadBundle(f"{INDEX} lists a content twice")
    if missing := sorted({*listed, *NEEDED} - infos.keys()):
        raise BadBundle(f"{missing[0]} is missing")
    if unlisted := sorted(infos.keys() - listed.keys() - {INDEX}):
        raise BadBundle(f"{unlisted[0]} is not listed in {INDEX}")
    if sum(content.bytes for content in contents) > most:
        raise BadBundle(f"its contents have more than {most} bytes")
    for name, info in infos.items():
        if name != INDEX and info.file_size != listed[name].bytes:
            raise BadBundle(f"{name} has {info.file_size} bytes, not the {listed[name].bytes} of {INDEX}")


def _pieces(archive: zipfile.ZipFile, name: str, most: int) -> Iterable[bytes]:
    """The entry inflated piece by piece, never more than ``most`` bytes and one piece, whatever the zip claims of its size."""
    size = 0
    try:
        with archive.open(name) as source:
            while chunk := source.read(_CHUNK):
                size += len(chunk)
                if size > most:
                    raise BadBundle(f"{name} inflates to more than {most} bytes")
                yield chunk
    except (zipfile.BadZipFile, zlib.error, EOFError, struct.error) as problem:
        raise BadBundle(f"{name} is damaged: {problem}") from None


def _verify(archive: zipfile.ZipFile, content: Content, take: Callable[[bytes], Any]) -> None:
    hasher, size = blake3(), 0
    for chunk in _pieces(archive, content.path, content.bytes):
        hasher.update(chunk)
        size += len(chunk)
        take(chunk)
    if size != content.bytes or f"blake3:{hasher.hexdigest()}" != content.digest:
        raise BadBundle(f"{content.path} has other bytes than its digest says")


def _named_rightly(content: Content, head: bytes) -> None:
    """A block under another writer's or range's name would put points where they do not belong."""
    if not content.path.startswith("series/"):
        return
    _, writer, name = content.path.split("/")
    first, last = (int(number) for number in name.removesuffix(".block").split("-"))
    if len(head) < blocks.HEAD.size:
        raise BadBundle(f"{content.path} is no block: it has fewer than 64 bytes")
    found = blocks.HEAD.unpack(head)
    if found[0] != blocks.MAGIC or (found[5], found[6]) != (first, last) or id_from_bytes(found[7]) != writer:
        raise BadBundle(f"{content.path} is no block of version 1 of this writer and range")


def _json(name: str, raw: bytes) -> Any:
    try:
        return json.loads(raw.decode())
    except (ValueError, RecursionError):
        raise BadBundle(f"{name} is no JSON in UTF-8") from None


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
