"""Tasks: the kinds that can be submitted, how they are sent, and how their failures are reported.

A task is a function or another callable, a `deftask`, or the name of a function that exists on the servers,
``"package.module:function"``. Functions are sent as the executor sends them. A `deftask` is sent by value, together
with everything it uses from modules that define deftasks, so that the servers need not have these modules.

This module must not know kernels or channels: it neither submits nor waits.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import re
import reprlib
import sys
import threading
import types
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, CancelledError
from contextvars import ContextVar
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload

from farm_executor.data import payload
from farm_executor.data.awaiting import awaited
from farm_executor.data.failure import describe, report_of, take_report
from farm_executor.errors import FarmError, InvalidTaskError, TaskExecutionError
from farm_executor.lfarm.checks import check_bool

__all__ = [
    "Task",
    "TaskLike",
    "call_named",
    "call_pickled",
    "deftask",
    "run_task",
    "sendable",
    "translated",
    "travelling_by_value",
]

TaskLike = Callable[..., Any] | str
"""Anything that can be submitted: a function, a task, or the name of a function on the servers."""

P = ParamSpec("P")
P2 = ParamSpec("P2")
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

# -- deftask -----------------------------------------------------------------------------------------


class Task(Generic[P, T_co]):
    """A function recorded by `deftask`; calling it calls that function.

    Args:
        function: The function for workers to call.
        local: Whether it can be called here, too.
    """

    def __init__(self, function: Callable[P, T_co], *, local: bool = True) -> None:
        functools.update_wrapper(self, function)
        self.function = function
        self._local = local
        module = getattr(function, "__module__", None)
        if isinstance(module, str) and module != "__main__":  # __main__ is sent by value anyway
            _modules.add(module)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T_co:
        """Call the function here."""
        if not self._local and not _in_task.get():
            raise TypeError(
                f"{self!r} was recorded with @deftask(local=False), so it is not defined here: "
                "submit it to a kernel, as in submit_task(channel, task, ...)"
            )
        return self.function(*args, **kwargs)

    @overload
    def __get__(self, instance: None, owner: type) -> Task[P, T_co]: ...
    @overload
    def __get__(
        self: Task[Concatenate[Any, P2], T], instance: object, owner: type | None = None
    ) -> Callable[P2, T]: ...
    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        # As with a plain function, access through an object binds it.
        return self if instance is None else _BoundTask(self, instance)

    def __repr__(self) -> str:
        return f"<deftask {self.function.__module__}:{self.function.__qualname__}>"

    def __reduce__(self) -> tuple[Any, ...]:
        # A worker gets the bare function.
        if getattr(_travelling, "active", False) or self.function.__module__ == "__main__":
            return _itself, (self.function,)
        with travelling_by_value():
            data = bytes(payload.dumps(self.function, out_of_band=False)[0])
        return _rebuilt, (data,)


class _BoundTask(Task[P, T_co]):
    """A task bound to an object, which is sent along."""

    def __init__(self, task: Task[..., T_co], instance: Any) -> None:
        functools.update_wrapper(self, task.function)
        self.function = types.MethodType(task.function, instance)
        self._local = task._local


@overload
def deftask(function: Callable[P, T], /) -> Task[P, T]: ...
@overload
def deftask(*, local: bool = True) -> Callable[[Callable[P, T]], Task[P, T]]: ...
def deftask(function: Any = None, /, *, local: bool = True) -> Any:
    """Record a function as a task that need not exist on the servers; a decorator.

    At each submission, the function is sent in its present state, with the values it captures, with the plain
    functions, classes and globals that it uses from its own module, and with the other deftasks that it calls, from
    any module. On an executor other than a farm, it is called directly.

    Args:
        function: The function, as in ``@deftask``.
        local: Whether it can be called here, too. ``@deftask(local=False)`` is lfarm's ``deftask*``: the name
            stands only for the task, and calling it is an error everywhere but in a task.

    Returns:
        A `Task`.

    Raises:
        TypeError: The decorated object is not a function, or ``local`` is not a bool.
    """
    check_bool("local", local)

    def record(function: Any) -> Task[..., Any]:
        if not callable(function) or isinstance(function, (type, Task)):
            raise TypeError(f"deftask records functions, not {reprlib.repr(function)}")
        return Task(function, local=local)

    return record if function is None else record(function)


_modules: set[str] = set()  # modules that define deftasks
_in_task: ContextVar[bool] = ContextVar("_in_task", default=False)
_travelling = threading.local()
_registering = threading.RLock()


@contextlib.contextmanager
def travelling_by_value() -> Iterator[None]:
    """Pickle by value, within the ``with`` block and in this thread, whatever is from modules that define deftasks.

    This holds a lock: only pickle within the block.
    """
    import cloudpickle  # late: it is as large as everything else

    # cloudpickle's registry is global. The lock keeps another thread from unregistering a module halfway through.
    with _registering:
        outer = getattr(_travelling, "active", False)
        registered = cloudpickle.list_registry_pickle_by_value()
        modules = [sys.modules[name] for name in _modules - registered if name in sys.modules]
        for module in modules:
            cloudpickle.register_pickle_by_value(module)
        _travelling.active = True
        try:
            yield
        finally:
            _travelling.active = outer
            for module in modules:
                cloudpickle.unregister_pickle_by_value(module)


def _itself(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


def _rebuilt(data: bytes) -> Any:
    return payload.loads([data])


# -- kinds of tasks ----------------------------------------------------------------------------------

_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


def sendable(task: Any, name: str = "") -> Callable[..., Any]:
    """Return a callable that does the same in any process, and so can be among another function's arguments.

    Args:
        task: Anything that can be submitted.
        name: The name of the argument, for the error, where it is not obvious.

    Raises:
        InvalidTaskError: The task cannot be submitted.
    """
    if type(task) is types.MethodType and isinstance(task.__func__, Task):  # a class method, since Python 3.13
        task = _BoundTask(task.__func__, task.__self__)
    if isinstance(task, Task):
        return functools.partial(run_task, task)
    if isinstance(task, str):
        if not _NAME.fullmatch(task):
            raise InvalidTaskError(
                f"the name of a task must look like 'package.module:function' or 'package.module:Class.method', "
                f"not {task!r}"
            )
        return functools.partial(call_named, task)
    if callable(task):
        return task  # type: ignore[no-any-return]
    given = f"{name}={reprlib.repr(task)}" if name else reprlib.repr(task)
    raise InvalidTaskError(
        f"{given}, of type {type(task).__qualname__}, cannot be submitted as a task: that takes "
        "a function or another callable, a deftask, or the name of a function on the servers, such as "
        "'package.module:function'"
    )


def run_task(task: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Call a task where tasks run, so that deftasks with ``local=False`` can be called, too."""
    function = task.function if isinstance(task, Task) else task
    token = _in_task.set(True)
    try:
        return awaited(function(*args, **kwargs))
    finally:
        _in_task.reset(token)


def call_pickled(function: Callable[..., Any], data: bytes, /) -> Any:
    """Call a function with arguments that were pickled before submission."""
    args, kwargs = payload.loads([data])
    return function(*args, **kwargs)


def call_named(name: str, /, *args: Any, **kwargs: Any) -> Any:
    """Call the function of that name in this process.

    Raises:
        ImportError, AttributeError: There is no such function.
        Exception: The function's own exception.
    """
    module, _, path = name.partition(":")
    function: Any = importlib.import_module(module)
    for part in path.split("."):
        function = getattr(function, part)
    return function(*args, **kwargs)


# -- failures of tasks -------------------------------------------------------------------------------


def translated(error: BaseException, *, on_farm: bool, ours: bool = True) -> BaseException:
    """Translate the error of a task's future into lfarm's.

    Args:
        error: The future's exception.
        on_farm: Whether the future is a `FarmExecutor`'s, which distinguishes failures on a worker from failures
            here.
        ours: Whether nobody else reads that future's error, so that it may be changed.

    Returns:
        For a failure in the task, a new `TaskExecutionError` with the task's exception as its ``__cause__``. If the
        future is ours, the farm's report of the failure is moved there from the cause, so that it is shown only
        once. Any other error is returned unchanged: `TaskKilledError` and every other `FarmError`, cancellation, a
        broken executor, and on a farm any failure here, such as a call that could not be pickled.
    """
    details: dict[str, Any] = {}
    if not on_farm:
        if isinstance(error, (FarmError, CancelledError, BrokenExecutor)):
            return error
    else:
        report = take_report if ours else report_of
        remote = None if isinstance(error, TaskExecutionError) else report(error)
        if remote is None:
            return error
        details = {name: getattr(remote, name) for name in ("remote_traceback", "server", "pid", "attempt")}
    type_name = f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins.")
    failure = TaskExecutionError(f"the task raised {describe(error)}", type_name=type_name, **details)
    failure.__cause__ = error
    return failure
