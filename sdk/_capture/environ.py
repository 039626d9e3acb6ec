"""Environment variables that belong to a recipe: those that steer numbers, those that steer the program, none of the rest."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

from .. import _secrets

# Each steers values or speed of a training by itself.
_PREFIXES = (
    "CUBLAS_", "CUDA_", "CUDNN_", "NCCL_", "GLOO_", "UCX_", "OMP_", "KMP_", "GOMP_", "MKL_", "OPENBLAS_", "BLIS_", "VECLIB_", "NUMEXPR_",
    "NUMBA_", "TORCH", "PYTORCH_", "TF_", "XLA_", "JAX_", "KERAS_", "HF_", "TRANSFORMERS_", "DIFFUSERS_", "ACCELERATE_", "DEEPSPEED_",
    "FSDP_", "HOROVOD_", "TRITON_", "NVIDIA_", "NVTE_", "HIP_", "ROCR_", "HSA_", "MIOPEN_", "PYTHON", "LC_", "SLURM_", "OMPI_COMM_WORLD_",
    "PL_", "LIGHTNING_", "FLASH_ATTENTION_", "VLLM_", "RAY_", "OPENCV_", "ATEN_", "DNNL_", "ONEDNN_", "IPEX_",
)  # fmt: skip
_NAMES = frozenset(
    """
    HOME LANG LANGUAGE TZ TOKENIZERS_PARALLELISM WORLD_SIZE RANK LOCAL_RANK LOCAL_WORLD_SIZE GROUP_RANK GROUP_WORLD_SIZE NODE_RANK
    MASTER_ADDR MASTER_PORT LD_PRELOAD LD_LIBRARY_PATH DYLD_LIBRARY_PATH MALLOC_ARENA_MAX MALLOC_CONF GLIBC_TUNABLES
    CONDA_DEFAULT_ENV CONDA_PREFIX VIRTUAL_ENV SEED GLOBAL_SEED PL_GLOBAL_SEED XDG_CACHE_HOME TMPDIR MPLBACKEND SDL_VIDEODRIVER
    MUJOCO_GL DISPLAY CXX CC CFLAGS CXXFLAGS MAX_JOBS
    """.split()  # noqa: SIM905 - a list of words reads best as words
)
# Set by a scheduler for one job alone, or by the shell; a rerun has its own.
_NOT = re.compile(
    r"^(PYTHONSTARTUP|PYTHONHISTORY|SLURM_(JWT|JOB_USER|JOB_UID|CONF|SUBMIT_HOST)|HF_TOKEN_PATH|PYTHON_(INSTALL|VERSION|PIP|SETUPTOOLS|GET_PIP|SHA).*|TORCHELASTIC_ERROR_FILE)"
)
IMPORTANT = (
    "PYTHONHASHSEED", "CUBLAS_WORKSPACE_CONFIG", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES", "NVIDIA_TF32_OVERRIDE", "TOKENIZERS_PARALLELISM", "PYTHONPATH",
)  # fmt: skip

# Names that a program asks for by itself: os.environ["DATA_DIR"], os.environ.get("DATA_DIR"), os.getenv("DATA_DIR").
_ASKED = re.compile(r"(?:environ(?:b)?(?:\.get|\.setdefault|\.pop)?\s*[\[(]|getenv\s*\()\s*['\"]([A-Za-z_][A-Za-z0-9_]{0,100})['\"]")
_NEVER = frozenset(
    """
    USER LOGNAME PATH PWD OLDPWD SHELL SHLVL TERM HOSTNAME MAIL EDITOR SSH_AUTH_SOCK SSH_CONNECTION SSH_CLIENT SSH_TTY _
    """.split()  # noqa: SIM905 - a list of words reads best as words
)


def asked_for(text: str) -> set[str]:
    """Names of the environment variables that a program's text asks for."""
    return {name for name in _ASKED.findall(text) if name not in _NEVER and not name.startswith("ENCORE_")}


def matters(name: str) -> bool:
    return (name in _NAMES or name.startswith(_PREFIXES)) and not _NOT.match(name)


def facts(environ: Mapping[str, str] | None = None, *, asked: Iterable[str] = ()) -> dict[str, Any]:
    """`env`, `env_masked`, `unset` and `pythonpath` of the command section. `asked`: names that the program's own text asks for."""
    environ = os.environ if environ is None else environ
    _secrets.mask_mapping(environ)  # the values of all secret-looking names are remembered, so the console masks them too
    wanted = set(asked)
    kept = {name: value for name, value in environ.items() if matters(name) or name in wanted}
    masked, names = _secrets.mask_mapping(kept)
    return {
        "env": dict(sorted(masked.items())),
        "env_masked": names,
        "unset": sorted(name for name in {*IMPORTANT, *wanted} if name not in environ),
        "pythonpath": [each for each in environ.get("PYTHONPATH", "").split(os.pathsep) if each],
    }
