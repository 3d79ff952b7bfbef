"""What can be submitted, how it travels, and what its failure is to the caller."""

import functools
import math
import pickle
import subprocess
import sys
import threading
from concurrent.futures import BrokenExecutor, CancelledError

import pytest
from lfarm import tasks

from farm_executor import InvalidTaskError, TaskExecutionError, TaskKilledError
from farm_executor.lfarm import deftask, make_channel, pmap, receive_result, submit_task
from farm_executor.lfarm.tasks import sendable, translated, travelling_by_value

ABSENT = """
from farm_executor.lfarm import deftask

factor = 10

class Box:
    def __init__(self, value):
        self.value = value

def plain(x):
    return x * factor

@deftask
def times(x):
    return plain(x)

@deftask
def times_and_one(x):
    return times(x) + one()

@deftask(local=False)
def one():
    return 1

@deftask
def fact(n):
    return 1 if n < 2 else n * fact(n - 1)

@deftask(local=False)
def only_there(n):
    return 1 if n < 2 else n * only_there(n - 1)

@deftask
def options(a, *rest, b=2, **more):
    return a, rest, b, sorted(more.items())

@deftask
def box(value):
    return Box(value)
"""

OTHER = """
from farm_executor.lfarm import deftask
import absent_one

@deftask
def twice(x):
    return 2 * absent_one.times(x)
"""


def call(task, *args, **kwargs):
    channel = make_channel()
    submit_task(channel, task, *args, **kwargs)
    return receive_result(channel)


# -- deftask -----------------------------------------------------------------------------------------------


def test_a_deftask_is_the_function_here():
    @deftask
    def area(radius: float) -> float:
        """Of a circle."""
        return math.pi * radius**2

    assert area(1) == math.pi
    assert area.__name__ == "area"
    assert area.__doc__ == "Of a circle."
    assert "area" in repr(area)


@pytest.mark.parametrize("what", [42, None, int])
def test_only_functions_are_recorded(what):
    with pytest.raises(TypeError, match="deftask records functions"):
        deftask()(what)


def test_a_deftask_that_is_not_local_says_so_when_it_is_called_here():
    @deftask(local=False)
    def nowhere():
        return 1

    with pytest.raises(TypeError, match=r"nowhere.*local=False.*submit it to a kernel"):
        nowhere()


def test_a_deftask_need_not_exist_on_the_servers(kernel, absent_module):
    module = absent_module("absent_one", ABSENT)

    assert call(module.times, 7) == 70
    assert call(module.times_and_one, 7) == 71
    assert call(module.fact, 10) == math.factorial(10)
    assert call(module.only_there, 5) == 120
    assert call(module.options, 1, 3, b=5, d=7, c=6) == (1, (3,), 5, [("c", 6), ("d", 7)])


def test_a_deftask_calls_one_of_another_module(kernel, absent_module):
    absent_module("absent_one", ABSENT)
    other = absent_module("absent_two", OTHER)

    assert call(other.twice, 3) == 60


def test_what_is_current_at_submit_counts(kernel, absent_module):
    module = absent_module("absent_one", ABSENT)

    assert call(module.times, 7) == 70
    module.factor = 100
    assert call(module.times, 7) == 700
    exec("def plain(x): return -x * factor", vars(module))
    assert call(module.times, 7) == -700


def test_an_instance_of_a_class_beside_the_deftask_comes_back_as_one(kernel, absent_module):
    module = absent_module("absent_one", ABSENT)

    box = call(module.box, 5)

    assert type(box) is module.Box
    assert box.value == 5


def test_a_deftask_travels_as_an_argument(kernel, absent_module):
    module = absent_module("absent_one", ABSENT)

    assert call(tasks.map_list, module.times_and_one, [1, 2]) == [11, 21]
    times = module.times
    assert call(lambda: times(3)) == 30
    assert call(functools.partial(tasks.map_list, sendable(module.only_there)), [3, 4]) == [6, 24]


def test_a_deftask_is_a_method_where_it_is_defined_in_a_class():
    class Scale:
        factor = 3

        @deftask
        def apply(self, x):
            return self.factor * x

    assert Scale().apply(2) == 6


METHODS = """
from farm_executor.lfarm import deftask

class Scale:
    factor = 100

    def __init__(self, factor):
        self.factor = factor

    @deftask
    def times(self, x):
        return self.factor * helped(x)

    @deftask(local=False)
    def only_there(self, x):
        return self.factor * x

    @classmethod
    @deftask
    def of_class(cls, x):
        return cls.factor * x

    @staticmethod
    @deftask
    def of_nothing(x):
        return helped(x)

def helped(x):
    return x + 1
"""


def test_methods_of_a_module_that_the_servers_lack_travel_as_functions_do(kernel, absent_module):
    module = absent_module("absent_one", METHODS)
    scale = module.Scale(3)
    tasks = [scale.times, scale.only_there, scale.of_class, module.Scale.of_class, module.Scale.of_nothing]

    assert [kernel.submit(task, 4).result() for task in tasks] == [15, 12, 400, 400, 5]
    assert [pmap(task, [4, 5]) for task in tasks[:2]] == [[15, 18], [12, 15]]
    with make_channel(fixed_capacity=1) as narrow:
        narrow.submit(scale.times, 4)
        narrow.submit(scale.of_class, 4)
        assert sorted(narrow) == [15, 400]
    assert scale.times(4) == 15
    with pytest.raises(TypeError, match="not defined here"):
        scale.only_there(4)


def test_registrations_of_the_users_own_are_left_alone(absent_module):
    import cloudpickle

    mine = absent_module("absent_one", ABSENT)
    other = absent_module("absent_two", OTHER)
    cloudpickle.register_pickle_by_value(mine)
    try:
        with travelling_by_value():
            assert {"absent_one", "absent_two"} <= cloudpickle.list_registry_pickle_by_value()
        assert "absent_one" in cloudpickle.list_registry_pickle_by_value()
        assert "absent_two" not in cloudpickle.list_registry_pickle_by_value()
    finally:
        cloudpickle.unregister_pickle_by_value(mine)
    assert other.twice is not None


def test_a_deftask_pickles_by_itself_in_any_way(absent_module):
    module = absent_module("absent_one", ABSENT)

    assert pickle.loads(pickle.dumps(module.times_and_one))(2) == 21
    assert pickle.loads(pickle.dumps(module.fact))(5) == 120


def test_threads_that_submit_deftasks_at_once_do_not_disturb_each_other(kernel, absent_module):
    module = absent_module("absent_one", ABSENT)
    results = []

    def submit():
        channel = make_channel()
        for n in range(20):
            submit_task(channel, module.times, n)
        results.append(sorted(channel))

    threads = [threading.Thread(target=submit) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [[10 * n for n in range(20)]] * 4


def test_a_deftask_that_cannot_be_pickled_fails_at_receive(farm_kernel):
    lock = threading.Lock()

    @deftask
    def locked():
        return lock

    with pytest.raises(TypeError, match="lock"):
        call(locked)
    assert call(abs, -3) == 3


# -- names and what is none --------------------------------------------------------------------------------


def test_names(kernel):
    assert call("operator:add", 3, 4) == 7
    assert call("builtins:int.from_bytes", b"\x01\x00", "big") == 256
    assert call("os.path:join", "a", "b") == "a/b"


@pytest.mark.parametrize(
    "name", ["", "operator", "operator:", ":add", "operator:add:mul", "a b:c", "..os:x", "1:2"]
)
def test_a_name_of_another_form_is_refused_at_submit(kernel, name):
    with pytest.raises(InvalidTaskError, match="package.module:function"):
        call(name)


@pytest.mark.parametrize("name", ["operator:no_such_function", "no_such_module_anywhere:f"])
def test_a_name_that_does_not_exist_fails_in_the_task(kernel, name):
    with pytest.raises(TaskExecutionError) as caught:
        call(name)
    assert isinstance(caught.value.__cause__, (AttributeError, ImportError))


@pytest.mark.parametrize("task", [42, None, [abs], ("operator:add",), object(), b"operator:add"])
def test_what_cannot_be_called_is_refused_at_submit(kernel, task):
    with pytest.raises(InvalidTaskError, match=type(task).__qualname__):
        call(task)
    with pytest.raises(TypeError):  # which it is, too
        call(task)


# -- what a failure is -------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [TaskKilledError("killed"), CancelledError(), BrokenExecutor("broken")])
@pytest.mark.parametrize("on_farm", [False, True])
def test_what_is_no_failure_of_the_task_stays_as_it_is(error, on_farm):
    assert translated(error, on_farm=on_farm) is error


def test_elsewhere_than_on_a_farm_every_exception_is_the_tasks():
    error = ValueError("no")

    failure = translated(error, on_farm=False)

    assert type(failure) is TaskExecutionError
    assert failure.__cause__ is error
    assert failure.type_name == "ValueError"
    assert "ValueError: no" in str(failure)


def test_on_a_farm_what_failed_here_stays_as_it_is():
    error = TypeError("cannot pickle")

    assert translated(error, on_farm=True) is error


def test_a_chain_of_causes_that_is_a_ring_is_no_obstacle():
    one, two = ValueError(1), ValueError(2)
    one.__cause__, two.__cause__ = two, one

    assert translated(one, on_farm=True) is one


# -- globals ---------------------------------------------------------------------------------------------------

GLOBALS = """
from farm_executor import FarmExecutor, lfarm
from farm_executor.lfarm import deftask

model = None

@deftask
def load(value):
    global model
    model = value

@deftask
def use(x):
    return model, x

def plain(x):
    return model, x

with FarmExecutor(1) as farm, lfarm.use_kernel(lfarm.make_kernel(farm)):
    lfarm.broadcast_task(load, 5)
    channel = lfarm.make_channel()
    for task in (use, plain, lambda x: use(x)):
        lfarm.submit_task(channel, task, 1)
        print(lfarm.receive_result(channel))
    farm.broadcast(load, 7)
    print(farm.submit(plain, 2).result(), lfarm.pmap(use, [3]), lfarm.force(lfarm.future(use, 4)), model)
"""


def test_what_a_task_sets_on_every_worker_is_what_others_see(tmp_path):
    """All tasks and functions of a program share its globals there, as they do here."""
    script = tmp_path / "program.py"
    script.write_text(GLOBALS)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines() == ["(5, 1)"] * 3 + ["(7, 2) [(7, 3)] (7, 4) None"]
