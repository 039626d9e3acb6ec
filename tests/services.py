"""Real PostgreSQL, Redis and SeaweedFS on private free ports in a temporary folder, for the suite.

    python -m tests.services run [--only postgres,redis,s3] -- pytest …

starts them, runs the command with their addresses in its environment (``ENCORE_TEST_POSTGRES``, ``ENCORE_TEST_REDIS``,
``ENCORE_TEST_S3``), stops them by their own process ids and removes the folder. ``environment()`` does the same for a ``with`` block.
Each service dies with the process that started it.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import glob
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

STARTED: list[subprocess.Popen[bytes]] = []


def free_port() -> int:
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return trial.getsockname()[1]


def free_block(count: int, offset: int = 10_000) -> int:
    """The first of ``count`` ports that are free together with those ``offset`` higher, where SeaweedFS puts its gRPC."""
    start = 12_000 + os.getpid() % 90 * 100
    for first in [*range(start, 21_900, count), *range(11_000, start, count)]:
        if all(_is_free(first + i) and _is_free(first + i + offset) for i in range(count)):
            return first
    raise RuntimeError("no block of free ports below 22,000; is another suite running many times over?")


def _is_free(port: int) -> bool:
    with socket.socket() as trial:
        try:
            trial.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def launch(argv: list[str], log: Path, **more) -> subprocess.Popen[bytes]:
    def die_with_parent() -> None:
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)

    with log.open("ab") as output:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, preexec_fn=die_with_parent, process_group=0, **more
        )
    STARTED.append(process)
    return process


def wait_until(ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path, what: str, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if ready():
            return
        if process.poll() is not None:
            break
        time.sleep(0.05)
    raise RuntimeError(f"{what} did not become ready; the end of its log:\n{log.read_text(errors='replace')[-3000:]}")


def stop(process: subprocess.Popen[bytes], signum: int = signal.SIGTERM) -> None:
    if process.poll() is None:
        process.send_signal(signum)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(15)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


# -- PostgreSQL ---------------------------------------------------------------------------------------------------------------


def postgres_program(name: str) -> str:
    found = sorted(glob.glob(f"/usr/lib/postgresql/*/bin/{name}"), key=lambda path: int(path.split("/")[4]))
    program = shutil.which(name) or (found[-1] if found else None)
    if program is None:
        raise RuntimeError("PostgreSQL is not installed: apt-get install postgresql (make test does it)")
    return program


@contextlib.contextmanager
def postgres(folder: Path, *, is_durable: bool = False) -> Iterator[str]:
    """A ``DATABASE_URL``. PostgreSQL refuses root, so root runs it as postgres or nobody, in a folder of theirs.

    Without ``is_durable`` nothing is synced: quicker, and as safe as a test needs.
    """
    data, log, port = folder / "postgres", folder / "postgres.log", free_port()
    as_user: list[str] = []
    data.mkdir(mode=0o700)
    if os.geteuid() == 0:
        import pwd

        names = {entry.pw_name for entry in pwd.getpwall()}
        user = "postgres" if "postgres" in names else "nobody"
        shutil.chown(data, user)
        as_user = ["runuser", "-u", user, "--"]
    with log.open("ab") as output:
        subprocess.run(
            [*as_user, postgres_program("initdb"), "-D", str(data), "-U", "encore", "--auth=trust", "--encoding=UTF8", "--locale=C", "-N"],
            check=True, stdout=output, stderr=output, cwd="/",
        )  # fmt: skip
    settings = {"listen_addresses": "127.0.0.1", "port": port, "unix_socket_directories": str(data), "max_connections": 200}
    settings |= (
        {"shared_buffers": "512MB", "max_wal_size": "4GB", "jit": "off"}
        if is_durable
        else {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
    )
    options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
    # runuser waits for PostgreSQL and would swallow the signal that stops it: setpriv replaces itself. A change of user clears PDEATHSIG.
    if as_user:
        as_user = ["setpriv", "--pdeathsig=KILL", f"--reuid={user}", f"--regid={_group_of(user)}", "--clear-groups", "--"]
    process = launch([*as_user, postgres_program("postgres"), "-D", str(data), *options], log, cwd="/")
    try:
        program = postgres_program("pg_isready")
        check = [program, "-q", "-h", "127.0.0.1", "-p", str(port), "-U", "encore", "-d", "postgres"]
        wait_until(lambda: subprocess.run(check).returncode == 0, process, log, "PostgreSQL")
        yield f"postgres://encore@127.0.0.1:{port}/postgres"
    finally:
        stop(process, signal.SIGINT)  # fast shutdown: does not wait for clients


def _group_of(user: str) -> str:
    import grp
    import pwd

    return grp.getgrgid(pwd.getpwnam(user).pw_gid).gr_name


# -- Redis ----------------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def redis(folder: Path) -> Iterator[str]:
    program = shutil.which("redis-server")
    if program is None:
        raise RuntimeError("Redis is not installed: apt-get install redis-server (make test does it)")
    port, log, data = free_port(), folder / "redis.log", folder / "redis"
    data.mkdir()
    process = launch([program, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(data), "--save", "", "--appendonly", "no"], log)
    try:
        wait_until(lambda: listens(port), process, log, "Redis")
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        stop(process)


# -- S3 -------------------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def s3(folder: Path) -> Iterator[dict[str, str]]:
    """SeaweedFS: ``{"endpoint", "access_key", "secret_key", "bucket"}``; the bucket exists. Started twice if it is slow the first time."""
    problem: RuntimeError | None = None
    for attempt in (1, 2):
        data, log = folder / f"weed{attempt}", folder / f"weed{attempt}.log"
        data.mkdir()
        identity = {"endpoint": "", "access_key": "encore-tests", "secret_key": os.urandom(16).hex(), "bucket": "encore"}
        process, identity["endpoint"] = _start_weed(data, log, identity)
        try:
            wait_until(lambda at=identity["endpoint"]: _answers_http(at), process, log, "SeaweedFS")
            _make_bucket(identity)
        except RuntimeError as failed:
            stop(process)
            problem = failed
            continue
        try:
            yield identity
        finally:
            stop(process)
        return
    raise problem or RuntimeError("SeaweedFS did not start")


def _start_weed(data: Path, log: Path, identity: dict[str, str]) -> tuple[subprocess.Popen[bytes], str]:
    config = data / "identities.json"
    credentials = [{"accessKey": identity["access_key"], "secretKey": identity["secret_key"]}]
    actions = ["Admin", "Read", "List", "Tagging", "Write"]
    config.write_text(json.dumps({"identities": [{"name": "tests", "credentials": credentials, "actions": actions}]}))
    master, volume, filer, door, admin = range(first := free_block(5), first + 5)
    options = [
        f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}",
        f"-s3.port={door}", f"-admin.port={admin}", "-admin.ui=false", "-webdav=false", "-s3.port.iceberg=0", f"-s3.config={config}",
        "-s3.allowDeleteBucketNotEmpty=false", "-master.telemetry=false",
    ]  # fmt: skip
    weed = Path(sys.executable).with_name("weed")
    process = launch([str(weed) if weed.exists() else "weed", "mini", *options], log, cwd=data)
    return process, f"http://127.0.0.1:{door}"


def _answers_http(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=2).close()
    except urllib.error.HTTPError:
        return True  # an S3 error is an answer
    except OSError:
        return False
    return True


def _make_bucket(identity: dict[str, str]) -> None:
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    client = boto3.client(
        "s3", endpoint_url=identity["endpoint"], aws_access_key_id=identity["access_key"], aws_secret_access_key=identity["secret_key"],
        region_name="us-east-1",
        config=Config(s3={"addressing_style": "path"}, connect_timeout=5, read_timeout=10, retries={"total_max_attempts": 1}),
    )  # fmt: skip
    until = time.monotonic() + 60
    while True:
        try:
            client.create_bucket(Bucket=identity["bucket"])
            client.put_object(Bucket=identity["bucket"], Key="ready", Body=b"yes")
            return
        except (BotoCoreError, ClientError) as problem:  # the filer comes up a little after its door
            if time.monotonic() > until:
                raise RuntimeError(f"SeaweedFS takes no object: {problem}") from None
            time.sleep(0.2)


# -- all ------------------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def environment(only: set[str] | None = None) -> Iterator[dict[str, str]]:
    """The variables that say where the services are; what the caller's environment names already is not started again."""
    wanted = only or {"postgres", "redis", "s3"}
    with contextlib.ExitStack() as stack:
        # Below the system's temporary folder, whatever TMPDIR says: PostgreSQL's user must be able to pass through.
        folder = Path(tempfile.mkdtemp(prefix="encore-services-", dir="/tmp"))
        folder.chmod(0o755)
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        found = {}
        for name, start in (("postgres", postgres), ("redis", redis), ("s3", s3)):
            variable = f"ENCORE_TEST_{name.upper()}"
            if name in wanted and variable not in os.environ:
                value = stack.enter_context(start(folder))
                found[variable] = value if isinstance(value, str) else json.dumps(value)
        yield found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=["run"])
    parser.add_argument("--only", help="names, separated by commas")
    given = sys.argv[1:] if arguments is None else arguments
    at = given.index("--") if "--" in given else len(given)
    args, command = parser.parse_args(given[:at]), given[at + 1 :]
    if not command:
        parser.error("give a command after --")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    began = time.monotonic()
    with environment(set(args.only.split(",")) if args.only else None) as found:
        print(f"services: {', '.join(found) or 'none started'} ({time.monotonic() - began:.1f} s)", file=sys.stderr, flush=True)
        return subprocess.run(command, env={**os.environ, **found}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
