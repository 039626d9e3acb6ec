"""Preflight: what of a recipe would stop a reproduction, or make its verdict weaker, and how to mend each.

The score is the sum of the weights of the checks below, each times its state (ok 1, warn ½, missing 0). The weights say how often
the thing decides whether a rerun starts (source, packages, data: 60) and whether it gives the same numbers (seeds, threads,
determinism and the rest: 40). A recipe is runnable as long as nothing that blocks is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tracker.domain import sentences as say

OK, WARN, MISSING = "ok", "warn", "missing"
_VALUE = {OK: 1.0, WARN: 0.5, MISSING: 0.0}


@dataclass(frozen=True)
class Surroundings:
    """What is known beside the recipe. ``stored``: digests that the store has (None: not looked at). ``capturing``: the run goes on, so
    a section may still come. ``secrets``: names that somebody supplies to reruns."""

    stored: Collection[str] | None = None
    capturing: bool = False
    secrets: Collection[str] = ()
    config: Mapping[str, Any] = field(default_factory=dict)

    def has(self, digest: str | None) -> bool:
        return bool(digest) and (self.stored is None or digest in self.stored)


@dataclass(frozen=True)
class Item:
    section: str
    what: str
    state: str
    why: str = ""
    mend: str = ""
    blocks: bool = False

    def document(self) -> dict[str, str]:
        return {"section": self.section, "what": self.what, "state": self.state, "why": self.why, "mend": self.mend}


Section = Mapping[str, Any]
Check = Callable[[Section, Section, Surroundings], Iterable[Item]]


def preflight(recipe: Mapping[str, Any], around: Surroundings | None = None) -> dict[str, Any]:
    """``{"score": 0…100, "runnable": bool, "items": [{"section", "what", "state": "ok"|"warn"|"missing", "why", "mend"}]}``: what
    blocks first, then what is missing, then what is weak."""
    around = around or Surroundings()
    score, items = 0.0, []
    for section, weight, check in CHECKS:
        content = recipe.get(section)
        if isinstance(content, Mapping) and content:
            found = list(check(content, recipe, around))
        elif around.capturing:
            found = [Item(section, f"{section} recorded", WARN, "the capture is still running", "look again in some seconds")]
        else:
            mend = "start the run with sdk.init() early in the program, and look at the capture's errors in the recipe"
            found = [Item(section, f"{section} recorded", MISSING, "the capture did not get that far", mend, blocks=section in _NEEDED)]
        score += weight * min((_VALUE[item.state] for item in found), default=1.0)
        items += [item for item in found if item not in items]
    said = " ".join(item.what for item in items if item.state != OK).casefold()
    items += [item for item in _gaps(recipe) if item not in items and item.what.casefold() not in said]
    order = {MISSING: 0, WARN: 1, OK: 2}
    items.sort(key=lambda item: (order[item.state], not item.blocks))
    runnable = not any(item.state == MISSING and item.blocks for item in items) and all(recipe.get(name) for name in _NEEDED)
    return {"score": int(score + 1e-9), "runnable": runnable, "items": [item.document() for item in items]}


_NEEDED = ("command", "source", "environment")


def _gaps(recipe: Mapping[str, Any]) -> Iterable[Item]:
    """What the capture itself says it could not record."""
    for section, content in recipe.items():
        for gap in (content.get("gaps") or ()) if isinstance(content, Mapping) else ():
            yield Item(section, str(gap.get("what", "something")), WARN, str(gap.get("why", "")), str(gap.get("mend", "")))


# Source -----------------------------------------------------------------------------------------------------------------------


def _source_stored(source: Section, recipe: Section, around: Surroundings) -> Iterable[Item]:
    if not source.get("manifest"):
        state = WARN if around.capturing else MISSING
        why = "the copy of the source is still being made" if around.capturing else "no copy of the source was made"
        yield Item(
            "source", "source copied", state, why, "give the capture some seconds, and let the run finish", blocks=not around.capturing
        )
    elif not around.has(source["manifest"]):
        yield Item(
            "source",
            "source stored",
            WARN if around.capturing else MISSING,
            "the copy has not arrived",
            "encore sync",
            blocks=not around.capturing,
        )
    else:
        yield Item("source", "source stored", OK, say.count(int(source.get("files") or 0), "file"))


def _source_complete(source: Section, recipe: Section, around: Surroundings) -> Iterable[Item]:
    left_out = source.get("left_out") or []
    secrets = [item for item in left_out if "secret" in str(item.get("why", ""))]
    for item in secrets[:20]:
        mend = "move the secret into an environment variable, or allow the file"
        yield Item("source", f"{item.get('path')} left out", WARN, str(item.get("why")), mend)
    others = [item for item in left_out if item not in secrets]
    for item in others[:20]:
        mend = "raise the size limit, or read it as data with sdk.use_data()"
        yield Item("source", f"{item.get('path')} left out", WARN, str(item.get("why") or "it is too large"), mend)
    if len(left_out) > len(secrets[:20]) + len(others[:20]):
        yield Item("source", "more files left out", WARN, f"{len(left_out):,} in all", "look at the recipe")
    if not left_out:
        yield Item("source", "nothing left out of the source", OK)


def _source_unchanged(source: Section, recipe: Section, around: Surroundings) -> Iterable[Item]:
    changed = source.get("changed_since_start") or []
    if changed:
        why = "they were edited before they could be copied, so the copy may not be what ran"
        yield Item("source", f"{_names(changed)} changed since the start", WARN, why, "leave files alone in the first second of a run")
    else:
        yield Item("source", "source unchanged since the start", OK)


def _repository(source: Section, recipe: Section, around: Surroundings) -> Iterable[Item]:
    git = source.get("git")
    if not git:
        yield Item("source", "in a git repository", WARN, "the copy is enough to play it again, but has no history", "git init, and commit")
    elif not git.get("remote"):
        yield Item("source", "repository has a remote", WARN, "others cannot find the commit", "add a remote and push")
    elif git.get("unpushed"):
        yield Item("source", "commit is pushed", WARN, f"{say.count(int(git['unpushed']), 'commit')} only here", "git push")
    else:
        yield Item("source", "commit and remote known", OK)


# Environment ------------------------------------------------------------------------------------------------------------------


def _packages(environment: Section, recipe: Section, around: Surroundings) -> Iterable[Item]:
    packages = environment.get("packages") or []
    if not packages:
        yield Item(
            "environment", "packages recorded", MISSING, "no installed package was found", "run in a virtual environment", blocks=True
        )
        return
    local, unknown, branches = [], [], []
    for package in packages:
        name, origin = str(package.get("name")), package.get("from") or {}
        kind = origin.get("kind", "unknown")
        if kind in ("path", "editable", "url") and not origin.get("hash") and kind != "editable":
            local.append(name)
        elif kind == "vcs" and not origin.get("hash"):
            branches.append(name)
        elif kind == "unknown":
            unknown.append(name)
    if local:
        yield Item(
            "environment", f"{_names(local)} from a local path or URL", WARN, "it may not be there next time", "install it from an index"
        )
    if branches:
        yield Item(
            "environment", f"{_names(branches)} from a branch", WARN, "the commit is not known", "install it from a commit or an index"
        )
    if unknown:
        why = "where it came from is not recorded, so it is looked for on the index"
        yield Item("environment", f"{_names(unknown)} of unknown origin", WARN, why, "install with pip or uv")
    if not (local or branches or unknown):
        yield Item("environment", "environment pinned", OK, say.count(len(packages), "package"))


def _python(environment: Section, recipe: Section, around: Surroundings) -> Iterable[Item]:
    version = (environment.get("python") or {}).get("version")
    if version:
        yield Item("environment", f"Python {version}", OK, "the same version is used or the rerun is refused")
    else:
        yield Item("environment", "Python version", MISSING, "it was not recorded", "report this", blocks=True)
    if environment.get("container"):
        yield Item(
            "environment", "container", WARN, "the image is recorded, not rebuilt", "keep the image, and give the queue a worker inside it"
        )
    if environment.get("conda"):
        yield Item(
            "environment",
            "conda environment",
            WARN,
            "packages of conda itself are not rebuilt",
            "give the queue a worker in this environment",
        )


def _sdk(environment: Section, recipe: Section, around: Surroundings) -> Iterable[Item]:
    wheel = (environment.get("sdk") or {}).get("wheel")
    if around.has(wheel):
        yield Item("environment", "the SDK's wheel is stored", OK)
    else:
        yield Item(
            "environment", "the SDK's wheel is stored", WARN, "the worker's own SDK is used instead", "let the run finish, or encore sync"
        )


# Data -------------------------------------------------------------------------------------------------------------------------


def _data(data: Section, recipe: Section, around: Surroundings) -> Iterable[Item]:
    inputs = data.get("inputs") or []
    stored = [item for item in inputs if item.get("stored") and around.has(item.get("digest"))]
    lost = [item for item in inputs if item.get("stored") and item not in stored]
    bare = [item for item in inputs if not item.get("digest")]
    rest = [item for item in inputs if item.get("digest") and item not in stored and item not in lost]
    for item in lost[:20]:
        state = WARN if around.capturing else MISSING
        yield Item("data", f"{item.get('path')} stored", state, "its copy has not arrived", "encore sync", blocks=False)
    for item in bare[:20]:
        why = "only its path is known: a change would not be noticed"
        yield Item("data", f"{item.get('path')} fingerprinted", WARN, why, "sdk.use_data(path), or let the capture finish")
    if len(bare) > 20:
        yield Item("data", "more inputs without a fingerprint", WARN, f"{len(bare):,} in all", "sdk.use_data() their folder")
    if rest:
        names = _names([str(item.get("path")) for item in rest])
        why = f"{say.count(len(rest), 'input is', 'inputs are')} checked by fingerprint and must be there: {names}"
        yield Item("data", "large inputs not stored", OK, why, "keep them where they are, or give the worker a mount map")
    if stored:
        yield Item("data", f"{say.count(len(stored), 'input')} stored", OK)
    if not inputs:
        yield Item("data", "no data read from files", OK)
    if data.get("seen_by_hook") is False:
        yield Item("data", "what the program opens is seen", WARN, "the hook was not set", "import sdk before the data are read")


# Command and numerics ---------------------------------------------------------------------------------------------------------


def _command(command: Section, recipe: Section, around: Surroundings) -> Iterable[Item]:
    entry = command.get("entry") or {}
    kind = entry.get("kind")
    if kind in ("interactive", "notebook") or (kind == "code" and not entry.get("code")):
        why = "it was started from a notebook" if kind == "notebook" else "it was typed in, or came from standard input"
        yield Item("command", "program is a file", MISSING, why, "put the code into a file and start that", blocks=True)
    elif not command.get("argv"):
        yield Item("command", "command recorded", MISSING, "no command line was found", "run a script or a module", blocks=True)
    else:
        yield Item("command", "command recorded", OK, " ".join(str(word) for word in command["argv"])[:200])
    launcher = command.get("launcher")
    if launcher and launcher.get("kind") not in ("python", "torchrun"):
        why = f"it was started by {launcher.get('kind')}, which a worker here may not have"
        yield Item("command", "launcher known", WARN, why, "give the queue a worker that can start it")
    elif launcher and int(launcher.get("nnodes") or 1) > 1:
        yield Item("command", "one machine", WARN, f"it ran on {launcher['nnodes']} machines", "give the queue as many")
    if int(command.get("world_size") or 1) > 1 and not launcher:
        why = f"{command['world_size']} ranks, but not how they were started"
        yield Item("command", "launcher known", MISSING, why, "start with torchrun", blocks=True)


def _secrets(command: Section, recipe: Section, around: Surroundings) -> Iterable[Item]:
    needed = set(command.get("env_masked") or ())
    missing = sorted(name for name in needed if name not in around.secrets)
    for name in missing[:20]:
        yield Item(
            "command", f"secret {name}", WARN, "its value is never recorded", "supply it by name to the queue if the program needs it"
        )
    if not missing:
        yield Item("command", "no secret needed", OK)


def _outputs(data: Section, recipe: Section, around: Surroundings) -> Iterable[Item]:
    outside = [str(item.get("path")) for item in data.get("outputs") or () if item.get("in_root") is None]
    if outside:
        why = "they are redirected into the job's folder, or the job is refused"
        yield Item(
            "data", f"writes outside its folder: {_names(outside)}", WARN, why, "write below the repository, or make the folder an argument"
        )
    else:
        yield Item("data", "writes only below its folder", OK)


def _seeds(numerics: Section, recipe: Section, around: Surroundings) -> Iterable[Item]:
    seeds = chosen_seeds(numerics)
    if seeds:
        yield Item("numerics", "seeds set", OK, ", ".join(f"{name} {value}" for name, value in sorted(seeds.items()))[:200])
    elif any(any(states.values()) for states in (numerics.get("rng") or {}).values() if isinstance(states, Mapping)):
        yield Item("numerics", "random state at the start captured", OK, "no seed was found; the state is put back")
    else:
        yield Item("numerics", "seeds set", MISSING, "no seed and no random state was captured", "sdk.seed(0) before the model is made")


def chosen_seeds(numerics: Section) -> dict[str, Any]:
    """Seeds that somebody set; torch's own default is none."""
    seeds = {name: value for name, value in (numerics.get("seeds") or {}).items() if value is not None}
    if seeds.pop("torch_is_default", False):
        seeds.pop("torch", None)
    return seeds


def _hash_seed(command: Section, recipe: Section, around: Surroundings) -> Iterable[Item]:
    value = (command.get("env") or {}).get("PYTHONHASHSEED")
    if value in (None, "", "random"):
        why = "unset, it cannot be restored: the order of sets of text changes from start to start"
        yield Item("numerics", "PYTHONHASHSEED", WARN, why, "PYTHONHASHSEED=0, or start with encore run")
    else:
        yield Item("numerics", "PYTHONHASHSEED", OK, str(value))


def _determinism(numerics: Section, recipe: Section, around: Surroundings) -> Iterable[Item]:
    switches = numerics.get("determinism") or {}
    if (recipe.get("hardware") or {}).get("gpus") and not switches.get("torch_deterministic_algorithms"):
        why = "GPU kernels may add in any order"
        yield Item("numerics", "deterministic kernels", WARN, why, "torch.use_deterministic_algorithms(True)")
    elif switches.get("cudnn_benchmark"):
        yield Item(
            "numerics", "deterministic kernels", WARN, "cuDNN picks kernels by timing them", "torch.backends.cudnn.benchmark = False"
        )
    else:
        yield Item("numerics", "determinism switches recorded", OK)


def _threads(numerics: Section, recipe: Section, around: Surroundings) -> Iterable[Item]:
    threads = numerics.get("threads") or {}
    if threads.get("OMP_NUM_THREADS") or threads.get("torch_intra"):
        yield Item("numerics", "thread counts recorded", OK, f"{threads.get('OMP_NUM_THREADS') or threads.get('torch_intra')} threads")
    elif threads:
        why = "left to the number of cores: another machine may add in another order"
        yield Item("numerics", "thread counts set", WARN, why, "OMP_NUM_THREADS=…")
    else:
        yield Item("numerics", "thread counts recorded", MISSING, "they were not captured", "import sdk before torch or numpy")


def _hardware(hardware: Section, recipe: Section, around: Surroundings) -> Iterable[Item]:
    gpus = hardware.get("gpus") or []
    model = (hardware.get("cpu") or {}).get("model")
    if model:
        yield Item("hardware", "hardware recorded", OK, f"{len(gpus)} GPUs of {gpus[0].get('model')}" if gpus else str(model))
    else:
        yield Item("hardware", "hardware recorded", WARN, "the CPU's model is not known", "")


CHECKS: tuple[tuple[str, int, Check], ...] = (
    ("source", 20, _source_stored),
    ("source", 6, _source_complete),
    ("source", 4, _source_unchanged),
    ("source", 2, _repository),
    ("environment", 14, _packages),
    ("environment", 6, _python),
    ("environment", 2, _sdk),
    ("data", 18, _data),
    ("data", 2, _outputs),
    ("command", 10, _command),
    ("command", 2, _secrets),
    ("numerics", 6, _seeds),
    ("command", 1, _hash_seed),
    ("numerics", 3, _determinism),
    ("numerics", 3, _threads),
    ("hardware", 1, _hardware),
)
"""(section of the recipe, weight, check); the weights add up to 100."""


def _names(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")
