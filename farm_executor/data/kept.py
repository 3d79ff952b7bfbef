"""Memory of a large array that nobody uses any more, kept for the next one.

This module owns what is kept, how much, and when the system may have it. It must not know what is in it.

Pages that a process gets anew are cleared first, which takes as long as to fill them, and many times as long where
a virtual machine has to get them from its host. So what one received array leaves, the next one gets. Meanwhile the
system may take it whenever it needs memory (MADV_FREE), although it counts as resident until then. At most one
mapping is kept in a process, and none where the system knows no such offer. A large one goes when nobody has used
it for a while: in a worker when that has nothing to do, in a program by the heartbeats of its farms.

Thread safety: all functions may be called from any thread, and arrays be dropped in any.
"""

from __future__ import annotations

import os
import sys
import time
import weakref
from collections.abc import Callable, Hashable
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import mmap
    from threading import Event

__all__ = ["MOST", "MOST_OF_FARM", "MOST_OF_WORKER", "join", "keep_at_most", "leave", "lend", "look", "rest"]

MOST = 64 * 1024 * 1024
"""Bytes that are kept in a program, for as long as it runs."""

MOST_OF_WORKER = 512 * 1024 * 1024
"""Bytes that are kept in a worker, as long as it has something to do every now and then."""

MOST_OF_FARM = 1024 * 1024 * 1024
"""Bytes that are kept in a program which has a farm, while arrays come every now and then; see `SHARE`."""

SHARE = 16  # and no more than that part of the machine's memory
LONG = 10.0  # seconds without anything to do: a program that works on its own in between still finds its memory

_most = MOST
_offer: int | None = None  # the advice that offers memory to the system; None where there is none
_kept: list[mmap.mmap] = []  # at most one, but for two threads that drop arrays at once
_farms: set[Hashable] = set()  # those of this program
_used = 0.0  # when any was lent or came back last, by `time.monotonic`
_lent: dict[int, weakref.ref[Any]] = {}  # by the number of the array that holds the memory


def keep_at_most(size: int) -> None:
    """Keep no mapping that is larger than that many bytes, from now on."""
    global _most
    _most = size


def join(farm: Hashable) -> None:
    """Keep more while the program has that farm, which calls `look` at its heartbeats."""
    _farms.add(farm)


def leave(farm: Hashable) -> None:
    """Note that a farm has ended."""
    _farms.discard(farm)
    if not _farms:
        _drop_large()


def look() -> None:
    """Give back what is large, if nobody has used it for long. Farms call this at their heartbeats."""
    if _kept and time.monotonic() - _used > LONG:
        _drop_large()


def lend(size: int, numpy: Any, make: Callable[[int], mmap.mmap]) -> memoryview:
    """Return memory of that many bytes, which comes back by itself once nobody refers to it.

    Args:
        size: How many bytes.
        numpy: The module, whose arrays tell when they are dropped.
        make: Makes a private mapping of that size, if the one that is kept does not fit.
    """
    global _offer, _used
    import mmap  # late: a program without large arrays never needs it

    _offer = getattr(mmap, "MADV_FREE", None) if sys.platform == "linux" else None
    _used = time.monotonic()
    try:
        memory: mmap.mmap | None = _kept.pop()  # in one step: another thread may want it
    except IndexError:
        memory = None
    if memory is not None and not size <= len(memory) <= 2 * size:
        memory = None  # before another is made, so that there are never both
    if memory is None:
        memory = make(size)
    # Views of a view do not refer to it, but to the object that has the memory. So it is that which is watched.
    array = numpy.frombuffer(memory, numpy.uint8, size)
    _lent[id(array)] = weakref.ref(array, partial(_take_back, memory, id(array)))
    view: memoryview = array.data
    return view


def rest(over: Event) -> None:
    """Wait for an event, and give back what is kept if it is long in coming."""
    if not over.wait(LONG):
        _kept.clear()
        over.wait()


def _drop_large() -> None:
    # Another thread may take it, or leave another, at any moment: both are as well.
    for memory in _kept.copy():
        if len(memory) > _most:
            _kept.clear()


def _limit() -> int:
    if not _most or not _farms:  # a worker may have to keep none, and its tasks have a farm of their own
        return _most
    return max(_most, min(MOST_OF_FARM, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // SHARE))


def _take_back(memory: mmap.mmap, number: int, _: weakref.ref[Any]) -> None:
    global _used
    _lent.pop(number, None)
    _used = time.monotonic()
    if _offer is not None and len(memory) <= _limit():
        try:
            memory.madvise(_offer)
        except OSError:  # a kernel that does not know it, or memory that is locked: nobody could take it back
            return
        _kept[:] = [memory]
