"""`FarmExecutor`: its constructor, and what its arguments mean.

The methods are in `front`, and the farm behind them is in `backing`.
"""

from __future__ import annotations

import copyreg
import os
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Literal, overload

from farm_executor.client.backing import Backing
from farm_executor.client.front import Front, running_and_waiting
from farm_executor.client.settings import FarmSettings
from farm_executor.core.options import TaskOptions
from farm_executor.wire.address import AddressLike

if TYPE_CHECKING:
    from multiprocessing.context import BaseContext

    # Type checkers bring these along; the standard library has them from Python 3.11 on.
    from typing_extensions import TypeVarTuple, Unpack

    from farm_executor.client.farm.output import OutputLine
    from farm_executor.client.settings import KeywordSettings

    Ts = TypeVarTuple("Ts")

__all__ = ["FarmExecutor"]


class FarmExecutor(Front):
    """A `concurrent.futures.ProcessPoolExecutor` whose workers may live on other machines.

    Without addresses the farm is *embedded*: a private server is started on this machine by the first `submit`,
    reached over a unix socket, and ended with the executor. With addresses, each server gives this executor
    workers of its own. No server is started or dialled before the first task.

    Functions and arguments are pickled in `submit`, by cloudpickle where pickle cannot: lambdas, closures and
    definitions in ``__main__`` or a notebook work as they are, without ``if __name__ == "__main__"``.

    A task may run twice: if its worker dies or its connection is lost, it is sent again, until ``max_attempts``.
    ``max_attempts=1`` forbids that; such a task fails with `WorkerLostError` instead.

    Args:
        addresses: Where the servers are: one address or a list of them, each ``"host:port"``, ``("host", port)``
            or ``"unix:/path"``; ``"farm://name:port?all"`` for a server on each machine that the name stands for,
            which is looked up again and again; or ``"ssh://[user@]host[:port][?workers=N&python=PATH&...]"`` for
            a server that is started there for this executor alone, reached through ssh, and ended with the
            executor; ``"slurm://[partition][?nodes=N&per=N&...]"``, ``"dask://host:port"`` or ``"ray://host:port"``
            for servers on a cluster; or ``"back://host:port"``, where servers dial this program. None, or nothing,
            for an embedded farm. An int is taken as ``max_workers``, so that ``FarmExecutor(4)`` means what
            ``ProcessPoolExecutor(4)`` means.
        max_workers: The most workers in all. With several servers it is divided evenly among them, and no server
            gives more than it has slots. None: as many as this machine has CPUs, or all slots of the servers.
            Servers that are added later, or found by a name, give all their slots.
        mp_context: Accepted for compatibility with ProcessPoolExecutor, and ignored.
        initializer: Called in each worker before its first task, including workers started later.
        initargs: Its arguments.
        max_tasks_per_child: After this many tasks a worker is replaced by a fresh one. None: never.
        max_memory_per_worker: Bytes of private memory that a worker may hold, at least 1 MiB. A worker that is
            found to hold more while it runs tasks, or right after, is killed and replaced, which costs the task
            that it ran an attempt. Servers check five times a second. None: no limit.
        key: The servers' secret, at least 16 bytes. None: found as `farm_executor.wire.security` describes.
        key_file: A file that holds the key, and with it the certificate of servers that speak TLS, as created by
            ``farm-executor keygen``.
        ssl_context: An `ssl.SSLContext` of your own, for servers with a certificate of your own. It does not travel
            with the executor, which therefore cannot be pickled.
        connect_timeout: Seconds after which the farm breaks with a `TimeoutError` if it has not got any worker.
            None: dial for ever.
        heartbeat: Seconds between signs of life. A server that has given none for three heartbeats, or a lane on
            which no bytes move for that long, is considered unreachable, and dialled again.
        resume_timeout: Seconds for which a worker whose connection has broken is kept, with its tasks, and dialled;
            then its tasks are sent to other workers. 0: nothing is resumed. Over TCP only: a unix socket ends only
            when the process at its other end does.
        max_attempts: How often a task may be begun, if its workers die, before it is given up.
        allow_version_mismatch: Whether to work with servers of another Python minor version, where functions that
            travel by value may crash.
        max_pending_bytes: The most bytes of pickled arguments that the farm holds for tasks that have not ended;
            a larger task is accepted when there is no other. None: no limit.
        when_full: What `submit` and `map` do when that would be exceeded: "wait" for tasks to end, or "raise"
            `FarmFullError`. In a callback of a future they never wait.
        caller_leads: Whether a thread that waits for a result may do the work of the farm's own thread meanwhile,
            which makes a call faster by a third. Nothing else depends on it.
        ship: Which modules may be sent to servers that lack them, or have other versions: "auto" for the program's
            own, which are those that are neither installed nor Python's; "off" for none; or names of top-level
            modules and paths of files, packages and folders on ``sys.path``, to which "auto" may be added. Named
            modules are sent whole, up to 256 MiB each; of others, code and data files of at most 1 MiB each. Each
            module is sent when a task first imports it, and stays what it was then for as long as the executor
            lives. An embedded farm has the program's files anyway.
        name: What `farm-executor top` and ``status`` call this farm, beside its program, user and host.
        output: Where tasks write to. "forward": what they, and the processes that they start, write to standard
            output and standard error comes out of this program's, line by line, and from servers with the worker in
            front of it, as ``(host:port/slot)``. "server": it comes out of the server's. A callable gets an
            `OutputLine` for each line, in a thread of the farm's; what it raises is logged. None: "forward" from
            servers; an embedded farm shares this program's output as it is, unless that is captured or a
            notebook's. A task's result never overtakes its output, by more than a second.
        context: Context variables whose values travel with each call: a task finds them as they are set where it is
            submitted. Each must be a global of a module that workers can import, and its values picklable.
        logs: Where records go that tasks log and that no handler of theirs takes. "forward": to this program's
            logger of the same name, at this program's levels. "server": those from WARNING on to the worker's
            standard error, as Python does where logging is not set up.
        max_shared: How many bytes of objects that are shared with `share` an embedded farm holds. None: half of the
            memory there is. Other servers have a limit of their own.

    Raises:
        AddressError: An address has none of the accepted forms, or the list is empty.
        TypeError, ValueError: Another argument is not what it must be; the message names it. A ``key_file`` must
            exist and hold a key.

    Thread safety:
        All methods may be called from any thread, and from a signal handler or a destructor that has interrupted
        one of them. Callbacks of futures run in the farm's own thread, and must not wait there for other futures of
        the farm: ``result()`` raises RuntimeError where it would wait for ever. A signal handler may wait
        like that, too, unless it has interrupted its thread in the middle of the farm's work, where ``result()``
        raises the same error; but not within `concurrent.futures.wait` or a future's ``cancel``, which hold locks
        that no executor can see. A forked child may use the executor: it starts afresh there.
    """

    # As in typeshed's ProcessPoolExecutor: `initargs` must match what the initializer takes.
    @overload
    def __init__(
        self,
        addresses: AddressLike | Iterable[AddressLike] | int | None = None,
        mp_context: BaseContext | None = None,
        initializer: Callable[[], object] | None = None,
        initargs: tuple[()] = (),
        **settings: Unpack[KeywordSettings],
    ) -> None: ...
    @overload
    def __init__(
        self,
        addresses: AddressLike | Iterable[AddressLike] | int | None = None,
        mp_context: BaseContext | None = None,
        *,
        initializer: Callable[[Unpack[Ts]], object],
        initargs: tuple[Unpack[Ts]],
        **settings: Unpack[KeywordSettings],
    ) -> None: ...
    @overload
    def __init__(
        self,
        addresses: AddressLike | Iterable[AddressLike] | int | None,
        mp_context: BaseContext | None,
        initializer: Callable[[Unpack[Ts]], object],
        initargs: tuple[Unpack[Ts]],
        **settings: Unpack[KeywordSettings],
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
        name: str | None = None,
        output: Literal["forward", "server"] | Callable[[OutputLine], object] | None = None,
        context: Iterable[ContextVar[Any]] = (),
        logs: Literal["forward", "server"] = "forward",
        max_shared: int | None = None,
    ) -> None:
        first: Any = addresses
        if _is_number(first):
            if max_workers is not None:
                raise TypeError("max_workers given twice: a number as the first argument sets it already")
            addresses, max_workers = None, first
        settings = FarmSettings.checked(
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
            name=name,
            output=output,
            context=context,
            logs=logs,
            max_shared=max_shared,
        )
        self._stand_before(Backing(settings), TaskOptions(max_attempts=settings.max_attempts))

    def __repr__(self) -> str:
        """Return the state in one line."""
        numbers = self.statistics()
        running, waiting = running_and_waiting(numbers)
        return (
            f"<{type(self).__name__} {self._backing.supply.describe()}: {numbers.state}, up to {self._max_workers} "
            f"workers, {running} running, {waiting} queued>"
        )

    def _repr_html_(self) -> str:
        """Return what notebooks show: the servers, their workers, and what has become of calls. Starts nothing."""
        from farm_executor.client.notebook import table

        page = self._backing.page
        title = f"{type(self).__name__} {self._backing.supply.describe()}"
        return table(title, self.statistics(), "" if page is None else page.url)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as a client of the same servers, with workers of its own: nested work cannot deadlock.

        The key does not travel, as a pickle may be stored anywhere. In a worker, its server's own key serves, also
        in place of a ``key_file`` that cannot be read there. Servers over ssh are started again, from where the
        pickle is loaded.
        """
        return (copyreg.__newobj__, (FarmExecutor,), self._backing)  # type: ignore[attr-defined]

    def __setstate__(self, backing: Any) -> None:
        """Become the executor of another process, as `__reduce__` has described it."""
        self._stand_before(backing, TaskOptions(max_attempts=backing.settings.max_attempts))


def _is_number(value: Any) -> bool:
    # What is usual is known without the import, which takes as long as that of all our settings.
    if value is None or isinstance(value, (int, str, list, tuple)):
        return isinstance(value, int)
    from numbers import Number

    return isinstance(value, Number)
