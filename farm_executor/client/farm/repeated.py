"""Large arguments that the program passes again and again, of which servers have a copy.

This module owns how an argument is recognized, by the memory of the buffers that pickling gives out of band, and
how it is compared. It must not decide which ones are worth it (`core.repeats`), nor know how a copy gets to servers
(`sharing`).

A call is pickled as ever, so that whatever it is made of is as it is at that moment. Only the contents of large
buffers are looked up: a call whose buffers are the same as copies is *standing*, and for each of these a lane sends
the copy's number, if its server has it, and else the buffer. So a server that has no room, or does not know of such
things, gets what it would have got.

All this is for servers on other machines. Within one, data goes through a ring at the speed at which it could be
compared, and comes in memory of its own, to which a task can write without a fault for each page.

Nothing keeps the program's object alive. Its copy goes with it; where nobody can be told of that, as with `bytes`,
once the farm has been idle for a while.
"""

from __future__ import annotations

import logging
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Hashable
from typing import Any, Protocol

from farm_executor.client.farm.shared import Record
from farm_executor.core.deliveries import Deliveries
from farm_executor.core.features import REFERENCES
from farm_executor.core.frames import Buffer, Payload, Reference
from farm_executor.core.repeats import Repeats, Verdict
from farm_executor.core.sharing import read_layout
from farm_executor.data.memory import same, sample

__all__ = ["LEAST", "Repeated", "Standing", "is_far"]

logger = logging.getLogger(__name__)

LEAST = 1024 * 1024  # bytes; to compare less takes as long as to send it


class Host(Protocol):
    """A session, as far as it is known what its server holds."""

    features: frozenset[str]
    deliveries: Deliveries | None
    dial_ring: Any


def is_far(host: Host) -> bool:
    """Return whether what is sent to a server goes over a network, and can be left out."""
    return host.dial_ring is None and host.deliveries is not None and REFERENCES in host.features


class Standing(tuple[Buffer, ...]):
    """The arguments of a call, some of whose buffers servers may have.

    Attributes:
        records: The copies of these, by their places.
    """

    records: dict[int, Record]

    @classmethod
    def of(cls, arguments: Payload, records: dict[int, Record]) -> Standing:
        """Return arguments of which there are these copies."""
        made = cls(arguments)
        made.records = records
        return made

    def sent_to(self, host: Host) -> Payload:
        """Return what to send to a server, which may hold some of it."""
        if not is_far(host):
            return self
        sent = list(self)
        # Only what it has said to hold: a worker would wait for what is on its way, and fail where that is refused.
        for place, record in self.records.items():
            if host.deliveries is not None and host.deliveries.holds(record.number):
                sent[place] = Reference.to(record.number)
        return sent


class Repeated:
    """The arguments of one farm's calls that may come again; see the module.

    Args:
        copy: Takes a copy of a buffer, which servers get.
        worth: Returns whether there are servers to which it need not be sent again then.

    Attributes:
        unowned: Whether there may be something to forget when the farm is idle.

    Thread safety: all methods may be called from any thread.
    """

    def __init__(self, copy: Callable[[Buffer], Record], worth: Callable[[], bool]) -> None:
        self._copy = copy
        self._worth = worth
        self._repeats = Repeats()
        self._copies: dict[Hashable, Record] = {}
        self.unowned = False
        self._owners: dict[Hashable, weakref.ref[Any] | None] = {}
        # Left by the garbage collector, which runs at any point of any thread, so that it may not wait for a lock.
        self._gone: deque[Hashable] = deque()
        self._lock = threading.RLock()  # a destructor may submit while its thread holds it

    def standing(self, arguments: Payload) -> Payload:
        """Return the arguments of a call, with the copies of what has come before and is still the same."""
        if not self._worth():
            return arguments
        records = {}
        for place, part in enumerate(arguments):
            view = memoryview(part)
            if view.nbytes >= LEAST and place:
                record = self._look(view.cast("B"))
                if record is not None:
                    records[place] = record
        return Standing.of(arguments, records) if records else arguments

    def _look(self, view: memoryview) -> Record | None:
        """Return the copy of what is in a piece of memory, if there is one."""
        found = _recognized(view)
        if found is None:
            return None
        key, owner = found
        sampled = sample(view)
        with self._lock:
            self._forget_gone()
            if key not in self._owners:
                self._owners[key] = None if owner is None else self._watched(key, owner)
                self.unowned |= owner is None
            verdict, dropped = self._repeats.see(key, len(view), sampled)
            for other in dropped:
                self._copies.pop(other, None)
                # A view of another part for each call would leave one behind, for as long as its array lives.
                if not self._repeats.remembers(other):
                    self._owners.pop(other, None)
            copy = self._copies.get(key)
        # Without the lock: others need not wait while this is copied or compared.
        if verdict is Verdict.TAKE:
            return self._take(key, view)
        whole = None if copy is None else copy.view  # looked at once, as the farm may just be ending
        if verdict is Verdict.SEND or copy is None or whole is None:
            return None
        part = read_layout(whole).parts[1]
        with whole[part.begin : part.begin + part.size] as taken:
            if same(view, taken):
                with self._lock:
                    self._repeats.same(key)
                return copy
        with self._lock:
            # Unless another thread has noticed, and perhaps taken the next copy.
            if self._copies.get(key) is copy:
                del self._copies[key]
                self._repeats.changed(key, sampled)
        return None

    def _take(self, key: Hashable, view: memoryview) -> Record | None:
        try:
            record = self._copy(view)
        except (OSError, MemoryError) as error:
            logger.debug("argument travels with each call error=%s", error)
            with self._lock:
                self._repeats.leave(key)
            return None
        except BaseException:  # Ctrl-C, mostly; its bytes would count for as long as the object lives
            with self._lock:
                self._repeats.forget(key)
            raise
        with self._lock:
            # Servers may have answered already. If it has been forgotten meanwhile, the copy goes with this call.
            if record.refused:
                self._repeats.leave(key)
            elif self._repeats.taken(key):
                self._copies[key] = record
        return record

    def _watched(self, key: Hashable, owner: Any) -> weakref.ref[Any]:
        gone, copies = self._gone, self._copies

        def note(_: object) -> None:
            gone.append(key)
            copies.pop(key, None)

        return weakref.ref(owner, note)

    def _forget_gone(self) -> None:
        # Before anything is looked up: what has the same identity now is another object.
        while self._gone:
            key = self._gone.popleft()
            self._owners.pop(key, None)
            self._repeats.forget(key)

    def leave(self, record: Record) -> None:
        """Share what has that copy no more: no server takes it."""
        with self._lock:
            record.refused = True
            # Of a copy, and with care: where an object goes meanwhile, in any thread, its key goes at once.
            for key, copy in self._copies.copy().items():
                if copy is record:
                    self._copies.pop(key, None)
                    self._repeats.leave(key)

    def forget_unowned(self) -> None:
        """Forget objects that cannot tell when they go, as the farm is idle."""
        with self._lock:
            self.unowned = False
            # The others go with their objects, however long these are not passed to any call.
            for key, owner in list(self._owners.items()):
                if owner is None:
                    del self._owners[key]
                    self._copies.pop(key, None)
                    self._repeats.forget(key)

    def forget_all(self) -> None:
        """Drop all copies, as the farm ends."""
        self._copies.clear()


def _recognized(view: memoryview) -> tuple[Hashable, Any] | None:
    """Return what tells a piece of memory from others while it lives, and the object with which it goes.

    The object is None if nobody can be told when it goes. There may be no identity: its owner is made for each
    call, or is a file that may be larger than this machine's memory.
    """
    whole: Any = view
    while isinstance(whole, memoryview):
        whole = whole.obj
    # That another one may take its place unnoticed does no harm, as contents are compared.
    if type(whole) is bytes:
        # But the worker makes bytes of what is the whole of some, and of a part of it does not.
        return (id(whole), len(whole), len(view)), None
    numpy: Any = sys.modules.get("numpy")
    place = 0
    if numpy is not None and isinstance(whole, numpy.ndarray):
        # Views are made for each call, so what counts is whose memory they show, and which part of it.
        place = whole.__array_interface__["data"][0]
        while isinstance(whole.base, numpy.ndarray):
            whole = whole.base
        if type(whole.base).__name__ == "mmap":
            return None
    elif type(whole) is bytearray:  # a copy: see `payload.dumps`
        return None
    try:
        weakref.ref(whole)
    except TypeError:
        return None
    return (id(whole), place, len(view)), whole
