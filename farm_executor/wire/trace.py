"""The log of frames: one line for each that is sent or received, for people who look for a fault.

This module owns the logger ``farm_executor.wire``, how a line reads, and when it may be written. It must not know
what a frame is for; no line shows what is in one.

A connection asks once, when it is made, whether frames are logged: otherwise each would pay for the question.

Frames are sent with locks held, under which nobody may log: a handler of the user's may submit. So lines about what
is sent are collected, and written by `tell`, which is called where the locks have been released.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence

from farm_executor.core.frames import BULK, ERROR, HEADER, HEADER_SIZE, ONCE, TOGETHER, Buffer, Frame, FrameType

__all__ = ["Trace", "pending", "tell", "trace_of"]

logger = logging.getLogger("farm_executor.wire")

pending: deque[str] = deque()
"""Lines to be written; see `tell`. Any thread may append."""

_FLAGS = {BULK: "BULK", ERROR: "ERROR", ONCE: "ONCE", TOGETHER: "TOGETHER"}
_telling = threading.local()

# A forked child must not write the lines of its parent.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=pending.clear)


def trace_of(label: str) -> Trace | None:
    """Return the log of a connection's frames, or None if frames are not logged.

    Args:
        label: Says at the end of each line which connection it is about.
    """
    return Trace(label) if logger.isEnabledFor(logging.DEBUG) else None


class Trace:
    """The log of one connection's frames.

    Thread safety: any thread may call any method.
    """

    def __init__(self, label: str) -> None:
        self._label = label

    def sent(self, buffers: Sequence[Buffer]) -> None:
        """Note that these encoded frames are being sent; does not log before the next `tell`."""
        if not getattr(_telling, "now", False):
            pending.extend([f"> {_described(frame)} {self._label}" for frame in _frames(buffers)])

    def received(self, frames: Sequence[Frame]) -> None:
        """Log frames that have been received. No lock may be held."""
        pending.extend([f"< {_described(frame)} {self._label}" for frame in frames])
        tell()


def tell() -> None:
    """Log what is pending. No lock may be held, as handlers of the user's run here.

    What such a handler itself sends in this thread is not logged: one that submits would have no end.
    """
    if getattr(_telling, "now", False):
        return
    _telling.now = True
    try:
        while pending:
            try:
                line = pending.popleft()
            except IndexError:  # another thread was faster
                break
            logger.log(logging.DEBUG, line)
    finally:
        _telling.now = False


def _frames(buffers: Sequence[Buffer]) -> Iterator[Frame]:
    """Yield the frames that `encode_frame` and others have encoded as these buffers."""
    rest = iter(buffers)
    for head in rest:
        length, kind, flags, count, seq = HEADER.unpack_from(head)
        body = memoryview(head)[HEADER_SIZE:]
        if len(body) < length:  # a long body has a buffer of its own
            body = memoryview(next(rest))
        segments = int.from_bytes(body[:4], "little") if flags & BULK else 0
        yield Frame(FrameType(kind), flags, count, seq, body, tuple([next(rest) for _ in range(segments)]))


def _described(frame: Frame) -> str:
    flags = "".join(f" {name}" for flag, name in _FLAGS.items() if frame.flags & flag)
    text = f"{frame.type.name}{flags} count={frame.count} seq={frame.seq} body={len(frame.body)}"
    if frame.segments:
        size = sum([memoryview(segment).nbytes for segment in frame.segments])
        text += f" segments={len(frame.segments)} size={size}"
    return text
