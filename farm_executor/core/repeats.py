"""Which large arguments are worth sharing, as calls are given them again and again.

This module owns that decision, and how many bytes are shared so. It must not know what an argument is, how it is
compared, nor how it is shared.

An argument is *seen*, by the identity of its memory, each time that a call has it. The first time nothing is done,
as most arguments are seen once. Seen again, it is shared: a copy of what it is now is taken, and sent to the
servers. From then on it is compared with that copy whenever it is seen. If it is the same, calls refer to the copy.
If not, the copy is dropped, and the argument begins again.

A *sample*, a few of its bytes, tells at the second sight whether it has been written to since the first, and so
whether a copy is worth its while. Nothing depends on it but that: only what is the same as the copy in every byte
is referred to.

An argument that changes as often as it is seen would be copied in vain. So after two copies that nobody has used,
it is left alone.
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from collections.abc import Hashable

__all__ = ["MAX_BYTES", "MAX_SEEN", "Repeats", "Verdict"]

MAX_BYTES = 256 * 1024 * 1024  # of all copies, which the program, and each server, has beside its own
MAX_SEEN = (
    64  # arguments that are remembered; a copy may take a descriptor in the program, and takes one in servers
)
MAX_STRIKES = 2  # copies in vain


class Verdict(enum.Enum):
    """What is to be done with an argument that a call has."""

    SEND = enum.auto()
    """It travels with the call."""

    TAKE = enum.auto()
    """The same, and a copy is to be taken."""

    COMPARE = enum.auto()
    """It is to be compared with its copy."""


class _State(enum.Enum):
    SEEN = enum.auto()
    TAKING = enum.auto()
    SHARED = enum.auto()
    LEFT = enum.auto()  # never shared


class _Seen:
    __slots__ = ("sample", "size", "state", "strikes")

    def __init__(self, size: int, sample: int) -> None:
        self.size = size
        self.sample = sample
        self.state = _State.SEEN
        self.strikes = 0


class Repeats:
    """The arguments that the calls of one farm have had, by their identities.

    Args:
        max_bytes: Of all copies together.
        max_seen: How many arguments are remembered.

    Attributes:
        used: Bytes of the copies that there are, or that are being taken.
    """

    def __init__(self, max_bytes: int = MAX_BYTES, max_seen: int = MAX_SEEN) -> None:
        self._max_bytes = max_bytes
        self._max_seen = max_seen
        self._seen: OrderedDict[Hashable, _Seen] = OrderedDict()  # the one seen last comes last
        self.used = 0

    def see(self, key: Hashable, size: int, sample: int) -> tuple[Verdict, list[Hashable]]:
        """Return what to do with an argument, and whose copies to drop for the room that its own needs."""
        seen = self._seen.get(key)
        # Most arguments are seen once: for these, nothing but this entry is made.
        if seen is None:
            self._seen[key] = _Seen(size, sample)
            return Verdict.SEND, self._forget_oldest()
        self._seen.move_to_end(key)
        if seen.state is _State.SHARED:
            return Verdict.COMPARE, []
        if seen.state is not _State.SEEN:
            return Verdict.SEND, []
        if seen.sample != sample:
            seen.sample = sample  # seen for the first time as it is now, and nothing was copied in vain
            return Verdict.SEND, []
        # What other threads are copying right now cannot be dropped.
        taking = sum([other.size for other in self._seen.values() if other.state is _State.TAKING])
        if taking + size > self._max_bytes:
            return Verdict.SEND, []
        seen.state = _State.TAKING
        self.used += size
        return Verdict.TAKE, self._make_room()

    def remembers(self, key: Hashable) -> bool:
        """Return whether an argument has been seen, and not been forgotten."""
        return key in self._seen

    def taken(self, key: Hashable) -> bool:
        """Note that a copy has been taken, and is on its way to the servers; return whether it is still wanted."""
        seen = self._seen.get(key)
        if seen is None or seen.state is not _State.TAKING:  # it has been forgotten meanwhile
            return False
        seen.state = _State.SHARED
        return True

    def same(self, key: Hashable) -> None:
        """Note that an argument is the same as its copy."""
        seen = self._seen.get(key)
        # The copy has been of use, so that the next one may well be.
        if seen is not None:
            seen.strikes = 0

    def changed(self, key: Hashable, sample: int) -> None:
        """Note that an argument has changed, so that its copy is to be dropped."""
        seen = self._seen.get(key)
        if seen is None or seen.state is not _State.SHARED:  # another thread has noticed
            return
        seen.sample = sample
        self._strike(seen)

    def leave(self, key: Hashable) -> None:
        """Never share an argument again: a copy could not be taken, or no server would hold it."""
        seen = self._seen.get(key)
        if seen is not None:
            self._give_back(seen)
            seen.state = _State.LEFT

    def forget(self, key: Hashable) -> None:
        """Forget an argument, as its memory is gone."""
        seen = self._seen.pop(key, None)
        if seen is not None:
            self._give_back(seen)

    def _strike(self, seen: _Seen) -> None:
        """Drop a copy; unless a call has referred to it, it was taken in vain."""
        self._give_back(seen)
        seen.strikes += 1
        seen.state = _State.SEEN if seen.strikes < MAX_STRIKES else _State.LEFT

    def _give_back(self, seen: _Seen) -> None:
        if seen.state in (_State.TAKING, _State.SHARED):
            self.used -= seen.size

    def _forget_oldest(self) -> list[Hashable]:
        if len(self._seen) <= self._max_seen:
            return []
        oldest = next(iter(self._seen))
        self.forget(oldest)
        return [oldest]

    def _make_room(self) -> list[Hashable]:
        dropped: list[Hashable] = []
        # A copy of what is dropped here may be in vain, too: many arguments in turn, for which there is no room at
        # once. Those that are left alone in the end leave room for the others.
        for key, seen in list(self._seen.items()):
            if self.used <= self._max_bytes:
                break
            if seen.state is _State.SHARED:
                self._strike(seen)
                dropped.append(key)
        return dropped
