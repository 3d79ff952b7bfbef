"""The buffers of a large function that all workers of a server have in common.

This module owns where one worker gets them from, for each call: from its server, or else from its client. It must
not know how either is asked.

They are in a memory object, which is mapped privately for each call, as for `originals`. Its server may not have
it: there is no room, or the worker that was to bring it has died, or does not read what it is sent because its task
keeps the interpreter. Then the client is asked for the function whole, and this worker keeps what it gets.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from farm_executor.core.frames import Buffer, Payload
from farm_executor.errors import SharedMemoryError
from farm_executor.server.originals import Originals
from farm_executor.server.shared import Held, SharedObjects

__all__ = ["Handed", "handed_in"]

logger = logging.getLogger(__name__)

PATIENCE = 30.0  # seconds for another worker to bring them: a gigabyte takes ten on a network of 1 Gbit/s


class Handed:
    """The buffers of one function, as this worker has them.

    Args:
        objects: Where its server's are found.
        number: Their number there.
        ask: Asks the client for the function whole, and returns it.
    """

    def __init__(self, objects: SharedObjects, number: int, ask: Callable[[], Payload]) -> None:
        self._objects = objects
        self._number = number
        self._ask = ask
        self._from: Held | Originals | None = None

    def copies(self) -> list[Buffer]:
        """Return the buffers, each in writable memory of its own.

        Raises:
            SharedMemoryError: They cannot be had from anybody.
        """
        if self._from is None:
            try:
                self._from = self._objects.fetch(self._number, PATIENCE)
            except (SharedMemoryError, OSError) as error:
                logger.debug("function comes from the client reason=%s", error)
                self._from = Originals(self._ask()[1:])
        return self._from.copies()


def handed_in(objects: SharedObjects, number: int, buffers: Payload) -> Held | Originals:
    """Hand the buffers of a function to the server under a number, and return them for this worker."""
    held = objects.hand_in(number, buffers)
    return Originals(buffers) if held is None else held
