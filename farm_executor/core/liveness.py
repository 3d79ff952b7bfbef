"""Decide whether a peer is still alive, and whether the bytes that are sent arrive.

This module owns the two judgements, and how a server packs the counts of bytes that the second one needs. It must
not know clocks or sockets. Both judgements count *beats*, which a driver gives
at equal intervals, rather than seconds: a process that was stopped for an hour, such as by Ctrl-Z, has missed one
beat, not an hour of its peer's signs of life.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from itertools import chain

from farm_executor.core.frames import Buffer, Frame, FrameType, encode_frame
from farm_executor.errors import RemoteProtocolError

__all__ = ["CUT_EXIT_CODE", "MAX_MISSED", "Counts", "Flow", "Pulse", "decode_counts", "encode_counts"]

Counts = tuple[int, int, int]
"""A lane's number, and the bytes that its worker has received and sent."""

_COUNTS = struct.Struct("<3Q")

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

    Attributes:
        due: The number of bytes that had been sent by the last beat.
        arrived: The number of those that had arrived by then.
    """

    __slots__ = ("_missed", "_patience", "arrived", "due")

    def __init__(self, patience: int = MAX_MISSED) -> None:
        self._patience = patience
        self._missed = 0
        self.due = 0
        self.arrived = 0

    @property
    def steady(self) -> bool:
        """Whether no beat counts against it: one at which all that is due has arrived changes nothing more."""
        return not self._missed and self._patience == MAX_MISSED

    def beat(self, sent: int, arrived: int) -> bool:
        """End one beat; return whether there has been no progress for too many of them.

        Args:
            sent: The number of bytes handed over at one end so far.
            arrived: The number of bytes that have arrived at the other end, as known now, at most a beat late.
        """
        # Measured against what had been sent by the last beat: newer bytes may rightly be on their way still.
        stands = arrived < self.due and arrived <= self.arrived
        if arrived >= self.due > 0:
            self._patience = MAX_MISSED
        self._missed = self._missed + 1 if stands else 0
        self.due, self.arrived = sent, arrived
        return self._missed >= self._patience


def encode_counts(lanes: Sequence[Counts], seq: int) -> list[Buffer]:
    """Encode a PONG for a client with the feature `COUNTS`: three numbers (u64) for each lane."""
    body = struct.pack(f"<{3 * len(lanes)}Q", *chain.from_iterable(lanes))
    return encode_frame(FrameType.PONG, count=len(lanes), seq=seq, body=body)


def decode_counts(frame: Frame) -> Iterable[Counts]:
    """Decode a PONG that `encode_counts` has made.

    Raises:
        RemoteProtocolError: The body has another length.
    """
    if len(frame.body) != frame.count * _COUNTS.size:
        raise RemoteProtocolError(f"PONG frame of {frame.count} lanes in {len(frame.body)} bytes")
    return _COUNTS.iter_unpack(frame.body)
