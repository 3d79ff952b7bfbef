"""Promises: values that arrive later, for which `force` waits.

This module owns promises and the four ways in which they get their values: by `promise` and `fulfill`, by a task
(`future`, `speculate`), by a call in the first thread that forces it (`delay`), or by another promise (`chain`). It
must not know how tasks run.

Each promise keeps its value in a `concurrent.futures.Future`, its attribute ``future``, which `asyncio.wrap_future`
and `concurrent.futures.wait` accept. A promise that has failed counts as fulfilled, and raises its error each time
it is forced.
"""

from __future__ import annotations

import concurrent.futures
import threading
import time
from collections.abc import Callable, Coroutine
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

# -- under lfarm's names -----------------------------------------------------------------------------


def promise() -> Promise[Any]:
    """Make a promise to be fulfilled by `fulfill`."""
    return Promise(Future())


@overload
def future(task: Callable[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs) -> Promise[T]: ...
@overload
def future(task: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Promise[T]: ...
@overload
def future(task: str, /, *args: Any, **kwargs: Any) -> Promise[Any]: ...
def future(task: Callable[..., Any] | str, /, *args: Any, **kwargs: Any) -> Promise[Any]:
    """Submit a task to the current kernel at once and return a promise of its result.

    Args:
        task: A function, a task, or the name of a function on the servers.
        args: The task's positional arguments.
        kwargs: The task's keyword arguments.

    Raises:
        InvalidTaskError: The task is none of these.
        NoKernelError: There is no current kernel.
        RuntimeError: The kernel has ended.
    """
    kernel = check_kernel()
    return _TaskPromise(kernel.submit(task, *args, **kwargs), kernel.translated)


@overload
def speculate(task: Callable[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs) -> Promise[T]: ...
@overload
def speculate(task: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Promise[T]: ...
@overload
def speculate(task: str, /, *args: Any, **kwargs: Any) -> Promise[Any]: ...
def speculate(task: Callable[..., Any] | str, /, *args: Any, **kwargs: Any) -> Promise[Any]:
    """Make a `future` of low priority, whose task begins when there is nothing else to do.

    Args:
        task: As for `future`.
        args: The task's positional arguments.
        kwargs: The task's keyword arguments.

    Raises:
        InvalidTaskError, NoKernelError, RuntimeError: As `future`.
    """
    with task_priority("low"):
        return future(task, *args, **kwargs)


def delay(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Promise[T]:
    """Make a promise of the result of a function called here, in the first thread that forces the promise.

    The function is called at most once; other threads that force the promise meanwhile wait. An exception it raises
    is kept unchanged.

    Args:
        function: Any function; it is not sent anywhere.
        args: The function's positional arguments.
        kwargs: The function's keyword arguments.

    Raises:
        TypeError: ``function`` is not callable.
    """
    check_callable("function", function)
    return _Delay(partial(function, *args, **kwargs))


def chain(value: Any) -> Chain:
    """Make a link: forcing it, or a promise whose value it is, forces ``value`` instead.

    So ``fulfill(p, chain(delay(function)))`` fulfils a promise with a value that is computed only when forced.
    """
    return Chain(value)


def fulfill(promise: Promise[T] | Chain, value: T | Chain) -> bool:
    """Give a promise its value, unless it has one or one is on its way.

    Args:
        promise: A promise, or a chain that leads to one.
        value: The value; a `chain` to compute it only when needed.

    Returns:
        Whether this is now the promise's value. False for a promise that has been fulfilled, for a future, for a
        delay that is being forced, and for anything but a promise.
    """
    end = _end_of_chain(promise)
    return isinstance(end, Promise) and end.fulfill(value)


def fulfilledp(promise: object) -> bool:
    """Return whether forcing would not wait. True for a failed promise, and for anything but a promise.

    A promise whose value is a `chain` is fulfilled; call this with the chain to learn whether that would wait.
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
        timeout: Seconds to wait; None to wait as long as it takes. It does not interrupt the call of a `delay` made
            in this thread.

    Returns:
        The value. If it is itself a promise, it is returned without being forced, unless it is in a `chain`.

    Raises:
        TaskExecutionError: The task failed; ``__cause__`` is its exception, if that can be rebuilt here.
        TaskKilledError: The task was killed.
        WorkerLostError: The task's worker died in each attempt.
        CancelledError: The task was cancelled before it began.
        TimeoutError: The value did not arrive in time. The promise can be forced again.
        TypeError, ValueError: ``timeout`` is invalid.
        RuntimeError: A delay forces itself, or a chain leads back to its beginning.
        Exception: The exception of a `delay`, or the error that prevented the task's arguments from being sent.
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
                del error, promise  # they refer to this frame: break the cycle
        value = promise.future.result()
        if not isinstance(value, Chain):
            return value
        promise = value


# -- implementation ----------------------------------------------------------------------------------

_telling = threading.Lock()  # only one thread translates an error, which all then share


class Promise(Generic[T]):
    """A value that arrives later, as returned by `promise`, `future`, `speculate` and `delay`.

    Promises stay in the process that made them: passing one to a task, even in a closure, raises `TypeError` where
    tasks are pickled. Force it first, and pass its value to the task.

    Attributes:
        future: The standard future that holds the untranslated outcome; the errors of `force` say more than those
            of its ``result``.

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
        """Wait until the promise is fulfilled, for at most that many seconds; return whether it is."""
        try:
            self.future.exception(timeout)
        except CancelledError:
            pass
        except concurrent.futures.TimeoutError:  # a class of its own before Python 3.11
            return False
        return True

    def error(self) -> BaseException | None:
        """Return the error, the same each time. Its traceback is reset, since each raise would lengthen it."""
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
        """Show whether the promise has been fulfilled."""
        return f"<{type(self).__name__.lstrip('_')} {'fulfilled' if self.done() else 'unfulfilled'}>"

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled: a promise cannot be fulfilled in another process."""
        raise TypeError("a promise cannot be pickled, as for a task: force it first, and pass on its value")


class _TaskPromise(Promise[T]):
    """The promise of a task, which only the task can fulfil; its errors are translated into lfarm's."""

    def __init__(self, future: Future[T], translate: Callable[[BaseException], BaseException]) -> None:
        super().__init__(future)
        self._translate = translate

    def fulfill(self, value: T | Chain) -> bool:
        return False

    def _for_caller(self, error: BaseException) -> BaseException:
        return self._translate(error)


class _Delay(Promise[T]):
    """The promise of a call that the first thread to force it makes."""

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
        except BaseException as error:  # as in an executor: waiting threads must learn of any exception
            self.future.set_exception(error)
        else:
            self.future.set_result(value)
        finally:
            self._caller = None


@dataclass(frozen=True)
class Chain:
    """A link to something else, which `force`, `fulfill` and `fulfilledp` follow.

    Attributes:
        value: The object to which it leads.
    """

    value: Any


def _end_of_chain(value: Any) -> Any:
    while isinstance(value, Chain):
        value = value.value
    return value
