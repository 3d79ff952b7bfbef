"""With a server that has none of the features that hellos name, each of them says so or does without."""

import asyncio
import logging
import os

import pytest
from client import context_tasks, current_tasks, log_tasks, output_tasks, progress_tasks, stream_tasks
from contract.gate import DEADLINE
from server.serving import KEY, Serving

from farm_executor import FarmExecutor, __version__, lfarm

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="a server needs fork"),
    pytest.mark.usefixtures("no_leaks"),
]
# The server takes the client's for none and names none itself, as one does that does not know them; and it lacks
# the module that a client names for a stream.
FORGET = """
import farm_executor.core.features as features, farm_executor.server.worker
features.shared = lambda *both: frozenset()
sys.modules["farm_executor.data.streamed"] = None
"""


@pytest.fixture(scope="module")
def server():
    with Serving(workers=1, before=FORGET) as server:
        yield server


@pytest.fixture
def farm(server):
    with FarmExecutor(server.address, key=KEY, heartbeat=0.1) as farm:
        yield farm


def test_results_come_and_heartbeats_are_answered(farm):
    assert list(farm.map(abs, range(-100, 0))) == list(range(100, 0, -1))


def test_output_stays_on_the_server(farm, capfd):
    future = farm.submit(output_tasks.say, "stays")
    assert (future.result(DEADLINE), future.output) == ("stays", "")
    assert capfd.readouterr().out == ""


def test_records_stay_on_the_server(farm, caplog):
    with caplog.at_level(logging.INFO):
        farm.submit(log_tasks.log, logging.WARNING, "stays").result(DEADLINE)
    assert "stays" not in caplog.text


def test_progress_is_not_told(farm):
    future = farm.submit(progress_tasks.report, 1, 2)
    future.result(DEADLINE)
    assert future.progress is None


def test_a_task_knows_nothing_of_itself(farm):
    assert farm.with_options(category="c").submit(current_tasks.look).result(DEADLINE) == (None, 1, None, False)


def test_streams_say_what_to_do(farm, server):
    stream = farm.stream(stream_tasks.count, 3)
    needs = (
        f"needs a newer farm_executor on server {server.address}, which has {__version__}, while this program has"
    )
    with pytest.raises(RuntimeError, match=f"{needs} {__version__}: update it there and restart"):
        next(stream)
    assert isinstance(stream.future.exception(DEADLINE), RuntimeError)
    with pytest.raises(RuntimeError, match=needs):
        asyncio.run(anext(farm.stream(stream_tasks.count, 3)))
    with lfarm.use_kernel(lfarm.make_kernel(farm)), pytest.raises(RuntimeError, match=needs):
        next(lfarm.stream_task(stream_tasks.count, 3))
    assert farm.submit(abs, -1).result(DEADLINE) == 1


def test_context_is_left_out_with_one_warning(server, caplog):
    token = context_tasks.user.set("me")
    try:
        with FarmExecutor(server.address, key=KEY, context=[context_tasks.user]) as farm:
            assert farm.submit(context_tasks.look).result(DEADLINE) == ("nobody", "none")
            assert list(farm.map(context_tasks.look, range(2))) == [("nobody", "none")] * 2
    finally:
        context_tasks.user.reset(token)
    assert caplog.text.count("context not sent") == 1
