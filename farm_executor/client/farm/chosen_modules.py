"""Chooses the modules that may be sent: the program's own, and those that ``ship=`` names.

This module owns what ``ship=`` means. It must not know lanes, nor what modules hold.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable, Sequence

from farm_executor.client.farm.own_modules import NEVER, OwnModules, names_in
from farm_executor.core.shipment import MAX_OFFER, MODULE, PACKAGE
from farm_executor.data.modules import Place, is_package

__all__ = ["AUTO", "ChosenModules", "resolve"]

logger = logging.getLogger(__name__)

AUTO = "auto"


class ChosenModules:
    """The modules that may be sent, as of the last look.

    Args:
        ship: `AUTO`, names of modules and absolute paths.

    Attributes:
        places: Where each module is, by name. Never changed in place, but replaced: other threads keep the old one.
        whole: The names of the modules that are sent whatever their size.

    Thread safety: `list_folders` may run in one thread while `look` runs in another.
    """

    def __init__(self, ship: Sequence[str]) -> None:
        self._own = OwnModules() if AUTO in ship else None
        self._named = resolve(each for each in ship if each != AUTO)
        self.whole = frozenset(self._named)
        self.places: dict[str, Place] = {}
        self._warned = False
        self._hiding: set[str] = set()  # have been warned of

    def list_folders(self) -> None:
        """Look for modules that are not loaded. This takes long where a file system does not answer."""
        if self._own is not None:
            self._own.list_folders()

    def look(self) -> dict[str, Place]:
        """Find the modules, loaded or listed, and return the place of each."""
        places = {} if self._own is None else self._own.find()
        if self._own is not None:
            self._warn_of(self._own.hiding)
        places.update(self._named)
        if len(places) > MAX_OFFER:
            if not self._warned:
                self._warned = True
                logger.warning(
                    "too many modules count=%d: only %d of the files beside the program can be sent to servers; "
                    "name those that are wanted, by ship=[...]",
                    *(len(places), MAX_OFFER),
                )
            # Which to leave out: modules that are loaded, or named, are more likely to be needed on workers.
            loaded = {name: place for name, place in places.items() if name in sys.modules or name in self._named}
            places = dict([*loaded.items(), *places.items()][:MAX_OFFER])
        self.places = places
        return places

    def _warn_of(self, hiding: dict[str, str]) -> None:
        for name in hiding.keys() - self._hiding:
            self._hiding.add(name)
            logger.warning(
                "module has a name of Python's module=%s file=%s: it is not sent, and tasks on servers import "
                "Python's; rename it",
                *(name, hiding[name]),
            )


def resolve(named: Iterable[str]) -> dict[str, Place]:
    """Return where the modules are that ``ship=`` names, by name or by path.

    Raises:
        ValueError: There is no such module, or it must not be sent.
    """
    found: dict[str, Place] = {}
    for each in named:
        modules = _by_path(each) if os.sep in each or os.path.exists(each) else _by_name(each)
        for name in modules:
            if name in NEVER:
                raise ValueError(f"ship: {name} cannot be sent: servers have a module of that name of their own")
        found.update(modules)
    return found


def _by_path(each: str) -> dict[str, Place]:
    path = os.path.abspath(each)
    name = os.path.basename(path).partition(".")[0]
    if os.path.isfile(path):
        modules = {name: Place(MODULE, (path,))} if name.isidentifier() else {}
    elif is_package(path):
        modules = {name: Place(PACKAGE, (path,))}
    else:
        modules = {name: place for name, place in names_in(path).items() if name not in NEVER}
    if not modules:
        what = "no module in" if os.path.exists(path) else "no"
        raise ValueError(f"ship: there is {what} {each!r}")
    return modules


def _by_name(each: str) -> dict[str, Place]:
    for finder in sys.meta_path if each.isidentifier() else ():
        spec = finder.find_spec(each, None, None)
        if spec is not None:
            if each not in NEVER and (spec.has_location or spec.submodule_search_locations):
                return {each: Place.of(spec.origin if spec.has_location else None, spec.submodule_search_locations)}
            raise ValueError(f"ship: {each} cannot be sent: servers have a module of that name of their own")
    raise ValueError(f"ship: there is no module {each!r}")
