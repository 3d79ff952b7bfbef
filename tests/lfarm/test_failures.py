"""What a user reads when something fails: each thing once, and nothing of ours in between."""

import os
import time
import traceback

import pytest
from lfarm import tasks

from farm_executor import FarmExecutor, lfarm
from farm_executor.errors import TaskExecutionError
from farm_executor.lfarm.kernel import Kernel


def receive_one():
    channel = lfarm.make_channel()
    channel.submit(tasks.fail_when, 1, 1)
    return channel.receive()


def try_to_receive_one():
    channel = lfarm.make_channel()
    channel.submit(tasks.fail_when, 1, 1)
    return channel.try_receive(timeout=30)


def force_one():
    return lfarm.force(lfarm.future(tasks.fail_when, 1, 1))


def force_a_chain():
    return lfarm.force(lfarm.chain(lfarm.speculate(tasks.fail_when, 1, 1)))


def map_some():
    return lfarm.pmap(tasks.fail_when, [0, 1], [1, 1])


def find_some():
    return lfarm.psome(tasks.fail_when, [1, 1], [1, 1])


WAYS = [receive_one, try_to_receive_one, force_one, force_a_chain, map_some, find_some]


@pytest.mark.parametrize("way", WAYS)
def test_the_remote_report_is_printed_once_and_the_users_call_is_there(farm_kernel, way):
    with pytest.raises(TaskExecutionError) as caught:
        way()
    error = caught.value
    cause = error.__cause__
    printed = "".join(traceback.format_exception(type(error), error, error.__traceback__))

    assert isinstance(cause, ValueError)
    assert cause.__cause__ is None
    assert printed.count("The above exception was the direct cause") == 1
    assert printed.count("ValueError: 1 is bad [server ") == 1
    assert f'"""\n{error.remote_traceback}"""' in printed
    assert printed.count(f", in {way.__name__}\n") == 1
    names = [frame.name for frame in traceback.extract_tb(cause.__traceback__)]
    assert set(names) <= {"fail_when", "_map_part", "_find_true", "<genexpr>"}, "the worker's, and no others"
    assert (error.pid, error.attempt, error.type_name) == (error.pid or None, 1, "ValueError")


def test_every_thread_that_forces_gets_the_same_error(farm_kernel):
    promise = lfarm.future(tasks.fail_when, 1, 1)
    errors = []
    for _ in range(2):
        with pytest.raises(TaskExecutionError) as caught:
            lfarm.force(promise)
        errors.append((caught.value, len(traceback.extract_tb(caught.value.__traceback__))))

    assert errors[0] == errors[1]


def test_a_future_of_the_users_own_is_left_as_it_is(farm_kernel):
    future = farm_kernel.executor.submit(tasks.fail_when, 1, 1)
    for _ in range(2):
        with pytest.raises(TaskExecutionError, match="the task raised ValueError"):
            lfarm.force(future)

    assert isinstance(future.exception().__cause__, TaskExecutionError)


def test_a_timeout_is_told_as_it_was_asked_for():
    with pytest.raises(
        TimeoutError, match=r"^the promise was not fulfilled within 0\.05 s; it can be forced again$"
    ):
        lfarm.force(lfarm.chain(lfarm.promise()), timeout=0.05)


def test_the_text_of_a_farm_counts_what_runs_by_workers(tmp_path):
    go = tmp_path / "go"

    def wait():
        while not go.exists():
            time.sleep(0.01)

    with Kernel(FarmExecutor(1), owned=True) as kernel:
        kernel.submit(os.getpid).result()
        for _ in range(4):
            kernel.submit(wait)
        assert "up to 1 workers, 1 running, 3 queued" in repr(kernel.executor)
        with pytest.raises(TimeoutError, match=r"^after 0\.1 s 1 tasks run and 3 wait"):
            kernel.executor.shutdown(timeout=0.1)
        go.touch()
