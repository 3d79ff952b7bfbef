"""A worker's questions for modules, until they are answered.

This module owns which questions are open. It must not read or send.
"""

from __future__ import annotations

import itertools
import os
import sys
import threading

from farm_executor.core.frames import BULK, ERROR, Buffer, Frame, FrameType, Payload, encode_frame, payload_of
from farm_executor.core.shipment import encode_question

__all__ = ["Question", "Questions", "is_called_within"]


class Question:
    """One question.

    Attributes:
        encoded: Its frame.
        answered: Set when there is an answer, or there will be none.
    """

    def __init__(self, number: int, name: str, own: str) -> None:
        self.number = number
        self.name = name
        self.encoded: list[Buffer] = encode_frame(FrameType.WANTED, seq=number, body=encode_question(name, own))
        self.answered = threading.Event()
        self.frame: Frame | None = None

    def result(self) -> Payload | None:
        """What the client has said; see `WorkerLane.ask`."""
        if self.frame is None:
            reason = "the client is gone"
        elif self.frame.flags & ERROR:
            reason = bytes(self.frame.body).decode(errors="replace")
        else:
            return payload_of(self.frame) if self.frame.flags & BULK else None
        raise ModuleNotFoundError(f"No module named {self.name!r}: {reason}", name=self.name)


class Questions:
    """Those that are open.

    Thread safety: each operation is atomic; `add` and `open` are called with the lane's lock for sending held.
    """

    def __init__(self) -> None:
        self._open: dict[int, Question] = {}
        self._numbers = itertools.count()
        self._over = False
        self._pid = os.getpid()

    def new(self, name: str, own: str) -> Question:
        """A question, not yet open.

        Raises:
            ModuleNotFoundError: This is not the worker's own process.
        """
        if os.getpid() != self._pid:
            raise ModuleNotFoundError(
                f"No module named {name!r}: a process that a task has forked cannot ask the client for it; "
                "import it in the task, before",
                name=name,
            )
        return Question(next(self._numbers), name, own)

    def add(self, question: Question) -> None:
        """It is about to be asked."""
        self._open[question.number] = question
        if self._over:
            self.give_up()

    def open(self) -> list[Question]:
        """Those to be asked again over another connection."""
        return list(self._open.values())

    def answer(self, frame: Frame) -> None:
        """The client has answered; perhaps a question that it has answered before."""
        question = self._open.pop(frame.seq, None)
        if question is not None:
            question.frame = frame
            question.answered.set()

    def give_up(self) -> None:
        """There will be no answers any more."""
        self._over = True
        while self._open:
            _, question = self._open.popitem()
            question.answered.set()


def is_called_within() -> bool:
    """Whether the function that asks this has been called amid other work of its own source file."""
    frame = sys._getframe(1)
    file = frame.f_code.co_filename
    while (frame := frame.f_back) is not None:  # type: ignore[assignment]
        if frame.f_code.co_filename == file:
            return True
    return False
