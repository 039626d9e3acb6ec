"""A forwarder between compute nodes and the tracker: one fixed upstream, only what the SDK's sender asks for, nothing kept.

It adds no rights: a node's bearer token is passed on (or, where the operator says so, the relay's own is lent to calls without one). While
the tracker is out of reach it answers 503 with Retry-After, which senders heed; their journals keep what there is.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import ssl
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from ._settings import VERSION
from .errors import UsageError

ALLOWED = re.compile(r"/api/v1/(ingest/[A-Za-z0-9/_:.-]+|me)(\?[A-Za-z0-9=&_.:%-]*)?|/healthz")
PAGE = re.compile(r"/(runs/[a-z2-7]{26})?")  # where people come by the address that the SDK prints
METHODS = ("GET", "POST", "PUT")
FORWARDED = ("content-type", "content-encoding", "accept", "authorization", "user-agent")
RETURNED = ("content-type", "content-encoding", "retry-after", "date", "etag", "www-authenticate")
BUFFERED_BYTES = 8 << 20  # a batch has 4 MiB at most; what is longer is a blob, and goes through in pieces
PIECE = 256 << 10
CONNECTIONS = 1024  # of nodes at the same time; two for each run on a node
IDLE_SECONDS = 75.0  # senders speak every ten
ANSWER_SECONDS = 60.0
RETRY_SECONDS = 5


class Upstream:
    """Connections to the one tracker, kept and shared."""

    def __init__(self, url: str, cafile: str | None = None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"{url!r} is no server's address; it looks like https://encore.example.org")
        self.url, self.host, self.port, self.path = url.rstrip("/"), parts.hostname, parts.port, parts.path.rstrip("/")
        self.context = ssl.create_default_context(cafile=cafile) if parts.scheme == "https" else None
        self._kept: list[http.client.HTTPConnection] = []
        self._lock = threading.Lock()

    def ask(self, method: str, path: str, body: Any, length: int, headers: dict[str, str]) -> tuple[Any, http.client.HTTPConnection]:
        """The answer, not yet read, and its connection for `done`. OSError or HTTPException when there is none."""
        again = not hasattr(body, "read")  # a kept connection may be closed meanwhile; what was streamed cannot be sent twice
        while True:
            with self._lock:
                connection = self._kept.pop() if self._kept and again else None
            kept = connection is not None
            connection = connection or self._connect()
            try:
                connection.request(method, self.path + path, body=body, headers={**headers, "Content-Length": str(length)})
                return connection.getresponse(), connection
            except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
                connection.close()
                if not kept:
                    raise
            except BaseException:
                connection.close()
                raise

    def _connect(self) -> http.client.HTTPConnection:
        if self.context is not None:
            made: http.client.HTTPConnection = http.client.HTTPSConnection(self.host, self.port, timeout=10, context=self.context)
        else:
            made = http.client.HTTPConnection(self.host, self.port, timeout=10)
        made.connect()
        made.sock.settimeout(ANSWER_SECONDS)
        with contextlib.suppress(OSError):
            made.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return made

    def done(self, connection: http.client.HTTPConnection, keep: bool) -> None:
        with self._lock:
            if keep and len(self._kept) < 64:
                self._kept.append(connection)
                return
        connection.close()


class _Body:
    """A request's body, read from the node as the upstream takes it."""

    def __init__(self, file: Any, length: int) -> None:
        self.file, self.left = file, length

    def read(self, size: int = -1) -> bytes:
        data: bytes = self.file.read(min(self.left, PIECE if size < 0 else size)) if self.left else b""
        if self.left and not data:
            raise ConnectionAbortedError("the node broke off")
        self.left -= len(data)
        return data


class Relay(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 256

    def __init__(self, address: tuple[str, int], upstream: Upstream, lent_token: str | None = None) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.upstream, self.lent_token = upstream, lent_token
        self.counts: dict[str, int] = {"requests": 0, "bytes": 0, "refused": 0, "failed": 0}
        self.down_since: float | None = None
        self._places = threading.Semaphore(CONNECTIONS)
        self._word = threading.Lock()
        super().__init__(address, Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._places.acquire(blocking=False):
            with contextlib.suppress(OSError):
                request.sendall(b"HTTP/1.1 503 Busy\r\nRetry-After: 10\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):  # a node that went away is nobody's fault
            self.say(f"{client_address[0]}: {type(error).__name__}: {error}")

    def say(self, sentence: str) -> None:
        with contextlib.suppress(Exception):
            print(f"encore relay: {sentence}", file=sys.stderr, flush=True)

    def reached(self, why: str | None) -> None:
        """Says when the tracker goes and when it comes back, not each time."""
        with self._word:
            if why is not None and self.down_since is None:
                self.down_since = time.monotonic()
                self.say(f"{self.upstream.url} is out of reach ({why}); nodes are told to come again")
            elif why is None and self.down_since is not None:
                self.say(f"{self.upstream.url} answers again, after {time.monotonic() - self.down_since:.0f} s")
                self.down_since = None


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = f"encore-relay/{VERSION}"
    sys_version = ""
    timeout = IDLE_SECONDS
    wbufsize = 64 << 10  # head and body in one packet
    server: Relay

    def do_GET(self) -> None:
        self._forward()

    do_POST = do_PUT = do_GET

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):
            return lambda: self._refuse(405, "method", f"the relay passes on {', '.join(METHODS)} of the SDK's own calls, nothing else")
        raise AttributeError(name)

    def _forward(self) -> None:
        self.server.counts["requests"] += 1
        if self.command == "GET" and PAGE.fullmatch(self.path):
            return self._answer(307, {"Location": self.server.upstream.url + self.path}, b"")
        if not ALLOWED.fullmatch(self.path) or "/." in self.path or "//" in self.path:
            return self._refuse(
                403, "not_relayed", f"the relay passes on only what the SDK's sender asks for; pages are at {self.server.upstream.url}"
            )
        if "encore-relay" in self.headers.get("Via", ""):
            return self._refuse(508, "loop", "this request has passed a relay already; a relay's upstream is the tracker itself")
        if self.headers.get("Transfer-Encoding") or (self.command != "GET" and not self.headers.get("Content-Length", "").isdigit()):
            return self._refuse(411, "length_required", "say how long the body is (Content-Length)")
        length = int(self.headers.get("Content-Length") or 0)
        is_blob = self.command == "PUT" and self.path.startswith("/api/v1/ingest/blobs/")
        if length > BUFFERED_BYTES and not is_blob:
            return self._refuse(413, "too_large", f"the body has {length} bytes, more than {BUFFERED_BYTES}")
        body: Any = _Body(self.rfile, length) if length > BUFFERED_BYTES else self.rfile.read(length)
        if not hasattr(body, "read") and len(body) < length:
            self.close_connection = True  # the node broke off
            return
        headers = {name.title(): self.headers[name] for name in FORWARDED if self.headers.get(name)}
        if "Authorization" not in headers and self.server.lent_token:
            headers["Authorization"] = f"Bearer {self.server.lent_token}"
        headers |= {"Via": "1.1 encore-relay", "X-Forwarded-For": str(self.client_address[0])}
        try:
            self._pass_on(body, length, headers)
        except (OSError, http.client.HTTPException) as error:
            self.server.counts["failed"] += 1
            why = "no answer in time" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
            if not isinstance(error, ConnectionAbortedError):
                self.server.reached(why)
            if hasattr(body, "read"):
                self.close_connection = True  # what is left of the body was not read
            self._refuse(
                503,
                "upstream_unreachable",
                f"the relay on {socket.gethostname()} cannot reach {self.server.upstream.url}: {why}",
                {"Retry-After": str(RETRY_SECONDS)},
            )

    def _pass_on(self, body: Any, length: int, headers: dict[str, str]) -> None:
        response, connection = self.server.upstream.ask(self.command, self.path, body, length, headers)
        whole = False
        try:
            content = response.read(BUFFERED_BYTES + 1)
            if len(content) > BUFFERED_BYTES:
                raise http.client.HTTPException("the answer is too long")
            whole = not response.will_close
        finally:
            self.server.upstream.done(connection, whole)
        self.server.reached(None)
        self.server.counts["bytes"] += length
        if self.path.endswith("/ingest/blobs/missing") and response.status == 200:
            content = through_the_tracker(content)
        returned = {name.title(): response.headers[name] for name in RETURNED if response.headers.get(name)}
        if hasattr(body, "read") and body.left:
            self.close_connection = True
        self._answer(response.status, returned, content)

    def _refuse(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        self.server.counts["refused"] += status != 503
        if status in (403, 405, 411, 413, 508):
            self.close_connection = True  # its body, if any, is not read
        content = json.dumps({"code": code, "message": message, "fields": {}}).encode()
        self._answer(status, {"Content-Type": "application/json", **(headers or {})}, content)

    def _answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)
        self.wfile.flush()

    def log_message(self, *_: Any) -> None:
        """One line a request would be a node's traffic once more."""


def through_the_tracker(content: bytes) -> bytes:
    """A node that cannot reach the tracker cannot reach its store either: blobs go through the tracker."""
    try:
        said = json.loads(content)
        for item in said["missing"]:
            item["url"], item["headers"] = None, {}
        return json.dumps(said).encode()
    except (ValueError, KeyError, TypeError):
        return content
