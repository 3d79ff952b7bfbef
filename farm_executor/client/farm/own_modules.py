"""Finds the modules of this program that are its own.

A module is the program's own if it lies neither in the standard library nor where packages are installed: beside
the script, in the current directory, on ``PYTHONPATH``, in an editable install. This module owns that question, and
where each of them is. It must not know servers, nor read what the modules hold.

It searches as the import system does, entry by entry of ``sys.path``, but modules that are loaded already take
precedence: a program may change its path, and its directory, at any time.
"""

from __future__ import annotations

import os
import site
import sys
import sysconfig
from importlib.machinery import EXTENSION_SUFFIXES
from typing import Any

from farm_executor.core.shipment import MODULE, NAMESPACE, PACKAGE, is_top_level
from farm_executor.data.modules import Place, is_code, is_package

__all__ = ["NEVER", "OwnModules", "is_installed", "names_in"]

NEVER = frozenset({"farm_executor", "cloudpickle", "tblib", "__main__", "__mp_main__"}) | sys.stdlib_module_names
"""Names that are never offered: a file json.py beside a script is not the module that servers mean by json."""
_RANK = {PACKAGE: 2, MODULE: 1, NAMESPACE: 0}  # of several modules of one name in a folder, the highest is imported


class OwnModules:
    """The modules found by the last look, kept so that the next look costs only what is new.

    Attributes:
        hiding: The loaded modules that have a name of Python's own, and where they are. Servers use Python's.

    Thread safety: `list_folders` may run in one thread while `find` runs in another.
    """

    def __init__(self) -> None:
        self._stamps: dict[str, int] = {}  # modification times of the folders on the path, when they were read
        self._listed: dict[str, dict[str, Place]] = {}
        self._on_path: dict[str, Place] = {}  # replaced, and never changed in place
        self.hiding: dict[str, str] = {}
        self._loaded: dict[str, tuple[Any, Place | None]] = {}

    def list_folders(self) -> None:
        """Read the folders on the path that have changed. This takes long where a file system does not answer."""
        found: dict[str, Place] = {}
        taken: set[str] = set()
        entries = _path()
        # Entries behind the last one of the program's own can neither add modules nor hide any. They include
        # site-packages as a rule, which is large.
        last = max((at for at, entry in enumerate(entries) if not is_installed(entry)), default=-1)
        for entry in entries[: last + 1]:
            listed = self._names_in(entry)
            if is_installed(entry):  # its modules are imported before those of a later entry
                taken.update(name for name, place in listed.items() if place.kind != NAMESPACE)
                continue
            for name, place in listed.items():
                if name not in taken:
                    found[name] = _first_of(found.get(name), place)
        found.update(_editable())
        self._on_path = found

    def find(self) -> dict[str, Place]:
        """Return the place of each of the program's own modules, by name, as of the last look at the folders."""
        found = dict(self._on_path)
        self._correct(found)
        return {name: place for name, place in found.items() if name not in NEVER and is_top_level(name)}

    def _names_in(self, folder: str) -> dict[str, Place]:
        stamp = _stamp(folder)
        if self._stamps.get(folder) != stamp or folder not in self._listed:
            self._stamps[folder], self._listed[folder] = stamp, names_in(folder)
        return self._listed[folder]

    def _correct(self, found: dict[str, Place]) -> None:
        """Prefer loaded modules to those on the path: they are the ones that the program uses."""
        for name, module in list(sys.modules.items()):
            if "." in name or (name in NEVER and name not in sys.stdlib_module_names):
                continue
            known = self._loaded.get(name)
            if known is None or known[0] is not module:
                known = self._loaded[name] = (module, _of_loaded(module))
            place = known[1]
            if place is None:
                found.pop(name, None)
            elif place.paths and name in sys.stdlib_module_names:
                self.hiding[name] = place.paths[0]
            elif place.paths:
                found[name] = place


def _first_of(old: Place | None, new: Place) -> Place:
    """Return what an import finds if ``old`` is earlier on the path than ``new``."""
    if old is None or (old.kind == NAMESPACE and new.kind != NAMESPACE):
        return new
    if old.kind == new.kind == NAMESPACE:
        return Place(NAMESPACE, tuple(dict.fromkeys(old.paths + new.paths)))
    return old


def _path() -> list[str]:
    entries = []
    for entry in sys.path:
        if isinstance(entry, str):
            try:
                entries.append(os.path.abspath(entry or os.getcwd()))
            except OSError:  # the current directory has been removed
                continue
    return list(dict.fromkeys(entries))


def _installed() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    found = [paths[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")]
    found += [*getattr(site, "getsitepackages", list)(), getattr(site, "getusersitepackages", str)()]
    real = [os.path.realpath(each) for each in found if each]
    return tuple(dict.fromkeys([*(os.path.abspath(each) for each in found if each), *real]))


_INSTALLED = _installed()
# The folder of the programs that packages install. It is the first entry of the path of `jupyter`, for example, and
# its modules do not belong to the user's program.
_SCRIPTS = os.path.abspath(sysconfig.get_paths()["scripts"])


def is_installed(path: str) -> bool:
    """Return whether the file or folder was installed, or came with Python."""
    parts = path.replace("\\", "/").split("/")
    return (
        "site-packages" in parts
        or "dist-packages" in parts
        or path == _SCRIPTS
        or path.endswith(".zip")
        or any(path == each or path.startswith(each + os.sep) for each in _INSTALLED)
    )


def _stamp(folder: str) -> int:
    try:
        return os.stat(folder).st_mtime_ns
    except OSError:
        return 0


def names_in(folder: str) -> dict[str, Place]:
    """Return the top-level modules in a folder on ``sys.path``, as the import system would find them."""
    found: dict[str, Place] = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                name, _, suffix = entry.name.partition(".")
                kind = _kind(entry, suffix) if name.isidentifier() and name != "__pycache__" else None
                if kind is not None and (name not in found or _RANK[found[name].kind] < _RANK[kind]):
                    found[name] = Place(kind, (entry.path,))
    except OSError:
        return {}
    return found


def _kind(entry: os.DirEntry[str], suffix: str) -> str | None:
    if suffix:
        return MODULE if suffix == "py" or f".{suffix}" in EXTENSION_SUFFIXES else None
    try:
        if not entry.is_dir():
            return None
    except OSError:
        return None
    if is_package(entry.path):
        return PACKAGE
    # To Python any folder is a namespace package. A folder without code of its own is more likely to hold data.
    return NAMESPACE if _has_code(entry.path) else None


def _has_code(folder: str) -> bool:
    try:
        with os.scandir(folder) as entries:
            return any(is_code(entry.name) for entry in entries)
    except OSError:
        return False


def _of_loaded(module: Any) -> Place | None:
    """Return where a loaded module is; None if it is not the program's own; no paths if that cannot be told."""
    try:
        attributes = object.__getattribute__(module, "__dict__")  # plain access would load a lazy module
    except AttributeError:
        return Place(MODULE, ())
    spec = attributes.get("__spec__")
    file = getattr(spec, "origin", None) or attributes.get("__file__")
    if isinstance(file, str) and os.path.isfile(file):
        file = os.path.abspath(file)
        # Compiled code without its source fits one version of Python, and cannot be compared.
        if is_installed(file) or file.endswith(".pyc"):
            return None
        is_init = os.path.basename(file).startswith("__init__.")
        return Place(PACKAGE, (os.path.dirname(file),)) if is_init else Place(MODULE, (file,))
    try:
        paths = tuple(os.path.abspath(path) for path in attributes.get("__path__", ()))
    except Exception:  # a program may put anything there
        return Place(MODULE, ())
    if paths:
        own = tuple(path for path in paths if not is_installed(path) and os.path.isdir(path))
        return Place(NAMESPACE, own) if own else None
    return Place(MODULE, ()) if file is None and spec is None else None


def _editable() -> dict[str, Place]:
    """Return the modules that setuptools' editable installs map, loaded or not."""
    found = {}
    for name, module in list(sys.modules.items()):
        mapping = getattr(module, "MAPPING", None) if name.startswith("__editable__") else None
        for top, path in mapping.items() if isinstance(mapping, dict) else ():
            if "." in top:
                continue
            if is_package(path):
                found[top] = Place(PACKAGE, (path,))
            elif os.path.isfile(path):
                found[top] = Place(MODULE, (path,))
            elif os.path.isfile(f"{path}.py"):
                found[top] = Place(MODULE, (f"{path}.py",))
            elif os.path.isdir(path):
                found[top] = Place(NAMESPACE, (path,))
    return found
