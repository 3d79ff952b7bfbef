"""A farm's tasks in OpenTelemetry's traces: the extra ``otel``, which brings OpenTelemetry's API.

::

    from farm_executor import FarmExecutor, telemetry

    with FarmExecutor(["hostA:11111", "hostB:11111"], initializer=start_sdk) as farm:
        traced = telemetry.traced(farm)
        traced.submit(fit, 1).result()

This module owns the client's half: the spans of those who submit. The worker's half is `server.spans`.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from farm_executor.client.front import Front, OptionsView, backing_of, options_of, view_of
from farm_executor.client.tracing import Within
from farm_executor.core import headers
from farm_executor.core.text import name_of
from farm_executor.errors import TaskExecutionError
from farm_executor.extras import needed

__all__ = ["traced"]

if TYPE_CHECKING:
    from farm_executor.client.stream import Stream

PURPOSE = "A trace"

_parent: contextvars.ContextVar[dict[str, Any] | None] = contextvars.ContextVar("farm_executor_trace", default=None)
"""What the calls carry that are submitted now."""


def traced(farm: Front) -> OptionsView:
    """Return a view of a farm whose tasks are in the traces of those who submit them.

    A task has a span ``submit FUNCTION`` here, from its submission to its end, and a span ``run FUNCTION`` in the
    worker, which is its child. A `map` has one span ``map FUNCTION``, and one in the worker for each block of items
    that travel together, with their number; a stream has ``stream FUNCTION``, a broadcast ``broadcast FUNCTION``,
    and one in each worker. Further attempts of a task have spans of their own, with a link.

    A kernel of lfarm's that is made of the view traces its tasks, too: those of a channel and promises as `submit`
    does; `pmap` and its like have one span ``parts FUNCTION``, and one in the worker for each part.

    In workers, spans are recorded if the program's ``initializer`` sets up an SDK there.

    Args:
        farm: The executor, or a view of it, before its first task.

    Raises:
        ModuleNotFoundError: OpenTelemetry's API is not installed here; the message names the extra that brings it.
        RuntimeError: The farm has been started, and its tasks are not traced.
        TypeError: It is no executor.
    """
    if not isinstance(farm, Front):
        raise TypeError(f"farm must be a FarmExecutor, not {farm!r:.100}")
    needed("opentelemetry.trace", "otel", PURPOSE)
    needed("opentelemetry.propagate", "otel", PURPOSE)
    backing = backing_of(farm)
    backing.carry(_SPANS)
    return view_of(_TracedView, backing, options_of(farm))


class _Spans:
    """The part of a call's header that names its parent; a `carrying.Carrier`."""

    part = headers.TRACE

    def load(self) -> dict[str, Any] | None:
        """Return it, if what is being submitted is traced."""
        return _parent.get()


_SPANS = _Spans()


class _Tracing:
    """The spans of calls that are not submitted by a view's own methods; a `tracing.Tracing`."""

    def submitted(self, fn: Any, submit: Callable[[], Future[Any]]) -> Future[Any]:
        """See `Tracing`."""
        return submit() if _parent.get() is not None else _spanned_call("submit", fn, submit)

    @contextmanager
    def spanning(self, what: str, fn: Any) -> Iterator[Within]:
        """See `Tracing`."""
        span, parent = _begin(what, fn, "INTERNAL")
        try:
            yield partial(_within, parent)
        except BaseException as error:
            _fail(span, error)
            raise
        finally:
            span.end()


class _TracedView(OptionsView):
    _tracing = _Tracing()

    # Typed in `Front`, whose overloads hold for these as well.
    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """See `FarmExecutor.submit`; with a span from now to the end."""
        return _spanned_call("submit", fn, partial(super().submit, fn, *args, **kwargs))

    def stream(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Stream[Any]:
        """See `FarmExecutor.stream`; with a span from now to the end of the task."""
        with _submitting("stream", fn, "PRODUCER") as span:
            stream = super().stream(fn, *args, **kwargs)
        if span.is_recording():
            stream.future.add_done_callback(partial(_settled, span))
        return stream

    def map(self, fn: Callable[..., Any], *iterables: Iterable[Any], **options: Any) -> Iterator[Any]:
        """See `FarmExecutor.map`; with a span until all results have been taken."""
        with _submitting("map", fn, "INTERNAL") as span:
            results = super().map(fn, *iterables, **options)
        spanned = _spanned(results, span)
        next(spanned)  # to its first yield: a generator that has not begun would not end the span when it is closed
        return spanned

    def broadcast(
        self, fn: Callable[..., Any], /, *args: object, persistent: bool = False, timeout: float | None = 60.0
    ) -> list[Any]:
        """See `FarmExecutor.broadcast`; with a span until all workers have answered."""
        with _submitting("broadcast", fn, "INTERNAL") as span:
            results = super().broadcast(fn, *args, persistent=persistent, timeout=timeout)
        span.end()
        return results

    def with_options(
        self,
        *,
        priority: int | str | None = None,
        category: Hashable = None,
        max_attempts: int | None = None,
        timeout: float | None = None,
    ) -> OptionsView:
        """See `FarmExecutor.with_options`; the view is traced, too."""
        options = super().with_options(
            priority=priority, category=category, max_attempts=max_attempts, timeout=timeout
        )
        return view_of(_TracedView, backing_of(self), options_of(options))


def _begin(what: str, fn: Any, kind: str) -> tuple[Any, dict[str, Any]]:
    """Return a new span, and what names it to workers."""
    trace = needed("opentelemetry.trace", "otel", PURPOSE)
    propagate = needed("opentelemetry.propagate", "otel", PURPOSE)
    name = name_of(fn)
    attributes = {headers.SPAN_SYSTEM: headers.SYSTEM, headers.SPAN_FUNCTION: name}
    tracer = trace.get_tracer(headers.SYSTEM)
    span = tracer.start_span(f"{what} {name}", kind=trace.SpanKind[kind], attributes=attributes)
    parent: dict[str, str] = {}
    propagate.inject(parent, trace.set_span_in_context(span))
    return span, {"name": name, "parent": parent}


@contextmanager
def _within(parent: dict[str, Any]) -> Iterator[None]:
    token = _parent.set(parent)
    try:
        yield
    finally:
        _parent.reset(token)


@contextmanager
def _submitting(what: str, fn: Any, kind: str) -> Iterator[Any]:
    """Have the calls that are submitted within carry the name of a new span, which ends if that fails."""
    span, parent = _begin(what, fn, kind)
    try:
        with _within(parent):
            yield span
    except BaseException as error:
        _fail(span, error)
        span.end()
        raise


def _spanned_call(what: str, fn: Any, submit: Callable[[], Future[Any]]) -> Future[Any]:
    with _submitting(what, fn, "PRODUCER") as span:
        future = submit()
    if span.is_recording():
        future.add_done_callback(partial(_settled, span))
    return future


def _settled(span: Any, future: Future[Any]) -> None:
    if future.cancelled():
        span.set_attribute(headers.SPAN_ERROR, "cancelled")
    else:
        error = future.exception()
        if error is not None:
            _fail(span, error)
    span.end()


def _spanned(results: Iterator[Any], span: Any) -> Generator[Any, None, None]:
    try:
        yield None  # see `map`
        yield from results
    except Exception as error:
        _fail(span, error)
        raise
    finally:
        span.end()


def _fail(span: Any, error: BaseException) -> None:
    trace = needed("opentelemetry.trace", "otel", PURPOSE)
    if isinstance(error, TaskExecutionError) and error.__cause__ is not None:
        error = error.__cause__  # lfarm's, which stands for the task's own
    kind = type(error).__qualname__
    span.set_attribute(headers.SPAN_ERROR, kind)
    span.set_status(trace.Status(trace.StatusCode.ERROR, kind))
