"""A task finds out what the client knows of it."""

import asyncio
import os
import threading

import pytest
from client import current_tasks as tasks
from contract.gate import DEADLINE, Gate
from faults.proxy import Proxy

from farm_executor import FarmExecutor, current_task, start_server
from farm_executor.client.farm.about import asked_about, details_of
from farm_executor.client.farm.call import Call
from farm_executor.core.frames import Frame, FrameType
from farm_executor.core.options import TaskOptions
from farm_executor.data import payload
from farm_executor.errors import RemoteProtocolError

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="a server needs fork"),
    pytest.mark.usefixtures("no_leaks"),
]


@pytest.fixture(scope="module")
def server():
    with start_server("127.0.0.1", 0, background=True, workers=1) as server:
        yield server


@pytest.fixture(params=["embedded", "served"])
def farm(request, server):
    with FarmExecutor(None if request.param == "embedded" else server.address, max_workers=1) as farm:
        yield farm


def test_it_has_an_id_an_attempt_and_a_category(farm):
    first = farm.submit(tasks.look).result(DEADLINE)
    second = farm.with_options(category=("a", 1)).submit(tasks.look).result(DEADLINE)
    assert first[1:] == (1, None, False)
    assert second[1:] == (1, ("a", 1), False)
    assert second[0] > first[0]


def test_each_of_a_batch_knows_itself(farm):
    ids = [future.result(DEADLINE)[0] for future in [farm.submit(tasks.look) for _ in range(100)]]
    assert ids == sorted(set(ids))


def test_the_attempt_counts_workers_that_have_died(farm, tmp_path):
    assert farm.submit(tasks.die_once, str(tmp_path / "died")).result(DEADLINE)[1] == 2


def test_the_deadline_is_that_of_its_timeout(farm):
    left = farm.with_options(timeout=60).submit(tasks.time_left).result(DEADLINE)
    assert 0 < left <= 60
    assert farm.submit(tasks.time_left).result(DEADLINE) is None


def test_threads_may_ask_and_forked_children_hear_nothing(farm):
    assert farm.submit(tasks.look_in_a_thread).result(DEADLINE)
    assert farm.submit(tasks.look_in_a_fork).result(DEADLINE) == "(None, 1, None, False)"


def test_an_initializer_is_no_task():
    with FarmExecutor(1, initializer=tasks.note) as farm:
        assert farm.submit(tasks.noted).result(DEADLINE) == [(None, 1, None, False)]


class Unsendable:
    def __reduce__(self):
        raise RuntimeError("must not travel")

    def __repr__(self):
        return "<a category>"


def test_a_category_that_cannot_be_sent_comes_as_its_repr(farm):
    assert farm.with_options(category=Unsendable()).submit(tasks.look).result(DEADLINE)[2] == "<a category>"


def test_cancel_tells_a_task_that_runs(farm):
    with Gate() as gate:
        future = farm.submit(tasks.wait_until_cancelled, gate.address)
        gate.wait_for_arrivals()
        assert not future.cancel()
        gate.open()
        assert future.result(DEADLINE) == "told"
    assert farm.submit(tasks.look).result(DEADLINE)[3] is False


def test_cancel_in_a_callback_tells_it_too(farm):
    done = threading.Event()
    with Gate() as gate:
        future = farm.submit(tasks.look)
        running = farm.submit(tasks.wait_until_cancelled, gate.address)
        future.add_done_callback(lambda _: gate.wait_for_arrivals() or running.cancel() or done.set())
        assert done.wait(DEADLINE)
        gate.open()
        assert running.result(DEADLINE) == "told"


def test_a_cancelled_asyncio_future_tells_it(farm):
    async def give_up(gate, future):
        wrapped = asyncio.wrap_future(future)
        gate.wait_for_arrivals()
        wrapped.cancel()
        await asyncio.wait([wrapped])

    with Gate() as gate:
        future = farm.submit(tasks.wait_until_cancelled, gate.address)
        asyncio.run(give_up(gate, future))
        gate.open()
        assert future.result(DEADLINE) == "told"


def test_over_a_resumed_connection(server):
    with Proxy(server.address) as proxy, FarmExecutor(proxy.address, heartbeat=0.2) as farm, Gate() as gate:
        future = farm.submit(tasks.look_then_pass, gate.address)
        gate.wait_for_arrivals()
        proxy.cut()
        gate.open()
        assert future.result(DEADLINE)
        assert farm.submit(tasks.look).result(DEADLINE)[1] == 1


def test_a_stop_that_is_lost_with_the_connection_is_said_again(server):
    with Proxy(server.address) as proxy, FarmExecutor(proxy.address, heartbeat=0.2) as farm, Gate() as gate:
        future = farm.submit(tasks.wait_until_cancelled, gate.address)
        gate.wait_for_arrivals()
        proxy.stall()
        assert not future.cancel()
        proxy.cut()
        proxy.flow()
        gate.open()
        assert future.result(DEADLINE) == "told"


def test_outside_a_worker():
    task = current_task()
    assert (task.id, task.attempt, task.category, task.deadline, task.cancelled) == (None, 1, None, None, False)


@pytest.mark.parametrize("body", [b"", bytes(7), bytes(9)])
def test_a_malformed_question_is_an_error_of_the_peer(body):
    with pytest.raises(RemoteProtocolError, match="ABOUT"):
        asked_about(Frame(FrameType.ABOUT, body=body))


def test_a_huge_category_does_not_travel():
    call = Call(1, None, None, None, (), TaskOptions(category=b"x" * 100_000))
    assert len(payload.loads((details_of(call, None),))[2]) == 1000
