"""No isolation: the program sees and may touch the machine. What would overwrite something is refused by name before it starts."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from runner.errors import RecipeFailure
from runner.isolations import Placement, Prepared
from runner.order import Order, inside
from runner.settings import Settings
from runner.workspace import JobFolder

HARMLESS = ("/dev", "/proc", "/sys")
COPY_BYTES = 256 * 2**20


class NoIsolation:
    name = "none"

    def works(self, settings: Settings) -> str | None:
        return None

    def prepare(self, order: Order, folder: JobFolder, settings: Settings, placement: Placement, needed: list[str]) -> Prepared:
        for entry in order.outputs:
            path = entry["path"]
            if entry.get("in_root") is not None or not path.startswith("/") or any(inside(path, at) for at in HARMLESS):
                continue
            if order.root and inside(path, order.root):
                continue  # the source is restored elsewhere, and the command's paths are rewritten to it
            if inside(path, "/tmp") and not os.path.lexists(path):  # noqa: S108  # a scratch name that is gone harms nobody
                continue
            raise RecipeFailure(
                "would_overwrite",
                f"The run wrote to {path}, outside its source folder, and this worker has no isolation that could redirect it. "
                "Run it on a worker with the overlay isolation, or let the script write below its own folder.",
                missing=path,
            )
        for _, path in placement.restored:
            raise RecipeFailure(
                "would_overwrite",
                f"The stored copy of {path} would have to be put back there, outside the job's folder, "
                "which this worker does not do without an isolation. "
                "Put the file there yourself, or run it on a worker with the overlay isolation.",
                missing=path,
            )
        for source, path in placement.mapped:
            raise RecipeFailure(
                "data_missing",
                f"{path} is mapped to {source}, which needs the overlay isolation. Without it, make {path} exist on this machine.",
                missing=path,
            )
        for file, place in placement.into_source:
            place.parent.mkdir(parents=True, exist_ok=True)
            if os.path.getsize(file) <= COPY_BYTES:
                shutil.copyfile(file, place)
            else:
                place.symlink_to(file)  # the SDK's write guard keeps it from being written through
        return Prepared(
            view=None,
            env={"ENCORE_WRITE_GUARD": "1", "TMPDIR": str(folder.tmp)},
            redirect={order.root: str(folder.source)} if order.root else {},
        )

    def redirected(self, folder: JobFolder, prepared: Prepared) -> list[dict[str, str]]:
        return []

    def where(self, path: str, folder: JobFolder) -> Path:
        return Path(path)
