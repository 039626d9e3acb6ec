"""How recipe documents of one attempt add up."""

from __future__ import annotations


def merged(section: dict, value: dict) -> dict:
    """``merge`` of a recipe document: lists under the same name are appended, objects merged field by field, other fields replaced.

    Field by field: every rank sends its own ``numerics.rng.<rank>``, and none may take the others' away.
    """
    result = dict(section)
    for name, found in value.items():
        before = result.get(name)
        if isinstance(before, dict) and isinstance(found, dict):
            result[name] = merged(before, found)
        elif isinstance(before, list) and isinstance(found, list):
            result[name] = [*before, *found]
        else:
            result[name] = found
    return result
