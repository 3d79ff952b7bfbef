"""What a worker tells its supervisor through memory that both share, so that it outlives a crash.

This module owns the fields of that memory. It must not know who acts on them, nor how.

The worker alone writes, at every task, so it writes `Progress.cells` directly: a property would cost a call. The
supervisor reads at any moment, also of a worker that it has stopped between two instructions. So each field is an
aligned word of its own, which the processor writes whole.
"""

from __future__ import annotations

import mmap

__all__ = ["BEGUN", "BUSY", "NOT_BEGUN", "RECALLS", "RECEIVED", "SENT", "SINCE", "SPENT", "Progress"]

BEGUN = 0
"""The number of the last task begun; `NOT_BEGUN` if none was."""
RECEIVED = 1
"""The bytes received over the present connection."""
SENT = 2
"""The bytes sent over the present connection, or about to be."""
BUSY = 3
"""Whether there is something to run, including the initializer."""
RECALLS = 4
"""How often task numbers have become free again, modulo 2^16."""
SINCE = 5
"""When the present task began, by `time.perf_counter`; 0 when nothing runs and nothing follows. In `times`."""
SPENT = 6
"""The seconds in tasks before the present one. In `times`."""
_FIELDS = 7

NOT_BEGUN = -1


class Progress:
    """The memory that one worker shares with its supervisor.

    Attributes:
        cells: The fields, by the numbers that this module names.
        times: The same as floats, for those that are times.
    """

    __slots__ = ("_memory", "cells", "times")

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 8 * _FIELDS)
        self.cells = memoryview(self._memory).cast("q")
        self.times = memoryview(self._memory).cast("d")
        self.cells[BEGUN] = NOT_BEGUN

    @property
    def begun(self) -> int:
        """See `BEGUN`."""
        return self.cells[BEGUN]

    @property
    def received(self) -> int:
        """See `RECEIVED`."""
        return self.cells[RECEIVED]

    @property
    def sent(self) -> int:
        """See `SENT`."""
        return self.cells[SENT]

    @property
    def busy(self) -> bool:
        """See `BUSY`."""
        return bool(self.cells[BUSY])

    @property
    def recalls(self) -> int:
        """See `RECALLS`."""
        return self.cells[RECALLS]

    @property
    def since(self) -> float:
        """See `SINCE`."""
        return self.times[SINCE]

    @property
    def spent(self) -> float:
        """See `SPENT`."""
        return self.times[SPENT]

    @property
    def closed(self) -> bool:
        """Whether there is nothing left to read."""
        return self._memory.closed

    def close(self) -> None:
        """Let go of the memory."""
        self.cells.release()
        self.times.release()
        self._memory.close()
