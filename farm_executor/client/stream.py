"""A stream: what a task yields, item by item, as an iterator.

This module owns what programs see of it. It must not know how items travel.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Generic, TypeVar

from farm_executor.client.farm.future import MUST_NOT_WAIT, FarmFuture
from farm_executor.client.farm.inlet import Inlet
from farm_executor.client.protocol import Farm
from farm_executor.core.frames import Frame
from farm_executor.core.options import TaskOptions
from farm_executor.core.streams import decode_items
from farm_executor.core.text import name_of
from farm_executor.data import payload
from farm_executor.data.byvalue import OwnObjects
from farm_executor.data.streamed import stream_out

__all__ = ["Stream", "open_stream"]

T_co = TypeVar("T_co", covariant=True)


class Stream(Generic[T_co]):
    """The items that a task yields, as they come; made by `FarmExecutor.stream`.

    It is an iterator, an asynchronous iterator, and a context manager that closes it.

    Attributes:
        future: The task's future, which is set when it has ended: to what a generator returns, or to its error.

    Thread safety: several threads, or one and an event loop, may take items; each item is taken once.
    """

    # Any: else everything public that mentions a stream would have checkers look into the farm's own parts.
    def __init__(self, farm: Any, future: Future[Any], inlet: Any) -> None:
        self.future = future
        self._farm: Farm = farm
        self._inlet: Inlet = inlet
        self._items: deque[Any] = deque()  # of the frame taken last
        self._lock = threading.Lock()  # held while a frame is taken and unpickled, never while waiting

    def __repr__(self) -> str:
        return f"<Stream {'closed ' if self._inlet.closed else ''}of {self.future!r}>"

    def __iter__(self) -> Stream[T_co]:
        return self

    def __next__(self) -> T_co:
        """Return the next item, once it has come.

        Raises:
            StopIteration: There are no more, or the stream has been closed.
            BaseException: The task's error, after the items that came before it. `WorkerLostError`, if its worker
                has died: a task of which an item has come is not begun again.
            RuntimeError: The executor was shut down while items waited to be taken; or this is a callback of a
                future, which must not wait.
        """
        while True:
            found, item = self._take()
            if found:
                return item  # type: ignore[no-any-return]
            if self._has_ended():
                raise StopIteration
            self._farm.lead_until(self._has_changed)
            # This thread may not have been the one to lead. One of the farm's own must not wait for itself.
            if not self._has_changed():
                # Asked only now: where nothing has to be waited for, as with items that have come, it does no harm.
                if not self._farm.may_wait():
                    raise RuntimeError(MUST_NOT_WAIT)
                # An event of this thread's own, and looked at once more after it can be set: one for all threads
                # would have to be cleared, and so could be cleared by one after another has looked.
                changed = threading.Event()
                self._inlet.when_changed(changed.set)
                if not self._has_changed():
                    changed.wait()

    def __aiter__(self) -> Stream[T_co]:
        return self

    async def __anext__(self) -> T_co:
        """Return the next item, once it has come; see `__next__` for what it raises otherwise."""
        loop = asyncio.get_running_loop()
        while True:
            found, item = self._take()
            if found:
                return item  # type: ignore[no-any-return]
            if self._has_ended():
                raise StopAsyncIteration
            changed = loop.create_future()
            self._inlet.when_changed(lambda: _wake(loop, changed))  # noqa: B023
            if not self._has_changed():  # looked at after that, so that nothing is missed
                await changed

    def close(self) -> None:
        """Want no more items: the task ends where it yields the next one, where a generator gets GeneratorExit.

        A task that no worker has begun is cancelled. Does not wait for the end, which ``future`` tells.
        """
        # The inlet first: items that come from now on are dropped, and their worker is told again.
        self._inlet.close()
        with self._lock:
            self._items.clear()
        # Which tells a task that runs, too: its future goes on, and gets what the generator's end makes of it.
        self.future.cancel()

    def __enter__(self) -> Stream[T_co]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # Without waiting, wherever the garbage collector happens to run; at the program's end workers end anyway.
        if not sys.is_finalizing() and not self.future.done():
            self._inlet.close()
            # One that a worker has been sent and has not begun is told once its first item comes.
            if not (isinstance(self.future, FarmFuture) and self.future._cancel_unsent()):
                self._inlet.let_go()

    def _take(self) -> tuple[bool, Any]:
        """Return whether there is an item now, and the item."""
        with self._lock:
            # One frame at a time: what is not taken from the inlet keeps the worker from running further ahead.
            while not self._items:
                frame = self._inlet.take()
                if frame is None:
                    return False, None
                self._items.extend(_unpickled(frame))
            return True, self._items.popleft()

    def _has_changed(self) -> bool:
        return self._inlet.has_items or self.future.done() or self._inlet.closed

    def _has_ended(self) -> bool:
        """Return whether there are no more items.

        Raises:
            BaseException: The task has failed.
        """
        inlet = self._inlet
        if inlet.closed and not inlet.cut_short:
            return True
        # In this order: an item may have come before the end, and after it was looked for.
        if not self.future.done() or inlet.has_items:
            return False
        if inlet.cut_short:
            raise RuntimeError("the executor was shut down while items of this stream waited to be taken")
        self.future.result()
        return True


def open_stream(
    farm: Farm, options: TaskOptions, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Stream[Any]:
    """Submit a call whose items come one by one; return its stream."""
    # The name is taken while the function is at hand: among the arguments it is only bytes.
    inlet = Inlet(name_of(fn))
    future = farm.submit(stream_out, (fn, args, kwargs), {}, options, inlet=inlet)
    # The inlet's, and not the stream's, which could not be collected then.
    future.add_done_callback(inlet.wake)
    return Stream(farm, future, inlet)


def _unpickled(frame: Frame) -> list[Any]:
    payloads, together = decode_items(frame)
    if payloads:
        return [payload.loads(one, OwnObjects) for one in payloads]
    return payload.loads_together(together, frame.count)


def _wake(loop: asyncio.AbstractEventLoop, changed: asyncio.Future[None]) -> None:
    with contextlib.suppress(RuntimeError):  # the loop has been closed
        loop.call_soon_threadsafe(lambda: None if changed.done() else changed.set_result(None))
