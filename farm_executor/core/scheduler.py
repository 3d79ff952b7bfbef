"""Decide which lane gets which task, and what the loss of a lane means for its tasks.

This module owns the queues, the lanes' outstanding work, recalls and attempts. Its methods are the events; they
return the decisions to carry out. It must not know sockets, pickles, futures, threads or clocks.

The rules:

1. A task is in exactly one place: queued here, outstanding on one lane, or settled and forgotten.
2. Queues are FIFO within a priority; a higher priority always goes first. A task that comes back from a lane
   goes to the front of its queue.
3. No lane is idle while a task is queued that any lane may run, unless the lane still owes an answer to a recall.
4. A submitted task goes straight to an idle lane, the one that was busy last, because its worker's caches are
   warm. Everything else waits here and leaves in batches: a lane is refilled when half of its window is free.
   (Sending second tasks one by one as well would keep short tasks from ever forming a batch, and a batch costs as
   much as a single task.)
5. Tasks are numbered per lane, and a lane answers in that order. An answer out of order is the peer's error.
6. When a lane is idle and nothing is queued, half of another lane's outstanding tasks are recalled from it.
7. The death of a worker charges one attempt to the task that it was running, and to no other; if it was running
   none, to the first task that it had been sent, which it may have died of receiving. A task whose attempts are
   used up is lost; one that never began is lost only after three such deaths. A task with a single attempt is
   never sent again once it may have begun. A worker that was killed because of one task charges no other.
8. A task with a seat is run by that seat's lane, the current one or a later one. It goes out at once, regardless of
   the lane's window and budget.
9. To cancel a task that has been sent, it is recalled from its lane, together with everything else that the lane
   has not begun, because cancellations usually come in groups. The lane then gets nothing until it has answered
   one more task.
10. A lane that is cut off gets nothing and keeps what it has, until it is resumed or lost. When it is resumed, the
   tasks that did not reach its worker come back, and no attempt is charged.

Thread safety: none; the caller holds one lock around every call and around carrying out the decisions.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterator
from itertools import islice

from farm_executor.core.frames import MAX_RECALLS
from farm_executor.core.queues import Queues
from farm_executor.core.task import Assign, Cancel, Decision, Kill, Lose, Recall, Retire, Task, make_assign
from farm_executor.core.window import Window
from farm_executor.errors import RemoteProtocolError

__all__ = ["Scheduler"]


MAX_RANGES = 1000  # per kill: a task that far behind is not running, and the size of an order is limited
MAX_RECEIPTS = 3  # deaths of workers that had begun nothing before the task they received first is given up


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
        self.bound = 0  # how many of the outstanding tasks have a seat
        self.next_seq = 0
        # Whether a recall is unanswered, or the lane is cut off. Meanwhile it gets nothing: its worker gives back
        # the tail of what it has, and tasks sent after the question would make it unclear which tasks that is.
        self.recalling = False
        self.held = False  # gets nothing until it has answered a task, or has none left
        self.recalls = 0  # how often it has given tasks back, so that their numbers are used again
        self.draining = False  # gets nothing more, and is retired when it has finished what it has begun
        # False once a recall has yielded nothing that other lanes may run, until the lane has answered a task.
        # Otherwise an idle lane would have the same busy one asked again and again, in vain.
        self.may_recall = True

    @property
    def first_seq(self) -> int:
        return self.next_seq - len(self.outstanding)

    @property
    def has_movable(self) -> bool:
        """Whether another lane could run any of its tasks except the first."""
        return not self.bound or any(task.seat is None for task in islice(self.outstanding, 1, None))

    def room(self, queued: int, lanes: int) -> int:
        """Return how many of ``queued`` tasks to send now, given the number of lanes."""
        size, had = self.window.size, len(self.outstanding)
        # Refilling only at half a window is what forms batches: one task per answer would never do so.
        if self.recalling or self.draining or self.held or had > size // 2:
            return 0
        share = -(-queued // lanes)  # so that a short queue feeds every lane
        room = min(size - had, share)
        return room if self.budget is None else min(room, self.budget)


class Scheduler:
    """The queues and the lanes of one farm.

    Args:
        start: Called with tasks that leave the queue for the first time; returns for each whether to send it. A
            refused task (its future was cancelled) is forgotten.
    """

    def __init__(self, start: Callable[[list[Task]], list[bool]] = lambda tasks: [True] * len(tasks)) -> None:
        self._start = start
        self._queues = Queues()
        self._lanes: dict[int, _Lane] = {}
        # Indexes of the lanes, maintained by _index, so that no event has to search all lanes, of which there may
        # be thousands. Dicts serve as ordered sets.
        self._idle: dict[int, _Lane] = {}
        self._loaded: dict[int, _Lane] = {}
        self._seated: dict[Hashable, _Lane] = {}
        self._returned: list[Task] = []  # cancelled tasks that have come back, not yet reported by _cancels
        self.outstanding = 0

    @property
    def queued(self) -> int:
        """The number of queued tasks that any lane may run."""
        return self._queues.queued

    @property
    def reserved(self) -> int:
        """The number of tasks that are waiting for their seat's lane."""
        return self._queues.reserved

    @property
    def unsettled(self) -> int:
        """The number of tasks that are queued, reserved for a seat, or outstanding."""
        return self._queues.queued + self._queues.reserved + self.outstanding

    @property
    def has_idle_lane(self) -> bool:
        """Whether a task submitted now would be sent at once. May be read without the lock."""
        return bool(self._idle)

    def running_on(self, lane: int) -> Task | None:
        """Return the lane's oldest unanswered task: it is running, has just ended, or is about to begin."""
        outstanding = self._lanes[lane].outstanding if lane in self._lanes else ()
        return outstanding[0] if outstanding else None

    def task_at(self, lane: int, seq: int | None) -> Task | None:
        """Return the lane's outstanding task with that number, or None."""
        if seq is None or lane not in self._lanes:
            return None
        found = self._lanes[lane]
        index = seq - found.first_seq
        return found.outstanding[index] if 0 <= index < len(found.outstanding) else None

    def first_seq(self, lane: int) -> int:
        """Return the number of the lane's oldest unanswered task, or else of the next task to be sent."""
        return self._lanes[lane].first_seq if lane in self._lanes else 0

    def tasks(self) -> Iterator[Task]:
        """Iterate over every unsettled task: those on lanes, then those that are queued."""
        for lane in self._lanes.values():
            yield from lane.outstanding
        yield from self._queues

    def waiting(self, at_most: int) -> list[Task]:
        """Return the first so many of the tasks that are on no lane."""
        return list(islice(self._queues, at_most))

    def tasks_on(self, lane: int) -> list[Task]:
        """Return the tasks that the lane has not answered, oldest first."""
        return list(self._lanes[lane].outstanding) if lane in self._lanes else []

    def kill(self, meant: Callable[[Task], bool], lane_id: int | None = None) -> list[Kill]:
        """Return the kill orders to send so that every matching running task is killed. Changes no state.

        Args:
            meant: Whether to kill that task.
            lane_id: The only lane to look at; None for all lanes.
        """
        kills = []
        there = self._lanes.values() if lane_id is None else filter(None, [self._lanes.get(lane_id)])
        for lane in there:
            ranges: list[tuple[int, int]] = []
            tasks: list[Task] = []
            # Only the worker's end knows which task it runs, so all that match are named, as ranges of numbers.
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
        """Add new tasks."""
        decisions: list[Decision] = []
        for task in tasks:
            if task.seat is not None:
                self._queues.append(task)
                decisions += self._seat(task.seat)
            elif not self._idle or self._queues.queued:
                # A new task must not overtake one that is queued.
                self._queues.append(task)
            elif task.started or self._start([task])[0]:
                task.started = True
                decisions.append(self._assign(self._idle.popitem()[1], [task]))
        return decisions

    def prepend(self, *tasks: Task) -> None:
        """Add new tasks ahead of all others, for a seat that has no lane yet."""
        for task in reversed(tasks):
            self._requeue(task)

    def withdraw(self, task: Task) -> bool:
        """Forget the task if it is queued and has never been started; return whether it was."""
        return not task.started and self._queues.remove(task)

    def drop(self, task: Task) -> bool:
        """Forget the task if it is queued, even if it has been started before; return whether it was."""
        started, task.started = task.started, False
        dropped = self.withdraw(task)
        task.started = started
        return dropped

    def take_back(self, task: Task, unwanted: Callable[[], bool]) -> tuple[int | None, list[Decision]]:
        """Cancel a task that has been sent, provided that it has certainly not begun; recall it if a lane has it.

        Args:
            task: The task.
            unwanted: See `Task`. Called at once if the task is queued.

        Returns:
            The lane whose answer to wait for, and the decisions to carry out. The lane is None if there is nothing
            to wait for: no lane has the task, or it is its lane's oldest unanswered one, which is most likely
            running. There are no decisions if the lane still owes an answer to another recall, or is cut off.
        """
        # It may have begun on a worker that is gone, and nobody can say that it did not.
        if task.begun:
            return None, []
        # The task knows where it was sent last, so the lanes, of which there may be thousands, are not searched.
        lane = self._lanes.get(task.lane)
        if lane is None or task not in lane.outstanding:
            # The order matters: once `unwanted` has returned True, the future is cancelled and the task has to go.
            back = task in self._queues and unwanted() and self.drop(task)
            return None, [Cancel(task)] if back else []
        if lane.outstanding[0] is task:
            return None, []
        task.unwanted = unwanted
        if lane.recalling:
            return lane.id, []
        # Held beyond its answer, because the tasks that come back would otherwise be sent to this lane again at
        # once, and the next of them to be cancelled would have to be recalled once more.
        lane.recalling = lane.held = True
        self._index(lane)
        return lane.id, [Recall(lane.id, len(lane.outstanding) - 1)]

    def withdraw_all(self, *, but: int = 0) -> list[Task]:
        """Forget every queued task that has never been started, except the first ``but``; return the forgotten."""
        fresh = [task for task in self._queues if not task.started]
        return [task for task in fresh[but:] if self.withdraw(task)]

    def lane_up(self, lane_id: int, budget: int | None = None, seat: Hashable = None) -> list[Decision]:
        """Add a lane whose worker is ready, in that seat.

        Args:
            lane_id: The lane.
            budget: How many tasks it may run in its life, not counting those reserved for its seat; None for any
                number.
            seat: Its place, which no other lane occupies now.
        """
        lane = self._lanes[lane_id] = _Lane(lane_id, budget, seat)
        if seat is not None:
            self._seated[seat] = lane
        self._index(lane)
        return self._seat(seat) + self._refill(lane)

    def seat_gone(self, seat: Hashable) -> list[Task]:
        """Forget the tasks that are waiting for a lane in that seat, because there will be none; return them."""
        return self._queues.pop_reserved(seat)

    def finished(
        self, lane_id: int, seq: int, count: int, busy_us: float, round_trip_us: float | None = None
    ) -> tuple[list[Task], list[Decision]]:
        """Take note that the lane has answered ``count`` tasks from ``seq`` on; for the times see `Window.report`.

        Returns:
            The answered tasks in order, now forgotten here, and the decisions to carry out.

        Raises:
            RemoteProtocolError: These are not the tasks whose turn it is.
        """
        lane = self._lanes[lane_id]
        outstanding = lane.outstanding
        had = len(outstanding)
        if seq != lane.next_seq - had or not 0 < count <= had:
            raise RemoteProtocolError(
                f"results {seq} to {seq + count - 1}, when {lane.first_seq} to {lane.next_seq - 1} were due"
            )
        # One by itself is a call whose result is awaited: what is made for many would take longer than the rest.
        tasks = [outstanding.popleft()] if count == 1 else [outstanding.popleft() for _ in range(count)]
        self.outstanding -= count
        if lane.bound:
            lane.bound -= sum(task.seat is not None for task in tasks)
        lane.window.report(count, busy_us, round_trip_us)
        lane.may_recall = True
        lane.held = False
        return tasks, self._refill(lane)

    def recalled(self, lane_id: int, seq: int, count: int) -> list[Decision]:
        """Take back the last ``count`` tasks of a lane, numbered from ``seq`` on, as its answer to a recall.

        Raises:
            RemoteProtocolError: The lane was not asked, or these are not its last tasks.
        """
        lane = self._lanes[lane_id]
        if not lane.recalling or (count and seq != lane.next_seq - count):
            raise RemoteProtocolError(f"recalled {count} tasks from {seq}; the next would be {lane.next_seq}")
        lane.may_recall = self._take_back(lane, count) > 0
        # The numbers given back are used again. Both ends count how often that was, so that a kill order that names
        # tasks by number is not applied to others that have these numbers now.
        lane.recalls = (lane.recalls + bool(count)) % MAX_RECALLS
        return self._go_on(lane)

    def lane_cut(self, lane_id: int) -> None:
        """Take note that the connection to the lane's worker is broken: send it nothing until resumed or lost."""
        lane = self._lanes[lane_id]
        # As with a recall, it is unknown which of the last tasks the worker has.
        lane.recalling = True
        self._index(lane)

    def resumed(self, lane_id: int, expected: int, recalls: int) -> list[Decision]:
        """Take note that the lane's worker is reachable again, and requeue the tasks that it does not have.

        Args:
            lane_id: The lane.
            expected: The number of the next task that the worker expects. Tasks from there on have never reached
                it, or were on their way back: they have not begun.
            recalls: The worker's count of recalls.

        Raises:
            RemoteProtocolError: The expected task has been answered already, or has no number yet.
        """
        lane = self._lanes[lane_id]
        self._take_back(lane, lane.next_seq - expected)
        # The worker's count is the right one: its answer to a recall may have been lost with the connection.
        lane.recalls = recalls
        lane.may_recall = True
        return self._go_on(lane)

    def drain_lane(self, lane_id: int) -> list[Decision]:
        """Let the lane finish what it has begun: give it nothing more, and take back the rest."""
        lane = self._lanes[lane_id]
        lane.draining = lane.may_recall = True
        self._index(lane)
        return self._recall_rest(lane) + self._refill(lane)

    def lane_lost(self, lane_id: int, begun: int | None, killed: int | None = None) -> list[Decision]:
        """Requeue or give up the tasks of a lane that is gone, whose worker has died or cannot be reached.

        Args:
            lane_id: The lane; unknown ones, such as those retired, are ignored.
            begun: The number of the last task that the worker began, -1 for none; None if that is unknown, in which
                case each of its tasks may have begun.
            killed: The number of the task because of which the worker was killed, -1 if it was killed for none of
                these; None if it was not killed on request.
        """
        lane = self._lanes.get(lane_id)
        if lane is None:
            return []
        # First of all, so that none of its tasks can be sent to it again below.
        self._forget(lane)
        self.outstanding -= len(lane.outstanding)
        decisions: list[Decision] = []
        seq = lane.next_seq
        first = lane.first_seq
        while lane.outstanding:  # last first: each is put at the front of its queue, so the order stays the same
            seq -= 1
            task = lane.outstanding.pop()
            if seq == killed:
                decisions.append(Lose(task, killed=True))
                continue
            # Workers run tasks in order, so the one that ran is the last begun, or the oldest unanswered if nobody
            # can say. With ``begun`` below ``first``, all that began has been answered: the worker died between
            # tasks, perhaps of receiving the next one.
            guilty = killed is None and seq == (first if begun is None else max(first, begun))
            may_have_begun = begun is None or seq <= begun
            task.losses += guilty
            most = task.options.max_attempts
            limit = most if may_have_begun else max(most, MAX_RECEIPTS)
            if (guilty and task.losses >= limit) or (may_have_begun and most == 1):
                decisions.append(Lose(task))
            else:
                if may_have_begun:
                    task.begun = True
                self._requeue(task)
        decisions.reverse()
        return decisions + self._cancels() + self._dispatch()

    # -- implementation --------------------------------------------------------------------------------------

    def _take_back(self, lane: _Lane, count: int) -> int:
        """Requeue the lane's last tasks; return how many of them other lanes may run."""
        if not 0 <= count <= len(lane.outstanding):
            raise RemoteProtocolError(f"{count} tasks came back, of {len(lane.outstanding)}")
        back = [lane.outstanding.pop() for _ in range(count)]
        lane.next_seq -= count
        self.outstanding -= count
        movable = sum(task.seat is None for task in back)
        lane.bound -= count - movable
        if lane.budget is not None:
            lane.budget += movable
        for task in back:  # last first, so that the first ends up in front
            self._requeue(task)
        return movable

    def _go_on(self, lane: _Lane) -> list[Decision]:
        """Resume giving tasks to a lane whose last outstanding task is known again."""
        lane.recalling = False
        # A lane without tasks has no answer to give, so nothing else would ever release it.
        lane.held = lane.held and bool(lane.outstanding)
        self._index(lane)
        # Idle lanes before this one: it is mostly for them that the tasks were recalled.
        decisions = self._cancels() + self._seat(lane.seat) + self._dispatch()
        return decisions + (self._recall_rest(lane) if lane.draining else []) + self._refill(lane)

    def _recall_rest(self, lane: _Lane) -> list[Decision]:
        """Recall everything that the lane has not begun, unless the last recall was in vain."""
        if lane.recalling or not lane.may_recall or len(lane.outstanding) < 2:
            return []
        lane.recalling = True
        self._index(lane)
        return [Recall(lane.id, len(lane.outstanding) - 1)]

    def _begin(self, tasks: list[Task]) -> list[Task]:
        """Return those of the tasks that may be sent."""
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
        # Only now is it certain that the task has not begun: `unwanted` is what cancels its future.
        if task.unwanted is not None and not task.begun and task.unwanted():
            self._returned.insert(0, task)
            return
        self._queues.prepend(task)

    def _take(self, count: int) -> list[Task]:
        """Take up to ``count`` tasks from the front of the queues, without those whose start is refused."""
        taken: list[Task] = []
        # Several times, because each pop takes from one priority only, and refused tasks leave room for others.
        while self._queues.queued and len(taken) < count:
            taken += self._begin(self._queues.pop(count - len(taken)))
        return taken

    def _seat(self, seat: Hashable) -> list[Decision]:
        """Send the seat's lane the tasks that are reserved for it."""
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
        # The lane's room is taken in the same step that decides to use it, so no other event can promise it again.
        seq = lane.next_seq
        count = len(tasks)
        for task in tasks:
            task.lane = lane.id
        lane.outstanding.extend(tasks)
        lane.next_seq += count
        if seated:
            lane.bound += count
        elif lane.budget is not None:
            lane.budget -= count
        self.outstanding += count
        self._index(lane)
        return make_assign((lane.id, seq, tasks))

    def _refill(self, lane: _Lane) -> list[Decision]:
        """Give the lane the tasks that it has room for, retire it if it is done, and recall work for idle lanes."""
        decisions: list[Decision] = []
        queued = self._queues.queued
        tasks = self._take(lane.room(queued, len(self._lanes))) if queued else None
        if tasks:
            decisions.append(self._assign(lane, tasks))
        else:
            self._index(lane)
            # Not while it owes an answer to a recall, which would come from a lane unknown by then; a lane that is
            # cut off is resumed first, or lost.
            if (lane.budget == 0 or lane.draining) and not lane.outstanding and not lane.recalling:
                self._forget(lane)
                decisions.append(Retire(lane.id))
        if self._loaded and self._idle:
            decisions += self._recall()
        return decisions

    def _dispatch(self) -> list[Decision]:
        """Assign queued tasks to idle lanes, after tasks have come back to the queue."""
        decisions: list[Decision] = []
        # One for each lane, so that all idle lanes get something; more only after an answer, by _refill.
        while self._queues.queued and self._idle:
            tasks = self._take(1)
            if tasks:
                decisions.append(self._assign(self._idle.popitem()[1], tasks))
        return decisions + self._recall()

    def _recall(self) -> list[Decision]:
        if self._queues.queued or not self._idle or not self._loaded:
            return []
        # Any loaded lane will do: the one that has been loaded for longest is found without a search.
        lane = next(iter(self._loaded.values()))
        lane.recalling, lane.may_recall = True, False
        self._index(lane)
        return [Recall(lane.id, len(lane.outstanding) // 2)]

    def _index(self, lane: _Lane) -> None:
        """Update whether the lane is idle, and whether tasks can be recalled from it."""
        count = len(lane.outstanding)
        if not count and not lane.recalling and not lane.draining and lane.budget != 0:
            self._idle[lane.id] = lane
        else:
            self._idle.pop(lane.id, None)
        if count >= 2 and lane.may_recall and not lane.recalling and lane.has_movable:
            self._loaded[lane.id] = lane
        else:
            self._loaded.pop(lane.id, None)
