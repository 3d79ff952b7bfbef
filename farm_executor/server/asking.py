"""A worker's questions for modules, and for what is known of its tasks, until they are answered.

This module owns which questions are open. It must not read or send.
"""

from __future__ import annotations

import itertools
import os
import sys
import threading

from farm_executor.core.frames import BULK, ERROR, Buffer, Frame, FrameType, Payload, encode_frame, payload_of
from farm_executor.core.shipment import encode_question

__all__ = ["ModuleQuestion", "Question", "Questions", "is_called_within"]


class Question:
    """One question.

    Attributes:
        number: Its number.
        encoded: Its frame.
        answered: Set once there is an answer, or it is certain that there will not be one.
        frame: The answer; None if there is none.
    """

    def __init__(self, number: int, kind: FrameType, body: bytes) -> None:
        self.number = number
        self.encoded: list[Buffer] = encode_frame(kind, seq=number, body=body)
        self.answered = threading.Event()
        self.frame: Frame | None = None


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
        self._open: dict[int, Question] = {}
        self._numbers = itertools.count()
        self._over = False
        self._pid = os.getpid()

    def about(self, seq: int) -> Question:
        """Return a question for what is known of the task with that number, which is not yet open."""
        return Question(next(self._numbers), FrameType.ABOUT, seq.to_bytes(8, "little"))

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
        question = self._open.pop(frame.seq, None)
        if question is not None:
            question.frame = frame
            question.answered.set()

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
