"""Find the modules that another process could not import by name.

A module may exist only in `sys.modules`: created with `types.ModuleType`, or loaded from a file outside the path
with importlib's recipe for plugins. Another process cannot import it. This module owns that question. It must not
know how the answer is used.

When in doubt, a module counts as importable: extension modules, lazy loaders and import hooks do strange things,
and are used to travelling by name.
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
    """Return the names of all such modules, without ``__main__``, which differs in every process anyway.

    Each module is checked once, when it is new. Calling this again costs a fraction of a microsecond.
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
    """Return whether importing the name in another process can be expected to find the same module."""
    module = sys.modules.get(name)
    if name == "__mp_main__":  # the program, in a child that multiprocessing has spawned
        return False
    if name == "__main__" or not isinstance(module, ModuleType):
        return True
    try:
        # By `object`, as a lazy module would load itself for any attribute that it is asked for.
        attributes = object.__getattribute__(module, "__dict__")
        if attributes.get("__name__") != name or getattr(attributes.get("__spec__"), "name", name) != name:
            return True  # an alias of another module
        origin = _origin(attributes)
        if origin in ("built-in", "frozen") or origin.endswith(tuple(EXTENSION_SUFFIXES)):
            return True  # it could not be sent anyway
        parent, _, last = name.rpartition(".")
        if parent in here_only:
            return False
        path = _path(parent)
        if path is None or (origin and _is_in(path, last, origin)):
            return True
        return _finds(name, path, parent, origin)
    except Exception:  # finders and modules may be anything, and raise anything
        return True


def _origin(attributes: dict[str, Any]) -> str:
    """Return the file of a module, or an empty string if it has none."""
    origin = attributes.get("__file__") or getattr(attributes.get("__spec__"), "origin", None)
    return origin if isinstance(origin, str) else ""


def _path(parent: str) -> Sequence[str] | None:
    """Return the search path of a package; None if it provides its modules itself, as ``os`` does ``os.path``."""
    if not parent:
        return sys.path
    path = getattr(sys.modules.get(parent), "__path__", None)
    return None if path is None else list(path)


def _is_in(path: Sequence[str], last: str, origin: str) -> bool:
    """Return whether the file is where a search would find it: most are, and checking this is fast."""
    folder, file = os.path.split(origin)
    stem = file.partition(".")[0]
    if stem == "__init__":
        folder, stem = os.path.split(folder)
    return stem == last and folder in path


def _finds(name: str, path: Sequence[str], parent: str, origin: str) -> bool:
    """Ask the finders. `importlib.util.find_spec` does not ask them for a module that is already imported."""
    for finder in sys.meta_path:
        spec: ModuleSpec | None = finder.find_spec(name, path if parent else None)
        if spec is not None:
            both = origin and spec.has_location and spec.origin and os.path.exists(origin)
            return not both or os.path.realpath(str(spec.origin)) == os.path.realpath(origin)
    if parent and not origin:
        return True  # a package may create some of its modules when it is imported
    # A relative entry of the path may have led to the module before the program changed its directory.
    return any(not os.path.isabs(entry) for entry in path) and os.path.dirname(origin) in sys.path_importer_cache
