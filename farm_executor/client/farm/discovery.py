"""The machines that one name stands for, now and as they change.

This module owns when a name is looked up, and what has come and gone since. It must not know what is done about it.
A server that is gone from the name but there is left alone: names are slow, and may show a part only.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from farm_executor.wire.address import Address
from farm_executor.wire.sockets import resolve

__all__ = ["Discovery"]

logger = logging.getLogger(__name__)

RESOLVE_SECONDS = 30.0  # between looks
RETRY_SECONDS = 2.0  # after one that came to nothing


class Discovery:
    """See the module.

    Args:
        name: An address with ``every``.
        found: Told, in a thread of this object's, for each look the addresses that the name stands for.

    Thread safety: all methods may be called from any thread.
    """

    def __init__(self, name: Address, found: Callable[[list[Address]], None]) -> None:
        self._name = name
        self._found = found
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="farm-discovery", daemon=True)
        self.last_error = ""

    def __str__(self) -> str:
        return str(self._name)

    def start(self) -> None:
        """Begin to look.

        Raises:
            RuntimeError: No thread can be started any more.
        """
        self._thread.start()

    def close(self) -> None:
        """Look no more."""
        self._closed.set()

    def join(self, seconds: float) -> None:
        """After `close`: wait until nothing of it runs any more, so long at most."""
        if self._thread.ident is not None:
            self._thread.join(seconds)

    def _run(self) -> None:
        while not self._closed.is_set():
            self._closed.wait(RESOLVE_SECONDS if self._look() else RETRY_SECONDS)

    def _look(self) -> bool:
        try:
            addresses = resolve(self._name)
        except (OSError, UnicodeError) as error:
            if not self.last_error:
                logger.warning("name not found name=%s error=%s", self._name, error)
            self.last_error = f"{type(error).__name__}: {error}"
            return False
        self.last_error = ""
        if not self._closed.is_set():
            self._found(addresses)
        return True
