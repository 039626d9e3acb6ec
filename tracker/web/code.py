"""The source snapshot and the environment of a run."""

from __future__ import annotations

from pathlib import PurePosixPath

from django.http import Http404, HttpRequest, HttpResponse, StreamingHttpResponse
from django.shortcuts import render
from django.utils.http import content_disposition_header
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import TextLexer, get_lexer_for_filename
from pygments.util import ClassNotFound

from tracker.services import blobs, sources
from tracker.web import run as runs
from tracker.web.page import page
from tracker.web.trees import config_tree, file_tree

MOST_FILES = 5000
LARGEST_SHOWN = 512 * 1024


@page
def code(request: HttpRequest, run_id: str) -> HttpResponse:
    run = runs.find(request, run_id)
    context = runs.head(request, run, "code")
    files = sources.files(run)
    changed = [file for file in files if file["state"] not in ("tracked", "")]
    entry = ((context["recipe"].get("command") or {}).get("entry") or {}).get("path_in_root")
    chosen = request.GET.get("path") or entry or (changed or files or [{"path": ""}])[0]["path"]
    context.update(
        source=context["recipe"].get("source") or {},
        tree=file_tree(files[:MOST_FILES]),
        file_count=len(files),
        changed=changed,
        chosen=chosen,
        file=_file(run, files, chosen) if chosen else None,
    )
    if request.htmx and request.GET.get("path"):
        return render(request, "run/_file.html", context)
    return runs.answer(request, context)


def _file(run, files: list[dict], path: str) -> dict | None:
    record = next((file for file in files if file["path"] == path), None)
    if record is None:
        return None
    shown = {**record, "html": "", "why_not": ""}
    if record["bytes"] > LARGEST_SHOWN:
        shown["why_not"] = "Too large to show here."
        return shown
    raw = blobs.read_small(project_id=run.project_id, digest=record["digest"], most=LARGEST_SHOWN)
    if raw is None:
        shown["why_not"] = "Its bytes are not in the store: they have not come yet, or were removed."
        return shown
    if b"\0" in raw[:8192]:
        shown["why_not"] = "A binary file."
        return shown
    shown["text"] = raw.decode("utf-8", "replace")
    shown["html"] = coloured(path, shown["text"])
    return shown


def coloured(path: str, text: str) -> str:
    """Classes only: the content security policy takes no inline style."""
    try:
        lexer = get_lexer_for_filename(path, stripnl=False)
    except ClassNotFound:
        lexer = TextLexer(stripnl=False)
    return highlight(text, lexer, HtmlFormatter(cssclass="hl", linenos="inline", wrapcode=False))


@page
def raw(request: HttpRequest, run_id: str) -> HttpResponse:
    """One file as it was, always as a download: nothing of a user is ever served as a page of ours."""
    run = runs.find(request, run_id)
    record = next((file for file in sources.files(run) if file["path"] == request.GET.get("path")), None)
    blob = record and blobs.find([run.project_id], blobs.hex_of(record["digest"]))
    if not blob:
        raise Http404("This file is not in the snapshot.")
    answer = StreamingHttpResponse(blobs.stream(blob), content_type="application/octet-stream")
    answer["Content-Length"] = str(blob.bytes)
    answer["Content-Disposition"] = content_disposition_header(True, PurePosixPath(record["path"]).name)
    return answer


@page
def environment(request: HttpRequest, run_id: str) -> HttpResponse:
    run = runs.find(request, run_id)
    context = runs.head(request, run, "environment")
    recipe = context["recipe"]
    found = recipe.get("environment") or {}
    command = recipe.get("command") or {}
    context.update(
        environment=found,
        packages=sorted(found.get("packages") or [], key=lambda one: str(one.get("name", "")).lower()),
        python=found.get("python") or {},
        variables=sorted((command.get("env") or {}).items()),
        masked=command.get("env_masked") or [],
        unset=command.get("unset") or [],
        hardware=config_tree(recipe.get("hardware") or {}),
        numerics=config_tree({k: v for k, v in (recipe.get("numerics") or {}).items() if k not in ("gaps", "rng")}),
        inputs=(recipe.get("data") or {}).get("inputs") or [],
        outputs=(recipe.get("data") or {}).get("outputs") or [],
    )
    return runs.answer(request, context)
