"""Started by `encore run` in the program's own interpreter: opens a run, then runs the program as if nothing had been before it."""

import os
import sys


def main() -> int:
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or ".") != here]
    arguments = sys.argv[1:]
    # What an untouched script writes for TensorBoard is all there is of its numbers; ENCORE_TENSORBOARD=0 leaves it alone.
    os.environ.setdefault("ENCORE_TENSORBOARD", "1")
    return _perform(arguments, _load(here, arguments))


def _load(here: str, arguments: list):
    """Our package by its path, whatever folder `sdk` lies beside the program; None where its dependencies are missing."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("sdk", os.path.join(here, "__init__.py"), submodule_search_locations=[here])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["sdk"] = module
    _look_like(arguments)
    try:
        spec.loader.exec_module(module)
    except ModuleNotFoundError as error:  # another interpreter, without our dependencies
        print(f"encore run: {error}; the program runs untracked (install encore-tracker into {sys.prefix})", file=sys.stderr)
        del sys.modules["sdk"]
        return None
    return module


def _look_like(arguments: list) -> None:
    """What capture records is the program and its command line, not this file."""
    import importlib.util

    main = sys.modules["__main__"]
    sys.argv = _as_given(arguments)
    if arguments[0] == "-m":
        sys.path.insert(0, os.getcwd())
        name = arguments[1]
        found = importlib.util.find_spec(name)
        if found is not None and found.submodule_search_locations is not None:
            found = importlib.util.find_spec(f"{name}.__main__")
        if found is not None:
            main.__spec__, main.__file__ = found, found.origin
        sys.path.pop(0)
    elif arguments[0] not in ("-c", "--command"):
        main.__file__ = os.path.abspath(arguments[0])


def _as_given(arguments: list) -> list:
    if arguments[:1] == ["--command"]:
        return arguments[1:]
    if arguments[:1] == ["-m"]:
        return arguments[1:]
    return ["-c", *arguments[2:]] if arguments[:1] == ["-c"] else list(arguments)


def _perform(arguments: list, sdk) -> int:
    import runpy

    if arguments[0] == "--command":
        _begin(sdk, arguments)
        return _child(arguments[1:])
    if arguments[0] == "-m":
        sys.path.insert(0, os.getcwd())
        sys.argv = arguments[1:]
        _begin(sdk, arguments)
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    elif arguments[0] == "-c":
        sys.path.insert(0, "")
        sys.argv = ["-c", *arguments[2:]]
        _begin(sdk, arguments)
        import __main__

        exec(compile(arguments[1], "<string>", "exec"), __main__.__dict__)  # noqa: S102 - the program itself
    else:
        sys.path.insert(0, os.path.dirname(os.path.abspath(arguments[0])))
        sys.argv = list(arguments)
        _begin(sdk, arguments)
        runpy.run_path(arguments[0], run_name="__main__")
    return 0


def _begin(sdk, arguments: list) -> None:
    """Opens the run. If the program turns out to have an `init` of its own, that one goes on with it (`_adopt.py`)."""
    if sdk is None:
        return
    asked = _own_init(arguments)
    if asked is None:  # it opens its own, in a way that cannot be known beforehand
        return
    project = asked if asked and not os.environ.get("ENCORE_PROJECT") else None
    sdk.init(project=project).adoptable = True


def _own_init(arguments: list):
    """The project that the program's first file names in its `init`, "" if it has none there; None where it goes about it in a way of its
    own: a project that is computed, an id, a mode, a resume. Nothing of it is run."""
    import ast

    if arguments[0] == "--command":
        return ""
    try:
        if arguments[0] == "-c":
            source = arguments[1]
        else:
            with open(sys.modules["__main__"].__file__ or "", encoding="utf-8", errors="replace") as file:
                source = file.read(1 << 20)
        if ".init" not in source:
            return ""
        calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call) and _is_init(node.func)]
    except (OSError, AttributeError, TypeError, SyntaxError, ValueError, RecursionError):
        return ""
    found = ""
    for call in calls:
        given = {keyword.arg: keyword.value for keyword in call.keywords}
        if None in given or {"id", "resume", "fork_from", "rewind_to", "mode"} & set(given):
            return None
        project = call.args[0] if call.args else given.get("project")
        if project is not None:
            if not isinstance(project, ast.Constant) or not isinstance(project.value, (str, type(None))):
                return None
            found = found or project.value or ""
    return found


def _is_init(function) -> bool:
    import ast

    named = isinstance(function, ast.Attribute) and function.attr == "init" and isinstance(function.value, ast.Name)
    return named and function.value.id in ("sdk", "encore")


def _child(command: list) -> int:
    """A program of another kind: its output passes through us, so that it is kept; its status is ours."""
    import subprocess

    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert child.stdout is not None
    while piece := child.stdout.read1(65536):  # type: ignore[attr-defined]
        sys.stdout.write(piece.decode("utf-8", "replace"))
        sys.stdout.flush()
    status = child.wait()
    sys.exit(status if status >= 0 else 128 - status)


if __name__ == "__main__":
    main()
