"""The client's end of one server: dial it, dial it again, keep as many lanes open as it is worth.

This module owns when to dial, how long to wait in between, and whether an error is final. It must not know tasks.
A thread exists only while there is something to dial; what comes of it is told to its listeners, from that thread.

A connection that fails is dialled again for ever, after 0.05 s at first and 5 s at most. Only a refusal that no
waiting can mend is final: a wrong key, versions that do not fit.

What breaks within a session is resumed: the control connection first, then the lanes that have a worker. That a
session is over is decided by the server, which knows it no more, or by who listens, who has waited long enough.
"""

from __future__ import annotations

import itertools
import logging
import os
import random
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any, Protocol

from farm_executor.address import Address
from farm_executor.advice import explained
from farm_executor.core.handshake import Role, Versions, describe_mismatches
from farm_executor.errors import AuthenticationError, BrokenFarmError, RemoteProtocolError, VersionMismatchError
from farm_executor.security import Key
from farm_executor.transport import HEARTBEAT_SECONDS, Connection, RefusedError, Socket, connect, hang_up
from farm_executor.versions import local_versions

__all__ = ["LaneListener", "ServerLink", "SessionListener", "Settings", "at"]

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 10.0  # for one connection, until the server's hello
FIRST_RESUME_SECONDS = 2.0  # the same, when a network that swallows all must not cost more; then longer
RESUME_PAUSE = 0.5  # the longest between two attempts to resume
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 5.0
NOT_YET_SECONDS = (
    1.0  # for which a server may say "not now" without a word: it is normal while a worker is replaced
)
REPORT_EVERY = 30.0  # seconds between two log lines about the same silence

_lane_ids = itertools.count(1)


class Settings:
    """What all links of one farm share."""

    def __init__(
        self,
        find_key: Callable[[Address], Key],
        allow_version_mismatch: bool = False,
        heartbeat: float = HEARTBEAT_SECONDS,
        resume_seconds: float = 0.0,
        max_memory_per_worker: int | None = None,
    ) -> None:
        self.find_key = find_key
        self.allow_version_mismatch = allow_version_mismatch
        self.heartbeat = heartbeat
        self.resume_seconds = resume_seconds
        self.max_memory_per_worker = max_memory_per_worker  # bytes


def at(address: Address) -> Callable[[bool], Address]:
    """For `ServerLink`: where a server is that nobody here starts."""
    return lambda lost: address


class SessionListener(Protocol):
    """Who wants to know of sessions. Every method is called in the link's thread."""

    def control_up(self, link: ServerLink, connection: Connection, session: str, lanes: int) -> None:
        """The server has opened a session, in which there will be that many lanes."""

    def control_resumed(self, link: ServerLink, connection: Connection, session: str) -> None:
        """The session has a control connection again."""

    def session_gone(self, link: ServerLink, session: str) -> None:
        """The server knows the session no more, as it has been restarted or has waited for too long."""

    def refused(self, link: ServerLink, error: Exception) -> None:
        """The server does not want us, or cannot be started, and it is no use to try again."""


class LaneListener(Protocol):
    """Who wants to know of lanes. Every method is called in the link's thread."""

    def lane_up(
        self, link: ServerLink, connection: Connection, session: str, slot: int, lane: int, pid: int
    ) -> None:
        """The server has started a worker for us."""

    def lane_resumed(self, link: ServerLink, connection: Connection, session: str, lane: int) -> None:
        """The lane's worker lives, and has been given this connection."""

    def worker_gone(self, link: ServerLink, session: str, lane: int) -> None:
        """The lane's worker is gone, so that there is nothing to resume."""


class ServerLink:
    """The way to one server.

    Args:
        address: As it was given; None for a server that is still to be started.
        locate: Gives the server's address, or starts the server: asked before each new session, and told whether
            the last one was lost. May raise OSError.
        quota: The most lanes to open; None for as many as the server has slots.
        settings: See there.
        sessions: Told of what concerns the session.
        lanes: Told of what concerns its lanes.

    Thread safety: all methods may be called from any thread.
    """

    def __init__(
        self,
        address: Address | None,
        locate: Callable[[bool], Address],
        quota: int | None,
        settings: Settings,
        sessions: SessionListener,
        lanes: LaneListener,
    ) -> None:
        self._locate = locate
        self._quota = quota
        self._settings = settings
        self._sessions = sessions
        self._lanes = lanes
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._thread: threading.Thread | None = None
        self._latest: threading.Thread | None = None  # which may be about to end
        self._dialling: Socket | None = None
        self._closed = False
        self._missing: set[int] = set()
        self._cut = False  # the control connection is broken
        self._severed: dict[int, int] = {}  # the slots of lanes whose connections are, by lane
        self._leaving = False  # the session is to end when its lanes have
        self._lost = False  # the last session
        self._failures = 0
        self._random = random.Random()  # its own: the program's global state is not ours to advance
        self.address = address
        self.session = ""
        self.resumable = False
        self.last_error = ""

    def __str__(self) -> str:
        return str(self.address) if self.address else "a server not yet started"

    @property
    def up(self) -> bool:
        """Whether there is a session, and a way to the server."""
        return bool(self.session) and not self._cut

    def start(self) -> None:
        """Begin to dial."""
        with self._lock:
            self._ensure_thread()

    def close(self) -> None:
        """Stop dialling, at once."""
        with self._lock:
            self._closed = True
            self.session = ""
            if self._dialling is not None:
                hang_up(self._dialling)
            self._changed.notify_all()

    def join(self, seconds: float) -> None:
        """After `close`: wait until nothing of it runs any more, so long at most."""
        if self._latest is not None:
            self._latest.join(seconds)

    def control_lost(self, session: str) -> None:
        """This session is over."""
        with self._lock:
            if session == self.session:
                self.session = ""
                self._missing = set()
                self._severed = {}
                self._cut = False
                self._lost, self._leaving = not self._leaving, False
                self._hurry()

    def control_cut(self, session: str) -> None:
        """The control connection of this session is broken, and is to be resumed."""
        with self._lock:
            if session == self.session:
                self._cut = True
                self._hurry()

    def lane_cut(self, session: str, lane: int, slot: int) -> None:
        """A lane's connection is broken, and is to be resumed."""
        with self._lock:
            if session == self.session:
                self._severed[lane] = slot
                self._hurry()

    def leave(self, session: str) -> None:
        """Dial no more lanes in this session, which will be over when those that there are have ended."""
        with self._lock:
            if session == self.session:
                self._leaving = True
                self._missing = set()

    def _hurry(self) -> None:
        """Dial now, even if the next attempt was to come later."""
        self._failures = 0
        self._changed.notify_all()
        self._ensure_thread()

    def lane_gone(self, session: str, lane: int, slot: int, *, failed: bool) -> None:
        """A lane has ended; with ``failed`` before it did anything, so that another may do no better."""
        with self._lock:
            self._severed.pop(lane, None)
            if session == self.session and not self._leaving:
                self._missing.add(slot)
                self._failures = self._failures + 1 if failed else 0
                self._ensure_thread()

    # -- the dialling thread -----------------------------------------------------------------------------

    def _ensure_thread(self) -> None:
        if self._thread is None and not self._closed:
            thread = threading.Thread(target=self._dial, name="farm-dialler", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # the program is ending, and nothing can be dialled any more
                self._sessions.refused(self, BrokenFarmError(f"a lost worker cannot be replaced: {error}"))
            else:
                self._thread = self._latest = thread

    def _dial(self) -> None:
        silent_since = time.monotonic()
        next_report = silent_since
        if self._failures:
            self._pause()
        while True:
            try:
                if not self._dial_next():
                    return
                silent_since = time.monotonic()
                next_report = silent_since
            except (OSError, EOFError, RemoteProtocolError) as error:
                self.last_error = explained(error, self.address)
                now = time.monotonic()
                not_yet = isinstance(error, RefusedError) and now - silent_since < NOT_YET_SECONDS
                if now >= next_report and not not_yet and not self._closed:
                    next_report = now + REPORT_EVERY
                    # It is often all that a user sees of a program that waits, so it says who speaks.
                    logger.warning(
                        "farm_executor: still dialling server=%s seconds=%.0f error=%s",
                        self,
                        now - silent_since,
                        self.last_error,
                    )
                self._failures += 1
                self._pause()
            except Exception as error:  # a refusal, or a server that cannot be started: no waiting mends it
                with self._lock:
                    self._thread = None
                    if self._closed:
                        return
                self._sessions.refused(self, error)
                return

    def _pause(self) -> None:
        with self._lock:
            limit = RESUME_PAUSE if self._cut or self._severed else LONGEST_PAUSE
            longest = min(FIRST_PAUSE * 2 ** min(max(self._failures - 1, 0), 10), limit)
            if not self._closed:
                self._changed.wait(longest * self._random.uniform(0.5, 1.0))

    def _dial_next(self) -> bool:
        """Open the one connection that is needed most; say whether there may be another."""
        with self._lock:
            session, cut = self.session, self._cut
            lane = next(iter(self._severed), None)
            slot = min(self._missing, default=None)
            if self._closed or (session and not cut and lane is None and slot is None):
                self._thread = None
                return False
        try:
            if not session:
                self._open_session()
            elif cut:
                self._resume_session(session)
            elif lane is not None:
                self._resume_lane(session, lane)
            elif slot is not None:
                self._open_lane(session, slot)
        except RefusedError as error:
            if error.code != "session":
                raise
            self._sessions.session_gone(self, session)
            with self._lock:  # until that has been taken note of
                self._changed.wait_for(lambda: self._closed or self.session != session, CONNECT_SECONDS)
        return True

    def _open_session(self) -> None:
        self.address, self._lost = self._locate(self._lost), False
        limit = self._settings.max_memory_per_worker
        connection, hello = self._connect(
            {
                "role": Role.CONTROL.value,
                "versions": local_versions()._asdict(),
                "allow_version_mismatch": self._settings.allow_version_mismatch,
                "client": f"pid {os.getpid()}",
                "heartbeat": self._settings.heartbeat,
                "resume_seconds": self._settings.resume_seconds,
                **({} if limit is None else {"max_memory": limit}),
            }
        )
        session, slots = hello.get("session"), hello.get("slots")
        if not isinstance(session, str) or not isinstance(slots, int) or slots < 1:
            connection.close()
            raise RemoteProtocolError("malformed hello")
        mismatches = local_versions().mismatches(Versions.from_json(hello.get("versions")))
        if {"python", "protocol"} & mismatches.keys():  # else the server would have refused
            text = f"server {self}: its versions differ from the client's: {describe_mismatches(mismatches)}"
            warnings.warn(text + "; calls may fail or crash their workers", RuntimeWarning, stacklevel=1)
        elif mismatches:
            logger.info("versions differ server=%s mismatches=%s", self, describe_mismatches(mismatches))
        lanes = slots if self._quota is None else min(slots, self._quota)
        granted = hello.get("resume_seconds")
        with self._lock:
            if self._closed:
                connection.close()
                return
            self.session = session
            self.resumable = isinstance(granted, (int, float)) and granted > 0
            self._missing = set(range(lanes))
            self._failures = 0
        logger.info("session opened server=%s lanes=%d", self, lanes)
        self._sessions.control_up(self, connection, session, lanes)

    def _open_lane(self, session: str, slot: int) -> None:
        lane = next(_lane_ids)
        hello = {"role": Role.LANE.value, "session": session, "slot": slot, "lane": lane}
        connection, answer = self._connect(hello)
        pid = answer.get("pid")
        with self._lock:
            if self._closed or session != self.session:
                connection.close()
                return
            self._missing.discard(slot)
        self._lanes.lane_up(self, connection, session, slot, lane, pid if isinstance(pid, int) else 0)

    def _resume_session(self, session: str) -> None:
        hello = {"role": Role.CONTROL.value, "resume": session, "versions": local_versions()._asdict()}
        connection, _ = self._connect(hello, self._patience())
        with self._lock:
            if self._closed or session != self.session:
                connection.close()
                return
            self._cut = False
            self._failures = 0
        logger.info("session resumed server=%s", self)
        self._sessions.control_resumed(self, connection, session)

    def _resume_lane(self, session: str, lane: int) -> None:
        try:
            hello = {"role": Role.LANE.value, "session": session, "lane": lane, "resume": True}
            connection, _ = self._connect(hello, self._patience())
        except RefusedError as error:
            if error.code != "worker":
                raise
            with self._lock:
                self._severed.pop(lane, None)
            self._lanes.worker_gone(self, session, lane)
            return
        with self._lock:
            wanted = not self._closed and session == self.session and self._severed.pop(lane, None) is not None
            self._failures = 0
        if wanted:
            self._lanes.lane_resumed(self, connection, session, lane)
        else:
            connection.close()

    def _patience(self) -> float:
        """Seconds for an attempt to resume."""
        return min(FIRST_RESUME_SECONDS * (1 + self._failures / 2), CONNECT_SECONDS)

    def _connect(
        self, hello: dict[str, Any], timeout: float = CONNECT_SECONDS
    ) -> tuple[Connection, dict[str, Any]]:
        assert self.address is not None
        key = self._settings.find_key(self.address)
        heartbeat = self._settings.heartbeat
        try:
            return connect(self.address, key, hello, timeout, self._note_dialling, heartbeat=heartbeat)
        except (AuthenticationError, VersionMismatchError) as error:
            error.args = (f"server {self.address}: {error.args[0]}", *error.args[1:])
            raise
        finally:
            with self._lock:
                self._dialling = None

    def _note_dialling(self, sock: Socket) -> None:
        with self._lock:
            self._dialling = sock
            if self._closed:
                raise ConnectionAbortedError("the farm is closing")
