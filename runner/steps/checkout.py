"""The recorded source, restored from the store into the job's folder and measured again."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from runner import manifest
from runner.errors import RecipeFailure
from runner.job import Job
from runner.order import relative

FETCHES = 8


def run(job: Job) -> str:
    source = job.order.source
    digest = str(source.get("manifest"))
    if not manifest.is_digest(digest):
        raise RecipeFailure(
            "source_missing",
            "The recipe holds no snapshot of the source, so there is nothing to restore. "
            "Runs tracked from a file or a git repository have one.",
            missing="source.manifest",
        )
    job.manifest = manifest.parse(job.blobs.read(digest))
    names = {file.digest: file.name for file in job.manifest.files}
    with ThreadPoolExecutor(FETCHES) as pool:
        for _ in pool.map(job.blobs.prefetch, names):
            job.report.check()
    manifest.restore(job.manifest, job.folder.source, lambda blob, path: job.stored(blob, names[blob], path))
    found = manifest.tree_digest(job.manifest, job.folder.source)
    expected = source.get("tree")
    job.evidence["source"] = {"tree": found, "equal": found == expected}
    if found != expected:
        raise RecipeFailure("source_differs", "The restored source is not the recorded one.", expected=expected, found=found)
    changed = overlay(job)
    message = f"{len(job.manifest.files)} files, tree digest equal"
    return message + (f", {changed} changed as asked" if changed else "")


def overlay(job: Job) -> int:
    """Files that the request lays over the source; each is named as a difference."""
    files = job.order.overrides.get("files") or {}
    for name, text in sorted(files.items()):
        path = relative(name, "an override")
        manifest.check_name(path.encode())
        target = job.folder.source / path
        _refuse_links(job.folder.source, target.parent)
        was = manifest.file_digest(target) if target.is_file() and not target.is_symlink() else None
        target.parent.mkdir(parents=True, exist_ok=True)
        mode = target.stat().st_mode & 0o777 if was else 0o644
        target.unlink(missing_ok=True)
        target.write_text(str(text))
        target.chmod(mode)
        job.differs(f"file {path}", was, manifest.file_digest(target))
    return len(files)


def _refuse_links(root: Path, folder: Path) -> None:
    while folder != root:
        if os.path.islink(folder):
            raise RecipeFailure(
                "source_differs", f"An override would be written through the link {folder.relative_to(root)}.", missing=str(folder)
            )
        folder = folder.parent
