"""Turn values into bytes and buffers, and back.

This module owns the choice between pickle and cloudpickle, and of what travels out of band. It must not know what
the values mean to the farm, nor how bytes travel. `byvalue` handles functions and classes that travel by value,
`failure` exceptions.

A payload is a list: the pickle, then the buffers that it refers to (protocol 5, PEP 574). pickle is tried first
because it is ten times faster. cloudpickle takes over when

* pickle raises: lambdas, closures, local classes;
* the pickle names ``__main__``, or a module that exists only in this process: pickle refers to functions and
  classes by name, and in a worker that name leads elsewhere or nowhere. A string that happens to contain the name
  costs time, nothing else;
* the pickle may hold an object that should have been refused (see `refused`), which the pickler based on
  cloudpickle does;
* the user registered a module with ``cloudpickle.register_pickle_by_value``.

A payload that cloudpickle wrote has one byte ``V`` after the pickle's last opcode, which pickle ignores. It tells
the reader that the payload may hold functions and classes by value.

Plain values (numbers and short strings) need none of that. Those of several tasks may share one pickle: they are
immutable, and it does not matter if two of them become one object.
"""

from __future__ import annotations

import functools
import io
import pickle
import sys
from collections.abc import Callable, Iterable
from typing import Any

from farm_executor.core.frames import BULK_THRESHOLD, MAX_SEGMENTS, Buffer, Payload
from farm_executor.data.byvalue import Resolver, imported, pickler
from farm_executor.data.hints import Hints
from farm_executor.data.importing import exist_here_only
from farm_executor.data.memory import copied
from farm_executor.data.refused import may_hold_silent
from farm_executor.errors import RemoteProtocolError

__all__ = [
    "PROTOCOL",
    "all_plain",
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
_BY_VALUE = b"V"
_LAST = _BY_VALUE[0]  # of a payload that has it
_MAIN = b"\x8c\x08__main__"  # as spelled in a pickle: the opcode of a short string, its length, and the name
_SMALL = {type(None), bool, float, complex}
_TEXTS = {str, bytes}
_SHORT = 1024  # characters or bytes
_MOST = 1 << 8 * _SHORT
_LEAST = -_MOST
_NUMBERS_AND_TEXT = {int, str} | _SMALL
_BYTES = {bytes, bytearray}
_HOLD_NOTHING = _NUMBERS_AND_TEXT | _BYTES  # no other value of the call can be within them


def is_plain(value: Any) -> bool:
    """Return whether the value may share a pickle with others."""
    # As in `all_plain`, which would take twice as long for one value, and every result is one.
    kind = type(value)
    plain: bool = (
        _LEAST < value < _MOST if kind is int else kind in _SMALL or (kind in _TEXTS and len(value) <= _SHORT)
    )
    return plain


def all_plain(values: Iterable[Any]) -> bool:
    """Return whether every value is plain."""
    for value in values:
        kind = type(value)
        if kind is int:
            if not _LEAST < value < _MOST:
                return False
        elif kind not in _SMALL and (kind not in _TEXTS or len(value) > _SHORT):
            return False
    return True


def dumps_together(values: list[Any]) -> bytes:
    """Pickle several plain values, or tuples of plain values."""
    return pickle.dumps(values, PROTOCOL)


def loads_together(data: Buffer, count: int) -> list[Any]:
    """Unpickle the values given to `dumps_together`.

    Raises:
        RemoteProtocolError: The data is not ``count`` plain values.
    """
    try:
        values = _PlainUnpickler(io.BytesIO(data)).load()
    except Exception as error:
        raise RemoteProtocolError(f"unreadable values: {error!r}") from None
    if type(values) is not list or len(values) != count:
        raise RemoteProtocolError(f"not the {count} values that were announced")
    return values


def dumps_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Payload:
    """Pickle the arguments of a call; see `dumps`."""
    if not kwargs and _NUMBERS_AND_TEXT.issuperset(map(type, args)):
        return (pickle.dumps((args, kwargs), PROTOCOL),)
    values = (*args, *kwargs.values())
    if not _BYTES.isdisjoint(map(type, values)):
        values = _put_outside(values)
        args, kwargs = values[: len(args)], dict(zip(kwargs, values[len(args) :], strict=True))
    return dumps((args, kwargs))


def dumps(value: Any, *, out_of_band: bool = True) -> Payload:
    """Pickle a value.

    Args:
        value: Any value that pickle or cloudpickle accepts.
        out_of_band: Whether buffers of 64 KiB and more become separate parts of the payload instead of being copied
            into the pickle. Such a buffer is read when the payload is sent, not before. The same holds for a value
            that is `bytes` or a `bytearray`, and for items of one that is a tuple; a `bytearray` is copied now,
            because it cannot be resized while anybody looks at its memory.

    Raises:
        Exception: Any exception that the value's own reduction raises. pickle itself raises PicklingError,
            TypeError, AttributeError or RecursionError.
    """
    kind = type(value)
    if kind in _NUMBERS_AND_TEXT:
        return (pickle.dumps(value, PROTOCOL),)  # takes a third of the time
    if out_of_band and kind in _BYTES:
        (value,) = _put_outside((value,))
    elif out_of_band and kind is tuple and not _BYTES.isdisjoint(map(type, value)):
        value = _put_outside(value)
    buffers: list[pickle.PickleBuffer] = []
    try:
        # `append` returns None, so every buffer goes out of band, which is right only for large ones. A callback
        # that chooses would cost every call more than a second round costs the few that need one.
        data = pickle.dumps(value, PROTOCOL, buffer_callback=buffers.append)
        large = _all_large(buffers) if out_of_band else None if buffers else []
        parts: Payload = _dump(pickle.Pickler, value, out_of_band) if large is None else (data, *large)
    except Exception:  # for whatever reason: cloudpickle may succeed, and raises the better error if not
        pass
    else:
        if not (_names_others(parts[0]) or registered_by_value() or may_hold_silent(parts[0])):
            return parts
    first, *others = _dump_by_value(value, out_of_band)
    return (bytes(first) + _BY_VALUE, *others)


class _Outside:
    """Bytes or a bytearray that are to travel beside the pickle; pickle itself would copy them."""

    __slots__ = ("value",)

    def __init__(self, value: bytes | bytearray) -> None:
        self.value = value

    def __reduce__(self) -> tuple[Any, ...]:
        return itself, (pickle.PickleBuffer(self.value),)


def itself(value: Any) -> Any:
    """Return what was received for a buffer. Payloads name this function, so its name is part of the protocol."""
    return value


def _put_outside(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the values, with those that are long bytes or bytearrays replaced by what travels out of band."""
    # A bytearray that another value refers to, too, must stay one object with that. Bytes may become two.
    movable = _BYTES if _HOLD_NOTHING.issuperset(map(type, values)) else {bytes}
    outside = {
        id(value): _Outside(value if type(value) is bytes else copied(value))
        for value in values
        if type(value) in movable and len(value) >= BULK_THRESHOLD
    }
    return tuple([outside.get(id(value), value) for value in values]) if outside else values


def _all_large(buffers: list[pickle.PickleBuffer]) -> list[memoryview] | None:
    """Return the memory of the buffers if they may all travel out of band; else None."""
    try:
        found = [buffer.raw() for buffer in buffers]
    except BufferError:  # not contiguous
        return None
    return found if len(found) < MAX_SEGMENTS and all(raw.nbytes >= BULK_THRESHOLD for raw in found) else None


def _dump_by_value(value: Any, out_of_band: bool) -> Payload:
    hints = Hints(enabled=True)
    try:
        return _dump_with(hints, value, out_of_band)
    except Exception:
        if not hints.added:
            raise
    # One of the values that were sent along may be too large, or may refuse to be pickled.
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


MAX_ADDED = 1024 * 1024  # bytes of a pickle that carries names which might be looked up


class _Bounded(io.BytesIO):
    """A file of bounded size, because nobody knows how much the added functions refer to."""

    def __init__(self, hints: Hints) -> None:
        super().__init__()
        self._hints = hints

    def write(self, data: Any) -> int:
        if self._hints.bounded and self.tell() + len(data) > MAX_ADDED:
            raise pickle.PicklingError("too large to be sent along")
        return super().write(data)


def _names_others(pickled: Any) -> bool:
    """Return whether the pickle may name a module that is missing or different in a worker."""
    return _MAIN in pickled or any(name.encode() in pickled for name in exist_here_only())


def _dump(
    kind: Callable[..., pickle.Pickler], value: Any, out_of_band: bool, file: io.BytesIO | None = None
) -> Payload:
    buffers: list[Buffer] = []

    def keep_large(buffer: pickle.PickleBuffer) -> bool:
        """Keep a large buffer out of band. Returning True puts a buffer into the pickle (PEP 574)."""
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
    """Return whether the user has registered modules with cloudpickle to travel by value."""
    # Use the set itself: making the public copy takes longer than pickling a small call.
    cloudpickle = sys.modules.get("cloudpickle.cloudpickle")
    return cloudpickle is not None and bool(cloudpickle._PICKLE_BY_VALUE_MODULES)


def by_value(payload: Payload) -> bool:
    """Return whether the payload may hold functions and classes by value."""
    return payload[0][-1] == _LAST


def loads(payload: Payload, resolver: Callable[[], Resolver] | None = None) -> Any:
    """Unpickle a value. Only call this on bytes from a peer that has proven the key.

    Args:
        payload: A payload as returned by `dumps`.
        resolver: Returns the `Resolver` to use if the payload may hold functions and classes by value.

    Raises:
        Exception: Any exception that unpickling raises, such as ModuleNotFoundError.
    """
    data = payload[0]
    if resolver is None or data[-1] != _LAST:
        return pickle.loads(data) if len(payload) == 1 else pickle.loads(data, buffers=payload[1:])
    reading = resolver()
    try:
        value = _ResolvingUnpickler(data, payload[1:], reading).load()
        reading.finish()
    finally:
        reading.end()
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
