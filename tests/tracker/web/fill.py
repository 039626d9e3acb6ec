"""Fills an instance with runs of every kind, through the same services that the SDK's batches go through.

``ENCORE_HOME=/tmp/x python tests/tracker/web/fill.py [runs]`` for looking at pages; the tests use its functions.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
import sys
import time
import zlib

import numpy as np
from blake3 import blake3

if __name__ == "__main__":
    sys.path.insert(0, os.getcwd())
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tracker.settings")
    import django

    django.setup()

from tracker.domain.ids import new_id
from tracker.models import Run, User
from tracker.services import accounts, blobs, ingest, projects, summaries, writers

SECOND = 1_000_000
NO_STEP = -(2**63)


class Trainer:
    """One writer of a run, as the SDK's sender would speak for it."""

    def __init__(
        self,
        user,
        project: str,
        name: str,
        *,
        run: str | None = None,
        rank: int = 0,
        world: int = 1,
        ago: float = 3600,
        tags=(),
        kind="trainer",
        said: dict | None = None,
    ):
        self.user, self.rank = user, rank
        self.run_id, self.id, self.next = run or new_id(), new_id(), 0
        self.start_us = int((time.time() - ago) * SECOND)
        doc = {
            "format": 1,
            "writer": self.id,
            "kind": kind,
            "rank": rank,
            "local_rank": rank,
            "world_size": world,
            "host": "node-07",
            "pid": 4242 + rank,
            "pid_started": 1.0,
            "started_us": self.start_us,
            "anchor_wall_us": self.start_us,
            "anchor_mono_ns": 0,
            "mode": "online",
            "url": None,
            "sdk_version": "0.1.0",
            "launch": {
                "kind": "python" if world == 1 else "torchrun",
                "id": f"launch-{self.run_id}" if not said else None,
                "restart_count": 0,
                "coordinates": {},
            },
            "run": {
                "id": self.run_id,
                "project": project,
                "name": name,
                "group": "",
                "job_type": "",
                "tags": list(tags),
                "notes": "",
                "resume": None,
                "created_us": self.start_us,
                **(said or {}),
            },
        }
        writers.open_writer(user=user, token=None, doc=doc)

    def batch(self, columns: dict[str, np.ndarray] | None = None, steps=None, times=None, docs: list[dict] = ()) -> None:
        """Rows of one key list, then documents: the wire's version 1 by hand."""
        first, body, frames = self.next, b"", []
        rows = 0
        if columns:
            rows = len(next(iter(columns.values())))
            steps = np.asarray(steps, dtype="<i8")
            names = list(columns)
            types = "".join("q" if value.dtype.kind == "i" else "d" for value in columns.values())
            text = json.dumps([types, names], separators=(",", ":"), ensure_ascii=False)
            digest = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
            frames.append({"kind": "dense", "keylist": digest, "keys": names, "types": types, "rows": rows})
            parts = [
                np.arange(rows, dtype="<u4"),
                steps,
                np.asarray(times, dtype="<i8"),
                *[value.astype("<i8" if value.dtype.kind == "i" else "<f8") for value in columns.values()],
            ]
            for part in parts:
                raw = part.tobytes()
                body += raw + b"\0" * (-len(raw) % 8)
        told = [
            {"n": first + rows + at, "step": doc.pop("_step", None), "time": doc.pop("_time", self.start_us), "doc": doc}
            for at, doc in enumerate(docs)
        ]
        header = {
            "run": self.run_id,
            "writer": self.id,
            "first": first,
            "last": first + rows + len(told) - 1,
            "frames": frames,
            "docs": told,
            "holes": [],
        }
        head = json.dumps(header).encode()
        head += b" " * (-(16 + len(head)) % 8)
        whole = head + body
        packet = struct.pack("<4sHHII", b"ENCW", 1, 0, len(head), zlib.crc32(whole)) + whole
        ingest.append_batch(writer_id=self.id, user=self.user, token=None, body=zlib.compress(packet, 1), encoding="deflate")
        self.next = header["last"] + 1

    def finish(self, state: str = "finished", seconds: float = 600, error: dict | None = None) -> None:
        data = {
            "state": state,
            "exit_code": {"finished": 0, "failed": 1}.get(state),
            "signal": 15 if state == "killed" else None,
            "error": error,
            "dropped": {},
        }
        self.batch(docs=[{"type": "event", "name": "finish", "data": data, "_time": self.start_us + int(seconds * SECOND)}])


def put(run: Run, data: bytes) -> str:
    digest = f"blake3:{blake3(data).hexdigest()}"
    blobs.put(run=run, digest=digest, chunks=[data])
    return digest


TRAIN = '''"""Train a small GPT on characters."""

import torch
import sdk


class Block(torch.nn.Module):
    def __init__(self, width: int, heads: int = 8) -> None:
        super().__init__()
        self.attention = torch.nn.MultiheadAttention(width, heads)

    def forward(self, x):
        return x + self.attention(x, x, x)[0]  # residual


run = sdk.init(project="gpt-scaling", config={"lr": 3e-4})
for step in range(1200):
    sdk.log({"train/loss": 0.5, "lr": 1e-3}, step=step)
sdk.finish()
'''


def recipe(run: Run, *, ranks: int = 1) -> list[dict]:
    """Recipe documents with a real source snapshot behind them."""
    files = {
        "train.py": (TRAIN, "modified"),
        "model/__init__.py": ("", "tracked"),
        "model/blocks.py": ("WIDTH = 512\n", "tracked"),
        "notes.md": ("# Notes\n", "untracked"),
    }
    entries = [
        {"path": path, "mode": "100644", "bytes": len(text.encode()), "digest": put(run, text.encode()), "state": state}
        for path, (text, state) in sorted(files.items())
    ]
    manifest = json.dumps({"format": 1, "files": entries, "mounts": []}, sort_keys=True, separators=(",", ":")).encode()
    tree = blake3("".join(f"{e['mode']} {e['digest']} {e['path']}\n" for e in entries).encode()).hexdigest()
    packages = [
        ("torch", "2.13.0+cpu"),
        ("numpy", "2.3.4"),
        ("encore-tracker", "0.1.0"),
        ("tqdm", "4.67.1"),
        ("pyyaml", "6.0.3"),
        ("jinja2", "3.1.6"),
    ]
    sections = {
        "command": {
            "argv": ["train.py", "--lr", "3e-4", "--layers", "12"],
            "executable": "/usr/bin/python3",
            "python": "3.11.7",
            "cwd": "/home/alice/gpt",
            "cwd_in_root": ".",
            "entry": {"kind": "script", "name": "train.py", "path": "train.py", "path_in_root": "train.py"},
            "world_size": ranks,
            "launcher": {
                "kind": "torchrun",
                "argv": ["torchrun", "--nproc-per-node", str(ranks), "train.py"],
                "nproc_per_node": ranks,
                "nnodes": 1,
            }
            if ranks > 1
            else None,
            "env": {"OMP_NUM_THREADS": "2", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"},
            "env_masked": [],
            "unset": ["PYTHONHASHSEED"],
            "pythonpath": [],
        },
        "source": {
            "root": "/home/alice/gpt",
            "git": {
                "remote": "git@example.org:alice/gpt.git",
                "branch": "main",
                "commit": "9c0eb25f1d3ad0f4c7b2b1d5a8e0a0c3f5b7d911",
                "dirty": True,
                "unpushed": 1,
            },
            "manifest": put(run, manifest),
            "tree": f"blake3:{tree}",
            "files": len(entries),
            "bytes": sum(e["bytes"] for e in entries),
            "left_out": [{"path": "data/corpus.bin", "bytes": 2_147_483_648, "why": "larger than 10 MiB"}],
            "changed_since_start": [],
        },
        "environment": {
            "python": {
                "version": "3.11.7",
                "implementation": "CPython",
                "build": "main, Nov 2025",
                "prefix": "/home/alice/.venv",
                "base_prefix": "/usr",
            },
            "packages": [{"name": n, "version": v, "from": {"kind": "index", "url": None, "hash": None}} for n, v in packages],
            "lock": f"blake3:{blake3(b'lock').hexdigest()}",
            "platform": {"system": "Linux", "machine": "x86_64", "libc": "glibc 2.36"},
            "files": [],
            "conda": None,
            "container": None,
            "sdk": {"version": "0.1.0", "wheel": put(run, b"wheel")},
        },
        "data": {
            "inputs": [
                {
                    "path": "/data/corpus.txt",
                    "in_root": None,
                    "bytes": 1_115_394,
                    "mtime_us": 1,
                    "digest": put(run, b"corpus"),
                    "strength": "full",
                    "stored": True,
                    "by": "open",
                    "name": None,
                }
            ],
            "outputs": [],
            "caches": [],
            "seen_by_hook": True,
        },
        "numerics": {
            "seeds": {"torch": 1337},
            "rng": {},
            "determinism": {"deterministic_algorithms": True},
            "threads": {"OMP_NUM_THREADS": "2", "torch_intra": 2, "torch_inter": 2, "cores": 2},
            "dtypes": {"default": "float32"},
        },
        "hardware": {
            "host": "node-07",
            "os": "Debian GNU/Linux 12",
            "kernel": "6.1.0",
            "cpu": {"model": "AMD EPYC 7B13", "cores": 64, "flags_digest": "x"},
            "memory_bytes": 540_000_000_000,
            "gpus": [
                {"model": "NVIDIA H100 80GB HBM3", "uuid": f"GPU-{n}", "memory_bytes": 85_899_345_920, "driver": "550.54", "compute": "9.0"}
                for n in range(2)
            ],
            "cuda": "12.4",
            "cudnn": "9.1",
            "nccl": "2.21",
        },
        "sdk": {"version": "0.1.0", "capture_seconds": {"source": 0.4}, "errors": []},
    }
    return [{"type": "recipe", "section": name, "value": value, "merge": False} for name, value in sections.items()]


def curve(steps: int, seed: int, lr: float, *, diverge: int | None = None) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = np.arange(steps)
    base = 1.25 + 3.1 * np.exp(-x / (steps * 0.09 * (3e-4 / lr) ** 0.25)) + 0.25 * np.exp(-x / steps)
    loss = base + rng.normal(0, 0.05, steps) * (0.4 + base / 4)
    if diverge is not None:
        loss[diverge:] = loss[diverge] * np.exp(np.arange(steps - diverge) / 18.0)
        loss[diverge + 60 :] = np.nan
    warm = np.minimum(1, x / max(1, steps // 20))
    return {
        "train/loss": loss,
        "train/grad_norm": np.abs(rng.normal(0.8, 0.25, steps)) + 6 * (rng.random(steps) > 0.997),
        "train/lr": lr * warm * 0.5 * (1 + np.cos(math.pi * x / steps)),
        "train/tokens": (x + 1) * 32768,
        "val/loss": base * 1.03 + rng.normal(0, 0.008, steps),
        "val/accuracy": 0.62 - 0.5 * np.exp(-x / (steps * 0.15)) + rng.normal(0, 0.004, steps),
        "perf/step_seconds": np.abs(rng.normal(0.21, 0.01, steps)),
    }


def run_of(
    user,
    project: str,
    name: str,
    *,
    steps=1200,
    seed=0,
    lr=3e-4,
    state="finished",
    ranks=1,
    ago=3600.0,
    tags=(),
    config=None,
    diverge=None,
    with_recipe=True,
    log=True,
) -> Run:
    """One whole run: config, curves of each rank, logs, recipe, end. ``state`` running leaves it open."""
    run_id = None
    trainers = []
    for rank in range(ranks):
        trainer = Trainer(user, project, name, run=run_id, rank=rank, world=ranks, ago=ago, tags=tags)
        run_id = trainer.run_id
        trainers.append(trainer)
    run = Run.objects.get(id=run_id)
    whole = (
        config
        if config is not None
        else {"lr": lr, "batch_size": 64, "seed": seed, "model": {"layers": 12, "width": 512, "dropout": 0.1}, "optimizer": "adamw"}
    )
    docs = [{"type": "config", "value": whole, "update": False}, *(recipe(run, ranks=ranks) if with_recipe else [])]
    trainers[0].batch(docs=docs)
    pace = max(1.0, ago * 0.9 / max(1, steps)) if state == "running" else 0.21
    for trainer in trainers:
        columns = curve(steps, seed * 64 + trainer.rank, lr, diverge=diverge)
        x = np.arange(steps)
        if steps:
            trainer.batch(columns, x, trainer.start_us + (x * pace * SECOND).astype("i8"))
        if log:
            trainer.batch(docs=printed(trainer, steps, columns["train/loss"]))
    node = Trainer(user, project, name, run=run_id, kind="node", ago=ago)
    samples = np.arange(0, max(steps * pace, 1), max(2.0, steps * pace / 200))
    rng = np.random.default_rng(seed)
    if len(samples):
        system = {
            "system/cpu_percent": rng.uniform(30, 60, len(samples)),
            "system/memory_percent": np.linspace(20, 34, len(samples)),
            "system/gpu.0.utilization": rng.uniform(85, 99, len(samples)),
        }
        node.batch(system, np.arange(len(samples)), node.start_us + (samples * SECOND).astype("i8"))
    if state != "running":
        trace = 'Traceback (most recent call last):\n  File "train.py", line 21, in <module>\n    loss.backward()\nRuntimeError: CUDA'
        memory = {"type": "RuntimeError", "message": "CUDA out of memory. Tried to allocate 2.00 GiB", "traceback": trace}
        error = memory if state == "failed" else None
        for trainer in trainers:
            trainer.finish(state if state != "crashed" else "finished", seconds=steps * pace, error=error)
        if state == "crashed":
            Run.objects.filter(id=run_id).update(state="crashed")
    summaries.summarise_run(run_id)
    return Run.objects.select_related("project", "user").get(id=run_id)


def printed(trainer: Trainer, steps: int, loss: np.ndarray) -> list[dict]:
    out = [{"type": "log", "stream": "stdout", "text": "\u001b[1mloading corpus\u001b[0m /data/corpus.txt … 1,115,394 characters\n"}]
    for step in range(0, steps, max(1, steps // 120)):
        text = f"step {step:5d}  loss \u001b[32m{loss[step]:.4f}\u001b[0m  lr 3.0e-04\n"
        out.append({"type": "log", "stream": "stdout", "text": text, "_time": trainer.start_us + int(step * 0.21 * SECOND)})
    out.append({"type": "log", "stream": "stderr", "text": "UserWarning: <b>this is not bold</b> & the scheduler was called early\n"})
    out.append({"type": "log", "stream": "stdout", "text": "saving:   0%\rsaving:  50%\rsaving: 100%\n"})
    return out


def verdict_of(kind: str, run: Run) -> dict:
    """A verdict document as the judge writes it (docs/formats.md), for looking at its page."""
    rows = []
    for key, evidence, why in (
        ("train/loss", True, None),
        ("val/loss", True, None),
        ("val/accuracy", True, None),
        ("train/lr", False, "schedule: set by the program"),
        ("perf/step_seconds", False, "time: measures the machine"),
    ):
        differs = kind == "diverged" and evidence
        gap = (
            {"step": 412, "expected": 1.7320508075688772, "found": 1.7320508075688774, "relative": 1.2e-16, "ulp": 1, "ulp_of": "f64"}
            if differs
            else None
        )
        rows.append(
            {
                "key": key,
                "rank": 0,
                "kind": "loss",
                "compared": 1200,
                "logged": 1200,
                "rerun": 1200,
                "equal": not differs,
                "evidence": evidence,
                "why_not": why,
                "first_difference": gap,
                "largest_gap": gap,
            }
        )
    base = {
        "format": 1,
        "execution": "completed",
        "scope": {"kind": "full", "from": None, "to": None},
        "like_for_like": kind == "exact",
        "differences": [],
        "step": None,
        "metric": None,
        "rank": None,
        "expected": None,
        "found": None,
        "compared": {"points": 3600, "logged": 3600, "metrics": 3, "ranks": 1, "steps": 1200},
        "per_metric": rows,
        "grade": [],
        "suspects": [],
        "reason": None,
        "not_compared": [
            {"key": "perf/step_seconds", "why": "time: measures the machine"},
            {"key": "train/lr", "why": "schedule: set by the program"},
        ],
    }
    if kind == "exact":
        return {
            **base,
            "agreement": "bit_exact",
            "sentence": "Bit-exact: 1,200 of 1,200 steps, 3 metrics, 1 rank; 3,600 of 3,600 points equal to the last bit.",
        }
    if kind == "diverged":
        differences = [
            {"fact": "package.torch", "was": "2.13.0+cpu", "is": "2.12.1+cpu", "numeric": True},
            {"fact": "threads.torch_intra", "was": 2, "is": 8, "numeric": True},
        ]
        suspects = [
            {"fact": "threads.torch_intra", "why": "sums are split over threads, so their order changes", "weight": 0.8},
            {"fact": "package.torch", "why": "a library that computes", "weight": 0.5},
        ]
        return {
            **base,
            "agreement": "diverged",
            "step": 412,
            "metric": "train/loss",
            "rank": 0,
            "expected": 1.7320508075688772,
            "found": 1.7320508075688774,
            "differences": differences,
            "suspects": suspects,
            "sentence": "Diverged at step 412: train/loss on rank 0 was 1.7320508075688772, is 1.7320508075688774 (1 ULP).",
        }
    reason = {
        "code": "data_missing",
        "message": "The recorded input /data/corpus.txt is not on the worker and was not stored.",
        "missing": "/data/corpus.txt",
        "expected": f"blake3:{'4f' * 32}",
        "found": None,
    }
    return {
        **base,
        "execution": "not_runnable",
        "agreement": None,
        "compared": {},
        "per_metric": [],
        "not_compared": [],
        "reason": reason,
        "sentence": "Not runnable: the input /data/corpus.txt is missing.",
    }


def reproduction_of(run: Run, rerun: Run | None, kind: str, user):
    """A reproduction as it stands after its job: exact, diverged, blocked, or running."""
    from datetime import timedelta

    from django.utils import timezone

    from tracker.models import Job, JobLog, JobStep, Reproduction, Worker

    now = timezone.now()
    worker, _ = Worker.objects.get_or_create(
        name="node-07", defaults={"queues": ["default", "gpu"], "info": {"gpus": [{"model": "H100"}]}, "last_seen_at": now}
    )
    state = {"exact": "finished", "diverged": "finished", "blocked": "failed", "running": "running"}[kind]
    verdict = verdict_of(kind, run) if kind != "running" else None
    job = Job.objects.create(
        project=run.project,
        state=state,
        worker=worker,
        fence=1,
        attempts=1,
        failure=verdict["reason"] if verdict else None,
        started_at=now - timedelta(seconds=95),
        finished_at=None if kind == "running" else now,
        lease_until=now + timedelta(days=9),
    )
    steps = [
        ("checkout", 2.1, "4 files, tree equal"),
        ("environment", 11.4, "6 packages from cache, Python 3.11.7"),
        ("data", 0.6, "1 input restored, digest equal"),
        ("execute", 78.0, "python3 train.py --lr 3e-4"),
        ("evidence", 1.2, "exit 0, 2 outputs"),
    ]
    if kind == "blocked":
        steps = steps[:3]
    if kind == "running":
        steps = steps[:4]
    at = now - timedelta(seconds=95)
    for number, (name, seconds, message) in enumerate(steps):
        last = number == len(steps) - 1
        how = "failed" if kind == "blocked" and last else "running" if kind == "running" and last else "done"
        end = None if how == "running" else at + timedelta(seconds=seconds)
        text = verdict["reason"]["message"] if how == "failed" else message
        JobStep.objects.create(job=job, fence=1, name=name, state=how, message=text, started_at=at, finished_at=end)
        JobLog.objects.create(job=job, fence=1, number=number, step=name, text=f"{message}\n")
        at += timedelta(seconds=seconds)
    if kind in ("exact", "diverged"):
        Job.objects.filter(id=job.id).update(
            evidence={
                "format": 1,
                "exit_code": 0,
                "signal": None,
                "seconds": 78.0,
                "source": {"tree": f"blake3:{'ab' * 32}", "equal": True},
                "environment": {"lock": "", "python": "3.11.7", "equal": True, "differences": []},
                "data": [{"path": "/data/corpus.txt", "equal": True, "how": "restored"}],
                "outputs": [{"path": "out/model.pt", "digest": "", "bytes": 48_000_000}],
                "redirected": [],
                "isolation": "overlay",
                "imports": {"outside": []},
            }
        )
    return Reproduction.objects.create(
        original=run, rerun=rerun, job=job, requested_by=user, verdict=verdict, judged_at=now if verdict else None
    )


def people() -> tuple[User, User, User]:
    """Alice owns, Bob looks on, Charlie must see nothing."""
    made = []
    for name in ("alice", "bob", "charlie"):
        made.append(User.objects.filter(username=name).first() or accounts.create_user(username=name, password="correct horse battery"))
    return tuple(made)


LONG = "a-name-nobody-would-choose-but-somebody-will-" * 5


def everything(count: int = 12) -> None:
    alice, _bob, _charlie = people()
    project = projects.for_writing(user=alice, name="gpt-scaling")
    projects.set_members(user=alice, project=project, members=[{"user": "alice", "role": "owner"}, {"user": "bob", "role": "viewer"}])
    states = ["finished", "finished", "failed", "killed", "finished", "crashed", "finished", "running"]
    for at in range(count):
        lr = [1e-4, 3e-4, 6e-4, 1e-3, 3e-3][at % 5]
        state = states[at % len(states)] if at else "running"
        diverge = 700 if at % 7 == 4 else None
        name = LONG[:240] if at == 5 else f"gpt-12x512-lr{lr:g}-seed{at}"
        steps = [1200, 2400, 900, 20000][at % 4]
        run_of(
            alice,
            "gpt-scaling",
            name,
            steps=steps,
            seed=at,
            lr=lr,
            state=state,
            ranks=2 if at % 3 == 1 else 1,
            ago=120 + at * 5400,
            tags=["baseline"] if at % 4 == 0 else [],
            diverge=diverge,
        )
        print(at, name[:60], state, flush=True)
    run_of(alice, "digits", "one-run", steps=60, seed=3, lr=1e-3)
    original = run_of(alice, "digits", "original", seed=5)
    for kind in ("exact", "diverged", "blocked", "running"):
        rerun = (
            None
            if kind == "blocked"
            else run_of(alice, "digits", f"original (rerun {kind})", seed=5, state="running" if kind == "running" else "finished")
        )
        print("reproduction", kind, reproduction_of(original, rerun, kind, alice).id)


if __name__ == "__main__":
    everything(int(sys.argv[1]) if len(sys.argv) > 1 else 12)
