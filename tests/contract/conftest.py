"""The tracker's people and rows serve the contracts too."""

from tests.tracker.conftest import _fast_and_apart, bob, here, make_run, people, worker  # noqa: F401
