"""Where this process has imported its modules from, for another one to find them there.

This module owns what `sys.path` has meant. A relative entry, and the empty one of ``python -c`` and notebooks,
stands for a directory that depends on the current one, which a program may have changed since.
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

__all__ = ["PACKAGE_ROOT", "import_path"]

PACKAGE_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
"""The entry of the path that leads to this package."""


def import_path() -> list[str]:
    """`sys.path`, with what its relative entries have stood for.

    The empty entry stays, behind the directories that were the current one when modules were imported from there.
    """
    path = []
    for entry in [entry for entry in sys.path if isinstance(entry, str)]:
        if not entry:
            path += [*_former_directories(), entry]
        elif os.path.isabs(entry):
            path.append(entry)
        else:  # its finder was made when it was first looked into
            found = getattr(sys.path_importer_cache.get(entry), "path", None)
            path.append(found if isinstance(found, str) else entry)
    return path


def _former_directories() -> dict[str, None]:
    """Where modules have come from that are not on the path: in that order."""
    found: dict[str, None] = {}
    for module in list(sys.modules.values()):
        spec = vars(module).get("__spec__") if isinstance(module, ModuleType) else None
        if not isinstance(spec, ModuleSpec) or "." in spec.name:
            continue
        places: list[str | None] = [*(spec.submodule_search_locations or ())] or [spec.origin]
        for place in places:
            directory = os.path.dirname(place) if isinstance(place, str) else ""
            # What a program has loaded from a file by itself has no finder.
            if directory in sys.path_importer_cache and directory not in sys.path:
                found[directory] = None
    return found
