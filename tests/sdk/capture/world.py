"""A small world around a training program: a git repository, a HOME, a journal; `play` runs the program for real and gives its recipe."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from sdk._reader import Reader

from .fake import assemble

PROGRAM = """\
import argparse, os, random
import sdk

parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float, default=0.1)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--data", default="data.csv")
parser.add_argument("--out", default=None)
args, _ = parser.parse_known_args()
random.seed(args.seed)
sdk.init(project="facts", config=vars(args))
open(args.data).read()
os.environ.get("MY_OPTION")
if args.out:
    with open(args.out, "w") as file:
        file.write("result")
print("training")
sdk.log({"loss": 1.0}, step=0)
sdk.finish()
"""


class World:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root, self.home = folder / "repository", folder / "home"
        self.root.mkdir(parents=True)
        self.home.mkdir()
        self.runs = 0
        self.journal = folder / "journal"
        self.git("init", "-q", "-b", "main")
        self.write("train.py", PROGRAM)
        self.write("data.csv", "1,2\n")
        self.commit("first")

    def git(self, *arguments: str, at: Path | None = None) -> str:
        settings = ["-c", "user.name=T", "-c", "user.email=t@example.com", "-c", "commit.gpgsign=false", "-c", "protocol.file.allow=always"]
        env = {**os.environ, "HOME": str(self.home), "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"}
        return subprocess.run(
            ["git", *settings, *arguments], cwd=at or self.root, env=env, check=True, capture_output=True, text=True
        ).stdout.strip()

    def write(self, path: str, content: str | bytes) -> Path:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content if isinstance(content, bytes) else content.encode())
        return target

    def commit(self, message: str) -> None:
        self.git("add", "-A")
        self.git("commit", "-q", "-m", message)

    def environ(self, **more: str) -> dict[str, str]:
        kept = {"PATH": os.environ["PATH"], "HOME": str(self.home), "ENCORE_HOME": str(self.home / ".encore"), "ENCORE_MODE": "offline"}
        kept["ENCORE_SENDER_NICE"] = "0"  # else it gets a sixtieth of a core beside the suite's other processes
        return {**kept, "ENCORE_JOURNAL": str(self.journal), "PYTHONDONTWRITEBYTECODE": "1", **more}

    def play(
        self,
        *arguments: str,
        env: dict[str, str] | None = None,
        cwd: Path | None = None,
        start: list[str] | None = None,
        before: Any = None,
        ranks: int = 1,
    ) -> dict[str, Any]:
        """Run `python <start or train.py> <arguments>` to its end, wait for the sender's capture, give the recipe."""
        self.runs += 1
        self.journal = self.folder / f"journal-{self.runs}"
        # What was just written must be older than the process in the kernel's coarse clock, as it is when a person starts a run.
        time.sleep(0.05)
        done = subprocess.run(
            [sys.executable, *(start or ["train.py"]), *arguments],
            cwd=cwd or self.root, env=self.environ(**(env or {})), capture_output=True, text=True, timeout=240,
            preexec_fn=before, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        self.output = done.stdout
        self.docs = self.documents(ranks)
        return assemble(self.docs)

    def documents(self, ranks: int = 1, seconds: float = 120) -> list[dict[str, Any]]:
        """All documents of the run's writers, once all have finished; trainers first."""
        end = time.monotonic() + seconds
        while True:
            writers = [(json.loads(path.read_text()), path.parent) for path in self.journal.glob("*/*/writer.json")]
            docs = [
                [doc for _, _, _, doc in _docs(folder)]
                for _, folder in sorted(writers, key=lambda each: (each[0]["kind"] != "trainer", each[0]["rank"]))
            ]
            finished = [any(doc.get("name") == "finish" for doc in each) for each in docs]
            if len(docs) >= ranks + 1 and all(finished):
                return [doc for each in docs for doc in each]
            assert time.monotonic() < end, f"{len(docs)} writers, finished: {finished}; {self.senders()}"
            time.sleep(0.05)

    def senders(self) -> str:
        return "\n".join(path.read_text() for path in self.journal.glob("*/sender.log"))

    def blob(self, digest: str) -> bytes:
        found = next(iter(self.journal.glob(f"*/*/blobs/{digest.removeprefix('blake3:')}")), None)
        assert found is not None, f"{digest} is not stored"
        return found.read_bytes()

    def manifest(self, recipe: dict[str, Any]) -> dict[str, Any]:
        return json.loads(self.blob(recipe["source"]["manifest"]))


def _docs(folder: Path) -> list[Any]:
    reader = Reader(folder)
    found: list[Any] = []
    while True:
        chunk = reader.read()
        if not chunk or not (chunk.docs or chunk.dense or chunk.sparse):
            return found
        for number, step, at, doc in chunk.docs:
            if "blob" in doc and set(doc) == {"type", "blob"}:
                doc = json.loads((folder / "blobs" / doc["blob"].removeprefix("blake3:")).read_bytes())
            found.append((number, step, at, doc))
