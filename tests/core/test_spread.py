"""Which worker of a server brings it the buffers of a large function."""

from farm_executor.core.sharing import State
from farm_executor.core.spread import How, Spread


def test_the_first_worker_brings_it_and_the_others_take_it_before_and_after_it_is_held():
    spread = Spread()

    assert [spread.send(1, lane) for lane in (10, 11, 10)] == [How.BRING, How.TAKE, How.TAKE]
    spread.answered(1, State.WANTED)
    spread.answered(1, State.HELD)
    assert spread.send(1, 12) is How.TAKE
    assert spread.lane_gone(10) == []
    assert spread.send(1, 13) is How.TAKE
    assert spread.send(2, 13) is How.BRING


def test_what_a_server_refuses_each_worker_gets_whole():
    spread = Spread()
    spread.answered(1, State.REFUSED)
    assert spread.send(2, 10) is How.BRING
    spread.answered(2, State.REFUSED)

    assert [spread.send(number, 11) for number in (1, 2)] == [How.ALONE] * 2
    assert spread.gave_up(1)


def test_what_a_lost_worker_may_not_have_brought_each_gets_whole_and_nothing_else():
    spread = Spread()
    for number, lane in ((1, 10), (2, 11), (3, 10)):
        spread.send(number, lane)
    spread.answered(3, State.HELD)

    assert spread.lane_gone(10) == [1]
    spread.answered(1, State.HELD)  # it was on its way, and the server has been told to drop it
    assert [spread.send(number, 12) for number in (1, 2, 3)] == [How.ALONE, How.TAKE, How.TAKE]


def test_what_nobody_needs_is_forgotten():
    spread = Spread()
    spread.send(1, 10)
    spread.answered(2, State.REFUSED)
    for number in (1, 2, 3):
        spread.drop(number)

    assert not spread.gave_up(2)
    assert spread.lane_gone(10) == []
