"""The kernel: the executor on which tasks run, and which one is current.

This module owns kernels, their beginning and end, and the current kernel, which belongs to the context
(`contextvars`). It must not know channels, promises or cognates, which all submit by `Kernel.submit`.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import Executor, Future, wait
from contextvars import ContextVar, Token
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, Protocol, TypedDict, TypeVar, overload

from farm_executor.client.executor import FarmExecutor
from farm_executor.client.front import Front
from farm_executor.errors import KernelCreationError, NoKernelError
from farm_executor.lfarm.checks import check_bool, check_category, check_instance, check_seconds
from farm_executor.lfarm.submission import Submission, ToAny, ToFarm
from farm_executor.lfarm.task_options import current_options
from farm_executor.lfarm.tasks import translated
from farm_executor.wire.address import AddressLike, parse_addresses

if TYPE_CHECKING:
    from typing_extensions import TypeVarTuple, Unpack

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
    """A category as a shared executor knows it: only the kernel of that serial number kills by it."""

    kernel: int
    category: Hashable

    def __repr__(self) -> str:
        return repr(self.category)


class EndsWithKernel(Protocol):
    """What a kernel tells of its end."""

    def kernel_ended(self) -> None:
        """No more tasks can be submitted, but for those that were prepared: do that now."""

    def futures(self) -> list[Future[Any]]:
        """Those of its futures that may not be done."""


class Kernel:
    """An executor under lfarm's rules; made by `make_kernel`.

    As a context manager it is the current kernel within the ``with`` block, and ended, after what was submitted is
    done, at its exit.

    Args:
        executor: Where tasks run.
        name: What `kernel_name` gives.
        owned: Whether the executor ends with the kernel.

    Attributes:
        executor: The executor.
        name: The name.
        ended: Whether it takes no more tasks.

    Thread safety: all methods may be called from any thread.
    """

    def __init__(self, executor: Executor, name: str = "farm", *, owned: bool = False) -> None:
        self.executor = executor
        self.name = name
        self.ended: bool = False
        self._owned = owned
        self._to_farm: ToFarm | None = None
        if isinstance(executor, Front):
            self._to_farm = ToFarm(executor, self._label)
        self._submission: Submission = self._to_farm or ToAny(executor)
        self._lock = threading.Lock()
        self._attached: weakref.WeakSet[EndsWithKernel] = weakref.WeakSet()
        self._futures: weakref.WeakSet[Future[Any]] | None = None if owned else weakref.WeakSet()
        self._tokens: list[Token[Kernel | None]] = []
        with _counting:
            global _kernels_made
            self._serial = _kernels_made = _kernels_made + 1
        _kernels.add(self)

    # -- what it is --------------------------------------------------------------------------------------

    @property
    def worker_count(self) -> int:
        """How many tasks run at once at most."""
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
    def submit(self, task: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]: ...
    @overload
    def submit(self, task: str, /, *args: Any, **kwargs: Any) -> Future[Any]: ...
    def submit(self, task: Callable[..., Any] | str, /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Submit a call, in the current task category and priority.

        Args:
            task: A function or another callable, a `deftask`, or a name, ``"package.module:function"``.
            args: Its arguments.
            kwargs: Its arguments by name.

        Returns:
            The executor's own future, which raises what that raises; `translated` gives lfarm's errors.

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
        """As `submit`, for whoever tells of its futures at the kernel's end: see `EndsWithKernel`."""
        if self.ended:
            raise RuntimeError(self._ended_text())
        return self._submission.submit(task, args, kwargs, current_options.get())

    def lead_until(self, done: Callable[[], bool]) -> None:
        """For a thread that is going to wait until that is so: see `Submission`."""
        self._submission.lead_until(done)

    def nudge(self) -> None:
        """It may be so by other means than the executor's work: see `Submission`."""
        self._submission.nudge()

    def prepare_call(
        self, task: Callable[..., Any] | str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Callable[[], Future[Any]]:
        """Make a call as it is now ready to be submitted later, if need be after the end.

        On a farm it is pickled now. On another executor it is the objects themselves that wait.

        Returns:
            What submits it, with the category and priority that are current now.

        Raises:
            InvalidTaskError, RuntimeError: As `submit`.
        """
        if self.ended:
            raise RuntimeError(self._ended_text())
        return self._submission.prepare(task, args, kwargs, current_options.get())

    def translated(self, error: BaseException) -> BaseException:
        """An error of one of this kernel's futures, in lfarm's way; see `tasks.translated`."""
        return translated(error, on_farm=self._to_farm is not None)

    def _label(self, category: Hashable) -> Hashable:
        return category if self._owned else KernelCategory(self._serial, category)

    # -- all of its workers ------------------------------------------------------------------------------

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
        farm = self._needed_farm("broadcasting")
        return farm.broadcast(task, args, current_options.get(), persistent=persistent, timeout=timeout)

    def kill_tasks(self, category: Hashable, *, dry_run: bool = False) -> int:
        """See `kill_tasks`."""
        check_category(category)
        check_bool("dry_run", dry_run)
        return self._needed_farm("killing tasks").farm.kill_tasks(self._label(category), dry_run=dry_run)

    def task_categories_running(self) -> list[Hashable]:
        """See `task_categories_running`."""
        farm = self._needed_farm("knowing what runs").farm
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

    def _needed_farm(self, what: str) -> ToFarm:
        if self._to_farm is None:
            raise TypeError(
                f"{what} needs a FarmExecutor; this kernel's executor is a {type(self.executor).__name__}"
            )
        return self._to_farm

    def attach(self, one: EndsWithKernel) -> None:
        """Tell it of the end, before the executor's own, for as long as it lives.

        Raises:
            RuntimeError: The kernel has ended.
        """
        with self._lock:
            if self.ended:
                raise RuntimeError(self._ended_text())
            self._attached.add(one)

    # -- its end -----------------------------------------------------------------------------------------

    def end(self, wait: bool = False) -> None:
        """Take no more tasks; those submitted are finished. See `end_kernel`."""
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
        """Wait for what is under way on an executor that goes on."""
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
        # The executor knows what to do about Ctrl-C.
        self._end(partial(self.executor.__exit__, exc_type, exc, traceback), wait=exc is None)


class KernelOptions(TypedDict, total=False):
    """What `make_kernel` hands on to `FarmExecutor`, which says what each is and checks it."""

    max_workers: int | None
    mp_context: Any
    initializer: Callable[..., Any] | None
    initargs: tuple[Any, ...]
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


def make_kernel(
    addresses: Executor | AddressLike | Iterable[AddressLike],
    name: str = "farm",
    *,
    timeout: float | None = None,
    **options: Unpack[KernelOptions],
) -> Kernel:
    """Make a kernel; it does not become the current one by that, see `set_kernel` and `use_kernel`.

    Args:
        addresses: The servers: a list of ``(host, port)`` pairs or address strings, as `FarmExecutor` takes them.
            Or an executor, of any kind: then nothing is dialled, and it is not shut down with the kernel.
        name: Its name, for people.
        timeout: Seconds within which every server must have answered. None: wait for ever.
        options: Those of `FarmExecutor`, for the one that is made: ``key``, ``key_file`` or ``ssl_context`` for
            servers that want them, ``max_attempts``, ``resume_timeout``, ``heartbeat``, ``max_workers`` and all
            others. An executor has its own.

    Returns:
        The kernel, when every server has answered. Each gives it all of its slots, unless ``max_workers`` says
        otherwise.

    Raises:
        AddressError: An address has none of the accepted forms, or there is none.
        KernelCreationError: The servers have not all answered in time, or one refused; its cause says which.
        TypeError, ValueError: There is no such option, an option's value will not do, or there are options, and an
            executor.
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
    farm = FarmExecutor(parse_addresses(addresses), **options)
    try:
        farm.connect(timeout)
    except BaseException as error:
        farm.shutdown(wait=False, cancel_futures=True)
        if not isinstance(error, Exception):
            raise
        raise KernelCreationError(f"failed to create the kernel {name!r}: {error}") from error
    return Kernel(farm, name, owned=True)


def end_kernel(wait: bool = False) -> None:
    """End the current kernel; from then on there is none. Without a current kernel, do nothing.

    Queued tasks are run first, those of low priority included, and their results can still be received.

    Args:
        wait: Whether to return only when all is over.
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
_default: Kernel | None = None  # for contexts without one of their own, such as those of new threads

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
    """The current kernel.

    Raises:
        NoKernelError: There is none, or it has been ended.
    """
    kernel = _current.get() or _default
    if kernel is None or kernel.ended:
        raise NoKernelError(_NO_KERNEL)
    return kernel


def set_kernel(kernel: Kernel | None) -> None:
    """Make a kernel the current one, in every thread and context that is not within a `use_kernel`; None: none."""
    global _default
    _default = checked_kernel(kernel) if kernel is not None else None


@contextlib.contextmanager
def use_kernel(kernel: Kernel) -> Iterator[Kernel]:
    """The kernel is the current one of this context while this lasts. It is not ended after that."""
    token = _current.set(checked_kernel(kernel))
    try:
        yield kernel
    finally:
        _current.reset(token)


def checked_kernel(kernel: Any) -> Kernel:
    """What was given as one.

    Raises:
        TypeError: It is not.
    """
    check_instance("kernel", kernel, Kernel, "make_kernel")
    return kernel  # type: ignore[no-any-return]


def kernel_worker_count() -> int:
    """How many tasks the current kernel runs at once at most.

    Raises:
        NoKernelError: There is none.
    """
    return check_kernel().worker_count


def kernel_name() -> str:
    """The current kernel's name.

    Raises:
        NoKernelError: There is none.
    """
    return check_kernel().name


# -- all of the current kernel's workers -------------------------------------------------------------


def kill_tasks(category: Hashable, dry_run: bool = False) -> int:
    """Kill the tasks of a category that run now, by killing their processes; others take their places at once.

    What is queued, and other kernels' tasks, are left alone. Whoever waits for one of the killed tasks gets
    `TaskKilledError`.

    Args:
        category: As given to `task_category`; "default" if none was.
        dry_run: Whether only to count.

    Returns:
        How many were running; 0 without a current kernel.

    Raises:
        ValueError: The category is None.
        TypeError: It is not hashable, ``dry_run`` is not a bool, or the kernel's executor is no `FarmExecutor`.
    """
    check_category(category)
    check_bool("dry_run", dry_run)
    kernel = _current.get() or _default
    return 0 if kernel is None else kernel.kill_tasks(category, dry_run=dry_run)


def task_categories_running() -> list[Hashable]:
    """For each worker of the current kernel, server by server, the category of the task that it runs, or None.

    Raises:
        NoKernelError: There is no kernel.
        TypeError: The kernel's executor is no `FarmExecutor`.
    """
    return check_kernel().task_categories_running()


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
        args: Its arguments.
        persistent: Whether workers that are started later run it, too, before their first task.
        timeout: Seconds within which all must have answered. None: for ever.

    Returns:
        The results, server by server as given, then slot by slot.

    Raises:
        BroadcastError: Some failed or did not answer; its ``outcomes`` are those of all workers.
        InvalidTaskError: The task is none.
        NoKernelError: There is no kernel.
        TypeError: The kernel's executor is no `FarmExecutor`.
    """
    return check_kernel().broadcast(task, *args, persistent=persistent, timeout=timeout)


# -- the end of the interpreter, and fork -----------------------------------------------------------


def _at_exit() -> None:
    """Give executors what is still held back; they finish it with the rest, at their own ends, which come next."""
    for kernel in list(_kernels):
        kernel._end(lambda: None, wait=False)


atexit.register(_at_exit)  # the executors' own end has been registered before, and so comes after
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_kernels.clear)
