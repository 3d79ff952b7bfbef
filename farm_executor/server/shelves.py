"""The shared objects of a server's sessions, as the supervisor has them: descriptors, and who waits for them.

This module owns the descriptors. It must not know what may be held (`core.shelf`), nor ever look at what is in an
object: it neither maps nor reads one.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from farm_executor.core.frames import Buffer
from farm_executor.core.sharing import State, encode_answer
from farm_executor.core.shelf import Room, Shelf, gone
from farm_executor.errors import RemoteProtocolError
from farm_executor.server.channel import Line, Word
from farm_executor.server.shared import ASK, FAILED, GIVE, HERE, REFUSED
from farm_executor.wire.memory_objects import MemoryObject

__all__ = ["Shelves"]


class Shelves:
    """The shared objects of one session.

    Args:
        room: The room that all sessions have together.
        tell: Sends buffers to the client, if it is connected.
    """

    def __init__(self, room: Room, tell: Callable[[list[Buffer]], None]) -> None:
        self._shelf = Shelf(room)
        self._objects: dict[int, MemoryObject] = {}
        self._tell = tell

    def offer(self, number: int, size: int, spare: bool = False) -> None:
        """Answer the client's offer."""
        state, reason = self._shelf.offer(number, size, spare)
        self._tell(encode_answer(number, state, reason))
        if state is State.REFUSED:
            self._release(number, state, reason)

    def drop(self, number: int) -> None:
        """Let go of an object; its memory is free once the last mapping of it is gone."""
        self._shelf.drop(number)
        self._objects.pop(number, None)
        # A task may still begin whose call has been settled without it, and its worker must not wait for ever.
        self._release(number, State.REFUSED, gone(number))

    def forget(self, line: Line) -> None:
        """Note that a worker has ended."""
        self._shelf.forget(line)

    def close(self) -> None:
        """Close all descriptors, without telling anybody."""
        for memory in self._objects.values():
            memory.close()
        self._objects.clear()
        self._shelf.clear()

    def heed(self, line: Line) -> bool:
        """Do what a worker says on its line; return whether it may say more, and has not ended."""
        try:
            word = line.hear()
        except BlockingIOError:
            return True
        except EOFError:
            return False
        # A task may have written to its worker's line: a descriptor that comes with any other word is nobody's.
        if word.descriptor is not None and word.kind != GIVE:
            os.close(word.descriptor)
        if word.kind == ASK:
            state, reason = self._shelf.ask(word.number, line)
            if state is not State.WANTED:
                self._answer(line, word.number, state, reason)
        elif word.kind == GIVE:
            self._receive(word)
        elif word.kind == FAILED:
            self._refuse(word.number, word.text)
        return True

    def _receive(self, word: Word) -> None:
        what = f"shared object {word.number}"
        if word.descriptor is None:
            self._refuse(word.number, f"{what} cannot be held: this server has too many files open")
            return
        try:
            memory = MemoryObject.received(word.descriptor)
        except (OSError, RemoteProtocolError) as error:
            self._refuse(word.number, f"{what} cannot be held: {error}")
            return
        if self._shelf.arrived(word.number, memory.size):
            self._objects[word.number] = memory
            self._tell(encode_answer(word.number, State.HELD))
            self._release(word.number, State.HELD, "")
        else:  # of one that is not to come any more, this says nothing to anybody
            self._refuse(word.number, f"{what} has {memory.size} bytes, which is not what was offered")

    def _refuse(self, number: int, reason: str) -> None:
        if self._shelf.fail(number, reason):
            self._tell(encode_answer(number, State.REFUSED, reason))
            self._release(number, State.REFUSED, reason)

    def _release(self, number: int, state: State, reason: str) -> None:
        for line in self._shelf.waiting(number):
            if isinstance(line, Line):
                self._answer(line, number, state, reason)

    def _answer(self, line: Line, number: int, state: State, reason: str) -> None:
        try:
            if state is State.HELD:
                line.say(Word(HERE, number, descriptor=self._objects[number].fileno()))
            else:
                line.say(Word(REFUSED, number, reason))
        except OSError:  # it is gone
            pass
