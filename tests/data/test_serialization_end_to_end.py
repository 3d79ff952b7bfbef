"""Arguments, results and exceptions through a real farm, and what one that cannot travel costs: itself only."""

import functools
import pickle
import subprocess
import sys
import threading
import traceback

import numpy as np
import pytest
import serialization_tasks as tasks

from farm_executor import BrokenFarmError, FarmExecutor, TaskExecutionError
from farm_executor.core.frames import payload_size

DEADLINE = 60
WAYS = ["raise", "raise without text", "raise unreadably", "exit", "interrupt"]
RAISED = {
    "raise": RuntimeError,
    "raise without text": tasks.NoText,
    "exit": SystemExit,
    "interrupt": KeyboardInterrupt,
}


@pytest.fixture(scope="module")
def farm():
    with FarmExecutor(2) as farm:
        yield farm


@pytest.fixture(autouse=True)
def still_at_work(farm):
    """Whatever a test did, the farm goes on, with the same workers."""
    yield
    before = farm.statistics()
    assert [future.result(timeout=DEADLINE) for future in [farm.submit(pow, 2, n) for n in range(20)]]
    assert (before.lost, before.resubmitted) == (0, 0)


def outcome(future):
    """The exception of a future, or its result."""
    return future.exception(timeout=DEADLINE) or future.result()


# -- values -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        None,
        "text",
        {"a": [1, (2.5, b"x")], None: {3}},
        bytearray(200_000),
        b"x" * 1_000_000,
        ["x" * 1_000_000, 1],
        range(3),
        Ellipsis,
        float,
        functools.partial(divmod, 7),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_value_comes_back(farm, value):
    result = farm.submit(tasks.identity, value).result(timeout=DEADLINE)

    assert type(result) is type(value)
    assert result == value or isinstance(value, functools.partial)


@pytest.mark.parametrize("size", [0, 10, 100_000])
@pytest.mark.parametrize("dtype", ["f8", ">i2", "?", "S3", [("a", "u1"), ("b", "f4")]], ids=str)
def test_an_array_comes_back_and_can_be_written_to(farm, size, dtype):
    array = np.zeros(size, dtype)

    result = farm.submit(tasks.identity, array).result(timeout=DEADLINE)

    assert (result.dtype, result.shape) == (array.dtype, array.shape)
    assert result.tobytes() == array.tobytes()
    assert result.flags.writeable
    result[:] = array


def test_an_array_of_64_mib_comes_back(farm):
    array = np.arange(8 * 1024 * 1024, dtype=np.float64)

    result = farm.submit(tasks.identity, array).result(timeout=DEADLINE)

    assert np.array_equal(result, array)
    result[0] = 1
    assert array[0] == 0


@pytest.mark.parametrize("size", [10, 100_000])
def test_write_access_is_kept(farm, size):
    array = np.ones(size)

    assert farm.submit(tasks.describe_array, array).result(timeout=DEADLINE) == (True, "<f8", (size,), size)
    assert farm.submit(tasks.write_to, array).result(timeout=DEADLINE)[0] == 7
    array.flags.writeable = False
    assert farm.submit(tasks.describe_array, array).result(timeout=DEADLINE) == (False, "<f8", (size,), size)
    assert type(farm.submit(tasks.write_to, array).exception(timeout=DEADLINE)) is ValueError
    assert not farm.submit(tasks.identity, array).result(timeout=DEADLINE).flags.writeable


def test_what_arguments_share_they_share_on_the_worker(farm):
    array = np.zeros(100_000)

    assert farm.submit(tasks.are_the_same, array, array).result(timeout=DEADLINE)


def test_many_large_arrays_travel_in_one_value(farm):
    arrays = [np.full(20_000, n, np.float64) for n in range(50)]

    result = farm.submit(tasks.identity, {"arrays": arrays, "last": arrays[-1]}).result(timeout=DEADLINE)

    assert [array[-1] for array in result["arrays"]] == list(range(50))
    assert result["last"] is result["arrays"][-1]


def test_a_result_is_as_it_was_when_the_task_ended_though_the_next_changes_it(farm):
    with FarmExecutor(1) as alone:
        futures = [alone.submit(tasks.count_up) for _ in range(20)]
        results = [future.result(timeout=DEADLINE) for future in futures]

    assert [(array[0], array[-1]) for array in results] == [(n, n) for n in range(1, 21)]


# -- exceptions ---------------------------------------------------------------------------------------------


def test_a_tasks_own_exception_rises_as_itself_with_its_place_and_causes(farm):
    with pytest.raises(tasks.Mine, match="code 3") as raised:
        farm.submit(tasks.raise_mine, 3).result(timeout=DEADLINE)

    error = raised.value
    assert (error.code, error.hint) == (3, [3])
    assert type(error.__cause__) is type(error.__context__) is KeyError
    report = error.__cause__.__cause__
    assert type(report) is TaskExecutionError
    assert report.pid > 0
    assert report.server.startswith("unix:")
    assert report.attempt == 1
    assert report.type_name == "serialization_tasks.Mine"
    shown = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    for line in ['{}["missing"]', "raise Mine(code, hint=[code]) from error", "in raise_mine"]:
        assert line in shown
        assert line in report.remote_traceback
    assert "worker.py" not in report.remote_traceback
    names = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
    assert names[-1] == "raise_mine"


def test_one_that_is_raised_again_and_again_shows_its_place_once(farm):
    for _ in range(5):
        error = farm.submit(tasks.raise_again, np.zeros(10)).exception(timeout=DEADLINE)

        assert error.__cause__.remote_traceback.count("in raise_again") == 1


def test_one_that_nothing_can_be_read_of_rises_as_itself(farm):
    error = farm.submit(tasks.raise_unreadable).exception(timeout=DEADLINE)

    assert type(error) is tasks.Unreadable


def test_each_failure_is_an_object_of_its_own(farm):
    error = ValueError("one")
    first, second = (farm.submit(tasks.raise_it, error).exception(timeout=DEADLINE) for _ in range(2))

    assert first is not second
    assert first is not error
    assert error.__cause__ is None


# -- what cannot travel -------------------------------------------------------------------------------------


def test_an_argument_that_cannot_be_pickled_is_pointed_at(farm):
    generator = (n for n in ())

    by_position = farm.submit(tasks.identity, 1, generator).exception(timeout=DEADLINE)
    by_name = farm.submit(tasks.identity, value=generator).exception(timeout=DEADLINE)
    function = farm.submit(generator.send, 1).exception(timeout=DEADLINE)

    assert type(by_position) is type(by_name) is TypeError
    assert "argument 1, of type generator" in str(by_position)
    assert "argument value, of type generator" in str(by_name)
    assert "the function itself" in str(function)


@pytest.mark.parametrize("how", ["raise", "raise without text"])
def test_an_argument_whose_pickling_fails_fails_its_own_future(farm, how):
    error = farm.submit(tasks.identity, tasks.FailsToPickle(how)).exception(timeout=DEADLINE)

    assert type(error) is (RuntimeError if how == "raise" else tasks.NoText)


class ExitsWhenPickled:
    def __reduce__(self):
        sys.exit(7)


SUBMITS = {
    "an argument": lambda farm, odd: farm.submit(tasks.identity, odd),
    "an argument by name": lambda farm, odd: farm.submit(tasks.identity, value=odd),
    "the function": lambda farm, odd: farm.submit(functools.partial(tasks.identity, odd)),
    "deep within": lambda farm, odd: farm.submit(tasks.identity, [{"a": odd}, lambda: odd]),
}


@pytest.mark.parametrize("where", SUBMITS)
def test_an_argument_that_exits_when_it_is_pickled_ends_its_own_future_only(farm, where):
    error = SUBMITS[where](farm, ExitsWhenPickled()).exception(timeout=DEADLINE)

    assert type(error) is SystemExit
    assert error.code == 7


@pytest.mark.parametrize("chunksize", [1, 3])
@pytest.mark.parametrize("place", [0, 300])
def test_an_item_that_exits_when_it_is_pickled_ends_the_map_at_its_place(farm, chunksize, place):
    results = farm.map(tasks.identity, [*range(place), ExitsWhenPickled(), 1], chunksize=chunksize)

    assert [next(results) for _ in range(place)] == list(range(place))
    with pytest.raises(SystemExit):
        next(results)


def test_a_map_whose_function_exits_when_it_is_pickled_ends(farm):
    results = farm.map(functools.partial(tasks.identity, ExitsWhenPickled()), range(3))

    with pytest.raises(SystemExit):
        next(results)


@pytest.mark.parametrize("size", [1_000, 100_000, 1_000_000])  # in the pickle, copied, and mapped
def test_each_call_gets_the_array_of_its_function_as_it_is_here(farm, size):
    array = np.zeros(size)

    def add_one():
        array[:] += 1
        return float(array.sum())

    for function in (add_one, functools.partial(tasks.add_to, array)):
        assert {outcome(farm.submit(function)) for _ in range(10)} == {float(size)}
        array[0] += 5
        assert {outcome(farm.submit(function)) for _ in range(4)} == {float(size + 5)}
        array[:] = 0


class Once:
    """Stands for a signal whose handler runs while a call is pickled."""

    def __init__(self, error):
        self.error = error

    def __reduce__(self):
        error, self.error = self.error, None
        if error is not None:
            raise error
        return int, ()


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_and_an_exit_by_a_signals_handler_pass(farm, error):
    for submit in SUBMITS.values():
        with pytest.raises(error):
            submit(farm, Once(error()))
    with pytest.raises(error):
        farm.map(tasks.identity, [*range(300), Once(error()), 1])
    with pytest.raises(error):
        farm.map(functools.partial(tasks.identity, Once(error())), range(3))


def test_a_real_interrupt_passes(farm):
    class Interrupts:
        def __reduce__(self):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        farm.submit(tasks.identity, Interrupts())


def test_an_argument_whose_pickling_fails_beyond_all_reading_fails_its_own_future(farm):
    error = farm.submit(tasks.identity, tasks.FailsToPickleUnreadably()).exception(timeout=DEADLINE)

    assert type(error) in (tasks.Unreadable, RuntimeError)  # the latter where pickle tries to add notes to it


def test_a_callback_that_exits_costs_no_other_future_anything(farm):
    caller = threading.current_thread()

    def exit_in_the_farms_thread(future):
        if threading.current_thread() is not caller:  # where a future that is done already would call it
            sys.exit()

    futures = [farm.submit(pow, 2, n) for n in range(20)]
    for future in futures[::2]:
        future.add_done_callback(exit_in_the_farms_thread)

    assert [future.result(timeout=DEADLINE) for future in futures] == [2**n for n in range(20)]


@pytest.mark.parametrize("how", WAYS)
def test_an_argument_that_cannot_be_read_on_the_worker_fails_its_own_task(farm, how):
    error = farm.submit(tasks.identity, tasks.FailsElsewhere(how)).exception(timeout=DEADLINE)

    assert type(error) is TaskExecutionError
    assert "could not be read on the worker" in str(error)
    assert "the reason" in str(error) or how.startswith("raise ")
    assert "in misbehave" in error.remote_traceback
    assert type(error.__cause__).__name__ in error.type_name


@pytest.mark.parametrize("how", WAYS)
def test_a_result_that_cannot_be_pickled_fails_its_own_task(farm, how):
    """With that very error, as by ProcessPoolExecutor, and an explanation as its cause."""
    error = farm.submit(tasks.returns, tasks.FailsToPickle, how).exception(timeout=DEADLINE)

    if how == "raise unreadably":  # pickle may raise another error, when it tries to add notes to that one
        return
    assert (
        type(error)
        is {
            "raise": RuntimeError,
            "raise without text": tasks.NoText,
            "exit": SystemExit,
            "interrupt": KeyboardInterrupt,
        }[how]
    )
    cause = error.__cause__
    assert type(cause) is TaskExecutionError
    assert "result, of type FailsToPickle, could not be pickled" in str(cause)
    assert "in misbehave" in cause.remote_traceback
    assert cause.pid > 0
    assert how.startswith("raise ") or str(error) == "the reason"


def test_a_result_that_nobody_can_pickle_is_named(farm):
    error = farm.submit(tasks.returns_lock).exception(timeout=DEADLINE)

    assert type(error) is TypeError
    assert "cannot pickle '_thread.lock'" in str(error)
    assert type(error.__cause__) is TaskExecutionError
    assert "the task's result, of type lock, could not be pickled: TypeError" in str(error.__cause__)


@pytest.mark.parametrize("how", WAYS)
def test_a_result_that_cannot_be_rebuilt_here_fails_its_own_future(farm, how):
    error = farm.submit(tasks.returns, tasks.FailsElsewhere, how).exception(timeout=DEADLINE)

    assert type(error) is TaskExecutionError
    assert "could not be rebuilt here" in str(error)
    assert "the reason" in str(error) or how.startswith("raise ")
    assert error.pid > 0


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("cls", [tasks.ErrorThatFailsElsewhere, tasks.ErrorThatFailsToPickle])
def test_an_exception_that_cannot_travel_is_told_of(farm, how, cls):
    def raise_here():
        raise cls(how)

    error = farm.submit(raise_here).exception(timeout=DEADLINE)

    assert type(error) is TaskExecutionError
    assert f"raised on a worker: serialization_tasks.{cls.__name__}" in str(error)
    assert "the reason" in str(error) or how.startswith("raise ")
    assert "in raise_here" in error.remote_traceback


def test_a_module_that_the_worker_lacks_is_named_and_what_to_do(farm, monkeypatch, tmp_path):
    (tmp_path / "only_the_client_has_it.py").write_text("def f(): pass\nclass C: pass")
    monkeypatch.syspath_prepend(tmp_path)  # too late for the workers
    import only_the_client_has_it as module

    for call in [(module.f,), (tasks.identity, module.C())]:
        error = farm.submit(*call).exception(timeout=DEADLINE)

        assert type(error) is TaskExecutionError
        assert "No module named 'only_the_client_has_it'" in str(error)
        assert "it is this program's own" in str(error)
        assert error.server in str(error)
        assert type(error.__cause__) is ModuleNotFoundError
    del sys.modules["only_the_client_has_it"]


def test_bad_outcomes_in_a_batch_cost_nothing_but_themselves(farm):
    """Tasks that succeed and fail in every way, so many at once that they travel in batches."""

    def local_error():
        raise tasks.Mine(1, hint=2)

    kinds = [
        (lambda n: farm.submit(tasks.identity, n), int),
        (lambda n: farm.submit(tasks.identity, np.full(30_000, n)), np.ndarray),
        (lambda n: farm.submit(tasks.identity, "x" * n), str),
        (lambda n: farm.submit(divmod, n, 0), ZeroDivisionError),
        (lambda n: farm.submit(tasks.raise_mine, n), tasks.Mine),
        (lambda n: farm.submit(local_error), tasks.Mine),
        (lambda n: farm.submit(tasks.raise_it, SystemExit(n)), SystemExit),
        (lambda n: farm.submit(tasks.raise_it, KeyboardInterrupt(n)), KeyboardInterrupt),
        (lambda n: farm.submit(tasks.identity, (i for i in ())), TypeError),
        (lambda n: farm.submit(tasks.returns_lock), TypeError),
        (lambda n: farm.submit(tasks.raise_unreadable), tasks.Unreadable),
        *(
            (functools.partial(submit_odd, farm, make, how), TaskExecutionError)
            for how in WAYS
            for make in ("argument", "result here", "error", "error here")
        ),
        *((functools.partial(submit_odd, farm, "result", how), kind) for how, kind in RAISED.items()),
    ]
    plan = [kinds[n * 7 % len(kinds)] for n in range(310)]

    futures = [submit(n) for n, (submit, _) in enumerate(plan)]

    for n, (future, (submit, expected)) in enumerate(zip(futures, plan, strict=True)):
        result = outcome(future)
        assert type(result) is expected
        if submit is kinds[0][0]:
            assert result == n


def submit_odd(farm, kind, how, _):
    call = {
        "argument": (tasks.identity, tasks.FailsElsewhere(how)),
        "result": (tasks.returns, tasks.FailsToPickle, how),
        "result here": (tasks.returns, tasks.FailsElsewhere, how),
        "error": (raise_made, tasks.ErrorThatFailsToPickle, how),
        "error here": (raise_made, tasks.ErrorThatFailsElsewhere, how),
    }[kind]
    return farm.submit(*call)


raise_made = functools.partial(lambda cls, how: tasks.raise_it(cls(how)))


@pytest.mark.parametrize("cls", [tasks.NoText, tasks.Unreadable, tasks.ErrorThatFailsElsewhere])
def test_an_initializer_may_fail_with_anything(cls):
    def initialize(*args):
        raise cls(*args) from KeyError("the cause")

    args = ["raise without text"] if cls is tasks.ErrorThatFailsElsewhere else []
    with FarmExecutor(1, initializer=initialize, initargs=args) as broken:
        result = broken.submit(pow, 2, 2).exception(timeout=DEADLINE)

    assert type(result) is BrokenFarmError
    assert cls.__name__ in str(result)
    assert "in initialize" in str(result)
    if cls is not tasks.Unreadable:  # which the module traceback gives up on
        assert "the cause" in str(result)


def test_what_is_printed_of_a_failed_future_tells_both_places(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "from farm_executor import FarmExecutor\n"
        "def inner(n):\n"
        "    return [1 / n]\n"
        "def outer(n):\n"
        "    return inner(n)\n"
        "with FarmExecutor(1) as farm:\n"
        "    farm.submit(outer, 0).result()\n"
    )

    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=DEADLINE)

    assert done.returncode == 1
    report, shown = done.stderr.split("The above exception was the direct cause of the following exception:")
    for text in (report, shown):
        assert f'  File "{program}", line 3, in inner\n    return [1 / n]\n' in text
        assert f'  File "{program}", line 5, in outer\n' in text
    assert f'  File "{program}", line 7, in <module>\n' in shown
    assert shown.endswith("ZeroDivisionError: division by zero\n")


def test_bound_methods_of_large_objects_are_not_all_kept(farm):
    for number in range(40):
        array = np.full(500_000, number, np.float64)  # whose method is sent as the function, 4 MB each time

        assert farm.submit(array.max).result(timeout=DEADLINE) == number

    kept = farm._engine._functions._by_content
    assert sum(payload_size(content.parts) for content in kept) < 80 * 1024 * 1024


def test_arguments_are_pickled_when_they_are_submitted(farm):
    value = [1]
    future = farm.submit(tasks.identity, value)
    value.append(2)

    assert future.result(timeout=DEADLINE) == [1]
    assert pickle.loads(pickle.dumps(value)) == [1, 2]
