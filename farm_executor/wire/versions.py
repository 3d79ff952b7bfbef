"""The versions in this process of everything that both ends of a connection must agree on, or at least know.

This module knows where installed packages record their versions. It must not import them: they are large, and not
needed yet.
"""

from __future__ import annotations

import functools
import os
import sys

from farm_executor._version import __version__
from farm_executor.core.handshake import Versions

__all__ = ["local_versions"]


@functools.cache
def local_versions() -> Versions:
    """Return the versions that matter for this process's pickles."""
    return Versions(
        python=f"{sys.implementation.name} {sys.version_info[0]}.{sys.version_info[1]}",
        cloudpickle=_version("cloudpickle"),
        tblib=_version("tblib"),
        farm_executor=__version__,
    )


def _version(package: str) -> str:
    """Return the version of an installed package, from the name of its ``.dist-info`` directory.

    `importlib.metadata` would look there, too, but importing it takes as long as everything else that a server does
    before it serves. So it is used only for packages that were installed in other ways.
    """
    begin, end = f"{package}-", ".dist-info"
    for folder in sys.path:
        try:
            names = os.listdir(folder or os.curdir)
        except (OSError, TypeError):  # not a directory
            continue
        for name in names:
            if name.startswith(begin) and name.endswith(end):
                return name[len(begin) : -len(end)]
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:  # it has been sent along, see `launch.errand`
        from importlib import import_module

        return str(import_module(package).__version__)
