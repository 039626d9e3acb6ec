"""`encore run`: a script without a line of ours is captured whole, with metrics out of event files and printed lines."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
from helpers import Shop, until
from server import Server

from sdk import _patterns


def found_in(patterns: list[str], *pieces: str) -> list[tuple[int, dict]]:
    """What is logged of text that comes in these pieces."""
    logged: list[tuple[int, dict]] = []
    complaints: list[str] = []
    matcher = _patterns.matcher(patterns, lambda values, step: logged.append((step, values)), complaints.append)
    assert matcher is not None, complaints
    for piece in pieces:
        matcher.feed("stdout", piece)
    matcher.finish()
    return logged


# Patterns -----------------------------------------------------------------------------------------------------------------------


def test_named_groups_are_keys_and_step_is_the_step() -> None:
    """Several patterns, several values a line, ints stay ints, NaN and infinities are numbers, a match without a number is none."""
    text = "step 7: loss=0.5 acc=93\nstep 8: loss=nan acc=-inf\nstep 9: loss=1e-3 acc=none\nother\n"
    assert str(found_in([r"step (?P<step>\d+): loss=(?P<loss>\S+) acc=(?P<acc>\S+)"], text)) == str(
        [(7, {"loss": 0.5, "acc": 93}), (8, {"loss": float("nan"), "acc": float("-inf")}), (9, {"loss": 0.001})]
    )


def test_without_a_step_matches_are_counted_and_a_step_alone_holds_for_what_follows() -> None:
    """Per pattern; key and value name a metric themselves."""
    assert found_in([r"a=(?P<a>\d+)", r"b=(?P<b>\d+)"], "a=5 b=1\na=6\nb=2\n") == [
        (0, {"a": 5}),
        (0, {"b": 1}),
        (1, {"a": 6}),
        (1, {"b": 2}),
    ]
    text = "Epoch 3\nloss=1 acc=2\nEpoch 4\nloss=3\n"
    assert found_in([r"Epoch (?P<step>\d+)", r"(?P<key>\w+)=(?P<value>\d+)"], text) == [(3, {"loss": 1}), (3, {"acc": 2}), (4, {"loss": 3})]


def test_lines_are_whole_however_they_are_cut_and_bars_are_lines() -> None:
    r"""Any cut between pieces gives the same; a bar's \r ends a line, drawn again it says nothing new; colours are seen through."""
    text = "loss=1\r\n\rloss=2\rloss=2\rloss=3\n\x1b[32mloss\x1b[0m=4\nloss=5"
    whole = [(n, {"loss": n + 1}) for n in range(5)]
    for cut in range(len(text) + 1):
        assert found_in([r"loss=(?P<loss>\d+)"], text[:cut], text[cut:]) == whole, cut
    assert found_in([r"loss=(?P<loss>\d+)"], *text) == whole


def test_a_line_without_end_is_bounded() -> None:
    """A gigabyte without a newline must not gather; only a line's first 4,096 characters are looked at."""
    logged: list = []
    matcher = _patterns.matcher(["loss=(?P<loss>[0-9]+)", "auto"], lambda values, step: logged.append(values), print)
    assert matcher is not None
    for _ in range(50):
        matcher.feed("stdout", "x " * 50_000)
    assert len(matcher.pending["stdout"]) <= _patterns.MAX_PENDING
    matcher.feed("stdout", " loss=1\n" + "y" * 5000 + "loss=2\n")
    matcher.finish()
    assert logged == []


def test_what_cannot_work_is_said_and_left_out() -> None:
    """No group, half a pair, bad syntax: a sentence each; the others work."""
    said: list[str] = []
    matcher = _patterns.matcher(["(", "loss=.*", r"(?P<key>\w+)=\d", r"x=(?P<x>\d+)"], lambda *_: None, said.append)
    assert [pattern.pattern for pattern in matcher.patterns] == [r"x=(?P<x>\d+)"]
    assert len(said) == 3
    assert "(?P<loss>" in said[1]


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("step 250: train loss 2.4, val loss 2.5", (250, {"train_loss": 2.4, "val_loss": 2.5})),
        ("iter 10: loss 2.3012, time 5.0ms", (10, {"loss": 2.3012})),
        ("Train Epoch: 3 [640/60000 (1%)]\tLoss: 2.300", (3, {"loss": 2.3})),
        ("Epoch [2/10], Step [100/600], Loss: 0.3", (100, {"loss": 0.3})),
        (
            "{'loss': 0.5, 'grad_norm': 1.25, 'learning_rate': 1e-05, 'epoch': 1.0}",
            (0, {"loss": 0.5, "grad_norm": 1.25, "learning_rate": 1e-5}),
        ),
        ("Test set: Average loss: 0.05, Accuracy: 9000/10000 (90%)", (0, {"average_loss": 0.05})),
        (" 1%|  | 5/100 [00:01<00:10, 3.5it/s, loss=1.25, val_acc=.5]", (0, {"loss": 1.25, "val_acc": 0.5})),
        ("epoch 4 val/acc@1: 71.2% train/mse=0.5", (4, {"val/acc@1": 71.2, "train/mse": 0.5})),
        ("lossless: 3 glossary 4 mapping=5 took 3 s, error in line 7", None),
        ("loading 5 files, size=3, 10.5 GB", None),
    ],
)
def test_the_built_in_patterns_know_the_usual_lines(line: str, wanted: tuple | None) -> None:
    """Lines of well-known training scripts, and lines that hold no metric."""
    assert found_in(["auto"], line + "\n") == ([] if wanted is None else [wanted])


def test_the_built_in_patterns_are_fast_on_hostile_lines() -> None:
    """No line makes them take exponential time."""
    began = time.monotonic()
    for line in ("a " * 2048, "a_" * 2048, "loss " * 900, "loss=" * 900, "1" * 4096, "epoch (" * 600, "'" * 4096, "train-" * 700):
        for _ in range(20):
            found_in(["auto"], line + "\n")
    assert time.monotonic() - began < 20


# encore run ---------------------------------------------------------------------------------------------------------------------

UNTOUCHED = """
import argparse, random, sys, time
import tensorboardX
parser = argparse.ArgumentParser(); parser.add_argument("--lr", type=float); args = parser.parse_args()
numbers = open("numbers.txt").read().split()
writer = tensorboardX.SummaryWriter("logs")
for step in range(20):
    writer.add_scalar("loss", float(numbers[step % 3]) / (step + 1), step)
    print(f"step {step}: acc={step / 20}")
    sys.stderr.write(f"\\rworking {step}")
open("result.txt", "w").write("done")
sys.exit(3)
"""


def untouched(shop: Shop, source: str = UNTOUCHED) -> Path:
    path = shop.work / "train.py"
    path.write_text(source)
    (shop.work / "numbers.txt").write_text("1 2 3")
    return path


def recipe(server: Server, section: str) -> dict:
    found: dict = {}
    for doc in server.docs("recipe"):
        if doc["section"] == section:
            for key, value in doc["value"].items():
                found[key] = found.get(key, []) + value if isinstance(value, list) and doc.get("merge") else value
    return found


def test_an_untouched_script_is_captured_whole(shop: Shop, server: Server) -> None:
    """Command, code, environment, data, console, exit and metrics of both kinds, and the exit status is the script's own."""
    pytest.importorskip("tensorboardX", reason="make's frameworks stage brings it")
    script = untouched(shop)
    asked = [
        "run",
        "--project",
        "zero",
        "--pattern",
        r"step (?P<step>\d+): acc=(?P<acc>[0-9.]+)",
        "--",
        sys.executable,
        "train.py",
        "--lr",
        "0.1",
    ]
    done = shop.encore(*asked, server=server)
    assert done.returncode == 3, done.stderr
    assert "step 19: acc=0.95" in done.stdout
    assert until(lambda: not shop.senders())
    assert server.points("acc") == [(step, step / 20) for step in range(20)]
    losses = server.points("loss", kind="node")
    assert losses[:3] == [(0, 1.0), (1, 1.0), (2, 1.0)]
    assert [step for step, _ in losses] == list(range(20))
    (finish,) = server.finishes().values()
    assert (finish["state"], finish["exit_code"]) == ("failed", 3)
    command = recipe(server, "command")
    assert command["argv"][-2:] == ["--lr", "0.1"]
    assert command["entry"]["name"] == "train.py"
    assert command["bootstrap"] == "encore run"
    assert command["patterns"] == [r"step (?P<step>\d+): acc=(?P<acc>[0-9.]+)"]
    assert script.read_bytes() in server.blobs.values()
    assert recipe(server, "environment")["packages"]
    assert str(shop.work / "numbers.txt") in [entry["path"] for entry in recipe(server, "data")["inputs"]]
    assert str(shop.work / "result.txt") in [entry["path"] for entry in recipe(server, "data")["outputs"]]
    assert "step 0: acc=0.0" in "".join(doc["text"] for doc in server.docs("log") if doc["stream"] == "stdout")
    assert recipe(server, "hyper")["argparse"]["lr"] == 0.1


def test_a_program_of_another_kind_is_followed_too(shop: Shop, server: Server) -> None:
    """A shell script that starts Python: event files by what its processes hold open, metrics in what it prints."""
    pytest.importorskip("tensorboardX", reason="make's frameworks stage brings it")
    # Both streams of a child come by one pipe; a bar would stand in the same line.
    source = UNTOUCHED.replace("sys.exit(3)", "writer.flush(); time.sleep(3)").replace("sys.stderr.write", "str")
    untouched(shop, source)
    done = shop.encore("run", "--patterns", "auto", "--", "sh", "-c", f"'{sys.executable}' train.py --lr 1; exit 5", server=server)
    assert done.returncode == 5, done.stderr
    assert until(lambda: not shop.senders())
    assert [step for step, _ in server.points("loss", kind="node")] == list(range(20))
    assert server.points("acc") == [(step, step / 20) for step in range(20)]


@pytest.mark.parametrize(
    ("begin", "project"),
    [
        ('run = sdk.init(project="its own", config={"lr": 0.5}, name="mine", tags=["a"])', "its own"),
        ('run = sdk.init(project="".join(["com", "puted"]), config={"lr": 0.5}, name="mine", tags=["a"])', "computed"),
        ("import helper; run = helper.begin()", None),
    ],
    ids=["in the script", "in a way of its own", "in a module"],
)
def test_a_script_that_has_our_line_after_all_is_one_run(shop: Shop, server: Server, begin: str, project: str | None) -> None:
    """Its init goes on with the run of `encore run`: project, config, name and tags arrive, nothing is opened twice."""
    helper = 'import sdk\ndef begin():\n    return sdk.init(config={"lr": 0.5}, name="mine", tags=["a"])\n'
    (shop.work / "helper.py").write_text(helper)
    (shop.work / "train.py").write_text(f"import sdk\n{begin}\nsdk.log({{'x': 1.0}}, step=4)\nprint('run', run.id)\n")
    done = shop.encore("run", "--", sys.executable, "train.py", server=server)
    assert done.returncode == 0, done.stderr
    assert until(lambda: not shop.senders())
    (run,) = {about["run"]["id"] for about in server.writers.values()}
    assert f"run {run}" in done.stdout
    assert server.points("x") == [(4, 1.0)]
    configs = [doc["value"] for doc in server.docs("config")]
    assert {"lr": 0.5} in configs
    names = {about["run"]["name"] for about in server.writers.values()} | {doc.get("name") for doc in server.docs("meta")}
    assert "mine" in names
    assert recipe(server, "command")["bootstrap"] == "encore run"
    assert len(server.finishes()) == 1
    assert {about["run"]["project"] for about in server.writers.values()} == {project or shop.work.name}


def test_an_init_that_is_never_reached_leaves_the_run_of_encore_run(shop: Shop, server: Server) -> None:
    """`if track: sdk.init(…)`: the script is captured all the same."""
    (shop.work / "train.py").write_text("import sdk, sys\nif len(sys.argv) > 1:\n    sdk.init(project='p')\nprint('ran')\n")
    done = shop.encore("run", "--", sys.executable, "train.py", server=server)
    assert done.returncode == 0, done.stderr
    assert until(lambda: server.finishes())
    assert "ran" in "".join(doc["text"] for doc in server.docs("log"))


def test_a_pattern_that_cannot_work_is_said_before_anything_runs(shop: Shop, server: Server) -> None:
    """Status not 0, a sentence, no run; the environment's broken pattern is said and training goes on."""
    (shop.work / "train.py").write_text("open('ran', 'w')\nprint('loss=1')\n")
    for pattern in ("(", "loss=.*"):
        done = shop.encore("run", "--pattern", pattern, "--", sys.executable, "train.py", server=server)
        assert done.returncode != 0
        assert "--pattern" in done.stderr
    assert not (shop.work / "ran").exists()
    done = shop.encore("run", "--", sys.executable, "train.py", server=server, ENCORE_PATTERNS="(\nloss=(?P<loss>\\d+)")
    assert done.returncode == 0
    assert "the pattern '(' is left out" in done.stderr
    assert until(lambda: server.points("loss") == [(0, 1)])


def test_nothing_is_followed_that_was_not_asked_for(shop: Shop, server: Server) -> None:
    """--no-tensorboard, and patterns off by default."""
    pytest.importorskip("tensorboardX", reason="make's frameworks stage brings it")
    untouched(shop)
    done = shop.encore("run", "--no-tensorboard", "--", sys.executable, "train.py", "--lr", "1", server=server)
    assert done.returncode == 3, done.stderr
    assert until(lambda: not shop.senders())
    assert not server.points("loss", kind="node")
    assert not server.points("acc")
    assert not [about for about in server.writers.values() if about.get("follows")]
