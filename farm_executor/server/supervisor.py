"""The supervisor: a server's parent process.

It lets in whom the key admits (`door`), starts a worker for each lane, and tells its client when one dies and of
what (`workers`). One thread, one selector, no polling: it sleeps until something happens. It must not import user
code, nor unpickle anything, nor read a task: a lane's socket belongs to the worker that is forked for it.

Whoever connects is a *guest* (see `guest`) until he has proven a key and said what for: then the connection is a
*session's* control connection, or a session's new lane, or an administrator's question, answered at once.

The supervisor keeps each lane's socket open beside the worker. When the worker is gone, it hangs up: so the client
sees the lane end even if a process that a task started still holds it.

A connection may break while both ends live. Over TCP, then, a session without its control connection is kept for a
while, for its client to come back; and a new connection for a lane is passed on to the worker that lives.
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
GRACE_ENDED = 10.0  # seconds for the workers of a client that said goodbye, or has put others in their places
MAX_RESUME_SECONDS = 3600.0  # for which a client may ask
MIN_HEARTBEAT, MAX_HEARTBEAT = 0.05, 3600.0  # seconds; more often than that no client needs to be believed dead
MAX_UNHEARD = 1000  # pieces of what a client has been told, that wait for it to read
MAX_REPORTS = 1000  # on lanes, in one PONG


class Supervisor:
    """A server.

    Args:
        listeners: Listening sockets; they are the supervisor's from now on.
        address: What it listens at, for people to read.
        keys: Each of which admits. The first is that of what runs in the workers, as a client.
        slots: How many workers each session may have.
        name: A label for people.
        owner: A file descriptor at whose end the server ends at once: who started it holds the other end.
        embedded: Whether it is one client's own, so that Ctrl-C in the client's terminal interrupts the tasks
            that run. Otherwise Ctrl-C at the server, like SIGTERM, makes it take no new clients and ask those that
            it has to leave, and a second one makes it end at once. SIGHUP does the former, however often it comes.
        module_path: Folders in which tasks find modules first.
        interruptible: Whether Ctrl-C does that in an embedded server: not if the client ignores it.
        tunnelled: Whether a network lies behind its unix socket. A client that is silent is gone then, and if the
            server is that client's own, it ends.
        parent: What its workers take for their parent process; None for the supervisor.
        requests: The descriptor to be read by a resource tracker, which is started here once there is something.
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
        if owner is None:  # it belongs to itself
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
        self._terminations = 0
        self._hung_up = False
        self._draining = False
        self._leaving = False  # and its clients have been asked to leave
        self._ending = False
        self._started = time.time()
        self._on_drain: Callable[[], None] = lambda: None

    # -- the loop --------------------------------------------------------------------------------------

    def run(self, on_ready: Callable[[], None], on_drain: Callable[[], None]) -> WorkerStart | None:
        """Serve until told to end.

        Args:
            on_ready: Called once signals are heeded.
            on_drain: Called once no new clients are taken.

        Returns:
            None in the supervisor when all is over; in a worker's new process what it starts with: let the stack
            unwind and then call `run_worker`.
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
            for key, _ in self._selector.select(self._next_deadline()):
                worker: WorkerStart | None = key.data()
                if worker is not None:
                    return worker
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
        # The handlers do nothing: the bytes that set_wakeup_fd writes make the loop look at what is to be done.
        signal.set_wakeup_fd(self._waker.signal_fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda signum, frame: None)
        signal.signal(signal.SIGTERM, self._on_terminate)
        # With a client at the terminal, Ctrl-C is the client's to decide about.
        signal.signal(signal.SIGINT, signal.SIG_IGN if self._embedded else self._on_terminate)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as it is under nohup
            signal.signal(signal.SIGHUP, self._on_hang_up)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())  # whatever the process blocks that has started us

    def _on_terminate(self, signum: int, frame: Any) -> None:
        self._terminations += 1

    def _on_hang_up(self, signum: int, frame: Any) -> None:
        # With a client at the terminal its end is the client's affair, as Ctrl-C is. A shell and the system may
        # both tell of one terminal's end, so a second time means nothing more.
        self._hung_up = not self._embedded

    def _on_signal(self) -> None:
        self._waker.drain()
        self._workers.reap()
        if self._terminations or self._hung_up:
            self._drain(leave=True)
        if self._terminations > 1:
            self._end_at_once()
            self._workers.hasten(GRACE_CRASHED)  # also those of sessions that ended before, with more grace

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

    # -- guests who are let in -------------------------------------------------------------------------

    def _on_hello(self, guest: Guest, hello: ClientHello) -> WorkerStart | None:
        if isinstance(hello, LaneHello):
            return self._open_lane(guest, hello)
        if isinstance(hello, ControlHello):
            self._open_session(guest, hello)
        else:
            self._answer_admin(guest, hello)
        return None

    def _reply(self, guest: Guest, answer: NamedTuple) -> None:
        guest.socket.sendall(b"".join(encode(answer)))  # small, and the buffer is empty: it is taken whole

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
        # The end of a unix socket is the end of whoever held it.
        resume_seconds = min(hello.resume_seconds, MAX_RESUME_SECONDS) if is_tcp(guest.raw) else 0.0
        session = Session(
            os.urandom(16).hex(),
            f"{hello.client or 'a client'} at {guest.name}",
            resume_seconds,
            heartbeat=min(max(hello.heartbeat, MIN_HEARTBEAT), MAX_HEARTBEAT),
            max_memory=hello.max_memory,
            distant=bool(resume_seconds) or self._tunnelled,
        )
        if hello.modules and self._depot is not None:
            session.modules = self._depot.open(session.id)
        self._welcome(guest, session)
        self._sessions[session.id] = session
        logger.info("session opened client=%s", session.client)

    def _resume_session(self, guest: Guest, id: str) -> None:
        session = self._sessions.get(id)
        if session is None or not session.resume_seconds:
            self._refuse(guest, "session", "there is no such session on this server any more")
            return
        self._drop_control(session)  # of which we may not have noticed yet that it is broken
        self._welcome(guest, session)
        for report in session.reports.values():  # some may not have arrived
            self._tell(session, report)
        logger.info("session resumed client=%s", session.client)

    def _welcome(self, guest: Guest, session: Session) -> None:
        """Make this connection the session's control connection."""
        welcome = Welcome(session.id, self._slots, self._name, self._versions, session.resume_seconds)
        self._reply(guest, welcome._replace(modules=session.modules is not None))
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
            if worker.slot == slot:  # its client has given it up; it may have a thread that would never end
                self._workers.end(worker, GRACE_ENDED)
        if len(session.workers) >= 2 * self._slots:  # for a moment a slot has an old worker and its successor
            self._refuse(guest, "slot", f"this session has {len(session.workers)} workers already")
            return None
        self._door.release(guest)
        tune(guest.raw, session.heartbeat)
        for old in [old for old in session.reports if session.reports[old].slot == slot]:
            del session.reports[old]  # the client knows
        try:
            return self._workers.start(session, guest, slot, lane)
        except OSError as error:
            logger.error("cannot start a worker error=%s", error)
            with contextlib.suppress(OSError):  # it may have hung up, and is no guest any more to be dismissed
                self._reply(guest, Refused("fork", f"cannot start a worker: {error}"))
            guest.socket.close()
            return None

    def _resume_lane(self, guest: Guest, session: Session, lane: int) -> None:
        """Pass the connection on to the lane's worker, which lives."""
        worker = next((worker for worker in session.workers.values() if worker.lane == lane), None)
        if worker is None or self._workers.is_doomed(worker) or not session.resume_seconds:
            self._refuse(guest, "worker", "that lane's worker is gone")
            return
        self._door.release(guest)
        tune(guest.raw, session.heartbeat)
        hang_up(worker.socket)
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
        """Close every descriptor of ours, without a word to any peer."""
        self._selector.close()  # first: removing sockets from it one by one would reach into the parent's
        self._waker.close()
        for descriptor in (self._owner, self._life, self._requests):
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
            self._part_with(session)  # no new lane can reach us any more

    # -- sessions --------------------------------------------------------------------------------------

    def _tell(self, session: Session, message: NamedTuple, seq: int = 0) -> None:
        """Say something to the client, if it is there."""
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
            return  # by an event of this same round
        try:
            if connection.unsent:
                connection.flush()
                self._watch_control(session, connection)
            for frame in connection.receive():
                if session.connection is not connection:
                    return  # it does not listen
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
        except Exception:  # a fault of ours, which must not be everybody's
            logger.exception("session failed client=%s", session.client)
            if not session.ended:
                self._end_session(session, GRACE_CRASHED)

    def _answer_ping(self, session: Session, connection: Connection, seq: int) -> None:
        """Say how many bytes have come and gone on each lane, for the client to see whether they arrive.

        Of a lane on which something waits to be read nothing is said: it is the worker who keeps more from coming.
        """
        if connection.unsent:
            return  # it does not listen
        lanes = []
        for worker in list(session.workers.values())[:MAX_REPORTS]:
            if not unread(worker.socket):
                _, received, sent, *_ = PROGRESS.unpack_from(worker.progress)
                lanes.append((worker.lane, received, sent))
        self._tell(session, Pong(lanes), seq)

    def _cut_session(self, session: Session, why: str) -> None:
        """Its control connection is broken: keep it for a while, for the client to come back, if that may be."""
        if not session.resume_seconds or self._draining:
            self._end_session(session, GRACE_CRASHED)
            if self._tunnelled and self._embedded:  # its client is gone, or has started another
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
        """Let the session's workers see that their client is gone; kill those that do not care."""
        logger.info("session ended client=%s", session.client)
        session.ended = True
        del self._sessions[session.id]
        self._drop_control(session)
        for worker in session.workers.values():
            self._workers.end(worker, grace)
        self._clear(session)

    def _clear(self, session: Session) -> None:
        """What has been put here for it goes with its last worker."""
        if self._depot is not None and session.modules is not None and session.ended and not session.workers:
            self._depot.remove(session.modules)
            session.modules = None

    def _part_with(self, session: Session) -> None:
        """End a session of our own accord. Its client is told, or it would look for us for a while."""
        if session.connection is not None:
            session.connection.send(encode_frame(FrameType.BYE))
        self._end_session(session, GRACE_CRASHED)

    # -- the end ---------------------------------------------------------------------------------------

    def _drain(self, *, leave: bool) -> None:
        """Take no new clients; end when those here are gone, who may be asked to ``leave`` when they can."""
        first = not self._draining
        if first:
            logger.info("draining address=%s sessions=%d", self._address, len(self._sessions))
            self._draining = True
            self._door.shut()  # before the clients are told: one who has been told finds nobody at our address
            self._on_drain()
        if first or (leave and not self._leaving):
            self._leaving = leave
            for session in list(self._sessions.values()):
                self._tell(session, Draining(leave=leave))
        if first:
            for session in list(self._sessions.values()):
                if not session.workers or session.connection is None:
                    self._part_with(session)  # no lane can reach us any more

    def _end_at_once(self) -> None:
        self._ending = True
        self._drain(leave=True)
        self._door.dismiss_all("the server ends")
        for session in list(self._sessions.values()):
            self._part_with(session)


def _age(started: float, now: float) -> float:
    """Seconds since then, as far as the machine's clock is right."""
    return round(max(now - started, 0.0), 3)


def serve(
    listeners: Sequence[Socket],
    *,
    on_ready: Callable[[], None] = lambda: None,
    on_drain: Callable[[], None] = lambda: None,
    **settings: Any,
) -> None:
    """Be a server until its end; see `Supervisor` for the settings. In a worker's process it does not return.

    Args:
        listeners: Listening sockets.
        on_ready: Called when it serves: from then on SIGTERM drains it.
        on_drain: Called once it takes no new clients.
        **settings: The supervisor's.
    """
    # Where nobody has configured logging, this is what writes warnings.
    logging.lastResort = DroppingHandler(logging.WARNING)
    start = Supervisor(listeners, **settings).run(on_ready, on_drain)
    if start is not None:
        run_worker(start)
        end_process()
