"""Started by file path. Builds the package `sdk` around this file by hand: the user may have a folder of that name."""

import os
import sys
import types

HERE = os.path.dirname(os.path.abspath(__file__))


def main() -> int:
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
