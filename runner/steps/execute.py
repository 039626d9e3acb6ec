"""The recorded command run again: in its isolation, watched, its journal sent from outside while it runs."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from runner import command, devices, shell
from runner.errors import RecipeFailure, WorkerFault
from runner.job import Job
from runner.manifest import is_digest
from runner.shell import Ended, Program

KILL_SECONDS = 60.0
DRAIN_SECONDS = 900.0
"""How long the rest of a journal may take to arrive after the program has ended."""


def run(job: Job) -> str:
    assert job.environment is not None
    argv, cwd = command.build(job)
    env = command.variables(job)
    rng = _rng(job)
    job.folder.rerun.write_text("{}")
    job.prepared = job.isolation.prepare(job.order, job.folder, job.settings, job.placement, needed(job))
    config = job.order.overrides.get("config") or {}
    rerun = {
        "format": 1,
        "run": job.order.run,
        "job_folder": str(job.folder.path),
        "root": str(job.folder.source),
        "config": config,
        "rng": rng,
        "redirect": job.prepared.redirect,
    }
    job.folder.rerun.write_text(json.dumps(rerun))
    for key, value in config.items():
        job.differs(f"config {key}", None, value)
    env |= job.prepared.env | {
        "ENCORE_SENDER": "external",
        "ENCORE_MODE": "online",
        "ENCORE_RUN_ID": job.order.run,
        "ENCORE_JOURNAL": str(job.folder.journal),
        "ENCORE_RERUN": str(job.folder.rerun),
        "ENCORE_HOME": str(job.folder.home / ".encore"),
    }
    if job.order.command.get("bootstrap"):
        env["ENCORE_RUN_NOTE"] = os.devnull  # so that the rerun's recipe says it too; how the program ended we see ourselves
    if job.order.command.get("tensorboard"):
        env["ENCORE_TENSORBOARD"] = "1"
    if job.order.command.get("patterns"):
        env["ENCORE_PATTERNS"] = "\n".join(map(str, job.order.command["patterns"]))  # its metrics come out of what it prints
    affinity, difference = devices.affinity_for(job.order.numerics.get("threads") or {})
    if difference:
        job.differs("usable cores", (job.order.numerics.get("threads") or {}).get("cores"), len(devices.usable_cores()))
    job.report.say("execute", "$ " + " ".join(argv))
    sender = _send(job)
    try:
        program = Program(argv, env=env, cwd=cwd, output=job.folder.output, view=job.prepared.view, affinity=affinity)
        ended = _watch(job, program)
        job.report.check()
        _drain(job, sender)
    finally:
        sender.kill()
        sender.wait(KILL_SECONDS)
    job.evidence |= {"exit_code": ended.exit_code, "signal": ended.signal, "seconds": ended.seconds, "isolation": job.isolation.name}
    if ended.exit_code != 0:
        how = f"signal {ended.signal}" if ended.signal else f"exit status {ended.exit_code}"
        tail = job.folder.tail(4096)
        job.report.say("execute", job.folder.tail())
        job.failure = RecipeFailure(
            "program_failed", f"The program ended with {how}.", exit_code=ended.exit_code, signal=ended.signal, output=tail
        )
        return f"ended with {how} after {ended.seconds:.1f} s"
    return f"ended with exit status 0 after {ended.seconds:.1f} s, isolation {job.isolation.name}"


def needed(job: Job) -> list[str]:
    """What the program must see as it is: the interpreter and its packages."""
    assert job.environment is not None
    interpreter = job.environment.interpreter
    paths = [str(job.environment.folder)]
    if job.environment.overlay:
        paths.append(str(job.environment.overlay))
    for path in (interpreter.base_prefix, os.path.dirname(os.path.dirname(os.path.realpath(interpreter.executable)))):
        if path not in ("/", "/usr", "/usr/local"):
            paths.append(path)
    return list(dict.fromkeys(paths))


def _rng(job: Job) -> dict[str, dict[str, str | list[str]]] | None:
    """RNG states for the rerun file. Not when a change was asked for that a seeded program would read before init: its seed must count."""
    overrides, numerics = job.order.overrides, job.order.numerics
    if numerics.get("seeds") and any(overrides.get(kind) for kind in ("argv", "env", "files")):
        return None
    ranks: dict[str, dict[str, str | list[str]]] = {}
    for rank, states in (numerics.get("rng") or {}).items():
        if not str(rank).isdigit() or not isinstance(states, dict):
            continue
        for name, digest in states.items():  # "torch_cuda" is a list, one of each device
            if name not in ("python", "numpy", "torch", "torch_cuda"):
                continue
            files = []
            for number, each in enumerate(digest if isinstance(digest, list) else [digest]):
                if is_digest(each):
                    target = job.folder.rng / f"{rank}-{name}-{number}"
                    job.stored(each, f"the {name} random state of rank {rank}", target)
                    files.append(str(target))
            if files:
                ranks.setdefault(str(rank), {})[name] = files if isinstance(digest, list) else files[0]
    return ranks or None


def _send(job: Job) -> Program:
    """The journal's sender: the SDK's own command in a process of its own, with the job's key, outside the isolation.

    Under a supervisor too, so that it does not outlive a worker that is killed.
    """
    encore = Path(sys.executable).parent / "encore"
    start = [str(encore)] if encore.exists() else [sys.executable, "-c", "import sys; from sdk._cli import main; sys.exit(main())"]
    env = shell.bare_environment(
        ENCORE_URL=job.settings.url,
        ENCORE_TOKEN=job.order.key,
        ENCORE_HOME=str(job.folder.stage / "encore"),
        ENCORE_JOURNAL=str(job.folder.journal),
        HOME=str(job.folder.stage),
        GIT_CONFIG_GLOBAL="/dev/null",
        GIT_CONFIG_SYSTEM="/dev/null",
    )
    command = [*start, "sync", "--watch", str(job.folder.journal), "--capture", "--until-finished"]
    return Program(command, env=env, cwd=str(job.folder.path), output=job.folder.sender_log)


def _watch(job: Job, program: Program) -> Ended:
    limit, begun = job.order.seconds, time.monotonic()
    why: str | None = None
    kill_by: float | None = None
    while (ended := program.wait(0.2)) is None:
        now = time.monotonic()
        if why is None and job.report.stopped.is_set():
            why = "stopped"
        if why is None and limit is not None and now - begun > limit:
            why = "limit"
        if why is not None and kill_by is None:
            program.kill()
            kill_by = now + KILL_SECONDS
        if kill_by is not None and now > kill_by:
            raise WorkerFault("the program could not be stopped within a minute")
    if why == "limit":
        raise RecipeFailure("limit", f"The program was stopped after {limit:.0f} s, the job's limit.", expected=limit)
    if ended.error and not job.report.stopped.is_set():
        if ended.error.startswith("the view of the file system") or "supervisor" in ended.error:
            raise WorkerFault(ended.error)
        raise RecipeFailure("program_failed", f"The program could not be started: {ended.error}")
    return ended


def _drain(job: Job, sender: Program) -> None:
    """Waits until the tracker has all that was logged."""
    if not any(job.folder.journal.glob("*/*/writer.json")):
        return  # it died before init; there is nothing to send
    end = time.monotonic() + DRAIN_SECONDS
    while (ended := sender.wait(0.05)) is None:
        job.report.check()
        if time.monotonic() > end:
            raise WorkerFault(f"the journal was not delivered within {DRAIN_SECONDS:.0f} s; it is kept in {job.folder.journal}")
    if ended.exit_code != 0:
        told = job.folder.sender_log.read_text(errors="replace")[-2000:]
        raise WorkerFault(
            f"the sender of the journal ended with {ended.exit_code if ended.signal is None else ended.signal} {ended.error or ''}: {told}"
        )
