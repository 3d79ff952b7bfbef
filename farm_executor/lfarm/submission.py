"""Submission of calls to executors: to a farm with category and priority, to any other as a plain function.

This module owns the steps before the executor's own `submit`. It must not know kernels or channels.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from concurrent.futures import Executor, Future
from contextlib import AbstractContextManager, nullcontext
from contextvars import copy_context
from functools import partial
from types import FunctionType
from typing import TYPE_CHECKING, Any, Protocol

from farm_executor.client.farm.functions import Function
from farm_executor.client.farm.wording import culprit
from farm_executor.client.front import Front, OptionsView, backing_of, options_of, tracing_of
from farm_executor.core.options import TaskOptions
from farm_executor.data import payload
from farm_executor.lfarm.tasks import Task, call_pickled, run_task, sendable, travelling_by_value

if TYPE_CHECKING:
    from farm_executor.client.protocol import Farm
    from farm_executor.client.stream import Stream
    from farm_executor.client.tracing import Tracing, Within

__all__ = ["Options", "Submission", "ToAny", "ToFarm", "ToTracedFarm", "submission_to"]

Options = tuple[Hashable, str]
"""A task's category and priority."""

Call = Callable[..., Any] | str
MAX_OPTIONS = 256


class Submission(Protocol):
    """The operations that a kernel needs of its executor.

    Attributes:
        on_farm: Whether the executor is a farm, whose errors say where a task ran.
    """

    on_farm: bool

    def farm_for(self, what: str) -> ToFarm:
        """Return the farm, for what other executors cannot do.

        Raises:
            TypeError: The executor is not a farm; the message says what needs one.
        """

    def submit(self, task: Call, args: tuple[Any, ...], kwargs: dict[str, Any], options: Options) -> Future[Any]:
        """Submit a call.

        Raises:
            InvalidTaskError: The task is not one that can be submitted.
            RuntimeError: The executor has been shut down.
        """

    def lead_until(self, done: Callable[[], bool]) -> None:
        """Do the executor's work in this thread, if possible, which is about to wait until ``done()``."""

    def nudge(self) -> None:
        """Wake threads in `lead_until`, whose condition may have come true by other means than their work."""

    def prepare(
        self, task: Call, args: tuple[Any, ...], kwargs: dict[str, Any], options: Options
    ) -> Callable[[], Future[Any]]:
        """Prepare a call in its present state to be submitted later.

        Returns:
            A function that submits the call.

        Raises:
            InvalidTaskError: The task is not one that can be submitted.
        """

    def spanning(self, function: Callable[..., Any]) -> AbstractContextManager[Within]:
        """Return a context for the submission and the end of calls that belong together; see `Tracing.spanning`."""


class ToAny:
    """Submission to an executor of any kind, which knows neither categories nor priorities."""

    on_farm = False

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    def submit(self, task: Call, args: tuple[Any, ...], kwargs: dict[str, Any], options: Options) -> Future[Any]:
        """See `Submission`."""
        return self._executor.submit(run_task, sendable(task), *args, **kwargs)

    def farm_for(self, what: str) -> ToFarm:
        """See `Submission`."""
        raise TypeError(f"{what} needs a FarmExecutor; this kernel's executor is a {type(self._executor).__name__}")

    def lead_until(self, done: Callable[[], bool]) -> None:
        """Do nothing: this executor does not need the caller's thread."""

    def nudge(self) -> None:
        """Do nothing: no thread is in `lead_until`."""

    def prepare(
        self, task: Call, args: tuple[Any, ...], kwargs: dict[str, Any], options: Options
    ) -> Callable[[], Future[Any]]:
        """See `Submission`. The objects themselves are kept, since this executor may not pickle them at all."""
        return partial(self._executor.submit, run_task, sendable(task), *args, **kwargs)

    def spanning(self, function: Callable[..., Any]) -> AbstractContextManager[Within]:
        """See `Submission`."""
        return nullcontext(nullcontext)


class ToFarm:
    """Submission to a farm.

    Args:
        executor: The farm, or a view of it, whose options apply where a task's own do not.
        label: Maps a task's category to the one used on the farm.
    """

    on_farm = True

    def __init__(self, executor: Front, label: Callable[[Hashable], Hashable]) -> None:
        self.farm = executor
        self._backing = backing_of(executor)
        self._label = label
        self._options: dict[Options, TaskOptions] = {}

    def submit(self, task: Call, args: tuple[Any, ...], kwargs: dict[str, Any], options: Options) -> Future[Any]:
        """See `Submission`. A call that cannot be pickled gives a failed future, as on the farm itself."""
        engine = self._backing.engine or self._backing.start_engine()
        sent: Callable[..., Any] | Function
        if type(task) is FunctionType:
            sent = task
        elif isinstance(task, Task):
            try:
                sent = _prepared(engine, task.function)
            except Exception as error:
                return _failed(error)
        else:
            sent = sendable(task)
        return engine.submit(sent, args, kwargs, self._options.get(options) or self._make_options(options))

    def prepare(
        self, task: Call, args: tuple[Any, ...], kwargs: dict[str, Any], options: Options
    ) -> Callable[[], Future[Any]]:
        """See `Submission`. The call is pickled now, and what travels with it is what would travel now."""
        return partial(copy_context().run, self._prepare(task, args, kwargs, options))

    def _prepare(
        self, task: Call, args: tuple[Any, ...], kwargs: dict[str, Any], options: Options
    ) -> Callable[[], Future[Any]]:
        function = sendable(task)
        engine = self._backing.start_engine()
        try:
            sent = _prepared(engine, partial(call_pickled, function))
            with engine.sharing.pickling() as pickling:
                data = bytes(payload.dumps((args, kwargs), out_of_band=False)[0])
            # What the call refers to stays shared until it has been submitted, and has ended.
            sent = sent._replace(records=(*sent.records, *pickling.found.values()))
        except BaseException as error:
            culprit(error, (args, kwargs))
            return partial(_failed, error)
        return partial(engine.submit, sent, (data,), {}, self._make_options(options))

    def farm_for(self, what: str) -> ToFarm:
        """See `Submission`."""
        return self

    def lead_until(self, done: Callable[[], bool]) -> None:
        """See `Submission`."""
        if self._backing.engine is not None:
            self._backing.engine.lead_until(done)

    def nudge(self) -> None:
        """See `Submission`."""
        if self._backing.engine is not None:
            self._backing.engine.nudge()

    def spanning(self, function: Callable[..., Any]) -> AbstractContextManager[Within]:
        """See `Submission`."""
        return nullcontext(nullcontext)

    def broadcast(
        self, task: Call, args: tuple[Any, ...], options: Options, *, persistent: bool, timeout: float | None
    ) -> list[Any]:
        """Run a task on every worker; see `FarmExecutor.broadcast`."""
        sent: Any = sendable(task)
        if isinstance(task, Task):
            sent = _prepared(self._backing.start_engine(), task.function)
        return self.view(options).broadcast(sent, *args, persistent=persistent, timeout=timeout)

    def stream(self, task: Call, args: tuple[Any, ...], kwargs: dict[str, Any], options: Options) -> Stream[Any]:
        """Run a task whose items come one by one; see `FarmExecutor.stream`."""
        return self.view(options).stream(sendable(task), *args, **kwargs)

    def view(self, options: Options) -> OptionsView:
        """Return the farm's executor for tasks with these options."""
        category, priority = options
        return self.farm.with_options(category=self._label(category), priority=priority)

    def _make_options(self, options: Options) -> TaskOptions:
        if len(self._options) >= MAX_OPTIONS:  # for instance, if each job has a category of its own
            self._options.clear()
        made = self._options[options] = options_of(self.view(options))
        return made


class ToTracedFarm(ToFarm):
    """Submission to a view of a farm whose tasks are traced; see `telemetry.traced`.

    A class of its own, so that submitting to other farms costs nothing more.
    """

    def __init__(self, executor: Front, label: Callable[[Hashable], Hashable], tracing: Tracing) -> None:
        super().__init__(executor, label)
        self._tracing = tracing

    def submit(self, task: Call, args: tuple[Any, ...], kwargs: dict[str, Any], options: Options) -> Future[Any]:
        """See `Submission`."""
        return self._tracing.submitted(task, partial(super().submit, task, args, kwargs, options))

    def _prepare(
        self, task: Call, args: tuple[Any, ...], kwargs: dict[str, Any], options: Options
    ) -> Callable[[], Future[Any]]:
        return partial(self._tracing.submitted, task, super()._prepare(task, args, kwargs, options))

    def spanning(self, function: Callable[..., Any]) -> AbstractContextManager[Within]:
        """See `Submission`."""
        return self._tracing.spanning("parts", function)


def submission_to(executor: Executor, label: Callable[[Hashable], Hashable]) -> Submission:
    """Return the way to submit to an executor; ``label`` as in `ToFarm`."""
    if not isinstance(executor, Front):
        return ToAny(executor)
    tracing = tracing_of(executor)
    return ToFarm(executor, label) if tracing is None else ToTracedFarm(executor, label, tracing)


def _prepared(engine: Farm, function: Callable[..., Any]) -> Function:
    with travelling_by_value():
        return engine.prepare(function)


def _failed(error: BaseException) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_running_or_notify_cancel()
    future.set_exception(error)
    return future
