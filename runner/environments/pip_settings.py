"""Where packages come from on this machine: what pip is configured with, handed to uv (which reads none of it)."""

from __future__ import annotations

import os
import sys
import threading

from runner import shell


def uv_environment(stop: threading.Event | None = None) -> dict[str, str]:
    """Variables for uv: find-links, indexes and certificates of pip's configuration; the operator's own UV_* win."""
    pip = _pip_configuration(stop)
    env = shell.bare_environment(UV_PYTHON_DOWNLOADS="never", UV_NO_CONFIG="1", UV_NO_PROGRESS="1", UV_LINK_MODE="hardlink", NO_COLOR="1")
    env["HOME"] = os.environ.get("HOME", "/")
    if links := pip.get("find-links"):
        env["UV_FIND_LINKS"] = ",".join(links.split())
    if index := pip.get("index-url"):
        env["UV_DEFAULT_INDEX"] = index.split()[0]
    if extra := pip.get("extra-index-url"):
        env["UV_INDEX"] = " ".join(extra.split())
        # pip looks at all indexes for the best match; a pin names the version, so the first index that has it will do.
        env["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    if pip.get("no-index", "").lower() in ("1", "true", "yes", "on"):
        env["UV_NO_INDEX"] = "1"
    if host := pip.get("trusted-host"):
        env["UV_INSECURE_HOST"] = " ".join(host.split())
    if certificate := pip.get("cert"):
        env["SSL_CERT_FILE"] = certificate
    for name, value in os.environ.items():
        if name.startswith("UV_") or name.lower() in ("http_proxy", "https_proxy", "no_proxy", "all_proxy"):
            env[name] = value
    env["UV_PYTHON_DOWNLOADS"] = "never"
    return env


_cached: dict[str, str] | None = None


def _pip_configuration(stop: threading.Event | None) -> dict[str, str]:
    global _cached
    if _cached is None:
        names = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
        listed = shell.run(
            [sys.executable, "-I", "-m", "pip", "--disable-pip-version-check", "config", "list"],
            env=shell.bare_environment(HOME=os.environ.get("HOME", "/"), **names),
            stop=stop,
            seconds=60,
            stderr=False,
        )
        found: dict[str, str] = {}
        if listed.returncode == 0:
            found = parse(listed.output)
        for name, value in names.items():  # where the worker's environment has no pip
            if name != "PIP_CONFIG_FILE":
                found[name.removeprefix("PIP_").lower().replace("_", "-")] = value
        _cached = found
    return _cached


def parse(listing: str) -> dict[str, str]:
    """Of ``pip config list``: option -> value; install's own options over the global ones, the environment over both."""
    found: dict[str, str] = {}
    for scope in ("global", "install", ":env:"):
        for line in listing.splitlines():
            name, _, value = line.partition("=")
            section, _, option = name.rpartition(".")
            if section == scope:
                found[option] = value.strip("'\"").replace("\\n", " ")
    return found
