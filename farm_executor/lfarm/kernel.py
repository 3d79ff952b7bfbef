"""Kernels: the executors on which tasks run, and the current one among them.

This module owns kernels, their start and end, and the current kernel, which belongs to the context
(`contextvars`). It must not know channels, promises or cognates, which all submit through the kernel.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Coroutine, Hashable, Iterable, Iterator
from concurrent.futures import Executor, Future, wait
from contextvars import ContextVar, Token
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar, overload

from farm_executor.client.executor import FarmExecutor
from farm_executor.client.settings import SharedSettings
from farm_executor.errors import KernelCreationError, NoKernelError
from farm_executor.lfarm.checks import check_bool, check_category, check_instance, check_seconds
from farm_executor.lfarm.submission import submission_to
from farm_executor.lfarm.task_options import current_options
from farm_executor.lfarm.tasks import translated
from farm_executor.wire.address import AddressLike, parse_addresses

if TYPE_CHECKING:
    from typing_extensions import TypeVarTuple, Unpack

    from farm_executor.client.farm.shared import Shared
    from farm_executor.client.stream import Stream
    from farm_executor.client.tracing import Within

    Ts = TypeVarTuple("Ts")

__all__ = [
    "Kernel",
    "KernelCategory",
    "KernelOptions",
    "broadcast_task",
    "check_kernel",
    "checked_kernel",
    "end_kernel",
    "kernel_name",
    "kernel_worker_count",
    "kill_tasks",
    "make_kernel",
    "set_kernel",
    "task_categories_running",
    "use_kernel",
]

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class KernelCategory:
    """A category on a shared executor, qualified by the kernel's serial number, so no other kernel kills it."""

    kernel: int
    category: Hashable

    def __repr__(self) -> str:
        return repr(self.category)


class EndsWithKernel(Protocol):
    """An object that a kernel notifies of its end."""

    def kernel_ended(self) -> None:
        """Submit the prepared tasks now; no others can be submitted any more."""

    def futures(self) -> list[Future[Any]]:
        """Return the futures that may not be done yet."""


class Kernel:
    """An executor under lfarm's rules; made by `make_kernel`.

    As a context manager, it is the current kernel within the ``with`` block; on exit it is ended, after the
    submitted tasks are done.

    Args:
        executor: The executor on which tasks run.
        name: The name that `kernel_name` returns.
        owned: Whether the executor ends with the kernel.

    Attributes:
        executor: The executor.
        name: The name.
        ended: Whether the kernel has ended and takes no more tasks.

    Thread safety: all methods may be called from any thread.
    """

    def __init__(self, executor: Executor, name: str = "farm", *, owned: bool = False) -> None:
        self.executor = executor
        self.name = name
        self.ended: bool = False
        self._owned = owned
        self._submission = submission_to(executor, self._label)
        self._lock = threading.Lock()
        self._attached: weakref.WeakSet[EndsWithKernel] = weakref.WeakSet()
        self._futures: weakref.WeakSet[Future[Any]] | None = None if owned else weakref.WeakSet()
        self._tokens: list[Token[Kernel | None]] = []
        with _counting:
            global _kernels_made
            self._serial = _kernels_made = _kernels_made + 1
        _kernels.add(self)

    # -- properties --------------------------------------------------------------------------------------

    @property
    def worker_count(self) -> int:
        """The most tasks that run at once."""
        return int(getattr(self.executor, "_max_workers", 1))

    def __repr__(self) -> str:
        state = ", ended" if self.ended else ""
        return f"<Kernel {self.name!r}: {type(self.executor).__name__}, {self.worker_count} workers{state}>"

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError(
            "a kernel stays in its process: make one in the task, if that is to submit tasks of its own"
        )

    # -- tasks -------------------------------------------------------------------------------------------

    @overload
    def submit(
        self, task: Callable[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Future[T]: ...
    @overload
    def submit(self, task: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]: ...
    @overload
    def submit(self, task: str, /, *args: Any, **kwargs: Any) -> Future[Any]: ...
    def submit(self, task: Callable[..., Any] | str, /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Submit a call, in the current task category and priority.

        Args:
            task: A function or another callable, a `deftask`, or a name, ``"package.module:function"``.
            args: The task's positional arguments.
            kwargs: The task's keyword arguments.

        Returns:
            The executor's own future, with the executor's exceptions; `translated` turns these into lfarm's.

        Raises:
            InvalidTaskError: The task is none of these.
            RuntimeError: The kernel has ended.
        """
        future = self.submit_call(task, args, kwargs)
        if self._futures is not None:
            self._futures.add(future)
        return future

    def submit_call(
        self, task: Callable[..., Any] | str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Future[Any]:
        """Submit like `submit`, for a caller that reports its futures at the kernel's end: see `EndsWithKernel`."""
        if self.ended:
            raise RuntimeError(self._ended_text())
        return self._submission.submit(task, args, kwargs, current_options.get())

    def lead_until(self, done: Callable[[], bool]) -> None:
        """Let this thread, which is about to wait until ``done()``, do the executor's work: see `Submission`."""
        self._submission.lead_until(done)

    def nudge(self) -> None:
        """Wake a thread in `lead_until`: it may be done by other means than the executor's work."""
        self._submission.nudge()

    def prepare_call(
        self, task: Callable[..., Any] | str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Callable[[], Future[Any]]:
        """Prepare a call in its present state to be submitted later, if need be after the kernel's end.

        For a farm it is pickled now; for other executors the objects themselves are kept.

        Returns:
            A function that submits the call, with the category and priority that are current now.

        Raises:
            InvalidTaskError, RuntimeError: As `submit`.
        """
        if self.ended:
            raise RuntimeError(self._ended_text())
        return self._submission.prepare(task, args, kwargs, current_options.get())

    def spanning(self, function: Callable[..., Any]) -> contextlib.AbstractContextManager[Within]:
        """Return a context for the submission and the end of calls that belong together; see `Submission`."""
        return self._submission.spanning(function)

    def translated(self, error: BaseException) -> BaseException:
        """Translate an error of one of this kernel's futures into lfarm's; see `tasks.translated`."""
        return translated(error, on_farm=self._submission.on_farm)

    def _label(self, category: Hashable) -> Hashable:
        return category if self._owned else KernelCategory(self._serial, category)

    # -- all of its workers ------------------------------------------------------------------------------

    @overload
    def broadcast(
        self,
        task: Callable[[Unpack[Ts]], Coroutine[Any, Any, T]],
        /,
        *args: Unpack[Ts],
        persistent: bool = False,
        timeout: float | None = 60.0,
    ) -> list[T]: ...
    @overload
    def broadcast(
        self,
        task: Callable[[Unpack[Ts]], T],
        /,
        *args: Unpack[Ts],
        persistent: bool = False,
        timeout: float | None = 60.0,
    ) -> list[T]: ...
    @overload
    def broadcast(
        self, task: str, /, *args: Any, persistent: bool = False, timeout: float | None = 60.0
    ) -> list[Any]: ...
    def broadcast(
        self,
        task: Callable[..., Any] | str,
        /,
        *args: object,
        persistent: bool = False,
        timeout: float | None = 60.0,
    ) -> list[Any]:
        """See `broadcast_task`."""
        check_bool("persistent", persistent)
        check_seconds("timeout", timeout)
        if self.ended:
            raise RuntimeError(self._ended_text())
        farm = self._submission.farm_for("broadcasting")
        return farm.broadcast(task, args, current_options.get(), persistent=persistent, timeout=timeout)

    def stream(self, task: Callable[..., Any] | str, /, *args: Any, **kwargs: Any) -> Stream[Any]:
        """See `stream_task`."""
        if self.ended:
            raise RuntimeError(self._ended_text())
        return self._submission.farm_for("streaming").stream(task, args, kwargs, current_options.get())

    def share(self, value: T, *, frozen: bool = False) -> Shared[T]:
        """See `share`."""
        if self.ended:
            raise RuntimeError(f"cannot share objects on an ended kernel: {self.name!r} has been ended")
        return self._submission.farm_for("sharing").farm.share(value, frozen=frozen)

    def kill_tasks(self, category: Hashable, *, dry_run: bool = False) -> int:
        """See `kill_tasks`."""
        check_category(category)
        check_bool("dry_run", dry_run)
        return self._submission.farm_for("killing tasks").farm.kill_tasks(self._label(category), dry_run=dry_run)

    def task_categories_running(self) -> list[Hashable]:
        """See `task_categories_running`."""
        farm = self._submission.farm_for("knowing what runs").farm
        running = list[Hashable]()
        for server in farm.statistics().servers:
            by_slot = {worker.slot: self._unlabelled(worker.category) for worker in server.workers}
            running += [by_slot.get(slot) for slot in range(server.slots)]
        return running + [None] * (self.worker_count - len(running))  # of servers that have not answered yet

    def _unlabelled(self, label: Hashable) -> Hashable:
        if self._owned:
            return label
        if isinstance(label, KernelCategory) and label.kernel == self._serial:
            return label.category
        return None

    def attach(self, one: EndsWithKernel) -> None:
        """Notify the object, as long as it lives, of the kernel's end, before the executor's end.

        Raises:
            RuntimeError: The kernel has ended.
        """
        with self._lock:
            if self.ended:
                raise RuntimeError(self._ended_text())
            self._attached.add(one)

    # -- its end -----------------------------------------------------------------------------------------

    def end(self, wait: bool = False) -> None:
        """Take no more tasks; those already submitted are finished. See `end_kernel`."""
        check_bool("wait", wait)
        self._end(partial(self.executor.shutdown, wait=wait), wait=wait)

    def _end(self, shutdown: Callable[[], Any], *, wait: bool) -> None:
        with self._lock:
            attached = [] if self.ended else list(self._attached)
            self.ended = True
        for one in attached:
            one.kernel_ended()
        if self._owned:
            shutdown()
        elif wait:
            self._wait_for_tasks()

    def _wait_for_tasks(self) -> None:
        """Wait for this kernel's tasks on an executor that lives on."""
        assert self._futures is not None
        wait({*self._futures, *(future for one in list(self._attached) for future in one.futures())})

    def _ended_text(self) -> str:
        return f"cannot submit a task to an ended kernel: {self.name!r} has been ended"

    def __enter__(self) -> Kernel:
        self._tokens.append(_current.set(self))
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _current.reset(self._tokens.pop())
        # The executor's own __exit__ handles Ctrl-C.
        self._end(partial(self.executor.__exit__, exc_type, exc, traceback), wait=exc is None)


class KernelOptions(SharedSettings, total=False):
    """Options that `make_kernel` passes to `FarmExecutor`, which documents and checks them."""

    mp_context: Any
    initializer: Callable[..., Any] | None
    initargs: tuple[Any, ...]


def make_kernel(
    addresses: Executor | AddressLike | Iterable[AddressLike],
    name: str = "farm",
    *,
    timeout: float | None = None,
    **options: Unpack[KernelOptions],
) -> Kernel:
    """Make a kernel, without making it the current one; see `set_kernel` and `use_kernel`.

    Args:
        addresses: The servers: a list of ``(host, port)`` pairs or address strings, as `FarmExecutor` takes them.
            Or an executor of any kind: then no servers are dialled, and it is not shut down with the kernel.
        name: A name for display, also the executor's.
        timeout: Seconds within which every server must have answered; None to wait forever.
        options: Options of `FarmExecutor`, for the executor that is made: ``key``, ``key_file`` or ``ssl_context``
            for servers that need them, ``max_attempts``, ``resume_timeout``, ``heartbeat``, ``max_workers`` and all
            others. They cannot be combined with an executor, which has its own.

    Returns:
        The kernel, once every server has answered. Each server gives it all of its slots, unless ``max_workers``
        says otherwise.

    Raises:
        AddressError: An address has none of the accepted forms, or no address is given.
        KernelCreationError: Not all servers answered in time, or one refused; the cause says which.
        TypeError, ValueError: An option is unknown or its value is invalid, or options were given with an executor.
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be a str, not {type(name).__qualname__}")
    check_seconds("timeout", timeout)
    unknown = options.keys() - KernelOptions.__annotations__.keys()
    if unknown:
        raise TypeError(
            f"make_kernel has no option {', '.join(sorted(unknown))}; it has timeout, and FarmExecutor's"
        )
    if isinstance(addresses, Executor):
        if options:
            raise TypeError(
                f"make_kernel was given an executor, which has options of its own, and {', '.join(options)}: "
                "make the executor with these"
            )
        return Kernel(addresses, name)
    farm = FarmExecutor(parse_addresses(addresses), name=name, **options)
    try:
        farm.connect(timeout)
    except BaseException as error:
        farm.shutdown(wait=False, cancel_futures=True)
        if not isinstance(error, Exception):
            raise
        raise KernelCreationError(f"failed to create the kernel {name!r}: {error}") from error
    return Kernel(farm, name, owned=True)


def end_kernel(wait: bool = False) -> None:
    """End the current kernel, so that there is no current one; do nothing if there is none.

    Queued tasks are run first, including those of low priority, and their results can still be received.

    Args:
        wait: Whether to return only when all tasks have ended.
    """
    global _default
    check_bool("wait", wait)
    kernel = _current.get() or _default
    if kernel is None:
        return
    kernel.end(wait)
    if kernel is _default:
        _default = None


# -- the current kernel ------------------------------------------------------------------------------

_counting = threading.Lock()
_kernels_made = 0
_kernels: weakref.WeakSet[Kernel] = weakref.WeakSet()
_current: ContextVar[Kernel | None] = ContextVar("_current", default=None)
_default: Kernel | None = None  # for contexts without their own, such as those of new threads

_NO_KERNEL = """\
there is no current kernel.

Welcome to farm_executor.lfarm. To get started, connect to a set of servers:

    from farm_executor import lfarm
    lfarm.set_kernel(lfarm.make_kernel([("192.168.14.31", 11111), ("192.168.14.32", 22222)]))

or, for a part of the program alone:

    with lfarm.use_kernel(kernel):
        ...

A server is run by the command

    farm-executor serve 192.168.14.31:11111

and without one, make_kernel(FarmExecutor()) uses the processors of this machine."""


def check_kernel() -> Kernel:
    """Return the current kernel.

    Raises:
        NoKernelError: There is no current kernel, or it has ended.
    """
    kernel = _current.get() or _default
    if kernel is None or kernel.ended:
        raise NoKernelError(_NO_KERNEL)
    return kernel


def set_kernel(kernel: Kernel | None) -> None:
    """Set the current kernel, or none, for every thread and context that is not within a `use_kernel`."""
    global _default
    _default = checked_kernel(kernel) if kernel is not None else None


@contextlib.contextmanager
def use_kernel(kernel: Kernel) -> Iterator[Kernel]:
    """Make the kernel current in this context within a ``with`` block. It is not ended afterwards."""
    token = _current.set(checked_kernel(kernel))
    try:
        yield kernel
    finally:
        _current.reset(token)


def checked_kernel(kernel: Any) -> Kernel:
    """Return the argument if it is a kernel.

    Raises:
        TypeError: The argument is not a kernel.
    """
    check_instance("kernel", kernel, Kernel, "make_kernel")
    return kernel  # type: ignore[no-any-return]


def kernel_worker_count() -> int:
    """Return the most tasks that the current kernel runs at once.

    Raises:
        NoKernelError: There is no current kernel.
    """
    return check_kernel().worker_count


def kernel_name() -> str:
    """Return the current kernel's name.

    Raises:
        NoKernelError: There is no current kernel.
    """
    return check_kernel().name


# -- all of the current kernel's workers -------------------------------------------------------------


def kill_tasks(category: Hashable, dry_run: bool = False) -> int:
    """Kill the running tasks of a category by killing their processes, which are replaced at once.

    Queued tasks and other kernels' tasks are left alone. Waiting for a killed task raises `TaskKilledError`.

    Args:
        category: The category given to `task_category`; "default" if none was given.
        dry_run: Whether only to count the tasks.

    Returns:
        The number of running tasks; 0 without a current kernel.

    Raises:
        ValueError: The category is None.
        TypeError: The category is not hashable, ``dry_run`` is not a bool, or the kernel's executor is not a
            `FarmExecutor`.
    """
    check_category(category)
    check_bool("dry_run", dry_run)
    kernel = _current.get() or _default
    return 0 if kernel is None else kernel.kill_tasks(category, dry_run=dry_run)


def task_categories_running() -> list[Hashable]:
    """Return, for each worker of the current kernel by server, the category of its running task, or None.

    Raises:
        NoKernelError: There is no current kernel.
        TypeError: The kernel's executor is not a `FarmExecutor`.
    """
    return check_kernel().task_categories_running()


@overload
def broadcast_task(
    task: Callable[[Unpack[Ts]], Coroutine[Any, Any, T]],
    /,
    *args: Unpack[Ts],
    persistent: bool = False,
    timeout: float | None = 60.0,
) -> list[T]: ...
@overload
def broadcast_task(
    task: Callable[[Unpack[Ts]], T],
    /,
    *args: Unpack[Ts],
    persistent: bool = False,
    timeout: float | None = 60.0,
) -> list[T]: ...
@overload
def broadcast_task(
    task: str, /, *args: Any, persistent: bool = False, timeout: float | None = 60.0
) -> list[Any]: ...
def broadcast_task(
    task: Callable[..., Any] | str, /, *args: object, persistent: bool = False, timeout: float | None = 60.0
) -> list[Any]:
    """Run a task once on every worker of the current kernel.

    Args:
        task: As for `submit_task`.
        args: The task's arguments.
        persistent: Whether workers that are started later run it, too, before their first task.
        timeout: Seconds within which all workers must have answered; None to wait forever.

    Returns:
        The results, ordered by server as given, then by slot.

    Raises:
        BroadcastError: Some workers failed or did not answer; its ``outcomes`` are those of all workers.
        InvalidTaskError: The task is not one that can be submitted.
        NoKernelError: There is no current kernel.
        TypeError: The kernel's executor is not a `FarmExecutor`.
    """
    return check_kernel().broadcast(task, *args, persistent=persistent, timeout=timeout)


# -- the end of the interpreter, and fork -----------------------------------------------------------


def _at_exit() -> None:
    """Give the executors the calls still held back; they finish them at their own ends, which come next."""
    for kernel in list(_kernels):
        kernel._end(lambda: None, wait=False)


atexit.register(_at_exit)  # registered after the executors' own end, and so runs before it
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_kernels.clear)
