"""Parts: how sequences are cut, and what decides when parts end in whatever order."""

from concurrent.futures import Executor, Future

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farm_executor.errors import TaskExecutionError
from farm_executor.lfarm.kernel import make_kernel, use_kernel
from farm_executor.lfarm.parts import bounds, divide, first_found, run_all


class ByHand(Executor):
    """An executor whose tasks end when the test says so."""

    def __init__(self):
        self.futures = []

    def submit(self, fn, /, *args, **kwargs):
        self.futures.append(Future())
        return self.futures[-1]

    def calls(self, outcomes, order):
        """As many calls as outcomes, which are settled in that order as soon as all are submitted."""
        for number in range(len(outcomes)):
            yield (number,)
        for number in order:
            future, outcome = self.futures[number], outcomes[number]
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)


OUTCOMES = st.lists(st.none() | st.integers() | st.builds(lambda: LookupError()), max_size=6)
HISTORIES = OUTCOMES.flatmap(lambda outcomes: st.tuples(st.just(outcomes), st.permutations(range(len(outcomes)))))


def run(function, outcomes, order):
    """What comes of it: the value and None, or None and the outcome that was raised."""
    executor = ByHand()
    with use_kernel(make_kernel(executor)):
        try:
            return function(abs, executor.calls(outcomes, order)), None
        except TaskExecutionError as error:
            return None, error.__cause__


@given(HISTORIES)
@settings(deadline=None)
def test_of_all_the_first_failure_in_time_decides(history):
    outcomes, order = history
    failures = [outcomes[number] for number in order if isinstance(outcomes[number], Exception)]

    value, raised = run(run_all, outcomes, order)

    if failures:
        assert raised is failures[0]
    else:
        assert (value, raised) == (outcomes, None)


@given(HISTORIES)
@settings(deadline=None)
def test_the_first_that_is_found_decides_and_failures_behind_it_do_not_matter(history):
    outcomes, order = history

    found, raised = run(first_found, outcomes, order)

    if raised is not None:
        failed = next(number for number, outcome in enumerate(outcomes) if outcome is raised)
        earlier = order[: order.index(failed)]
        assert not [n for n in earlier if n < failed and isinstance(outcomes[n], int)]  # else it was behind that
        assert not [n for n in earlier if isinstance(outcomes[n], Exception) and n < failed]
    elif found is None:
        assert set(outcomes) <= {None}
    else:
        index, value = found
        assert outcomes[:index] == [None] * index
        assert outcomes[index] is value


@pytest.mark.parametrize("function", [run_all, first_found])
def test_what_has_not_begun_is_cancelled_at_a_failure(function):
    executor = ByHand()
    with use_kernel(make_kernel(executor)), pytest.raises(TaskExecutionError):
        function(abs, executor.calls([None, LookupError(), None], [1]))

    assert [future.cancelled() for future in executor.futures] == [True, False, True]


def test_what_is_behind_a_find_is_cancelled_while_what_is_before_it_is_waited_for():
    executor = ByHand()

    def calls():
        yield from executor.calls([None, "found", None], [1])
        executor.futures[2].add_done_callback(lambda _: executor.futures[0].set_result(None))

    with use_kernel(make_kernel(executor)):
        assert first_found(abs, calls()) == (1, "found")
    assert executor.futures[2].cancelled()


@given(st.integers(0, 50), st.integers(1, 60))
def test_parts_are_of_equal_sizes_but_for_one_element(count, parts):
    with use_kernel(make_kernel(ByHand())):
        pieces = [piece for (piece,) in divide([range(count)], bounds(count, parts))]

    sizes = {len(piece) for piece in pieces}
    assert [x for piece in pieces for x in piece] == list(range(count))
    assert len(pieces) == min(parts, count)
    assert not sizes or max(sizes) - min(sizes) <= 1
