"""What a server holds of shared objects: whose they are, how many bytes they may have, and who waits for one.

This module owns that. It must not know descriptors or connections, nor what is in an object.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import cached_property

from farm_executor.core.sharing import State

__all__ = ["MAX_OBJECTS", "Room", "Shelf", "gone", "refusal"]

MAX_OBJECTS = 65_535  # of one session on a server


def refusal(number: int, size: int, limit: int, used: int) -> str:
    """Return why a server cannot hold an object for want of room."""
    others = f", of which {used} bytes are taken" if used else ""
    return (
        f"shared object {number} of {size} bytes exceeds what this server may hold: {limit} bytes in all{others}; "
        "share less, close() what is done with, or raise its --max-shared"
    )


def gone(number: int) -> str:
    """Return why a worker cannot have an object that its client has dropped, or that was one too many."""
    return f"shared object {number} is not on this server: nobody needs it any more, or there are too many of them"


class Room:
    """How many bytes of shared objects a server may hold, and how many objects, for all its clients together.

    Args:
        limit: Returns how many bytes that is; called when it is first needed, as few servers ever hold any. It may
            raise an OSError, and is then called again the next time.
        most: Returns how many objects that is: each takes a descriptor.

    Attributes:
        used: Bytes that are held, or promised to those that are on their way.
    """

    def __init__(self, limit: Callable[[], int], most: Callable[[], int] = lambda: MAX_OBJECTS) -> None:
        self._limit = limit
        self._most = most
        self._objects = 0
        self.used = 0

    @property
    def full(self) -> bool:
        """Whether there are as many objects as there may be."""
        return self._objects >= self._most()

    @cached_property
    def limit(self) -> int:
        """How many bytes there may be."""
        return self._limit()

    def take(self, size: int, *, spare: bool = False) -> bool:
        """Take that many bytes, if they are free; for a ``spare`` object, half of all stays free for others."""
        if self.used + size > (self.limit // 2 if spare else self.limit):
            return False
        self.used += size
        self._objects += 1
        return True

    def give_back(self, size: int) -> None:
        """Let others have the bytes of an object of that size."""
        self.used -= size
        self._objects -= 1


class _Entry:
    __slots__ = ("reason", "size", "state")

    def __init__(self, size: int, state: State, reason: str = "") -> None:
        self.size = size
        self.state = state
        self.reason = reason


class Shelf:
    """The objects of one session, as its server knows them.

    Workers may ask for an object before it is offered, as that goes another way than their tasks: they wait. One
    that is not here and has a lower number than another that was offered has been: they would wait for ever.

    Args:
        room: Where its bytes count.
    """

    def __init__(self, room: Room) -> None:
        self._room = room
        self._latest = 0  # the highest number that was offered; a client offers them in their order
        self._entries: dict[int, _Entry] = {}
        self._waiting: dict[int, list[Hashable]] = {}

    def offer(self, number: int, size: int, spare: bool = False) -> tuple[State, str]:
        """Return the answer to an offer, which may have come before: then the answer was lost with a connection.

        Without a ``spare`` object no task fails, so it leaves room to those without which some would.
        """
        self._latest = max(self._latest, number)
        return self._enter(number, size, spare)

    def _enter(self, number: int, size: int, spare: bool) -> tuple[State, str]:
        entry = self._entries.get(number)
        # Room is taken before anything is sent: two objects that are on their way must both fit.
        if entry is None:
            if len(self._entries) >= MAX_OBJECTS:  # nor is this kept, as what is refused takes memory, too
                return State.REFUSED, f"this session shares {MAX_OBJECTS} objects already"
            if self._room.full:
                return State.REFUSED, f"this server has no descriptor left for shared object {number}: share less"
            try:
                if self._room.take(size, spare=spare):
                    entry = _Entry(size, State.WANTED)
                else:
                    reason = refusal(number, size, self._room.limit, self._room.used)
                    entry = _Entry(size, State.REFUSED, reason)
            # It has as many files open as it may, so that it cannot even look.
            except OSError as error:
                reason = f"this server cannot tell whether it may hold shared object {number}: {error}"
                entry = _Entry(size, State.REFUSED, reason)
            self._entries[number] = entry
        return entry.state, entry.reason

    def arrived(self, number: int, size: int) -> bool:
        """Note that a worker has handed in an object; return whether it is to be kept."""
        # The buffers of a function come with it, and so perhaps before they are offered. Calls can do without them.
        if self._is_yet_to_be_offered(number):
            self._enter(number, size, spare=True)
        entry = self._entries.get(number)
        # It may have come twice, over two lanes, or have been dropped while it was on its way.
        if entry is None or entry.state is not State.WANTED or entry.size != size:
            return False
        entry.state = State.HELD  # its room was taken when it was offered
        return True

    def fail(self, number: int, reason: str) -> bool:
        """Note that a worker could not take an object in; return whether it was still to come."""
        if self._is_yet_to_be_offered(number) and len(self._entries) < MAX_OBJECTS:
            self._entries[number] = _Entry(0, State.REFUSED, reason)
            return True
        entry = self._entries.get(number)
        if entry is None or entry.state is not State.WANTED:
            return False
        self._room.give_back(entry.size)
        # It stays refused, and is not tried over another lane: the system that had no room is the same.
        entry.state, entry.reason = State.REFUSED, reason
        return True

    def _is_yet_to_be_offered(self, number: int) -> bool:
        return number > self._latest and number not in self._entries

    def ask(self, number: int, worker: Hashable) -> tuple[State, str]:
        """Return what to tell a worker that needs an object; on WANTED it waits."""
        entry = self._entries.get(number)
        if entry is not None and entry.state is not State.WANTED:
            return entry.state, entry.reason
        if entry is None and number <= self._latest:
            return State.REFUSED, gone(number)
        # If it is not offered, it will be, as a task that needs it has been sent.
        self._waiting.setdefault(number, []).append(worker)
        return State.WANTED, ""

    def waiting(self, number: int) -> list[Hashable]:
        """Return the workers that wait for an object, which is now held or refused; they wait no longer."""
        return self._waiting.pop(number, [])

    def forget(self, worker: Hashable) -> None:
        """Note that a worker has ended."""
        for number, workers in list(self._waiting.items()):
            self._waiting[number] = [other for other in workers if other != worker]
            if not self._waiting[number]:
                del self._waiting[number]

    def drop(self, number: int) -> None:
        """Forget an object; who waits for it is to be told."""
        # What was refused has taken nothing, or has given it back.
        entry = self._entries.pop(number, None)
        if entry is not None and entry.state is not State.REFUSED:
            self._room.give_back(entry.size)

    def clear(self) -> None:
        """Forget all objects."""
        for number in list(self._entries):
            self.drop(number)
        self._waiting.clear()
