"""What was measured, for the tracker to judge. Nothing here says whether it is good."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from runner import devices
from runner.job import Job
from runner.manifest import file_digest
from runner.order import inside, relative

MOST_OUTPUTS = 1000
MOST_OUTSIDE = 100


def run(job: Job) -> str:
    measure_again(job)
    job.evidence["outputs"] = outputs(job)
    assert job.prepared is not None
    job.evidence["redirected"] = job.isolation.redirected(job.folder, job.prepared)
    job.evidence["imports"] = {"outside": outside(job)}
    return (
        f"{len(job.evidence['outputs'])} recorded outputs found, {len(job.evidence['redirected'])} files written elsewhere redirected, "
        f"{len(job.evidence['imports']['outside'])} imports from outside"
    )


def fill(job: Job) -> dict[str, Any]:
    """All that is known by now; also told when a step has failed."""
    recorded = job.order.environment
    differences = job.differences
    environment = {
        "lock": recorded.get("lock"),
        "python": job.environment.interpreter.version if job.environment else None,
        "equal": job.environment is not None and not any(d["fact"].startswith(("package ", "python", "sdk")) for d in differences),
        "differences": differences,
        "folder": str(job.environment.folder) if job.environment else None,
    }
    job.evidence["environment"] = environment
    job.evidence["hardware"] = devices.hardware()
    job.evidence.setdefault("isolation", job.isolation.name)
    job.evidence["folder"] = str(job.folder.path)
    return job.evidence


def measure_again(job: Job) -> None:
    """After the run: whether what was used in place is still what it was."""
    for entry in job.evidence.get("data", []):
        if entry["how"] == "in place" and entry["expected"]:
            path = Path(entry["path"])
            now = file_digest(path) if path.is_file() else None
            if now != entry["found"]:
                entry["found"], entry["equal"] = now, False


def outputs(job: Job) -> list[dict[str, Any]]:
    """Recorded outputs that the rerun made too."""
    found = []
    for entry in job.order.outputs[:MOST_OUTPUTS]:
        path = entry["path"]
        if entry.get("in_root") is not None:
            here = job.folder.source / relative(entry["in_root"], "an output")
        elif path.startswith("/"):
            here = job.isolation.where(path, job.folder)
        else:
            continue
        try:
            if here.is_file() and not here.is_symlink():
                found.append({"path": path, "digest": file_digest(here), "bytes": here.stat().st_size})
        except OSError:
            continue
    return found


def outside(job: Job) -> list[str]:
    """Files of modules that came neither from the job, nor the environment, nor the interpreter's own library."""
    assert job.environment is not None
    interpreter = job.environment.interpreter
    own = [str(job.folder.path), str(job.environment.folder), *interpreter.stdlib]
    if job.prepared and job.prepared.view and job.order.root:
        own.append(job.order.root)  # the restored source lies there, too
    own += [os.path.realpath(path) for path in own]
    packages = [os.path.join(path, "site-packages") for path in interpreter.stdlib] + [
        os.path.join(path, "dist-packages") for path in interpreter.stdlib
    ]
    strange: set[str] = set()
    for capture in job.folder.journal.glob("*/*/capture.json"):
        for file in _modules(capture):
            path = os.path.normpath(file)
            if not any(inside(path, at) is not None for at in own) or any(inside(path, at) is not None for at in packages):
                strange.add(path)
    return sorted(strange)[:MOST_OUTSIDE]


def _modules(capture: Path) -> list[str]:
    try:
        modules = json.loads(capture.read_text()).get("modules")
        return [file for file in modules.values() if isinstance(file, str) and file.startswith("/")] if isinstance(modules, dict) else []
    except (OSError, ValueError, AttributeError):
        return []
