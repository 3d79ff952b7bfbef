"""The namespaces on a worker of functions and classes that travelled by value.

Functions share a namespace here if they do so at the client: a global that an initializer sets is there for the
tasks. Two namespaces stay separate, even if both have the same ``__name__``. A change that the worker makes, to a
global or to a class, lasts until the client's value changes. Then the client's value replaces it, as a task expects
to see what was current when it was submitted.

Objects that can be found by name at the client can be found by that name here, too: a task may pickle them, or look
them up.

This module must not know lanes or tasks. See `byvalue` for how it steps in while a payload is read.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import pickle
import sys
import threading
import types
import weakref
from collections.abc import Callable, Mapping
from typing import Any

from farm_executor._record import NamedTuple
from farm_executor.data.atoms import ATOMS
from farm_executor.data.byvalue import (
    Resolver,
    class_by_tracker,
    complete_class,
    is_importable,
    is_made_afresh,
    pickler,
)
from farm_executor.data.payload import PROTOCOL, all_plain, is_plain
from farm_executor.data.shared import take
from farm_executor.data.tokens import OBJECTS, home_of, named_home, settle

__all__ = ["SharedNamespaces", "contents_of"]

MAX_UNNAMED = 64  # namespaces that do not belong to a module; the most recently used ones are kept

Digests = dict[str, bytes | None]
"""Digests of the values that came last from the client, by name; None where any next value counts as news."""


class _Parts(NamedTuple):
    """The parts that a function was made of. Code objects compare everything except their file names."""

    code: types.CodeType
    filename: str
    digest: bytes | None


class SharedNamespaces:
    """The client's namespaces as they are on this worker, where the worker's own changes last.

    Attributes:
        generation: The number of changes that came from the client. A function that was read at an earlier count
            may find values here other than those it was sent with, and has to be read again.
    """

    def __init__(self) -> None:
        self.generation = 0
        self._modules: dict[str, types.ModuleType] = {}  # by `home_of`, in order of their last use
        self._globals: dict[types.ModuleType, Digests] = {}
        self._taken: dict[types.ModuleType, dict[str, Any]] = {}
        self._attributes: weakref.WeakKeyDictionary[type, Digests] = weakref.WeakKeyDictionary()
        self._parts: weakref.WeakKeyDictionary[types.FunctionType, _Parts] = weakref.WeakKeyDictionary()
        self._readers = 0  # payloads that are being read
        self._unneeded: list[int] = []  # shared objects to let go of once there are none
        self._lock = threading.RLock()  # for these two; a destructor may unpickle while its thread holds it
        sys.modules["__main__"] = self.named("__main__")  # for pickling within a task, and `import __main__`

    def resolver(self) -> Resolver:
        """Return a resolver for one payload, whose `end` is to be called."""
        with self._lock:
            self._readers += 1
        return _SharingResolver(self)

    def end_reading(self) -> None:
        """Note that one payload is not read any more."""
        with self._lock:
            self._readers -= 1
            dropped = self._forget_unneeded()
        del dropped  # without the lock, as its destructors are the user's

    def named(self, name: str) -> types.ModuleType:
        """Return the module that holds the namespace that the name leads to at the client."""
        return self.module(named_home(name), name)

    def module(self, home: str, name: str) -> types.ModuleType:
        """Return the module that holds a namespace. It can be imported if nothing else here has its name."""
        module = self._modules.pop(home, None)
        if module is None:
            module = types.ModuleType(name)
            if home[:1] != "=":  # not a module's: it need not even have a __name__
                vars(module).clear()
            self._globals[module] = dict.fromkeys(vars(module))
            settle(home, module)
            if home == named_home(name) and name != "__main__" and not _can_be_imported(name):
                sys.modules[name] = module
        self._modules[home] = module  # at the end, as the one used last
        return module

    def owner(self, function: types.FunctionType) -> types.ModuleType | None:
        """Return the module whose namespace the function lives in, if it is one of those here."""
        module = self._modules.get(home_of(function))
        return module if module is not None and vars(module) is function.__globals__ else None

    def forget(self) -> None:
        """Let go of the unnamed namespaces used least recently. Functions that live in one keep it alive."""
        if len(self._modules) <= MAX_UNNAMED:
            return
        unnamed = [home for home in self._modules if home[:1] != "="]
        for home in unnamed[:-MAX_UNNAMED]:
            module = self._modules.pop(home)
            del self._globals[module]
            self._taken.pop(module, None)

    def received_globals(self, module: types.ModuleType) -> Digests:
        """Return the digests of what came last for a module."""
        return self._globals[module]

    def taken_globals(self, module: types.ModuleType) -> dict[str, Any]:
        """Return the objects that came as news for a module, whatever the worker has put in their place since."""
        return self._taken.setdefault(module, {})

    def received_attributes(self, cls: type) -> Digests:
        """Return the digests of what came last for a class, which is known from then on."""
        return self._attributes.setdefault(cls, {})

    def knows(self, cls: type) -> bool:
        """Return whether the class came from the client."""
        return cls in self._attributes

    def is_news(self, function: types.FunctionType, code: types.CodeType, parts: dict[str, Any]) -> bool:
        """Return whether the parts of a function differ from those that came last."""
        now = _Parts(code, code.co_filename, _digest(parts))
        before = self._parts.get(function)
        self._parts[function] = now
        if now.digest is not None and now == before:
            return False
        self.generation += 1
        return True

    def forget_shared(self, number: int) -> None:
        """Let go of a shared object that globals refer to, as no task needs it. Any thread may call this."""
        # Not while another thread reads a payload: what that has just put into a global would go in its place.
        with self._lock:
            self._unneeded.append(number)
            dropped = self._forget_unneeded()
        del dropped

    def _forget_unneeded(self) -> list[Any]:
        """Let go of what nobody needs, unless a payload is being read; return the values."""
        if self._readers or not self._unneeded:
            return []
        dropped: list[Any] = []
        digests = set(map(_digest_of_shared, self._unneeded))
        self._unneeded.clear()
        for module, received in list(self._globals.items()):
            for name, digest in list(received.items()):
                if digest in digests:
                    received.pop(name, None)
                    dropped.append(vars(module).pop(name, None))
                    dropped.append(self._taken.get(module, {}).pop(name, None))
        return dropped

    def news(
        self, received: Digests, values: dict[str, Any], present: Mapping[str, Any], shared: Mapping[int, int]
    ) -> dict[str, Any]:
        """Return the values that differ from those that came last.

        ``shared`` has the numbers of shared objects, by their ids.

        A value that is ``present`` before the client ever sent one of that name was set by the worker itself, and
        stays.
        """
        news = {}
        for name, value in values.items():
            # Never of the contents of a shared object, which is large, and does not change.
            number = shared.get(id(value))
            digest = _digest(value) if number is None else _digest_of_shared(number)
            if name not in received and name in present:
                pass
            elif digest is None or received.get(name) != digest:
                self.generation += 1
                news[name] = value
            received[name] = digest
        return news


class _SharingResolver(Resolver):
    """Reads one payload into the shared namespaces.

    Values that are new to the worker are put in place at once, as unpickling may already call them. The rest is
    compared when everything has been read: until then, an object that refers to itself is incomplete.
    """

    def __init__(self, shared: SharedNamespaces) -> None:
        self._shared = shared
        self._globals: dict[types.ModuleType, dict[str, Any]] = {}
        self._classes: list[tuple[Callable[..., Any], type, dict[str, Any], Any]] = []
        self._functions: dict[types.FunctionType, types.CodeType] = {}
        self._parts: list[tuple[types.FunctionType, types.CodeType, dict[str, Any], dict[str, Any]]] = []
        self._known: set[types.FunctionType] = set()
        self._named: set[types.FunctionType] = set()
        self._taken: list[Any] = []  # shared objects, which must live for as long as their ids are known
        self._numbers: dict[int, int] = {}  # theirs, by id

    def resolve(self, module: str, name: str, value: Any) -> Any:
        """Return what to use for a global that is ``value``."""
        return self._take if value is take else super().resolve(module, name, value)

    def _take(self, number: int) -> Any:
        value = take(number)
        self._taken.append(value)
        self._numbers[id(value)] = number
        return value

    def make_function(
        self, original: Callable[..., Any], code: Any, globals_: dict[str, Any], *others: Any
    ) -> types.FunctionType:
        """Return the function that came before, or make it over the namespace that stands for its own."""
        *_, home, token, named = others
        name = globals_.get("__name__")
        namespace = vars(self._shared.module(home, name if isinstance(name, str) else ""))
        namespace.update(globals_)  # __package__, __path__, __file__: what relative imports need
        known = token and OBJECTS.find(token)
        if _is_one(known) and known.__globals__ is namespace and not code.co_freevars:
            function: types.FunctionType = known
            self._known.add(function)
        else:
            function = original(code, namespace, *others)
            if token is not None:
                OBJECTS.enter(token, function)
        if named:
            self._named.add(function)
        self._functions[function] = code
        return function

    def fill_function(self, original: Callable[..., Any], function: Any, state: Any) -> Any:
        """Fill a function, but hold back the globals that are here already."""
        attributes, slots = state
        module = self._shared.owner(function)
        if module is not None:
            values = slots["__globals__"]
            slots["__globals__"] = self._add_globals(module, values)
            mentioned = sys.modules["cloudpickle.cloudpickle"]._extract_code_globals(function.__code__)
            for name in set(mentioned) - values.keys():  # the client has no such global now, but may get one
                self._shared.received_globals(module).setdefault(name, None)
        if function in self._named:
            self._enter(slots["__module__"], slots["__qualname__"], function)
        if _is_one(function):
            parts = {name: value for name, value in slots.items() if name not in _NOT_PARTS}
            self._parts.append((function, self._functions[function], attributes, parts))
        if function in self._known:
            function.__globals__.update(slots["__globals__"])
            return None
        return original(function, (attributes, slots))

    def make_object(
        self, original: Callable[..., Any], token: str | None, module: Any, name: Any, *others: Any
    ) -> Any:
        """Make the object, and let its name lead to it."""
        made = original(token, module, name, *others)
        if name is not None:
            self._enter(module, name, made)
        return made

    def make_module(self, original: Callable[..., Any], name: str, home: str) -> types.ModuleType:
        """Return the module whose namespace its functions share."""
        return self._shared.module(home, name)

    def fill_module(self, original: Callable[..., Any], module: types.ModuleType, values: dict[str, Any]) -> None:
        """Fill a module, but hold back the globals that are here already, as `fill_function` does."""
        vars(module).update(self._add_globals(module, values))

    def _enter(self, module_name: str, name: str, value: Any) -> None:
        """Let the name lead to the value, as it does at the client; methods are found through their classes."""
        if "." not in name:
            module = self._shared.named(module_name)
            vars(module).update(self._add_globals(module, {name: value}))

    def _add_globals(self, module: types.ModuleType, values: dict[str, Any]) -> dict[str, Any]:
        """Note the values for `finish`, and return those whose names are new here."""
        self._globals.setdefault(module, {}).update(values)
        new = {name: value for name, value in values.items() if name not in vars(module)}
        self._shared.received_globals(module).update(dict.fromkeys(new))
        return new

    def make_skeleton_class(
        self, original: Callable[..., Any], metaclass: Any, name: str, bases: Any, attributes: Any, *rest: Any
    ) -> Any:
        """Return the class that came before, or make one.

        Hooks of its bases and metaclass, such as those that register each class, have already run at the client. If
        those bases came from the client, the results of the hooks come along with them, so the hooks must not run
        again.
        """
        known = class_by_tracker(rest[0])
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
        """Return the enum that came before, or make one: a second one would have members of its own."""
        known = class_by_tracker(args[5])
        return original(*args) if known is None else known

    def class_setstate(self, original: Callable[..., Any], cls: Any, state: Any) -> Any:
        """Fill a new class; for a known one, hold back the attributes that it already has."""
        attributes, slots = state
        self._classes.append((original, cls, attributes, slots))
        known = self._shared.knows(cls)
        new = {name: value for name, value in attributes.items() if not known or name not in vars(cls)}
        self._shared.received_attributes(cls).update(dict.fromkeys(new))
        original(cls, (new, slots))
        if not known:
            complete_class(cls, state)
        for name, value in slots.get("names", {}).items():
            self._enter(cls.__module__, name, value)
        return cls

    def finish(self) -> None:
        """Put everything in place that is news."""
        shared = self._shared
        here: dict[int, Any] = {}  # by the id of a copy that is not news, the object here that it is a copy of
        for module, values in self._globals.items():
            namespace = vars(module)
            news = shared.news(shared.received_globals(module), values, namespace, self._numbers)
            namespace.update(news)
            taken = shared.taken_globals(module)
            taken.update(news)
            for name, value in values.items():
                if taken.setdefault(name, value) is not value and type(value) not in _WITHOUT_IDENTITY:
                    here[id(value)] = taken[name]
        for original, cls, attributes, slots in self._classes:
            news = shared.news(shared.received_attributes(cls), attributes, {}, self._numbers)
            original(cls, ({name: here.get(id(value), value) for name, value in news.items()}, slots))
        for function, code, attributes, parts in self._parts:
            if shared.is_news(function, code, {**parts, "__dict__": attributes}) and function in self._known:
                function.__code__ = code
                for name, value in parts.items():
                    setattr(function, name, value)
                vars(function).clear()
                vars(function).update(attributes)
        for function in self._functions if here else ():
            _put_in_place(function, here)
        shared.forget()

    def end(self) -> None:
        """Let others change what has been read."""
        self._shared.end_reading()


def _can_be_imported(name: str) -> bool:
    """Return whether there may be another module of this name here, or in a package that is here."""
    top = name.partition(".")[0]
    try:
        return top in sys.modules or importlib.util.find_spec(top) is not None
    except Exception:  # finders may be anyone's, and raise anything
        return True


def _is_one(value: Any) -> bool:
    """Return whether it is a function of which only one exists here, as is so for a class.

    Functions that close over something are made each time, as others may close over the same variables.
    """
    return type(value) is types.FunctionType and not value.__closure__ and OBJECTS.known(value) is not None


_NOT_PARTS = {"__globals__", "__closure__", "_cloudpickle_submodules"}


def _do_nothing(cls: type, /, **options: Any) -> None:
    """Do nothing, in place of a class's hook."""


def _put_in_place(function: types.FunctionType, here: dict[int, Any]) -> None:
    """Let a function refer to the objects here, not to copies: a default may have to be the global itself."""
    if function.__defaults__:
        function.__defaults__ = tuple(here.get(id(value), value) for value in function.__defaults__)
    for held in (function.__kwdefaults__ or {}, function.__dict__):
        held.update({name: here.get(id(value), value) for name, value in held.items()})
    for cell in function.__closure__ or ():
        contents = contents_of(cell)
        if id(contents) in here:
            cell.cell_contents = here[id(contents)]


_WITHOUT_IDENTITY = ATOMS | {tuple, frozenset}


def contents_of(cell: types.CellType) -> Any:
    """Return the contents of the cell; None if it is empty."""
    try:
        return cell.cell_contents
    except ValueError:
        return None


# -- what is news ------------------------------------------------------------------------------------


class _DigestPickler(pickle.Pickler):
    """Pickles a value, leaving out what is compared separately: the globals of functions, and what `_is_one`."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, type):
            tracker = sys.modules["cloudpickle.cloudpickle"]._DYNAMIC_CLASS_TRACKER_BY_CLASS.get(value)
            return _stand_in, (value.__module__, value.__qualname__, tracker)
        if isinstance(value, types.ModuleType):
            return _stand_in, (value.__name__,)
        if isinstance(value, types.FunctionType) and not is_importable(value):
            state = (value.__code__, value.__defaults__, value.__kwdefaults__, value.__closure__, value.__dict__)
            identity = value.__qualname__, home_of(value), OBJECTS.known(value)
            return _stand_in, identity, None if _is_one(value) else state
        if is_made_afresh(value):
            return _stand_in, (OBJECTS.known(value),)
        return NotImplemented


def _stand_in(*parts: Any) -> None:
    """Stand in a digest for the callable that makes a class, a module or a function."""


def _is_simple(value: Any) -> bool:
    """Return whether the value can be pickled without looking into it."""
    return is_plain(value) or (type(value) is tuple and all_plain(value)) or (type(value) is dict and not value)


class _Hash:
    """A file for a `_DigestPickler` to write to, which hashes the data."""

    def __init__(self) -> None:
        self.hash = hashlib.blake2b(digest_size=16)

    def write(self, data: Any) -> int:
        self.hash.update(data)
        return len(data)


def _digest_of_shared(number: int) -> bytes:
    return b"shared %d" % number


def _digest(value: Any) -> bytes | None:
    """Return a digest of the value's data; None if there can be none, so that the value counts as new."""
    if _is_simple(value) or (type(value) is dict and all(_is_simple(part) for part in value.values())):
        return pickle.dumps(value, PROTOCOL)  # takes a tenth of the time
    if _is_one(value):
        return f"{home_of(value)} {OBJECTS.known(value)}".encode()
    target = _Hash()

    def keep(buffer: pickle.PickleBuffer) -> bool:
        try:
            target.hash.update(buffer.raw())
        except BufferError:
            return True
        return False

    try:
        digester = _DigestPickler(target, PROTOCOL, buffer_callback=keep)
        digester.dispatch_table = pickler().dispatch_table
        digester.dump(value)
    except Exception:  # an object whose own way to be reduced cannot be used here
        return None
    return target.hash.digest()
