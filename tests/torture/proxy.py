"""A loopback proxy between sender and server that does what networks do. `mode` may be changed at any time."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
import time

MODES = {
    "pass": "nothing",
    "down": "nobody listens: connections are refused",
    "dead": "connections are taken and reset at once",
    "mute": "connections are taken, and nothing ever answers",
    "cut": "the connection ends in the middle of a request",
    "reset": "the connection is reset in the middle of a request",
    "slow": "bytes trickle, both ways",
    "half": "half an answer, then the end",
    "swallow": "the request is done, and its answer never comes (cut after the commit)",
}
PIECE = 65536


class Proxy:
    def __init__(self, port: int, seed: int = 0) -> None:
        """port: of the server. `url` is ours."""
        self.target, self.chance = port, random.Random(seed)
        self.mode = "pass"
        self.connections = 0
        self.struck = 0  # faults that a connection has met
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listener: socket.socket | None = None
        self.port = 0
        self._listen()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def set(self, mode: str) -> None:
        """From now on; connections that are open are cut, as a router does that comes up again."""
        assert mode in MODES
        self.mode = mode
        if mode == "down":
            self._shut()
        elif self._listener is None:
            self._listen()
        with self._lock:
            for each in list(self._open):
                _end(each)

    def close(self) -> None:
        self.set("down")

    def _listen(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port), reuse_port=False)
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def _shut(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(client, self.mode), daemon=True).start()

    def _serve(self, client: socket.socket, mode: str) -> None:
        with self._lock:
            self._open.add(client)
        server = None
        try:
            if mode == "dead":
                self.struck += 1
                _end(client, reset=True)
                return
            if mode == "mute":
                self.struck += 1
                while client.recv(PIECE):
                    pass
                return
            server = socket.create_connection(("127.0.0.1", self.target), timeout=120)
            with self._lock:
                self._open.add(server)
            up = threading.Thread(target=self._pump, args=(client, server, mode, True), daemon=True)
            up.start()
            self._pump(server, client, mode, False)
            up.join(1)
        except OSError:
            pass
        finally:
            with self._lock:
                for each in (client, server):
                    if each is not None:
                        self._open.discard(each)
                        _end(each)
                        each.close()

    def _pump(self, source: socket.socket, sink: socket.socket, mode: str, is_request: bool) -> None:
        """Bytes of one direction, with what the mode does to them."""
        left = self.chance.randrange(50, 1500)  # bytes until a cut in a request
        with contextlib.suppress(OSError):
            while data := source.recv(PIECE):
                if is_request and mode in ("cut", "reset"):
                    if len(data) >= left:
                        self.struck += 1
                        sink.sendall(data[:left])
                        _end(source, reset=mode == "reset")
                        _end(sink, reset=mode == "reset")
                        return
                    left -= len(data)
                if not is_request and mode in ("half", "swallow"):
                    self.struck += 1
                    if mode == "half":
                        sink.sendall(data[: len(data) // 2])
                    _end(source)
                    _end(sink)
                    return
                if mode == "slow":
                    self.struck += 1
                    for start in range(0, len(data), 64):
                        sink.sendall(data[start : start + 64])
                        time.sleep(0.02)
                    continue
                sink.sendall(data)
        _end(sink)


def _end(each: socket.socket, reset: bool = False) -> None:
    with contextlib.suppress(OSError):
        if reset:
            each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            each.close()
        else:
            each.shutdown(socket.SHUT_RDWR)
