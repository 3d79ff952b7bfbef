"""The packages that are installed for this Python.

This module owns how their versions are found. It must not know which of them matter. Both ends look in the same
way, so that equal versions compare equal.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

__all__ = ["PYTHON", "UNKNOWN", "survey", "versions_of"]

PYTHON = "Python"  # in place of a package's name
UNKNOWN = "?"  # in place of a version: the package is there, but nothing says in which version


def survey(packages: Mapping[str, str]) -> dict[str, str]:
    """Return the version of this Python, under `PYTHON`, and those of these packages; see `versions_of`."""
    return {PYTHON: sys.version.partition(" ")[0], **versions_of(packages)}


def versions_of(packages: Mapping[str, str]) -> dict[str, str]:
    """Return the versions of these packages, empty for those that are not installed.

    Args:
        packages: The packages' names, as an installer knows them, each with the name of a module in it.
    """
    from importlib.metadata import PackageNotFoundError, version  # late, as this takes 20 ms
    from importlib.util import find_spec

    found = {}
    for package, module in packages.items():
        try:
            found[package] = version(package) or UNKNOWN
        except PackageNotFoundError:
            # Packages of an operating system, and folders on the path, may have no such data.
            there = module in sys.modules or (module.isidentifier() and find_spec(module) is not None)
            found[package] = UNKNOWN if there else ""
    return found
