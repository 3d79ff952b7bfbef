"""Sending functions and classes by value, and resolving them when they come back to the client.

This module owns the by-value format: cloudpickle sends a function or class of ``__main__`` whole and rebuilds it at
the other end. `pickler` adds what cloudpickle cannot send, and records where each object belongs at home: the name
under which it can be found there, and the namespace it lives in. Plain rebuilding would break the promises of a
drop-in replacement, so a `Resolver` intervenes while such a payload is read. On the client, objects that already
exist are used and left unchanged: the reply's copy of a class is that class, its copy of a module's function is
that function. Plain cloudpickle would find the class and then assign the copy's attributes to it, so that its
methods would refer to stale globals from then on (`OwnObjects`). The worker's resolver is in `server.namespaces`.

A function that can be found by its name at home is recognized by its token, as cloudpickle recognizes a class.
Others, such as closures and lambdas, come back as new functions, since a task may have changed what they hold.

Objects that only an import can make, such as locks, cannot be sent. Where an import would have made one, among the
globals of a function or in anything else that belongs to its module, each process makes a new one in its place.

This module must not know connections, tasks or the farm. It relies on the names of cloudpickle's own rebuilding
functions; they are part of its pickle format and have not changed since 2.0.
"""

from __future__ import annotations

import contextlib
import contextvars
import copyreg
import enum
import functools
import importlib
import operator
import pickle
import sys
import threading
import types
import typing
import weakref
from collections import ChainMap
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

from farm_executor.data.atoms import ATOMS
from farm_executor.data.hints import Hints, annotated_names, looked_up_names, names_in, names_in_annotations
from farm_executor.data.importing import exist_here_only
from farm_executor.data.refused import Refusals
from farm_executor.data.tokens import OBJECTS, home_of, module_at

__all__ = [
    "OwnObjects",
    "Resolver",
    "class_by_tracker",
    "complete_class",
    "held_by",
    "imported",
    "is_importable",
    "is_made_afresh",
    "pickler",
]

# -- how they travel ---------------------------------------------------------------------------------


@functools.cache
def pickler() -> type[pickle.Pickler]:
    """Return cloudpickle's Pickler, extended to more kinds of functions and classes, and to weak mappings."""
    import cloudpickle  # late: it is as large as everything else, and most programs do not need it

    original: Any = cloudpickle.cloudpickle

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
        dispatch_table: ClassVar[Any] = ChainMap(
            _BETTER_REDUCERS, *cloudpickle.Pickler.dispatch_table.maps, _REDUCERS, Refusals()
        )

        def __init__(self, *args: Any, hints: Hints, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._hints = hints
            self._depth = 0  # the number of enclosing objects that an import would make
            self._cells: dict[int, _Cell] = {}

        def reducer_override(self, value: Any) -> Any:
            kind = type(value)
            if kind is types.FunctionType:
                return self._reduce_function(value)
            if issubclass(kind, type):
                return self._reduce_class(value)
            if kind is _Imported:
                return _middle, (_Step(1), value.value, _Step(-1))
            if kind is _Step:
                self._depth += value.by
                return _middle, ()
            if kind is _Cell:
                return _make_cell, ()
            if self._depth and kind not in copyreg.dispatch_table and (made := _made_afresh(value)):
                return _make_afresh, (OBJECTS.of(value), *made)
            return NotImplemented

        def _reduce_function(self, function: types.FunctionType) -> Any:
            module = function.__module__
            if module in _OF_PICKLES:
                return NotImplemented
            if original._should_pickle_by_reference(function) and module not in exist_here_only():
                return NotImplemented
            try:
                reduced = self._dynamic_function_reduce(function)
            except (NameError, AttributeError):  # from evaluating annotations, see `_annotations`
                reduced = self._dynamic_function_reduce(_with_annotations_as_text(function))
            _, arguments, (attributes, slots), *_ = reduced
            # cloudpickle gives each function cells of its own; functions that share a variable must still share it.
            if function.__closure__:
                cells = [self._cells.setdefault(id(cell), _Cell(cell)) for cell in function.__closure__]
                arguments = (*arguments[:-1], tuple(cells))
            _complete_globals(function, slots["__globals__"])
            if self._hints.enabled:
                for name in annotated_names(function):
                    self._hints.add(name, function.__globals__, slots["__globals__"])
                for name in looked_up_names(function):
                    self._hints.add(name, function.__globals__, slots["__globals__"], bounded=True)
            named = _leads_to(function)
            token = OBJECTS.sent(function, named=named)
            state: Any = attributes, slots
            if token is not None and _may_hold(function):
                state = _Imported(state)
            elif not all(map(_holds_nothing, slots["__globals__"].values())):
                slots["__globals__"] = _Imported(slots["__globals__"])
            where = home_of(function), token, named
            return _make_function, (*arguments, *where), state, None, None, _fill_function

        def _reduce_class(self, cls: Any) -> Any:
            reduced = original._class_reduce(cls)
            if reduced is NotImplemented and cls.__module__ in exist_here_only():
                reduced = original._dynamic_class_reduce(cls)
            if not isinstance(reduced, tuple) or len(reduced) < 6:  # it travels by its name
                return reduced
            rebuild, arguments, state, *others = reduced
            _complete_class(cls, arguments, state)
            if _leads_to(cls):
                names = state[1]["names"] = {} if "." in cls.__qualname__ else {cls.__qualname__: cls}
                if self._hints.enabled:
                    namespace = vars(sys.modules[cls.__module__])
                    self._hints.add(cls.__qualname__.partition(".")[0], namespace, names)
                    for annotation in (state[0].get(key) for key in ("__annotations__", "__annotations_cache__")):
                        for name in names_in_annotations(annotation):
                            self._hints.add(name, namespace, names)
                if not all(map(_holds_nothing, state[0].values())):
                    state = _Imported(state)
            return (rebuild, arguments, state, *others)

    return Pickler


_OF_PICKLES = {__name__, "cloudpickle.cloudpickle"}  # modules of the rebuilding functions that every pickle names


def _leads_to(value: Any) -> bool:
    """Return whether the value can be found by its name here, possibly as a method of a class."""
    name = value.__qualname__
    if "<" in name:  # it was made within a function
        return False
    module = sys.modules.get(value.__module__) if isinstance(value.__module__, str) else None
    found: Any = module
    for part in name.split("."):
        found = getattr(found, "__dict__", {}).get(part)
    return (getattr(found, "__func__", found) if type(found) in (classmethod, staticmethod) else found) is value


def _may_hold(function: types.FunctionType) -> bool:
    """Return whether the function holds anything of its own, besides its globals."""
    return bool(function.__closure__ or function.__defaults__ or function.__kwdefaults__ or function.__dict__)


def _complete_globals(function: types.FunctionType, sent: dict[str, Any]) -> None:
    """Add what a function of ``__main__`` looks up as attributes of that module, if it refers to the module."""
    main = sys.modules["__main__"]
    if vars(main) is function.__globals__ and any(value is main for value in sent.values()):
        mentioned = names_in(function.__code__)
        sent.update({name: vars(main)[name] for name in mentioned if name in vars(main)})


def held_by(function: types.FunctionType) -> Iterator[tuple[str, Any, Any]]:
    """Yield the parts sent along with a function: a description, the part itself, and the form it is sent in."""
    for name in dict.fromkeys(names_in(function.__code__)):
        if name in function.__globals__:
            yield f"the global {name}", function.__globals__[name], _Imported(function.__globals__[name])
    parts = [
        *((f"the variable {name}", cell) for name, cell in _closed_over(function)),
        *(("a default", value) for value in function.__defaults__ or ()),
        *((f"the default of {name}", value) for name, value in (function.__kwdefaults__ or {}).items()),
        *((f"the attribute {name}", value) for name, value in vars(function).items()),
    ]
    for word, value in parts:
        yield word, value, _Imported(value) if _leads_to(function) else value


def _closed_over(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # the cell is still empty
            yield name, cell.cell_contents


def _complete_class(cls: Any, arguments: Any, state: Any) -> None:
    """Add what is missing from cloudpickle's reduction of a class."""
    attributes, others = state
    others["qualname"] = cls.__qualname__
    if issubclass(cls, enum.Enum):  # the attributes set by its __new__ or __init__
        others["members"] = {member.name: _own_attributes(member) for member in cls}
    elif vars(cls).get("__slots__"):  # else instances would come back with a __dict__
        arguments[3]["__slots__"] = vars(cls)["__slots__"]
    if cls in copyreg.dispatch_table:  # instances travel by it, in both directions
        others["reducer"] = copyreg.dispatch_table[cls]
    for name, value in vars(cls).items():
        if isinstance(value, types.MemberDescriptorType):
            attributes.pop(name, None)
    if vars(cls).get("__annotate_func__"):  # Python 3.14: makes the annotations, cannot be sent
        attributes["__annotations_cache__"] = _annotations(cls)


def _own_attributes(member: enum.Enum) -> dict[str, Any]:
    return {name: value for name, value in vars(member).items() if name[:1] != "_" or name[-1:] != "_"}


def complete_class(cls: Any, state: Any) -> None:
    """Complete a rebuilt class with what cloudpickle leaves out."""
    type.__setattr__(cls, "__qualname__", state[1]["qualname"])
    for name, attributes in state[1].get("members", {}).items():
        vars(cls.__members__[name]).update(attributes)
    if "reducer" in state[1]:
        copyreg.pickle(cls, state[1]["reducer"])


def _annotations(value: Any) -> Any:
    try:
        return value.__annotations__
    except (NameError, AttributeError):  # since Python 3.14 they are lazy, and may use undefined names
        annotationlib = importlib.import_module("annotationlib")  # missing from older versions
        return annotationlib.get_annotations(value, format=annotationlib.Format.STRING)


def _with_annotations_as_text(function: types.FunctionType) -> types.FunctionType:
    twin = types.FunctionType(function.__code__, function.__globals__, closure=function.__closure__)
    for name in ("__name__", "__qualname__", "__module__", "__doc__", "__defaults__", "__kwdefaults__"):
        setattr(twin, name, getattr(function, name))
    vars(twin).update(vars(function))
    twin.__annotations__ = _annotations(function)
    return twin


def _make_function(code: Any, globals_: dict[str, Any], name: Any, defaults: Any, closure: Any, *where: Any) -> Any:
    """Make a function that `_reduce_function` has taken apart; ``where``, its origin, is for a `Resolver`."""
    from cloudpickle import cloudpickle

    return cloudpickle._make_function(code, globals_, name, defaults, closure)


def _fill_function(function: types.FunctionType, state: Any) -> None:
    from cloudpickle import cloudpickle

    cloudpickle._function_setstate(function, state)


def _or_by_name(rebuild: Callable[..., Any], parts: Callable[[Any], tuple[Any, ...]]) -> Callable[[Any], Any]:
    """Return a reducer for objects that travel by name where they can be found by one."""

    def reduce(value: Any) -> Any:
        if is_importable(value) and not _registered(sys.modules[value.__module__]):
            return _name(value)  # pickle takes a string for the name
        module, name = getattr(value, "__module__", None), _name(value)
        named = isinstance(name, str) and _find(module, name) is value
        token = OBJECTS.sent(value, named=named)
        return _make_object, (token, module, name if named else None, rebuild, *parts(value))

    return reduce


def _make_object(token: str | None, module: Any, name: Any, rebuild: Callable[..., Any], *parts: Any) -> Any:
    """Make an object that a reducer of `_or_by_name` has taken apart; ``name`` finds it at home, if not None."""
    made = rebuild(*parts)
    with contextlib.suppress(AttributeError):  # a type alias sets it itself
        made.__module__ = module
    if token is not None:
        OBJECTS.enter(token, made)
    return made


def _registered(module: types.ModuleType) -> bool:
    """Return whether the user has registered the module to be pickled by value."""
    return bool(sys.modules["cloudpickle.cloudpickle"]._is_registered_pickle_by_value(module))


def _type_variable(*parts: Any) -> Any:
    return sys.modules["cloudpickle.cloudpickle"]._make_typevar(*parts)


def _parts_of_type_variable(variable: Any) -> Any:
    return sys.modules["cloudpickle.cloudpickle"]._decompose_typevar(variable)


def _reduce_module(module: types.ModuleType) -> Any:
    name = module.__name__
    present = sys.modules.get(name)
    if present is not None and name not in exist_here_only() and not _registered(module):
        file = getattr(module, "__file__", None)
        if present is module or (file is not None and file == getattr(present, "__file__", None)):
            return sys.modules["cloudpickle.cloudpickle"].subimport, (name,)
    contents = {key: value for key, value in vars(module).items() if key not in _OF_THIS_IMPORT}
    return _make_module, (name, home_of(module)), _Imported(contents), None, None, _fill_module


_OF_THIS_IMPORT = {"__builtins__", "__spec__", "__loader__", "__cached__"}


def _make_module(name: str, home: str) -> types.ModuleType:
    return types.ModuleType(name)


def _fill_module(module: types.ModuleType, values: dict[str, Any]) -> None:
    vars(module).update(values)


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


_SINCE_311 = sys.version_info >= (3, 11)
_CODE = [  # the arguments of types.CodeType, in order
    *("co_argcount", "co_posonlyargcount", "co_kwonlyargcount", "co_nlocals", "co_stacksize", "co_flags"),
    *("co_code", "co_consts", "co_names", "co_varnames", "co_filename", "co_name"),
    *(["co_qualname"] if _SINCE_311 else []),
    *("co_firstlineno", "co_linetable"),
    *(["co_exceptiontable"] if _SINCE_311 else []),
    *("co_freevars", "co_cellvars"),
]
_code_parts = operator.attrgetter(*_CODE)


def _reduce_code(code: types.CodeType) -> Any:
    # Since 3.1.3, cloudpickle's own reducer leaves out the file name, so that tracebacks would lack it.
    return _make_code, _code_parts(code)


def _make_code(*parts: Any) -> types.CodeType:
    return types.CodeType(*parts)


_BETTER_REDUCERS: dict[type, Callable[[Any], Any]] = {  # these replace cloudpickle's
    types.CodeType: _reduce_code,
    types.ModuleType: _reduce_module,
    typing.TypeVar: _or_by_name(_type_variable, _parts_of_type_variable),
}
_REDUCERS: dict[type, Callable[[Any], Any]] = {
    functools._lru_cache_wrapper: _or_by_name(_cached_function, lambda c: (c.__wrapped__, c.cache_parameters())),
    functools.partialmethod: lambda method: (_partial_method, (method.func, method.args, method.keywords)),
    # functools.singledispatch has a WeakKeyDictionary
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
else:  # before Python 3.12, it held a lock
    _REDUCERS[functools.cached_property] = lambda cached: (_cached_property, (cached.func, cached.attrname))


def is_importable(value: Any) -> bool:
    """Return whether the value can be imported by name in every process, as nothing in ``__main__`` can."""
    module, name = getattr(value, "__module__", None), _name(value)
    if module == "__main__" or not isinstance(name, str) or _find(module, name) is not value:
        return False
    return module not in exist_here_only()


def _name(value: Any) -> Any:
    return getattr(value, "__qualname__", None) or getattr(value, "__name__", None)


_LEAVES = ATOMS | {types.ModuleType, types.BuiltinFunctionType, types.FunctionType, type}


def _holds_nothing(value: Any) -> bool:
    """Return whether the value can contain only objects that are sent in their own way, such as functions."""
    kind = type(value)
    if kind in _LEAVES:
        return True
    if kind is dict:
        return len(value) < 32 and _LEAVES.issuperset(map(type, value.values()))
    return (kind is tuple or kind is list) and len(value) < 32 and _LEAVES.issuperset(map(type, value))


def _find(module: Any, qualname: str) -> Any:
    """Return what the name refers to in a module of this process, or None."""
    found: Any = sys.modules.get(module) if isinstance(module, str) else None
    for name in qualname.split("."):
        found = getattr(found, name, None)
    return found


# -- objects made by imports only --------------------------------------------------------------------


class _Imported:
    """A wrapper, for pickling, around something that an import would make: locks within it are made afresh."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


class _Step:
    """A marker that changes the pickler's depth when it is pickled, before and after an `_Imported` value."""

    __slots__ = ("by",)

    def __init__(self, by: int) -> None:
        self.by = by


class _Cell:
    """A stand-in for a cell, which is made empty before the functions that close over it."""

    __slots__ = ("cell",)

    def __init__(self, cell: types.CellType) -> None:
        self.cell = cell  # kept alive, since it is identified by its id


def _make_cell() -> types.CellType:
    return types.CellType()


def _middle(before: None = None, value: Any = None, after: None = None) -> Any:
    """Rebuild the value of an `_Imported`, without the steps around it; rebuild a `_Step` as None."""
    return value


def imported(value: Any) -> Any:
    """Wrap a value that an import would make, to be pickled in its place."""
    return _Imported(value)


def is_made_afresh(value: Any) -> bool:
    """Return whether each process makes one of its own, which never changes there."""
    return type(value) in _UNCHANGING


def _made_afresh(value: Any) -> tuple[Any, ...] | None:
    """Return how to make a new one, if the value is of one of these kinds."""
    kind = type(value)
    if kind in _MADE_AFRESH:
        name, arguments = _MADE_AFRESH[kind]
        return (name, *arguments(value))
    return ("local", kind) if issubclass(kind, threading.local) else None


def _make_afresh(token: str, name: str, *arguments: Any) -> Any:
    found = OBJECTS.find(token)
    if found is None:
        found = _MAKERS[name](*arguments)
        OBJECTS.enter(token, found)
    return found


def _none(value: Any) -> tuple[Any, ...]:
    return ()


def _of_context_variable(variable: contextvars.ContextVar[Any]) -> tuple[Any, ...]:
    try:
        return variable.name, {"default": contextvars.Context().run(variable.get)}
    except LookupError:  # it does not have a default
        return variable.name, {}


_MAKERS: dict[str, Callable[..., Any]] = {
    "Lock": threading.Lock,
    "RLock": threading.RLock,
    "Event": threading.Event,
    "Condition": threading.Condition,
    "Semaphore": threading.Semaphore,
    "BoundedSemaphore": threading.BoundedSemaphore,
    "Barrier": threading.Barrier,
    "local": lambda kind: kind(),
    "ContextVar": lambda name, default: contextvars.ContextVar(name, **default),
}
_MADE_AFRESH: dict[type, tuple[str, Callable[[Any], tuple[Any, ...]]]] = {
    type(threading.Lock()): ("Lock", _none),
    type(threading.RLock()): ("RLock", _none),
    threading.Event: ("Event", _none),
    threading.Condition: ("Condition", lambda condition: (condition._lock,)),
    threading.Semaphore: ("Semaphore", lambda semaphore: (semaphore._value,)),  # its initial value is not recorded
    threading.BoundedSemaphore: ("BoundedSemaphore", lambda semaphore: (semaphore._initial_value,)),
    threading.Barrier: ("Barrier", lambda barrier: (barrier._parties, barrier._action, barrier._timeout)),
    contextvars.ContextVar: ("ContextVar", _of_context_variable),
}
_UNCHANGING = {type(threading.Lock()), type(threading.RLock()), threading.Event, threading.local}


# -- resolving what comes back -----------------------------------------------------------------------


class Resolver:
    """Replaces rebuilding functions by its own methods while one by-value payload is read.

    The functions are cloudpickle's and this module's. The methods have their names without the leading underscore,
    and get the original function followed by its arguments.
    """

    def resolve(self, module: str, name: str, value: Any) -> Any:
        """Return what to use for a global that is ``value``."""
        if module.startswith("cloudpickle") or module == __name__:
            method = getattr(self, name.lstrip("_"), None)
            if method is not None:
                return functools.partial(method, value)
        return value

    def finish(self) -> None:
        """Note that the payload has been read."""

    def end(self) -> None:
        """Note that no more of it is read, whether or not it could be."""


def class_by_tracker(tracker_id: Any) -> Any:
    """Return the class that cloudpickle tracks under this id in this process, or None."""
    return sys.modules["cloudpickle.cloudpickle"]._DYNAMIC_CLASS_TRACKER_BY_ID.get(tracker_id)


class OwnObjects(Resolver):
    """The client's resolver: a class or function that already exists here is used and left alone."""

    def __init__(self) -> None:
        self._own: set[int] = set()

    def make_skeleton_class(self, original: Callable[..., Any], *args: Any) -> Any:
        """Return the class that exists here, without even making the skeleton of another."""
        return self._known_or_new(class_by_tracker(args[4]), original, *args)

    def make_skeleton_enum(self, original: Callable[..., Any], *args: Any) -> Any:
        """Return the enum that exists here; see `make_skeleton_class`."""
        return self._known_or_new(class_by_tracker(args[5]), original, *args)

    def class_setstate(self, original: Callable[..., Any], cls: Any, state: Any) -> Any:
        """Fill a new class; leave alone one that existed before this load."""
        if id(cls) not in self._own:
            original(cls, state)
            complete_class(cls, state)
        return cls

    def make_function(self, original: Callable[..., Any], *args: Any) -> Any:
        """Return the function that was sent from here, or else make a new one."""
        *_, token, _ = args
        function = self._known_or_new(OBJECTS.original(token), original, *args)
        if token is not None:
            OBJECTS.enter(token, function)
        return function

    def fill_function(self, original: Callable[..., Any], function: Any, state: Any) -> Any:
        """Fill a new function; see `class_setstate`."""
        return None if id(function) in self._own else original(function, state)

    def make_object(self, original: Callable[..., Any], token: str | None, *args: Any) -> Any:
        """Return the object that was sent from here, or else make a new one; see `make_function`."""
        return self._known_or_new(OBJECTS.original(token), original, token, *args)

    def make_module(self, original: Callable[..., Any], name: str, home: str) -> Any:
        """Return the module that was sent from here, or else make a new one."""
        return self._known_or_new(module_at(home), original, name, home)

    def fill_module(self, original: Callable[..., Any], module: Any, values: dict[str, Any]) -> Any:
        """Fill a new module; see `class_setstate`."""
        return None if id(module) in self._own else original(module, values)

    def _known_or_new(self, known: Any, original: Callable[..., Any], *args: Any) -> Any:
        if known is None:
            return original(*args)
        self._own.add(id(known))
        return known
