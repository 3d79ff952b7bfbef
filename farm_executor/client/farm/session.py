"""One session: this client's stay on one server.

This module owns the control connection, from the moment a link has dialled one until the session is over, the set
of lanes, and how the session ends. It must not know tasks, what is said on lanes (`crew`), how connections are
dialled (`link`), nor which other servers there are (`servers`).

A session is over when its server no longer knows it, breaks the protocol, or has not been reached for too long;
then its lanes are lost, and the server is dialled for a new session. Or it ends in an orderly way, because the
server was told to end or is being removed: then its lanes are drained, and it is over once they have gone.
`core.lifecycle` has the states.
"""

from __future__ import annotations

import logging
import selectors
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from math import inf
from typing import Any, Protocol

from farm_executor._record import NamedTuple
from farm_executor.client.farm.kills import Kills
from farm_executor.client.farm.lane import Lane
from farm_executor.client.farm.liveness import Liveness
from farm_executor.client.farm.reactor import Reactor
from farm_executor.client.farm.sharing import Sharing
from farm_executor.core.deliveries import Deliveries
from farm_executor.core.features import COUNTS
from farm_executor.core.flow import DEAF_SECONDS, TELL_EVERY, WINDOW
from farm_executor.core.frames import Buffer, Frame, FrameType, encode_frame
from farm_executor.core.lifecycle import SESSION, SessionEvent, SessionState, after
from farm_executor.core.liveness import MAX_MISSED, decode_counts
from farm_executor.core.messages import Draining, KillOrder, LaneHello, Pong, Spared, WorkerDied, decode, encode
from farm_executor.core.spread import Spread
from farm_executor.errors import RemoteProtocolError
from farm_executor.wire.connection import Connection
from farm_executor.wire.sockets import Socket

__all__ = ["Around", "Server", "Session", "SessionCrew", "Terms"]

logger = logging.getLogger(__name__)

PROBE_SECONDS = 1.0  # within which bytes sent on a doubtful lane must have moved


class Server(Protocol):
    """The server as a session sees it: something that is dialled.

    Thread safety: all methods may be called from any thread.
    """

    is_embedded: bool
    last_error: str

    def control_lost(self, session: Session) -> None:
        """Note that this session is over, and dial for the next one."""

    def control_cut(self, session: Session) -> None:
        """Dial for this session's control connection, which is broken and has to be resumed."""

    def lane_cut(self, session: Session, lane: int, slot: int) -> None:
        """Dial for a lane's connection, which is broken and has to be resumed."""

    def lane_gone(self, session: Session, lane: int, slot: int, *, failed: bool) -> None:
        """Note that a lane has ended; with ``failed``, before it did anything, so another may do no better."""

    def leave(self, session: Session) -> None:
        """Dial no more lanes in this session, which will be over once its present lanes have ended."""


class SessionCrew(Protocol):
    """The owner of the lanes. Every method but `prepare` is called in a handler of the reactor."""

    def prepare(self) -> None:
        """Find what workers may ask for; called in a dialling thread, before their session is there."""

    def lane_up(self, session: Session, connection: Connection, slot: int, lane: int, pid: int) -> None:
        """Take up a new lane: the server has started a worker for us."""

    def lane_resumed(self, connection: Connection, lane: int) -> None:
        """Continue a lane over this connection, which its worker has been given."""

    def worker_gone(self, lane: int) -> None:
        """Note that the lane's worker is gone, so that there is nothing to resume."""

    def sending(self) -> AbstractContextManager[None]:
        """Return the context to hold while something is sent on a lane."""

    def drain_lane(self, lane: Lane) -> None:
        """Let a lane finish the tasks it has begun, and then end."""

    def lose_lane(self, lane: Lane, *, given_up: bool = False) -> None:
        """Give up a lane that is lost; with ``given_up``, because its server is no longer wanted."""

    def on_stuck(self, lane: int) -> None:
        """Handle a lane on which nothing moves."""

    def on_output(self, session: Session, frame: Frame) -> None:
        """Take a piece of a worker's output."""

    sharing: Sharing

    def on_death(self, death: WorkerDied) -> None:
        """Handle a supervisor's report that a lane's worker has ended."""


class Around(NamedTuple):
    """The parts and settings that all sessions of a farm share.

    Attributes:
        heartbeat: Seconds between two signs of life.
        resume_seconds: How long to keep dialling for a broken connection, in seconds.
        pulse: Returns the frame of a heartbeat, given its number.
    """

    heartbeat: float
    resume_seconds: float
    reactor: Reactor
    crew: SessionCrew
    kills: Kills
    liveness: Liveness[Session]
    pulse: Callable[[int], list[Buffer]]


class Terms(NamedTuple):
    """What a server and its client have agreed on for a session.

    Attributes:
        id: The server's name for the session.
        slots: The number of lanes there will be.
        resumable: Whether the server waits for a broken connection to be resumed.
        features: Those that the client and the server both have.
        version: Of the farm_executor on the server.
        peer: The address at which the first connection was answered: all others go there.
        dial_ring: Dials for the ring that a lane's worker offers, and tells of the socket before it is connected;
            None if there are no rings.
    """

    id: str
    slots: int
    resumable: bool
    features: frozenset[str]
    version: str
    peer: Any
    dial_ring: Callable[[LaneHello, Callable[[Socket], None]], Connection] | None


class Session:
    """One session; see the module. Compared by identity: if a server opens a session again, that is another object.

    Args:
        server: The server that the session is on.
        terms: See `Terms`; each is an attribute of the session, too.
        around: See `Around`.
        up: Called when there is a control connection for the first time.
        over: Called when the session is over.

    Attributes:
        state: Changed in handlers only.
        control: The control connection, while there is one.
        lanes: The lanes that have not been lost, by number. Changed by the crew, with the engine's lock held.
        deliveries: Which lane carries which shared object; None if the server holds none.
        spread: Which lane brings which large function; None if each is sent its own. Guarded by the engine's lock.

    Thread safety: `connected`, `gone`, `lane_up`, `lane_resumed` and `worker_gone` are for the dialling threads,
    and only post to the reactor; the other methods are for its handlers.
    """

    def __init__(
        self,
        server: Server,
        terms: Terms,
        around: Around,
        up: Callable[[Session], None],
        over: Callable[[Session], None],
    ) -> None:
        self.server = server
        self.id, self.slots, self.resumable, self.features, self.version, self.peer, self.dial_ring = terms
        self._around = around
        self._up = up
        self._over = over
        self.state = SessionState.OPENING
        self.lanes: dict[int, Lane] = {}
        self.deliveries: Deliveries | None = None
        self.spread: Spread | None = None
        self.control: Connection | None = None
        self._counted: Connection | None = None  # over which the output came that has been shown
        self._shown = self._told = 0  # bytes of it, and those of which the server is to hear
        self._receiving: Connection | None = None  # over which the output comes that is counted here:
        self._came = self._heard = 0  # bytes of it, and those of which the server has heard
        self._full_since: float | None = None  # while the server may send no more of it
        self._cut_at = -inf  # when the control connection has broken, while it may come back
        self._cuts = 0  # how often the control connection has broken, so that timers of earlier cuts are ignored

    def __str__(self) -> str:
        return str(self.server)

    def __repr__(self) -> str:
        return f"<Session on {self.server}: {self.state.value}, {len(self.lanes)} of {self.slots} lanes>"

    @property
    def is_own(self) -> bool:
        """Whether the server is this program's own, so that nobody needs to be told where its output comes from."""
        return self.server.is_embedded

    @property
    def leaving(self) -> bool:
        """Whether the session ends with its present lanes."""
        return self.state in (SessionState.LEAVING, SessionState.LEAVING_CUT)

    @property
    def wants_lanes(self) -> bool:
        """Whether a new lane is still welcome."""
        return not self.leaving and self.state is not SessionState.OVER

    def seat(self, slot: int) -> tuple[Any, int]:
        """Return the scheduler's name for a slot, which outlives the session."""
        return self.server, slot

    def _change(self, event: SessionEvent) -> None:
        before, self.state = self.state, after(SESSION, self.state, event)
        logger.debug("session changed server=%s was=%s now=%s", self, before.value, self.state.value)

    # -- called by the dialling threads --------------------------------------------------------------------

    # Nothing is decided in those threads. All of it is posted, so that handlers see one event after the other and a
    # session's state needs no lock. A posted event may be overtaken by others: each handler checks the state again.

    def connected(self, connection: Connection, *, first: bool) -> None:
        """Hand over a control connection, either the first or one that resumes the session."""
        self._around.reactor.post(partial(self._adopt, connection, first))

    def gone(self, why: str) -> None:
        """Report that the session cannot be resumed."""
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
        # The dialling thread posted this; the session may have ended since.
        if self.state is SessionState.OVER:
            connection.close()
            return
        connection.socket.setblocking(False)
        self._change(SessionEvent.CONNECT)
        self.control = connection
        self._around.reactor.register(connection, partial(self._on_events, connection))
        self._around.liveness.watch(self)
        self._around.crew.sharing.connected(self, first=first)
        if first:
            self._up(self)
        else:
            # Whatever broke the control connection may have broken the lanes without a sign, and orders sent just
            # before the cut may not have arrived.
            self._doubt_lanes(connection)
            self._around.kills.order_again()

    def _doubt_lanes(self, connection: Connection) -> None:
        """Probe the lanes of a server that had to be dialled again, to find those over which nothing arrives."""
        lanes = [lane for lane in self.lanes.values() if lane.state.ready and lane.state.connected]
        # An idle lane shows no movement either way, so send a harmless frame that can be seen to arrive.
        with self._around.crew.sending():
            for lane in lanes:
                lane.probe()
        self._around.liveness.doubt({lane.id: lane.connection for lane in lanes})

        def ask() -> None:
            if self.control is connection:
                self.ping(0)

        # Two answers are needed: the first says how many bytes have arrived so far, the second whether more have
        # come since. A slow network is not a broken one.
        ask()
        self._around.reactor.after(min(self._around.heartbeat, PROBE_SECONDS), ask)

    def _on_events(self, connection: Connection, events: int) -> None:
        if self.control is not connection:
            return  # an earlier event of the same round has dropped this connection
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
                    counts = decode_counts(frame) if COUNTS in self.features else decode(Pong, frame).lanes
                    watched = {lane.id: lane.connection for lane in self.lanes.values() if lane.state.connected}
                    self._around.liveness.answered(counts, watched)
                elif frame.type is FrameType.OUTPUT:
                    crew.on_output(self, frame)
                elif frame.type is FrameType.SHARED and self.deliveries is not None:
                    crew.sharing.on_answer(self, frame)
                elif frame.type is FrameType.WORKER_DIED:
                    crew.on_death(decode(WorkerDied, frame))
                elif frame.type is FrameType.SPARED:
                    spared = decode(Spared, frame)
                    self._around.kills.spared(spared.lane, spared.order, spared.recalls)
                elif frame.type is FrameType.BYE:
                    # This drops the connection, so whatever follows in its buffer is ignored.
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
        """Send the server a kill order; return whether there is a connection to send it over."""
        connection = self.control
        if connection is None:
            return False
        connection.send(encode(order))
        self._around.reactor.want_to_write(connection, connection.unsent)
        return True

    def count_received(self, size: int) -> None:
        """Count bytes of output that have come over the present connection."""
        if self._receiving is not self.control:
            self._receiving = self.control
            self._came = self._heard = 0
            self._full_since = None
        self._came += size
        if self._full_since is None:
            self._note_room()

    @property
    def hears_nothing(self) -> bool:
        """Whether no output comes: for too long there is no connection, or the program has shown too little."""
        # The server drops what it reads then, and says how much only when it has heard of us.
        if self.control is None:
            since: float | None = self._cut_at
        else:
            since = self._full_since if self._receiving is self.control else None
        return since is not None and time.monotonic() - since >= DEAF_SECONDS

    def _note_room(self) -> None:
        self._full_since = time.monotonic() if self._came - self._heard >= WINDOW else None

    def tell(self, buffers: list[Buffer]) -> None:
        """Send the server something, if there is a connection to send it over."""
        if self.control is not None:
            self.control.send(buffers)
            self._around.reactor.want_to_write(self.control, self.control.unsent)

    def count_shown(self, connection: Connection | None, size: int) -> int:
        """Count bytes of output that have been shown; return their number if it is time to tell the server.

        Called in one thread, in the order in which they have come, whichever thread that is.
        """
        if connection is not self._counted:  # the server counts those of each connection
            self._counted = connection
            self._shown = self._told = 0
        self._shown += size
        if self._shown - self._told < TELL_EVERY:
            return 0
        self._told = self._shown
        return self._shown

    def _forget_counts(self) -> None:
        """Let go of a connection that is closed: what lanes have said may keep this session for long."""
        self._counted = self._receiving = None

    def tell_heard(self, connection: Connection | None, shown: int) -> None:
        """Tell the server how many bytes of output that came over this connection have been shown."""
        if connection is not None and self.control is connection:
            connection.send(encode_frame(FrameType.HEARD, seq=shown))
            self._heard = shown
            self._note_room()
            self._around.reactor.want_to_write(connection, connection.unsent)

    def ping(self, beat: int) -> None:
        """Ask the server for a sign of life."""
        connection = self.control
        assert connection is not None, "only what is connected is watched"
        # With bytes still unsent the server is not reading, and another ping would only pile up behind them. Its
        # silence shows in any case.
        if not connection.unsent:
            connection.send(self._around.pulse(beat))
            self._around.reactor.want_to_write(connection, connection.unsent)

    def moved(self) -> int:
        """Return how many bytes have been received and sent on the lanes so far, as far as this end knows."""
        connections = [lane.connection for lane in self.lanes.values() if lane.state.connected]
        return sum([connection.bytes_received + connection.bytes_sent for connection in connections])

    def on_silence(self) -> None:
        """Treat the connection as broken, as the server has not answered for too long."""
        self._on_end(f"nothing heard for {MAX_MISSED * self._around.heartbeat:g} s")

    # -- how it ends ---------------------------------------------------------------------------------------

    def _on_end(self, why: str) -> None:
        """Give up the broken control connection, and have another one dialled for up to ``resume_seconds``."""
        # Only a session that is up is worth resuming: one that is leaving ends anyway.
        if not self.resumable or self.state is not SessionState.UP:
            self._lose(why)
            return
        logger.warning("connection lost server=%s reason=%s", self, why)
        self._drop()
        self._cut_at = time.monotonic()
        self._change(SessionEvent.CUT)
        self._cuts += 1
        self._around.reactor.after(self._around.resume_seconds, partial(self._give_up, self._cuts))
        self.server.control_cut(self)

    def _give_up(self, cuts: int) -> None:
        if self.control is None and self._cuts == cuts:
            self._lose(f"not reached for {self._around.resume_seconds:g} s")

    def _drop(self) -> None:
        connection, self.control = self.control, None
        self._forget_counts()
        self._around.liveness.forget(self)
        if connection is not None:
            self._around.reactor.unregister(connection)
            connection.close()

    def _on_goodbye(self) -> None:
        """Handle the server's goodbye: it ends the session itself, so there is nothing to resume."""
        if self.lanes:
            self._lose("the server has ended it")
        else:
            self._part()

    def _lose(self, why: str) -> None:
        """End the session because it is lost, and its lanes with it."""
        if self.state is SessionState.OVER:
            return
        logger.warning("session lost server=%s reason=%s", self, why)
        self._drop()
        # Before the lanes go: otherwise the last one to go would end a leaving session a second time.
        self._change(SessionEvent.END)
        for lane in list(self.lanes.values()):
            self._around.crew.lose_lane(lane)
        self._over(self)

    def leave(self) -> None:
        """End the session gracefully: tasks that its lanes have begun are finished, the rest goes elsewhere."""
        if self.state is SessionState.OVER:
            return
        self._change(SessionEvent.LEAVE)
        # Before the lanes are drained, so that no lane is dialled in place of one that ends.
        self.server.leave(self)
        for lane in list(self.lanes.values()):
            # A worker that is not ready has been sent no tasks, so there is nothing to wait for.
            if lane.state.ready:
                self._around.crew.drain_lane(lane)
            else:
                self._around.crew.lose_lane(lane)
        if not self.lanes:
            self._part()

    def give_up(self) -> None:
        """End the session at once: its tasks go elsewhere."""
        for lane in list(self.lanes.values()):
            self._around.crew.lose_lane(lane, given_up=True)
        self._part()

    def lane_lost(self, lane: Lane, *, failed: bool) -> None:
        """Replace a lost lane, or end the session if it was the last lane of one that is leaving.

        With ``failed``, the lane was never ready.
        """
        self._around.liveness.forget_lane(lane.id)
        self.server.lane_gone(self, lane.id, lane.slot, failed=failed)
        if self.leaving and not self.lanes:
            self._part()

    def lane_cut(self, lane: Lane) -> None:
        """Have another connection dialled for a lane whose own is broken."""
        self.server.lane_cut(self, lane.id, lane.slot)

    def _part(self) -> None:
        """End the session in the orderly way, with a goodbye."""
        # Losing the last lane of a leaving session comes here, too, so this may be the second call.
        if self.state is SessionState.OVER:
            return
        if self.control is not None:
            self.control.send(encode_frame(FrameType.BYE))
        self._drop()
        self._change(SessionEvent.END)
        logger.info("session ended server=%s", self)
        self._over(self)

    def close(self, *, hurry: bool) -> None:
        """End the session because the farm ends; with ``hurry``, its workers get no time to end gracefully."""
        if self.state is SessionState.OVER:
            return
        if self.control is not None:
            self.control.send(encode_frame(FrameType.BYE, count=hurry))
            self.control.close()
        self.control = None
        self._forget_counts()
        self._change(SessionEvent.END)
