"""The scheduler: an example for each of its numbered rules, then any history, beside a model of its own.

`Farm` plays the driver and the workers at the other ends. It is told what the scheduler decided, keeps its own
account of where every task is, and objects to any decision that a rule forbids. The examples use it for its
accounts, the state machine for everything.
"""

from __future__ import annotations

import random
import sys
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import FrameType as StackFrame
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from strategies import when

from farm_executor.core import scheduler as scheduler_module
from farm_executor.core.options import TaskOptions
from farm_executor.core.scheduler import MAX_RECEIPTS, Scheduler
from farm_executor.core.task import Assign, Cancel, Decision, Kill, Lose, Recall, Retire, Task
from farm_executor.core.window import HORIZON_US, Window
from farm_executor.errors import RemoteProtocolError

SHORT, LONG = 1.0, 10 * HORIZON_US

# -- the model ----------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Worker:
    """The far end of a lane: what is on its way there, what it has, what is on its way back."""

    id: int
    budget: int | None
    seat: int | None = None
    inbox: deque[tuple[str, Any]] = field(default_factory=deque)
    waiting: deque[tuple[int, Task]] = field(default_factory=deque)
    running: tuple[int, Task] | None = None
    begun: int = -1
    unsent: list[tuple[int, Task]] = field(default_factory=list)
    outbox: deque[tuple[str, int, list[Task], float]] = field(default_factory=deque)
    expected_seq: int = 0
    # what the client knows of it
    outstanding: list[tuple[int, Task]] = field(default_factory=list)
    next_seq: int = 0
    recalling: bool = False
    has_nothing_to_give: bool = False
    cut: bool = False
    recalls: int = 0
    draining: bool = False
    held: bool = False
    window: Window = field(default_factory=Window)

    @property
    def idle(self) -> bool:
        """Whether it could be given a task now."""
        return not self.outstanding and not self.recalling and not self.draining and self.budget != 0

    def receive(self) -> None:
        """Take the next message that has come, and answer at once if it is a recall."""
        kind, what = self.inbox.popleft()
        if kind == "tasks":
            for seq, task in what:
                assert seq == self.expected_seq, "tasks are numbered without a gap"
                self.expected_seq += 1
                self.waiting.append((seq, task))
        else:
            count = min(what, len(self.waiting))
            back = [self.waiting.pop() for _ in range(count)][::-1]
            self.expected_seq -= count
            self.recalls += count > 0
            self.flush(SHORT)  # so that its answers leave in the order of the tasks
            self.outbox.append(("recalled", back[0][0] if back else 0, [task for _, task in back], 0))

    def begin(self) -> None:
        assert self.running is None
        self.running = self.waiting.popleft()
        self.begun = self.running[0]

    def end(self) -> None:
        assert self.running is not None
        self.unsent.append(self.running)
        self.running = None

    def go_on(self) -> None:
        """To the next task."""
        if self.running:
            self.end()
        self.begin()

    def flush(self, busy_us: float) -> None:
        if self.unsent and not self.cut:
            self.outbox.append(("results", self.unsent[0][0], [task for _, task in self.unsent], busy_us))
            self.unsent = []


class Farm:
    """A scheduler, its driver and its workers, and the account that says what must be."""

    def __init__(self) -> None:
        self.scheduler = Scheduler(self._start)
        self.workers: dict[int, Worker] = {}
        self.tasks: list[Task] = []
        self.queue: dict[int, list[Task]] = {}  # by priority, in the order in which they must leave
        self.reserved: dict[int, list[Task]] = {}  # by seat, in that order
        self.fate: dict[int, str] = {}
        self.charges: dict[int, int] = {}
        self.asked: set[int] = set()  # whose start was asked for
        self.cancelled: set[int] = set()  # whose start will be refused
        self.suspect: set[int] = set()  # may have begun on a worker that is gone
        self.unwanted: set[int] = set()  # are to be cancelled when they come back
        self.returned: list[Task] = []  # of those, until that is decided
        self.next_lane = 1

    # events, each with the model's part of it before the scheduler's decisions are looked at

    def submit(
        self, priority: int = 0, max_attempts: int = 3, seat: int | None = None, category: str | None = None
    ) -> Task:
        task = Task(len(self.tasks), TaskOptions(priority, category, max_attempts), seat)
        self.tasks.append(task)
        self.charges[task.id] = 0
        self._line(task).append(task)
        self.carry_out(self.scheduler.submit(task))
        return task

    def cancel_unheard(self, task: Task) -> None:
        """Its future is cancelled and the scheduler does not know yet."""
        assert task.id not in self.asked
        self.cancelled.add(task.id)

    def withdraw(self, task: Task) -> bool:
        expected = task in self.fresh()
        assert self.scheduler.withdraw(task) == expected
        if expected:
            self._leave_queue(task)
            self._settle(task, "withdrawn")
        return expected

    def withdraw_all(self) -> None:
        expected = self.fresh()
        got = self.scheduler.withdraw_all()
        assert sorted(task.id for task in got) == sorted(task.id for task in expected)
        for task in expected:
            self._leave_queue(task)
            self._settle(task, "withdrawn")

    def lane_up(self, budget: int | None = None, seat: int | None = None) -> Worker:
        assert seat is None or seat not in self.taken()
        worker = self.workers[self.next_lane] = Worker(self.next_lane, budget, seat)
        self.next_lane += 1
        self.carry_out(self.scheduler.lane_up(worker.id, budget, seat))
        return worker

    def taken(self) -> set[int | None]:
        """The seats that have a lane."""
        return {worker.seat for worker in self.workers.values()}

    def seat_gone(self, seat: int) -> None:
        """Its server has come back with fewer workers."""
        tasks = self.reserved.pop(seat, [])
        assert self.scheduler.seat_gone(seat) == tasks
        for task in tasks:
            self._settle(task, "stranded")

    def deliver(self, worker: Worker) -> None:
        """Hand the worker's next message to the scheduler."""
        kind, seq, tasks, busy_us = worker.outbox.popleft()
        if kind == "results":
            del worker.outstanding[: len(tasks)]
            worker.window.report(len(tasks), busy_us)
            worker.has_nothing_to_give = worker.held = False
            done, decisions = self.scheduler.finished(worker.id, seq, len(tasks), busy_us)
            assert done == tasks, "an answer belongs to the task that was run"
            for task in done:
                self._settle(task, "finished")
        else:
            worker.recalling = False
            movable = [task for task in tasks if task.seat is None]
            worker.has_nothing_to_give = not movable
            if tasks:
                assert [task for _, task in worker.outstanding[-len(tasks) :]] == tasks
                del worker.outstanding[-len(tasks) :]
                worker.next_seq -= len(tasks)
                if worker.budget is not None:
                    worker.budget += len(movable)
            worker.held = worker.held and bool(worker.outstanding)
            self._back_to_front(tasks)
            decisions = self.scheduler.recalled(worker.id, seq, len(tasks))
        self.carry_out(decisions)

    def cut(self, worker: Worker) -> None:
        """The connection breaks: what was under way does not arrive, and the worker goes on."""
        results = [message for message in worker.outbox if message[0] == "results"]
        kept = [(seq + place, task) for _, seq, tasks, _ in results for place, task in enumerate(tasks)]
        worker.unsent = kept + worker.unsent
        worker.inbox.clear()
        worker.outbox.clear()
        worker.cut = worker.recalling = True
        self.scheduler.lane_cut(worker.id)

    def resume(self, worker: Worker) -> None:
        """Over another connection the worker says which task it expects; what it lacks comes back."""
        back = [task for seq, task in worker.outstanding if seq >= worker.expected_seq]
        worker.outstanding = [pair for pair in worker.outstanding if pair[0] < worker.expected_seq]
        worker.next_seq = worker.expected_seq
        if worker.budget is not None:
            worker.budget += sum(task.seat is None for task in back)
        worker.cut = worker.recalling = worker.has_nothing_to_give = False
        worker.held = worker.held and bool(worker.outstanding)
        self._back_to_front(back)
        worker.recalls += 1
        self.carry_out(self.scheduler.resumed(worker.id, worker.expected_seq, worker.recalls))

    def drain(self, worker: Worker) -> None:
        """Its server is to end."""
        worker.draining, worker.has_nothing_to_give = True, False
        self.carry_out(self.scheduler.drain_lane(worker.id))

    def lose(self, worker: Worker, *, known: bool, killed: bool = False) -> None:
        """The worker is gone, and whether it is known what it had begun, and whether it was killed for that."""
        del self.workers[worker.id]
        begun = worker.begun if known else None
        target = max(worker.begun, worker.next_seq - len(worker.outstanding)) if killed else None
        lost: list[Task] = []
        back: list[Task] = []
        ran = [seq for seq, _ in worker.outstanding if seq == begun]
        for seq, task in worker.outstanding:
            guilty = not killed and seq == (ran or [worker.outstanding[0][0]])[0]
            self.charges[task.id] += guilty
            if begun is None or seq <= begun:
                self.suspect.add(task.id)
            may_have_begun = begun is None or seq <= begun
            if may_have_begun:
                self.unwanted.discard(task.id)
            once = task.options.max_attempts == 1 and may_have_begun
            limit = task.options.max_attempts if may_have_begun else max(task.options.max_attempts, MAX_RECEIPTS)
            ends = once or seq == target or (guilty and self.charges[task.id] >= limit)
            (lost if ends else back).append(task)
        self._back_to_front(back)
        decisions = self.scheduler.lane_lost(worker.id, begun, target)
        losses = [decision for decision in decisions if isinstance(decision, Lose)]
        assert [loss.task for loss in losses] == lost
        assert [loss.task for loss in losses if loss.killed] == [
            t for seq, t in worker.outstanding if seq == target
        ]
        self.carry_out(decisions)

    def take_back(self, task: Task) -> int | None:
        """Its future is to be cancelled, although it has been sent; return the lane that is to answer."""
        possible = task.id not in self.suspect
        found = [worker for worker in self.workers.values() if possible and task in on(worker)[1:]]
        waits = possible and task.id in self.asked and task in [*self._queued(), *self._waiting_for_seats()]
        if found and not found[0].recalling:
            found[0].held = True
        if waits:
            self._leave_queue(task)
            self.returned.append(task)
        if found:
            self.unwanted.add(task.id)
        lane, decisions = self.scheduler.take_back(task, lambda: task.id in self.unwanted or waits)
        assert lane == (found[0].id if found else None)
        self.carry_out(decisions)
        assert not found or found[0].recalling, "there will be an answer"
        return lane

    def keep(self, task: Task) -> None:
        """It has not come back for too long."""
        self.unwanted.discard(task.id)

    def drop(self, task: Task) -> None:
        """Forget a queued task, even if it has been sent before."""
        queued = task in [*self._queued(), *self._waiting_for_seats()]
        assert self.scheduler.drop(task) == queued
        if queued:
            self._leave_queue(task)
            self._settle(task, "dropped")

    def _back_to_front(self, tasks: list[Task]) -> None:
        self.returned += [task for task in tasks if task.id in self.unwanted]
        for task in reversed(tasks):
            if task.id not in self.unwanted:
                self._line(task).insert(0, task)

    # what the scheduler asks and decides

    def _start(self, tasks: list[Task]) -> list[bool]:
        return [self._start_one(task) for task in tasks]

    def _start_one(self, task: Task) -> bool:
        assert task.id not in self.asked, "a future can be started once, ever"
        assert task.id not in self.fate
        assert task in self._line(task)
        self.asked.add(task.id)
        if task.id not in self.cancelled:
            return True
        self._leave_queue(task)
        self._settle(task, "refused")
        return False

    def carry_out(self, decisions: list[Decision]) -> None:
        for decision in decisions:
            if isinstance(decision, Assign):
                self._assign(self.workers[decision.lane], decision)
            elif isinstance(decision, Recall):
                self._recall(self.workers[decision.lane], decision.count)
            elif isinstance(decision, Retire):
                worker = self.workers.pop(decision.lane)
                assert not worker.outstanding
                assert not worker.recalling
                assert worker.budget == 0 or worker.draining
            elif isinstance(decision, Cancel):
                assert decision.task is self.returned.pop(0)
                self._settle(decision.task, "cancelled")
            else:
                self._settle(decision.task, "lost")

    def _assign(self, worker: Worker, decision: Assign) -> None:
        tasks = decision.tasks
        assert tasks
        assert not worker.recalling
        general = tasks[0].seat is None
        if general:
            assert not worker.draining
            assert not worker.held, "it has been asked for everything back"
            assert tasks == self._queued()[: len(tasks)], "the highest priority first, and each in its order"
            assert worker.budget is None or len(tasks) <= worker.budget
            assert len(worker.outstanding) + len(tasks) <= max(1, worker.window.size)
            assert len(worker.outstanding) <= worker.window.size // 2, "refilled when half its window is free"
        else:
            assert tasks[0].seat == worker.seat
            assert tasks == self._line(tasks[0]), "all of them, at once, whatever there is else"
        assert decision.seq == worker.next_seq
        for task in tasks:
            assert task.id in self.asked
            assert task.options.max_attempts > 1 or task.id not in self.suspect, "at most once"
            self._leave_queue(task)
        numbered = list(enumerate(tasks, worker.next_seq))
        worker.outstanding += numbered
        worker.next_seq += len(tasks)
        if worker.budget is not None and general:
            worker.budget -= len(tasks)
        worker.inbox.append(("tasks", numbered))

    def _recall(self, worker: Worker, count: int) -> None:
        assert not worker.recalling
        everything = count == len(worker.outstanding) - 1
        assert not worker.has_nothing_to_give or worker.held, "until it has answered something more"
        if not (everything and (worker.draining or worker.held)):
            assert not self._queued()
            assert any(other.idle for other in self.workers.values())
            assert count == len(worker.outstanding) // 2 >= 1
            assert any(task.seat is None for _, task in worker.outstanding[1:]), "what another could run"
        worker.recalling = True
        worker.inbox.append(("recall", count))

    def _settle(self, task: Task, how: str) -> None:
        assert task.id not in self.fate, "a task settles once"
        self.fate[task.id] = how

    # accounts

    def _queued(self) -> list[Task]:
        return [task for priority in sorted(self.queue, reverse=True) for task in self.queue[priority]]

    def fresh(self) -> list[Task]:
        """The queued tasks that could still be cancelled."""
        waiting = [*self._queued(), *self._waiting_for_seats()]
        return [task for task in waiting if task.id not in self.asked]

    def _waiting_for_seats(self) -> list[Task]:
        return [task for tasks in self.reserved.values() for task in tasks]

    def _line(self, task: Task) -> list[Task]:
        if task.seat is None:
            return self.queue.setdefault(task.options.priority, [])
        return self.reserved.setdefault(task.seat, [])

    def _leave_queue(self, task: Task) -> None:
        self._line(task).remove(task)

    def outstanding(self) -> list[Task]:
        return [task for worker in self.workers.values() for _, task in worker.outstanding]

    def check(self) -> None:
        """What must hold between any two events."""
        queued, outstanding, reserved = self._queued(), self.outstanding(), self._waiting_for_seats()
        assert not self.returned, "it was decided at once"
        assert self.scheduler.queued == len(queued)
        assert self.scheduler.reserved == len(reserved)
        assert self.scheduler.outstanding == len(outstanding)
        assert self.scheduler.unsettled == len(queued) + len(outstanding) + len(reserved)
        places = [task.id for task in self.scheduler.tasks()]
        assert sorted(places) == sorted(task.id for task in queued + outstanding + reserved)
        assert len(set(places)) == len(places), "a task is in one place"
        assert sorted(places + list(self.fate)) == [task.id for task in self.tasks], "and none is forgotten"
        for task in self.tasks:
            assert task.losses == self.charges[task.id]
            assert task.started == (task.id in self.asked and self.fate.get(task.id) != "refused")
        idle = [worker for worker in self.workers.values() if worker.idle]
        for worker in self.workers.values():
            assert len(self.scheduler.tasks_on(worker.id)) == len(worker.outstanding)
            assert self.scheduler.running_on(worker.id) is (
                worker.outstanding[0][1] if worker.outstanding else None
            )
            assert worker.recalling or not self.reserved.get(worker.seat or 0) or worker.seat is None
            has_work = worker.outstanding or worker.recalling
            assert has_work or (worker.budget != 0 and not worker.draining), "it should have been retired"
        assert not (queued and idle), "no lane is idle while a task is queued"
        loaded = [
            worker
            for worker in self.workers.values()
            if any(task.seat is None for _, task in worker.outstanding[1:])
        ]
        if idle and any(not worker.has_nothing_to_give for worker in loaded):
            assert any(worker.recalling for worker in self.workers.values())

    # shortcuts for the examples

    def run(self, worker: Worker, count: int = 1, busy_us: float = LONG) -> list[Task]:
        """Let the worker do its next tasks and answer them together."""
        while worker.inbox:
            worker.receive()
        for _ in range(count):
            worker.begin()
            worker.end()
        done = [task for _, task in worker.unsent]
        worker.flush(busy_us)
        while worker.outbox:
            self.deliver(worker)
        self.check()
        return done

    def run_all(self) -> None:
        """Run everything there is to the end, with as many lanes as that needs."""
        self.lane_up()
        for worker in [worker for worker in self.workers.values() if worker.cut]:
            self.resume(worker)
            self.check()
        while self.scheduler.unsettled:
            before = self.scheduler.unsettled
            for seat in [seat for seat, tasks in self.reserved.items() if tasks and seat not in self.taken()]:
                self.lane_up(seat=seat)
            for worker in list(self.workers.values()):
                while worker.inbox:
                    worker.receive()
                if worker.running:
                    worker.end()
                while worker.waiting:
                    worker.begin()
                    worker.end()
                worker.flush(SHORT)
                while worker.outbox:
                    self.deliver(worker)
                self.check()
            assert self.scheduler.unsettled < before, "every round brings the end nearer"


def of(category: str) -> Callable[[Task], bool]:
    return lambda task: task.options.category == category


def on(worker: Worker) -> list[Task]:
    return [task for _, task in worker.outstanding]


def warm(farm: Farm, worker: Worker, size: int) -> None:
    """Bring the lane's window to that size with tasks of the duration that makes it so."""
    while worker.window.size < size:
        farm.submit()
        farm.run(worker, 1, HORIZON_US / (size + 0.5))
    assert worker.window.size == size
    assert not worker.outstanding


def load(farm: Farm, worker: Worker, count: int, **options: Any) -> list[Task]:
    """Give the only lane that is up that many tasks, of which it has begun none; return them."""
    warm(farm, worker, count)
    farm.submit()
    tasks = [farm.submit(**options) for _ in range(count)]
    farm.run(worker, 1, HORIZON_US / count)
    while worker.inbox:
        worker.receive()
    assert on(worker) == tasks
    return tasks


@pytest.fixture
def farm() -> Iterator[Farm]:
    """A farm that is checked at the end, and whose every task settles."""
    farm = Farm()
    yield farm
    farm.check()
    farm.run_all()
    assert len(farm.fate) == len(farm.tasks)


# -- rule 1: in one place -----------------------------------------------------------------------------------


def test_a_task_is_queued_or_outstanding_or_forgotten(farm: Farm) -> None:
    task = farm.submit()
    assert (farm.scheduler.queued, farm.scheduler.outstanding) == (1, 0)
    worker = farm.lane_up()
    assert (farm.scheduler.queued, farm.scheduler.outstanding) == (0, 1)
    assert list(farm.scheduler.tasks()) == [task]
    assert farm.run(worker) == [task]
    assert (farm.scheduler.unsettled, list(farm.scheduler.tasks())) == (0, [])


def test_what_is_withdrawn_while_queued_is_forgotten(farm: Farm) -> None:
    first, second, third = (farm.submit() for _ in range(3))
    assert farm.withdraw(second)
    assert not farm.withdraw(second)
    worker = farm.lane_up()
    assert not farm.withdraw(first), "it runs"
    assert farm.run(worker) == [first]
    assert not farm.withdraw(first), "it is done"
    assert farm.run(worker) == [third]
    assert farm.fate == {0: "finished", 1: "withdrawn", 2: "finished"}


def test_what_was_started_and_came_back_cannot_be_withdrawn(farm: Farm) -> None:
    task = farm.submit()
    farm.lose(farm.lane_up(), known=True)
    assert farm.scheduler.queued == 1
    assert not farm.withdraw(task)
    farm.withdraw_all()
    assert farm.scheduler.queued == 1


def test_withdraw_all_takes_every_queued_task_that_never_started(farm: Farm) -> None:
    worker = farm.lane_up()
    for priority in (0, 0, 5, -5):
        farm.submit(priority)
    farm.withdraw_all()
    assert farm.scheduler.queued == 0
    assert len(on(worker)) == 1
    assert sorted(farm.fate.values()) == ["withdrawn"] * 3


def test_withdraw_all_can_leave_what_would_go_first() -> None:
    scheduler = Scheduler()
    low, high, other = tasks = [Task(number, TaskOptions(priority)) for number, priority in enumerate([-5, 5, 5])]
    scheduler.submit(*tasks)
    assert scheduler.withdraw_all(but=2) == [low]
    assert scheduler.withdraw_all(but=3) == []
    assert list(scheduler.tasks()) == [high, other]


def test_a_task_whose_start_is_refused_is_forgotten_and_the_next_goes_instead(farm: Farm) -> None:
    first, second, third = (farm.submit() for _ in range(3))
    farm.cancel_unheard(first)
    farm.cancel_unheard(second)
    worker = farm.lane_up()
    assert on(worker) == [third]
    assert farm.fate == {0: "refused", 1: "refused"}


def test_a_task_refused_as_it_is_submitted_leaves_its_lane_idle(farm: Farm) -> None:
    worker = farm.lane_up()
    refused = Task(0)
    farm.tasks.append(refused)
    farm.charges[0] = 0
    farm.queue[0] = [refused]
    farm.cancel_unheard(refused)
    assert farm.scheduler.submit(refused) == []
    farm.check()
    assert on(worker) == []
    task = farm.submit()
    assert on(worker) == [task]


def test_each_task_is_asked_to_start_once_however_often_it_is_sent() -> None:
    asked = []

    def start(tasks: list[Task]) -> list[bool]:
        asked.extend(task.id for task in tasks)
        return [True] * len(tasks)

    scheduler = Scheduler(start)
    scheduler.submit(Task(1))
    for lane in (1, 2, 3):
        scheduler.lane_up(lane)
        scheduler.lane_lost(lane, -1)
    assert asked == [1]


# -- rule 2: order ------------------------------------------------------------------------------------------


def test_queues_are_first_in_first_out_and_a_higher_priority_goes_first(farm: Farm) -> None:
    submitted = [farm.submit(priority) for priority in (0, 10, -10, 0, 10, -10, 3)]
    worker = farm.lane_up()
    order = [farm.run(worker)[0].id for _ in submitted]
    assert order == [1, 4, 6, 0, 3, 2, 5]


def test_a_task_that_comes_back_goes_to_the_front_of_its_own_priority(farm: Farm) -> None:
    worker = farm.lane_up()
    first = farm.submit()
    second = farm.submit()
    urgent = farm.submit(priority=1)
    farm.lose(worker, known=False)
    worker = farm.lane_up()
    assert [farm.run(worker)[0] for _ in range(3)] == [urgent, first, second]


def test_tasks_that_come_back_together_keep_their_order(farm: Farm) -> None:
    worker = farm.lane_up()
    tasks = load(farm, worker, 4)
    later = farm.submit()
    farm.lose(worker, known=True)
    worker = farm.lane_up()
    assert [farm.run(worker)[0] for _ in range(5)] == [*tasks, later]
    assert [task.losses for task in tasks] == [1, 0, 0, 0]


# -- rule 3: nobody idles -----------------------------------------------------------------------------------


def test_every_lane_that_comes_up_is_given_a_queued_task(farm: Farm) -> None:
    tasks = [farm.submit() for _ in range(3)]
    workers = [farm.lane_up() for _ in range(4)]
    assert [on(worker) for worker in workers] == [[tasks[0]], [tasks[1]], [tasks[2]], []]


def test_idle_lanes_take_over_what_a_lost_lane_had(farm: Farm) -> None:
    lost = farm.lane_up()
    task = farm.submit()
    idle = farm.lane_up()
    farm.lose(lost, known=True)
    assert on(idle) == [task]


def test_a_short_queue_is_shared_by_all_lanes(farm: Farm) -> None:
    first = farm.lane_up()
    warm(farm, first, 64)
    second = farm.lane_up()
    for _ in range(2 + 11):
        farm.submit()
    farm.run(first, 1, SHORT)
    assert len(on(first)) == 6
    assert len(on(second)) == 1
    assert farm.scheduler.queued == 5


# -- rule 4: straight, or in batches ------------------------------------------------------------------------


def test_a_task_goes_straight_to_an_idle_lane(farm: Farm) -> None:
    first, second = farm.lane_up(), farm.lane_up()
    tasks = [farm.submit(), farm.submit()]
    assert on(second) + on(first) == tasks
    assert farm.submit() in farm.queue[0], "nobody has room: the windows are of one"


def test_calls_one_after_the_other_go_to_the_same_lane(farm: Farm) -> None:
    """Its worker's caches are warm."""
    lanes = [farm.lane_up() for _ in range(3)]
    used = []
    for _ in range(5):
        farm.submit()
        (lane,) = (lane for lane in lanes if on(lane))
        farm.run(lane, 1, SHORT)
        used.append(lane)
    assert used == [used[0]] * 5


def test_a_task_waits_for_a_batch_when_no_lane_is_idle(farm: Farm) -> None:
    """However wide the windows are."""
    worker = farm.lane_up()
    warm(farm, worker, 8)
    tasks = [farm.submit() for _ in range(4)]
    assert on(worker) == tasks[:1]
    assert farm.queue[0] == tasks[1:]
    farm.run(worker, 1, SHORT)
    assert on(worker) == tasks[1:]
    assert len(worker.inbox) == 1, "all of them leave together"


def test_a_lane_is_refilled_when_half_of_its_window_is_free(farm: Farm) -> None:
    worker = farm.lane_up()
    warm(farm, worker, 8)
    for _ in range(30):
        farm.submit()
    farm.run(worker, 1, HORIZON_US / 8)
    assert worker.window.size == 8
    assert len(on(worker)) == 8
    sizes = []
    for _ in range(5):
        farm.run(worker, 1, HORIZON_US / 8)
        sizes.append(len(on(worker)))
    assert sizes == [7, 6, 5, 8, 7]


def test_nothing_is_queued_behind_a_long_task(farm: Farm) -> None:
    worker = farm.lane_up()
    tasks = [farm.submit() for _ in range(3)]
    for task in tasks:
        assert on(worker) == [task]
        farm.run(worker, 1, LONG)


@pytest.mark.parametrize("budget", [1, 2, 5])
def test_a_lane_gets_no_more_tasks_than_its_budget_and_is_retired(farm: Farm, budget: int) -> None:
    worker = farm.lane_up(budget)
    tasks = [farm.submit() for _ in range(7)]
    done = []
    while worker.id in farm.workers:
        done += farm.run(worker, 1, SHORT)
    assert done == tasks[:budget]
    assert farm.scheduler.queued == 7 - budget
    farm.carry_out(farm.scheduler.lane_lost(worker.id, None))
    farm.check()


def test_a_lane_that_may_run_nothing_is_retired_at_once(farm: Farm) -> None:
    farm.submit()
    farm.lane_up(0)
    assert farm.workers == {}
    assert farm.scheduler.queued == 1


# -- rule 5: numbers ----------------------------------------------------------------------------------------


def test_each_lane_has_its_own_numbers_without_a_gap() -> None:
    scheduler = Scheduler()
    scheduler.lane_up(1)
    scheduler.lane_up(2)
    seqs: dict[int, list[int]] = {1: [], 2: []}
    for number in range(6):
        (assign,) = scheduler.submit(Task(number))
        assert isinstance(assign, Assign)
        seqs[assign.lane].append(assign.seq)
        scheduler.finished(assign.lane, assign.seq, 1, LONG)
    assert seqs[1] == list(range(len(seqs[1])))
    assert seqs[2] == list(range(len(seqs[2])))


@pytest.mark.parametrize(
    ("seq", "count"), [(1, 1), (3, 1), (2, 0), (2, 3), (2, -1), (1, 2), (0, 1), (2**64 - 1, 1)]
)
def test_an_answer_out_of_order_is_the_peers_error_and_changes_nothing(farm: Farm, seq: int, count: int) -> None:
    worker = farm.lane_up()
    load(farm, worker, 2)
    assert [number for number, _ in worker.outstanding] == [2, 3]
    with pytest.raises(RemoteProtocolError):
        farm.scheduler.finished(worker.id, seq, count, SHORT)
    farm.check()


def loaded(farm: Farm) -> tuple[Worker, Worker]:
    """A lane that was given four tasks and runs the first, and an idle one, for whose sake it was asked for two."""
    busy = farm.lane_up()
    load(farm, busy, 4)
    busy.begin()
    return busy, farm.lane_up()


@pytest.mark.parametrize(("seq", "count"), [(-1, 2), (-2, 1), (-3, 2), (0, -1), (-5, 5), (0, 1)])
def test_giving_back_what_is_not_the_tail_is_the_peers_error_and_changes_nothing(
    farm: Farm, seq: int, count: int
) -> None:
    busy, _ = loaded(farm)
    assert busy.recalling
    with pytest.raises(RemoteProtocolError):
        farm.scheduler.recalled(busy.id, busy.next_seq + seq, count)
    farm.check()


def test_giving_back_unasked_is_the_peers_error(farm: Farm) -> None:
    worker = farm.lane_up()
    farm.submit()
    for seq, count in ((0, 1), (1, 0)):
        with pytest.raises(RemoteProtocolError):
            farm.scheduler.recalled(worker.id, seq, count)
    farm.check()


# -- rule 6: recall -----------------------------------------------------------------------------------------


def test_half_of_what_a_lane_holds_is_recalled_for_an_idle_one(farm: Farm) -> None:
    busy, idle = loaded(farm)
    running, second, third, fourth = on(busy)
    assert [*busy.inbox] == [("recall", 2)]
    busy.receive()
    farm.deliver(busy)
    assert on(idle) == [third]
    assert on(busy) == [running, second, fourth], "it has room for its share of what nobody idles for any more"


def test_a_lane_is_given_nothing_until_it_has_answered_the_recall(farm: Farm) -> None:
    busy, idle = loaded(farm)
    given = farm.submit()
    assert on(idle) == [given]
    queued = farm.submit()
    while busy.waiting:
        busy.go_on()
    busy.end()
    busy.flush(SHORT)
    farm.deliver(busy)
    assert on(busy) == []
    assert farm.queue[0] == [queued], "it idles: its answer is due"
    busy.receive()
    farm.deliver(busy)
    assert on(busy) == [queued]


def test_a_lane_that_had_nothing_to_give_is_not_asked_again_before_it_has_answered_something(farm: Farm) -> None:
    busy, idle = loaded(farm)
    busy.inbox.clear()
    busy.outbox.append(("recalled", 0, [], 0))
    farm.deliver(busy)
    assert len(on(busy)) == 4
    assert on(idle) == []
    farm.lane_up()
    assert [*busy.inbox] == []
    busy.end()
    busy.flush(LONG)
    farm.deliver(busy)
    assert [*busy.inbox] == [("recall", 1)]


def test_the_numbers_of_what_was_given_back_are_used_again(farm: Farm) -> None:
    busy, idle = loaded(farm)
    numbers = [number for number, _ in busy.outstanding]
    busy.receive()
    farm.deliver(busy)
    assert [number for number, _ in busy.outstanding] == numbers[:3]
    assert [number for number, _ in idle.outstanding] == [0]
    busy.receive()
    busy.end()
    farm.run(busy, 2, SHORT)
    farm.run(idle, 1, SHORT)


def test_what_is_given_back_is_given_back_to_the_budget(farm: Farm) -> None:
    busy = farm.lane_up(10)
    load(farm, busy, 4)
    assert busy.budget == 10 - 1 - 1 - 4
    farm.lane_up()
    busy.receive()
    farm.deliver(busy)
    assert len(on(busy)) == 3
    farm.run(busy, 3, LONG)
    for _ in range(20):
        farm.submit()
    done = 0
    while busy.id in farm.workers:
        done += len(farm.run(busy, 1, LONG))
    assert done == 10 - 1 - 1 - 3


def test_a_lane_that_has_run_all_it_may_is_kept_until_it_has_answered_the_recall(farm: Farm) -> None:
    busy = farm.lane_up(1 + 1 + 4)
    load(farm, busy, 4)
    farm.lane_up()
    while busy.waiting:
        busy.begin()
        busy.end()
    busy.flush(LONG)
    farm.deliver(busy)
    farm.check()
    assert busy.id in farm.workers
    busy.receive()
    farm.deliver(busy)
    assert busy.id not in farm.workers


def test_a_task_refused_when_the_answer_to_a_recall_comes_leaves_the_lane_idle(farm: Farm) -> None:
    busy, idle = loaded(farm)
    farm.submit()
    assert len(on(idle)) == 1
    while busy.waiting:
        busy.go_on()
    busy.end()
    busy.flush(LONG)
    farm.deliver(busy)
    cancelled = farm.submit()
    farm.cancel_unheard(cancelled)
    busy.receive()
    farm.deliver(busy)
    assert busy.idle
    assert farm.fate[cancelled.id] == "refused"


def test_a_single_task_is_never_recalled(farm: Farm) -> None:
    busy = farm.lane_up()
    farm.submit()
    farm.lane_up()
    assert [kind for kind, _ in busy.inbox] == ["tasks"]


# -- rule 7: losses -----------------------------------------------------------------------------------------


def test_the_task_that_ran_is_charged_and_no_other(farm: Farm) -> None:
    worker = farm.lane_up()
    tasks = load(farm, worker, 4)
    worker.begin()
    worker.go_on()
    farm.lose(worker, known=True)
    assert [task.losses for task in tasks] == [0, 1, 0, 0], "the first was done, though nobody will hear of it"
    assert farm.queue[0] == tasks


def test_a_task_is_lost_when_its_attempts_are_used_up(farm: Farm) -> None:
    task = farm.submit(max_attempts=3)
    for losses in (1, 2, 3):
        worker = farm.lane_up()
        worker.receive()
        worker.begin()
        farm.lose(worker, known=True)
        assert task.losses == losses
    assert farm.fate == {0: "lost"}


def test_when_nobody_can_say_what_ran_the_first_is_charged(farm: Farm) -> None:
    worker = farm.lane_up()
    tasks = load(farm, worker, 4)
    worker.begin()
    worker.go_on()
    farm.lose(worker, known=False)
    assert [task.losses for task in tasks] == [1, 0, 0, 0]


def test_a_worker_that_died_between_two_tasks_charges_the_one_that_was_to_come_next(farm: Farm) -> None:
    """It may have died of receiving it."""
    worker = farm.lane_up()
    tasks = load(farm, worker, 4)
    worker.begin()
    worker.end()
    worker.flush(LONG)
    farm.deliver(worker)
    farm.lose(worker, known=True)
    assert [task.losses for task in tasks] == [0, 1, 0, 0]


def test_a_task_of_which_workers_die_before_they_begin_it_is_lost_in_the_end(farm: Farm) -> None:
    task = farm.submit(max_attempts=3)
    for _ in range(3):
        farm.lose(farm.lane_up(), known=True)
    assert farm.fate == {task.id: "lost"}


def test_a_task_of_one_attempt_that_never_began_is_sent_again_but_not_for_ever(farm: Farm) -> None:
    """A worker that was idle may have died of anything; three in a row have died of receiving the task."""
    task = farm.submit(max_attempts=1)
    for losses in range(1, MAX_RECEIPTS + 1):
        assert task.id not in farm.fate
        farm.lose(farm.lane_up(), known=True)
        assert task.losses == losses
    assert farm.fate[task.id] == "lost"


def test_a_worker_that_died_without_any_task_charges_nobody(farm: Farm) -> None:
    idle = farm.lane_up()
    farm.lose(idle, known=True)
    farm.lose(farm.lane_up(), known=False)
    assert farm.submit().losses == 0


def test_a_task_of_one_attempt_that_may_have_begun_is_never_sent_again(farm: Farm) -> None:
    worker = farm.lane_up()
    done, running, third, fourth = load(farm, worker, 4, max_attempts=1)
    worker.begin()
    worker.go_on()
    farm.lose(worker, known=True)
    assert [farm.fate[task.id] for task in (done, running)] == ["lost", "lost"]
    assert farm.queue[0] == [third, fourth]
    assert (running.losses, done.losses, third.losses) == (1, 0, 0)


def test_when_nobody_can_say_what_ran_each_task_of_one_attempt_is_lost(farm: Farm) -> None:
    worker = farm.lane_up()
    tasks = load(farm, worker, 4, max_attempts=1)
    farm.lose(worker, known=False)
    assert [farm.fate[task.id] for task in tasks] == ["lost"] * 4


def test_a_task_has_three_attempts_unless_it_says_otherwise() -> None:
    assert Task(1).options.max_attempts == 3


def test_an_unknown_lane_that_is_lost_changes_nothing(farm: Farm) -> None:
    farm.submit()
    assert farm.scheduler.lane_lost(77, None) == []
    assert farm.scheduler.tasks_on(77) == []
    farm.check()


# -- cost ---------------------------------------------------------------------------------------------------


def steps_per_task(lanes: int, tasks: int) -> float:
    """How many instructions of the scheduler a task takes, from submission to the end, with many queued."""
    scheduler = Scheduler()
    for lane in range(lanes):
        scheduler.lane_up(lane)
    whim = random.Random(1)
    pending: list[Assign] = []
    steps = 0

    def trace(frame: StackFrame, event: str, _: Any) -> Any:
        nonlocal steps
        if frame.f_code.co_filename != scheduler_module.__file__:
            return None
        steps += event == "line"
        return trace

    def note(decisions: list[Decision]) -> None:
        pending.extend(decision for decision in decisions if isinstance(decision, Assign))
        assert not any(isinstance(decision, Recall) for decision in decisions)

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        for number in range(tasks):
            note(scheduler.submit(Task(number, TaskOptions(number % 3))))
        while pending:
            place = whim.randrange(len(pending))
            pending[place], pending[-1] = pending[-1], pending[place]
            assign = pending.pop()
            # Windows stay at one, so that every task is an event of its own.
            note(scheduler.finished(assign.lane, assign.seq, len(assign.tasks), LONG * len(assign.tasks))[1])
    finally:
        sys.settrace(before)
    assert scheduler.unsettled == 0
    return steps / tasks


def test_a_task_costs_the_same_on_a_thousand_lanes_as_on_ten() -> None:
    """Counted in lines that are run, not in seconds: nothing is looked through from end to end for an event."""
    few = steps_per_task(lanes=10, tasks=3000)
    assert steps_per_task(lanes=1000, tasks=3000) < 1.5 * few


def test_a_task_costs_the_same_among_many_as_among_few() -> None:
    few = steps_per_task(lanes=10, tasks=300)
    assert steps_per_task(lanes=10, tasks=6000) < 1.5 * few


# -- rule 8: seats ------------------------------------------------------------------------------------------


def test_a_task_with_a_seat_waits_for_its_lane_and_goes_first(farm: Farm) -> None:
    general = farm.submit()
    mine = farm.submit(seat=1)
    other = farm.lane_up(seat=0)
    assert on(other) == [general], "an idle lane in another seat does not get it"
    later = farm.submit(priority=9)
    assert on(farm.lane_up(seat=1)) == [mine]
    assert farm.scheduler.queued == 1
    assert farm.run(other) == [general]
    assert on(other) == [later]


def test_a_task_with_a_seat_goes_out_at_once_whatever_the_lane_has(farm: Farm) -> None:
    worker = farm.lane_up(budget=1, seat=1)
    first = farm.submit()
    mine = [farm.submit(seat=1), farm.submit(seat=1)]
    assert on(worker) == [first, *mine], "beyond its window, and beyond its budget"
    farm.run(worker, 3)
    assert worker.id not in farm.workers, "which was used up by the first"


def test_what_the_next_lane_in_the_seat_gets(farm: Farm) -> None:
    first = farm.lane_up(seat=1)
    task = farm.submit(seat=1)
    once = farm.submit(seat=1, max_attempts=1)
    farm.lane_up(seat=0)
    farm.lose(first, known=True)
    assert (task.losses, farm.scheduler.reserved) == (1, 2)
    assert on(farm.lane_up(seat=1)) == [task, once]


def test_a_task_with_a_seat_that_comes_back_by_recall_returns_to_its_lane_and_is_not_asked_for_again(
    farm: Farm,
) -> None:
    """Else the two would throw it to and fro for as long as the first task runs."""
    worker = farm.lane_up(seat=1)
    running, movable, *_ = load(farm, worker, 4)
    mine = [farm.submit(seat=1) for _ in range(4)]
    idle = farm.lane_up(seat=0)
    assert worker.recalling
    while worker.inbox:
        worker.receive()
    farm.deliver(worker)
    assert on(worker)[:2] == [running, movable]
    assert on(worker)[-4:] == mine
    assert not worker.recalling
    assert not on(idle)


def test_a_lane_that_only_its_seats_tasks_wait_on_is_not_asked_for_any(farm: Farm) -> None:
    worker = farm.lane_up(seat=1)
    running = farm.submit()
    mine = [farm.submit(seat=1), farm.submit(seat=1)]
    farm.lane_up(seat=0)
    assert not worker.recalling
    assert on(worker) == [running, *mine]


def test_what_is_prepended_goes_before_what_waits_for_the_seat(farm: Farm) -> None:
    waiting = farm.submit(seat=1)
    first, second = (Task(len(farm.tasks) + i, seat=1) for i in range(2))
    farm.tasks += [first, second]
    farm.charges |= {first.id: 0, second.id: 0}
    farm.reserved[1][:0] = [first, second]
    farm.scheduler.prepend(first, second)
    assert on(farm.lane_up(seat=1)) == [first, second, waiting]


def test_a_seat_that_is_gone_gives_back_what_waited_for_it(farm: Farm) -> None:
    task = farm.submit(seat=3)
    farm.seat_gone(3)
    assert farm.fate == {task.id: "stranded"}


# -- kills --------------------------------------------------------------------------------------------------


# -- rule 9: cancelling what has been sent ------------------------------------------------------------------


def with_some_sent_ahead(farm: Farm) -> Worker:
    """A worker that has been sent four tasks and has begun none."""
    worker = farm.lane_up()
    warm(farm, worker, 8)
    for _ in range(5):
        farm.submit()
    farm.run(worker, 1, SHORT)
    return worker


def test_what_a_lane_may_not_have_begun_comes_back_and_is_cancelled(farm: Farm) -> None:
    worker = farm.lane_up()
    warm(farm, worker, 8)
    tasks = [farm.submit() for _ in range(9)]
    farm.run(worker, 1, SHORT)
    first, second, *rest = on(worker)
    worker.receive()
    worker.begin()
    assert farm.take_back(first) is None, "it may have begun"
    assert farm.take_back(rest[0]) == worker.id
    assert farm.take_back(rest[1]) == worker.id, "the same answer decides"
    worker.receive()
    farm.deliver(worker)
    farm.check()
    assert {farm.fate[rest[0].id], farm.fate[rest[1].id]} == {"cancelled"}
    assert on(worker) == [first], "who cancels one mostly cancels others"
    farm.drop(second)
    farm.run(worker, 0)
    worker.end()
    worker.flush(SHORT)
    farm.deliver(worker)
    assert on(worker) == [task for task in tasks if task.id not in farm.fate], "now it is given the rest"


def test_what_is_wanted_again_before_it_comes_back_is_run(farm: Farm) -> None:
    worker = with_some_sent_ahead(farm)
    task = on(worker)[-1]
    farm.take_back(task)
    farm.keep(task)
    farm.run_all()
    assert farm.fate[task.id] == "finished"


def test_what_is_asked_for_back_is_cancelled_also_when_its_worker_dies(farm: Farm) -> None:
    worker = with_some_sent_ahead(farm)
    first, *_, last = on(worker)
    farm.take_back(last)
    farm.lose(worker, known=True)
    farm.check()
    assert farm.fate == {**farm.fate, last.id: "cancelled"}
    farm.run_all()
    assert farm.fate[first.id] == "finished"


def test_what_may_run_on_a_worker_that_nobody_can_reach_is_not_cancelled(farm: Farm) -> None:
    """Neither is it when it is asked for, nor when it waits to be sent again, nor when another worker has it."""
    worker = with_some_sent_ahead(farm)
    last = on(worker)[-1]
    farm.take_back(last)
    farm.lose(worker, known=False)
    farm.check()
    assert farm.take_back(last) is None
    assert last in farm._queued()
    other = farm.lane_up()
    farm.run(other, 1, SHORT)
    assert last in on(other)[1:]
    assert farm.take_back(last) is None
    farm.run_all()
    assert farm.fate[last.id] == "finished"


def test_what_has_come_back_already_is_cancelled_at_once(farm: Farm) -> None:
    worker = with_some_sent_ahead(farm)
    last = on(worker)[-1]
    farm.lose(worker, known=True)
    assert farm.take_back(last) is None
    farm.check()
    assert farm.fate[last.id] == "cancelled"
    farm.run_all()


def test_what_no_lane_has_is_not_asked_for(farm: Farm) -> None:
    task = farm.submit()
    assert farm.take_back(task) is None
    farm.run_all()
    assert farm.take_back(task) is None


# -- rule 10: cuts ------------------------------------------------------------------------------------------


def test_a_lane_that_is_cut_gets_nothing_and_what_it_has_stays_its_own(farm: Farm) -> None:
    worker = farm.lane_up(seat=1)
    first = farm.submit()
    farm.cut(worker)
    queued, seated = farm.submit(), farm.submit(seat=1)
    assert on(worker) == [first]
    farm.check()
    worker.expected_seq = 1  # it had come before the cut
    worker.waiting.append((0, first))
    farm.resume(worker)
    assert on(worker) == [first, seated]
    farm.run(worker, 2)
    assert on(worker) == [queued]


def test_what_did_not_arrive_before_a_cut_comes_back_uncharged_and_its_numbers_are_free_again(farm: Farm) -> None:
    worker, other = loaded(farm)
    had = on(worker)
    farm.cut(worker)
    worker.expected_seq -= 2  # the last two were lost on the way
    worker.waiting = deque(pair for pair in worker.waiting if pair[0] < worker.expected_seq)
    farm.resume(worker)
    assert on(other) == had[2:3]
    assert on(worker) == [*had[:2], had[3]], "with the number that the one before it had had"
    assert not any(task.losses for task in had)


def test_a_recall_without_an_answer_is_void_after_a_cut(farm: Farm) -> None:
    worker, _ = loaded(farm)
    assert worker.inbox == deque([("recall", len(on(worker)) // 2)])
    farm.cut(worker)
    farm.resume(worker)
    assert [kind for kind, _ in worker.inbox] == ["recall"], "it is asked again, now that it can hear"
    worker.receive()
    farm.deliver(worker)


def test_a_recall_whose_answer_is_lost_is_made_up_for_by_the_number_that_the_worker_expects(farm: Farm) -> None:
    worker, other = loaded(farm)
    had = on(worker)
    worker.receive()
    farm.cut(worker)
    farm.resume(worker)
    assert on(other) == had[2:3]
    assert on(worker) == [*had[:2], had[3]]


@pytest.mark.parametrize("expected", [-1, 0, 99])
def test_a_worker_that_expects_what_cannot_be_is_a_peers_error_and_changes_nothing(
    farm: Farm, expected: int
) -> None:
    worker, _ = loaded(farm)
    farm.cut(worker)
    with pytest.raises(RemoteProtocolError):
        farm.scheduler.resumed(worker.id, expected, 1)
    farm.check()


def test_a_lane_that_is_cut_may_be_lost(farm: Farm) -> None:
    worker = farm.lane_up()
    careful, other = farm.submit(max_attempts=1), farm.submit()
    farm.cut(worker)
    farm.lose(worker, known=False)
    assert farm.fate == {careful.id: "lost"}
    assert farm.scheduler.queued == 1
    assert other.losses == 0


# -- kills --------------------------------------------------------------------------------------------------


def test_a_kill_names_the_tasks_of_a_category_and_the_oldest_that_is_not_answered(farm: Farm) -> None:
    worker = farm.lane_up()
    load(farm, worker, 1, category="x")
    other = farm.lane_up()
    farm.submit(category="y")
    assert farm.scheduler.kill(of("x")) == [
        Kill(worker.id, worker.next_seq - 1, 0, [(worker.next_seq - 1,) * 2], on(worker))
    ]
    assert farm.scheduler.kill(of("y")) == [Kill(other.id, 0, 0, [(0, 0)], on(other))]
    assert farm.scheduler.kill(of("z")) == []


def test_tasks_of_a_category_in_a_row_are_one_range(farm: Farm) -> None:
    worker = farm.lane_up()
    warm(farm, worker, 6)
    first = worker.next_seq
    for category in ("a", "a", "b", "a", "a", "b"):
        farm.submit(category=category)
    farm.run(worker, 1, HORIZON_US / 6)
    (kill,) = farm.scheduler.kill(of("a"))
    assert kill.ranges == [(first + 1, first + 1), (first + 3, first + 4)]
    assert kill.at_first
    assert not farm.scheduler.kill(of("b"))[0].at_first


def test_what_a_kill_names_is_limited_to_what_may_run_soon(farm: Farm) -> None:
    """The order goes in one frame."""
    farm.lane_up(seat=1)
    for number in range(3000):
        farm.submit(seat=1, category="ab"[number % 2])
    (kill,) = farm.scheduler.kill(of("a"))
    assert kill.ranges[:2] == [(0, 0), (2, 2)]
    assert len(kill.ranges) <= 1001
    assert len(kill.tasks) == len(kill.ranges)


def test_a_killed_task_is_lost_whatever_its_attempts_and_nobody_else_is_charged(farm: Farm) -> None:
    worker = farm.lane_up()
    killed, *others = load(farm, worker, 4)
    worker.begin()
    farm.lose(worker, known=True, killed=True)
    assert farm.fate[killed.id] == "lost"
    assert [task.losses for task in others] == [0, 0, 0]
    assert farm.scheduler.queued == 3


def test_a_kill_that_comes_after_its_tasks_answer_costs_nothing(farm: Farm) -> None:
    worker = farm.lane_up()
    first, second = load(farm, worker, 2)
    worker.begin()
    worker.end()
    worker.flush(SHORT)
    farm.deliver(worker)
    del farm.workers[worker.id]
    farm.queue[0].insert(0, second)
    assert farm.scheduler.lane_lost(worker.id, worker.begun, worker.begun) == []
    assert (farm.fate[first.id], second.losses) == ("finished", 0)


# -- lanes that are drained ---------------------------------------------------------------------------------


def test_a_lane_that_is_drained_gives_back_what_it_has_not_begun_and_ends_with_what_it_has():
    farm = Farm()
    leaving = farm.lane_up()
    warm(farm, leaving, 4)
    tasks = [farm.submit() for _ in range(4)]
    tasks.remove(*farm.run(leaving, 1, HORIZON_US / 4.5))
    while leaving.inbox:
        leaving.receive()
    leaving.begin()
    assert on(leaving) == tasks
    farm.drain(leaving)
    staying = farm.lane_up()
    leaving.receive()
    farm.deliver(leaving)
    assert on(leaving) == tasks[:1]
    assert on(staying) == tasks[1:2]
    leaving.end()
    leaving.flush(SHORT)
    farm.deliver(leaving)
    assert leaving.id not in farm.workers
    farm.check()


def test_an_idle_lane_that_is_drained_ends_at_once():
    farm = Farm()
    lane = farm.lane_up()
    farm.drain(lane)
    assert not farm.workers
    farm.submit()
    farm.check()


def test_a_drained_lane_still_makes_the_calls_of_its_seat():
    farm = Farm()
    lane = farm.lane_up(seat=1)
    farm.submit()
    farm.drain(lane)
    call = farm.submit(seat=1)
    assert call in on(lane)
    farm.run(lane, 2)
    assert not farm.workers


def test_a_lane_that_is_cut_off_while_it_is_drained_ends_when_it_is_back():
    farm = Farm()
    lane = farm.lane_up()
    farm.submit()
    farm.drain(lane)
    farm.cut(lane)
    farm.resume(lane)
    assert not farm.workers
    farm.check()


# -- any history --------------------------------------------------------------------------------------------

Fits = Callable[[Worker], object]

DAY = {
    "come": 0.7,
    "lane": 2,
    "receive": 8,
    "work": 8,
    "answer": 8,
    "deliver": 8,
    "lose": 0.3,
    "cut": 0.5,
    "resume": 1,
    "cancel": 0.5,
}


def live(farm: Farm, whim: random.Random, steps: int) -> None:
    """A day on a busy farm: messages cross each other, and now and then a worker dies."""

    def some(fits: Fits = bool) -> Worker | None:
        fitting = [worker for worker in farm.workers.values() if fits(worker)]
        return whim.choice(fitting) if fitting else None

    for _ in range(steps):
        match whim.choices([*DAY], [*DAY.values()])[0]:
            case "come":
                for _ in range(whim.choice([1, 5, 30, 60])):
                    farm.submit(whim.choice([0, 0, 0, 1]), whim.choice([1, 2, 3]))
            case "lane" if len(farm.workers) < 4:
                farm.lane_up(whim.choice([None, None, 50]))
            case "receive" if worker := some(lambda worker: worker.inbox):
                worker.receive()
            case "work" if worker := some(lambda worker: worker.waiting):
                for _ in range(min(whim.choice([1, 2, 40]), len(worker.waiting))):
                    worker.go_on()
            case "answer" if worker := some(lambda worker: worker.running or worker.unsent):
                if worker.running:
                    worker.end()
                worker.flush(whim.choice([SHORT] * 20 + [HORIZON_US / 8, LONG]))
            case "deliver" if worker := some(lambda worker: worker.outbox):
                farm.deliver(worker)
            case "lose" if worker := some():
                farm.lose(worker, known=whim.choice([True, False]))
            case "cut" if worker := some(lambda worker: not worker.cut):
                farm.cut(worker)
            case "resume" if worker := some(lambda worker: worker.cut):
                farm.resume(worker)
            case "cancel" if fresh := farm.fresh():
                whim.choice([farm.withdraw, farm.cancel_unheard])(whim.choice(fresh))
        farm.check()


@pytest.mark.parametrize("seed", range(25))
def test_a_long_history_settles_each_task_once(farm: Farm, seed: int) -> None:
    """Longer than hypothesis cares to go, with windows grown wide and recalls under way most of the time."""
    live(farm, random.Random(seed), 1500)


choice = st.integers(0, 2**16)
rarely = st.sampled_from([False] * 15 + [True])
durations = st.sampled_from([SHORT, SHORT, SHORT, HORIZON_US / 4, LONG])


def some_worker(fits: Fits = bool) -> Any:
    """A rule for which there must be a worker that fits."""
    return when(lambda self: any(fits(worker) for worker in self.farm.workers.values()))


class AnyHistory(RuleBasedStateMachine):
    """Whatever happens, in whatever order, each task settles once and each rule holds."""

    def __init__(self) -> None:
        super().__init__()
        self.farm = Farm()

    def worker(self, number: int, fits: Fits = bool) -> Worker:
        fitting = [worker for worker in self.farm.workers.values() if fits(worker)]
        return fitting[number % len(fitting)]

    @initialize(beginning=st.sampled_from([(0, 0, 0), (1, 5, 0), (1, 40, 3), (2, 60, 3), (3, 90, 3), (4, 150, 4)]))
    def at_work_already(self, beginning: tuple[int, int, int]) -> None:
        """Some farms begin with windows that have grown, so that there is something to recall and to move."""
        lanes, backlog, rounds = beginning
        for _ in range(lanes):
            self.farm.lane_up()
        for number in range(backlog):
            self.farm.submit(max_attempts=1 + number % 3)
        for worker in list(self.farm.workers.values()):
            self.busy(worker, rounds)

    @some_worker(lambda worker: len(worker.outstanding) > 1 and not worker.recalling)
    @rule()
    def a_lane_comes_when_the_queue_is_dry(self) -> None:
        """Then there is something to recall."""
        self.farm.withdraw_all()
        self.farm.lane_up()

    @rule(
        priority=st.sampled_from([0, 0, 0, 1, -1]),
        max_attempts=st.integers(1, 3),
        count=st.sampled_from([1, 1, 5, 50]),
        seat=st.sampled_from([None, None, None, 0, 1, 2]),
        category=st.sampled_from([None, "a", "b"]),
    )
    def submit(self, priority: int, max_attempts: int, count: int, seat: int | None, category: str | None) -> None:
        for _ in range(count):
            self.farm.submit(priority, max_attempts, seat, category)
            self.farm.check()

    @rule(seat=st.sampled_from([0, 1, 2]))
    def seat_gone(self, seat: int) -> None:
        if seat not in self.farm.taken():
            self.farm.seat_gone(seat)

    @when(lambda self: len(self.farm.workers) < 5)
    @rule(
        budget=st.none() | st.none() | st.integers(0, 20),
        rounds=st.sampled_from([0, 4]),
        seat=st.sampled_from([None, 0, 1, 2]),
    )
    def lane_up(self, budget: int | None, rounds: int, seat: int | None) -> None:
        worker = self.farm.lane_up(budget, None if seat in self.farm.taken() else seat)
        if worker.id in self.farm.workers:
            self.busy(worker, rounds)

    @when(lambda self: self.farm.tasks)
    @rule(number=choice, everything=rarely)
    def withdraw(self, number: int, everything: bool) -> None:
        if everything:
            self.farm.withdraw_all()
        else:
            self.farm.withdraw(self.farm.tasks[number % len(self.farm.tasks)])

    @when(lambda self: self.farm.tasks)
    @rule(number=choice)
    def drop(self, number: int) -> None:
        self.farm.drop(self.farm.tasks[number % len(self.farm.tasks)])

    @when(lambda self: self.farm.outstanding())
    @rule(number=choice)
    def take_back(self, number: int) -> None:
        outstanding = self.farm.outstanding()
        self.farm.take_back(outstanding[number % len(outstanding)])

    @when(lambda self: self.farm.tasks)
    @rule(number=choice)
    def take_back_wherever_it_is(self, number: int) -> None:
        self.farm.take_back(self.farm.tasks[number % len(self.farm.tasks)])

    @when(lambda self: self.farm.unwanted)
    @rule(number=choice)
    def keep(self, number: int) -> None:
        unwanted = sorted(self.farm.unwanted)
        self.farm.keep(self.farm.tasks[unwanted[number % len(unwanted)]])

    @when(lambda self: self.farm.fresh())
    @rule(number=choice)
    def cancel_unheard(self, number: int) -> None:
        fresh = self.farm.fresh()
        self.farm.cancel_unheard(fresh[number % len(fresh)])

    @some_worker(lambda worker: worker.inbox)
    @rule(number=choice)
    def receive(self, number: int) -> None:
        self.worker(number, lambda worker: worker.inbox).receive()

    @some_worker(lambda worker: worker.waiting)
    @rule(number=choice)
    def begin(self, number: int) -> None:
        self.worker(number, lambda worker: worker.waiting).go_on()

    @some_worker(lambda worker: worker.running)
    @rule(number=choice)
    def end(self, number: int) -> None:
        self.worker(number, lambda worker: worker.running).end()

    @some_worker(lambda worker: worker.unsent)
    @rule(number=choice, busy_us=durations)
    def flush(self, number: int, busy_us: float) -> None:
        self.worker(number, lambda worker: worker.unsent).flush(busy_us)

    @some_worker(lambda worker: worker.outbox)
    @rule(number=choice)
    def deliver(self, number: int) -> None:
        self.farm.deliver(self.worker(number, lambda worker: worker.outbox))

    @some_worker()
    @rule(number=choice, rounds=st.sampled_from([50, 2, 1]), leave=st.sampled_from([0, 0, 0, 2]))
    def bustle(self, number: int, rounds: int, leave: int) -> None:
        self.busy(self.worker(number), rounds, leave)

    def busy(self, worker: Worker, rounds: int, leave: int = 0) -> None:
        """Let a lane get ahead, so that windows grow and the queues are worked off."""
        for _ in range(rounds):
            while worker.inbox and worker.inbox[0][0] == "tasks":
                worker.receive()
            while len(worker.waiting) > leave:
                worker.go_on()
            worker.flush(SHORT)
            while worker.outbox and worker.id in self.farm.workers:
                self.farm.deliver(worker)
                self.farm.check()

    @some_worker()
    @rule(number=choice, known=st.booleans(), killed=st.booleans())
    def lose(self, number: int, known: bool, killed: bool) -> None:
        """Rather one that has more than the task that it runs."""
        loaded = any(len(worker.outstanding) > 1 for worker in self.farm.workers.values())
        worker = self.worker(number, lambda worker: not loaded or len(worker.outstanding) > 1)
        self.farm.lose(worker, known=known, killed=known and killed)

    @some_worker(lambda worker: not worker.draining)
    @rule(number=choice)
    def drain(self, number: int) -> None:
        self.farm.drain(self.worker(number, lambda worker: not worker.draining))

    @some_worker(lambda worker: not worker.cut)
    @rule(number=choice)
    def lane_cut(self, number: int) -> None:
        self.farm.cut(self.worker(number, lambda worker: not worker.cut))

    @some_worker(lambda worker: worker.cut)
    @rule(number=choice)
    def resumed(self, number: int) -> None:
        self.farm.resume(self.worker(number, lambda worker: worker.cut))

    @rule(category=st.sampled_from(["a", "b"]))
    def look_whom_to_kill(self, category: str) -> None:
        """Each task that a worker may run, and no other."""
        for kill in self.farm.scheduler.kill(of(category)):
            worker = self.farm.workers[kill.lane]
            unheard = worker.cut or any(kind == "recalled" for kind, *_ in worker.outbox)
            assert unheard or kill.recalls == worker.recalls, "both count alike when they know the same"
        named = {
            (kill.lane, seq)
            for kill in self.farm.scheduler.kill(of(category))
            for begin, end in kill.ranges
            for seq in range(begin, end + 1)
        }
        assert named == {
            (worker.id, seq)
            for worker in self.farm.workers.values()
            for seq, task in worker.outstanding
            if task.options.category == category
        }

    @rule(known=st.booleans(), happens=rarely)
    def lose_all(self, known: bool, happens: bool) -> None:
        """A server is gone, with every lane to it."""
        for worker in list(self.farm.workers.values()) if happens else []:
            self.farm.lose(worker, known=known)
            self.farm.check()

    @invariant()
    def everything_is_accounted_for(self) -> None:
        self.farm.check()

    def teardown(self) -> None:
        self.farm.run_all()
        assert sorted(self.farm.fate) == [task.id for task in self.farm.tasks]
        assert self.farm.scheduler.unsettled == 0


AnyHistory.TestCase.settings = settings(deadline=None, stateful_step_count=60)
TestAnyHistory = AnyHistory.TestCase
