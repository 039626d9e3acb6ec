"""A run's energy: what its nodes' senders have counted, added up."""

from __future__ import annotations

from django.db.models import Q

from tracker.models import MetricSummary, Run

NAMES = {
    "energy_kwh": "total",
    "gpu_energy_kwh": "gpus",
    "cpu_energy_kwh": "processors",
    "energy_gap_seconds": "gap_seconds",
}


def of(run: Run) -> dict | None:
    """``{"total", "gpus", "processors"}`` in kWh and ``gap_seconds``, over all nodes; None where nothing could be measured.

    Each node counts on over restarts, so the last value of each is all it used.
    """
    named = Q(key__endswith="energy_kwh") | Q(key__endswith="/energy_gap_seconds")
    rows = MetricSummary.objects.filter(named, run=run, key__startswith="system/")
    found: dict = dict.fromkeys(NAMES.values())
    for key, last in rows.exclude(key__contains="/gpu.").values_list("key", "last"):
        name = NAMES.get(key.rpartition("/")[2])
        if name is not None and last is not None:
            found[name] = (found[name] or 0.0) + last
    return found if found["total"] is not None else None
