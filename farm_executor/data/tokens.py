"""What stands for one and the same object in several processes.

A copy that comes back is recognized by the token that the original was sent with. This module owns these tokens,
and the homes of functions: which dict, of this process or another, is the globals of a function. It must not know
pickles.

Nothing is kept alive by its token, but for the few objects of which Python has no weak references.

Thread safety: everything may be called from any thread and in signal handlers, as no step is more than one
operation of a dict.
"""

from __future__ import annotations

import os
import sys
import types
import weakref
from typing import Any

__all__ = ["OBJECTS", "Tokens", "home_of", "module_at", "named_home", "settle"]


class Tokens:
    """Objects of this process, and the tokens that they have here and elsewhere."""

    def __init__(self) -> None:
        self._tokens: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()
        self._objects: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()
        self._sent: weakref.WeakSet[Any] = weakref.WeakSet()
        self._strong: dict[Any, str] = {}  # such as context variables, which are few and stay anyway

    def known(self, value: Any) -> str | None:
        """The token that the object has, if any."""
        try:
            return self._tokens.get(value)
        except TypeError:  # there are no weak references to it
            return self._strong.get(value)

    def of(self, value: Any) -> str:
        """The token of the object, which it gets now if it has none."""
        token = self.known(value)
        return self.enter(_new(), value) if token is None else token

    def enter(self, token: str, value: Any) -> str:
        """Let the object have this token; returns the one that it has, which may be an older one."""
        try:
            token = self._tokens.setdefault(value, token)
            self._objects[token] = value
        except TypeError:
            token = self._strong.setdefault(value, token)
        return token

    def find(self, token: str) -> Any:
        """The object of this token, or None. Of several copies of one original, it is the last."""
        found = self._objects.get(token)
        if found is None and self._strong:
            return next((value for value, known in list(self._strong.items()) if known == token), None)
        return found

    def sent(self, value: Any, *, named: bool) -> str | None:
        """The token to send the object with, if a name leads to it or it has come with one."""
        token = self.of(value) if named else self.known(value)
        if token is not None and value not in self._strong:
            self._sent.add(value)
        return token

    def original(self, token: str | None) -> Any:
        """The object that was sent from here with this token, or None: what only came from elsewhere may be old."""
        found = self.find(token) if token is not None else None
        return found if found is not None and (found in self._sent or found in self._strong) else None


OBJECTS = Tokens()


# -- homes -------------------------------------------------------------------------------------------


class _Home:
    """The name of a dict, kept alive by the functions and the module whose globals it is."""

    __slots__ = ("__weakref__", "token")

    def __init__(self, token: str) -> None:
        self.token = token


# There are no weak references to a dict. But as long as one of its holders lives, so does the dict, and no other
# can have its id.
_by_holder: weakref.WeakKeyDictionary[Any, _Home] = weakref.WeakKeyDictionary()
_by_id: weakref.WeakValueDictionary[int, _Home] = weakref.WeakValueDictionary()
_modules: weakref.WeakValueDictionary[str, types.ModuleType] = weakref.WeakValueDictionary()


def named_home(name: str) -> str:
    """What stands for the namespace of the module that has this name in `sys.modules`."""
    return "=" + name


def home_of(holder: types.FunctionType | types.ModuleType) -> str:
    """What stands for the namespace of a function or module, the same for all that share it.

    That of a module in `sys.modules` is known by its name. Any other has a token, for as long as one of the
    functions lives that were in it when it was first asked for, or that were asked for since.
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
    """Say that a namespace of another process is this module's here."""
    _by_holder[module] = _by_id[id(vars(module))] = _Home(home)
    _modules[home] = module


def module_at(home: str) -> types.ModuleType | None:
    """The module with this namespace here, if any."""
    return sys.modules.get(home[1:]) if home[:1] == "=" else _modules.get(home)


def _new() -> str:
    return os.urandom(9).hex()  # not counted: a forked child would count on from where its parent was
