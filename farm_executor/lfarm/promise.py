"""Promises: values that come later, which `force` waits for.

This module owns what a promise is, and the four ways in which one comes by its value: `promise` and `fulfill`, a
task (`future`, `speculate`), a call made by whoever asks first (`delay`), another promise (`chain`). It must not
know how tasks run.

Each promise keeps its value in a `concurrent.futures.Future`, its attribute ``future``, which `asyncio.wrap_future`
and `concurrent.futures.wait` take. One that has failed is fulfilled, and raises its error whenever it is forced.
"""

from __future__ import annotations

import concurrent.futures
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, InvalidStateError
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Generic, NoReturn, ParamSpec, TypeVar, overload

from farm_executor.client.farm.future import FarmFuture
from farm_executor.lfarm.checks import check_callable, check_seconds
from farm_executor.lfarm.kernel import check_kernel
from farm_executor.lfarm.task_options import task_priority
from farm_executor.lfarm.tasks import translated

__all__ = ["Chain", "Promise", "chain", "delay", "force", "fulfill", "fulfilledp", "future", "promise", "speculate"]

P = ParamSpec("P")
T = TypeVar("T")

# -- what lfarm calls them ---------------------------------------------------------------------------


def promise() -> Promise[Any]:
    """A promise that somebody will `fulfill`."""
    return Promise(Future())


@overload
def future(task: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Promise[T]: ...
@overload
def future(task: str, /, *args: Any, **kwargs: Any) -> Promise[Any]: ...
def future(task: Callable[..., Any] | str, /, *args: Any, **kwargs: Any) -> Promise[Any]:
    """A promise of what a task returns, which is submitted at once to the current kernel.

    Args:
        task: A function, a task, or the name of a function on the servers.
        args: Its arguments.
        kwargs: Its keyword arguments.

    Raises:
        InvalidTaskError: It is none of these.
        NoKernelError: There is no current kernel.
        RuntimeError: The kernel has ended.
    """
    kernel = check_kernel()
    return _TaskPromise(kernel.submit(task, *args, **kwargs), kernel.translated)


@overload
def speculate(task: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Promise[T]: ...
@overload
def speculate(task: str, /, *args: Any, **kwargs: Any) -> Promise[Any]: ...
def speculate(task: Callable[..., Any] | str, /, *args: Any, **kwargs: Any) -> Promise[Any]:
    """A `future` of low priority: its task begins when there is nothing else to do.

    Args:
        task: As for `future`.
        args: Its arguments.
        kwargs: Its keyword arguments.

    Raises:
        InvalidTaskError, NoKernelError, RuntimeError: As `future`.
    """
    with task_priority("low"):
        return future(task, *args, **kwargs)


def delay(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Promise[T]:
    """A promise of what a function returns that is called here, in the first thread that forces it.

    It is called once at most; other threads that force it meanwhile wait. What it raises is kept, as it is.

    Args:
        function: Any function; it does not travel.
        args: Its arguments.
        kwargs: Its keyword arguments.

    Raises:
        TypeError: It is not a function.
    """
    check_callable("function", function)
    return _Delay(partial(function, *args, **kwargs))


def chain(value: Any) -> Chain:
    """Make a link: whoever forces it, or a promise whose value it is, forces ``value`` instead.

    So ``fulfill(p, chain(delay(function)))`` fulfils a promise with what is computed only when it is forced.
    """
    return Chain(value)


def fulfill(promise: Promise[T] | Chain, value: T | Chain) -> bool:
    """Give a promise its value, if it has none and none is on its way.

    Args:
        promise: A promise, or a chain that leads to one.
        value: Its value; a `chain` to compute it only when it is needed.

    Returns:
        Whether this is the promise's value now. False for one that has been fulfilled, for a future, for a delay
        that somebody forces, and for what is no promise.
    """
    end = _end_of_chain(promise)
    return isinstance(end, Promise) and end.fulfill(value)


def fulfilledp(promise: object) -> bool:
    """Whether to force it would not wait. True for what is no promise, and for a promise that has failed.

    A promise whose value is a `chain` has it; whether that needs waiting for, the chain itself tells.
    """
    promise = _end_of_chain(promise)
    return not isinstance(promise, (Promise, Future)) or promise.done()


@overload
def force(promise: Chain | Promise[Chain], timeout: float | None = None) -> Any: ...
@overload
def force(promise: Promise[T] | Future[T], timeout: float | None = None) -> T: ...
@overload
def force(promise: T, timeout: float | None = None) -> T: ...
def force(promise: Any, timeout: float | None = None) -> Any:
    """Wait for a promise's value.

    Args:
        promise: A promise, a standard future, or a `chain`. Anything else is returned as it is.
        timeout: Seconds to wait; None for as long as it takes. It does not interrupt the call of a `delay` that is
            made in this thread.

    Returns:
        The value. A promise whose value is a promise yields that one, unless a `chain` is between them.

    Raises:
        TaskExecutionError: The task failed; its ``__cause__`` is what it raised, where that can be rebuilt here.
        TaskKilledError: The task was killed.
        WorkerLostError: Its worker died in each attempt.
        CancelledError: The task was cancelled before it began.
        TimeoutError: There is no value yet. It can be forced again.
        TypeError, ValueError: ``timeout`` is not a time.
        RuntimeError: A delay forces itself, or a chain leads back to where it began.
        Exception: What a `delay` raised, or the error by which the task's arguments could not be sent.
    """
    check_seconds("timeout", timeout)
    deadline = None if timeout is None else time.monotonic() + timeout
    seen: list[Future[Any]] = []
    while True:
        promise = _end_of_chain(promise)
        if isinstance(promise, Future):
            on_farm = isinstance(promise, FarmFuture)
            promise = _TaskPromise(promise, partial(translated, on_farm=on_farm, ours=False))
        if not isinstance(promise, Promise):
            return promise
        if promise.future in seen:
            raise RuntimeError("this promise waits for itself: a chain leads back to it")
        seen.append(promise.future)
        if not promise.wait(None if deadline is None else max(deadline - time.monotonic(), 0.0)):
            raise TimeoutError(f"the promise was not fulfilled within {timeout:g} s; it can be forced again")
        error = promise.error()
        if error is not None:
            try:
                raise error
            finally:
                del error, promise  # which refer to this frame
        value = promise.future.result()
        if not isinstance(value, Chain):
            return value
        promise = value


# -- what they are -----------------------------------------------------------------------------------

_telling = threading.Lock()  # only one thread makes the error that all are told


class Promise(Generic[T]):
    """A value that comes later: what `promise`, `future`, `speculate` and `delay` return.

    Promises stay in the process that made them: one that is given to a task, also by a closure, raises `TypeError`
    where tasks are pickled. Force it first, and give the task its value.

    Attributes:
        future: The standard future that holds the value, as it came: `force` says more than its ``result``.

    Thread safety:
        All methods, and the functions of this module, may be called from any thread.
    """

    def __init__(self, future: Future[T]) -> None:
        self.future = future
        self._error: tuple[BaseException, TracebackType | None] | None = None

    def fulfill(self, value: T | Chain) -> bool:
        """See `fulfill`."""
        try:
            self.future.set_result(value)  # type: ignore[arg-type]  # a chain stands for where it leads
        except InvalidStateError:
            return False
        return True

    def done(self) -> bool:
        """See `fulfilledp`."""
        return self.future.done()

    def wait(self, timeout: float | None) -> bool:
        """Have it fulfilled, if it can be, so long at most; say whether it is."""
        try:
            self.future.exception(timeout)
        except CancelledError:
            pass
        except concurrent.futures.TimeoutError:  # a class of its own before Python 3.11
            return False
        return True

    def error(self) -> BaseException | None:
        """What it failed with: the same each time, with the traceback that it came with, else that would grow."""
        with _telling:
            if self._error is None:
                error = None if self.future.cancelled() else self.future.exception()
                if error is None:
                    return None
                error = self._for_caller(error)
                self._error = error, error.__traceback__
            error, traceback = self._error
            return error.with_traceback(traceback)

    def _for_caller(self, error: BaseException) -> BaseException:
        return error

    def __repr__(self) -> str:
        """Tell whether it has been fulfilled."""
        return f"<{type(self).__name__.lstrip('_')} {'fulfilled' if self.done() else 'unfulfilled'}>"

    def __reduce__(self) -> NoReturn:
        """A promise cannot be fulfilled elsewhere."""
        raise TypeError("a promise cannot be pickled, as for a task: force it first, and pass on its value")


class _TaskPromise(Promise[T]):
    """The promise of a task, which nobody else can fulfil; with lfarm's way to tell its errors."""

    def __init__(self, future: Future[T], translate: Callable[[BaseException], BaseException]) -> None:
        super().__init__(future)
        self._translate = translate

    def fulfill(self, value: T | Chain) -> bool:
        return False

    def _for_caller(self, error: BaseException) -> BaseException:
        return self._translate(error)


class _Delay(Promise[T]):
    """The promise of a call that the first who forces it makes."""

    def __init__(self, call: Callable[[], T]) -> None:
        super().__init__(Future())
        self._lock = threading.Lock()
        self._call: Callable[[], T] | None = call
        self._caller: int | None = None

    def fulfill(self, value: T | Chain) -> bool:
        return self._take() is not None and super().fulfill(value)

    def wait(self, timeout: float | None) -> bool:
        call = self._take()
        if call is not None:
            self._run(call)
        elif self._caller == threading.get_ident():
            raise RuntimeError("this delay waits for itself: its own call forces it")
        return super().wait(timeout)

    def _take(self) -> Callable[[], T] | None:
        with self._lock:
            call, self._call = self._call, None
        return call

    def _run(self, call: Callable[[], T]) -> None:
        self._caller = threading.get_ident()
        try:
            value = call()
        except BaseException as error:  # as an executor does: those who wait must hear of it, whatever it is
            self.future.set_exception(error)
        else:
            self.future.set_result(value)
        finally:
            self._caller = None


@dataclass(frozen=True)
class Chain:
    """A link to something else, which `force`, `fulfill` and `fulfilledp` follow.

    Attributes:
        value: Where it leads.
    """

    value: Any


def _end_of_chain(value: Any) -> Any:
    while isinstance(value, Chain):
        value = value.value
    return value
