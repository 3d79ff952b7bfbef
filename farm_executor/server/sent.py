"""What a worker has received and not run yet.

This module owns the functions and the tasks that have come, and the numbers of those that are still to come. It
must not know how they are received, nor how they are run.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from farm_executor._record import NamedTuple, maker
from farm_executor.core.batches import decode_tasks, decode_tasks_together
from farm_executor.core.frames import (
    BULK,
    ERROR,
    MAX_RECALLS,
    ONCE,
    TOGETHER,
    Buffer,
    Frame,
    Payload,
    payload_of,
    prefix_of,
)
from farm_executor.data import payload
from farm_executor.errors import RemoteProtocolError
from farm_executor.server.asking import Questions
from farm_executor.server.handed import Handed, handed_in
from farm_executor.server.originals import Originals
from farm_executor.server.shared import Held, SharedObjects

__all__ = ["Backlog", "SentFunction", "SentTask"]

_NUMBER = 8  # bytes of the number of a function's buffers, before its payload


class SentFunction:
    """A function as it was received, with room for the object that the runner loads from it.

    Attributes:
        data: Its pickle; None once that is no longer needed.
        originals: The buffers that the pickle refers to, if any.
        generation: The generation of the namespaces when it was loaded; -1 before that.
    """

    __slots__ = ("data", "generation", "loaded", "originals")

    def __init__(self, data: Payload, originals: Originals | Handed | Held | None = None) -> None:
        self.data: Payload | None = data[:1]
        self.originals = originals
        self.loaded: Any = None
        self.generation = -1


class SentTask(NamedTuple):
    """A task as it was received.

    Attributes:
        arguments: A payload; for a plain call, the positional arguments themselves.
        header: What travels with the call; see `carried`.
    """

    seq: int
    function: SentFunction
    arguments: Any
    once: bool
    plain: bool
    header: Buffer = b""


make_task = maker(SentTask)


class Backlog:
    """The tasks that wait for the main thread; see the module.

    Attributes:
        tasks: In their order. The main thread takes them from the front, and they are recalled from the back; both
            are atomic, so a task is either run or given back, and never both.
        functions: Those that came over the present connection, by number.
        header: The header of the tasks to come over it.
        expected: The next task's number.
        recalls: How often numbers have become free again, modulo `MAX_RECALLS`.

    Thread safety: all but `tasks` belongs to the thread that reads the lane.
    """

    def __init__(self) -> None:
        self.tasks: deque[SentTask | Frame] = deque()
        self.functions: dict[int, SentFunction] = {}
        self.header: Buffer = b""
        self.expected = 0
        self.recalls = 0

    def change_connection(self) -> None:
        """Forget what holds for one connection: the client says it again over the next."""
        self.functions.clear()
        self.header = b""

    def introduce(
        self,
        frame: Frame,
        objects: SharedObjects | None,
        questions: Questions,
        ask: Callable[[int], Payload],
    ) -> None:
        """Take the function of a FUNCTION frame.

        Args:
            frame: The frame.
            objects: The shared objects, among which are those of functions that are sent once to each server.
            questions: What has been asked of the client: the function may be the answer.
            ask: Asks the client for a function whole.

        Raises:
            RemoteProtocolError: It is malformed.
        """
        number = frame.seq
        if not frame.flags & TOGETHER:
            answers = questions.answer_lacking(frame)
            # It may be for tasks to come as well, and the answer follow: when the worker was told to forget it, or
            # has another connection.
            if not frame.flags & ERROR and not (answers and number in self.functions):
                data = payload_of(frame)
                self.functions[number] = SentFunction(data, Originals(data[1:]) if len(data) > 1 else None)
            return
        if objects is None:
            raise RemoteProtocolError("a function for all workers of a server without shared objects")
        data = payload_of(frame, _NUMBER)
        shared = int.from_bytes(prefix_of(frame, _NUMBER) if frame.flags & BULK else frame.body[:_NUMBER], "little")
        if len(data) > 1:
            self.functions[number] = SentFunction(data, handed_in(objects, shared, data[1:]))
        else:
            self.functions[number] = SentFunction(data, Handed(objects, shared, partial(ask, number)))

    def add(self, frame: Frame) -> None:
        """Take the tasks of a TASKS frame.

        Raises:
            RemoteProtocolError: It is malformed, not the one that was due, or names functions that never came.
        """
        seq, functions, header = self.expected, self.functions, self.header
        if frame.seq != seq:
            raise RemoteProtocolError(f"tasks from {frame.seq} on, when {seq} was due")
        tasks = []
        once, plain = bool(frame.flags & ONCE), bool(frame.flags & TOGETHER)
        calls: Iterable[tuple[int, Any]]
        if plain:
            numbers, data = decode_tasks_together(frame)
            calls = zip(numbers, payload.loads_together(data, len(numbers)), strict=True)
        else:
            calls = decode_tasks(frame)
        for number, arguments in calls:
            function = functions.get(number)
            if function is None:
                raise RemoteProtocolError(f"task {seq} names function {number}, which never came")
            # The task holds its function: a FORGET behind it concerns later ones only.
            tasks.append(make_task((seq, function, arguments, once, plain, header)))
            seq += 1
        self.expected = seq
        self.tasks.extend(tasks)

    def give_back(self, count: int) -> int:
        """Give back up to that many tasks, the last ones; return how many."""
        given = 0
        # From the back: the numbers that become free are then the highest, and those before them stay as they are.
        while given < count:
            try:
                last = self.tasks.pop()
            except IndexError:  # the main thread has begun the rest
                break
            if isinstance(last, Frame):  # INIT, which is not a task and has no number
                self.tasks.append(last)
                break
            given += 1
        self.expected -= given
        return given

    def free_numbers(self) -> int:
        """Count that the numbers from `expected` on will be used again; return the count.

        Kill orders name tasks by number. With this count they also say which use of the number they mean.
        """
        self.recalls = (self.recalls + 1) % MAX_RECALLS
        return self.recalls
