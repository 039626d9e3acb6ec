"""`sdk.config` and `sdk.summary`: mappings whose every change is a document in the journal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

from ._plain import plain

Emit = Callable[[dict[str, Any]], None]


def as_mapping(value: Any) -> dict[str, Any]:
    """What people pass as config: a dict, argparse's Namespace, a dataclass, an OmegaConf or any mapping. Anything else under "value"."""
    if value is None:
        return {}
    if isinstance(value, Mapping):
        return {str(key): item for key, item in value.items()}
    fields = getattr(value, "__dataclass_fields__", None)
    if fields:
        return {name: getattr(value, name) for name in fields}
    if hasattr(value, "items") and callable(value.items):
        return {str(key): item for key, item in value.items()}
    if hasattr(value, "__dict__"):
        return {key: item for key, item in vars(value).items() if not key.startswith("_")}
    return {"value": value}


class Config(MutableMapping[str, Any]):
    """What was chosen. `config.lr` and `config["lr"]`; values of a rerun or a sweep lie over what the script passes, and stay there."""

    _overrides: dict[str, Any]

    def __init__(
        self, values: Any = None, overrides: Mapping[str, Any] | None = None, emit: Emit | None = None, over: bool = False
    ) -> None:
        """over: laid over what the run has, as a further start of it does."""
        put = object.__setattr__
        put(self, "_values", {})
        put(self, "_overrides", dict(overrides or {}))
        put(self, "_read", set())
        put(self, "_emit", None)
        self._lay(as_mapping(values))
        for key, value in self._overrides.items():
            if "." not in key and key not in self._values:
                self._values[key] = value
        put(self, "_emit", emit)
        self._tell(self._values, update=over)

    _values: dict[str, Any]
    _read: set[str]
    _emit: Emit | None

    def _lay(self, values: Mapping[str, Any]) -> None:
        for key, value in values.items():
            self._values[key] = self._overridden(key, value)

    def _overridden(self, key: str, value: Any) -> Any:
        if key in self._overrides:
            return _like(value, self._overrides[key])
        for path, override in self._overrides.items():  # "model.layers" lies inside the key "model"
            if path.startswith(key + ".") and isinstance(value, Mapping):
                value = _put(value, path[len(key) + 1 :].split("."), override)
        return value

    def _tell(self, values: Mapping[str, Any], update: bool) -> None:
        if self._emit is not None:
            from . import _secrets

            masked, _ = _secrets.mask_mapping(plain(dict(values)))
            self._emit({"type": "config", "value": masked, "update": update})

    def unread_overrides(self) -> list[str]:
        """Overrides that nobody has looked at: the script uses a value of its own."""
        return [key for key in self._overrides if key.partition(".")[0] not in self._read and key not in self._read]

    def __getitem__(self, key: str) -> Any:
        value = self._values[key]
        self._read.add(key)
        return value

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"config has no {name!r}; it has {', '.join(map(str, self._values)) or 'nothing yet'}") from None

    def __setitem__(self, key: str, value: Any) -> None:
        key = str(key)
        self._lay({key: value})
        self._tell({key: self._values[key]}, update=True)

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __delitem__(self, key: str) -> None:
        del self._values[key]
        self._tell(self._values, update=False)

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def __repr__(self) -> str:
        return f"Config({self._values!r})"

    def update(self, *values: Any, **more: Any) -> None:
        """Merge by top-level key."""
        merged: dict[str, Any] = {}
        for value in values:
            merged |= as_mapping(value)
        merged |= more
        merged.pop("allow_val_change", None)
        self._lay(merged)
        self._tell({key: self._values[key] for key in merged}, update=True)

    def as_dict(self) -> dict[str, Any]:
        self._read.update(self._values)
        return dict(self._values)


def _like(given: Any, override: Any) -> Any:
    """JSON knows no difference between 1 and 1.0; the script's own type tells."""
    if isinstance(given, float) and isinstance(override, int) and not isinstance(override, bool):
        return float(override)
    if isinstance(given, tuple) and isinstance(override, list):
        return tuple(override)
    return override


def _put(value: Mapping[str, Any], path: list[str], override: Any) -> dict[str, Any]:
    copy = dict(value)
    if len(path) == 1:
        copy[path[0]] = _like(copy.get(path[0]), override)
    else:
        inner = copy.get(path[0])
        copy[path[0]] = _put(inner if isinstance(inner, Mapping) else {}, path[1:], override)
    return copy


class Summary(MutableMapping[str, Any]):
    """What the program says of itself: numbers, strings, booleans. (Last, min, max of metrics are the server's own.)"""

    def __init__(self, emit: Emit | None = None) -> None:
        self._values: dict[str, Any] = {}
        self._emit = emit

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self.update({key: value})

    def __delitem__(self, key: str) -> None:
        del self._values[key]
        if self._emit is not None:
            self._emit({"type": "summary", "values": {key: None}})

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Summary({self._values!r})"

    def update(self, *values: Any, **more: Any) -> None:
        flat: dict[str, Any] = {}
        for value in (*values, more):
            _flatten(as_mapping(value), "", flat)
        self._values |= flat
        if flat and self._emit is not None:
            self._emit({"type": "summary", "values": flat})


def _flatten(values: Mapping[str, Any], prefix: str, into: dict[str, Any], depth: int = 0) -> None:
    for key, value in values.items():
        if isinstance(value, Mapping) and depth < 16:
            _flatten(as_mapping(value), f"{prefix}{key}/", into, depth + 1)
            continue
        simple = plain(value)
        into[f"{prefix}{key}"] = simple if simple is None or isinstance(simple, (str, int, float, bool)) else str(simple)
