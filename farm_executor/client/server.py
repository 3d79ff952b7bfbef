"""The client's end of one server: dial it, dial it again, keep as many lanes open as it is worth.

This module owns when to dial, how long to wait in between, and whether an error is final. It must not know tasks.
A thread exists only while there is something to dial; what comes of it is told to the `Listener`, from that thread.

A connection that fails is dialled again for ever, after 0.05 s at first and 5 s at most. Only a refusal that no
waiting can mend is final: a wrong key, versions that do not fit.
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
from dataclasses import dataclass, field
from typing import Any, Protocol

from farm_executor.address import Address
from farm_executor.core.handshake import Role, Versions, describe_mismatches
from farm_executor.errors import AuthenticationError, BrokenFarmError, RemoteProtocolError, VersionMismatchError
from farm_executor.payload import local_versions
from farm_executor.transport import Connection, Socket, connect, hang_up

__all__ = ["Listener", "ServerLink", "Settings"]

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 10.0  # for one connection, until the server's hello
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 5.0
NOT_YET_SECONDS = (
    1.0  # for which a server may say "not now" without a word: it is normal while a worker is replaced
)
REPORT_EVERY = 30.0  # seconds between two log lines about the same silence

_lane_ids = itertools.count(1)


@dataclass(frozen=True)
class Settings:
    """What all links of one farm share."""

    find_key: Callable[[Address], bytes] = field(repr=False)  # it holds the key
    allow_version_mismatch: bool = False


class Listener(Protocol):
    """Who wants to know. Every method is called in the link's thread."""

    def control_up(self, link: ServerLink, connection: Connection, session: str, lanes: int) -> None:
        """The server has opened a session, in which there will be that many lanes."""

    def lane_up(
        self, link: ServerLink, connection: Connection, session: str, slot: int, lane: int, pid: int
    ) -> None:
        """The server has started a worker for us."""

    def refused(self, link: ServerLink, error: Exception) -> None:
        """The server does not want us, or cannot be started, and it is no use to try again."""


class ServerLink:
    """The way to one server.

    Args:
        locate: Gives the server's address, or starts the server: asked before each new session. May raise OSError.
        quota: The most lanes to open; None for as many as the server has slots.
        settings: See there.
        listener: See there.

    Thread safety: all methods may be called from any thread.
    """

    def __init__(
        self, locate: Callable[[], Address], quota: int | None, settings: Settings, listener: Listener
    ) -> None:
        self._locate = locate
        self._quota = quota
        self._settings = settings
        self._listener = listener
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._thread: threading.Thread | None = None
        self._dialling: Socket | None = None
        self._closed = False
        self._missing: set[int] = set()
        self._failures = 0
        self._random = random.Random()  # its own: the program's global state is not ours to advance
        self.address: Address | None = None
        self.session = ""
        self.last_error = ""

    def __str__(self) -> str:
        return str(self.address) if self.address else "a server not yet started"

    @property
    def up(self) -> bool:
        """Whether there is a session."""
        return bool(self.session)

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

    def control_lost(self, session: str) -> None:
        """The control connection of this session is gone, and the session with it."""
        with self._lock:
            if session == self.session:
                self.session = ""
                self._missing = set()
                self._ensure_thread()

    def lane_gone(self, session: str, slot: int, *, failed: bool) -> None:
        """A lane has ended; with ``failed`` before it did anything, so that another may do no better."""
        with self._lock:
            if session == self.session:
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
                self._listener.refused(self, BrokenFarmError(f"a lost worker cannot be replaced: {error}"))
            else:
                self._thread = thread

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
                self.last_error = f"{type(error).__name__}: {error}"
                now = time.monotonic()
                refused = isinstance(error, ConnectionRefusedError) and error.errno is None  # by the server itself
                not_yet = refused and now - silent_since < NOT_YET_SECONDS
                if now >= next_report and not not_yet and not self._closed:
                    next_report = now + REPORT_EVERY
                    logger.warning(
                        "still dialling server=%s seconds=%.0f error=%s", self, now - silent_since, self.last_error
                    )
                self._failures += 1
                self._pause()
            except Exception as error:  # a refusal, or a server that cannot be started: no waiting mends it
                with self._lock:
                    self._thread = None
                    if self._closed:
                        return
                self._listener.refused(self, error)
                return

    def _pause(self) -> None:
        longest = min(FIRST_PAUSE * 2 ** min(self._failures - 1, 10), LONGEST_PAUSE)
        with self._lock:
            if not self._closed:
                self._changed.wait(longest * self._random.uniform(0.5, 1.0))

    def _dial_next(self) -> bool:
        """Open the one connection that is needed most; say whether there may be another."""
        with self._lock:
            session = self.session
            if self._closed or (session and not self._missing):
                self._thread = None
                return False
            slot = min(self._missing) if session else None
        if slot is None:
            self._open_session()
        else:
            self._open_lane(session, slot)
        return True

    def _open_session(self) -> None:
        self.address = self._locate()
        connection, hello = self._connect(
            {
                "role": Role.CONTROL.value,
                "versions": vars(local_versions()),
                "allow_version_mismatch": self._settings.allow_version_mismatch,
                "client": f"pid {os.getpid()}",
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
        with self._lock:
            if self._closed:
                connection.close()
                return
            self.session = session
            self._missing = set(range(lanes))
            self._failures = 0
        logger.info("session opened server=%s lanes=%d", self, lanes)
        self._listener.control_up(self, connection, session, lanes)

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
        self._listener.lane_up(self, connection, session, slot, lane, pid if isinstance(pid, int) else 0)

    def _connect(self, hello: dict[str, Any]) -> tuple[Connection, dict[str, Any]]:
        assert self.address is not None
        key = self._settings.find_key(self.address)
        try:
            return connect(self.address, key, hello, CONNECT_SECONDS, self._note_dialling)
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
