"""Where this rank stands among the others: dp, tp, pp, cp, ep and whatever else a program splits its work by.

Given (`sdk.coordinates`, ENCORE_COORDINATES), read off a DeviceMesh, or found: torch.distributed describes each process group, and a
DeviceMesh names its groups by their dimension; Megatron answers itself. Nothing is imported; modules that are there are asked.
Said once a writer, as an event `coordinates`, and again only if it changes.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .errors import UsageError

if TYPE_CHECKING:
    from ._run import Run

VARIABLE = "ENCORE_COORDINATES"
LOOKS_SECONDS = (1.0, 4.0, 15.0, 40.0)  # after init, each after the one before: meshes are built once models are
MOST_AXES = 16
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}\Z")
_MEGATRON = {
    "dp": "get_data_parallel_rank",
    "tp": "get_tensor_model_parallel_rank",
    "pp": "get_pipeline_model_parallel_rank",
    "cp": "get_context_parallel_rank",
    "ep": "get_expert_model_parallel_rank",
}


def begin(run: Run, mesh: Any = None) -> None:
    """At init: what is known now, and a few quiet looks later if there are other ranks. Never raises."""
    if run.writer is None:
        return
    try:
        found = from_environment(os.environ)
        if mesh is not None:
            found = {**of_mesh(mesh), **found}
        told = tell(run, found or search())
        if not told and run.launch.world_size > 1:
            threading.Thread(target=_look_on, args=(run, threading.Event()), name="encore-mesh", daemon=True).start()
    except UsageError as error:
        run.writer.say(str(error))
    except Exception as error:
        run.writer.say(f"coordinates: {type(error).__name__}: {error} (training goes on)")


def _look_on(run: Run, never: threading.Event) -> None:
    for seconds in LOOKS_SECONDS:
        never.wait(seconds)
        if run.finished or run.coordinates:
            return
        with contextlib.suppress(Exception):
            if tell(run, search()):
                return


def tell(run: Run, found: Mapping[str, int]) -> bool:
    """Writes the coordinates down unless that was done. True if any are known."""
    if not found:
        return False
    if run.coordinates != found:
        run.coordinates = dict(found)
        run.event("coordinates", found)
    return True


def given(run: Run, axes: Mapping[str, Any]) -> None:
    """The program's own word: laid over what was found before."""
    tell(run, {**run.coordinates, **checked(axes)})


def from_mesh(run: Run, mesh: Any) -> None:
    tell(run, {**run.coordinates, **of_mesh(mesh)})


def axes(over: Any) -> list[str]:
    """`over` of sdk.define as a list of names. Raises UsageError."""
    names = [over] if isinstance(over, str) else list(over) if isinstance(over, (list, tuple, set, frozenset)) else None
    if names is None or not names or not all(isinstance(name, str) and _NAME.match(name) for name in names):
        raise UsageError(f'over is a list of coordinate axes such as ["tp", "pp"], not {over!r}')
    return sorted(names) if isinstance(over, (set, frozenset)) else names


def checked(found: Mapping[str, Any]) -> dict[str, int]:
    """Raises UsageError with what is wrong."""
    if len(found) > MOST_AXES:
        raise UsageError(f"a rank has at most {MOST_AXES} coordinates, not {len(found)}")
    kept = {}
    for name, value in found.items():
        try:
            number = value.__index__()
        except AttributeError:
            number = None
        if not _NAME.match(str(name)) or number is None or isinstance(value, bool) or not 0 <= number < 2**31:
            raise UsageError(f"a coordinate is a name and a number from 0 on, such as dp=0, not {name}={value!r}")
        kept[str(name)] = int(number)
    return kept


def from_environment(environ: Mapping[str, str]) -> dict[str, int]:
    """ENCORE_COORDINATES="dp=0,tp=1"; raises UsageError for what cannot be read."""
    text = environ.get(VARIABLE, "").strip()
    if not text:
        return {}
    found: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, number = (piece.strip() for piece in part.partition("="))
        if not equals or not number.isdigit():
            raise UsageError(f'{VARIABLE} is like "dp=0,tp=1", not {text!r}; it is passed over')
        found[name] = int(number)
    return checked(found)


def of_mesh(mesh: Any) -> dict[str, int]:
    """Of a DeviceMesh; {} if this rank is none of its members. Raises UsageError for what is no mesh with names."""
    names, where = getattr(mesh, "mesh_dim_names", None), getattr(mesh, "get_coordinate", None)
    if not names or where is None:
        raise UsageError("mesh is a torch DeviceMesh with mesh_dim_names; for anything else use sdk.coordinates(dp=…, tp=…)")
    at = where()
    return {} if at is None else checked(dict(zip(names, at, strict=True)))


def search() -> dict[str, int]:
    """What the loaded modules know; {} as long as nothing is set up."""
    for look in (_megatron, _groups):
        with contextlib.suppress(Exception):
            if found := look():
                return checked(found)
    return {}


def _megatron() -> dict[str, int]:
    state = sys.modules.get("megatron.core.parallel_state") or sys.modules.get("megatron.mpu")
    if state is None or not state.model_parallel_is_initialized():
        return {}
    found = {}
    for name, function in _MEGATRON.items():
        with contextlib.suppress(Exception):  # older versions know fewer axes, and some assert that theirs is set up
            found[name] = int(getattr(state, function)())
    return found


def _groups() -> dict[str, int]:
    """From the process groups that DeviceMesh made for its dimensions.

    A flattened dimension (dp_cp of dp and cp) is left out: its group holds those of its parts, and it says nothing new.
    """
    c10d = sys.modules.get("torch.distributed.distributed_c10d")
    if c10d is None or not c10d.is_initialized():
        return {}
    me = c10d.get_rank()
    found: dict[str, dict[int, int]] = {}
    for group, ranks in list(c10d._world.pg_group_ranks.items()):
        described = str(getattr(group, "group_desc", "") or "")
        name = described.removeprefix("mesh_")
        if name == described or name in found or name == "default" or name.startswith("dim_") or me not in ranks or not _NAME.match(name):
            continue
        found[name] = dict(ranks)
    kept: dict[str, int] = {}
    for name, ranks in found.items():
        holds_another = any(1 < len(other) < len(ranks) and set(other) <= set(ranks) for other in found.values())
        has_a_twin = any(len(ranks) > 1 and set(ranks) == set(found[at]) for at in kept)
        if not holds_another and not has_a_twin:
            kept[name] = ranks[me]
    return kept
