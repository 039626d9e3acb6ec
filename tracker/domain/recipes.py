"""How recipe documents of one attempt add up."""

from __future__ import annotations


def merged(section: dict, value: dict) -> dict:
    """``merge`` of a recipe document: lists under the same name are appended, other fields replaced."""
    result = dict(section)
    for name, found in value.items():
        before = result.get(name)
        result[name] = [*before, *found] if isinstance(before, list) and isinstance(found, list) else found
    return result
