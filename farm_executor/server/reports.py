"""How far tasks say that they have come, until it is told to the client.

This module owns which reports are still to be told, and when. It must not send, nor know who reads them.
"""

from __future__ import annotations

import time
from collections import deque

from farm_executor.core.frames import Buffer, FrameType, encode_frame
from farm_executor.data import payload

__all__ = ["Report", "Reports"]

REPORT_SECONDS = 0.1  # between two that are told

Report = tuple[float, float | None, str]  # how much is done, how much there is, a message


class Reports:
    """The latest report of each task, while it has not been told.

    Attributes:
        waiting: Those reports, with the numbers of their tasks.

    Thread safety: all methods may be called from any thread, and from a signal handler.
    """

    def __init__(self) -> None:
        self.waiting: deque[tuple[int, Report]] = deque()
        self._told = 0.0

    @property
    def due(self) -> bool:
        """Whether it is time to."""
        return bool(self.waiting) and time.perf_counter() - self._told >= REPORT_SECONDS

    def add(self, seq: int, report: Report) -> None:
        """Note what the task with this number has reported."""
        try:
            # Only the latest of one task counts. That of an earlier one must not be missing for a moment: another
            # thread may be about to send its result.
            if self.waiting[-1][0] == seq:
                self.waiting[-1] = (seq, report)
                return
        except IndexError:  # all have been told meanwhile
            pass
        self.waiting.append((seq, report))

    def take(self) -> list[Buffer]:
        """Return the frames that tell everything."""
        self._told = time.perf_counter()
        frames: list[Buffer] = []
        while self.waiting:
            try:
                seq, report = self.waiting.popleft()
            except IndexError:  # another thread is faster
                break
            frames += encode_frame(FrameType.REPORT, count=1, seq=seq, body=payload.dumps_together(list(report)))
        return frames
