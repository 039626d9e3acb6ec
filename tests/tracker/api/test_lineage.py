"""Resume, rewind and fork over HTTP, as senders and people speak: what counts, what is kept, who may see it, what is refused."""

from __future__ import annotations

import pytest

from tests.tracker.helpers import api_of, writer_json
from tests.tracker.store import wire_writer as wire
from tracker.api import ingest_batches
from tracker.domain.ids import new_id
from tracker.models import Event, Membership, Project, Run, StaleSummary
from tracker.services import ingest, lineage, stitched, summaries
from tracker.store import reading

START = 1_700_000_000_000_000
SECOND = 1_000_000


@pytest.fixture(autouse=True)
def _remember_nothing():
    for forget in (ingest.forget, ingest_batches.forget, reading.forget):
        forget()


class Process:
    """One start of a run, as its sender speaks for it. ``at``: seconds after the first of all."""

    def __init__(self, api, run_id: str | None = None, at: int = 0, **said) -> None:
        more = {name: said.pop(name) for name in ("rank", "world_size", "launch", "kind") if name in said}
        self.api, self.start_us, self.next = api, START + at * SECOND, 0
        self.doc = writer_json(run_id, run=said, started_us=self.start_us, anchor_wall_us=self.start_us, **more)
        self.id, self.run = self.doc["writer"], self.doc["run"]["id"]
        self.opened = api.post("ingest/writers", self.doc)
        assert self.opened.status_code == 200, self.opened.content

    def log(self, *steps: int, key: str = "loss", add: float = 0.0, docs=()) -> Process:
        """The value of a step is the step itself, plus ``add``; a second goes by from step to step."""
        rows = [(self.next + n, step, self.start_us + step * SECOND, [step + add]) for n, step in enumerate(steps)]
        first, self.next = self.next, self.next + len(rows) + len(docs)
        told = [{"n": first + len(rows) + n, "step": None, "time": self.start_us, "doc": doc} for n, doc in enumerate(docs)]
        body = wire.batch(self.run, self.id, first, self.next - 1, [wire.dense(first, [key], "d", rows)] if rows else (), told)
        answer = self.api("POST", f"ingest/writers/{self.id}/batches", body, content_type="application/vnd.encore.batch")
        assert answer.status_code == 200, answer.content
        return self


def points(api, run: str, key: str = "loss", **query) -> list[list]:
    asked = "&".join(f"{name}={value}" for name, value in {"key": key, **query}.items())
    answer = api.get(f"runs/{run}/history?{asked}")
    assert answer.status_code == 200, answer.content
    return [[step, value] for step, _, value in answer.json()["points"]]


def metric(api, run: str, key: str = "loss") -> dict:
    summaries.summarise_due()
    stitched._rest_until.clear()
    stitched.recompute_due()
    return api.get(f"runs/{run}").json()["metrics"].get(key, {})


def ask(api, runs: list[str], **more) -> dict:
    answer = api("POST", "series", {"runs": runs, "keys": ["loss"], **more}, accept="application/json")
    assert answer.status_code == 200, answer.content
    return answer.json()


def events(run: str, name: str) -> list[dict]:
    return list(Event.objects.filter(run_id=run, name=name).values_list("data", flat=True))


# -- rewind -----------------------------------------------------------------------------------------------------------------------------


def test_a_rewound_run_keeps_its_old_branch_apart(alice):
    """History up to the step stays, what lies beyond is out of curve and summary, and all of it can still be read."""
    first = Process(alice).log(*range(10))
    Process(alice, first.run, at=60, resume="must", rewind_to=4).log(5, 6, add=100)
    kept, new, old = [[n, float(n)] for n in range(5)], [[5, 105.0], [6, 106.0]], [[n, float(n)] for n in range(5, 10)]
    assert points(alice, first.run) == kept + new
    assert points(alice, first.run, attempt=1) == kept + old
    assert points(alice, first.run, attempt=2) == new
    told = alice.get(f"runs/{first.run}/history?key=loss&branch=all").json()
    (branch,) = told["branches"]
    assert (branch["attempt"], branch["rewound_to"]) == (2, 4)
    assert [[step, value] for step, _, value in branch["points"]] == old
    found = metric(alice, first.run)
    assert (found["count"], found["last"], found["last_step"], found["min"], found["max"]) == (7, 106.0, 6, 0.0, 106.0)
    assert [each["rewound_to"] for each in alice.get(f"runs/{first.run}").json()["attempts"]] == [None, 4]
    lines = ask(alice, [first.run], branch="all")["series"]
    assert [(line.get("branch"), line["steps"]) for line in lines] == [(None, [*range(5), 5, 6]), (2, [*range(5, 10)])]
    assert ask(alice, [first.run], attempt=1)["series"][0]["steps"] == list(range(10))
    assert len(ask(alice, [first.run])["series"]) == 1


def test_late_points_of_the_older_attempt_are_on_the_old_branch_too(alice):
    """A rule by attempt and step: what the older start sends after the rewind has been heeded does not come back into the curve."""
    first = Process(alice).log(0, 1, 2)
    second = Process(alice, first.run, at=60, rewind_to=1)
    first.log(3, 4)
    assert points(alice, first.run) == [[0, 0.0], [1, 1.0]]
    second.log(2, add=100)
    first.log(1, 5)
    assert points(alice, first.run) == [[0, 0.0], [1, 1.0], [2, 102.0]]
    assert metric(alice, first.run)["max"] == 102.0


def test_journals_may_come_in_the_opposite_order(alice):
    """An offline run whose later start is synced first reads the same in the end."""
    run = new_id()
    Process(alice, run, at=60, resume="must", rewind_to=4).log(5, 6, add=100)
    assert [each["why"] for each in events(run, "resume_missing")]
    assert metric(alice, run)["count"] == 2
    Process(alice, run).log(*range(10))
    assert points(alice, run) == [[n, float(n)] for n in range(5)] + [[5, 105.0], [6, 106.0]]
    assert metric(alice, run)["count"] == 7
    assert not events(run, "resume_missing"), "it was not missing, only late"


def test_a_live_run_that_went_back_is_summed_up_as_cheaply_as_any(alice):
    """Points beyond all that is there are added; only repeated, older or late ones make the series be read again."""
    first = Process(alice).log(0, 1, 2)
    second = Process(alice, first.run, at=60, rewind_to=0).log(1, 2, add=10)
    assert metric(alice, first.run)["count"] == 3
    for process, steps, is_added, count in (
        (second, (3, 4), True, 5),
        (second, (4, 5), False, 6),
        (second, (6,), True, 7),
        (first, (7,), False, 7),
    ):
        process.log(*steps, add=10)
        summaries.summarise_due()
        assert StaleSummary.objects.exists() is not is_added
        found = metric(alice, first.run)
        assert (found["count"], found["max"]) == (count, float(10 + max(s for s, _ in points(alice, first.run))))


def test_a_plain_resume_overtakes_step_by_step(alice):
    """Without rewind_to the later start wins the steps it repeats, and the old tail stays until it is overtaken."""
    first = Process(alice).log(*range(6))
    Process(alice, first.run, at=60, resume="allow").log(3, 4, add=100)
    assert points(alice, first.run) == [[0, 0.0], [1, 1.0], [2, 2.0], [3, 103.0], [4, 104.0], [5, 5.0]]
    assert not Run.objects.get(id=first.run).is_stitched


def test_all_ranks_go_back_together(alice):
    """A rewind belongs to the attempt: a rank whose new start has not been heard of yet goes back with the others."""
    launch = [{"kind": "torchrun", "id": f"job-{n}", "restart_count": 0} for n in range(2)]
    first = [Process(alice, rank=0, world_size=2, launch=launch[0])]
    first.append(Process(alice, first[0].run, rank=1, world_size=2, launch=launch[0]))
    for each in first:
        each.log(0, 1, 2, 3)
    Process(alice, first[0].run, at=60, rank=0, world_size=2, launch=launch[1], rewind_to=1).log(2, add=100)
    assert points(alice, first[0].run, rank=1) == [[0, 0.0], [1, 1.0]]
    assert points(alice, first[0].run, rank=0) == [[0, 0.0], [1, 1.0], [2, 102.0]]


def test_the_machines_measurements_are_not_rewound(alice):
    """They count samples, not training steps."""
    first = Process(alice).log(*range(5), key="system/cpu")
    Process(alice, first.run, at=60, rewind_to=1).log(0, key="system/cpu", add=50)
    assert points(alice, first.run, "system/cpu") == [[0, 50.0], [1, 1.0], [2, 2.0], [3, 3.0], [4, 4.0]]


def test_a_live_chart_is_told_to_begin_again(alice):
    """A poll whose points are no longer the history gets `reset`; one whose run merely goes on gets the tail."""
    first = Process(alice).log(0, 1, 2, 3)
    cursor = ask(alice, [first.run])["cursor"]
    second = Process(alice, first.run, at=60, rewind_to=1)
    answer = ask(alice, [first.run], since=cursor)
    assert (answer["series"], answer["reset"], answer["cursor"]) == ([], True, cursor)
    whole = ask(alice, [first.run])
    assert whole["series"][0]["steps"] == [0, 1]
    second.log(2, 3)
    (tail,) = ask(alice, [first.run], since=whole["cursor"])["series"]
    assert (tail["from"], tail["steps"]) == (2.0, [2, 3])


# -- fork -------------------------------------------------------------------------------------------------------------------------------


def test_a_fork_draws_its_parents_history_before_its_own(alice):
    """Inherited up to the step, own from there on; curve, history, summary and table say the same, and the two name each other."""
    parent = Process(alice, name="base").log(*range(10), add=-50)
    child = Process(alice, at=60, name="warm", fork_from={"run": parent.run, "step": 3}).log(4, 5, add=100)
    expected = [[n, n - 50.0] for n in range(4)] + [[4, 104.0], [5, 105.0]]
    assert points(alice, child.run) == expected
    assert points(alice, parent.run) == [[n, n - 50.0] for n in range(10)]
    (line,) = ask(alice, [child.run])["series"]
    assert (line["steps"], line["fork_x"], line["attempts"]) == ([0, 1, 2, 3, 4, 5], 3.0, [0, 1])
    found = metric(alice, child.run)
    assert (found["count"], found["last"], found["min"], found["max"]) == (6, 105.0, -50.0, 105.0)
    row = alice.get("runs?sort=summary.loss&keys=loss&limit=1&filter=name%20%3D%20warm").json()["results"][0]
    assert row["metrics"] == {"loss": 105.0}
    told = alice.get(f"runs/{child.run}").json()
    assert told["forked_from"] == {"run": parent.run, "step": 3, "name": "base", "project": "vision", "state": "inherited"}
    assert alice.get(f"runs/{parent.run}").json()["forks"] == [{"run": child.run, "name": "warm", "step": 3, "state": "running"}]
    assert told["forks"] == []
    assert told["config"] == {}, "a fork inherits history, not config"


def test_a_fork_of_a_fork_and_of_a_rewound_run(alice):
    """Transitively: the grandchild has what counted in each, up to each step."""
    old = Process(alice).log(*range(10))
    Process(alice, old.run, at=10, rewind_to=2).log(3, 4, 5, 6, add=100)
    child = Process(alice, at=20, fork_from=[old.run, 4]).log(5, 6, 7, add=200)
    grand = Process(alice, at=30, fork_from={"run": child.run, "step": 6}).log(7, add=300)
    expected = [[0, 0.0], [1, 1.0], [2, 2.0], [3, 103.0], [4, 104.0], [5, 205.0], [6, 206.0], [7, 307.0]]
    assert points(alice, grand.run) == expected
    assert metric(alice, grand.run)["count"] == 8
    Process(alice, grand.run, at=40, rewind_to=1).log(2, add=400)
    assert points(alice, grand.run) == [[0, 0.0], [1, 1.0], [2, 402.0]]
    assert metric(alice, grand.run)["count"] == 3
    told = alice.get(f"runs/{grand.run}/history?key=loss&branch=all").json()["branches"]
    assert [(b["attempt"], [p[0] for p in b["points"]]) for b in told] == [(2, [2, 3, 4, 5, 6, 7])]


def test_what_the_parent_does_later_is_not_the_forks_history(alice):
    """The parent goes back and on another way: the fork keeps the way that it came."""
    parent = Process(alice).log(*range(6))
    child = Process(alice, at=30, fork_from={"run": parent.run, "step": 4}).log(5, add=100)
    Process(alice, parent.run, at=60, rewind_to=1).log(2, 3, 4, add=500)
    assert points(alice, child.run) == [[n, float(n)] for n in range(5)] + [[5, 105.0]]
    assert points(alice, parent.run) == [[0, 0.0], [1, 1.0], [2, 502.0], [3, 503.0], [4, 504.0]]
    assert metric(alice, child.run)["max"] == 105.0


def test_a_fork_that_comes_before_its_parent_resolves_when_it_appears(alice):
    """Synced in the wrong order: own points at first, all of them once the parent is there, in the summary too."""
    run = new_id()
    child = Process(alice, at=60, fork_from={"run": run, "step": 2}).log(3, 4)
    assert points(alice, child.run) == [[3, 3.0], [4, 4.0]]
    assert alice.get(f"runs/{child.run}").json()["forked_from"]["state"] == "unknown"
    assert metric(alice, child.run)["count"] == 2
    cursor = ask(alice, [child.run])["cursor"]
    Process(alice, run).log(0, 1, 2, 3, 4, 5)
    assert ask(alice, [child.run], since=cursor)["reset"] is True
    assert [step for step, _ in points(alice, child.run)] == [0, 1, 2, 3, 4]
    assert metric(alice, child.run)["count"] == 5


def test_a_fork_inherits_only_what_the_viewer_may_see(alice, people):
    """A parent in a project that is not his: own points and a word for him, all for her; the summary, which both read, has its own."""
    Project.objects.create(slug="secret", name="Secret")
    Membership.objects.create(project=Project.objects.get(slug="secret"), user=people.alice, role="owner")
    parent = Process(alice, project="secret", name="hidden").log(0, 1, 2, add=-50)
    child = Process(alice, at=60, fork_from={"run": parent.run, "step": 1}).log(2, 3)
    victor = api_of(people.victor)
    assert [step for step, _ in points(alice, child.run)] == [0, 1, 2, 3]
    assert [step for step, _ in points(victor, child.run)] == [2, 3]
    assert ask(victor, [child.run])["series"][0]["steps"] == [2, 3]
    found = victor.get(f"runs/{child.run}").json()["forked_from"]
    assert found == {"run": parent.run, "step": 1, "name": None, "project": None, "state": "unknown"}
    assert alice.get(f"runs/{child.run}").json()["forked_from"]["state"] == "inherited"
    assert metric(victor, child.run)["min"] == 2.0
    assert victor.get(f"runs/{parent.run}").status_code == 404


def test_deleting_a_parent_leaves_the_fork_its_own_points_and_a_word(alice):
    """At once, in curve and summary; and it is said why there is no more."""
    parent = Process(alice).log(0, 1, 2)
    child = Process(alice, at=60, fork_from={"run": parent.run, "step": 1}).log(2, 3)
    assert metric(alice, child.run)["count"] == 4
    assert alice("DELETE", f"runs/{parent.run}").status_code == 204
    assert points(alice, child.run) == [[2, 2.0], [3, 3.0]]
    assert alice.get(f"runs/{child.run}").json()["forked_from"]["state"] == "deleted"
    assert metric(alice, child.run)["count"] == 2


def test_a_parent_that_is_still_logging_reaches_its_forks(alice):
    """Points of the parent at steps up to the fork's come into the fork's curve and summary as they come in; later ones do not."""
    parent = Process(alice).log(0, 1)
    child = Process(alice, at=5, fork_from={"run": parent.run, "step": 3}).log(4)
    assert metric(alice, child.run)["count"] == 3
    cursor = ask(alice, [child.run])["cursor"]
    parent.log(2, 3, 4, 5, add=-50)
    (tail,) = ask(alice, [child.run], since=cursor)["series"]
    assert (tail["from"], tail["steps"]) == (2.0, [2, 3, 4])
    assert metric(alice, child.run)["count"] == 5
    assert metric(alice, child.run)["min"] == -48.0


def test_relative_time_goes_on_over_a_fork(alice):
    """The parent's points keep their time, own ones go on from the fork's moment: the night in between is left out."""
    parent = Process(alice).log(*range(5))
    metric(alice, parent.run)
    child = Process(alice, at=30_000, fork_from={"run": parent.run, "step": 3}).log(1, 2, 4)
    grand = Process(alice, at=90_000, fork_from={"run": child.run, "step": 2}).log(3)
    (line,) = ask(alice, [child.run], x="relative")["series"]
    assert sorted(zip(line["steps"], line["x"], strict=True)) == [(0, 0.0), (1, 4.0), (2, 5.0), (3, 3.0), (4, 7.0)]
    metric(alice, child.run)
    (line,) = ask(alice, [grand.run], x="relative")["series"]
    assert sorted(zip(line["steps"], line["x"], strict=True)) == [(0, 0.0), (1, 4.0), (2, 5.0), (3, 8.0)]
    (line,) = ask(alice, [child.run], x="wall")["series"]
    assert max(line["x"]) == (START + 30_004 * SECOND) / 1e6


def test_a_name_is_found_when_nobody_has_its_id(alice):
    """fork_from=("base", …): an id is made of the name, as for init(id=…); else it is the name that a run of the project is shown under."""
    parent = Process(alice, name="base").log(0, 1)
    told = {"run": new_id(), "step": 0, "given": "base"}
    child = Process(alice, at=60, fork_from=told).log(1, add=100)
    Process(alice, child.run, at=90, fork_from=told, resume="allow").log(2, add=100)
    assert points(alice, child.run) == [[0, 0.0], [1, 101.0], [2, 102.0]]
    assert alice.get(f"runs/{child.run}").json()["forked_from"]["run"] == parent.run
    assert not events(child.run, "fork_refused")


# -- what is refused in words ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("told", ["x", 3, [1, 2], ["a" * 26, "b"], {"run": "a" * 26}, {"run": "short", "step": 1}, ["a" * 26, True]])
def test_a_malformed_fork_is_an_event_and_the_points_come_in(alice, told):
    child = Process(alice, fork_from=told).log(0)
    assert points(alice, child.run) == [[0, 0.0]]
    assert len(events(child.run, "fork_refused")) == 1
    assert not Run.objects.get(id=child.run).fork_run


@pytest.mark.parametrize("told", ["x", 1.5, True, 2**63, -(2**63), {}])
def test_a_malformed_rewind_is_an_event_and_the_points_come_in(alice, told):
    first = Process(alice).log(0, 1)
    Process(alice, first.run, at=60, rewind_to=told).log(2)
    assert len(points(alice, first.run)) == 3
    assert len(events(first.run, "rewind_refused")) == 1


def test_a_circle_of_forks_is_refused_and_said(alice):
    """A run cannot be its own ancestor, by one step or by three; the points of all of them come in."""
    one, two, three = (new_id() for _ in range(3))
    Process(alice, one, fork_from={"run": one, "step": 1}).log(0)
    assert events(one, "fork_refused")[0]["why"] == "the run would be its own ancestor"
    Process(alice, two, fork_from={"run": three, "step": 1}).log(0)
    four = Process(alice, fork_from={"run": two, "step": 1}).log(0)
    Process(alice, three, fork_from={"run": four.run, "step": 1}).log(0)
    assert events(three, "fork_refused")
    assert points(alice, four.run) == [[0, 0.0]]


def test_a_circle_that_was_made_all_the_same_ends(alice, people):
    """Two runs opened in the same instant could name each other: reading, summaries and pages still come to an end."""
    one, two = Process(alice).log(0), Process(alice).log(0, 1)
    Run.objects.filter(id=one.run).update(fork_run=two.run, fork_step=5, is_stitched=True)
    Run.objects.filter(id=two.run).update(fork_run=one.run, fork_step=5, is_stitched=True)
    lineage.mark_stale([one.run, two.run])
    assert points(alice, one.run) == [[0, 0.0], [1, 1.0]]
    assert metric(alice, two.run)["count"] == 2
    assert alice("DELETE", f"runs/{one.run}").status_code == 204


def test_only_the_first_start_says_whose_history_it_is(alice):
    """Whichever journal comes first."""
    parent = Process(alice).log(0, 1)
    fork = {"run": parent.run, "step": 1}
    run = new_id()
    Process(alice, run, at=60, fork_from=fork).log(5)
    assert len(points(alice, run)) == 3
    Process(alice, run, at=30).log(4)
    assert points(alice, run) == [[4, 4.0], [5, 5.0]]
    Process(alice, run, at=90, fork_from=fork).log(6)
    assert len(points(alice, run)) == 3
    assert events(run, "fork_refused")


@pytest.mark.parametrize("query", ["branch=some", "attempt=0", "attempt=x", "attempt=1&branch=all"])
def test_a_wrong_branch_is_named(alice, query):
    run = Process(alice).log(0).run
    assert alice.get(f"runs/{run}/history?key=loss&{query}").status_code == 400


# -- config -----------------------------------------------------------------------------------------------------------------------------


def test_a_resumed_config_lies_over_the_old_one_in_whatever_order_they_come(alice):
    """update: true of the later start over what the first said; and the first, should it come later, under it."""
    said = [{"type": "config", "value": {"lr": 1, "layers": 2}, "update": False}, {"type": "config", "value": {"lr": 5}, "update": True}]
    for order in ((0, 1), (1, 0)):
        run = new_id()
        starts = {}
        for at in order:
            starts[at] = Process(alice, run, at=at * 60)
        for at in order:
            starts[at].log(docs=[said[at]])
        assert alice.get(f"runs/{run}").json()["config"] == {"lr": 5, "layers": 2}


# -- cost -------------------------------------------------------------------------------------------------------------------------------


def test_a_plain_run_costs_no_query_more(alice, people, django_assert_num_queries):
    """Three to answer a chart (who may see, writers and blocks and segments of one snapshot); a fork costs one a generation."""
    from tracker.services import series

    plain = Process(alice).log(0, 1)
    child = Process(alice, at=5, fork_from={"run": plain.run, "step": 0}).log(1)
    for run in (plain.run, child.run):
        ask(alice, [run])
    query = {"runs": [plain.run], "keys": ["loss"]}
    with django_assert_num_queries(1) as plainly:  # by the ORM; the store's own statements are the same three for both
        series.answer(user=people.alice, query=query)
    with django_assert_num_queries(2):
        series.answer(user=people.alice, query={**query, "runs": [child.run]})
    assert "fork_run" in plainly.captured_queries[0]["sql"]
