"""A PostgreSQL of the test's own that is killed: one backend, the postmaster, all of it in one instant, or an immediate shutdown."""

from __future__ import annotations

import contextlib
import os
import pwd
import random
import shutil
import signal
import subprocess
from pathlib import Path

import psutil

from tests import services
from tests.torture.house import until

DEATHS = ("backend", "immediate", "cluster", "postmaster")


class Cluster:
    """`data` lies below `folder`, which PostgreSQL's user must be able to pass through. A commit is on its way to the disk before it is
    acknowledged, as PostgreSQL does by default; the fsync itself is left out, since processes die here and no machine does."""

    def __init__(self, folder: Path) -> None:
        self.data, self.log = folder / "postgres", folder / "postgres.log"
        self.port = services.free_port()
        self.data.mkdir(mode=0o700)
        self._as_user: list[str] = []
        user = None
        if os.geteuid() == 0:
            user = "postgres" if "postgres" in {entry.pw_name for entry in pwd.getpwall()} else "nobody"
            shutil.chown(self.data, user)
            self._as_user = [
                "setpriv", "--pdeathsig=KILL", f"--reuid={user}", f"--regid={services._group_of(user)}", "--clear-groups", "--",
            ]  # fmt: skip
        initdb = [
            services.postgres_program("initdb"),
            "-D",
            str(self.data),
            "-U",
            "encore",
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C",
            "-N",
        ]
        with self.log.open("ab") as output:
            subprocess.run([*self._as_user, *initdb], check=True, stdout=output, stderr=output, cwd="/")
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"postgres://encore@127.0.0.1:{self.port}/postgres"

    def start(self, wait: bool = True) -> None:
        settings = {
            "listen_addresses": "127.0.0.1", "port": self.port, "unix_socket_directories": self.data, "max_connections": 100,
            "fsync": "off", "synchronous_commit": "on", "checkpoint_timeout": "30s", "max_wal_size": "64MB", "autovacuum_naptime": "1s",
        }  # fmt: skip
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        argv = [*self._as_user, services.postgres_program("postgres"), "-D", str(self.data), *options]
        self.process = services.launch(argv, self.log, cwd="/")
        if wait:
            services.wait_until(self.is_ready, self.process, self.log, "PostgreSQL")

    def is_ready(self) -> bool:
        check = [services.postgres_program("pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port), "-U", "encore", "-d", "postgres"]
        return subprocess.run(check, check=False).returncode == 0

    def kill(self, death: str, chance: random.Random) -> int:
        """1 when it died so; it is up again afterwards."""
        family = psutil.Process(self.process.pid).children()
        if death == "backend":  # the postmaster ends all the others then, and recovers by itself
            at_work = [each for each in family if _is_backend(each)]
            if not at_work:
                return 0
            with contextlib.suppress(psutil.NoSuchProcess):
                chance.choice(at_work).kill()
            until(self.is_ready, 60)
            return 1
        if death == "immediate":
            self.process.send_signal(signal.SIGQUIT)
        else:
            self.process.kill()
            for each in family if death == "cluster" else ():
                with contextlib.suppress(psutil.NoSuchProcess):
                    each.kill()
        self.process.wait(60)
        # Those that outlived their postmaster notice it; a new one does not start before they are gone.
        until(lambda: not any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in family), 60)
        self.start()
        return 1

    def close(self) -> None:
        services.stop(self.process, signal.SIGQUIT)


def _is_backend(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return "127.0.0.1(" in " ".join(process.cmdline())
    return False
