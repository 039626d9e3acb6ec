"""The recorded command, told again for this machine: same entry, same arguments, paths moved to the restored root."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from typing import Any

from runner.errors import RecipeFailure
from runner.job import Job
from runner.order import inside, relative

MODULES = {"torchrun": "torch.distributed.run", "static": "torch.distributed.run", "accelerate": "accelerate.commands.launch"}
MEETING = {"standalone", "master-port", "master-addr", "rdzv-endpoint", "rdzv-backend", "rdzv-id", "rdzv-conf", "node-rank", "local-addr"}
"""Options of torchrun that name where ranks meet: on one machine a free port will do."""
SECRET = re.compile(r"\$\{secret:([^}]+)\}")
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
OTHERS = re.compile(
    r"^(ENCORE_|TORCHELASTIC_|SLURM_|OMPI_COMM_WORLD_|CONDA_|(GLOBAL_|LOCAL_|GROUP_|ROLE_|NODE_)?(RANK|WORLD_SIZE)$|ROLE_|GROUP_|LOCAL_WORLD_SIZE$|MASTER_(ADDR|PORT)$"
    r"|VIRTUAL_ENV|TMPDIR$|HOME$|PATH$|PWD$|PYTHONPATH$|PYTHONHOME$|PYTHONEXECUTABLE$|PYTHONUSERBASE$)"
)
"""Belong to the original's launch, environment or machine; a rerun has its own."""


def build(job: Job) -> tuple[list[str], str]:
    """(argv, working directory). Raises RecipeFailure if the recipe names no command that can be run."""
    recorded = job.order.command
    move = mover(job)
    argv = [str(part) for part in recorded.get("argv") or []]
    arguments = _arguments(job, argv, move)
    assert job.environment is not None
    python = [str(job.environment.python), *[str(option) for option in recorded.get("interpreter_options") or []]]
    launcher = recorded.get("launcher")
    entry = _entry(job, recorded.get("entry") or {}, argv, move)
    if launcher and (int(recorded.get("world_size") or 1) > 1 or launcher.get("kind") in MODULES):
        head = _launcher(job, launcher, argv, move, python)
    else:
        head = python
    folder = job.folder.source / relative(recorded.get("cwd_in_root") or ".", "the working directory")
    if not folder.is_dir():
        folder.mkdir(parents=True)  # an empty folder is in no snapshot
    return [*head, *_bootstrap(job), *entry, *arguments], str(folder)


def _bootstrap(job: Job) -> list[str]:
    """What `encore run` put before a program that has no line of ours: the same file, of the SDK in the run's own environment."""
    if not job.order.command.get("bootstrap"):
        return []
    assert job.environment is not None
    file = job.environment.site_packages / "sdk" / "_bootstrap.py"
    if not file.is_file():
        raise RecipeFailure(
            "environment_failed",
            "The run was started by `encore run`, which the SDK that the recipe carries does not have: nothing of a rerun would be kept.",
            missing="sdk/_bootstrap.py",
        )
    return [str(file)]


def mover(job: Job) -> Callable[[str], str]:
    """Text with the original root (also behind ``=``, ``:`` or ``,``) replaced by the restored one's path."""
    pairs = [(job.order.root, str(job.folder.source))] if job.order.root else []
    for at, prefix in job.manifest.mounts if job.manifest else ():
        pairs.append((at, str(job.folder.source / prefix)))
    pairs = sorted((pair for pair in pairs if pair[0] != "/"), key=lambda pair: len(pair[0]), reverse=True)
    if not pairs:
        return lambda text: text
    places = dict(pairs)
    pattern = re.compile(r"(?:(?<=^)|(?<=[=:,\"' ]))(" + "|".join(re.escape(old) for old, _ in pairs) + r")(?=/|$|[:,\"' ])")
    return lambda text: pattern.sub(lambda found: places[found[1]], text)


def _arguments(job: Job, argv: list[str], move: Callable[[str], str]) -> list[str]:
    asked = job.order.overrides.get("argv")
    if isinstance(asked, list):
        words = [str(word) for word in asked]
        words = words[1:] if words and argv and words[0] == argv[0] else words
        if words != argv[1:]:
            job.differs("arguments", argv[1:], words)
    else:
        words = argv[1:]
    return [reveal(job, move(word), "the command line") for word in words]


def reveal(job: Job, text: str, where: str) -> str:
    """Recorded ``${secret:NAME}`` with the value that the user or this worker supplies for the name."""

    def value(found: re.Match[str]) -> str:
        name = found[1]
        supplied = (job.order.overrides.get("env") or {}).get(name) or job.settings.secrets.get(name)
        if supplied is None:
            raise RecipeFailure(
                "secret_missing",
                f"{where} held a secret that is never recorded: {name}. "
                "Supply it with the request (overrides, env) or to the worker (ENCORE_WORKER_SECRETS_FILE).",
                missing=name,
            )
        return str(supplied)

    return SECRET.sub(value, text)


def _entry(job: Job, entry: dict[str, Any], argv: list[str], move: Callable[[str], str]) -> list[str]:
    """How the program is named on the interpreter's command line."""
    kind = entry.get("kind")
    if kind == "module" and entry.get("name"):
        return ["-m", str(entry["name"])]
    if kind == "code" and entry.get("code"):
        return ["-c", reveal(job, str(entry["code"]), "the program")]
    if kind == "command" and argv and job.order.command.get("bootstrap"):
        return ["--command", move(argv[0])]
    if kind != "script":
        raise RecipeFailure(
            "source_missing",
            f"The run was started from {'a notebook' if kind == 'notebook' else 'an interactive session or standard input'}, "
            "which is no program that can be started again. Put the training into a script.",
            missing="command.entry",
        )
    if entry.get("path_in_root"):
        return [_script(job, relative(entry["path_in_root"], "the script"), argv)]
    path = str(entry.get("path") or "")
    prefix = (job.order.environment.get("python") or {}).get("prefix")
    assert job.environment is not None
    for old, new in ((prefix, job.environment.prefix), (prefix, job.environment.folder)):
        below = inside(path, old) if isinstance(old, str) and old.startswith("/") else None
        if below and (new / below).is_file():
            return [str(new / below)]
    for at, prefix_ in job.manifest.mounts if job.manifest else ():
        below = inside(path, at)
        if below and (job.folder.source / prefix_ / below).is_file():
            return [str(job.folder.source / prefix_ / below)]
    raise RecipeFailure(
        "source_missing", f"The script {path or '(unnamed)'} lies outside the recorded source, so its text was not stored.", missing=path
    )


def _script(job: Job, path: str, argv: list[str]) -> str:
    """Absolute if the original was, relative to the working directory if not: programs print and derive names from ``sys.argv[0]``."""
    target = job.folder.source / path
    if not target.is_file():
        raise RecipeFailure("source_missing", f"The script {path} is not in the recorded source.", missing=path)
    if argv and not os.path.isabs(argv[0]):
        named = os.path.normpath(job.folder.source / (job.order.command.get("cwd_in_root") or ".") / argv[0])
        if named == os.path.normpath(target):
            return argv[0]
    return str(target)


def _launcher(job: Job, launcher: dict[str, Any], argv: list[str], move: Callable[[str], str], python: list[str]) -> list[str]:
    kind, nodes = str(launcher.get("kind")), int(launcher.get("nnodes") or 1)
    if nodes > 1:
        raise RecipeFailure(
            "environment_failed", f"The run used {nodes} machines; a worker is one.", missing=f"{nodes} nodes", expected=nodes, found=1
        )
    own = [str(part) for part in launcher.get("argv") or []]
    options = [move(option) for option in _options(own, len(argv))]
    processes = int(launcher.get("nproc_per_node") or job.order.command.get("world_size") or 1)
    if kind in ("torchrun", "static"):
        kept = _without_meeting(options) if kind == "torchrun" else []
        if not any(re.match(r"--nproc[-_]per[-_]node", option) for option in kept):
            kept = [f"--nproc-per-node={processes}", *kept]
        # The interpreter's own options went to the ranks by torchrun, never to torchrun itself.
        return [python[0], "-m", MODULES[kind], "--standalone", *[o for o in kept if o not in ("-m", "--module")]]
    if kind == "accelerate":
        return [python[0], "-m", MODULES[kind], *[o for o in options if o not in ("launch", "-m", "--module")]]
    program = next((os.path.basename(part) for part in own[:4] if not re.match(r"(python[0-9.]*$|-)", os.path.basename(part))), kind)
    assert job.environment is not None
    found = shutil.which(program, path=f"{job.environment.prefix / 'bin'}:{job.environment.folder / 'bin'}:{DEFAULT_PATH}")
    if not found:
        raise RecipeFailure("environment_failed", f"The run was started by {program}, which this worker does not have.", missing=program)
    if kind in ("mpi", "slurm", "horovod"):
        options = [part for part in options if not re.match(r"python[0-9.]*$", os.path.basename(part))]
        return [found, *options, *python]
    return [found, *options]


def _options(own: list[str], tail: int) -> list[str]:
    """What stands between the launcher's name and the program's."""
    middle = own[: len(own) - tail] if tail else list(own)
    if middle and re.match(r"python[0-9.]*$|pypy", os.path.basename(middle[0])):
        middle = middle[1:]
        while middle and middle[0].startswith("-") and middle[0] != "-m":
            middle = middle[1:]
    if middle and middle[0] == "-m":
        return middle[2:]
    return middle[1:]


def _without_meeting(options: list[str]) -> list[str]:
    kept: list[str] = []
    skip = False
    for option in options:
        if skip:
            skip = False
            continue
        name = option.lstrip("-").partition("=")[0].replace("_", "-")
        if option.startswith("-") and name in MEETING:
            skip = "=" not in option and name != "standalone"
            continue
        kept.append(option)
    return kept


def variables(job: Job) -> dict[str, str]:
    """The program's whole environment: what was recorded, nothing of the worker's."""
    recorded = job.order.command
    assert job.environment is not None
    move = mover(job)
    unset = {str(name) for name in recorded.get("unset") or []}
    env = {"LANG": "C.UTF-8"} if "LANG" not in unset else {}
    masked = set(recorded.get("env_masked") or [])
    for name, value in (recorded.get("env") or {}).items():
        if OTHERS.match(name) or name in unset:
            continue
        if SECRET.search(str(value)) or name in masked:
            supplied = job.settings.secrets.get(name)
            if supplied is None:
                job.differs(f"variable {name}", "a secret, not recorded", None)
                continue
            env[name] = supplied
        else:
            env[name] = move(str(value)) if job.isolation.name != "none" else _at_home(job, move(str(value)))
    bins = dict.fromkeys(str(folder / "bin") for folder in (job.environment.prefix, job.environment.folder))
    env |= {"PATH": ":".join([*bins, DEFAULT_PATH]), "HOME": str(job.folder.home), "VIRTUAL_ENV": str(job.environment.prefix)}
    if pythonpath := [_moved(job, str(part), move) for part in recorded.get("pythonpath") or []]:
        env["PYTHONPATH"] = ":".join(pythonpath)
    for name, value in (job.order.overrides.get("env") or {}).items():
        if name.startswith("ENCORE_") or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            continue
        if env.get(name) != str(value):
            job.differs(f"variable {name}", None if SECRET.search(str(env.get(name))) else env.get(name), str(value))
        env[name] = str(value)
    return env


def _at_home(job: Job, value: str) -> str:
    """Where nothing keeps a program from the real home, what named it names the new one."""
    home = job.order.original_home
    below = inside(value, home) if home and value.startswith("/") else None
    return str(job.folder.home / below) if below is not None else value


def _moved(job: Job, part: str, move: Callable[[str], str]) -> str:
    """An entry of PYTHONPATH; relative ones stay relative to the working directory."""
    return move(part) if part.startswith("/") else part
