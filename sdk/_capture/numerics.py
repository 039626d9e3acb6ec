"""What steers the numbers: random states, determinism switches, precision, thread counts.

Libraries are looked up in sys.modules, never imported.
"""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Seeds people choose; with the values of options called "seed" these are tried against the state that is found.
_COMMON_SEEDS = (0, 1, 2, 3, 7, 10, 12, 42, 100, 123, 1234, 1337, 2020, 2021, 2022, 2023, 2024, 2025, 2026, 3407, 12345)
_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "BLIS_NUM_THREADS",
)
# What sdk.seed() was called with.
_chosen: dict[str, int] = {}


def _module(name: str) -> Any:
    """A module only if the program has loaded it, whole."""
    module = sys.modules.get(name)
    spec = getattr(module, "__spec__", None)
    return None if module is None or getattr(spec, "_initializing", False) else module


def _numpy_random() -> Any:
    """NumPy's random module if NumPy is loaded. New versions load that part at its first use: asking for it now fixes the state that a
    program will draw from, which can then be captured and put back."""
    numpy = _module("numpy")
    return None if numpy is None else _quiet(lambda: numpy.random)


def _quiet(look: Callable[[], Any]) -> Any:
    """A fact that a version of a library may not have: None then."""
    try:
        return look()
    except Exception:
        return None


def python_state() -> bytes:
    version, internal, gauss = random.getstate()
    return json.dumps([version, list(internal), gauss]).encode()


def numpy_state() -> bytes | None:
    numpy_random = _numpy_random()
    if numpy_random is None:
        return None
    state = numpy_random.get_state(legacy=False)
    return json.dumps(_plain(state)).encode()


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return value.tolist() if hasattr(value, "tolist") else value


def torch_state() -> bytes | None:
    torch = _module("torch")
    return None if torch is None else _tensor_bytes(torch.get_rng_state())


def torch_cuda_states() -> list[bytes]:
    torch = _module("torch")
    if torch is None or not _quiet(lambda: torch.cuda.is_initialized()):
        return []
    return [_tensor_bytes(state) for state in torch.cuda.get_rng_state_all()]


def _tensor_bytes(tensor: Any) -> bytes:
    return bytes(tensor.cpu().tolist())


def rng(put_blob: Callable[[bytes], str]) -> dict[str, Any]:
    """Digests of this process's random states; None where the library is not loaded."""
    found: dict[str, Any] = {"python": put_blob(python_state()), "numpy": None, "torch": None, "torch_cuda": []}
    numpy, torch = _quiet(numpy_state), _quiet(torch_state)
    found["numpy"] = put_blob(numpy) if numpy is not None else None
    found["torch"] = put_blob(torch) if torch is not None else None
    found["torch_cuda"] = [put_blob(state) for state in _quiet(torch_cuda_states) or []]
    return found


def restore(rerun: dict[str, Any], rank: int) -> list[str]:
    """Put the random states of `rank` back as the rerun file says.

    Returns what was put back (`["python", "torch"]`); an unreadable state raises.
    """
    files = (rerun.get("rng") or {}).get(str(rank)) or {}
    done = []
    if files.get("python"):
        version, internal, gauss = json.loads(Path(files["python"]).read_bytes())
        random.setstate((version, tuple(internal), gauss))
        done.append("python")
    numpy_random = _numpy_random()
    if files.get("numpy") and numpy_random is not None:
        state = json.loads(Path(files["numpy"]).read_bytes())
        array = _module("numpy").array
        state["state"] = {
            key: array(value, dtype="uint32" if state["bit_generator"] == "MT19937" else "uint64") if isinstance(value, list) else value
            for key, value in state["state"].items()
        }
        numpy_random.set_state(state)
        done.append("numpy")
    torch = _module("torch")
    if torch is not None:
        if files.get("torch"):
            torch.set_rng_state(_as_tensor(torch, files["torch"]))
            done.append("torch")
        for index, file in enumerate(files.get("torch_cuda") or []):
            if torch.cuda.is_available() and index < torch.cuda.device_count():
                torch.cuda.set_rng_state(_as_tensor(torch, file), index)
                done.append(f"torch_cuda:{index}")
    return done


def _as_tensor(torch: Any, path: str) -> Any:
    return torch.tensor(list(Path(path).read_bytes()), dtype=torch.uint8)


def seed(value: int) -> int:
    """Seed random, NumPy's global generator, torch (all devices) and TensorFlow, as far as they are loaded. Returns the seed."""
    value = int(value)
    random.seed(value)
    _chosen["random"] = value
    numpy_random = _numpy_random()
    if numpy_random is not None:
        numpy_random.seed(value % 2**32)
        _chosen["numpy"] = value % 2**32
    torch = _module("torch")
    if torch is not None:
        torch.manual_seed(value)
        _chosen["torch"] = value
    tensorflow = _module("tensorflow")
    if tensorflow is not None and hasattr(tensorflow, "random"):
        tensorflow.random.set_seed(value)
        _chosen["tensorflow"] = value
    return value


def seeds(candidates: list[int]) -> dict[str, Any]:
    """Seeds as far as they can be known: what `sdk.seed` set, torch's own record, and seeds whose fresh state equals the one found."""
    found: dict[str, Any] = {}
    tried = [*dict.fromkeys([*candidates, *_COMMON_SEEDS])][:48]
    state = random.getstate()
    generator = random.Random()  # noqa: S311 - compared with the program's own generator
    for each in tried:
        generator.seed(each)
        if generator.getstate() == state:
            found["random"] = each
            break
    numpy_random = _numpy_random()
    if numpy_random is not None:
        found.update(_quiet(lambda: _numpy_seed(numpy_random, tried)) or {})
    torch = _module("torch")
    if torch is not None:
        initial = _quiet(torch.initial_seed)
        if initial is not None:
            found["torch"] = initial
            found["torch_is_default"] = initial == 67280421310721  # what torch starts from when nobody seeds it
    return {**found, **_chosen}


def _numpy_seed(numpy_random: Any, tried: list[int]) -> dict[str, Any]:
    state = numpy_random.get_state(legacy=False)
    if state.get("bit_generator") != "MT19937":
        return {}
    key = state["state"]["key"]
    for each in tried:
        if 0 <= each < 2**32:
            fresh = numpy_random.RandomState(each).get_state(legacy=False)["state"]
            if fresh["pos"] == state["state"]["pos"] and (fresh["key"] == key).all():
                return {"numpy": each}
    return {}


def determinism() -> dict[str, Any]:
    """Switches that decide whether the same program gives the same numbers."""
    found: dict[str, Any] = {
        "hash_randomization": bool(sys.flags.hash_randomization),
        "PYTHONHASHSEED": os.environ.get("PYTHONHASHSEED"),
        "CUBLAS_WORKSPACE_CONFIG": os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
    }
    torch = _module("torch")
    if torch is not None:
        looks: dict[str, Callable[[], Any]] = {
            "torch_deterministic_algorithms": lambda: torch.are_deterministic_algorithms_enabled(),
            "torch_deterministic_warn_only": lambda: torch.is_deterministic_algorithms_warn_only_enabled(),
            "torch_fill_uninitialized_memory": lambda: torch.utils.deterministic.fill_uninitialized_memory,
            "cudnn_enabled": lambda: torch.backends.cudnn.enabled,
            "cudnn_deterministic": lambda: torch.backends.cudnn.deterministic,
            "cudnn_benchmark": lambda: torch.backends.cudnn.benchmark,
            "cudnn_allow_tf32": lambda: torch.backends.cudnn.allow_tf32,
            "matmul_allow_tf32": lambda: torch.backends.cuda.matmul.allow_tf32,
            "matmul_allow_fp16_reduced": lambda: torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction,
            "matmul_allow_bf16_reduced": lambda: torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction,
            "float32_matmul_precision": lambda: torch.get_float32_matmul_precision(),
            "mkldnn_enabled": lambda: torch.backends.mkldnn.enabled,
            "flash_sdp": lambda: torch.backends.cuda.flash_sdp_enabled(),
        }
        found.update({name: _quiet(look) for name, look in looks.items()})
    jax = _module("jax")
    if jax is not None:
        found["jax_enable_x64"] = _quiet(lambda: bool(jax.config.jax_enable_x64))
        found["jax_default_matmul_precision"] = _quiet(lambda: jax.config.jax_default_matmul_precision)
        found["jax_default_prng_impl"] = _quiet(lambda: jax.config.jax_default_prng_impl)
    return found


def dtypes() -> dict[str, Any]:
    found: dict[str, Any] = {}
    torch = _module("torch")
    if torch is not None:
        found["torch_default"] = _quiet(lambda: str(torch.get_default_dtype()).removeprefix("torch."))
        found["torch_default_device"] = _quiet(lambda: str(torch.get_default_device()))
        found["autocast_cpu"] = _quiet(lambda: torch.is_autocast_enabled("cpu"))
        found["autocast_cuda"] = _quiet(lambda: torch.is_autocast_enabled("cuda"))
    keras = _module("keras")
    if keras is not None:
        found["keras_floatx"] = _quiet(lambda: keras.config.floatx())
    return found


def threads() -> dict[str, Any]:
    """Thread counts: on a CPU they decide the order of sums, so they are an input."""
    affinity = _quiet(lambda: sorted(os.sched_getaffinity(0)))
    torch = _module("torch")
    return {
        **{name: os.environ.get(name) for name in _THREAD_VARIABLES},
        "torch_intra": _quiet(torch.get_num_threads) if torch is not None else None,
        "torch_inter": _quiet(torch.get_num_interop_threads) if torch is not None else None,
        "cores": os.cpu_count(),
        "affinity": affinity,
        "usable": len(affinity) if affinity else os.cpu_count(),
        "cgroup_cpus": _quiet(_cgroup_cpus),
    }


def _cgroup_cpus() -> float | None:
    """The CPU share a container may use, in cores; None without a limit."""
    text = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    return None if text[0] == "max" else round(int(text[0]) / int(text[1]), 3)


def libraries() -> dict[str, Any]:
    """CUDA, cuDNN and NCCL as the loaded torch has them (a part of the hardware section that only the trainer knows)."""
    torch = _module("torch")
    if torch is None:
        return {}
    cuda = _quiet(lambda: torch.version.cuda)
    return {
        "cuda": cuda,
        "hip": _quiet(lambda: torch.version.hip),
        # Asking cuDNN loads it, so only where the program has brought CUDA up already.
        "cudnn": _quiet(torch.backends.cudnn.version) if cuda and _quiet(torch.cuda.is_initialized) else None,
        "nccl": _quiet(lambda: ".".join(map(str, torch.cuda.nccl.version()))) if cuda else None,
        "torch_cuda_available": _quiet(torch.cuda.is_available) if cuda and _quiet(torch.cuda.is_initialized) else None,
        "cpu_capability": _quiet(torch.backends.cpu.get_cpu_capability),
    }


def loaded() -> list[str]:
    return [name for name in ("numpy", "torch", "tensorflow", "jax") if _module(name) is not None]
