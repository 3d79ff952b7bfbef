"""`FarmExecutor.map`: from iterables to tasks, and from their futures to results in order.

This module owns the contract of `concurrent.futures.Executor.map` as it is in Python 3.14. It must not know how
tasks are sent.
"""

from __future__ import annotations

import itertools
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from functools import partial
from typing import Any, Protocol

from farm_executor.client.engine import Engine, TaskOptions
from farm_executor.client.functions import Function

__all__ = ["map_calls"]


class _Farm(Protocol):
    def _start_engine(self) -> Engine: ...


def map_calls(
    farm: _Farm,
    options: TaskOptions,
    fn: Callable[..., Any],
    iterables: tuple[Iterable[Any], ...],
    timeout: float | None,
    chunksize: int,
    buffersize: int | None,
) -> Iterator[Any]:
    """Submit what may be submitted now; return the iterator that submits the rest. See `FarmExecutor.map`."""
    if chunksize < 1:
        raise ValueError("chunksize must be >= 1.")
    if buffersize is not None and not isinstance(buffersize, int):
        raise TypeError("buffersize must be an integer or None")
    if buffersize is not None and buffersize < 1:
        raise ValueError("buffersize must be None or > 0")
    deadline = None if timeout is None else time.monotonic() + timeout
    items: Iterator[tuple[Any, ...]] = zip(*iterables)  # noqa: B905 - the contract is the shortest one's end
    if chunksize > 1:
        calls: Iterator[tuple[Any, ...]] = ((chunk,) for chunk in _chunks(items, chunksize))
        fn = partial(_call_each, fn)
    else:
        calls = items
    engine = farm._start_engine()
    function: Callable[..., Any] | Function
    try:
        function = engine.prepare(fn)  # once for all, as it is now
    except Exception:  # the futures shall say so, as those of submit do
        function = fn
    futures: deque[Future[Any]] = deque(
        engine.submit(function, call, {}, options) for call in itertools.islice(calls, buffersize)
    )
    # What follows must not keep the executor alive: when it is collected, no more is submitted.
    more = None if buffersize is None else (calls, function, options, weakref.ref(farm))
    results = _results(futures, deadline, more)
    return itertools.chain.from_iterable(results) if chunksize > 1 else results


def _results(futures: deque[Future[Any]], deadline: float | None, more: Any) -> Iterator[Any]:
    """The results in order; what is not wanted any more is cancelled."""
    try:
        while futures:
            if more is not None:
                calls, function, options, farm = more
                owner = farm()
                if owner is not None and (call := next(calls, None)) is not None:
                    futures.append(owner._start_engine().submit(function, call, {}, options))
                del owner
            yield _take(futures, deadline)
    finally:
        for future in futures:
            future.cancel()


def _take(futures: deque[Future[Any]], deadline: float | None) -> Any:
    """The first one's result. Nothing of it is kept alive here, nor on any frame while it is used."""
    future = futures.popleft()
    try:
        return future.result(None if deadline is None else deadline - time.monotonic())
    finally:
        future.cancel()  # it is late
        del future


def _chunks(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    while chunk := list(itertools.islice(items, size)):
        yield chunk


def _call_each(fn: Callable[..., Any], chunk: list[tuple[Any, ...]]) -> list[Any]:
    return [fn(*args) for args in chunk]
