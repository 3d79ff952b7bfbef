"""The farm's future: the standard library's, made lighter, which takes its task back when it is cancelled.

This module owns how futures are settled and waited for. It must not know the engine, nor the call that a future is
of, but for its owner, who is told of cancelling and of waiting: see `Owner`.

A standard future creates a Condition in its constructor, which costs more than all the rest of a small call. Most
futures of a busy farm are settled before anyone looks at them, so this one creates its Condition on first use. The
rule that makes this safe:

    The Condition is created, and a future without one is settled or started, under one lock that all futures share:
    by `start_all` and `settle_plainly`. A future with a Condition is settled in the standard way, through it, and
    without that lock.

So a thread that looks at a future either creates the Condition before the settling, which then goes through it, or
finds a settled future. Adding a callback needs no Condition: it is added under that lock, and called, without the
lock, by the thread that settles. Looking at the state and then for a Condition, without the lock, would be wrong:
`concurrent.futures.wait` installs its waiter even on a future that is settled already, and a late notification
would count twice.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

from farm_executor.client.farm.locks import is_mine
from farm_executor.current import Progress

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    # With a default, as hardly anything in the package cares what a future is of.
    T = TypeVar("T", default=Any)
else:
    from typing import TypeVar

    T = TypeVar("T")

__all__ = [
    "MUST_NOT_WAIT",
    "FarmFuture",
    "Owner",
    "call_of",
    "cancel_waiting",
    "cancelled",
    "failed",
    "renew_lock",
    "result_of",
    "settle_plainly",
    "start",
    "start_all",
    "tell",
]

standard_logger = logging.getLogger("concurrent.futures")  # where the standard library reports callbacks that raise

MUST_NOT_WAIT = (
    "this would wait for ever: a callback of a future, or a signal handler that has interrupted this thread in the "
    "midst of the farm's work, keeps the farm from being heard. Submit there, and wait elsewhere"
)
PENDING, RUNNING, CANCELLED, FINISHED = "PENDING", "RUNNING", "CANCELLED", "FINISHED"
_CANCELLED = (CANCELLED, "CANCELLED_AND_NOTIFIED")
_SETTLED = (*_CANCELLED, FINISHED)

_lock = threading.RLock()  # reentrant, as a destructor that the garbage collector runs may use other futures


def renew_lock() -> None:
    """In a forked child: replace the lock, which another thread may have held at the moment of the fork."""
    global _lock
    _lock = threading.RLock()


class Sight(Protocol):
    """What an owner tells of itself."""

    def where(self, call: Any) -> str:
        """Return which worker has the call, for people; empty if none has."""


class Owner(Protocol):
    """The object that will settle the future."""

    def withdraw(self, call: Any) -> None:
        """Note that the future has been cancelled; its call need not run."""

    def take_back(self, call: Any, cancel: Callable[[], bool]) -> None:
        """Ask for a call back that has been sent to a worker.

        If the worker gives it back in time, ``cancel``, the future's `_cancel_started`, has been called when this
        returns.
        """

    def tell_unwanted(self, call: Any) -> None:
        """Tell a call that most likely runs that nobody wants its result."""

    def lead(self, future: FarmFuture, timeout: float | None) -> float | None:
        """Let the calling thread, which is about to wait for the future, do some of the owner's work meanwhile.

        Returns:
            The rest of the timeout. The future may be settled or not.
        """

    def waiting(self, future: FarmFuture) -> AbstractContextManager[None]:
        """Return a context for a thread that waits for the future without leading."""

    @property
    def sight(self) -> Sight:
        """What the owner tells of itself."""


class Owned(Protocol):
    """The call that a future is of: to the future, no more than the way to its owner."""

    owner: Owner

    @property
    def name(self) -> str:
        """Its function, for people."""


class FarmFuture(Future[T]):
    """What `submit` returns: a `concurrent.futures.Future` in every respect, with what its task says beside.

    Type checkers take it for a plain `Future`, as other executors return one: ``isinstance(future, FarmFuture)``
    tells them that it is more.

    Thread safety: as the standard library's.
    """

    # The fields of a standard future, as class attributes: a new future then has nothing to initialize.
    _state = PENDING
    _result: Any = None
    _exception: BaseException | None = None
    _own_condition: threading.Condition | None = None
    _own_callbacks: list[Callable[[Future[Any]], object]] | None = None
    _arrive: Callable[[Future[Any]], object] | None = None

    _call: Owned | None = None
    """The call on its way; None for a future that is settled, or that never had one."""
    _output = ""
    _progress: Progress | None = None
    _progress_callbacks: list[Callable[[Any], object]] | None = None

    if not TYPE_CHECKING:  # checkers would take what makes them for anything at all
        __init__ = object.__init__  # creates nothing: see the module

    def __reduce__(self) -> str | tuple[Any, ...]:
        raise TypeError("cannot pickle a future, which belongs to one process; wait for it, and send its result")

    def __repr__(self) -> str:
        """Return its state in one line; until it is settled also its function, worker and progress."""
        call, progress = self._call, self._progress
        known = []
        if call is not None and not self.done():
            where = call.owner.sight.where(call)
            known.append(f"{call.name} on {where}" if where else call.name)
        if progress is not None:
            of = "" if progress.total is None else f" of {progress.total:g}"
            known.append(f"{progress.done:g}{of}" + (f", {progress.message}" if progress.message else ""))
        return f"{super().__repr__()[:-1]}{''.join(f' {text}' for text in known)}>"

    @property
    def progress(self) -> Progress | None:
        """The task's latest report of how far it has come, by `current_task`; None before the first."""
        return self._progress

    def add_progress_callback(self, fn: Callable[[Any], object]) -> None:
        """Have a function called with this future when its task reports how far it has come.

        It is called in a thread of the farm's, one call after the other and before callbacks of the future's end,
        which wait for it, but for a second at most; what it raises is logged. If there is a report already, it is
        called with that at once, in the calling thread.

        Raises:
            TypeError: ``fn`` is not callable.
        """
        if not callable(fn):
            raise TypeError(f"fn must be a callable, not {fn!r:.100}")
        with _lock:
            self._progress_callbacks = [*(self._progress_callbacks or ()), fn]
        if self._progress is not None:
            fn(self)

    @property
    def output(self) -> str:
        """The end of what the task has written, at most 8 KiB of standard output, then as much of standard error.

        It is that of the last attempt, complete once the future is settled; what a process writes that the task has
        left behind does not count. Empty where output does not come here: see ``output`` of `FarmExecutor`.
        """
        return self._output

    @property
    def _condition(self) -> threading.Condition:  # type: ignore[override]
        condition = self._own_condition
        if condition is None:
            # Created outside the lock that all futures share; dropped if another thread is faster.
            new = threading.Condition()
            with _lock:
                condition = self._own_condition
                if condition is None:
                    condition = self._own_condition = new
        return condition

    # The standard library touches these two only while it holds the Condition.

    @property
    def _waiters(self) -> list[Any]:  # type: ignore[override]
        waiters: list[Any] = self.__dict__.setdefault("_own_waiters", [])
        return waiters

    @property
    def _done_callbacks(self) -> list[Any]:
        if self._own_callbacks is None:
            self._own_callbacks = []
        return self._own_callbacks

    def _call_back(self) -> None:
        """Call the callbacks of a future that `settle_plainly` has settled."""
        for fn in self._own_callbacks or ():
            try:
                fn(self)
            except Exception:  # as in the standard library
                standard_logger.exception("exception calling callback for %r", self)

    def _tell(self, arrive: Callable[[Future[Any]], object]) -> bool:
        """Call a function with this future once it is settled, in the thread that settles it.

        This is for queues, not for users' code: the function must not wait, nor take a lock that is held while a
        future is waited for, nor raise. Each future can have one.

        Returns:
            Whether the function will be called. If not, because the future is settled, or another thread waits for
            it or has looked at it, add a callback instead.
        """
        with _lock:
            plainly = self._own_condition is None and self._arrive is None and self._state in (PENDING, RUNNING)
            if plainly:
                self._arrive = arrive
        return plainly

    def _await_settling(self, timeout: float | None) -> None:
        """Wait until the future is settled or the timeout is over."""
        settled = threading.Lock()  # enough for one waiter, and much cheaper than a Condition for both sides
        settled.acquire()

        def arrive(future: Future[Any]) -> None:
            settled.release()

        if not self._tell(arrive):  # it is settled, or other threads wait for it, too
            with self._condition:
                if self._state not in _SETTLED:
                    self._condition.wait(timeout)
            return
        try:
            if timeout is None:
                settled.acquire()
            elif timeout > 0:
                settled.acquire(timeout=timeout)
        finally:
            # After a timeout or an interrupt: the place must be free for the next thread that waits.
            with _lock:
                if self._arrive is arrive:
                    self._arrive = None

    def _invoke_callbacks(self) -> None:
        # First the waiting thread, then the callbacks: these may take long, and the result is there already.
        arrive, self._arrive = self._arrive, None
        if arrive is not None:
            arrive(self)
        super()._invoke_callbacks()  # type: ignore[misc]

    def add_done_callback(self, fn: Callable[[Future[Any]], object]) -> None:
        """See `concurrent.futures.Future.add_done_callback`."""
        with _lock:
            if self._own_condition is None and self._state in (PENDING, RUNNING):
                if self._own_callbacks is None:
                    self._own_callbacks = [fn]
                else:
                    self._own_callbacks.append(fn)
                return
        super().add_done_callback(fn)

    def result(self, timeout: float | None = None) -> T:
        """See `concurrent.futures.Future.result`."""
        if self._state == FINISHED and self._exception is None:
            return self._result  # type: ignore[no-any-return]
        call = self._call
        if call is not None:
            timeout = self._wait(call.owner, timeout)
            del call  # this frame goes into an exception's traceback, which would keep it alive
            if self._state == FINISHED and self._exception is None:
                return self._result  # type: ignore[no-any-return]
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """See `concurrent.futures.Future.exception`."""
        if self._state == FINISHED:
            return self._exception
        call = self._call
        if call is not None:
            timeout = self._wait(call.owner, timeout)
        return super().exception(timeout)

    def _wait(self, owner: Owner, timeout: float | None) -> float:
        """Wait for the future; return the rest of the timeout, which is nothing."""
        # A signal handler or destructor on top of code that holds the lock: no thread could settle anything.
        if timeout is None and is_mine(_lock):
            raise RuntimeError(MUST_NOT_WAIT)
        timeout = owner.lead(self, timeout)
        if self._state != FINISHED:
            with owner.waiting(self):
                self._await_settling(timeout)
        return 0.0

    # The standard library's two would make a Condition for each future that is asked. It guards nothing here: a
    # state is set in one step, and after the outcome.

    def done(self) -> bool:
        """See `concurrent.futures.Future.done`."""
        return self._state in _SETTLED

    def cancelled(self) -> bool:
        """See `concurrent.futures.Future.cancelled`."""
        return self._state in _CANCELLED

    def cancel(self) -> bool:
        """Cancel the call if no worker has begun it; see `concurrent.futures.Future.cancel`.

        If it has been sent to a worker already, `running` is true, and the worker is asked to give it back. That
        takes a round trip; without an answer within half a second, the call is not cancelled. In a callback, the
        answer is not waited for.
        """
        # Read before: another thread may start or settle the future at any time, and settling clears it.
        call = self._call
        if self._cancel_waiting():
            return True
        if self._state == RUNNING and call is not None:
            call.owner.tell_unwanted(call)
        return False

    def _cancel_waiting(self) -> bool:
        """Do the same, but do not tell a call that runs that nobody wants its result."""
        if self._state == FINISHED:
            return False
        call = self._call  # read before, see above
        if self._cancel_unsent():
            return True
        if self._state == RUNNING and call is not None:
            call.owner.take_back(call, self._cancel_started)
        return self.cancelled()

    def _cancel_unsent(self) -> bool:
        """Cancel the call if it has not been sent to a worker. Does not wait."""
        cancelled = super().cancel()
        if cancelled:
            call, self._call = self._call, None
            if call is not None:
                call.owner.withdraw(call)
        return cancelled

    def _cancel_started(self) -> bool:
        """For the owner: cancel a call that a worker has given back; return whether the future was still running.

        Waiting threads are notified; callbacks are called by `_invoke_callbacks`, which must follow.
        """
        with self._condition:
            if self._state != RUNNING:
                return False
            self._state = CANCELLED
            super().set_running_or_notify_cancel()  # returns False, and notifies `wait` and `as_completed`
            self._condition.notify_all()
        return True

    def _abandon(self, error: BaseException) -> None:
        """Settle in a forked child, where the threads that would settle it, or hold its locks, do not exist."""
        # No lock is taken, and the Condition is dropped, not notified: if another thread held it at the fork, it
        # will never be released here.
        if not self.done():
            arrive = self._arrive
            self._own_condition = None
            self.__dict__.pop("_own_waiters", None)
            self._own_callbacks = self._arrive = None
            self._exception = error
            self._state = FINISHED
            if arrive is not None:
                arrive(self)


def result_of(future: Future[Any], otherwise: Any) -> Any:
    """Return the result of a future of a farm's that is settled and has one; else ``otherwise``."""
    found = isinstance(future, FarmFuture) and future._state == FINISHED and future._exception is None
    return future._result if found else otherwise


def call_of(future: Future[Any]) -> Any:
    """Return the call that a future is of, if it is a farm's and on its way."""
    return future._call if isinstance(future, FarmFuture) else None


def cancel_waiting(future: Future[Any]) -> bool:
    """Cancel a call that no worker has begun; unlike `cancel`, leave one that runs in peace."""
    return isinstance(future, FarmFuture) and future._cancel_waiting()


def tell(future: Future[Any], arrive: Callable[[Future[Any]], object]) -> bool:
    """See `FarmFuture._tell`; a future of another kind has no such way."""
    return isinstance(future, FarmFuture) and future._tell(arrive)


def start_all(futures: list[FarmFuture]) -> list[bool]:
    """Do `set_running_or_notify_cancel` for each future; the lock is taken once for those without a Condition."""
    with _lock:
        for future in futures:
            if future._own_condition is None and future._state == PENDING:
                future._state = RUNNING
    # Conditions are taken only after the lock has been released. A thread that holds one, as in
    # `concurrent.futures.wait`, may create others and so want the lock: the opposite order could deadlock.
    return [future._state == RUNNING or future.set_running_or_notify_cancel() for future in futures]


def start(future: FarmFuture) -> bool:
    """Do the same for one future."""
    with _lock:
        if future._own_condition is None and future._state == PENDING:
            future._state = RUNNING
            return True
    return future._state == RUNNING or future.set_running_or_notify_cancel()


def settle_plainly(
    outcomes: Iterable[tuple[FarmFuture, Any]], *, as_errors: bool = False
) -> tuple[list[tuple[FarmFuture, Any]], list[FarmFuture]]:
    """Set the results or exceptions of the futures that have no Condition yet, all under one hold of the lock.

    Returns:
        The other outcomes, which are still to be set, and the futures whose callbacks are still to be called.
    """
    others, to_call, arrived = [], [], []
    with _lock:
        for outcome in outcomes:
            future, value = outcome
            if future._own_condition is None and future._state == RUNNING:
                if as_errors:
                    future._exception = value
                else:
                    future._result = value
                future._state = FINISHED  # last: `result` reads the state without a lock
                if future._arrive is not None:
                    arrived.append((future._arrive, future))
                    future._arrive = None
                if future._own_callbacks is not None:
                    to_call.append(future)
            else:
                others.append(outcome)
    # Without the lock: what it wakes is likely to want the lock at once.
    for arrive, future in arrived:
        arrive(future)
    return others, to_call


def failed(error: BaseException) -> FarmFuture:
    """Return a future that holds an error."""
    future: FarmFuture = FarmFuture()
    future.set_running_or_notify_cancel()
    future.set_exception(error)
    return future


def cancelled() -> FarmFuture:
    """Return a future that has been cancelled."""
    future: FarmFuture = FarmFuture()
    future.cancel()
    future.set_running_or_notify_cancel()
    return future
