"""Tokens that identify one object across processes.

When a copy comes back, its token leads to the original. This module owns these tokens, and the homes of functions:
the identity of the dict, here or in another process, that is a function's globals. It must not know pickles.

A token does not keep its object alive, except for the few types that have no weak references.

Thread safety: everything may be called from any thread and from signal handlers, because each step is a single
operation on a dict.
"""

from __future__ import annotations

import os
import sys
import types
import weakref
from typing import Any

__all__ = ["OBJECTS", "Tokens", "home_of", "module_at", "named_home", "settle"]


class Tokens:
    """The tokens of this process's objects."""

    def __init__(self) -> None:
        self._tokens: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()
        self._objects: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()
        self._sent: weakref.WeakSet[Any] = weakref.WeakSet()
        self._strong: dict[Any, str] = {}  # e.g. context variables, which are few and live on anyway

    def known(self, value: Any) -> str | None:
        """Return the token of the object, or None."""
        try:
            return self._tokens.get(value)
        except TypeError:  # it does not support weak references
            return self._strong.get(value)

    def of(self, value: Any) -> str:
        """Return the token of the object, creating one if necessary."""
        token = self.known(value)
        return self.enter(_new(), value) if token is None else token

    def enter(self, token: str, value: Any) -> str:
        """Give the object this token unless it already has one. Return the token that it has."""
        try:
            token = self._tokens.setdefault(value, token)
            self._objects[token] = value
        except TypeError:
            token = self._strong.setdefault(value, token)
        return token

    def find(self, token: str) -> Any:
        """Return the object with this token, or None. Of several copies of one original, the last wins."""
        found = self._objects.get(token)
        if found is None and self._strong:
            return next((value for value, known in list(self._strong.items()) if known == token), None)
        return found

    def sent(self, value: Any, *, named: bool) -> str | None:
        """Return the token to send with the object, if it can be found by name or arrived with a token."""
        token = self.of(value) if named else self.known(value)
        if token is not None and value not in self._strong:
            self._sent.add(value)
        return token

    def original(self, token: str | None) -> Any:
        """Return the object sent from here with this token, or None. A copy from elsewhere may be outdated."""
        found = self.find(token) if token is not None else None
        return found if found is not None and (found in self._sent or found in self._strong) else None


OBJECTS = Tokens()


# -- homes -------------------------------------------------------------------------------------------


class _Home:
    """The identity of a dict. The functions and the module that have it as globals keep this alive."""

    __slots__ = ("__weakref__", "token")

    def __init__(self, token: str) -> None:
        self.token = token


# A dict does not support weak references. But it lives as long as any of its holders, and so long no other dict can
# have its id.
_by_holder: weakref.WeakKeyDictionary[Any, _Home] = weakref.WeakKeyDictionary()
_by_id: weakref.WeakValueDictionary[int, _Home] = weakref.WeakValueDictionary()
_modules: weakref.WeakValueDictionary[str, types.ModuleType] = weakref.WeakValueDictionary()


def named_home(name: str) -> str:
    """Return the home that stands for the namespace of this module in `sys.modules`."""
    return "=" + name


def home_of(holder: types.FunctionType | types.ModuleType) -> str:
    """Return the home of a function or module: equal for all that share one namespace.

    A module in `sys.modules` is identified by its name. Any other namespace has a token. It lasts as long as any
    function lives that was in the namespace at the first call, or that was passed in since.
    """
    known = _by_holder.get(holder)
    if known is not None:
        return known.token
    namespace = vars(holder) if isinstance(holder, types.ModuleType) else holder.__globals__
    name = namespace.get("__name__")
    if isinstance(name, str) and getattr(sys.modules.get(name), "__dict__", None) is namespace:
        return named_home(name)
    known = _by_id.get(id(namespace))
    if known is None:
        known = _by_id[id(namespace)] = _Home(_new())
        for value in list(namespace.values()):
            if type(value) is types.FunctionType and value.__globals__ is namespace:
                _by_holder[value] = known
    _by_holder[holder] = known
    if isinstance(holder, types.ModuleType):
        _modules[known.token] = holder
    return known.token


def settle(home: str, module: types.ModuleType) -> None:
    """Declare that a home of another process is this module's namespace here."""
    _by_holder[module] = _by_id[id(vars(module))] = _Home(home)
    _modules[home] = module


def module_at(home: str) -> types.ModuleType | None:
    """Return the module with this home here, or None."""
    return sys.modules.get(home[1:]) if home[:1] == "=" else _modules.get(home)


def _new() -> str:
    return os.urandom(9).hex()  # not a counter: a forked child would continue its parent's
