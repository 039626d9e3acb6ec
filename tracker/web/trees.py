"""Nested things as templates can walk them: configs and folders."""

from __future__ import annotations

from tracker.web import format

MOST = 3000
"""Leaves drawn of one tree; past that a page helps nobody and the API has the rest."""


def config_tree(value, budget: list[int] | None = None) -> list[dict]:
    """``[{"name", "value"} | {"name", "children", "count"}]`` of a JSON object or list."""
    budget = budget if budget is not None else [MOST]
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    nodes = []
    for name, found in pairs:
        if budget[0] <= 0:
            nodes.append({"name": "…", "value": "more than can be shown; the API has all of it"})
            break
        deep = isinstance(found, dict) or (isinstance(found, list) and any(isinstance(one, (dict, list)) for one in found))
        if found and deep:
            nodes.append({"name": str(name), "children": config_tree(found, budget), "count": len(found)})
        else:
            budget[0] -= 1
            nodes.append({"name": str(name), "value": found, "unit": _is_size(name, found)})
    return nodes


def _is_size(name, found) -> bool:
    return format.is_number(found) and format.unit(str(name)) == "bytes"


def file_tree(files: list[dict]) -> dict:
    """``{"folders": [{"name", "folders", "files", "open"}], "files": [{"name", "path", "state", "bytes"}]}``; changed folders are open."""
    root: dict = {"name": "", "children": {}, "files": []}
    for file in files:
        *folders, name = file["path"].split("/")
        node = root
        for folder in folders:
            node = node["children"].setdefault(folder, {"name": folder, "children": {}, "files": []})
        node["files"].append({**file, "name": name})
    return _settle(root)


def _settle(node: dict) -> dict:
    folders = [_settle(child) for _, child in sorted(node["children"].items())]
    changed = any(file["state"] not in ("tracked", "") for file in node["files"]) or any(folder["open"] for folder in folders)
    return {"name": node["name"], "folders": folders, "files": sorted(node["files"], key=lambda file: file["name"]), "open": changed}


def flat(value, prefix: str = "") -> dict:
    """``{"model.layers": 12}`` of a nested config; empty objects and lists are values."""
    if isinstance(value, dict) and value:
        leaves: dict = {}
        for name, found in value.items():
            leaves.update(flat(found, f"{prefix}.{name}" if prefix else str(name)))
        return leaves
    return {prefix: value}
