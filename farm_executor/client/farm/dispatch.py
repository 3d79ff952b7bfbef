"""Decisions and their deeds: the scheduler, its lock, and what has been submitted and not yet admitted.

This module owns the lock under which the scheduler decides and lanes are sent what it has decided. It must not know
sockets, what comes over them, nor what a future is: a lane is what tasks can be sent to.

One lock guards the scheduler, the ways to the lanes, and all sending. Deciding and sending happen in the same hold
of it, so no event can come between a decision and its deed. All else that follows from a decision is returned by
`Dispatch.perform`, and is to be done without the lock: futures are settled, and so users' callbacks run, without
it.

To submit never waits for the lock. A task is put down in ``incoming``; whoever takes the lock admits first what
lies there, and whoever gives it back looks there once more if a worker idles. The submitting thread only tries the
lock, and only if a worker idles: it gets it, and sends, or whoever has it will. So a destructor or a signal handler
may submit, too, even if its own thread has been interrupted while it holds the lock. Whatever else users may call
there asks `is_mine` before it takes the lock.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, Protocol

from farm_executor.client.farm.future import MUST_NOT_WAIT, start_all
from farm_executor.client.farm.interrupt import HeldBack
from farm_executor.client.farm.locks import OwnedLock
from farm_executor.core.scheduler import Scheduler
from farm_executor.core.task import Assign, Cancel, Decision, Kill, Lose, Recall, Retire, Task

__all__ = ["Afterwards", "Dispatch", "Unsent", "Way"]

# Seconds to wait for the lock where it is only looked under. It is held for milliseconds, so longer than that means
# for ever: the thread that has it waits for a lock of a future's, which this thread holds.
LONGEST_LOOK = 5.0


class Way(Protocol):
    """The way to a worker.

    Attributes:
        offered: See `Lane`.
    """

    offered: int | None

    def send_offer(self, offer: bytes) -> bool:
        """Tell the worker which modules there are; say whether the socket took all of it."""

    def send_tasks(self, seq: int, tasks: list[Task]) -> bool:
        """Send tasks, numbered from ``seq`` on; say the same."""

    def send_recall(self, count: int) -> bool:
        """Ask for tasks back; say the same."""


class Unsent(NamedTuple):
    """The lane's socket did not take all that it was sent."""

    lane: int


Afterwards = Lose | Cancel | Retire | Unsent
"""What is to be done about a decision when the lock has been given back."""


class Dispatch:
    """See the module.

    Args:
        ways: The lanes by number. Changed with the lock held.
        watch: Told, with the lock held, which task is a lane's oldest now, once any task has had a timeout.
        offer: Called, with the lock held, before tasks are sent to a worker that may lack modules.
        follow_up: Does what `perform` has returned for tasks that were admitted. In any thread, with the lock held.
        interrupted: Told that nobody knows any more what has been done, and why. The same.

    Attributes:
        scheduler: With the lock held. `has_idle_lane` may be asked without.
        ids: The numbers of tasks to come. Any thread may take one.
        incoming: Tasks submitted and not admitted yet. Any thread may append.
        deciding: To be held in order to decide and perform; what has been submitted is admitted first.
        looking: The same, for a thread that cannot be sure to get the lock; see `look`.
        submitted: How many calls were admitted.
        timed: Whether any task had a timeout.
        closed: Whether no task is admitted any more.

    Thread safety: `is_mine`, `admit` and `look` may be called from any thread.
    """

    def __init__(
        self,
        ways: Mapping[int, Way],
        watch: Callable[[int, Task | None], None],
        offer: Callable[[Way], None],
        follow_up: Callable[[list[Afterwards]], None],
        interrupted: Callable[[str], None],
    ) -> None:
        self._ways = ways
        self._watch = watch
        self._offer = offer
        self._follow_up = follow_up
        self._interrupted = interrupted
        self._lock = OwnedLock()
        self.ids = itertools.count(1)
        self.is_mine = self._lock.is_mine
        self.scheduler = Scheduler(start=_start)
        self.incoming: deque[Task] = deque()
        self.deciding = _Deciding(self, self._lock)
        self.looking = _Deciding(self, self._lock, LONGEST_LOOK)
        self.submitted = 0
        self.timed = False
        self.closed = False

    def admit(self) -> None:
        """Send what has been submitted, unless somebody else is about to."""
        with HeldBack():
            # Who has the lock looks at `incoming` after giving it back. So whoever fails to get it here may go:
            # the task was put there before, and will be seen. And who gets it gives it back before looking again.
            while self.incoming and not self.closed and not self.is_mine() and self._lock.acquire(False):
                try:
                    self.take_incoming()
                except BaseException:  # another signal's handler raised in the midst of it: what was done?
                    self._interrupted("a submit was interrupted half-way; make a new executor")
                    raise
                finally:
                    self._lock.release()

    def take_incoming(self) -> None:
        """Hand what has been submitted to the scheduler; the lock is held."""
        assert self.is_mine()
        while self.incoming and not self.closed:
            # Only as many as there are now: others append meanwhile, and deques have no way to take all at once.
            tasks = [self.incoming.popleft() for _ in range(len(self.incoming))]
            self.submitted += sum([task.calls for task in tasks if not task.goes_on])
            self.submit(tasks)

    def submit(self, tasks: list[Task]) -> None:
        """Hand the scheduler new tasks; the lock is held."""
        after = self.perform(self.scheduler.submit(*tasks))
        if after:
            self._follow_up(after)

    def perform(self, decisions: list[Decision]) -> list[Afterwards]:
        """Do what was decided, as far as that means sending; the lock is held.

        Returns:
            What is to be done when it has been given back.
        """
        after: list[Afterwards] = []
        for decision in decisions:
            if isinstance(decision, Assign):
                lane = decision.lane
                way = self._ways[lane]
                if way.offered is not None:
                    self._offer(way)
                if not way.send_tasks(decision.seq, decision.tasks):
                    after.append(Unsent(lane))
                if self.timed:
                    self.watch_time(lane)
            elif isinstance(decision, Recall):
                if not self._ways[decision.lane].send_recall(decision.count):
                    after.append(Unsent(decision.lane))
            else:
                after.append(decision)
        return after

    def watch_time(self, lane: int) -> None:
        """The lane's oldest task may be another one; the lock is held."""
        if self.timed:
            self._watch(lane, self.scheduler.running_on(lane))

    def aim(self, lane: int, meant: Callable[[Task], bool]) -> Kill | None:
        """What to ask of a lane's supervisor, so that it kills one of these tasks if it runs."""
        with self.deciding:
            return next(iter(self.scheduler.kill(meant, lane)), None)

    @contextlib.contextmanager
    def look(self) -> Iterator[None]:
        """Hold the lock in order to look and change nothing, also amid a decision of this very thread.

        Raises:
            RuntimeError: It cannot be had. The thread that has it may wait for a lock of a future's, which this one
                holds, as when a signal's handler has interrupted `concurrent.futures.wait`.
        """
        if self.is_mine():
            yield
        else:
            with self.looking:
                yield

    def forget_all(self) -> list[Task]:
        """Give all tasks up and return them; the lock is held."""
        assert self.is_mine()
        tasks = list(self.scheduler.tasks())
        self.scheduler = Scheduler(start=_start)
        return tasks


class _Deciding:
    """The dispatch's lock, held in order to decide and perform; what has been submitted is admitted first."""

    def __init__(self, dispatch: Dispatch, lock: OwnedLock, timeout: float = -1) -> None:
        self._dispatch = dispatch
        self._lock = lock
        self._timeout = timeout

    def __enter__(self) -> None:
        assert not self._lock.is_mine(), "a decision within a decision"
        if not self._lock.acquire(True, self._timeout):
            raise RuntimeError(MUST_NOT_WAIT)
        # Before anything else is decided: who cancels or counts all tasks means those submitted before, too.
        if self._dispatch.incoming:
            self._dispatch.take_incoming()

    def __exit__(self, *error: object) -> None:
        dispatch = self._dispatch
        self._lock.release()
        # A submit that came while the lock was held has tried it in vain, and relies on this look.
        if dispatch.incoming and dispatch.scheduler.has_idle_lane:
            dispatch.admit()


def _start(tasks: list[Task]) -> list[bool]:
    """For the scheduler: which of the tasks' futures have not been cancelled."""
    return start_all([task.call for task in tasks])
