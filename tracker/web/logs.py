"""Console output of a run, in pieces."""

from django.db.models import Max
from django.http import HttpRequest, HttpResponse, JsonResponse

from tracker.domain.lifecycle import RunState
from tracker.models import LogChunk, Writer
from tracker.web import run as runs
from tracker.web.page import page

CHUNKS = 400


@page
def logs(request: HttpRequest, run_id: str) -> HttpResponse:
    run = runs.find(request, run_id)
    context = runs.head(request, run, "logs")
    top = Writer.objects.filter(run=run, kind=Writer.Kind.TRAINER).aggregate(top=Max("rank"))["top"]
    context["rank_choices"] = list(range(min((top or 0) + 1, 512)))
    context["rank"] = _int(request.GET.get("rank"))
    return runs.answer(request, context)


def _int(text: str | None) -> int | None:
    return int(text) if text and text.lstrip("-").isdigit() and len(text) < 19 else None


def chunks_answer(chunks, request: HttpRequest, text_field: str = "text") -> dict:
    """The newest pieces, or those ``after`` or ``before`` an id, oldest first; ``q`` keeps those that contain it."""
    after, before = _int(request.GET.get("after")), _int(request.GET.get("before"))
    if query := request.GET.get("q", "").strip()[:200]:
        chunks = chunks.filter(**{f"{text_field}__icontains": query})
    if after:
        found = list(chunks.filter(id__gt=after).order_by("id")[: CHUNKS + 1])
        return {"found": found[:CHUNKS], "more": len(found) > CHUNKS, "earlier": False}
    if before:
        chunks = chunks.filter(id__lt=before)
    found = list(chunks.order_by("-id")[: CHUNKS + 1])
    return {"found": found[:CHUNKS][::-1], "more": False, "earlier": len(found) > CHUNKS}


@page
def lines(request: HttpRequest, run_id: str) -> HttpResponse:
    run = runs.find(request, run_id)
    chunks = LogChunk.objects.filter(run=run)
    if (rank := _int(request.GET.get("rank"))) is not None:
        chunks = chunks.filter(rank=rank)
    if (stream := request.GET.get("stream")) in ("stdout", "stderr"):
        chunks = chunks.filter(stream=stream)
    part = chunks_answer(chunks, request)
    results = [
        {"id": one.id, "rank": one.rank, "stream": one.stream, "time_us": one.time_us, "text": one.text, "writer": one.writer_id}
        for one in part["found"]
    ]
    live = not RunState(run.state).is_terminal
    return JsonResponse({"results": results, "more": part["more"], "earlier": part["earlier"], "live": live})
