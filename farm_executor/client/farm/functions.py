"""The functions of one farm: each is pickled when it is new or may have changed, and is then known by a number.

This module owns the numbers, and the knowledge of when a function's pickle would still be the same. It must not
know who is sent what.

A module's function is its name. One that travels by value (a lambda, a function of ``__main__``) brings the values
of the globals that it names, its defaults and what it closes over, as they are at each submit. To pickle it each
time would cost more than all the rest of a small call, so it is remembered what its pickle was made of. As long as
that consists of things that cannot change in place (numbers, strings, modules, what a module defines, functions of
such things again), a look at each tells whether it is still the same object. A function that holds anything else,
such as a list or a class of ``__main__``, is pickled each time.

Functions may be large: a bound method is as large as its object. What is kept of such is bounded, here as on
workers, and the farm forgets it when it has had nothing to do for a while.
"""

from __future__ import annotations

import itertools
import sys
import threading
import types
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from farm_executor.core.frames import Payload
from farm_executor.data import payload
from farm_executor.data.byvalue import is_importable, is_made_afresh
from farm_executor.data.hints import annotated_names, looked_up_names, names_in
from farm_executor.data.importing import exist_here_only

__all__ = ["Function", "FunctionTable", "Kept"]

MAX_FUNCTIONS = 512  # small ones that are kept, by the table and on each worker
SMALL = 8 * 1024  # bytes
MAX_LARGE_BYTES = 4 * 1024 * 1024  # of others: a bound method is as large as its object
MAX_PARTS = 64  # of a function that is remembered: looking at more would cost what it saves

_ATOMS = {type(None), bool, int, float, complex, str, bytes, type(...)}
_TYPING = (types.GenericAlias, types.UnionType)
_COMPARABLE = {types.FunctionType, types.BuiltinFunctionType, type}  # of which each is equal to itself alone
_MISSING = object()


class Function(NamedTuple):
    """A function as it is sent: a number that stands for these bytes in one farm.

    Attributes:
        number: The number.
        data: The bytes.
        weight: How many bytes it takes to keep it, on either side.
    """

    number: int
    data: Payload
    weight: int


class Kept:
    """Which functions are kept: those used last, of the small ones so many, of the large ones so many bytes.

    The last of the large ones is kept whatever its size, as it is likely to be used again.

    Attributes:
        large: The large ones, with their weights; the oldest use first.
    """

    def __init__(self) -> None:
        self.large: OrderedDict[Any, int] = OrderedDict()
        self._small: OrderedDict[Any, int] = OrderedDict()
        self._bytes = 0  # of the large ones

    def use(self, key: Any, weight: int) -> bool:
        """Note a use; say whether it is the first."""
        kept = self._small if weight <= SMALL else self.large
        if key in kept:
            kept.move_to_end(key)
            return False
        kept[key] = weight
        if kept is self.large:
            self._bytes += weight
        return True

    def trim(self) -> list[Any]:
        """Forget what is too much; return which ones these were."""
        forgotten = []
        while self._bytes > MAX_LARGE_BYTES and len(self.large) > 1:
            oldest, weight = self.large.popitem(last=False)
            self._bytes -= weight
            forgotten.append(oldest)
        while len(self._small) > MAX_FUNCTIONS:
            forgotten.append(self._small.popitem(last=False)[0])
        return forgotten

    def forget_large(self) -> list[Any]:
        """Keep none of the large ones; return which these were."""
        forgotten = list(self.large)
        self.large.clear()
        self._bytes = 0
        return forgotten

    def clear(self) -> None:
        """Keep none."""
        self.forget_large()
        self._small.clear()


class FunctionTable:
    """See the module.

    Attributes:
        kept: Which functions are known by their content.

    Thread safety: `find` may be called from any thread; at worst a function is pickled or numbered twice.
    """

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self.kept = Kept()
        self._by_content: dict[bytes, Function] = {}
        self._unchanged: dict[Callable[..., Any], tuple[Function, _Parts | None]] = {}  # None: it is but a name
        self._lock = threading.RLock()  # to change the last three; a destructor may submit while it is held

    def find(self, fn: Callable[..., Any]) -> Function:
        """The function as it is now.

        Raises:
            Exception: It cannot be pickled.
        """
        known = self._unchanged.get(fn) if type(fn) in _COMPARABLE else None
        if known is not None and not payload.registered_by_value():
            function, parts = known
            if parts is None or parts.unchanged():
                return function
        return self._pickle(fn)

    def _pickle(self, fn: Callable[..., Any]) -> Function:
        parts = _Parts(fn) if isinstance(fn, types.FunctionType) else None
        function = self._number(bytes(payload.dumps(fn, out_of_band=False)[0]))
        if payload.by_value(function.data):
            stays = parts is not None and parts.can_be_compared
        else:
            parts, stays = None, _is_but_a_name(fn)
        if stays and not payload.registered_by_value():
            with self._lock:
                if len(self._unchanged) >= MAX_FUNCTIONS:  # such as one lambda made anew for each call
                    self._unchanged.clear()
                if function.data[0] in self._by_content:  # else another thread has just had it forgotten
                    self._unchanged[fn] = function, parts
        return function

    def forget_large(self) -> None:
        """Keep nothing of large functions; when they come again, they have other numbers."""
        with self._lock:
            self._forget(self.kept.forget_large())

    def _number(self, data: bytes) -> Function:
        with self._lock:
            function = self._by_content.get(data)
            if function is None:
                # What travels by value is kept beside its pickle, here and there.
                weight = len(data) * (1 + payload.by_value([data]))
                function = self._by_content[data] = Function(next(self._numbers), [data], weight)
            if self.kept.use(data, function.weight):
                self._forget(self.kept.trim())
        return function

    def _forget(self, contents: Sequence[bytes]) -> None:
        if contents:
            numbers = {self._by_content.pop(data).number for data in contents if data in self._by_content}
            for fn, (function, _) in list(self._unchanged.items()):
                if function.number in numbers:
                    self._unchanged.pop(fn, None)


class _ChangeableError(Exception):
    """A function holds something that may change without being another object."""


class _Parts:
    """What a function's pickle is made of. To be taken before the pickling: what changes meanwhile has changed."""

    __slots__ = ("_cells", "_functions", "_globals", "_modules", "can_be_compared")

    def __init__(self, fn: types.FunctionType) -> None:
        self._functions: dict[types.FunctionType, tuple[Any, ...]] = {}
        self._cells: list[tuple[types.CellType, Any]] = []
        self._globals: list[tuple[dict[str, Any], str, Any]] = []
        self._modules = 0  # how many were imported, if it matters
        try:
            self._add(fn)
            self.can_be_compared = True
        except _ChangeableError:
            self.can_be_compared = False

    def unchanged(self) -> bool:
        """Whether each part is what it was."""
        for fn, (code, defaults) in self._functions.items():
            same = fn.__code__ is code and fn.__defaults__ is defaults
            if not same or fn.__kwdefaults__ or fn.__dict__:
                return False
        for namespace, name, value in self._globals:
            if namespace.get(name, _MISSING) is not value:
                return False
        for cell, value in self._cells:
            if _contents(cell) is not value:
                return False
        return not self._modules or self._modules == len(sys.modules)

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
        except Exception:  # from Python 3.14 on they may name what is not there
            raise _ChangeableError from None
        for value in annotations.values():
            self._add_value(value)
        for name in names_in(fn.__code__):
            value = fn.__globals__.get(name, _MISSING)
            self._globals.append((fn.__globals__, name, value))
            self._add_value(value)
        for name in (*annotated_names(fn), *looked_up_names(fn)):  # of which it matters only that it is the same
            self._globals.append((fn.__globals__, name, fn.__globals__.get(name, _MISSING)))

    def _add_value(self, value: Any) -> None:
        kind = type(value)
        if kind in _ATOMS or value is _MISSING or value is type(None) or is_made_afresh(value):
            return
        if kind is types.FunctionType:
            self._add(value)
        elif kind is tuple:
            for item in value:
                self._add_value(item)
        elif issubclass(kind, _TYPING) or kind.__module__ == "typing":
            for item in (getattr(value, "__origin__", None), *getattr(value, "__args__", ())):
                self._add_value(item)
        elif isinstance(value, types.ModuleType):
            name = value.__name__
            if name == "__main__" or sys.modules.get(name) is not value or name in exist_here_only():
                raise _ChangeableError
            self._modules = len(sys.modules)  # of packages, submodules imported by now are sent along
        elif not (isinstance(value, (type, types.BuiltinFunctionType)) and is_importable(value)):
            raise _ChangeableError


def _is_but_a_name(fn: Callable[..., Any]) -> bool:
    """Whether what is not sent by value can be nothing else, as it can for a method of an object."""
    if type(fn) is types.BuiltinFunctionType:
        return isinstance(fn.__self__, types.ModuleType)
    return type(fn) in _COMPARABLE


def _contents(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # nothing yet
        return _MISSING
