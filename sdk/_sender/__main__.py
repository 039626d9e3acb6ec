"""Started by file path. Builds the package `sdk` around this file by hand: the user may have a folder of that name."""

import os
import sys
import types

HERE = os.path.dirname(os.path.abspath(__file__))


_held = None  # the run's lock, as long as the process lives


def taken(folder: str) -> bool:
    """Whether another sender is at work. Asked before anything is imported: the ranks of a node start one each, and one is needed."""
    global _held
    try:
        import fcntl

        _held = open(os.path.join(folder, "sender.lock"), "ab")  # noqa: SIM115
        fcntl.lockf(_held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (ImportError, OSError):  # the election proper knows what to do then
        return False
    return False


def main() -> int:
    if taken(sys.argv[1]):
        return 0
    # `-I` keeps the user's folders out; what the trainer imports from comes last, for blake3 and psutil in unusual places.
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != HERE]
    sys.path += [entry for entry in os.environ.get("ENCORE_SENDER_PATH", "").split(os.pathsep) if entry and entry not in sys.path]
    package = types.ModuleType("sdk")  # without running sdk/__init__.py: no hooks of the trainer here
    package.__path__ = [os.path.dirname(HERE)]
    sys.modules["sdk"] = package
    from sdk._sender import process

    return process.main(sys.argv[1])


if __name__ == "__main__":
    sys.exit(main())
