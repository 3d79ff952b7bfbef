"""Provide the memory that large parts of payloads are received into, and compare such memory.

This module owns where it comes from, by what it becomes. It must not know who sends what.

The system provides the pages as they are filled, so a size that a peer merely announces costs nothing. Memory that
is filled with zeros first would halve the speed of receiving at 64 MiB and more. So would pages of 4 KiB where the
system has huge ones, as each page takes about 2 µs to come.
"""

from __future__ import annotations

import contextlib
import io
import sys
from typing import TYPE_CHECKING, Any

from farm_executor.core.frames import Buffer, Kind
from farm_executor.core.reader import ReceivedBytes

if TYPE_CHECKING:
    import mmap

__all__ = ["HUGE_SIZE", "MAPPED_SIZE", "allocate", "copied", "same", "sample"]

MAPPED_SIZE = 1024 * 1024  # bytes; from this size on, memory comes from the system, page by page as it is touched
FRESH_SIZE = 32 * MAPPED_SIZE  # the C library keeps less than that for the next who asks; from here on, `kept` does
SAMPLED = 16  # bytes of a sample
PIECE = 128 * 1024  # bytes that are compared at a time
HUGE_SIZE = 4 * MAPPED_SIZE  # from this size on, in huge pages where the system has them, as numpy does


def allocate(size: int, kind: Kind) -> Buffer | io.BytesIO:
    """Return writable memory for a received segment; see `frames.Allocate`."""
    if kind is Kind.BYTES:
        return _file(size)
    return _array(size) if kind is Kind.BYTEARRAY else _any(size)


def copied(buffer: Buffer) -> bytearray:
    """Return a copy of the bytes of a contiguous buffer."""
    with memoryview(buffer).cast("B") as original:
        copy = _array(len(original))
        with memoryview(copy) as view:
            view[:] = original
    return copy


def sample(memory: memoryview) -> int:
    """Return a number that is the same as long as a few of the bytes are, spread over all of them."""
    return hash(bytes(memory[:: max(len(memory) // SAMPLED, 1)]))


def same(one: memoryview, other: memoryview) -> bool:
    """Return whether two pieces of memory, of bytes each, have the same contents, down to the last byte."""
    if len(one) != len(other):
        return False
    numpy: Any = sys.modules.get("numpy")
    try:
        import ctypes

        # It lets go of the interpreter meanwhile. Only numpy tells where memory is that cannot be written to.
        compare = ctypes.CDLL(None).memcmp
        compare.argtypes = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t
        begins = [numpy.frombuffer(each, numpy.uint8).__array_interface__["data"][0] for each in (one, other)]
        return compare(*begins, len(one)) == 0  # type: ignore[no-any-return]
    except (ImportError, AttributeError, TypeError, OSError):  # there is no numpy, or no C library by that name
        return _same_in_pieces(one, other)


def _same_in_pieces(one: memoryview, other: memoryview) -> bool:
    # Views are compared item by item, and a bytearray with a view at once. So each piece is copied into one, which
    # stays in the processor's cache: half the speed of memory, where views have a twentieth.
    piece = bytearray(min(PIECE, len(one)))
    with memoryview(piece) as target:
        for begin in range(0, len(one), PIECE):
            part = one[begin : begin + PIECE]
            if len(part) < len(piece):
                return bytes(part) == other[begin:]
            target[:] = part
            if piece != other[begin : begin + PIECE]:
                return False
    return True


def _any(size: int) -> Buffer:
    numpy: Any = sys.modules.get("numpy")
    try:
        if size >= FRESH_SIZE and sys.platform == "linux" and numpy is not None:
            from farm_executor.data import kept  # late: programs without large data never need it

            return kept.lend(size, numpy, _mapped)
        memory: memoryview = numpy.empty(size, numpy.uint8).data
    except AttributeError:  # numpy is not imported, or another thread is just importing it
        return bytearray(size) if size < MAPPED_SIZE else memoryview(_mapped(size))
    return memory


def _mapped(size: int) -> mmap.mmap:
    import mmap

    try:
        if sys.platform == "win32":
            return mmap.mmap(-1, size)
        # Private, as Python's default is memory shared with children, whose pages take six times as long.
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:  # which would pass for one of the connection that it is received from
        raise MemoryError(f"no memory for {size} bytes: {error}") from error
    if size >= HUGE_SIZE and hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a system without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def _file(size: int) -> io.BytesIO:
    # CPython has the zeros of `bytes(size)` from the system, which has not touched them. The file takes over the
    # object, as nobody else refers to it, and gives it back as its value.
    file = ReceivedBytes(bytes(size))
    if size >= HUGE_SIZE:
        with file.getbuffer() as view:
            _ask_for_huge_pages(view)
    return file


def _array(size: int) -> bytearray:
    if size < MAPPED_SIZE:
        return bytearray(size)
    try:
        import ctypes

        make = ctypes.pythonapi.PyByteArray_FromStringAndSize
        make.restype, make.argtypes = ctypes.py_object, (ctypes.c_char_p, ctypes.c_ssize_t)
        array: bytearray = make(None, size)  # not filled with zeros, as every byte of it is to be received
    except (ImportError, AttributeError):  # no libffi, or not CPython
        return bytearray(size)
    if size >= HUGE_SIZE:
        with memoryview(array) as view:
            _ask_for_huge_pages(view)
    return array


def _ask_for_huge_pages(view: memoryview) -> None:
    import mmap

    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    if advice is None:
        return
    # Python's own way is for memory from mmap alone. A refusal does no harm: the pages stay small.
    with contextlib.suppress(ImportError, AttributeError, OSError):
        import ctypes

        madvise = ctypes.CDLL(None).madvise
        madvise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
        start = ctypes.addressof(ctypes.c_char.from_buffer(view))
        first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        last = (start + len(view)) // mmap.PAGESIZE * mmap.PAGESIZE
        if last > first:
            madvise(first, last - first, advice)
