"""What a server counts of its workers: how many have begun, and what those did that are gone.

This module owns these counters, and why a worker has ended in one word. It must not know who reads them.
"""

from __future__ import annotations

import time
from collections import Counter, deque

from farm_executor.core.census import Death
from farm_executor.core.messages import WorkerDied
from farm_executor.server.process import Worker
from farm_executor.server.session import Session

__all__ = ["Counts", "cause_of"]

DEATHS = 16  # the last ones, which are told


class Counts:
    """Counters since the server was started.

    Attributes:
        workers: How many workers there have been.
        ended: How many have ended, by cause.
        deaths: The last of those that were not told to end.
        tasks: How many tasks workers that are gone have begun.
        seconds: The seconds that these took.
        received: The bytes that workers that are gone have received on their lanes.
        sent: The same for what they have sent.
    """

    def __init__(self) -> None:
        self.workers = 0
        self.ended: Counter[str] = Counter()
        self.deaths: deque[Death] = deque(maxlen=DEATHS)
        self.tasks = 0
        self.seconds = 0.0
        self.received = self.sent = 0

    def worker_ended(self, session: Session, worker: Worker, report: WorkerDied, *, told: bool) -> None:
        """Count the end of a worker, whose progress can still be read; ``told`` if it was told to end."""
        figures = worker.figures()
        self.tasks += figures.begun
        self.seconds += figures.spent
        self.received += figures.received
        self.sent += figures.sent
        cause = cause_of(report, told=told)
        self.ended[cause] += 1
        if cause != "ended":
            self.deaths.append(
                Death(time.time(), session.number, worker.slot, worker.pid, cause, report.code, report.peak or 0)
            )


def cause_of(report: WorkerDied, *, told: bool) -> str:
    """Return in one word why a worker has ended, as `core.census.Death` has them; "ended" if it was told to."""
    for name in ("killed", "held", "frozen"):
        if getattr(report, name) is not None:
            return name
    if told:
        return "ended"
    if report.oom:
        return "oom"
    return "signal" if report.code < 0 else "exit" if report.code else "ended"
