"""The sessions of a server's clients: how they are opened and resumed, what is said in them, how they end.

This module owns the control connections, and which lanes a session may have. It must not know how workers start and
die (`workers`), how a peer proves the key (`door`), nor when the server ends (`supervisor`).

A connection may break while both ends live. Over TCP, a session that has lost its control connection is therefore
kept for a while, for its client to come back, and a new connection for a lane is passed on to the living worker.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Protocol

from farm_executor._record import NamedTuple
from farm_executor.core.census import FarmStatus
from farm_executor.core.features import BESIDE, COUNTS, MODULES, OUTPUT, RINGS, SHARING, shared
from farm_executor.core.frames import MAX_HELLO, Buffer, Frame, FrameType, encode_frame
from farm_executor.core.handshake import Versions, describe_mismatches
from farm_executor.core.liveness import encode_counts
from farm_executor.core.messages import (
    ControlHello,
    Draining,
    KillOrder,
    LaneHello,
    Pong,
    Refused,
    Welcome,
    WorkerHello,
    decode,
    encode,
)
from farm_executor.core.sharing import decode_offer
from farm_executor.core.shelf import Room
from farm_executor.errors import RemoteProtocolError
from farm_executor.server.channel import RING
from farm_executor.server.door import Door
from farm_executor.server.forwarding import Forwarding
from farm_executor.server.guest import Guest
from farm_executor.server.session import Session
from farm_executor.server.shelves import Shelves
from farm_executor.server.worker import WorkerStart
from farm_executor.server.workers import Workers
from farm_executor.wire.connection import Connection, no_segment
from farm_executor.wire.sockets import ends, hang_up, is_tcp, tune, unread
from farm_executor.wire.trace import trace_of

if TYPE_CHECKING:
    from farm_executor.server.depot import Depot

__all__ = ["GRACE_CRASHED", "Sessions", "StartWorkers", "Terms"]

logger = logging.getLogger(__name__)

GRACE_CRASHED = 1.0  # seconds for the workers of a client that is gone
GRACE_ENDED = 10.0  # seconds for the workers of a client that said goodbye, or that has replaced them
MAX_RESUME_SECONDS = 3600.0  # the most that a client may ask for
MIN_HEARTBEAT, MAX_HEARTBEAT = 0.05, 3600.0  # seconds; a shorter one would only give clients up too soon
MAX_UNHEARD = 1000  # buffers that may wait for a client to read them
MAX_REPORTS = 1000  # lanes reported in one PONG
UNKNOWN_MEMORY = 8 << 30  # bytes that a machine is taken to have that does not tell


class Terms(NamedTuple):
    """What a server offers to every client.

    Attributes:
        address: Where it listens, for people to read.
        name: Its label, for people as well.
        slots: The number of workers that each session may have.
        versions: Its versions.
        features: Those that it has.
        tunnelled: Whether there is a network behind its unix socket.
        max_shared: The bytes that all clients together may share; None for half of the memory there is.
        beside: See `messages.Welcome`.
    """

    address: str
    name: str
    slots: int
    versions: Versions
    features: tuple[str, ...]
    tunnelled: bool
    max_shared: int | None = None
    beside: str = ""


class StartWorkers(Protocol):
    """Makes the server's `Workers`."""

    def __call__(self, *, tell: Callable[[Session, NamedTuple], None], gone: Callable[[Session], None]) -> Workers:
        """Make them; see `Workers` for the arguments."""


class Sessions:
    """The sessions of a server; see the module.

    Args:
        selector: The supervisor's selector, whose entries hold the callbacks.
        door: Where clients come in.
        terms: What the server offers.
        depot: The folders for clients' modules; None if it takes none.
        start_workers: Makes the server's workers.
        on_lost: Called when a session has ended because its client is gone.

    Attributes:
        workers: The workers of all sessions.
        draining: Whether no new sessions are opened.
        opened: How many there have been.
    """

    def __init__(
        self,
        selector: selectors.BaseSelector,
        door: Door,
        terms: Terms,
        depot: Depot | None,
        start_workers: StartWorkers,
        on_lost: Callable[[], None],
    ) -> None:
        self._selector = selector
        self._door = door
        self._terms = terms
        self._depot = depot
        self._on_lost = on_lost
        self._by_id: dict[str, Session] = {}
        self._room = Room(lambda: _most_shared(terms), lambda: self.workers.descriptors // 2)
        self.workers = start_workers(tell=self._tell, gone=self._on_worker_gone)
        self.draining = False
        self.opened = 0
        self._leaving = False  # whether the clients have been asked to leave as well

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Session]:
        return iter(list(self._by_id.values()))  # a copy, as sessions may end meanwhile

    @property
    def deadline(self) -> float:
        """When `on_time` is to be called next, on the monotonic clock."""
        return min([session.deadline for session in self._by_id.values()], default=float("inf"))

    def on_time(self, now: float) -> None:
        """Do everything that is due."""
        for session in [session for session in self if session.deadline <= now]:
            if session.connection is None:
                self.end(session, GRACE_CRASHED)
            else:
                self._cut(session, f"nothing heard for {now - session.heard:.0f} s")

    def close(self) -> None:
        """Close every descriptor, without telling any peer."""
        for session in self:
            if session.connection is not None:
                session.connection.socket.close()
            if session.shelves is not None:
                session.shelves.close()

    # -- clients come ------------------------------------------------------------------------------------

    def open(self, guest: Guest, hello: ControlHello) -> None:
        """Open a session for a guest, or resume the one that it names; or refuse it."""
        terms = self._terms
        if hello.resume is not None:
            self._resume(guest, hello.resume)
            return
        if self.draining:
            text = f"server {terms.address} takes no new clients: it was told to end"
            self._door.refuse(guest, "draining", text)
            return
        mismatches = hello.versions.mismatches(terms.versions)
        if {"python", "protocol"} & mismatches.keys() and not hello.allow_version_mismatch:
            text = "its versions differ from the client's: " + describe_mismatches(mismatches)
            self._door.refuse(guest, "version", text, mismatches)
            return
        # A unix socket ends only with the process that held it, so there is nothing to resume.
        resume_seconds = min(hello.resume_seconds, MAX_RESUME_SECONDS) if guest.breaks else 0.0
        self.opened += 1
        session = Session(
            os.urandom(16).hex(),
            f"{hello.client or 'a client'} at {guest.name}",
            resume_seconds,
            heartbeat=min(max(hello.heartbeat, MIN_HEARTBEAT), MAX_HEARTBEAT),
            max_memory=hello.max_memory,
            features=shared(hello.features, terms.features),
            distant=bool(resume_seconds) or terms.tunnelled,
            number=self.opened,
            who=hello,
        )
        if self._depot is not None and MODULES in session.features:
            session.modules = self._depot.open(session.id)
        if OUTPUT in session.features:
            session.forwarding = Forwarding(partial(self._forward, session))
        if SHARING in session.features:
            session.shelves = Shelves(self._room, partial(self._send, session))
        self._welcome(guest, session)
        self._by_id[session.id] = session
        logger.info("session opened client=%s", session.client)

    def _resume(self, guest: Guest, id: str) -> None:
        session = self._by_id.get(id)
        if session is None or not session.resume_seconds:
            self._door.refuse(guest, "session", "there is no such session on this server any more")
            return
        self._drop_control(session)  # we may not have noticed yet that it is broken
        self._welcome(guest, session)
        self.workers.go_on(session.forwarding)
        for report in session.reports.values():  # some may have been lost with the old connection
            self._tell(session, report)
        logger.info("session resumed client=%s", session.client)

    def _welcome(self, guest: Guest, session: Session) -> None:
        """Make this connection the session's control connection."""
        terms = self._terms
        guest.reply(
            Welcome(
                *(session.id, terms.slots, terms.name, terms.versions, session.resume_seconds),
                features=tuple(sorted(session.features)),
                beside=terms.beside if {BESIDE, RINGS} & session.features else "",
                ends=ends(guest.raw) if terms.beside and BESIDE in session.features else "",
            )
        )
        self._door.release(guest)
        tune(guest.raw, session.heartbeat)
        session.connection = Connection(guest.socket, MAX_HELLO, no_segment)
        session.connection.trace = trace_of(f"client={session.client}")
        session.heard = time.monotonic()
        if session.forwarding is not None:
            session.forwarding.restart()
        self._selector.register(guest.socket, selectors.EVENT_READ, lambda: self._on_control(session))

    def open_lane(self, guest: Guest, hello: LaneHello) -> WorkerStart | None:
        """Start a worker for a guest, or pass the guest on to the one that it has; or refuse it.

        Returns:
            In the worker's new process, what the worker starts with; in the supervisor, None.
        """
        session = self._by_id.get(hello.session)
        slot, lane = hello.slot, hello.lane
        if session is None or session.ended:
            self._door.refuse(guest, "session", "there is no such session on this server")
            return None
        if hello.ring:
            self._pass_ring(guest, session, lane)
            return None
        if hello.resume:
            self._resume_lane(guest, session, lane)
            return None
        slots = self._terms.slots
        if slot is None or slot >= slots:
            self._door.refuse(guest, "slot", f"this server has slots 0 to {slots - 1}, not {slot}")
            return None
        for worker in session.workers.values():
            if worker.slot == slot:  # its client has given it up; it may have a thread that never ends
                self.workers.end(worker, GRACE_ENDED)
        if len(session.workers) >= 2 * slots:  # for a moment a slot has both an old worker and its successor
            self._door.refuse(guest, "slot", f"this session has {len(session.workers)} workers already")
            return None
        self._door.release(guest)
        tune(guest.raw, session.heartbeat)
        for old in [old for old in session.reports if session.reports[old].slot == slot]:
            del session.reports[old]  # the client has it, or it would not refill the slot
        try:
            return self.workers.start(session, guest, slot, lane)
        except OSError as error:
            logger.error("cannot start a worker error=%s", error)
            with contextlib.suppress(OSError):  # it may have hung up, and is no longer a guest to be dismissed
                guest.reply(Refused("fork", f"cannot start a worker: {error}"))
            guest.socket.close()
            return None

    def _pass_ring(self, guest: Guest, session: Session, lane: int) -> None:
        """Pass the connection on to the lane's worker, to offer a ring of shared memory over it."""
        worker = next((worker for worker in session.workers.values() if worker.lane == lane), None)
        if worker is None or is_tcp(guest.raw) or guest.secret or RINGS not in session.features:
            self._door.refuse(guest, "worker", "that lane's worker is gone, or this is no place for its ring")
            return
        self._door.release(guest)
        try:
            guest.reply(WorkerHello(worker.pid))
            worker.channel.pass_on(guest.raw, RING, b"")
        except OSError as error:
            logger.debug("no ring pid=%d error=%s", worker.pid, error)
        guest.socket.close()

    def _resume_lane(self, guest: Guest, session: Session, lane: int) -> None:
        """Pass the connection on to the lane's worker, which is still alive."""
        worker = next((worker for worker in session.workers.values() if worker.lane == lane), None)
        if worker is None or self.workers.is_doomed(worker) or not session.resume_seconds:
            self._door.refuse(guest, "worker", "that lane's worker is gone")
            return
        self._door.release(guest)
        tune(guest.raw, session.heartbeat)
        hang_up(worker.socket)  # the worker may be waiting to send over the old connection
        try:
            worker.channel.pass_on(guest.raw, guest.secured_later, guest.secret)
            guest.reply(WorkerHello(worker.pid))
        except OSError as error:
            logger.warning("lane not resumed pid=%d error=%s", worker.pid, error)
            guest.socket.close()
            return
        worker.socket.close()
        worker.socket = guest.raw
        logger.info("lane resumed pid=%d slot=%d client=%s", worker.pid, worker.slot, session.client)

    # -- what is said on control connections -------------------------------------------------------------

    def _tell(self, session: Session, message: NamedTuple) -> None:
        """Send a message to the client, if it is connected."""
        self._send(session, encode(message))

    def _send(self, session: Session, buffers: list[Buffer]) -> None:
        if session.connection is not None:
            session.connection.send(buffers)
            if session.connection.backlog > MAX_UNHEARD:
                self._cut(session, "it does not listen")
            else:
                self._watch(session, session.connection)

    def _forward(self, session: Session, buffers: list[Buffer]) -> int | None:
        """Send output to the client; see `Forwarding`."""
        connection = session.connection
        if connection is None:
            return None
        connection.send(buffers)
        self._watch(session, connection)
        return connection.backlog

    def _watch(self, session: Session, connection: Connection) -> None:
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.unsent else 0)
        self._selector.modify(connection, events, lambda: self._on_control(session))

    def _on_control(self, session: Session) -> None:
        connection = session.connection
        if connection is None:
            return  # dropped by another event of this round
        try:
            if connection.unsent:
                if connection.flush() and session.forwarding is not None:
                    session.forwarding.drained()
                    self.workers.go_on(session.forwarding)
                self._watch(session, connection)
            for frame in connection.receive():
                if session.connection is not connection:
                    return  # ended by the frame before this one, or cut by an answer that it did not read
                session.heard = time.monotonic()
                self._on_frame(session, connection, frame)
        except EOFError as error:
            self._cut(session, str(error))
        except RemoteProtocolError as error:
            logger.warning("session broken client=%s error=%s", session.client, error)
            self.end(session, GRACE_CRASHED)
        except Exception:  # a bug of ours must not take other sessions down
            logger.exception("session failed client=%s", session.client)
            if not session.ended:
                self.end(session, GRACE_CRASHED)

    def _on_frame(self, session: Session, connection: Connection, frame: Frame) -> None:
        if frame.type is FrameType.PING:
            if len(frame.body):
                session.farm = decode(FarmStatus, frame)
            self._answer_ping(session, connection, frame.seq)
        elif frame.type is FrameType.HEARD and session.forwarding is not None:
            session.forwarding.hear(frame.seq)
            self.workers.go_on(session.forwarding)
        elif frame.type is FrameType.SHARE and session.shelves is not None:
            session.shelves.offer(*decode_offer(frame))
        elif frame.type is FrameType.UNSHARE and session.shelves is not None:
            session.shelves.drop(frame.seq)
        elif frame.type is FrameType.KILL:
            self.workers.kill(session, decode(KillOrder, frame))
        elif frame.type is FrameType.BYE:
            self.end(session, GRACE_CRASHED if frame.count else GRACE_ENDED)
        else:
            raise RemoteProtocolError(f"{frame.type.name} frame on a control connection")

    def _answer_ping(self, session: Session, connection: Connection, seq: int) -> None:
        """Report the bytes received and sent on each lane, so that the client can tell whether they arrive.

        A lane with data waiting to be read is left out: it is the worker, not the network, that keeps more from
        coming.
        """
        if connection.unsent:
            return  # the client does not read what it is sent already
        lanes = []
        for worker in list(session.workers.values())[:MAX_REPORTS]:
            if not unread(worker.socket):
                lanes.append((worker.lane, worker.progress.received, worker.progress.sent))
        counted = COUNTS in session.features
        self._send(session, encode_counts(lanes, seq) if counted else encode(Pong(lanes), seq))

    # -- clients go --------------------------------------------------------------------------------------

    def _cut(self, session: Session, why: str) -> None:
        """Drop a broken control connection; keep the session for a while if its client can come back, or end it."""
        if not session.resume_seconds or self.draining:
            self.end(session, GRACE_CRASHED)
            self._on_lost()
            return
        logger.info("session cut client=%s reason=%s", session.client, why)
        self._drop_control(session)
        session.heard = time.monotonic()

    def _drop_control(self, session: Session) -> None:
        if session.connection is not None:
            self._selector.unregister(session.connection)
            session.connection.close()
            session.connection = None
            if session.forwarding is not None:
                session.forwarding.cut()

    def end(self, session: Session, grace: float) -> None:
        """Let the session's workers see that their client is gone; kill those that outlast the grace period."""
        logger.info("session ended client=%s", session.client)
        session.ended = True
        del self._by_id[session.id]
        self._drop_control(session)
        if session.shelves is not None:
            session.shelves.close()
        for worker in session.workers.values():
            self.workers.end(worker, grace)
        self._clear(session)

    def _clear(self, session: Session) -> None:
        """Remove the session's modules, once it has ended and its last worker is gone."""
        if self._depot is not None and session.modules is not None and session.ended and not session.workers:
            self._depot.remove(session.modules)
            session.modules = None

    def _on_worker_gone(self, session: Session) -> None:
        self._clear(session)
        if self.draining and not session.ended and not session.workers:
            self._part_with(session)  # the listeners are closed, so no new lane can come

    def _part_with(self, session: Session) -> None:
        """End a session of our own accord, and tell its client, which would otherwise look for us for a while."""
        if session.connection is not None:
            session.connection.send(encode_frame(FrameType.BYE))
        self.end(session, GRACE_CRASHED)

    def drain(self, *, leave: bool) -> None:
        """Open no more sessions, and tell the clients, which are asked to ``leave`` if so told."""
        first = not self.draining
        self.draining = True
        if first or (leave and not self._leaving):
            self._leaving = leave
            for session in self:
                self._tell(session, Draining(leave=leave))
        if first:
            for session in self:
                if not session.workers or session.connection is None:
                    self._part_with(session)  # it cannot get a worker, or come back, any more

    def part(self) -> None:
        """End every session."""
        for session in self:
            self._part_with(session)


def _most_shared(terms: Terms) -> int:
    """Return how many bytes of shared objects a server may hold."""
    from farm_executor.server.machine import memory_limit  # late: few servers come here

    return (memory_limit() or UNKNOWN_MEMORY) // 2 if terms.max_shared is None else terms.max_shared
