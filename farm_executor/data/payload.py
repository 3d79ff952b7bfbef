"""Values to bytes and buffers, and back.

This module owns the choice between pickle and cloudpickle and what travels out of band. It must not know what
the values mean to the farm, nor how bytes travel. What classes and functions that travel by value become at the
other end is `byvalue`'s; exceptions are `failure`'s.

A payload is a list: the pickle, then the buffers that it refers to (protocol 5, PEP 574). pickle comes first
because it is ten times faster. cloudpickle takes over when

* pickle raises: lambdas, closures, local classes;
* the pickle names ``__main__``, or a module that exists in this process only: pickle would refer to the function
  or class by name, which leads elsewhere in a worker, or nowhere. A string that merely says so costs time, nothing
  else;
* the pickle may hold what should have been refused, as cloudpickle's pickler does here, see `refused`;
* the user registered a module with ``cloudpickle.register_pickle_by_value``.

A payload that cloudpickle wrote ends in one byte ``V`` behind the pickle's last opcode, which pickle ignores:
so the reader knows without a search that it may hold functions and classes by value.

Plain values, numbers and short strings, need none of that. Those of several tasks may share one pickle, as nobody
can change them, nor would mind if two of them are one object.
"""

from __future__ import annotations

import functools
import io
import pickle
import sys
from collections.abc import Callable, Iterable
from typing import Any

from farm_executor.core.frames import BULK_THRESHOLD, MAX_SEGMENTS, Buffer, Payload
from farm_executor.data.byvalue import Hints, Resolver, imported, pickler
from farm_executor.data.importing import exist_here_only
from farm_executor.data.refused import may_hold_silent
from farm_executor.errors import RemoteProtocolError

__all__ = [
    "PROTOCOL",
    "all_plain",
    "allocate",
    "by_value",
    "dumps",
    "dumps_call",
    "dumps_together",
    "is_plain",
    "loads",
    "loads_together",
    "registered_by_value",
]

PROTOCOL = 5
MAPPED_SIZE = 1024 * 1024  # from which memory is taken from the system, which gives it page by page
_BY_VALUE = b"V"
_MAIN = b"\x8c\x08__main__"  # as a pickle names it: a short string, its length, and the name
_SMALL = {type(None), bool, float, complex}
_TEXTS = {str, bytes}
_SHORT = 1024  # characters or bytes
_MOST = 1 << 8 * _SHORT
_LEAST = -_MOST
_BUILTIN = {int} | _SMALL | _TEXTS


def is_plain(value: Any) -> bool:
    """Whether the value may share a pickle with others."""
    return all_plain((value,))


def all_plain(values: Iterable[Any]) -> bool:
    """Whether each `is_plain`."""
    for value in values:
        kind = type(value)
        if kind is int:
            if not _LEAST < value < _MOST:
                return False
        elif kind not in _SMALL and (kind not in _TEXTS or len(value) > _SHORT):
            return False
    return True


def dumps_together(values: list[Any]) -> bytes:
    """Pickle several plain values, or tuples of such."""
    return pickle.dumps(values, PROTOCOL)


def loads_together(data: Buffer, count: int) -> list[Any]:
    """Rebuild what `dumps_together` was given.

    Raises:
        RemoteProtocolError: It is not so many values.
    """
    try:
        values = _PlainUnpickler(io.BytesIO(data)).load()
    except Exception as error:
        raise RemoteProtocolError(f"unreadable values: {error!r}") from None
    if type(values) is not list or len(values) != count:
        raise RemoteProtocolError(f"not the {count} values that were announced")
    return values


def dumps_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Payload:
    """Pickle what a function is to be called with; see `dumps`."""
    if not kwargs and _BUILTIN.issuperset(map(type, args)):
        return (pickle.dumps((args, kwargs), PROTOCOL),)
    return dumps((args, kwargs))


def dumps(value: Any, *, out_of_band: bool = True) -> Payload:
    """Pickle a value.

    Args:
        value: Anything that pickle or cloudpickle can take.
        out_of_band: Whether buffers of 64 KiB and more stay where they are, as parts of their own, instead of
            being copied into the pickle. They are then read when the payload is sent, not before.

    Raises:
        Exception: Whatever the value's own reduction raises; pickle's errors are PicklingError, TypeError,
            AttributeError, RecursionError.
    """
    if type(value) in _BUILTIN:
        return (pickle.dumps(value, PROTOCOL),)  # in a third of the time
    buffers: list[pickle.PickleBuffer] = []
    try:
        # The callback answers None for each buffer, which puts it out of band: right for large ones alone.
        data = pickle.dumps(value, PROTOCOL, buffer_callback=buffers.append)
        parts: Payload = _dump(pickle.Pickler, value, out_of_band) if buffers else (data,)
    except Exception:  # whatever it was, cloudpickle gets its chance and raises the better error
        pass
    else:
        if not (_names_others(parts[0]) or registered_by_value() or may_hold_silent(parts[0])):
            return parts
    first, *others = _dump_by_value(value, out_of_band)
    return (bytes(first) + _BY_VALUE, *others)


def _dump_by_value(value: Any, out_of_band: bool) -> Payload:
    hints = Hints(enabled=True)
    try:
        return _dump_with(hints, value, out_of_band)
    except Exception:
        if not hints.added:
            raise
    # Something that was sent along may be too large, or nobody's to send.
    left_out = {id(added) for added in hints.added if not _can_be_added(added)}
    for others in (Hints(enabled=True, left_out=left_out), Hints()):
        try:
            return _dump_with(others, value, out_of_band)
        except Exception:
            if not others.added:
                raise
    raise AssertionError("the last attempt adds nothing")


def _can_be_added(value: Any) -> bool:
    alone = Hints()
    alone.bounded = True
    try:
        _dump_with(alone, imported(value), out_of_band=False)
    except Exception:
        return False
    return True


def _dump_with(hints: Hints, value: Any, out_of_band: bool) -> Payload:
    kind: Callable[..., pickle.Pickler] = pickler()
    return _dump(functools.partial(kind, hints=hints), value, out_of_band, _Bounded(hints))


MAX_ADDED = 1024 * 1024  # bytes of a pickle that holds whatever may be looked up


class _Bounded(io.BytesIO):
    """A file that does not take all: who knows what the added functions bring along."""

    def __init__(self, hints: Hints) -> None:
        super().__init__()
        self._hints = hints

    def write(self, data: Any) -> int:
        if self._hints.bounded and self.tell() + len(data) > MAX_ADDED:
            raise pickle.PicklingError("too large to be sent along")
        return super().write(data)


def _names_others(pickled: Any) -> bool:
    """Whether the pickle may name what a worker has another module for, or none."""
    return _MAIN in pickled or any(name.encode() in pickled for name in exist_here_only())


def _dump(
    kind: Callable[..., pickle.Pickler], value: Any, out_of_band: bool, file: io.BytesIO | None = None
) -> Payload:
    buffers: list[Buffer] = []

    def keep_large(buffer: pickle.PickleBuffer) -> bool:
        """Keep a large buffer out of band; a true answer puts it into the pickle (PEP 574)."""
        try:
            raw = buffer.raw()
        except BufferError:  # not contiguous
            return True
        if not out_of_band or raw.nbytes < BULK_THRESHOLD or len(buffers) == MAX_SEGMENTS - 1:
            return True
        buffers.append(raw)
        return False

    file = io.BytesIO() if file is None else file
    kind(file, PROTOCOL, buffer_callback=keep_large).dump(value)
    return (file.getvalue(), *buffers)


def registered_by_value() -> bool:
    """Whether the user has had modules travel by value, so that no name is sure to stay one."""
    # The set itself, because its public copy costs more than the pickling of a small call.
    cloudpickle = sys.modules.get("cloudpickle.cloudpickle")
    return cloudpickle is not None and bool(cloudpickle._PICKLE_BY_VALUE_MODULES)


def by_value(payload: Payload) -> bool:
    """Whether the payload may hold functions and classes by value."""
    return payload[0][-1] == _BY_VALUE[0]


def loads(payload: Payload, resolver: Callable[[], Resolver] | None = None) -> Any:
    """Rebuild a value. Only ever called on bytes from a peer that has proven the key.

    Args:
        payload: As `dumps` gave it.
        resolver: Gives what is used for a by-value payload, see `Resolver`.

    Raises:
        Exception: Whatever the rebuilding raises, such as ModuleNotFoundError for a module that is not here.
    """
    data = payload[0]
    if resolver is None or data[-1] != _BY_VALUE[0]:
        return pickle.loads(data) if len(payload) == 1 else pickle.loads(data, buffers=payload[1:])
    unpickler = _ResolvingUnpickler(data, payload[1:], resolver())
    value = unpickler.load()
    unpickler.resolver.finish()
    return value


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"{module}.{name} among plain values")


class _ResolvingUnpickler(pickle.Unpickler):
    def __init__(self, data: Buffer, buffers: Payload, resolver: Resolver) -> None:
        super().__init__(io.BytesIO(data), buffers=buffers)
        self.resolver = resolver

    def find_class(self, module: str, name: str) -> Any:
        return self.resolver.resolve(module, name, super().find_class(module, name))


def allocate(size: int) -> Buffer:
    """Writable memory for a received segment.

    It takes memory as it is filled, so that what is only promised costs nothing. numpy's is not filled with zeros
    first, which at 64 MiB and more would halve the speed of receiving.
    """
    numpy: Any = sys.modules.get("numpy")
    try:
        memory: memoryview = numpy.empty(size, numpy.uint8).data
    except AttributeError:  # there is none, or another thread is just importing it
        if size < MAPPED_SIZE:
            return bytearray(size)
        import mmap  # late: programs without large data never need it

        return memoryview(mmap.mmap(-1, size))
    return memory
