"""Looks for the servers that one address stands for, again and again.

This module owns when it is looked for them. It must not know how, nor what is done with those that are found.

A server that is still there, although the name does not list it any more, is left alone: name services lag behind,
and may list only some of the addresses.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Protocol

from farm_executor.errors import FarmError
from farm_executor.wire.address import Address

__all__ = ["Discovery", "Locate", "Lookout"]

logger = logging.getLogger(__name__)

RESOLVE_SECONDS = 30.0  # between look-ups
RETRY_SECONDS = 2.0  # after one that has failed
FIRST_REPORT = 5.0  # seconds of waiting until that is worth a line in the log
REPORT_EVERY = 30.0  # seconds between two log lines about the same wait


Locate = Callable[[bool], Address]
"""Returns a server's address, after starting it if need be; with True, because it was lost."""


class Lookout(Protocol):
    """Where the servers of an address are looked for."""

    def look(self) -> list[tuple[Address, Locate]]:
        """Return the servers that there are now.

        Raises:
            OSError: None can be found now; worth trying again.
        """

    def watch(self, changed: Callable[[], None]) -> None:
        """Have a function called, in any thread, whenever it is worth looking again at once."""


class Discovery:
    """The look-ups of one address, in a thread of their own: they may block for a long time.

    Args:
        name: An address with ``every``.
        lookout: Where they are looked for.
        found: Called after each look-up, in that thread, with these servers.
        failed: Called in that thread with an error that waiting does not mend; it is not looked for any more.

    Thread safety: all methods may be called from any thread.
    """

    def __init__(
        self,
        name: Address,
        lookout: Lookout,
        found: Callable[[list[tuple[Address, Locate]]], None],
        failed: Callable[[FarmError], None],
    ) -> None:
        self._name = name
        self._lookout = lookout
        self._found = found
        self._failed = failed
        self._next_report = time.monotonic() + FIRST_REPORT
        self._closed = False
        self._news = threading.Event()  # also set to end the thread
        self._thread = threading.Thread(target=self._run, name="farm-discovery", daemon=True)
        self.last_error = ""

    def __str__(self) -> str:
        return str(self._name)

    def start(self) -> None:
        """Start looking up the name.

        Raises:
            RuntimeError: No thread can be started any more.
        """
        self._lookout.watch(self._news.set)
        self._thread.start()

    def look_again(self) -> None:
        """Look at once: a server that was there has gone."""
        self._news.set()

    def close(self) -> None:
        """Stop looking up the name."""
        self._closed = True
        self._news.set()

    def join(self, seconds: float) -> None:
        """After `close`: wait for the thread to end, at most that many seconds."""
        # A thread that was never started cannot be joined.
        if self._thread.ident is not None:
            self._thread.join(seconds)

    def _run(self) -> None:
        while True:
            self._news.clear()  # before looking: what changes meanwhile is worth another look
            if self._closed:
                return
            # Nothing that is looked for may end the farm while others work, so the owner decides what it means.
            try:
                found = self._look()
            except FarmError as error:
                self.last_error = str(error)
                self._failed(error)
                return
            self._news.wait(RESOLVE_SECONDS if found else RETRY_SECONDS)

    def _report(self, error: Exception) -> None:
        # Warn once, not at each attempt, until the name is found again; but again and again of what is to be
        # granted, since nothing else tells the user what the program waits for.
        if self._name.grant is None:
            if not self.last_error:
                logger.warning("name not found name=%s error=%s", self._name, error)
        elif self._next_report <= time.monotonic():
            self._next_report = time.monotonic() + REPORT_EVERY
            logger.warning("farm_executor: waiting for servers of=%s reason=%s", self._name, error)

    def _look(self) -> bool:
        try:
            servers = self._lookout.look()
        except (OSError, UnicodeError) as error:
            self._report(error)
            self.last_error = f"{type(error).__name__}: {error}"
            return False
        self.last_error = ""
        # The lookup may have taken seconds, in which the farm may have ended: its engine must not be given servers
        # that nobody will let go of.
        if not self._closed:
            self._found(servers)
        return True
