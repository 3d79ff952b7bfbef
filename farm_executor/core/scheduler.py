"""Which task goes to which lane, and what a loss means for it.

This module owns the queues, the lanes' outstanding work, recall and attempts. Its methods are the events, their
return values what is to be done now: it must not know sockets, pickles, futures, threads or clocks.

The rules:

1. A task is in exactly one place: queued here, outstanding on one lane, or settled and forgotten.
2. Queues are FIFO within a priority; a higher priority always goes first. A task that comes back from a lane
   goes to the front of its queue.
3. No lane is idle while a task is queued that any lane may run, unless its answer to a recall is due.
4. A submitted task goes straight to an idle lane, the one that was busy last: its worker's caches are warm.
   Everything else waits here and leaves in batches: a lane is refilled when half of its window is free. (Sending
   second tasks one by one, too, would keep short tasks from ever forming a batch, and a batch costs as much as a
   task.)
5. Tasks are numbered per lane, and a lane answers in that order. An answer out of order is the peer's error.
6. When a lane is idle and nothing is queued, half of what another lane has not begun is recalled from it.
7. A worker that dies charges an attempt to the task that it ran, and to no other; if it ran none, to the first
   that it had been sent, which it may have died of receiving. With its attempts used up a task is lost; one that
   never began, only after three such deaths. A task with a single attempt is never sent again once it may have
   begun. A worker that was killed because of one task charges no other.
8. A task with a seat is run by that seat's lane, this one or a later one. It goes out at once, whatever the lane
   has and may have.
9. A task that is to be cancelled is asked for back from the lane that has it, and with it all that this lane has
   not begun: who cancels one mostly cancels others, too. So the lane gets nothing until it has answered one more.
10. A lane that is cut off gets nothing and keeps what it has, until it is resumed or lost. When it is resumed, what
   has not reached its worker comes back, which charges nobody.

Thread safety: none; the caller holds one lock around every call and the deeds that follow from it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterator
from itertools import islice

from farm_executor.core.frames import MAX_RECALLS
from farm_executor.core.queues import Queues
from farm_executor.core.task import Assign, Cancel, Decision, Kill, Lose, Recall, Retire, Task
from farm_executor.core.window import Window
from farm_executor.errors import RemoteProtocolError

__all__ = ["Scheduler"]


MAX_RANGES = 1000  # of one kill: what is so far behind does not run, and an order has a limited size
MAX_RECEIPTS = 3  # deaths of workers that had begun nothing, which a task is held responsible for at most


class _Lane:
    __slots__ = (
        "bound",
        "budget",
        "draining",
        "held",
        "id",
        "may_recall",
        "next_seq",
        "outstanding",
        "recalling",
        "recalls",
        "seat",
        "window",
    )

    def __init__(self, id: int, budget: int | None, seat: Hashable) -> None:
        self.id = id
        self.budget = budget
        self.seat = seat
        self.window = Window()
        self.outstanding: deque[Task] = deque()
        self.bound = 0  # how many of them have a seat
        self.next_seq = 0
        # Asked and not yet answered, or cut off: meanwhile it gets nothing, so that its tail stays known.
        self.recalling = False
        self.held = False  # it gets nothing until it has answered a task, or has none
        self.recalls = 0  # how often numbers have become free again
        self.draining = False  # it gets nothing any more, and is retired when it has ended what it has begun
        self.may_recall = True  # not when it had nothing to give back, until it has answered something more

    @property
    def first_seq(self) -> int:
        return self.next_seq - len(self.outstanding)

    @property
    def has_movable(self) -> bool:
        """Whether another lane could run any of its tasks but the first."""
        return not self.bound or any(task.seat is None for task in islice(self.outstanding, 1, None))

    def room(self, queued: int, lanes: int) -> int:
        """Return how many of the queued tasks to send now, if there are that many lanes."""
        size, had = self.window.size, len(self.outstanding)
        if self.recalling or self.draining or self.held or had > size // 2:
            return 0
        share = -(-queued // lanes)  # so that a short queue feeds every lane
        room = min(size - had, share)
        return room if self.budget is None else min(room, self.budget)


class Scheduler:
    """The queues and the lanes of one farm.

    Args:
        start: Asked when tasks leave the queue for the first time, for each; a task for which it says no (its
            future was cancelled) is forgotten.
    """

    def __init__(self, start: Callable[[list[Task]], list[bool]] = lambda tasks: [True] * len(tasks)) -> None:
        self._start = start
        self._queues = Queues()
        self._lanes: dict[int, _Lane] = {}
        # Indexes of the lanes, kept by _index: dicts serve as ordered sets.
        self._idle: dict[int, _Lane] = {}
        self._loaded: dict[int, _Lane] = {}
        self._seated: dict[Hashable, _Lane] = {}
        self._returned: list[Task] = []  # unwanted ones that have come back, until that has been decided
        self.outstanding = 0

    @property
    def queued(self) -> int:
        """The number of queued tasks that any lane may run."""
        return self._queues.queued

    @property
    def reserved(self) -> int:
        """The number of tasks that wait for the lane of their seat."""
        return self._queues.reserved

    @property
    def unsettled(self) -> int:
        """The number of tasks that are queued, reserved for a seat, or outstanding."""
        return self._queues.queued + self._queues.reserved + self.outstanding

    @property
    def has_idle_lane(self) -> bool:
        """Whether a task submitted now would be sent at once. Another thread may ask without the lock."""
        return bool(self._idle)

    def running_on(self, lane: int) -> Task | None:
        """The oldest task that the lane has not answered: it runs it, or has just ended it or is about to begin."""
        outstanding = self._lanes[lane].outstanding if lane in self._lanes else ()
        return outstanding[0] if outstanding else None

    def task_at(self, lane: int, seq: int | None) -> Task | None:
        """The task that the lane has under that number, if it has."""
        if seq is None or lane not in self._lanes:
            return None
        found = self._lanes[lane]
        index = seq - found.first_seq
        return found.outstanding[index] if 0 <= index < len(found.outstanding) else None

    def first_seq(self, lane: int) -> int:
        """That task's number, or that of the next."""
        return self._lanes[lane].first_seq if lane in self._lanes else 0

    def tasks(self) -> Iterator[Task]:
        """Every unsettled task: what lanes have, then what is queued."""
        for lane in self._lanes.values():
            yield from lane.outstanding
        yield from self._queues

    def waiting(self) -> list[Task]:
        """Every task that no lane has."""
        return list(self._queues)

    def tasks_on(self, lane: int) -> list[Task]:
        """Those that the lane has not answered, the oldest first."""
        return list(self._lanes[lane].outstanding) if lane in self._lanes else []

    def kill(self, meant: Callable[[Task], bool], lane_id: int | None = None) -> list[Kill]:
        """What to ask of whom, so that every running task that is meant, there, is killed. Changes nothing."""
        kills = []
        there = self._lanes.values() if lane_id is None else filter(None, [self._lanes.get(lane_id)])
        for lane in there:
            ranges: list[tuple[int, int]] = []
            tasks: list[Task] = []
            for seq, task in enumerate(lane.outstanding, lane.first_seq):
                if len(ranges) > MAX_RANGES:
                    break
                if meant(task):
                    follows = bool(ranges) and ranges[-1][1] == seq - 1
                    begin = ranges.pop()[0] if follows else seq
                    ranges.append((begin, seq))
                    tasks.append(task)
            if ranges:
                kills.append(Kill(lane.id, lane.first_seq, lane.recalls, ranges, tasks))
        return kills

    # -- events ----------------------------------------------------------------------------------------------

    def submit(self, *tasks: Task) -> list[Decision]:
        """New tasks have come."""
        decisions: list[Decision] = []
        for task in tasks:
            if task.seat is not None:
                self._queues.append(task)
                decisions += self._seat(task.seat)
            elif not self._idle or self._queues.queued:
                self._queues.append(task)
            elif task.started or self._start([task])[0]:
                task.started = True
                decisions.append(self._assign(self._idle.popitem()[1], [task]))
        return decisions

    def prepend(self, *tasks: Task) -> None:
        """New tasks have come that go before all others, in a seat whose lane is still to come."""
        for task in reversed(tasks):
            self._requeue(task)

    def withdraw(self, task: Task) -> bool:
        """Forget the task if it is queued and has never been started; say whether that was so."""
        return not task.started and self._queues.remove(task)

    def drop(self, task: Task) -> bool:
        """Forget the task if it is queued, even if it has been started before; say whether that was so."""
        started, task.started = task.started, False
        dropped = self.withdraw(task)
        task.started = started
        return dropped

    def take_back(self, task: Task, unwanted: Callable[[], bool]) -> tuple[int | None, list[Decision]]:
        """Forget a task that has been sent, if it certainly has not begun; if a lane has it, have it back for that.

        Args:
            task: The task.
            unwanted: See `Task`. Asked at once if the task is in a queue.

        Returns:
            The lane whose answer is to be awaited, and what to do now. None if there is none: no lane has it, or it
            is the oldest that its lane has not answered, which it most likely runs. Nothing is to be done if that
            lane's answer to another recall is due, or it is cut off.
        """
        if task.begun:
            return None, []
        # Not all lanes are searched, which may be thousands: the task knows where it was sent last.
        lane = self._lanes.get(task.lane)
        if lane is None or task not in lane.outstanding:
            back = task in self._queues and unwanted() and self.drop(task)
            return None, [Cancel(task)] if back else []
        if lane.outstanding[0] is task:
            return None, []
        task.unwanted = unwanted
        if lane.recalling:
            return lane.id, []
        lane.recalling = lane.held = True
        self._index(lane)
        return lane.id, [Recall(lane.id, len(lane.outstanding) - 1)]

    def withdraw_all(self, *, but: int = 0) -> list[Task]:
        """Forget every queued task that has never been started, but the first so many; return these."""
        fresh = [task for task in self._queues if not task.started]
        return [task for task in fresh[but:] if self.withdraw(task)]

    def lane_up(self, lane_id: int, budget: int | None = None, seat: Hashable = None) -> list[Decision]:
        """A lane with a ready worker has come, in that seat.

        Args:
            lane_id: The lane.
            budget: How many tasks it may run in its life, without those reserved for its seat. None: any number.
            seat: Its place, which no other lane has now.
        """
        lane = self._lanes[lane_id] = _Lane(lane_id, budget, seat)
        if seat is not None:
            self._seated[seat] = lane
        self._index(lane)
        return self._seat(seat) + self._refill(lane)

    def seat_gone(self, seat: Hashable) -> list[Task]:
        """There will be no lane in that seat any more: forget the tasks that wait for one, and return them."""
        return self._queues.pop_reserved(seat)

    def finished(
        self, lane_id: int, seq: int, count: int, busy_us: float, round_trip_us: float | None = None
    ) -> tuple[list[Task], list[Decision]]:
        """The lane has answered ``count`` tasks, the first numbered ``seq``; the times are `Window.report`'s.

        Returns:
            The tasks answered, in order, which are forgotten here, and what to do now.

        Raises:
            RemoteProtocolError: These are not the tasks whose turn it is.
        """
        lane = self._lanes[lane_id]
        outstanding = lane.outstanding
        if seq != lane.next_seq - len(outstanding) or not 0 < count <= len(outstanding):
            raise RemoteProtocolError(
                f"results {seq} to {seq + count - 1}, when {lane.first_seq} to {lane.next_seq - 1} were due"
            )
        tasks = [outstanding.popleft() for _ in range(count)]
        self.outstanding -= count
        if lane.bound:
            lane.bound -= sum(task.seat is not None for task in tasks)
        lane.window.report(count, busy_us, round_trip_us)
        lane.may_recall = True
        lane.held = False
        return tasks, self._refill(lane)

    def recalled(self, lane_id: int, seq: int, count: int) -> list[Decision]:
        """The lane gives back its last ``count`` tasks, the first of them numbered ``seq``.

        Raises:
            RemoteProtocolError: It was not asked, or these are not its last tasks.
        """
        lane = self._lanes[lane_id]
        if not lane.recalling or (count and seq != lane.next_seq - count):
            raise RemoteProtocolError(f"recalled {count} tasks from {seq}; the next would be {lane.next_seq}")
        lane.may_recall = self._take_back(lane, count) > 0
        lane.recalls = (lane.recalls + bool(count)) % MAX_RECALLS
        return self._go_on(lane)

    def lane_cut(self, lane_id: int) -> None:
        """The way to the lane's worker is cut: it gets nothing until it is resumed or lost."""
        lane = self._lanes[lane_id]
        lane.recalling = True
        self._index(lane)

    def resumed(self, lane_id: int, expected: int, recalls: int) -> list[Decision]:
        """There is a way to the lane's worker again, and the next task that it expects has that number.

        Those from there on have never reached it, or were on their way back: they have not begun. It has counted so
        many recalls.

        Raises:
            RemoteProtocolError: That task has been answered, or is still to be numbered.
        """
        lane = self._lanes[lane_id]
        self._take_back(lane, lane.next_seq - expected)
        lane.recalls = recalls
        lane.may_recall = True
        return self._go_on(lane)

    def drain_lane(self, lane_id: int) -> list[Decision]:
        """The lane is to end with what it has begun: give it nothing more, and take back the rest."""
        lane = self._lanes[lane_id]
        lane.draining = lane.may_recall = True
        self._index(lane)
        return self._recall_rest(lane) + self._refill(lane)

    def lane_lost(self, lane_id: int, begun: int | None, killed: int | None = None) -> list[Decision]:
        """The lane is gone, and with it its worker or the way to it.

        Args:
            lane_id: The lane; unknown ones, such as those retired, are ignored.
            begun: The number of the last task that the worker began, -1 for none; None when nobody can say,
                and then each of its tasks may have begun.
            killed: The number of the task because of which the worker was killed, if it was; -1 if it was killed
                and for none of these.
        """
        lane = self._lanes.get(lane_id)
        if lane is None:
            return []
        self._forget(lane)
        self.outstanding -= len(lane.outstanding)
        decisions: list[Decision] = []
        seq = lane.next_seq
        first = lane.first_seq
        while lane.outstanding:  # the last first, as in recalled
            seq -= 1
            task = lane.outstanding.pop()
            if seq == killed:
                decisions.append(Lose(task, killed=True))
                continue
            guilty = killed is None and seq == (first if begun is None else max(first, begun))
            may_have_begun = begun is None or seq <= begun
            task.losses += guilty
            limit = task.max_attempts if may_have_begun else max(task.max_attempts, MAX_RECEIPTS)
            if (guilty and task.losses >= limit) or (may_have_begun and task.max_attempts == 1):
                decisions.append(Lose(task))
            else:
                task.begun = task.begun or may_have_begun
                self._requeue(task)
        decisions.reverse()
        return decisions + self._cancels() + self._dispatch()

    # -- how -------------------------------------------------------------------------------------------------

    def _take_back(self, lane: _Lane, count: int) -> int:
        """Queue the lane's last tasks again; say how many of them other lanes may run, too."""
        if not 0 <= count <= len(lane.outstanding):
            raise RemoteProtocolError(f"{count} tasks came back, of {len(lane.outstanding)}")
        back = [lane.outstanding.pop() for _ in range(count)]
        lane.next_seq -= count
        self.outstanding -= count
        movable = sum(task.seat is None for task in back)
        lane.bound -= count - movable
        if lane.budget is not None:
            lane.budget += movable
        for task in back:  # the last first, so that the first ends up in front
            self._requeue(task)
        return movable

    def _go_on(self, lane: _Lane) -> list[Decision]:
        """The lane's tail is known again."""
        lane.recalling = False
        lane.held = lane.held and bool(lane.outstanding)
        self._index(lane)
        decisions = self._cancels() + self._seat(lane.seat) + self._dispatch()
        return decisions + (self._recall_rest(lane) if lane.draining else []) + self._refill(lane)

    def _recall_rest(self, lane: _Lane) -> list[Decision]:
        """Take back all that the lane has not begun, as long as it gives anything."""
        if lane.recalling or not lane.may_recall or len(lane.outstanding) < 2:
            return []
        lane.recalling = True
        self._index(lane)
        return [Recall(lane.id, len(lane.outstanding) - 1)]

    def _begin(self, tasks: list[Task]) -> list[Task]:
        """Those of the tasks that may be sent."""
        fresh = [task for task in tasks if not task.started]
        if not fresh:
            return tasks
        answers = self._start(fresh)
        for task, answer in zip(fresh, answers, strict=True):
            task.started = answer
        return tasks if all(answers) else [task for task in tasks if task.started]

    def _cancels(self) -> list[Decision]:
        returned, self._returned = self._returned, []
        return [Cancel(task) for task in returned]

    def _requeue(self, task: Task) -> None:
        if task.unwanted is not None and not task.begun and task.unwanted():
            self._returned.insert(0, task)
            return
        self._queues.prepend(task)

    def _take(self, count: int) -> list[Task]:
        """Up to that many tasks from the front of the queues, without those whose start is refused."""
        taken: list[Task] = []
        while self._queues.queued and len(taken) < count:
            taken += self._begin(self._queues.pop(count - len(taken)))
        return taken

    def _seat(self, seat: Hashable) -> list[Decision]:
        """Send the seat's lane what is reserved for it."""
        lane = self._seated.get(seat)
        if lane is None or lane.recalling or not self._queues.has_reserved(seat):
            return []
        tasks = self._begin(self.seat_gone(seat))
        return [self._assign(lane, tasks, seated=True)] if tasks else []

    def _forget(self, lane: _Lane) -> None:
        del self._lanes[lane.id]
        self._idle.pop(lane.id, None)
        self._loaded.pop(lane.id, None)
        if self._seated.get(lane.seat) is lane:
            del self._seated[lane.seat]

    def _assign(self, lane: _Lane, tasks: list[Task], *, seated: bool = False) -> Assign:
        # Counted as taken in the same step in which it is decided: no other event can promise this room again.
        seq = lane.next_seq
        for task in tasks:
            task.lane = lane.id
        lane.outstanding.extend(tasks)
        lane.next_seq += len(tasks)
        if seated:
            lane.bound += len(tasks)
        elif lane.budget is not None:
            lane.budget -= len(tasks)
        self.outstanding += len(tasks)
        self._index(lane)
        return Assign(lane.id, seq, tasks)

    def _refill(self, lane: _Lane) -> list[Decision]:
        """Give the lane what it has room for, or see to it that nobody idles; note anew what it is good for."""
        decisions: list[Decision] = []
        queued = self._queues.queued
        tasks = self._take(lane.room(queued, len(self._lanes))) if queued else None
        if tasks:
            decisions.append(self._assign(lane, tasks))
        else:
            self._index(lane)
            if (lane.budget == 0 or lane.draining) and not lane.outstanding and not lane.recalling:
                self._forget(lane)
                decisions.append(Retire(lane.id))
        if self._loaded and self._idle:
            decisions += self._recall()
        return decisions

    def _dispatch(self) -> list[Decision]:
        """Put queued tasks on idle lanes, after tasks have come back to the queue."""
        decisions: list[Decision] = []
        while self._queues.queued and self._idle:
            tasks = self._take(1)
            if tasks:
                decisions.append(self._assign(self._idle.popitem()[1], tasks))
        return decisions + self._recall()

    def _recall(self) -> list[Decision]:
        if self._queues.queued or not self._idle or not self._loaded:
            return []
        lane = next(iter(self._loaded.values()))
        lane.recalling, lane.may_recall = True, False
        self._index(lane)
        return [Recall(lane.id, len(lane.outstanding) // 2)]

    def _index(self, lane: _Lane) -> None:
        """Note anew what the lane is good for."""
        count = len(lane.outstanding)
        if not count and not lane.recalling and not lane.draining and lane.budget != 0:
            self._idle[lane.id] = lane
        else:
            self._idle.pop(lane.id, None)
        if count >= 2 and lane.may_recall and not lane.recalling and lane.has_movable:
            self._loaded[lane.id] = lane
        else:
            self._loaded.pop(lane.id, None)
