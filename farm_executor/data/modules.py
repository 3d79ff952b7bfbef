"""The files that make up a module.

This module owns which files belong to a top-level module, and how their code is compared. It must not know whose
module it is, nor what is done with the files. Both ends examine their modules in this way, so that equal modules
compare equal.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from importlib.machinery import EXTENSION_SUFFIXES

from farm_executor._record import NamedTuple
from farm_executor.core import shipment
from farm_executor.core.shipment import MAX_FILES, MODULE, NAMESPACE, PACKAGE

__all__ = ["Place", "digest_of", "files_of", "is_code", "is_extension", "is_package"]


class Place(NamedTuple):
    """The location of a top-level module: its kind, and its file or folder, or a namespace package's folders."""

    kind: str
    paths: tuple[str, ...]

    @classmethod
    def of(cls, origin: str | None, locations: Sequence[str] | None) -> Place:
        """Make a place from the origin and the locations in a module's spec."""
        if origin and locations is not None:
            return cls(PACKAGE, (os.path.dirname(os.path.abspath(origin)),))
        if origin:
            return cls(MODULE, (os.path.abspath(origin),))
        return cls(NAMESPACE, tuple(os.path.abspath(each) for each in locations or ()))


def is_package(path: str) -> bool:
    """Return whether the folder is a regular package."""
    return os.path.isfile(os.path.join(path, "__init__.py"))


def is_code(path: str) -> bool:
    """Return whether the file is Python source."""
    return path.endswith(".py")


def is_extension(path: str) -> bool:
    """Return whether the file is an extension module."""
    return path.endswith(tuple(EXTENSION_SUFFIXES))


def files_of(name: str, place: Place) -> Iterator[tuple[str, str]]:
    """Yield each file of a module: its path below an entry of ``sys.path``, with slashes, and its location.

    Hidden files, caches and compiled files are left out; in a namespace package, which may be any folder,
    everything but code is. A link counts only if it is to code or stays within the module: it may lead out of the
    module, to files that must not be sent.
    """
    seen = set()
    for top in place.paths:
        if place.kind == MODULE:
            yield os.path.basename(top), top
            continue
        real = os.path.realpath(top)
        for folder, folders, files in os.walk(top):
            folders[:] = sorted(each for each in folders if each != "__pycache__" and not each.startswith("."))
            for file in sorted(files):
                path = os.path.join(folder, file)
                relative = "/".join([name, *os.path.relpath(path, top).split(os.sep)])
                if file.startswith(".") or file.endswith((".pyc", ".pyo")) or relative in seen:
                    continue
                code = is_code(file)
                if place.kind == NAMESPACE and not code and not is_extension(file):
                    continue
                if not code and os.path.islink(path) and not os.path.realpath(path).startswith(real + os.sep):
                    continue
                if os.path.isfile(path):  # not a pipe, on which reading may hang, nor a dangling link
                    seen.add(relative)
                    yield relative, path


def digest_of(name: str, place: Place) -> str:
    """Return a digest of the module's code, see `shipment.digest`; empty if it is unreadable or too large."""
    files = []
    try:
        for relative, path in files_of(name, place):
            if is_code(relative):
                with open(path, "rb") as file:
                    files.append((relative, file.read()))
            if len(files) > MAX_FILES:
                return ""
    except OSError:
        return ""
    return shipment.digest(files)
