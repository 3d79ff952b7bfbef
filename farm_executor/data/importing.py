"""Which modules a fresh process would not find by their names.

A module may exist in `sys.modules` alone: made by `types.ModuleType`, or loaded from a file that is not on the
path, by importlib's recipe for plugins. Its name leads nowhere elsewhere. This module owns that question. It must
not know what follows from the answer.

When in doubt, a name is taken to be good: extension modules, lazy loaders and import hooks do strange things, and
travelling by name is what they are used to.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec
from types import ModuleType
from typing import Any

__all__ = ["exist_here_only"]

_last = (0, "")  # how many modules there were, and the newest, at the last look
_found: set[str] = set()
_here_only: frozenset[str] = frozenset()


def exist_here_only() -> frozenset[str]:
    """The names of all such modules; ``__main__``, which everybody knows to be another one, is not among them.

    Each is looked for when it is new. Called again, this costs a fraction of a microsecond.
    """
    global _last, _here_only
    modules = sys.modules
    count, newest = _last
    try:
        if len(modules) == count and next(reversed(modules)) is newest:
            return _here_only
        now = len(modules), next(reversed(modules))
    except RuntimeError:  # another thread is importing
        now = len(modules), ""
    here_only = {name for name in _here_only if name in modules}
    for name in sorted(modules.keys() - _found - here_only):  # parents before what is in them
        (_found if _leads_to(name, here_only) else here_only).add(name)
    _here_only = frozenset(here_only)
    _last = now
    return _here_only


def _leads_to(name: str, here_only: set[str]) -> bool:
    """Whether to import the name elsewhere may be expected to give this process's module."""
    module = sys.modules.get(name)
    if name == "__mp_main__":  # the program, in a child that multiprocessing has spawned
        return False
    if name == "__main__" or not isinstance(module, ModuleType):
        return True
    try:
        # By `object`, as a lazy module would load itself for any attribute that it is asked for.
        attributes = object.__getattribute__(module, "__dict__")
        if attributes.get("__name__") != name or getattr(attributes.get("__spec__"), "name", name) != name:
            return True  # one more name of a module
        origin = _origin(attributes)
        if origin in ("built-in", "frozen") or origin.endswith(tuple(EXTENSION_SUFFIXES)):
            return True  # which could not be sent anyway
        parent, _, last = name.rpartition(".")
        if parent in here_only:
            return False
        path = _path(parent)
        if path is None or (origin and _is_in(path, last, origin)):
            return True
        return _finds(name, path, parent, origin)
    except Exception:  # finders and modules may be of any make
        return True


def _origin(attributes: dict[str, Any]) -> str:
    """The file that a module comes from; empty if from none."""
    origin = attributes.get("__file__") or getattr(attributes.get("__spec__"), "origin", None)
    return origin if isinstance(origin, str) else ""


def _path(parent: str) -> Sequence[str] | None:
    """Where modules of this package are looked for; None if it has them by itself, as ``os`` has ``os.path``."""
    if not parent:
        return sys.path
    path = getattr(sys.modules.get(parent), "__path__", None)
    return None if path is None else list(path)


def _is_in(path: Sequence[str], last: str, origin: str) -> bool:
    """Whether the file is where it would be looked for: most are, and that is fast to tell."""
    folder, file = os.path.split(origin)
    stem = file.partition(".")[0]
    if stem == "__init__":
        folder, stem = os.path.split(folder)
    return stem == last and folder in path


def _finds(name: str, path: Sequence[str], parent: str, origin: str) -> bool:
    """Ask the finders, as `importlib.util.find_spec` does not where the module is there already."""
    for finder in sys.meta_path:
        spec: ModuleSpec | None = finder.find_spec(name, path if parent else None)
        if spec is not None:
            both = origin and spec.has_location and spec.origin and os.path.exists(origin)
            return not both or os.path.realpath(str(spec.origin)) == os.path.realpath(origin)
    if parent and not origin:
        return True  # a package may make some of its modules when it is imported
    # An entry that is relative to the current directory may have led to it, and the program has gone elsewhere.
    return any(not os.path.isabs(entry) for entry in path) and os.path.dirname(origin) in sys.path_importer_cache
