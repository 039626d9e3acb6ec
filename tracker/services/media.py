"""What a run logged beside numbers: which keys there are, what each shows at a step, and the bytes of one.

Bytes come from users: they are handed out under types that this module knows, and what a browser could run only inside a sandbox.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from django.db.models import Count, Max, Min

from tracker.domain.errors import Invalid, NotFound
from tracker.models import Media, Run
from tracker.services import blobs, paging
from tracker.services.paging import Page
from tracker.store.blobs import MissingObject, blob_store

KINDS = ("image", "audio", "video", "text", "table", "histogram", "html", "plotly")
MOST_KEYS = 1000
MOST_STEPS = 20_000
MOST_AT_A_STEP = 1000
MOST_SPREAD = 400
HARMLESS = {
    "image/png", "image/apng", "image/jpeg", "image/gif", "image/webp", "image/bmp", "image/avif",
    "audio/wav", "audio/mpeg", "audio/flac", "audio/ogg", "audio/mp4", "audio/aac", "video/mp4", "video/webm",
}  # fmt: skip
TYPES = {
    **{name: name for name in HARMLESS},
    "image/svg+xml": "image/svg+xml",
    "text/html": "text/html; charset=utf-8",
    "text/plain": "text/plain; charset=utf-8",
    "text/markdown": "text/plain; charset=utf-8",
    "application/vnd.encore.table+json": "application/json",
    "application/vnd.plotly+json": "application/json",
}
UNKNOWN = "application/octet-stream"
# An opaque origin that can neither load nor send anything; only pages that people log may run their own scripts in it.
LOCKED = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'self'"
PAGE = (
    "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval' blob:; style-src 'unsafe-inline'; "
    "img-src data: blob:; media-src data: blob:; font-src data:; worker-src blob:; form-action 'none'; base-uri 'none'; "
    "frame-ancestors 'self'"
)


@dataclass(frozen=True)
class Content:
    blob: object
    type: str
    policy: str
    name: str
    inline: bool


def keys(run: Run) -> list[dict]:
    """``{"key", "kinds", "count", "first", "last"}`` by key; first and last are steps, None where nothing has one."""
    rows = Media.objects.filter(run=run).values("key", "kind").annotate(n=Count("id"), low=Min("step"), high=Max("step"))
    found: dict[str, dict] = {}
    for row in rows.order_by("key", "kind")[: MOST_KEYS * 2]:
        one = found.setdefault(row["key"], {"key": row["key"], "kinds": [], "count": 0, "first": None, "last": None})
        one["kinds"].append(row["kind"])
        one["count"] += row["n"]
        if row["low"] is not None:
            one["first"] = row["low"] if one["first"] is None else min(one["first"], row["low"])
            one["last"] = row["high"] if one["last"] is None else max(one["last"], row["high"])
    return list(found.values())[:MOST_KEYS]


def steps(run: Run, key: str) -> list[int | None]:
    """The steps at which the key was logged, rising; the last ``MOST_STEPS`` of them."""
    rows = Media.objects.filter(run=run, key=key).order_by("-step").values_list("step", flat=True).distinct()
    found = list(rows[: MOST_STEPS + 1])[:MOST_STEPS]
    return [step for step in found if step is None] + sorted(step for step in found if step is not None)


def items(
    run: Run, *, key: str | None = None, kind: str | None = None, step: int | None = None, rank: int | None = None, after=None, limit=None
) -> Page:
    """All that was logged, in order of arrival; ``next`` is the id to go on after."""
    if kind is not None and kind not in KINDS:
        raise Invalid(f"kind is one of {', '.join(KINDS)}.", kind="unknown")
    rows = Media.objects.filter(run=run).select_related("writer").order_by("id")
    for name, value in (("key", key), ("kind", kind), ("step", step), ("writer__rank", rank)):
        if value is not None:
            rows = rows.filter(**{name: value.replace("\x00", "") if isinstance(value, str) else value})
    if after is not None:
        rows = rows.filter(id__gt=after)
    limit = paging.limit_of(limit, default=200)
    found = list(rows[: limit + 1])
    return Page(found[:limit], str(found[limit - 1].id) if len(found) > limit else None)


def at(run: Run, key: str, step: int | None) -> list[Media]:
    """What the key shows at a step, by rank and place in its list: of what was logged twice, the later attempt's and later call's."""
    rows = Media.objects.filter(run=run, key=key, step=step) if step is not None else Media.objects.filter(run=run, key=key, step=None)
    rows = rows.select_related("writer").order_by("writer__attempt__number", "writer__started_us", "number")
    winners: dict[int, dict[int, Media]] = {}
    for row in rows.iterator(chunk_size=500):
        place, of = _place(row.meta, "index"), _place(row.meta, "of")
        before = winners.get(row.writer.rank, {})
        other = next(iter(before.values()), None)
        if place in before or (other is not None and (other.writer_id != row.writer_id or _place(other.meta, "of") != of)):
            before = {}  # another call begins
        winners[row.writer.rank] = {**before, place: row}
    found = [row for rank in sorted(winners) for _, row in sorted(winners[rank].items())]
    return found[:MOST_AT_A_STEP]


def _place(meta, name: str) -> int:
    found = meta.get(name) if isinstance(meta, dict) else None
    return found if isinstance(found, int) and not isinstance(found, bool) else 0


def spread(run: Run, key: str, rank: int | None = None, most: int = 200) -> list[Media]:
    """The key's histograms at no more than ``most`` steps, evenly chosen with the first and the last; one a step."""
    rows = Media.objects.filter(run=run, key=key, kind="histogram").exclude(step=None)
    if rank is not None:
        rows = rows.filter(writer__rank=rank)
    known = sorted(set(rows.values_list("step", flat=True)[: MOST_STEPS * 4]))
    most = max(2, min(most, MOST_SPREAD))
    if len(known) > most:
        known = sorted({known[round(at * (len(known) - 1) / (most - 1))] for at in range(most)})
    found: dict[int, Media] = {}
    for row in rows.filter(step__in=known).select_related("writer").order_by("-writer__rank", "writer__started_us", "number"):
        found[row.step] = row
    return [found[step] for step in known if step in found]


def get(run: Run, number: int) -> Media:
    """Raises NotFound."""
    found = Media.objects.filter(run=run, id=number).select_related("writer").first()
    if found is None:
        raise NotFound("There is no such media in this run.")
    return found


def content(run: Run, row: Media, cell: str | None = None) -> Content:
    """How the bytes of ``row`` are handed out; ``cell``: the digest of a medium inside the table ``row``. Raises NotFound."""
    digest, mime = (row.digest, row.mime) if cell is None else _cell(run, row, cell)
    if not digest:
        raise NotFound("All of this is in its meta; it has no bytes of its own.")
    name = blobs.hex_of(digest)
    blob = blobs.find([run.project_id], name)
    if blob is None:
        raise NotFound("Its bytes have not arrived yet. The sender brings them after the points; try again soon.")
    known = TYPES.get(mime)
    ending = mime.partition("/")[2].partition("+")[0].rpartition(".")[2] if known else "bin"
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", row.key).strip("-.")[:80] or "media"
    policy = PAGE if mime == "text/html" else LOCKED
    return Content(blob, known or UNKNOWN, policy, f"{slug}-{row.step if row.step is not None else row.id}.{ending}", known is not None)


def _cell(run: Run, row: Media, digest: str) -> tuple[str, str]:
    """Only what the table itself names: a digest alone opens nothing."""
    name = blobs.hex_of(digest)
    raw = blobs.read_small(project_id=run.project_id, digest=row.digest, most=64 * 2**20) if row.kind == "table" and row.digest else None
    if raw is None or f'"digest":"blake3:{name}"'.encode() not in raw:
        raise NotFound("The table has no such cell.")
    found = re.search(rb'"digest":"blake3:' + name.encode() + rb'","bytes":\d+,"mime":"([a-z0-9.+/-]{0,100})"', raw)
    return f"blake3:{name}", found.group(1).decode() if found else ""


def span(asked: str | None, size: int) -> tuple[int, int] | None:
    """(first, last) of a Range header with one range; None for none or one that means nothing. Raises Invalid when it lies outside."""
    found = re.fullmatch(r"bytes=(\d*)-(\d*)", (asked or "").strip())
    if found is None or found.groups() == ("", ""):
        return None
    low, high = found.groups()
    if not low:
        first, last = max(0, size - int(high[:18])), size - 1
    else:
        first, last = int(low[:18]), min(int(high[:18]) if high else size - 1, size - 1)
    if first > last or first >= size:
        raise Invalid("The range lies outside of the bytes.", range="outside")
    return first, last


def pieces(blob, first: int, last: int) -> Iterator[bytes]:
    """Bytes first … last, a mebibyte at a time. Raises NotFound at once when the store has lost them."""
    store = blob_store()

    def read(start: int) -> bytes:
        return store.read(blob.object_key, start, min(start + blobs.CHUNK, last + 1))

    try:
        begin = read(first)
    except MissingObject:
        raise NotFound("The store has lost the bytes of this blob; its row is still there.") from None

    def rest() -> Iterator[bytes]:
        yield begin
        at = first + len(begin)
        while at <= last and (chunk := read(at)):
            yield chunk
            at += len(chunk)

    return rest()
