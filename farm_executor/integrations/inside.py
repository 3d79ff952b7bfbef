"""What joblib's backend does in a worker: run batches, bound threads, and find arrays that came beforehand.

This module owns the worker's half. It must not import joblib or numpy before the number of their threads is
bounded, since the libraries beneath them read the environment only when they are loaded.
"""

from __future__ import annotations

import contextlib
import importlib
import mmap
import os
import pickle
import stat
import sys
from collections.abc import Callable, Iterable
from typing import Any

from farm_executor._record import NamedTuple
from farm_executor.wire.cores import usable_cores

__all__ = [
    "LIMITED",
    "TOKEN_SIZE",
    "Away",
    "MissingBufferError",
    "bound_threads",
    "revive",
    "run",
]

LIMITED = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMBA_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)
"""The variables that loky sets, too."""

TOKEN_SIZE = 16  # bytes after a buffer in a file, by which a worker knows that it is the one that was meant

_set_here: set[str] = set()  # variables whose values are ours, not the user's


class Away(NamedTuple):
    """A buffer that does not travel with the task, and where it may be found.

    Attributes:
        token: Its name; 16 random bytes.
        size: Its length in bytes.
        pid: The client's process ID.
        descriptor: The client's descriptor of the file that holds it, or -1.
    """

    token: bytes
    size: int
    pid: int
    descriptor: int


class MissingBufferError(Exception):
    """A worker has not got an array, which must then travel with the task."""


def run(batch: Callable[[], Any]) -> Any:
    """Run a batch of joblib's, in a worker where "farm" is a backend, too."""
    if "farm_executor.joblib" not in sys.modules:
        importlib.import_module("farm_executor.joblib")
    return batch()


def bound_threads(explicit: int | None, workers: int) -> None:
    """Bound the threads of numeric libraries in this worker, as loky does in its own.

    Args:
        explicit: How many there may be. None: a fair share of the CPUs, unless the environment says otherwise.
        workers: How many workers share the CPUs.
    """
    count = explicit or max(int(usable_cores()) // max(workers, 1), 1)
    for name in LIMITED:
        if explicit is not None or name in _set_here or name not in os.environ:
            os.environ[name] = str(count)
            _set_here.add(name)
    os.environ.setdefault("ENABLE_IPC", "1")  # TBB's: its schedulers then share the CPUs among processes
    if "numpy" in sys.modules:  # loaded by an initializer or another task, so the environment comes too late
        with contextlib.suppress(Exception):  # it is not installed, or cannot handle one of the libraries
            importlib.import_module("threadpoolctl").threadpool_limits(int(os.environ["OMP_NUM_THREADS"]))


# -- arrays that do not travel with the task ------------------------------------------------------------


def revive(data: bytes, buffers: Iterable[Any], writable: bool) -> Any:
    """Unpickle a value some of whose buffers may not have travelled with it.

    Args:
        data: Its pickle.
        buffers: Its buffers, those that are elsewhere as `Away`.
        writable: Whether arrays may be written to; what is written is this task's alone.

    Raises:
        MissingBufferError: One is not to be found here.
    """
    found = [_map(each, writable) if isinstance(each, Away) else each for each in buffers]
    return pickle.loads(data, buffers=found)


def _map(away: Away, writable: bool) -> Any:
    """Map the file in which the client, if it is a process of this machine and user, holds a buffer."""
    path = f"/proc/{away.pid}/fd/{away.descriptor}"
    access = mmap.PROT_READ | mmap.PROT_WRITE if writable else mmap.PROT_READ
    whole = away.size + TOKEN_SIZE
    try:
        # On another machine, that may be any file of any process. Opening some kinds of files does things.
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode) or status.st_size != whole:
            raise MissingBufferError
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if os.pread(descriptor, TOKEN_SIZE, away.size) != away.token:
                raise MissingBufferError
            # All pages at once: a fault for each costs more than what is done with them.
            flags = (mmap.MAP_PRIVATE if writable else mmap.MAP_SHARED) | getattr(mmap, "MAP_POPULATE", 0)
            mapped = mmap.mmap(descriptor, whole, flags=flags, prot=access)
        finally:
            os.close(descriptor)
    except OSError:
        raise MissingBufferError from None
    return memoryview(mapped)[: away.size]
