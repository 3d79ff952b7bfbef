"""A child process that lives for as long as we hold its standard input open.

This module owns its end: by a word, by the end of this process, by the collection of the object. It must not know
what the child does.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import weakref
from collections.abc import Callable

__all__ = ["Held"]

END_SECONDS = 15.0  # more than the supervisor gives its workers


class Held:
    """Such a process, with a directory that is removed with it.

    Args:
        process: The child; its standard input is an unbuffered pipe.
        directory: What to remove after its end.
        await_end: Waits for its end, so many seconds at most; may have it end sooner.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        directory: str,
        await_end: Callable[[subprocess.Popen[bytes], float], None],
    ) -> None:
        self.process = process
        self.directory = directory
        # Not at exit: the executors' own ends come first, and if all else fails the pipe does.
        self._finalizer = weakref.finalize(self, _end, process, directory, await_end)
        self._finalizer.atexit = False

    def let_go(self) -> None:
        """Have it end, without waiting for that."""
        _close(self.process)

    def end(self) -> None:
        """End it, wait for its end, and remove the directory."""
        # Not by calling the finalizer: at the interpreter's exit, where we may be, that does nothing any more.
        if found := self._finalizer.detach():
            _, end, arguments, _ = found
            end(*arguments)

    def abandon(self) -> None:
        """In a forked child: close our ends of its pipes, which the parent alone shall hold."""
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
) -> None:
    _close(process)
    try:
        await_end(process, END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()
    shutil.rmtree(directory, ignore_errors=True)
