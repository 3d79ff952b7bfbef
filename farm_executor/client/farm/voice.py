"""The thread in which the program is told what its tasks say while they run.

This module owns that thread, and whether it is stuck. It must not know what is told.

Writing to standard output may block for as long as its reader likes, and a handler of log records, or a callback,
may do anything. Neither may keep results from coming, so none of it happens in the farm's own thread, nor in that
of a caller who leads. The thread exists only once there is something to tell. If none can be started, as when the
program ends, those who put something do it themselves.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

__all__ = ["Voice"]

logger = logging.getLogger(__name__)

STUCK_SECONDS = 0.5  # for one deed, after which nobody waits for the thread
COMPLAIN_EVERY = 60.0  # seconds between two log lines about deeds that raise


class Voice:
    """The thread; see the module.

    Args:
        rest: Called in the thread whenever nothing is left to do, with whether that is for the last time. Returns
            for how many seconds the thread may sleep before it is to be called again; None for any number.

    Thread safety: `put`, `is_stuck` and `close` may be called from any thread.
    """

    def __init__(self, rest: Callable[[bool], float | None]) -> None:
        self._rest = rest
        self._deeds: deque[Callable[[], object]] = deque()
        self._changed = threading.Condition(threading.Lock())
        self._thread: threading.Thread | None = None
        self._closed = False
        self._alone = (
            False  # whether there is no thread, as the program ends: then deeds are done where they are put
        )
        self._since: float | None = None  # when the present deed has begun
        self._complained = -COMPLAIN_EVERY

    @property
    def is_stuck(self) -> bool:
        """Whether the thread has been busy with one deed for long."""
        since = self._since
        return since is not None and time.monotonic() - since > STUCK_SECONDS

    def put(self, deed: Callable[[], object]) -> None:
        """Have something done after all that was put before."""
        with self._changed:
            if self._closed:
                return
            self._deeds.append(deed)
            # Not tried again: where it failed for want of memory, a thread that came later would disturb the order.
            if self._thread is None and not self._alone:
                self._thread = threading.Thread(target=self._run, name="farm-voice", daemon=True)
                # Within the lock: two threads must not both find that there is none.
                try:
                    self._thread.start()
                except RuntimeError:
                    self._thread, self._alone = None, True
            self._changed.notify()
        # Nothing of the program's is kept waiting by that but its end.
        while self._alone and self._deeds:
            self._do(self._deeds.popleft())
            self._do(partial(self._rest, False))

    def close(self, seconds: float) -> int:
        """End the thread once all has been told, waiting for it at most that long; return how much is left."""
        with self._changed:
            self._closed = True
            self._changed.notify()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(seconds)
        elif self._alone:
            self._do(partial(self._rest, True))
        return len(self._deeds)

    def _run(self) -> None:
        _leave_cell()
        while True:
            while self._deeds:
                self._since = time.monotonic()
                self._do(self._deeds.popleft())
            self._since = time.monotonic()
            # Read before the rest, which must see it once more after the last deed.
            closing = self._closed
            pause = self._do(partial(self._rest, closing))
            self._since = None
            with self._changed:
                # A deed that was put since the loop above has woken nobody: this thread was not asleep.
                if self._deeds:
                    continue
                if closing:
                    return
                if self._closed:
                    continue
                self._changed.wait(pause)

    def _do(self, deed: Callable[[], Any]) -> Any:
        try:
            return deed()
        except BaseException as error:  # a callback of the user's, which may even try to exit
            if time.monotonic() - self._complained >= COMPLAIN_EVERY:
                self._complained = time.monotonic()
                logger.warning("output not taken error=%r", error, exc_info=error)
            return None


def _leave_cell() -> None:
    """Let what this thread prints appear under the notebook's present cell, not under the one that started it."""
    # ipykernel 6.29 to 7.0 ties threads to cells, in these tables.
    for stream in (sys.stdout, sys.stderr):
        for name in ("_thread_to_parent", "_thread_to_parent_header"):
            table = getattr(stream, name, None)
            if isinstance(table, dict):
                table.pop(threading.get_ident(), None)
