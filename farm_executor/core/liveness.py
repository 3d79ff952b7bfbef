"""Whether a peer is still there, and whether what is sent arrives.

This module owns the two judgements; it must not know clocks or sockets. Both count *beats*, which a driver gives
at equal intervals, and not seconds: a process that was stopped for an hour, such as by Ctrl-Z, has missed one beat,
and not an hour of its peer's words.
"""

from __future__ import annotations

__all__ = ["CUT_EXIT_CODE", "MAX_MISSED", "Flow", "Pulse"]

MAX_MISSED = 3
"""Beats in a row without a sign, after which something is taken for lost."""


CUT_EXIT_CODE = 75
"""That of a worker whose connection has broken before it was ready: there is nothing to resume."""


class Pulse:
    """A peer that should be heard between any two beats."""

    __slots__ = ("_heard", "_missed")

    def __init__(self) -> None:
        self._heard = True
        self._missed = 0

    def heard(self) -> None:
        """It has said something."""
        self._heard = True

    def beat(self) -> bool:
        """The time of one beat is over: whether the peer has been silent for too many."""
        self._missed = 0 if self._heard else self._missed + 1
        self._heard = False
        return self._missed >= MAX_MISSED


class Flow:
    """Bytes on their way in one direction of a connection.

    What one end has handed over must have arrived at the other a beat later, or at least more must have arrived
    than before: a slow network is not a broken one.

    Args:
        patience: Beats in a row without a movement, until the first movement; `MAX_MISSED` from then on.
    """

    __slots__ = ("_arrived", "_due", "_missed", "_patience")

    def __init__(self, patience: int = MAX_MISSED) -> None:
        self._patience = patience
        self._due = 0
        self._arrived = 0
        self._missed = 0

    def beat(self, sent: int, arrived: int) -> bool:
        """The time of one beat is over: whether nothing has moved for too many.

        Args:
            sent: The bytes handed over at one end so far.
            arrived: The bytes that have come to the other, known at most a beat later.
        """
        stands = arrived < self._due and arrived <= self._arrived
        if arrived >= self._due > 0:
            self._patience = MAX_MISSED
        self._missed = self._missed + 1 if stands else 0
        self._due, self._arrived = sent, arrived
        return self._missed >= self._patience
