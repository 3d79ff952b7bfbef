"""The tasks that are on no lane, and their order."""

from hypothesis import given
from hypothesis import strategies as st

from farm_executor.core.queues import Queues
from farm_executor.core.task import Task

TASKS = 12
steps = st.one_of(
    st.tuples(st.sampled_from(["append", "prepend", "remove"]), st.integers(0, TASKS - 1)),
    st.tuples(st.just("pop"), st.integers(1, 4)),
    st.tuples(st.just("pop_reserved"), st.integers(0, 1)),
)


def seat_of(number):
    """Two of three tasks are for any lane, with three priorities; the others have two seats."""
    return None if number % 3 else number % 2


@given(st.lists(steps, max_size=60))
def test_they_are_as_a_list_for_each_priority_and_seat_would_be(taken):
    queues = Queues()
    tasks = [Task(number, number % 4 // 2 + (number == 7), seat=seat_of(number)) for number in range(TASKS)]
    model = []  # in their order, those of all priorities and seats
    for step, number in taken:
        task = tasks[number]
        if step in ("append", "prepend") and task not in model:
            getattr(queues, step)(task)
            model.insert(0 if step == "prepend" else len(model), task)
        elif step == "remove":
            assert queues.remove(task) is (task in model)
            model = [other for other in model if other is not task]
        elif step == "pop" and queues.queued:
            free = [other for other in model if other.seat is None]
            highest = max(other.priority for other in free)
            expected = [other for other in free if other.priority == highest][:number]
            assert queues.pop(number) == expected
            model = [other for other in model if other not in expected]
        elif step == "pop_reserved":
            assert queues.has_reserved(number) is any(other.seat == number for other in model)
            assert queues.pop_reserved(number) == [other for other in model if other.seat == number]
            model = [other for other in model if other.seat != number]

        assert queues.queued == sum(other.seat is None for other in model)
        assert queues.reserved == sum(other.seat is not None for other in model)
        assert [other in queues for other in tasks] == [other in model for other in tasks]
        order = sorted((other for other in model if other.seat is None), key=lambda other: -other.priority)
        assert [other for other in queues if other.seat is None] == order


def test_what_is_removed_keeps_no_more_places_than_there_are_tasks():
    queues = Queues()
    tasks = [Task(number) for number in range(1000)]
    for task in tasks:
        queues.append(task)
    for task in tasks[1:-1]:
        queues.remove(task)
        (queue,) = queues._by_priority.values()
        assert len(queue._places) <= 2 * len(queue) + 1
    assert list(queues) == [tasks[0], tasks[-1]]
