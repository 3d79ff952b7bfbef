"""The methods of executors and their views: the contract of `concurrent.futures.Executor`, and more.

This module owns their names, defaults, checks, errors and guarantees. It must not know sockets or frames; the
engine does the work, and is imported on first use.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Awaitable, Callable, Coroutine, Hashable, Iterable, Iterator
from concurrent.futures import Executor, Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

from farm_executor.arguments import checked
from farm_executor.client.backing import Backing
from farm_executor.client.lifetime import end_interrupted
from farm_executor.client.supply import when_gone
from farm_executor.core.options import TaskOptions
from farm_executor.errors import AddressError
from farm_executor.wire.address import AddressLike

if TYPE_CHECKING:
    # Type checkers bring these along; the standard library has them from Python 3.11 on.
    from typing_extensions import TypeVarTuple, Unpack

    from farm_executor.client.check import FarmCheck
    from farm_executor.client.farm.shared import Shared
    from farm_executor.client.farm.statistics import FarmStatistics
    from farm_executor.client.protocol import Farm
    from farm_executor.client.settings import MapKeywords
    from farm_executor.client.stream import Stream
    from farm_executor.client.tracing import Tracing
    from farm_executor.progress import ProgressLike

    T1 = TypeVar("T1")
    T2 = TypeVar("T2")
    T3 = TypeVar("T3")
    Ts = TypeVarTuple("Ts")

__all__ = ["Front", "OptionsView", "backing_of", "options_of", "running_and_waiting", "tracing_of", "view_of"]

P = ParamSpec("P")
T = TypeVar("T")
Streamable = Iterable[T] | AsyncIterable[T] | Awaitable[Iterable[T]]
View = TypeVar("View", bound="OptionsView")


class Front(Executor):
    """The methods that users call, common to an executor and its views."""

    _backing: Backing
    _options: TaskOptions
    _tracing: Tracing | None = None

    def _stand_before(self, backing: Backing, options: TaskOptions) -> None:
        """Set the farm behind this, and the options of its tasks."""
        self._backing = backing
        self._options = options

    @property
    def _engine(self) -> Farm | None:
        return self._backing.engine

    # -- the standard library's contract -----------------------------------------------------------------

    # What is async comes first: it is also a function, of which the second would say that it returns a coroutine.
    # Of a function that may return anything both say the same, so checkers need not choose.
    @overload
    def submit(
        self, fn: Callable[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Future[T]: ...
    @overload
    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]: ...
    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Schedule ``fn(*args, **kwargs)``; all arguments are passed to the function.

        Returns:
            Its future. It raises the task's own exception, with remote frames in the traceback and a
            `TaskExecutionError` at the end of its ``__cause__`` chain. If the call cannot be pickled, the future
            holds that error already. Large buffers (64 KiB and more, such as numpy arrays) are read when they are
            sent: do not change them before the future is done.

        Raises:
            RuntimeError: The executor or the interpreter has been shut down.
            BrokenFarmError: The farm is broken, for example by a failing initializer; or the error that broke it:
                `AuthenticationError`, `VersionMismatchError`, `TimeoutError`.
            FarmFullError: The call would exceed ``max_pending_bytes``, and ``when_full="raise"``.
        """
        engine = self._backing.engine or self._backing.start_engine()
        return engine.submit(fn, args, kwargs, self._options)

    # Those with one to three iterables tell type checkers what a lambda takes; the last two accept all that the one
    # of typeshed does.
    @overload
    def map(
        self, fn: Callable[[T1], Coroutine[Any, Any, T]], it1: Iterable[T1], /, **options: Unpack[MapKeywords]
    ) -> Iterator[T]: ...
    @overload
    def map(self, fn: Callable[[T1], T], it1: Iterable[T1], /, **options: Unpack[MapKeywords]) -> Iterator[T]: ...
    @overload
    def map(
        self,
        fn: Callable[[T1, T2], Coroutine[Any, Any, T]],
        it1: Iterable[T1],
        it2: Iterable[T2],
        /,
        **options: Unpack[MapKeywords],
    ) -> Iterator[T]: ...
    @overload
    def map(
        self, fn: Callable[[T1, T2], T], it1: Iterable[T1], it2: Iterable[T2], /, **options: Unpack[MapKeywords]
    ) -> Iterator[T]: ...
    @overload
    def map(
        self,
        fn: Callable[[T1, T2, T3], Coroutine[Any, Any, T]],
        it1: Iterable[T1],
        it2: Iterable[T2],
        it3: Iterable[T3],
        /,
        **options: Unpack[MapKeywords],
    ) -> Iterator[T]: ...
    @overload
    def map(
        self,
        fn: Callable[[T1, T2, T3], T],
        it1: Iterable[T1],
        it2: Iterable[T2],
        it3: Iterable[T3],
        /,
        **options: Unpack[MapKeywords],
    ) -> Iterator[T]: ...
    @overload
    def map(
        self, fn: Callable[..., Coroutine[Any, Any, T]], *iterables: Iterable[Any], **options: Unpack[MapKeywords]
    ) -> Iterator[T]: ...
    @overload
    def map(
        self, fn: Callable[..., T], *iterables: Iterable[Any], **options: Unpack[MapKeywords]
    ) -> Iterator[T]: ...
    def map(
        self,
        fn: Callable[..., Any],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
        progress: ProgressLike = None,
    ) -> Iterator[Any]:
        """Call a function for each item, as `concurrent.futures.Executor.map` of Python 3.14 does, on every Python.

        Args:
            fn: Called with one item of each iterable, until the shortest ends.
            iterables: Consumed at once; with ``buffersize`` only that far ahead.
            timeout: Seconds from this call until a result must be there, else `TimeoutError`.
            chunksize: How many items make one task, which fails as a whole. With 1, each item fails, and is tried
                again, by itself; short ones still travel together.
            buffersize: The most tasks whose results have not been taken. With it, iterables may be infinite.
            progress: Show how many calls have ended, in whatever order, and how many have failed. With True or a
                label by a bar, where standard error is a terminal, or in a notebook; tqdm's, if that is installed.
                With a callable that is given the number of calls that have ended, and of all, None while that is
                unknown; a thread of its own calls it, at most ten times a second, and a last time before the
                iterator ends. If it raises, that is logged, and it is not called again.

        Raises:
            ValueError: ``chunksize`` or ``buffersize`` is less than 1.
            TypeError: ``buffersize`` is not an integer, or ``progress`` none of these.
        """
        timeout, chunksize, buffersize, progress = checked(
            "FarmExecutor.map", timeout=timeout, chunksize=chunksize, buffersize=buffersize, progress=progress
        )
        from farm_executor.client.map import map_calls

        return map_calls(self._backing, self._options, fn, iterables, timeout, chunksize, buffersize, progress)

    def stream(self, fn: Callable[P, Streamable[T]], /, *args: P.args, **kwargs: P.kwargs) -> Stream[T]:
        """Call a generator function, and give what it yields as it yields it.

        ``fn`` may be an asynchronous generator function, or return any iterable, too. The task runs ahead of who
        takes its items: by 16 of them, by more if they come faster than one a millisecond, and by 16 MiB at most.
        It keeps its worker until it has ended or is closed, and is not begun again once an item has come.

        Raises:
            TypeError: ``fn`` is not callable.
            RuntimeError, BrokenFarmError, FarmFullError: See `submit`.
        """
        checked("FarmExecutor.stream", fn=fn)
        from farm_executor.client.stream import open_stream

        return open_stream(self._backing.start_engine(), self._options, fn, args, kwargs)

    def share(self, value: T, *, frozen: bool = False) -> Shared[T]:
        """Share a large object with all workers: send it to each server once, for all calls that refer to it.

        The handle that this returns *is* the object inside a task, wherever a call holds it: as an argument, in a
        container, a closure, a `functools.partial`. The object is pickled now; what changes in it later does not
        show. Its large buffers, such as arrays, are held once on each server, whatever the number of its workers,
        and once here. `bytes` and `bytearray` cannot be mapped, so that each worker has a copy of these.

        Args:
            value: The object. If it is a handle of this farm, that is returned.
            frozen: Whether each worker unpickles it once, for all calls, with buffers that are read-only. If not,
                each call gets it as it was shared, and may change it: nobody else sees that.

        Returns:
            The handle. When it is closed, or collected, and the calls that refer to it have ended, servers free the
            object. Passed to a call after that, or to another farm's, it is a ValueError, which the call's future
            holds as it does for what cannot be pickled. A call fails with `SharedMemoryError` if its server cannot
            hold the object.

        Raises:
            Exception: The object cannot be pickled.
            OSError, MemoryError: This machine has no memory for it.
            RuntimeError: The executor or the interpreter has been shut down.
        """
        (frozen,) = checked("FarmExecutor.share", frozen=frozen)
        return self._backing.start_engine().sharing.share(value, frozen=frozen)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False, timeout: float | None = None) -> None:
        """Accept no more tasks and finish those submitted, as `concurrent.futures.Executor.shutdown` does.

        Args:
            wait: Whether to return only when everything has ended: every future is settled, every worker has been
                told to end, and the embedded farm has ended.
            cancel_futures: Whether to cancel tasks that have not been sent to a worker.
            timeout: Seconds to wait; None for ever.

        Raises:
            TimeoutError: Not everything has ended in time. The shutdown goes on; `kill_workers` ends it.
        """
        backing = self._backing
        wait, cancel_futures, timeout = checked(
            "FarmExecutor.shutdown", wait=wait, cancel_futures=cancel_futures, timeout=timeout
        )
        # Within the lock, so that a thread which is just starting the engine has either finished, and its engine is
        # shut down below, or sees the flag and raises.
        with backing.alone():
            backing.shut_down = True
            engine = backing.engine
        if engine is None:
            backing.supply.end_embedded()  # which pickling may have started, for others to use
            backing.hide()
            return
        engine.shutdown(cancel_futures=cancel_futures)
        if wait and not engine.join(timeout) and timeout is not None:
            running, waiting = running_and_waiting(engine.statistics())
            raise TimeoutError(
                f"after {timeout:g} s {running} tasks run and {waiting} wait; kill_workers() would end them"
            )
        if wait:
            backing.hide()

    def __exit__(self, exc_type: type[BaseException] | None, exc_value: Any, traceback: Any) -> None:
        """Shut down and wait.

        After Ctrl-C, queued tasks are cancelled, and running ones have two seconds to end; then their workers are
        ended, here and on servers.
        """
        interrupted = exc_type is not None and issubclass(exc_type, KeyboardInterrupt)
        try:
            self.shutdown(wait=not interrupted, cancel_futures=interrupted)
        finally:  # also when Ctrl-C comes once more
            engine = self._engine
            if interrupted and engine is not None:
                end_interrupted([engine])

    # -- beyond it ---------------------------------------------------------------------------------------

    def with_options(
        self,
        *,
        priority: int | str | None = None,
        category: Hashable = None,
        max_attempts: int | None = None,
        timeout: float | None = None,
    ) -> OptionsView:
        """Return a view of this farm whose tasks have other options; options not given stay as they are here.

        Args:
            priority: "low", "default", "high", or an int, where a larger one goes first and "default" is 0.
            category: A label.
            max_attempts: How often a task may be begun; 1 for at most once.
            timeout: Seconds that a task may run, in whatever code; the transfer of its arguments counts. After that
                its worker is killed and replaced, and its future raises `TaskTimeoutError`; it is not tried again.
                With `map` it is the time for each item, or for each chunk with a ``chunksize`` above 1.

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
        options = TaskOptions(
            priority=mine.priority if level is None else level,
            category=mine.category if category is None else category,
            max_attempts=mine.max_attempts if max_attempts is None else max_attempts,
            timeout=mine.timeout if timeout is None else timeout,
        )
        return view_of(OptionsView, self._backing, options)

    def add_server(self, address: AddressLike) -> None:
        """Add a server to this farm, with all its slots; it gets tasks as soon as it answers.

        Args:
            address: As in the constructor. Adding one that the farm has already changes nothing.

        Raises:
            AddressError: The address has none of the accepted forms.
            RuntimeError, BrokenFarmError: See `submit`.
        """
        (added,) = checked("FarmExecutor.add_server", address=address)
        if added.every:
            raise AddressError(f"{added} stands for servers that come and go: give it to the constructor")
        backing = self._backing
        with backing.alone():
            if backing.shut_down:
                raise RuntimeError("cannot add a server after shutdown")
            if backing.supply.add(added) and backing.engine is not None:
                backing.engine.servers.add(added, backing.supply.way_to(added))

    def remove_server(self, address: AddressLike, *, drain: bool = True, timeout: float | None = None) -> None:
        """Remove a server from this farm, and wait until it does not work for the farm any more.

        Tasks that wait for it, and those that its workers have not begun, go to other servers; if there are none,
        they wait for one to be added. Calls of a broadcast that it has yet to make fail with `WorkerLostError`.

        Args:
            address: As it was given.
            drain: Whether its workers may finish the tasks that they run. If not, these are tried again elsewhere,
                without using up an attempt; a task with ``max_attempts=1`` fails with `WorkerLostError`.
            timeout: Seconds to wait; None for ever.

        Raises:
            ValueError: The farm has no such server.
            AddressError: The address has none of the accepted forms, or stands for servers that come and go.
            TimeoutError: It is still running tasks. It goes on draining; a call with ``drain=False`` speeds it up.
            RuntimeError, BrokenFarmError: See `submit`; also when called in a future's callback.
        """
        removed, drain, timeout = checked(
            "FarmExecutor.remove_server", address=address, drain=drain, timeout=timeout
        )
        if removed.every:
            raise AddressError(f"{removed} stands for servers that come and go: remove one by its own address")
        backing = self._backing
        with backing.alone():
            engine = backing.engine
            if engine is not None:
                engine.check_may_wait()
            known = backing.supply.remove(removed)
            gone = None if engine is None else engine.servers.remove(removed, drain=drain)
        if gone is None and not known:
            raise ValueError(f"the farm has no server {removed}")
        if gone is None:
            return  # the engine never dialled it, or there is no engine yet
        ours = backing.supply.sources_at(removed)
        for source in ours:
            when_gone(source, gone)
        try:
            gone.result(timeout)
        except FutureTimeoutError:
            raise TimeoutError(f"server {removed} still works after {timeout:g} s") from None
        for source in ours:
            source.end()

    def connect(self, timeout: float | None = None) -> None:
        """Start the farm now, not with the first task, and wait until every server has answered.

        Args:
            timeout: Seconds to wait; None for ever.

        Raises:
            TimeoutError: Not all servers have answered in time; it names those missing. They are still dialled.
            RuntimeError, BrokenFarmError: See `submit`; also when called in a future's callback, and the error that
                broke the farm.
        """
        (timeout,) = checked("FarmExecutor.connect", timeout=timeout)
        engine = self._backing.start_engine()
        engine.check_may_wait()
        missing = engine.servers.await_answers(timeout)
        if missing:
            raise TimeoutError(f"not every server has answered within {timeout} s: {'; '.join(missing)}")

    @overload
    def broadcast(
        self,
        fn: Callable[[Unpack[Ts]], Coroutine[Any, Any, T]],
        /,
        *args: Unpack[Ts],
        persistent: bool = False,
        timeout: float | None = 60.0,
    ) -> list[T]: ...
    @overload
    def broadcast(
        self,
        fn: Callable[[Unpack[Ts]], T],
        /,
        *args: Unpack[Ts],
        persistent: bool = False,
        timeout: float | None = 60.0,
    ) -> list[T]: ...
    def broadcast(
        self, fn: Callable[..., Any], /, *args: object, persistent: bool = False, timeout: float | None = 60.0
    ) -> list[Any]:
        """Call ``fn(*args)`` once on every worker, and wait for all of them.

        A worker makes the call after the task that it is running, before all queued tasks.

        Args:
            fn: The function; `functools.partial` gives it arguments by name.
            args: Its arguments.
            persistent: Whether workers that start later make the call, too, before their first task. If it fails
                there, the farm breaks, as it does when an ``initializer`` fails.
            timeout: Seconds for the whole broadcast, None for ever: unreachable servers are waited for, too.

        Returns:
            The result of each call, ordered by server, as they were given, then by slot.

        Raises:
            BroadcastError: Some calls have failed or not ended in time. Its ``outcomes`` has one for each worker.
            RuntimeError, BrokenFarmError: See `submit`; also when called in a future's callback.
            Exception: The call cannot be pickled.
        """
        persistent, timeout = checked("FarmExecutor.broadcast", persistent=persistent, timeout=timeout)
        from farm_executor.client.farm.broadcasts import gather

        engine = self._backing.start_engine()
        broadcast = engine.broadcast(fn, args, self._options, persistent=persistent)
        try:
            return gather(broadcast, timeout)
        except BaseException:
            engine.forget(broadcast)
            broadcast.cancel()
            raise

    def check(self, *, timeout: float | None = 60.0) -> FarmCheck:
        """Compare the installed packages that this program has imported with those of each server.

        ``print(farm.check())`` prints a table, and what to install where. An embedded farm's packages are this
        program's. A worker answers after the task that it is running.

        Args:
            timeout: Seconds to wait for answers; None for ever.

        Raises:
            RuntimeError, BrokenFarmError: See `submit`; also when called in a future's callback.
        """
        (timeout,) = checked("FarmExecutor.check", timeout=timeout)
        from farm_executor.client.check import check_farm
        from farm_executor.client.farm.packages import imported_packages

        engine = self._backing.start_engine()
        return check_farm(engine, self._options, imported_packages(), timeout)

    def kill_tasks(self, category: Hashable, *, dry_run: bool = False) -> int:
        """Kill the tasks of one category that are running. Their futures raise `TaskKilledError`.

        A task's whole process is killed, whatever it is doing, and replaced. Tasks that have not begun,
        those of other categories and those of other executors are left alone.

        Args:
            category: As given to `with_options`.
            dry_run: Whether to count them only.

        Returns:
            How many were killed. In a future's callback, which must not wait, how many will most likely be.

        Raises:
            ValueError: The category is None, which stands for tasks without one.
        """
        category, dry_run = checked("FarmExecutor.kill_tasks", category=category, dry_run=dry_run)
        engine = self._engine
        return 0 if engine is None else engine.kill(category, dry_run=dry_run)

    def kill(self, future: Future[Any]) -> bool:
        """End one task: cancel it if it is waiting, and kill it if it is running, whatever it is doing.

        A killed task's future raises `TaskKilledError`, and its worker is replaced.

        Args:
            future: One of this executor's.

        Returns:
            Whether the task was cancelled or killed. If its worker does not answer, whether it will be killed when
            its turn comes; a short task may end before that. False if the task has ended, or if the future is not
            this executor's.
        """
        (future,) = checked("FarmExecutor.kill", future=future)
        engine = self._engine
        return engine is not None and engine.kill_one(future)

    def cancel_all(self) -> None:
        """End every task of the farm, whichever view submitted it; the farm accepts new tasks afterwards.

        Tasks that no worker has begun are cancelled, including those sent already. Running tasks are killed,
        whatever they are doing, and their workers replaced; the futures raise `TaskKilledError`. When this returns,
        no task submitted before is running, unless a server cannot be reached; in a callback or a signal handler
        that must not wait, that holds soon after. Initializers and persistent broadcasts of starting workers are
        left alone.
        """
        engine = self._engine
        if engine is not None:
            engine.cancel_all()

    def terminate_workers(self) -> None:
        """Do the same as `kill_workers`, without a SIGTERM that workers could handle."""
        self.kill_workers()

    def kill_workers(self) -> None:
        """Kill all workers of this executor and shut it down, as ProcessPoolExecutor does from Python 3.14 on.

        Tasks that have not been sent to a worker are cancelled; the futures of the others raise `BrokenFarmError`.
        """
        self.shutdown(wait=False, cancel_futures=True)
        engine = self._engine
        if engine is not None:
            engine.abort("its workers were killed")

    def dashboard(self, listen: str = "127.0.0.1:0", *, insecure: bool = False, open: bool = False) -> str:
        """Serve a page that shows what the farm does, for browsers, until the executor ends; return its address.

        The page shows what happens from now on. The address has a token, without which nobody gets in. Calling it
        once more returns the same address.

        Args:
            listen: HOST:PORT; port 0 means a free one.
            insecure: Whether it may be an address that other machines can reach, although nothing is encrypted.
            open: Whether to open it in this machine's browser.

        Raises:
            AddressError: ``listen`` has another form, or others could reach it and ``insecure`` is false.
            OSError: The port is in use.
            ModuleNotFoundError: starlette or uvicorn is not installed; the message names the extra.
            RuntimeError: The executor has been shut down.
        """
        listen, insecure, open = checked("FarmExecutor.dashboard", listen=listen, insecure=insecure, open=open)
        backing = self._backing
        if backing.shut_down:
            raise RuntimeError("cannot serve a dashboard after shutdown")
        url = backing.show(listen, insecure)
        if open:
            import webbrowser

            webbrowser.open(url)
        return url

    def statistics(self) -> FarmStatistics:
        """Return a snapshot of the farm."""
        return self._backing.statistics()

    @property
    def _max_workers(self) -> int:
        """The most tasks that run at once; other libraries read it to choose chunk sizes."""
        return self._backing.max_workers

    @property
    def _broken(self) -> bool:
        """Whether the farm has failed as a whole; other libraries read it to know when to make a new one."""
        engine = self._engine
        return engine is not None and engine.broken


class OptionsView(Front):
    """A view of a farm's executor with options for its tasks; created by `FarmExecutor.with_options`.

    It is the same farm: methods that do not concern single tasks, such as `shutdown`, affect all of it.
    """


def view_of(kind: type[View], backing: Backing, options: TaskOptions) -> View:
    """Return a view of that kind of a farm, for code that builds on it."""
    view = kind()
    view._stand_before(backing, options)
    return view


def backing_of(executor: Front) -> Backing:
    """Return the farm behind an executor or view, for code that builds on it."""
    return executor._backing


def options_of(executor: Front) -> TaskOptions:
    """Return the options of tasks that are submitted to an executor or view."""
    return executor._options


def tracing_of(executor: Front) -> Tracing | None:
    """Return what gives spans to the calls of an executor or view; None if they have none."""
    return executor._tracing


def running_and_waiting(numbers: FarmStatistics) -> tuple[int, int]:
    """Return how many tasks run, at most one for each worker, and how many wait, including those sent ahead."""
    running = sum(worker.outstanding > 0 for server in numbers.servers for worker in server.workers)
    return running, numbers.running + numbers.queued - running
