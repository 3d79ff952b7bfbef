"""`FarmExecutor`: the contract of `concurrent.futures.Executor`.

This module owns what users call and what they are promised: names, defaults, checks and errors. It must not know
sockets or frames; the `engine` does the work, and is imported when there is some.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import sys
import threading
import time
import weakref
from abc import abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import Executor, Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from functools import partial
from numbers import Number
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, overload

from farm_executor.arguments import checked
from farm_executor.client import launching
from farm_executor.client.farm.future import FarmFuture, renew_lock
from farm_executor.client.farm.interrupt import AllHeldBack, let_go
from farm_executor.client.farm.locks import OwnedLock
from farm_executor.client.farm.options import TaskOptions
from farm_executor.errors import AddressError
from farm_executor.wire.address import Address, AddressLike

if TYPE_CHECKING:
    from multiprocessing.context import BaseContext
    from types import FrameType

    # Checkers bring these along; Python has them from 3.11 on.
    from typing_extensions import TypedDict, TypeVarTuple, Unpack

    from farm_executor.client.farm.engine import Engine
    from farm_executor.client.farm.servers import Sources
    from farm_executor.client.farm.statistics import FarmStatistics
    from farm_executor.client.launching import EmbeddedServer, RemoteServer
    from farm_executor.wire.security import Key, KeyFinder

    T1 = TypeVar("T1")
    T2 = TypeVar("T2")
    T3 = TypeVar("T3")
    Ts = TypeVarTuple("Ts")

    class _Settings(TypedDict, total=False):
        """What the executor takes by name alone."""

        max_workers: int | None
        max_tasks_per_child: int | None
        max_memory_per_worker: int | None
        key: bytes | None
        key_file: str | os.PathLike[str] | None
        ssl_context: Any
        connect_timeout: float | None
        heartbeat: float
        resume_timeout: float
        max_attempts: int
        allow_version_mismatch: bool
        max_pending_bytes: int | None
        when_full: Literal["wait", "raise"]
        caller_leads: bool
        ship: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]


__all__ = ["FarmExecutor", "OptionsView"]

P = ParamSpec("P")
T = TypeVar("T")

logger = logging.getLogger(__name__)

INTERRUPT_SECONDS = 2.0  # for running tasks to end after Ctrl-C
EXIT_SECONDS = 15.0  # for servers to be reached again, once the program has nothing left to do but to wait for them
LOOK_SECONDS = 0.5  # between looks at whether they are


class _Front(Executor):
    """What users call, of a farm and of its views alike."""

    _options: TaskOptions

    @property
    @abstractmethod
    def _farm(self) -> FarmExecutor:
        """The farm itself."""

    if TYPE_CHECKING:  # the farm has an attribute, a view a property
        _engine: Engine | None

    @abstractmethod
    def _start_engine(self) -> Engine:
        """The farm's engine, started if it is not yet."""

    # -- the standard library's contract -----------------------------------------------------------------

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Schedule ``fn(*args, **kwargs)``; every argument is the function's.

        Returns:
            Its future. It raises the task's own exception, with remote frames in the traceback and a
            `TaskExecutionError` at the end of its ``__cause__`` chain. Where the call cannot be pickled, the
            future holds that error already. Large buffers (64 KiB and more, such as numpy arrays) are read when
            they are sent: do not change them before the future is done.

        Raises:
            RuntimeError: The executor has been shut down, or the interpreter is.
            BrokenFarmError: The farm is broken, as by a failing initializer; or the error that broke it:
                `AuthenticationError`, `VersionMismatchError`, `TimeoutError`.
            FarmFullError: ``max_pending_bytes`` are held, and ``when_full="raise"``.
        """
        engine = self._engine or self._start_engine()
        return engine.submit(fn, args, kwargs, self._options)

    # From the first three a checker learns what a lambda takes; the last takes all that typeshed's `map` does.
    @overload
    def map(
        self,
        fn: Callable[[T1], T],
        it1: Iterable[T1],
        /,
        *,
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[T]: ...
    @overload
    def map(
        self,
        fn: Callable[[T1, T2], T],
        it1: Iterable[T1],
        it2: Iterable[T2],
        /,
        *,
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[T]: ...
    @overload
    def map(
        self,
        fn: Callable[[T1, T2, T3], T],
        it1: Iterable[T1],
        it2: Iterable[T2],
        it3: Iterable[T3],
        /,
        *,
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[T]: ...
    @overload
    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[T]: ...
    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """As `concurrent.futures.Executor.map` in Python 3.14, on every Python.

        Args:
            fn: Called with one item of each iterable, until the shortest ends.
            iterables: Read at once; with ``buffersize`` only as far ahead as that.
            timeout: Seconds from this call until a result must be there, else `TimeoutError`.
            chunksize: How many items make one task, which fails as a whole. With 1, each item fails, and is tried
                again, by itself; short ones still travel together.
            buffersize: The most tasks whose results have not been taken. Then iterables may be endless.

        Raises:
            ValueError: ``chunksize`` or ``buffersize`` is less than 1.
            TypeError: ``buffersize`` is no integer.
        """
        timeout, chunksize, buffersize = checked(
            "FarmExecutor.map", timeout=timeout, chunksize=chunksize, buffersize=buffersize
        )
        return self._farm._map(self._options, fn, iterables, timeout, chunksize, buffersize)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False, timeout: float | None = None) -> None:
        """As `concurrent.futures.Executor.shutdown`: no more tasks; those submitted are finished.

        Args:
            wait: Whether to return only when all is over: every future settled, every worker told to go, the
                embedded farm ended.
            cancel_futures: Whether to cancel what has not been sent to a worker.
            timeout: Seconds to wait; None for ever.

        Raises:
            TimeoutError: All is not over in time. It goes on; `kill_workers` ends it.
        """
        farm = self._farm
        wait, cancel_futures, timeout = checked(
            "FarmExecutor.shutdown", wait=wait, cancel_futures=cancel_futures, timeout=timeout
        )
        with farm._alone():
            farm._shut_down = True
            engine = farm._engine
        if engine is None:
            if farm._embedded is not None:
                farm._embedded.end()  # it was started by pickling, for others to use
            return
        engine.shutdown(cancel_futures=cancel_futures)
        if wait and not engine.join(timeout) and timeout is not None:
            running, waiting = _running_and_waiting(engine.statistics())
            raise TimeoutError(
                f"after {timeout:g} s {running} tasks run and {waiting} wait; kill_workers() would end them"
            )

    def __exit__(self, exc_type: type[BaseException] | None, exc_value: Any, traceback: Any) -> None:
        """Shut down and wait.

        After Ctrl-C queued tasks are cancelled, and running ones have two seconds to end; then their workers are
        ended, here and on servers.
        """
        interrupted = exc_type is not None and issubclass(exc_type, KeyboardInterrupt)
        try:
            self.shutdown(wait=not interrupted, cancel_futures=interrupted)
        finally:  # also when Ctrl-C comes once more
            engine = self._farm._engine
            if interrupted and engine is not None:
                _end_interrupted([engine])

    # -- beyond it ---------------------------------------------------------------------------------------

    def with_options(
        self,
        *,
        priority: int | str | None = None,
        category: Hashable = None,
        max_attempts: int | None = None,
        timeout: float | None = None,
    ) -> OptionsView:
        """An executor over this same farm whose tasks have other options; what is not given stays as it is here.

        Args:
            priority: "low", "default", "high", or an int, where a larger one goes first and "default" is 0.
            category: A label.
            max_attempts: How often a task may be begun; 1 for at most once.
            timeout: Seconds that a task may run, in whatever code; the way of its arguments to the worker counts.
                Then its worker is killed and replaced, and its future raises `TaskTimeoutError`; it is not tried
                again. With `map` it is the time of each item, or of each chunk with a ``chunksize`` beyond 1.

        Raises:
            TypeError, ValueError: An argument is not what it must be; the message names it.
        """
        level, category, max_attempts, timeout = checked(
            "FarmExecutor.with_options",
            priority=priority,
            category=category,
            max_attempts=max_attempts,
            timeout=timeout,
        )
        mine = self._options
        return OptionsView(
            self._farm,
            TaskOptions(
                priority=mine.priority if level is None else level,
                category=mine.category if category is None else category,
                max_attempts=mine.max_attempts if max_attempts is None else max_attempts,
                timeout=mine.timeout if timeout is None else timeout,
            ),
        )

    def add_server(self, address: AddressLike) -> None:
        """Let one more server work for this farm, with all its slots, from when it answers.

        Args:
            address: As in the constructor. One that the farm has already changes nothing.

        Raises:
            AddressError: It has none of the accepted forms.
            RuntimeError, BrokenFarmError: See `submit`.
        """
        (added,) = checked("FarmExecutor.add_server", address=address)
        if added.every:
            raise AddressError(f"{added} stands for servers that come and go: give it to the constructor")
        farm = self._farm
        with farm._alone():
            if farm._shut_down:
                raise RuntimeError("cannot add a server after shutdown")
            known = [*(farm._addresses or ()), *farm._added]
            if added in known:
                return
            farm._added.append(added)
            if farm._engine is not None:
                farm._engine.servers.add(added, farm._way_to(added))

    def remove_server(self, address: AddressLike, *, drain: bool = True, timeout: float | None = None) -> None:
        """Let a server work for this farm no more, and wait until it does not.

        What waits for it, and what its workers have not begun, goes to others; if there are none, it waits for one
        to be added. The calls of a broadcast that it has yet to make fail with `WorkerLostError`.

        Args:
            address: As it was given.
            drain: Whether its workers may end what they run. If not, that is tried again elsewhere, free of charge;
                a task with ``max_attempts=1`` fails with `WorkerLostError`.
            timeout: Seconds to wait; None for ever.

        Raises:
            ValueError: The farm has no such server.
            AddressError: The address has none of the accepted forms, or stands for servers that come and go.
            TimeoutError: It still works on something. It goes on to drain; with ``drain=False`` it can be hurried.
            RuntimeError, BrokenFarmError: See `submit`; also when called in a future's callback.
        """
        removed, drain, timeout = checked(
            "FarmExecutor.remove_server", address=address, drain=drain, timeout=timeout
        )
        if removed.every:
            raise AddressError(f"{removed} stands for servers that come and go: remove one by its own address")
        farm = self._farm
        with farm._alone():
            engine = farm._engine
            if engine is not None:
                engine.check_may_wait()
            known = [given for given in (farm._addresses or [], farm._added) if removed in given]
            for given in known:
                given.remove(removed)
            gone = None if engine is None else engine.servers.remove(removed, drain=drain)
        if gone is None and not known:
            raise ValueError(f"the farm has no server {removed}")
        if gone is None:
            return  # it was never to be dialled, or not yet
        ours = [server for target, server in farm._remote if target == removed]
        for server in ours:
            gone.add_done_callback(partial(_let_go, server))
        try:
            gone.result(timeout)
        except FutureTimeoutError:
            raise TimeoutError(f"server {removed} still works after {timeout:g} s") from None
        for server in ours:
            server.end()

    def connect(self, timeout: float | None = None) -> None:
        """Start now, not with the first task, and wait until every server has answered.

        Args:
            timeout: Seconds to wait; None for ever.

        Raises:
            TimeoutError: Not all have answered in time; those that have not are named. They are still dialled.
            RuntimeError, BrokenFarmError: See `submit`; also when called in a future's callback, and the error that
                broke the farm.
        """
        (timeout,) = checked("FarmExecutor.connect", timeout=timeout)
        deadline = None if timeout is None else time.monotonic() + timeout
        engine = self._farm._start_engine()
        from farm_executor.client.farm.wording import copy_of

        engine.check_may_wait()

        def await_all(answers: Iterable[Future[Any]]) -> None:
            for answer in answers:
                try:
                    error = answer.exception(None if deadline is None else max(deadline - time.monotonic(), 0.0))
                except FutureTimeoutError:  # until Python 3.11 not the builtin one
                    return
                if isinstance(error, Exception):
                    raise copy_of(error)

        await_all(list(engine.servers.named.values()))  # then the servers behind the names are known, too
        await_all(list(engine.servers.answered.values()))
        missing = engine.servers.unanswered()
        if missing:
            names = "; ".join(f"{source} ({source.last_error or 'no answer'})" for source in missing)
            raise TimeoutError(f"not every server has answered within {timeout} s: {names}")

    def broadcast(
        self,
        fn: Callable[[Unpack[Ts]], T],
        /,
        *args: Unpack[Ts],
        persistent: bool = False,
        timeout: float | None = 60.0,
    ) -> list[T]:
        """Call ``fn(*args)`` once on every worker, and wait for all of them.

        A worker makes the call when it has ended what it runs, before anything that is queued.

        Args:
            fn: The function; `functools.partial` gives it arguments by name.
            args: Its arguments.
            persistent: Whether workers that are started later make the call, too, before their first task. If one
                fails to, the farm breaks, as it does when an ``initializer`` fails.
            timeout: Seconds for all of it, None for ever: a server that is away is waited for, too.

        Returns:
            What each call has returned, server by server as they were given, and in each slot by slot.

        Raises:
            BroadcastError: Some have failed, or not answered in time. Its ``outcomes`` has one for each worker.
            RuntimeError, BrokenFarmError: See `submit`; also when called in a future's callback.
            Exception: The call cannot be pickled.
        """
        persistent, timeout = checked("FarmExecutor.broadcast", persistent=persistent, timeout=timeout)
        return self._farm._broadcast(self._options, fn, args, persistent, timeout)

    def kill_tasks(self, category: Hashable, *, dry_run: bool = False) -> int:
        """Kill the tasks of one category that run now. Their futures raise `TaskKilledError`.

        A task's whole process is killed, whatever it is in the midst of, and replaced. Tasks that have not begun,
        those of other categories and those of other executors are left alone.

        Args:
            category: As given to `with_options`.
            dry_run: Whether only to count them.

        Returns:
            How many were killed. In a future's callback, which must not wait, how many are about to be.

        Raises:
            ValueError: The category is None, which is that of tasks without one.
        """
        category, dry_run = checked("FarmExecutor.kill_tasks", category=category, dry_run=dry_run)
        engine = self._farm._engine
        return 0 if engine is None else engine.kill(category, dry_run=dry_run)

    def kill(self, future: Future[Any]) -> bool:
        """End one task: cancel it if it waits, and kill it if it runs, whatever it is in the midst of.

        A killed task's future raises `TaskKilledError`, and its worker is replaced.

        Args:
            future: One of this executor's.

        Returns:
            Whether it was cancelled or killed, or, where nothing is heard of the worker that has been sent it, is
            to be when its turn comes; a short task may be over before. False if it has ended, or if the future is
            not this executor's.
        """
        (future,) = checked("FarmExecutor.kill", future=future)
        engine = self._farm._engine
        if engine is None or not isinstance(future, FarmFuture) or future._owner is not engine:
            return False
        return future.cancel() or engine.kill_one(future)

    def cancel_all(self) -> None:
        """End every task of the farm, whichever view submitted it; the farm goes on with what is submitted next.

        What waits, and what a worker has been sent and not begun, is cancelled. What runs is killed, whatever it is
        in the midst of, and its worker replaced: its future raises `TaskKilledError`. When this returns, nothing
        submitted before runs any more, unless a server cannot be reached; in a callback or a signal handler that
        must not wait, soon after. Initializers and persistent broadcasts of workers that start are left alone.
        """
        engine = self._farm._engine
        if engine is not None:
            engine.cancel_all()

    def terminate_workers(self) -> None:
        """As `kill_workers`; a worker that would catch SIGTERM is not asked."""
        self.kill_workers()

    def kill_workers(self) -> None:
        """Kill all workers of this executor, and shut it down, as ProcessPoolExecutor does from Python 3.14 on.

        What has not been sent to a worker is cancelled; the futures of all else raise `BrokenFarmError`.
        """
        self.shutdown(wait=False, cancel_futures=True)
        engine = self._farm._engine
        if engine is not None:
            engine.abort("its workers were killed")

    def statistics(self) -> FarmStatistics:
        """A snapshot of the farm."""
        engine = self._farm._engine
        if engine is None:
            from farm_executor.client.farm.statistics import FarmStatistics

            return FarmStatistics(state="shut down" if self._farm._shut_down else "new")
        return engine.statistics()

    @property
    def _max_workers(self) -> int:
        """How many tasks run at once at most; other libraries read it to choose chunk sizes."""
        return self._farm._workers()

    @property
    def _broken(self) -> bool:
        """Whether the farm has failed as a whole; other libraries read it to know when to make a new one."""
        engine = self._farm._engine
        return engine is not None and engine.broken


class FarmExecutor(_Front):
    """A `concurrent.futures.ProcessPoolExecutor` whose workers may live on other machines.

    Without addresses the farm is *embedded*: a private server is started on this machine at the first `submit`,
    reached over a unix socket, and ended with the executor. With addresses, each server gives this executor
    workers of its own. Nothing is started or dialled before the first task.

    Functions and arguments are pickled in `submit`, by cloudpickle where pickle cannot: lambdas, closures and what
    is defined in ``__main__`` or a notebook need no precautions, nor an ``if __name__ == "__main__"``.

    A task may run twice: if its worker dies or its connection is lost, it is sent again, until ``max_attempts``.
    ``max_attempts=1`` forbids that; such a task fails with `WorkerLostError` instead.

    Args:
        addresses: Where the servers are: one address or a list of them, each ``"host:port"``, ``("host", port)``
            or ``"unix:/path"``; ``"farm://name:port?all"`` for a server on each machine that the name stands for,
            which is looked up again as it changes; or ``"ssh://[user@]host[:port][?workers=N&python=PATH]"`` for
            one that is started there for this executor alone, reached through ssh's tunnel, and ended with the
            executor. None, or nothing, for an embedded farm. An int is taken as ``max_workers``, so that
            ``FarmExecutor(4)`` means what ``ProcessPoolExecutor(4)`` means.
        max_workers: The most workers in all. With several servers it is divided evenly among them, and no server
            gives more than it has slots. None: as many as this machine has CPUs, or all slots of the servers. Those
            that are added later, or found by a name, give all theirs.
        mp_context: Accepted, so that a swapped name is enough, and without effect.
        initializer: Called in each worker before its first task, also in those started later.
        initargs: Its arguments.
        max_tasks_per_child: After this many tasks a worker is replaced by a fresh one. None: never.
        max_memory_per_worker: Bytes of memory of its own that a worker may hold, at least 1 MiB. One that is found
            to hold more while it runs tasks, or right after, is killed and replaced, which costs the task that it
            ran an attempt. Servers look five times a second. None: no limit.
        key: The servers' secret, at least 16 bytes. None: see `farm_executor.wire.security` for where it is found.
        key_file: A file that holds it, and with it the certificate of servers that speak TLS, as
            ``farm-executor keygen`` makes it.
        ssl_context: An `ssl.SSLContext` of your own, for servers with a certificate of your own. It does not travel
            with the executor, which therefore cannot be pickled.
        connect_timeout: Seconds after which the farm breaks with a `TimeoutError` if no worker could be had at
            all. None: dial for ever.
        heartbeat: Seconds between signs of life. A server that has given none for three of them, or a lane on which
            nothing moves for as long, is taken for unreachable, and dialled anew.
        resume_timeout: Seconds for which a worker whose connection has broken is kept, with what it runs, and for
            which it is dialled; then what it had is sent to others. 0: nothing is resumed. Over TCP only: the end
            of a unix socket is the end of whoever held it.
        max_attempts: How often a task may be begun before it is given up, when its workers die.
        allow_version_mismatch: Whether to work with servers of another Python minor version, where functions that
            travel by value may crash.
        max_pending_bytes: The most bytes of pickled arguments that the farm holds for tasks that have not ended;
            a task larger than that is taken when there is no other. None: no limit.
        when_full: What `submit` and `map` do when more would be held: "wait" for tasks to end, or "raise"
            `FarmFullError`. A callback of a future never waits there.
        caller_leads: Whether a thread that waits for a result may do the farm's own thread's work meanwhile, which
            makes a call faster by a third. Nothing else depends on it.
        ship: Which modules servers may have that they lack, or have otherwise: "auto" for the program's own, which
            are those that are neither installed nor Python's; "off" for none; or names of top-level modules and
            paths of files, packages and folders on ``sys.path``, to which "auto" may be added. What is named is
            sent whole, up to 256 MiB a module; of others code, and data files of at most 1 MiB each. Each module is
            sent when a task first imports it, and stays what it was then for as long as the executor lives. An
            embedded farm has the program's files anyway.

    Raises:
        AddressError: An address has none of the accepted forms, or there is none.
        TypeError, ValueError: Another argument is not what it must be; the message names it. A ``key_file`` must be
            there, and hold a key.

    Thread safety:
        All methods may be called from any thread, and from a signal handler or a destructor that has interrupted
        one of them. Callbacks of futures run in the farm's own thread, and must not wait there for other futures of
        the farm: ``result()`` raises RuntimeError where it would wait for ever. A signal handler may wait by it,
        too, unless it has interrupted its thread in the midst of the farm's work, where it raises the same; but not
        within `concurrent.futures.wait` or a future's ``cancel``, which hold locks that no executor can see. A
        forked child may use the executor: it starts afresh there.
    """

    _addresses: list[Address] | None
    _max_workers_given: int | None

    # As typeshed has it for ProcessPoolExecutor: `initargs` are what the initializer takes.
    @overload
    def __init__(
        self,
        addresses: AddressLike | Iterable[AddressLike] | int | None = None,
        mp_context: BaseContext | None = None,
        initializer: Callable[[], object] | None = None,
        initargs: tuple[()] = (),
        **settings: Unpack[_Settings],
    ) -> None: ...
    @overload
    def __init__(
        self,
        addresses: AddressLike | Iterable[AddressLike] | int | None = None,
        mp_context: BaseContext | None = None,
        *,
        initializer: Callable[[Unpack[Ts]], object],
        initargs: tuple[Unpack[Ts]],
        **settings: Unpack[_Settings],
    ) -> None: ...
    @overload
    def __init__(
        self,
        addresses: AddressLike | Iterable[AddressLike] | int | None,
        mp_context: BaseContext | None,
        initializer: Callable[[Unpack[Ts]], object],
        initargs: tuple[Unpack[Ts]],
        **settings: Unpack[_Settings],
    ) -> None: ...
    def __init__(
        self,
        addresses: AddressLike | Iterable[AddressLike] | int | None = None,
        mp_context: Any = None,
        initializer: Callable[..., Any] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        max_workers: int | None = None,
        max_tasks_per_child: int | None = None,
        max_memory_per_worker: int | None = None,
        key: bytes | None = None,
        key_file: str | os.PathLike[str] | None = None,
        ssl_context: Any = None,
        connect_timeout: float | None = None,
        heartbeat: float = 5.0,
        resume_timeout: float = 15.0,
        max_attempts: int = 3,
        allow_version_mismatch: bool = False,
        max_pending_bytes: int | None = None,
        when_full: Literal["wait", "raise"] = "wait",
        caller_leads: bool = True,
        ship: str | os.PathLike[str] | Iterable[str | os.PathLike[str]] = "auto",
    ) -> None:
        first: Any = addresses
        if isinstance(first, Number):
            if max_workers is not None:
                raise TypeError("max_workers given twice: a number as the first argument sets it already")
            addresses, max_workers = None, first  # type: ignore[assignment]
        (
            self._addresses,
            _,
            self._initializer,
            self._initargs,
            self._max_workers_given,
            self._max_tasks_per_child,
            self._max_memory_per_worker,
            self._key,
            self._key_file,
            self._ssl_context,
            self._connect_timeout,
            self._heartbeat,
            self._resume_timeout,
            attempts,
            self._allow_version_mismatch,
            self._max_pending_bytes,
            self._when_full,
            self._caller_leads,
            self._ship,
        ) = checked(
            "FarmExecutor",
            addresses=addresses,
            mp_context=mp_context,
            initializer=initializer,
            initargs=initargs,
            max_workers=max_workers,
            max_tasks_per_child=max_tasks_per_child,
            max_memory_per_worker=max_memory_per_worker,
            key=key,
            key_file=key_file,
            ssl_context=ssl_context,
            connect_timeout=connect_timeout,
            heartbeat=heartbeat,
            resume_timeout=resume_timeout,
            max_attempts=max_attempts,
            allow_version_mismatch=allow_version_mismatch,
            max_pending_bytes=max_pending_bytes,
            when_full=when_full,
            caller_leads=caller_leads,
            ship=ship,
        )
        if any(each != "auto" for each in self._ship):
            from farm_executor.client.farm.chosen_modules import resolve  # late: few programs name any

            resolve(each for each in self._ship if each != "auto")
        if self._key is not None:
            from farm_executor.wire.security import Key  # late: few programs give one

            self._key = Key(self._key)  # which shows nothing
        self._options = TaskOptions(max_attempts=attempts)
        self._added: list[Address] = []
        self._embedded: EmbeddedServer | None = None
        self._remote: list[tuple[Address, RemoteServer]] = []
        self._reset()
        _executors.add(self)

    def _reset(self) -> None:
        """The state before the first submit; in a forked child, too."""
        self._lock = OwnedLock()  # see `_alone`
        self._engine: Engine | None = None
        self._shut_down = False

    @property
    def _farm(self) -> FarmExecutor:
        return self

    def __repr__(self) -> str:
        """Tell the state in one line."""
        base = ["embedded"] if self._addresses is None else self._addresses
        where = ", ".join(map(str, [*base, *self._added]))
        numbers = self.statistics()
        running, waiting = _running_and_waiting(numbers)
        return (
            f"<{type(self).__name__} {where}: {numbers.state}, up to {self._max_workers} workers, "
            f"{running} running, {waiting} queued>"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as a client of the same servers, with workers of its own: nested work cannot deadlock.

        The key does not travel, as a pickle may lie anywhere. In a worker, its server's own key serves, also in the
        place of a ``key_file`` that cannot be read there. Servers over ssh are started anew, from where it is
        unpickled.
        """
        if self._ssl_context is not None:
            raise TypeError(
                "an executor with an ssl_context cannot be pickled, because a context cannot: "
                "make the executor anew where you need it, with a context made there"
            )
        base = [self._embedded_server().locate()] if self._addresses is None else self._addresses
        addresses = [*base, *self._added]
        arguments = {
            "max_workers": self._max_workers_given,
            "initializer": self._initializer,
            "initargs": self._initargs,
            "max_tasks_per_child": self._max_tasks_per_child,
            "max_memory_per_worker": self._max_memory_per_worker,
            "key_file": self._key_file,
            "connect_timeout": self._connect_timeout,
            "heartbeat": self._heartbeat,
            "resume_timeout": self._resume_timeout,
            "max_attempts": self._options.max_attempts,
            "allow_version_mismatch": self._allow_version_mismatch,
            "max_pending_bytes": self._max_pending_bytes,
            "when_full": self._when_full,
            "caller_leads": self._caller_leads,
            "ship": "auto" if self._ship else "off",  # what has a name here has come there by then
        }
        return (_unpickle, (addresses, arguments))

    # -- how ---------------------------------------------------------------------------------------------

    def _workers(self) -> int:
        known = self._engine.workers if self._engine else 0  # by now, from those that have answered
        if self._max_workers_given is not None:
            return min(self._max_workers_given, known or self._max_workers_given)
        cpus = _cpu_count()
        if self._addresses is None:
            return cpus
        return known or cpus * len([*self._addresses, *self._added])

    def _map(self, options: TaskOptions, *arguments: Any) -> Iterator[Any]:
        from farm_executor.client.map import map_calls

        return map_calls(self, options, *arguments)

    def _broadcast(
        self, options: TaskOptions, fn: Any, args: Any, persistent: bool, timeout: float | None
    ) -> list[Any]:
        from farm_executor.client.farm.broadcasts import gather

        engine = self._start_engine()
        broadcast = engine.broadcast(fn, args, options, persistent=persistent)
        try:
            return gather(broadcast, timeout)
        except BaseException:
            engine.forget(broadcast)
            broadcast.cancel()
            raise

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other threads, and signal handlers, from changing which engine and servers there are."""
        if self._lock.is_mine():  # a destructor, which nobody can hold back
            raise RuntimeError(
                "a destructor must not use an executor that its own thread is about to start or change"
            )
        with AllHeldBack():
            self._lock.acquire()
            try:
                yield
            finally:
                self._lock.release()

    def _start_engine(self) -> Engine:
        engine = self._engine
        if engine is not None:
            return engine  # it knows by itself whether it has been shut down
        with self._alone():
            if self._shut_down:
                raise RuntimeError("cannot schedule new futures after shutdown")
            if _interpreter_ends:
                raise RuntimeError("cannot schedule new futures after interpreter shutdown")
            if self._engine is None:
                _check_not_importing()
                engine = self._make_engine()
                engine.start()
                self._engine = engine
                _engines.add(engine)
                # The engine does not know us, so that we can be collected while it still works.
                weakref.finalize(self, engine.shutdown).atexit = False
            return self._engine

    def _make_engine(self) -> Engine:
        embedded = self._embedded_server(locked=True) if self._addresses is None else None
        if embedded is not None:
            with contextlib.suppress(Exception):  # whoever asks for its address is told
                embedded.locate()  # now, so that it starts while the engine is imported, which takes as long
        from farm_executor.client.farm.budget import Budget
        from farm_executor.client.farm.engine import Engine, EngineOptions
        from farm_executor.client.farm.link import Settings
        from farm_executor.data import payload
        from farm_executor.wire.security import KeyFinder

        call = None if self._initializer is None else (self._initializer, self._initargs)
        limit = self._max_pending_bytes
        return Engine(
            EngineOptions(
                sources=self._sources(embedded),
                settings=Settings(
                    partial(_find_key, KeyFinder(self._key, self._key_file, self._ssl_context), embedded),
                    self._allow_version_mismatch,
                    self._heartbeat,
                    self._resume_timeout,
                    self._max_memory_per_worker,
                    ships=bool(self._ship),
                ),
                end_servers=partial(_end_all, self._remote, embedded),
                initializer=payload.dumps(call, out_of_band=False),
                max_tasks_per_child=self._max_tasks_per_child,
                connect_timeout=self._connect_timeout,
                caller_leads=self._caller_leads,
                budget=None if limit is None else Budget(limit, may_wait=self._when_full == "wait"),
                ship=self._ship,
            )
        )

    def _sources(self, embedded: EmbeddedServer | None) -> Sources:
        from farm_executor.client.farm.servers import Sources

        fixed = [address for address in self._addresses or () if not address.every]
        names = [address for address in self._addresses or () if address.every]
        quotas = _quotas(self._max_workers_given, len(fixed))
        addresses: list[Address | None] = [*fixed[: len(quotas)], *self._added]
        locations = [self._way_to(address) for address in addresses if address is not None]
        quotas += [None] * len(self._added)
        if embedded is not None:
            addresses.insert(0, None)
            locations.insert(0, embedded.locate)
            quotas.insert(0, self._max_workers)
        return Sources(addresses, locations, quotas, names)

    def _way_to(self, address: Address) -> Callable[[bool], Address]:
        """What gives the server's address, and starts it if it is to be started."""
        from farm_executor.client.farm.link import at

        if not address.ssh:
            return at(address)
        server = launching.over_ssh(address)
        self._remote.append((address, server))
        return server.locate

    def _embedded_server(self, *, locked: bool = False) -> EmbeddedServer:
        if not locked:
            with self._alone():
                return self._embedded_server(locked=True)
        if self._embedded is None:
            self._embedded = launching.embedded(self._max_workers)
        return self._embedded


class OptionsView(_Front):
    """A farm's executor with options for its tasks; made by `FarmExecutor.with_options`.

    It is the same farm: whatever does not concern single tasks concerns all of it, as `shutdown` does.
    """

    def __init__(self, farm: FarmExecutor, options: TaskOptions) -> None:
        self._of = farm
        self._options = options

    @property
    def _farm(self) -> FarmExecutor:
        return self._of

    @property
    def _engine(self) -> Engine | None:  # type: ignore[override]
        return self._of._engine

    def _start_engine(self) -> Engine:
        return self._of._start_engine()


# -- small things -----------------------------------------------------------------------------------


def _running_and_waiting(numbers: FarmStatistics) -> tuple[int, int]:
    """How many tasks run, as people count them, one for each worker; what has been sent ahead waits, too."""
    running = sum(worker.outstanding > 0 for server in numbers.servers for worker in server.workers)
    return running, numbers.running + numbers.queued - running


def _check_not_importing() -> None:
    """In a worker, start no farm for a module that it imports: that farm's workers would import it, too.

    Raises:
        RuntimeError: A module is being imported for a task to be read.
    """
    from farm_executor.wire.security import is_worker

    if not is_worker():
        return
    from farm_executor.data import payload

    frame: FrameType | None = sys._getframe()
    module = None
    while frame is not None:
        if frame.f_code.co_name == "<module>":
            module = module or frame.f_globals.get("__name__")
        elif module and frame.f_code is payload.loads.__code__:
            raise RuntimeError(
                f"module {module} uses a farm while it is imported. Workers import it, too, to find the functions "
                "that they are sent, and each would start workers of its own, without end. Use the farm in a "
                "function, or under `if __name__ == '__main__':`"
            )
        frame = frame.f_back


def _cpu_count() -> int:
    count: Callable[[], int | None] = getattr(os, "process_cpu_count", os.cpu_count)  # as ProcessPoolExecutor does
    return count() or 1


def _quotas(max_workers: int | None, servers: int) -> list[int | None]:
    """Divide evenly; servers beyond ``max_workers`` are left out."""
    if max_workers is None:
        return [None] * servers
    if not servers:
        return []
    return [max_workers // servers + (i < max_workers % servers) for i in range(min(servers, max_workers))]


def _find_key(finder: KeyFinder, embedded: EmbeddedServer | None, address: Address) -> Key:
    from farm_executor.wire.security import Key

    if embedded is not None and (own := embedded.key_for(address)) is not None:
        return Key(own)
    return finder(address)


def _end_all(servers: list[tuple[Address, RemoteServer]], embedded: EmbeddedServer | None) -> None:
    for _, server in servers:
        server.let_go()
    for _, server in servers:
        server.end()
    if embedded is not None:
        embedded.end()


def _let_go(server: RemoteServer, gone: Future[None]) -> None:
    server.let_go()


def _unpickle(addresses: list[Address], arguments: dict[str, Any]) -> FarmExecutor:
    key_file = arguments.pop("key_file")
    farm = FarmExecutor(addresses, **arguments)
    from farm_executor.wire.security import is_readable_key, is_worker

    # It need not be there on this machine, unless it is used; and in a worker there is another one.
    farm._key_file = None if is_worker() and key_file and not is_readable_key(key_file) else key_file
    return farm


# -- the end of the interpreter, and fork -----------------------------------------------------------

_executors: weakref.WeakSet[FarmExecutor] = weakref.WeakSet()
_engines: weakref.WeakSet[Engine] = weakref.WeakSet()
_interpreter_ends = False


def _at_exit() -> None:
    """Finish what was submitted, as the standard library's executors do.

    Run by `atexit` proper, when the program's own threads have ended: `threading._register_atexit`, which the
    standard library uses, would refuse their tasks (CPython issue 148280).
    """
    global _interpreter_ends
    _interpreter_ends = True
    engines = list(_engines)
    interrupted = getattr(sys, "last_type", None) is KeyboardInterrupt  # what ended the program, if it did
    for engine in engines:
        engine.shutdown(cancel_futures=interrupted)
    if interrupted:
        _end_interrupted(engines)
    for engine in engines:
        _join_at_exit(engine)
    for executor in list(_executors):
        if executor._embedded is not None:
            executor._embedded.end()


def _join_at_exit(engine: Engine) -> None:
    """Wait for the end, but not for servers that may never be back, when nobody is left who could see to that."""
    reached = time.monotonic()
    while not engine.join(LOOK_SECONDS):
        if engine.servers.in_reach():
            reached = time.monotonic()
        elif time.monotonic() - reached >= EXIT_SECONDS:
            left = engine.statistics()
            reason = f"none of its servers could be reached for {EXIT_SECONDS:g} s at the end of the program"
            logger.error(
                "gave up tasks=%d reason=%s servers=%s",
                *(left.queued + left.running, reason, engine.servers.describe()),
            )
            engine.abort(reason)
            engine.join()
            return


def _at_shutdown_of_threads() -> None:
    """Have `_at_exit` run in a child of multiprocessing, too, which may end without `atexit`.

    `threading` calls this in every process, before it joins the threads; there may still be some whose tasks are
    to be taken, so another one waits for them.
    """
    multiprocessing = sys.modules.get("multiprocessing.process")
    if multiprocessing is not None and multiprocessing.parent_process() is not None:
        with contextlib.suppress(RuntimeError):  # no thread may start: the interpreter itself ends, with `atexit`
            threading.Thread(target=_exit_after_all, name="farm-exit").start()


def _exit_after_all() -> None:
    """Run `_at_exit` when all threads have ended for which the process waits."""
    me = threading.current_thread()
    while others := [
        each for each in threading.enumerate() if each.is_alive() and not each.daemon and each is not me
    ]:
        for each in others:
            each.join()
    _at_exit()


def _end_interrupted(engines: list[Engine]) -> None:
    """Give running tasks, which Ctrl-C in the terminal has reached too, a moment to clean up; then end all."""
    deadline = time.monotonic() + INTERRUPT_SECONDS
    try:
        for engine in engines:
            engine.join(max(deadline - time.monotonic(), 0.0))
    finally:  # also when Ctrl-C comes once more
        for engine in engines:
            engine.abort("the program was interrupted")
    for engine in engines:
        engine.join()


def _after_fork_in_child() -> None:
    renew_lock()
    let_go()
    for engine in list(_engines):
        engine.abandon()
    _engines.clear()
    for executor in list(_executors):
        if executor._embedded is not None:
            executor._embedded.abandon()
            executor._embedded = None
        for _, server in executor._remote:
            server.abandon()
        executor._remote = []
        executor._reset()


atexit.register(_at_exit)
with contextlib.suppress(AttributeError, RuntimeError):  # private; and threads may be shut down already
    threading._register_atexit(_at_shutdown_of_threads)  # type: ignore[attr-defined]
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
