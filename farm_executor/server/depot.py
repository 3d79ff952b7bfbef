"""The folders for modules that clients send.

This module owns where these folders are, and ensures that none outlives its session, however that ends. It must not
know what is in them.

A server has one folder of its own, in the system's folder for temporary files, from the first session on that may
need it. Each session has one inside it, from the moment at which a worker has something to put there.

A server holds a lock on its folder for as long as it lives. The system releases the lock however the server ends,
so the next server of this user on this machine recognizes and removes what a killed one has left behind. Programs
that clean the folder for temporary files, such as systemd's, leave locked folders alone, too.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import signal
from collections.abc import Callable

from farm_executor._record import NamedTuple

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
        with contextlib.suppress(FileExistsError):  # it is in the server's folder, so another worker has made it
            os.mkdir(self.folder, 0o700)


class Depot:
    """The folders of one server; see the module.

    Args:
        let_go: Called in a new process: closes everything of the server's.

    Attributes:
        lock: The descriptor of the folder, through which it is locked; None if there is none. Processes that do not
            speak for the server close it, which releases nothing.
    """

    def __init__(self, let_go: Callable[[], None]) -> None:
        self._let_go = let_go
        self._folder = ""
        self.lock: int | None = None

    def open(self, name: str) -> Room:
        """Return the folder for a session of that name; never raises."""
        import tempfile  # late: a server without such sessions does not need it

        try:
            if not self._folder:
                parent = tempfile.gettempdir()
                _sweep(parent)
                self._folder, self.lock = _make(parent)
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
        if self._folder:
            _remove(self._folder)
        if self.lock is not None:
            os.close(self.lock)
            self.lock = None


def _make(parent: str) -> tuple[str, int | None]:
    """Make a folder and lock it; return its path and the descriptor that holds the lock."""
    while True:
        folder = os.path.join(parent, f"{_start()}{os.urandom(8).hex()}")
        os.mkdir(folder, 0o700)
        try:
            lock = _lock(folder)
        except FileNotFoundError:  # another server has found and removed it before it was locked
            continue
        except OSError:  # a file system without locks: nobody can lock the folder, and so nobody removes it
            return folder, None
        # Or while it was being locked.
        if lock is not None and os.path.isdir(folder):
            return folder, lock
        if lock is not None:
            os.close(lock)


def _start() -> str:
    """Return how the names of folders begin that were made on this machine.

    Other machines may share the folder for temporary files, over a file system that cannot lock across machines.
    """
    return f"{PREFIX}{os.uname().nodename}-"


def _lock(folder: str) -> int | None:
    """Lock a folder of this user's; return the descriptor that holds the lock, or None if another process has it.

    Raises:
        OSError: It is not a folder, or cannot be locked.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if os.fstat(descriptor).st_uid == os.getuid():
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
    except BlockingIOError:
        pass
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _sweep(parent: str) -> None:
    """Remove the folders left behind by servers of this user, on this machine, that no longer run."""
    with os.scandir(parent) as entries:
        left = [entry.path for entry in entries if entry.name.rpartition("-")[0] + "-" == _start()]
    for folder in left:
        with contextlib.suppress(OSError):
            lock = _lock(folder)
            if lock is not None:
                logger.info("removed what a server has left that was killed folder=%s", folder)
                _remove(folder)
                os.close(lock)


def _remove(folder: str) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
