"""A small tracker on loopback that speaks the runner's part of docs/api.md, for tests that need one to misbehave on purpose."""

from __future__ import annotations

import http.server
import json
import re
import threading
from typing import Any

from blake3 import blake3


class Loopback:
    """Holds jobs and blobs; ``said`` is every write in order as (path, body)."""

    def __init__(self) -> None:
        self.orders: dict[str, dict[str, Any]] = {}
        self.blobs: dict[str, bytes] = {}
        self.said: list[tuple[str, dict[str, Any]]] = []
        self.claimed: set[str] = set()
        self.cancelled: set[str] = set()
        self.lost: set[str] = set()
        self.finished: dict[str, dict[str, Any]] = {}
        self.tokens: dict[str, str] = {}
        self.lock = threading.Lock()
        self.closed = False
        loop = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                if loop.closed:
                    self.close_connection = True
                    return
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length) or b"{}")
                with loop.lock:
                    self._json(*loop.answer(self.path, body, self.headers.get("Authorization", "")))

            def do_GET(self) -> None:
                digest = self.path.split("/blobs/")[-1].split("?")[0]
                with loop.lock:
                    data = loop.blobs.get(digest)
                if data is None:
                    self._json(404, {"code": "not_found", "message": "no such blob"})
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def _json(self, status: int, body: dict[str, Any]) -> None:
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                pass  # a killed runner leaves broken connections

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """From now on nobody answers, on kept connections either."""
        if not self.closed:
            self.closed = True
            self.server.shutdown()
            self.server.server_close()

    def blob(self, data: bytes) -> str:
        digest = "blake3:" + blake3(data).hexdigest()
        self.blobs[digest] = data
        return digest

    def steps(self, job: str) -> dict[str, str]:
        """The last state of each step."""
        return {body["name"]: body["state"] for path, body in self.said if path == f"jobs/{job}/steps"}

    def log(self, job: str) -> str:
        return "".join(body["text"] for path, body in self.said if path == f"jobs/{job}/logs")

    def answer(self, path: str, body: dict[str, Any], authorization: str) -> tuple[int, dict[str, Any]]:
        path = path.removeprefix("/api/v1/")
        if path == "workers/hello":
            return 200, {"worker": "w" * 26}
        found = re.fullmatch(r"jobs/([a-z2-7]{26})/(claim|heartbeat|steps|logs|finish)", path)
        if not found or found[1] not in self.orders:
            return 404, {"code": "not_found", "message": path}
        job, verb = found[1], found[2]
        if verb == "claim":
            if job in self.claimed:
                return 409, {"code": "job_taken", "message": "another worker has it"}
            self.claimed.add(job)
            return 200, self.orders[job]
        worker = verb == "heartbeat"
        if authorization != ("Bearer worker-token" if worker else f"Bearer {self.orders[job]['key']}"):
            return 403, {"code": "forbidden", "message": "wrong key"}
        if body.get("fence") != self.orders[job]["fence"] or job in self.lost or job in self.finished:
            return 409, {"code": "lease_lost", "message": "the lease is lost"}
        if worker:
            return 200, {"cancel": job in self.cancelled, "lease_until": None}
        self.said.append((path, body))
        if verb == "finish":
            self.finished[job] = body
        return 200, {}
