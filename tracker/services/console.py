"""A run's console output and events, page by page."""

from __future__ import annotations

from tracker.models import Event, LogChunk, Run
from tracker.services import paging
from tracker.services.paging import Page

MOST_CHARACTERS = 4 * 2**20
"""A page of logs ends early rather than growing beyond this."""


def lines(run: Run, *, rank: int | None = None, stream: str | None = None, after: int | None = None, limit=None) -> Page:
    """Log chunks in order of arrival. ``next`` is the id to go on after, or None when there is no more yet."""
    rows = LogChunk.objects.filter(run=run).order_by("id")
    if rank is not None:
        rows = rows.filter(rank=rank)
    if stream:
        rows = rows.filter(stream=stream.replace("\x00", ""))
    return _page(rows, after, limit, weigh=lambda row: len(row.text))


def events(run: Run, *, name: str | None = None, after: int | None = None, limit=None) -> Page:
    rows = Event.objects.filter(run=run).select_related("writer").order_by("id")
    if name:
        rows = rows.filter(name=name.replace("\x00", ""))
    return _page(rows, after, limit, weigh=lambda row: 0)


def _page(rows, after, limit, weigh) -> Page:
    limit = paging.limit_of(limit, default=200)
    if after is not None:
        rows = rows.filter(id__gt=after)
    page, size, more = Page(), 0, False
    for row in rows[: limit + 1].iterator(chunk_size=100):
        if len(page.results) == limit or (page.results and size > MOST_CHARACTERS):
            more = True
            break
        page.results.append(row)
        size += weigh(row)
    page.next = str(page.results[-1].id) if more else None
    return page
