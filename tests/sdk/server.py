"""A small server that speaks the ingest half of docs/api.md on the loopback, and fails when told to.

Faults are functions put into `server.faults`: each gets the request and answers None (no fault), "cut" (act, then drop the connection),
"drop" (drop it before acting), or (status, headers, body). What arrived is kept decoded, to compare with what was logged.
"""

from __future__ import annotations

import json
import struct
import threading
import zlib
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from blake3 import blake3

from sdk import _wire


@dataclass
class Request:
    method: str
    path: str
    body: bytes
    headers: dict[str, str]


@dataclass
class Server:
    writers: dict[str, dict[str, Any]] = field(default_factory=dict)
    next: dict[str, int] = field(default_factory=dict)
    batches: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    keylists: dict[str, tuple[list[str], str]] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    heartbeats: list[dict[str, Any]] = field(default_factory=list)
    faults: list[Any] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    stop: bool = False
    port: int = 0
    lock: threading.RLock = field(default_factory=threading.RLock)
    http: Any = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    # What arrived ---------------------------------------------------------------------------------------------------------------

    def points(self, key: str | None = None, kind: str = "trainer", rank: int | None = None) -> list[tuple[int, float]]:
        """(step, value) of a key over all writers of a kind, in order of writers and records."""
        found = []
        for name, about in sorted(self.writers.items(), key=lambda item: item[1]["started_us"]):
            if about["kind"] != kind or (rank is not None and about["rank"] != rank):
                continue
            for batch in self.batches.get(name, []):
                found += [(step, value) for _, k, step, _, value in _wire.points(batch) if key is None or k == key]
        return found

    def docs(self, kind: str | None = None, name: str | None = None) -> list[dict[str, Any]]:
        found = [doc["doc"] for batches in list(self.batches.values()) for batch in batches for doc in batch["docs"]]
        return [doc for doc in found if (kind is None or doc["type"] == kind) and (name is None or doc.get("name") == name)]

    def finishes(self) -> dict[str, dict[str, Any]]:
        """writer -> data of its finish event, trainers only."""
        found = {}
        for name, batches in list(self.batches.items()):
            for batch in batches:
                for doc in batch["docs"]:
                    if doc["doc"].get("name") == "finish" and self.writers[name]["kind"] == "trainer":
                        found[name] = doc["doc"]["data"]
        return found

    def ranges(self, writer: str) -> list[tuple[int, int]]:
        return [(batch["first"], batch["last"]) for batch in self.batches.get(writer, [])]

    # Answers --------------------------------------------------------------------------------------------------------------------

    def answer(self, request: Request) -> tuple[int, dict[str, str], dict[str, Any]]:
        path, _, _ = request.path.partition("?")
        parts = path.removeprefix("/api/v1/").split("/")
        if parts == ["ingest", "writers"]:
            about = json.loads(request.body)
            name = about["writer"]
            self.writers[name] = about
            self.next.setdefault(name, 0)
            run = {"id": about["run"]["id"], "name": "a-run", "url": f"{self.url}/runs/{about['run']['id']}", "state": "running"}
            return 200, {}, {"run": run, "attempt": 1, "next": self.next[name], "stop": self.stop}
        if parts[:2] == ["ingest", "writers"] and parts[3:] == ["batches"]:
            return self._batch(parts[2], request)
        if parts == ["ingest", "heartbeats"]:
            self.heartbeats.append(json.loads(request.body))
            return 200, {}, {"stop": self.stop, "state": "running", "next": dict(self.next)}
        if parts == ["ingest", "blobs", "missing"]:
            asked = json.loads(request.body)["blobs"]
            missing = [{"digest": b["digest"], "url": None, "headers": {}} for b in asked if b["digest"] not in self.blobs]
            return 200, {}, {"missing": missing}
        if parts == ["ingest", "blobs", "pack"]:
            magic, version, _, length, _ = struct.unpack_from("<4sHHII", request.body)
            assert (magic, version) == (b"ENCP", 1)
            at = 16 + length
            for item in json.loads(request.body[16:at]):
                self._keep(item["digest"], request.body[at : at + item["bytes"]])
                at += item["bytes"]
            assert at == len(request.body)
            return 200, {}, {}
        if parts[:2] == ["ingest", "blobs"] and request.method == "PUT":
            self._keep(parts[2], request.body)
            return 200, {}, {}
        if path == "/healthz":
            return 200, {}, {"status": "ok"}
        if parts == ["me"]:
            return 200, {}, {"user": "ada", "scopes": ["write"], "projects": []}
        return 404, {}, {"code": "not_found", "message": path, "fields": {}}

    def _keep(self, digest: str, data: bytes) -> None:
        assert digest == f"blake3:{blake3(data).hexdigest()}"
        self.blobs[digest] = data

    def _batch(self, name: str, request: Request) -> tuple[int, dict[str, str], dict[str, Any]]:
        if name not in self.writers:
            return 404, {}, {"code": "writer_unknown", "message": "open the writer first", "fields": {}}
        body = request.body
        encoding = request.headers.get("content-encoding")
        if encoding == "deflate":
            body = zlib.decompress(body)
        elif encoding == "zstd":
            import zstandard

            body = zstandard.ZstdDecompressor().decompressobj().decompress(body)
        try:
            batch = _wire.decode(body, self.keylists)
        except KeyError:
            return 409, {}, {"code": "keylist_unknown", "message": "send the key list", "fields": {}}
        for frame in batch["frames"]:
            if frame["kind"] == "dense":
                self.keylists[frame["keylist"]] = (frame["keys"], frame["types"])
        upto = self.next[name]
        if batch["last"] < upto:
            return 200, {}, {"next": upto, "stop": self.stop, "state": "running"}
        if batch["first"] != upto:
            return 409, {}, {"code": "range", "message": f"cut again from {upto}", "fields": {"next": upto}}
        self.batches.setdefault(name, []).append(batch)
        self.next[name] = batch["last"] + 1
        return 200, {}, {"next": self.next[name], "stop": self.stop, "state": "running"}

    # Serving --------------------------------------------------------------------------------------------------------------------

    def start(self) -> Server:
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                request = Request(self.command, self.path, body, {k.lower(): v for k, v in self.headers.items()})
                with owner.lock:
                    owner.requests.append((request.method, request.path))
                    fault = next((found for fault in owner.faults if (found := fault(request)) is not None), None)
                    if fault == "drop":
                        self.close_connection = True
                        return
                    status, headers, said = owner.answer(request) if fault in (None, "cut") else fault
                if fault == "cut":
                    self.close_connection = True
                    return
                content = json.dumps(said).encode()
                self.send_response(status)
                for header, value in headers.items():
                    self.send_header(header, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PUT = handle_any

            def log_message(self, *_: Any) -> None:
                pass

        ThreadingHTTPServer.daemon_threads = True
        ThreadingHTTPServer.allow_reuse_address = True
        self.http = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.port = self.http.server_address[1]
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def close(self) -> None:
        """Down: connections are refused. `start` brings it up again on the same port, with all it had."""
        if self.http is not None:
            self.http.shutdown()
            self.http.server_close()
            self.http = None
