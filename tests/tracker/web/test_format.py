"""How values are written."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

from tracker.web import format
from tracker.web.code import coloured
from tracker.web.compare import colours
from tracker.web.run import sections
from tracker.web.shell_words import command_line


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.123456, "0.1235"), (1.0, "1"), (1200, "1,200"), (123456.7, "123,500"), (3e-7, "3e-7"), (1.5e9, "1.5e9"), (2**62, "4.612e18"),
        (-0.0, "-0"), (0.0, "0"),
        (float("nan"), "NaN"), (float("inf"), "Inf"), (float("-inf"), "-Inf"), (0.00031, "0.00031"), (True, "true"), (99999.0, "99,999"),
    ],
)  # fmt: skip
def test_numbers_have_four_significant_digits(value, text):
    assert format.short_number(value) == text


def test_the_exact_value_is_one_hover_away():
    html = format.number(0.1 + 0.2)
    assert "0.30000000000000004" in html
    assert ">0<" in html


def test_durations_have_two_units_at_most():
    texts = [format.short_duration(s) for s in (0.18, 4.25, 59, 61, 3600 * 2 + 14 * 60, 86400 * 3 + 3700, None)]
    assert texts == ["180ms", "4.2s", "59s", "1m 01s", "2h 14m", "3d 01h", "\N{EN DASH}"]


def test_ages_are_relative_with_the_instant_on_hover():
    then = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
    assert format.short_age(then, then + timedelta(hours=5)) == "5h ago"
    assert 'title="2026-01-02 03:04:05 UTC"' in format.age(then)


def test_bytes_are_binary():
    assert [format.short_bytes(n) for n in (0, 1023, 1024, 1536, 10 * 2**20, 2**40)] == [
        "0 B",
        "1023 B",
        "1 KiB",
        "1.5 KiB",
        "10 MiB",
        "1 TiB",
    ]


def test_a_state_is_an_icon_and_a_word():
    html = format.state("crashed")
    assert "#i-s-crashed" in html
    assert ">crashed<" in html


def test_a_run_that_did_not_complete_is_never_sealed_as_equal():
    assert format.seal_kind({"execution": "not_runnable", "agreement": "bit_exact"})[0] == "blocked"
    assert format.seal_kind({"execution": "completed", "agreement": "bit_exact"})[0] == "exact"
    assert format.seal_kind({"execution": "completed", "agreement": "diverged", "step": 40}) == ("diverged", "Diverged at step 40")
    assert format.seal_kind({"execution": "stopped_early", "agreement": "bit_exact"})[0] == "grey"
    assert format.seal_kind(None)[0] == "none"


def test_code_is_coloured_by_classes_and_escaped():
    html = coloured("a.py", "x = '<script>'\n")
    assert "<script>" not in html
    assert "style=" not in html
    assert 'class="k' in coloured("a.py", "import os\n")


def test_twenty_runs_have_twenty_colours_and_the_first_keeps_its_own():
    ids = [f"run{n}" for n in range(20)]
    found = colours(ids)
    assert len(set(found.values())) == 20
    assert colours(ids[:1])["run0"] == found["run0"]


def test_panels_are_grouped_by_what_stands_before_the_slash():
    found = sections(["loss", "train/a", "train/b", "val/a"])
    assert [(one["name"], len(one["keys"])) for one in found] == [("metrics", 1), ("val", 1), ("train", 2)]


def test_the_command_reads_as_one_would_type_it():
    entry = {"kind": "script", "name": "train.py", "path": "/x/train.py", "path_in_root": "src/train.py"}
    assert (
        command_line({"argv": ["/x/train.py", "--name", "a b"], "executable": "/venv/bin/python3", "entry": entry})
        == "python3 src/train.py --name 'a b'"
    )
    launcher = {"kind": "torchrun", "argv": ["/venv/bin/torchrun", "--nproc-per-node", "2", "train.py"]}
    assert command_line({"argv": ["train.py"], "launcher": launcher}) == "torchrun --nproc-per-node 2 train.py"


def test_a_launcher_is_written_without_its_interpreter_and_folder():
    launcher = {"kind": "torchrun", "argv": ["/opt/py/bin/python3.11", "/opt/py/bin/torchrun", "--nproc-per-node", "2", "train.py"]}
    assert command_line({"argv": ["train.py"], "launcher": launcher}) == "torchrun --nproc-per-node 2 train.py"
    launcher["argv"] = ["/opt/py/bin/python", "-m", "torch.distributed.run", "train.py"]
    assert command_line({"argv": ["train.py"], "launcher": launcher}) == "python -m torch.distributed.run train.py"


def test_metrics_that_count_bytes_are_binary_and_exact_on_hover():
    html = format.metric(3 * 2**30, "system/memory_bytes")
    assert ">3 GiB<" in html
    assert 'value="3221225472"' in html
    assert ">1.5 KiB/s<" in format.metric(1536.0, "system/disk_read_bytes_per_second")
    assert format.metric(1536.0, "train/kilobytes_seen") == format.number(1536.0)
    assert "NaN" in format.metric(float("nan"), "system/memory_bytes")


def test_an_integer_of_a_config_is_never_cut():
    assert ">18446744073709551615<" in format.value(2**64 - 1)
