"""`encore run` on a program that has a line of ours after all: its `init` goes on with the run that the bootstrap began."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ._config import as_mapping
from ._plain import text

if TYPE_CHECKING:
    from ._run import Run

# Another run is meant, or one that is gone about in another way.
_OWN = ("id", "resume", "fork_from", "rewind_to", "mode", "checkpoint_dir")


def adopt(run: Run, arguments: Mapping[str, Any], held: bool) -> bool:
    """Lays what the program's `init` says over the open run; False where it speaks of another one."""
    from ._run import lay_over

    if run.finished or any(arguments.get(name) is not None for name in _OWN):
        return False
    project = arguments.get("project")
    if project is not None and str(project) != run.project and run.settings.project is None:
        return False
    run.adoptable = False
    config = arguments.get("config")
    if config is not None:
        if held:
            run.config._read.update(lay_over(config, run.config._overrides))
        run.config.update(as_mapping(config))
    told: dict[str, Any] = {name: text(str(arguments[name])) for name in ("name", "group", "notes") if arguments.get(name) is not None}
    tags = arguments.get("tags")
    if tags is not None:
        told["tags"] = [text(str(tag)) for tag in ([tags] if isinstance(tags, str) else tags)]
    if run.settings.name is not None:  # `encore run --name` is the later word
        told.pop("name", None)
    if told:
        run.about.update(told)
        run._emit({"type": "meta", **told})
    return True
