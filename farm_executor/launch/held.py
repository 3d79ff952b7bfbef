"""A child process that lives as long as we hold its standard input open.

This module owns the child's end: by a call, by the end of this process, or by garbage collection of the object. It
must not know what the child does.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import time
import weakref
from collections.abc import Callable

__all__ = ["Held", "await_exit"]

END_SECONDS = 15.0  # more than the supervisor gives its workers


def await_exit(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Wait for a child that ends by itself, at most that many seconds.

    Raises:
        subprocess.TimeoutExpired: It has not ended.
    """
    deadline = time.monotonic() + seconds
    # Where the system can wait without polling every 50 ms, as `subprocess` does.
    if hasattr(os, "pidfd_open") and hasattr(select, "poll") and process.returncode is None:
        with contextlib.suppress(OSError):  # it has been waited for, or the system lacks pidfds
            descriptor = os.pidfd_open(process.pid)
            try:
                poll = select.poll()
                poll.register(descriptor, select.POLLIN)
                poll.poll(seconds * 1000)
            finally:
                os.close(descriptor)
    process.wait(max(deadline - time.monotonic(), 0.0))


class Held:
    """A held child process, with a directory that is removed after its end.

    Args:
        process: The child; its standard input is an unbuffered pipe.
        directory: The directory to remove after the child's end; empty if there is none.
        await_end: Waits for the child's end for at most that many seconds; may make it end sooner.
        ended: Called after the child's end.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        directory: str,
        await_end: Callable[[subprocess.Popen[bytes], float], None],
        ended: Callable[[], None] | None = None,
    ) -> None:
        self.process = process
        self.directory = directory
        # Do not finalize at exit: the executors must end first. If all else fails, the closed pipe ends the child.
        self._finalizer = weakref.finalize(self, _end, process, directory, await_end, ended)
        self._finalizer.atexit = False

    def let_go(self) -> None:
        """Make the child end, without waiting for it."""
        _close(self.process)

    def end(self) -> None:
        """End the child, wait for its end, and remove the directory."""
        # Do not call the finalizer itself: once the interpreter is exiting, calling it has no effect.
        if found := self._finalizer.detach():
            _, end, arguments, _ = found
            end(*arguments)

    def abandon(self) -> None:
        """Close our ends of the pipes in a forked child, since only the parent must hold them."""
        self._finalizer.detach()
        _close(self.process)
        if self.process.stdout is not None:
            self.process.stdout.close()
        self.process.returncode = 0  # so that its destructor does not wait for a process that is not our child


def _close(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()


def _end(
    process: subprocess.Popen[bytes],
    directory: str,
    await_end: Callable[[subprocess.Popen[bytes], float], None],
    ended: Callable[[], None] | None,
) -> None:
    _close(process)
    try:
        await_end(process, END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()
    if ended is not None:
        ended()
    if directory and os.path.exists(directory):  # it removes its directory itself, unless it was killed
        import shutil  # late: it takes long to import

        shutil.rmtree(directory, ignore_errors=True)
