"""`encore relay`: the SDK's traffic from nodes without a route, to one tracker, and nothing else."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import Shop, until
from server import Request, Server

from sdk import _relay

TRAIN = """
    import sdk, sys, time
    run = sdk.init(project="p")
    for i in range(int(sys.argv[1])):
        sdk.log({"loss": float(i)}, step=i)
        time.sleep(float(sys.argv[2]))
    sdk.finish()
    print("trained")
"""


class Running:
    """The command, as somebody on a login node starts it."""

    def __init__(self, shop: Shop, upstream: str, *options: str, listen: str = "127.0.0.1:0", **env: str) -> None:
        command = [sys.executable, "-c", "import sys; from sdk._cli import main; sys.exit(main())", "relay", "--listen", listen]
        self.process = subprocess.Popen(
            [*command, *(("--url", upstream) if upstream else ()), *options],
            env=shop.environment(**env),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.line = self.process.stdout.readline()
        assert "ENCORE_URL=" in self.line, self.process.communicate()
        self.url = self.line.split("ENCORE_URL=")[1].strip()
        self.port = int(self.url.rpartition(":")[2])

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        found = answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        connection.close()
        return found

    def close(self) -> str:
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.communicate(timeout=120)[1]


@pytest.fixture
def relay(shop: Shop, server: Server) -> Iterator[Running]:
    made = Running(shop, server.url)
    yield made
    made.close()


def steps(server: Server) -> list[int]:
    return [step for step, _ in server.points("loss")]


@pytest.fixture
def network() -> Iterator[tuple[str, str]]:
    """A network namespace with one cable to this one: (its name, our address on the cable)."""
    name, number = f"encore{os.getpid()}", os.getpid() % 250
    ours, theirs = f"10.213.{number}.1", f"10.213.{number}.2"
    steps = [
        f"ip netns add {name}",
        f"ip link add en{number}a type veth peer name en{number}b",
        f"ip link set en{number}b netns {name}",
        f"ip addr add {ours}/30 dev en{number}a",
        f"ip link set en{number}a up",
        f"ip -n {name} addr add {theirs}/30 dev en{number}b",
        f"ip -n {name} link set en{number}b up",
        f"ip -n {name} link set lo up",
    ]
    try:
        for step in steps:
            done = subprocess.run(step.split(), capture_output=True, text=True) if shutil.which("ip") else None
            if done is None or done.returncode:
                pytest.skip(f"network namespaces are not permitted here: {step}: {done.stderr if done else 'no ip command'}")
        yield name, ours
    finally:
        if shutil.which("ip"):
            subprocess.run(["ip", "link", "del", f"en{number}a"], capture_output=True)
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def test_a_node_that_reaches_the_login_node_alone(shop: Shop, server: Server, network: tuple[str, str]) -> None:
    """Its namespace has a cable to the relay and no other way: the run arrives whole, with source and heartbeats, and Stop reaches it."""
    name, ours = network
    running = Running(shop, server.url, listen=f"{ours}:0")
    try:
        import textwrap

        script = shop.work / "train.py"
        script.write_text(textwrap.dedent(TRAIN))
        trainer = subprocess.Popen(
            ["ip", "netns", "exec", name, sys.executable, str(script), "100000", "0.01"],
            env=shop.environment(ENCORE_URL=running.url, ENCORE_TOKEN="node-token"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        knock = f"import socket; socket.create_connection(('127.0.0.1', {server.port}), 5)"
        unreachable = subprocess.run(["ip", "netns", "exec", name, sys.executable, "-c", knock], capture_output=True)
        assert unreachable.returncode != 0
        assert until(lambda: len(steps(server)) > 50 and server.heartbeats and server.docs("recipe")), trainer.poll()
        server.stop = True
        _, err = trainer.communicate(timeout=120)
        assert trainer.returncode == -signal.SIGTERM, err
        assert until(server.finishes)
        assert steps(server) == list(range(len(steps(server))))
        assert until(lambda: server.blobs)
    finally:
        running.close()


def test_an_outage_of_the_tracker_is_told_and_survived(shop: Shop, server: Server, relay: Running) -> None:
    """503 with Retry-After while it is down; training does not notice; afterwards everything is there, once."""
    trainer = shop.start(TRAIN, arguments=("300", "0.01"), ENCORE_URL=relay.url, ENCORE_TOKEN="t")
    assert until(lambda: len(steps(server)) > 20)
    server.faults.append(lambda request: "drop")
    status, headers, body = relay.ask("GET", "/healthz")
    assert (status, headers["retry-after"]) == (503, str(_relay.RETRY_SECONDS))
    said = json.loads(body)
    assert said["code"] == "upstream_unreachable"
    assert server.url in said["message"]
    server.faults.clear()
    out, err = trainer.communicate(timeout=120)
    assert "trained" in out, err
    assert until(lambda: len(steps(server)) == 300)
    assert steps(server) == list(range(300))
    said = relay.close()
    assert "out of reach" in said
    assert "answers again" in said


def test_a_tracker_that_was_never_there_is_told_by_name(shop: Shop, down: Server) -> None:
    """Nobody listens: the answer says which address and why; the relay lives on and finds it when it comes."""
    running = Running(shop, down.url)
    try:
        status, _, body = running.ask("GET", "/api/v1/me")
        assert (status, b"refused" in body, down.url.encode() in body) == (503, True, True)
        down.start()
        assert running.ask("GET", "/api/v1/me")[0] == 200
    finally:
        running.close()


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        ("GET http://example.org/ HTTP/1.1", 403),
        ("GET http://127.0.0.1:{port}/api/v1/me HTTP/1.1", 403),
        ("CONNECT example.org:443 HTTP/1.1", 405),
        ("GET /api/v1/runs HTTP/1.1", 403),
        ("GET /api/v1/ingest/../runs HTTP/1.1", 403),
        ("GET /api/v1/ingest/%2e%2e/runs HTTP/1.1", 403),
        ("GET //example.org/api/v1/me HTTP/1.1", 403),
        ("GET /api/v1/ingest//x HTTP/1.1", 403),
        ("GET /login HTTP/1.1", 403),
        ("DELETE /api/v1/me HTTP/1.1", 405),
        ("PATCH /api/v1/ingest/writers HTTP/1.1", 405),
        ("GET /api/v1/me?next=http://example.org HTTP/1.1", 403),
        ("POST /api/v1/ingest/heartbeats HTTP/1.1\r\nTransfer-Encoding: chunked", 411),
        ("POST /api/v1/ingest/heartbeats HTTP/1.1\r\nContent-Length: -1", 411),
        ("POST /api/v1/ingest/heartbeats HTTP/1.1\r\nContent-Length: 99999999", 413),
        ("GET /api/v1/me HTTP/1.1\r\nVia: 1.1 encore-relay", 508),
    ],
)
def test_it_is_no_proxy_for_anything_else(relay: Running, server: Server, request_line: str, status: int) -> None:
    """Other hosts, other paths, other methods, tricks with paths and lengths: refused with a reason, and nothing reaches the tracker."""
    with socket.create_connection(("127.0.0.1", relay.port), timeout=10) as connection:
        connection.sendall(f"{request_line.format(port=server.port)}\r\nHost: x\r\n\r\n".encode())
        answer = connection.makefile("rb").read()
    assert int(answer.split()[1]) == status, answer
    assert b'"message"' in answer
    assert not server.requests


def test_the_nodes_token_is_passed_on_and_the_relays_own_only_when_lent(shop: Shop, server: Server, relay: Running) -> None:
    """A relay gives nobody a right; --lend-token is the operator's word, and a node's own token still comes first."""
    heard: list[str | None] = []
    server.faults.append(lambda request: heard.append(request.headers.get("authorization")))
    assert relay.ask("GET", "/api/v1/me", Authorization="Bearer node")[0] == 200
    assert relay.ask("GET", "/api/v1/me")[0] == 200
    lending = Running(shop, "", "--lend-token", ENCORE_URL=server.url, ENCORE_TOKEN="mine")
    try:
        lending.ask("GET", "/api/v1/me")
        lending.ask("GET", "/api/v1/me", Authorization="Bearer node")
    finally:
        lending.close()
    assert heard == ["Bearer node", None, "Bearer mine", "Bearer node"]


def test_errors_and_waits_of_the_tracker_come_through_as_they_are(relay: Running, server: Server) -> None:
    """401, 409 and 429 with Retry-After mean the same behind a relay. A page's address leads to the tracker."""
    body = {"code": "busy", "message": "later", "fields": {"next": 3}}
    server.faults.append(lambda request: (429, {"Retry-After": "7"}, body))
    status, headers, said = relay.ask("POST", "/api/v1/ingest/heartbeats", b"{}")
    assert (status, headers["retry-after"], json.loads(said)) == (429, "7", body)
    status, headers, _ = relay.ask("GET", f"/runs/{'a' * 26}")
    assert (status, headers["location"]) == (307, f"{server.url}/runs/{'a' * 26}")


def test_large_blobs_go_through_in_pieces_and_never_past_the_tracker(relay: Running, server: Server) -> None:
    """40 MB in a PUT do not grow the relay by as much; an address of the store, which nodes cannot reach, becomes the tracker's own."""
    from blake3 import blake3

    big = os.urandom(1 << 20) * 40
    digest = f"blake3:{blake3(big).hexdigest()}"
    before = _rss(relay.process.pid)
    assert relay.ask("PUT", f"/api/v1/ingest/blobs/{digest}?run={'a' * 26}", big)[0] == 200
    assert server.blobs[digest] == big
    assert _rss(relay.process.pid) - before < 20 << 10
    answer = {"missing": [{"digest": digest, "url": "https://store.example.org/x", "headers": {"X": "1"}}]}
    server.faults.append(lambda request: (200, {}, answer) if request.path.endswith("missing") else None)
    said = json.loads(relay.ask("POST", "/api/v1/ingest/blobs/missing", b"{}")[2])
    assert said == {"missing": [{"digest": digest, "url": None, "headers": {}}]}


def _rss(pid: int) -> int:
    return int(Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()[0])


def test_a_node_that_breaks_off_leaves_nothing_half(relay: Running, server: Server) -> None:
    """A body that ends too early never reaches the tracker as a whole one; the next request is served."""
    with socket.create_connection(("127.0.0.1", relay.port), timeout=10) as connection:
        connection.sendall(b"POST /api/v1/ingest/heartbeats HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
    assert relay.ask("GET", "/healthz")[0] == 200
    assert not server.heartbeats


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl here to make a certificate")
def test_the_trackers_certificate_is_checked(shop: Shop, server: Server) -> None:
    """TLS upstream: unknown certificates are refused with the reason, a known one is used."""
    key, certificate = shop.folder / "key.pem", shop.folder / "cert.pem"
    how = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost"
    subprocess.run([*how.split(), "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    listener = context.wrap_socket(socket.create_server(("127.0.0.1", 0)), server_side=True)

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
                connection.recv(65536)
                content = json.dumps(server.answer(Request("GET", "/healthz", b"", {}))[2]).encode()
                connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(content), content))
                connection.close()
            except ssl.SSLError:
                continue
            except OSError:
                return

    threading.Thread(target=serve, daemon=True).start()
    url = f"https://localhost:{listener.getsockname()[1]}"
    for options, status in (((), 503), (("--ca", str(certificate)), 200)):
        running = Running(shop, url, *options)
        try:
            got, _, body = running.ask("GET", "/healthz")
            assert got == status, body
            assert status == 200 or b"certificate" in body
        finally:
            running.close()
    listener.close()
