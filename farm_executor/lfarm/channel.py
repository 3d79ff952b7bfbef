"""Channels: queues of the outcomes of tasks, in order of completion.

This module owns the outcomes that wait in a channel and the threads that wait for them. It must not know how a task
travels or where it runs, which are the kernel's concern.

Each submitted task is a future of the kernel, which puts itself into the channel's queue when it is done. Any
number of threads may submit, and any number receive. No thread waits in vain: when the kernel has ended and
everything that was submitted has been received, a mark in the queue wakes the waiting threads, one after the other,
with an error.
"""

from __future__ import annotations

import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, InvalidStateError
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, ParamSpec, overload

from farm_executor.client.farm.future import result_of, tell
from farm_executor.lfarm.checks import check_instance, check_seconds, checked_index
from farm_executor.lfarm.kernel import Kernel, check_kernel, checked_kernel

__all__ = [
    "Channel",
    "Timeout",
    "cancel_timeout",
    "do_fast_receives",
    "make_channel",
    "receive_result",
    "submit_task",
    "submit_timeout",
    "try_receive_result",
]

P = ParamSpec("P")

_DEPRECATED = "is deprecated, as in lfarm; use try_receive_result(channel, timeout=seconds)"


class Channel:
    """A queue of outcomes; made by `make_channel`.

    Iterating receives until everything that was submitted has been received; several threads may iterate together.
    A thread that calls `receive` meanwhile may take the result that an iterating thread was about to get, so that
    the latter waits for another one.

    On exit from a ``with`` block the channel is closed: tasks that have not begun are cancelled, the results of the
    others are dropped.

    Args:
        kernel: The kernel on which its tasks run; None for the current kernel.
        fixed_capacity: The most results that may wait in the channel. Tasks beyond that number, plus one for each
            worker, wait here until results have been received; submitting never blocks, and other channels are not
            affected. None for no limit.

    Attributes:
        kernel: The kernel on which its tasks run, whatever the current kernel is when they are submitted.

    Thread safety: all methods may be called from any thread.

    Raises:
        NoKernelError: No kernel is given, and there is no current one.
        RuntimeError: The kernel has ended.
        ValueError: ``fixed_capacity`` is less than 1.
        TypeError: ``fixed_capacity`` is not an integer.
    """

    def __init__(self, kernel: Kernel | None = None, *, fixed_capacity: int | None = None) -> None:
        self.kernel: Kernel = check_kernel() if kernel is None else checked_kernel(kernel)
        self._outcomes: SimpleQueue[Any] = SimpleQueue()
        self._arrive = self._outcomes.put  # in C: no Python code runs when a task is done
        self._submitted: set[Future[Any]] = set()  # and not received yet
        self._closed = False
        self._lock = threading.Lock()
        self._iterators = 0  # threads that iterate and have been promised one of the outcomes
        self._bound = None if fixed_capacity is None else _Bound(fixed_capacity)
        self.kernel.attach(self)

    @property
    def pending(self) -> int:
        """The number of tasks that have been submitted and whose results have not been received."""
        bound = self._bound
        return len(self._submitted) if bound is None else len(self._submitted) + bound.giving + len(bound.held)

    @overload
    def submit(self, task: Callable[P, object], /, *args: P.args, **kwargs: P.kwargs) -> None: ...
    @overload
    def submit(self, task: str, /, *args: Any, **kwargs: Any) -> None: ...
    def submit(self, task: Callable[..., Any] | str, /, *args: Any, **kwargs: Any) -> None:
        """Submit a call whose outcome can then be received, in the current category and priority.

        Args:
            task: A function or another callable, a `deftask`, or the name of a function that exists on the
                servers, ``"package.module:function"``.
            args: The task's positional arguments.
            kwargs: The task's keyword arguments.

        Raises:
            InvalidTaskError: The task is none of these.
            RuntimeError: The kernel has ended, or the channel has been closed.
        """
        if type(self) is not Channel:  # called as `submit_task`
            _check_channel(self)
        if self._closed:
            raise RuntimeError("cannot submit a task to a closed channel")
        if self._bound is not None:
            self._submit_within(self._bound, self.kernel.prepare_call(task, args, kwargs))
            return
        future = self.kernel.submit_call(task, args, kwargs)
        self._submitted.add(future)
        if not tell(future, self._arrive):
            future.add_done_callback(self._arrive_otherwise)

    def receive(self) -> Any:
        """Wait for the next result, in the order in which tasks are done.

        This waits even if nothing has been submitted, since another thread may still submit.

        Raises:
            TaskExecutionError: The task failed on its worker; ``__cause__`` is its exception.
            TaskKilledError: The task was killed.
            WorkerLostError: The task's worker died in each attempt.
            CancelledError: The task was cancelled.
            RuntimeError: No more results can come, because the kernel has ended or the channel has been closed.
            Exception: The call could not be pickled.
        """
        if type(self) is not Channel:  # called as `receive_result`
            _check_channel(self)
        while not self._closed:
            if self._outcomes.empty():
                self.kernel.lead_until(self._has_outcome)
            future = self._outcomes.get()
            if future is not _NO_MORE:
                if not self._closed:
                    return self._take(future)
            elif self._closed or not self.pending:
                self._arrive_otherwise(_NO_MORE)  # for the next waiting thread
                break
        raise RuntimeError("the channel has been closed" if self._closed else self._dry_text())

    def try_receive(self, timeout: float | None = None) -> tuple[Any, bool]:
        """Return the next result if it arrives in time.

        Args:
            timeout: Seconds to wait; None, or less than 0, not to wait.

        Returns:
            The result and True, or ``(None, False)``. A result that arrives later can be received later.

        Raises:
            TypeError: ``timeout`` is not a number.
            ValueError: ``timeout`` is longer than the system can wait.
            Exception: As `receive`.
        """
        _check_channel(self)
        check_seconds("timeout", timeout)
        try:
            future = self._outcomes.get(timeout=timeout) if timeout and timeout > 0 else self._outcomes.get_nowait()
        except Empty:
            return None, False
        if future is _NO_MORE or self._closed:
            self._arrive_otherwise(_NO_MORE)
            return None, False
        return self._take(future), True

    def receives(self, count: int) -> Iterator[Any]:
        """Return an iterator that receives that many results, one per step.

        Raises:
            ValueError: ``count`` is negative.
            TypeError: ``count`` is not an integer.
            Exception: While iterating, as `receive`. The results after a failure stay in the channel.
        """
        _check_channel(self)
        checked_index("count", count, 0)
        return (self.receive() for _ in range(count))

    def __iter__(self) -> Iterator[Any]:
        while True:
            with self._lock:
                if self._closed or self.pending <= self._iterators:
                    return
                self._iterators += 1
            try:
                value = self.receive()
            finally:
                with self._lock:
                    self._iterators -= 1
            yield value

    def __enter__(self) -> Channel:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._closed = True
        if self._bound is not None:
            with self._lock:
                self._bound.held.clear()
        for future in list(self._submitted):
            if isinstance(future, Timeout):
                future.settle(None)
            else:
                future.cancel()
        self._submitted.clear()
        self._arrive_otherwise(_NO_MORE)

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{self.pending} pending"
        return f"<Channel of kernel {self.kernel.name!r}: {state}>"

    # -- internals ---------------------------------------------------------------------------------------

    def _arrive_otherwise(self, outcome: Any) -> None:
        """Queue an outcome that did not come from the executor's work, and wake a thread doing that work."""
        self._arrive(outcome)
        self.kernel.nudge()

    def _has_outcome(self) -> bool:
        return not self._outcomes.empty()

    def _take(self, future: Future[Any]) -> Any:
        """Return the task's result, or raise its error; it then counts as received."""
        self._submitted.discard(future)
        if self._bound is not None:
            self._give_held(self._bound)
        if self.kernel.ended and not self.pending:
            self._arrive_otherwise(_NO_MORE)
        value = result_of(future, _NO_MORE)  # in one step, as nearly all have one
        if value is not _NO_MORE:
            return value
        error = None if future.cancelled() else future.exception()  # `result` would add its own frames
        if error is None:
            return future.result()
        try:
            raise self.kernel.translated(error)
        finally:
            del error  # it refers to this frame: break the cycle

    def kernel_ended(self) -> None:
        """Submit the calls held here now that the kernel takes no more tasks from others."""
        bound = self._bound
        while bound is not None:
            with self._lock:
                if not bound.held:
                    break
                call = bound.held.popleft()
                bound.giving += 1
            self._give(bound, call)
        if not self.pending:
            self._arrive_otherwise(_NO_MORE)

    def futures(self) -> list[Future[Any]]:
        """Return the futures, except timeouts, that have been submitted and not received."""
        return [future for future in list(self._submitted) if not isinstance(future, Timeout)]

    def _dry_text(self) -> str:
        return (
            f"nothing is left to be received, and no more can come: the kernel {self.kernel.name!r} has been ended"
        )

    # -- with a capacity ---------------------------------------------------------------------------------

    def _submit_within(self, bound: _Bound, call: Callable[[], Future[Any]]) -> None:
        with self._lock:
            # Check again under the lock: the kernel may have ended since `prepare_call`, and `kernel_ended` would
            # not come again for a call held from now on.
            if self.kernel.ended:
                raise RuntimeError("cannot submit a task to an ended kernel")
            if bound.held or self._is_full(bound):
                bound.held.append(call)
                return
            bound.giving += 1
        self._give(bound, call)

    def _give_held(self, bound: _Bound) -> None:
        with self._lock:
            if not bound.held or self._is_full(bound):
                return
            call = bound.held.popleft()
            bound.giving += 1
        self._give(bound, call)

    def _is_full(self, bound: _Bound) -> bool:
        return len(self.futures()) + bound.giving >= bound.capacity + self.kernel.worker_count

    def _give(self, bound: _Bound, call: Callable[[], Future[Any]]) -> None:
        try:
            future = call()
        except Exception as error:  # for the receiver: this thread may not be the one that submitted the call
            future = Future()
            future.set_exception(error)
        with self._lock:
            self._submitted.add(future)
            bound.giving -= 1
        future.add_done_callback(self._arrive_otherwise)

    # -- timeouts ----------------------------------------------------------------------------------------

    def submit_timeout(self, seconds: float, result: Any) -> Timeout:
        """See the function `submit_timeout`."""
        if self._closed or self.kernel.ended:
            raise RuntimeError("cannot submit a timeout to a channel that is closed, or whose kernel has ended")
        timeout = Timeout(seconds, result)
        self._submitted.add(timeout)
        timeout.add_done_callback(self._arrive_otherwise)
        timeout.begin()
        return timeout


_NO_MORE = object()


class _Bound:
    """The additional state of a channel with a capacity.

    Attributes:
        capacity: The most results that may wait.
        held: The calls that wait here.
        giving: The number of calls on their way from here to the kernel.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = checked_index("fixed_capacity", capacity, 1)
        self.held: deque[Callable[[], Future[Any]]] = deque()
        self.giving = 0


class Timeout(Future[Any]):
    """A result that arrives after a time; made by `submit_timeout`.

    Raises:
        TypeError: ``seconds`` is not a number.
        ValueError: ``seconds`` is negative, or longer than the system can wait.
    """

    def __init__(self, seconds: float, result: Any) -> None:
        super().__init__()
        check_seconds("seconds", seconds, or_none=False, least=0)
        self._timer = threading.Timer(seconds, self.settle, [result])
        self._timer.name = "farm-timeout"
        self._timer.daemon = True

    def begin(self) -> None:
        """Start the timer."""
        self._timer.start()

    def settle(self, result: Any) -> None:
        """Arrive now with that result, unless it has already arrived, and stop the timer."""
        self._timer.cancel()
        try:
            self.set_result(result)
        except InvalidStateError:
            pass


def _check_channel(channel: Any) -> None:
    check_instance("channel", channel, Channel, "make_channel")


# -- under lfarm's names -----------------------------------------------------------------------------


def make_channel(*, fixed_capacity: int | None = None) -> Channel:
    """Make a channel of the current kernel. See `Channel`, also for its exceptions."""
    return Channel(fixed_capacity=fixed_capacity)


# These are the methods themselves: the cost of one more call would be noticeable with small tasks.
submit_task = Channel.submit
receive_result = Channel.receive
try_receive_result = Channel.try_receive
do_fast_receives = Channel.receives


def submit_timeout(channel: Channel, seconds: float, result: Any) -> Timeout:
    """Make the channel receive that result after that many seconds, without occupying a worker.

    .. deprecated:: 0.1
        As in lfarm; use `try_receive_result` with a timeout.
    """
    warnings.warn(f"submit_timeout {_DEPRECATED}", DeprecationWarning, stacklevel=2)
    _check_channel(channel)
    return channel.submit_timeout(seconds, result)


def cancel_timeout(timeout: Timeout, result: Any) -> None:
    """Make the timeout's channel receive that result now, in place of the timeout's own.

    Only the first call counts; once the time is over, or after another call, this has no effect.

    .. deprecated:: 0.1
        As in lfarm; use `try_receive_result` with a timeout.
    """
    warnings.warn(f"cancel_timeout {_DEPRECATED}", DeprecationWarning, stacklevel=2)
    check_instance("timeout", timeout, Timeout, "submit_timeout")
    timeout.settle(result)
