"""Rich values from the program to the store: what arrives is what was given, and the loop does not wait for it."""

from __future__ import annotations

import io
import json
import struct
import wave
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Shop, until
from server import Server

import sdk
from sdk._journal import Writer
from sdk._media import _base, _desk
from sdk._reader import Reader
from sdk.errors import UsageError, ValueRefused


def encoded(value: sdk.Media) -> tuple[dict[str, Any], bytes]:
    """The document's fields, and the bytes behind its digest."""
    kept: list[bytes] = [b""]

    def keep(data: bytes | Path) -> str:
        kept[0] = data if isinstance(data, bytes) else Path(data).read_bytes()
        return "blake3:x"

    return value.encode(keep), kept[0]


def problem(value: sdk.Media) -> str:
    with pytest.raises(_base.Refused) as refused:
        value.encode(lambda data: "")
    return str(refused.value)


def chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """A PNG's chunks, their checksums checked."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at, found = 8, []
    while at < len(data):
        (size,) = struct.unpack_from(">I", data, at)
        name, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + size]
        assert struct.unpack_from(">I", data, at + 8 + size)[0] == zlib.crc32(name + body)
        found.append((name, body))
        at += 12 + size
    return found


def pixels(data: bytes) -> Any:
    """Read by Pillow, which matplotlib brings: a decoder that is not ours."""
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(data)))


# Images -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1), (5, 7, 3), (5, 7, 4), (3, 5, 7), (1, 5, 7)], ids=str)
def test_an_array_becomes_a_png_of_just_these_pixels(shape: tuple[int, ...]) -> None:
    """numpy H×W, H×W×C and C×H×W of uint8, read back exactly; the same array gives the same bytes."""
    array = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    doc, data = encoded(sdk.Image(array))
    expected = array.transpose(1, 2, 0) if shape[0] in (1, 3) and len(shape) == 3 else array
    assert np.array_equal(pixels(data), expected.squeeze())
    assert (doc["mime"], doc["meta"]["width"], doc["meta"]["height"]) == ("image/png", 7, 5)
    assert encoded(sdk.Image(array))[1] == data


def test_floats_are_colours_from_0_to_1_and_what_is_beyond_is_clipped_and_told() -> None:
    doc, data = encoded(sdk.Image(np.array([[0.0, 0.5, 1.0], [-1.0, 2.0, np.nan]])))
    assert pixels(data).tolist() == [[0, 128, 255], [0, 255, 0]]
    assert (doc["meta"]["clipped"], doc["meta"]["not_finite"]) == (2, 1)
    assert pixels(encoded(sdk.Image(np.array([[-1.0, 0.0, 1.0]]), range=(-1, 1)))[1]).tolist() == [[0, 128, 255]]
    fit = encoded(sdk.Image(np.array([[10, 20, 30]]), range="fit"))
    assert pixels(fit[1]).tolist() == [[0, 128, 255]]
    assert fit[0]["meta"]["range"] == [10, 30]
    assert pixels(encoded(sdk.Image(np.full((2, 2), 3.0), range="fit"))[1]).tolist() == [[0, 0], [0, 0]]


def test_integers_booleans_and_16_bits_keep_their_values() -> None:
    assert pixels(encoded(sdk.Image(np.array([[0, 255, 300]])))[1]).tolist() == [[0, 255, 255]]
    assert pixels(encoded(sdk.Image(np.array([[True, False]])))[1]).tolist() == [[255, 0]]
    deep = np.array([[0, 1000, 65535]], dtype=np.uint16)
    assert pixels(encoded(sdk.Image(deep))[1]).tolist() == deep.tolist()


@pytest.mark.parametrize("kind", [torch.uint8, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool])
def test_a_tensor_is_channels_first_whatever_its_type(kind: torch.dtype) -> None:
    tensor = (torch.rand(3, 4, 6) * (1 if kind.is_floating_point else 2)).to(kind)
    tensor = (tensor * 255 if kind in (torch.uint8, torch.int64) else tensor).requires_grad_(kind.is_floating_point)
    found = pixels(encoded(sdk.Image(tensor))[1])
    scale = 255 if kind.is_floating_point or kind is torch.bool else 1
    assert np.abs(found - tensor.detach().float().permute(1, 2, 0).numpy() * scale).max() <= 0.5


def test_what_was_given_is_copied_where_it_is_given() -> None:
    array, tensor = np.zeros((2, 2), dtype=np.uint8), torch.zeros(2, 2)
    first, second = sdk.Image(array), sdk.Image(tensor)
    array[:], tensor[:] = 255, 1
    assert pixels(encoded(first)[1]).max() == pixels(encoded(second)[1]).max() == 0


def test_pillow_and_matplotlib_images_are_taken(tmp_path: Path) -> None:
    from matplotlib.figure import Figure
    from PIL import Image

    for mode in ("L", "RGB", "RGBA", "P", "1", "LA"):
        given = Image.fromarray(np.random.default_rng(2).integers(0, 256, (4, 5, 3), dtype=np.uint8)).convert(mode)
        _, data = encoded(sdk.Image(given))
        target = {"P": "RGBA", "1": "L"}.get(mode, mode)
        assert np.array_equal(pixels(data), np.asarray(given.convert(target)))
    figure = Figure(figsize=(2, 1), dpi=50)
    axes = figure.subplots()
    axes.plot([1, 2, 3])
    for value in (figure, axes):
        doc, data = encoded(sdk.Image(value, caption="a line"))
        assert pixels(data).shape[:2] == (50, 100)
        assert doc["meta"] == {"width": 100, "height": 50, "caption": "a line"}


def test_files_are_known_by_their_bytes_and_taken_as_they_are(tmp_path: Path) -> None:
    from PIL import Image

    path = tmp_path / "named.txt"
    Image.new("RGB", (3, 2)).save(path, "JPEG")
    original = path.read_bytes()
    value = sdk.Image(path)
    path.unlink()  # gone before it was copied
    doc, data = encoded(value)
    assert (doc["mime"], data) == ("image/jpeg", original)
    assert encoded(sdk.Image(io.BytesIO(original)))[0]["mime"] == "image/jpeg"
    (tmp_path / "page.png").write_text("<html>")
    assert "not one of png" in problem(sdk.Image(tmp_path / "page.png"))
    assert "No such file" in problem(sdk.Image(tmp_path / "none.png"))


@pytest.mark.parametrize(
    ("value", "word"),
    [
        (np.zeros((2, 3, 4, 5)), r"log a batch as a list"),
        (np.zeros((0, 5)), "without pixels"),
        (np.zeros((5, 4, 2)), "1, 3 or 4 channels"),
        (np.zeros((4, 4), dtype=complex), "complex"),
        (np.array([["a", "b"]]), "numbers"),
        (object(), "cannot be made of object"),
        (np.array(3.0), "a scalar"),
    ],
    ids=["batch", "empty", "channels", "complex", "text", "object", "scalar"],
)
def test_what_is_no_image_is_refused_in_words_and_never_where_it_is_made(value: Any, word: str) -> None:
    assert word in problem(sdk.Image(value))


# Sounds, clips ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("as_tensor", [False, True], ids=["numpy", "torch"])
def test_samples_become_a_wave_file(as_tensor: bool) -> None:
    """Floats become 16 bits within half a step, integers stay as they are, channels may stand first or last."""
    floats = np.sin(np.arange(1000) / 9).astype("float32")
    stereo = np.stack([floats, -floats])
    turn = torch.from_numpy if as_tensor else np.asarray
    for given, channels in ((floats, 1), (stereo, 2), (np.ascontiguousarray(stereo.T), 2), ((floats * 9999).astype("int16"), 1)):
        doc, data = encoded(sdk.Audio(turn(given), rate=8000))
        with wave.open(io.BytesIO(data)) as file:
            assert (file.getframerate(), file.getnchannels(), file.getnframes(), file.getsampwidth()) == (8000, channels, 1000, 2)
            found = np.frombuffer(file.readframes(1000), "<i2").reshape(-1, channels)
        expected = given.reshape(-1, 1) if given.ndim == 1 else given.T if given.shape[0] < 9 else given
        assert np.abs(found - expected * (32767.0 if given.dtype.kind == "f" else 1)).max() <= 0.5
        assert doc["meta"]["seconds"] == 0.125
    assert encoded(sdk.Audio(turn(floats * 4), rate=8000))[0]["meta"]["clipped"] > 0
    assert "rate" in problem(sdk.Audio(turn(floats)))
    assert "channels" in problem(sdk.Audio(np.zeros((100, 100)), rate=8000))


@pytest.mark.parametrize("as_tensor", [False, True], ids=["numpy", "torch"])
def test_frames_become_an_animated_png(as_tensor: bool) -> None:
    from PIL import Image

    frames = np.random.default_rng(3).integers(0, 256, (4, 6, 8, 3), dtype=np.uint8)
    given = torch.from_numpy(frames).permute(0, 3, 1, 2) if as_tensor else frames
    doc, data = encoded(sdk.Video(given, fps=10))
    assert [name for name, _ in chunks(data)] == [b"IHDR", b"acTL", b"fcTL", b"IDAT", *[b"fcTL", b"fdAT"] * 3, b"IEND"]
    assert (doc["mime"], doc["meta"]["frames"], doc["meta"]["fps"]) == ("image/apng", 4, 10)
    with Image.open(io.BytesIO(data)) as found:
        assert found.n_frames == 4
        for at in range(4):
            found.seek(at)
            assert np.array_equal(np.asarray(found.convert("RGB")), frames[at])
            assert found.info["duration"] == 100
    assert "give a path or bytes of an MP4" in problem(sdk.Video([1, 2]))
    assert encoded(sdk.Video(b"\0\0\0\x18ftypisom" + bytes(40)))[0]["mime"] == "video/mp4"


# Tables, histograms, words, figures ---------------------------------------------------------------------------------------------


def test_a_tables_numbers_are_exact_and_its_cells_may_be_media() -> None:
    picture = sdk.Image(np.zeros((2, 2), dtype=np.uint8), caption="dark")
    rows = [
        [1, 0.1, "text", None, True],
        [2**60, np.float32(0.1), picture, np.int64(7), False],
        [-0.0, float("nan"), float("-inf"), "\ud800", [1, 2]],
    ]
    table = sdk.Table(columns=["a", "b", "c", "d", "e"], rows=rows)
    doc, data = encoded(table)
    found = json.loads(data)
    assert found["columns"] == ["a", "b", "c", "d", "e"]
    assert found["rows"][0] == [1, 0.1, "text", None, True]
    assert found["rows"][1][:2] == [{"number": str(2**60)}, float(np.float32(0.1))]
    assert found["rows"][1][2]["media"]["meta"] == {"width": 2, "height": 2, "caption": "dark"}
    assert found["rows"][2][1:3] == [{"number": "NaN"}, {"number": "-Infinity"}]
    assert str(found["rows"][2][0]) == "-0.0"
    assert doc["meta"] == {"rows": 3, "columns": 5}


def test_a_table_is_what_it_was_when_it_was_logged() -> None:
    table = sdk.Table(columns=["a"])
    table.add(1)
    frozen = table.frozen()
    table.add(2)
    assert json.loads(encoded(frozen)[1])["rows"] == [[1]]
    assert json.loads(encoded(table)[1])["rows"] == [[1], [2]]


def test_tables_of_dicts_frames_and_odd_rows() -> None:
    import pandas

    assert json.loads(encoded(sdk.Table([{"a": 1}, {"b": 2}]))[1]) == {"format": 1, "columns": ["a", "b"], "rows": [[1, None], [None, 2]]}
    frame = pandas.DataFrame({"n": [1, 2], "x": [0.5, float("nan")], "when": pandas.to_datetime(["2026-01-02", None])})
    value = sdk.Table(frame)
    frame.loc[0, "n"] = 99
    found = json.loads(encoded(value)[1])
    assert found["rows"] == [[1, 0.5, "2026-01-02T00:00:00"], [2, {"number": "NaN"}, None]]
    assert "row 1 of the table has 1 cells for 2 columns" in problem(sdk.Table(columns=["a", "b"], rows=[[1, 2], [3]]))
    assert "one may have 100,000 rows" in problem(sdk.Table(columns=["a"], rows=[[1]] * 100_001))


def test_histograms_count_as_numpy_counts() -> None:
    values = np.random.default_rng(4).normal(size=5000)
    counts, edges = np.histogram(values, 32)
    for given in (values, torch.from_numpy(values), values.tolist()):
        meta = encoded(sdk.Histogram(given, bins=32))[0]["meta"]
        assert meta["n"] == 5000
        assert np.allclose(meta["edges"], edges)
        assert np.abs(np.array(meta["counts"]) - counts).sum() <= 4  # a value on an edge may fall to either side in float32
    assert encoded(sdk.Histogram(np_histogram=(counts, edges)))[0]["meta"]["counts"] == counts.tolist()
    odd = encoded(sdk.Histogram([1.0, float("nan"), float("inf")], bins=4))[0]["meta"]
    assert (odd["n"], odd["not_finite"], sum(odd["counts"])) == (3, 2, 1)
    assert sum(encoded(sdk.Histogram([], bins=4))[0]["meta"]["counts"]) == 0
    assert "one edge more" in problem(sdk.Histogram(np_histogram=([1, 2], [0, 1])))


def test_words_pages_and_figures() -> None:
    import plotly.graph_objects as go

    doc, data = encoded(sdk.Text("short \0 \ud800", markdown=True))
    assert (doc["digest"], doc["mime"], doc["meta"]["text"]) == (None, "text/markdown", "short \ufffd ?")
    doc, data = encoded(sdk.Text("long " * 2000))
    assert (doc["digest"], data) == ("blake3:x", b"long " * 2000)
    assert encoded(sdk.Html("<p>hi"))[1] == b"<p>hi"
    figure = go.Figure(go.Scatter(y=np.array([1.0, 2.0])))
    value = sdk.Plotly(figure)
    figure.data[0].name = "changed later"
    found = json.loads(encoded(value)[1])
    assert found["data"][0]["type"] == "scatter"
    assert "name" not in found["data"][0]
    assert "a Plotly figure or a dict" in problem(sdk.Plotly(5))


# Through the journal ------------------------------------------------------------------------------------------------------------


def journal(tmp_path: Path, **settings: Any) -> Writer:
    return Writer(tmp_path, {"id": "a" * 26, "project": "p"}, SimpleNamespace(strict=False, **settings))


def media_of(writer: Writer) -> list[tuple[int, dict[str, Any]]]:
    reader, found = Reader(writer.folder), []
    while (chunk := reader.read()) is not None:
        found += [(step, doc) for _, step, _, doc in chunk.docs if doc["type"] == "media"]
    return found


END = {"state": "finished", "exit_code": 0, "signal": None, "error": None}


def test_one_call_takes_numbers_and_media_lists_and_bare_figures(tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    writer = journal(tmp_path)
    square = np.zeros((2, 2), dtype=np.uint8)
    writer.log(
        {"loss": 0.5, "one": sdk.Image(square), "many": [sdk.Image(square), sdk.Image(square)], "deep": {"er": sdk.Text("t")}}, step=7
    )
    writer.log({"figure": Figure(figsize=(1, 1), dpi=20), "acc": 1})
    writer.finish(END)
    found = media_of(writer)
    assert {(step, doc["key"], doc["kind"]) for step, doc in found} == {
        (7, "one", "image"), (7, "many", "image"), (7, "deep/er", "text"), (8, "figure", "image"),
    }  # fmt: skip
    assert sorted(doc["meta"]["index"] for _, doc in found if doc["key"] == "many") == [0, 1]
    assert writer.dropped == {}
    for _, doc in found:
        if doc["digest"]:
            assert (writer.folder / "blobs" / doc["digest"].partition(":")[2]).stat().st_size == doc["bytes"]


def test_what_cannot_be_logged_is_dropped_counted_and_said_and_the_rest_is_kept(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    writer = journal(tmp_path)
    writer.log({"loss": 1.0, "bad": sdk.Image("no-such-file.png"), "mixed": [sdk.Text("a"), 5], "word": "text"}, step=0)
    writer.log({"row": sdk.Table(columns=["a", "b"], rows=[[1]])}, step=1)
    writer.finish(END)
    assert writer.dropped == {"media image": 1, "media table": 1, "list is no number": 1, "str is no number": 1}
    assert media_of(writer) == []
    said = capfd.readouterr().err
    assert "'bad' is not logged: " in said
    assert "row 0 of the table has 1 cells for 2 columns" in said


def test_strict_mode_raises_where_it_is_logged(tmp_path: Path) -> None:
    writer = Writer(tmp_path, {"id": "a" * 26, "project": "p"}, SimpleNamespace(strict=True))
    with pytest.raises(ValueRefused, match="not one of png"):
        writer.log({"bad": sdk.Image(b"GARBAGE")}, step=0)


def test_a_large_image_does_not_hold_the_loop(tmp_path: Path) -> None:
    """The call takes no longer than a copy does: encoding 24 MB happens elsewhere, and points go on meanwhile."""
    import threading

    writer = journal(tmp_path)
    release, encode = threading.Event(), _base.Media.encode

    class Slow(sdk.Image):
        def encode(self, keep: Any) -> dict[str, Any]:
            assert release.wait(60)
            return encode(self, keep)

    writer.log({"big": Slow(np.zeros((2000, 4000, 3), dtype=np.uint8)), "loss": 0.0}, step=0)
    for step in range(1, 1000):  # would hang here if anything waited for the encoder
        writer.log({"loss": 1.0}, step=step)
    assert writer.next_record > 999
    assert media_of(writer) == []
    release.set()
    writer.finish(END)
    assert [doc["meta"]["width"] for _, doc in media_of(writer)] == [4000]


def test_more_than_the_queue_holds_is_dropped_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    monkeypatch.setattr(_desk, "MOST_WAITING_BYTES", 3 << 20)
    writer, release = journal(tmp_path), threading.Event()
    held = writer.put_blob
    writer.put_blob = lambda data: release.wait(60) and held(data)  # type: ignore[method-assign]
    for step in range(10):
        writer.log({"i": sdk.Image(np.full((1024, 1024), step, dtype=np.uint8))}, step=step)
    lost = writer.dropped["media waiting"]
    assert 5 <= lost <= 7
    release.set()
    writer.finish(END)
    assert len(media_of(writer)) == 10 - lost


def test_the_end_waits_for_media_but_not_for_ever(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    import threading

    writer, release = journal(tmp_path, finish_seconds=0.4), threading.Event()
    writer.put_blob = lambda data: release.wait(60)  # type: ignore[method-assign]
    for step in range(3):
        writer.log({"i": sdk.Image(np.zeros((4, 4), dtype=np.uint8))}, step=step)
    until(lambda: writer.desk.busy)
    writer.finish(END)
    release.set()
    assert writer.dropped["media at the end"] == 2
    assert "2 media were not encoded" in capfd.readouterr().err


def test_a_full_disk_costs_the_image_and_not_the_training(tmp_path: Path) -> None:
    writer = journal(tmp_path)

    def full(data: Any) -> str:
        raise OSError(28, "No space left on device")

    writer.put_blob = full  # type: ignore[method-assign]
    writer.log({"i": sdk.Image(np.zeros((4, 4), dtype=np.uint8)), "loss": 1.0}, step=0)
    writer.finish(END)
    assert writer.dropped == {"media disk": 1}


def test_media_go_from_a_program_through_the_sender_to_the_server(shop: Shop, server: Server) -> None:
    """Also from a forked worker, and as the last thing before the end; each blob is in the store under its digest."""
    done = shop.run(
        """
        import os
        import numpy as np, sdk
        sdk.init(project="p")
        for step in range(3):
            sdk.log({"loss": step, "s": sdk.Image(np.full((8, 8, 3), step, dtype=np.uint8), caption=f"c{step}")}, step=step)
        pid = os.fork()
        if pid == 0:
            sdk.log({"from_child": sdk.Image(np.zeros((2, 2), dtype=np.uint8))}, step=5)
            sdk.finish()
            os._exit(0)
        os.waitpid(pid, 0)
        sdk.log({"t": sdk.Table(columns=["a"], rows=[[1]])}, step=9)
        """,
        server,
    )
    assert done.returncode == 0, done.stderr
    assert until(lambda: len(server.docs("media")) == 5 and len(server.blobs) >= 5)
    found = server.docs("media")
    assert sorted(doc["key"] for doc in found) == ["from_child", "s", "s", "s", "t"]
    for doc in found:
        assert len(server.blobs[doc["digest"]]) == doc["bytes"]
    assert [step for step, _ in server.points("loss")] == [0, 1, 2]


def test_wrong_arguments_of_watch_and_throughput_are_told() -> None:
    with pytest.raises(UsageError, match="torch module"):
        sdk.watch(5)
    with pytest.raises(UsageError, match="gradients, parameters, all"):
        sdk.watch(torch.nn.Linear(1, 1), log="everything")
    with pytest.raises(UsageError, match="h100"):
        sdk.throughput(tokens_per_step=5, peak_flops="H900 bf16")
    with pytest.raises(UsageError, match="above 0"):
        sdk.throughput(tokens_per_step=-1)


def test_tensors_are_taken_where_numpy_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch without numpy: the same pixels, samples and counts by torch's own operations."""
    tensor, sound = torch.rand(3, 5, 7, generator=torch.Generator().manual_seed(1)), torch.sin(torch.arange(100) / 5)
    frames = (torch.rand(2, 3, 4, 4) * 255).to(torch.uint8)
    kinds = {
        "image": lambda: sdk.Image(tensor),
        "fit": lambda: sdk.Image(tensor * 9 - 4, range="fit"),
        "bool": lambda: sdk.Image(tensor[0] > 0.5),
        "int": lambda: sdk.Image((tensor * 300).to(torch.int32)),
        "sound": lambda: sdk.Audio(torch.stack([sound, sound]), rate=100),
        "video": lambda: sdk.Video(frames),
    }
    with_numpy = {name: encoded(make()) for name, make in kinds.items()}
    counts = encoded(sdk.Histogram(tensor, bins=5))[0]["meta"]["counts"]
    monkeypatch.setattr("sdk._media._arrays.numpy_of", lambda tensor: None)
    for name, make in kinds.items():
        assert encoded(make()) == with_numpy[name], name
    assert encoded(sdk.Histogram(tensor, bins=5))[0]["meta"]["counts"] == counts
