"""Decide which connection to dial next on one server, and how long to wait after a failure.

This module owns which connections are wanted, which attempts are under way, and when a session is hopeless. It must
not know sockets, threads, clocks or random numbers: the time is passed in, and pauses are returned as upper bounds.

The rules:

1. Without a session, one is dialled, by one attempt at a time.
2. While the session's control connection is cut, only that is dialled, by one attempt at a time: its outcome
   decides what becomes of the lanes. Attempts for lanes that are already under way go on.
3. Otherwise lanes that are cut are dialled, in the order in which they were cut, and then the slots that lack a
   lane, the lowest first: each by one attempt, and up to `MAX_TOGETHER` of them side by side.
4. An attempt goes on, with longer and longer pauses, until it has succeeded or is no longer wanted. When there is
   news, such as another connection that breaks, the pauses start again from the shortest.
5. A server that does not know the session when asked for its control connection has ended it: the session is over.
   One that does not know it when asked for a lane, while the control connection is up, is another server: a load
   balancer or a name that stands for several machines has sent the attempt there. The attempt is repeated.
6. A session whose server has refused connections for `REFUSED_SECONDS` on end is over: the process that held it is
   gone, because a broken network does not refuse.
7. A server that refuses for a reason that waiting does not mend, such as another key, is asked again, but rarely;
   a session on it is over.
8. After n sessions in a row that never had a lane, or n lanes in a row that were never ready, the next attempt
   waits as long as after n failures.
"""

from __future__ import annotations

import enum

from farm_executor._record import NamedTuple

__all__ = ["MAX_TOGETHER", "REFUSED_SECONDS", "Attempt", "Dialling", "Kind", "Verdict"]

MAX_TOGETHER = 24
"""Attempts for lanes side by side: fewer than the unauthenticated connections a server takes from one address."""

REFUSED_SECONDS = 2.0
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 5.0
FIRST_ASIDE, LONGEST_ASIDE = 2.0, 60.0  # seconds, after a refusal that only somebody else can mend
RESUME_PAUSE = 0.5
"""The longest pause in seconds between two attempts to resume: tasks that run meanwhile are lost if it takes too
long."""


class Kind(enum.Enum):
    """The purpose of an attempt."""

    OPEN = "open a session"
    RESUME = "resume a session"
    LANE = "open a lane"
    RESUME_LANE = "resume a lane"


class Attempt(NamedTuple):
    """One connection that is being dialled.

    Attributes:
        kind: Its purpose.
        session: The session that it belongs to; empty for a new one.
        slot: The slot of the lane; -1 if it is not for a lane.
        lane: The number of the lane to resume; 0 if it does not resume one.
    """

    kind: Kind
    session: str = ""
    slot: int = -1
    lane: int = 0


class Verdict(NamedTuple):
    """The consequence of a failure.

    Attributes:
        pause: The longest time in seconds to wait before the next attempt.
        over: Why the session is over, in which case there is no next attempt; empty if it is not.
    """

    pause: float
    over: str = ""


class Dialling:
    """The attempts to connect to one server, by the rules of the module.

    Attributes:
        session: The current session; empty if there is none.
        cut: Whether its control connection is broken.
        closed: Whether no connection is wanted any more.
    """

    def __init__(self) -> None:
        self.session = ""
        self.cut = False
        self.closed = False
        # Set with the verdict that the session is over, until the caller confirms it by `session_over`. Nothing is
        # dialled in between: the caller has yet to drop what it has of the session.
        self._over = False
        self._leaving = False  # no more lanes are wanted
        self._slots = 0
        self._missing: set[int] = set()  # slots that lack a lane
        self._severed: dict[int, int] = {}  # slots of lanes that are cut, by lane, in the order of the cuts
        self._under_way: dict[Attempt, int] = {}  # how often each has failed since there was news
        self._barren = 0  # sessions in a row that never had a lane
        self._stillborn = 0  # lanes in a row that were never ready
        self._had_lane = False
        self._refused_since: float | None = None

    # -- what to do --------------------------------------------------------------------------------------

    def next(self) -> tuple[Attempt, float] | None:
        """Start the next attempt that is wanted; return it and the longest time in seconds to wait before it."""
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
        """Return whether the attempt's success would still be of use."""
        # The session differs for an attempt of an earlier one, and for one to open a session when there is one.
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
        """Return how often the attempt has failed since there was news."""
        return self._under_way.get(attempt, 0)

    # -- the outcome of attempts ---------------------------------------------------------------------------

    def drop(self, attempt: Attempt) -> None:
        """Forget the attempt, which has ended one way or another."""
        self._under_way.pop(attempt, None)

    def failed(
        self, attempt: Attempt, now: float, *, refused: bool = False, unknown: bool = False, final: bool = False
    ) -> Verdict:
        """Take note that an attempt has failed, and return what follows; it stays under way.

        Args:
            attempt: The attempt.
            now: The time in seconds.
            refused: Whether the system refused the connection, because nobody is listening.
            unknown: Whether the server did not know the session.
            final: Whether the server refused for a reason that does not pass by itself.
        """
        failures = self._under_way[attempt] = self._under_way.get(attempt, 0) + 1
        if attempt.kind is Kind.RESUME and self.is_wanted(attempt):
            if unknown:
                return self._end("the server does not know it any more")
            if final:
                return self._end("the server refuses us now")
            # Only refusals without a break count: a single other failure may mean that the network is down, too,
            # and a session that waits out a broken network must not be given up.
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
        """Take note that a session has begun, with ``lanes`` slots for lanes."""
        self.session = session
        self.cut = self._over = self._leaving = self._had_lane = False
        self._slots = lanes
        self._missing = set(range(lanes))
        self._severed = {}

    def resumed(self) -> None:
        """Take note that the session's control connection is up again."""
        self.cut = False
        self._refused_since = None

    def lane_up(self, slot: int) -> None:
        """Take note that a slot has a lane."""
        self._missing.discard(slot)
        self._had_lane = True
        self._barren = 0

    def lane_resumed(self, lane: int) -> None:
        """Take note that a lane is connected again, or that its worker is gone."""
        self._severed.pop(lane, None)

    # -- other events ----------------------------------------------------------------------------------------

    def control_cut(self) -> None:
        """Take note that the control connection is broken and has to be resumed."""
        self.cut = True
        self._refused_since = None
        self._hurry()

    def lane_cut(self, lane: int, slot: int) -> bool:
        """Take note that a lane is broken and has to be resumed; return whether it is the only one."""
        # Only the first of several breaks is news. A network that fails cuts all lanes one after the other, and the
        # pauses would start again with each of them.
        news = not self._severed
        if news:
            self._hurry()
        self._severed[lane] = slot
        return news

    def lane_gone(self, lane: int, slot: int, *, failed: bool) -> None:
        """Take note that a lane has ended and another is wanted; with ``failed`` it was never ready."""
        self._severed.pop(lane, None)
        if not self._leaving:
            self._missing.add(slot)
            self._stillborn = self._stillborn + 1 if failed else 0

    def leave(self) -> None:
        """Dial no more lanes in this session, which ends with its present ones."""
        self._leaving = True
        self._missing = set()

    def is_leaving(self) -> bool:
        """Return whether the session ends with its present lanes, see `leave`."""
        return self._leaving

    def session_over(self) -> None:
        """Take note that the session is over and another is wanted."""
        # Opening each of them has succeeded, so without this count a server that gives sessions, but no lanes,
        # would be dialled again and again without a pause.
        self._barren = 0 if self._had_lane else self._barren + 1
        self.session = ""
        self.cut = self._over = self._leaving = False
        self._missing, self._severed = set(), {}
        self._refused_since = None
        self._hurry()

    def close(self) -> None:
        """Dial nothing any more."""
        self.closed = True
        self.session = ""

    def _hurry(self) -> None:
        for attempt in self._under_way:
            self._under_way[attempt] = 0


def _pause(attempt: Attempt, failures: int) -> float:
    if not failures:
        return 0.0
    # The exponent is limited as well: a server may be dialled for weeks, and 1 << 1024 does not fit a float.
    longest = RESUME_PAUSE if attempt.kind in (Kind.RESUME, Kind.RESUME_LANE) else LONGEST_PAUSE
    return min(FIRST_PAUSE * float(1 << min(failures - 1, 10)), longest)
