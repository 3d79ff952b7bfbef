"""Looks for the servers that one address stands for, again and again.

This module owns when it is looked for them. It must not know how, nor what is done with those that are found.

A server that is still there, although the name does not list it any more, is left alone: name services lag behind,
and may list only some of the addresses.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from farm_executor.wire.address import Address

__all__ = ["Discovery", "Locate", "Look"]

logger = logging.getLogger(__name__)

RESOLVE_SECONDS = 30.0  # between look-ups
RETRY_SECONDS = 2.0  # after one that has failed


Locate = Callable[[bool], Address]
"""Returns a server's address, after starting it if need be; with True, because it was lost."""

Look = Callable[[], list[tuple[Address, Locate]]]


class Discovery:
    """The look-ups of one address, in a thread of their own: they may block for a long time.

    Args:
        name: An address with ``every``.
        look: Returns the servers that it stands for now; may raise OSError.
        found: Called after each look-up, in that thread, with these servers.

    Thread safety: all methods may be called from any thread.
    """

    def __init__(self, name: Address, look: Look, found: Callable[[list[tuple[Address, Locate]]], None]) -> None:
        self._name = name
        self._look_for = look
        self._found = found
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="farm-discovery", daemon=True)
        self.last_error = ""

    def __str__(self) -> str:
        return str(self._name)

    def start(self) -> None:
        """Start looking up the name.

        Raises:
            RuntimeError: No thread can be started any more.
        """
        self._thread.start()

    def close(self) -> None:
        """Stop looking up the name."""
        self._closed.set()

    def join(self, seconds: float) -> None:
        """After `close`: wait for the thread to end, at most that many seconds."""
        # A thread that was never started cannot be joined.
        if self._thread.ident is not None:
            self._thread.join(seconds)

    def _run(self) -> None:
        while not self._closed.is_set():
            self._closed.wait(RESOLVE_SECONDS if self._look() else RETRY_SECONDS)

    def _look(self) -> bool:
        try:
            servers = self._look_for()
        except (OSError, UnicodeError) as error:
            # Warn once, not at each attempt, until the name is found again.
            if not self.last_error:
                logger.warning("name not found name=%s error=%s", self._name, error)
            self.last_error = f"{type(error).__name__}: {error}"
            return False
        self.last_error = ""
        # The lookup may have taken seconds, in which the farm may have ended: its engine must not be given servers
        # that nobody will let go of.
        if not self._closed.is_set():
            self._found(servers)
        return True
