"""What the runner says to the tracker and hears from it (docs/api.md, Runner), over HTTP.

``Tracker`` speaks with the worker's token: hello, claim. ``Report`` speaks for one claimed job with the job's own key, and every write
carries the fence; a thread beats, and what it learns (cancelled, lease lost) sets ``stopped``, which every step and process listens to.
"""

from __future__ import annotations

import json
import logging
import random
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

import urllib3
from blake3 import blake3

from runner.errors import Cancelled, LeaseLost, RecipeFailure, ShuttingDown, Stopped, WorkerFault

log = logging.getLogger("encore.runner")
BEAT_SECONDS = 5.0
LOG_BYTES = 32 * 1024
LOG_SECONDS = 1.0
GIVE_UP = {408, 425, 429}


class Refused(Exception):
    """An answer that another try will not change."""

    def __init__(self, status: int, body: dict[str, Any]):
        super().__init__(f"{status} {body.get('code', '')}: {body.get('message', '')}")
        self.status, self.code, self.body = status, str(body.get("code", "")), body


class Connection:
    """JSON over HTTP with patience."""

    def __init__(self, url: str, token: str, *, pool: urllib3.PoolManager | None = None):
        self.base = url.rstrip("/") + "/api/v1/"
        self._token = token
        self._pool = pool or urllib3.PoolManager(maxsize=10, timeout=urllib3.Timeout(connect=5, read=60), retries=False)

    def post(self, path: str, body: dict[str, Any], *, patience_seconds: float, answer_seconds: float = 60) -> dict[str, Any]:
        """Tries again, backing off, while the tracker is out of reach or busy. Raises Refused, or WorkerFault after so many seconds."""
        data = json.dumps(body).encode()
        return json.loads(self._patiently(urljoin(self.base, path), data, patience_seconds, answer_seconds).data or b"{}")

    def _patiently(self, url: str, body: bytes, patience: float, answer_seconds: float) -> urllib3.BaseHTTPResponse:
        end, pause = time.monotonic() + patience, 0.1
        timeout = urllib3.Timeout(connect=min(5, answer_seconds), read=answer_seconds)
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json", "Accept": "application/json"}
        while True:
            try:
                answer = self._pool.request("POST", url, body=body, headers=headers, redirect=False, timeout=timeout)
                if answer.status < 400:
                    return answer
                why: Exception = Refused(answer.status, _error(answer))
                if answer.status < 500 and answer.status not in GIVE_UP:
                    raise why
                wait = _retry_after(answer)
            except urllib3.exceptions.HTTPError as error:
                why, wait = error, None
            if time.monotonic() + (wait or pause) > end:
                raise WorkerFault(f"the tracker at {self.base} did not take it: {why}")
            time.sleep(wait or pause * random.uniform(0.5, 1))  # noqa: S311  # jitter, not a secret
            pause = min(pause * 2, 10)

    def download(self, path: str, target: Path, *, stop: threading.Event | None = None) -> str:
        """Streams the answer into ``target`` and returns its digest. Follows one redirect to a store, without our token."""
        end, pause = time.monotonic() + 120, 0.2
        while True:
            try:
                return self._download(urljoin(self.base, path), target, stop)
            except (urllib3.exceptions.HTTPError, Refused) as error:
                final = isinstance(error, Refused) and error.status < 500 and error.status not in GIVE_UP
                if final or time.monotonic() + pause > end or (stop and stop.is_set()):
                    raise error if final else WorkerFault(f"a blob could not be fetched: {error}") from error
            time.sleep(pause)
            pause = min(pause * 2, 10)

    def _download(self, url: str, target: Path, stop: threading.Event | None) -> str:
        headers = {"Authorization": f"Bearer {self._token}"}
        answer = self._pool.request("GET", url, headers=headers, redirect=False, preload_content=False)
        for _ in range(3):
            if answer.status not in (301, 302, 303, 307, 308):
                break
            where = urljoin(url, answer.headers.get("Location", ""))
            answer.release_conn()
            same = urlsplit(where)[:2] == urlsplit(url)[:2]  # a presigned address must not see our key
            answer = self._pool.request("GET", where, headers=headers if same else {}, redirect=False, preload_content=False)
        try:
            if answer.status != 200:
                answer.read(64 * 1024)
                raise Refused(answer.status, {"message": f"GET {urlsplit(url).path}"})
            hasher = blake3()
            with target.open("wb") as file:
                for chunk in answer.stream(1 << 20, decode_content=True):
                    if stop and stop.is_set():
                        raise WorkerFault("stopped while fetching")
                    hasher.update(chunk)
                    file.write(chunk)
        finally:
            answer.release_conn()
        return "blake3:" + hasher.hexdigest()


class Tracker:
    """What a worker may do by itself."""

    def __init__(self, url: str, token: str):
        self.url = url
        self._connection = Connection(url, token)

    def hello(self, *, name: str, queues: list[str], info: dict[str, Any], patience_seconds: float = 5) -> str:
        """The worker's id."""
        return str(
            self._connection.post("workers/hello", {"name": name, "queues": queues, "info": info}, patience_seconds=patience_seconds)[
                "worker"
            ]
        )

    def claim(self, job: str, *, worker: str) -> dict[str, Any] | None:
        """The order, or None where the job is taken, ended or unknown: then there is nothing to do."""
        try:
            return self._connection.post(f"jobs/{quote(job, safe='')}/claim", {"worker": worker}, patience_seconds=30)
        except Refused as refused:
            if refused.status in (404, 409, 410):
                log.info("nothing to do for job %s: %s", job, refused)
                return None
            raise WorkerFault(f"the claim was refused: {refused}") from refused

    def report(self, order: Any, *, shutting_down: Any = None) -> Report:
        """Claim and heartbeat go with the worker's token, all else with the job's key."""
        return Report(Connection(self.url, order.key), self._connection, order, shutting_down=shutting_down)


class Report:
    """A context: beats while it is open."""

    def __init__(self, connection: Connection, workers: Connection, order: Any, *, shutting_down: Any = None):
        """``connection`` bears the job's key, ``workers`` the worker's token. ``shutting_down``: an event of this worker, or None."""
        self._connection, self._workers, self._order = connection, workers, order
        self._path = f"jobs/{order.job}/"
        self.stopped = threading.Event()
        """Set when the job must end now; ``check`` says why."""
        self.why: Stopped | None = None
        self._shutting_down = shutting_down
        self._closed = threading.Event()
        self._lease_end = time.monotonic() + order.lease_seconds
        self._number = 0
        self._lines: list[tuple[str, str]] = []
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._threads = [threading.Thread(target=self._beats, daemon=True), threading.Thread(target=self._flushes, daemon=True)]

    def __enter__(self) -> Report:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        for thread in self._threads:
            thread.join(timeout=10)

    def check(self) -> None:
        """Raises what has stopped the job, if anything has."""
        if self.why is not None:
            raise self.why

    def step(self, name: str, state: str, message: str = "", detail: dict[str, Any] | None = None) -> None:
        """A step's state: ``running``, ``done``, ``failed``, ``skipped`` or ``cancelled``. A tracker out of reach does not stop the job."""
        self.flush()
        self._write("steps", {"name": name, "state": state, "message": message, "detail": detail or {}}, patience_seconds=20)

    def say(self, step: str, text: str) -> None:
        """Lines for the job's log; sent within a second."""
        with self._lock:
            self._lines.append((step, text if text.endswith("\n") else text + "\n"))

    def finish(self, state: str, *, evidence: dict[str, Any] | None, failure: dict[str, Any] | None) -> bool:
        """Whether the tracker took it. Tries for ten minutes: a result of hours is worth it."""
        self.flush()
        body = {"fence": self._order.fence, "state": state, "evidence": evidence, "failure": failure}
        try:
            self._connection.post(self._path + "finish", body, patience_seconds=600)
            return True
        except (Refused, WorkerFault) as error:
            log.error("job %s: its end was not taken: %s", self._order.job, error)
            return False

    def fetch(self, digest: str, target: Path) -> None:
        """A blob of the job's project. Raises RecipeFailure ``source_missing`` if the tracker has it no more."""
        self.check()
        try:
            found = self._connection.download(f"blobs/{digest}?project={quote(self._order.project)}", target, stop=self.stopped)
        except Refused as refused:
            self.check()
            if refused.status == 404:
                raise RecipeFailure(
                    "source_missing", f"The tracker does not have the blob {digest} that the recipe names.", missing=digest
                ) from None
            raise WorkerFault(f"blob {digest} was refused: {refused}") from refused
        except WorkerFault:
            self.check()
            raise
        if found != digest:
            raise RecipeFailure("source_differs", f"The stored blob {digest} holds other bytes.", expected=digest, found=found)

    def flush(self) -> None:
        with self._sending:
            with self._lock:
                lines, self._lines = self._lines, []
            while lines:
                step, texts, size = lines[0][0], [], 0
                while lines and lines[0][0] == step and size < LOG_BYTES:
                    size += len(lines[0][1])
                    texts.append(lines.pop(0)[1])
                self._write("logs", {"number": self._number, "step": step, "text": "".join(texts)}, patience_seconds=10)
                self._number += 1

    def _write(self, route: str, body: dict[str, Any], *, patience_seconds: float) -> None:
        if isinstance(self.why, LeaseLost):
            return
        try:
            self._connection.post(self._path + route, {"fence": self._order.fence, **body}, patience_seconds=patience_seconds)
        except Refused as refused:
            if not self._heed(refused):
                log.warning("job %s: %s was refused: %s", self._order.job, route, refused)
        except WorkerFault as error:
            log.warning("job %s: %s", self._order.job, error)

    def _flushes(self) -> None:
        while not self._closed.wait(LOG_SECONDS):
            self.flush()

    def _beats(self) -> None:
        due = time.monotonic() + BEAT_SECONDS
        while not self._closed.wait(0.25):
            if self._shutting_down and self._shutting_down.is_set():
                self._stop(ShuttingDown("this worker is shutting down"))
                return
            if time.monotonic() >= due:
                self._beat()
                due = time.monotonic() + BEAT_SECONDS
            if time.monotonic() > self._lease_end:
                # Nobody can tell us, but by now the tracker may have given the job to somebody else.
                self._stop(LeaseLost("the tracker was out of reach for longer than the lease"))

    def _beat(self) -> None:
        begun = time.monotonic()
        try:
            left = max(0.5, min(10, self._lease_end - begun))  # an answer that comes after the lease is no answer
            answer = self._workers.post(self._path + "heartbeat", {"fence": self._order.fence}, patience_seconds=0, answer_seconds=left)
            self._lease_end = begun + self._order.lease_seconds
            if answer.get("cancel"):
                self._stop(Cancelled("cancelled on request"))
        except Refused as refused:
            if not self._heed(refused):
                log.warning("job %s: a heartbeat was refused: %s", self._order.job, refused)
        except WorkerFault as error:
            log.warning("job %s: %s", self._order.job, error)

    def _heed(self, refused: Refused) -> bool:
        if refused.status in (401, 403, 404, 410) or (refused.status == 409 and refused.code in ("lease_lost", "")):
            self._stop(LeaseLost(str(refused)))
            return True
        return False

    def _stop(self, why: Stopped) -> None:
        if self.why is None or isinstance(why, LeaseLost):
            self.why = why
            self.stopped.set()


def _error(answer: urllib3.BaseHTTPResponse) -> dict[str, Any]:
    try:
        body = json.loads(answer.data)
        return body if isinstance(body, dict) else {"message": str(body)[:500]}
    except ValueError:
        return {"message": answer.data[:500].decode(errors="replace")}


def _retry_after(answer: urllib3.BaseHTTPResponse) -> float | None:
    try:
        return min(max(float(answer.headers.get("Retry-After", "")), 0.05), 60)
    except ValueError:
        return None
