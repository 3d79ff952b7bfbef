"""The packages that a task imports, compared with the client's.

This module owns when they are compared, and that each worker reports differences once. It must not know how modules
are found, nor what the client does about a difference.

Nothing is compared before a task imports a package that the client has named, as that is when it matters. If that
one is lacking or has another version, all are compared: to hear of one at a time would be tedious.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from farm_executor.core.shipment import Difference, Package
from farm_executor.data.packages import UNKNOWN, versions_of

__all__ = ["PackageCheck"]


class PackageCheck:
    """Compares packages when they are imported; see the module.

    Args:
        tell: Tells the client of the differences.
    """

    def __init__(self, tell: Callable[[list[Difference]], None]) -> None:
        self._tell = tell
        self._expected: dict[str, Package] = {}
        self._alike: set[Package] = set()
        self._told = False

    def expect(self, packages: Mapping[str, Package]) -> None:
        """Take what the client has, by the name of a module of each package."""
        if not self._told:
            self._expected = {module: each for module, each in packages.items() if each not in self._alike}

    def on_import(self, module: str) -> None:
        """Compare the package of a top-level module that is about to be imported, if the client has named it."""
        package = self._expected.get(module)
        if package is None:
            return
        # Taken away meanwhile: the comparison imports modules and searches for others, and comes here for each.
        expected, self._expected = self._expected, {}
        if not _differences({module: package}):
            self._alike.add(package)
            self.expect(expected)
            return
        self._told = True
        self._tell(_differences(expected))


def _differences(expected: Mapping[str, Package]) -> list[Difference]:
    there = versions_of({package.name: module for module, package in expected.items()})
    # Sorted, so that all workers of a server say the same, and the client sees that they do.
    every = [Difference(name, version, there[name]) for name, version in sorted(set(expected.values()))]
    return [each for each in every if each.there not in (each.here, UNKNOWN)]
