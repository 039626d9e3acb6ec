"""Journals and batches of version 1, as committed, are read and made for ever: what users have on disk must arrive."""

from __future__ import annotations

import importlib.util
import math
import struct
from pathlib import Path

from sdk import _wire
from sdk._reader import Reader, read_json

GOLDEN = Path(__file__).parent / "golden"
RUN, WRITER = "a" * 26, "gezdgnbvgy3tqojqgezdgnbvgy"
FOLDER = GOLDEN / "journal" / RUN / WRITER


def maker():
    spec = importlib.util.spec_from_file_location("make_journal", Path(__file__).with_name("make_journal.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_golden_journal_gives_the_golden_batch() -> None:
    """Reader and encoder: the committed journal's batch, byte for byte."""
    chunk = Reader(FOLDER).read(limit=1 << 30)
    assert _wire.encode(RUN, WRITER, chunk)[0] == (GOLDEN / "batch-1.bin").read_bytes()


def test_the_writer_makes_the_golden_journal(tmp_path: Path) -> None:
    """Writer: the same program writes the same bytes."""
    folder = maker().make(tmp_path)
    golden = (FOLDER / "00000000.seg").read_bytes()
    assert (folder / "00000000.seg").read_bytes()[: len(golden)] == golden
    assert read_json(folder / "writer.json") == read_json(FOLDER / "writer.json")


def test_the_golden_batch_says_what_was_logged() -> None:
    """Decoded: points with exact bits, documents in order, the local document left out, no hole."""
    batch = _wire.decode((GOLDEN / "batch-1.bin").read_bytes())
    found = {(key, step): value for _, key, step, _, value in _wire.points(batch)}
    assert [found["loss", step] for step in range(3)] == [1.0, 0.5, 1 / 3]
    assert found["big", 2**40] == 2**63 - 1
    assert found["small", 2**40] == -(2**63)
    assert struct.pack("<d", found["minus zero", 2**40]) == struct.pack("<d", -0.0)
    assert found["ünï/côde", 2**40] == 1
    odd = [value for _, key, _, _, value in _wire.points(batch) if key == "odd"]
    assert math.isnan(odd[0])
    assert odd[1] == -math.inf
    assert {frame["kind"] for frame in batch["frames"]} == {"dense", "sparse"}
    assert sum(key.startswith("sparse/") for key, _ in found) == 258
    assert [doc["doc"]["type"] for doc in batch["docs"]] == ["config", "define", "log", "event"]
    assert batch["holes"] == []
    times = [time for _, _, _, time, _ in _wire.points(batch)]
    assert times == sorted(times)
    assert 1_700_000_000_000_000 < times[0] < 1_700_000_001_000_000 + 5_000_000
