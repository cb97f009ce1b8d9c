"""Whether functions of the user's are where RQ looks for them; none of their code is run."""

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from app.core.source import defines


def missing(dotted: str, folder: Path) -> str | None:
    """Why a worker would not find a function, with `folder` on its path; None when it would.

    Also None for what does not show without running it: extension modules, and what a class holds.
    """
    parts = dotted.split(".")
    spec, depth = _module(parts[:-1], folder)
    if spec is None:
        return f"there is no module {parts[0]!r} in {folder} or among the installed packages"
    name = ".".join(parts[:depth])
    if spec.origin is None or not spec.origin.endswith(".py"):
        is_folder = spec.submodule_search_locations is not None
        return f"the folder {name!r} holds no {parts[depth]!r}" if is_folder else None
    try:
        found = defines(Path(spec.origin).read_bytes(), parts[depth])
    except SyntaxError as error:
        line = f", line {error.lineno}" if error.lineno else ""
        return f"{spec.origin} is no Python ({error.msg}{line})"
    except (OSError, ValueError) as error:
        return f"{spec.origin} cannot be read ({type(error).__name__})"
    return None if found else f"{spec.origin} has no {parts[depth]!r}"


def _module(parts: Sequence[str], folder: Path) -> tuple[ModuleSpec | None, int]:
    """The deepest module that `parts` lead to, and how many of them its name has."""
    found: ModuleSpec | None = None
    for depth in range(len(parts)):
        inside = found.submodule_search_locations if found is not None else None
        if depth and inside is None:
            return found, depth
        spec = _spec(".".join(parts[: depth + 1]), inside, folder)
        if spec is None:
            return found, depth
        found = spec
    return found, len(parts)


def _spec(name: str, inside: Sequence[str] | None, folder: Path) -> ModuleSpec | None:
    """What Python would import; `inside` are the folders of the package, None at the top."""
    for finder in sys.meta_path:
        spec = finder.find_spec(name, inside)
        if spec is not None:
            return spec
    return PathFinder.find_spec(name, [str(folder)]) if inside is None else None
