"""What to dial next on the way to one server, and how long to wait after a failure.

This module owns which connections are wanted, which attempts are under way, and when a session is hopeless. It must
not know sockets, threads, clocks or random numbers: the time is passed in, and pauses are given as their longest.

The rules:

1. Without a session, one is dialled for, by one attempt at a time.
2. While the session's control connection is cut, only that is dialled, by one attempt at a time: what comes of it
   decides about the lanes. Attempts for lanes that are under way go on.
3. Otherwise lanes that are cut are dialled, those that were cut first come first, and then the slots that lack a
   lane, the lowest first: each by one attempt, and up to `MAX_TOGETHER` of them side by side.
4. An attempt goes on, with longer and longer pauses, until it has succeeded or is not wanted any more. When there
   is news, such as another connection that breaks, the pauses begin from the shortest.
5. A server that does not know the session when asked for its control connection has ended it: the session is over.
   One that does not know it when asked for a lane, while the control connection is up, is another server: a load
   balancer or a name that stands for several machines has sent the attempt there. It is tried again.
6. A session whose server refuses to be connected to, for `REFUSED_SECONDS` on end, is over: the process that held
   it is gone, because a network that is broken does not refuse.
7. A server that refuses for a reason that no waiting here mends, such as another key, is asked again, but rarely;
   a session that it had is over.
8. After sessions in a row that never had a lane, and lanes in a row that were never ready, the next attempt waits
   as after so many failures.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

__all__ = ["MAX_TOGETHER", "REFUSED_SECONDS", "Attempt", "Dialling", "Kind", "Verdict"]

MAX_TOGETHER = 24
"""Attempts for lanes side by side; below the number of guests that a server takes from one address."""

REFUSED_SECONDS = 2.0
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 5.0
FIRST_ASIDE, LONGEST_ASIDE = 2.0, 60.0  # after a refusal that only somebody else can mend
RESUME_PAUSE = 0.5
"""The longest between two attempts to resume: what runs meanwhile is lost if it takes too long."""


class Kind(enum.Enum):
    """What an attempt is for."""

    OPEN = "open a session"
    RESUME = "resume a session"
    LANE = "open a lane"
    RESUME_LANE = "resume a lane"


class Attempt(NamedTuple):
    """One connection that is being dialled for.

    Attributes:
        kind: What for.
        session: In which session; empty for a new one.
        slot: Of a lane, its place.
        lane: Of a lane that is resumed, its number.
    """

    kind: Kind
    session: str = ""
    slot: int = -1
    lane: int = 0


class Verdict(NamedTuple):
    """What follows from a failure.

    Attributes:
        pause: The longest time in seconds to wait before the next attempt.
        over: Why the session is over, if it is; there is no next attempt then.
    """

    pause: float
    over: str = ""


class Dialling:
    """See the module.

    Attributes:
        session: The one that there is; empty if there is none.
        cut: Whether its control connection is broken.
        closed: Whether nothing is wanted any more.
    """

    def __init__(self) -> None:
        self.session = ""
        self.cut = False
        self.closed = False
        self._over = False  # the session is, and who listens has yet to say so
        self._leaving = False  # no more lanes are wanted
        self._slots = 0
        self._missing: set[int] = set()  # slots that lack a lane
        self._severed: dict[int, int] = {}  # slots of lanes that are cut, by lane, in the order of the cuts
        self._under_way: dict[Attempt, int] = {}  # how often each has failed
        self._barren = 0  # sessions in a row that never had a lane
        self._stillborn = 0  # lanes in a row that were never ready
        self._had_lane = False
        self._refused_since: float | None = None

    # -- what to do --------------------------------------------------------------------------------------

    def next(self) -> tuple[Attempt, float] | None:
        """The next attempt, which is under way from now on, and the longest time to wait before it."""
        attempt = self._first()
        if attempt is None:
            return None
        failures = {Kind.OPEN: self._barren, Kind.LANE: self._stillborn}.get(attempt.kind, 0)
        self._under_way[attempt] = failures
        return attempt, _pause(attempt, failures)

    def _first(self) -> Attempt | None:
        if self.closed or self._over:
            return None
        if not self.session:
            return self._unless_under_way(Attempt(Kind.OPEN))
        if self.cut:
            return self._unless_under_way(Attempt(Kind.RESUME, self.session))
        if len(self._under_way) >= MAX_TOGETHER:
            return None
        wanted = [Attempt(Kind.RESUME_LANE, self.session, slot, lane) for lane, slot in self._severed.items()]
        wanted += [Attempt(Kind.LANE, self.session, slot) for slot in sorted(self._missing)]
        return next((attempt for attempt in wanted if attempt not in self._under_way), None)

    def _unless_under_way(self, attempt: Attempt) -> Attempt | None:
        return None if attempt in self._under_way else attempt

    def is_wanted(self, attempt: Attempt) -> bool:
        """Whether its success would still be of use."""
        if self.closed or self._over or attempt.session != self.session:
            return False
        if attempt.kind is Kind.RESUME:
            return self.cut
        if attempt.kind is Kind.RESUME_LANE:
            return attempt.lane in self._severed
        return attempt.kind is Kind.OPEN or attempt.slot in self._missing

    @property
    def has_lanes(self) -> bool:
        """Whether any slot has a lane."""
        return bool(self.session) and len(self._missing) < self._slots

    def failures(self, attempt: Attempt) -> int:
        """How often it has failed since there was news."""
        return self._under_way.get(attempt, 0)

    # -- what comes of it ----------------------------------------------------------------------------------

    def drop(self, attempt: Attempt) -> None:
        """The attempt has ended, however it did."""
        self._under_way.pop(attempt, None)

    def failed(
        self, attempt: Attempt, now: float, *, refused: bool = False, unknown: bool = False, final: bool = False
    ) -> Verdict:
        """An attempt has failed; it goes on.

        Args:
            attempt: Which.
            now: The time in seconds.
            refused: Whether the system refused, for want of anybody who listens.
            unknown: Whether the server did not know the session.
            final: Whether the server does not want us, for a reason that does not pass by itself.
        """
        failures = self._under_way[attempt] = self._under_way.get(attempt, 0) + 1
        if attempt.kind is Kind.RESUME and self.is_wanted(attempt):
            if unknown:
                return self._end("the server does not know it any more")
            if final:
                return self._end("the server refuses us now")
            if not refused:
                self._refused_since = None
            elif self._refused_since is None:
                self._refused_since = now
            elif now - self._refused_since >= REFUSED_SECONDS:
                return self._end(f"its port has refused connections for {REFUSED_SECONDS:g} s")
        if final:
            return Verdict(min(FIRST_ASIDE * float(1 << min(failures - 1, 10)), LONGEST_ASIDE))
        return Verdict(_pause(attempt, failures))

    def _end(self, why: str) -> Verdict:
        self._over = True
        return Verdict(0.0, why)

    def opened(self, session: str, lanes: int) -> None:
        """There is a session, with so many slots for lanes."""
        self.session = session
        self.cut = self._over = self._leaving = self._had_lane = False
        self._slots = lanes
        self._missing = set(range(lanes))
        self._severed = {}

    def resumed(self) -> None:
        """Its control connection is up again."""
        self.cut = False
        self._refused_since = None

    def lane_up(self, slot: int) -> None:
        """A slot has its lane."""
        self._missing.discard(slot)
        self._had_lane = True
        self._barren = 0

    def lane_resumed(self, lane: int) -> None:
        """A lane is whole again, or its worker is gone."""
        self._severed.pop(lane, None)

    # -- what happens otherwise ------------------------------------------------------------------------------

    def control_cut(self) -> None:
        """The control connection is broken, and is to be resumed."""
        self.cut = True
        self._refused_since = None
        self._hurry()

    def lane_cut(self, lane: int, slot: int) -> bool:
        """A lane is broken, and is to be resumed; whether that is news, because the others are whole."""
        news = not self._severed
        if news:
            self._hurry()
        self._severed[lane] = slot
        return news

    def lane_gone(self, lane: int, slot: int, *, failed: bool) -> None:
        """A lane has ended, and another is wanted; with ``failed`` it was never ready."""
        self._severed.pop(lane, None)
        if not self._leaving:
            self._missing.add(slot)
            self._stillborn = self._stillborn + 1 if failed else 0

    def leave(self) -> None:
        """No more lanes are wanted in this session, which ends with those that there are."""
        self._leaving = True
        self._missing = set()

    def is_leaving(self) -> bool:
        """Whether the session is to end of its own accord."""
        return self._leaving

    def session_over(self) -> None:
        """The session is over, and another is wanted."""
        self._barren = 0 if self._had_lane else self._barren + 1
        self.session = ""
        self.cut = self._over = self._leaving = False
        self._missing, self._severed = set(), {}
        self._refused_since = None
        self._hurry()

    def close(self) -> None:
        """Nothing is wanted any more."""
        self.closed = True
        self.session = ""

    def _hurry(self) -> None:
        for attempt in self._under_way:
            self._under_way[attempt] = 0


def _pause(attempt: Attempt, failures: int) -> float:
    if not failures:
        return 0.0
    longest = RESUME_PAUSE if attempt.kind in (Kind.RESUME, Kind.RESUME_LANE) else LONGEST_PAUSE
    return min(FIRST_PAUSE * float(1 << min(failures - 1, 10)), longest)
