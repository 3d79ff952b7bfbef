"""What a task yields comes as it yields it."""

import asyncio
import gc
import os
import pickle
import subprocess
import sys
import threading

import pytest
from client import stream_tasks as tasks
from contract.gate import DEADLINE, Gate
from faults.proxy import Proxy
from server.processes import wait_until

from farm_executor import (
    FarmExecutor,
    InvalidTaskError,
    TaskExecutionError,
    TaskKilledError,
    TaskTimeoutError,
    WorkerLostError,
    lfarm,
    start_server,
)
from farm_executor.client.farm.inlet import Inlet
from farm_executor.core.frames import BULK_THRESHOLD, FrameType, encode_frame
from farm_executor.core.reader import FrameReader
from farm_executor.core.streams import (
    MAX_AHEAD,
    decode_credit,
    decode_items,
    encode_credit,
    encode_items,
    encode_items_together,
    number_of,
)
from farm_executor.errors import RemoteProtocolError
from farm_executor.server import streaming
from farm_executor.server.streaming import Outgoing

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


@pytest.mark.parametrize("n", [0, 1, 17, 20_000])
def test_all_items_come_in_order(farm, n):
    stream = farm.stream(tasks.count, n)
    assert list(stream) == list(range(n))
    assert stream.future.result(DEADLINE) == "counted"
    assert list(stream) == []


def test_items_of_all_kinds(farm):
    assert list(farm.stream(tasks.mixed)) == [1, (2, [3]), "text", b"x" * 100_000, {"four": 4}, None]
    assert list(farm.stream(range, 3)) == [0, 1, 2]
    assert list(farm.stream(lambda: "abc")) == ["a", "b", "c"]


@pytest.mark.parametrize(("held", "copied"), [(False, 0), (True, 1)])
def test_an_array_that_a_task_has_let_go_of_is_not_copied_to_be_kept(server, held, copied):
    """What may have to be sent again is copied where the task could change it, which costs as much as sending."""
    pytest.importorskip("numpy")
    with FarmExecutor(server.address) as farm:
        stream = farm.stream(tasks.arrays_and_copies, 5, held)
        assert [int(array[-1]) for array in stream] == list(range(5))
        assert stream.future.result(DEADLINE) == [copied] * 5


def test_an_array_of_an_asynchronous_generator_is_not_copied_to_be_kept(server):
    pytest.importorskip("numpy")
    with FarmExecutor(server.address) as farm:
        *_, last = farm.stream(tasks.ArraysAndCopies)
        assert last == [0, 0, 0]


def test_memory_that_is_used_again_was_sent_as_it_was(farm):
    numpy = pytest.importorskip("numpy")
    arrays = list(farm.stream(tasks.arrays, 30, 1 << 20))
    assert [int(array[0]) for array in arrays] == list(range(30))
    assert all(numpy.all(array == array[0]) for array in arrays)


def test_async_generators_and_async_functions(farm):
    assert list(farm.stream(tasks.count_async, 100)) == list(range(100))
    assert list(farm.stream(tasks.later, 3)) == [0, 1, 2]


def test_async_for(farm):
    async def collect(*args):
        return [item async for item in farm.stream(*args)]

    assert asyncio.run(collect(tasks.count, 5000)) == list(range(5000))
    assert asyncio.run(collect(tasks.count_async, 50)) == list(range(50))
    with pytest.raises(ValueError, match="after that"):
        asyncio.run(collect(tasks.fail_after, 3))


def test_an_error_comes_after_the_items_before_it(farm):
    stream = farm.stream(tasks.fail_after, 3)
    assert [next(stream) for _ in range(3)] == [0, 1, 2]
    for _ in range(2):
        with pytest.raises(ValueError, match="after that") as caught:
            next(stream)
    assert isinstance(caught.value.__cause__, TaskExecutionError)
    with pytest.raises(ValueError, match="at once"):
        next(farm.stream(tasks.raise_at_once))


def test_an_item_that_cannot_be_pickled(farm):
    stream = farm.stream(tasks.unsendable)
    assert next(stream) == 1
    with pytest.raises(TypeError, match="have what it yields come by stream") as caught:
        next(stream)
    assert "item 2 of the stream, of type generator, could not be pickled" in str(caught.value.__cause__)


@pytest.mark.parametrize("what", [5, None, "x"])
def test_what_cannot_be_called_is_refused_at_once(farm, what):
    with pytest.raises(InvalidTaskError):
        farm.stream(what)


def test_what_cannot_be_iterated_is_its_error(farm):
    with pytest.raises(TypeError, match="'int' object is not iterable"):
        next(farm.stream(abs, 5))


def test_an_item_comes_before_the_next_is_there(farm):
    with Gate() as gate:
        stream = farm.stream(tasks.one_then_pass, gate.address)
        assert next(stream) == "one"
        gate.wait_for_arrivals()
        assert " state=running one_then_pass on worker pid " in repr(stream)
        gate.open()
        assert list(stream) == ["two"]


def test_the_task_is_ahead_by_so_much_and_waits(farm, tmp_path):
    path = tmp_path / "number"
    # So large that each travels in a frame of its own, as frames are what is counted.
    with farm.stream(tasks.count_from_the_start, str(path), BULK_THRESHOLD) as stream:
        assert next(stream)[0] == 0
        wait_until(lambda: path.read_text() == str(MAX_AHEAD), "the window to be full")
        assert next(stream)[0] == 1
    wait_until(lambda: path.read_text() == "closed", "its end")
    assert farm.submit(abs, -1).result(DEADLINE) == 1


def test_close_ends_it_and_no_items_are_left(farm, tmp_path):
    stream = farm.stream(tasks.count_from_the_start, str(tmp_path / "number"))
    next(stream)
    stream.close()
    assert list(stream) == []
    assert stream.future.result(DEADLINE) is None
    stream.close()


def test_one_that_is_let_go_of_is_closed(farm, tmp_path):
    stream = farm.stream(tasks.count_from_the_start, str(tmp_path / "number"))
    next(stream)
    future = stream.future
    del stream
    gc.collect()
    assert future.result(DEADLINE) is None


def test_one_that_has_not_begun_is_cancelled(farm, tmp_path):
    with Gate() as gate:
        running = farm.stream(tasks.one_then_pass, gate.address)
        assert next(running) == "one"
        waiting = [farm.stream(tasks.count, 3) for _ in range(3)]
        waiting[0].close()
        waiting.pop().close()
        del waiting[1:]
        gate.open()
        assert list(running) == ["two"]
    assert farm.submit(abs, -1).result(DEADLINE) == 1


def test_shutdown_closes_one_that_nobody_reads(server):
    with FarmExecutor(server.address) as farm:
        stream = farm.stream(tasks.count, 10**9)
        assert next(stream) == 0
    left = 1
    with pytest.raises(RuntimeError, match="the executor was shut down"):
        for left in stream:
            pass
    assert left > MAX_AHEAD
    with pytest.raises(RuntimeError):
        farm.stream(tasks.count, 1)


def test_shutdown_waits_for_one_that_fits(server):
    with FarmExecutor(server.address) as farm:
        stream = farm.stream(tasks.count, 5)
    assert list(stream) == list(range(5))


def test_kill_and_timeout(farm, tmp_path):
    stream = farm.stream(tasks.count_from_the_start, str(tmp_path / "number"))
    next(stream)
    assert farm.kill(stream.future)
    with pytest.raises(TaskKilledError):
        list(stream)
    stream = farm.with_options(timeout=0.3).stream(tasks.count_from_the_start, str(tmp_path / "number"))
    with pytest.raises(TaskTimeoutError):
        list(stream)


def test_it_is_not_begun_again_once_an_item_has_come(farm, tmp_path):
    stream = farm.stream(tasks.die_after, 2, str(tmp_path / "now"))
    assert [next(stream), next(stream)] == [0, 1]
    (tmp_path / "now").touch()
    with pytest.raises(WorkerLostError):
        next(stream)
    assert list(farm.stream(tasks.die_first, str(tmp_path / "died"))) == [0, 1, 2]


def test_a_program_may_end_with_one_that_nobody_has_closed():
    program = (
        "from farm_executor import FarmExecutor\n"
        "def count():\n    number = 0\n    while True:\n        yield number\n        number += 1\n"
        "farm = FarmExecutor(1)\nstream = farm.stream(count)\nprint(next(stream))\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=DEADLINE, check=True)
    assert (ended.stdout, ended.stderr) == (b"0\n", b"")


def test_each_item_goes_to_one_thread(farm):
    stream = farm.stream(tasks.count, 3000)
    taken = [[], [], []]
    threads = [threading.Thread(target=lambda mine=mine: mine.extend(stream)) for mine in taken]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert sorted(sum(taken, [])) == list(range(3000))


def test_in_a_callback_it_must_not_wait(farm):
    problems = []

    def callback(_):
        try:
            next(farm.stream(tasks.count, 1))
        except RuntimeError as error:
            problems.append(str(error))

    farm.submit(abs, 1).add_done_callback(callback)
    wait_until(lambda: problems, "the callback")
    assert "would wait for ever" in problems[0]


def test_over_connections_that_are_cut(server):
    with Proxy(server.address) as proxy, FarmExecutor(proxy.address, heartbeat=0.2) as farm:
        stream = farm.stream(tasks.count, 30_000)
        items = [next(stream) for _ in range(5000)]
        proxy.cut()
        items += [next(stream) for _ in range(5000)]
        proxy.cut()
        items += stream
        assert items == list(range(30_000))


def test_a_close_that_is_lost_with_the_connection(server, tmp_path):
    with Proxy(server.address) as proxy, FarmExecutor(proxy.address, heartbeat=0.2) as farm:
        stream = farm.stream(tasks.count_from_the_start, str(tmp_path / "number"))
        next(stream)
        proxy.stall()
        stream.close()
        proxy.cut()
        proxy.flow()
        assert stream.future.result(DEADLINE) is None


def test_views_and_lfarm(server):
    with FarmExecutor(server.address) as farm:
        assert list(farm.with_options(priority="high").stream(tasks.count, 3)) == [0, 1, 2]
    with lfarm.make_kernel([server.address], timeout=DEADLINE) as kernel, lfarm.use_kernel(kernel):
        assert list(lfarm.stream_task(tasks.count, 3)) == [0, 1, 2]
        assert list(lfarm.stream_task("client.stream_tasks:count", 3)) == [0, 1, 2]
        assert list(lfarm.stream_task(lfarm.deftask(lambda: iter("ab")))) == ["a", "b"]


def test_what_a_generator_is_as_a_result_names_stream(farm):
    assert "stream()" in str(farm.submit(tasks.count, 3).exception(DEADLINE))


# -- the layout, and peers that break it ----------------------------------------------------------------


def read(buffers):
    return FrameReader().receive_data(b"".join(buffers))[0]


def test_items_are_read_as_they_were_encoded():
    small = read(encode_items(3, 5, [[b"one"], [b""], [b"three"]]))
    assert (small.seq, number_of(small)) == (3, 5)
    assert [bytes(item[0]) for item in decode_items(small)[0]] == [b"one", b"", b"three"]
    bulk = read(encode_items(3, 6, [[b"one", b"x" * 100]]))
    assert number_of(bulk) == 6
    assert [bytes(part) for part in decode_items(bulk)[0][0]] == [b"one", b"x" * 100]
    together = read(encode_items_together(3, 7, 2, b"pickle"))
    assert (number_of(together), decode_items(together)) == (7, ([], b"pickle"))
    assert decode_credit(read(encode_credit(3, 9))) == 9


@pytest.mark.parametrize(
    "count, body", [(0, bytes(8)), (1, bytes(7)), (2, bytes(15)), (1, bytes(8) + b"\x05\0\0\0ab")]
)
def test_malformed_items_are_an_error_of_the_peer(count, body):
    with pytest.raises(RemoteProtocolError):
        Inlet().put(read(encode_frame(FrameType.ITEMS, count=count, body=body)), lambda taken: None)


def test_items_out_of_order_are_an_error_of_the_peer():
    inlet = Inlet()
    frames = [read(encode_items_together(0, number, 1, pickle.dumps([number]))) for number in range(3)]
    inlet.put(frames[0], lambda taken: None)
    inlet.put(frames[0], lambda taken: None)
    with pytest.raises(RemoteProtocolError, match="frame 2 of items, when 1 was due"):
        inlet.put(frames[2], lambda taken: None)
    assert inlet.take() is frames[0]
    assert inlet.take() is None


@pytest.mark.parametrize("body", [b"", bytes(7), bytes(9)])
def test_a_malformed_credit_is_an_error_of_the_peer(body):
    with pytest.raises(RemoteProtocolError):
        decode_credit(read(encode_frame(FrameType.CREDIT, body=body)))


def test_too_much_credit_is_an_error_of_the_peer():
    sent = []

    def send(stream, frames, size):
        stream.add_sent(frames, size)
        sent.append(frames)

    stream = Outgoing(0, send, lambda *args: None, lambda: False, threading.Event(), int, keep=True)
    stream.put(["item"])
    assert stream.unheard() == sent
    stream.credit(0)
    with pytest.raises(RemoteProtocolError, match="2 frames of items taken, of 1"):
        stream.credit(2)
    stream.credit(1)
    stream.credit(0)
    assert stream.unheard() == []


def test_the_helper_is_woken_for_the_first_item_that_waits(monkeypatch):
    """It may be asleep, and the task may yield nothing more for an hour."""
    monkeypatch.setattr(streaming, "TOGETHER_SECONDS", 3600.0)
    woken, sent = [], []
    stream = Outgoing(
        0,
        lambda stream, frames, size: sent.append(frames),
        lambda *args: None,
        lambda: False,
        threading.Event(),
        lambda: woken.append(len(sent)),
        keep=False,
    )
    for item in range(3):
        stream.put([item])
    assert stream.pending
    assert woken == [len(sent)]
    stream.flush()
    stream.put([3])
    assert len(woken) == 2
