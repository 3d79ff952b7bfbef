"""The supervisor: a server's parent process.

It listens, lets in whom the key admits, starts a worker for each lane, and tells its client when one dies and of
what. One thread, one selector, no polling: it sleeps until something happens. It must not import user code, nor
unpickle anything, nor read a task: a lane's socket belongs to the worker that is forked for it.

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
import mmap
import os
import selectors
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from farm_executor.core.frames import MAX_HELLO, FrameType, encode_frame
from farm_executor.core.handshake import (
    Role,
    Versions,
    decode_hello,
    describe_mismatches,
    encode_hello,
    memory_limit_in,
    numbers_in,
)
from farm_executor.core.liveness import MAX_MISSED
from farm_executor.errors import AuthenticationError, RemoteProtocolError
from farm_executor.security import Key, set_ambient_key
from farm_executor.server.guest import Guest, no_segment
from farm_executor.server.lane import NOT_BEGUN, PROGRESS
from farm_executor.server.memory import OomCounter, held_by, peak_of
from farm_executor.server.stderr import StderrPipe
from farm_executor.server.tether import die_with
from farm_executor.server.worker import WorkerStart, run_worker
from farm_executor.transport import (
    HEARTBEAT_SECONDS,
    AnySocket,
    Channel,
    Connection,
    Socket,
    Waker,
    hang_up,
    is_tcp,
    tune,
    unread,
)
from farm_executor.versions import local_versions

if TYPE_CHECKING:
    import resource

__all__ = ["Supervisor", "serve"]

logger = logging.getLogger(__name__)

ACCEPT_PAUSE = 0.2  # seconds before the next attempt, when the system gives no descriptor and no guest holds one
GUEST_SECONDS = 10.0  # to prove the key and say hello
MAX_GUESTS = 256  # beyond it the oldest goes: a client needs milliseconds, a stranger does not matter
MAX_GUESTS_OF_A_HOST = 32  # beyond it the oldest from there goes
MAX_LABEL = 100  # characters of what a client calls itself
GRACE_CRASHED = 1.0  # seconds for the workers of a client that is gone
LOOK_SECONDS = 0.2  # between looks at what workers with a limit hold, if they have run anything since
UNSTICK_SECONDS = 0.1  # before the next attempt, when our standard error takes no more
GRACE_ENDED = 10.0  # seconds for the workers of a client that said goodbye, or has put others in their places
MAX_RESUME_SECONDS = 3600.0  # for which a client may ask
SILENT_BEATS = 12  # heartbeats without one, after which a client's connection is taken for broken
MIN_HEARTBEAT = 0.05  # seconds; more often than that no client needs to be believed dead
THAW_SECONDS = 1.0  # for those who were stopped together to go on
MAX_REPORTS = 1000  # on lanes, in one PONG


class _Worker:
    def __init__(
        self,
        pid: int,
        slot: int,
        lane: int,
        socket: Socket,
        channel: Channel,
        progress: mmap.mmap,
        stderr: StderrPipe,
        oom_kills: int | None,
    ) -> None:
        self.pid = pid
        self.slot = slot
        self.lane = lane
        self.socket = socket  # our own descriptor of the lane
        self.channel = channel
        self.progress = progress
        self.stderr = stderr
        self.oom_kills = oom_kills  # by the system, when it was started
        self.started = time.time()
        self.stopped = False  # by whomever
        self.thaw_by = 0.0  # if it stands still by then, it is killed; 0 for no such time
        self.frozen = False  # it did by then, and has a last chance
        self.condemned: list[_Kill] = []  # it is about to stop, to see whether it is to be killed
        self.killed: int | None = None  # the number of the task because of which
        self.held: int | None = None  # bytes, because of which we have killed it
        self.looked_at = NOT_BEGUN  # what it had begun when we looked at its memory

    @property
    def last_begun(self) -> int:
        return int(PROGRESS.unpack_from(self.progress)[0])

    @property
    def is_busy(self) -> bool:
        return bool(PROGRESS.unpack_from(self.progress)[3])

    def end(self) -> None:
        """Let it see that its client is gone."""
        hang_up(self.socket)
        self.channel.say_end()

    def has_run(self) -> bool:
        """Whether it runs something, or has since this was asked before."""
        before, self.looked_at = self.looked_at, self.last_begun
        return self.is_busy or before != self.looked_at


class _Kill(NamedTuple):
    """A client's order: kill the worker if it runs one of these tasks; it runs none before ``first``."""

    order: int
    first: int
    ranges: list[tuple[int, int]]

    def meets(self, worker: _Worker) -> int | None:
        """The number of the task that the worker runs, if it is one of them."""
        current = max(self.first, worker.last_begun)
        return current if any(begin <= current <= end for begin, end in self.ranges) else None


class _Session:
    def __init__(
        self,
        id: str,
        client: str,
        resume_seconds: float,
        heartbeat: float,
        max_memory: int | None,
        *,
        distant: bool,
    ) -> None:
        self.id = id
        self.client = client
        self.connection: Connection | None = None  # None also while it is broken
        self.resume_seconds = resume_seconds  # for which it is kept then
        self.heartbeat = heartbeat
        self.heard = time.monotonic()  # when the client last said something
        self.distant = distant  # there is a network in between, which may swallow all
        self.max_memory = max_memory  # bytes that each worker may hold
        self.workers: dict[int, _Worker] = {}  # by pid
        self.reports: dict[int, dict[str, Any]] = {}  # by lane: of workers that have died
        self.ended = False

    @property
    def deadline(self) -> float:
        """When to give up on the client, or on its connection."""
        if self.connection is None:
            return self.heard + self.resume_seconds
        return self.heard + SILENT_BEATS * self.heartbeat if self.distant else float("inf")


class Supervisor:
    """A server.

    Args:
        listener: A listening socket; it is the supervisor's from now on.
        address: What it listens at, for people to read.
        keys: Each of which admits. The first is that of what runs in the workers, as a client.
        slots: How many workers each session may have.
        name: A label for people.
        owner: A file descriptor at whose end the server ends at once: who started it holds the other end.
        embedded: Whether it is one client's own, so that Ctrl-C in the client's terminal interrupts the tasks
            that run. Otherwise Ctrl-C at the server, like SIGTERM, makes it take no new clients, and a second
            one makes it end at once.
        tunnelled: Whether a network lies behind its unix socket. A client that is silent is gone then, and if the
            server is that client's own, it ends.
    """

    def __init__(
        self,
        listener: Socket,
        *,
        address: str,
        keys: Sequence[Key],
        slots: int,
        name: str = "",
        owner: int | None = None,
        embedded: bool = False,
        tunnelled: bool = False,
    ) -> None:
        self._listener: Socket | None = listener
        self._address = address
        self._keys = keys
        self._slots = slots
        self._name = name
        self._owner = owner
        self._embedded = embedded
        self._tunnelled = tunnelled
        self._versions = local_versions()
        self._selector = selectors.DefaultSelector()
        self._waker = Waker()
        self._guests: dict[Guest, None] = {}  # in the order of their deadlines
        self._sessions: dict[str, _Session] = {}
        self._workers: dict[int, tuple[_Session, _Worker]] = {}
        self._doomed: dict[int, float] = {}  # pids to be killed, with the time
        self._stderrs: set[StderrPipe] = set()
        self._stuck: set[StderrPipe] = set()  # that are not looked at
        self._unstick_at = 0.0
        self._oom_counter = OomCounter()
        self._next_look = 0.0
        self._deaf_until = 0.0  # the listener is not looked at before that time; 0 if it is
        self._terminations = 0
        self._draining = False
        self._leaving = False  # and its clients have been asked to leave
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
            self._drain(leave=True)
        if self._terminations > 1:
            self._end_at_once()

    def _on_owner(self) -> None:
        assert self._owner is not None
        if not os.read(self._owner, 4096):
            self._selector.unregister(self._owner)
            self._end_at_once()

    def _next_deadline(self) -> float | None:
        times = [*self._doomed.values(), *(session.deadline for session in self._sessions.values())]
        times += [worker.thaw_by for _, worker in self._workers.values() if worker.thaw_by]
        if self._deaf_until:
            times.append(self._deaf_until)
        if self._guests:
            times.append(next(iter(self._guests)).deadline)
        if self._stuck:
            times.append(self._unstick_at)
        if any(True for _ in self._limited()):
            times.append(self._next_look)
        first = min(times, default=float("inf"))
        return None if first == float("inf") else max(first - time.monotonic(), 0.0)

    def _on_time(self, now: float) -> None:
        if self._deaf_until and self._deaf_until <= now:
            self._listen_again()
        for guest in list(self._guests):
            if guest.deadline > now:
                break
            self._dismiss(guest, "it said nothing in time")
        for session in [session for session in self._sessions.values() if session.deadline <= now]:
            if session.connection is None:
                self._end_session(session, GRACE_CRASHED)
            else:
                self._cut_session(session, f"nothing heard for {now - session.heard:.0f} s")
        for worker in [worker for _, worker in self._workers.values() if 0 < worker.thaw_by <= now]:
            self._end_frozen(worker, now)
        for doomed in [pid for pid, when in self._doomed.items() if when <= now]:
            del self._doomed[doomed]
            with contextlib.suppress(ProcessLookupError):
                os.kill(doomed, signal.SIGKILL)
        if self._stuck and self._unstick_at <= now:
            stuck, self._stuck = self._stuck, set()
            for pipe in stuck:  # there may be nothing more to read of it, only to pass on
                self._selector.register(pipe, selectors.EVENT_READ, partial(self._on_stderr, pipe))
                self._on_stderr(pipe)
        if self._next_look <= now:
            self._next_look = now + LOOK_SECONDS
            self._look_at_memory()

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
        tune(sock)
        local = not isinstance(peer, tuple)  # a unix socket
        host = "local" if local else peer[0]
        name = "local" if local else f"{host}:{peer[1]}"
        deadline = time.monotonic() + GUEST_SECONDS
        guest = Guest(sock, host=host, name=name, keys=self._keys, local=local, deadline=deadline)
        of_host = [other for other in self._guests if other.host == host]
        if len(of_host) >= MAX_GUESTS_OF_A_HOST:
            self._dismiss(of_host[0], "too many connections without a key from its address")
        elif len(self._guests) >= MAX_GUESTS:
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

    def _on_guest(self, guest: Guest) -> WorkerStart | None:
        if guest not in self._guests:
            return None  # dismissed by an event of this same round
        try:
            hello = guest.receive()
            if hello is not None:
                return self._on_hello(guest, hello)
        except (EOFError, AuthenticationError, RemoteProtocolError, OSError) as error:
            self._dismiss(guest, str(error))
        return None

    def _dismiss(self, guest: Guest, why: str) -> None:
        if not self._embedded:  # else it was our own client, which knows why it left
            logger.warning("dismissed peer=%s reason=%s", guest.name, why)
        self._release(guest)
        guest.socket.close()

    def _release(self, guest: Guest) -> None:
        self._guests.pop(guest, None)
        self._selector.unregister(guest.socket)

    def _on_hello(self, guest: Guest, hello: dict[str, Any]) -> WorkerStart | None:
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

    def _reply(self, guest: Guest, data: dict[str, Any], kind: FrameType = FrameType.HELLO) -> None:
        guest.socket.sendall(
            b"".join(encode_hello(data, kind))
        )  # small, and the buffer is empty: it is taken whole

    def _refuse(self, guest: Guest, code: str, message: str, **more: Any) -> None:
        self._reply(guest, {"code": code, "message": message, **more}, FrameType.REFUSED)
        logger.info("refused peer=%s code=%s reason=%s", guest.name, code, message)
        self._release(guest)
        guest.socket.close()

    # -- what guests come for --------------------------------------------------------------------------

    def _answer_admin(self, guest: Guest, hello: dict[str, Any]) -> None:
        command = hello.get("command")
        if command == "end":
            self._reply(guest, {})
            self._drain(leave=False)
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
            "versions": self._versions._asdict(),
            "sessions": sessions,
            "sessions_left_out": len(self._sessions) - len(sessions),  # a hello has a limited size
        }

    def _open_session(self, guest: Guest, hello: dict[str, Any]) -> None:
        mismatches = Versions.from_json(hello.get("versions")).mismatches(self._versions)
        if "resume" in hello:
            self._resume_session(guest, str(hello["resume"]))
            return
        if self._draining:
            self._refuse(guest, "draining", f"server {self._address} takes no new clients: it was told to end")
            return
        if {"python", "protocol"} & mismatches.keys() and not hello.get("allow_version_mismatch"):
            text = "its versions differ from the client's: " + describe_mismatches(mismatches)
            self._refuse(guest, "version", text, mismatches=mismatches)
            return
        # The end of a unix socket is the end of whoever held it.
        resume_seconds = _seconds(hello, "resume_seconds", 0.0) if is_tcp(guest.raw) else 0.0
        session = _Session(
            os.urandom(16).hex(),
            f"{str(hello.get('client'))[:MAX_LABEL]} at {guest.name}",
            resume_seconds,
            heartbeat=max(_seconds(hello, "heartbeat", HEARTBEAT_SECONDS), MIN_HEARTBEAT),
            max_memory=memory_limit_in(hello),
            distant=bool(resume_seconds) or self._tunnelled,
        )
        self._sessions[session.id] = session
        self._welcome(guest, session)
        logger.info("session opened client=%s", session.client)

    def _resume_session(self, guest: Guest, id: str) -> None:
        session = self._sessions.get(id)
        if session is None or not session.resume_seconds:
            self._refuse(guest, "session", "there is no such session on this server any more")
            return
        self._drop_control(session)  # of which we may not have noticed yet that it is broken
        self._welcome(guest, session)
        for report in session.reports.values():  # some may not have arrived
            self._tell(session, report, FrameType.WORKER_DIED)
        logger.info("session resumed client=%s", session.client)

    def _welcome(self, guest: Guest, session: _Session) -> None:
        """Make this connection the session's control connection."""
        self._reply(
            guest,
            {
                "session": session.id,
                "slots": self._slots,
                "name": self._name,
                "versions": self._versions._asdict(),
                "resume_seconds": session.resume_seconds,
            },
        )
        self._release(guest)
        tune(guest.raw, session.heartbeat)
        session.connection = Connection(guest.socket, MAX_HELLO, no_segment)
        session.heard = time.monotonic()
        self._selector.register(guest.socket, selectors.EVENT_READ, lambda: self._on_control(session))

    def _open_lane(self, guest: Guest, hello: dict[str, Any]) -> WorkerStart | None:
        session = self._sessions.get(str(hello.get("session")))
        slot, lane = hello.get("slot"), hello.get("lane")
        if session is None or session.ended:
            self._refuse(guest, "session", "there is no such session on this server")
            return None
        if hello.get("resume"):
            self._resume_lane(guest, session, lane)
            return None
        if not isinstance(slot, int) or not isinstance(lane, int) or not 0 <= slot < self._slots:
            self._refuse(guest, "slot", f"this server has slots 0 to {self._slots - 1}, not {slot!r}")
            return None
        for worker in session.workers.values():
            if worker.slot == slot:  # its client has given it up; it may have a thread that would never end
                worker.end()
                self._doomed.setdefault(worker.pid, time.monotonic() + GRACE_ENDED)
        if len(session.workers) >= 2 * self._slots:  # for a moment a slot has an old worker and its successor
            self._refuse(guest, "slot", f"this session has {len(session.workers)} workers already")
            return None
        self._release(guest)
        tune(guest.raw, session.heartbeat)
        for old in [old for old in session.reports if session.reports[old]["slot"] == slot]:
            del session.reports[old]  # the client knows
        try:
            return self._fork(session, guest, slot, lane)
        except OSError as error:
            logger.error("cannot start a worker error=%s", error)
            refusal = {"code": "fork", "message": f"cannot start a worker: {error}"}
            with contextlib.suppress(OSError):  # it may have hung up, and is no guest any more to be dismissed
                self._reply(guest, refusal, FrameType.REFUSED)
            guest.socket.close()
            return None

    def _resume_lane(self, guest: Guest, session: _Session, lane: Any) -> None:
        """Pass the connection on to the lane's worker, which lives."""
        worker = next((worker for worker in session.workers.values() if worker.lane == lane), None)
        if worker is None or worker.pid in self._doomed or not session.resume_seconds:
            self._refuse(guest, "worker", "that lane's worker is gone")
            return
        self._release(guest)
        tune(guest.raw, session.heartbeat)
        hang_up(worker.socket)
        try:
            worker.channel.pass_on(guest.raw, guest.secured_later)
            guest.socket.sendall(b"".join(encode_hello({"pid": worker.pid})))
        except OSError as error:
            logger.warning("lane not resumed pid=%d error=%s", worker.pid, error)
            guest.socket.close()
            return
        worker.socket.close()
        worker.socket = guest.raw
        logger.info("lane resumed pid=%d slot=%d client=%s", worker.pid, worker.slot, session.client)

    # -- workers ---------------------------------------------------------------------------------------

    def _fork(self, session: _Session, guest: Guest, slot: int, lane: int) -> WorkerStart | None:
        progress = mmap.mmap(-1, PROGRESS.size)
        PROGRESS.pack_into(progress, 0, NOT_BEGUN, 0, 0, False)
        supervisor = os.getpid()
        with contextlib.ExitStack() as undo:
            channel, theirs = Channel.pair()
            undo.callback(channel.close)
            undo.callback(theirs.close)
            stderr = StderrPipe(whole=not self._embedded)
            undo.callback(stderr.abandon)
            _flush_output()  # or the child would write it once more
            pid = os.fork()
            undo.pop_all()
        if pid == 0:
            try:
                channel.close()
                return self._become_worker(session, guest, progress, theirs, stderr, supervisor)
            except BaseException:  # whatever happens, the child must not go on as a second supervisor
                sys.excepthook(*sys.exc_info())
                os._exit(70)
        theirs.close()
        stderr.begin()
        self._stderrs.add(stderr)
        self._selector.register(stderr, selectors.EVENT_READ, partial(self._on_stderr, stderr))
        worker = _Worker(pid, slot, lane, guest.raw, channel, progress, stderr, self._oom_counter.read())
        session.workers[pid] = worker
        self._workers[pid] = (session, worker)
        # The worker says nothing before the client has had this answer and sent INIT.
        with contextlib.suppress(OSError):
            guest.raw.sendall(b"".join(encode_hello({"pid": pid})))
        logger.info("worker started pid=%d slot=%d client=%s", pid, slot, session.client)
        return None

    def _become_worker(
        self,
        session: _Session,
        guest: Guest,
        progress: mmap.mmap,
        channel: Channel,
        stderr: StderrPipe,
        supervisor: int,
    ) -> WorkerStart:
        """In the child: let go of everything that is not the worker's."""
        die_with(supervisor)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if not self._embedded:
            os.setpgid(0, 0)  # Ctrl-C at the server is the supervisor's alone
        self._close_all(but=guest.raw)
        stderr.attach()
        null = os.open(os.devnull, os.O_RDONLY)
        if null == 0:  # as it is when 0 was the owner's end, just closed
            os.set_inheritable(0, True)  # for the processes that tasks start
        else:
            os.dup2(null, 0)
            os.close(null)
        set_ambient_key(self._keys[0])
        guest.raw.setblocking(True)
        return WorkerStart(
            guest.raw,
            self._keys,
            guest.secured_later,
            progress,
            channel,
            interruptible=self._embedded,
            resumable=session.resume_seconds > 0,
        )

    def _close_all(self, but: Socket | None = None) -> None:
        """Close every descriptor of ours, without a word to any peer."""
        self._selector.close()  # first: removing sockets from it one by one would reach into the parent's
        self._waker.close()
        if self._owner is not None:
            os.close(self._owner)
        for stderr in self._stderrs:
            stderr.close()
        sockets: list[AnySocket] = [guest.socket for guest in self._guests]
        sockets += [session.connection.socket for session in self._sessions.values() if session.connection]
        sockets += [worker.socket for _, worker in self._workers.values()]
        for _, worker in self._workers.values():
            worker.channel.close()
        if self._listener is not None:
            sockets.append(self._listener)
        for sock in sockets:
            if sock is not but:
                sock.close()

    def _reap(self) -> None:
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG | os.WUNTRACED | os.WCONTINUED)
            except ChildProcessError:
                return
            if not pid:
                return
            if pid not in self._workers:
                continue
            session, worker = self._workers[pid]
            worker.stopped = os.WIFSTOPPED(status)
            worker.thaw_by = 0.0
            if os.WIFCONTINUED(status):
                worker.frozen = False
            if worker.stopped:
                worker.thaw_by = time.monotonic() + MAX_MISSED * session.heartbeat
                self._judge(session, worker)
            elif not os.WIFCONTINUED(status):
                self._on_worker_death(pid, os.waitstatus_to_exitcode(status), usage)

    def _on_worker_death(self, pid: int, code: int, usage: resource.struct_rusage) -> None:
        session, worker = self._workers.pop(pid)
        del session.workers[pid]
        doomed = self._doomed.pop(pid, None)
        worker.stderr.drain()
        if worker.stderr.stuck and worker.stderr not in self._stuck:
            self._set_aside(worker.stderr)
        report: dict[str, Any] = {
            "lane": worker.lane,
            "slot": worker.slot,
            "pid": pid,
            "code": code,
            "begun": worker.last_begun,
            "peak": peak_of(usage),
            "stderr": worker.stderr.evidence,
        }
        if worker.killed is not None:
            report["killed"] = worker.killed
        elif worker.held is not None:
            report |= {"held": worker.held, "limit": session.max_memory}
        elif worker.frozen:
            report["frozen"] = MAX_MISSED * session.heartbeat
        elif code == -signal.SIGKILL and doomed is None and worker.oom_kills is not None:
            report["oom"] = (self._oom_counter.read() or 0) > worker.oom_kills
        worker.progress.close()
        worker.channel.close()
        logger.info(
            "worker ended pid=%d slot=%d code=%d peak=%d oom=%s client=%s",
            *(pid, worker.slot, code, report["peak"], report.get("oom", "unknown"), session.client),
        )
        session.reports[worker.lane] = report
        self._tell(session, report, FrameType.WORKER_DIED)
        hang_up(worker.socket)  # after the report, so that the client knows why
        worker.socket.close()
        if self._draining and not session.ended and not session.workers:
            self._part_with(session)  # no new lane can reach us any more

    def _on_stderr(self, pipe: StderrPipe) -> None:
        """A worker, or whom it has started, has written there, or will no more."""
        if pipe in self._stuck:
            return  # by an event of this same round
        if pipe.copy():
            self._selector.unregister(pipe)
            self._stderrs.discard(pipe)
            pipe.close()
        elif pipe.stuck:
            self._set_aside(pipe)

    def _set_aside(self, pipe: StderrPipe) -> None:
        """Our own standard error takes no more: who writes has to wait, our clients have not."""
        self._selector.unregister(pipe)
        self._stuck.add(pipe)
        self._unstick_at = time.monotonic() + UNSTICK_SECONDS

    def _limited(self) -> Iterator[tuple[_Session, _Worker]]:
        """The workers that may hold only so much memory."""
        for session in self._sessions.values():
            if session.max_memory is not None:
                yield from ((session, worker) for worker in session.workers.values() if worker.held is None)

    def _look_at_memory(self) -> None:
        """Kill those that hold more; nobody asks for the memory of those that have run nothing."""
        suspects = [(session, worker) for session, worker in self._limited() if worker.has_run()]
        held = held_by(worker.pid for _, worker in suspects) if suspects else {}
        for session, worker in suspects:
            assert session.max_memory is not None
            size = held.get(worker.pid, 0)
            if size > session.max_memory:
                worker.held = size
                logger.info(
                    "worker over its limit pid=%d slot=%d held=%d limit=%d client=%s",
                    *(worker.pid, worker.slot, size, session.max_memory, session.client),
                )
                os.kill(worker.pid, signal.SIGKILL)

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
        if worker is None or worker.killed is not None or worker.held is not None:
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
        self._tell(session, {"order": kill.order, "lane": worker.lane}, FrameType.SPARED)

    def _end_frozen(self, worker: _Worker, now: float) -> None:
        """It has stood still for long. If we have, too, as after Ctrl-Z in a terminal, it goes on in a moment."""
        self._reap()
        if worker.stopped and not worker.frozen:
            worker.frozen, worker.thaw_by = True, now + THAW_SECONDS
        elif worker.stopped:
            worker.thaw_by = 0.0
            logger.warning("worker frozen pid=%d slot=%d", worker.pid, worker.slot)
            os.kill(worker.pid, signal.SIGKILL)

    # -- sessions --------------------------------------------------------------------------------------

    def _tell(self, session: _Session, data: dict[str, Any], kind: FrameType, seq: int = 0) -> None:
        """Say something to the client, if it is there."""
        if session.connection is not None:
            session.connection.send(encode_hello(data, kind, seq))
            self._watch_control(session, session.connection)

    def _watch_control(self, session: _Session, connection: Connection) -> None:
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.unsent else 0)
        self._selector.modify(connection, events, lambda: self._on_control(session))

    def _on_control(self, session: _Session) -> None:
        connection = session.connection
        if connection is None:
            return  # by an event of this same round
        if connection.unsent:
            connection.flush()
            self._watch_control(session, connection)
        try:
            for frame in connection.receive():
                session.heard = time.monotonic()
                if frame.type is FrameType.PING:
                    self._answer_ping(session, connection, frame.seq)
                elif frame.type is FrameType.KILL:
                    self._on_kill(session, decode_hello(frame))
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

    def _answer_ping(self, session: _Session, connection: Connection, seq: int) -> None:
        """Say how many bytes have come and gone on each lane, for the client to see whether they arrive.

        Of a lane on which something waits to be read nothing is said: it is the worker who keeps more from coming.
        """
        if connection.unsent:
            return  # it does not listen
        lanes = []
        for worker in list(session.workers.values())[:MAX_REPORTS]:
            if not unread(worker.socket):
                _, received, sent, _ = PROGRESS.unpack_from(worker.progress)
                lanes.append([worker.lane, received, sent])
        self._tell(session, {"lanes": lanes}, FrameType.PONG, seq)

    def _cut_session(self, session: _Session, why: str) -> None:
        """Its control connection is broken: keep it for a while, for the client to come back, if that may be."""
        if not session.resume_seconds or self._draining:
            self._end_session(session, GRACE_CRASHED)
            if self._tunnelled and self._embedded:  # its client is gone, or has started another
                self._end_at_once()
            return
        logger.info("session cut client=%s reason=%s", session.client, why)
        self._drop_control(session)
        session.heard = time.monotonic()

    def _drop_control(self, session: _Session) -> None:
        if session.connection is not None:
            self._selector.unregister(session.connection)
            session.connection.close()
            session.connection = None

    def _end_session(self, session: _Session, grace: float) -> None:
        """Let the session's workers see that their client is gone; kill those that do not care."""
        logger.info("session ended client=%s", session.client)
        session.ended = True
        del self._sessions[session.id]
        self._drop_control(session)
        for worker in session.workers.values():
            worker.end()
            self._doomed[worker.pid] = time.monotonic() + grace

    def _part_with(self, session: _Session) -> None:
        """End a session of our own accord. Its client is told, or it would look for us for a while."""
        if session.connection is not None:
            session.connection.send(encode_frame(FrameType.BYE))
        self._end_session(session, GRACE_CRASHED)

    # -- the end ---------------------------------------------------------------------------------------

    def _drain(self, *, leave: bool) -> None:
        """Take no new clients; end when those here are gone, who may be asked to ``leave`` when they can."""
        if leave and not self._leaving:
            self._leaving = True
            for session in self._sessions.values():
                self._tell(session, {"leave": True}, FrameType.DRAINING)
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
            if not leave:
                self._tell(session, {"leave": False}, FrameType.DRAINING)
            if not session.workers or session.connection is None:
                self._part_with(session)  # no lane can reach us any more

    def _end_at_once(self) -> None:
        self._ending = True
        self._drain(leave=True)
        for guest in list(self._guests):
            self._dismiss(guest, "the server ends")
        for session in list(self._sessions.values()):
            self._part_with(session)
        for pid in self._workers:  # also those of sessions that ended before, with more grace
            self._doomed[pid] = min(self._doomed.get(pid, float("inf")), time.monotonic() + GRACE_CRASHED)


def _seconds(hello: dict[str, Any], key: str, default: float) -> float:
    """A time that a client asks for.

    Raises:
        RemoteProtocolError: It is no number.
    """
    value = hello.get(key, default)
    if type(value) not in (int, float) or not 0 <= value < float("inf"):
        raise RemoteProtocolError(f"{key} should be seconds, not {value!r:.200}")
    return min(float(value), MAX_RESUME_SECONDS)


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
