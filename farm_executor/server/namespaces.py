"""Where functions and classes that travelled by value live on a worker.

Functions share a namespace here if they do at home: a global that an initializer sets is there for the tasks. Two
namespaces stay two, even if both have the same ``__name__``. What the worker changed, in a global or in a class,
stays, until the client's value changes: then the client's counts, as a task expects to see what was current when it
was submitted.

What can be found by a name at home is found by that name here, too: a task may pickle it, or look it up.

This module must not know lanes or tasks. See `byvalue` for how it steps in while a payload is read.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import pickle
import sys
import types
import weakref
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from farm_executor.data.byvalue import (
    Resolver,
    class_by_tracker,
    complete_class,
    is_importable,
    is_made_afresh,
    pickler,
)
from farm_executor.data.payload import PROTOCOL, all_plain, is_plain
from farm_executor.data.tokens import OBJECTS, home_of, named_home, settle

__all__ = ["SharedNamespaces", "contents_of"]

MAX_UNNAMED = 64  # namespaces that are no module's, of which the last ones used are kept

Digests = dict[str, bytes | None]
"""Of what came last from the client, by name; None where whatever comes next is to count as news."""


class _Parts(NamedTuple):
    """What a function was made of: code compares all of itself, but for its file."""

    code: types.CodeType
    filename: str
    digest: bytes | None


class SharedNamespaces:
    """For each namespace of the client's one that is here, in which the worker's own changes last.

    Attributes:
        generation: Counts the changes that came from the client. A function that was read at an earlier count
            may find values here that are not the ones it was sent with: read it again.
    """

    def __init__(self) -> None:
        self.generation = 0
        self._modules: dict[str, types.ModuleType] = {}  # by what stands for the namespace, see `home_of`
        self._globals: dict[types.ModuleType, Digests] = {}
        self._taken: dict[types.ModuleType, dict[str, Any]] = {}
        self._attributes: weakref.WeakKeyDictionary[type, Digests] = weakref.WeakKeyDictionary()
        self._parts: weakref.WeakKeyDictionary[types.FunctionType, _Parts] = weakref.WeakKeyDictionary()
        sys.modules["__main__"] = self.named("__main__")  # for pickling within a task, and `import __main__`

    def resolver(self) -> Resolver:
        """A resolver for one payload."""
        return _SharingResolver(self)

    def named(self, name: str) -> types.ModuleType:
        """The module that holds the namespace which this name leads to at home."""
        return self.module(named_home(name), name)

    def module(self, home: str, name: str) -> types.ModuleType:
        """The module that holds a namespace. It can be imported if nothing else here has its name."""
        module = self._modules.pop(home, None)
        if module is None:
            module = types.ModuleType(name)
            if home[:1] != "=":  # it need not even have a __name__
                vars(module).clear()
            self._globals[module] = dict.fromkeys(vars(module))
            settle(home, module)
            if home == named_home(name) and name != "__main__" and not _can_be_imported(name):
                sys.modules[name] = module
        self._modules[home] = module  # as the last one used
        return module

    def owner(self, function: types.FunctionType) -> types.ModuleType | None:
        """The module whose namespace the function lives in, if it is one of those here."""
        module = self._modules.get(home_of(function))
        return module if module is not None and vars(module) is function.__globals__ else None

    def forget(self) -> None:
        """Let go of the namespaces without a name that have not been used for long. Their functions keep theirs."""
        if len(self._modules) <= MAX_UNNAMED:
            return
        unnamed = [home for home in self._modules if home[:1] != "="]
        for home in unnamed[:-MAX_UNNAMED]:
            module = self._modules.pop(home)
            del self._globals[module]
            self._taken.pop(module, None)

    def received_globals(self, module: types.ModuleType) -> Digests:
        """What came last for a module."""
        return self._globals[module]

    def taken_globals(self, module: types.ModuleType) -> dict[str, Any]:
        """The objects that came for a module when they were news, whatever the worker has put in their place."""
        return self._taken.setdefault(module, {})

    def received_attributes(self, cls: type) -> Digests:
        """What came last for a class; from then on it is known."""
        return self._attributes.setdefault(cls, {})

    def knows(self, cls: type) -> bool:
        """Whether the class came from the client."""
        return cls in self._attributes

    def is_news(self, function: types.FunctionType, code: types.CodeType, parts: dict[str, Any]) -> bool:
        """Whether the parts of a function differ from those that came last."""
        now = _Parts(code, code.co_filename, _digest(parts))
        before = self._parts.get(function)
        self._parts[function] = now
        if now.digest is not None and now == before:
            return False
        self.generation += 1
        return True

    def news(self, received: Digests, values: dict[str, Any], present: Mapping[str, Any]) -> dict[str, Any]:
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
        self._globals: dict[types.ModuleType, dict[str, Any]] = {}
        self._classes: list[tuple[Callable[..., Any], type, dict[str, Any], Any]] = []
        self._functions: dict[types.FunctionType, types.CodeType] = {}
        self._parts: list[tuple[types.FunctionType, types.CodeType, dict[str, Any], dict[str, Any]]] = []
        self._known: set[types.FunctionType] = set()
        self._named: set[types.FunctionType] = set()

    def make_function(
        self, original: Callable[..., Any], code: Any, globals_: dict[str, Any], *others: Any
    ) -> types.FunctionType:
        """Take the function that came before, or make it over the namespace that stands for its own."""
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
        """Keep back the globals that are here already."""
        attributes, slots = state
        module = self._shared.owner(function)
        if module is not None:
            values = slots["__globals__"]
            slots["__globals__"] = self._add_globals(module, values)
            mentioned = sys.modules["cloudpickle.cloudpickle"]._extract_code_globals(function.__code__)
            for name in set(mentioned) - values.keys():  # the client has none of this name, which may change
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
        """Make it, and let its name lead to it."""
        made = original(token, module, name, *others)
        if name is not None:
            self._enter(module, name, made)
        return made

    def make_module(self, original: Callable[..., Any], name: str, home: str) -> types.ModuleType:
        """Take the module whose namespace its functions share."""
        return self._shared.module(home, name)

    def fill_module(self, original: Callable[..., Any], module: types.ModuleType, values: dict[str, Any]) -> None:
        """As `fill_function`."""
        vars(module).update(self._add_globals(module, values))

    def _enter(self, module_name: str, name: str, value: Any) -> None:
        """Let the name lead to the value, as it does at home; methods are found by way of their classes."""
        if "." not in name:
            module = self._shared.named(module_name)
            vars(module).update(self._add_globals(module, {name: value}))

    def _add_globals(self, module: types.ModuleType, values: dict[str, Any]) -> dict[str, Any]:
        """Those of the values that are new by name."""
        self._globals.setdefault(module, {}).update(values)
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
        """Take the class that came before: one more would have members of its own."""
        known = class_by_tracker(args[5])
        return original(*args) if known is None else known

    def class_setstate(self, original: Callable[..., Any], cls: Any, state: Any) -> Any:
        """Fill a new class; keep back the attributes that one known has already."""
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
        """Bring along what is news."""
        shared = self._shared
        here: dict[int, Any] = {}  # for copies of what is no news, what they are copies of
        for module, values in self._globals.items():
            namespace = vars(module)
            news = shared.news(shared.received_globals(module), values, namespace)
            namespace.update(news)
            taken = shared.taken_globals(module)
            taken.update(news)
            for name, value in values.items():
                if taken.setdefault(name, value) is not value and type(value) not in _WITHOUT_IDENTITY:
                    here[id(value)] = taken[name]
        for original, cls, attributes, slots in self._classes:
            news = shared.news(shared.received_attributes(cls), attributes, {})
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


def _can_be_imported(name: str) -> bool:
    """Whether there may be another module of this name here, or in a package that is here."""
    top = name.partition(".")[0]
    try:
        return top in sys.modules or importlib.util.find_spec(top) is not None
    except Exception:  # finders may be of any make
        return True


def _is_one(value: Any) -> bool:
    """Whether it is a function of which there is one here, as there is of a class.

    Those that close over something are made each time: what they close over, others may, too.
    """
    return type(value) is types.FunctionType and not value.__closure__ and OBJECTS.known(value) is not None


_NOT_PARTS = {"__globals__", "__closure__", "_cloudpickle_submodules"}


def _do_nothing(cls: type, /, **options: Any) -> None:
    """Stands for a class's hook for a while."""


def _put_in_place(function: types.FunctionType, here: dict[int, Any]) -> None:
    """Let a function hold what is here, not copies of it: a default may be meant to be a global's very object."""
    if function.__defaults__:
        function.__defaults__ = tuple(here.get(id(value), value) for value in function.__defaults__)
    for held in (function.__kwdefaults__ or {}, function.__dict__):
        held.update({name: here.get(id(value), value) for name, value in held.items()})
    for cell in function.__closure__ or ():
        contents = contents_of(cell)
        if id(contents) in here:
            cell.cell_contents = here[id(contents)]


_WITHOUT_IDENTITY = {type(None), bool, int, float, complex, str, bytes, tuple, frozenset}


def contents_of(cell: types.CellType) -> Any:
    """What the cell holds; None if nothing."""
    try:
        return cell.cell_contents
    except ValueError:
        return None


# -- what is news ------------------------------------------------------------------------------------


class _DigestPickler(pickle.Pickler):
    """Pickles what a value is, but not what is compared by itself: the globals of functions, and what `_is_one`."""

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
    """Stands in a digest for what made a class, a module or a function."""


def _is_simple(value: Any) -> bool:
    """Whether nothing in it needs to be looked at."""
    return is_plain(value) or (type(value) is tuple and all_plain(value)) or (type(value) is dict and not value)


class _Hash:
    """The file that a `_DigestPickler` writes to."""

    def __init__(self) -> None:
        self.hash = hashlib.blake2b(digest_size=16)

    def write(self, data: Any) -> int:
        self.hash.update(data)
        return len(data)


def _digest(value: Any) -> bytes | None:
    """A digest of the value's data, or None if it has none and must count as new."""
    if _is_simple(value) or (type(value) is dict and all(_is_simple(part) for part in value.values())):
        return pickle.dumps(value, PROTOCOL)  # in a tenth of the time
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
    except Exception:  # an object that came by a reduction of its own making
        return None
    return target.hash.digest()
