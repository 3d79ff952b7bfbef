"""What becomes of functions and classes that travelled by value.

cloudpickle sends a function or class of ``__main__`` whole and rebuilds it at the other end. Taken as it is, that
breaks two promises of a drop-in, which this module keeps by stepping in while such a payload is read:

* *On the client* the reply's copy of a class is the class that is already here, and it is left as it was. Plain
  cloudpickle would find the class and then assign the copy's attributes to it, so that its methods would belong
  to stale globals from then on (`OwnClasses`).
* *On a worker* all functions of one module share one namespace, as they do at home: a global that an initializer
  sets is there for the tasks. What the worker changed, in a global or in a class, stays, until the client's value
  changes: then the client's counts, as a task expects to see what was current when it was submitted
  (`SharedNamespaces`).

It must not know connections, tasks or the farm. It leans on the names that cloudpickle gives its own rebuilding
functions; they are the format of its pickles and have been the same since 2.0.
"""

from __future__ import annotations

import functools
import hashlib
import pickle
import sys
import types
import weakref
from collections.abc import Callable
from typing import Any

__all__ = ["OwnClasses", "SharedNamespaces"]


def _class_by_tracker(tracker_id: Any) -> Any:
    """The class that cloudpickle knows under this id in this process, or None."""
    return sys.modules["cloudpickle.cloudpickle"]._DYNAMIC_CLASS_TRACKER_BY_ID.get(tracker_id)


class _Resolver:
    """Wraps cloudpickle's rebuilding functions by those of the same name here, minus the underscore.

    Such a method gets the original function and then its arguments.
    """

    def __call__(self, module: str, name: str, value: Any) -> Any:
        """The `payload.Resolver` itself."""
        if module.startswith("cloudpickle"):
            method = getattr(self, name.lstrip("_"), None)
            if method is not None:
                return functools.partial(method, value)
        return value


class OwnClasses(_Resolver):
    """For the client: a class that is already here is used and left alone. One instance serves one load."""

    def __init__(self) -> None:
        self._own: set[int] = set()

    def make_skeleton_class(self, original: Callable[..., Any], *args: Any) -> Any:
        """Take the class that is here, without even making the skeleton of another."""
        known = _class_by_tracker(args[4])
        if known is None:
            return original(*args)
        self._own.add(id(known))
        return known

    def make_skeleton_enum(self, original: Callable[..., Any], *args: Any) -> Any:
        """As `make_skeleton_class`."""
        known = _class_by_tracker(args[5])
        if known is None:
            return original(*args)
        self._own.add(id(known))
        return known

    def class_setstate(self, original: Callable[..., Any], cls: Any, state: Any) -> Any:
        """Fill a new class; leave one that was here before this load."""
        return cls if id(cls) in self._own else original(cls, state)


class SharedNamespaces(_Resolver):
    """For a worker: one namespace per module name, in which the worker's own changes last.

    Attributes:
        generation: Counts the changes that came from the client. A function that was read at an earlier count
            may find values here that are not the ones it was sent with: read it again.
    """

    def __init__(self) -> None:
        main = types.ModuleType("__main__")
        sys.modules["__main__"] = main  # so that pickling within a task, and `import __main__`, find it
        self._namespaces: dict[str, dict[str, Any]] = {"__main__": main.__dict__}
        # Digests of the data that came last from the client, by name: of each namespace, of each class.
        self._globals: dict[str, dict[str, bytes | None]] = {}
        self._attributes: weakref.WeakKeyDictionary[type, dict[str, bytes | None]] = weakref.WeakKeyDictionary()
        self.generation = 0

    def make_function(self, original: Callable[..., Any], code: Any, globals_: dict[str, Any], *args: Any) -> Any:
        """Make the function over the shared namespace of its module."""
        name = globals_.get("__name__")
        if isinstance(name, str):
            shared = self._namespaces.setdefault(name, globals_)
            for key, value in globals_.items():
                shared.setdefault(key, value)
            globals_ = shared
        return original(code, globals_, *args)

    def function_setstate(self, original: Callable[..., Any], function: Any, state: Any) -> Any:
        """Bring along the globals that are news."""
        attributes, slots = state
        name = function.__globals__.get("__name__")
        if self._namespaces.get(name) is function.__globals__:
            slots["__globals__"] = self._news(self._globals.setdefault(name, {}), slots["__globals__"])
        return original(function, (attributes, slots))

    def make_skeleton_class(self, original: Callable[..., Any], *args: Any) -> Any:
        """Take the class that came before: a second skeleton would register itself with its bases again."""
        return _class_by_tracker(args[4]) or original(*args)

    def make_skeleton_enum(self, original: Callable[..., Any], *args: Any) -> Any:
        """As `make_skeleton_class`."""
        return _class_by_tracker(args[5]) or original(*args)

    def class_setstate(self, original: Callable[..., Any], cls: Any, state: Any) -> Any:
        """Bring along the attributes that are news."""
        attributes, slots = state
        return original(cls, (self._news(self._attributes.setdefault(cls, {}), attributes), slots))

    def _news(self, received: dict[str, bytes | None], values: dict[str, Any]) -> dict[str, Any]:
        """Those of the values that differ from what was received last; code always counts as differing."""
        news = {}
        for name, value in values.items():
            if isinstance(value, _CODE):
                news[name] = value
                continue
            digest = _digest(value)
            if digest is None or received.get(name) != digest:
                self.generation += 1
                received[name] = digest
                news[name] = value
        return news


_CODE = (type, types.FunctionType, types.BuiltinFunctionType, types.ModuleType, classmethod, staticmethod, property)


class _DigestPickler(pickle.Pickler):
    """Names code instead of pickling it: code holds its globals, and those change."""

    def persistent_id(self, value: Any) -> Any:
        if isinstance(value, _CODE):
            return getattr(value, "__qualname__", None) or getattr(value, "__name__", None) or type(value).__name__
        return None


class _Hash:
    """The file that a `_DigestPickler` writes to."""

    def __init__(self) -> None:
        self.hash = hashlib.blake2b(digest_size=16)

    def write(self, data: Any) -> int:
        self.hash.update(data)
        return len(data)


def _digest(value: Any) -> bytes | None:
    """A digest of the value's data, or None if it has none and must count as new."""
    target = _Hash()

    def keep(buffer: pickle.PickleBuffer) -> bool:
        try:
            target.hash.update(buffer.raw())
        except BufferError:
            return True
        return False

    try:
        _DigestPickler(target, 5, buffer_callback=keep).dump(value)
    except Exception:  # an object that came by a reduction which a plain pickle lacks
        return None
    return target.hash.digest()
