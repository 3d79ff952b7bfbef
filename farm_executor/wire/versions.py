"""Which versions this process has of what both ends of a connection must agree on, or at least know.

This module knows where installed packages say theirs. It must not import them: they are large, and not yet needed.
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
    """The versions that matter for the pickles of this process."""
    return Versions(
        python=f"{sys.implementation.name} {sys.version_info[0]}.{sys.version_info[1]}",
        cloudpickle=_version("cloudpickle"),
        tblib=_version("tblib"),
        farm_executor=__version__,
    )


def _version(package: str) -> str:
    """The version of an installed package, by the name of the directory that describes it.

    `importlib.metadata` looks there, too, but to import it takes as long as all else that a server does before it
    serves. So it is left for packages that were installed in other ways.
    """
    begin, end = f"{package}-", ".dist-info"
    for folder in sys.path:
        try:
            names = os.listdir(folder or os.curdir)
        except (OSError, TypeError):  # it is no directory
            continue
        for name in names:
            if name.startswith(begin) and name.endswith(end):
                return name[len(begin) : -len(end)]
    from importlib.metadata import version

    return version(package)
