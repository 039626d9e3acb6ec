"""Bytes by digest. A row means: the bytes are in the store and their digest was checked here."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import struct
import tempfile
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from blake3 import blake3
from django.conf import settings

from tracker.domain.errors import Invalid, NotFound, Refused, TooLarge
from tracker.models import Blob, Project, Reproduction, Run, Token, User
from tracker.store.blobs import MissingObject, blob_store

DIGEST = re.compile(r"blake3:([0-9a-f]{64})")
CHUNK = 1 << 20
ASK_AT_ONCE = 5000
PACK_BYTES = 64 * 2**20
LARGE_BYTES = 8 * 2**20
"""From here on a blob goes straight to the store by a presigned address, where the store can."""
PRESIGNED_SECONDS = 3600
_PACK_HEAD = struct.Struct("<4sHHII")


def hex_of(digest: object) -> str:
    found = DIGEST.fullmatch(digest) if isinstance(digest, str) else None
    if found is None:
        raise Invalid("A digest is 'blake3:' and 64 hexadecimal digits.", digest="malformed")
    return found.group(1)


def _key(project_id: str, hex_digest: str) -> str:
    return f"blobs/{project_id}/{hex_digest[:2]}/{hex_digest}"


def _upload_key(project_id: str, hex_digest: str) -> str:
    """Where a presigned upload lies. Nobody can guess it, so nobody but who got the address can have put something there."""
    name = hmac.new(settings.SECRET_KEY.encode(), f"{project_id}/{hex_digest}".encode(), hashlib.sha256).hexdigest()[:32]
    return f"uploads/{project_id}/{hex_digest}-{name}"


def missing(*, run: Run, wanted: list[dict]) -> list[dict]:
    """Which of ``wanted`` (``[{"digest", "bytes"}]``) the run's project has not: ``[{"digest", "url", "headers"}]``."""
    if len(wanted) > ASK_AT_ONCE:
        raise TooLarge(f"Ask for at most {ASK_AT_ONCE} blobs at once.")
    hexes = {hex_of(entry.get("digest") if isinstance(entry, dict) else None): entry for entry in wanted}
    names = [f"blake3:{name}" for name in hexes]
    known = set()
    for start in range(0, len(names), 900):
        known.update(Blob.objects.filter(project=run.project_id, digest__in=names[start : start + 900]).values_list("digest", flat=True))
    answer = []
    for name, entry in hexes.items():
        if f"blake3:{name}" in known:
            continue
        address = None
        size = entry.get("bytes")
        if isinstance(size, int) and size >= LARGE_BYTES:
            if _adopt(run.project_id, name) is not None:
                continue
            address = blob_store().presign_put(_upload_key(run.project_id, name), size, PRESIGNED_SECONDS)
        url, headers = address or (None, {})
        answer.append({"digest": f"blake3:{name}", "url": url, "headers": headers})
    return answer


def put(*, run: Run, digest: str, chunks: Iterable[bytes]) -> Blob:
    """Store one blob, streamed. Idempotent. Raises Refused (``digest_differs``) when the bytes are others than the digest says."""
    name = hex_of(digest)
    with tempfile.TemporaryFile() as aside:
        hasher, size = blake3(), 0
        for chunk in chunks:
            hasher.update(chunk)
            aside.write(chunk)
            size += len(chunk)
        _check(hasher.hexdigest(), name, size)
        aside.seek(0)
        return _keep(run.project_id, name, size, aside)


def put_pack(*, run: Run, body: bytes) -> list[str]:
    """Store a pack of small blobs (docs/api.md). Nothing of it is stored unless every digest is right."""
    if len(body) > PACK_BYTES:
        raise TooLarge(f"A pack has at most {PACK_BYTES} bytes.")
    try:
        magic, version, _, length, _ = _PACK_HEAD.unpack_from(body)
        if magic != b"ENCP":
            raise Refused("This is no pack: it does not begin with ENCP.")
        if version != 1:
            raise Refused(f"The pack has version {version}; this server reads 1. Update the server.")
        if _PACK_HEAD.size + length > len(body):
            raise ValueError
        listed = json.loads(body[_PACK_HEAD.size : _PACK_HEAD.size + length])
        sizes = [(hex_of(entry["digest"]), int(entry["bytes"])) for entry in listed]
    except (struct.error, ValueError, KeyError, TypeError, RecursionError):
        raise Refused("The pack's header is broken or cut off.") from None
    at, found = _PACK_HEAD.size + length, []
    for name, size in sizes:
        data = body[at : at + size] if size >= 0 else b""
        if len(data) != size:
            raise Refused("The pack is cut off.")
        _check(blake3(data).hexdigest(), name, size)
        found.append((name, data))
        at += size
    known = set(
        Blob.objects.filter(project=run.project_id, digest__in=[f"blake3:{name}" for name, _ in found[:ASK_AT_ONCE]]).values_list(
            "digest", flat=True
        )
    )
    rows = []
    for name, data in found:
        if f"blake3:{name}" not in known:
            key = _key(run.project_id, name)
            blob_store().put(key, data)
            rows.append(Blob(project_id=run.project_id, digest=f"blake3:{name}", bytes=len(data), object_key=key))
    Blob.objects.bulk_create(rows, ignore_conflicts=True, batch_size=150)
    return [f"blake3:{name}" for name, _ in found]


def _check(found: str, wanted: str, size: int) -> None:
    if found != wanted:
        raise Refused(
            f"The {size} bytes that came have the digest blake3:{found}, not blake3:{wanted}: the file changed, or was cut off.",
            code="digest_differs",
            found=f"blake3:{found}",
            expected=f"blake3:{wanted}",
        )


def _keep(project_id: str, name: str, size: int, file: BinaryIO) -> Blob:
    known = Blob.objects.filter(project=project_id, digest=f"blake3:{name}").first()
    if known is not None:
        return known
    key = _key(project_id, name)
    blob_store().put(key, file)
    # The bytes first, the row after: a row always stands for bytes that are there.
    return Blob.objects.get_or_create(project_id=project_id, digest=f"blake3:{name}", defaults={"bytes": size, "object_key": key})[0]


def _adopt(project_id: str, name: str) -> Blob | None:
    """A presigned upload becomes a blob once its bytes are read and their digest is right; wrong bytes are removed."""
    store, key = blob_store(), _upload_key(project_id, name)
    if not store.exists(key):
        return None
    hasher, size = blake3(), 0
    with store.open(key) as file:
        while chunk := file.read(CHUNK):
            hasher.update(chunk)
            size += len(chunk)
    if hasher.hexdigest() != name:
        store.delete(key)
        return None
    return Blob.objects.get_or_create(project_id=project_id, digest=f"blake3:{name}", defaults={"bytes": size, "object_key": key})[0]


def readable_project(*, user: User, token: Token | None, slug: str | None) -> list[str]:
    """Ids of the projects whose blobs this person and token may read: a job's key reads its own project's alone."""
    if token is not None and token.job_id is not None:
        own = Reproduction.objects.filter(job_id=token.job_id).values_list("job__project_id", "job__project__slug").first()
        if own is None or (slug and slug != own[1]):
            raise NotFound
        return [own[0]]
    visible = Project.objects.visible_to(user).order_by()
    if slug:
        visible = visible.filter(slug=slug)
    return list(visible.values_list("id", flat=True))


def get(*, user: User, token: Token | None, digest: str, slug: str | None = None) -> Blob:
    """Raises Invalid (no digest), NotFound."""
    name = hex_of(digest)
    projects = readable_project(user=user, token=token, slug=slug)
    blob = find(projects, name)
    if blob is None:
        raise NotFound("There is no such blob, or you may not see it.")
    return blob


def find(project_ids: list[str], name: str) -> Blob | None:
    blob = Blob.objects.filter(project__in=project_ids, digest=f"blake3:{name}").first()
    if blob is None and len(project_ids) == 1:
        blob = _adopt(project_ids[0], name)
    return blob


def address(blob: Blob) -> str | None:
    """A short-lived address of the store itself, where it has such."""
    return blob_store().presign_get(blob.object_key, PRESIGNED_SECONDS)


def stream(blob: Blob) -> Iterator[bytes]:
    """Its bytes, piece by piece. Raises NotFound at once, not in the middle, when the store has lost them."""
    try:
        file = blob_store().open(blob.object_key)
    except MissingObject:
        raise NotFound("The store has lost the bytes of this blob; its row is still there.") from None
    return _pieces(file)


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    with file:
        while chunk := file.read(CHUNK):
            yield chunk


def read_small(*, project_id: str, digest: object, most: int) -> bytes | None:
    """The whole blob if it is there and has at most ``most`` bytes, else None."""
    try:
        blob = find([project_id], hex_of(digest))
    except Invalid:
        return None
    if blob is None or blob.bytes > most:
        return None
    try:
        return b"".join(stream(blob))
    except NotFound:
        return None
