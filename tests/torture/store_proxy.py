"""Before a real S3 server: late, broken off, answered for it, or all of that by turns."""

from __future__ import annotations

import contextlib
import socket
import time

from tests.torture.proxy import MODES, Proxy, _end

OWN = {
    "late": "every answer comes a second later",
    "500": "InternalError, the request is not done",
    "503": "SlowDown, the request is not done",
    "mixed": "each connection meets one of all these, or nothing",
}
FAULTS = ["down", "dead", "mute", "cut", "reset", "half", "swallow", *OWN]
"""``slow`` is left out: 64 bytes at a time is for small requests."""
_ANSWER = {
    "500": ("500 Internal Server Error", "InternalError"),
    "503": ("503 Service Unavailable", "SlowDown"),
}


class StoreProxy(Proxy):
    def set(self, mode: str) -> None:
        assert mode in MODES or mode in OWN
        super().set(mode if mode in MODES else "pass")  # opens the door, cuts what is open
        self.mode = mode

    def _serve(self, client: socket.socket, mode: str) -> None:
        if mode == "mixed":
            mode = self.chance.choice(["pass", "pass", "pass", *(fault for fault in FAULTS if fault not in ("down", "mute", "mixed"))])
        if mode in _ANSWER:
            self.struck += 1
            with contextlib.suppress(OSError):
                _refuse(client, mode)
            _end(client)
            client.close()
            return
        if mode == "late":
            self.struck += 1
            time.sleep(1)
            mode = "pass"
        super()._serve(client, mode)


def _refuse(client: socket.socket, mode: str) -> None:
    """The answer, once the request is read: its body too, unless the client waits to be asked for it."""
    client.settimeout(10)
    raw = b""
    while b"\r\n\r\n" not in raw and (more := client.recv(65536)):
        raw += more
    head, _, body = raw.partition(b"\r\n\r\n")
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line)
    left = 0 if b"expect" in fields else int(fields.get(b"content-length", b"0")) - len(body)
    while left > 0 and (more := client.recv(65536)):
        left -= len(more)
    status, code = _ANSWER[mode]
    text = f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>by the proxy</Message></Error>'
    client.sendall(
        f"HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nContent-Length: {len(text)}\r\nConnection: close\r\n\r\n{text}".encode()
    )
