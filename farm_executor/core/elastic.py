"""Decide how many servers an elastic farm wants, and which it lets go.

This module owns the rule. It must not know how servers are asked for or let go, and it has no clock: times are
passed in, as are the farm's figures, again and again.

A farm grows while tasks wait, and shrinks by servers on which nothing has run for some time. Both lag behind, so
that neither a burst of short tasks nor a pause between two bursts costs anything: what a cluster grants takes long
to come, and is lost once it is given back.
"""

from __future__ import annotations

from collections.abc import Mapping

from farm_executor._record import NamedTuple

__all__ = ["PATIENCE", "Elastic", "Load"]

PATIENCE = 1.0
"""Seconds for which tasks must have waited until more servers are wanted than one. What can be done by those that
are there within that time is done before others could come."""


class Load(NamedTuple):
    """What is seen of one server.

    Attributes:
        busy: Whether it has any task.
        done: How many it has answered. Between two looks it may have been busy, and this tells.
    """

    busy: bool
    done: int


class Elastic:
    """The servers of one address.

    Args:
        least: How many servers are always wanted.
        most: How many are wanted at most; at least 1 and ``least``.
        idle: Seconds without any task after which a server is let go.
        per: How many workers each server has.

    Attributes:
        wanted: How many servers are wanted now, including those that have not come yet.
    """

    def __init__(self, least: int, most: int, idle: float, per: int) -> None:
        self._least = least
        self._most = most
        self._idle = idle
        self._per = per
        self.wanted = max(least, 1)  # a farm is started by its first task
        self._waited_since: float | None = None  # None while nothing waits
        self._last_waited = float("-inf")
        self._seen: dict[str, tuple[Load, float]] = {}  # by server, and since when it has had nothing to do
        self._leaving: set[str] = set()

    def decide(self, now: float, waiting: int, loads: Mapping[str, Load]) -> list[str]:
        """Look once more at the farm, and return the servers to let go.

        Those are not taken into account any more. That something may have been sent to one meanwhile is for the
        caller to see to: it must be let go as soon as it has done that, and get no more.

        Args:
            now: The time.
            waiting: How many tasks wait for a worker.
            loads: The servers that are connected.
        """
        self._leaving &= loads.keys()
        there = {name: load for name, load in loads.items() if name not in self._leaving}
        self._seen = {name: (load, self._free_since(name, load, now)) for name, load in there.items()}
        if waiting:
            self._last_waited = now
            if self._waited_since is None:
                self._waited_since = now
            self._grow(now - self._waited_since, waiting)
            return []
        self._waited_since = None
        if now - self._last_waited >= self._idle:  # those that have not come are not wanted any more
            self.wanted = max(min(self.wanted, len(there)), self._least)
        return self._shrink(now)

    def _free_since(self, name: str, load: Load, now: float) -> float:
        before, since = self._seen.get(name, (load, now))
        return now if load.busy or load.done != before.done else since

    def _grow(self, waited: float, waiting: int) -> None:
        # The first one at once, as without it nothing is done at all. One that has nothing is about to get some of
        # what waits: it may have just come, and its workers start.
        wanted = 0 if self._seen else 1
        if waited >= PATIENCE:
            wanted = sum(load.busy for load, _ in self._seen.values()) - (-waiting // self._per)
        self.wanted = min(max(self.wanted, wanted), self._most)

    def _shrink(self, now: float) -> list[str]:
        free = [name for name, (_, since) in self._seen.items() if now - since >= self._idle]
        free.sort(key=lambda name: self._seen[name][1])  # those that have had nothing for longest
        gone = free[: max(len(self._seen) - self._least, 0)]
        self._leaving.update(gone)
        for name in gone:
            del self._seen[name]
        self.wanted = max(self.wanted - len(gone), self._least)
        return gone
