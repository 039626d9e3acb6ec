"""The System tab: what every node's sender measured, and the energy of all of them."""

from __future__ import annotations

import numpy as np
import pytest

from tests.tracker.web import fill
from tracker.models import Run
from tracker.services import energy, summaries


@pytest.fixture
def run(db, people):
    """Two nodes: each counts its own energy, under its own host's name, and goes on over a restart."""
    first = fill.Trainer(people["alice"], "gpt", "big", world=2)
    for rank, host in enumerate(("node-a", "node-b")):
        trainer = first if rank == 0 else fill.Trainer(people["alice"], "gpt", "big", run=first.run_id, rank=1, world=2)
        node = fill.Trainer(people["alice"], "gpt", "big", run=first.run_id, rank=rank, world=2, kind="node")
        steps = np.arange(3)
        columns = {
            f"system/{host}/energy_kwh": np.array([0.0, 0.5, 1.25 + rank]),
            f"system/{host}/gpu_energy_kwh": np.array([0.0, 0.5, 1.0 + rank]),
            f"system/{host}/energy_gap_seconds": np.array([0.0, 0.0, 40.0]),
            f"system/{host}/gpu.0/energy_kwh": np.array([0.0, 0.5, 1.0]),
            f"system/{host}/gpu.0/power_watts": np.array([300.0, 310.0, 305.0]),
        }
        node.batch(columns, steps, [trainer.start_us + 10_000_000 * at for at in range(3)])
    summaries.summarise_run(first.run_id)
    return Run.objects.get(id=first.run_id)


def test_energy_is_the_sum_over_nodes_and_boards_are_not_counted_twice(run):
    assert energy.of(run) == {"total": 3.5, "gpus": 3.0, "processors": None, "gap_seconds": 80.0}


def test_the_tab_shows_energy_and_every_nodes_boards(alice, run):
    page = alice.get(f"/runs/{run.id}/system").content.decode()
    assert '<dt>Energy</dt><dd><data class="num" value="3.5"' in page
    assert 'data-key="system/node-a/gpu.0/power_watts"' in page
    assert 'data-key="system/node-b/gpu.0/power_watts"' in page
    assert "Not measured" in page


def test_a_run_without_power_says_nothing_of_energy(alice, people):
    run = fill.run_of(people["alice"], "gpt", "plain", steps=3, log=False, with_recipe=False)
    assert energy.of(run) is None
    assert 'id="energy"' not in alice.get(f"/runs/{run.id}/system").content.decode()


def test_a_run_without_system_metrics_shows_an_empty_tab(alice, people):
    trainer = fill.Trainer(people["alice"], "gpt", "bare")
    answer = alice.get(f"/runs/{trainer.run_id}/system")
    assert answer.status_code == 200
    assert "Nothing logged yet" in answer.content.decode()
