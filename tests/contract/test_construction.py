"""What can be said of an executor before it has done anything."""

import pytest
from contract import tasks
from contract.gate import DEADLINE


@pytest.mark.parametrize("max_workers", [1, 2])
def test_max_workers_is_known_from_construction_on(executor_factory, max_workers):
    executor = executor_factory(max_workers=max_workers)
    assert executor._max_workers == max_workers


def test_the_number_of_workers_has_a_default(executor_factory):
    """Libraries read _max_workers to choose a chunk size: it is a positive int, also when nobody gave one."""
    executor = executor_factory(max_workers=None)
    assert isinstance(executor._max_workers, int)
    assert executor._max_workers > 0
    assert executor.submit(tasks.identity, 1).result(timeout=DEADLINE) == 1
    assert executor._max_workers > 0


@pytest.mark.parametrize("max_workers", [0, -1])
def test_fewer_than_one_worker_are_refused(executor_factory, max_workers):
    with pytest.raises(ValueError, match="max_workers must be greater than 0"):
        executor_factory(max_workers=max_workers)


def test_an_initializer_that_cannot_be_called_is_refused(executor_factory):
    with pytest.raises(TypeError, match="initializer must be a callable"):
        executor_factory(initializer="not callable")


@pytest.mark.needs("recycles")
def test_max_tasks_per_child_is_a_positive_int(executor_factory):
    with pytest.raises(TypeError, match="max_tasks_per_child must be an integer"):
        executor_factory(max_tasks_per_child="3")
    with pytest.raises(ValueError, match="max_tasks_per_child must be >= 1"):
        executor_factory(max_tasks_per_child=0)


def test_repr_names_the_class_at_every_stage(executor_factory):
    executor = executor_factory()
    name = type(executor).__name__
    assert name in repr(executor)
    executor.submit(tasks.identity, 1).result(timeout=DEADLINE)
    assert name in repr(executor)
    executor.shutdown()
    assert name in repr(executor)


def test_an_executor_that_is_never_used_shuts_down(executor_factory):
    executor_factory().shutdown(wait=True)


def test_several_executors_work_side_by_side(executor_factory):
    first, second = executor_factory(max_workers=1), executor_factory(max_workers=1)
    futures = [executor.submit(tasks.identity, number) for number in range(20) for executor in (first, second)]
    assert [future.result(timeout=DEADLINE) for future in futures] == [n for n in range(20) for _ in range(2)]
