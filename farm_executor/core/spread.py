"""Which worker of a server brings it the buffers of a large function, for all its other workers.

This module owns that, for one session. It must not know functions or frames, nor what a server may hold (`shelf`).

The first worker that is sent such a function gets it whole, and hands its buffers to its server. The others are
sent the function without them, and get them from there. A server that cannot hold them, or whose first worker is
lost before it has said that it holds them, is not asked again: every worker gets the function whole then.
"""

from __future__ import annotations

import enum

from farm_executor.core.sharing import State

__all__ = ["How", "Spread"]


class How(enum.Enum):
    """How a function is sent to a worker."""

    ALONE = enum.auto()
    """Whole, for this worker only."""

    BRING = enum.auto()
    """Whole, and the worker hands the buffers to its server."""

    TAKE = enum.auto()
    """Without the buffers, which the server has or is about to get."""


class Spread:
    """What one session's server has of large functions, by the numbers of the objects that hold their buffers."""

    def __init__(self) -> None:
        self._bringers: dict[int, int] = {}  # the lane of each that the server is about to get
        self._held: set[int] = set()
        self._left: set[int] = set()  # given up

    def send(self, number: int, lane: int) -> How:
        """Return how to send a function over a lane, which is about to be done."""
        if number in self._left:
            return How.ALONE
        # Also over the lane that brings it: its worker has handed the buffers in before it reads what comes next.
        if number in self._held or number in self._bringers:
            return How.TAKE
        self._bringers[number] = lane
        return How.BRING

    def answered(self, number: int, state: State) -> None:
        """Take the server's answer to an offer."""
        # That it wants the object says nothing new: it comes with the function, perhaps later.
        if state is State.WANTED or number in self._left:
            return
        self._bringers.pop(number, None)
        (self._held if state is State.HELD else self._left).add(number)

    def lane_gone(self, lane: int) -> list[int]:
        """Give up what a lost lane may not have brought; return it, as workers may be waiting for it."""
        lost = [number for number, bringer in self._bringers.items() if bringer == lane]
        for number in lost:
            del self._bringers[number]
        self._left.update(lost)
        return lost

    def gave_up(self, number: int) -> bool:
        """Return whether workers get a function whole, as its buffers will not come to their server."""
        return number in self._left

    def drop(self, number: int) -> None:
        """Forget an object that nobody needs any more."""
        self._bringers.pop(number, None)
        self._held.discard(number)
        self._left.discard(number)
