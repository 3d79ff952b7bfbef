"""What travels with calls beside their arguments: the client's half of their headers.

This module owns what is taken along when a call is submitted, and how large it may be. It must not know how a
header travels, nor what workers do with it.

A header is taken when a call is submitted, in the submitting thread. Those of calls that are submitted in the same
circumstances are equal, and a lane sends it once for all of them.
"""

from __future__ import annotations

import contextvars
import importlib
import pickle
from collections.abc import Sequence
from typing import Any, Protocol

from farm_executor.core.headers import MAX_HEADER, TRACE, VARS
from farm_executor.data import payload

__all__ = ["Carrier", "Carriers", "Variables", "again"]


class Carrier(Protocol):
    """Something that travels with each call.

    Attributes:
        part: The name of its part of a header.
    """

    part: str

    def load(self) -> Any:
        """Return what a call that is submitted now carries; None for nothing. Runs in the submitting thread."""


class Carriers:
    """All that travels with a farm's calls.

    Thread safety: `header` may be called from any thread.
    """

    def __init__(self, carriers: Sequence[Carrier]) -> None:
        self._carriers = carriers

    def __bool__(self) -> bool:
        return bool(self._carriers)

    def header(self) -> bytes:
        """Return the header of a call that is submitted now; empty if there is nothing to say.

        Raises:
            ValueError: It is too large.
            Exception: Something in it cannot be pickled.
        """
        # Pickled for each call, although most are equal: nobody can say whether a value has changed inside.
        parts: dict[str, Any] = {}
        for carrier in self._carriers:
            load = carrier.load()
            if load is not None:
                parts[carrier.part] = load
        if not parts:
            return b""
        header = bytes(payload.dumps(parts, out_of_band=False)[0])
        # Here, where the call's own future can hold the error: a lane that sends it could only break.
        if len(header) > MAX_HEADER:
            raise ValueError(
                f"what travels with the call has {len(header)} bytes, more than {MAX_HEADER}: "
                "pass large values as arguments"
            )
        return header


class Variables:
    """The values of context variables.

    Args:
        names: Each variable's module and name in it, ``module:name``.

    Raises:
        ImportError, AttributeError: There is no such variable here.
    """

    part = VARS

    def __init__(self, names: Sequence[str]) -> None:
        self._variables: dict[str, contextvars.ContextVar[Any]] = {}
        for name in names:
            module, _, attribute = name.partition(":")
            self._variables[name] = getattr(importlib.import_module(module), attribute)

    def load(self) -> dict[str, Any] | None:
        """See `Carrier`."""
        context = contextvars.copy_context()  # a default is not set, and workers have it, too
        values = {name: context[variable] for name, variable in self._variables.items() if variable in context}
        # One by one, so that the error can name the variable.
        for name, value in values.items():
            try:
                payload.dumps(value)
            except Exception as error:
                kind = type(value).__qualname__
                raise pickle.PicklingError(
                    f"the value of the context variable {name}, of type {kind}, cannot be sent to a worker: {error}"
                ) from error
        return values or None


def again(header: bytes, losses: int) -> bytes:
    """Return the header of a call that has been begun that many times before."""
    # For traces alone, where attempts are told apart. The header is our own, of a few builtin values by then.
    try:
        parts = payload.loads((header,))
    except Exception:  # a context variable's value that cannot be read here: it travels as it is
        return header
    if TRACE not in parts:
        return header
    return bytes(payload.dumps({**parts, TRACE: {**parts[TRACE], "attempt": losses + 1}}, out_of_band=False)[0])
