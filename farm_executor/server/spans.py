"""The worker's half of traces: a span around a task, or around a block of a map's items.

This module owns what such a span says. It must not know how the name of its parent travels. Only OpenTelemetry's
API is used: what is recorded, and where it goes, is for the SDK that the program sets up in its initializer. Where
the API is not installed, or there is no SDK, nothing is recorded.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

from farm_executor.core import headers
from farm_executor.data import blocks

__all__ = ["consuming", "failed"]

_current: Any = None
"""The span of the task that runs; tasks run one after another, in one thread."""


@contextlib.contextmanager
def consuming(part: Mapping[str, Any]) -> Iterator[None]:
    """Return a context in which a task runs: a span of its own, as a child of that which has submitted it."""
    global _current
    try:
        from opentelemetry import propagate, trace
    except ImportError:
        yield
        return
    parent = propagate.extract(part["parent"])
    name, attempt = str(part["name"]), int(part.get("attempt", 1))
    # A further attempt is not what its parent waits for alone: a link says that there was another before.
    links = [trace.Link(trace.get_current_span(parent).get_span_context())] if attempt > 1 else []
    attributes = {
        headers.SPAN_SYSTEM: headers.SYSTEM,
        headers.SPAN_FUNCTION: name,
        headers.SPAN_ATTEMPT: attempt,
        headers.SPAN_PID: os.getpid(),
    }
    tracer = trace.get_tracer(headers.SYSTEM)
    kind = trace.SpanKind.CONSUMER
    with tracer.start_as_current_span(f"run {name}", parent, kind, attributes, links) as span:
        _current, blocks.listener = span, _tell_block
        try:
            yield
        finally:
            _current = blocks.listener = None


def failed(error: BaseException) -> None:
    """Note that the task which runs has failed."""
    span = _current
    if span is None:
        return
    from opentelemetry.trace import Status, StatusCode

    # What a user's exception does when it is printed must not change the task's outcome.
    with contextlib.suppress(Exception):
        span.set_attribute(headers.SPAN_ERROR, type(error).__qualname__)
        span.set_status(Status(StatusCode.ERROR, type(error).__qualname__))
        span.record_exception(error)


def _tell_block(items: int, error: BaseException | None) -> None:
    if _current is not None:
        _current.set_attribute(headers.SPAN_ITEMS, items)
    if error is not None:
        failed(error)
