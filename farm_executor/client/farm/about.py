"""What the client knows of a task, for the task itself.

This module owns what is told, and how it is laid out. It must not know who asks, nor send.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from farm_executor.core.frames import Buffer, Frame
from farm_executor.data import payload
from farm_executor.errors import RemoteProtocolError

if TYPE_CHECKING:
    from farm_executor.client.farm.call import Call

__all__ = ["asked_about", "details_of"]

MAX_CATEGORY = 64 * 1024  # bytes of its pickle


def asked_about(frame: Frame) -> int:
    """Return the number of the task that an ABOUT frame asks for.

    Raises:
        RemoteProtocolError: The frame is malformed.
    """
    if len(frame.body) != 8:
        raise RemoteProtocolError(f"ABOUT frame with a body of {len(frame.body)} bytes, not 8")
    return int.from_bytes(frame.body, "little")


def details_of(call: Call, left: float | None) -> Buffer:
    """Return what a task may know of itself, given the seconds that it has left."""
    told, category = (call.id, call.losses + 1), call.options.category
    # A category may be any object that is hashable, and so one that cannot be pickled. To know its repr is better
    # than to have the task fail for asking.
    try:
        (data,) = payload.dumps((*told, category, left), out_of_band=False)
        if len(data) <= MAX_CATEGORY:
            return data
    except Exception:
        pass
    return payload.dumps((*told, f"{category!r:.1000}", left), out_of_band=False)[0]
