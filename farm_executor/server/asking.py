"""A worker's questions for modules, and for what is known of its tasks, until they are answered.

This module owns which questions are open. It must not read or send.
"""

from __future__ import annotations

import itertools
import os
import sys
import threading
import time
from collections.abc import Hashable

from farm_executor.core.frames import BULK, ERROR, Buffer, Frame, FrameType, Payload, encode_frame, payload_of
from farm_executor.core.shipment import encode_question
from farm_executor.current import Details
from farm_executor.data import payload
from farm_executor.errors import SharedMemoryError

__all__ = ["ModuleQuestion", "Question", "Questions", "is_called_within"]


class Question:
    """One question.

    Attributes:
        number: Its number, or by what else its answer is known.
        encoded: Its frame.
        answered: Set once there is an answer, or it is certain that there will not be one.
        frame: The answer; None if there is none.
    """

    def __init__(self, number: int, kind: FrameType, body: bytes) -> None:
        self.number: Hashable = number
        self.encoded: list[Buffer] = encode_frame(kind, seq=number, body=body)
        self.answered = threading.Event()
        self.frame: Frame | None = None

    def details(self) -> Details:
        """Return what is known of a task, if it was that which was asked."""
        if self.frame is None or not self.frame.body:
            return Details()
        id, attempt, category, left = payload.loads((self.frame.body,))
        return Details(id, attempt, category, None if left is None else time.monotonic() + left)

    def function(self) -> Payload:
        """Return the function that was asked for.

        Raises:
            SharedMemoryError: The client does not have it any more, or is gone.
        """
        if self.frame is None or self.frame.flags & ERROR:
            raise SharedMemoryError("the large buffers of the function cannot be had: its call has been settled")
        return payload_of(self.frame)


class ModuleQuestion(Question):
    """The question for a module."""

    def __init__(self, number: int, name: str, own: str) -> None:
        super().__init__(number, FrameType.WANTED, encode_question(name, own))
        self.name = name

    def result(self) -> Payload | None:
        """Return the client's answer; see `WorkerLane.ask`."""
        if self.frame is None:
            reason = "the client is gone"
        elif self.frame.flags & ERROR:
            reason = bytes(self.frame.body).decode(errors="replace")
        else:
            return payload_of(self.frame) if self.frame.flags & BULK else None
        raise ModuleNotFoundError(f"No module named {self.name!r}: {reason}", name=self.name)


class Questions:
    """The open questions.

    Thread safety: each operation is atomic; `add` and `open` are called with the lane's lock for sending held.
    """

    def __init__(self) -> None:
        self._open: dict[Hashable, Question] = {}
        self._numbers = itertools.count()
        self._over = False
        self._pid = os.getpid()

    def about(self, seq: int) -> Question:
        """Return a question for what is known of the task with that number, which is not yet open."""
        return Question(next(self._numbers), FrameType.ABOUT, seq.to_bytes(8, "little"))

    def lacking(self, function: int) -> Question:
        """Return a question for a function as a whole, which is not yet open."""
        question = Question(function, FrameType.LACKING, b"")
        question.number = FrameType.LACKING, function
        return question

    def new(self, name: str, own: str) -> ModuleQuestion:
        """Return a question for a module, which is not yet open.

        Raises:
            ModuleNotFoundError: This is not the worker's own process.
        """
        if os.getpid() != self._pid:
            raise ModuleNotFoundError(
                f"No module named {name!r}: a process that a task has forked cannot ask the client for it; "
                "import it in the task, before",
                name=name,
            )
        return ModuleQuestion(next(self._numbers), name, own)

    def add(self, question: Question) -> None:
        """Open a question that is about to be asked."""
        # First added, then checked; give_up() sets the flag and then empties the table: whichever thread is
        # second sees the other's step, so that no question stays open for ever.
        self._open[question.number] = question
        if self._over:
            self.give_up()

    def open(self) -> list[Question]:
        """Return the questions to be asked again over another connection."""
        return list(self._open.values())

    def answer(self, frame: Frame) -> None:
        """Take an answer of the client's, perhaps to a question that it has answered before."""
        self._answer(frame.seq, frame)

    def answer_lacking(self, frame: Frame) -> bool:
        """Take a function that comes whole; return whether it was asked for."""
        return self._answer((FrameType.LACKING, frame.seq), frame)

    def _answer(self, number: Hashable, frame: Frame) -> bool:
        question = self._open.pop(number, None)
        if question is not None:
            question.frame = frame
            question.answered.set()
        return question is not None

    def give_up(self) -> None:
        """Close all questions without an answer, and those to come."""
        self._over = True
        while self._open:
            _, question = self._open.popitem()
            question.answered.set()


def is_called_within() -> bool:
    """Return whether the calling function was called while other code of its own source file was at work."""
    frame = sys._getframe(1)
    file = frame.f_code.co_filename
    while (frame := frame.f_back) is not None:  # type: ignore[assignment]
        if frame.f_code.co_filename == file:
            return True
    return False
