"""Resume, rewind and fork from the program's side: steps go on where this machine knows them, and what means nothing is refused at init."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from helpers import ROOT, Shop, until
from server import Server

from sdk import _resume
from sdk._ids import derived_id
from sdk.errors import UsageError

RUN = "r" * 26
PARENT = "p" * 26


def program(arguments: str, count: int = 3, more: str = "") -> str:
    return f"""
        import sdk
        run = sdk.init(project="p", {arguments})
        for i in range({count}): sdk.log({{"loss": float(i)}})
        {more}
    """


def steps(shop: Shop) -> list[list[int]]:
    """The steps of each start, in order of starts, as its journal has them."""
    from sdk._reader import Reader

    found = []
    for folder in sorted(shop.writers(), key=lambda each: json.loads((each / "writer.json").read_text())["started_us"]):
        chunk = Reader(folder).read(10**6)
        mine = [_step(row) for rows in (chunk.dense.values() if chunk else ()) for row in rows]
        found.append(mine)
    return found


def _step(row: bytes) -> int:
    from sdk._records import RECORD

    return RECORD.unpack_from(row)[7]


def about(shop: Shop) -> list[dict]:
    told = [json.loads((folder / "writer.json").read_text()) for folder in shop.writers()]
    return [each["run"] for each in sorted(told, key=lambda each: each["started_us"])]


def offline(shop: Shop, source: str, **env: str) -> subprocess.CompletedProcess[str]:
    done = shop.run(source, ENCORE_MODE="offline", **env)
    assert done.returncode == 0, done.stderr
    return done


# -- where steps go on ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resume", ["allow", "must"])
def test_steps_of_a_resumed_run_go_on_after_the_last_one(shop: Shop, resume: str) -> None:
    """Without `step=`, also after a start that died by SIGKILL in the middle, and after one that died before it logged anything."""
    first = program(f'id="{RUN}", resume="allow"', more="import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert shop.run(first, ENCORE_MODE="offline").returncode == -9
    offline(shop, program(f'id="{RUN}", resume="{resume}"'))
    offline(shop, program(f'id="{RUN}", resume="{resume}"', count=0))
    offline(shop, program(f'id="{RUN}", resume="{resume}"', count=2))
    assert steps(shop) == [[0, 1, 2], [3, 4, 5], [], [6, 7]]


def test_a_given_step_is_taken_as_given(shop: Shop) -> None:
    offline(shop, program(f'id="{RUN}", resume="allow"', more='sdk.log({"loss": 1.0}, step=100)'))
    offline(shop, program(f'id="{RUN}", resume="allow"', count=0, more='sdk.log({"loss": 1.0}, step=7); sdk.log({"loss": 1.0})'))
    assert steps(shop) == [[0, 1, 2, 100], [7, 8]]


def test_without_resume_a_further_start_begins_at_zero(shop: Shop) -> None:
    """A script that starts over when its launcher starts it again: the later start wins each step it repeats."""
    for _ in range(2):
        offline(shop, program(f'id="{RUN}"'))
    assert steps(shop) == [[0, 1, 2], [0, 1, 2]]


def test_rewind_to_begins_after_its_step(shop: Shop) -> None:
    """And a start that died before its first step goes on where it would have."""
    offline(shop, program(f'id="{RUN}", resume="allow"', count=10))
    offline(shop, program(f'id="{RUN}", resume="must", rewind_to=4'))
    offline(shop, program(f'id="{RUN}", resume="must", rewind_to=1', count=0))
    offline(shop, program(f'id="{RUN}", resume="must"'))
    assert steps(shop)[1:] == [[5, 6, 7], [], [2, 3, 4]]
    assert [run["rewind_to"] for run in about(shop)] == [None, 4, 1, None]


def test_a_fork_begins_after_the_step_it_was_forked_at(shop: Shop) -> None:
    offline(shop, program(f'fork_from=("{PARENT}", 41)'))
    (run,) = about(shop)
    assert steps(shop) == [[42, 43, 44]]
    assert run["fork_from"] == {"run": PARENT, "step": 41}
    assert run["id"] != PARENT


def test_each_rank_goes_on_from_its_own_journal(shop: Shop) -> None:
    launch = {"TORCHELASTIC_RUN_ID": "job", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "ENCORE_RUN_ID": RUN}
    for rank, count in (("0", 3), ("1", 5)):
        offline(shop, program('resume="allow"', count), RANK=rank, LOCAL_RANK=rank, **launch)
    for rank in ("0", "1"):
        offline(shop, program('resume="allow"', 1), RANK=rank, LOCAL_RANK=rank, **launch)
    assert steps(shop) == [[0, 1, 2], [0, 1, 2, 3, 4], [3], [5]]


def test_steps_go_on_after_everything_was_delivered(shop: Shop, server: Server) -> None:
    """The server has all of it; the last segment still lies here and tells."""
    for _ in range(2):
        done = shop.run(program(f'id="{RUN}", resume="allow"'), server)
        assert done.returncode == 0, done.stderr
    assert until(lambda: [step for step, _ in server.points("loss")] == [0, 1, 2, 3, 4, 5]), server.points("loss")


def test_on_another_node_the_spool_tells(shop: Shop) -> None:
    """A requeued job lands where no journal of the run is; what the first node drained is on the shared folder."""
    spool = shop.folder / "spool"
    offline(shop, program(f'id="{RUN}", resume="allow"'), ENCORE_SPOOL=str(spool))
    assert until(lambda: any(_resume._logged_last(path.parent) == 2 for path in spool.glob(f"{RUN}/*/writer.json")))
    assert until(lambda: not shop.senders())
    shop.journal.rename(shop.folder / "of the other node")
    offline(shop, program(f'id="{RUN}", resume="must"'), ENCORE_SPOOL=str(spool))
    assert steps(shop) == [[3, 4, 5]]


def test_must_on_a_machine_that_knows_nothing_begins_at_zero_and_says_so(shop: Shop) -> None:
    done = offline(shop, program(f'id="{RUN}", resume="must"'))
    assert done.stderr.count("begin at 0 again") == 1
    assert steps(shop) == [[0, 1, 2]]
    again = offline(shop, program(f'id="{RUN}", resume="must"'))
    assert "begin at 0 again" not in again.stderr


def test_a_torn_journal_still_tells_what_it_can(shop: Shop) -> None:
    """A half-written writer.json, an empty segment and garbage behind the last record stop nobody."""
    offline(shop, program(f'id="{RUN}", resume="allow"'))
    (folder,) = shop.writers()
    (folder / "00000009.seg").write_bytes(b"")
    (folder / "00000008.seg").write_bytes(b"ENCOREJ1" + bytes(56) + b"\xff" * 4096)
    last = (folder / "00000000.seg").read_bytes()
    from sdk._reader import Reader

    *_, whole = [row for rows in Reader(folder).read(10**6).dense.values() for row in rows]
    at = last.index(bytes(whole))
    (folder / "00000000.seg").write_bytes(last[: at + 44] + b"\xff\xff\xff\xff" + last[at + 48 :])
    assert _resume.last_step(folder.parent, "mine", 0) == 1, "the last record is torn: the one before it counts"
    (folder / "00000000.seg").write_bytes(last)
    torn = folder.parent / "torn"
    torn.mkdir()
    (torn / "writer.json").write_text("{")
    assert _resume.last_step(folder.parent, "mine", 0) == 2
    torn.rename(torn.with_name("empty"))
    assert _resume.last_step(folder, "mine", 0) is None


# -- config -----------------------------------------------------------------------------------------------------------------------------


def test_a_resumed_config_is_laid_over(shop: Shop, server: Server) -> None:
    """The first start says its config whole, a resumed one only adds; one without a config does not empty it."""
    for arguments in (
        f'id="{RUN}", config={{"lr": 1, "layers": 2}}',
        f'id="{RUN}", resume="must", config={{"lr": 5}}',
        f'id="{RUN}", resume="must"',
    ):
        assert shop.run(program(arguments), server).returncode == 0
    said = [(doc["value"], doc["update"]) for doc in server.docs("config")]
    assert said == [({"lr": 1, "layers": 2}, False), ({"lr": 5}, True), ({}, True)]


# -- which run --------------------------------------------------------------------------------------------------------------------------


def test_never_is_a_new_run_each_time(shop: Shop) -> None:
    for _ in range(2):
        done = offline(shop, program(f'id="{RUN}", resume="never"'))
        assert "is not used" in done.stderr
    ids = [run["id"] for run in about(shop)]
    assert RUN not in ids
    assert len(set(ids)) == 2


def test_a_rerun_is_a_run_of_its_own_whatever_id_the_script_names(shop: Shop) -> None:
    """A script that resumes by a fixed id must not write into the original when it is played again."""
    rerun = shop.work / "rerun.json"
    rerun.write_text(json.dumps({"format": 1, "run": "n" * 26, "config": {}}))
    for resume in ("must", "never"):
        offline(shop, program(f'id="{RUN}", resume="{resume}"'), ENCORE_RERUN=str(rerun), ENCORE_RUN_ID="n" * 26)
    assert {run["id"] for run in about(shop)} == {"n" * 26}


class _Run:
    id = PARENT


@pytest.mark.parametrize(
    "given",
    [
        (PARENT, 7), [PARENT, 7], f"{PARENT}:7", {"run": PARENT, "step": 7}, (_Run(), 7), (f"https://host/base/runs/{PARENT}", 7),
        f"http://127.0.0.1:8300/runs/{PARENT}/charts?x=wall:7",
    ],
)  # fmt: skip
def test_a_fork_is_named_in_many_ways(given) -> None:
    assert _resume.check(None, given, None)["fork_from"] == {"run": PARENT, "step": 7}


def test_a_fork_by_name_means_the_run_that_was_given_that_id() -> None:
    """`init(id="base")` makes an id of the name; fork_from=("base", …) makes the same, and tells the name for the server to look."""
    assert _resume.check(None, ("base", 7), None)["fork_from"] == {"run": derived_id("named", "base"), "step": 7, "given": "base"}


def test_steps_may_be_any_whole_numbers() -> None:
    np = pytest.importorskip("numpy")
    assert _resume.check("must", None, np.int64(-1))["rewind_to"] == -1
    assert _resume.check(None, (PARENT, np.int32(3)), None)["fork_from"]["step"] == 3


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"resume": "sometimes"}, "resume is"),
        ({"resume": True}, "resume is"),
        ({"rewind_to": 1.0}, "a step is an int"),
        ({"rewind_to": True}, "a step is an int"),
        ({"rewind_to": "5"}, "a step is an int"),
        ({"rewind_to": 2**63}, "a step is an int"),
        ({"rewind_to": 3, "resume": "never"}, "resume"),
        ({"fork_from": PARENT}, "fork_from is"),
        ({"fork_from": f"{PARENT}:x"}, "fork_from is"),
        ({"fork_from": (PARENT,)}, "fork_from is"),
        ({"fork_from": (PARENT, 1, 2)}, "fork_from is"),
        ({"fork_from": {"run": PARENT}}, "fork_from is"),
        ({"fork_from": 7}, "fork_from is"),
        ({"fork_from": (PARENT, 1.5)}, "a step is an int"),
        ({"fork_from": (None, 1)}, "names no run"),
        ({"fork_from": ("", 1)}, "names no run"),
    ],
)
def test_what_means_nothing_is_refused(arguments: dict, word: str) -> None:
    with pytest.raises(UsageError, match=word):
        _resume.check(**{"resume": None, "fork_from": None, "rewind_to": None, **arguments})


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ("rewind_to=3", "needs the run's id"),
        (f'id="{RUN}", fork_from=("{RUN}", 3)', "names the run itself"),
    ],
)
def test_init_says_what_is_missing_and_opens_nothing(shop: Shop, arguments: str, word: str) -> None:
    done = shop.run(program(arguments), ENCORE_MODE="offline")
    assert done.returncode == 1
    assert word in done.stderr
    assert not shop.journal.exists()


def test_who_uses_none_of_it_loads_none_of_it() -> None:
    """`init` stays as light as it was."""
    code = 'import sys, sdk; sdk.init(mode="disabled"); assert "sdk._resume" not in sys.modules; sdk.init(mode="disabled", resume="allow")'
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
