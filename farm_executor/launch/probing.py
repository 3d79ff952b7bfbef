"""Sees whether a server can be dialled, without waiting for that.

This module owns how long such an attempt may take. It must not know who asks, nor what follows.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from farm_executor.wire.sockets import dial_at_once

__all__ = ["PROBE_SECONDS", "probe"]

PROBE_SECONDS = 1.0  # for a server's port to answer, before it is left to the other ways


def probe(host: str, port: int, told: Callable[[str], None]) -> None:
    """Dial a server in another thread; call a function there with why it cannot be dialled, or with nothing."""

    def run() -> None:
        try:
            dial_at_once(host, port, PROBE_SECONDS).close()
        except OSError as error:
            told(str(error))
        else:
            told("")

    threading.Thread(target=run, name="farm-probe", daemon=True).start()
