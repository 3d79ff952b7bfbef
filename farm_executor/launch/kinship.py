"""What the workers of an embedded farm have in common with the program, as children of multiprocessing do.

This module owns what the program's side of multiprocessing tells and hands down; to a background server's workers
that is the secret of its managers alone. It must not know how the server is started, nor what a worker makes of it,
which is `server.childhood`'s. A program that has not imported multiprocessing does not come to import it for this.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from typing import Any

__all__ = ["Kinship", "authkey"]


def authkey() -> str | None:
    """The program's secret for multiprocessing's managers, so that their proxies work in tasks; None if unused."""
    multiprocessing = sys.modules.get("multiprocessing.process")
    return None if multiprocessing is None else bytes(multiprocessing.current_process().authkey).hex()


class Kinship:
    """Collected when a server is about to be started.

    Of resource trackers, which destroy what is left of shared memory when everybody is gone, all are to share one.
    That is the program's own where the program may have one, as for a child that multiprocessing spawns. For a
    program that has nothing to do with such things so far, the server is ready to start one for its workers; it
    ends with the farm, or with the program if that has come to share memory.

    Attributes:
        words: For the server, as JSON takes them.
        descriptors: For the server, under the same numbers.
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
        """The server has its descriptors: keep only the one that keeps its tracker alive."""
        if self._ours:
            os.close(self._ours.pop(0))

    def end(self, *, farm_only: bool = True) -> None:
        """The farm is over, or was never started; with ``farm_only`` the program goes on."""
        if farm_only and len(self._ours) == 1 and "multiprocessing.resource_tracker" in sys.modules:
            return  # what tasks have left may be in use here
        for descriptor in self._ours:
            with contextlib.suppress(OSError):
                os.close(descriptor)
        self._ours = []


def _beyond_standard(descriptor: int) -> int:
    """The descriptor, or another in its place: without standard streams it may have a number that a child needs."""
    import fcntl  # late: not on Windows

    if descriptor > 2:
        return descriptor
    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3)
    os.close(descriptor)
    return moved


def _tracker() -> int | None:
    """The descriptor of the program's tracker, which is started if the program may come to use it."""
    module = sys.modules.get("multiprocessing.resource_tracker")
    if module is None:
        return None
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    try:
        descriptor = int(module.getfd())
        return descriptor if descriptor > 2 else None
    except Exception:  # such as that another thread is importing it right now
        return None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)  # until Python 3.14 it leaves some unblocked
