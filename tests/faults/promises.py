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

from farm_executor import WorkerLostError
from farm_executor.core.handshake import PROTOCOL_VERSION

__all__ = ["LANES_ARE_RESUMED", "MANY", "Expectation", "Verdict", "judge"]

LANES_ARE_RESUMED = PROTOCOL_VERSION >= 2
"""Whether a worker outlives the loss of its connection. If not, what it ran is run again or lost with it."""

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
        cancelled: Whether it may have been cancelled.
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


def judge(expectations: Sequence[Expectation], book: Book, seconds: float) -> Verdict:
    """Wait for all, that long at most, and look at each: at its outcome, and at how often it has run."""
    deadline = monotonic() + seconds
    verdict = Verdict()
    ended = [one for one in expectations if _judge_outcome(one, max(deadline - monotonic(), 0.0), verdict)]
    if verdict.hung:
        faulthandler.dump_traceback(sys.__stderr__)
    runs = book.runs()
    for one in expectations:
        if runs[one.name] > 1:
            (verdict.twice if one.once else verdict.again).append(one.name)
    verdict.unrun = [one.name for one in ended if not runs[one.name]]
    return verdict


def _judge_outcome(expected: Expectation, seconds: float, verdict: Verdict) -> bool:
    """Look at what came of it; say whether it must have run for that."""
    if expected.future is None:
        return False
    try:
        outcome: Any = expected.future.result(seconds)
    except FutureTimeoutError as error:
        if not expected.future.done():
            verdict.hung.append(expected.name)
            return False
        outcome = error
    except (Exception, CancelledError) as error:
        outcome = error
    verdict.settled += 1
    if isinstance(outcome, WorkerLostError):
        (verdict.given_up if expected.once else verdict.lost).append(expected.name)
        return False
    if isinstance(outcome, CancelledError) and expected.cancelled:
        return False
    if isinstance(expected.value, type):
        right = type(outcome) is expected.value
    else:
        right = type(outcome) is type(expected.value) and outcome == expected.value
    if not right:
        verdict.wrong.append(f"{expected.name}: {outcome!r:.100}")
    return right and not expected.name.startswith("map")
