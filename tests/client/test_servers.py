"""Servers that come and go while a farm works."""

import contextlib
import threading
import time
from concurrent.futures import wait

import pytest
from client.tasks import look, mark
from contract.gate import Gate
from contract.tasks import pass_gate
from server.processes import DEADLINE, wait_until
from server.serving import KEY, Serving
from server.tasks import pid

from farm_executor import AddressError, AuthenticationError, FarmExecutor, WorkerLostError, start_server
from farm_executor.client.farm import discovery
from farm_executor.client.farm import link as server
from farm_executor.core import dialling
from farm_executor.launch.local import Server
from farm_executor.wire import sockets
from farm_executor.wire.address import Address
from farm_executor.wire.versions import local_versions

OTHER_KEY = b"another key that nobody here has"


@pytest.fixture
def one():
    with start_server("127.0.0.1", 0, background=True, workers=1) as server:
        yield server


@pytest.fixture
def other():
    with start_server("127.0.0.1", 0, background=True, workers=1) as server:
        yield server


def _workers(farm: FarmExecutor) -> dict[str, int]:
    return {server.address: len(server.workers) for server in farm.statistics().servers}


def test_a_server_added_gets_its_share(one, other):
    with Gate() as gate, FarmExecutor(one.address) as farm:
        futures = [farm.submit(pass_gate, gate.address, number) for number in range(2)]
        gate.wait_for_arrivals(1)
        farm.add_server(other.address)
        gate.wait_for_arrivals(1)
        gate.open()
        assert [future.result(DEADLINE) for future in futures] == [0, 1]
        assert set(_workers(farm)) == {one.address, other.address}


def test_a_server_added_before_the_first_task_is_dialled_with_it(one, other):
    with FarmExecutor(one.address) as farm:
        farm.add_server(other.address)
        farm.add_server(other.address)
        assert farm.statistics().servers == ()
        farm.connect(DEADLINE)
        assert set(_workers(farm)) == {one.address, other.address}
        assert other.address in repr(farm)


def test_a_server_added_to_an_embedded_farm_works_beside_it(one):
    with Gate() as gate, FarmExecutor(1) as farm:
        farm.add_server(one.address)
        futures = [farm.submit(pass_gate, gate.address, number) for number in range(2)]
        gate.wait_for_arrivals(2)
        gate.open()
        assert [future.result(DEADLINE) for future in futures] == [0, 1]


def test_a_key_for_servers_to_be_added_does_not_keep_an_embedded_farm_from_its_own(tmp_path):
    key = b"a key that is not the embedded server's"
    (tmp_path / "key").touch(0o600)
    (tmp_path / "key").write_bytes(key)
    for given in ({"key": key}, {"key_file": tmp_path / "key"}):
        with (
            start_server("127.0.0.1", 0, background=True, workers=1, key=key) as server,
            FarmExecutor(1, **given) as farm,
        ):
            farm.add_server(server.address)
            farm.connect(DEADLINE)
            assert len(set(farm.broadcast(pid))) == 2


def test_workers_of_an_added_server_make_the_persistent_calls(one, other):
    with FarmExecutor(one.address) as farm:
        farm.broadcast(mark, "set", persistent=True)
        farm.add_server(other.address)
        farm.connect(DEADLINE)
        assert farm.broadcast(look) == ["set", "set"]


def test_a_server_removed_ends_what_it_has_begun_and_the_rest_goes_elsewhere(one, other):
    with Gate() as gate, FarmExecutor([one.address, other.address]) as farm:
        farm.connect(DEADLINE)
        futures = [farm.submit(pass_gate, gate.address, number) for number in range(6)]
        gate.wait_for_arrivals(2)
        with pytest.raises(TimeoutError, match="still works"):
            farm.remove_server(one.address, timeout=0.05)
        gate.open()
        wait_until(lambda: set(_workers(farm)) == {other.address}, "it goes on to drain")
        assert [future.result(DEADLINE) for future in futures] == list(range(6))
        assert farm.statistics().resubmitted == 0
        assert set(_workers(farm)) == {other.address}
        assert farm.submit(abs, -7).result(DEADLINE) == 7


def test_a_broadcast_passes_over_a_server_that_is_being_removed(one, other):
    with Gate() as gate, FarmExecutor(one.address) as farm:
        held = farm.submit(pass_gate, gate.address, 0)
        gate.wait_for_arrivals(1)
        farm.add_server(other.address)
        farm.connect(DEADLINE)
        with pytest.raises(TimeoutError, match="still works"):
            farm.remove_server(one.address, timeout=0.05)
        assert len(farm.broadcast(pid, timeout=DEADLINE)) == 1
        gate.open()
        assert held.result(DEADLINE) == 0


def test_a_server_removed_at_once_has_its_tasks_tried_elsewhere_free_of_charge(one, other):
    with Gate() as gate, FarmExecutor(one.address, max_attempts=2) as farm:
        again = farm.submit(pass_gate, gate.address, 7)
        gate.wait_for_arrivals(1)
        farm.add_server(other.address)
        farm.remove_server(one.address, drain=False, timeout=DEADLINE)
        gate.wait_for_arrivals(1)
        gate.open()
        assert again.result(DEADLINE) == 7
        assert set(_workers(farm)) == {other.address}


def test_a_task_that_must_not_run_twice_fails_when_its_server_is_removed_at_once(one):
    with Gate() as gate, FarmExecutor(one.address, max_attempts=1) as farm:
        once = farm.submit(pass_gate, gate.address, 7)
        gate.wait_for_arrivals(1)
        farm.remove_server(one.address, drain=False, timeout=DEADLINE)
        with pytest.raises(WorkerLostError):
            once.result(DEADLINE)
        gate.open()


def test_without_any_server_tasks_wait_for_one_to_be_added(one):
    with FarmExecutor(one.address) as farm:
        assert farm.submit(abs, -1).result(DEADLINE) == 1
        farm.remove_server(one.address, timeout=DEADLINE)
        waiting = farm.submit(abs, -2)
        assert farm.statistics().servers == ()
        farm.add_server(one.address)
        assert waiting.result(DEADLINE) == 2


def test_a_server_that_never_answered_is_removed_at_once(one):
    nowhere = Address("127.0.0.1", 1)
    with FarmExecutor([one.address, nowhere]) as farm:
        assert farm.submit(abs, -1).result(DEADLINE) == 1
        farm.remove_server(nowhere, timeout=DEADLINE)
        farm.connect(DEADLINE)


def test_a_server_removed_before_the_first_task_is_never_dialled(one):
    nowhere = Address("127.0.0.1", 1)
    with FarmExecutor([one.address, nowhere]) as farm:
        farm.remove_server(nowhere)
        farm.connect(DEADLINE)


def test_a_server_is_removed_also_before_anybody_has_dialled_it(one):
    """In the moment of the first task its address is known, and nothing else of it."""
    nowhere = Address("127.0.0.1", 1)
    for _ in range(20):
        with FarmExecutor([one.address, nowhere]) as farm:
            future = farm.submit(abs, -1)
            farm.remove_server(nowhere, timeout=DEADLINE)
            assert set(_workers(farm)) == {one.address}
            assert future.result(DEADLINE) == 1


def test_a_server_beyond_the_workers_that_are_wanted_is_removed_without_a_word(one):
    with FarmExecutor([one.address, Address("127.0.0.1", 1)], max_workers=1) as farm:
        assert farm.submit(abs, -1).result(DEADLINE) == 1
        farm.remove_server("127.0.0.1:1", timeout=DEADLINE)
        assert "127.0.0.1:1," not in repr(farm)


def test_what_cannot_be_added_or_removed_is_said(one, other):
    with FarmExecutor(one.address) as farm:
        with pytest.raises(ValueError, match="no server"):
            farm.remove_server(other.address)
        with pytest.raises(AddressError, match="constructor"):
            farm.add_server("farm://localhost:1?all")
        with pytest.raises(AddressError, match="its own address"):
            farm.remove_server("farm://localhost:1?all")
        farm.connect(DEADLINE)
        with pytest.raises(ValueError, match="no server"):
            farm.remove_server(other.address)
        refused = []
        farm.submit(abs, -1).add_done_callback(lambda future: refused.append(_error_of(farm, one)))
        wait_until(lambda: refused, "the callback has tried to remove it")
        assert isinstance(refused[0], RuntimeError)
    with pytest.raises(RuntimeError):
        farm.add_server(other.address)


def _error_of(farm: FarmExecutor, server: Server) -> BaseException | None:
    try:
        farm.remove_server(server.address)
    except RuntimeError as error:
        return error
    return None


def test_shutdown_with_a_timeout_says_what_still_runs(one):
    with Gate() as gate:
        farm = FarmExecutor(one.address)
        future = farm.submit(pass_gate, gate.address, 1)
        gate.wait_for_arrivals(1)
        with pytest.raises(TimeoutError, match="1 tasks run"):
            farm.shutdown(timeout=0.01)
        gate.open()
        farm.shutdown(timeout=DEADLINE)
        assert future.result(0) == 1


# -- names --------------------------------------------------------------------------------------------------


@pytest.fixture
def name(monkeypatch):
    """What a name stands for, and to look it up again at once."""
    found: list[Address] = []
    looked = threading.Semaphore(0)

    def resolve(address: Address) -> list[Address]:
        looked.release()
        if not found:
            raise OSError("no such name")
        return list(found)

    monkeypatch.setattr(sockets, "resolve", resolve)
    monkeypatch.setattr(discovery, "RESOLVE_SECONDS", 0.02)
    monkeypatch.setattr(discovery, "RETRY_SECONDS", 0.02)
    return found


def _address(server: Server) -> Address:
    host, _, port = server.address.rpartition(":")
    return Address(host, int(port))


def test_a_name_is_used_in_full_and_as_it_changes(name, one, other):
    name.append(_address(one))
    with FarmExecutor("farm://several:1?all") as farm:
        farm.connect(DEADLINE)
        assert set(_workers(farm)) == {one.address}
        name.append(_address(other))
        wait_until(lambda: _workers(farm) == {one.address: 1, other.address: 1}, "both are there")
        assert len(set(farm.broadcast(pid))) == 2
        other.end()
        assert farm.submit(abs, -1).result(DEADLINE) == 1
        name.remove(_address(other))
        wait_until(lambda: set(_workers(farm)) == {one.address}, "what is gone from the name is forgotten")


def test_a_server_gone_from_its_name_works_on_while_it_lives(name, one, other):
    name.extend([_address(one), _address(other)])
    with Gate() as gate, FarmExecutor("farm://several:1?all") as farm:
        futures = [farm.submit(pass_gate, gate.address, number) for number in range(2)]
        gate.wait_for_arrivals(2)
        name.remove(_address(other))
        gate.open()
        assert [future.result(DEADLINE) for future in futures] == [0, 1]
        assert set(_workers(farm)) == {one.address, other.address}


def test_a_name_that_is_not_found_is_looked_up_until_it_is(name, one):
    with FarmExecutor("farm://several:1?all") as farm:
        future = farm.submit(abs, -1)
        with pytest.raises(TimeoutError, match="farm://several:1.all .*no such name"):
            farm.connect(0.1)
        name.append(_address(one))
        assert future.result(DEADLINE) == 1


def test_localhost_is_a_name(one):
    port = one.address.rpartition(":")[2]
    with FarmExecutor(f"farm://127.0.0.1:{port}?all") as farm:
        assert farm.submit(abs, -1).result(DEADLINE) == 1
        assert wait([farm.submit(abs, -2)], DEADLINE).not_done == set()


def test_no_thread_is_left_when_a_shutdown_has_been_waited_for(monkeypatch):
    """Also if one is in the midst of dialling."""

    def connect(*args, **kwargs):
        dialled.set()
        time.sleep(0.2)  # as a slow network would take
        raise ConnectionRefusedError

    dialled = threading.Event()
    monkeypatch.setattr(server, "connect", connect)
    with FarmExecutor(Address("127.0.0.1", 1)) as farm:
        future = farm.submit(abs, -1)
        assert dialled.wait(DEADLINE)
        assert future.cancel()
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("farm-")] == []


# -- servers that refuse --------------------------------------------------------------------------------------


def test_a_server_with_another_key_costs_itself_alone_and_is_taken_when_it_has_ours(caplog, monkeypatch):
    monkeypatch.setattr(dialling, "LONGEST_PAUSE", 0.05)
    with Serving(workers=1) as good, Serving(workers=1, key=OTHER_KEY) as bad:
        address = bad.address
        with FarmExecutor([address, good.address], key=KEY) as farm:
            assert farm.submit(abs, -1).result(DEADLINE) == 1
            wait_until(lambda: "refused the key" in caplog.text, "it has refused us")
            assert list(farm.map(abs, range(20))) == list(range(20))
            bad.process.kill()
            bad.process.wait()
            with Serving(at=address, workers=1):
                wait_until(lambda: all(server.up for server in farm.statistics().servers), "it has our key now")


def test_a_server_that_comes_back_with_another_key_loses_what_it_ran_and_nothing_else():
    with Gate() as gate, Serving(workers=1) as good, Serving(workers=1) as bad:
        address = bad.address
        with FarmExecutor([address, good.address], key=KEY) as farm:
            farm.connect(DEADLINE)
            futures = [farm.submit(pass_gate, gate.address, number) for number in range(2)]
            gate.wait_for_arrivals(2)
            bad.process.kill()
            bad.process.wait()
            with Serving(at=address, workers=1, key=OTHER_KEY):
                gate.open()
                assert [future.result(DEADLINE) for future in futures] == [0, 1]
                assert list(farm.map(abs, range(20))) == list(range(20))


def test_ten_servers_are_upgraded_one_after_the_other_and_no_program_loses_a_task():
    """As the page says: half of the servers, then the programs, then the other half. Nor is any task run twice."""
    with contextlib.ExitStack() as stack:

        def start(port, key):
            return stack.enter_context(start_server("127.0.0.1", port, background=True, workers=1, key=key))

        servers = [start(0, KEY) for _ in range(10)]
        addresses = [server.address for server in servers]

        def upgrade(half, farm):
            futures = [farm.submit(abs, -number) for number in range(50)]
            for old in half:
                old.drain()
                futures += [farm.submit(abs, -number) for number in range(len(futures), len(futures) + 10)]
                assert old.wait(DEADLINE)
                start(int(old.address.rpartition(":")[2]), OTHER_KEY)
            assert [future.result(DEADLINE) for future in futures] == list(range(len(futures)))

        with FarmExecutor(addresses, key=KEY, max_attempts=1) as program:
            program.connect(DEADLINE)
            upgrade(servers[:5], program)
        with FarmExecutor(addresses, key=OTHER_KEY, max_attempts=1) as program:
            assert program.submit(abs, -1).result(DEADLINE) == 1
            upgrade(servers[5:], program)
            wait_until(lambda: len(_workers(program)) == 10, "it has all servers")


def test_a_server_of_another_python_is_set_aside_with_a_warning(caplog, monkeypatch):
    other = local_versions()._replace(python="cpython 2.7")
    connect = server.connect
    with Serving(workers=1) as good, Serving(workers=1) as bad:

        def connect_as_another(address, key, hello, *args, **more):
            if hello["role"] == "control" and str(address) == bad.address:
                hello = {**hello, "versions": other._asdict()}
            return connect(address, key, hello, *args, **more)

        monkeypatch.setattr(server, "connect", connect_as_another)
        with FarmExecutor([bad.address, good.address], key=KEY) as farm:
            assert list(farm.map(abs, range(20))) == list(range(20))
            wait_until(lambda: "set aside" in caplog.text, "it has refused us")
            assert f"server set aside server={bad.address}" in caplog.text
            assert "cpython 2.7" in caplog.text


def test_when_every_server_refuses_the_farm_is_broken():
    with (
        Serving(workers=1, key=OTHER_KEY) as one,
        Serving(workers=1, key=b"yet another key that nobody has") as other,
        FarmExecutor([one.address, other.address], key=KEY) as farm,
        pytest.raises(AuthenticationError, match="refused the key"),
    ):
        farm.submit(abs, -1).result(DEADLINE)
