"""submit: what goes to the function, and what comes back."""

import functools
import operator
import pickle
import random
import threading
from concurrent.futures import Executor, Future, wait

import pytest
from contract import tasks
from contract.gate import DEADLINE


def test_the_executor_is_an_executor(executor):
    assert isinstance(executor, Executor)


def test_submit_returns_a_future_of_the_standard_library(executor):
    future = executor.submit(pow, 2, 8)
    assert isinstance(future, Future)
    assert future.result(timeout=DEADLINE) == 256


def test_positional_and_keyword_arguments_arrive(executor):
    future = executor.submit(tasks.call_with, 1, "two", three=3, four=[4])
    assert future.result(timeout=DEADLINE) == ((1, "two"), {"three": 3, "four": [4]})


KEYWORDS = [
    *["fn", "self", "executor", "args", "kwargs", "function", "task", "future"],
    *["timeout", "priority", "category", "max_attempts", "key", "callback", "chunksize", "retries", "workers"],
]


def test_every_keyword_belongs_to_the_function(executor):
    futures = {name: executor.submit(tasks.call_with, **{name: 1}) for name in KEYWORDS}
    for name, future in futures.items():
        assert future.result(timeout=DEADLINE) == ((), {name: 1})


def test_the_function_is_positional_only(executor):
    with pytest.raises(TypeError):
        executor.submit(fn=tasks.identity, value=1)
    with pytest.raises(TypeError):
        executor.submit()


VALUES = [
    *[None, True, 0, -(2**200), 1.5, 2 + 3j, "", "text", "\ud800", b"", b"\x00bytes", ..., NotImplemented],
    *[(), (1,), (1, (2, 3)), [], [None], {}, {"a": {1: 2}}, {1, 2}, frozenset({3}), range(5), slice(1, 2)],
    *[ValueError, tasks.Counter, tasks.Counter(3), tasks.add, len],
]


def test_values_come_back_equal(executor):
    futures = [executor.submit(tasks.identity, value) for value in VALUES]
    for value, future in zip(VALUES, futures, strict=True):
        result = future.result(timeout=DEADLINE)
        assert type(result) is type(value), value
        assert result == value


def test_a_bytearray_comes_back_as_one_that_can_be_changed(executor):
    result = executor.submit(tasks.identity, bytearray(b"abc")).result(timeout=DEADLINE)
    result += b"d"
    assert result == bytearray(b"abcd")


def test_an_exception_that_is_returned_is_a_result(executor):
    future = executor.submit(tasks.identity, ValueError("returned", 1))
    result = future.result(timeout=DEADLINE)
    assert type(result) is ValueError
    assert result.args == ("returned", 1)
    assert future.exception() is None


CALLABLES = {
    "builtin": (len, ("four",), 4),
    "function": (tasks.add, (1, 2), 3),
    "partial": (functools.partial(tasks.add, 1), (2,), 3),
    "attrgetter": (operator.attrgetter("start"), (tasks.Counter(3),), 3),
    "method of a type": (str.upper, ("abc",), "ABC"),
    "bound method of a builtin": ("abc".upper, (), "ABC"),
    "bound method of a list": ([3, 1, 2].index, (2,), 2),
    "callable object": (tasks.Counter(1), (2,), 3),
    "bound method": (tasks.Counter(1).above, (2,), 3),
    "class method": (tasks.Counter.make, (3,), tasks.Counter(3)),
    "static method": (tasks.Counter.twice, (3,), 6),
    "class": (tasks.Counter, (3,), tasks.Counter(3)),
    "builtin class without arguments": (dict, (), {}),
}


def test_callables_of_every_kind_run(executor):
    futures = {kind: executor.submit(function, *args) for kind, (function, args, _) in CALLABLES.items()}
    results = {kind: future.result(timeout=DEADLINE) for kind, future in futures.items()}
    assert results == {kind: expected for kind, (_, _, expected) in CALLABLES.items()}


@pytest.mark.needs("by_value")
def test_lambdas_closures_and_local_classes_run(executor):
    step = 3

    def add_step(value):
        return value + step

    class Local:
        def __init__(self, value):
            self.value = value

        def squared(self):
            return self.value**2

    assert executor.submit(lambda: 1).result(timeout=DEADLINE) == 1
    assert executor.submit(add_step, 4).result(timeout=DEADLINE) == 7
    assert executor.submit(Local(5).squared).result(timeout=DEADLINE) == 25
    made = executor.submit(Local, 6).result(timeout=DEADLINE)
    assert type(made) is Local
    assert made.squared() == 36
    assert list(executor.map(lambda x, y: x * y, range(5), range(5))) == [0, 1, 4, 9, 16]


def test_tasks_do_not_run_in_the_thread_that_submits(executor):
    here = tasks.process_and_thread()
    assert executor.submit(tasks.process_and_thread).result(timeout=DEADLINE) != here


@pytest.mark.needs("isolates")
def test_a_task_has_a_copy_of_its_arguments(executor):
    values = [1, 2, 3]
    assert executor.submit(tasks.clear, values).result(timeout=DEADLINE) == 0
    assert values == [1, 2, 3]


@pytest.mark.needs("isolates")
def test_an_argument_that_does_not_pickle_fails_its_own_task_only(executor):
    before = executor.submit(tasks.identity, "before")
    future = executor.submit(tasks.identity, threading.Lock())
    after = executor.submit(tasks.identity, "after")
    assert isinstance(future.exception(timeout=DEADLINE), (TypeError, pickle.PicklingError))
    assert before.result(timeout=DEADLINE) == "before"
    assert after.result(timeout=DEADLINE) == "after"


@pytest.mark.needs("isolates")
@pytest.mark.parametrize("function", [tasks.return_lock, tasks.raise_with_lock])
def test_an_outcome_that_does_not_pickle_fails_its_own_task_only(executor, function):
    before = executor.submit(tasks.identity, "before")
    future = executor.submit(function)
    after = executor.submit(tasks.identity, "after")
    error = future.exception(timeout=DEADLINE)
    assert isinstance(error, Exception)
    assert "lock" in str(error)
    assert before.result(timeout=DEADLINE) == "before"
    assert after.result(timeout=DEADLINE) == "after"


@pytest.mark.needs("survives")
@pytest.mark.parametrize(
    ("function", "arguments"),
    [(tasks.identity, (tasks.FailsToLoad(),)), (tasks.FailsToLoad, ())],
    ids=["argument", "result"],
)
def test_what_does_not_unpickle_fails_its_own_task_only(executor, function, arguments):
    before = executor.submit(tasks.identity, "before")
    future = executor.submit(function, *arguments)
    after = executor.submit(tasks.identity, "after")
    error = future.exception(timeout=DEADLINE)
    assert isinstance(error, Exception)
    assert "refused" in str(error)
    assert before.result(timeout=DEADLINE) == "before"
    assert after.result(timeout=DEADLINE) == "after"


def test_many_small_tasks(executor):
    futures = [executor.submit(tasks.add, number, 1) for number in range(2_000)]
    assert [future.result(timeout=DEADLINE) for future in futures] == list(range(1, 2_001))


def test_large_arguments_and_results(executor):
    data = random.Random(0).randbytes(8 * 2**20)
    assert executor.submit(len, data).result(timeout=DEADLINE) == len(data)
    assert executor.submit(tasks.identity, data).result(timeout=DEADLINE) == data
    assert executor.submit(bytes, len(data)).result(timeout=DEADLINE) == bytes(len(data))


def test_large_and_small_tasks_side_by_side(executor):
    data = bytes(2**20)
    futures = [executor.submit(len, data if number % 5 == 0 else b"small") for number in range(50)]
    assert [future.result(timeout=DEADLINE) for future in futures] == [2**20, 5, 5, 5, 5] * 10


@pytest.fixture(scope="session")
def numpy():
    """Imported before a test's descriptors are counted, for the import opens one."""
    return pytest.importorskip("numpy")


def test_arrays_arrive_and_come_back_equal_and_writable(executor, numpy):
    numbers = numpy.arange(2**20, dtype="float64")
    arrays = {
        "8 MiB": numbers,
        "rows": numbers.reshape(1024, -1),
        "by columns": numpy.asfortranarray(numbers.reshape(1024, -1)),
        "every third": numbers[::3],
        "backwards": numbers[::-1],
        "small": numbers[:3],
        "empty": numbers[:0],
        "no dimensions": numpy.array(5.0),
        "records": numpy.zeros(5, dtype=[("x", "i4"), ("y", "f8")])["x"],
    }
    for name, array in arrays.items():
        expected = array * 2
        result = executor.submit(tasks.double_in_place, array.copy()).result(timeout=DEADLINE)
        numpy.testing.assert_array_equal(result, expected, err_msg=name)
        assert result.dtype == expected.dtype, name
        result += 1
        numpy.testing.assert_array_equal(result, expected + 1, err_msg=name)


def test_an_array_of_objects_arrives_and_comes_back(executor, numpy):
    array = numpy.array([None, "two", 3], dtype=object)
    assert list(executor.submit(tasks.identity, array).result(timeout=DEADLINE)) == [None, "two", 3]


def test_several_threads_submit_at_once(executor):
    results = {}

    def submit_and_collect(thread):
        futures = [executor.submit(tasks.add, 1000 * thread, number) for number in range(100)]
        results[thread] = [future.result(timeout=DEADLINE) for future in futures]

    threads = [threading.Thread(target=submit_and_collect, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert results == {thread: list(range(1000 * thread, 1000 * thread + 100)) for thread in range(8)}


def test_a_done_callback_may_submit(executor):
    followers = []
    submitted = threading.Event()

    def submit_another(future):
        followers.append(executor.submit(tasks.add, future.result(), 1))
        submitted.set()

    executor.submit(tasks.identity, 1).add_done_callback(submit_another)
    assert submitted.wait(DEADLINE)
    assert followers[0].result(timeout=DEADLINE) == 2


def test_a_chain_of_tasks_each_submitted_by_the_callback_of_the_one_before(executor):
    finished = Future()

    def go_on(future):
        if future.result() == 50:
            finished.set_result(50)
        else:
            executor.submit(tasks.add, future.result(), 1).add_done_callback(go_on)

    executor.submit(tasks.identity, 0).add_done_callback(go_on)
    assert finished.result(timeout=DEADLINE) == 50


def test_all_workers_work_at_once(executor, gate):
    futures = [executor.submit(tasks.pass_gate, gate.address, number) for number in range(2)]
    gate.wait_for_arrivals(2)
    gate.open()
    assert [future.result(timeout=DEADLINE) for future in futures] == [0, 1]


def test_one_worker_works_on_one_task_at_a_time_and_in_order(executor_factory, tmp_path):
    executor = executor_factory(max_workers=1)
    book = tmp_path / "book"
    futures = [executor.submit(tasks.write_line, str(book), number) for number in range(100)]
    wait(futures, timeout=DEADLINE)
    assert book.read_text().split() == [str(number) for number in range(100)]


def test_a_free_worker_takes_what_waits_behind_a_long_task(executor, gate):
    held = executor.submit(tasks.pass_gate, gate.address)
    gate.wait_for_arrivals()
    others = [executor.submit(tasks.identity, number) for number in range(200)]
    assert [future.result(timeout=DEADLINE) for future in others] == list(range(200))
    assert not held.done()


def test_a_future_that_nobody_keeps_still_runs(executor, tmp_path):
    book = tmp_path / "book"
    executor.submit(tasks.write_line, str(book), "done")
    executor.shutdown(wait=True)
    assert book.read_text() == "done\n"


def test_the_global_random_state_of_the_client_is_left_alone(executor_factory):
    random.seed(1)
    before = random.getstate()
    with executor_factory() as executor:
        assert executor.submit(tasks.identity, 1).result(timeout=DEADLINE) == 1
        assert list(executor.map(tasks.negate, range(10))) == [-number for number in range(10)]
    assert random.getstate() == before


@pytest.mark.needs("shares_managers")
def test_objects_of_a_manager_may_be_arguments(executor, fork_server):
    """How programs for ProcessPoolExecutor report progress and are told to stop."""
    manager = fork_server.Manager()
    try:
        queue, event = manager.Queue(), manager.Event()
        future = executor.submit(tasks.report_and_wait, queue, event, "progress")
        assert queue.get(timeout=DEADLINE) == "progress"
        assert not future.done()
        event.set()
        assert future.result(timeout=DEADLINE) == "told to stop"
    finally:
        manager.shutdown()
