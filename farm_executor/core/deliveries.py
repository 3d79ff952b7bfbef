"""Which lane of a session brings which shared object to its server.

This module owns that. It must not know what an object is, nor how it is sent.
"""

from __future__ import annotations

from collections import deque

from farm_executor._record import NamedTuple
from farm_executor.core.sharing import State

__all__ = ["Deliveries", "Send"]


class Send(NamedTuple):
    """The decision to send an object over a lane, from its first byte on."""

    lane: int
    number: int


class Deliveries:
    """Which lane of one session carries which object.

    A lane carries one at a time. Its methods are the events; they return what is to be sent now.

    Attributes:
        refused: Objects that the server cannot hold and that calls can do without, for who decides whether to offer
            them to any.
    """

    def __init__(self) -> None:
        self._due: deque[int] = deque()  # wanted by the server, and carried by no lane
        self._free: dict[int, None] = {}  # lanes that carry nothing; an ordered set
        self._carried: dict[int, int] = {}  # by lane
        self._sent: dict[int, int] = {}  # the lane of each object that has left whole, and is not known to be held
        self._held: set[int] = set()
        self.refused: set[int] = set()

    def carried(self, lane: int) -> int | None:
        """Return the object that a lane carries."""
        return self._carried.get(lane)

    def holds(self, number: int) -> bool:
        """Return whether the server has said that it holds an object. Any thread may ask."""
        # A set that changes in the reactor's thread; asked on the way to send, where nobody may wait.
        return number in self._held

    def answered(self, number: int, state: State) -> list[Send]:
        """Take a server's answer."""
        if state is State.HELD:
            # After a cut it may be on its way once more; then it goes on, as its worker waits for the rest.
            self._held.add(number)
            self._sent.pop(number, None)
            if number in self._due:
                self._due.remove(number)
            return []
        if state is State.WANTED:
            # An offer is repeated after a cut, so it may be on its way.
            if number not in self._due and number not in self._sent and number not in self._carried.values():
                self._due.append(number)
            return self._send()
        return self.drop(number)

    def lane_ready(self, lane: int) -> list[Send]:
        """Note that a lane can carry something."""
        # A lane that is resumed says so as well.
        if lane not in self._carried:
            self._free[lane] = None
        return self._send()

    def lane_gone(self, lane: int) -> list[Send]:
        """Note that a lane carries nothing any more, and that what it has carried may not have arrived."""
        self._free.pop(lane, None)
        # What has left whole may be in the socket's buffers still, or in a worker that has just died.
        lost = [number for number, by in self._sent.items() if by == lane]
        for number in lost:
            del self._sent[number]
        if lane in self._carried:
            lost.append(self._carried.pop(lane))
        lost = [number for number in lost if number not in self._held]
        # In front: tasks may be waiting for these already.
        self._due.extendleft(reversed(lost))
        return self._send()

    def left(self, lane: int) -> list[Send]:
        """Note that the last byte of what a lane carries has left."""
        number = self._carried.pop(lane)
        if number not in self._held:
            self._sent[number] = lane
        self._free[lane] = None
        return self._send()

    def drop(self, number: int) -> list[Send]:
        """Note that an object need not be sent, or sent on."""
        self._held.discard(number)
        self.refused.discard(number)
        if number in self._due:
            self._due.remove(number)
        self._sent.pop(number, None)
        for lane, carried in list(self._carried.items()):
            if carried == number:
                del self._carried[lane]
                self._free[lane] = None
        return self._send()

    def _send(self) -> list[Send]:
        decisions = []
        # The lane that has been free for longest: it is the least likely to have just been given a long task.
        while self._due and self._free:
            lane = next(iter(self._free))
            del self._free[lane]
            self._carried[lane] = self._due.popleft()
            decisions.append(Send(lane, self._carried[lane]))
        return decisions
