"""``sdk.Api``: one server, one token."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO
from urllib.parse import urlencode

from .. import _settings
from .._transport import Transport
from ..errors import ServerRefused, UsageError
from . import streams
from .found import Ambiguous, NotFound, quoted
from .reproductions import Reproduction
from .runs import Run, Runs
from .series import Histories, decode

PAGE = 200
DOWNLOAD_SECONDS = 1800.0
STREAM_SECONDS = 300.0
_ID = re.compile(r"[a-z2-7]{26}")
_PREFIX = re.compile(r"[a-z2-7]{4,25}")


class Api:
    """One server, one token. Not for several threads at once."""

    def __init__(self, url: str | None = None, token: str | None = None) -> None:
        known_url, known_token = _settings.credentials()
        self.url = (url or known_url or "").rstrip("/")
        if not self.url:
            raise UsageError("No server is known: run `encore login URL`, or set ENCORE_URL and ENCORE_TOKEN.")
        # A token goes only to the server that it was made for.
        self._transport = Transport(self.url, token or (known_token if known_url and self.url == known_url.rstrip("/") else None))

    def get(self, path: str, **query: Any) -> dict[str, Any]:
        """A GET below /api/v1; what is None is left out of the query."""
        given = {name: value for name, value in query.items() if value not in (None, "")}
        return self._transport.call("GET", f"{path}?{urlencode(given)}" if given else path)

    def download(self, path: str, file: BinaryIO) -> int:
        """A GET whose bytes go into ``file``; how many. The server may take minutes to put them together."""
        return self._transport.download(path, file, DOWNLOAD_SECONDS)

    def patch(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        return self._transport.call("PATCH", path, dict(body))

    def delete(self, path: str) -> None:
        self._transport.call("DELETE", path)

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        return self._transport.call("POST", path, dict(body or {}))

    def pages(self, path: str, **query: Any) -> Iterator[dict[str, Any]]:
        """The items of a list, page after page."""
        query.setdefault("limit", PAGE)
        while True:
            page = self.get(path, **query)
            yield from page.get("results", ())
            if not page.get("next"):
                return
            query["cursor"] = page["next"]

    def me(self) -> dict[str, Any]:
        return self.get("me")

    def projects(self) -> Iterator[dict[str, Any]]:
        """``{"slug", "name", …}`` of every project that the token may see."""
        return self.pages("projects")

    def runs(
        self,
        project: str | None = None,
        filter: str | None = None,
        sort: str | None = None,
        state: str | None = None,
        *,
        keys: str | Sequence[str] = (),
        limit: int | None = None,
        archived: bool | None = None,
    ) -> Runs:
        """Runs, newest first, or by ``sort`` (``-summary.val/loss``); ``filter`` in the filter language.

        ``keys``: metrics whose last values are wanted too ("*": all). Streamed: thousands are one request.
        """
        if limit is not None and limit < 0:
            raise UsageError("limit is a number of runs, or None for all")
        names = [keys] if isinstance(keys, str) else list(keys)
        asked = {"project": project, "filter": filter, "sort": sort, "state": state, "keys": ",".join(names)}
        if archived is not None:
            asked["archived"] = "true" if archived else "false"
        given = {name: value for name, value in asked.items() if value}
        source = self._few(given, limit) if limit is not None and limit <= PAGE and "*" not in names else self._all(given)
        about = " AND ".join([f"project = {project}"] * bool(project) + [f"({filter})"] * bool(filter)) or "of all projects"
        return Runs(itertools.islice((Run(self, data) for data in source), limit), about)

    def _few(self, asked: dict[str, str], limit: int) -> Iterator[dict[str, Any]]:
        if limit:
            yield from self.get("runs", **asked, limit=limit).get("results", ())

    def _all(self, asked: dict[str, str]) -> Iterator[dict[str, Any]]:
        def open_at(cursor: str | None) -> Any:
            query = urlencode({**asked, **({"cursor": cursor} if cursor else {})})
            return self._stream().open("GET", f"export/runs?{query}" if query else "export/runs", None, STREAM_SECONDS)

        return streams.whole(open_at, streams.lines, lambda line: (line, line.get("id")))

    def history(
        self,
        keys: str | Sequence[str],
        project: str | None = None,
        filter: str | None = None,
        state: str | None = None,
        *,
        runs: Sequence[str | Run] | None = None,
        ranks: str | Sequence[int] | None = None,
        steps: tuple[int | None, int | None] | None = None,
        sort: str | None = None,
        attempt: int | None = None,
    ) -> Histories:
        """All points of these metrics (names or globs) of all these runs, at full resolution, in one streamed answer.

        ``runs``: ids or runs; else those of ``project``, ``filter``, ``state``. ``ranks``: None for the lowest that logged a key, "all", or
        a list. ``steps``: (from, to), both included, None for no bound. ``attempt``: what that start of each run logged itself, also
        where it was rewound; else the stitched history.
        """
        names = [keys] if isinstance(keys, str) else list(keys)
        if not names:
            raise UsageError('say which metrics: api.history("val/loss", …), or "*" for all')
        low, high = steps if steps is not None else (None, None)
        question: dict[str, Any] = {
            "keys": names,
            "project": project,
            "filter": filter,
            "state": state,
            "sort": sort,
            "from": low,
            "to": high,
        }
        if runs is not None:
            question["runs"] = [run if isinstance(run, str) else run.id for run in runs]
        if attempt is not None:
            question["attempt"] = attempt
        if ranks is not None:
            question["ranks"] = ranks if isinstance(ranks, str) else list(ranks)

        def open_at(cursor: str | None) -> Any:
            body = json.dumps({**question, "cursor": cursor}).encode()
            return self._stream().open("POST", "export/history", body, STREAM_SECONDS)

        def told(frame: tuple[dict[str, Any], bytes]) -> tuple[dict[str, Any], Any]:
            header = frame[0]
            return header, (header["run"], header["key"], header["rank"]) if "run" in header else None

        source = (decode(*frame) for frame in streams.whole(open_at, streams.frames, told))
        return Histories(source, f"{', '.join(names)}")

    def _stream(self) -> Transport:
        """A connection of its own: while a stream is read, other questions may be asked."""
        return Transport(self.url, self._transport.token)

    def run(self, reference: str) -> Run:
        """A run by its id, a unique beginning of it (four characters or more), its name, or project/name. Ambiguous, NotFound."""
        reference = reference.strip().strip("/")
        if not reference:
            raise UsageError("Say which run: its id, a unique beginning of it, or project/name.")
        if _ID.fullmatch(reference):
            try:
                return Run(self, self.get(f"runs/{reference}"))
            except ServerRefused as refused:
                if refused.status != 404:
                    raise
                raise NotFound(f"There is no run {reference} on {self.url}, or your token may not see it.") from None
        found = {run.id: run for run in self._candidates(reference)}
        if len(found) == 1:
            return Run(self, self.get(f"runs/{next(iter(found))}"))
        if found:
            raise Ambiguous(reference, list(found.values()))
        raise NotFound(f"No run on {self.url} has an id that begins with {reference!r}, or that name (encore runs lists them).")

    def _candidates(self, reference: str) -> Iterator[Run]:
        if _PREFIX.fullmatch(reference):
            # The filter can only say "contains"; which of those begin with it is told here.
            yield from (run for run in self.runs(filter=f'id ~ "{reference}"') if run.id.startswith(reference))
        yield from self.runs(filter=f"name = {quoted(reference)}")
        project, slash, name = reference.partition("/")
        if slash and name:
            try:
                yield from self.runs(project=project, filter=f"name = {quoted(name)}")
                if _PREFIX.fullmatch(name):
                    yield from (run for run in self.runs(project=project, filter=f'id ~ "{name}"') if run.id.startswith(name))
            except ServerRefused as refused:
                if refused.status != 404:
                    raise

    def reproduction(self, id: str) -> Reproduction:
        return Reproduction(self, self.get(f"reproductions/{id}"))

    def close(self) -> None:
        self._transport.close()

    def __enter__(self) -> Api:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Api of {self.url}>"
