"""Tells which installed packages this program imports, and in which versions.

This module owns how a module that is imported here leads to the package that has installed it. It must not know
servers.
"""

from __future__ import annotations

import contextlib
import glob
import os
import re
import sys
from collections.abc import Container, Iterator
from importlib.machinery import PathFinder
from typing import Any

from farm_executor.client.farm.own_modules import is_installed
from farm_executor.core.shipment import MAX_PACKAGES, Package, is_top_level

__all__ = ["imported_by", "imported_packages", "package_of", "top_level_names_in"]

_known: dict[str, Package | None] = {}


def package_of(module: str) -> Package | None:
    """Return the installed package that a top-level module belongs to; None if nothing says so."""
    if module not in _known:
        _known[module] = _find(module)
    return _known[module]


def imported_packages() -> dict[str, Package]:
    """Return the installed packages of which this program has loaded modules, by the name of one of these."""
    # Private modules are not what a program imports. Some are loaded whenever Python starts, such as the finders of
    # editable installs.
    return _packages_of(name for name in list(sys.modules) if "." not in name and not name.startswith("_"))


def imported_by(own: Container[str]) -> dict[str, Package]:
    """Return the installed packages that ``__main__`` and the loaded modules among ``own`` import themselves.

    A package counts if something in a module's namespace comes from it. What packages import in turn does not
    count: its version is a matter between them.
    """
    names: dict[str, None] = {}
    for loaded, module in list(sys.modules.items()):
        if loaded == "__main__" or loaded.partition(".")[0] in own:
            names.update(dict.fromkeys(top_level_names_in(module)))
    return _packages_of(name for name in names if name not in own)


def top_level_names_in(module: Any) -> Iterator[str]:
    """Yield the top-level names of the modules from which the values in a module's namespace come."""
    for value in list(getattr(module, "__dict__", {}).values()):
        try:
            # By way of `object`, as plain access to an attribute of a proxy or a lazy object may do anything.
            origin = object.__getattribute__(value, "__name__" if type(value) is type(sys) else "__module__")
        except Exception:
            continue
        if type(origin) is str:
            yield origin.partition(".")[0]


def _packages_of(names: Iterator[str]) -> dict[str, Package]:
    found: dict[str, Package] = {}
    for name in names:
        # Python's own modules go with its version. And the names come from attributes of values, which may say
        # anything: one that is not loaded was made up.
        if name in sys.stdlib_module_names or name not in sys.modules or not is_top_level(name):
            continue
        package = package_of(name)
        if package is not None and len(found) < MAX_PACKAGES:
            found[name] = package
    return found


def _find(module: str) -> Package | None:
    # A loaded module's own spec is the truth even if the path has changed since. One that is not loaded is searched
    # for without asking finders of others, which may build or download something.
    spec = getattr(sys.modules.get(module), "__spec__", None) or PathFinder.find_spec(module)
    file = getattr(spec, "origin", None)
    folders = list(getattr(spec, "submodule_search_locations", None) or ())
    place = file if isinstance(file, str) and os.path.isabs(file) else next(iter(folders), None)
    if place is None or not is_installed(place):
        return None
    from importlib.metadata import Distribution, PackageNotFoundError, distribution  # late, as this takes 20 ms

    # Nearly all packages have the name of their module. Where that is not so, the list of a package's files tells.
    # To search these lists as bytes takes a few milliseconds, to parse them, as `packages_distributions` does, many
    # times as long.
    with contextlib.suppress(PackageNotFoundError):
        return _described(distribution(module))
    site = os.path.dirname(os.path.dirname(place) if folders else place)
    entry = os.path.basename(folders[0] if folders else place)
    line = re.compile(rb"^" + re.escape(entry.encode()) + (rb"/" if folders else rb","), re.MULTILINE)
    for record in glob.glob(os.path.join(glob.escape(site), "*.dist-info", "RECORD")):
        with contextlib.suppress(OSError, PackageNotFoundError):
            with open(record, "rb") as file_of_record:
                found = line.search(file_of_record.read())
            if found:
                return _described(Distribution.at(os.path.dirname(record)))
    return None


def _described(distribution: Any) -> Package | None:
    name, version = distribution.metadata["Name"], distribution.version
    return Package(name, version) if name and version else None
