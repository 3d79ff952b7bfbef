"""Connecting to a host of several addresses, of which some lead nowhere."""

import contextlib
import socket
import threading
import time

import pytest

from farm_executor.wire import race as race_module
from farm_executor.wire.race import candidates, race

SOON = 30.0


def nothing(sock):
    """For who does not need to know the sockets."""


@contextlib.contextmanager
def listening():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield (socket.AF_INET, server.getsockname())


@pytest.fixture
def black_hole():
    """An address at which nobody answers: its queue is full, so that the system drops who knocks."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.socket())
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        while True:
            knocking = stack.enter_context(socket.socket())
            knocking.settimeout(0.2)
            try:
                knocking.connect(server.getsockname())
            except TimeoutError:
                break
        yield (socket.AF_INET, server.getsockname())


@pytest.fixture
def refusing():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
    return (socket.AF_INET, address)


def won(found, deadline=SOON):
    sock = race(found, time.monotonic() + deadline, nothing)
    with sock:
        return sock.getpeername()


def test_an_address_that_swallows_all_does_not_keep_the_next_from_answering(black_hole):
    with listening() as there:
        assert won([black_hole, there]) == there[1]


def test_an_address_that_refuses_makes_way_at_once(refusing, monkeypatch):
    monkeypatch.setattr(race_module, "ATTEMPT_SECONDS", 1000.0)
    with listening() as there:
        assert won([refusing, refusing, there]) == there[1]


def test_the_first_address_is_preferred():
    with listening() as one, listening() as other:
        assert won([one, other]) == one[1]


def test_when_all_fail_the_error_is_that_of_the_last(refusing, black_hole):
    with pytest.raises(ConnectionRefusedError):
        won([refusing, refusing])
    with pytest.raises(TimeoutError):
        won([refusing, black_hole], deadline=0.3)


def test_a_family_that_the_system_lacks_is_passed_over():
    with listening() as there:
        assert won([(9999, ("nowhere", 1)), there]) == there[1]


def test_each_socket_is_told_before_it_is_connected_and_all_but_the_winner_are_closed(black_hole):
    told = []
    with listening() as there:
        sock = race([black_hole, there], time.monotonic() + SOON, told.append)
        with sock:
            assert len(told) == 2
            assert told[1] is sock
            assert told[0].fileno() == -1


def test_what_is_raised_when_told_ends_the_race(black_hole):
    told = []

    def refuse(sock):
        told.append(sock)
        raise ConnectionAbortedError("closing")

    with pytest.raises(ConnectionAbortedError):
        race([black_hole, black_hole], time.monotonic() + SOON, refuse)
    assert [sock.fileno() for sock in told] == [-1]


def test_another_thread_can_end_the_race_by_shutting_its_sockets_down(black_hole):
    def hang_up_soon(sock):
        threading.Timer(0.2, sock.shutdown, [socket.SHUT_RDWR]).start()

    started = time.monotonic()
    with pytest.raises(OSError):
        race([black_hole], started + SOON, hang_up_soon)
    assert time.monotonic() < started + SOON


def test_the_families_take_turns_beginning_with_the_system_s_choice(monkeypatch):
    six, four = socket.AF_INET6, socket.AF_INET
    found = [(six, "a"), (six, "b"), (six, "c"), (four, "d"), (four, "e"), (six, "a")]
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda *args, **more: [(family, 1, 6, "", where) for family, where in found]
    )
    assert [where for _, where in candidates("name", 1)] == ["a", "d", "b", "e", "c"]
