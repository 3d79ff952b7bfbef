"""How functions and classes travel by value, and what becomes of them.

cloudpickle sends a function or class of ``__main__`` whole and rebuilds it at the other end; `pickler` adds what it
cannot send. Taken as it is, the rebuilding breaks two promises of a drop-in, which this module keeps by stepping in
while such a payload is read:

* *On the client* what is already here is used and left as it was: the reply's copy of a class is that class, its
  copy of a module's function is that function. Plain cloudpickle would find the class and then assign the copy's
  attributes to it, so that its methods would belong to stale globals from then on (`OwnObjects`).
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
from collections import ChainMap
from collections.abc import Callable
from typing import Any, ClassVar

__all__ = ["OwnObjects", "Resolver", "SharedNamespaces", "pickler"]

# -- how they travel ---------------------------------------------------------------------------------


@functools.cache
def pickler() -> type[pickle.Pickler]:
    """The Pickler of cloudpickle, which here takes cached functions and properties as well, and weak mappings."""
    import cloudpickle  # late: it is as large as all the rest, and most programs never come here

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
        dispatch_table: ClassVar[Any] = ChainMap(*cloudpickle.Pickler.dispatch_table.maps, _REDUCERS)

        def reducer_override(self, value: Any) -> Any:
            reduced = super().reducer_override(value)
            if isinstance(value, type) and isinstance(reduced, tuple) and vars(value).get("__slots__"):
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
    if _is_importable(cached) and not registered(sys.modules[cached.__module__]):
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


def _is_importable(value: Any) -> bool:
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


def _class_by_tracker(tracker_id: Any) -> Any:
    """The class that cloudpickle knows under this id in this process, or None."""
    return sys.modules["cloudpickle.cloudpickle"]._DYNAMIC_CLASS_TRACKER_BY_ID.get(tracker_id)


class OwnObjects(Resolver):
    """For the client: a class or function that is already here is used and left alone."""

    def __init__(self) -> None:
        self._own: set[int] = set()

    def make_skeleton_class(self, original: Callable[..., Any], *args: Any) -> Any:
        """Take the class that is here, without even making the skeleton of another."""
        return self._known_or_new(_class_by_tracker(args[4]), original, *args)

    def make_skeleton_enum(self, original: Callable[..., Any], *args: Any) -> Any:
        """As `make_skeleton_class`."""
        return self._known_or_new(_class_by_tracker(args[5]), original, *args)

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


class SharedNamespaces:
    """For a worker: one namespace per module name, in which the worker's own changes last.

    Attributes:
        generation: Counts the changes that came from the client. A function that was read at an earlier count
            may find values here that are not the ones it was sent with: read it again.
    """

    def __init__(self) -> None:
        self.generation = 0
        self._modules: dict[str, types.ModuleType] = {}
        # Digests of what came last from the client, by name: of each module, of each class.
        self._globals: dict[str, dict[str, bytes | None]] = {}
        self._attributes: weakref.WeakKeyDictionary[type, dict[str, bytes | None]] = weakref.WeakKeyDictionary()
        sys.modules["__main__"] = self.module("__main__")  # for pickling within a task, and `import __main__`

    def resolver(self) -> Resolver:
        """A resolver for one payload."""
        return _SharingResolver(self)

    def module(self, name: str) -> types.ModuleType:
        """The module that holds the namespace. Only that of ``__main__`` can be imported."""
        module = self._modules.get(name)
        if module is None:
            module = self._modules[name] = types.ModuleType(name)
            self._globals[name] = dict.fromkeys(vars(module))
        return module

    def owner(self, globals_: dict[str, Any]) -> types.ModuleType | None:
        """The module whose namespace this is, if it is one of those here."""
        name = globals_.get("__name__")
        module = self._modules.get(name) if isinstance(name, str) else None
        return module if module is not None and vars(module) is globals_ else None

    def received_globals(self, module: types.ModuleType) -> dict[str, bytes | None]:
        """The digests of what came last for this module; None where whatever comes next is to count as news."""
        return self._globals[module.__name__]

    def received_attributes(self, cls: type) -> dict[str, bytes | None]:
        """As `received_globals`, for a class."""
        return self._attributes.setdefault(cls, {})

    def knows(self, cls: type) -> bool:
        """Whether the class came from the client."""
        return cls in self._attributes

    def news(self, received: dict[str, bytes | None], present: Any, values: dict[str, Any]) -> dict[str, Any]:
        """Those of the values that differ from what came last.

        What is ``present`` before it ever came from the client, the worker has put there by itself, and it stays.
        """
        news = {}
        for name, value in values.items():
            digest = _digest(value)
            if name not in received and name in present:
                pass
            elif digest is None or received.get(name) != digest:
                self.generation += 1
                news[name] = value
            received[name] = digest
        return news


class _SharingResolver(Resolver):
    """Reads one payload into the shared namespaces.

    What is new to the worker is put in place at once, as unpickling may already call it. The rest is compared when
    all is read: until then, an object that refers to itself is incomplete.
    """

    def __init__(self, shared: SharedNamespaces) -> None:
        self._shared = shared
        self._globals: list[tuple[types.ModuleType, dict[str, Any]]] = []
        self._classes: list[tuple[Callable[..., Any], type, dict[str, Any], Any]] = []

    def make_function(self, original: Callable[..., Any], code: Any, globals_: dict[str, Any], *args: Any) -> Any:
        """Make the function over the namespace of its module."""
        name = globals_.get("__name__")
        if isinstance(name, str):
            namespace = vars(self._shared.module(name))
            namespace.update(globals_)  # __package__, __path__, __file__: what relative imports need
            globals_ = namespace
        return original(code, globals_, *args)

    def function_setstate(self, original: Callable[..., Any], function: Any, state: Any) -> Any:
        """Keep back the globals that are here already."""
        attributes, slots = state
        module = self._shared.owner(function.__globals__)
        if module is not None:
            values = slots["__globals__"]
            slots["__globals__"] = self._add_globals(module, values)
            mentioned = sys.modules["cloudpickle.cloudpickle"]._extract_code_globals(function.__code__)
            for name in set(mentioned) - values.keys():  # the client has none of this name, which may change
                self._shared.received_globals(module).setdefault(name, None)
        return original(function, (attributes, slots))

    def dynamic_subimport(self, original: Callable[..., Any], name: str, values: dict[str, Any]) -> Any:
        """A module by value is the one whose namespace its functions share."""
        module = self._shared.module(name)
        vars(module).update(self._add_globals(module, values))
        return module

    def _add_globals(self, module: types.ModuleType, values: dict[str, Any]) -> dict[str, Any]:
        """Those of the values that are new by name."""
        self._globals.append((module, values))
        new = {name: value for name, value in values.items() if name not in vars(module)}
        self._shared.received_globals(module).update(dict.fromkeys(new))
        return new

    def make_skeleton_class(
        self, original: Callable[..., Any], metaclass: Any, name: str, bases: Any, attributes: Any, *rest: Any
    ) -> Any:
        """Take the class that came before, or make one.

        What its bases and metaclass do when a class is made, such as to register it, they have done at the client.
        If they came from there, what came of it does so, too, and they do it not again.
        """
        known = _class_by_tracker(rest[0])
        if known is not None:
            return known
        maker = next(base for base in metaclass.__mro__ if not self._shared.knows(base))
        if maker is not metaclass:
            metaclass = functools.partial(maker.__new__, metaclass)
        hooked = [
            base
            for base in {base: None for cls in types.resolve_bases(bases) for base in cls.__mro__}
            if "__init_subclass__" in vars(base) and self._shared.knows(base)
        ]
        hooks = [vars(base)["__init_subclass__"] for base in hooked]
        for base in hooked:
            base.__init_subclass__ = classmethod(_do_nothing)
        try:
            return original(metaclass, name, bases, attributes, *rest)
        finally:
            for base, hook in zip(hooked, hooks, strict=True):
                base.__init_subclass__ = hook

    def make_skeleton_enum(self, original: Callable[..., Any], *args: Any) -> Any:
        """Take the class that came before: one more would have members of its own."""
        known = _class_by_tracker(args[5])
        return original(*args) if known is None else known

    def class_setstate(self, original: Callable[..., Any], cls: Any, state: Any) -> Any:
        """Fill a new class; keep back the attributes that one known has already."""
        attributes, slots = state
        self._classes.append((original, cls, attributes, slots))
        new = attributes
        if self._shared.knows(cls):
            new = {name: value for name, value in attributes.items() if name not in vars(cls)}
        self._shared.received_attributes(cls).update(dict.fromkeys(new))
        return original(cls, (new, slots))

    def finish(self) -> None:
        """Bring along what is news."""
        shared = self._shared
        for module, values in self._globals:
            vars(module).update(shared.news(shared.received_globals(module), vars(module), values))
        for original, cls, attributes, slots in self._classes:
            original(cls, (shared.news(shared.received_attributes(cls), (), attributes), slots))


def _do_nothing(cls: type, /, **options: Any) -> None:
    """Stands for a class's hook for a while."""


# -- what is news ------------------------------------------------------------------------------------


class _DigestPickler(pickle.Pickler):
    """Pickles what a value is, but not the globals of the functions in it: those are compared by themselves."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, type):
            tracker = sys.modules["cloudpickle.cloudpickle"]._DYNAMIC_CLASS_TRACKER_BY_CLASS.get(value)
            return _stand_in, (value.__module__, value.__qualname__, tracker)
        if isinstance(value, types.ModuleType):
            return _stand_in, (value.__name__,)
        if isinstance(value, types.FunctionType) and not _is_importable(value):
            state = (value.__code__, value.__defaults__, value.__kwdefaults__, value.__closure__, value.__dict__)
            return _stand_in, (value.__qualname__,), state
        return NotImplemented


def _stand_in(*parts: Any) -> None:
    """Stands in a digest for what made a class, a module or a function."""


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
        digester = _DigestPickler(target, 5, buffer_callback=keep)
        digester.dispatch_table = pickler().dispatch_table
        digester.dump(value)
    except Exception:  # an object that came by a reduction of its own making
        return None
    return target.hash.digest()
