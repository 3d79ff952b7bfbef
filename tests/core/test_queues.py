"""Queues of tasks, against lists that are searched."""

from __future__ import annotations

import gc
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from farm_executor.core.options import TaskOptions
from farm_executor.core.queues import Queues
from farm_executor.core.task import Task

PRIORITIES = st.sampled_from([-1, 0, 2.5])
SEATS = st.sampled_from([None, None, "first", "second"])
ACTS = st.one_of(
    st.tuples(st.sampled_from(["append", "prepend"]), PRIORITIES, SEATS),
    st.tuples(st.just("remove"), st.integers(0, 99), st.none()),
    st.tuples(st.just("pop"), st.integers(1, 5), st.none()),
    st.tuples(st.just("pop_reserved"), st.sampled_from(["first", "second"]), st.none()),
)


@given(st.lists(ACTS, max_size=60))
def test_tasks_leave_in_the_order_that_lists_say(acts: list[tuple[str, Any, str | None]]) -> None:
    queues = Queues()
    free: dict[float, list[Task]] = {}
    seated: dict[str, list[Task]] = {}
    made: list[Task] = []

    def line(task: Task) -> list[Task]:
        if task.seat is not None:
            return seated.setdefault(str(task.seat), [])
        return free.setdefault(task.options.priority, [])

    for act, which, seat in acts:
        if act in ("append", "prepend"):
            task = Task(len(made), TaskOptions(which), seat)
            made.append(task)
            getattr(queues, act)(task)
            line(task).insert(0 if act == "prepend" else len(line(task)), task)
        elif act == "remove" and made:
            task = made[int(which) % len(made)]
            assert queues.remove(task) == (task in line(task))
            if task in line(task):
                line(task).remove(task)
        elif act == "pop" and any(free.values()):
            highest = max(priority for priority, tasks in free.items() if tasks)
            expected, free[highest] = free[highest][: int(which)], free[highest][int(which) :]
            assert queues.pop(int(which)) == expected
        elif act == "pop_reserved":
            assert queues.has_reserved(which) == bool(seated.get(which))
            assert queues.pop_reserved(which) == seated.pop(which, [])
        in_order = [task for priority in sorted(free, reverse=True) for task in free[priority]]
        reserved = [task for tasks in seated.values() for task in tasks]
        assert [task for task in queues if task.seat is None] == in_order
        assert sorted(task.id for task in queues if task.seat is not None) == sorted(task.id for task in reserved)
        assert (queues.queued, queues.reserved) == (len(in_order), len(reserved))
        assert all((task in queues) == (task in line(task)) for task in made)


def test_what_is_removed_is_not_kept() -> None:
    """Who submits and cancels for hours, while nothing is popped, must not fill the memory."""
    queues = Queues()
    first = Task(0)
    queues.append(first)
    for number in range(1, 10_000):
        task = Task(number)
        queues.append(task)
        assert queues.remove(task)
    assert sum(type(held) is Task for held in gc.get_objects()) < 100
    assert list(queues) == [first]
