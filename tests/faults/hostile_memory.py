"""Memory and words of processes on this machine, made to be anything: more targets, for `hostile`.

A worker runs whatever tasks do, and has its line to the supervisor open. What it says of shared objects there, and
what it hands over, is as good as a peer's.
"""

from __future__ import annotations

import contextlib
import os
import struct
from itertools import pairwise

from farm_executor.core.frames import MAX_SEGMENT, Buffer, Reference
from farm_executor.core.reader import FrameReader
from farm_executor.core.sharing import State, decode_answer, layout_of
from farm_executor.core.shelf import Room
from farm_executor.errors import RemoteProtocolError, SharedMemoryError
from farm_executor.server.channel import Line, Word
from farm_executor.server.shared import ASK, FAILED, GIVE, HERE, REFUSED, Held, SharedObjects
from farm_executor.server.shelves import Shelves
from farm_executor.wire import memfd
from farm_executor.wire.memory_objects import MemoryObject

__all__ = ["SEEDS", "TARGETS"]

LIMIT, MOST = 5000, 6  # bytes and objects of the server
WORDS = (ASK, GIVE, FAILED, HERE, REFUSED)
_STEP = struct.Struct("<BBHB")  # what happens, to which object, of what size, and how


def _memory(size: int, how: int) -> MemoryObject:
    """Memory of that size, which is sealed or not, and says that it is of that size or not."""
    made = MemoryObject.create("farm-hostile", max(size, 1))
    if how & 1:
        made.seal()
    elif how & 2:
        os.ftruncate(made.fileno(), size // 2)
    return made


def line(data: bytes) -> None:
    """What a client offers, and what workers say and hand over, in any order."""
    told: list[Buffer] = []
    room = Room(lambda: LIMIT, lambda: MOST)
    shelves = Shelves(room, told.extend)
    mine, theirs = Line.pair()
    held: list[MemoryObject] = []
    try:
        for begin in range(0, len(data) - _STEP.size + 1, _STEP.size):
            event, number, size, how = _STEP.unpack_from(data, begin)
            if event % 4 == 0:
                shelves.offer(number, size or MAX_SEGMENT)
            elif event % 4 == 1:
                shelves.drop(number)
            elif event % 4 == 2:
                said = Word(WORDS[how % len(WORDS)], number, chr(size % 0xD800 or 0x2028))
                if how & 64:
                    held.append(_memory(size, how))
                    said = said._replace(descriptor=held[-1].fileno())
                theirs.say(said)
                assert shelves.heed(mine)
            else:
                theirs._socket.send(data[begin : begin + 1] * 1024)
                assert shelves.heed(mine)
            while True:  # so that nothing waits for being read
                with contextlib.suppress(BlockingIOError):
                    theirs._socket.setblocking(False)
                    word = theirs.hear()
                    if word.descriptor is not None:
                        os.close(word.descriptor)
                    continue
                break
            assert 0 <= room.used <= LIMIT
            assert len(shelves._objects) <= MOST
        for frame in FrameReader().receive_data(b"".join(told)):
            _, state, reason = decode_answer(frame)
            assert (state is State.REFUSED) == bool(reason)
            assert reason.isprintable() or not reason
        shelves.close()
        assert room.used == 0
    finally:
        for line_ in (mine, theirs):
            line_.close()
        for memory in held:
            memory.close()


def mapped(data: bytes) -> None:
    """Memory that is handed over as a shared object, whatever is in it: nothing beyond it is looked at."""
    how, contents = (data[0], data[1:]) if len(data) > 1 else (0, data + b"\0")
    made = _memory(len(contents), 0)
    made.write(0, contents)
    if how & 1:
        made.seal()
    with contextlib.suppress(RemoteProtocolError):
        received = MemoryObject.received(os.dup(made.fileno()))
        assert how & 1 or not memfd.AVAILABLE
        held = Held(received)
        for _ in range(2):
            parts = [memoryview(part).cast("B") for part in held.parts()]
            assert [len(part) for part in parts] == [part.size for part in held.layout.parts]
            for part in parts:
                bytes(part)  # read, all of it
                if not part.readonly and len(part):
                    part[0] ^= 255  # which the next call does not see
        places = [(part.begin, part.begin + part.size) for part in held.layout.parts]
        assert all(one[1] <= other[0] for one, other in pairwise(places))
        assert bytes(held.memory.view(private=False)) == contents
    made.close()


def references(data: bytes) -> None:
    """References of a client's to objects, of which the supervisor says anything at all."""
    mine, theirs = Line.pair()
    mine._socket.setblocking(True)
    objects = SharedObjects(theirs)
    held: list[MemoryObject] = []
    try:
        wanted = [b"pickle", *(Reference.to(number) for number in data[:3])]
        for begin in range(3, len(data) - _STEP.size + 1, _STEP.size)[:8]:
            kind, number, size, how = _STEP.unpack_from(data, begin)
            said = Word(WORDS[kind % len(WORDS)], number, "why")
            if how & 64:
                held.append(_memory(size, 0))
                held[-1].write(0, (_OBJECT if how & 32 else data)[: max(size, 1)])
                if how & 1:
                    held[-1].seal()
                said = said._replace(descriptor=held[-1].fileno())
            mine.say(said)
        mine._socket.shutdown(1)
        for _ in range(2):
            with contextlib.suppress(SharedMemoryError):
                filled = objects.filled(wanted)
                assert len(filled) == len(wanted)
                assert not any(type(part) is Reference for part in filled)
    finally:
        mine.close()
        theirs.close()
        for memory in held:
            memory.close()


_LAYOUT = layout_of([0, 100], frozen=False)
_OBJECT = _LAYOUT.head.ljust(_LAYOUT.size, b"\1")
_STEPS = [
    (0, 1, 300, 0),
    (2, 1, 1, 0),
    (2, 1, 300, 64 + 1),
    (2, 1, 1, 0),
    (3, 0, 0, 0),
    (0, 2, 60_000, 0),
    (1, 1, 0, 0),
]

TARGETS = (line, mapped, references)
SEEDS = {
    "line": [b"".join(_STEP.pack(*step) for step in _STEPS)],
    "mapped": [b"\1" + _OBJECT, b"\0" + _OBJECT, b"\1" + layout_of([5], frozen=True).head.ljust(128, b"\0")],
    "references": [b"\1\2\1" + _STEP.pack(3, 1, len(_OBJECT), 97) + _STEP.pack(3, 2, len(_OBJECT), 97)],
}
