"""Division of work on sequences into parts, which are tasks of the current kernel.

This module owns how sequences are cut, how the parts are run, and when those that have not begun are cancelled. It
must not know what a part computes.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from itertools import islice, pairwise
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from farm_executor.lfarm.checks import checked_index
from farm_executor.lfarm.kernel import Kernel, check_kernel

if TYPE_CHECKING:
    from typing_extensions import TypedDict

    class OfPart(TypedDict, total=False):
        start: int
        end: int | None
        parts: int | None

    class OfSearch(OfPart, total=False):
        from_end: bool


__all__ = ["bounds", "columns", "divide", "first_found", "interval", "run_all", "sliceable"]


# -- cutting -----------------------------------------------------------------------------------------


def sliceable(sequence: Iterable[Any]) -> Any:
    """Return the same elements in a sequence that can be sliced, with slices that can be pickled."""
    numpy = sys.modules.get("numpy")
    if isinstance(sequence, (list, tuple, range, str, bytes, bytearray, array)):
        return sequence
    if numpy is not None and isinstance(sequence, numpy.ndarray) and sequence.ndim:
        return sequence
    try:
        elements = iter(sequence)
    except TypeError:
        raise TypeError(f"a sequence must be iterable, and {type(sequence).__qualname__} is not") from None
    return list(elements)


def interval(sequence: Iterable[Any], start: int, end: int | None) -> Any:
    """Return the elements from ``start`` up to, but not including, ``end``."""
    elements = sliceable(sequence)
    count = len(elements)
    start = checked_index("start", start, 0)
    end = count if end is None else checked_index("end", end, 0)
    if not start <= end <= count:
        raise ValueError(f"there is no interval from {start} to {end} in a sequence of {count}")
    return elements[start:end]


def columns(sequences: Iterable[Iterable[Any]], size: int | None) -> tuple[list[Any], int]:
    """Return the sequences in a form that can be sliced, and the length of the shortest.

    Args:
        sequences: At least one; all but one may be endless, or all with a ``size``.
        size: The most elements to take.
    """
    ready = [None if hasattr(s, "__iter__") and not hasattr(s, "__len__") else sliceable(s) for s in sequences]
    limit = min((len(column) for column in ready if column is not None), default=size)
    if size is not None and limit is not None:
        limit = min(limit, size)
    endless = [s for s, column in zip(sequences, ready, strict=True) if column is None]
    if endless:
        rows = list(islice(zip(*endless, strict=False), limit))
        limit = len(rows)
        read = iter(list(zip(*rows, strict=True)) or [()] * len(endless))
        ready = [next(read) if column is None else column for column in ready]
    assert limit is not None  # there was a sequence
    return ready, limit


def bounds(count: int, parts: int | None) -> list[int]:
    """Return the indexes at which the parts of that many elements begin, followed by the end of the last one.

    Args:
        count: The number of elements.
        parts: The number of parts, whose sizes differ by one element at most; None for one per worker of the
            kernel. There are never more parts than elements.

    Raises:
        TypeError, ValueError: ``parts`` is not an integer, or is less than 1.
        NoKernelError: There is no current kernel.
    """
    number = min(check_kernel().worker_count if parts is None else checked_index("parts", parts, 1), count)
    return [count * part // number for part in range(number + 1)] if number else [0]


def divide(columns: Iterable[Any], bounds: Iterable[int]) -> Iterator[tuple[Any, ...]]:
    """Yield, for each part, its slice of each column."""
    columns = list(columns)
    for begin, end in pairwise(bounds):
        yield tuple(column[begin:end] for column in columns)


# -- running -----------------------------------------------------------------------------------------


def run_all(
    function: Callable[..., Any],
    calls: Iterable[tuple[Any, ...]],
    ended: Callable[[int, bool], None] = lambda index, failed: None,
) -> list[Any]:
    """Call the function as one task for each tuple of arguments, and return the results in order.

    Args:
        function: The function.
        calls: Its arguments, for each task.
        ended: Called with the index of each task that has ended, and whether it has failed.

    Raises:
        TaskExecutionError, TaskKilledError: A task failed. The error is that of the first one to fail; the tasks
            that have not begun are cancelled.
        NoKernelError: There is no current kernel.
    """
    kernel = check_kernel()
    with _submitted(kernel, function, calls) as (futures, order):
        for _ in futures:
            index = order.get()
            error = futures[index].exception()
            ended(index, error is not None)
            if error is not None:
                raise kernel.translated(error)
        return [future.result() for future in futures]


def first_found(function: Callable[..., Any], calls: Iterable[tuple[Any, ...]]) -> tuple[int, Any] | None:
    """Run like `run_all`, but look for the first result, in order, that is not None.

    Tasks after one with such a result are cancelled, and their failures are ignored.

    Returns:
        The result's index and the result; None if there is none.
    """
    kernel = check_kernel()
    values: dict[int, Any] = {}
    with _submitted(kernel, function, calls) as (futures, ended):
        # `without`: the number of leading tasks known to have found nothing; `found`: the first one that has found
        # something so far. The answer is known when they meet.
        without, found = 0, len(futures)
        while without < found:
            index = ended.get()
            if index > found:
                continue
            error = futures[index].exception()
            if error is not None:
                raise kernel.translated(error)
            values[index] = futures[index].result()
            if values[index] is not None:
                found = index
                for future in futures[index + 1 :]:
                    future.cancel()
            while values.get(without, futures) is None:
                without += 1
        return (found, values[found]) if found < len(futures) else None


@contextmanager
def _submitted(
    kernel: Kernel, function: Callable[..., Any], calls: Iterable[tuple[Any, ...]]
) -> Iterator[tuple[list[Future[Any]], SimpleQueue[int]]]:
    """Submit the calls; provide their futures and a queue of the indexes of ended ones. Cancel the rest on exit."""
    futures: list[Future[Any]] = []
    ended: SimpleQueue[int] = SimpleQueue()
    with kernel.spanning(function) as within:
        try:
            with within():
                for index, arguments in enumerate(calls):
                    futures.append(kernel.submit(function, *arguments))
                    futures[index].add_done_callback(lambda _, index=index: ended.put(index))  # type: ignore[misc]
            yield futures, ended
        finally:
            for future in futures:
                future.cancel()
