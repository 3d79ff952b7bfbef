"""The supervisor: a server's parent process.

It listens, lets in whom the key admits, starts a worker for each lane, and tells its client when one dies and of
what. One thread, one selector, no polling: it sleeps until something happens. It must not import user code, nor
unpickle anything, nor read a task: a lane's socket belongs to the worker that is forked for it.

Whoever connects is a *guest* until he has proven the key and said what for: then the connection is a *session's*
control connection, or a session's new lane, or an administrator's question, answered at once.

The supervisor keeps each lane's socket open beside the worker. When the worker is gone, it hangs up: so the client
sees the lane end even if a process that a task started still holds it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import mmap
import os
import secrets
import selectors
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from farm_executor.core.frames import MAX_HELLO, Buffer, FrameReader, FrameType
from farm_executor.core.handshake import (
    NONCE_SIZE,
    Role,
    ServerHandshake,
    Versions,
    decode_hello,
    describe_mismatches,
    encode_hello,
    numbers_in,
)
from farm_executor.errors import RemoteProtocolError
from farm_executor.payload import local_versions
from farm_executor.security import set_ambient_key
from farm_executor.server.lane import BEGUN, NOT_BEGUN
from farm_executor.server.worker import WorkerStart, run_worker
from farm_executor.transport import Connection, Socket, Waker, hang_up, tune

__all__ = ["Supervisor", "serve"]

logger = logging.getLogger(__name__)

ACCEPT_PAUSE = 0.2  # seconds before the next attempt, when the system gives no descriptor and no guest holds one
GUEST_SECONDS = 10.0  # to prove the key and say hello
MAX_GUESTS = 256  # beyond it the oldest goes: a client needs milliseconds, a stranger does not matter
MAX_LABEL = 100  # characters of what a client calls itself
GRACE_CRASHED = 1.0  # seconds for the workers of a client that is gone
GRACE_ENDED = 10.0  # seconds for the workers of a client that said goodbye, or has put others in their places


@dataclass(eq=False)
class _Guest:
    socket: Socket
    name: str
    deadline: float
    handshake: ServerHandshake
    reader: FrameReader = field(default_factory=lambda: FrameReader(MAX_HELLO, _no_segment))


@dataclass(eq=False)
class _Worker:
    pid: int
    slot: int
    lane: int
    socket: Socket  # our own descriptor of the lane
    begun: mmap.mmap
    started: float
    stopped: bool = False  # by whomever
    condemned: list[_Kill] = field(default_factory=list)  # it is about to stop, to see whether it is to be killed
    killed: int | None = None  # the number of the task because of which

    @property
    def last_begun(self) -> int:
        (begun,) = BEGUN.unpack_from(self.begun, 0)
        return int(begun)


@dataclass(frozen=True)
class _Kill:
    """A client's order: kill the worker if it runs one of these tasks; it runs none before ``first``."""

    order: int
    first: int
    ranges: list[tuple[int, int]]

    def meets(self, worker: _Worker) -> int | None:
        """The number of the task that the worker runs, if it is one of them."""
        current = max(self.first, worker.last_begun)
        return current if any(begin <= current <= end for begin, end in self.ranges) else None


@dataclass(eq=False)
class _Session:
    id: str
    client: str
    connection: Connection
    workers: dict[int, _Worker] = field(default_factory=dict)  # by pid
    ended: bool = False


class Supervisor:
    """A server.

    Args:
        listener: A listening socket; it is the supervisor's from now on.
        address: What it listens at, for people to read.
        key: The secret that admits.
        slots: How many workers each session may have.
        name: A label for people.
        owner: A file descriptor at whose end the server ends at once: who started it holds the other end.
        embedded: Whether it is one client's own, so that Ctrl-C in the client's terminal interrupts the tasks
            that run. Otherwise Ctrl-C at the server, like SIGTERM, makes it take no new clients, and a second
            one makes it end at once.
    """

    def __init__(
        self,
        listener: Socket,
        *,
        address: str,
        key: bytes,
        slots: int,
        name: str = "",
        owner: int | None = None,
        embedded: bool = False,
    ) -> None:
        self._listener: Socket | None = listener
        self._address = address
        self._key = key
        self._slots = slots
        self._name = name
        self._owner = owner
        self._embedded = embedded
        self._versions = local_versions()
        self._selector = selectors.DefaultSelector()
        self._waker = Waker()
        self._lifeline, self._lifeline_end = os.pipe()
        self._guests: dict[_Guest, None] = {}  # in the order of their deadlines
        self._sessions: dict[str, _Session] = {}
        self._workers: dict[int, tuple[_Session, _Worker]] = {}
        self._doomed: dict[int, float] = {}  # pids to be killed, with the time
        self._deaf_until = 0.0  # the listener is not looked at before that time; 0 if it is
        self._terminations = 0
        self._draining = False
        self._ending = False
        self._started = time.time()
        listener.setblocking(False)

    # -- the loop --------------------------------------------------------------------------------------

    def run(self, on_ready: Callable[[], None]) -> WorkerStart | None:
        """Serve until told to end.

        Args:
            on_ready: Called once signals are heeded.

        Returns:
            None in the supervisor when all is over; in a worker's new process what it starts with: let the stack
            unwind and then call `run_worker`.
        """
        self._watch_signals()
        self._listen_again()
        self._selector.register(self._waker, selectors.EVENT_READ, self._on_signal)
        if self._owner is not None:
            self._selector.register(self._owner, selectors.EVENT_READ, self._on_owner)
        on_ready()
        logger.info("serving address=%s slots=%d pid=%d", self._address, self._slots, os.getpid())
        while not self._finished():
            for key, _ in self._selector.select(self._next_deadline()):
                worker: WorkerStart | None = key.data()
                if worker is not None:
                    return worker
            self._on_time(time.monotonic())
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

    def _on_terminate(self, signum: int, frame: Any) -> None:
        self._terminations += 1

    def _on_signal(self) -> None:
        self._waker.drain()
        self._reap()
        if self._terminations:
            self._drain()
        if self._terminations > 1:
            self._end_at_once()

    def _on_owner(self) -> None:
        assert self._owner is not None
        if not os.read(self._owner, 4096):
            self._selector.unregister(self._owner)
            self._end_at_once()

    def _next_deadline(self) -> float | None:
        times = list(self._doomed.values())
        if self._deaf_until:
            times.append(self._deaf_until)
        if self._guests:
            times.append(next(iter(self._guests)).deadline)
        return max(min(times) - time.monotonic(), 0.0) if times else None

    def _on_time(self, now: float) -> None:
        if self._deaf_until and self._deaf_until <= now:
            self._listen_again()
        for guest in list(self._guests):
            if guest.deadline > now:
                break
            self._dismiss(guest, "it said nothing in time")
        for pid in [pid for pid, when in self._doomed.items() if when <= now]:
            del self._doomed[pid]
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    # -- guests ----------------------------------------------------------------------------------------

    def _accept(self) -> None:
        if self._listener is None:
            return  # closed by an event of this same round
        try:
            sock, peer = self._listener.accept()
        except OSError as error:  # gone again, or no descriptors left: others must still be served
            if not isinstance(error, (BlockingIOError, InterruptedError)):
                logger.warning("accept failed error=%s", error)
                if self._guests:
                    self._make_room()
                else:  # the listener stays readable: without a pause this would be a busy loop
                    self._listen_no_more()
                    self._deaf_until = time.monotonic() + ACCEPT_PAUSE
            return
        sock.setblocking(False)
        with contextlib.suppress(OSError):
            tune(sock)
        name = f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else "local"
        handshake = ServerHandshake(self._key, secrets.token_bytes(NONCE_SIZE))
        guest = _Guest(sock, name, time.monotonic() + GUEST_SECONDS, handshake)
        if len(self._guests) >= MAX_GUESTS:
            self._make_room()
        self._guests[guest] = None
        self._selector.register(sock, selectors.EVENT_READ, lambda: self._on_guest(guest))

    def _make_room(self) -> None:
        self._dismiss(next(iter(self._guests)), "too many connections without a key")

    def _listen_again(self) -> None:
        self._deaf_until = 0.0
        if self._listener is not None:
            self._selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def _listen_no_more(self) -> None:
        if self._listener is not None and not self._deaf_until:
            self._selector.unregister(self._listener)

    def _on_guest(self, guest: _Guest) -> WorkerStart | None:
        if guest not in self._guests:
            return None  # dismissed by an event of this same round
        try:
            if guest.handshake.done:
                return self._on_hello(guest)
            data = guest.socket.recv(guest.handshake.wanted)
            if not data:
                self._dismiss(guest, "it hung up")
                return None
            guest.socket.sendall(guest.handshake.receive_data(data))
            if guest.handshake.refused:
                self._dismiss(guest, guest.handshake.refused)
        except RemoteProtocolError as error:
            self._dismiss(guest, str(error))
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as error:
            self._dismiss(guest, str(error))
        return None

    def _dismiss(self, guest: _Guest, why: str) -> None:
        if not self._embedded:  # else it was our own client, which knows why it left
            logger.warning("dismissed peer=%s reason=%s", guest.name, why)
        self._release(guest)
        guest.socket.close()

    def _release(self, guest: _Guest) -> None:
        self._guests.pop(guest, None)
        self._selector.unregister(guest.socket)

    def _on_hello(self, guest: _Guest) -> WorkerStart | None:
        data = guest.socket.recv(MAX_HELLO)
        if not data:
            self._dismiss(guest, "it hung up")
            return None
        frames = guest.reader.receive_data(data)
        if not frames:
            return None
        if len(frames) > 1 or guest.reader.mid_frame or frames[0].type is not FrameType.HELLO:
            raise RemoteProtocolError("more or less than one hello")
        hello = decode_hello(frames[0])
        role = hello.get("role")
        if role == Role.ADMIN:
            self._answer_admin(guest, hello)
        elif role == Role.CONTROL:
            self._open_session(guest, hello)
        elif role == Role.LANE:
            return self._open_lane(guest, hello)
        else:
            raise RemoteProtocolError(f"no such role: {role!r}")
        return None

    def _reply(self, guest: _Guest, data: dict[str, Any], kind: FrameType = FrameType.HELLO) -> None:
        guest.socket.sendall(
            b"".join(encode_hello(data, kind))
        )  # small, and the buffer is empty: it is taken whole

    def _refuse(self, guest: _Guest, code: str, message: str, **more: Any) -> None:
        self._reply(guest, {"code": code, "message": message, **more}, FrameType.REFUSED)
        logger.info("refused peer=%s code=%s reason=%s", guest.name, code, message)
        self._release(guest)
        guest.socket.close()

    # -- what guests come for --------------------------------------------------------------------------

    def _answer_admin(self, guest: _Guest, hello: dict[str, Any]) -> None:
        command = hello.get("command")
        if command == "end":
            self._reply(guest, {})
            self._drain()
        elif command == "status":
            self._reply(guest, self._status())
        elif command == "ping":
            self._reply(guest, {})
        else:
            self._refuse(guest, "command", f"this server knows no command {command!r}")
            return
        self._release(guest)
        guest.socket.close()

    def _status(self) -> dict[str, Any]:
        now = time.time()
        sessions = []
        room = MAX_HELLO // 2
        for session in self._sessions.values():
            workers = [
                {"slot": worker.slot, "pid": worker.pid, "seconds": round(now - worker.started, 3)}
                for worker in session.workers.values()
            ]
            shown = {"client": session.client, "workers": workers}
            room -= len(json.dumps(shown))
            if room < 0:
                break
            sessions.append(shown)
        return {
            "address": self._address,
            "name": self._name,
            "pid": os.getpid(),
            "seconds": round(now - self._started, 3),
            "slots": self._slots,
            "draining": self._draining,
            "versions": vars(self._versions),
            "sessions": sessions,
            "sessions_left_out": len(self._sessions) - len(sessions),  # a hello has a limited size
        }

    def _open_session(self, guest: _Guest, hello: dict[str, Any]) -> None:
        if self._draining:
            self._refuse(guest, "draining", f"server {self._address} takes no new clients: it was told to end")
            return
        mismatches = Versions.from_json(hello.get("versions")).mismatches(self._versions)
        if {"python", "protocol"} & mismatches.keys() and not hello.get("allow_version_mismatch"):
            text = "its versions differ from the client's: " + describe_mismatches(mismatches)
            self._refuse(guest, "version", text, mismatches=mismatches)
            return
        session = _Session(
            secrets.token_hex(16),
            f"{str(hello.get('client'))[:MAX_LABEL]} at {guest.name}",
            Connection(guest.socket, MAX_HELLO, _no_segment),
        )
        self._reply(
            guest,
            {"session": session.id, "slots": self._slots, "name": self._name, "versions": vars(self._versions)},
        )
        self._release(guest)
        self._sessions[session.id] = session
        self._selector.register(guest.socket, selectors.EVENT_READ, lambda: self._on_control(session))
        logger.info("session opened client=%s", session.client)

    def _open_lane(self, guest: _Guest, hello: dict[str, Any]) -> WorkerStart | None:
        session = self._sessions.get(str(hello.get("session")))
        slot, lane = hello.get("slot"), hello.get("lane")
        if session is None or session.ended:
            self._refuse(guest, "session", "there is no such session on this server")
            return None
        if not isinstance(slot, int) or not isinstance(lane, int) or not 0 <= slot < self._slots:
            self._refuse(guest, "slot", f"this server has slots 0 to {self._slots - 1}, not {slot!r}")
            return None
        for worker in session.workers.values():
            if worker.slot == slot:  # its client has given it up; it may have a thread that would never end
                hang_up(worker.socket)
                self._doomed.setdefault(worker.pid, time.monotonic() + GRACE_ENDED)
        if len(session.workers) >= 2 * self._slots:  # for a moment a slot has an old worker and its successor
            self._refuse(guest, "slot", f"this session has {len(session.workers)} workers already")
            return None
        self._release(guest)
        try:
            return self._fork(session, guest.socket, slot, lane)
        except OSError as error:
            logger.error("cannot start a worker error=%s", error)
            refusal = {"code": "fork", "message": f"cannot start a worker: {error}"}
            with contextlib.suppress(OSError):  # it may have hung up, and is no guest any more to be dismissed
                self._reply(guest, refusal, FrameType.REFUSED)
            guest.socket.close()
            return None

    # -- workers ---------------------------------------------------------------------------------------

    def _fork(self, session: _Session, sock: Socket, slot: int, lane: int) -> WorkerStart | None:
        begun = mmap.mmap(-1, BEGUN.size)
        BEGUN.pack_into(begun, 0, NOT_BEGUN)
        _flush_output()  # or the child would write it once more
        pid = os.fork()
        if pid == 0:
            try:
                return self._become_worker(sock, begun)
            except BaseException:  # whatever happens, the child must not go on as a second supervisor
                sys.excepthook(*sys.exc_info())
                os._exit(70)
        worker = _Worker(pid, slot, lane, sock, begun, time.time())
        session.workers[pid] = worker
        self._workers[pid] = (session, worker)
        # The worker says nothing before the client has had this answer and sent INIT.
        with contextlib.suppress(OSError):
            sock.sendall(b"".join(encode_hello({"pid": pid})))
        logger.info("worker started pid=%d slot=%d client=%s", pid, slot, session.client)
        return None

    def _become_worker(self, sock: Socket, begun: mmap.mmap) -> WorkerStart:
        """In the child: let go of everything that is not the worker's."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if not self._embedded:
            os.setpgid(0, 0)  # Ctrl-C at the server is the supervisor's alone
        self._close_all(but=sock)
        null = os.open(os.devnull, os.O_RDONLY)
        if null == 0:  # as it is when 0 was the owner's end, just closed
            os.set_inheritable(0, True)  # for the processes that tasks start
        else:
            os.dup2(null, 0)
            os.close(null)
        set_ambient_key(self._key)
        sock.setblocking(True)
        return WorkerStart(sock, begun, self._lifeline, interruptible=self._embedded)

    def _close_all(self, but: Socket | None = None) -> None:
        """Close every descriptor of ours, without a word to any peer."""
        self._selector.close()  # first: removing sockets from it one by one would reach into the parent's
        self._waker.close()
        os.close(self._lifeline_end)
        if but is None:
            os.close(self._lifeline)
        if self._owner is not None:
            os.close(self._owner)
        sockets = [guest.socket for guest in self._guests]
        sockets += [session.connection.socket for session in self._sessions.values()]
        sockets += [worker.socket for _, worker in self._workers.values()]
        if self._listener is not None:
            sockets.append(self._listener)
        for sock in sockets:
            if sock is not but:
                sock.close()

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED | os.WCONTINUED)
            except ChildProcessError:
                return
            if not pid:
                return
            if pid not in self._workers:
                continue
            session, worker = self._workers[pid]
            worker.stopped = os.WIFSTOPPED(status)
            if worker.stopped:
                self._judge(session, worker)
            elif not os.WIFCONTINUED(status):
                self._on_worker_death(pid, os.waitstatus_to_exitcode(status))

    def _on_worker_death(self, pid: int, code: int) -> None:
        session, worker = self._workers.pop(pid)
        del session.workers[pid]
        self._doomed.pop(pid, None)
        report = {"lane": worker.lane, "pid": pid, "code": code, "begun": worker.last_begun}
        if worker.killed is not None:
            report["killed"] = worker.killed
        worker.begun.close()
        logger.info("worker ended pid=%d slot=%d code=%d client=%s", pid, worker.slot, code, session.client)
        if not session.ended:
            session.connection.send(encode_hello(report, FrameType.WORKER_DIED))
            self._watch_control(session)
        hang_up(worker.socket)  # after the report, so that the client knows why
        worker.socket.close()
        if self._draining and not session.ended and not session.workers:
            self._end_session(session, GRACE_CRASHED)  # no new lane can reach us any more

    # -- kills -----------------------------------------------------------------------------------------

    def _on_kill(self, session: _Session, order: dict[str, Any]) -> None:
        """Stop the worker if it runs such a task; only when it stands still is it certain which one it runs."""
        number, lane, first = numbers_in(order, "order", "lane", "first")
        try:
            ranges = [(begin, end) for begin, end in order["ranges"]]
        except (KeyError, TypeError, ValueError) as error:
            raise RemoteProtocolError(f"malformed KILL frame: {error!r}") from None
        if not all(type(end) is int for pair in ranges for end in pair):
            raise RemoteProtocolError("malformed KILL frame: its ranges are not of integers")
        kill = _Kill(number, first, ranges)
        worker = next((worker for worker in session.workers.values() if worker.lane == lane), None)
        if worker is None or worker.killed is not None:
            return  # the client is told of its death
        if kill.meets(worker) is None:
            self._spare(session, worker, kill)
            return
        worker.condemned.append(kill)
        if worker.stopped:  # by somebody else: it cannot stop once more
            self._judge(session, worker)
        else:
            os.kill(worker.pid, signal.SIGSTOP)

    def _judge(self, session: _Session, worker: _Worker) -> None:
        """It stands still."""
        kills, worker.condemned = worker.condemned, []
        if not kills:
            return  # somebody else's doing
        worker.killed = next((seq for kill in kills if (seq := kill.meets(worker)) is not None), None)
        if worker.killed is not None:
            logger.info("worker killed pid=%d slot=%d client=%s", worker.pid, worker.slot, session.client)
            os.kill(worker.pid, signal.SIGKILL)
        else:
            os.kill(worker.pid, signal.SIGCONT)
            for kill in kills:
                self._spare(session, worker, kill)

    def _spare(self, session: _Session, worker: _Worker, kill: _Kill) -> None:
        if not session.ended:
            answer = {"order": kill.order, "lane": worker.lane}
            session.connection.send(encode_hello(answer, FrameType.SPARED))
            self._watch_control(session)

    # -- sessions --------------------------------------------------------------------------------------

    def _watch_control(self, session: _Session) -> None:
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if session.connection.unsent else 0)
        self._selector.modify(session.connection, events, lambda: self._on_control(session))

    def _on_control(self, session: _Session) -> None:
        if session.ended:
            return  # by an event of this same round
        if session.connection.unsent:
            session.connection.flush()
            self._watch_control(session)
        try:
            for frame in session.connection.receive():
                if frame.type is FrameType.BYE:
                    self._end_session(session, GRACE_ENDED)
                    return
                if frame.type is FrameType.KILL:
                    self._on_kill(session, decode_hello(frame))
                    continue
                raise RemoteProtocolError(f"{frame.type.name} frame on a control connection")
        except EOFError:
            self._end_session(session, GRACE_CRASHED)
        except RemoteProtocolError as error:
            logger.warning("session broken client=%s error=%s", session.client, error)
            self._end_session(session, GRACE_CRASHED)

    def _end_session(self, session: _Session, grace: float) -> None:
        """Let the session's workers see that their client is gone; kill those that do not care."""
        logger.info("session ended client=%s", session.client)
        session.ended = True
        del self._sessions[session.id]
        self._selector.unregister(session.connection)
        session.connection.close()
        for worker in session.workers.values():
            hang_up(worker.socket)
            self._doomed[worker.pid] = time.monotonic() + grace

    # -- the end ---------------------------------------------------------------------------------------

    def _drain(self) -> None:
        """Take no new clients; end when those here are gone."""
        if self._draining:
            return
        logger.info("draining address=%s sessions=%d", self._address, len(self._sessions))
        self._draining = True
        self._listen_no_more()
        self._deaf_until = 0.0
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        for session in list(self._sessions.values()):
            session.connection.send(encode_hello({}, FrameType.DRAINING))
            self._watch_control(session)
            if not session.workers:
                self._end_session(session, GRACE_CRASHED)  # no lane can reach us any more

    def _end_at_once(self) -> None:
        self._ending = True
        self._drain()
        for guest in list(self._guests):
            self._dismiss(guest, "the server ends")
        for session in list(self._sessions.values()):
            self._end_session(session, GRACE_CRASHED)
        for pid in self._workers:  # also those of sessions that ended before, with more grace
            self._doomed[pid] = min(self._doomed.get(pid, float("inf")), time.monotonic() + GRACE_CRASHED)


def _no_segment(size: int) -> Buffer:
    """For readers: a control connection carries no bulk, so that no memory is taken for what is promised."""
    raise RemoteProtocolError(f"a segment of {size} bytes where there is none to be")


def serve(listener: Socket, *, on_ready: Callable[[], None] = lambda: None, **settings: Any) -> bool:
    """Be a server until its end; see `Supervisor` for the settings.

    Args:
        listener: A listening socket.
        on_ready: Called when it serves: from then on SIGTERM drains it.
        **settings: The supervisor's.

    Returns:
        Whether this process is the server's: in each worker's it returns False, when the worker's work is done.
    """
    start = Supervisor(listener, **settings).run(on_ready)
    if start is None:
        return True
    run_worker(start)
    return False


def _flush_output() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
