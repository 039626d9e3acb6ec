"""What people hand to log() has a stated result each: a point, or a counted loss. The table is docs/logging.md's."""

from __future__ import annotations

import collections
import enum
import math
import threading
import types
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from test_journal import points, same, writer

from sdk import _values


class Word(str, enum.Enum):
    LOSS = "loss"


class Speaker(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "something else"


class Floaty:
    def __init__(self, value) -> None:
        self.value = value

    def __float__(self) -> float:
        if isinstance(self.value, Exception):
            raise self.value
        return self.value


class Loud(dict):
    """A mapping whose methods raise."""

    def items(self):
        raise ZeroDivisionError

    values = keys = items


class Silent:
    def __str__(self) -> str:
        raise RuntimeError

    __repr__ = __str__


def logged(tmp_path: Path, data, **more) -> tuple[list, dict]:
    """(points, losses): of two equal calls, so that the quick way is taken where there is one."""
    log = writer(tmp_path)
    log.log(data, **more)
    once = dict(log.losses.all())
    log.log(data, **more)
    assert log.losses.all() == {reason: 2 * count for reason, count in once.items()}
    found = [(key, value) for _, key, value in points(log.folder)]
    assert [repr(point) for point in found[: len(found) // 2]] == [repr(point) for point in found[len(found) // 2 :]]
    return found[: len(found) // 2], once


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        (Decimal("0.1"), 0.1),
        (Decimal("NaN"), math.nan),
        (Decimal("-Infinity"), -math.inf),
        (Fraction(1, 3), 1 / 3),
        (True, 1),
        (types.SimpleNamespace(item=lambda: 2.5), 2.5),
        (Floaty(1.5), 1.5),
        (float("inf"), math.inf),
        (2**63 - 1, 2**63 - 1),
        (enum.IntEnum("E", {"A": 3}).A, 3),
        (type("F", (float,), {"__float__": lambda self: 9.0})(1.5), 1.5),
    ],
)
def test_numbers_of_any_kind(tmp_path: Path, value, stored) -> None:
    """The nearest float, or the int, without a loss."""
    ((_, found),), lost = logged(tmp_path, {"x": value})
    assert same(found, stored)
    assert lost == {}


@pytest.mark.parametrize(
    ("value", "stored"),
    [(2**63, 2.0**63), (-(2**63) - 1, -(2.0**63)), (10**400, math.inf), (-(10**400), -math.inf), (Fraction(10**400), math.inf)],
)
def test_ints_beyond_64_bits_are_floats_and_counted_as_inexact(tmp_path: Path, value, stored) -> None:
    ((_, found),), lost = logged(tmp_path, {"x": value})
    assert same(found, stored)
    assert lost == {"inexact": 1}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("0.5", "str is no number"),
        (b"1", "bytes is no number"),
        (None, "NoneType is no number"),
        (1j, "complex is no number"),
        ([1.0], "list is no number"),
        (Decimal("sNaN"), "decimal.Decimal is no number"),
        (Floaty(RuntimeError("no")), "Floaty is no number"),
        (Floaty("text"), "Floaty is no number"),
        (object(), "object is no number"),
        (Word.LOSS, "Word is no number"),
    ],
)
def test_what_is_no_number_is_named(tmp_path: Path, value, reason) -> None:
    """The rest of the call is kept."""
    found, lost = logged(tmp_path, {"x": value, "ok": 1.0})
    assert found == [("ok", 1.0)]
    ((said, count),) = lost.items()
    assert (said.endswith(reason), count) == (True, 1)


def test_numpy_values(tmp_path: Path) -> None:
    """0-d and one-element arrays, every float and int; times, texts, records and larger arrays are refused."""
    numpy = pytest.importorskip("numpy")
    good = {
        "zero": numpy.array(1.5),
        "one": numpy.array([[2]]),
        "half": numpy.float16(0.5),
        "single": numpy.float32(0.1),
        "long": numpy.longdouble(0.25),
        "flag": numpy.bool_(True),
        "u64": numpy.uint64(2**63 - 1),
        "nan": numpy.float32("nan"),
    }
    found, lost = logged(tmp_path, good)
    stored = [1.5, 2, 0.5, float(numpy.float32(0.1)), 0.25, 1, 2**63 - 1, math.nan]
    assert all(same(value, expected) for (_, value), expected in zip(found, stored, strict=True))
    assert lost == {}
    bad = {
        "array": numpy.zeros(3),
        "empty": numpy.array([]),
        "when": numpy.datetime64("2026-01-01", "ns"),
        "took": numpy.timedelta64(5, "ns"),
        "text": numpy.str_("1"),
        "object": numpy.array("x", dtype=object),
        "complex": numpy.complex64(1),
    }
    found, lost = logged(tmp_path, bad)
    assert found == []
    assert sum(lost.values()) == len(bad)
    assert lost["numpy.ndarray of shape (3,) is no number"] == 1
    found, lost = logged(tmp_path, {"big": numpy.uint64(2**63 + 5)})
    assert (found, lost) == ([("big", float(2**63 + 5))], {"inexact": 1})


def test_torch_scalars_of_every_dtype(tmp_path: Path) -> None:
    """bf16 and fp8 too, exactly; with a gradient or without; ints stay ints."""
    torch = pytest.importorskip("torch")
    values = {
        "bf16": (torch.tensor(0.1, dtype=torch.bfloat16), float(torch.tensor(0.1, dtype=torch.bfloat16))),
        "fp8": (torch.tensor(0.5).to(torch.float8_e4m3fn), 0.5),
        "grad": (torch.tensor(1.5, requires_grad=True), 1.5),
        "int": (torch.tensor(2**62 + 1), 2**62 + 1),
        "bool": (torch.tensor(False), 0),
        "one": (torch.tensor([[3.0]]), 3.0),
        "parameter": (torch.nn.Parameter(torch.tensor(2.0)), 2.0),
    }
    found, lost = logged(tmp_path, {key: value for key, (value, _) in values.items()})
    assert [same(value, values[key][1]) for key, value in found] == [True] * len(values)
    assert lost == {}
    assert logged(tmp_path, {"c": torch.tensor(1j), "many": torch.zeros(2)})[0] == []


@pytest.mark.parametrize(
    ("key", "stored"),
    [
        (Word.LOSS, "loss"),
        (Speaker("loss"), "loss"),
        (1, "1"),
        (None, "None"),
        (("a", 1), "('a', 1)"),
        (b"x", "b'x'"),
        ("a\0b", "a\ufffdb"),
        ("\ud800", "?"),
        ("\udcff", "\ufffd"),
        ("наука/精度 🎯", "наука/精度 🎯"),
        (" ", " "),
        ("x" * 500, "x" * 500),
        ("é" * 250, "é" * 250),
    ],
)
def test_keys_of_any_kind(tmp_path: Path, key, stored) -> None:
    """A str and its subclasses are what they hold, anything else its str(); what UTF-8 or the database cannot hold is replaced."""
    found, lost = logged(tmp_path, {key: 1.0})
    assert (found, lost) == ([(stored, 1.0)], {})
    found, lost = logged(tmp_path, {key: 1.0, "other": 2.0})
    assert (found, lost) == ([(stored, 1.0), ("other", 2.0)], {})


@pytest.mark.parametrize(
    ("data", "kept", "reason"),
    [
        ({"": 1.0, "ok": 1.0}, ["ok"], "an empty key"),
        ({"x" * 501: 1.0, "ok": 1.0}, ["ok"], "a key of more than 500 bytes"),
        ({"é" * 251: 1.0, "ok": 1.0}, ["ok"], "a key of more than 500 bytes"),
        ({Silent(): 1.0, "ok": 1.0}, ["ok"], "a key has no text"),
        ({1: 1.0, "1": 2.0}, ["1"], "a key is there twice"),
        ({"a/b": 1.0, "a": {"b": 2.0}}, ["a/b"], "a key is there twice"),
        (dict.fromkeys(("\ud800", "\ud801"), 1.0), ["?"], "a key is there twice"),
        ({"n": Loud(a=1), "ok": 1.0}, ["ok"], "Loud raised ZeroDivisionError"),
    ],
)
def test_keys_that_cannot_be(tmp_path: Path, data, kept, reason) -> None:
    """Of two values under one name the first is kept; nothing is lost without a count."""
    found, lost = logged(tmp_path, data)
    assert [key for key, _ in found] == kept
    assert lost == {reason: 1}


def test_nesting_has_an_end(tmp_path: Path) -> None:
    """A dict that contains itself, a very deep one, and a very wide one (shared parts multiply)."""
    cycle: dict = {"x": 1.0}
    cycle["self"] = cycle
    assert logged(tmp_path, cycle) == ([("x", 1.0)], {"a dict contains itself": 1})
    inner: dict = {"y": cycle}
    cycle["deeper"] = {"inner": inner}
    found, lost = logged(tmp_path, cycle)
    assert (found, lost) == ([("x", 1.0)], {"a dict contains itself": 2})
    deep: dict = {"leaf": 1.0}
    for _ in range(40):
        deep = {"d": deep}
    assert logged(tmp_path, {**deep, "ok": 1.0}) == ([("ok", 1.0)], {"a dict is nested too deeply": 1})
    log = writer(tmp_path)
    log.log({str(i): 1.0 for i in range(_values.MAX_VALUES + 5)})
    assert log.losses.all() == {"more than 100,000 values in a call": 5}


@pytest.mark.parametrize(
    "data", [collections.OrderedDict(a=1.0, b=2), types.MappingProxyType({"a": 1.0, "b": 2}), collections.ChainMap({"b": 2}, {"a": 1.0})]
)
def test_mappings_of_any_kind(tmp_path: Path, data) -> None:
    found, lost = logged(tmp_path, data)
    assert (sorted(found), lost) == ([("a", 1.0), ("b", 2)], {})


@pytest.mark.parametrize("data", [Loud(a=1.0), Loud(a=1.0, b=2.0)])
def test_a_mapping_whose_methods_raise_costs_its_call(tmp_path: Path, data) -> None:
    log = writer(tmp_path)
    log.log(data)
    log.log({"ok": 1.0})
    assert [key for _, key, _ in points(log.folder)] in (["ok"], ["a", "ok"])
    assert len(points(log.folder)) - 1 + sum(log.dropped.values()) == 1


@pytest.mark.parametrize("data", ["text", b"x", 5, None, [("a", 1)], {"a"}, iter([])])
def test_what_is_no_dict_is_one_counted_call(tmp_path: Path, data) -> None:
    assert logged(tmp_path, data) == ([], {"data is no dict": 1})


def test_steps_of_any_kind(tmp_path: Path) -> None:
    """ints of any kind within 64 bits; floats, bools, texts and larger ones are refused, and the last step stays."""
    numpy = pytest.importorskip("numpy")
    torch = pytest.importorskip("torch")
    log = writer(tmp_path)
    taken = [numpy.int32(5), numpy.uint64(2**63 - 1), torch.tensor(7), -3, -(2**63) + 1, 2**63 - 1, enum.IntEnum("E", {"A": 9}).A]
    for step in taken:
        log.log({"x": 1.0}, step)
        log.log({"a": 1.0, "b": 2.0}, step)
    assert [step for step, key, _ in points(log.folder) if key == "x"] == [int(step) for step in taken]
    assert all(type(step) is int for step, _, _ in points(log.folder))
    refused = [
        0.5,
        1.0,
        True,
        "7",
        2**63,
        -(2**63),
        10**30,
        numpy.float32(1),
        numpy.bool_(True),
        torch.tensor(1.0),
        torch.tensor(True),
        [1],
        Silent(),
    ]
    for step in refused:
        log.log({"x": 1.0}, step)
        log.log({"a": 1.0, "b": 2.0}, step)
    assert log.dropped == {"step is no int": 3 * len(refused)}
    assert log.last_step == 9
    log.last_step = 2**63 - 1
    log.log({"x": 1.0})
    assert log.dropped == {"step is no int": 3 * len(refused) + 1}, "there is no step behind the last one"


def test_a_value_that_logs_while_it_is_read(tmp_path: Path) -> None:
    """__float__ may call log() itself: its point waits for the call that reads it."""
    log = writer(tmp_path)

    class Chatty:
        def __float__(self) -> float:
            log.log({"inner": 1.0}, 1)
            return 2.0

    log.log({"outer": Chatty()}, 0)
    assert points(log.folder) == [(0, "outer", 2.0), (1, "inner", 1.0)]


def test_a_slow_value_holds_up_its_own_thread_alone(tmp_path: Path) -> None:
    """While one thread's __float__ takes its time, others log without waiting; all is there afterwards."""
    log = writer(tmp_path)
    reading, go_on = threading.Event(), threading.Event()

    class Slow:
        def __float__(self) -> float:
            reading.set()
            assert go_on.wait(30)
            return 1.0

    thread = threading.Thread(target=lambda: log.log({"slow": Slow()}, 0))
    thread.start()
    assert reading.wait(30)
    for i in range(100):
        log.log({"quick": float(i)}, i)
    assert points(log.folder) == []
    go_on.set()
    thread.join()
    log.drain()
    assert [value for _, key, value in points(log.folder) if key == "quick"] == [float(i) for i in range(100)]


def test_a_dict_that_another_thread_changes_never_gives_a_value_a_wrong_name(tmp_path: Path) -> None:
    """Keys come and go while it is logged: each value is one that its own key has had."""
    log = writer(tmp_path)
    names = [f"k{i}" for i in range(50)]
    data = {name: float(i) for i, name in enumerate(names)}
    stop = threading.Event()

    def change() -> None:
        turn = 0
        while not stop.is_set():
            turn += 1
            name = names[turn % 50]
            data.pop(name, None)
            data[name] = turn % 50 + 100.0 * (turn % 7)

    thread = threading.Thread(target=change)
    thread.start()
    import sys

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for i in range(3000):
            log.log(data, i)
    finally:
        sys.setswitchinterval(interval)
        stop.set()
        thread.join()
    found = points(log.folder)
    assert len(found) > 50 * 2000
    assert all(value % 100 == int(key[1:]) for _, key, value in found)


def test_nothing_grows_while_the_same_is_logged(tmp_path: Path) -> None:
    """Many calls of all kinds leave no garbage: no object that the collector knows, no memory beyond a few kB, no file descriptor."""
    import gc
    import os
    import tracemalloc

    log = writer(tmp_path)
    numpy = pytest.importorskip("numpy")
    many = {f"m{i}": float(i) for i in range(20)}

    def rounds(number: int) -> None:
        for i in range(number):
            log.log({"a": float(i)}, i)
            log.log(many)
            if i % 10 == 0:
                log.log({"n": numpy.float32(i), "i": i, "s": "text"})
            if i % 100 == 0:
                log.log({f"rare{i % 1000}": 1.0, "z": numpy.zeros(i % 100 + 2)})

    rounds(10_000)
    gc.collect()
    tracemalloc.start()
    objects, open_files = len(gc.get_objects()), len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    before = tracemalloc.get_traced_memory()[0]
    rounds(10_000)
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 200_000
    assert len(gc.get_objects()) - objects < 200
    if open_files:
        assert len(os.listdir("/proc/self/fd")) - open_files <= 2
    assert len(log.losses.all()) <= 51


def test_names_without_end_are_forgotten(tmp_path: Path, monkeypatch) -> None:
    """Ever new keys: what the writer remembers of them is bounded by what a segment declares, and all points are there."""
    from sdk import _journal, _reader

    monkeypatch.setattr(_journal, "MAX_NAMES", 1000)
    monkeypatch.setattr(_reader, "MAX_NAMES", 1000)
    log = writer(tmp_path)
    number = 0
    while log._segments.number < 2:
        log.log({f"name/{number}": float(number), "again": 1.0}, number)
        number += 1
    log.log({"name/last": float(number), "again": 1.0}, number)
    number += 1
    assert len(log._key_ids) < 100
    found = points(log.folder)
    assert [(step, value) for step, key, value in found if key != "again"] == [(i, float(i)) for i in range(number)]
    assert sum(key == "again" for _, key, _ in found) == number
