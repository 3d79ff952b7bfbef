"""The large buffers of a function: kept as they came, and given out as private copies.

This module owns where the originals are kept and how a copy is made. It must not know what is in them.

A call may write to the arrays that its function holds, and the next call must find them as they were sent. Copying
them would cost each call as much as pickling does. So they are put into a memory object, which is mapped privately
for each call: the system copies a page when it is first written to, and none that is only read.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence

from farm_executor._record import NamedTuple
from farm_executor.core.frames import Buffer
from farm_executor.data.memory import copied

__all__ = ["Originals"]

LEAST = 512 * 1024  # bytes; below it, copying takes less than mapping does


class _Place(NamedTuple):
    """Where a buffer is in the memory object."""

    begin: int
    size: int


class Originals:
    """The originals of some buffers.

    Args:
        buffers: The originals, which nobody else may write to.
    """

    def __init__(self, buffers: Sequence[Buffer]) -> None:
        self._memory: int | None = None  # the descriptor of the memory object
        self._buffers: list[Buffer | _Place] = list(buffers)
        if any(_is_large(buffer) for buffer in buffers):
            self._move()

    def copies(self) -> list[Buffer]:
        """Return the buffers, each in writable memory of its own; bytes, which nobody can change, as they are."""
        return [self._copy(buffer) for buffer in self._buffers]

    def __del__(self) -> None:
        if self._memory is not None:  # copies that are still in use keep what they have mapped
            os.close(self._memory)

    def _move(self) -> None:
        """Move large buffers into a memory object, if the system has room for one."""
        places: list[Buffer | _Place] = []
        end = 0
        try:
            self._memory = os.memfd_create("farm-function")
            for buffer in self._buffers:
                if isinstance(buffer, _Place) or not _is_large(buffer):
                    places.append(buffer)
                    continue
                with memoryview(buffer).cast("B") as rest:
                    places.append(_Place(end, len(rest)))
                    done = 0
                    while done < len(rest):
                        done += os.pwrite(self._memory, rest[done:], end + done)
                # What is mapped begins with a page.
                end += -(-done // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
        except (AttributeError, OSError):  # not Linux, or a limit on memory or descriptors: each call gets a copy
            return
        self._buffers = places

    def _copy(self, buffer: Buffer | _Place) -> Buffer:
        if not isinstance(buffer, _Place):
            return buffer if type(buffer) is bytes else copied(buffer)
        assert self._memory is not None
        return memoryview(mmap.mmap(self._memory, buffer.size, flags=mmap.MAP_PRIVATE, offset=buffer.begin))


def _is_large(buffer: Buffer) -> bool:
    return type(buffer) is not bytes and memoryview(buffer).nbytes >= LEAST
