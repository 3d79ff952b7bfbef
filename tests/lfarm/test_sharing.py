"""Shared objects in tasks that are submitted as lfarm does."""

from functools import partial

import pytest

from farm_executor import Shared, lfarm

TABLE = list(range(1000))


def at(table, place):
    return table[place]


def test_a_handle_is_the_object_in_tasks_of_all_kinds(farm_kernel):
    with lfarm.share(TABLE) as table:
        assert isinstance(table, Shared)
        channel = lfarm.make_channel()
        lfarm.submit_task(channel, at, table, 5)
        assert lfarm.receive_result(channel) == 5
        assert lfarm.pmap(lambda place: table[place], range(50)) == list(range(50))
        assert lfarm.pmap(partial(at, table), range(50)) == list(range(50))
        assert lfarm.pmap(at, [table] * 3, range(3)) == [0, 1, 2]
        assert lfarm.preduce(lambda one, other: max(one, other, table[7]), [1, 2, 3]) == 7
        assert lfarm.force(lfarm.future(at, table, 9)) == 9
        assert lfarm.force(lfarm.speculate(lambda: table[4])) == 4
        assert lfarm.broadcast_task(at, table, 2) == [2, 2]


@lfarm.deftask
def sum_of(table):
    return sum(table)


def test_a_task_defined_for_servers_takes_it(farm_kernel):
    with farm_kernel.share(TABLE, frozen=True) as table:
        assert lfarm.force(lfarm.future(sum_of, table)) == sum(TABLE)


def test_what_a_full_channel_holds_back_still_has_what_was_closed(farm_kernel):
    channel = lfarm.make_channel(fixed_capacity=1)
    with lfarm.share(TABLE) as table:
        for place in range(20):
            lfarm.submit_task(channel, at, table, place)
    del table
    assert sorted(lfarm.receive_result(channel) for _ in range(20)) == list(range(20))


def test_sharing_takes_a_farm(kernel):
    if lfarm.kernel_worker_count() and hasattr(kernel.executor, "share"):
        assert lfarm.share(1).value == 1
    else:
        with pytest.raises(TypeError, match="sharing needs a FarmExecutor"):
            lfarm.share(1)


def test_an_ended_kernel_shares_nothing(farm_kernel):
    farm_kernel.end()

    with pytest.raises(RuntimeError, match="ended kernel"):
        farm_kernel.share(1)
