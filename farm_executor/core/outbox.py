"""A worker's outcomes on their way: those that wait, and those that may have to be sent again.

This module owns which outcomes are sent next, from which number on, and which are kept until the client has
acknowledged them. It must not know what an outcome is, nor when to send.

Outcomes are numbered in the order in which they are first sent. A connection may break at any moment, and nobody
knows then how many of the last ones have arrived. So they are kept, and when the client comes back it says which it
lacks: those from there on go once more, before any that have waited meanwhile, so that their numbers stay as they
were.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from farm_executor.errors import RemoteProtocolError

__all__ = ["Outbox"]

_Item = TypeVar("_Item")


class Outbox(Generic[_Item]):
    """The outcomes of one lane; see the module.

    Args:
        resumable: Whether outcomes are kept until they are acknowledged.

    Attributes:
        waiting: Those to be sent, in order. Any thread may append.
        sent: How many have been sent, and so the number of the next.
        mute: Whether nothing may be sent: the connection is broken, or not yet resumed.
        loose: Whether the next task might change the memory of an outcome that waits or is kept.

    Thread safety: all but `waiting` is guarded by a lock of the caller's.
    """

    def __init__(self, *, resumable: bool) -> None:
        self._resumable = resumable
        self._kept: deque[_Item] = deque()  # the last of those sent
        self.waiting: deque[_Item] = deque()
        self.sent = 0
        self.mute = False
        self.loose = False

    @property
    def kept(self) -> int:
        """How many of those sent may have to be sent again."""
        return len(self._kept)

    def take(self, *, loose: bool = False) -> tuple[int, list[_Item]]:
        """Return the outcomes to send now, none if that is not possible, and the number of the first.

        Args:
            loose: Whether the last one has memory that the next task might change.
        """
        self.loose = self._resumable and (self.loose or loose)
        first, waiting = self.sent, self.waiting
        if self.mute:
            return first, []
        # Not until it is empty: another thread may append all the while.
        count = len(waiting)
        items = [waiting.popleft()] if count == 1 else [waiting.popleft() for _ in range(count)]
        self.sent = first + count
        if self._resumable:
            self._kept.extend(items)
        return first, items

    def cut(self) -> None:
        """Note that the connection is broken, or is about to be another one."""
        self.mute = True

    def resume(self, lacking: int) -> None:
        """Go on over another connection: the client has all outcomes before that number, and none from it on.

        Raises:
            RemoteProtocolError: It cannot lack that one, or there was no cut.
        """
        if not self.mute or not self.sent - len(self._kept) <= lacking <= self.sent:
            raise RemoteProtocolError(f"resumed at result {lacking}, when {self.sent} was the next")
        self.acknowledge(lacking)
        # Before those that wait: the numbers of these are higher.
        self.waiting.extendleft(reversed(self._kept))
        self._kept.clear()
        self.sent = lacking
        self.mute = False

    def acknowledge(self, number: int) -> None:
        """Let go of the outcomes before that number, which the client has."""
        while self._kept and self.sent - len(self._kept) < number:
            self._kept.popleft()
        self.loose = self.loose and bool(self._kept or self.waiting)

    def fix(self, copied: Callable[[_Item], _Item]) -> None:
        """Replace each outcome that may still be sent by what ``copied`` returns, which no task can change."""
        self.loose = False
        for items in (self._kept, self.waiting):
            for place, item in enumerate(items):
                items[place] = copied(item)
