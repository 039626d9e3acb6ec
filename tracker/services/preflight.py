"""Preflight of a run: its latest recipe beside what the store really has."""

from __future__ import annotations

from typing import Any

from tracker.domain import recipe as rules
from tracker.domain.lifecycle import RunState
from tracker.models import Blob, Run


def preflight(run: Run) -> dict[str, Any]:
    """``{"score", "runnable", "items"}`` of docs/api.md, for the recipe of the latest attempt. Two queries."""
    attempt = run.attempts.order_by("-number").first()
    recipe = (attempt.recipe if attempt else None) or {}
    digests = _digests(recipe)
    stored = set(Blob.objects.filter(project_id=run.project_id, digest__in=digests).values_list("digest", flat=True)) if digests else set()
    capturing = not RunState(run.state).is_terminal
    return rules.preflight(recipe, rules.Surroundings(stored=stored, capturing=capturing, config=run.config or {}))


def _digests(recipe: dict[str, Any]) -> list[str]:
    """The blobs that a rerun cannot do without: manifest, SDK wheel, stored inputs (the first thousand)."""

    def section(name: str) -> dict[str, Any]:
        value = recipe.get(name)
        return value if isinstance(value, dict) else {}

    wanted = [section("source").get("manifest"), (section("environment").get("sdk") or {}).get("wheel")]
    wanted += [item.get("digest") for item in (section("data").get("inputs") or [])[:1000] if item.get("stored")]
    return [digest for digest in wanted if isinstance(digest, str)]
