"""lfarm's admin and launcher, and its logging."""

import io
import logging
import operator
import os
import socket

import pytest
from server.peers import free_address
from server.processes import DEADLINE, wait_until

from farm_executor import AddressError, BrokenFarmError, lfarm
from farm_executor.launch.ssh import SSH_VARIABLE
from farm_executor.lfarm import (
    end_local_servers,
    end_remote_servers,
    log_level,
    log_stream,
    make_kernel,
    ping,
    start_local_servers,
    start_remote_servers,
)

KEY = b"the key of the lfarm suite's servers"

pytestmark = pytest.mark.usefixtures("no_leaks")


def place(address):
    host, _, port = address.rpartition(":")
    return host, int(port)


def test_local_servers_are_started_and_ended_by_address():
    addresses = [place(free_address()) for _ in range(2)]
    servers = start_local_servers(addresses, key=KEY)
    try:
        assert [place(server.address) for server in servers] == addresses
        assert all(ping(*address, key=KEY) for address in addresses)
        with make_kernel(addresses, timeout=DEADLINE, key=KEY) as kernel:
            assert kernel.worker_count == 2
            assert kernel.submit(operator.add, 3, 4).result() == 7

        end_local_servers(addresses, key=KEY)

        assert all(server.wait(DEADLINE) for server in servers)
        assert not any(ping(*address, timeout=0, key=KEY) for address in addresses)
    finally:
        for server in servers:
            server.end()


def test_a_port_in_use_fails_and_ends_those_begun():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        free, used = place(free_address()), taken.getsockname()[:2]
        with pytest.raises(OSError, match="in use"):
            start_local_servers([free, used], key=KEY)
    assert ping(*free, timeout=0, key=KEY) is False


def test_h13_a_port_in_use_is_the_callers_error_also_in_the_background():
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="in use"):
        lfarm.start_server(*taken.getsockname()[:2], background=True, key=KEY)


def test_h13_ping_leaves_no_socket_behind():
    with lfarm.start_server("127.0.0.1", 0, background=True, workers=1, key=KEY) as server:
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(5):
            assert ping(*place(server.address), key=KEY)
        assert len(os.listdir("/proc/self/fd")) == before


def test_a_ping_of_a_closed_port_answers_at_once_if_told_not_to_wait():
    assert ping(*place(free_address()), timeout=0, key=KEY) is False


def test_servers_that_cannot_be_reached_are_warned_of():
    away = free_address()
    (server,) = start_local_servers([("127.0.0.1", 0)], key=KEY)
    with server:
        with pytest.warns(UserWarning, match=away):
            end_local_servers([away, server.address], key=KEY)
        assert server.wait(DEADLINE)


def test_end_server_lets_those_who_are_connected_finish():
    with lfarm.start_server("127.0.0.1", 0, background=True, workers=1, key=KEY) as server:
        with make_kernel([server.address], timeout=DEADLINE, key=KEY) as kernel:
            assert kernel.submit(operator.add, 3, 4).result() == 7  # by now the worker is connected, too
            lfarm.end_server(*place(server.address), key=KEY)
            wait_until(lambda: not ping(*place(server.address), timeout=0, key=KEY), "it takes no new clients")
            assert kernel.submit(operator.add, 3, 4).result() == 7
        assert server.wait(DEADLINE)
    with pytest.raises(OSError, match="."):
        lfarm.end_server(*place(server.address), key=KEY)


@pytest.mark.parametrize("addresses", [["nowhere"], [("127.0.0.1",)], [("127.0.0.1", 70000)], "127.0.0.1:1"])
def test_addresses_are_checked_before_anything_is_started(addresses):
    with pytest.raises(AddressError):
        start_local_servers(addresses, key=KEY)


def test_no_workers_are_refused():
    with pytest.raises(ValueError, match="workers"):
        start_local_servers([("127.0.0.1", 0)], workers=0, key=KEY)


# -- over ssh ----------------------------------------------------------------------------------------------


@pytest.fixture
def way(sshd, monkeypatch):
    monkeypatch.setenv(SSH_VARIABLE, sshd.ssh)


def test_remote_servers_are_started_and_ended_by_address(way):
    servers = start_remote_servers(["ssh://hostA", "ssh://hostB?workers=2"])
    with make_kernel([server.address for server in servers], timeout=DEADLINE) as kernel:
        assert kernel.worker_count == 3
        assert kernel.submit(operator.add, 3, 4).result() == 7
    end_remote_servers(["ssh://hostA", servers[1].address])
    assert [server.address for server in servers] == ["", ""]
    with pytest.warns(UserWarning, match="no server was started over ssh at ssh://hostA"):
        end_remote_servers("ssh://hostA")


def test_a_kernel_starts_remote_servers_by_itself(way):
    with make_kernel(["ssh://hostA?workers=1"], timeout=DEADLINE) as kernel:
        assert kernel.submit(operator.add, 3, 4).result() == 7


def test_h13_an_ssh_that_fails_is_the_callers_error_and_ends_those_begun(way):
    with pytest.raises(BrokenFarmError, match="there is no /nowhere/python"):
        start_remote_servers(["ssh://hostA", "ssh://hostB?python=/nowhere/python"])


@pytest.mark.parametrize("addresses", [["host"], ["host:1"], [("host", 1)], ["ssh://host", "host:1"], ["ssh://-v"]])
def test_remote_addresses_are_checked_before_anything_is_started(addresses):
    with pytest.raises(AddressError, match="ssh://"):
        start_remote_servers(addresses)


def test_no_remote_workers_are_refused():
    with pytest.raises(ValueError, match="workers"):
        start_remote_servers(["ssh://host"], workers=0)


# -- logging -----------------------------------------------------------------------------------------------


@pytest.fixture
def logger():
    logger = logging.getLogger("farm_executor")
    level, handlers = logger.level, logger.handlers[:]
    yield logger
    logger.setLevel(level)
    logger.handlers[:] = handlers


def test_a_level_and_a_stream(logger):
    before = len(logger.handlers)
    first, second = io.StringIO(), io.StringIO()
    log_stream(first)
    log_level("error")
    logger.info("unheard")
    logging.getLogger("farm_executor.somewhere").error("heard")
    log_level("info")
    logger.info("heard, too")
    log_stream(second)
    logger.info("elsewhere")

    assert "unheard" not in first.getvalue()
    assert "ERROR farm_executor.somewhere heard\n" in first.getvalue()
    assert "INFO farm_executor heard, too" in first.getvalue()
    assert "elsewhere" not in first.getvalue()
    assert "elsewhere" in second.getvalue()
    assert len(logger.handlers) == before + 1


@pytest.mark.parametrize("level", ["debug", None, 10, "ERROR"])
def test_other_levels_are_refused(logger, level):
    with pytest.raises(ValueError, match="'error' or 'info'"):
        log_level(level)


def test_what_cannot_be_written_to_is_no_stream(logger):
    with pytest.raises(TypeError, match="write"):
        log_stream("a name")


def test_at_info_neither_tasks_nor_results_are_shown(logger):
    stream = io.StringIO()
    log_stream(stream)
    log_level("info")
    server = lfarm.start_server("127.0.0.1", 0, background=True, workers=1, key=KEY)
    with server, make_kernel([server.address], timeout=DEADLINE, key=KEY) as kernel:
        assert kernel.submit(str.upper, "secret").result() == "SECRET"
    assert "secret" not in stream.getvalue().lower()
