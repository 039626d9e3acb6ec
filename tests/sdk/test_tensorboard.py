"""TensorBoard's event files, written by its real writers, become a run's points exactly once."""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import signal
import struct
import sys
import time
from pathlib import Path

import pytest
from helpers import Shop, until
from server import Server

from sdk import _process, _wire
from sdk._ids import new_id
from sdk._reader import Reader
from sdk._tensorboard import events, is_event_file
from sdk._tensorboard.follower import Follower
from sdk._tensorboard.names import Names
from sdk._tensorboard.records import FOOT, HEAD, RecordFile, crc32c, masked

torch_writer = pytest.importorskip("torch.utils.tensorboard", reason="the real TensorBoard writer is installed by make's frameworks stage")
tensorboardX = pytest.importorskip("tensorboardX", reason="installed by make's frameworks stage")


def files_in(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*tfevents*"))


def scalars_of(path: str) -> list[tuple[str, int, float]]:
    return [(tag, event.step, value) for event in events_of(path) for tag, value in event.scalars.items()]


def events_of(path: str) -> list[events.Event]:
    return [events.decode(data) for _, data in RecordFile(path).read()]


def record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", masked(length)) + data + struct.pack("<I", masked(data))


# The bytes ----------------------------------------------------------------------------------------------------------------------


def test_the_checksum_is_castagnolis() -> None:
    """crc32c of the well-known check string."""
    assert crc32c(b"123456789") == 0xE3069283


def test_scalars_of_both_styles_and_types_come_out_as_they_went_in(tmp_path: Path) -> None:
    """Old simple values (float32), new tensors of float and double, special values, negative and large steps."""
    writer = torch_writer.SummaryWriter(str(tmp_path))
    given = [0.1, -0.0, math.inf, -math.inf, 1e38, 3.0]
    for step, value in enumerate(given):
        writer.add_scalar("old", value, step)
        writer.add_scalar("new", value, step, new_style=True)
        writer.add_scalar("double", value, step, new_style=True, double_precision=True)
    writer.add_scalar("old", math.nan, -7, walltime=1234.5)
    writer.add_scalar("old", 1.0, 2**40)
    writer.close()
    (path,) = files_in(tmp_path)
    found = scalars_of(path)
    single = [struct.unpack("<f", struct.pack("<f", value))[0] for value in given]
    for tag, wanted in (("old", single), ("new", single), ("double", given)):
        mine = [(step, value) for name, step, value in found if name == tag][: len(given)]
        assert [(step, str(value)) for step, value in mine] == [(step, str(value)) for step, value in enumerate(wanted)]
    assert ("old", 2**40, 1.0) in found
    odd = next(event for event in events_of(path) if event.step == -7)
    assert math.isnan(odd.scalars["old"])
    assert odd.wall_time == 1234.5


def test_tensors_of_every_number_type_are_read(tmp_path: Path) -> None:
    """As TensorFlow 2 writes them: tensor_content or typed lists, one element, also float16, bfloat16, bool and 64-bit integers."""
    from tensorboard.compat.proto import event_pb2, tensor_pb2, tensor_shape_pb2

    proto = tensor_pb2.TensorProto
    shape = tensor_shape_pb2.TensorShapeProto
    cases = {
        "float_content": (proto(dtype=1, tensor_content=struct.pack("<f", 0.5)), 0.5),
        "double_list": (proto(dtype=2, double_val=[0.1]), 0.1),
        "int32_list": (proto(dtype=3, int_val=[-5]), -5),
        "int64_content": (proto(dtype=9, tensor_content=struct.pack("<q", -(2**62))), -(2**62)),
        "int64_list": (proto(dtype=9, int64_val=[2**62 + 1]), 2**62 + 1),
        "uint64_list": (proto(dtype=23, uint64_val=[2**63 + 1]), 2**63 + 1),
        "bool": (proto(dtype=10, bool_val=[True]), 1),
        "half": (proto(dtype=19, half_val=[0x3E00]), 1.5),
        "half_content": (proto(dtype=19, tensor_content=b"\x00\x3e"), 1.5),
        "bfloat16": (proto(dtype=14, half_val=[0x3FC0]), 1.5),
        "zero": (proto(dtype=1, tensor_shape=shape()), 0.0),
        "one_by_one": (proto(dtype=1, float_val=[2.0], tensor_shape=shape(dim=[shape.Dim(size=1)])), 2.0),
    }
    path = tmp_path / "events.out.tfevents.1.host"
    with path.open("wb") as file:
        for tag, (tensor, _) in cases.items():
            event = event_pb2.Event(step=3, wall_time=1.0)
            event.summary.value.add(tag=tag, tensor=tensor).metadata.plugin_data.plugin_name = "scalars"
            file.write(record(event.SerializeToString()))
        vector = event_pb2.Event(step=3)
        vector.summary.value.add(tag="vector", tensor=proto(dtype=1, float_val=[1, 2], tensor_shape=shape(dim=[shape.Dim(size=2)])))
        file.write(record(vector.SerializeToString()))
    assert {tag: value for tag, _, value in scalars_of(str(path))} == {tag: value for tag, (_, value) in cases.items()}
    assert events_of(str(path))[-1].others == ["tensor"]


def test_hyper_parameters_and_other_kinds_are_told_apart(tmp_path: Path) -> None:
    """hparams become config values; text, images and histograms are named, not taken for numbers."""
    import numpy

    writer = torch_writer.SummaryWriter(str(tmp_path))
    writer.add_hparams({"lr": 0.1, "batch": 32, "opt": "adam"}, {"final": 0.9})
    writer.add_text("t", "hello")
    writer.add_histogram("h", numpy.arange(10))
    writer.add_image("i", numpy.zeros((3, 4, 4), dtype=numpy.uint8))
    writer.close()
    found = [event for path in files_in(tmp_path) for event in events_of(path)]
    assert {key: value for event in found for key, value in event.hparams.items()} == {"lr": 0.1, "batch": 32, "opt": "adam"}
    assert {kind for event in found for kind in event.others} == {"text", "histogram", "image"}
    assert {tag for event in found for tag in event.scalars} == {"final"}


def test_a_file_cut_anywhere_gives_the_whole_records_before_and_the_rest_later(tmp_path: Path) -> None:
    """For every length of the file: no error, no half record; once the rest is there, everything, in order, once."""
    writer = tensorboardX.SummaryWriter(str(tmp_path / "whole"))
    for step in range(12):
        writer.add_scalar("x", step / 8, step)
    writer.close()
    whole = Path(files_in(tmp_path)[0]).read_bytes()
    ends = [0]
    while ends[-1] < len(whole):
        ends.append(ends[-1] + HEAD.size + FOOT.size + HEAD.unpack_from(whole, ends[-1])[0])
    path = tmp_path / "events.out.tfevents.cut"
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        file = RecordFile(str(path))
        first = [bytes(data) for _, data in file.read()]
        assert file.offset == max(end for end in ends if end <= cut), cut
        with path.open("ab") as more:
            more.write(whole[cut:])
        both = first + [bytes(data) for _, data in file.read()]
        assert len(both) == len(ends) - 1
        assert (file.rest, file.bad, file.broken) == (0, 0, None)


def test_damage_costs_its_record_alone_or_is_said(tmp_path: Path) -> None:
    """A flipped bit in the data drops that record; one in the length ends the file with a reason; a huge record is stepped over."""
    data = [b"\x10" + bytes([step]) for step in range(5)]
    good = b"".join(record(one) for one in data)
    path = tmp_path / "events.out.tfevents.x"
    size = len(record(data[0]))
    spoiled = bytearray(good)
    spoiled[size + HEAD.size] ^= 1
    path.write_bytes(spoiled)
    file = RecordFile(str(path))
    assert [bytes(one) for _, one in file.read()] == [data[0], *data[2:]]
    assert file.bad == 1
    spoiled = bytearray(good)
    spoiled[2 * size] ^= 1
    path.write_bytes(spoiled)
    file = RecordFile(str(path))
    assert len(list(file.read())) == 2
    assert file.broken is not None
    path.write_bytes(record(data[0]) + record(b"\x00" * (3 << 20)) + record(data[1]))
    file = RecordFile(str(path))
    assert [bytes(one) for _, one in file.read()] == data[:2]
    assert file.long == 1


def test_garbage_never_raises_anything_but_malformed() -> None:
    """Random bytes as an event: read, or refused by name."""
    chance = random.Random(4)
    for _ in range(3000):
        with contextlib.suppress(events.Malformed):
            events.decode(memoryview(chance.randbytes(chance.randrange(60))))


def test_folders_become_prefixes_as_keras_and_add_scalars_mean_them() -> None:
    """Beside each other: the same names; `train` and `validation`, and folders below, go in front; add_hparams' stamp does not."""
    keras = Names()
    keras.place("/logs/a/train/events.out.tfevents.1")
    assert keras.key("/logs/a/train/events.out.tfevents.1", "epoch_loss") == "train/epoch_loss"
    assert keras.key("/logs/a/validation/events.out.tfevents.2", "epoch_loss") == "validation/epoch_loss"
    plain = Names()
    plain.place("/runs/x/events.out.tfevents.1")
    assert plain.key("/runs/x/events.out.tfevents.9", "loss/train") == "loss/train"
    assert plain.key("/runs/x/losses_a/events.out.tfevents.1", "losses") == "losses_a/losses"
    assert plain.key("/runs/x/1795617986.44/events.out.tfevents.1", "hparam/acc") == "hparam/acc"
    assert plain.key("/runs/y/events.out.tfevents.1", "loss") == "y/loss"
    assert is_event_file("/a/events.out.tfevents.1.host")
    assert not is_event_file("/tfevents/other.txt")


# Followed -----------------------------------------------------------------------------------------------------------------------

SCRIPT = """
    import sys, time
    from torch.utils.tensorboard import SummaryWriter
    writer = SummaryWriter("runs/a")
    for step in range(300):
        writer.add_scalar("loss/train", 1 / (step + 1), step, walltime=1700000000 + step)
    writer.add_scalars("both", {"a": 1.0, "b": 2.0}, 5)
    writer.add_hparams({"lr": 0.25}, {"final": 7.0})
    print("not closed")
"""


def counted(server: Server, key: str) -> list[int]:
    return [step for step, _ in server.points(key, kind="node")]


def test_an_untouched_script_has_its_tensorboard_metrics(shop: Shop, server: Server) -> None:
    """`encore run`: points with the file's step and time, hparams in config, also when the script closes no writer."""
    (shop.work / "train.py").write_text("\n".join(line[4:] for line in SCRIPT.splitlines()))
    done = shop.encore("run", "--", sys.executable, "train.py", server=server)
    assert done.returncode == 0, done.stderr
    assert until(lambda: not shop.senders())
    assert counted(server, "loss/train") == list(range(300))
    assert [key for key in ("both_a/both", "both_b/both", "final") if server.points(key, kind="node")] == [
        "both_a/both",
        "both_b/both",
        "final",
    ]
    assert {"lr": 0.25} in [doc["value"] for doc in server.docs("config")]
    (batches,) = [server.batches[name] for name, about in server.writers.items() if about.get("follows")]
    times = [time for batch in batches for frame in batch["frames"] for time in frame["times"]]
    assert 1700000000_000000 + 299_000000 in times
    assert not server.docs("followed")


def test_sync_tensorboard_follows_in_a_script_with_our_line_and_counts_each_point_once(shop: Shop, server: Server) -> None:
    """init(sync_tensorboard=True), several files, one of a forked child; without it nothing is followed."""
    program = """
        import os, sys, sdk, tensorboardX
        sdk.init(project="p", sync_tensorboard=len(sys.argv) > 1)
        one, two = tensorboardX.SummaryWriter("logs"), tensorboardX.SummaryWriter("logs/eval")
        for step in range(50):
            one.add_scalar("x", step, step); two.add_scalar("x", -step, step)
        if os.fork() == 0:
            child = tensorboardX.SummaryWriter("logs/child"); child.add_scalar("x", 9.0, 1); child.close(); os._exit(0)
        os.wait()
        sdk.log({"own": 1.0}, step=0)
        sdk.finish()
    """
    assert shop.run(program, server).returncode == 0
    assert not [about for about in server.writers.values() if about.get("follows")]
    server.writers.clear()
    done = shop.run(program, server, arguments=("follow",))
    assert done.returncode == 0, done.stderr
    assert until(lambda: not shop.senders())
    assert counted(server, "x") == list(range(50))
    assert sorted(counted(server, "eval/x")) == list(range(50))
    assert counted(server, "child/x") == [1]
    assert server.points("own") == [(0, 1.0)]
    assert {"tensorboard": True} in [doc["value"] for doc in server.docs("recipe") if doc["section"] == "command"]


def test_each_point_arrives_once_however_often_the_sender_is_killed(shop: Shop, server: Server) -> None:
    """SIGKILL of the sender at random instants while the file grows: all values, none twice, in order."""
    program = """
        import time, sdk
        from torch.utils.tensorboard import SummaryWriter
        run = sdk.init(project="p", sync_tensorboard=True)
        writers = [SummaryWriter(f"runs/{n}") for n in "ab"]
        from sdk import _sender
        for step in range(400):
            for writer in writers: writer.add_scalar("x", step * 0.5, step); writer.flush()
            if step % 20 == 0: time.sleep(0.15); _sender.start(run.writer.folder.parent, run.settings)
        sdk.finish()
    """
    chance = random.Random(11)
    process = shop.start(program, server)
    kills = 0
    while process.poll() is None and kills < 8:
        pids = until(lambda: shop.senders() or process.poll() is not None, 120)
        if not isinstance(pids, list):
            break
        time.sleep(chance.uniform(0.05, 0.5))  # the instant of the kill, not a wait for anything
        for pid in pids:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
                kills += 1
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert kills >= 3
    (folder,) = {path.parent for path in shop.writers()}
    shop.encore("sync", str(folder), server=server)
    for key in ("x", "b/x"):
        assert until(lambda key=key: len(counted(server, key)) >= 400, 120)
        assert counted(server, key) == list(range(400)), key
        assert [value for _, value in server.points(key, kind="node")] == [step * 0.5 for step in range(400)]
    following = [json.loads(path.read_text()) for path in folder.glob("*/writer.json")]
    assert sum(1 for about in following if about.get("follows")) > 1, "the sender was never killed while it followed"


def test_what_is_left_out_of_a_file_is_said(shop: Shop, server: Server) -> None:
    """A torn tail and values that are no scalars are named in an event of the run."""
    program = """
        import sdk, tensorboardX, glob
        sdk.init(project="p", sync_tensorboard=True)
        writer = tensorboardX.SummaryWriter("logs")
        writer.add_text("t", "x"); writer.add_scalar("x", 1.0, 0); writer.close()
        with open(glob.glob("logs/*")[0], "ab") as file: file.write(b"12345678901234567")
        sdk.finish()
    """
    assert shop.run(program, server).returncode == 0
    assert until(lambda: not shop.senders())
    (note,) = server.docs("event", "note")
    assert note["data"]["not_taken"] == {"text": 1}
    assert "logs/events.out.tfevents" in note["data"]["files"][0]
    assert counted(server, "x") == [0]


def test_of_a_program_that_is_killed_all_that_it_had_written_arrives(shop: Shop, server: Server) -> None:
    """What is in the file when the process is gone is read to its end."""
    program = """
        import os, sdk, tensorboardX
        sdk.init(project="p", sync_tensorboard=True)
        writer = tensorboardX.SummaryWriter("logs")
        for step in range(2000): writer.add_scalar("x", step, step)
        writer.close()
    """
    done = shop.run(program.rstrip() + "\n        os.kill(os.getpid(), 9)\n", server)
    assert done.returncode == -9
    assert until(lambda: len(counted(server, "x")) >= 2000 and not shop.senders()), done.stderr
    assert counted(server, "x") == list(range(2000))


def test_each_rank_has_the_points_that_it_wrote(shop: Shop, server: Server) -> None:
    """Two ranks, one sender: a follower each, with the rank of its trainer."""
    program = """
        import os, sdk, tensorboardX
        run = sdk.init(project="p", sync_tensorboard=True)
        rank = int(os.environ["RANK"])
        writer = tensorboardX.SummaryWriter(f"logs{rank}")
        for step in range(20): writer.add_scalar("x", rank * 100 + step, step)
        writer.close()
    """
    launch = {"TORCHELASTIC_RUN_ID": "job-9", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    ranks = [shop.start(program, server, **launch, RANK=str(rank), LOCAL_RANK=str(rank), GROUP_RANK="0") for rank in (0, 1)]
    for process in ranks:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    assert until(lambda: not shop.senders())
    assert len({about["run"]["id"] for about in server.writers.values()}) == 1
    for rank in (0, 1):
        assert server.points("x", kind="node", rank=rank) == [(step, rank * 100 + step) for step in range(20)]


def test_a_sender_killed_at_any_point_of_its_round_leaves_what_the_next_one_needs(tmp_path: Path) -> None:
    """Followers that die before or after they note where they stand, or while they pass over what is logged: no loss, no double."""
    run_folder = tmp_path / "journal" / new_id()
    about = {"writer": new_id(), "run": {"id": run_folder.name, "project": "p"}, "rank": 3, "host": _process.host(), "pid": os.getpid()}
    trainer = run_folder / about["writer"]
    trainer.mkdir(parents=True)
    writers = [tensorboardX.SummaryWriter(str(tmp_path / "logs" / name)) for name in ("a", "b")]
    chance, given = random.Random(2), 0
    for turn in range(20):
        for _ in range(chance.randrange(1, 30)):
            for writer in writers:
                writer.add_scalar("x", float(given), given)
            given += 1
        for writer in writers:
            writer.flush()
        one = Follower(trainer, about)
        for path in files_in(tmp_path / "logs"):
            one.add(path)
        # Dies in the middle of a file, behind one, before or after the note; or goes round a few times first.
        for _ in range(chance.randrange(1, 4)):
            for path, file in list(one.files.items()):
                one._read(path, file, 0.0 if chance.random() < 0.3 else time.monotonic() + 60)
            if chance.random() < 0.5:
                one._note()
        assert not one.closed, turn
    for writer in writers:
        writer.close()  # its flush() leaves the last ones to a thread
    last = Follower(trainer, about)
    while not last.closed:
        last.step(ended=True)
    found: dict[str, list[tuple[int, float]]] = {}
    for told in run_folder.glob("*/writer.json"):
        if json.loads(told.read_text()).get("follows"):
            reader = Reader(told.parent)
            while (chunk := reader.read(settled=True)) is not None:
                for _, key, step, _, value in _wire.points(_wire.decode(_wire.encode(run_folder.name, told.parent.name, chunk)[0])):
                    found.setdefault(key, []).append((step, value))
    assert {key: sorted(points) for key, points in found.items()} == {
        key: [(step, float(step)) for step in range(given)] for key in ("x", "b/x")
    }
    ended = [folder for folder in run_folder.iterdir() if (folder / "followed.json").exists()]
    assert all(any(doc.get("name") == "finish" for _, _, _, doc in docs_of(folder)) for folder in ended), (
        "a journal was left without an end"
    )


def docs_of(folder: Path) -> list:
    reader, found = Reader(folder), []
    while (chunk := reader.read(settled=True)) is not None:
        found += chunk.docs
    return found
