"""The client's end of one server: dial it, redial it, and keep its lanes open.

This module owns the threads that dial, and whether an error is final. It must not know tasks, nor what to dial
next, which `core.dialling` decides. A thread exists only while there is something to dial; it reports the outcome
to the listeners itself.

A connection that fails is dialled again for ever. If a server refuses for a reason that waiting does not mend, such
as a wrong key or incompatible versions, the listener is told. The same happens with an embedded server if this
machine is so short of processes or files, for a few seconds, that there is not a single worker. A claim that the
key is wrong cannot be proven, so any peer that listens at the address, or sits in between, can make it: it must be
made several times, and is not believed at all once a server of the farm has proven that the key is right.

All connections of one session go to the address at which its first one was answered, even if the host's name
stands for several: the others may be other machines.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
import random
import threading
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, TypeVar

from farm_executor._record import NamedTuple
from farm_executor.client.farm.session import Session, Terms
from farm_executor.core.dialling import Attempt, Dialling, Kind, Verdict
from farm_executor.core.features import BESIDE, RINGS, shared
from farm_executor.core.handshake import describe_mismatches
from farm_executor.core.messages import (
    MAX_COUNT,
    MAX_SECONDS,
    ClientHello,
    ControlHello,
    LaneHello,
    Welcome,
    WorkerHello,
    from_json,
    to_json,
)
from farm_executor.errors import AuthenticationError, BrokenFarmError, RemoteProtocolError, VersionMismatchError
from farm_executor.wire.address import Address
from farm_executor.wire.advice import explained
from farm_executor.wire.connection import Connection
from farm_executor.wire.dialling import RefusedError, connect
from farm_executor.wire.security import Key
from farm_executor.wire.sockets import HEARTBEAT_SECONDS, Socket, beside, hang_up
from farm_executor.wire.versions import local_versions
from farm_executor.wire.whose import whose

__all__ = ["Listener", "ServerLink", "Settings"]

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 10.0  # for one connection, until the server's hello
# The same for the first attempt to resume. On a network that swallows everything, a longer one would use up most of
# the time for resuming. Later attempts get longer, in case the network is merely slow.
FIRST_RESUME_SECONDS = 2.0
# How long a server may refuse with "not now" before this is logged: it is normal while a worker is being replaced.
NOT_YET_SECONDS = 1.0
MAX_SHORTAGES = 8  # failures in a row, about five seconds, because this machine has no processes or files left
CLEAR_REFUSALS = 4  # in a row from a peer that has proven nothing, until they are believed: a third of a second
# Per server, unless the user asked for more: the number that a server claims must not cost unlimited memory.
MAX_LANES = 4096
REPORT_EVERY = 30.0  # seconds between two log lines about the same silence
MAX_DIALLERS = 128  # threads of one farm beyond the first one for each server
ANOTHER_SERVER = (
    "another server has answered than the one that opened this session: a load balancer stands in between, or a "
    "name for several machines; give each server an address of its own, or farm://NAME:PORT?all"
)

_lane_ids = itertools.count(1)
_Answer = TypeVar("_Answer", bound=NamedTuple)


class Settings:
    """The settings that all links of one farm share."""

    def __init__(
        self,
        find_key: Callable[[Address], Key],
        allow_version_mismatch: bool = False,
        heartbeat: float = HEARTBEAT_SECONDS,
        resume_seconds: float = 0.0,
        max_memory_per_worker: int | None = None,
        features: tuple[str, ...] = (),
        label: str = "",
        own_features: tuple[str, ...] = (),
    ) -> None:
        self.find_key = find_key
        self.allow_version_mismatch = allow_version_mismatch
        self.heartbeat = heartbeat
        self.resume_seconds = resume_seconds
        self.max_memory_per_worker = max_memory_per_worker  # bytes
        self.features = features  # those that hellos to servers name
        self.own_features = own_features  # the same for the embedded one
        self.label = label  # what the user calls the farm
        self.more_diallers = threading.BoundedSemaphore(MAX_DIALLERS)
        self.proven = False  # whether any server has proven that it holds the farm's key


class Listener(Protocol):
    """The owner of the links. Every method is called in a link's threads."""

    def open_session(self, link: ServerLink, terms: Terms) -> Session:
        """Create the object for a session that the server has opened; it is told everything that follows."""

    def refused(self, link: ServerLink, error: Exception) -> None:
        """Note that the server refuses us or cannot be started, for a reason that time does not mend.

        It is dialled again nevertheless.
        """


class _Silence:
    """The time since dialling last succeeded, and when to log that again; guarded by the link's lock."""

    since: float | None = None
    next_report = 0.0


class ServerLink:
    """The way to one server.

    Args:
        address: The address as given; None for a server that is still to be started.
        locate: Returns the server's address, starting the server if need be. Called before each new session with
            whether the last one was lost. May raise OSError.
        quota: The most lanes to open; None for as many as the server has slots.
        settings: See `Settings`.
        listener: Told of sessions and refusals.

    Attributes:
        session: The current session, if any.
        address: The server's address, as far as it is known.
        prospects: The number of workers that are certain to come before the server has answered: all of them for an
            embedded one.
        last_error: Why the last attempt failed; empty if none did.
        is_embedded: Whether the server is this program's own.

    Thread safety: all methods may be called from any thread.
    """

    def __init__(
        self,
        address: Address | None,
        locate: Callable[[bool], Address],
        quota: int | None,
        settings: Settings,
        listener: Listener,
    ) -> None:
        self.is_embedded = address is None
        self._features = settings.own_features if self.is_embedded else settings.features
        self._locate = locate
        self._quota = quota
        self._settings = settings
        self._listener = listener
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._plan = Dialling()
        self._threads: set[threading.Thread] = set()
        self._sockets: dict[int, list[Socket]] = {}  # those being dialled, by thread
        self._lost = False  # whether the last session was lost
        self._silence = _Silence()
        self._refusals = 0  # in a row, from a peer that has not proven to hold our key
        self._beside: Address | None = None  # where to dial for lanes; None for the server's address
        # A generator of its own: a program that has seeded the global one expects its numbers undisturbed.
        self._random = random.Random()
        self.prospects = quota or 0 if address is None else 0
        self.address = address
        self.session: Session | None = None
        self.last_error = ""

    def __str__(self) -> str:
        return str(self.address) if self.address else "a server not yet started"

    @property
    def up(self) -> bool:
        """Whether there is a session whose control connection is not cut."""
        return bool(self._plan.session) and not self._plan.cut

    def start(self) -> None:
        """Begin to dial."""
        with self._lock:
            self._dial_more()

    def close(self) -> None:
        """Stop dialling at once."""
        with self._lock:
            self._plan.close()
            # Threads that connect or read wake up at once. The sockets are shut down here, not closed: the
            # dialling thread still uses the descriptor, which must not come to mean another file meanwhile.
            for sock in itertools.chain(*self._sockets.values()):
                hang_up(sock)
            self._changed.notify_all()

    def join(self, seconds: float) -> None:
        """Wait, after `close`, until all dialling threads have ended, for at most this many seconds."""
        deadline = time.monotonic() + seconds
        with self._lock:
            threads = list(self._threads)
        for thread in threads:
            thread.join(max(deadline - time.monotonic(), 0.0))

    # A session of the past may still report events that were under way when it ended. So each of these methods
    # compares it with the present one, with the lock held, under which sessions change.

    def control_lost(self, session: Session) -> None:
        """Note that this session is over, and dial for the next one."""
        with self._lock:
            if session is self.session:
                self._lost = not self._plan.is_leaving()
                self.session = None
                self._plan.session_over()
                self._dial_more(hurry=True)

    def control_cut(self, session: Session) -> None:
        """Dial for this session's control connection, which is broken and has to be resumed."""
        with self._lock:
            if session is self.session:
                self._plan.control_cut()
                self._dial_more(hurry=True)

    def lane_cut(self, session: Session, lane: int, slot: int) -> None:
        """Dial for a lane's connection, which is broken and has to be resumed."""
        with self._lock:
            if session is self.session:
                self._dial_more(hurry=self._plan.lane_cut(lane, slot))

    def lane_gone(self, session: Session, lane: int, slot: int, *, failed: bool) -> None:
        """Note that a lane has ended; with ``failed``, before it did anything, so another may do no better."""
        with self._lock:
            if session is self.session:
                self._plan.lane_gone(lane, slot, failed=failed)
                self._dial_more()

    def leave(self, session: Session) -> None:
        """Dial no more lanes in this session, which will be over once its present lanes have ended."""
        with self._lock:
            if session is self.session:
                self._plan.leave()

    # -- the dialling threads ----------------------------------------------------------------------------

    def _dial_more(self, *, hurry: bool = False) -> None:
        """Start threads for the connections to dial now, and with ``hurry`` end all pauses. The lock is held."""
        if hurry:
            self._changed.notify_all()
        while not self._plan.closed:
            # A link's first thread needs no permit. So each server is dialled however many threads the others use,
            # and a farm of many servers cannot starve one of them.
            spare = bool(self._threads)
            if spare and not self._settings.more_diallers.acquire(blocking=False):
                return  # a thread that dials already will take this attempt next
            found = self._plan.next()
            if found is None or not self._start_dialling(found, spare=spare):
                if spare:
                    self._settings.more_diallers.release()
                return

    def _start_dialling(self, found: tuple[Attempt, float], *, spare: bool) -> bool:
        thread = threading.Thread(target=self._dial, args=(*found, spare), name="farm-dialler", daemon=True)
        self._threads.add(thread)  # before it runs: `_dial_more` decides by this set whether the next one is spare
        try:
            thread.start()
        except RuntimeError as error:
            self._threads.discard(thread)
            self._plan.drop(found[0])
            # No thread is left to try again: the program is ending, and nothing can be dialled any more.
            if not self._threads:
                self._listener.refused(self, BrokenFarmError(f"a lost worker cannot be replaced: {error}"))
            return False
        return True

    def _dial(self, attempt: Attempt, pause: float, spare: bool) -> None:
        """Dial for one connection after another, until there is nothing left to dial."""
        while True:
            self._pause(pause)
            self._persist(attempt)
            # In one hold: between finding nothing and leaving the set, `_dial_more` could count on this thread.
            with self._lock:
                self._plan.drop(attempt)
                found = self._plan.next()
                if found is None:
                    self._threads.discard(threading.current_thread())
                    break
            attempt, pause = found
        if spare:
            self._settings.more_diallers.release()

    def _persist(self, attempt: Attempt) -> None:
        """Make an attempt again and again until it succeeds or is no longer wanted."""
        while self._is_wanted(attempt):
            try:
                self._make(attempt)
            except Exception as error:
                # Networks and servers recover by themselves; anything else, such as a wrong key, has to be mended.
                final = not isinstance(error, (OSError, EOFError, RemoteProtocolError))
                verdict = self._note_failure(attempt, error, final=final)
                if self._is_hopeless(attempt, error):
                    error = BrokenFarmError(f"the embedded farm has no worker: {error}")
                    final = True
                if final and not self._plan.closed:
                    self._listener.refused(self, error)
                if verdict.over:
                    # By now there may be a later session, which this verdict is not about.
                    session = self.session
                    if session is not None and session.id == attempt.session:
                        session.gone(verdict.over)
                    return
                self._pause(verdict.pause)
            else:
                with self._lock:
                    self._silence.since = None
                return

    def _is_wanted(self, attempt: Attempt) -> bool:
        with self._lock:
            return self._plan.is_wanted(attempt)

    def _note_failure(self, attempt: Attempt, error: Exception, *, final: bool) -> Verdict:
        # `RefusedError` is the server's own word, while a plain ConnectionRefusedError is the operating system's:
        # no process listens there.
        unknown = isinstance(error, RefusedError) and error.code == "session"
        refused = isinstance(error, ConnectionRefusedError) and not isinstance(error, RefusedError)
        now = time.monotonic()
        with self._lock:
            if self._plan.closed:
                return Verdict(0.0)
            verdict = self._plan.failed(attempt, now, refused=refused, unknown=unknown, final=final)
            # The control connection is up, so the server that opened the session still knows it.
            if unknown and attempt.kind in (Kind.LANE, Kind.RESUME_LANE) and not self._plan.cut:
                self.last_error = ANOTHER_SERVER
            else:
                self.last_error = explained(error, self.address)
            silence = self._silence
            if silence.since is None:
                silence.since = silence.next_report = now
            silent = now - silence.since
            not_yet = isinstance(error, RefusedError) and silent < NOT_YET_SECONDS
            if now < silence.next_report or not_yet or verdict.over or final:
                return verdict
            silence.next_report = now + REPORT_EVERY
        # Often the only thing that a user sees of a waiting program, so it names the package.
        logger.warning(
            "farm_executor: still dialling server=%s seconds=%.0f error=%s", self, silent, self.last_error
        )
        return verdict

    def _is_hopeless(self, attempt: Attempt, error: Exception) -> bool:
        """Return whether this machine has lacked processes or files for so long that waiting is hopeless."""
        # With a single worker the farm makes progress, and the shortage may pass: then it is not hopeless.
        with self._lock:
            if not self.is_embedded or self._plan.has_lanes or self._plan.failures(attempt) < MAX_SHORTAGES:
                return False
        if isinstance(error, RefusedError):
            return error.code == "fork"
        return isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)

    def _pause(self, longest: float) -> None:
        # A random part of it, so that the threads of many clients do not all come back to a server at once.
        if longest:
            with self._lock:
                if not self._plan.closed:
                    self._changed.wait(longest * self._random.uniform(0.5, 1.0))

    def _make(self, attempt: Attempt) -> None:
        """Open the wanted connection and hand it on."""
        if attempt.kind is Kind.OPEN:
            self._open_session()
        elif attempt.kind is Kind.RESUME:
            self._resume_session(attempt)
        elif attempt.kind is Kind.LANE:
            self._open_lane(attempt)
        else:
            self._resume_lane(attempt)

    def _open_session(self) -> None:
        self.address, self._lost = self._locate(self._lost), False
        limit = self._settings.max_memory_per_worker
        connection, hello = self._connect(
            ControlHello(
                versions=local_versions(),
                allow_version_mismatch=self._settings.allow_version_mismatch,
                client=f"pid {os.getpid()}",
                heartbeat=min(self._settings.heartbeat, MAX_SECONDS),
                resume_seconds=min(self._settings.resume_seconds, MAX_SECONDS),
                max_memory=None if limit is None else min(limit, MAX_COUNT),
                features=self._features,
                label=self._settings.label,
                **whose(),
            ),
            Welcome,
        )
        slots = hello.slots
        mismatches = local_versions().mismatches(hello.versions)
        # The server refuses these two unless `allow_version_mismatch` is set, so the user has accepted them.
        if {"python", "protocol"} & mismatches.keys():
            text = f"server {self}: its versions differ from the client's: {describe_mismatches(mismatches)}"
            warnings.warn(text + "; calls may fail or crash their workers", RuntimeWarning, stacklevel=1)
        elif mismatches:
            logger.info("versions differ server=%s mismatches=%s", self, describe_mismatches(mismatches))
        lanes = min(slots, MAX_LANES if self._quota is None else self._quota)
        if lanes < slots and self._quota is None:
            logger.warning("server offers too many workers server=%s slots=%d used=%d", self, slots, lanes)
        features = shared(self._features, hello.features)
        # A unix socket's other end is here, or behind a tunnel: then dialling shows that there can be no ring.
        place = beside(hello.beside) if hello.beside else self.address if self.address.path else None
        dial_ring = partial(self._dial_ring, place) if place and RINGS in features else None
        # Nothing stands in between if both ends see the same two. Else whoever has put it there wants to be passed.
        direct = BESIDE in features and hello.ends and hello.ends == connection.ends
        self._beside = beside(hello.beside) if direct and hello.beside else None
        version = hello.versions.farm_executor
        terms = Terms(hello.session, lanes, hello.resume_seconds > 0, features, version, connection.peer, dial_ring)
        session = self._listener.open_session(self, terms)
        with self._lock:
            if self._plan.closed:
                connection.close()
                return
            self._plan.opened(session.id, lanes)
            self.session = session
        # `connected` comes after `self.session` is set: a handler that finds this connection broken calls
        # `control_cut`, which ignores every other session.
        logger.info("session opened server=%s lanes=%d", self, lanes)
        session.connected(connection, first=True)
        with self._lock:
            self._dial_more()

    def _open_lane(self, attempt: Attempt) -> None:
        # A fresh number for each attempt: one that failed half-way may have left a worker behind under its number.
        lane = next(_lane_ids)
        hello = LaneHello(attempt.session, lane, attempt.slot)
        place = self._beside
        try:
            connection, answer = self._connect(hello, WorkerHello, via=self._peer(), place=place)
        except (OSError, EOFError, AuthenticationError) as error:
            if place is None or isinstance(error, RefusedError):
                raise
            logger.debug("lanes go by TCP server=%s reason=%s", self, error)
            self._beside = None  # another user's, or in another container
            self._open_lane(attempt)
            return
        # Dialling takes its time, without the lock. Meanwhile the session may have ended, so look again.
        with self._lock:
            session = self.session
            if session is None or not self._plan.is_wanted(attempt):
                connection.close()
                return
            self._plan.lane_up(attempt.slot)
        session.lane_up(connection, attempt.slot, lane, answer.pid)

    def _resume_session(self, attempt: Attempt) -> None:
        hello = ControlHello(local_versions(), resume=attempt.session)
        connection, _ = self._connect(hello, Welcome, self._patience(attempt), via=self._peer())
        with self._lock:
            session = self.session
            if session is None or not self._plan.is_wanted(attempt):
                connection.close()
                return
            self._plan.resumed()
        logger.info("session resumed server=%s", self)
        session.connected(connection, first=False)
        with self._lock:
            self._dial_more()

    def _resume_lane(self, attempt: Attempt) -> None:
        hello = LaneHello(attempt.session, attempt.lane, resume=True)
        try:
            connection, _ = self._connect(hello, WorkerHello, self._patience(attempt), via=self._peer())
        except RefusedError as error:
            if error.code != "worker":
                raise
            # The server knows the session but not the worker, which has died. For the plan, this settles an attempt
            # as a success does.
            with self._lock:
                session = self.session
                self._plan.lane_resumed(attempt.lane)
            if session is not None:
                session.worker_gone(attempt.lane)
            return
        with self._lock:
            session = self.session
            if session is None or not self._plan.is_wanted(attempt):
                connection.close()
                return
            self._plan.lane_resumed(attempt.lane)
        session.lane_resumed(connection, attempt.lane)

    def _dial_ring(self, address: Address, hello: LaneHello, dialling: Callable[[Socket], None]) -> Connection:
        """Dial for a lane's ring, in a thread of the caller's; see `dialling.connect`."""
        assert self.address is not None
        key = self._settings.find_key(self.address)
        return connect(address, key, to_json(hello), CONNECT_SECONDS, dialling)[0]

    def _peer(self) -> Any:
        """Return the address at which the session's first connection was answered."""
        session = self.session
        return None if session is None else session.peer

    def _patience(self, attempt: Attempt) -> float:
        """Return the seconds that an attempt to resume may take, longer after each failure."""
        with self._lock:
            failures = self._plan.failures(attempt)
        return min(FIRST_RESUME_SECONDS * (1 + failures / 2), CONNECT_SECONDS)

    def _connect(
        self,
        hello: ClientHello,
        kind: type[_Answer],
        timeout: float = CONNECT_SECONDS,
        via: Any = None,
        place: Address | None = None,
    ) -> tuple[Connection, _Answer]:
        """Dial, and decode the server's answer as a message of that kind; at ``place`` if not the usual address."""
        assert self.address is not None
        key = self._settings.find_key(self.address)
        answers: list[bool] = []
        try:
            connection, answer = connect(
                *(place or self.address, key, to_json(hello), timeout, self._note_dialling),
                answered=lambda: answers.append(True),
                heartbeat=self._settings.heartbeat,
                via=via,
            )
        except (AuthenticationError, VersionMismatchError) as error:
            if place is not None:
                raise
            # Before the handshake proves the key, any peer can send a refusal. Such errors become one that is just
            # tried again, until there have been enough of them; or always, once a server has proven the key.
            error.args = (f"server {self.address}: {error.args[0]}", *error.args[1:])
            if not answers or isinstance(error, AuthenticationError):
                self._refusals += 1
                if self._settings.proven or self._refusals < CLEAR_REFUSALS:
                    raise RefusedError("clear", str(error)) from None
            raise
        else:
            self._settings.proven, self._refusals = True, 0
            # If the answer cannot be decoded, the connection must not stay open.
            with contextlib.ExitStack() as undo:
                undo.callback(connection.close)
                message = from_json(kind, answer)
                undo.pop_all()
            return connection, message
        finally:
            with self._lock:
                self._sockets.pop(threading.get_ident(), None)

    def _note_dialling(self, sock: Socket) -> None:
        # In one hold: either `close` finds the socket and hangs it up, or this finds that the farm is closing.
        with self._lock:
            self._sockets.setdefault(threading.get_ident(), []).append(sock)
            if self._plan.closed:
                raise ConnectionAbortedError("the farm is closing")
