"""Farms whose large data goes through shared memory, and those where it cannot."""

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from client import ring_tasks as tasks
from faults.proxy import Proxy
from server.peers import SessionPeer
from server.processes import DEADLINE, alive, children, wait_until
from server.serving import KEY, Serving

from farm_executor import FarmExecutor, start_server
from farm_executor.client.farm import ringing
from farm_executor.core.features import ALWAYS, RINGS
from farm_executor.core.frames import FrameType, encode_frame
from farm_executor.core.ring import LEAST
from farm_executor.wire import dialling, memfd
from farm_executor.wire import ring as ring_module
from farm_executor.wire.dialling import RefusedError, connect
from farm_executor.wire.security import Key
from farm_executor.wire.sockets import beside

pytestmark = [
    pytest.mark.skipif(not memfd.AVAILABLE, reason="there is no memfd on this system"),
    pytest.mark.usefixtures("no_leaks"),
]

SIZE = 12 * 1024 * 1024 + 1


def ringed(farm):
    """Whether a lane has a ring, and so sends through it."""
    return [not lane.connection.as_given for lane in list(farm._engine._lanes.values()) if lane.connection.bell]


def until_ringed(farm, count=1):
    """Send large data until that many lanes have a ring."""
    data = bytes(LEAST)

    def look():
        for future in [farm.submit(tasks.echo, data) for _ in range(count)]:
            assert future.result(DEADLINE) == data
        return sum(ringed(farm)) >= count

    wait_until(look, "the lanes have rings")


def says(caplog, text):
    return sum(text in record.getMessage() for record in caplog.records)


@contextlib.contextmanager
def over(way, workers=1):
    with contextlib.ExitStack() as stack:
        if way == "embedded":
            yield stack.enter_context(FarmExecutor(workers))
            return
        server = stack.enter_context(start_server("127.0.0.1", 0, background=True, workers=workers))
        yield stack.enter_context(FarmExecutor(server.address))


@pytest.mark.parametrize("way", ["embedded", "tcp"])
def test_large_data_goes_through_shared_memory_and_arrives_as_it_would_without(way):
    with over(way) as farm:
        until_ringed(farm)
        data = os.urandom(SIZE)
        assert farm.submit(tasks.echo, data).result(DEADLINE) == data
        assert farm.submit(tasks.echo, bytearray(data)).result(DEADLINE) == bytearray(data)
        assert farm.submit(tasks.echo, [data[:10], bytearray(data)]).result(DEADLINE) == [data[:10], data]
        given = bytearray(data)
        changed = farm.submit(tasks.change, given).result(DEADLINE)
        assert changed == bytes([data[0] ^ 1]) + data[1:] + b"more"
        assert given == data  # it is the task's own
        (lane,) = farm._engine._lanes.values()
        assert lane.connection.bytes_sent < SIZE
        assert farm.submit(tasks.mapped).result(DEADLINE)


def test_an_argument_is_the_tasks_own_whatever_comes_next():
    with FarmExecutor(1) as farm:
        until_ringed(farm)
        arguments = [bytearray([number]) * SIZE for number in range(4)]
        assert list(farm.map(tasks.is_private, arguments)) == [bytes(argument[:100]) for argument in arguments]


def test_results_and_arguments_that_fill_both_rings_at_once_do_not_stand_in_each_others_way():
    with FarmExecutor(2) as farm:
        until_ringed(farm, 2)
        values = [os.urandom(3 * 1024 * 1024) for _ in range(40)]
        assert list(farm.map(tasks.echo, values)) == values


def test_calls_from_several_threads_share_a_ring():
    with FarmExecutor(1) as farm:
        until_ringed(farm)
        results = {}

        def call(number):
            value = bytes([number]) * (2 * 1024 * 1024)
            results[number] = all(farm.submit(tasks.echo, value).result(DEADLINE) == value for _ in range(5))

        threads = [threading.Thread(target=call, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == dict.fromkeys(range(4), True)


def test_two_farms_in_one_process_have_rings_of_their_own():
    with FarmExecutor(1) as one, FarmExecutor(1) as other:
        for farm in (one, other):
            until_ringed(farm)
        values = [os.urandom(SIZE) for _ in range(2)]
        futures = [farm.submit(tasks.echo, value) for farm, value in zip((one, other), values, strict=True)]
        assert [future.result(DEADLINE) for future in futures] == values


def test_small_data_asks_for_no_ring():
    with FarmExecutor(1) as farm:
        for _ in range(3):
            assert farm.submit(tasks.echo, bytes(LEAST // 2)).result(DEADLINE) == bytes(LEAST // 2)
        assert not farm.submit(tasks.mapped).result(DEADLINE)
        assert not ringed(farm)


def test_a_recall_while_a_segment_is_half_sent_finds_its_way():
    with FarmExecutor(1) as farm:
        until_ringed(farm)
        futures = [farm.submit(tasks.echo, bytes([number]) * SIZE) for number in range(8)]
        for future in futures[3:]:
            future.cancel()
        for number, future in enumerate(futures):
            if not future.cancelled():
                assert future.result(DEADLINE) == bytes([number]) * SIZE


def test_an_interrupt_amid_a_copy_leaves_the_ring_in_step():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with FarmExecutor(1) as farm:
            until_ringed(farm)
            worker = farm.submit(tasks.pid, None).result(DEADLINE)
            with pytest.raises(KeyboardInterrupt):
                list(farm.stream(tasks.interrupted_amid_a_copy, SIZE))
            for value in [os.urandom(SIZE) for _ in range(3)]:
                assert farm.submit(tasks.echo, value).result(DEADLINE) == value
            assert farm.submit(tasks.pid, None).result(DEADLINE) == worker
    finally:
        signal.signal(signal.SIGINT, before)


# -- one end is gone ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", [tasks.die_once, tasks.fork_and_die])
def test_a_killed_worker_costs_no_task_its_result(tmp_path, task):
    with FarmExecutor(2) as farm:
        until_ringed(farm, 2)
        values = [os.urandom(SIZE) for _ in range(6)]
        futures = [farm.submit(task, str(tmp_path / "died"), value) for value in values]
        assert [future.result(DEADLINE) for future in futures] == values
        until_ringed(farm, 2)


def test_a_worker_that_is_killed_while_it_sends_costs_no_task_its_result():
    with FarmExecutor(1) as farm:
        until_ringed(farm)
        worker = farm.submit(tasks.pid, None).result(DEADLINE)
        futures = [farm.submit(tasks.make, 8 * SIZE, number) for number in range(6)]
        futures[0].result(DEADLINE)
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)
        assert [future.result(DEADLINE) == bytes([number]) * (8 * SIZE) for number, future in enumerate(futures)]


def test_a_server_that_is_killed_amid_large_data_costs_no_task_its_result():
    with (
        Serving(workers=1) as lost,
        Serving(workers=1) as other,
        FarmExecutor([lost.address, other.address], key=KEY) as farm,
    ):
        until_ringed(farm, 2)
        values = [os.urandom(SIZE) for _ in range(6)]
        futures = [farm.submit(tasks.echo, value) for value in values]
        workers = children(lost.pid)
        lost.process.kill()
        assert [future.result(DEADLINE) for future in futures] == values
        wait_until(lambda: not any(map(alive, workers)), "its worker, and with it the ring, is gone")


def test_a_process_that_a_task_forks_has_no_part_in_the_ring():
    with FarmExecutor(1) as farm:
        until_ringed(farm)
        value = os.urandom(SIZE)
        assert farm.submit(tasks.sum_in_a_child, value).result(DEADLINE) == sum(value[:1000])
        assert farm.submit(tasks.echo, value).result(DEADLINE) == value


def test_a_child_of_the_program_lets_go_of_the_ring_and_the_program_keeps_it():
    with FarmExecutor(1) as farm:
        until_ringed(farm)
        child = os.fork()
        if not child:
            os._exit(1 if "farm-ring" in Path("/proc/self/maps").read_text() else 0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        value = os.urandom(SIZE)
        assert farm.submit(tasks.echo, value).result(DEADLINE) == value
        assert ringed(farm) == [True]


def test_a_killed_client_leaves_neither_workers_nor_memory_behind():
    code = (
        "import os, signal\n"
        "from client import ring_tasks as tasks\n"
        "from farm_executor import FarmExecutor\n"
        "farm = FarmExecutor(1)\n"
        "while not farm.submit(tasks.mapped).result():\n"
        "    farm.submit(tasks.echo, bytes(1 << 24)).result()\n"
        "print(farm.submit(tasks.pid, None).result(), flush=True)\n"
        "futures = [farm.submit(tasks.make, 1 << 26, number) for number in range(8)]\n"
        "futures[0].result()\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = Path(__file__).parents[2]
    path = {"PYTHONPATH": f"{root}{os.pathsep}{root / 'tests'}"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, env={**os.environ, **path}, timeout=60, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    wait_until(lambda: not alive(int(done.stdout)), "the worker, and with it the last who has the memory, is gone")
    assert not [name for name in os.listdir("/dev/shm") if "farm-ring" in name]


def test_a_lane_that_breaks_gets_another_ring():
    with (
        start_server("127.0.0.1", 0, background=True, workers=1) as server,
        Proxy(server.address) as proxy,
        FarmExecutor(proxy.address, heartbeat=1.0) as farm,
    ):
        until_ringed(farm)
        values = [os.urandom(SIZE) for _ in range(6)]
        futures = [farm.submit(tasks.echo, value) for value in values]
        futures[0].result(DEADLINE)
        proxy.cut(numbers=[1])
        assert [future.result(DEADLINE) for future in futures] == values
        until_ringed(farm)
        assert farm.statistics().resubmitted == 0


# -- where there can be none -------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["client", "server"])
def test_with_an_older_peer_the_socket_goes_on(monkeypatch, end):
    if end == "client":
        with start_server("127.0.0.1", 0, background=True, workers=1) as server:
            monkeypatch.setattr(memfd, "AVAILABLE", False)
            with FarmExecutor(server.address) as farm:
                _goes_by_socket(farm)
    else:
        before = "from farm_executor.wire import memfd; memfd.AVAILABLE = False"
        with Serving(before=before, workers=1) as server, FarmExecutor(server.address, key=KEY) as farm:
            _goes_by_socket(farm)


def _goes_by_socket(farm):
    value = os.urandom(SIZE)
    for _ in range(3):
        assert farm.submit(tasks.echo, value).result(DEADLINE) == value
    assert not ringed(farm)
    assert not farm.submit(tasks.mapped).result(DEADLINE)


@pytest.mark.parametrize("call", ["create", "fix_size", "map_shared", "send"])
def test_a_worker_that_can_have_no_ring_goes_on_with_the_socket_and_it_is_said_once(caplog, call):
    caplog.set_level(logging.DEBUG, "farm_executor")
    before = (
        "from farm_executor.wire import memfd\n"
        "def refuse(*arguments, **named): raise OSError(12, 'none left')\n"
        f"memfd.{call} = refuse"
    )
    with Serving(before=before, workers=2) as server, FarmExecutor(server.address, key=KEY) as farm:
        assert farm.submit(tasks.echo, bytes(SIZE)).result(DEADLINE) == bytes(SIZE)
        wait_until(lambda: says(caplog, "no ring, so the socket goes on"), "it is said")
        _goes_by_socket(farm)
        assert says(caplog, "no ring, so the socket goes on") == 1


def test_a_worker_whose_task_has_taken_all_descriptors_goes_on_with_the_socket(caplog):
    caplog.set_level(logging.DEBUG, "farm_executor")
    with FarmExecutor(1) as farm:
        worker = farm.submit(tasks.fill_descriptors).result(DEADLINE)
        value = os.urandom(SIZE)
        assert farm.submit(tasks.echo, value).result(DEADLINE) == value
        wait_until(lambda: says(caplog, "no ring, so the socket goes on"), "it is said")
        assert farm.submit(tasks.echo, value).result(DEADLINE) == value
        assert farm.submit(tasks.pid, None).result(DEADLINE) == worker


@pytest.mark.parametrize("call", ["check", "map_shared"])
def test_a_client_that_can_have_no_ring_goes_on_with_the_socket_and_it_is_said_once(monkeypatch, caplog, call):
    caplog.set_level(logging.DEBUG, "farm_executor")

    def refuse(*arguments):
        raise OSError(12, "none left")

    monkeypatch.setattr(ring_module.memfd, call, refuse)
    with FarmExecutor(2) as farm:
        assert farm.submit(tasks.echo, bytes(SIZE)).result(DEADLINE) == bytes(SIZE)
        wait_until(lambda: says(caplog, "no ring, so the socket goes on"), "it is said")
        value = os.urandom(SIZE)
        assert list(farm.map(tasks.echo, [value] * 4)) == [value] * 4
        assert not ringed(farm)
        assert says(caplog, "no ring, so the socket goes on") == 1


def test_where_the_abstract_socket_cannot_be_reached_the_socket_goes_on(monkeypatch, caplog):
    caplog.set_level(logging.DEBUG, "farm_executor")
    # As from another machine or network namespace.
    monkeypatch.setattr("farm_executor.client.farm.link.beside", lambda name: beside("elsewhere"))
    with start_server("127.0.0.1", 0, background=True, workers=1) as server, FarmExecutor(server.address) as farm:
        assert farm.submit(tasks.echo, bytes(SIZE)).result(DEADLINE) == bytes(SIZE)
        wait_until(lambda: says(caplog, "no ring, so the socket goes on"), "it is said")
        _goes_by_socket(farm)


def test_a_farm_has_a_limited_number_of_rings(monkeypatch):
    monkeypatch.setattr(ringing, "MOST", 1)
    with FarmExecutor(2) as farm:
        until_ringed(farm)
        value = os.urandom(SIZE)
        assert list(farm.map(tasks.echo, [value] * 6)) == [value] * 6
        assert sum(ringed(farm)) == 1


# -- who may ask -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def session(**hello):
    with Serving(workers=1) as server, SessionPeer(server.address, features=[*ALWAYS, RINGS], **hello) as peer:
        yield peer


def ask(peer, key=KEY, **hello):
    said = {"role": "lane", "session": peer.id, "lane": 1, "ring": True, **hello}
    return connect(beside(peer.hello["beside"]), Key(key), said, DEADLINE)[0]


def test_the_socket_beside_a_tcp_server_gives_lanes_and_rings_and_nothing_else():
    with session() as peer:
        peer.open_lane()
        connection = ask(peer)
        word, descriptor = memfd.receive(connection.socket)
        memfd.check(descriptor, ring_module.shape_of(word).size)
        os.close(descriptor)
        connection.close()
        with pytest.raises(RefusedError, match="lanes and rings only"):
            hello = {"role": "admin", "command": "status"}
            connect(beside(peer.hello["beside"]), Key(KEY), hello, DEADLINE)


def test_who_has_not_proven_the_key_gets_no_ring():
    with session() as peer:
        peer.open_lane()
        with pytest.raises(Exception, match="refused the key"):
            ask(peer, key=b"another key of sixteen bytes or more")
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(beside(peer.hello["beside"]).path)
            sock.settimeout(DEADLINE)
            sock.send(b"GET / HTTP/1.1\r\n\r\n")
            assert sock.recv(1) == b""


def test_a_ring_is_refused_where_there_is_no_such_lane_or_no_such_feature():
    with session() as peer:
        peer.open_lane()
        for hello in ({"lane": 2}, {"session": "another"}):
            with pytest.raises(RefusedError):
                ask(peer, **hello)
        # Over TCP no descriptor could come.
        said = {"role": "lane", "session": peer.id, "lane": 1, "ring": True}
        with pytest.raises(RefusedError, match="no place for its ring"):
            connect(peer.address, Key(KEY), said, DEADLINE)
    with Serving(workers=1) as server, SessionPeer(server.address, features=[]) as peer:
        assert "beside" not in peer.hello


def test_a_worker_outlives_rings_that_nobody_takes():
    with session() as peer:
        lane = peer.open_lane()
        lane.start()
        for _ in range(5):
            ask(peer).close()
        lane.teach(7, len)
        lane.submit(0, (7, b"four"))
        assert lane.outcomes(1) == {0: 4}


def test_the_word_that_there_is_a_ring_ends_a_worker_that_has_none():
    with session() as peer:
        lane = peer.open_lane()
        lane.start()
        lane.send(*encode_frame(FrameType.RINGED))
        lane.wait_for_end()


def test_a_ring_is_not_asked_for_at_another_users_socket(monkeypatch, caplog):
    caplog.set_level(logging.DEBUG, "farm_executor")
    check = dialling.check_peer
    monkeypatch.setattr(dialling, "check_peer", lambda uid, address: check(uid + os.geteuid() + 1, address))
    with start_server("127.0.0.1", 0, background=True, workers=1) as server, FarmExecutor(server.address) as farm:
        assert farm.submit(tasks.echo, bytes(SIZE)).result(DEADLINE) == bytes(SIZE)
        wait_until(lambda: says(caplog, "belongs to another user"), "it is said")
        _goes_by_socket(farm)
