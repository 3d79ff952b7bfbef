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

import copyreg
import enum
import functools
import importlib
import pickle
import sys
import types
import typing
import weakref
from collections import ChainMap
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

from farm_executor.refused import Refusals

__all__ = ["OwnObjects", "Resolver", "class_by_tracker", "complete_class", "is_importable", "names_in", "pickler"]

# -- how they travel ---------------------------------------------------------------------------------


@functools.cache
def pickler() -> type[pickle.Pickler]:
    """The Pickler of cloudpickle, which here takes more kinds of functions and classes, and weak mappings."""
    import cloudpickle  # late: it is as large as all the rest, and most programs never come here

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
        dispatch_table: ClassVar[Any] = ChainMap(*cloudpickle.Pickler.dispatch_table.maps, _REDUCERS, Refusals())

        def reducer_override(self, value: Any) -> Any:
            try:
                reduced = super().reducer_override(value)
            except (NameError, AttributeError):  # of annotations, see there
                if not isinstance(value, types.FunctionType):
                    raise
                reduced = super().reducer_override(_with_annotations_as_text(value))
            if reduced is NotImplemented and getattr(value, "__module__", None) == "__mp_main__":
                reduced = self._reduce_of_child(value)
            if isinstance(reduced, tuple) and len(reduced) == 6 and issubclass(type(value), type):
                _complete_class(value, *reduced[1:3])
            elif isinstance(reduced, tuple) and len(reduced) == 6 and isinstance(value, types.FunctionType):
                _complete_globals(value, reduced[2][1]["__globals__"])
            return reduced

        def _reduce_of_child(self, value: Any) -> Any:
            """As if it were of ``__main__``: that is where the parent has it."""
            if isinstance(value, types.FunctionType):
                return self._dynamic_function_reduce(value)
            return (
                cloudpickle.cloudpickle._dynamic_class_reduce(value) if isinstance(value, type) else NotImplemented
            )

    return Pickler


def _complete_globals(function: types.FunctionType, sent: dict[str, Any]) -> None:
    """Add what a function finds as an attribute of ``__main__``, if it names that module and belongs to it."""
    main = sys.modules["__main__"]
    if vars(main) is function.__globals__ and any(value is main for value in sent.values()):
        mentioned = names_in(function.__code__)
        sent.update({name: vars(main)[name] for name in mentioned if name in vars(main)})


def names_in(code: types.CodeType) -> Iterator[str]:
    """Names that the code, or a function within it, may look up, as globals or attributes."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from names_in(constant)


def _complete_class(cls: Any, arguments: Any, state: Any) -> None:
    """Add to how cloudpickle sends a class what is missing."""
    attributes, others = state
    if issubclass(cls, enum.Enum):  # what its __new__ or __init__ has given each member
        others["members"] = {member.name: _own_attributes(member) for member in cls}
    elif vars(cls).get("__slots__"):  # else instances come back with a __dict__, which they cannot have
        arguments[3]["__slots__"] = vars(cls)["__slots__"]
    if cls in copyreg.dispatch_table:  # by which instances travel, also back
        others["reducer"] = copyreg.dispatch_table[cls]
    for name, value in vars(cls).items():
        if isinstance(value, types.MemberDescriptorType):
            attributes.pop(name, None)
    if vars(cls).get("__annotate_func__"):  # from Python 3.14 on: what makes the annotations, and cannot be sent
        attributes["__annotations_cache__"] = _annotations(cls)


def _own_attributes(member: enum.Enum) -> dict[str, Any]:
    return {name: value for name, value in vars(member).items() if name[:1] != "_" or name[-1:] != "_"}


def complete_class(cls: Any, state: Any) -> None:
    """Give a class that was rebuilt what cloudpickle has not."""
    for name, attributes in state[1].get("members", {}).items():
        vars(cls.__members__[name]).update(attributes)
    if "reducer" in state[1]:
        copyreg.pickle(cls, state[1]["reducer"])


def _annotations(value: Any) -> Any:
    try:
        return value.__annotations__
    except (NameError, AttributeError):  # from Python 3.14 on they may name what is not there, if nobody asks
        annotationlib = importlib.import_module("annotationlib")  # where there is one
        return annotationlib.get_annotations(value, format=annotationlib.Format.STRING)


def _with_annotations_as_text(function: types.FunctionType) -> types.FunctionType:
    twin = types.FunctionType(function.__code__, function.__globals__, closure=function.__closure__)
    for name in ("__name__", "__qualname__", "__module__", "__doc__", "__defaults__", "__kwdefaults__"):
        setattr(twin, name, getattr(function, name))
    vars(twin).update(vars(function))
    twin.__annotations__ = _annotations(function)
    return twin


def _or_by_name(rebuild: Callable[..., Any], parts: Callable[[Any], tuple[Any, ...]]) -> Callable[[Any], Any]:
    """A reducer of what travels by name where it has one that leads to it."""

    def reduce(value: Any) -> Any:
        registered = sys.modules["cloudpickle.cloudpickle"]._is_registered_pickle_by_value
        if is_importable(value) and not registered(sys.modules[value.__module__]):
            return _name(value)  # pickle takes a string for the name
        return rebuild, parts(value)

    return reduce


def _cached_function(function: Callable[..., Any], parameters: dict[str, Any]) -> Any:
    return functools.lru_cache(**parameters)(function)


def _cached_property(function: Callable[[Any], Any], name: str | None) -> functools.cached_property[Any]:
    cached = functools.cached_property(function)
    cached.attrname = name
    return cached


def _partial_method(function: Any, args: tuple[Any, ...], keywords: dict[str, Any]) -> functools.partialmethod[Any]:
    return functools.partialmethod(function, *args, **keywords)


def _type_alias(name: str, value: Any, parameters: tuple[Any, ...]) -> Any:
    return typing.TypeAliasType(name, value, type_params=parameters)  # type: ignore[attr-defined]


_REDUCERS: dict[type, Callable[[Any], Any]] = {
    functools._lru_cache_wrapper: _or_by_name(_cached_function, lambda c: (c.__wrapped__, c.cache_parameters())),
    functools.partialmethod: lambda method: (_partial_method, (method.func, method.args, method.keywords)),
    # functools.singledispatch has one
    weakref.WeakKeyDictionary: lambda mapping: (weakref.WeakKeyDictionary, (dict(mapping),)),
    weakref.WeakValueDictionary: lambda mapping: (weakref.WeakValueDictionary, (dict(mapping),)),
    typing.NewType: _or_by_name(typing.NewType, lambda new: (new.__name__, new.__supertype__)),
    typing.ParamSpec: _or_by_name(typing.ParamSpec, lambda spec: (spec.__name__,)),
}
if sys.version_info >= (3, 11):
    _REDUCERS[typing.TypeVarTuple] = _or_by_name(typing.TypeVarTuple, lambda types_: (types_.__name__,))
if sys.version_info >= (3, 12):
    _REDUCERS[typing.TypeAliasType] = _or_by_name(
        _type_alias, lambda alias: (alias.__name__, alias.__value__, alias.__type_params__)
    )
else:  # until then it held a lock
    _REDUCERS[functools.cached_property] = lambda cached: (_cached_property, (cached.func, cached.attrname))


def is_importable(value: Any) -> bool:
    """Whether a name leads to the value in every process, which ``__main__`` and ``__mp_main__`` do not."""
    module, name = getattr(value, "__module__", None), _name(value)
    return module not in ("__main__", "__mp_main__") and isinstance(name, str) and _find(module, name) is value


def _name(value: Any) -> Any:
    return getattr(value, "__qualname__", None) or getattr(value, "__name__", None)


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
        if id(cls) not in self._own:
            original(cls, state)
            complete_class(cls, state)
        return cls

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
