"""A shared object as programs have it: its handle.

This module owns the handle, for how long the object is kept for whom, and where a handle may be pickled. It must
not know servers, nor how the object gets there.

The handle of an object, each call that refers to it and has not ended, and whatever else refers to it, such as
another shared object, hold one *record*. Once nobody does, servers are told to let go of the object. So what is
closed while calls are on their way stays for these.

A handle says nothing without its farm, so it can be pickled only where a call of that farm is: while `Pickling` is
entered, which also notes the records of the handles that it meets.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Generic, TypeVar

from farm_executor.data.shared import take

__all__ = ["Pickling", "Record", "Shared", "record_of"]

T = TypeVar("T")
_NOT_HERE = (
    "a shared object's handle can be sent with calls of its own farm only: "
    "share the object with the other farm, too, or pass its .value"
)


class Record:
    """One shared object, for as long as anybody needs it.

    Args:
        farm: The farm that it is shared in, compared by identity.
        number: Its number there.
        view: What it was pickled to, in memory; None once the farm has ended.
        inner: The records of the shared objects within it.
        dropped: Called with the number once nobody needs it: from whatever place the garbage collector runs at.
        quiet: Whether the program has not asked for it, and calls can do without: see `repeated`.

    Attributes:
        refused: Whether no server holds it, nor is to get it, as one has refused it.
    """

    __slots__ = ("__weakref__", "_dropped", "farm", "inner", "number", "quiet", "refused", "size", "view")

    def __init__(
        self,
        farm: object,
        number: int,
        view: memoryview,
        inner: tuple[Record, ...],
        dropped: Callable[[int], None],
        *,
        quiet: bool = False,
    ) -> None:
        self.farm = farm
        self.number = number
        self.view: memoryview | None = view
        self.size = len(view)
        self.inner = inner
        self._dropped = dropped
        self.quiet = quiet
        self.refused = False

    def __del__(self) -> None:
        self._dropped(self.number)


class Shared(Generic[T]):
    """The handle of a shared object: within a task, it is the object itself. Made by `FarmExecutor.share`.

    It may stand wherever a call can hold a value: among arguments, in containers, attributes and closures, in a
    `functools.partial`. As a context manager, it is closed at the end of the block.

    Attributes:
        value: The original object, here.
        nbytes: How many bytes it takes on each server.
        frozen: Whether tasks on one worker share one object, whose buffers are read-only.

    Thread safety: all of it may be used from any thread.
    """

    # Any: else everything public that mentions a handle would have checkers look into the farm's own parts.
    def __init__(self, value: T, record: Any, *, frozen: bool) -> None:
        self.value: T = value
        self.nbytes: int = record.size
        self.frozen: bool = frozen
        self._number = record.number
        self._record: Record | None = record

    def __repr__(self) -> str:
        state = ", closed" if self.closed else ", frozen" if self.frozen else ""
        return f"<Shared {self._number}: {type(self.value).__qualname__}, {self.nbytes} bytes{state}>"

    @property
    def closed(self) -> bool:
        """Whether it has been closed."""
        return self._record is None

    def close(self) -> None:
        """Let servers free the object, once the calls that refer to it have ended. The original stays."""
        self._record = None

    def __enter__(self) -> Shared[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        # Checked for each pickling of each call: what is pickled late must not refer to what has been closed.
        record = record_of(self)
        pickling = _here.pickling
        if pickling is None or pickling.farm is not record.farm:
            raise ValueError(_NOT_HERE)
        pickling.found[record.number] = record
        return take, (record.number,)


def record_of(handle: Shared[Any]) -> Record:
    """Return a handle's record.

    Raises:
        ValueError: It has been closed.
    """
    record = handle._record
    if record is None:
        raise ValueError(f"shared object {handle._number} has been closed: share it again")
    return record


class _Here(threading.local):
    pickling: Pickling | None = None


_here = _Here()


class Pickling:
    """While it is entered, this thread pickles something for a farm's call.

    Attributes:
        farm: The farm.
        found: The records of the handles that were met, by number.
    """

    __slots__ = ("_before", "farm", "found")

    def __init__(self, farm: object) -> None:
        self.farm = farm
        self.found: dict[int, Record] = {}

    def __enter__(self) -> Pickling:
        self._before = _here.pickling  # pickling runs users' code, which may submit to another farm
        _here.pickling = self
        return self

    def __exit__(self, *error: object) -> None:
        _here.pickling = self._before
