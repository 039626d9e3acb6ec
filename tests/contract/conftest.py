"""The tracker's people and rows serve the contracts too."""

import sys
from pathlib import Path

from tests.tracker.conftest import _fast_and_apart, bob, here, make_run, people, worker  # noqa: F401

sys.path[:0] = [str(Path(__file__).parents[1] / folder) for folder in ("sdk", "sdk/launches")]  # the SDK's stand-in server and launchers
