"""The names of what a call's header may hold, and its limit.

This module owns these alone: each end has its own idea of what to do with a part.
"""

from __future__ import annotations

__all__ = [
    "MAX_HEADER",
    "SPAN_ATTEMPT",
    "SPAN_ERROR",
    "SPAN_FUNCTION",
    "SPAN_ITEMS",
    "SPAN_PID",
    "SPAN_SYSTEM",
    "SYSTEM",
    "TRACE",
    "VARS",
]

MAX_HEADER = 64 * 1024  # bytes: what is larger is an argument

VARS = "vars"
"""Context variables, by name."""

TRACE = "trace"
"""The parent of the task's span: its function's name as ``name``, what names the parent as ``parent``, as the
propagators of OpenTelemetry have it, and for further attempts their number as ``attempt``."""

# The attributes of spans. OpenTelemetry's names for messaging are still being made, so they are here alone.
SYSTEM = "farm_executor"
SPAN_SYSTEM = "messaging.system"
SPAN_FUNCTION = "code.function.name"
SPAN_PID = "process.pid"
SPAN_ERROR = "error.type"
SPAN_ATTEMPT = "farm.task.attempt"
SPAN_ITEMS = "farm.items"
