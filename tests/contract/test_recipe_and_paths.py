"""The recipe, the job order and the API's paths, held by golden files: what one side wrote in version 1, every later version reads."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from django.urls import URLPattern, get_resolver

from runner import order as orders
from runner.errors import WorkerFault
from runner.steps import environment
from tests.sdk.capture.world import World
from tracker.domain import facts, ids
from tracker.domain.recipe import preflight
from tracker.models import Reproduction

GOLDEN = Path(__file__).parent / "golden"
RECIPE = json.loads((GOLDEN / "recipe-1.json").read_text())
PATHS = (GOLDEN / "api-paths-1.txt").read_text().split()
JOB = "a" * 26


def order_of(recipe: dict, **other) -> dict:
    body = {"format": 1, "job": JOB, "fence": 3, "lease_seconds": 30, "key": "enc_key", "kind": "reproduce", "project": "examples"}
    body |= {"run": "b" * 26, "original": "c" * 26, "attempt": 1, "recipe": recipe, "overrides": {"config": {"lr": 1}, "argv": None}}
    return body | {"scope": {"steps": None}, "limits": {"seconds": None, "memory_bytes": None}} | other


def test_the_tracker_finds_a_golden_recipe_runnable_and_equal_to_itself():
    found = preflight(RECIPE)
    assert found["runnable"], found["items"]
    assert found["score"] >= 80
    assert list(facts.differences(RECIPE, json.loads(json.dumps(RECIPE)))) == []


def test_the_tracker_names_a_changed_fact_of_a_golden_recipe():
    changed = json.loads(json.dumps(RECIPE))
    next(each for each in changed["environment"]["packages"] if each["name"] == "torch")["version"] = "2.12.0"
    assert [(each.fact, each.numeric) for each in facts.differences(RECIPE, changed)] == [("package.torch", True)]


def test_the_runner_reads_an_order_with_a_golden_recipe():
    order = orders.read(order_of(RECIPE), JOB)
    assert order.command["launcher"]["nproc_per_node"] == 2
    assert order.root == "/home/alice/proj"
    assert [each["strength"] for each in order.inputs] == ["full", "full"]
    assert sorted(order.numerics["rng"]) == ["0", "1"]
    pins, editable = environment.requirements(SimpleNamespace(order=order), order.environment["packages"])
    assert "torch==2.13.0+cpu" in pins
    assert not editable


def test_the_runner_refuses_a_newer_order_by_name():
    with pytest.raises(WorkerFault, match="update the worker"):
        orders.read(order_of(RECIPE, format=2), JOB)


def test_the_order_that_the_tracker_hands_out_is_one_that_the_runner_reads(bob, make_run, worker, here, monkeypatch):
    monkeypatch.setattr("tracker.services.reproductions.preflight", lambda run: {"score": 100, "runnable": True, "items": []})
    run = make_run(recipe=RECIPE)
    asked = bob.post(f"runs/{run.id}/reproductions", {"overrides": {"config": {"lr": 2}}}).json()
    job = Reproduction.objects.get(id=asked["id"]).job_id
    body = worker.post(f"jobs/{job}/claim", {"worker": here.id}).json()
    assert set(order_of({})) <= set(body)
    order = orders.read(body, job)
    assert order.recipe == RECIPE
    assert order.original == run.id


def test_the_sdk_still_writes_every_field_of_the_golden_recipe(tmp_path):
    recipe = World(tmp_path).play()
    # What only a library in the program, a GPU or a launcher brings.
    may_lack = {"numerics": {"dtypes", "at_finish"}, "hardware": {"cuda", "hip", "cudnn", "nccl", "torch_cuda_available", "cpu_capability"}}
    for section, golden in RECIPE.items():
        assert set(golden) - may_lack.get(section, set()) - {"gaps"} <= set(recipe[section]), section
    assert set(RECIPE["data"]["inputs"][0]) <= set(recipe["data"]["inputs"][0])
    assert set(RECIPE["environment"]["packages"][0]["from"]) <= set(recipe["environment"]["packages"][0]["from"])


def routes() -> set[str]:
    """Every route below /api/v1, its converters' names left out."""

    def walk(patterns, before=""):
        for pattern in patterns:
            text = before + str(pattern.pattern)
            if isinstance(pattern, URLPattern):
                yield text
            else:
                yield from walk(pattern.url_patterns, text)

    return {path for path in walk(get_resolver().url_patterns) if path.startswith("api/v1/")}


def test_no_path_of_the_first_api_is_gone():
    now = {simple(path) for path in routes()}
    assert not set(PATHS) - now, "clients in the field call these"


def simple(path: str) -> str:
    """``api/v1/runs/<str:id>/logs`` as ``/api/v1/runs/{}/logs``."""
    parts = ["{}" if part.startswith("<") else part for part in path.split("/")]
    return "/" + "/".join(parts)


def test_an_id_is_26_characters_of_128_bits():
    golden = "abcdefghijklmnopqrstuvwxyy"
    assert ids.is_id(golden)
    assert ids.id_from_bytes(ids.id_bytes(golden)) == golden
    assert ids.id_bytes("a" * 26) == bytes(16)
    assert all(ids.is_id(ids.new_id()) for _ in range(100))
    assert not any(ids.is_id(text) for text in ("", "a" * 25, "A" * 26, "a" * 25 + "1", "a" * 27, "a" * 25 + "\n"))
