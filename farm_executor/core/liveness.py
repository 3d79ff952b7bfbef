"""Decide whether a peer is still alive, and whether the bytes that are sent arrive.

This module owns the two judgements; it must not know clocks or sockets. Both count *beats*, which a driver gives
at equal intervals, rather than seconds: a process that was stopped for an hour, such as by Ctrl-Z, has missed one
beat, not an hour of its peer's signs of life.
"""

from __future__ import annotations

__all__ = ["CUT_EXIT_CODE", "MAX_MISSED", "Flow", "Pulse"]

MAX_MISSED = 3
"""Beats in a row without a sign of life, after which a peer or a connection is taken for lost."""


CUT_EXIT_CODE = 75
"""The exit code of a worker whose connection broke before it was ready: there is nothing to resume."""


class Pulse:
    """A peer that should be heard from between any two beats."""

    __slots__ = ("_heard", "_missed")

    def __init__(self) -> None:
        self._heard = True
        self._missed = 0

    def heard(self) -> None:
        """Take note that the peer has said something."""
        self._heard = True

    def beat(self) -> bool:
        """End one beat; return whether the peer has been silent for too many of them."""
        self._missed = 0 if self._heard else self._missed + 1
        self._heard = False
        return self._missed >= MAX_MISSED


class Flow:
    """Bytes in flight in one direction of a connection.

    The bytes that one end has sent must have arrived at the other a beat later, or at least more must have arrived
    than before: a slow network is not a broken one.

    Args:
        patience: How many beats in a row may pass without progress until everything sent has arrived once;
            `MAX_MISSED` from then on.
    """

    __slots__ = ("_arrived", "_due", "_missed", "_patience")

    def __init__(self, patience: int = MAX_MISSED) -> None:
        self._patience = patience
        self._due = 0
        self._arrived = 0
        self._missed = 0

    def beat(self, sent: int, arrived: int) -> bool:
        """End one beat; return whether there has been no progress for too many of them.

        Args:
            sent: The number of bytes handed over at one end so far.
            arrived: The number of bytes that have arrived at the other end, as known now, at most a beat late.
        """
        # Measured against what had been sent by the last beat: newer bytes may rightly be on their way still.
        stands = arrived < self._due and arrived <= self._arrived
        if arrived >= self._due > 0:
            self._patience = MAX_MISSED
        self._missed = self._missed + 1 if stands else 0
        self._due, self._arrived = sent, arrived
        return self._missed >= self._patience
