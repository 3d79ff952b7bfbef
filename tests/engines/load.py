"""A load on a farm, under which something goes wrong, and the verdict over what became of its tasks.

Every other task may run once at most. The others may be tried again, as any task that does not say otherwise.
"""

from __future__ import annotations

import os

from faults import tasks
from faults.book import Book
from faults.promises import Expectation, judge

from farm_executor import FarmExecutor

SECONDS = 0.1
SETTLED = (
    120.0  # seconds after which what has no outcome counts as lost: a cluster that starts again takes its time
)


class Load:
    """Tasks of a tenth of a second, each of which notes that it has begun."""

    def __init__(self, farm: FarmExecutor, folder: str | os.PathLike[str], count: int = 100) -> None:
        self._book = Book(folder)
        self._expectations = []
        views = (farm, farm.with_options(max_attempts=1))
        for number in range(count):
            future = views[number % 2].submit(tasks.echo_after, SECONDS, self._book.path, number, number)
            self._expectations.append(Expectation(str(number), future, number, bool(number % 2)))

    def wait_for_some(self) -> None:
        """Wait until a quarter has been done."""
        self._expectations[len(self._expectations) // 4].future.result(SETTLED)

    def broken(self, *, workers_lived: bool = False) -> dict[str, list[str]]:
        """Wait for all; return the promises that were broken, with the tasks.

        Args:
            workers_lived: Whether no worker was lost: then nothing may be run again, or given up, either.
        """
        verdict = judge(self._expectations, self._book, SETTLED)
        return verdict.broken(workers_lived=workers_lived)
