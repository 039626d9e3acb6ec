"""A tag's key: files beside each other share their names; those of a folder of their own get its name in front, as Keras means it."""

from __future__ import annotations

import os
import re

_PARTS = frozenset(("train", "training", "validation", "valid", "val", "eval", "evaluation", "test"))
_STAMP = re.compile(r"\d{9,}(\.\d+)?")  # add_hparams puts its file into a folder named by the time


class Names:
    """`root` is the folder whose files need no prefix: that of the first file, or the one above where that is `train` or the like."""

    def __init__(self, root: str | None = None) -> None:
        self.root = root

    def place(self, path: str) -> None:
        if self.root is None:
            folder = os.path.dirname(path)
            self.root = os.path.dirname(folder) if os.path.basename(folder).lower() in _PARTS else folder

    def key(self, path: str, tag: str) -> str:
        folder = os.path.relpath(os.path.dirname(path), self.root or os.path.dirname(path))
        parts = [part for part in folder.split(os.sep) if part not in (".", "..") and not _STAMP.fullmatch(part)]
        return "/".join([*parts, tag])
