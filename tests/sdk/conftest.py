"""What the SDK's tests share: a server on the loopback, an empty home, and programs that are run as users run them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, os.path.dirname(__file__))
from helpers import Shop
from server import Server


@pytest.fixture
def server() -> Iterator[Server]:
    started = Server().start()
    yield started
    started.close()


@pytest.fixture
def down() -> Iterator[Server]:
    """A server that is not up yet; its port is known."""
    prepared = Server().start()
    prepared.close()
    yield prepared
    prepared.close()


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    made = Shop(tmp_path)
    yield made
    made.close()
