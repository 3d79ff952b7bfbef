"""Large arrays that repeat across the tasks of one call of joblib's Parallel, so that each travels once.

This module owns the client's half: which memory is large, whether it has been sent before, and how workers get it.
A worker on this machine maps a file of this process, which has no name and therefore ends with it. With servers
elsewhere memory is shared when it is used for the second time, as `FarmExecutor.share` does. A worker that finds
nothing says so, and gets the task again with all its data. This module must not know joblib.

As with joblib's own backends, an array must not change while a call of Parallel uses it, and is read-only in tasks
unless ``mmap_mode`` says otherwise.
"""

from __future__ import annotations

import mmap
import os
import pickle
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

from farm_executor.client.farm.shared import Shared
from farm_executor.client.front import Front, backing_of
from farm_executor.data import payload
from farm_executor.integrations.inside import TOKEN_SIZE, Away, revive

__all__ = ["Arrays"]

MAX_ITEMS = 64  # of a list, tuple or dict that is searched for large arrays


class Arrays:
    """The large arrays of one call of Parallel.

    Args:
        executor: Where the tasks run.
        min_bytes: From which size on memory is sent once.
        writable: Whether tasks may write to their arrays.

    Thread safety: any thread may call any method.
    """

    def __init__(self, executor: Front, min_bytes: int, writable: bool) -> None:
        self._executor = executor
        self._min_bytes = min_bytes
        self._writable = writable
        self._lock = threading.RLock()  # a destructor may run Parallel while this thread holds it
        self._buffers: dict[tuple[int, int, int], _Buffer] = {}  # by owner, address and size
        self._maps = hasattr(os, "memfd_create") and _may_be_near(executor)
        self._sends = not self._maps

    def replaced(self, value: Any) -> Any:
        """Return what stands for an argument in a task: the argument itself, unless it holds large memory."""
        if not self._may_hold_large(value):
            return value
        try:
            parts = payload.dumps(value)
        except Exception:  # it will be raised again where the task is pickled, and be that task's own
            return value
        views = [memoryview(part) for part in parts[1:]]
        if payload.by_value(parts) or all(view.nbytes < self._min_bytes for view in views):
            return value  # `revive` would not find what travels by value
        buffers = [
            pickle.PickleBuffer(view) if view.nbytes < self._min_bytes else self._place(view) for view in views
        ]
        return _Standing(bytes(parts[0]), buffers, self._writable, views)

    def missed(self, *, shared: bool) -> None:
        """Take note that a worker has not found a buffer: it is on another machine, or another user's.

        Args:
            shared: Whether it was shared, so that its server has no room.
        """
        self._sends = not shared

    def close(self) -> None:
        """Let go of everything; servers do so once the tasks that use it have ended."""
        with self._lock:
            for key in list(self._buffers):
                self._drop(key)

    def _may_hold_large(self, value: Any) -> bool:
        """Return whether it is worth the time to pickle an argument beforehand."""
        numpy: Any = sys.modules.get("numpy")
        if numpy is None:
            return False
        if isinstance(value, numpy.ndarray):
            return bool(value.nbytes >= self._min_bytes)
        if type(value) in (list, tuple):
            return len(value) <= MAX_ITEMS and any(map(self._may_hold_large, value))
        if type(value) is dict:
            return len(value) <= MAX_ITEMS and any(map(self._may_hold_large, value.values()))
        kind = type(value)  # the last is a sparse matrix's
        return hasattr(kind, "__array__") or hasattr(kind, "__arrow_c_stream__") or hasattr(kind, "tocsr")

    def _place(self, memory: memoryview) -> Away | Shared[Any] | pickle.PickleBuffer:
        """Return where a worker finds a large buffer, or the buffer itself if it has to travel."""
        owner = _owner(memory)
        if owner is None:
            return pickle.PickleBuffer(memory)
        key = (id(owner), _address(memory), memory.nbytes)
        with self._lock:
            known = self._buffers.get(key)
            if known is None:
                known = self._buffers[key] = _Buffer(owner, lambda _: self._drop(key))
            known.uses += 1
            if self._maps and known.descriptor < 0:
                known.write(memory)
            # The first task takes it along: an array that no other task uses would be sent to every server.
            if self._sends and known.uses > 1:
                known.shared = known.shared or self._share(memory)
                if known.shared is not None:
                    return known.shared
            if known.descriptor < 0:
                return pickle.PickleBuffer(memory)
            return Away(known.token, memory.nbytes, os.getpid(), known.descriptor)

    def _share(self, memory: memoryview) -> Shared[Any] | None:
        """Share a buffer with all servers, as far as there is memory for it."""
        sharing = backing_of(self._executor).start_engine().sharing
        try:
            shared: Shared[Any] = sharing.share(pickle.PickleBuffer(memory), frozen=not self._writable)
        except (OSError, MemoryError):
            self._sends = False
            return None
        shared.value = None  # which would keep the array alive
        return shared

    def _drop(self, key: tuple[int, int, int]) -> None:
        # Without the lock: an array may go at any point of any thread, and that may have what the holder waits for.
        # Nobody uses its buffer meanwhile, since who does has the array.
        buffer = self._buffers.pop(key, None)
        if buffer is not None:
            buffer.close()


class _Buffer:
    """Large memory that tasks have used."""

    def __init__(self, owner: Any, gone: Callable[[Any], None]) -> None:
        self.token = os.urandom(TOKEN_SIZE)
        self.uses = 0
        self.shared: Shared[Any] | None = None
        self.descriptor = -1
        self._owner = weakref.ref(owner, gone)

    def write(self, memory: memoryview) -> None:
        """Write the memory to a file without a name; if there is no room, it has none."""
        descriptor = os.memfd_create("farm-joblib", os.MFD_CLOEXEC)
        try:
            rest = memory.cast("B")
            while rest.nbytes:
                rest = rest[os.write(descriptor, rest) :]
            os.write(descriptor, self.token)
        except OSError:
            os.close(descriptor)
        else:
            self.descriptor = descriptor

    def close(self) -> None:
        self.shared = None
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


class _Standing:
    """Stands for an argument; unpickles as the argument itself. Keeps the argument's memory alive."""

    def __init__(
        self,
        data: bytes,
        buffers: list[Away | Shared[Any] | pickle.PickleBuffer],
        writable: bool,
        views: list[memoryview],
    ) -> None:
        self._parts = data, buffers, writable
        self._views = views

    def __reduce__(self) -> tuple[Any, ...]:
        return revive, self._parts


def _owner(memory: memoryview) -> Any:
    """Return the array that keeps the memory alive; None if there is none, or it is a mapped file's.

    Such a file may be larger than this machine's memory.
    """
    owner: Any = memory.obj
    if not hasattr(owner, "__array_interface__"):
        return None
    while hasattr(owner.base, "__array_interface__"):
        owner = owner.base
    return None if isinstance(owner.base, mmap.mmap) else owner


def _address(memory: memoryview) -> int:
    import numpy as np  # which has made the memory

    return int(np.frombuffer(memory, np.uint8).__array_interface__["data"][0])


def _may_be_near(executor: Front) -> bool:
    """Return whether some servers may be on this machine."""
    supply = backing_of(executor).supply
    return supply.given is None or any(address.is_local for address in (*supply.given, *supply.added))
