"""Objects that belong to one process and are never sent, and what to use instead.

This module owns the list. It must not know how values are pickled: `byvalue` and `payload` do that.

Most of these types refuse to be pickled, but do not say what to do instead. `multiprocessing.connection.Connection`
and its relatives do not even refuse: they pickle as a number, which refers to some other descriptor in another
process. `multiprocessing` passes them on with its own pickler, and only to its own children.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

__all__ = ["Refusals", "may_hold_silent"]

_CONNECTION = (
    "take arguments and return results, or have the task connect by itself, as by multiprocessing.connection.Client"
)
_PROXY = (
    "take arguments and return results, or use that of a multiprocessing.Manager(), whose proxies can be sent to "
    "workers of the same machine"
)
_COROUTINE = "submit the async function itself with its arguments, and await it within a task"
_GENERATOR = "have what it yields come by stream(), or return a list of it"
_FILE = "pass its path, and open it in the task"

_INSTEAD = {
    ("_io", "BufferedRandom"): _FILE,
    ("_io", "BufferedReader"): _FILE,
    ("_io", "BufferedWriter"): _FILE,
    ("_io", "FileIO"): _FILE,
    ("builtins", "async_generator"): _GENERATOR,
    ("builtins", "coroutine"): _COROUTINE,
    ("builtins", "generator"): _GENERATOR,
    ("ctypes", "CDLL"): "load the library in the task",
    ("multiprocessing.connection", "Connection"): _CONNECTION,
    ("multiprocessing.connection", "Listener"): _CONNECTION,
    ("multiprocessing.connection", "PipeConnection"): _CONNECTION,
    ("multiprocessing.heap", "BufferWrapper"): "use multiprocessing.shared_memory on the same machine",
    ("multiprocessing.queues", "JoinableQueue"): _PROXY,
    ("multiprocessing.queues", "Queue"): _PROXY,
    ("multiprocessing.queues", "SimpleQueue"): _PROXY,
    ("multiprocessing.resource_sharer", "DupFd"): _CONNECTION,
    ("multiprocessing.resource_sharer", "DupSocket"): _CONNECTION,
    ("multiprocessing.sharedctypes", "SynchronizedBase"): _PROXY,
    ("multiprocessing.synchronize", "Barrier"): _PROXY,
    ("multiprocessing.synchronize", "Condition"): _PROXY,
    ("multiprocessing.synchronize", "Event"): _PROXY,
    ("multiprocessing.synchronize", "SemLock"): _PROXY,
    ("socket", "socket"): "connect in the task",
}
_BY_INHERITANCE = ("heap", "queues", "sharedctypes", "synchronize")  # their own refusal is a RuntimeError
_REDUCTIONS = {"__reduce__", "__reduce_ex__", "__getstate__"}

# Modules whose objects pickle accepts, and how a pickle spells each name: the opcode of a short string, its length,
# and the name.
_CONNECTIONS, _SHARER = "multiprocessing.connection", "multiprocessing.resource_sharer"
_SILENT = {name: b"\x8c" + bytes([len(name)]) + name.encode() for name in (_CONNECTIONS, _SHARER)}


def may_hold_silent(pickled: Any) -> bool:
    """Return whether a pickle may hold an object that pickle should have refused. Most programs never load one."""
    modules = sys.modules
    return (_CONNECTIONS in modules and _SILENT[_CONNECTIONS] in pickled) or (
        _SHARER in modules and _SILENT[_SHARER] in pickled
    )


class Refusals(dict[type, Callable[[Any], Any]]):
    """A fallback for a pickler's dispatch table: reducers that refuse, and say what to use instead."""

    def __missing__(self, cls: type) -> Callable[[Any], Any]:
        for base in cls.__mro__:
            instead = _INSTEAD.get((base.__module__, base.__qualname__))
            if instead is not None:
                return _refusal(base, instead)
            if not _REDUCTIONS.isdisjoint(vars(base)):  # it defines its own reduction
                break
        raise KeyError(cls)


def _refusal(base: type, instead: str) -> Callable[[Any], Any]:
    def refuse(value: Any) -> Any:
        cls = type(value)
        package, _, module = base.__module__.partition(".")
        if package == "multiprocessing" and module in _BY_INHERITANCE:
            raise RuntimeError(
                f"{cls.__name__} objects should only be shared between processes through inheritance, and a farm's "
                f"workers do not inherit; {instead}"
            )
        name = cls.__qualname__ if cls.__module__ in ("builtins", "_io") else f"{cls.__module__}.{cls.__qualname__}"
        raise TypeError(f"cannot pickle {name!r} object, which belongs to one process; {instead}")

    return refuse
