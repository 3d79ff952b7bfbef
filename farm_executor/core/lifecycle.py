"""The lives of sessions and lanes, each as a table of states and events.

This module owns which states there are and what each event makes of them. It must not know what causes an event,
nor what is to be done about it. An event that the table lacks is a bug of the caller's, and raises: what a peer
says, and what has been overtaken, is sorted out before it is called an event.

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
    """A client's stay on one server, seen from the client."""

    OPENING = "opening"  # the server has agreed; the farm's own thread has yet to take the connection up
    UP = "up"
    CUT = "cut"  # the control connection is broken, and another is dialled for
    LEAVING = "leaving"  # it ends with the lanes that there are; no other lane is wanted
    LEAVING_CUT = "leaving, cut"  # the same, and there is no way to the server
    OVER = "over"


class SessionEvent(enum.Enum):
    """What befalls a session."""

    CONNECT = "connect"  # there is a control connection, the first or another
    CUT = "cut"
    LEAVE = "leave"
    END = "end"


class LaneState(enum.Enum):
    """A lane, seen from the client."""

    STARTING = "starting"  # its worker runs the initializer
    OPEN = "open"  # the only state in which it is given tasks and answers them
    CUT = "cut"  # its connection is broken, and another is dialled for
    RESUMING = "resuming"  # there is another, over which the worker has yet to say what it expects
    RETIRED = "retired"  # it has run all that it may, and is about to be ended
    STILLBORN = "stillborn"  # its connection has ended before it was ready; the supervisor may say why
    ENDED = "ended"  # the same, later, where nothing can be resumed
    GONE = "gone"

    # Plain attributes, not properties: they are read for each lane at each heartbeat.
    connected: bool
    ready: bool


class LaneEvent(enum.Enum):
    """What befalls a lane."""

    READY = "ready"  # the initializer has succeeded
    CUT = "cut"
    CONNECT = "connect"  # it is given another connection
    RESUME = "resume"  # the worker has said what it expects
    RETIRE = "retire"
    END = "end"  # of its connection, for good
    LOSE = "lose"


for _state in LaneState:
    _state.connected = _state.name in ("STARTING", "OPEN", "RESUMING", "RETIRED")
    """Whether there is a connection to be read from."""
    _state.ready = _state.name in ("OPEN", "CUT", "RESUMING", "RETIRED", "ENDED")
    """Whether the initializer has succeeded, so that the scheduler knows the lane."""


SESSION: Final[Mapping[SessionState, Mapping[SessionEvent, SessionState]]] = {
    SessionState.OPENING: {
        SessionEvent.CONNECT: SessionState.UP,
        SessionEvent.LEAVE: SessionState.LEAVING_CUT,  # removed before its connection was taken up
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
    SessionState.LEAVING: {  # no CUT: what is to end anyway is not worth another connection, and so is over
        SessionEvent.LEAVE: SessionState.LEAVING,  # the server drains, and is removed, too
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
    LaneState.STARTING: {  # no CUT: before it is ready there is nothing to resume
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
    LaneState.CUT: {  # no RETIRE: the scheduler retires none whose tail it does not know
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
    },  # however its connection ends: it is lost, and nothing with it
    LaneState.STILLBORN: {LaneEvent.LOSE: LaneState.GONE},
    LaneState.ENDED: {
        LaneEvent.RETIRE: LaneState.ENDED,  # by a scheduler that does not know of the end yet
        LaneEvent.LOSE: LaneState.GONE,
    },
    LaneState.GONE: {},
}

_State = TypeVar("_State", bound=enum.Enum)
_Event = TypeVar("_Event", bound=enum.Enum)


def after(table: Mapping[_State, Mapping[_Event, _State]], state: _State, event: _Event) -> _State:
    """The state that follows.

    Raises:
        RuntimeError: The table has no such event in this state, which is a bug.
    """
    try:
        return table[state][event]
    except KeyError:
        raise RuntimeError(f"{event} in {state}, which the table does not have: a bug") from None
