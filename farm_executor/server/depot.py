"""The folders in which modules of clients' are put.

This module owns where these folders are, and that none outlives its session, however that ends. It must not know
what is in them.

A server has one folder of its own, below the system's folder for temporary files, and each session one in it.
Neither is there before a worker has something to put into it. A server that is killed leaves its folder behind: its
name says which process it belongs to, so the next server of this user on this machine can tell, and removes it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Callable
from typing import NamedTuple

__all__ = ["Depot", "Room"]

logger = logging.getLogger(__name__)

PREFIX = "farm-modules-"


class Room(NamedTuple):
    """A session's folder.

    Attributes:
        folder: Its path; it need not be there yet.
        problem: Why there can be none; empty if there can.
    """

    folder: str
    problem: str = ""

    def make(self) -> None:
        """Make it, unless it is there.

        Raises:
            OSError: That cannot be done.
        """
        for folder in (os.path.dirname(self.folder), self.folder):
            with contextlib.suppress(FileExistsError):  # its name is a secret: it is ours
                os.mkdir(folder, 0o700)


class Depot:
    """See the module.

    Args:
        let_go: In a new process: closes what is the server's.
    """

    def __init__(self, let_go: Callable[[], None]) -> None:
        self._let_go = let_go
        self._folder = ""

    def open(self, name: str) -> Room:
        """The folder for a session of that name; never raises."""
        import tempfile  # late: a server without such sessions does not need it

        try:
            if not self._folder:
                parent = tempfile.gettempdir()
                _sweep(parent)
                self._folder = os.path.join(parent, f"{PREFIX}{_machine()}-{os.getpid()}-{os.urandom(8).hex()}")
        except OSError as error:
            logger.warning("modules of clients cannot be taken error=%s", error)
            return Room("", str(error))
        finally:
            tempfile.tempdir = None  # a worker inherits what is loaded here, and its program may set TMPDIR
        return Room(os.path.join(self._folder, name))

    def remove(self, room: Room) -> None:
        """The session is over. In a process of its own, as there may be thousands of files."""
        if room.problem or not os.path.isdir(room.folder):
            return
        try:
            pid = os.fork()
        except OSError:
            _remove(room.folder)
            return
        if pid == 0:
            try:
                signal.set_wakeup_fd(-1)  # else our signals would seem to be the server's
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                self._let_go()
                _remove(room.folder)
            finally:
                os._exit(0)

    def close(self) -> None:
        """The server ends."""
        if self._folder and os.path.isdir(self._folder):
            _remove(self._folder)


def _machine() -> str:
    """What tells apart processes of one number whose folders for temporary files may be one and the same."""
    space = ""
    with contextlib.suppress(OSError):  # containers have numbers of their own; only Linux says so
        space = str(os.stat("/proc/self/ns/pid").st_ino)
    return f"{os.uname().nodename}-{space}"


def _sweep(parent: str) -> None:
    """Remove what servers of this user, on this machine, have left that are no more."""
    start = f"{PREFIX}{_machine()}-"
    with os.scandir(parent) as entries:
        for entry in entries:
            pid = entry.name.removeprefix(start).partition("-")[0] if entry.name.startswith(start) else ""
            if pid.isdecimal() and _is_left_behind(entry, int(pid)):
                logger.info("removed what a server has left that was killed folder=%s", entry.path)
                _remove(entry.path)


def _is_left_behind(entry: os.DirEntry[str], pid: int) -> bool:
    try:
        if not entry.is_dir(follow_symlinks=False) or entry.stat(follow_symlinks=False).st_uid != os.getuid():
            return False
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:
        return False
    return False


def _remove(folder: str) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
