"""The levels of loggers on their way to a worker: how LEVELS is laid out; and how a gap in its records shows.

This module owns that, and its limits. It must not know loggers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from farm_executor.core.frames import Buffer, Frame, FrameType, encode_frame
from farm_executor.errors import RemoteProtocolError

__all__ = ["MAX_LEVELS", "NUMBER", "decode_levels", "encode_levels"]

NUMBER = "farm_number"
"""The key, in the first record of a frame, of how many records the worker has sent before."""

MAX_LEVELS = 10_000  # loggers whose level is set
MAX_NAME = 200  # characters
MAX_LEVEL = 1 << 31


def encode_levels(levels: Mapping[str, int]) -> list[Buffer]:
    """Encode the levels of loggers by name; what exceeds the limits is left out."""
    kept = {name: level for name, level in list(levels.items())[:MAX_LEVELS] if _is_level(name, level)}
    return encode_frame(FrameType.LEVELS, body=json.dumps(kept).encode())


def decode_levels(frame: Frame) -> dict[str, int]:
    """Decode the levels of loggers.

    Raises:
        RemoteProtocolError: The frame is malformed.
    """
    try:
        levels = json.loads(bytes(frame.body))
    except (ValueError, RecursionError):
        raise RemoteProtocolError("LEVELS frame that is not JSON") from None
    if type(levels) is not dict or len(levels) > MAX_LEVELS or not all(map(_is_level, levels, levels.values())):
        raise RemoteProtocolError("LEVELS frame without levels of loggers")
    return levels


def _is_level(name: str, level: object) -> bool:
    return len(name) <= MAX_NAME and type(level) is int and 0 <= level < MAX_LEVEL
