"""Decisions and how they are carried out: the scheduler, its lock, and tasks submitted but not yet admitted.

This module owns the lock under which the scheduler decides and its decisions are sent to lanes. It must not know
sockets, the data that arrives on them, nor what a future is: to this module, a lane is a place to send tasks to.

One lock guards the scheduler, the ways to the lanes, and all sending. Deciding and sending happen in a single hold
of the lock, so no event can come between a decision and its execution. Everything else that follows from a decision
is returned by `Dispatch.perform` and has to be done without the lock: futures are settled without it, so users'
callbacks run without it.

A submit never waits for the lock. It appends the task to ``incoming``. A thread that takes the lock first admits
the tasks found there, and a thread that releases it looks there once more if a worker is idle. The submitting
thread only tries the lock, and only if a worker is idle: either it gets the lock and sends, or the thread that
holds it will. So a destructor or a signal handler may submit as well, even if it has interrupted its own thread
while that held the lock. Everything else that users may call from there checks `is_mine` before it takes the lock.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from farm_executor._record import NamedTuple
from farm_executor.client.farm.call import Call
from farm_executor.client.farm.future import MUST_NOT_WAIT, start, start_all
from farm_executor.client.farm.interrupt import HeldBack
from farm_executor.client.farm.locks import OwnedLock
from farm_executor.client.farm.records import Levels
from farm_executor.core.scheduler import Scheduler
from farm_executor.core.task import Assign, Cancel, Decision, Kill, Lose, Recall, Retire, Task
from farm_executor.wire.trace import pending, tell

__all__ = ["Afterwards", "Dispatch", "Unsent", "Way"]

# Seconds to wait for the lock in order to look only. It is held for milliseconds, so a longer wait means a
# deadlock: the thread that holds it waits for the lock of a future, which this thread holds.
LONGEST_LOOK = 5.0


class Way(Protocol):
    """The way to a worker: the part of `Lane` that a dispatch uses.

    Attributes:
        offered: See `Lane`.
        levels: See `Lane`.
    """

    offered: int | None
    levels: int | None

    def send_levels(self, levels: Levels) -> None:
        """Tell the worker the levels of the program's loggers, unless it knows them."""

    def send_offer(self, offer: bytes) -> bool:
        """Tell the worker which modules are available; return whether the socket took all of it."""

    def send_tasks(self, seq: int, calls: list[Any]) -> bool:
        """Send calls, numbered from ``seq`` on; return whether the socket took all of it."""

    def send_stop(self, seq: int) -> bool:
        """Tell the worker that nobody wants a task's result; return whether the socket took all of it."""

    def send_credit(self, seq: int, taken: int) -> bool:
        """Tell the worker how many frames of a task's items have been taken; return whether the socket took it."""

    def send_recall(self, count: int) -> bool:
        """Ask for tasks back; return whether the socket took all of it."""


class Unsent(NamedTuple):
    """The lane's socket did not take everything that was sent."""

    lane: int


Afterwards = Lose | Cancel | Retire | Unsent
"""What remains to be done about a decision once the lock has been released."""


class Dispatch:
    """The scheduler and its lock; see the module.

    Args:
        ways: The lanes by number. Changed with the lock held.
        watch: Called with the lock held, once any task has had a timeout: told which task is now the oldest on a
            lane.
        offer: Called with the lock held, before tasks are sent to a worker that may lack modules.
        follow_up: Called in any thread with the lock held: does what `perform` returned for tasks just admitted.
        levels: Those of the program's loggers; None for tests that have none.
        interrupted: Called in any thread with the lock held: told why nobody knows any more what has been done.

    Attributes:
        scheduler: To be used with the lock held, except for `has_idle_lane`, which may be read without it.
        ids: The numbers of tasks to come. Any thread may take one.
        incoming: Tasks submitted but not admitted yet. Any thread may append.
        deciding: A context to hold in order to decide and perform; submitted tasks are admitted on entry.
        looking: The same, for a thread that cannot be sure of getting the lock; see `look`.
        submitted: The number of calls admitted.
        timed: Whether any task has had a timeout.
        closed: Whether tasks are no longer admitted.

    Thread safety: `is_mine`, `admit` and `look` may be called from any thread.
    """

    def __init__(
        self,
        ways: Mapping[int, Way],
        watch: Callable[[int, Task | None], None],
        offer: Callable[[Way], None],
        follow_up: Callable[[list[Afterwards]], None],
        interrupted: Callable[[str], None],
        levels: Levels | None = None,
    ) -> None:
        self._ways = ways
        self._levels = levels or Levels()
        self._watch = watch
        self._offer = offer
        self._follow_up = follow_up
        self._interrupted = interrupted
        self._lock = OwnedLock()
        self.ids = itertools.count(1)
        self.is_mine = self._lock.is_mine
        self.scheduler = Scheduler(start=_start)
        self.incoming: deque[Call] = deque()
        self.deciding = _Deciding(self, self._lock)
        self.looking = _Deciding(self, self._lock, LONGEST_LOOK)
        self.submitted = 0
        self.timed = False
        self.closed = False

    def admit(self) -> None:
        """Send the tasks that have been submitted, unless another thread is about to."""
        with HeldBack():
            # The thread that holds the lock looks at `incoming` after releasing it. So a thread that fails to get
            # the lock here may leave: its task was appended before, and will be seen. For the same reason a thread
            # that gets the lock must release it before it looks again.
            while self.incoming and not self.closed and not self.is_mine() and self._lock.acquire(False):
                try:
                    self.take_incoming()
                except BaseException:
                    # `HeldBack` defers SIGINT alone. The handler of another signal has raised in here, so nobody
                    # knows which tasks the scheduler has and which were sent: the farm cannot go on.
                    self._interrupted("a submit was interrupted half-way; make a new executor")
                    raise
                finally:
                    self._lock.release()
            if pending:  # frames sent meanwhile are logged now that the lock is not held
                tell()

    def take_incoming(self) -> None:
        """Hand the submitted tasks to the scheduler. The lock is held."""
        assert self.is_mine()
        while self.incoming and not self.closed:
            # Only as many as there are now: other threads append in the meantime, and a deque cannot be emptied
            # in one step.
            count, take = len(self.incoming), self.incoming.popleft
            tasks = [take()] if count == 1 else [take() for _ in range(count)]
            for task in tasks:
                if not task.goes_on:
                    self.submitted += task.calls
            after = self.perform(self.scheduler.submit(*tasks))
            if after:
                self._follow_up(after)

    def submit(self, calls: list[Call]) -> None:
        """Hand new calls to the scheduler. The lock is held."""
        assert self.is_mine()
        after = self.perform(self.scheduler.submit(*calls))
        if after:
            self._follow_up(after)

    def perform(self, decisions: list[Decision]) -> list[Afterwards]:
        """Carry out the part of the decisions that means sending. The lock is held.

        Returns:
            What remains to be done once the lock has been released.
        """
        after: list[Afterwards] = []
        for decision in decisions:
            if isinstance(decision, Assign):
                lane = decision.lane
                way = self._ways[lane]
                if way.levels is not None:
                    self._levels.look()
                    if way.levels != self._levels.version:
                        way.send_levels(self._levels)
                # Before the tasks: their worker may need the modules in order to unpickle them.
                if way.offered is not None:
                    self._offer(way)
                # This never waits. Bytes that the socket does not take stay in the connection's buffer; only a
                # handler may have the selector watch for room, so that is left for later.
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
        """Report the oldest task on a lane, which may have changed. The lock is held."""
        if self.timed:
            self._watch(lane, self.scheduler.running_on(lane))

    def credit(self, lane: int, seq: int, taken: int) -> list[Afterwards]:
        """Tell a worker how many frames of items have been taken; return what remains to be done.

        The lock is held.
        """
        way = self._ways.get(lane)
        return [] if way is None or way.send_credit(seq, taken) else [Unsent(lane)]

    def stop(self, call: Call) -> list[Afterwards]:
        """Tell the worker that runs a call that nobody wants its result; return what remains to be done."""
        with self.deciding:
            way = self._ways.get(call.lane)
            # The number of one that is not the oldest may be another's before the worker reads this. Such a call
            # has been asked back, and is cancelled, unless it has become the oldest meanwhile.
            if way is None or self.scheduler.running_on(call.lane) is not call:
                return []
            return [] if way.send_stop(self.scheduler.first_seq(call.lane)) else [Unsent(call.lane)]

    def aim(self, lane: int, meant: Callable[[Task], bool]) -> Kill | None:
        """Return the order for a lane's supervisor to kill a matching task if it runs; None if there is none."""
        with self.deciding:
            return next(iter(self.scheduler.kill(meant, lane)), None)

    @contextlib.contextmanager
    def look(self) -> Iterator[None]:
        """Hold the lock in order to look without changing anything, even amid a decision of this same thread.

        Raises:
            RuntimeError: The lock cannot be had. The thread that holds it may be waiting for the lock of a future,
                which this thread holds, such as when a signal handler has interrupted `concurrent.futures.wait`.
        """
        # The lock is not reentrant by design: its entry admits tasks, which must not happen in the middle of a
        # decision. A thread that holds it already, in a signal handler or a destructor, only reads.
        if self.is_mine():
            yield
        else:
            with self.looking:
                yield

    def forget_all(self) -> list[Any]:
        """Forget all tasks and return them. The lock is held."""
        assert self.is_mine()
        calls = list(self.scheduler.tasks())
        # The new scheduler knows no lanes. Lanes that are lost later are unknown to it, and move no tasks.
        self.scheduler = Scheduler(start=_start)
        return calls


class _Deciding:
    """The dispatch's lock, held in order to decide and perform; submitted tasks are admitted on entry."""

    def __init__(self, dispatch: Dispatch, lock: OwnedLock, timeout: float = -1) -> None:
        self._dispatch = dispatch
        self._lock = lock
        self._timeout = timeout

    def __enter__(self) -> None:
        assert not self._lock.is_mine(), "a decision within a decision"
        if not self._lock.acquire(True, self._timeout):
            raise RuntimeError(MUST_NOT_WAIT)
        # Before anything else is decided: cancelling or counting all tasks includes those submitted before.
        if self._dispatch.incoming:
            self._dispatch.take_incoming()

    def __exit__(self, *error: object) -> None:
        dispatch = self._dispatch
        self._lock.release()
        # A submit that came while the lock was held failed to get it, and relies on this look. It comes after the
        # release: before it, a submit could still append, fail to get the lock, and be missed.
        if dispatch.incoming and dispatch.scheduler.has_idle_lane:
            dispatch.admit()
        if pending:
            tell()


def _start(calls: list[Any]) -> list[bool]:
    """Start the calls' futures for the scheduler; return for each whether it had not been cancelled."""
    if len(calls) == 1:
        return [start(calls[0].future)]
    return start_all([call.future for call in calls])
