"""Numbers the functions of one farm; each is pickled only when it is new or may have changed.

This module owns the numbers, and the knowledge of when a function's pickle would still be the same. It must not
know who is sent what.

A function that can be imported is pickled as its name. One that travels by value (a lambda, a function of
``__main__``) includes its defaults, its closure and the globals that it names, with their values at each submit.
Pickling it each time would cost more than all the rest of a small call, so the table remembers what the pickle was
made of. As long as all parts are immutable (numbers, strings, modules, what a module defines, functions of such
things again), comparing their identities tells whether the pickle would be the same. A function that holds anything
else, such as a list or a class of ``__main__``, is pickled each time.

Functions may be large: a bound method is as large as its object, a partial as the arrays that it holds. Large
buffers are not pickled, but compared with a copy of what was sent. That takes a fraction of the time, and notices
whatever has changed in place. If all the rest of a function is immutable, and the buffer is that of a plain array
of numbers, that is all there is to do. The number of bytes kept of large functions is bounded, here as on workers,
and the farm forgets them when it has been idle for a while.
"""

from __future__ import annotations

import functools
import itertools
import operator
import pickle
import sys
import threading
import types
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from farm_executor._record import NamedTuple
from farm_executor.core.frames import BULK_THRESHOLD, Buffer, Payload, payload_size
from farm_executor.core.text import name_of
from farm_executor.data import payload
from farm_executor.data.atoms import ATOMS
from farm_executor.data.byvalue import is_importable, is_made_afresh
from farm_executor.data.hints import annotated_names, looked_up_names, names_in
from farm_executor.data.importing import exist_here_only
from farm_executor.data.memory import copied

__all__ = ["Function", "FunctionTable", "Kept"]

MAX_FUNCTIONS = 512  # small functions kept, by the table and on each worker
SMALL = 8 * 1024  # bytes, up to which a function is a small one
MAX_LARGE_BYTES = 4 * 1024 * 1024  # of large functions kept, likewise
MAX_PARTS = 64  # of a function that is remembered: comparing more would cost what it saves

_TYPING = (types.GenericAlias, types.UnionType)
_NAMED = {types.FunctionType, types.BuiltinFunctionType, type}
_COMPARABLE = _NAMED | {functools.partial}  # each equal only to itself
_MISSING = object()


class Function(NamedTuple):
    """A function as it is sent: its pickle, and the number that stands for that within one farm.

    Attributes:
        number: The number.
        data: The pickle, and copies of the buffers that it refers to.
        weight: How many bytes keeping it takes, on either side.
        name: What people call it.
        records: What keeps the shared objects that the call refers to.
        common: The buffers as servers know them, see `spreading`; None if each worker is sent its own.
    """

    number: int
    data: Payload
    weight: int
    name: str = ""
    records: tuple[Any, ...] = ()
    common: Any = None


class _Content:
    """What a function was pickled to, as a key: the pickle by its hash, buffers by comparing them."""

    __slots__ = ("_hash", "parts")

    def __init__(self, parts: Payload) -> None:
        self.parts = parts
        self._hash = hash((bytes(parts[0]), *(memoryview(part).nbytes for part in parts[1:])))

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Content):
            return NotImplemented
        mine, theirs = self.parts, other.parts
        return mine is theirs or (len(mine) == len(theirs) and all(map(_equal, mine, theirs)))

    def copy(self) -> _Content:
        """Return the same content in memory that nobody else writes to."""
        first, *buffers = self.parts
        return _Content((first, *(part if type(part) is bytes else copied(part) for part in buffers)))


def _equal(one: Buffer, other: Buffer) -> bool:
    # With a bytearray on the left they are compared at the speed of memory; two views are compared item by item.
    return other == one if type(other) is bytearray else one == other


class Kept:
    """The least-recently-used rule for functions: a limit on the number of small ones, on the bytes of large ones.

    There is one for the table and one for each worker. The large function that was used last is kept whatever its
    size, as it is likely to be used again.

    Attributes:
        large: The large ones, with their weights; the one used longest ago comes first.
    """

    def __init__(self) -> None:
        self.large: OrderedDict[Any, int] = OrderedDict()
        self._small: OrderedDict[Any, int] = OrderedDict()
        self._bytes = 0  # of the large ones

    def use(self, key: Any, weight: int) -> bool:
        """Note a use; return whether the function was not kept before."""
        kept = self._small if weight <= SMALL else self.large
        if key in kept:
            kept.move_to_end(key)
            return False
        kept[key] = weight
        if kept is self.large:
            self._bytes += weight
        return True

    def trim(self) -> list[Any]:
        """Forget what exceeds the limits; return the forgotten functions."""
        forgotten = []
        # The one used last stays even if it exceeds the limit alone. Otherwise a loop over one large function would
        # pickle it, send it and forget it for every call.
        while self._bytes > MAX_LARGE_BYTES and len(self.large) > 1:
            oldest, weight = self.large.popitem(last=False)
            self._bytes -= weight
            forgotten.append(oldest)
        while len(self._small) > MAX_FUNCTIONS:
            forgotten.append(self._small.popitem(last=False)[0])
        return forgotten

    def forget_large(self) -> list[Any]:
        """Forget all large functions; return them."""
        forgotten = list(self.large)
        self.large.clear()
        self._bytes = 0
        return forgotten

    def clear(self) -> None:
        """Forget all functions."""
        self.forget_large()
        self._small.clear()


class FunctionTable:
    """The functions of one farm; see the module.

    Args:
        common: Returns what stands for the buffers of a payload on servers; see `Function`.

    Attributes:
        kept: The functions that are known by their content.

    Thread safety: `find` may be called from any thread; at worst a function is pickled or numbered twice.
    """

    def __init__(self, common: Callable[[Payload], Any] = lambda parts: None) -> None:
        self._common = common
        self._numbers = itertools.count(1)
        self.kept = Kept()
        self._by_content: dict[_Content, Function] = {}
        self._contents: dict[int, _Content] = {}  # by number: to look a large content up takes comparing it
        self._unchanged: dict[Callable[..., Any], tuple[Function, _Parts | None]] = {}  # None: pickled as a name
        self._over_array: Any = None  # that of these which holds an array
        # Guards changes of the last five; reentrant, as a destructor may submit while its thread holds it.
        self._lock = threading.RLock()

    def find(self, fn: Callable[..., Any]) -> Function:
        """Return the function as it is now.

        Raises:
            Exception: It cannot be pickled.
        """
        known = self._unchanged.get(fn) if type(fn) in _COMPARABLE else None
        if known is not None and not payload.registered_by_value():
            function, parts = known
            if parts is None or parts.unchanged(function.data):
                return function
        return self._pickle(fn)

    def _pickle(self, fn: Callable[..., Any]) -> Function:
        # Before pickling: a part that another thread changes in between must be seen as changed at the next look.
        parts = _Parts(fn) if type(fn) is types.FunctionType or _binds_an_array(fn) else None
        function = self._number(_Content(payload.dumps(fn)), fn)
        if payload.by_value(function.data) or (parts is not None and type(fn) is functools.partial):
            stays = parts is not None and parts.can_be_compared and parts.are_of(function.data)
        else:
            parts, stays = None, _is_but_a_name(fn)
        if stays and not payload.registered_by_value():
            with self._lock:
                if len(self._unchanged) >= MAX_FUNCTIONS:  # as with a new lambda for each call
                    self._unchanged.clear()
                    self._over_array = None
                if function.number in self._contents:  # else another thread has just made us forget it
                    if parts is not None and parts.hold_an_array:
                        # One at a time, as each keeps the program's array: they may be many with the same contents.
                        self._unchanged.pop(self._over_array, None)
                        self._over_array = fn
                    self._unchanged[fn] = function, parts
        return function

    def forget_large(self) -> None:
        """Forget large functions; if they come again, they get new numbers."""
        with self._lock:
            self._forget(self.kept.forget_large())

    def _number(self, content: _Content, fn: Callable[..., Any]) -> Function:
        with self._lock:
            function = self._by_content.get(content)
            if function is None:
                content = content.copy()
                # For one that travels by value, both ends keep the function itself beside its pickle.
                weight = payload_size(content.parts) * (1 + payload.by_value(content.parts))
                common = self._common(content.parts) if len(content.parts) > 1 else None
                function = Function(next(self._numbers), content.parts, weight, name_of(fn), common=common)
                self._by_content[content], self._contents[function.number] = function, content
            if self.kept.use(function.number, function.weight):
                self._forget(self.kept.trim())
        return function

    def _forget(self, numbers: Sequence[int]) -> None:
        if numbers:
            for number in numbers:
                del self._by_content[self._contents.pop(number)]
            for fn, (function, _) in list(self._unchanged.items()):
                if function.number in numbers:
                    self._unchanged.pop(fn, None)
            if self._over_array not in self._unchanged:
                self._over_array = None


class _ChangeableError(Exception):
    """A function holds something that may change in place."""


class _Parts:
    """The parts that a function's pickle is made of. Must be created before the function is pickled."""

    __slots__ = ("_array", "_cells", "_functions", "_globals", "_modules", "_partials", "can_be_compared")

    def __init__(self, fn: Any) -> None:
        self._functions: dict[types.FunctionType, tuple[Any, ...]] = {}
        self._cells: list[tuple[types.CellType, Any]] = []
        self._globals: list[tuple[dict[str, Any], str, Any]] = []
        self._partials: dict[functools.partial[Any], list[Any]] = {}
        self._array: tuple[Any, ...] | None = None  # the one large array that there may be, and its looks
        self._modules = 0  # how many were loaded, if a part is a module; else 0
        try:
            self._add_value(fn)
            self.can_be_compared = True
        except _ChangeableError:
            self.can_be_compared = False

    @property
    def hold_an_array(self) -> bool:
        return self._array is not None

    def are_of(self, data: Payload) -> bool:
        """Return whether a pickle of these parts has the buffers that they account for."""
        return len(data) == 1 + (self._array is not None)

    def unchanged(self, data: Payload) -> bool:
        """Return whether each part is still the same as when the function was pickled to this."""
        for fn, (code, defaults) in self._functions.items():
            same = fn.__code__ is code and fn.__defaults__ is defaults
            if not same or fn.__kwdefaults__ or fn.__dict__:
                return False
        for bound, before in self._partials.items():
            now = _bound_by(bound)
            # By identity: what is equal may be pickled to something else, as 1 and True are.
            if len(now) != len(before) or bound.__dict__ or not all(map(operator.is_, now, before)):
                return False
        for namespace, name, value in self._globals:
            if namespace.get(name, _MISSING) is not value:
                return False
        for cell, value in self._cells:
            if _contents(cell) is not value:
                return False
        if self._modules and self._modules != len(sys.modules):
            return False
        if self._array is None:
            return True
        # Last, as it takes longest.
        array, *looks = self._array
        return _looks_of(array) == looks and _equal(data[1], pickle.PickleBuffer(array).raw())

    def _add(self, fn: types.FunctionType) -> None:
        if fn in self._functions or is_importable(fn):
            return
        if fn.__dict__ or fn.__kwdefaults__ or len(self._functions) + len(self._globals) >= MAX_PARTS:
            raise _ChangeableError
        self._functions[fn] = fn.__code__, fn.__defaults__
        self._add_value(fn.__defaults__)
        for cell in fn.__closure__ or ():
            value = _contents(cell)
            self._cells.append((cell, value))
            self._add_value(value)
        try:
            annotations = fn.__annotations__
        except Exception:  # from Python 3.14 on they are evaluated lazily, and may name what does not exist
            raise _ChangeableError from None
        for value in annotations.values():
            self._add_value(value)
        for name in names_in(fn.__code__):
            value = fn.__globals__.get(name, _MISSING)
            self._globals.append((fn.__globals__, name, value))
            self._add_value(value)
        for name in (*annotated_names(fn), *looked_up_names(fn)):  # only their identity matters
            self._globals.append((fn.__globals__, name, fn.__globals__.get(name, _MISSING)))

    def _add_value(self, value: Any) -> None:
        kind = type(value)
        if kind in ATOMS or value is ... or value is _MISSING or value is type(None) or is_made_afresh(value):
            return
        if kind is types.FunctionType:
            self._add(value)
        elif kind is functools.partial:
            if value.__dict__:
                raise _ChangeableError
            if value not in self._partials:  # else it may hold itself
                bound = self._partials[value] = _bound_by(value)
                for item in bound:
                    self._add_value(item)
        elif kind is tuple:
            for item in value:
                self._add_value(item)
        elif kind.__module__ == "numpy" and kind.__name__ == "ndarray":
            # One is what most functions have, and leaves no doubt whose buffer is which.
            if not _is_plain(value) or (self._array is not None and self._array[0] is not value):
                raise _ChangeableError
            self._array = value, *_looks_of(value)
        elif issubclass(kind, _TYPING) or kind.__module__ == "typing":
            for item in (getattr(value, "__origin__", None), *getattr(value, "__args__", ())):
                self._add_value(item)
        elif isinstance(value, types.ModuleType):
            name = value.__name__
            if name == "__main__" or sys.modules.get(name) is not value or name in exist_here_only():
                raise _ChangeableError
            self._modules = len(sys.modules)  # submodules that are loaded by now travel with a package
        elif not (isinstance(value, (type, types.BuiltinFunctionType)) and is_importable(value)):
            raise _ChangeableError


def _is_plain(array: Any) -> bool:
    """Return whether the pickle of an array depends on nothing but its contents and its looks."""
    kind = array.dtype
    return (
        array.nbytes >= BULK_THRESHOLD  # else its contents are within the pickle
        and array.flags.c_contiguous
        and kind.kind in "biufc"
        and kind.isbuiltin == 1
        and kind.metadata is None
    )


def _looks_of(array: Any) -> list[Any]:
    # All of them can be set in place. A type of numpy's own is one object, but for its byte order and metadata.
    kind = array.dtype
    return [array.shape, array.strides, kind.str, kind.metadata, array.flags.writeable]


def _is_but_a_name(fn: Callable[..., Any]) -> bool:
    """Return whether a function that was pickled by name always is; a method may be pickled with its object."""
    if type(fn) is types.BuiltinFunctionType:
        return isinstance(fn.__self__, types.ModuleType)
    return type(fn) in _NAMED


def _binds_an_array(fn: Callable[..., Any]) -> bool:
    """Return whether this is a partial that takes longer to pickle than to take apart, which most do not."""
    if type(fn) is not functools.partial:
        return False
    return "ndarray" in [type(arg).__name__ for arg in (*fn.args, *fn.keywords.values())]


def _bound_by(fn: functools.partial[Any]) -> list[Any]:
    # Its arguments are one tuple, for as long as they are the same. Its keywords are a dict, which can be changed
    # in place; their names are strings that are compared here, too.
    return [fn.func, fn.args, *(part for item in fn.keywords.items() for part in item)]


def _contents(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # the cell is empty
        return _MISSING
