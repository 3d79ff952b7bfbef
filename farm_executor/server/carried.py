"""What travels with a call beside its arguments, put in place around the call.

This module owns what each part of a call's header means. It must not know how a header travels, nor what the call
is.

The call runs in a context of its own, so that nothing of the header is left for the next.
"""

from __future__ import annotations

import contextlib
import contextvars
import importlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from farm_executor.core.headers import TRACE, VARS

__all__ = ["within"]

T = TypeVar("T")


def _set_vars(values: Mapping[str, Any]) -> contextlib.AbstractContextManager[object]:
    for name, value in values.items():
        module, _, attribute = name.partition(":")
        getattr(importlib.import_module(module), attribute).set(value)
    return contextlib.nullcontext()


def _in_span(part: Mapping[str, Any]) -> contextlib.AbstractContextManager[object]:
    from farm_executor.server.spans import consuming  # late: few programs trace

    return consuming(part)


# What to do with each part that this version knows: called in the call's own context, before the call.
_PARTS: dict[str, Callable[[Any], contextlib.AbstractContextManager[object]]] = {
    VARS: _set_vars,
    TRACE: _in_span,
}


def within(header: Mapping[str, Any], call: Callable[[], T]) -> T:
    """Make a call with what its header says.

    Raises:
        Exception: The header cannot be put in place, as a module is missing.
    """

    def run() -> T:
        with contextlib.ExitStack() as stack:
            for name, part in header.items():
                if name in _PARTS:
                    stack.enter_context(_PARTS[name](part))
            return call()

    return contextvars.copy_context().run(run)
