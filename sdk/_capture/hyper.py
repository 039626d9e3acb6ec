"""Hyper-parameters without a line of ours: argparse's results, command-line flags, Hydra, click, absl."""

from __future__ import annotations

import contextlib
import importlib.machinery
import json
import sys
from collections.abc import Callable
from typing import Any

from .. import _secrets

_parsed: dict[str, Any] = {}
_listener: Callable[[], None] | None = None
MAX_VALUES = 2000
MAX_TEXT = 4096


def install() -> None:
    """Listen to argparse: now if it is loaded, else when it is (importing it ourselves would cost each import of the SDK some ms)."""
    if "argparse" in sys.modules:
        _patch(sys.modules["argparse"])
    elif not any(isinstance(finder, _WhenImported) for finder in sys.meta_path):
        sys.meta_path.insert(0, _WhenImported())


class _WhenImported:
    """Lets argparse be found as ever, and patches it once it has run; then takes itself away."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != "argparse":
            return None
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is None or spec.loader is None:
            return None
        original = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            original(module)
            _patch(module)

        with contextlib.suppress(AttributeError):
            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _patch(argparse: Any) -> None:
    parser: Any = getattr(argparse, "ArgumentParser", None)
    original = getattr(parser, "parse_known_args", None)
    if original is None or getattr(original, "__encore__", False):
        return

    def parse_known_args(self: Any, args: Any = None, namespace: Any = None, **kwargs: Any) -> Any:
        result = original(self, args, namespace, **kwargs)
        with contextlib.suppress(Exception):  # a namespace that cannot be read is no reason to stop a program
            heard(vars(result[0]))
        return result

    parse_known_args.__encore__ = True  # type: ignore[attr-defined]
    parse_known_args.__wrapped__ = original  # type: ignore[attr-defined]
    parse_known_args.__doc__ = original.__doc__
    parser.parse_known_args = parse_known_args


def heard(values: dict[str, Any]) -> None:
    _parsed.update(values)
    if _listener is not None:
        _listener()


def listen(listener: Callable[[], None] | None) -> None:
    """Call `listener` when arguments are parsed after init."""
    global _listener
    _listener = listener


def plain(value: Any, depth: int = 0) -> Any:
    """`value` as JSON; what JSON cannot say becomes its text, cut at 4,096 characters."""
    if value is None or isinstance(value, (bool, int)):
        return value if not isinstance(value, int) or abs(value) < 2**63 else str(value)
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else repr(value)
    if isinstance(value, str):
        return value[:MAX_TEXT]
    if depth < 6:
        if isinstance(value, dict):
            return {str(key): plain(each, depth + 1) for key, each in list(value.items())[:MAX_VALUES]}
        if isinstance(value, (list, tuple, set, frozenset)):
            values = sorted(value, key=repr) if isinstance(value, (set, frozenset)) else value
            return [plain(each, depth + 1) for each in list(values)[:MAX_VALUES]]
    if callable(value):
        return getattr(value, "__qualname__", repr(value))[:MAX_TEXT]
    return str(value)[:MAX_TEXT]


def number(text: str) -> Any:
    """A flag's value as the number or truth it says, else as text."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, (int, float)) and len(text) < 40 else text


def flags(argv: list[str]) -> dict[str, Any]:
    """`--name value`, `--name=value`, `--name` (true), `-n value` and `name=value` of a command line; a repeated flag becomes a list."""
    found: dict[str, Any] = {}

    def add(name: str, value: Any) -> None:
        if name in found:
            found[name] = [*(found[name] if isinstance(found[name], list) else [found[name]]), value]
        else:
            found[name] = value

    index = 0
    while index < len(argv) and argv[index] != "--":
        argument = argv[index]
        if argument.startswith("-") and len(argument) > 1 and not _is_number(argument):
            name, equals, value = argument.lstrip("-").partition("=")
            if equals:
                add(name, number(value))
            elif index + 1 < len(argv) and (not argv[index + 1].startswith("-") or _is_number(argv[index + 1])):
                index += 1
                add(name, number(argv[index]))
            elif name:
                add(name, True)
        elif (
            "=" in argument
            and argument.partition("=")[0].lstrip("+~").replace(".", "").replace("/", "").replace("_", "").replace("@", "").isalnum()
        ):
            name, _, value = argument.partition("=")
            add(name.lstrip("+~"), number(value))
        index += 1
    return found


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def facts(argv: list[str]) -> dict[str, Any]:
    """The hyper section."""
    value: dict[str, Any] = {"argparse": plain(_parsed), "flags": flags(argv[1:]), "hydra": {}}
    for name, look in (("hydra", _hydra), ("click", _click), ("absl", _absl)):
        try:
            found = look()
        except Exception:
            found = None
        if found:
            value[name] = found
    return _secrets.mask_mapping(value)[0]


def _hydra() -> dict[str, Any] | None:
    module = sys.modules.get("hydra.core.hydra_config")
    if module is None or not module.HydraConfig.initialized():
        return None
    config = module.HydraConfig.get()
    return {
        "job": str(config.job.name),
        "config_name": str(config.job.config_name),
        "overrides": [str(each) for each in config.overrides.task],
        "choices": {str(key): str(each) for key, each in dict(config.runtime.choices).items()},
        "output_dir": str(config.runtime.output_dir),
    }


def _click() -> dict[str, Any] | None:
    module = sys.modules.get("click")
    context = module.get_current_context(silent=True) if module is not None else None
    return plain(dict(context.params)) if context is not None else None


def _absl() -> dict[str, Any] | None:
    module = sys.modules.get("absl.flags")
    if module is None or not module.FLAGS.is_parsed():
        return None
    chosen = {name: module.FLAGS[name] for name in module.FLAGS}
    return {name: plain(flag.value) for name, flag in chosen.items() if flag.present or not flag.using_default_value}


def seed_candidates(argv: list[str]) -> list[int]:
    """Integers that stand under a name with `seed` in it."""
    return [
        value for values in (_parsed, flags(argv[1:])) for name, value in values.items() if "seed" in name.lower() and type(value) is int
    ]
