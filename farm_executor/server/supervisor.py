"""The supervisor: a server's parent process.

It admits peers that prove a key (`door`), starts a worker for each lane, and tells the client when one dies and why
(`workers`). One thread, one selector, no polling: it sleeps until something happens. It must not import user code,
nor unpickle anything, nor read a task: a lane's socket belongs to the worker that is forked for it.

A new connection is a *guest* (see `guest`) until it has proven a key and sent its hello. Then it becomes a
*session's* control connection, a new lane of a session, or an administrator's question, which is answered at once.

The supervisor keeps its own descriptor of each lane's socket. When the worker is gone, the supervisor hangs up, so
that the client sees the lane end even if a process started by a task still holds the socket.

A connection may break while both ends live. Over TCP, a session that has lost its control connection is therefore
kept for a while, for its client to come back, and a new connection for a lane is passed on to the living worker.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import selectors
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from farm_executor.core.features import MODULES, shared
from farm_executor.core.frames import MAX_HELLO, FrameType, encode_frame
from farm_executor.core.handshake import describe_mismatches
from farm_executor.core.messages import (
    AdminHello,
    ClientHello,
    ClientStatus,
    ControlHello,
    Done,
    Draining,
    KillOrder,
    LaneHello,
    Pong,
    Refused,
    Status,
    Welcome,
    WorkerHello,
    WorkerStatus,
    decode,
    encode,
    to_json,
)
from farm_executor.errors import RemoteProtocolError
from farm_executor.server.childhood import Parent, end_process, serve_tracker
from farm_executor.server.depot import Depot
from farm_executor.server.door import Door
from farm_executor.server.guest import Guest
from farm_executor.server.lane import PROGRESS
from farm_executor.server.log import DroppingHandler
from farm_executor.server.session import Session
from farm_executor.server.worker import WorkerStart, run_worker
from farm_executor.server.workers import Workers
from farm_executor.wire.connection import Connection, no_segment
from farm_executor.wire.security import Key
from farm_executor.wire.sockets import Socket, hang_up, is_tcp, tune, unread
from farm_executor.wire.versions import local_versions
from farm_executor.wire.waker import Waker

__all__ = ["Supervisor", "serve"]

logger = logging.getLogger(__name__)

GRACE_CRASHED = 1.0  # seconds for the workers of a client that is gone
GRACE_ENDED = 10.0  # seconds for the workers of a client that said goodbye, or that has replaced them
MAX_RESUME_SECONDS = 3600.0  # the most that a client may ask for
MIN_HEARTBEAT, MAX_HEARTBEAT = 0.05, 3600.0  # seconds; a shorter one would only give clients up too soon
MAX_UNHEARD = 1000  # buffers that may wait for a client to read them
MAX_REPORTS = 1000  # lanes reported in one PONG


class Supervisor:
    """A server.

    Args:
        listeners: Listening sockets; the supervisor owns them from now on.
        address: The address that it listens at, for people to read.
        keys: The keys, each of which admits a peer. Code that runs in the workers uses the first one when it is
            itself a client.
        slots: The number of workers that each session may have.
        name: A label for people.
        owner: A file descriptor whose end makes the server end at once: the process that started it holds the other
            end.
        embedded: Whether the server belongs to one client, so that Ctrl-C in the client's terminal interrupts the
            running tasks. Otherwise Ctrl-C at the server, like SIGTERM, makes it take no new clients and ask those
            that it has to leave, and a second one makes it end at once. SIGHUP does the former, however often it
            comes.
        module_path: Folders that tasks search first for modules.
        interruptible: Whether Ctrl-C interrupts tasks in an embedded server: not if the client ignores it.
        tunnelled: Whether there is a network behind its unix socket. A silent client is then taken for gone, and if
            the server is that client's own, it ends.
        parent: The process that its workers take for their parent; None for the supervisor.
        requests: A descriptor for a resource tracker to read, which is started as soon as something can be read.
    """

    def __init__(
        self,
        listeners: Sequence[Socket],
        *,
        address: str,
        keys: Sequence[Key],
        slots: int,
        name: str = "",
        owner: int | None = None,
        embedded: bool = False,
        interruptible: bool = True,
        tunnelled: bool = False,
        module_path: Sequence[str] = (),
        parent: Parent | None = None,
        requests: int | None = None,
    ) -> None:
        self._address = address
        self._slots = slots
        self._name = name
        self._life: int | None = None
        if owner is None:  # nobody's: it holds both ends, and so the descriptor never reaches its end
            owner, self._life = os.pipe()
        self._owner = owner
        self._requests = requests
        self._embedded = embedded
        self._tunnelled = tunnelled
        self._versions = local_versions()
        self._selector = selectors.DefaultSelector()
        self._waker = Waker()
        # An embedded server's guests are its own client, which knows why it left.
        self._door = Door(listeners, keys, self._selector, self._on_hello, quiet=embedded)
        self._sessions: dict[str, Session] = {}
        self._workers = Workers(
            self._selector,
            keys,
            embedded=embedded,
            module_path=module_path,
            parent=parent or Parent(),
            owner=owner,
            interruptible=interruptible,
            tell=self._tell,
            gone=self._on_worker_gone,
            let_go=self._close_all,
        )
        # An embedded server's workers have the program's own files, and its path.
        self._depot = None if embedded and not tunnelled else Depot(self._close_all)
        self._features = () if self._depot is None else (MODULES,)
        self._terminations = 0
        self._hung_up = False
        self._draining = False
        self._leaving = False  # whether its clients have been asked to leave as well
        self._ending = False
        self._started = time.time()
        self._on_drain: Callable[[], None] = lambda: None

    # -- the loop --------------------------------------------------------------------------------------

    def run(self, on_ready: Callable[[], None], on_drain: Callable[[], None]) -> WorkerStart | None:
        """Serve until told to end.

        Args:
            on_ready: Called once signals are handled.
            on_drain: Called once no new clients are taken.

        Returns:
            In the supervisor, None once it has ended. In a worker's new process, what the worker starts with: let
            the stack unwind and then call `run_worker`.
        """
        self._on_drain = on_drain
        self._watch_signals()
        self._door.open()
        self._selector.register(self._waker, selectors.EVENT_READ, self._on_signal)
        self._selector.register(self._owner, selectors.EVENT_READ, self._on_owner)
        if self._requests is not None:
            self._selector.register(self._requests, selectors.EVENT_READ, self._on_requests)
        on_ready()
        logger.info("serving address=%s slots=%d pid=%d", self._address, self._slots, os.getpid())
        if self._slots > self._workers.room:
            logger.warning(
                "too few descriptors slots=%d workers=%d: more than that cannot be served at a time; "
                "raise the hard limit (ulimit -Hn, LimitNOFILE= of systemd), or have fewer slots",
                *(self._slots, self._workers.room),
            )
        while not self._finished():
            # An earlier callback of a round may close what a later event of the same round is about. So callbacks
            # check first whether their subject is still there.
            for key, _ in self._selector.select(self._next_deadline()):
                worker: WorkerStart | None = key.data()
                if worker is not None:
                    return worker  # we are the new process, with the supervisor's stack still above us
            self._on_time(time.monotonic())
        self._workers.pass_on()
        if self._depot is not None:
            self._depot.close()
        logger.info("ended address=%s", self._address)
        self._close_all()
        return None

    def _finished(self) -> bool:
        return (self._ending or self._draining) and not self._sessions and not self._workers

    def _watch_signals(self) -> None:
        # Handlers run between any two steps of the loop, so they set a flag at most. The byte that set_wakeup_fd
        # writes wakes the loop, which then does the work.
        signal.set_wakeup_fd(self._waker.signal_fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda signum, frame: None)
        signal.signal(signal.SIGTERM, self._on_terminate)
        # With a client at the terminal, it is for the client to decide what Ctrl-C does.
        signal.signal(signal.SIGINT, signal.SIG_IGN if self._embedded else self._on_terminate)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as it is under nohup
            signal.signal(signal.SIGHUP, self._on_hang_up)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())  # the process that started us may have blocked some

    def _on_terminate(self, signum: int, frame: Any) -> None:
        self._terminations += 1

    def _on_hang_up(self, signum: int, frame: Any) -> None:
        # With a client at the terminal, the terminal's end is for the client to handle, as Ctrl-C is. A shell and
        # the system may both report the same end, so a second signal means nothing more.
        self._hung_up = not self._embedded

    def _on_signal(self) -> None:
        self._waker.drain()
        self._workers.reap()
        if self._terminations or self._hung_up:
            self._drain(leave=True)
        if self._terminations > 1:
            self._end_at_once()
            self._workers.hasten(GRACE_CRASHED)  # including those of sessions that ended earlier, with more grace

    def _on_owner(self) -> None:
        if not os.read(self._owner, 4096):
            self._selector.unregister(self._owner)
            self._end_at_once()

    def _on_requests(self) -> None:
        assert self._requests is not None
        self._selector.unregister(self._requests)
        serve_tracker(self._requests)
        self._requests = None

    def _next_deadline(self) -> float | None:
        times = [session.deadline for session in self._sessions.values()]
        first = min([self._door.deadline, self._workers.deadline, *times])
        return None if first == float("inf") else max(first - time.monotonic(), 0.0)

    def _on_time(self, now: float) -> None:
        self._door.on_time(now)
        for session in [session for session in self._sessions.values() if session.deadline <= now]:
            if session.connection is None:
                self._end_session(session, GRACE_CRASHED)
            else:
                self._cut_session(session, f"nothing heard for {now - session.heard:.0f} s")
        self._workers.on_time(now)

    # -- guests that are let in ------------------------------------------------------------------------

    def _on_hello(self, guest: Guest, hello: ClientHello) -> WorkerStart | None:
        if isinstance(hello, LaneHello):
            return self._open_lane(guest, hello)
        if isinstance(hello, ControlHello):
            self._open_session(guest, hello)
        else:
            self._answer_admin(guest, hello)
        return None

    def _reply(self, guest: Guest, answer: NamedTuple) -> None:
        guest.socket.sendall(b"".join(encode(answer)))  # does not block: it is small, and the buffer is empty

    def _refuse(
        self, guest: Guest, code: str, message: str, mismatches: dict[str, tuple[str, str]] | None = None
    ) -> None:
        self._reply(guest, Refused(code, message, mismatches))
        logger.info("refused peer=%s code=%s reason=%s", guest.name, code, message)
        self._door.release(guest)
        guest.socket.close()

    # -- what guests come for --------------------------------------------------------------------------

    def _answer_admin(self, guest: Guest, hello: AdminHello) -> None:
        command = hello.command
        if command == "end":
            self._reply(guest, Done())
            self._drain(leave=False)
        elif command == "status":
            self._reply(guest, self._status())
        elif command == "ping":
            self._reply(guest, Done())
        else:
            self._refuse(guest, "command", f"this server knows no command {command!r}")
            return
        self._door.release(guest)
        guest.socket.close()

    def _status(self) -> Status:
        now = time.time()
        sessions = []
        room = MAX_HELLO // 2
        for session in self._sessions.values():
            workers = [
                WorkerStatus(worker.slot, worker.pid, _age(worker.started, now))
                for worker in session.workers.values()
            ]
            shown = ClientStatus(session.client, workers)
            room -= len(json.dumps(to_json(shown)))
            if room < 0:
                break
            sessions.append(shown)
        return Status(
            address=self._address,
            name=self._name,
            pid=os.getpid(),
            seconds=_age(self._started, now),
            slots=self._slots,
            draining=self._draining,
            versions=self._versions,
            sessions=sessions,
            sessions_left_out=len(self._sessions) - len(sessions),  # a hello has a limited size
        )

    def _open_session(self, guest: Guest, hello: ControlHello) -> None:
        mismatches = hello.versions.mismatches(self._versions)
        if hello.resume is not None:
            self._resume_session(guest, hello.resume)
            return
        if self._draining:
            self._refuse(guest, "draining", f"server {self._address} takes no new clients: it was told to end")
            return
        if {"python", "protocol"} & mismatches.keys() and not hello.allow_version_mismatch:
            text = "its versions differ from the client's: " + describe_mismatches(mismatches)
            self._refuse(guest, "version", text, mismatches)
            return
        # A unix socket ends only with the process that held it, so there is nothing to resume.
        resume_seconds = min(hello.resume_seconds, MAX_RESUME_SECONDS) if is_tcp(guest.raw) else 0.0
        session = Session(
            os.urandom(16).hex(),
            f"{hello.client or 'a client'} at {guest.name}",
            resume_seconds,
            heartbeat=min(max(hello.heartbeat, MIN_HEARTBEAT), MAX_HEARTBEAT),
            max_memory=hello.max_memory,
            distant=bool(resume_seconds) or self._tunnelled,
        )
        session.features = shared(hello.features, self._features)
        if self._depot is not None and MODULES in session.features:
            session.modules = self._depot.open(session.id)
        self._welcome(guest, session)
        self._sessions[session.id] = session
        logger.info("session opened client=%s", session.client)

    def _resume_session(self, guest: Guest, id: str) -> None:
        session = self._sessions.get(id)
        if session is None or not session.resume_seconds:
            self._refuse(guest, "session", "there is no such session on this server any more")
            return
        self._drop_control(session)  # we may not have noticed yet that it is broken
        self._welcome(guest, session)
        for report in session.reports.values():  # some may have been lost with the old connection
            self._tell(session, report)
        logger.info("session resumed client=%s", session.client)

    def _welcome(self, guest: Guest, session: Session) -> None:
        """Make this connection the session's control connection."""
        welcome = Welcome(session.id, self._slots, self._name, self._versions, session.resume_seconds)
        self._reply(guest, welcome._replace(features=tuple(sorted(session.features))))
        self._door.release(guest)
        tune(guest.raw, session.heartbeat)
        session.connection = Connection(guest.socket, MAX_HELLO, no_segment)
        session.heard = time.monotonic()
        self._selector.register(guest.socket, selectors.EVENT_READ, lambda: self._on_control(session))

    def _open_lane(self, guest: Guest, hello: LaneHello) -> WorkerStart | None:
        session = self._sessions.get(hello.session)
        slot, lane = hello.slot, hello.lane
        if session is None or session.ended:
            self._refuse(guest, "session", "there is no such session on this server")
            return None
        if hello.resume:
            self._resume_lane(guest, session, lane)
            return None
        if slot is None or slot >= self._slots:
            self._refuse(guest, "slot", f"this server has slots 0 to {self._slots - 1}, not {slot}")
            return None
        for worker in session.workers.values():
            if worker.slot == slot:  # its client has given it up; it may have a thread that never ends
                self._workers.end(worker, GRACE_ENDED)
        if len(session.workers) >= 2 * self._slots:  # for a moment a slot has both an old worker and its successor
            self._refuse(guest, "slot", f"this session has {len(session.workers)} workers already")
            return None
        self._door.release(guest)
        tune(guest.raw, session.heartbeat)
        for old in [old for old in session.reports if session.reports[old].slot == slot]:
            del session.reports[old]  # the client has it, or it would not refill the slot
        try:
            return self._workers.start(session, guest, slot, lane)
        except OSError as error:
            logger.error("cannot start a worker error=%s", error)
            with contextlib.suppress(OSError):  # it may have hung up, and is no longer a guest to be dismissed
                self._reply(guest, Refused("fork", f"cannot start a worker: {error}"))
            guest.socket.close()
            return None

    def _resume_lane(self, guest: Guest, session: Session, lane: int) -> None:
        """Pass the connection on to the lane's worker, which is still alive."""
        worker = next((worker for worker in session.workers.values() if worker.lane == lane), None)
        if worker is None or self._workers.is_doomed(worker) or not session.resume_seconds:
            self._refuse(guest, "worker", "that lane's worker is gone")
            return
        self._door.release(guest)
        tune(guest.raw, session.heartbeat)
        hang_up(worker.socket)  # the worker may be waiting to send over the old connection
        try:
            worker.channel.pass_on(guest.raw, guest.secured_later, guest.secret)
            guest.socket.sendall(b"".join(encode(WorkerHello(worker.pid))))
        except OSError as error:
            logger.warning("lane not resumed pid=%d error=%s", worker.pid, error)
            guest.socket.close()
            return
        worker.socket.close()
        worker.socket = guest.raw
        logger.info("lane resumed pid=%d slot=%d client=%s", worker.pid, worker.slot, session.client)

    def _close_all(self, but: Socket | None = None) -> None:
        """Close every descriptor of ours except that socket, without telling any peer."""
        # First: after a fork, an epoll object is shared with the parent, and unregistering sockets here would take
        # them out of the parent's as well.
        self._selector.close()
        # A child may still end; its signal must not be written to whatever has this descriptor's number by then.
        signal.set_wakeup_fd(-1)
        self._waker.close()
        lock = None if self._depot is None else self._depot.lock
        for descriptor in (self._owner, self._life, self._requests, lock):
            if descriptor is not None:
                os.close(descriptor)
        self._door.close(but)
        for session in self._sessions.values():
            if session.connection is not None:
                session.connection.socket.close()
        self._workers.close(but)

    def _on_worker_gone(self, session: Session) -> None:
        self._clear(session)
        if self._draining and not session.ended and not session.workers:
            self._part_with(session)  # the listeners are closed, so no new lane can come

    # -- sessions --------------------------------------------------------------------------------------

    def _tell(self, session: Session, message: NamedTuple, seq: int = 0) -> None:
        """Send a message to the client, if it is connected."""
        if session.connection is not None:
            session.connection.send(encode(message, seq))
            if session.connection.backlog > MAX_UNHEARD:
                self._cut_session(session, "it does not listen")
            else:
                self._watch_control(session, session.connection)

    def _watch_control(self, session: Session, connection: Connection) -> None:
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.unsent else 0)
        self._selector.modify(connection, events, lambda: self._on_control(session))

    def _on_control(self, session: Session) -> None:
        connection = session.connection
        if connection is None:
            return  # dropped by another event of this round
        try:
            if connection.unsent:
                connection.flush()
                self._watch_control(session, connection)
            for frame in connection.receive():
                if session.connection is not connection:
                    return  # cut by an answer that it did not read
                session.heard = time.monotonic()
                if frame.type is FrameType.PING:
                    self._answer_ping(session, connection, frame.seq)
                elif frame.type is FrameType.KILL:
                    self._workers.kill(session, decode(KillOrder, frame))
                elif frame.type is FrameType.BYE:
                    self._end_session(session, GRACE_CRASHED if frame.count else GRACE_ENDED)
                    return
                else:
                    raise RemoteProtocolError(f"{frame.type.name} frame on a control connection")
        except EOFError as error:
            self._cut_session(session, str(error))
        except RemoteProtocolError as error:
            logger.warning("session broken client=%s error=%s", session.client, error)
            self._end_session(session, GRACE_CRASHED)
        except Exception:  # a bug of ours must not take other sessions down
            logger.exception("session failed client=%s", session.client)
            if not session.ended:
                self._end_session(session, GRACE_CRASHED)

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
                _, received, sent, *_ = PROGRESS.unpack_from(worker.progress)
                lanes.append((worker.lane, received, sent))
        self._tell(session, Pong(lanes), seq)

    def _cut_session(self, session: Session, why: str) -> None:
        """Drop a broken control connection; keep the session for a while if its client can come back, or end it."""
        if not session.resume_seconds or self._draining:
            self._end_session(session, GRACE_CRASHED)
            if self._tunnelled and self._embedded:  # its client is gone, or has started another server
                self._end_at_once()
            return
        logger.info("session cut client=%s reason=%s", session.client, why)
        self._drop_control(session)
        session.heard = time.monotonic()

    def _drop_control(self, session: Session) -> None:
        if session.connection is not None:
            self._selector.unregister(session.connection)
            session.connection.close()
            session.connection = None

    def _end_session(self, session: Session, grace: float) -> None:
        """Let the session's workers see that their client is gone; kill those that outlast the grace period."""
        logger.info("session ended client=%s", session.client)
        session.ended = True
        del self._sessions[session.id]
        self._drop_control(session)
        for worker in session.workers.values():
            self._workers.end(worker, grace)
        self._clear(session)

    def _clear(self, session: Session) -> None:
        """Remove the session's modules, once it has ended and its last worker is gone."""
        if self._depot is not None and session.modules is not None and session.ended and not session.workers:
            self._depot.remove(session.modules)
            session.modules = None

    def _part_with(self, session: Session) -> None:
        """End a session of our own accord, and tell its client, which would otherwise look for us for a while."""
        if session.connection is not None:
            session.connection.send(encode_frame(FrameType.BYE))
        self._end_session(session, GRACE_CRASHED)

    # -- the end ---------------------------------------------------------------------------------------

    def _drain(self, *, leave: bool) -> None:
        """Take no new clients, ask the present ones to ``leave`` if so told, and end when they are gone."""
        first = not self._draining
        if first:
            logger.info("draining address=%s sessions=%d", self._address, len(self._sessions))
            self._draining = True
            # Before the clients are told: one that has been told must not find us still at our address.
            self._door.shut()
            self._on_drain()
        if first or (leave and not self._leaving):
            self._leaving = leave
            for session in list(self._sessions.values()):
                self._tell(session, Draining(leave=leave))
        if first:
            for session in list(self._sessions.values()):
                if not session.workers or session.connection is None:
                    self._part_with(session)  # it cannot get a worker, or come back, any more

    def _end_at_once(self) -> None:
        self._ending = True
        self._drain(leave=True)
        self._door.dismiss_all("the server ends")
        for session in list(self._sessions.values()):
            self._part_with(session)


def _age(started: float, now: float) -> float:
    """Return the seconds since then, as far as the machine's clock is right."""
    return round(max(now - started, 0.0), 3)


def serve(
    listeners: Sequence[Socket],
    *,
    on_ready: Callable[[], None] = lambda: None,
    on_drain: Callable[[], None] = lambda: None,
    **settings: Any,
) -> None:
    """Run a server until it ends; see `Supervisor` for the settings. In a worker's process it does not return.

    Args:
        listeners: Listening sockets.
        on_ready: Called when it serves: from then on SIGTERM drains it.
        on_drain: Called once it takes no new clients.
        **settings: The settings of `Supervisor`.
    """
    # Where logging is not configured, this handler writes the warnings.
    logging.lastResort = DroppingHandler(logging.WARNING)
    start = Supervisor(listeners, **settings).run(on_ready, on_drain)
    if start is not None:
        run_worker(start)
        end_process()
