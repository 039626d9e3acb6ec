"""Launches as users make them, each with and without a server."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest

sys.path.insert(0, os.path.dirname(__file__))
from launching import Launcher


@pytest.fixture(params=["server", "offline"])
def launcher(request, shop, server) -> Iterator[Launcher]:
    """Starts programs with a server at hand, or offline and brought to it by `encore sync` before anybody looks."""
    made = Launcher(shop, server, offline=request.param == "offline")
    yield made
    made.end()


@pytest.fixture
def online(shop, server) -> Iterator[Launcher]:
    made = Launcher(shop, server, offline=False)
    yield made
    made.end()
