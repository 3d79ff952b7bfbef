"""State of multiprocessing that the workers of an embedded farm share with the program, as its own children would.

This module owns what the program's side of multiprocessing hands down; the workers of a background server only get
the managers' authkey. It must not know how the server is started, nor what a worker does with the state, which is
in `server.childhood`. It never imports multiprocessing into a program that has not done so itself.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from typing import Any

__all__ = ["Kinship", "authkey"]


def authkey() -> str | None:
    """Return the authkey of multiprocessing's managers, so that their proxies work in tasks; None if unused."""
    multiprocessing = sys.modules.get("multiprocessing.process")
    return None if multiprocessing is None else bytes(multiprocessing.current_process().authkey).hex()


class Kinship:
    """The state to hand down, collected when a server is about to be started.

    The program and its workers must share one resource tracker, which destroys leftover shared memory when all of
    its users are gone. It is the program's own where the program may have one, as for a child that multiprocessing
    spawns. For a program that has not used any of this so far, the server stands ready to start a tracker for its
    workers; that tracker ends with the farm, or with the program if it has come to share memory by then.

    Attributes:
        words: Configuration for the server, ready for JSON.
        descriptors: File descriptors for the server, to be inherited under the same numbers.
    """

    def __init__(self) -> None:
        multiprocessing = sys.modules.get("multiprocessing.process")
        context = sys.modules.get("multiprocessing.context")
        parent: dict[str, Any] = {"pid": os.getpid(), "authkey": authkey()}
        if multiprocessing is not None:
            process = multiprocessing.current_process()
            parent |= {"name": process.name, "identity": process._identity}
        if context is not None:
            parent["start_method"] = context._default_context.get_start_method(allow_none=True)
        self._ours: list[int] = []  # descriptors to be closed
        tracker = _tracker()
        requests = None
        if tracker is None:
            requests, tracker = map(_beyond_standard, os.pipe())
            self._ours = [requests, tracker]
        parent["tracker"] = tracker
        self.words: dict[str, Any] = {"parent": parent, "requests": requests}
        self.descriptors = [tracker] if requests is None else [requests, tracker]

    def started(self) -> None:
        """Keep only the descriptor that keeps the tracker alive, now that the server has its own."""
        if self._ours:
            os.close(self._ours.pop(0))

    def end(self, *, farm_only: bool = True) -> None:
        """Release the tracker after the farm's end or failed start; with ``farm_only``, the program goes on."""
        if farm_only and len(self._ours) == 1 and "multiprocessing.resource_tracker" in sys.modules:
            return  # the program may still use shared memory that tasks have created
        for descriptor in self._ours:
            with contextlib.suppress(OSError):
                os.close(descriptor)
        self._ours = []


def _beyond_standard(descriptor: int) -> int:
    """Move a descriptor above 2: without standard streams, it may have a number that a child needs for them."""
    import fcntl  # late: not on Windows

    if descriptor > 2:
        return descriptor
    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3)
    os.close(descriptor)
    return moved


def _tracker() -> int | None:
    """Return the descriptor of the program's tracker, started if need be; None if the program has no use for it."""
    module = sys.modules.get("multiprocessing.resource_tracker")
    if module is None:
        return None
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    try:
        descriptor = int(module.getfd())
        return descriptor if descriptor > 2 else None
    except Exception:  # for instance, another thread is importing the module right now
        return None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)  # before Python 3.14, getfd unblocks signals
