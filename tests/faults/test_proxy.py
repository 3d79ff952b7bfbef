"""The proxy itself, between sockets of the test."""

import errno
import os
import socket
import time

import pytest
from faults.proxy import TO_CLIENT, TO_SERVER, Cut, End, Proxy
from server.processes import DEADLINE, wait_until

DATA = os.urandom(1 << 20)


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(DEADLINE)
        yield listener


def to(listener, *cuts, **options):
    return Proxy(f"127.0.0.1:{listener.getsockname()[1]}", *cuts, **options)


def dial(proxy):
    host, _, port = proxy.address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=DEADLINE)


@pytest.fixture
def pair(listener, no_leaks):
    """A function that makes a proxy with such cuts, and gives it and the two ends of its first connection."""
    opened = []

    def make(*cuts, **options):
        proxy = to(listener, *cuts, **options)
        here = dial(proxy)
        there = listener.accept()[0]
        there.settimeout(DEADLINE)
        opened.extend([here, there, proxy])
        return proxy, here, there

    yield make
    for one in opened:
        one.close()


def read(sock, count):
    data = b""
    while len(data) < count and (piece := sock.recv(count - len(data))):
        data += piece
    return data


def end_of(sock):
    """How the connection ends, and what came before."""
    data = b""
    try:
        while piece := sock.recv(1 << 16):
            data += piece
    except ConnectionResetError:
        return End.RESET, data
    return End.CLOSE, data


def assert_reset(proxy):
    """Who dials is connected, and told then, or even while he dials."""
    host, _, port = proxy.address.rpartition(":")
    with socket.socket() as sock, pytest.raises(ConnectionResetError):
        sock.settimeout(DEADLINE)
        sock.connect((host, int(port)))
        sock.recv(1)


def is_silent(sock):
    sock.settimeout(0.05)
    try:
        sock.recv(1)
    except TimeoutError:
        return True
    finally:
        sock.settimeout(DEADLINE)
    return False


def test_bytes_go_both_ways_as_they_are(pair):
    proxy, here, there = pair(record=True)
    here.settimeout(None)
    for source, sink in ((here, there), (there, here)):
        source.sendall(DATA[:200_000])
        assert read(sink, 200_000) == DATA[:200_000]

    wait_until(lambda: proxy.links[0].passed[TO_CLIENT] == 200_000, "all is counted")
    assert bytes(proxy.links[0].transcript[TO_SERVER]) == DATA[:200_000]


def test_an_end_is_passed_on_when_all_before_it_has_been(pair):
    proxy, here, there = pair()
    here.sendall(DATA[:1000])
    here.shutdown(socket.SHUT_WR)
    assert end_of(there) == (End.CLOSE, DATA[:1000])
    there.sendall(DATA[:500])
    there.close()
    assert end_of(here) == (End.CLOSE, DATA[:500])
    wait_until(lambda: not proxy.live, "it is over")


def test_a_reset_is_passed_on(pair):
    _, here, there = pair()
    there.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    there.close()
    assert end_of(here)[0] is End.RESET


@pytest.mark.parametrize("end", End)
@pytest.mark.parametrize("byte", [1, 99, 100])
def test_a_connection_is_cut_at_the_byte(pair, byte, end):
    _, here, there = pair(Cut(0, TO_SERVER, byte, end))
    here.sendall(DATA[:100])
    how, data = end_of(there)
    assert data == DATA[:byte]
    assert how is end
    assert end_of(here)[1] == b""


def test_a_connection_can_be_cut_before_its_first_byte(listener, no_leaks):
    with to(listener, Cut(0, TO_CLIENT, 0, End.RESET)) as proxy:
        assert_reset(proxy)


def test_the_bytes_of_one_direction_are_counted_alone(pair):
    _, here, there = pair(Cut(0, TO_CLIENT, 10))
    here.sendall(DATA[:1000])
    assert read(there, 1000) == DATA[:1000]
    there.sendall(DATA[:100])
    assert end_of(here) == (End.CLOSE, DATA[:10])


def test_only_the_connection_meant_is_cut(listener, no_leaks):
    with to(listener, Cut(1, TO_SERVER, 1)) as proxy:
        ends = []
        for _ in range(3):
            here = dial(proxy)
            there = listener.accept()[0]
            here.sendall(b"ab")
            here.shutdown(socket.SHUT_WR)
            ends.append(end_of(there)[1])
            here.close()
            there.close()
    assert ends == [b"ab", b"a", b"ab"]


@pytest.mark.parametrize("end", End)
def test_all_connections_are_cut_at_once(pair, end):
    proxy, here, there = pair()
    here.sendall(b"a")
    assert read(there, 1) == b"a"
    assert proxy.cut(end) == 1
    assert [end_of(here), end_of(there)] == [(end, b"")] * 2
    assert proxy.live == 0


def test_what_stalls_is_not_lost(pair):
    proxy, here, there = pair()
    proxy.stall()
    here.sendall(DATA[:1000])
    there.sendall(DATA[:1000])
    assert is_silent(here)
    assert is_silent(there)
    proxy.flow()
    assert read(here, 1000) == read(there, 1000) == DATA[:1000]


def test_one_direction_stalls_alone(pair):
    proxy, here, there = pair()
    proxy.stall(TO_CLIENT)
    here.sendall(b"a")
    assert read(there, 1) == b"a"
    there.sendall(b"b")
    assert is_silent(here)
    proxy.flow()
    assert read(here, 1) == b"b"


def test_one_connection_stalls_alone(listener, no_leaks):
    with to(listener) as proxy:
        pairs = [(dial(proxy), listener.accept()[0]) for _ in range(2)]
        proxy.stall(numbers=[1])
        for here, _ in pairs:
            here.sendall(b"a")
        assert read(pairs[0][1], 1) == b"a"
        assert is_silent(pairs[1][1])
        proxy.flow()
        assert read(pairs[1][1], 1) == b"a"
        for pair in pairs:
            for sock in pair:
                sock.close()


def test_a_connection_made_while_all_stalls_is_made(listener, no_leaks):
    with to(listener) as proxy:
        proxy.stall()
        with dial(proxy) as here, listener.accept()[0] as there:
            here.sendall(b"a")
            assert is_silent(there)
            proxy.flow()
            assert read(there, 1) == b"a"


def test_bytes_take_the_time_they_are_given(pair):
    proxy, here, there = pair()
    proxy.delay(to_server=0.1)
    began = time.monotonic()
    here.sendall(DATA[:100])
    assert read(there, 100) == DATA[:100]
    assert time.monotonic() - began >= 0.1


def test_more_than_fits_waits_without_being_read(pair):
    """A stalled way holds a bounded amount, so that the sender is held up, as by a network."""
    proxy, here, _ = pair()
    proxy.stall()
    here.settimeout(0.2)
    with pytest.raises(TimeoutError):
        while True:
            here.sendall(DATA)
    assert proxy.links[0].ways[TO_SERVER].size == 0


def test_it_goes_away_and_comes_back(listener, no_leaks):
    with to(listener) as proxy:
        proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            dial(proxy)
        proxy.admit()
        with dial(proxy) as here, listener.accept()[0] as there:
            here.sendall(b"a")
            assert read(there, 1) == b"a"


def test_it_leads_to_another_server(listener, no_leaks):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with to(taken) as proxy:
            assert_reset(proxy)
            proxy.lead_to(f"127.0.0.1:{listener.getsockname()[1]}")
            with dial(proxy) as here, listener.accept()[0] as there:
                here.sendall(b"a")
                assert read(there, 1) == b"a"


def test_who_dials_a_server_that_is_away_is_reset(no_leaks):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens there, and nobody else can
        with to(taken) as proxy:
            assert_reset(proxy)


def test_what_is_asked_in_vain_says_so(listener):
    with to(listener) as proxy:
        proxy.refuse()
        with socket.create_server(("127.0.0.1", int(proxy.address.rpartition(":")[2]))):
            with pytest.raises(OSError, match="in use") as caught:
                proxy.admit()
            assert caught.value.errno == errno.EADDRINUSE
