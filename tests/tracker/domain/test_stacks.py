"""Stack dumps of many ranks in a few lines."""

from __future__ import annotations

from tracker.domain import stacks

HELPER = 'Thread 0x00007f1d7f7fe700 (most recent call first):\n  File "/usr/lib/python3.11/threading.py", line 327 in wait\n\n'
WAITING = (
    HELPER + "Current thread 0x00007f1d8f7fe700 (most recent call first):\n"
    '  File "/venv/lib/python3.11/site-packages/torch/distributed/distributed_c10d.py", line 3252 in all_reduce\n'
    '  File "/venv/lib/python3.11/site-packages/torch/distributed/c10d_logger.py", line 83 in wrapper\n'
    '  File "/data/me/train.py", line 88 in step\n'
    '  File "/data/me/train.py", line 120 in <module>\n'
)
LOADING = (
    "Thread 0x00007f0000000000 (most recent call first):\n"
    '  File "/data/me/dataloader.py", line 12 in load\n'
    '  File "/data/me/train.py", line 80 in <module>\n'
)


def test_equal_stacks_stand_together_and_the_odd_one_first():
    groups = stacks.grouped([(rank, WAITING) for rank in range(63)] + [(63, LOADING)])
    assert [group.ranks for group in groups] == [(63,), tuple(range(63))]
    assert stacks.sentence(groups) == "ranks 0-62: all_reduce in train.py:88; rank 63: load at dataloader.py:12"


def test_addresses_of_threads_and_other_threads_part_nobody():
    again = WAITING.replace("7f1d8f7fe700", "7fffffffffff").replace(HELPER, HELPER * 3)
    assert len(stacks.grouped([(0, WAITING), (1, again)])) == 1


def test_another_line_is_another_group():
    assert len(stacks.grouped([(0, WAITING), (1, WAITING.replace("line 88", "line 90"))])) == 2


def test_names_of_threads_of_newer_pythons_are_read_too():
    text = 'Current thread 0x00007f1d8f7fe700 [train] (most recent call first):\n  File "a.py", line 3 in f\n'
    assert stacks.main(text) == (stacks.Frame("a.py", "3", "f"),)


def test_text_that_is_no_dump_makes_a_group_of_its_own():
    assert stacks.sentence(stacks.grouped([(0, "nothing of the kind"), (1, "")])) == "ranks 0, 1: no Python frame"
