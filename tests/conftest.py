"""What all tests share: how they are spread over the workers of pytest-xdist."""

from __future__ import annotations

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that share a fixture of their module go to one worker (``--dist loadgroup``), so that what is dear is built once: an Encore,
    an environment, a wheel. All others go to whoever is free."""
    for item in items:
        found = getattr(item, "_fixtureinfo", None)
        if found is None:
            continue
        definitions = [each for several in found.name2fixturedefs.values() for each in several]
        if any(each.scope == "module" and each.baseid.endswith(".py") for each in definitions):
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))
