"""GET runs."""

import pytest

from tests.tracker.helpers import make_user
from tracker.models import Membership, MetricSummary, Project, Run
from tracker.services import values


def names(answer) -> list[str]:
    assert answer.status_code == 200, answer.content
    return [run["name"] for run in answer.json()["results"]]


@pytest.fixture
def three(make_run):
    runs = []
    for name, lr, loss in (("a", 0.1, 0.5), ("b", 0.01, None), ("c", 0.001, 0.2)):
        run = make_run(
            name=name, config={"lr": lr, "model": {"kind": "gpt" if name != "c" else "mlp"}}, tags=["base"] if name == "a" else []
        )
        values.config_changed(run)
        values.tags_changed(run)
        if loss is not None:
            values.summary_changed(run, {"val/loss": loss})
        runs.append(run)
    return runs


def test_lists_newest_first_with_what_a_table_shows(alice, three):
    """A run's row carries its id, project, state, config, tags and times."""
    answer = alice.get("runs?project=vision")
    assert names(answer) == ["c", "b", "a"]
    row = answer.json()["results"][2]
    assert row["id"] == three[0].id
    assert row["project"] == "vision"
    assert row["state"] == "finished"
    assert row["config"]["model"] == {"kind": "gpt"}
    assert row["tags"] == ["base"]
    assert answer.json()["next"] is None


def test_a_stranger_sees_nothing_and_a_member_everything(alice, victor, charlie, three):
    """visible_to stands at the root of the list."""
    assert names(charlie.get("runs")) == []
    assert len(names(victor.get("runs"))) == 3
    assert charlie.get("runs?project=vision").status_code == 404


def test_anonymous_is_asked_to_log_in(nobody):
    answer = nobody.get("runs")
    assert answer.status_code == 401
    assert answer["WWW-Authenticate"].startswith("Bearer")
    assert answer.json()["code"] == "unauthenticated"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("config.lr > 0.005", ["b", "a"]),
        ("config.model.kind = gpt AND NOT config.lr = 0.1", ["b"]),
        ("val/loss < 0.3 OR tags = base", ["c", "a"]),
        ("summary.val/loss != 0.2", ["a"]),
        ("val/loss = null", ["b"]),
        ("tags != base", ["c", "b"]),
        ('name ~ "A"', ["a"]),
        ("name IN (a, b) and state = finished", ["b", "a"]),
        ("name NOT IN (a, b)", ["c"]),
        ("config.model.kind ~ p", ["c", "b", "a"]),
        ("created > -1d", ["c", "b", "a"]),
        ("created < -1d", []),
        ("finished = null", ["c", "b", "a"]),
        ("archived = true", []),
        ("archived = false", ["c", "b", "a"]),
        ("user = alice and project = vision", ["c", "b", "a"]),
        ("", ["c", "b", "a"]),
    ],
)
def test_filter(alice, three, text, expected):
    """Each comparison of the filter language finds exactly its runs."""
    from urllib.parse import quote

    assert names(alice.get(f"runs?filter={quote(text)}")) == expected


@pytest.mark.parametrize(
    ("text", "column"),
    [("config.lr >", 12), ("state = done", 9), ("a = 1 b", 7), ("created ~ 3", 9), ("(state = failed", 16), ("a = 'x", 5)],
)
def test_a_filter_mistake_names_its_column(alice, three, text, column):
    from urllib.parse import quote

    answer = alice.get(f"runs?filter={quote(text)}")
    assert answer.status_code == 400
    assert answer.json()["code"] == "filter_mistake"
    assert answer.json()["fields"]["column"] == column


@pytest.mark.parametrize(
    ("sort", "expected"),
    [
        ("name", ["a", "b", "c"]),
        ("-name", ["c", "b", "a"]),
        ("config.lr", ["c", "b", "a"]),
        ("-config.lr", ["a", "b", "c"]),
        ("val/loss", ["c", "a", "b"]),
        ("-summary.val/loss", ["a", "c", "b"]),
        ("-finished", None),
        ("created", ["a", "b", "c"]),
    ],
)
def test_sort_pages_without_gaps_or_doubles(alice, three, sort, expected):
    """Walking page by page gives the same order as one page; runs without the value stand last."""
    walked, cursor = [], ""
    while True:
        answer = alice.get(f"runs?sort={sort}&limit=1&cursor={cursor}")
        walked += names(answer)
        cursor = answer.json()["next"]
        if not cursor:
            break
    assert sorted(walked) == ["a", "b", "c"]
    if expected:
        assert walked == expected
        assert names(alice.get(f"runs?sort={sort}")) == expected


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=x", "cursor=zzz", "cursor=WzEsMl0", "state=done", "archived=maybe", "sort=-" + "x" * 600]
)
def test_malformed_questions_are_400(alice, three, query):
    assert alice.get(f"runs?{query}").status_code == 400


@pytest.mark.parametrize("cursor", ["WyJ4IiwieSJd", "W251bGwsbnVsbF0", "W3siYSI6MX0sMl0"])
def test_a_forged_cursor_is_refused(alice, three, cursor):
    assert alice.get(f"runs?cursor={cursor}").status_code == 400


def test_unknown_project_is_404(alice):
    assert alice.get("runs?project=nothing").status_code == 404


def test_wrong_method_is_405(alice):
    answer = alice.post("runs", {})
    assert answer.status_code == 405
    assert "GET" in answer["Allow"]


def test_the_same_question_twice_gives_the_same_answer(alice, three):
    assert alice.get("runs").json() == alice.get("runs").json()


def test_deleted_runs_are_not_listed(alice, three):
    assert alice("DELETE", f"runs/{three[0].id}").status_code == 204
    assert names(alice.get("runs")) == ["c", "b"]


def test_metrics_of_asked_keys(alice, three):
    """?keys= brings the last values of the lowest rank, NaN as text."""
    MetricSummary.objects.create(run=three[0], key="acc", rank=0, count=1, last=0.5)
    MetricSummary.objects.create(run=three[0], key="acc", rank=1, count=1, last=0.75)
    MetricSummary.objects.create(run=three[1], key="acc", rank=0, count=1, last=None, last_text="NaN")
    rows = {run["name"]: run["metrics"] for run in alice.get("runs?keys=acc").json()["results"]}
    assert rows == {"a": {"acc": 0.5}, "b": {"acc": "NaN"}, "c": {}}


def test_query_count_does_not_grow_with_the_runs(alice, make_run, django_assert_max_num_queries):
    """No N+1: ten runs cost as many queries as one: a fixed number, for the sections of the sort and the bound on time."""
    for number in range(10):
        make_run(name=str(number))
    alice.get("runs")
    with django_assert_max_num_queries(14):
        assert len(names(alice.get("runs?filter=state%20%3D%20finished&sort=-config.lr&keys=a"))) == 10


def test_a_filter_never_reaches_another_projects_values(alice, people, make_run):
    """Values of hidden runs neither match nor leak through the filter."""
    stranger = make_user("stranger")
    hidden = Project.objects.create(slug="hidden", name="hidden")
    Membership.objects.create(project=hidden, user=stranger, role="owner")
    run = Run.objects.create(project=hidden, name="secret", config={"lr": 1})
    values.config_changed(run)
    assert names(alice.get("runs?filter=config.lr%20%3D%201")) == []


def test_a_metric_with_a_comma_sorts_in_quotes(alice, three):
    """Names between commas; quotes keep a name together."""
    values.summary_changed(three[0], {"a,b": 1})
    values.summary_changed(three[2], {"a,b": 2})
    assert names(alice.get('runs?sort=-"a,b"')) == ["c", "a", "b"]
    assert alice.get('runs?sort=-"a,b",name').status_code == 200
    assert alice.get("runs?sort=a,b,name,state,id").status_code == 400
