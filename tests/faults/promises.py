"""What is promised of a task when something was done to connections and processes, and who broke it.

This module owns the verdict: from the futures and the book of runs to a list of broken promises, in words. It must
not know which faults there were, beyond whether a worker may have been lost.
"""

from __future__ import annotations

import faulthandler
import sys
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from faults.book import Book

from farm_executor import TaskTimeoutError, WorkerLostError

__all__ = ["MANY", "Expectation", "Verdict", "judge"]

MANY = 50
"""Attempts of a task that must not be lost: more than a test takes workers from it."""


@dataclass(frozen=True)
class Expectation:
    """What is to come of a task.

    Attributes:
        name: Under which it notes its runs.
        future: Its future; None for an item of a map, which has none that can be seen.
        value: What it returns, or the type of the exception that it raises.
        once: Whether it is to run once at most: then, and only then, it may be lost.
        cancelled: Whether its cancelling succeeded. Then it must not run.
    """

    name: str
    future: Future[Any] | None
    value: Any
    once: bool
    cancelled: bool = False


@dataclass
class Verdict:
    """What came of all tasks.

    Attributes:
        settled: How many have an outcome.
        lost: Those that have none although they were to be tried again.
        given_up: Those that were to run once and came to grief: allowed when workers are lost.
        wrong: Those with another outcome than theirs.
        hung: Those without any, in time.
        twice: Those that were to run once and have run more often.
        again: Those that have run more often, and were allowed to if their worker is no more.
        unrun: Those that have an outcome and have never run.
    """

    settled: int = 0
    lost: list[str] = field(default_factory=list)
    given_up: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    hung: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    again: list[str] = field(default_factory=list)
    unrun: list[str] = field(default_factory=list)

    def broken(self, *, workers_lived: bool) -> dict[str, list[str]]:
        """The promises that were broken, with the tasks.

        Args:
            workers_lived: Whether no worker was lost. Then nothing may be run again, nor given up.
        """
        kinds = ["lost", "wrong", "hung", "twice", "unrun", *(("given_up", "again") if workers_lived else ())]
        return {kind: found for kind in kinds if (found := getattr(self, kind))}

    def take_outcome(self, expected: Expectation, seconds: float = 0.0) -> bool:
        """Wait for what comes of a task, that long at most; say whether it must have run for that."""
        if expected.future is None:
            return False
        try:
            outcome: Any = expected.future.result(seconds)
        except FutureTimeoutError as error:
            if not expected.future.done():
                self.hung.append(expected.name)
                return False
            outcome = error
        except (Exception, CancelledError) as error:
            outcome = error
        self.settled += 1
        if isinstance(outcome, WorkerLostError) and not expected.cancelled:
            (self.given_up if expected.once else self.lost).append(expected.name)
            return False
        value = CancelledError if expected.cancelled else expected.value
        if isinstance(value, type):
            right = type(outcome) is value
        else:
            right = type(outcome) is type(value) and outcome == value
        if not right:
            self.wrong.append(f"{expected.name}: {outcome!r:.100}")
        # What is killed in its first moment has begun, and has not got so far as to note that.
        noted = value is not TaskTimeoutError and not expected.name.startswith("map")
        return right and not expected.cancelled and noted

    def take_runs(self, expected: Expectation, runs: int, *, must_have_run: bool) -> None:
        """Look at how often a task has run."""
        if runs and expected.cancelled:
            self.wrong.append(f"{expected.name}: has run although it was cancelled")
        elif runs > 1:
            (self.twice if expected.once else self.again).append(expected.name)
        elif not runs and must_have_run:
            self.unrun.append(expected.name)


def judge(expectations: Sequence[Expectation], book: Book, seconds: float) -> Verdict:
    """Wait for all, that long at most, and look at each: at its outcome, and at how often it has run."""
    deadline = monotonic() + seconds
    verdict = Verdict()
    ended = {one.name: verdict.take_outcome(one, max(deadline - monotonic(), 0.0)) for one in expectations}
    if verdict.hung:
        faulthandler.dump_traceback(sys.__stderr__)
    runs = book.runs()
    for one in expectations:
        verdict.take_runs(one, runs[one.name], must_have_run=ended[one.name])
    return verdict
