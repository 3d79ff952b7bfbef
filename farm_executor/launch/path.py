"""The places from which this process has imported its modules, for other processes to import from.

This module owns the past meaning of `sys.path`. A relative entry, like the empty one of ``python -c`` and
notebooks, depends on the current directory, which a program may have changed since.
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

__all__ = ["PACKAGE_ROOT", "import_path"]

PACKAGE_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
"""The `sys.path` entry under which this package is found."""


def import_path() -> list[str]:
    """Return `sys.path` with its relative entries made absolute as of when they were first used.

    The empty entry stays, after the directories from which modules were imported through it.
    """
    path = []
    for entry in [entry for entry in sys.path if isinstance(entry, str)]:
        if not entry:
            path += [*_former_directories(), entry]
        elif os.path.isabs(entry):
            path.append(entry)
        else:  # its finder, made at its first use, knows the directory
            found = getattr(sys.path_importer_cache.get(entry), "path", None)
            path.append(found if isinstance(found, str) else entry)
    return path


def _former_directories() -> dict[str, None]:
    """Return the directories of imported top-level modules that are not on the path, in order of import."""
    found: dict[str, None] = {}
    for module in list(sys.modules.values()):
        spec = vars(module).get("__spec__") if isinstance(module, ModuleType) else None
        if not isinstance(spec, ModuleSpec) or "." in spec.name:
            continue
        places: list[str | None] = [*(spec.submodule_search_locations or ())] or [spec.origin]
        for place in places:
            directory = os.path.dirname(place) if isinstance(place, str) else ""
            # A directory without a finder was not searched: the program loaded that file itself.
            if directory in sys.path_importer_cache and directory not in sys.path:
                found[directory] = None
    return found
