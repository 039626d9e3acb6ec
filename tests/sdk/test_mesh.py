"""Where a rank stands: given, from the environment, from a mesh, or found; said once, as an event."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
from helpers import Shop, until
from server import Server

import sdk
from sdk import _mesh
from sdk.errors import UsageError


def test_the_environment_says_it_and_what_cannot_be_read_is_said() -> None:
    assert _mesh.from_environment({"ENCORE_COORDINATES": " dp=0, tp=1 ,"}) == {"dp": 0, "tp": 1}
    assert _mesh.from_environment({}) == {}
    for text in ("dp", "dp=x", "dp=-1", "=3", "dp=1;tp=2", "d p=1"):
        with pytest.raises(UsageError):
            _mesh.from_environment({"ENCORE_COORDINATES": text})


@pytest.mark.parametrize("axes", [{"dp": -1}, {"dp": 1.5}, {"dp": True}, {"dp": None}, {"dp": 2**31}, {f"a{n}": 0 for n in range(17)}])
def test_what_is_no_coordinate_is_refused(axes) -> None:
    with pytest.raises(UsageError):
        _mesh.checked(axes)


@pytest.mark.parametrize("over", [[], 7, [""], ["tp", 3], ["a b"], {"tp": 1}])
def test_define_refuses_axes_that_are_no_names(over) -> None:
    with pytest.raises(UsageError):
        sdk.define("grad_norm", reduce="norm", over=over)


def test_define_takes_one_name_or_many_and_refuses_unknown_reductions() -> None:
    assert _mesh.axes("tp") == ["tp"]
    assert _mesh.axes(("pp", "tp")) == ["pp", "tp"]
    with pytest.raises(UsageError, match="norm"):
        sdk.define("x", reduce="rms")


def test_coordinates_arrive_once_and_definitions_with_them(shop: Shop, server: Server) -> None:
    """Given twice alike they are one event; a program's own word is laid over the environment's; a bad variable costs nothing."""
    done = shop.run(
        """
        import sdk
        sdk.init(project="p")
        sdk.coordinates(tp=1)
        sdk.coordinates(tp=1)
        sdk.define("grad_norm", reduce="norm", over=["tp", "pp"], same=False)
        sdk.log({"grad_norm": 1.0}, step=0)
        sdk.finish()
        """,
        server,
        ENCORE_COORDINATES="dp=3,tp=0",
    )
    assert done.returncode == 0, done.stderr
    assert [doc["data"] for doc in server.docs("event", "coordinates")] == [{"dp": 3, "tp": 0}, {"dp": 3, "tp": 1}]
    assert server.docs("define") == [{"type": "define", "pattern": "grad_norm", "reduce": "norm", "over": ["tp", "pp"], "same": False}]
    bad = shop.run("import sdk; sdk.init(project='p'); sdk.finish()", server, ENCORE_COORDINATES="dp")
    assert bad.returncode == 0
    assert "ENCORE_COORDINATES" in bad.stderr
    assert len(server.docs("event", "coordinates")) == 2


# The process groups are real torch code; the backend is torch's own "fake", which lets one process be rank 13 of 16 without the others.
FAKE = """
import sys, torch, torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore
dist.init_process_group("fake", rank=13, world_size=16, store=FakeStore())
mesh = dist.device_mesh.init_device_mesh("cpu", (2, 2, 4), mesh_dim_names=("pp", "dp", "tp"))
mesh["dp", "tp"]._flatten("dp_tp")
from sdk import _mesh
print(_mesh.of_mesh(mesh), _mesh.search())
"""


def test_a_device_mesh_is_read_and_found_by_itself_without_its_flattened_dimensions() -> None:
    done = subprocess.run([sys.executable, "-c", FAKE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    where = "{'pp': 1, 'dp': 1, 'tp': 1}"
    assert done.stdout.strip() == f"{where} {where}"


def test_what_is_no_mesh_with_names_is_refused() -> None:
    with pytest.raises(UsageError, match="mesh_dim_names"):
        _mesh.of_mesh(object())


def test_megatrons_groups_are_asked_once_they_are_set_up(tmp_path, monkeypatch) -> None:
    """A stand-in at Megatron's door (its names, and its refusal before it is set up): the package is no dependency of the tests."""
    package = tmp_path / "megatron" / "core"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "parallel_state.py").write_text(
        textwrap.dedent("""
        ready = False
        def model_parallel_is_initialized(): return ready
        def get_data_parallel_rank(): return 3
        def get_tensor_model_parallel_rank(): return 1
        def get_pipeline_model_parallel_rank(): return 2
        def get_context_parallel_rank(): raise AssertionError("context parallel group is not initialized")
        """)
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert _mesh.search() == {}
    from megatron.core import parallel_state

    try:
        assert _mesh.search() == {}
        parallel_state.ready = True
        assert _mesh.search() == {"dp": 3, "tp": 1, "pp": 2}
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "megatron"]:
            del sys.modules[name]


def test_a_mesh_that_is_built_after_init_is_found_while_training_goes_on(shop: Shop, server: Server) -> None:
    done = shop.run(
        """
        import os, time
        os.environ.update(RANK="1", LOCAL_RANK="1", WORLD_SIZE="4", MASTER_ADDR="127.0.0.1", MASTER_PORT="1")
        import sdk
        run = sdk.init(project="p")
        import torch.distributed as dist
        from torch.testing._internal.distributed.fake_pg import FakeStore
        dist.init_process_group("fake", rank=1, world_size=4, store=FakeStore())
        mesh = dist.device_mesh.init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
        deadline = time.monotonic() + 90
        while not run.coordinates and time.monotonic() < deadline:
            time.sleep(0.1)
        sdk.finish()
        """,
        server,
        ENCORE_FINISH_SECONDS="30",
    )
    assert done.returncode == 0, done.stderr
    assert until(lambda: server.docs("event", "coordinates"), 120)[0]["data"] == {"dp": 0, "tp": 1}
