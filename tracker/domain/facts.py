"""The facts of a recipe by stable names, and what differs between two recipes.

Names: ``config.lr``, ``command.argv``, ``env.OMP_NUM_THREADS``, ``source.train.py``, ``package.numpy``, ``python.version``,
``data./path``, ``threads.torch_intra``, ``determinism.…``, ``seeds.…``, ``rng.0.torch``, ``hardware.cpu.model``. Each is either
known to affect numerics or probably harmless. What must differ between a run and its rerun (the job's folder, process ids,
ports, times, the journal's variables) is no fact.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


def _set(names: str) -> frozenset[str]:
    return frozenset(names.split())


NUMERIC_PACKAGES = _set(
    """
    numpy scipy pandas polars pyarrow scikit-learn torch torchvision torchaudio torchdata torchtext tensorflow tensorflow-cpu
    keras jax jaxlib flax optax equinox chex haiku dm-haiku xgboost lightgbm catboost numba numexpr cupy cupy-cuda11x cupy-cuda12x
    triton pytorch-triton apex transformers tokenizers accelerate datasets diffusers peft trl bitsandbytes deepspeed flash-attn
    xformers timm lightning pytorch-lightning torchmetrics fairscale megatron-core einops sentencepiece tiktoken nltk spacy gensim
    opencv-python opencv-python-headless pillow scikit-image albumentations imageio librosa soundfile torchaudio onnx onnxruntime
    onnxruntime-gpu openvino intel-extension-for-pytorch mkl mkl-service intel-openmp openblas nvidia-cudnn nvidia-cublas
    statsmodels sympy optuna ray gymnasium gym stable-baselines3 mujoco horovod mpi4py webdataset h5py lmdb faiss-cpu faiss-gpu
    hydra-core omegaconf
    """
)
# The C libraries of CUDA, cuDNN and NCCL come as packages with these beginnings.
NUMERIC_PACKAGE_PREFIXES = ("nvidia-cu", "nvidia-nccl", "torch", "tensorflow", "jax", "cupy", "mkl", "rocm")
_HARMLESS_PACKAGES = frozenset({"encore-tracker", "pip", "setuptools", "wheel", "uv"})

_NUMERIC_ENV = _set(
    """
    PYTHONHASHSEED CUBLAS_WORKSPACE_CONFIG OMP_NUM_THREADS OMP_DYNAMIC OPENBLAS_NUM_THREADS VECLIB_MAXIMUM_THREADS
    NUMEXPR_NUM_THREADS PYTORCH_CUDA_ALLOC_CONF PYTORCH_ENABLE_MPS_FALLBACK
    """
)
_NUMERIC_ENV_PREFIXES = tuple(
    _set(
        """
        CUBLAS_ CUDNN_ NVIDIA_TF32 NCCL_ MKL_ OMP_ OPENBLAS_ BLIS_ KMP_ GOMP_ TORCH_ PYTORCH_ TF_ XLA_ JAX_ ATEN_ DNNL_ ONEDNN_
        TRITON_ NUMBA_ ROCM_ HIP_ MIOPEN_ SEED
        """
    )
)
_IGNORED_ENV = _set(
    """
    PATH HOME PWD OLDPWD SHLVL _ USER LOGNAME SHELL TERM COLORTERM COLUMNS LINES LS_COLORS TMPDIR TMP TEMP HOSTNAME HOST DISPLAY
    EDITOR PAGER MAIL LANG LANGUAGE TZ VIRTUAL_ENV VIRTUAL_ENV_PROMPT CONDA_PREFIX CONDA_DEFAULT_ENV CONDA_SHLVL CONDA_EXE PS1
    PYTHONPATH PYTHONHOME PYTHONSTARTUP PYTHONUNBUFFERED PYTHONDONTWRITEBYTECODE PYTHONPYCACHEPREFIX PYTHONUSERBASE
    PYTHONNOUSERSITE LD_LIBRARY_PATH MASTER_ADDR MASTER_PORT RANK LOCAL_RANK GROUP_RANK ROLE_RANK ROLE_NAME GROUP_WORLD_SIZE
    ROLE_WORLD_SIZE LOCAL_WORLD_SIZE TORCHELASTIC_RUN_ID TORCHELASTIC_RESTART_COUNT TORCHELASTIC_ERROR_FILE
    TORCHELASTIC_MAX_RESTARTS TORCHELASTIC_USE_AGENT_STORE TORCH_NCCL_ASYNC_ERROR_HANDLING OMPI_COMM_WORLD_RANK PMI_RANK
    SLURM_PROCID SLURM_LOCALID SLURM_NODEID INVOCATION_ID JOURNAL_STREAM
    """
)
_IGNORED_ENV_PREFIXES = tuple(
    _set(
        """
        ENCORE_ TORCHELASTIC_ XDG_ SSH_ DBUS_ LC_ SLURM_ PMI OMPI_ PRTE_ GIT_ VSCODE_ JPY_ KUBERNETES_ SUDO_ UV_ PIP_
        """
    )
)

_HOME = {
    "env": "command",
    **dict.fromkeys(("package", "python", "platform", "container", "conda"), "environment"),
    **dict.fromkeys(("threads", "determinism", "dtypes", "seeds", "rng"), "numerics"),
}
"""The section of the recipe that a kind of fact comes from, where it has another name."""
_HARMLESS = re.compile(
    r"hardware\.(os|kernel|memory_bytes)$|sdk\.|source\.git\.|command\.(entry|launcher)\.(name|kind)$|python\.build$|environment\.files"
)


@dataclass(frozen=True)
class Difference:
    fact: str
    was: Any
    now: Any
    numeric: bool
    override: bool = False

    def document(self) -> dict[str, Any]:
        return {"fact": self.fact, "was": self.was, "is": self.now, "numeric": self.numeric}


def is_numeric(fact: str) -> bool:
    """Whether a fact of this name is known to affect numerics; the rest is probably harmless."""
    if fact.startswith("package."):
        return numeric_package(fact[8:])
    if fact.startswith("env."):
        return fact[4:] in _NUMERIC_ENV or fact[4:].startswith(_NUMERIC_ENV_PREFIXES)
    return not _HARMLESS.match(fact)


def numeric_package(name: str) -> bool:
    return name not in _HARMLESS_PACKAGES and (name in NUMERIC_PACKAGES or name.startswith(NUMERIC_PACKAGE_PREFIXES))


def canonical_package(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def facts(recipe: Mapping[str, Any], config: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Name → value of what a recipe and a config say, with the run's own folders written as ``{root}`` and ``{prefix}``."""
    recipe = {name: value for name, value in recipe.items() if isinstance(value, Mapping)}
    places = _places(recipe)
    found: dict[str, Any] = {}
    if config:
        _flatten("config", config, found)
    _command(recipe.get("command", {}), found)
    _environment(recipe.get("environment", {}), found)
    numerics = recipe.get("numerics", {})
    for name in ("threads", "determinism", "dtypes", "seeds", "rng"):
        _flatten(name, numerics.get(name) or {}, found)
    affinity = [name for name in found if name.startswith("threads.affinity")]
    if affinity:  # which cores is chance, how many is not
        whole = (numerics.get("threads") or {}).get("affinity")
        for name in affinity:
            del found[name]
        found["threads.affinity"] = len(whole) if isinstance(whole, list) else whole
    _hardware(recipe.get("hardware", {}), found)
    for kind, values in (recipe.get("hyper") or {}).items():
        if kind != "gaps":
            _flatten(f"hyper.{kind}", values, found)
    return {name: _relocate(value, places) for name, value in found.items() if value is not None and value != {} and value != []}


def differences(
    was: Mapping[str, Any],
    now: Mapping[str, Any],
    *,
    config: tuple[Mapping[str, Any], Mapping[str, Any]] = ({}, {}),
    files: tuple[Mapping[str, str], Mapping[str, str]] | None = None,
    overrides: Mapping[str, Any] | None = None,
    evidence: Mapping[str, Any] | None = None,
) -> list[Difference]:
    """What differs between the recipe that ``was`` recorded and that of the rerun ``now``, overrides first, then by name.

    ``files``: path → digest of both source snapshots, where known. The worker's ``evidence`` rules over the rerun's own capture for
    source and data, since the worker compared what it restored with what was recorded before the program could touch it."""
    overrides, evidence = overrides or {}, evidence or {}
    a, b = facts(was, config[0]), facts(now, config[1]) if now else {}
    chosen = overridden(overrides)
    found: dict[str, Difference] = {}
    # Without a capture of the rerun there is nothing to compare with: silence is not a difference.
    for name in sorted(a.keys() | b.keys()) if now else ():
        section = name.split(".")[0]
        if a.get(name) == b.get(name) or not _comparable(section, name, a, b, was, now):
            continue
        found[name] = Difference(name, a.get(name), b.get(name), is_numeric(name))
    for difference in (*_source(files, evidence, overrides), *_data(was, now, evidence)):
        found[difference.fact] = difference
    for difference in _told(evidence):
        found.setdefault(difference.fact, difference)
    for name, value in chosen.items():
        seen = found.get(name)
        before, after = (seen.was, seen.now) if seen else (a.get(name), value)
        if seen or a.get(name) != value:
            found[name] = Difference(name, before, after, True, override=True)
    return sorted(found.values(), key=lambda d: (not d.override, not d.numeric, d.fact))


def overridden(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The facts that a reproduction was asked to change, with their new values."""
    found: dict[str, Any] = {}
    _flatten("config", overrides.get("config") or {}, found)
    if overrides.get("argv"):
        found["command.argv"] = list(overrides["argv"])
    found.update({f"env.{name}": value for name, value in (overrides.get("env") or {}).items()})
    found.update({f"source.{path}": "given" for path in (overrides.get("files") or {})})
    return found


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """``{"model": {"layers": 12}}`` → ``{"model.layers": 12}``; lists stay whole."""
    found: dict[str, Any] = {}
    _flatten(prefix, value, found)
    return found


def _flatten(prefix: str, value: Any, into: dict[str, Any]) -> None:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            _flatten(f"{prefix}.{name}" if prefix else str(name), inner, into)
    else:
        into[prefix] = value


def _comparable(
    section: str, name: str, a: Mapping[str, Any], b: Mapping[str, Any], was: Mapping[str, Any], now: Mapping[str, Any]
) -> bool:
    """A section that one side did not capture says nothing; nor does a random state or a seed that only one side could read."""
    home = _HOME.get(section, section)
    if home not in ("config", "sdk") and not (was.get(home) and now.get(home)):
        return False
    if section in ("rng", "seeds", "determinism", "dtypes", "threads", "hardware", "hyper", "sdk", "platform"):
        return name in a and name in b
    return not (
        name in ("package.pip", "package.setuptools", "package.wheel", "package.uv", "package.encore-tracker")
        and not (name in a and name in b)
    )


def _places(recipe: Mapping[str, Any]) -> list[tuple[str, str]]:
    source, command = recipe.get("source", {}), recipe.get("command", {})
    python = recipe.get("environment", {}).get("python") or {}
    pairs = [(source.get("root"), "{root}"), (python.get("prefix"), "{prefix}"), (python.get("base_prefix"), "{python}")]
    cwd, inside = command.get("cwd"), command.get("cwd_in_root")
    if cwd:
        pairs.append(
            (
                cwd,
                "{root}" + (f"/{inside}" if inside not in (None, "", ".") else "")
                if inside is not None or not source.get("root")
                else "{cwd}",
            )
        )
    # The longest first, so that a virtual environment inside the repository is named as such.
    return sorted(((str(path).rstrip("/"), name) for path, name in pairs if path and len(str(path)) > 1), key=lambda pair: -len(pair[0]))


def _relocate(value: Any, places: list[tuple[str, str]]) -> Any:
    if isinstance(value, str):
        for path, name in places:
            if path in value:
                value = re.sub(re.escape(path) + r"(?=/|$|[\s:,;'\"])", name.replace("\\", r"\\"), value)
        return value
    if isinstance(value, list | tuple):
        return [_relocate(item, places) for item in value]
    return value


def _command(command: Mapping[str, Any], found: dict[str, Any]) -> None:
    entry, launcher = command.get("entry") or {}, command.get("launcher") or {}
    argv = command.get("argv")
    if isinstance(argv, list) and argv:
        # The first word is the script, given relative here and absolute there; the entry says which file it is.
        script = entry.get("path_in_root") or entry.get("name")
        found["command.argv"] = [script if script and str(argv[0]).endswith(str(script).rsplit("/", 1)[-1]) else argv[0], *argv[1:]]
    for name in ("cwd_in_root", "world_size"):
        found[f"command.{name}"] = command.get(name)
    found["command.entry.path"] = entry.get("path_in_root")
    for name in ("kind", "nproc_per_node", "nnodes"):
        found[f"command.launcher.{name}"] = launcher.get(name)
    for name, value in (command.get("env") or {}).items():
        if name not in _IGNORED_ENV and not name.startswith(_IGNORED_ENV_PREFIXES):
            found[f"env.{name}"] = value


def _environment(environment: Mapping[str, Any], found: dict[str, Any]) -> None:
    python = environment.get("python") or {}
    for name in ("version", "implementation", "build"):
        found[f"python.{name}"] = python.get(name)
    for package in environment.get("packages") or ():
        found[f"package.{canonical_package(str(package.get('name', '')))}"] = package.get("version")
    _flatten("platform", environment.get("platform") or {}, found)
    container = environment.get("container") or {}
    found["container.digest"] = container.get("digest") or container.get("image")
    found["sdk.version"] = (environment.get("sdk") or {}).get("version")


def _hardware(hardware: Mapping[str, Any], found: dict[str, Any]) -> None:
    for name in ("os", "kernel", "memory_bytes", "cuda", "cudnn", "nccl"):
        found[f"hardware.{name}"] = hardware.get(name)
    for name in ("model", "cores", "flags_digest"):
        found[f"hardware.cpu.{name}"] = (hardware.get("cpu") or {}).get(name)
    gpus = hardware.get("gpus") or []
    if hardware:
        found["hardware.gpus"] = len(gpus)
    for number, gpu in enumerate(gpus):
        for name in ("model", "driver", "compute", "memory_bytes"):
            found[f"hardware.gpu.{number}.{name}"] = gpu.get(name)


def _source(
    files: tuple[Mapping[str, str], Mapping[str, str]] | None, evidence: Mapping[str, Any], overrides: Mapping[str, Any]
) -> Iterable[Difference]:
    checked = evidence.get("source") or {}
    changed = set(overrides.get("files") or {})
    if checked.get("equal") is True or files is None:
        if checked.get("equal") is False and not changed:
            yield Difference("source.tree", checked.get("expected"), checked.get("tree"), True)
        return
    for path in sorted(files[0].keys() | files[1].keys()):
        if files[0].get(path) != files[1].get(path):
            yield Difference(f"source.{path}", files[0].get(path), files[1].get(path), True)


def _data(was: Mapping[str, Any], now: Mapping[str, Any], evidence: Mapping[str, Any]) -> Iterable[Difference]:
    inputs = {str(item.get("path")): item for item in (was.get("data") or {}).get("inputs") or ()}
    checked = {str(item.get("path")): item for item in evidence.get("data") or ()}
    for path, item in checked.items():
        if item.get("equal") is False:
            yield Difference(_data_name(path, inputs.get(path)), item.get("expected"), item.get("found"), True)
    read = {key: item for item in (now.get("data") or {}).get("inputs") or () for key in (item.get("in_root"), item.get("path")) if key}
    for path, item in inputs.items():
        twin = read.get(item.get("in_root") or path)
        if path in checked or twin is None or item.get("strength") != twin.get("strength"):
            continue  # not read, or not read by the same measure: said elsewhere, never a difference of content
        if item.get("digest") and twin.get("digest") and item["digest"] != twin["digest"]:
            yield Difference(_data_name(path, item), item["digest"], twin["digest"], True)


_TOLD = (
    ("package ", "package."),
    ("variable ", "env."),
    ("file ", "source."),
    ("usable cores", "threads.usable"),
    ("python", "python.version"),
)
"""The worker's words for a difference → our names. Its other words (arguments, config, sdk) say what the overrides say."""


def _told(evidence: Mapping[str, Any]) -> Iterable[Difference]:
    for item in (evidence.get("environment") or {}).get("differences") or ():
        words = str(item.get("fact", ""))
        for beginning, name in _TOLD:
            if words.startswith(beginning):
                rest = words[len(beginning) :]
                fact = name + (canonical_package(rest) if name == "package." else rest if name.endswith(".") else "")
                if name == "package." and canonical_package(rest) in _HARMLESS_PACKAGES:
                    break
                yield Difference(fact, item.get("was"), item.get("is"), is_numeric(fact))
                break


def _data_name(path: str, item: Mapping[str, Any] | None) -> str:
    return f"data.{(item or {}).get('in_root') or path}"
