"""Shared objects, as a worker has them.

This module owns how an object becomes a value in a call, and how one that arrives over this worker's lane gets to
the supervisor. It must not know which objects there are, nor how many bytes of them there may be.

A worker keeps a descriptor of each object that a task of its own has used, unless these are many: then it asks for
one again. For each call the object is unpickled over a private mapping: the system copies a page when the call
first writes to it. A *frozen* object is unpickled once, over a mapping that cannot be written to, and needs no
descriptor any more.

A task may have opened as many files as the worker may have. What comes over the lane is for all workers of the
server, so a descriptor is kept in reserve for it.

The lane is read by whichever thread has time for it, and objects are asked for by the thread that unpickles a call.
So the thread that waits for an object may be the one whose lane it comes by: the helper thread reads meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

from farm_executor.core.frames import Buffer, Frame, FrameType, Kind, Payload, Reference, size_and_kind
from farm_executor.core.sharing import Layout, Part, decode_piece, layout_of, read_layout
from farm_executor.data import payload, shared
from farm_executor.data.byvalue import Resolver
from farm_executor.errors import RemoteProtocolError, SharedMemoryError
from farm_executor.server.channel import Line, Word
from farm_executor.wire.memory_objects import MemoryObject

__all__ = ["ASK", "FAILED", "GIVE", "HERE", "REFUSED", "Held", "SharedObjects"]

MOST_OPEN = 128  # descriptors of objects that one worker keeps; tasks need some of their own

ASK, GIVE, FAILED = b"a", b"g", b"f"  # said by workers
HERE, REFUSED = b"h", b"r"  # said by the supervisor


class Held:
    """An object that is here."""

    def __init__(self, memory: MemoryObject) -> None:
        view = memory.view(private=False)
        self.memory = memory
        self.layout: Layout = read_layout(view)
        self.fixed: dict[Part, bytes] = {}  # parts that nobody can change, and that are made once
        self.value: Any = None  # of a frozen object
        self.loaded = False
        self.used = 0  # when it was used last, counted in uses

    def parts(self) -> list[Buffer]:
        """Return the parts of its payload for one call."""
        view = self.memory.view(private=not self.layout.frozen)
        return [self._part(view, part) for part in self.layout.parts]

    def copies(self) -> list[Buffer]:
        """Return those of its parts that are not the pickle, for one call.

        Raises:
            OSError: This process may not map as much.
        """
        return self.parts()[1:]

    def _part(self, view: memoryview, part: Part) -> Buffer:
        if part.kind is Kind.BYTES:
            # An object of Python's own has its bytes within it, so it cannot be mapped.
            if part not in self.fixed:
                self.fixed[part] = bytes(view[part.begin : part.begin + part.size])
            return self.fixed[part]
        found = view[part.begin : part.begin + part.size]
        return bytearray(found) if part.kind is Kind.BYTEARRAY else found


class _Coming:
    """An object that is on its way over this worker's lane."""

    def __init__(self, number: int, memory: MemoryObject) -> None:
        self.number = number
        self.memory = memory
        self.done = 0


@contextlib.contextmanager
def _mapping(number: int, memory: MemoryObject) -> Iterator[None]:
    """While it is entered, this process maps an object."""
    try:
        yield
    except OSError as error:
        where = f"cannot be mapped in worker {os.getpid()}"
        raise SharedMemoryError(f"shared object {number} of {memory.size} bytes {where}: {error}") from error


class SharedObjects:
    """The shared objects of one worker.

    Args:
        line: The line to the supervisor.

    Thread safety: `heed` is for the thread that reads the lane, `take` for any.
    """

    def __init__(self, line: Line) -> None:
        self._line = line
        self._pid = os.getpid()
        self._asking = threading.Lock()  # held while an answer is awaited
        # Held while a frozen object is unpickled: else another thread might close what this one is about to map.
        # Reentrant, as there may be others within it.
        self._loading = threading.RLock()
        self._held: dict[int, Held] = {}
        self._late: set[int] = set()  # of which an answer may still come, and which nobody waits for any more
        self._coming: _Coming | None = None
        self._uses = 0
        self._reserve: int | None = None
        self._keep_reserve()
        self._resolver: Callable[[], Resolver] | None = None
        self.dropped: Callable[[int], None] = lambda number: None

    def __del__(self) -> None:
        self._use_reserve()

    def serve(self, resolver: Callable[[], Resolver], dropped: Callable[[int], None]) -> None:
        """Let handles in pickles lead here.

        Args:
            resolver: See `payload.loads`.
            dropped: Called, in the thread that reads the lane, with the number of an object that nobody needs.
        """
        self._resolver = resolver
        self.dropped = dropped
        shared.source = self.take

    def take(self, number: int) -> Any:
        """Return the object, for one call.

        Raises:
            SharedMemoryError: The server cannot hold it, or this process cannot map it.
        """
        held = self._find(number)
        if held.loaded:
            return held.value
        if not held.layout.frozen:
            return payload.loads(self._parts(number, held), self._resolver)
        with self._loading:
            if not held.loaded:
                held.value, held.loaded = payload.loads(self._parts(number, held), self._resolver), True
                held.memory.close()
        return held.value

    def filled(self, parts: Payload) -> Payload:
        """Return a payload with the buffers of shared objects in place of the references to them, for one call.

        Raises:
            SharedMemoryError: One cannot be had, or this process cannot map it.
        """
        if Reference not in map(type, parts):
            return parts
        return [self._buffer(part.number) if type(part) is Reference else part for part in parts]

    def _buffer(self, number: int) -> Buffer:
        parts = self._parts(number, self._find(number))
        if len(parts) != 2:
            raise SharedMemoryError(f"shared object {number} is not a buffer alone")
        return parts[1]

    def _find(self, number: int) -> Held:
        held = self._held.get(number) or self._ask(number)
        held.used = self._uses = self._uses + 1
        return held

    def _parts(self, number: int, held: Held) -> list[Buffer]:
        with _mapping(number, held.memory):
            return held.parts()

    def fetch(self, number: int, seconds: float) -> Held:
        """Return an object that belongs to the caller, which is waited for no longer than that.

        Raises:
            SharedMemoryError: It does not come, or this process cannot map it.
        """
        held = self._ask(number, seconds)
        self._held.pop(number, None)
        return held

    def hand_in(self, number: int, buffers: Payload) -> Held | None:
        """Make an object of some buffers, for all workers of this server; None if there can be none.

        For the thread that reads the lane.
        """
        # As memory, whatever they were received into: a bytearray would have to be made for each call.
        sizes = [size_and_kind(each) if type(each) is bytes else memoryview(each).nbytes for each in buffers]
        layout = layout_of([0, *sizes], frozen=False)
        self._use_reserve()
        try:
            memory = MemoryObject.create("farm-function", layout.size)
            memory.write(0, layout.head)
            for buffer, part in zip(buffers, layout.parts[1:], strict=True):
                memory.write(part.begin, buffer)
            memory.seal()
            held = Held(memory)
            self._line.say(Word(GIVE, number, descriptor=memory.fileno()))
        except OSError as error:
            # Those who wait for it do so no longer.
            text = f"the buffers of a function, shared object {number}, cannot be held by this server: {error}"
            with contextlib.suppress(OSError):
                self._line.say(Word(FAILED, number, text))
            return None
        finally:
            self._keep_reserve()
        return held

    def _ask(self, number: int, seconds: float | None = None) -> Held:
        if os.getpid() != self._pid:  # the line is the worker's: an answer to us would go to one of the two
            raise SharedMemoryError(f"shared object {number} is not there in a process that a task has forked")
        with self._asking:
            while number not in self._held:
                try:
                    self._line.say(Word(ASK, number))
                    self._late.discard(number)
                    # The answer to a question that was interrupted may come first.
                    while (word := self._hear(number, seconds)).number != number:
                        self._note(word)
                except (OSError, EOFError) as error:
                    raise SharedMemoryError(f"shared object {number} cannot be had: {error}") from error
                self._note(word)
                if word.kind == REFUSED:
                    raise SharedMemoryError(word.text)
            return self._held[number]

    def _hear(self, number: int, seconds: float | None) -> Word:
        if seconds is not None and not self._line.has_word(seconds):
            self._late.add(number)
            raise SharedMemoryError(f"shared object {number} has not come within {seconds:g} s")
        return self._line.hear()

    def _note(self, word: Word) -> None:
        if word.kind != HERE or word.number in self._late:
            self._late.discard(word.number)
            if word.descriptor is not None:
                os.close(word.descriptor)
            return
        if word.descriptor is None:
            raise SharedMemoryError(
                f"shared object {word.number} cannot be had: worker {os.getpid()} has too many files open"
            )
        try:
            self._make_room()
            memory = MemoryObject.received(word.descriptor)
            with _mapping(word.number, memory):
                self._held[word.number] = Held(memory)
        except RemoteProtocolError as error:
            raise SharedMemoryError(f"shared object {word.number} cannot be used: {error}") from error

    def _make_room(self) -> None:
        """Close the descriptor that was used longest ago, if there are many."""
        found = [(held.used, number) for number, held in list(self._held.items()) if not held.loaded]
        if len(found) >= MOST_OPEN:
            self._held.pop(min(found)[1], None)

    # -- for the thread that reads the lane --------------------------------------------------------------

    def heed(self, frame: Frame) -> bool:
        """Do what a frame says; return whether it is one about shared objects.

        Raises:
            RemoteProtocolError: It is a piece that is malformed, or not the one that is due.
        """
        if frame.type is FrameType.PIECE:
            self._add(frame)
        elif frame.type is FrameType.UNSHARE:
            self._drop(frame.seq)
        else:
            return False
        return True

    def _add(self, frame: Frame) -> None:
        """Take a piece of an object, and hand the object to the supervisor when it is whole."""
        number, begin, size, data = decode_piece(frame)
        coming = self._coming
        if begin == 0:  # it may have been begun before, over a connection that has broken
            self._coming = None
            self._use_reserve()
            try:
                coming = self._coming = _Coming(number, MemoryObject.create("farm-shared", size))
            except OSError as error:
                self._fail(number, size, error)
                return
        if coming is None:
            return  # the rest of one that has failed, or was dropped on its way
        if (number, begin, size) != (coming.number, coming.done, coming.memory.size):
            raise RemoteProtocolError(f"a piece of shared object {number} from {begin} on, which is not due")
        try:
            coming.memory.write(begin, data)
        except OSError as error:
            self._fail(number, size, error)
            return
        coming.done += len(data)
        if coming.done == size:
            self._coming = None
            self._give(coming)
            coming.memory.close()
            self._keep_reserve()

    def _give(self, coming: _Coming) -> None:
        try:
            coming.memory.seal()
            self._line.say(Word(GIVE, coming.number, descriptor=coming.memory.fileno()))
        except OSError as error:
            self._fail(coming.number, coming.memory.size, error)

    def _keep_reserve(self) -> None:
        if self._reserve is None:
            with contextlib.suppress(OSError):  # tasks have taken all; they may give some back until next time
                self._reserve = os.dup(self._line.fileno())

    def _use_reserve(self) -> None:
        reserve, self._reserve = self._reserve, None
        if reserve is not None:
            with contextlib.suppress(OSError):  # a task may have closed all that it found open
                os.close(reserve)

    def _fail(self, number: int, size: int, error: OSError) -> None:
        coming, self._coming = self._coming, None
        if coming is not None:
            coming.memory.close()
        self._keep_reserve()
        text = f"shared object {number} of {size} bytes cannot be held by this server: {error}"
        try:
            self._line.say(Word(FAILED, number, text))
        except OSError:  # the supervisor is gone, and so are we, in a moment
            pass

    def _drop(self, number: int) -> None:
        """Let go of an object that nobody needs any more."""
        self.dropped(number)
        self._held.pop(number, None)
        if self._coming is not None and self._coming.number == number:
            self._coming.memory.close()
            self._coming = None
            self._keep_reserve()
