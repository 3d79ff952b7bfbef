"""Large functions, whose buffers are sent to each server once.

This module owns how such a function is sent to a worker, and for how long servers are to hold its buffers. It must
not decide which worker brings them (`core.spread`), nor know how servers are told (`sharing`).

The buffers have a number among the farm's shared objects. They go with the function to one worker of each server,
which puts them into a memory object and hands that to its supervisor. From there the server's other workers have
it, and each maps it for each call. One that cannot have it says so, and is sent the function whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from farm_executor.client.farm.functions import Function, Kept
from farm_executor.core.frames import (
    ERROR,
    TOGETHER,
    Buffer,
    FrameType,
    Payload,
    encode_frame,
    encode_payload,
    payload_size,
    size_and_kind,
)
from farm_executor.core.sharing import layout_of
from farm_executor.core.spread import How, Spread

__all__ = ["LEAST", "Common", "encode_function", "encode_whole", "size_of"]

LEAST = 1024 * 1024  # bytes of buffers; for less, a memory object on each side costs more than it spares


class Host(Protocol):
    """A session, as far as functions are sent to its workers."""

    spread: Spread | None


class Common:
    """The buffers of a large function, as servers know them, for as long as anybody needs the function.

    Args:
        number: Their number among the farm's shared objects.
        size: How many bytes they take on a server.
        dropped: Called with the number once nobody needs them, from whatever place the garbage collector runs at.
    """

    __slots__ = ("__weakref__", "_dropped", "number", "size")

    def __init__(self, number: int, size: int, dropped: Callable[[int], None]) -> None:
        self.number = number
        self.size = size
        self._dropped = dropped

    def __del__(self) -> None:
        self._dropped(self.number)


def size_of(data: Payload) -> int:
    """Return how many bytes the buffers of a function take on a server; 0 if they are not worth it."""
    if payload_size(data[1:]) < LEAST:
        return 0
    size: int = layout_of([0, *map(size_and_kind, data[1:])], frozen=False).size
    return size


def encode_function(function: Function, host: Host, lane: int) -> list[Buffer]:
    """Encode a function that is about to be sent over a lane. The lock for sending is held."""
    common: Common | None = function.common
    spread = None if common is None else host.spread
    how = How.ALONE if common is None or spread is None else spread.send(common.number, lane)
    if common is None or how is How.ALONE:
        return encode_payload(FrameType.FUNCTION, function.data, seq=function.number)
    data = function.data if how is How.BRING else function.data[:1]
    prefix = common.number.to_bytes(8, "little")
    return encode_payload(FrameType.FUNCTION, data, seq=function.number, flags=TOGETHER, prefix=prefix)


def encode_whole(number: int, calls: Iterable[Any], kept: Kept) -> list[Buffer]:
    """Encode a function for a worker that cannot have its buffers from its server; it is that of one of the calls.

    There may be no such call any more: then nobody wants what the worker is about to run. Otherwise it keeps the
    function from now on, even if it has been told to forget it since it asked.
    """
    for call in calls:
        function = call.function  # read once: another thread may settle the call
        if function is not None and function.number == number:
            kept.use(number, function.weight)
            return encode_payload(FrameType.FUNCTION, function.data, seq=number)
    return encode_frame(FrameType.FUNCTION, flags=ERROR, seq=number)
