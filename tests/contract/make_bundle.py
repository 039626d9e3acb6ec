"""Makes the golden bundle, once per format version: python tests/contract/make_bundle.py (it refuses to overwrite).

A tiny run goes through the real services into an empty database; what the clock and chance would give is fixed.
"""

from __future__ import annotations

import os
import sys
import tempfile
from datetime import datetime, timezone
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = Path(__file__).parent / "golden" / "bundle-1.zip"
RUN, RERUN, JOB, REPRODUCTION = "a" * 26, "b" * 26, "c" * 26, "d" * 26
WRITERS = ("gezdgnbvgy3tqojqgezdgnbvga", "gezdgnbvgy3tqojqgezdgnbvge")
WALL_US = 1_700_000_000_000_000
MOMENT = datetime(2023, 11, 14, 22, 13, 20, tzinfo=timezone.utc)
TRAIN = b'import sys\n\nprint("one line of training", sys.argv[1:])\n'


def tiny_run(project, user, token):
    """Two ranks, NaN, infinities, an integer beyond 2**53, a stored input, a verdict; returns the Run."""
    from tests.tracker.store import wire_writer as wire
    from tracker.models import Attempt, Job, KeyDefinition, Reproduction, Run, Writer
    from tracker.services import ingest

    run = Run.objects.create(
        id=RUN, project=project, user=user, name="tiny", state="finished", config={"lr": 0.1}, tags=["golden"], host="node1", exit_code=0
    )
    Run.objects.filter(id=RUN).update(created_at=MOMENT, started_at=MOMENT, finished_at=MOMENT)
    attempt = Attempt.objects.create(run=run, number=1, world_size=2, recipe=recipe(put_all(run)))
    KeyDefinition.objects.create(run=run, pattern="val/*", fields={"goal": "max", "kind": "quality"})
    nan, inf = float("nan"), float("inf")
    for rank, writer in enumerate(WRITERS):
        Writer.objects.create(
            id=writer, run=run, attempt=attempt, rank=rank, local_rank=rank, world_size=2, host="node1",
            started_us=WALL_US, anchor_wall_us=WALL_US, finish={"state": "finished", "exit_code": 0},
        )  # fmt: skip
        rows = [(n, n, WALL_US + n, [1 / (n + 1 + rank), 2**60 + n]) for n in range(4)]
        dense = wire.dense(0, ["train/loss", "tokens"], "dq", rows)
        odd = [(4 + n, "odd", "d", -n, WALL_US + 9 + n, value) for n, value in enumerate([nan, inf, -inf, -0.0])]
        body = wire.batch(RUN, writer, 0, 7, [dense, wire.sparse(0, odd)])
        ingest.append_batch(writer_id=writer, user=user, token=token, body=body, encoding="")
    job = Job.objects.create(id=JOB, project=project, state="finished", evidence={"format": 1, "exit_code": 0})
    rerun = Run.objects.create(id=RERUN, project=project, user=user, name="tiny (rerun)", state="finished")
    verdict = {"format": 1, "sentence": "Bit-exact.", "execution": "completed", "agreement": "bit_exact"}
    Reproduction.objects.create(id=REPRODUCTION, original=run, rerun=rerun, job=job, verdict=verdict, judged_at=MOMENT)
    Reproduction.objects.filter(id=REPRODUCTION).update(created_at=MOMENT)
    return run


def put_all(run) -> dict[str, str]:
    """Stores the run's blobs; name to digest."""
    from blake3 import blake3

    from tracker.services import blobs
    from tracker.store.bundle import document

    def put(data: bytes) -> str:
        digest = f"blake3:{blake3(data).hexdigest()}"
        blobs.put(run=run, digest=digest, chunks=[data])
        return digest

    found = {"train.py": put(TRAIN), "link.py": put(b"train.py"), "pkg/run.sh": put(b"#!/bin/sh\n"), "table.csv": put(b"a,b\n1,2\n")}
    found |= {"wheel": put(b"stands for a wheel"), "rng": put(b'["a","state"]')}
    modes = {"link.py": "120000", "pkg/run.sh": "100755", "train.py": "100644"}
    size = {"link.py": 8, "pkg/run.sh": 10, "train.py": len(TRAIN)}
    files = [{"path": p, "mode": m, "bytes": size[p], "digest": found[p], "state": "tracked"} for p, m in modes.items()]
    found["manifest"] = put(document({"format": 1, "files": files, "mounts": []}))
    return found


def recipe(digest: dict[str, str]) -> dict:
    table = {"path": "/data/table.csv", "in_root": None, "bytes": 8, "mtime_us": WALL_US, "digest": digest["table.csv"]}
    absent = {"path": "/data/large.bin", "in_root": None, "bytes": 10**9, "mtime_us": WALL_US, "digest": "blake3:" + "1" * 64}
    rest = {"strength": "full", "by": "open", "name": None}
    return {
        "command": {
            "argv": ["train.py", "--text", "two words"], "executable": "/venv/bin/python", "python": "3.11.7", "cwd": "/proj",
            "cwd_in_root": ".", "entry": {"kind": "script", "name": "train.py", "path": "/proj/train.py", "path_in_root": "train.py"},
            "launcher": None, "world_size": 2, "env": {"OMP_NUM_THREADS": "1"}, "env_masked": ["API_KEY"], "pythonpath": [],
        },
        "source": {"root": "/proj", "git": None, "manifest": digest["manifest"], "files": 3, "left_out": []},
        "environment": {
            "python": {"version": "3.11.7", "implementation": "CPython"}, "platform": {"system": "Linux", "machine": "x86_64"},
            "packages": [{"name": "numpy", "version": "2.0.0", "from": {"kind": "index", "url": None}}],
            "sdk": {"version": "0.1.0", "wheel": digest["wheel"]},
        },
        "data": {"inputs": [table | rest | {"stored": True}, absent | rest | {"stored": False}], "outputs": []},
        "numerics": {"seeds": {"torch": 0}, "rng": {"0": {"python": digest["rng"], "numpy": None, "torch": "blake3:" + "2" * 64}}},
    }  # fmt: skip


def main() -> None:
    if GOLDEN.exists():
        raise SystemExit(f"{GOLDEN.name} exists: data in the field looks like it. A new version gets a new file.")
    sys.path.insert(0, str(ROOT))
    with tempfile.TemporaryDirectory() as home:
        os.environ |= {"DJANGO_SETTINGS_MODULE": "tracker.settings", "ENCORE_HOME": home, "DATABASE_URL": f"sqlite:///{home}/db.sqlite3"}
        import django

        django.setup()
        from django.core.management import call_command

        from tracker.models import Membership, Project
        from tracker.services import accounts, bundles

        call_command("migrate", verbosity=0)
        user = accounts.create_user(username="alice")
        project = Project.objects.create(slug="golden", name="Golden")
        Membership.objects.create(project=project, user=user, role="owner")
        token, _ = accounts.create_token(user=user, name="t", scopes=["api"])
        with open(GOLDEN, "xb") as file:
            bundles.write(user=user, run=tiny_run(project, user, token), file=file, created_us=WALL_US)
    print(GOLDEN.name, GOLDEN.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
