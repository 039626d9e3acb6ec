"""HTTP to the server: one kept-alive connection, bytes in, JSON out. No retries here; who calls knows what may be sent again."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
import time
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from ._settings import VERSION
from .errors import ServerRefused, ServerUnreachable, UsageError

CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 60.0
LEAST_WORTH_COMPRESSING = 256
_PIECE = 1 << 20


class Answer:
    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body

    def json(self) -> dict[str, Any]:
        try:
            value = json.loads(self.body)
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {"results": value}

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300

    @property
    def retry_after(self) -> float | None:
        """Seconds, given as such or as a date (proxies do); at most ten minutes."""
        said = self.headers.get("retry-after", "")
        try:
            return min(600.0, max(0.0, float(said)))
        except ValueError:
            pass
        from email.utils import parsedate_to_datetime

        try:
            return min(600.0, max(0.0, parsedate_to_datetime(said).timestamp() - time.time()))
        except (TypeError, ValueError, OverflowError):
            return None

    def error(self) -> ServerRefused:
        said = self.json()
        message = said.get("message") or self.body[:200].decode("utf-8", "replace") or "no message"
        told = said.get("fields")
        fields = dict(told) if isinstance(told, dict) else {}
        if self.retry_after is not None:
            fields["retry_after"] = self.retry_after
        return ServerRefused(self.status, str(said.get("code") or "http"), str(message), fields)


class Opened:
    """An answer that is read as it comes. ServerUnreachable when it breaks off."""

    def __init__(self, transport: Transport, response: http.client.HTTPResponse) -> None:
        self._transport, self._response = transport, response

    def read(self, size: int) -> bytes:
        with _said(self._transport.url):
            return self._response.read(size)

    def read1(self, size: int) -> bytes:
        with _said(self._transport.url):
            return self._response.read1(size)

    def close(self) -> None:
        self._transport.close()


class Transport:
    """One connection to the server; not for several threads at once."""

    def __init__(self, url: str, token: str | None, answer_seconds: float = ANSWER_SECONDS) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"{url!r} is no server's address; it looks like http://127.0.0.1:8321")
        self.url, self.token, self.answer_seconds = url.rstrip("/"), token, answer_seconds
        self._secure, self._host, self._port, self._path = parts.scheme == "https", parts.hostname, parts.port, parts.path.rstrip("/")
        self._connection: http.client.HTTPConnection | None = None

    def call(self, method: str, path: str, value: Any = None) -> dict[str, Any]:
        """A JSON call. ServerUnreachable, or ServerRefused for any answer but 2xx."""
        body = None if value is None else json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")
        answer = self.send(method, path, body, {"Content-Type": "application/json"} if body is not None else {})
        if not answer.ok:
            raise answer.error()
        return answer.json()

    def send(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Answer:
        """Any call below /api/v1/ (or an absolute path with a leading slash). ServerUnreachable when no answer came."""
        target = self._path + (path if path.startswith("/") else f"/api/v1/{path}")
        sent = {"User-Agent": f"encore-sdk/{VERSION}", "Accept": "application/json", **(headers or {})}
        if self.token:
            sent["Authorization"] = f"Bearer {self.token}"
        for fresh in (False, True):
            reused = self._connection is not None
            try:
                connection = self._connect()
                connection.request(method, target, body=body, headers=sent)
                response = connection.getresponse()
                content = response.read()
                if response.will_close:
                    self.close()
                return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, content)
            except (OSError, http.client.HTTPException) as error:
                self.close()
                # A kept connection that the server has closed meanwhile is no fault; a second try on a new one tells.
                stale = isinstance(error, (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError))
                if fresh or not (reused and stale) or (body is not None and hasattr(body, "read")):
                    raise ServerUnreachable(f"{self.url}: {_words(error)}") from None
        raise AssertionError("unreachable")

    def download(self, path: str, file: BinaryIO, answer_seconds: float) -> int:
        """The answer's bytes into ``file``, piece by piece; how many. ServerUnreachable also when it breaks off."""
        self.close()
        sent = {"User-Agent": f"encore-sdk/{VERSION}", **({"Authorization": f"Bearer {self.token}"} if self.token else {})}
        size, expected = 0, None
        try:
            with _said(self.url):
                connection = self._connect()
                connection.sock.settimeout(answer_seconds)
                connection.request("GET", f"{self._path}/api/v1/{path}", headers=sent)
                response = connection.getresponse()
                if response.status != 200:
                    raise Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()).error()
                expected = response.length
            while True:
                with _said(self.url):
                    chunk = response.read(_PIECE)
                if not chunk:
                    break
                size += len(chunk)
                file.write(chunk)
        finally:
            self.close()
        # A read in pieces does not say that the end came too early.
        if expected is not None and size != expected:
            raise ServerUnreachable(f"{self.url}: the answer broke off after {size} of {expected} bytes")
        return size

    def open(self, method: str, path: str, body: bytes | None, answer_seconds: float) -> Opened:
        """A streamed answer on this connection, which serves nothing else until it is closed. ServerRefused for any status but 200."""
        self.close()
        sent = {"User-Agent": f"encore-sdk/{VERSION}", **({"Authorization": f"Bearer {self.token}"} if self.token else {})}
        if body is not None:
            sent["Content-Type"] = "application/json"
        with _said(self.url):
            connection = self._connect()
            connection.sock.settimeout(answer_seconds)
            connection.request(method, f"{self._path}/api/v1/{path}", body=body, headers=sent)
            response = connection.getresponse()
            if response.status != 200:
                answer = Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, response.read())
                self.close()
                raise answer.error()
        return Opened(self, response)

    def _connect(self) -> http.client.HTTPConnection:
        if self._connection is None:
            if self._secure:
                connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                    self._host, self._port, timeout=CONNECT_SECONDS, context=ssl.create_default_context()
                )
            else:
                connection = http.client.HTTPConnection(self._host, self._port, timeout=CONNECT_SECONDS)
            connection.connect()
            connection.sock.settimeout(self.answer_seconds)
            with contextlib.suppress(OSError):
                connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._connection = connection
        return self._connection

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(Exception):
                connection.close()


@contextlib.contextmanager
def _said(url: str) -> Iterator[None]:
    try:
        yield
    except (OSError, http.client.HTTPException) as error:
        raise ServerUnreachable(f"{url}: {_words(error)}") from None


def _words(error: BaseException) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "nobody answers there (connection refused)"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _compressor() -> tuple[str, Any]:
    try:
        from compression import zstd  # Python 3.14

        return "zstd", lambda data: zstd.compress(data, 1)
    except ImportError:
        pass
    try:
        import threading

        import zstandard

        own = threading.local()  # a compressor is not for several threads at once: `encore sync` has eight

        def squeeze(data: bytes) -> bytes:
            if not hasattr(own, "compress"):
                own.compress = zstandard.ZstdCompressor(level=1).compress
            packed: bytes = own.compress(data)
            return packed

        return "zstd", squeeze
    except ImportError:
        return "deflate", lambda data: zlib.compress(data, 1)


_chosen: tuple[str, Any] | None = None


def compress(data: bytes) -> tuple[bytes, str | None]:
    """(bytes, content encoding): zstd where importable, else zlib; as it is when that is smaller."""
    global _chosen
    if len(data) < LEAST_WORTH_COMPRESSING:
        return data, None
    if _chosen is None:
        _chosen = _compressor()
    encoding, squeeze = _chosen
    packed = squeeze(data)
    return (packed, encoding) if len(packed) < len(data) else (data, None)
