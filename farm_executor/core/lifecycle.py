"""The life cycles of sessions and lanes, each as a table of states and events.

This module owns the states and the transitions between them. It must not know what causes an event, nor what to do
about it. An event that the table lacks is a bug in the caller, and raises: bad messages from a peer, and events
that others have overtaken, are filtered out before they get here.

A session as the client sees it::

    OPENING ──CONNECT──► UP ◄──CONNECT── CUT
       │                 │ └─────CUT─────►│
     LEAVE             LEAVE            LEAVE
       ▼                 ▼                ▼
    LEAVING_CUT ─CONNECT─► LEAVING    LEAVING_CUT           every state ──END──► OVER

A lane::

    STARTING ──READY──► OPEN ──CUT──► CUT ──CONNECT──► RESUMING ──RESUME──► OPEN
       │                 │ └─RETIRE─► RETIRED            │ └──CUT──► CUT
      END               END                             END
       ▼                 ▼                               ▼
    STILLBORN          ENDED                           ENDED  every state ──LOSE──► GONE
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final, TypeVar

__all__ = ["LANE", "SESSION", "LaneEvent", "LaneState", "SessionEvent", "SessionState", "after"]


class SessionState(enum.Enum):
    """The state of a client's session on one server, as the client sees it."""

    OPENING = "opening"  # the server has agreed; the farm's own thread has yet to take up the connection
    UP = "up"
    CUT = "cut"  # the control connection is broken, and another is being dialled
    LEAVING = "leaving"  # ends when its present lanes do; no other lane is wanted
    LEAVING_CUT = "leaving, cut"  # the same, without a connection to the server
    OVER = "over"


class SessionEvent(enum.Enum):
    """An event in the life of a session."""

    CONNECT = "connect"  # a control connection is there, the first or another
    CUT = "cut"
    LEAVE = "leave"
    END = "end"


class LaneState(enum.Enum):
    """The state of a lane, as the client sees it."""

    STARTING = "starting"  # its worker is running the initializer
    OPEN = "open"  # the only state in which it is given tasks and answers them
    CUT = "cut"  # its connection is broken, and another is being dialled
    RESUMING = "resuming"  # connected again, but the worker has yet to say which task it expects next
    RETIRED = "retired"  # it has run all the tasks that it may, and is about to be ended
    STILLBORN = "stillborn"  # its connection ended before it was ready; the supervisor may yet say why
    ENDED = "ended"  # its connection ended after it was ready, and cannot be resumed
    GONE = "gone"

    # Plain attributes rather than properties, because they are read for each lane at each heartbeat.
    connected: bool
    ready: bool


class LaneEvent(enum.Enum):
    """An event in the life of a lane."""

    READY = "ready"  # the initializer has succeeded
    CUT = "cut"
    CONNECT = "connect"  # it has been given another connection
    RESUME = "resume"  # the worker has said which task it expects next
    RETIRE = "retire"
    END = "end"  # its connection has ended for good
    LOSE = "lose"


for _state in LaneState:
    _state.connected = _state.name in ("STARTING", "OPEN", "RESUMING", "RETIRED")
    """Whether there is a connection to be read from."""
    _state.ready = _state.name in ("OPEN", "CUT", "RESUMING", "RETIRED", "ENDED")
    """Whether the initializer has succeeded, so that the scheduler knows the lane."""


# An event that a row lacks cannot happen in that state. `after` raises for it instead of ignoring it, because a
# driver that reports it has lost track of the session or lane, and its next decision would be wrong.

SESSION: Final[Mapping[SessionState, Mapping[SessionEvent, SessionState]]] = {
    SessionState.OPENING: {
        SessionEvent.CONNECT: SessionState.UP,
        SessionEvent.LEAVE: SessionState.LEAVING_CUT,  # the server is removed before its connection is taken up
        SessionEvent.END: SessionState.OVER,
    },
    SessionState.UP: {
        SessionEvent.CUT: SessionState.CUT,
        SessionEvent.LEAVE: SessionState.LEAVING,
        SessionEvent.END: SessionState.OVER,
    },
    SessionState.CUT: {
        SessionEvent.CONNECT: SessionState.UP,
        SessionEvent.LEAVE: SessionState.LEAVING_CUT,
        SessionEvent.END: SessionState.OVER,
    },
    SessionState.LEAVING: {  # no CUT: a session that is ending anyway is not worth another connection, and is over
        SessionEvent.LEAVE: SessionState.LEAVING,  # the server is draining, and is removed as well
        SessionEvent.END: SessionState.OVER,
    },
    SessionState.LEAVING_CUT: {
        SessionEvent.CONNECT: SessionState.LEAVING,
        SessionEvent.LEAVE: SessionState.LEAVING_CUT,
        SessionEvent.END: SessionState.OVER,
    },
    SessionState.OVER: {},
}

LANE: Final[Mapping[LaneState, Mapping[LaneEvent, LaneState]]] = {
    LaneState.STARTING: {  # no CUT: a lane that is not ready has nothing to resume
        LaneEvent.READY: LaneState.OPEN,
        LaneEvent.END: LaneState.STILLBORN,
        LaneEvent.LOSE: LaneState.GONE,
    },
    LaneState.OPEN: {
        LaneEvent.CUT: LaneState.CUT,
        LaneEvent.RETIRE: LaneState.RETIRED,
        LaneEvent.END: LaneState.ENDED,
        LaneEvent.LOSE: LaneState.GONE,
    },
    LaneState.CUT: {  # no RETIRE: the scheduler does not retire a lane while it is unknown which tasks it has
        LaneEvent.CONNECT: LaneState.RESUMING,
        LaneEvent.LOSE: LaneState.GONE,
    },
    LaneState.RESUMING: {
        LaneEvent.RESUME: LaneState.OPEN,
        LaneEvent.CUT: LaneState.CUT,
        LaneEvent.END: LaneState.ENDED,
        LaneEvent.LOSE: LaneState.GONE,
    },
    LaneState.RETIRED: {
        LaneEvent.LOSE: LaneState.GONE
    },  # no matter how its connection ends: it is lost, and no task with it
    LaneState.STILLBORN: {LaneEvent.LOSE: LaneState.GONE},
    LaneState.ENDED: {
        LaneEvent.RETIRE: LaneState.ENDED,  # the scheduler decided this before it knew of the end
        LaneEvent.LOSE: LaneState.GONE,
    },
    LaneState.GONE: {},
}

_State = TypeVar("_State", bound=enum.Enum)
_Event = TypeVar("_Event", bound=enum.Enum)


def after(table: Mapping[_State, Mapping[_Event, _State]], state: _State, event: _Event) -> _State:
    """Return the state that follows ``state`` upon ``event``.

    Raises:
        RuntimeError: The table has no such event in this state, which is a bug.
    """
    try:
        return table[state][event]
    except KeyError:
        raise RuntimeError(f"{event} in {state}, which the table does not have: a bug") from None
