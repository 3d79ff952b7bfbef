"""One session: this client's stay on one server.

This module owns the control connection, from when a link has dialled one until the session is over, which lanes
there are, and how the session ends. It must not know tasks, what is said on lanes (`crew`), how connections are
dialled (`link`), nor which other servers there are (`servers`).

A session is over when its server knows it no more, breaks the protocol, or was not reached for too long; then its
lanes are lost, and the server is dialled for a new one. Or it ends as it should, because the server was told to
end, or is removed: then its lanes are drained, and it is over when they have gone. `core.lifecycle` has the states.
"""

from __future__ import annotations

import logging
import selectors
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, NamedTuple, Protocol

from farm_executor.client.farm.kills import Kills
from farm_executor.client.farm.lane import Lane
from farm_executor.client.farm.liveness import Liveness
from farm_executor.client.farm.reactor import Reactor
from farm_executor.core.frames import FrameType, encode_frame
from farm_executor.core.lifecycle import SESSION, SessionEvent, SessionState, after
from farm_executor.core.liveness import MAX_MISSED
from farm_executor.core.messages import Draining, KillOrder, Pong, Spared, WorkerDied, decode, encode
from farm_executor.errors import RemoteProtocolError
from farm_executor.wire.connection import Connection

__all__ = ["Around", "Server", "Session", "SessionCrew"]

logger = logging.getLogger(__name__)

PROBE_SECONDS = 1.0  # in which what was sent on a lane must have moved, when there is doubt


class Server(Protocol):
    """The server, as far as a session has to do with it: it is dialled.

    Thread safety: all methods may be called from any thread.
    """

    last_error: str

    def control_lost(self, session: Session) -> None:
        """This session is over."""

    def control_cut(self, session: Session) -> None:
        """The control connection of this session is broken, and is to be resumed."""

    def lane_cut(self, session: Session, lane: int, slot: int) -> None:
        """A lane's connection is broken, and is to be resumed."""

    def lane_gone(self, session: Session, lane: int, slot: int, *, failed: bool) -> None:
        """A lane has ended; with ``failed`` before it did anything, so that another may do no better."""

    def leave(self, session: Session) -> None:
        """Dial no more lanes in this session, which will be over when those that there are have ended."""


class SessionCrew(Protocol):
    """Who has the lanes. Every method is called in a handler of the reactor's."""

    def lane_up(self, session: Session, connection: Connection, slot: int, lane: int, pid: int) -> None:
        """The server has started a worker for us."""

    def lane_resumed(self, connection: Connection, lane: int) -> None:
        """The lane's worker lives, and has been given this connection."""

    def worker_gone(self, lane: int) -> None:
        """The lane's worker is gone, so that there is nothing to resume."""

    def sending(self) -> AbstractContextManager[None]:
        """To be held while something is sent on a lane."""

    def drain_lane(self, lane: Lane) -> None:
        """Let it end with what it has begun."""

    def lose_lane(self, lane: Lane, *, given_up: bool = False) -> None:
        """It is no more; ``given_up`` because nobody wants its server any more."""

    def on_stuck(self, lane: int) -> None:
        """Nothing moves on it."""

    def on_death(self, death: WorkerDied) -> None:
        """A supervisor's report of the end of a lane's worker."""


class Around(NamedTuple):
    """What all sessions of a farm share.

    Attributes:
        heartbeat: Seconds between two signs of life.
        resume_seconds: How long a broken connection is dialled for.
    """

    heartbeat: float
    resume_seconds: float
    reactor: Reactor
    crew: SessionCrew
    kills: Kills
    liveness: Liveness[Session]


class Session:
    """See the module. Its identity is the object's: a server that opens a session again opens another.

    Args:
        server: Where it is.
        id: What the server calls it.
        slots: How many lanes there will be.
        around: See there.
        up: Told when there is a control connection for the first time.
        over: Told when it is over.
        resumable: Whether the server waits for a connection that breaks.
        wants_modules: Whether its workers may ask for modules.
        peer: Where its first connection was answered: all others go there.

    Attributes:
        state: Changed in handlers alone.
        control: The control connection, while there is one.
        lanes: Those that have not been lost, by number. Changed by the crew, with the engine's lock held.

    Thread safety: `connected`, `gone`, `lane_up`, `lane_resumed` and `worker_gone` are for the threads that dial,
    and only leave word; the others are for handlers of the reactor's.
    """

    def __init__(
        self,
        server: Server,
        id: str,
        slots: int,
        around: Around,
        up: Callable[[Session], None],
        over: Callable[[Session], None],
        *,
        resumable: bool,
        wants_modules: bool,
        peer: Any,
    ) -> None:
        self.server = server
        self.id = id
        self.slots = slots
        self.resumable = resumable
        self.wants_modules = wants_modules
        self.peer = peer
        self._around = around
        self._up = up
        self._over = over
        self.state = SessionState.OPENING
        self.lanes: dict[int, Lane] = {}
        self.control: Connection | None = None
        self._cuts = 0  # how often the control connection has broken: a timer of an earlier cut means nothing

    def __str__(self) -> str:
        return str(self.server)

    def __repr__(self) -> str:
        return f"<Session {self.id} on {self.server}: {self.state.value}, {len(self.lanes)} of {self.slots} lanes>"

    @property
    def leaving(self) -> bool:
        """Whether it ends with the lanes that there are."""
        return self.state in (SessionState.LEAVING, SessionState.LEAVING_CUT)

    @property
    def wants_lanes(self) -> bool:
        """Whether a lane that comes now is welcome."""
        return not self.leaving and self.state is not SessionState.OVER

    def seat(self, slot: int) -> tuple[Any, int]:
        """The place of that slot, as the scheduler knows it; it outlives the session."""
        return self.server, slot

    def _change(self, event: SessionEvent) -> None:
        before, self.state = self.state, after(SESSION, self.state, event)
        logger.debug("session changed server=%s was=%s now=%s", self, before.value, self.state.value)

    # -- what the threads that dial tell -------------------------------------------------------------------

    def connected(self, connection: Connection, *, first: bool) -> None:
        """There is a control connection, the first or one that resumes."""
        self._around.reactor.post(partial(self._adopt, connection, first))

    def gone(self, why: str) -> None:
        """It cannot be resumed."""
        self._around.reactor.post(partial(self._lose, why))

    def lane_up(self, connection: Connection, slot: int, lane: int, pid: int) -> None:
        """See `SessionCrew`."""
        self._around.reactor.post(partial(self._around.crew.lane_up, self, connection, slot, lane, pid))

    def lane_resumed(self, connection: Connection, lane: int) -> None:
        """See `SessionCrew`."""
        self._around.reactor.post(partial(self._around.crew.lane_resumed, connection, lane))

    def worker_gone(self, lane: int) -> None:
        """See `SessionCrew`."""
        self._around.reactor.post(partial(self._around.crew.worker_gone, lane))

    # -- the control connection ----------------------------------------------------------------------------

    def _adopt(self, connection: Connection, first: bool) -> None:
        # The thread that dialled has left word of this; meanwhile the session may have ended.
        if self.state is SessionState.OVER:
            connection.close()
            return
        connection.socket.setblocking(False)
        self._change(SessionEvent.CONNECT)
        self.control = connection
        self._around.reactor.register(connection, partial(self._on_events, connection))
        self._around.liveness.watch(self)
        if first:
            self._up(self)
        else:
            self._doubt_lanes(connection)
            self._around.kills.order_again()

    def _doubt_lanes(self, connection: Connection) -> None:
        """The server had to be dialled again: ask whether what is sent over its lanes arrives."""
        lanes = [lane for lane in self.lanes.values() if lane.state.ready and lane.state.connected]
        with self._around.crew.sending():
            for lane in lanes:
                lane.probe()
        self._around.liveness.doubt({lane.id: lane.connection for lane in lanes})

        def ask() -> None:
            if self.control is connection:
                self.ping(0)

        ask()  # the answer tells how far what was sent has come by now, and the next one whether it moves
        self._around.reactor.after(min(self._around.heartbeat, PROBE_SECONDS), ask)

    def _on_events(self, connection: Connection, events: int) -> None:
        if self.control is not connection:
            return  # by an event of this same round
        if events & selectors.EVENT_WRITE:
            connection.flush()
            self._around.reactor.want_to_write(connection, connection.unsent)
        if not events & selectors.EVENT_READ:
            return
        crew = self._around.crew
        try:
            for frame in connection.receive():
                self._around.liveness.heard(self)
                if frame.type is FrameType.PONG:
                    watched = {lane.id: lane.connection for lane in self.lanes.values() if lane.state.connected}
                    self._around.liveness.answered(decode(Pong, frame), watched)
                elif frame.type is FrameType.WORKER_DIED:
                    crew.on_death(decode(WorkerDied, frame))
                elif frame.type is FrameType.SPARED:
                    spared = decode(Spared, frame)
                    self._around.kills.spared(spared.lane, spared.order, spared.recalls)
                elif frame.type is FrameType.BYE:
                    self._on_goodbye()
                    return
                elif frame.type is FrameType.DRAINING:
                    logger.info("draining server=%s", self)
                    if decode(Draining, frame).leave:
                        self.leave()
                else:
                    raise RemoteProtocolError(f"{frame.type.name} frame on a control connection")
        except EOFError as error:
            self._on_end(str(error))
        except RemoteProtocolError as error:
            self._lose(str(error))

    def send(self, order: KillOrder) -> bool:
        """Tell the server whom to kill; say whether there is a way to it."""
        connection = self.control
        if connection is None:
            return False
        connection.send(encode(order))
        self._around.reactor.want_to_write(connection, connection.unsent)
        return True

    def ping(self, beat: int) -> None:
        """Ask for a sign of life."""
        connection = self.control
        assert connection is not None, "only what is connected is watched"
        if not connection.unsent:  # else it does not listen, which the silence will tell
            connection.send(encode_frame(FrameType.PING, seq=beat))
            self._around.reactor.want_to_write(connection, connection.unsent)

    def moved(self) -> int:
        """How many bytes have come and gone on the lanes so far, as far as this end knows."""
        connections = [lane.connection for lane in self.lanes.values() if lane.state.connected]
        return sum([connection.bytes_received + connection.bytes_sent for connection in connections])

    def on_silence(self) -> None:
        """The server has not answered for too long."""
        self._on_end(f"nothing heard for {MAX_MISSED * self._around.heartbeat:g} s")

    # -- how it ends ---------------------------------------------------------------------------------------

    def _on_end(self, why: str) -> None:
        """The way to the server is broken: look for another, for a while."""
        if not self.resumable or self.state is not SessionState.UP:
            self._lose(why)
            return
        logger.warning("connection lost server=%s reason=%s", self, why)
        self._drop()
        self._change(SessionEvent.CUT)
        self._cuts += 1
        self._around.reactor.after(self._around.resume_seconds, partial(self._give_up, self._cuts))
        self.server.control_cut(self)

    def _give_up(self, cuts: int) -> None:
        if self.control is None and self._cuts == cuts:
            self._lose(f"not reached for {self._around.resume_seconds:g} s")

    def _drop(self) -> None:
        connection, self.control = self.control, None
        self._around.liveness.forget(self)
        if connection is not None:
            self._around.reactor.unregister(connection)
            connection.close()

    def _on_goodbye(self) -> None:
        """The server ends the session of its own accord: it is no use to look for it."""
        if self.lanes:
            self._lose("the server has ended it")
        else:
            self._part()

    def _lose(self, why: str) -> None:
        """It is over, and its lanes with it."""
        if self.state is SessionState.OVER:
            return
        logger.warning("session lost server=%s reason=%s", self, why)
        self._drop()
        self._change(SessionEvent.END)  # first, so that the last lane to go does not end it once more
        for lane in list(self.lanes.values()):
            self._around.crew.lose_lane(lane)
        self._over(self)

    def leave(self) -> None:
        """End it: what its lanes have begun is finished, the rest goes elsewhere."""
        if self.state is SessionState.OVER:
            return
        self._change(SessionEvent.LEAVE)
        self.server.leave(self)
        for lane in list(self.lanes.values()):
            if lane.state.ready:
                self._around.crew.drain_lane(lane)
            else:
                self._around.crew.lose_lane(lane)
        if not self.lanes:
            self._part()

    def give_up(self) -> None:
        """End it at once: its tasks go elsewhere."""
        for lane in list(self.lanes.values()):
            self._around.crew.lose_lane(lane, given_up=True)
        self._part()

    def lane_lost(self, lane: Lane, *, failed: bool) -> None:
        """A lane is no more: another one is dialled, or, if it was the last of a session that is to end, none.

        With ``failed`` it was never ready.
        """
        self._around.liveness.forget_lane(lane.id)
        self.server.lane_gone(self, lane.id, lane.slot, failed=failed)
        if self.leaving and not self.lanes:
            self._part()

    def lane_cut(self, lane: Lane) -> None:
        """A lane's connection is broken, and another is to be dialled."""
        self.server.lane_cut(self, lane.id, lane.slot)

    def _part(self) -> None:
        """It has ended as it should."""
        if self.state is SessionState.OVER:
            return
        if self.control is not None:
            self.control.send(encode_frame(FrameType.BYE))
        self._drop()
        self._change(SessionEvent.END)
        logger.info("session ended server=%s", self)
        self._over(self)

    def close(self, *, hurry: bool) -> None:
        """The farm ends; with ``hurry`` workers need no time to end well."""
        if self.state is SessionState.OVER:
            return
        if self.control is not None:
            self.control.send(encode_frame(FrameType.BYE, count=hurry))
            self.control.close()
        self.control = None
        self._change(SessionEvent.END)
