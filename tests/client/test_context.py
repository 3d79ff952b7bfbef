"""Context variables travel with the calls that are submitted while they are set."""

import contextvars
import os
import pickle

import pytest
from client import context_tasks as tasks
from contract.gate import DEADLINE
from faults.proxy import Proxy

from farm_executor import FarmExecutor, lfarm, start_server
from farm_executor.core.headers import MAX_HEADER

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="a server needs fork"),
    pytest.mark.usefixtures("no_leaks"),
]
BOTH = [tasks.user, tasks.other]


@pytest.fixture(scope="module")
def server():
    with start_server("127.0.0.1", 0, background=True, workers=1) as server:
        yield server


@pytest.fixture(params=["embedded", "served"])
def farm(request, server):
    address = None if request.param == "embedded" else server.address
    with FarmExecutor(address, max_workers=1, context=BOTH) as farm:
        yield farm


@pytest.fixture(autouse=True)
def clean():
    """Each test begins with none of them set."""
    tokens = [variable.set(variable.get()) for variable in BOTH]
    yield
    for variable, token in zip(BOTH, tokens, strict=True):
        variable.reset(token)


def with_user(value, call):
    def run():
        tasks.user.set(value)
        return call()

    return contextvars.Context().run(run)


def test_a_task_finds_what_was_set_where_it_was_submitted(farm):
    futures = [with_user(n, lambda: farm.submit(tasks.look)) for n in (1, 1, "two", None, (3, [4]))]
    futures.append(contextvars.Context().run(farm.submit, tasks.look))
    found = [future.result(DEADLINE)[0] for future in futures]
    assert found == [1, 1, "two", None, (3, [4]), "nobody"]


def test_all_calls_of_a_map_have_those_of_its_beginning(farm):
    for options in ({}, {"chunksize": 10}, {"buffersize": 3}):
        results = with_user("mapped", lambda options=options: farm.map(tasks.look, range(200), **options))
        tasks.user.set("later")
        assert {user for user, _ in results} == {"mapped"}


def test_views_broadcasts_and_async_tasks_have_them(farm):
    tasks.other.set(5)
    view = farm.with_options(priority="high")
    assert with_user("me", lambda: view.submit(tasks.look)).result(DEADLINE) == ("me", "none")
    assert with_user("me", lambda: farm.broadcast(tasks.look)) == [("me", "none")]
    tasks.user.set("I")
    assert farm.submit(tasks.look_async).result(DEADLINE) == ("I", 5)


def test_what_a_task_sets_is_gone_with_it(farm):
    tasks.user.set("mine")
    assert [farm.submit(tasks.change).result(DEADLINE) for _ in range(3)] == ["mine"] * 3
    assert tasks.user.get() == "mine"


def test_a_batch_is_cut_where_they_change(farm):
    futures = [with_user(n // 7, lambda: farm.submit(tasks.look)) for n in range(300)]
    assert [future.result(DEADLINE)[0] for future in futures] == [n // 7 for n in range(300)]


def test_over_a_resumed_connection(server):
    with Proxy(server.address) as proxy, FarmExecutor(proxy.address, context=BOTH, heartbeat=0.2) as farm:
        tasks.user.set("before and after")
        assert farm.submit(tasks.look).result(DEADLINE)[0] == "before and after"
        proxy.cut()
        assert farm.submit(tasks.look).result(DEADLINE)[0] == "before and after"


def test_what_cannot_travel_is_the_error_of_the_future(farm):
    tasks.user.set(tasks.Unsendable())
    error = farm.submit(tasks.look).exception(DEADLINE)
    assert type(error) is pickle.PicklingError
    assert "context variable client.context_tasks:user, of type Unsendable" in str(error)
    with pytest.raises(pickle.PicklingError):
        list(farm.map(tasks.look, range(3)))
    tasks.user.set(bytes(MAX_HEADER))
    assert "pass large values as arguments" in str(farm.submit(tasks.look).exception(DEADLINE))
    tasks.user.set("fine")
    assert farm.submit(tasks.look).result(DEADLINE)[0] == "fine"


@pytest.mark.parametrize("context", [5, "user", [5], ["user"], None])
def test_only_context_variables_are_accepted(context):
    with pytest.raises(TypeError, match=r"context must be a list of contextvars\.ContextVar"):
        FarmExecutor(context=context)


def test_one_that_no_module_has_is_refused():
    with pytest.raises(ValueError, match="define it in a module"):
        FarmExecutor(context=[contextvars.ContextVar("local")])


def test_an_executor_with_them_can_be_sent(server):
    with FarmExecutor(server.address, context=BOTH) as farm, pickle.loads(pickle.dumps(farm)) as copy:
        tasks.user.set("copied")
        assert copy.submit(tasks.look).result(DEADLINE)[0] == "copied"


def test_lfarm_has_them_too(server):
    with lfarm.make_kernel([server.address], timeout=DEADLINE, context=BOTH) as kernel, lfarm.use_kernel(kernel):
        tasks.user.set("L")
        assert lfarm.pmap(tasks.look, range(3)) == [("L", "none")] * 3


def test_what_a_channel_holds_back_has_those_of_its_submission(server):
    with lfarm.make_kernel([server.address], timeout=DEADLINE, context=BOTH) as kernel, lfarm.use_kernel(kernel):
        channel = lfarm.make_channel(fixed_capacity=1)
        for number in range(4):
            tasks.user.set(number)
            channel.submit(tasks.look)
        tasks.user.set("later")
        assert sorted(channel.receives(4)) == [(number, "none") for number in range(4)]
