"""One house for the whole folder, and the results of a long run in RESULTS.md."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.torture.house import TORTURE, House
from tests.torture.results import Results


@pytest.fixture(scope="session")
def house() -> Iterator[House]:
    made = House(Path(tempfile.mkdtemp(prefix="encore-torture-")))
    yield made
    made.close()


@pytest.fixture(scope="session")
def results() -> Iterator[Results]:
    """What each test counted; written to the tree by `make torture` alone."""
    made = Results()
    yield made
    if TORTURE:
        made.write(Path(__file__).with_name("RESULTS.md"))
