"""How functions and classes travel by value, and what becomes of them on the client.

cloudpickle sends a function or class of ``__main__`` whole and rebuilds it at the other end; `pickler` adds what it
cannot send. Taken as it is, the rebuilding breaks promises of a drop-in, which are kept by stepping in while such a
payload is read, with a `Resolver`. On the client, what is already here is used and left as it was: the reply's copy
of a class is that class, its copy of a module's function is that function. Plain cloudpickle would find the class
and then assign the copy's attributes to it, so that its methods would belong to stale globals from then on
(`OwnObjects`). The worker's resolver is `server.namespaces`'.

This module must not know connections, tasks or the farm. It leans on the names that cloudpickle gives its own
rebuilding functions; they are the format of its pickles and have been the same since 2.0.
"""

from __future__ import annotations

import functools
import pickle
import sys
import types
import weakref
from collections import ChainMap
from collections.abc import Callable
from typing import Any, ClassVar

__all__ = ["OwnObjects", "Resolver", "class_by_tracker", "is_importable", "pickler"]

# -- how they travel ---------------------------------------------------------------------------------


@functools.cache
def pickler() -> type[pickle.Pickler]:
    """The Pickler of cloudpickle, which here takes cached functions and properties as well, and weak mappings."""
    import cloudpickle  # late: it is as large as all the rest, and most programs never come here

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
        dispatch_table: ClassVar[Any] = ChainMap(*cloudpickle.Pickler.dispatch_table.maps, _REDUCERS)

        def reducer_override(self, value: Any) -> Any:
            reduced = super().reducer_override(value)
            if isinstance(reduced, tuple) and issubclass(type(value), type) and vars(value).get("__slots__"):
                _keep_slots(value, *reduced[1:3])
            return reduced

    return Pickler


def _keep_slots(cls: type, arguments: Any, state: Any) -> None:
    """Have the class made with its slots: without, instances come back with a __dict__ that they cannot have."""
    if len(arguments) == 6:  # of make_skeleton_class
        arguments[3]["__slots__"] = vars(cls)["__slots__"]
    for name, value in vars(cls).items():
        if isinstance(value, types.MemberDescriptorType):
            state[0].pop(name, None)


def _reduce_cached_function(cached: Any) -> Any:
    registered = sys.modules["cloudpickle.cloudpickle"]._is_registered_pickle_by_value
    if is_importable(cached) and not registered(sys.modules[cached.__module__]):
        return cached.__qualname__  # pickle takes this for "find it by name"
    return _cached_function, (cached.__wrapped__, cached.cache_parameters())


def _cached_function(function: Callable[..., Any], parameters: dict[str, Any]) -> Any:
    return functools.lru_cache(**parameters)(function)


def _reduce_cached_property(cached: functools.cached_property[Any]) -> Any:
    return _cached_property, (cached.func, cached.attrname)


def _cached_property(function: Callable[[Any], Any], name: str | None) -> functools.cached_property[Any]:
    cached = functools.cached_property(function)
    cached.attrname = name
    return cached


def _reduce_weak_mapping(mapping: Any) -> Any:
    return type(mapping), (dict(mapping),)


_REDUCERS: dict[type, Callable[[Any], Any]] = {
    functools._lru_cache_wrapper: _reduce_cached_function,
    weakref.WeakKeyDictionary: _reduce_weak_mapping,  # functools.singledispatch has one
    weakref.WeakValueDictionary: _reduce_weak_mapping,
}
if sys.version_info < (3, 12):  # until then it held a lock
    _REDUCERS[functools.cached_property] = _reduce_cached_property


def is_importable(value: Any) -> bool:
    """Whether a name leads to the value in every process, which ``__main__`` does not."""
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    return module != "__main__" and isinstance(name, str) and _find(module, name) is value


def _find(module: Any, qualname: str) -> Any:
    """What the name stands for in a module of this process, or None."""
    found: Any = sys.modules.get(module) if isinstance(module, str) else None
    for name in qualname.split("."):
        found = getattr(found, name, None)
    return found


# -- what becomes of them ----------------------------------------------------------------------------


class Resolver:
    """Replaces globals while one by-value payload is read: cloudpickle's rebuilding functions, by its own methods.

    The methods are named as the functions are, less the underscore, and get the original and then its arguments.
    """

    def resolve(self, module: str, name: str, value: Any) -> Any:
        """What to use for a global that is ``value``."""
        if module.startswith("cloudpickle"):
            method = getattr(self, name.lstrip("_"), None)
            if method is not None:
                return functools.partial(method, value)
        return value

    def finish(self) -> None:
        """The payload has been read."""


def class_by_tracker(tracker_id: Any) -> Any:
    """The class that cloudpickle knows under this id in this process, or None."""
    return sys.modules["cloudpickle.cloudpickle"]._DYNAMIC_CLASS_TRACKER_BY_ID.get(tracker_id)


class OwnObjects(Resolver):
    """For the client: a class or function that is already here is used and left alone."""

    def __init__(self) -> None:
        self._own: set[int] = set()

    def make_skeleton_class(self, original: Callable[..., Any], *args: Any) -> Any:
        """Take the class that is here, without even making the skeleton of another."""
        return self._known_or_new(class_by_tracker(args[4]), original, *args)

    def make_skeleton_enum(self, original: Callable[..., Any], *args: Any) -> Any:
        """As `make_skeleton_class`."""
        return self._known_or_new(class_by_tracker(args[5]), original, *args)

    def class_setstate(self, original: Callable[..., Any], cls: Any, state: Any) -> Any:
        """Fill a new class; leave one that was here before this load."""
        return cls if id(cls) in self._own else original(cls, state)

    def make_function(self, original: Callable[..., Any], code: Any, globals_: dict[str, Any], *args: Any) -> Any:
        """Take the function that is here under the same name, if it is of the same code."""
        known = _find(globals_.get("__name__"), getattr(code, "co_qualname", code.co_name))  # from Python 3.11 on
        if not isinstance(known, types.FunctionType) or known.__code__ != code:
            known = None
        return self._known_or_new(known, original, code, globals_, *args)

    def function_setstate(self, original: Callable[..., Any], function: Any, state: Any) -> Any:
        """As `class_setstate`."""
        return None if id(function) in self._own else original(function, state)

    def _known_or_new(self, known: Any, original: Callable[..., Any], *args: Any) -> Any:
        if known is None:
            return original(*args)
        self._own.add(id(known))
        return known
