"""Attempts as the tracker makes them of what real launchers start: number, reason, world size (docs/launches.md)."""

from __future__ import annotations

import pytest
from helpers import Shop
from launching import Launcher, free_port
from server import Server

from sdk._ids import derived_id
from tests.tracker.helpers import api_of
from tracker.models import Attempt, Run
from tracker.services import writers

ELASTIC = """
    import os, sys, time, sdk
    rank, world, first = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), not os.path.exists("failed")
    if first and os.environ["LOCAL_WORLD_SIZE"] != os.environ["WORLD_SIZE"]:  # gloo cannot be set up again on torchrun's store
        import torch.distributed as dist
        dist.init_process_group("gloo")
    run = sdk.init(project="vision")
    for i in range(5):
        sdk.log({"rank": rank}, step=i)
    if first:
        open(f"began-{rank}", "w").close()
        while not all(os.path.exists(f"began-{other}") for other in range(world)):
            time.sleep(0.05)
        if rank == world - 1:
            open("failed", "w").close()
            sys.exit(3)
        time.sleep(600)  # as in a collective; its agent ends it
"""


@pytest.fixture
def launcher(tmp_path):
    server = Server().start()
    made = Launcher(Shop(tmp_path), server, offline=False)
    yield made
    made.end()
    server.close()


def apply(server: Server, people, order=lambda about: about["started_us"]) -> Run:
    """The tracker's word on what arrived at the stand-in: writers opened, and their ends told, in this order."""
    abouts = sorted(server.writers.values(), key=order)
    assert len({about["run"]["id"] for about in abouts}) == 1
    Run.objects.all().delete()
    for about in abouts:
        answer = api_of(people.alice).post("ingest/writers", about)
        assert answer.status_code == 200, answer.content
        data = server.finishes().get(about["writer"])
        if data is not None:
            written = writers.Writer.objects.get(id=about["writer"])
            written.finish = {**data, "time_us": about["started_us"] + 1}
            written.save()
    return Run.objects.get()


def seen(server: Server) -> list[tuple]:
    """What the launch was really like, for a failure's message."""
    abouts = sorted(server.writers.values(), key=lambda about: about["started_us"])
    ends = server.finishes()
    return [(a["kind"], a["rank"], a["started_us"], a["launch"], (ends.get(a["writer"]) or {}).get("state")) for a in abouts]


def _ranks(attempt: Attempt) -> list[int]:
    return sorted(attempt.writers.filter(kind="trainer").values_list("rank", flat=True))


def rows(run: Run) -> list[tuple]:
    return [(each.number, each.reason, each.world_size, each.launch.get("restart_count"), _ranks(each)) for each in run.attempts.all()]


def test_an_elastic_restart_is_a_new_attempt_of_the_same_run(launcher, people):
    """torchrun --max-restarts: rank 1 fails once, all ranks start again. Whatever the order in which the journals arrive."""
    pytest.importorskip("torch")
    script = launcher.script(ELASTIC)
    launcher.done(launcher.torchrun(script, "--nproc-per-node", "2", "--max-restarts", "1", "--master-port", str(free_port())))
    launcher.runs(4, ended=3)
    for seed in range(4):
        run = apply(launcher.server, people, lambda about, seed=seed: derived_id(seed, about["writer"]))
        assert rows(run) == [(1, "start", 2, 0, [0, 1]), (2, "restart", 2, 1, [0, 1])], seen(launcher.server)


def test_so_is_one_over_several_nodes_that_have_no_name_in_common(launcher, people):
    """Only the agent whose rank failed counts the restart; the node that had joined before knows its run at once."""
    pytest.importorskip("torch")
    script = launcher.script(ELASTIC)
    options = ["--nnodes", "2", "--nproc-per-node", "1", "--max-restarts", "2", "--rdzv-backend", "c10d"]
    options += ["--rdzv-endpoint", f"localhost:{free_port()}"]
    launcher.done(*[launcher.torchrun(script, *options) for _ in range(2)])
    launcher.runs(4, ended=3)
    for sign in (0, 1, -1):  # as it happened; one node's journals wholly after the other's
        run = apply(launcher.server, people, lambda about, sign=sign: (sign * about["rank"], about["kind"] == "node", about["started_us"]))
        assert [row[:3] + row[4:] for row in rows(run)] == [(1, "start", 2, [0, 1]), (2, "restart", 2, [0, 1])]
    assert Attempt.objects.count() == 2
