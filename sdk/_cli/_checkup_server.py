"""What `encore doctor` finds out about the server: is it there, is it one, may this token write, is it as old as we are."""

from __future__ import annotations

import os
import socket
import ssl
import time
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

from .. import _settings
from .._settings import Settings
from .._transport import Answer, Transport
from ..errors import EncoreError, ServerRefused, UsageError
from ._checkup import ILL, LOOK, OK, Findings

MUCH_SKEW_SECONDS = 5
PROXIES = ("https_proxy", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY")


class Server:
    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.answer: Answer | None = None

    def reach(self) -> Findings:
        url = self.settings.url
        if url is None:
            return [(ILL, "no server is known: encore login, or set ENCORE_URL (runs are kept and can be sent later)")]
        proxies = sorted({name.lower() for name in PROXIES if os.environ.get(name)})
        away: Findings = []
        if proxies:
            away = [(LOOK, f"{', '.join(proxies)} is set, but Encore goes its own way: without one, use `encore relay` or ENCORE_SPOOL")]
        began = time.monotonic()
        try:
            answer = Transport(url, None, answer_seconds=10).send("GET", "/healthz")
        except UsageError as error:
            return [(ILL, f"ENCORE_URL: {error}")]
        except EncoreError as error:
            return [(ILL, f"{url} is not reached: {_reason(url) or error}"), *away]
        took = (time.monotonic() - began) * 1000
        said = answer.json()
        if answer.ok and said.get("status") == "ok":
            self.answer = answer
            return [(OK, f"{url} answers in {took:.0f} ms{' (proxies of the environment are not used)' if proxies else ''}")]
        if said.get("code") == "upstream_unreachable":
            return [(ILL, f"{url} is a relay that does not reach its tracker: {said.get('message')}")]
        if 300 <= answer.status < 400:
            return [(ILL, f"{url} sends everybody on to {answer.headers.get('location', '?')}: set ENCORE_URL to that address")]
        if answer.status >= 500:
            return [(ILL, f"{url} answers {answer.status}: the server or the proxy before it is ill")]
        return [(ILL, f"{url} answers {answer.status}, but it is no Encore server: is the address right, with its port and path?")]

    def version(self) -> Findings:
        theirs = str(self.answer.json().get("version") or "") if self.answer is not None else ""
        if not theirs:
            return []
        ours = _settings.VERSION
        if theirs.split(".")[:2] == ours.split(".")[:2]:
            return [(OK, f"the server has version {theirs}, this SDK {ours}")]
        if _number(theirs) < _number(ours):
            return [(ILL, f"the server has version {theirs}, older than this SDK's {ours}: update the server, or use sdk {theirs}")]
        return [(LOOK, f"the server has version {theirs}, this SDK {ours}: newer servers read all older ones; update when it suits")]

    def token(self) -> Findings:
        settings = self.settings
        if settings.url is None or self.answer is None:
            return [] if settings.token else [(ILL, "no token: encore login, or set ENCORE_TOKEN")]
        if settings.token is None:
            return [(ILL, "no token: encore login, or set ENCORE_TOKEN")]
        if not settings.token.isascii() or any(character.isspace() for character in settings.token):
            return [(ILL, "the token has blanks or odd characters in it: was it copied whole?")]
        try:
            who = Transport(settings.url, settings.token, answer_seconds=10).call("GET", "me")
        except ServerRefused as error:
            return [(ILL, f"the token is not taken: {error.message}")]
        except EncoreError as error:
            return [(ILL, f"the token could not be tried: {error}")]
        scopes = who.get("scopes") or []
        if scopes and not {"api", "write", "job"} & set(scopes):
            return [(ILL, f"the token is {who.get('user')}'s, for {', '.join(scopes)} only: make one for training (encore token create)")]
        roles = {str(each.get("slug")): str(each.get("role")) for each in who.get("projects") or [] if isinstance(each, dict)}
        project = settings.project
        if project is not None and roles.get(project) == "viewer":
            return [(ILL, f"{who.get('user')} may only look at project {project}: its owner must make you an editor")]
        if roles and set(roles.values()) == {"viewer"}:
            return [(LOOK, f"{who.get('user')} may only look at {', '.join(sorted(roles)[:5])}; runs need a project that you may write to")]
        return [(OK, f"the token is {who.get('user')}'s, for {', '.join(scopes) or 'everything'}")]

    def clock(self) -> Findings:
        if self.answer is None or "date" not in self.answer.headers:
            return []
        skew = time.time() - parsedate_to_datetime(self.answer.headers["date"]).timestamp()
        if abs(skew) > MUCH_SKEW_SECONDS:
            return [(ILL, f"this machine's clock is {skew:+.0f} s off the server's: wall times will look odd (nothing is lost); use NTP")]
        return [(OK, f"clock within {MUCH_SKEW_SECONDS} s of the server's")]


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:3] if part.isdigit())


def _reason(url: str) -> str | None:
    """In plain words, by trying the steps one by one."""
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:
        return f"the name {host} is not known here: is it spelt right, and does this machine (a compute node?) have DNS"
    try:
        connection = socket.create_connection((host, port), timeout=10)
    except ConnectionRefusedError:
        return f"nobody listens on port {port} of {host} ({addresses[0][4][0]}): is the server up, is the port right"
    except TimeoutError:
        return f"{host} ({addresses[0][4][0]}) does not answer: a firewall, or no way there from here; see ENCORE_SPOOL, encore relay"
    except OSError as error:
        return f"{host}: {error.strerror or error}: no way there from here; see ENCORE_SPOOL and `encore relay` in docs/clusters.md"
    if parts.scheme != "https":
        connection.close()
        return None
    try:
        ssl.create_default_context().wrap_socket(connection, server_hostname=host).close()
    except ssl.SSLCertVerificationError as error:
        return f"its certificate is not trusted here ({error.verify_message}): set SSL_CERT_FILE to your site's certificates"
    except (ssl.SSLError, OSError) as error:
        return f"no TLS on port {port} ({getattr(error, 'reason', None) or error}): is it http:// instead"
    return None
