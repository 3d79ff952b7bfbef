"""map: the results of builtin map, computed elsewhere, in the order of the arguments."""

import gc
import itertools
import weakref
from concurrent.futures import TimeoutError as FuturesTimeoutError

import pytest
from contract import tasks
from contract.gate import DEADLINE

NEVER = 0.05
"""Seconds given to something that cannot happen, for the gate is closed."""


def lines(book):
    return book.read_text().split() if book.exists() else []


@pytest.mark.parametrize(
    "make_iterables",
    [
        lambda: ([1, 2, 3],),
        lambda: ([],),
        lambda: (range(10), range(10)),
        lambda: (range(10), range(3)),
        lambda: (range(3), itertools.count()),
        lambda: ([], itertools.count()),
        lambda: ("abc", (1, 2, 3), {4: 5, 6: 7, 8: 9}),
        lambda: (),
    ],
    ids=[
        "list",
        "empty",
        "two",
        "the shorter ends it",
        "an endless one",
        "empty and endless",
        "any iterable",
        "none",
    ],
)
def test_map_calls_the_function_as_builtin_map_does(executor, make_iterables):
    results = executor.map(tasks.call_with, *make_iterables(), timeout=DEADLINE)
    assert list(results) == [(items, {}) for items in zip(*make_iterables())]


def test_generators_are_consumed_once_and_whole(executor):
    numbers = (number for number in range(100))
    assert list(executor.map(tasks.negate, numbers)) == [-number for number in range(100)]
    assert list(numbers) == []


def test_map_returns_an_iterator(executor):
    results = executor.map(tasks.negate, [1, 2])
    assert iter(results) is results
    assert [next(results), next(results)] == [-1, -2]
    with pytest.raises(StopIteration):
        next(results)


def test_map_can_be_taken_off_the_executor(executor):
    """Samplers and optimizers take `map` alone: pool.map."""
    farm_map = executor.map
    assert list(farm_map(pow, (number for number in range(5)), itertools.repeat(2))) == [0, 1, 4, 9, 16]


def test_results_come_in_order_however_the_tasks_end(executor, gate):
    results = executor.map(tasks.pass_gate_when_first, itertools.repeat(gate.address), range(20))
    gate.wait_for_arrivals()
    gate.open()
    assert list(results) == list(range(20))


def test_the_tasks_run_without_being_asked_for_their_results(executor, tmp_path):
    book = tmp_path / "book"
    executor.map(tasks.write_line, itertools.repeat(str(book)), range(10))
    executor.shutdown(wait=True)
    assert sorted(map(int, lines(book))) == list(range(10))


def test_map_returns_before_the_tasks_have_ended(executor, gate):
    results = executor.map(tasks.pass_gate, itertools.repeat(gate.address), range(10))
    gate.wait_for_arrivals()
    gate.open()
    assert list(results) == list(range(10))


def test_results_can_be_read_after_the_shutdown(executor):
    results = executor.map(tasks.negate, range(10))
    executor.shutdown(wait=True)
    assert list(results) == [-number for number in range(10)]


def test_two_maps_run_side_by_side(executor):
    first, second = executor.map(tasks.negate, range(50)), executor.map(tasks.add, range(50), range(50))
    assert list(zip(first, second)) == [(-number, 2 * number) for number in range(50)]


def test_a_result_is_not_kept_alive_by_the_iterator(executor):
    for result in executor.map(tasks.Counter, range(10)):
        reference = weakref.ref(result)
        del result
        gc.collect()
        assert reference() is None


@pytest.mark.parametrize("timeout", [0, NEVER])
def test_a_timeout_is_raised_by_the_result_that_is_late(executor, gate, timeout):
    results = executor.map(tasks.pass_gate, [gate.address], timeout=timeout)
    with pytest.raises(FuturesTimeoutError):
        next(results)


def test_a_timeout_that_is_not_reached_changes_nothing(executor):
    assert list(executor.map(tasks.negate, range(10), timeout=DEADLINE)) == [-number for number in range(10)]


@pytest.mark.parametrize("chunksize", [1, 3, 10, 100])
def test_the_chunk_size_changes_no_result(executor, chunksize):
    results = executor.map(tasks.add, range(40), range(40), chunksize=chunksize)
    assert list(results) == [2 * number for number in range(40)]


@pytest.mark.parametrize("chunksize", [2, 7, 100])
@pytest.mark.parametrize("kind", [list, tuple, iter, set])
def test_the_chunk_size_changes_no_result_of_one_iterable(executor, chunksize, kind):
    results = executor.map(tasks.negate, kind(range(40)), chunksize=chunksize)
    assert list(results) == [-number for number in range(40)]


def test_items_of_one_iterable_that_are_tuples_are_not_taken_apart(executor):
    pairs = [(number, str(number)) for number in range(10)]
    assert list(executor.map(len, pairs, chunksize=3)) == [2] * 10


def test_an_iterable_is_asked_once_for_its_items(executor):
    class Once:
        asked = 0

        def __iter__(self):
            self.asked += 1
            return iter(range(10))

    once = Once()
    assert list(executor.map(tasks.negate, once, chunksize=3)) == [-number for number in range(10)]
    assert once.asked == 1


def test_a_failure_of_one_iterable_s_chunk_comes_in_its_place(executor):
    results = executor.map(tasks.invert, [1, 2, 0, 4], chunksize=2)
    assert [next(results), next(results)] == [1.0, 0.5]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_an_item_that_raises_what_ends_iterations_does_not_shorten_the_results(executor):
    results = executor.map(next, [iter([1]), iter([]), iter([3])], chunksize=3)
    with pytest.raises((StopIteration, RuntimeError)):
        list(results)


@pytest.mark.parametrize("chunksize", [1, 3])
def test_what_is_not_iterable_is_refused_at_once(executor, chunksize):
    with pytest.raises(TypeError, match="not iterable"):
        executor.map(tasks.negate, 5, chunksize=chunksize)


@pytest.mark.parametrize("chunksize", [1, 7])
def test_a_chunk_size_and_nothing_to_do(executor, chunksize):
    assert list(executor.map(tasks.negate, [], chunksize=chunksize)) == []


@pytest.mark.needs("chunks")
@pytest.mark.parametrize("chunksize", [0, -1])
def test_a_chunk_size_below_one_is_refused_at_once(executor, chunksize):
    with pytest.raises(ValueError, match="chunksize must be >= 1"):
        executor.map(tasks.negate, range(10), chunksize=chunksize)


def test_an_exception_comes_at_its_place_and_ends_the_iterator(executor):
    results = executor.map(divmod, [1, 1, 1, 1], [2, 3, 0, 5])
    assert next(results) == (0, 1)
    assert next(results) == (0, 1)
    with pytest.raises(ZeroDivisionError):
        next(results)
    with pytest.raises(StopIteration):
        next(results)
    assert executor.submit(tasks.identity, "on").result(timeout=DEADLINE) == "on"


def test_an_exception_comes_at_its_place_in_chunks(executor):
    results = executor.map(divmod, [1, 1, 1, 1], [2, 3, 0, 5], chunksize=2)
    assert next(results) == (0, 1)
    assert next(results) == (0, 1)
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_an_error_of_the_iterable_comes_out_of_map(executor):
    def numbers():
        yield 1
        raise LookupError("no more numbers")

    with pytest.raises(LookupError, match="no more numbers"):
        list(executor.map(tasks.negate, numbers()))
    assert executor.submit(tasks.identity, "on").result(timeout=DEADLINE) == "on"


def test_what_cannot_be_iterated_is_refused_at_once(executor):
    with pytest.raises(TypeError):
        executor.map(tasks.negate, 3)


def test_closing_the_iterator_cancels_the_rest(executor_factory, gate, tmp_path):
    """A worker takes a few tasks ahead of the one that runs; what is behind them never runs."""
    executor, book = executor_factory(max_workers=1), tmp_path / "book"
    results = executor.map(
        tasks.pass_gate_after_first, itertools.repeat(gate.address), itertools.repeat(str(book)), range(1000)
    )
    assert next(results) == 0
    gate.wait_for_arrivals()
    results.close()
    gate.open()
    executor.shutdown(wait=True)
    assert lines(book)[0] == "1"
    assert len(lines(book)) < 500


def test_a_timeout_cancels_the_rest(executor_factory, gate, tmp_path):
    executor, book = executor_factory(max_workers=1), tmp_path / "book"
    results = executor.map(
        tasks.pass_gate_after_first,
        *(itertools.repeat(gate.address), itertools.repeat(str(book)), range(1, 1000)),
        timeout=NEVER,
    )
    gate.wait_for_arrivals()
    with pytest.raises(FuturesTimeoutError):
        next(results)
    gate.open()
    executor.shutdown(wait=True)
    assert len(lines(book)) < 500


def test_an_exception_cancels_the_rest(executor_factory, gate):
    executor = executor_factory(max_workers=1)
    results = executor.map(tasks.pass_gate_and_raise, itertools.repeat(gate.address, 1000))
    gate.wait_for_arrivals()
    behind = executor.submit(tasks.identity, "behind")
    gate.open()
    with pytest.raises(ValueError, match="behind the gate"):
        next(results)
    assert list(results) == []
    assert behind.result(timeout=DEADLINE) == "behind"


@pytest.mark.needs("buffers")
class TestBufferSize:
    @pytest.mark.parametrize("buffersize", [1, 2, 4, 100])
    def test_it_changes_no_result(self, executor, buffersize):
        assert list(executor.map(str, range(4), buffersize=buffersize)) == ["0", "1", "2", "3"]
        results = executor.map(tasks.add, range(4), range(9), buffersize=buffersize)
        assert list(results) == [0, 2, 4, 6]

    def test_none_means_no_limit(self, executor):
        assert list(executor.map(tasks.negate, range(100), buffersize=None)) == [-number for number in range(100)]

    @pytest.mark.parametrize("arguments", [([],), ()], ids=["empty", "none"])
    def test_nothing_to_do(self, executor, arguments):
        assert list(executor.map(tasks.negate, *arguments, buffersize=2)) == []

    def test_endless_iterables(self, executor):
        results = executor.map(tasks.add, itertools.count(), itertools.count(), buffersize=3)
        assert list(itertools.islice(results, 50)) == [2 * number for number in range(50)]
        results.close()

    @pytest.mark.parametrize("buffersize", [1, 2, 5])
    def test_it_is_what_is_taken_before_the_first_result_is_asked_for(self, executor, buffersize):
        numbers = itertools.count()
        executor.map(tasks.negate, numbers, buffersize=buffersize)
        executor.shutdown(wait=True)
        assert next(numbers) == buffersize

    def test_one_more_is_taken_per_result(self, executor):
        taken = []

        def numbers():
            for number in itertools.count():
                taken.append(number)
                yield number

        results = executor.map(tasks.negate, numbers(), buffersize=3)
        assert taken == [0, 1, 2]
        for expected in range(10):
            assert next(results) == -expected
            assert len(taken) == expected + 4

    def test_it_works_with_chunks(self, executor):
        results = executor.map(tasks.negate, itertools.count(), chunksize=7, buffersize=2)
        assert list(itertools.islice(results, 100)) == [-number for number in range(100)]

    def test_an_exception_comes_at_its_place(self, executor):
        results = executor.map(divmod, itertools.repeat(1), [2, 3, 0, 5], buffersize=2)
        assert [next(results), next(results)] == [(0, 1), (0, 1)]
        with pytest.raises(ZeroDivisionError):
            next(results)
        assert list(results) == []

    @pytest.mark.parametrize("buffersize", ["foo", 2.0])
    def test_only_ints_are_accepted(self, executor, buffersize):
        with pytest.raises(TypeError, match="buffersize must be an integer or None"):
            executor.map(str, range(4), buffersize=buffersize)

    @pytest.mark.parametrize("buffersize", [0, -1])
    def test_less_than_one_is_refused(self, executor, buffersize):
        with pytest.raises(ValueError, match="buffersize must be None or > 0"):
            executor.map(str, range(4), buffersize=buffersize)
