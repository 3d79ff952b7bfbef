"""The folders for modules that clients send.

This module owns where these folders are, and ensures that none outlives its session, however that ends. It must not
know what is in them.

A server has one folder of its own, in the system's folder for temporary files, and each session has one inside it.
Neither exists before a worker has something to put into it. A server that is killed leaves its folder behind. The
folder's name says which process it belongs to, so the next server of this user on this machine recognizes and
removes it.
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
        folder: Its path; the folder need not exist yet.
        problem: Why there cannot be a folder; empty if there can.
    """

    folder: str
    problem: str = ""

    def make(self) -> None:
        """Create the folder if it does not exist.

        Raises:
            OSError: It cannot be created.
        """
        for folder in (os.path.dirname(self.folder), self.folder):
            with contextlib.suppress(FileExistsError):  # its name is secret, so it is ours
                os.mkdir(folder, 0o700)


class Depot:
    """The folders of one server; see the module.

    Args:
        let_go: Called in a new process: closes everything of the server's.
    """

    def __init__(self, let_go: Callable[[], None]) -> None:
        self._let_go = let_go
        self._folder = ""

    def open(self, name: str) -> Room:
        """Return the folder for a session of that name; never raises."""
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
            tempfile.tempdir = None  # workers inherit this module, and a task may set TMPDIR before it uses it
        return Room(os.path.join(self._folder, name))

    def remove(self, room: Room) -> None:
        """Remove a session's folder, in a process of its own, as there may be thousands of files."""
        if room.problem or not os.path.isdir(room.folder):
            return
        try:
            pid = os.fork()
        except OSError:
            _remove(room.folder)
            return
        if pid == 0:
            try:
                signal.set_wakeup_fd(-1)  # otherwise our signals would wake the server as if they were its own
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                self._let_go()
                _remove(room.folder)
            finally:
                os._exit(0)

    def close(self) -> None:
        """Remove the server's folder."""
        if self._folder and os.path.isdir(self._folder):
            _remove(self._folder)


def _machine() -> str:
    """Return a name that tells apart processes with the same pid that may share a folder for temporary files."""
    space = ""
    with contextlib.suppress(OSError):  # containers have pids of their own; only Linux has this file
        space = str(os.stat("/proc/self/ns/pid").st_ino)
    return f"{os.uname().nodename}-{space}"


def _sweep(parent: str) -> None:
    """Remove the folders left behind by servers of this user, on this machine, that no longer run."""
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
