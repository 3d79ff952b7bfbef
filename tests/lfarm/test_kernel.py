"""What lfarm's own kernel tests assert, under their names; then lparallel's; then what the original gets wrong."""

import contextvars
import math
import operator
import os
import signal
import socket
import sys
import threading
from concurrent.futures import Executor, Future, ThreadPoolExecutor

import pytest
from contract.gate import Gate
from contract.tasks import pass_gate, write_line
from lfarm import tasks
from server.peers import SessionPeer, dial, free_address
from server.processes import DEADLINE, wait_until

from farm_executor import (
    AddressError,
    AuthenticationError,
    BroadcastError,
    FarmError,
    FarmExecutor,
    InvalidTaskError,
    KernelCreationError,
    NoKernelError,
    TaskExecutionError,
    TaskKilledError,
    WorkerLostError,
    lfarm,
    start_server,
)
from farm_executor.lfarm import (
    broadcast_task,
    check_kernel,
    deftask,
    do_fast_receives,
    end_kernel,
    kernel_name,
    kernel_worker_count,
    kill_tasks,
    make_channel,
    make_kernel,
    receive_result,
    set_kernel,
    submit_task,
    task_categories_running,
    task_category,
    task_priority,
    try_receive_result,
    use_kernel,
)
from farm_executor.lfarm.kernel import Kernel

KEY = b"the key of the lfarm suite's servers"


def call(task, *args, **kwargs):
    channel = make_channel()
    submit_task(channel, task, *args, **kwargs)
    return receive_result(channel)


def occupy(gate, channel, count=2, category="default"):
    """Has every worker wait at the gate."""
    with task_category(category):
        for _ in range(count):
            submit_task(channel, pass_gate, gate.address)
    gate.wait_for_arrivals(count)


def running():
    return [category for category in task_categories_running() if category is not None]


# -- lfarm's -----------------------------------------------------------------------------------------------


def test_basic(kernel):
    function = operator.mul

    assert call(operator.add, 3, 4) == 7
    assert call(function, 5, 6) == 30
    assert call("operator:add", 7, 8) == 15
    assert call(divmod, 7, 3) == (2, 1)
    assert call(lambda: None) is None


def test_lambda(kernel):
    assert call(lambda x, y: x + y, 3, 4) == 7
    assert call(lambda: 99) == 99
    assert call(lambda x: (lambda y: x * y)(3), 4) == 12


@deftask
def fib(n):
    return n if n < 2 else fib(n - 1) + fib(n - 2)


@deftask(local=False)
def with_options(a, *rest, key=1, **more):
    return a, rest, key, list(more.items())


def test_deftask(kernel):
    in_variable = fib

    assert call(fib, 10) == 55
    assert call(in_variable, 10) == 55
    assert call(with_options, 1, 2, 3, d=4, key=5, c=6) == (1, (2, 3), 5, [("d", 4), ("c", 6)])
    assert fib(10) == 55
    with pytest.raises(TypeError):
        with_options(1)


def test_task_error(kernel):
    nothing = None

    def explicit():
        raise RuntimeError("boom 42")

    for task, args, kwargs, cause in [
        (abs, (), {"unknown": 1}, TypeError),
        ("operator:undefined_function", (), {}, AttributeError),
        (lambda: undefined_variable, (), {}, NameError),  # noqa: F821
        (explicit, (), {}, RuntimeError),
        (lambda: nothing(), (), {}, TypeError),
    ]:
        with pytest.raises(TaskExecutionError) as caught:
            call(task, *args, **kwargs)
        assert type(caught.value.__cause__) is cause
    with pytest.raises(InvalidTaskError):
        call(object())


def test_package(kernel, absent_module):
    import cloudpickle

    module = absent_module("absent_package", "class Thing:\n    name = 'hello'\n")
    cloudpickle.register_pickle_by_value(module)
    try:
        thing = call(lambda x: x, module.Thing())
        kind = call(lambda x: x, module.Thing)
    finally:
        cloudpickle.unregister_pickle_by_value(module)

    assert type(thing) is module.Thing
    assert kind is module.Thing


def test_package_closure(kernel, absent_module):
    module = absent_module(
        "absent_package",
        "from farm_executor.lfarm import deftask\n"
        "class Thing:\n    name = 'hello'\n"
        "@deftask\ndef thing():\n    return Thing()\n",
    )

    assert type(call(module.thing)) is module.Thing


def test_invalid_task(kernel):
    channel = make_channel()
    for task in (7, None, ["junk", 9], "junk", {"a": 1}):
        with pytest.raises(InvalidTaskError):
            submit_task(channel, task)
    assert try_receive_result(channel) == (None, False)


def test_broadcast_of_no_task(farm_kernel):
    for task in (7, None, ["junk", 9], "junk"):
        with pytest.raises(InvalidTaskError):
            broadcast_task(task)


def test_raw(addresses):
    """What a server does is done for whoever speaks its protocol."""
    with SessionPeer(addresses[0], KEY) as session:
        lane = session.open_lane()
        lane.start()
        lane.teach(1, operator.add)
        lane.submit(0, (1, 3, 4))
        assert lane.outcomes(1) == {0: 7}


def test_broadcast(farm_kernel):
    pids = broadcast_task(tasks.set_state, "known everywhere")

    assert len(set(pids)) == 2
    assert broadcast_task(os.getpid) == pids
    assert call(tasks.get_state) == "known everywhere"
    assert broadcast_task("lfarm.tasks:get_state") == ["known everywhere"] * 2
    assert broadcast_task(operator.add, 3, 4) == [7, 7]
    assert tasks.state is None


def test_broadcast_of_a_deftask(farm_kernel, absent_module):
    module = absent_module(
        "absent_broadcast",
        "from farm_executor.lfarm import deftask\n"
        "def helper(x):\n    return x + 1\n"
        "@deftask\ndef task(x):\n    return helper(x)\n",
    )

    assert broadcast_task(module.task, 1) == [2, 2]


def test_reconnect(addresses, no_leaks):
    farm = FarmExecutor(addresses, key=KEY)
    with Kernel(farm, owned=True):
        assert call(operator.add, 3, 4) == 7
        for session in farm._engine.servers.sessions():
            session.control.socket.shutdown(socket.SHUT_RDWR)
        assert call(operator.add, 3, 4) == 7


def test_local_ping(addresses):
    host, port = addresses[0].split(":")
    assert lfarm.ping(host, int(port), key=KEY)


def test_no_server(no_leaks):
    address = free_address()
    host, _, port = address.rpartition(":")
    assert lfarm.ping(host, int(port), timeout=0, key=KEY) is False

    made = []
    making = threading.Thread(target=lambda: made.append(make_kernel([address], key=KEY)))
    making.start()
    assert made == []
    with start_server(host, int(port), background=True, workers=1, key=KEY):
        making.join(DEADLINE)
        with made[0]:
            assert call(operator.add, 7, 8) == 15


def test_unreadable_result(farm_kernel):
    class Unreadable:
        def __reduce__(self):
            return __import__, ("no_such_module_anywhere",)

    def unreadable():
        class OnlyThere:
            def __reduce__(self):
                return __import__, ("no_such_module_anywhere",)

        return OnlyThere()

    with pytest.raises(TaskExecutionError, match="no_such_module_anywhere"):
        call(unreadable)
    with pytest.raises(TaskExecutionError, match="no_such_module_anywhere"):
        call(abs, Unreadable())
    assert call(operator.add, 3, 4) == 7


def test_big_data(kernel):
    assert call(lambda values: [v * v for v in values], list(range(100))) == [v * v for v in range(100)]
    data = os.urandom(8 * 2**20)
    assert call(bytes, data) == data
    assert kernel_worker_count() == 2


def test_circular(kernel):
    ring = [1, 2, 3]
    ring.append(ring)

    assert call(lambda r: r[0] + r[1] + r[3][2], ring) == 6


def test_kill(farm_kernel, gate):
    channel = make_channel()
    with task_category("sleeper"):
        submit_task(channel, tasks.sleep, gate.address)
    gate.wait_for_arrivals()
    assert running() == ["sleeper"]

    assert kill_tasks("sleeper") == 1

    with pytest.raises(TaskKilledError):
        receive_result(channel)
    assert running() == []
    assert call(operator.add, 5, 6) == 11


def test_kernel_error(kernel):
    set_kernel(None)
    for use in (make_channel, check_kernel, kernel_name, kernel_worker_count, task_categories_running):
        with pytest.raises(NoKernelError, match=r"(?s)Welcome.*make_kernel.*use_kernel"):
            use()
    with pytest.raises(NoKernelError):
        broadcast_task(abs, 1)
    assert kill_tasks("anything") == 0
    assert end_kernel() is None
    set_kernel(kernel)
    assert call(operator.add, 3, 4) == 7


@pytest.mark.filterwarnings("ignore:.*_timeout is deprecated:DeprecationWarning")
def test_submit_timeout(kernel):
    channel = make_channel()
    submit_task(channel, lambda: 3)
    assert receive_result(channel) == 3

    lfarm.submit_timeout(channel, 0.1, "timeout")

    assert channel.pending == 1
    assert receive_result(channel) == "timeout"


@pytest.mark.filterwarnings("ignore:.*_timeout is deprecated:DeprecationWarning")
def test_cancel_timeout(kernel):
    channel = make_channel()
    timeout = lfarm.submit_timeout(channel, 9999, "timeout")

    lfarm.cancel_timeout(timeout, "cancelled")

    assert receive_result(channel) == "cancelled"


def test_try_receive(kernel):
    channel = make_channel()
    assert try_receive_result(channel) == (None, False)
    submit_task(channel, operator.add, 1, 2)
    assert try_receive_result(channel, timeout=DEADLINE) == (3, True)
    assert try_receive_result(channel) == (None, False)


def test_try_receive_result_timeout(kernel, gate):
    channel, other = make_channel(), make_channel()
    submit_task(channel, pass_gate, gate.address, 99)
    gate.wait_for_arrivals()
    submit_task(other, operator.add, 1, 2)

    assert try_receive_result(channel, timeout=0.05) == (None, False)
    assert try_receive_result(channel, timeout=-1) == (None, False)
    assert receive_result(other) == 3
    gate.open()
    assert try_receive_result(channel, timeout=DEADLINE) == (99, True)


def test_multi_receive(kernel):
    channel = make_channel()
    for x in (3, 4, 5):
        submit_task(channel, operator.mul, x, x)

    assert sorted(do_fast_receives(channel, 3)) == [9, 16, 25]


@pytest.mark.parametrize("priority", ["default", "low"])
def test_many_task(kernel, priority):
    channel = make_channel()
    with task_priority(priority):
        for n in range(1000):
            submit_task(channel, operator.neg, n)
            assert receive_result(channel) == -n
        for n in range(10_000):
            submit_task(channel, operator.neg, n)
    assert sorted(do_fast_receives(channel, 10_000)) == list(range(-9999, 1))


def test_task_categories(farm_kernel, gate):
    channel = make_channel()
    assert task_categories_running() == [None, None]
    occupy(gate, channel, 1)
    assert running() == ["default"]
    occupy(gate, channel, 1, category=999)
    assert sorted(map(str, task_categories_running())) == ["999", "default"]
    gate.open()
    assert list(channel) == [None, None]


def test_task_categories_of_two(farm_kernel, gate):
    channel = make_channel()
    occupy(gate, channel, 2, category="foo")

    assert task_categories_running() == ["foo", "foo"]


@pytest.mark.parametrize("category", ["default", "blah"], ids=["default_kill_task", "custom_kill_task"])
def test_kill_task(farm_kernel, gate, category):
    channel = make_channel()
    with task_category(category):
        submit_task(channel, tasks.loop, gate.address)
        submit_task(channel, tasks.loop, gate.address)
        gate.wait_for_arrivals(2)
        submit_task(channel, lambda: "survived")

    assert kill_tasks(category, dry_run=True) == 2
    assert kill_tasks("another") == 0
    gate.open()
    assert kill_tasks(category) == 2

    outcomes = []
    for _ in range(3):
        try:
            outcomes.append(receive_result(channel))
        except TaskKilledError:
            outcomes.append("killed")
    assert sorted(outcomes) == ["killed", "killed", "survived"]


def test_submit_after_end_kernel(kernel):
    channel = make_channel()
    end_kernel()
    with pytest.raises(RuntimeError, match="ended kernel"):
        submit_task(channel, operator.add, 3, 4)


def test_double_end_kernel(kernel):
    assert end_kernel(wait=True) is None
    assert end_kernel(wait=True) is None
    assert end_kernel() is None
    kernel.end()
    kernel.end(wait=True)


def test_resubmit(farm_kernel, tmp_path):
    book = tmp_path / "book"

    assert call(tasks.die_when_first, str(book)) == "done"
    assert len(set(book.read_text().split())) == 2


# -- lparallel's -------------------------------------------------------------------------------------------


def test_end_kernel():
    for workers in (1, 3):
        for _ in range(10):
            with Kernel(FarmExecutor(workers), owned=True):
                assert kernel_worker_count() == workers
                end_kernel(wait=True)
                with pytest.raises(NoKernelError):
                    make_channel()


def test_end_kernel_runs_what_is_queued_first(kernel, gate):
    channel, waiting = make_channel(), make_channel()
    occupy(gate, waiting)
    for n in range(3):
        submit_task(channel, operator.neg, n)
    with task_priority("low"):
        submit_task(channel, operator.neg, 3)
    assert end_kernel() is None
    gate.open()
    assert sorted(do_fast_receives(channel, 4)) == [-3, -2, -1, 0]


def test_end_kernel_wait(kernel, tmp_path):
    channel, book = make_channel(), tmp_path / "book"
    for n in range(5):
        submit_task(channel, write_line, str(book), n)

    end_kernel(wait=True)

    assert sorted(book.read_text().split()) == list("01234")
    assert list(channel) == [None] * 5


def test_kill_during_end_kernel(farm_kernel, gate):
    channel = make_channel()
    for _ in range(2):
        submit_task(channel, tasks.sleep, gate.address)
    gate.wait_for_arrivals(2)
    gate.open()
    ending = threading.Thread(target=farm_kernel.end, args=(True,))
    ending.start()
    wait_until(lambda: farm_kernel.ended, "the end has begun")

    assert farm_kernel.kill_tasks("default") == 2

    ending.join(DEADLINE)
    assert not ending.is_alive()
    for _ in range(2):
        with pytest.raises(TaskKilledError):
            receive_result(channel)


def test_reject_kill_nil(kernel):
    with pytest.raises(ValueError, match="None"):
        kill_tasks(None)


def test_kill_is_for_farms_only(kernel, kind):
    if kind == "threads":
        with pytest.raises(TypeError, match="FarmExecutor"):
            kill_tasks("default")
        with pytest.raises(TypeError, match="FarmExecutor"):
            broadcast_task(abs, 1)
        with pytest.raises(TypeError, match="FarmExecutor"):
            task_categories_running()
    else:
        assert kill_tasks("default") == 0


def test_a_loop_in_c_is_killed_too(farm_kernel, gate):
    channel = make_channel()
    submit_task(channel, tasks.loop_in_c, gate.address)
    gate.wait_for_arrivals()
    gate.open()

    assert kill_tasks("default") == 1
    with pytest.raises(TaskKilledError):
        receive_result(channel)


def test_worker_suicide(farm_kernel):
    """A task that kills its own process costs itself alone."""
    with pytest.raises(WorkerLostError):
        call(lambda: os.kill(os.getpid(), 9))
    assert call(operator.add, 3, 4) == 7


def test_auth(addresses, no_leaks):
    """The right key works, its connection survives an error in sending a result, and the wrong one is told."""
    with make_kernel(addresses, key=KEY, timeout=DEADLINE):
        assert call(operator.add, 3, 4) == 7
        with pytest.raises(TaskExecutionError, match="lock"):
            call(threading.Lock)
        assert call(operator.add, 3, 4) == 7
    with pytest.raises(KernelCreationError) as caught:
        make_kernel(addresses, key=b"not the key of these servers", timeout=DEADLINE)
    assert isinstance(caught.value.__cause__, AuthenticationError)


def test_broadcast_error(farm_kernel):
    with pytest.raises(BroadcastError, match="ZeroDivisionError"):
        broadcast_task(operator.truediv, 1, 0)
    assert broadcast_task(operator.add, 3, 4) == [7, 7]


def test_aborted_worker(farm_kernel):
    """A task that exits has failed; one that ends its process costs itself alone."""
    for leave in (sys.exit, os._exit):
        with pytest.raises((TaskExecutionError, WorkerLostError)):
            call(leave, 3)
        assert call(operator.add, 3, 4) == 7


@pytest.mark.parametrize("active", [True, False], ids=["active_worker_replacement", "sleeping_worker_replacement"])
def test_worker_replacement(farm_kernel, gate, active):
    """A worker that is killed from outside is replaced; what it ran is run again."""
    before = broadcast_task(os.getpid)
    channel = make_channel()
    if active:
        occupy(gate, channel)
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    if active:
        gate.wait_for_arrivals(2)
        gate.open()
        assert list(do_fast_receives(channel, 2)) == [None, None]
    after = broadcast_task(os.getpid)
    assert len(after) == 2
    assert not set(before) & set(after)


def test_low_priority_comes_after_the_default(farm_kernel, gate):
    channel, waiting = make_channel(), make_channel()
    with Gate() as kept_closed:
        submit_task(waiting, pass_gate, kept_closed.address)
        kept_closed.wait_for_arrivals()
        occupy(gate, waiting, 1)
        with task_priority("low"):
            for n in range(3):
                submit_task(channel, abs, n)
        for n in range(3, 6):
            submit_task(channel, abs, n)
        gate.open()
        assert list(channel) == [3, 4, 5, 0, 1, 2]  # by one worker, as the other still waits


@pytest.mark.parametrize("priority", ["high", None, 1, "LOW", ["low"]])
def test_other_priorities_are_refused_at_once(priority):
    with pytest.raises(ValueError, match="'default' or 'low'"), task_priority(priority):
        pass


def test_bad_categories_are_refused_at_once():
    with pytest.raises(ValueError, match="None"), task_category(None):
        pass
    with pytest.raises(TypeError, match="hashable"), task_category([]):
        pass


def test_two_kernels_on_one_farm_kill_only_their_own(gate, addresses, kernel):
    with FarmExecutor(addresses, key=KEY) as farm:
        mine, other = make_kernel(farm, "mine"), make_kernel(farm, "other")
        with use_kernel(mine):
            channel = make_channel()
            occupy(gate, channel, 1)
        with use_kernel(other):
            assert running() == []
            assert kill_tasks("default") == 0
        with use_kernel(mine):
            assert running() == ["default"]
            gate.open()
            assert receive_result(channel) is None


# -- the current kernel ------------------------------------------------------------------------------------


def test_set_kernel_is_for_all_threads(kernel):
    found = []
    thread = threading.Thread(target=lambda: found.append(check_kernel()))
    thread.start()
    thread.join()

    assert found == [kernel]


def test_use_kernel_is_for_its_context(kernel):
    with ThreadPoolExecutor(1) as pool:
        other = make_kernel(pool, "other")
        with use_kernel(other) as used:
            assert used is other
            assert kernel_name() == "other"
            found = []
            thread = threading.Thread(target=lambda: found.append(check_kernel()))
            thread.start()
            thread.join()
            assert found == [kernel]
            assert contextvars.copy_context().run(check_kernel) is other
        assert check_kernel() is kernel


@pytest.mark.parametrize("what", [42, "kernel", FarmExecutor])
def test_only_kernels_can_be_current(what):
    with pytest.raises(TypeError, match="make_kernel"):
        set_kernel(what)
    with pytest.raises(TypeError, match="make_kernel"), use_kernel(what):
        pass


def test_an_ended_kernel_is_none(kernel):
    kernel.end()
    with pytest.raises(NoKernelError):
        check_kernel()


def test_a_kernel_ends_with_its_with_block(no_leaks):
    with Kernel(ThreadPoolExecutor(1), owned=True) as kernel:
        assert check_kernel() is kernel
    assert kernel.ended
    with pytest.raises(RuntimeError, match="ended kernel"):
        kernel.submit(abs, 1)


def test_an_executor_given_goes_on_after_the_kernel(gate, kernel):
    with ThreadPoolExecutor(2) as pool:
        with make_kernel(pool) as over_pool:
            over_pool.submit(abs, -3)
            waiting = over_pool.submit(pass_gate, gate.address, "through")
            gate.wait_for_arrivals()
            gate.open()
        assert waiting.done()  # the end waits for what it has submitted
        assert pool.submit(abs, -3).result() == 3


def test_a_kernel_does_not_travel(farm_kernel):
    with pytest.raises(TypeError, match="kernel stays"):
        call(lambda k: k, farm_kernel)


def test_kernels_say_what_they_are(kernel):
    assert kernel_name() == "farm"
    assert repr(kernel).startswith("<Kernel 'farm'")
    kernel.end()
    assert repr(kernel).endswith("ended>")


# -- bad input ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("addresses", [[], [("127.0.0.1",)], [("127.0.0.1", 70000)], "nowhere:", 4, None, [4]])
def test_addresses_are_checked_first(addresses):
    with pytest.raises(AddressError):
        make_kernel(addresses)
    with pytest.raises(ValueError, match="address"):  # which it is, too
        make_kernel(addresses)


def test_a_kernel_whose_server_is_away_is_not_made(no_leaks, addresses):
    away = free_address()
    with pytest.raises(KernelCreationError, match=away) as caught:
        make_kernel([addresses[0], away], "halved", timeout=0.2, key=KEY)
    assert isinstance(caught.value.__cause__, TimeoutError)
    assert isinstance(caught.value, FarmError)


def test_a_kernel_with_another_key_is_not_made(no_leaks, addresses):
    with pytest.raises(KernelCreationError) as caught:
        make_kernel(addresses, key=b"quite another key", timeout=30)
    assert isinstance(caught.value.__cause__, AuthenticationError)


# -- where the original hangs or loses errors --------------------------------------------------------------


def test_h2_arguments_that_cannot_be_read_fail_their_task_at_once(farm_kernel):
    class Unreadable:
        def __reduce__(self):
            return int, ("no number",)

    with pytest.raises(TaskExecutionError) as caught:
        call(lambda x: x, Unreadable())
    assert isinstance(caught.value.__cause__, ValueError)
    assert call(operator.add, 3, 4) == 7


def test_h2_a_stack_or_heap_that_is_exhausted_is_an_error(farm_kernel):
    def recurse(n):
        return recurse(n + 1)

    with pytest.raises(TaskExecutionError) as caught:
        call(recurse, 0)
    assert isinstance(caught.value.__cause__, RecursionError)
    with pytest.raises(TaskExecutionError) as caught:
        call(lambda: bytearray(2**62))
    assert isinstance(caught.value.__cause__, MemoryError)


def test_h3_a_worker_that_dies_in_a_broadcast_does_not_hang_it(farm_kernel, tmp_path):
    book = tmp_path / "book"

    assert broadcast_task(tasks.die_when_first, str(book)) == ["done", "done"]
    assert len(book.read_text().split()) == 3


def test_h3_a_broadcast_carries_every_outcome(farm_kernel):
    first, second = broadcast_task(os.getpid)

    with pytest.raises(BroadcastError) as caught:
        broadcast_task(tasks.fail_on, first)

    failed, succeeded = caught.value.outcomes
    assert isinstance(failed.error, ValueError)
    assert succeeded.error is None
    assert succeeded.value == second


def test_h4_two_broadcasts_at_once(farm_kernel):
    results = []

    def broadcast(n):
        results.extend(broadcast_task(operator.add, n, n) for _ in range(30))

    threads = [threading.Thread(target=broadcast, args=(n,)) for n in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert sorted(results) == [[2, 2]] * 30 + [[4, 4]] * 30


def test_h5_the_end_does_not_wait_for_a_server_that_is_gone(no_leaks):
    with start_server("127.0.0.1", 0, background=True, workers=1, key=KEY) as server:
        kernel = make_kernel([server.address], key=KEY, timeout=DEADLINE)
    kernel.end(wait=True)


def test_h6_the_key_is_the_kernels(farm_kernel, gate):
    """Killing and broadcasting need no key of their own."""
    channel = make_channel()
    occupy(gate, channel, 1, category="mine")
    assert kill_tasks("mine") == 1
    assert broadcast_task(abs, -1) == [1, 1]


def test_h9_no_value_is_taken_for_a_sign(kernel):
    from farm_executor.lfarm import channel as module

    for value in ("corrupt-stream-flag", None, (None, False), TaskExecutionError("a value"), NotImplemented):
        assert repr(call(lambda v: v, value)) == repr(value)
    assert not isinstance(call(lambda: lfarm.channel._NO_MORE), Exception)
    assert module is lfarm.channel


def test_h12_an_error_comes_with_its_type_its_traceback_and_where(farm_kernel):
    with pytest.raises(TaskExecutionError) as caught:
        call(tasks.fail_when, 5, 5)

    error = caught.value
    assert error.type_name == "ValueError"
    assert "5 is bad" in str(error)
    assert "fail_when" in error.remote_traceback
    assert error.server
    assert error.pid
    assert isinstance(error.__cause__, ValueError)
    frames = []
    trace = error.__cause__.__traceback__
    while trace is not None:
        frames.append(trace.tb_frame.f_code.co_name)
        trace = trace.tb_next
    assert "fail_when" in frames


def test_h14_tasks_of_a_client_that_is_gone_end(addresses, tmp_path, gate, kernel):
    farm = FarmExecutor([addresses[0]], key=KEY)
    pid = farm.submit(os.getpid).result()
    farm.submit(tasks.sleep, gate.address)
    gate.wait_for_arrivals()
    gate.open()
    farm._engine.abort("the client goes")
    farm.shutdown()

    def is_gone():
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        return False

    wait_until(is_gone, "its worker is gone")


def test_h15_what_a_killed_task_held_is_free(farm_kernel, gate):
    """A lock of the worker's own process, in the original's server, would be held for ever."""
    channel = make_channel()
    submit_task(channel, tasks.hold_lock, gate.address)
    gate.wait_for_arrivals()
    assert kill_tasks("default") == 1
    for _ in range(4):
        assert call(tasks.try_lock) is True


def test_h1_probes_and_garbage_cost_one_connection(addresses):
    dial(addresses[0]).close()
    with dial(addresses[0]) as probe:
        probe.sendall(b"GET / HTTP/1.1\r\n\r\n")
        with make_kernel(addresses, key=KEY, timeout=DEADLINE):
            assert call(operator.add, 3, 4) == 7


# -- over executors that are none of the package's ---------------------------------------------------------


def test_an_executor_that_runs_at_once():
    class Immediate(Executor):
        def submit(self, fn, /, *args, **kwargs):
            future = Future()
            try:
                future.set_result(fn(*args, **kwargs))
            except BaseException as error:
                future.set_exception(error)
            return future

    with make_kernel(Immediate()) as kernel:
        assert kernel.worker_count == 1
        assert call(math.factorial, 5) == 120
        with pytest.raises(TaskExecutionError):
            call(math.factorial, -1)


def test_a_kernel_has_the_options_of_its_executor(no_leaks):
    with (
        start_server("127.0.0.1", 0, background=True, workers=2, key=KEY) as server,
        make_kernel(server.address, "mine", timeout=DEADLINE, key=KEY, max_workers=1, max_attempts=1) as kernel,
    ):
        assert (kernel.worker_count, kernel.name) == (1, "mine")
        with pytest.raises(WorkerLostError, match="attempted only once"):
            lfarm.force(lfarm.future(os._exit, 3))


def test_an_address_given_twice_is_one_server(no_leaks):
    with (
        start_server("127.0.0.1", 0, background=True, workers=1, key=KEY) as server,
        make_kernel([server.address] * 2, timeout=DEADLINE, key=KEY) as kernel,
    ):
        assert kernel.worker_count == 1
