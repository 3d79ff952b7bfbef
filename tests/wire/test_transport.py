"""Sockets: frames however the bytes come, and listening and dialling with errors that say where."""

import contextlib
import errno
import gc
import os
import signal
import socket
import stat
import struct
import sys
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from server.peers import free_address, listening
from server.processes import DEADLINE, wait_until
from strategies import frames, joined

from farm_executor import AuthenticationError, RemoteProtocolError, VersionMismatchError
from farm_executor.core.frames import (
    BULK,
    HEADER_SIZE,
    MAX_BODY,
    MAX_HELLO,
    FrameType,
    Kind,
    encode_frame,
    encode_payload,
    payload_of,
)
from farm_executor.core.handshake import NONCE_SIZE, PROTOCOL_VERSION, Security, ServerHandshake, encode_hello
from farm_executor.data import memory
from farm_executor.wire.address import Address, parse_address
from farm_executor.wire.connection import Connection
from farm_executor.wire.dialling import connect
from farm_executor.wire.sealed import SealedSocket
from farm_executor.wire.security import Key
from farm_executor.wire.sockets import bound_address, dial_local, hang_up, listen, listen_everywhere, tune
from farm_executor.wire.waker import Waker

pytestmark = pytest.mark.usefixtures("no_leaks")

KEY = b"0123456789abcdef"


@pytest.fixture
def pair():
    """The two ends of a connection, blocking, with a deadline."""
    one, other = socket.socketpair()
    with one, other:
        for sock in (one, other):
            sock.settimeout(DEADLINE)
        yield Connection(one), Connection(other)


@contextlib.contextmanager
def in_thread(action, *arguments):
    """Run something beside the test; its error is the test's."""
    errors = []

    def run():
        try:
            action(*arguments)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join(DEADLINE)
        assert not thread.is_alive()
    if errors:
        raise errors[0]


def receive(connection, count=1):
    found = []
    while len(found) < count:
        found += connection.receive()
    return found


def encoded(frame):
    return encode_frame(
        frame.type, flags=frame.flags, count=frame.count, seq=frame.seq, body=frame.body, segments=frame.segments
    )


def plain(frame):
    """Comparable whatever kind of memory its parts are in."""
    return frame.type, frame.flags, frame.count, frame.seq, bytes(frame.body), tuple(map(bytes, frame.segments))


# -- receiving ----------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(sent=st.lists(frames, min_size=1, max_size=8), data=st.data())
def test_frames_arrive_as_sent_however_the_stream_is_cut(sent, data):
    stream = b"".join(joined(encoded(frame)) for frame in sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    one, other = socket.socketpair()
    with one, other:
        connection = Connection(other)
        other.setblocking(False)
        found = []
        for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
            one.sendall(stream[start:end])
            while got := connection.receive():
                found += got
            for _ in range(4):  # an empty answer may also mean that a segment's end has been reached
                found += connection.receive()
        assert list(map(plain, found)) == list(map(plain, sent))
        assert not connection.reader.mid_frame


def test_nothing_there_is_no_frame_and_no_end(pair):
    one, other = pair
    other.socket.setblocking(False)
    assert other.receive() == []
    one.socket.sendall(joined(encode_frame(FrameType.BYE))[:-1])
    assert other.receive() == []
    assert other.receive() == []


def test_a_blocking_socket_with_nothing_to_say_is_a_timeout(pair):
    _, other = pair
    other.socket.settimeout(0.01)
    with pytest.raises(TimeoutError, match="no answer in time"):
        other.receive()


def test_the_end_of_the_stream_is_an_eof_error(pair):
    one, other = pair
    one.close()
    with pytest.raises(EOFError):
        other.receive()


@pytest.mark.parametrize("missing", [1, HEADER_SIZE, 50])
def test_an_end_within_a_frame_is_an_eof_error_and_no_frame(pair, missing):
    one, other = pair
    one.socket.sendall(joined(encode_frame(FrameType.FUNCTION, body=bytes(100)))[:-missing])
    one.close()
    with pytest.raises(EOFError):
        receive(other)


@pytest.mark.parametrize("missing", [1, 99_999, 100_000])
def test_an_end_within_a_segment_is_an_eof_error_and_no_frame(pair, missing):
    one, other = pair
    one.socket.sendall(joined(encode_payload(FrameType.FUNCTION, [b"x", bytes(100_000)]))[:-missing])
    one.close()
    with pytest.raises(EOFError):
        receive(other)


def test_a_reset_is_an_eof_error():
    with listening() as (listener, address), contextlib.closing(dial(address)) as sock:
        accepted = listener.accept()[0]
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        accepted.close()
        with pytest.raises(EOFError):
            receive(Connection(sock))


def test_a_closed_connection_is_an_eof_error(pair):
    _, other = pair
    other.close()
    assert other.fileno() == -1
    with pytest.raises(EOFError):
        other.receive()


def test_frames_before_the_end_are_received_before_it(pair):
    one, other = pair
    one.send_all(encode_frame(FrameType.BYE) * 3)
    one.close()
    assert [frame.type for frame in receive(other, 3)] == [FrameType.BYE] * 3
    with pytest.raises(EOFError):
        other.receive()


def test_a_body_above_the_limit_is_refused_when_its_header_has_come(pair):
    one, other = pair
    one.socket.sendall((MAX_BODY + 1).to_bytes(4, "little") + bytes([FrameType.TASKS]) + bytes(11))
    with pytest.raises(RemoteProtocolError, match="limit"):
        receive(other)


def test_segments_are_received_into_memory_from_the_allocator_given():
    asked = []

    def allocate(size, kind):
        asked.append((size, kind))
        return memory.allocate(size, kind)

    one, other = socket.socketpair()
    with one, other:
        connection = Connection(other, allocate=allocate)
        one.sendall(joined(encode_payload(FrameType.FUNCTION, [b"pickle", bytes(70_000), b"", b"x"])))
        (frame,) = receive(connection)
        assert list(map(len, payload_of(frame))) == [6, 70_000, 0, 1]
        assert asked == [(6, Kind.MEMORY), (70_000, Kind.BYTES), (1, Kind.BYTES)]


def test_an_allocator_may_refuse(pair):
    one, other = pair

    def refuse(size, kind):
        raise RemoteProtocolError("no segments here")

    connection = Connection(other.socket, MAX_HELLO, refuse)
    one.send_all(encode_payload(FrameType.FUNCTION, [b"x", b"y"]))
    with pytest.raises(RemoteProtocolError, match="no segments here"):
        receive(connection)


def test_one_connection_s_bulk_leaves_others_their_turn(pair):
    """However much is there, one call ends after a bounded number of reads."""
    one, other = pair
    size = 8 << 20
    with in_thread(one.send_all, encode_payload(FrameType.FUNCTION, [b"x", bytes(size)])):
        calls = 0
        other.socket.setblocking(True)
        while not (found := other.receive()):
            calls += 1
        assert [len(part) for part in payload_of(found[0])] == [1, size]
        assert calls > 1


# -- sending ------------------------------------------------------------------------------------------------


def narrow(connection):
    """As little room as the system allows, and no waiting for more."""
    connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    connection.socket.setblocking(False)


def test_what_the_socket_does_not_take_is_kept_and_flushed_in_order(pair):
    one, other = pair
    narrow(one)
    bodies = [bytes([number]) * (number * 997) for number in range(100)]
    for body in bodies:
        one.send(encode_frame(FrameType.FUNCTION, body=body))
    assert one.unsent
    assert not one.flush()
    other.socket.setblocking(False)
    found = []
    while len(found) < len(bodies):
        found += other.receive()
        one.flush()
    assert not one.unsent
    assert one.flush()
    assert [bytes(frame.body) for frame in found] == bodies


def test_a_segment_far_beyond_the_socket_s_room_arrives_whole(pair):
    one, other = pair
    narrow(one)
    big = os.urandom(1 << 20) * 8
    assert not one.send(encode_payload(FrameType.FUNCTION, [b"pickle", big, b"end"]))
    other.socket.setblocking(False)
    found = []
    while not found:
        one.flush()
        found = other.receive()
    assert [bytes(part) for part in payload_of(found[0])] == [b"pickle", big, b"end"]


def test_more_buffers_than_the_system_takes_at_once_are_sent(pair):
    one, other = pair
    segments = [bytes([number % 256]) for number in range(5000)]
    with in_thread(one.send_all, encode_payload(FrameType.FUNCTION, segments)):
        (frame,) = receive(other)
    assert b"".join(payload_of(frame)) == b"".join(segments)


def test_buffers_of_every_kind_and_of_no_length_are_sent(pair):
    one, other = pair
    wide = memoryview(bytearray(range(16))).cast("d")
    header = joined(encode_frame(FrameType.FUNCTION, body=bytes(16)))[:HEADER_SIZE]
    one.send_all([b"", header, wide, bytearray()])
    (frame,) = receive(other)
    assert bytes(frame.body) == bytes(range(16))


def test_what_is_sent_to_nobody_is_dropped_and_not_reported(pair):
    """The receiving side will see it: there it can be dealt with."""
    one, other = pair
    other.close()
    one.socket.setblocking(False)
    assert one.send(encode_frame(FrameType.BYE))
    assert one.send(encode_frame(FrameType.FUNCTION, body=bytes(100_000)))
    assert not one.unsent


def test_send_all_reports_a_lost_connection(pair):
    one, other = pair
    other.close()
    with pytest.raises(OSError):
        one.send_all(encode_frame(FrameType.BYE) * 100)


def test_send_all_to_a_peer_that_does_not_read_is_a_timeout(pair):
    one, _ = pair
    one.socket.settimeout(0.02)
    with pytest.raises(TimeoutError):
        one.send_all([bytes(1 << 24)])


def test_closing_drops_what_was_not_sent(pair):
    one, _ = pair
    narrow(one)
    one.send([bytes(1 << 20)])
    assert one.unsent
    one.close()
    assert not one.unsent
    one.close()


def test_hanging_up_ends_the_connection_for_everybody_who_has_it(pair):
    one, other = pair
    twin = one.socket.dup()
    with twin:
        hang_up(one.socket)
        with pytest.raises(EOFError):
            other.receive()
        assert twin.recv(1) == b""
        assert one.fileno() >= 0
    one.close()
    hang_up(one.socket)  # and is no error when there is nothing to hang up


# -- the only frame that is due -----------------------------------------------------------------------------


def soon():
    return time.monotonic() + DEADLINE


def test_receive_frame_waits_for_the_whole_frame(pair):
    one, other = pair

    def trickle():
        for byte in joined(encode_frame(FrameType.HELLO, body=b"{}")):
            one.socket.sendall(bytes([byte]))

    with in_thread(trickle):
        assert bytes(other.receive_frame(soon()).body) == b"{}"


@pytest.mark.parametrize("body", [b"", b"{}", bytes(10_000)])
def test_receive_frame_leaves_what_is_behind_it(pair, body):
    """A selector must still report that it is there."""
    one, other = pair
    one.socket.sendall(joined([*encode_frame(FrameType.HELLO, body=body), *encode_frame(FrameType.BYE)]))
    frame = other.receive_frame(soon())
    assert (frame.type, bytes(frame.body)) == (FrameType.HELLO, body)
    assert len(other.socket.recv(4096)) == HEADER_SIZE


def test_receive_frame_takes_no_segments(pair):
    one, other = pair
    one.socket.sendall(joined(encode_payload(FrameType.HELLO, [bytes(100_000)]))[:1000])
    with pytest.raises(RemoteProtocolError, match="HELLO frame with flags"):
        other.receive_frame(soon())


def test_receive_frame_gives_up_at_its_deadline(pair):
    one, other = pair
    one.socket.sendall(joined(encode_frame(FrameType.HELLO, body=b"{}"))[:-1])
    with pytest.raises(TimeoutError, match="no answer in time"):
        other.receive_frame(time.monotonic() + 0.02)
    with pytest.raises(TimeoutError):
        other.receive_frame(time.monotonic() - 5)


def test_receive_frame_at_the_end_is_an_eof_error(pair):
    one, other = pair
    one.close()
    with pytest.raises(EOFError):
        other.receive_frame(soon())


# -- listening ----------------------------------------------------------------------------------------------


def dial(address):
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=DEADLINE)


def test_port_0_means_a_free_one_which_is_told():
    wanted = Address(host="127.0.0.1", port=0)
    with listen(wanted) as one, listen(wanted) as other:
        found = [bound_address(sock, wanted) for sock in (one, other)]
        assert found[0].port != found[1].port
        assert all(address.host == "127.0.0.1" and address.port for address in found)
        dial(str(found[0])).close()


@pytest.mark.skipif(not socket.has_ipv6 or not os.path.exists("/proc/net/if_inet6"), reason="no IPv6 here")
def test_an_ipv6_address_is_listened_at_and_dialled():
    wanted = parse_address("[::1]:0", any_port=True)
    try:
        listener = listen(wanted)
    except OSError:
        pytest.skip("no IPv6 loopback here")
    with listener:
        address = bound_address(listener, wanted)
        assert str(address).startswith("[::1]:")
        socket.create_connection(("::1", address.port)).close()


def test_localhost_is_listened_at_in_both_families_at_one_port():
    wanted = Address(host="localhost", port=0)
    listeners = listen_everywhere(wanted)
    try:
        port = bound_address(listeners[0], wanted).port
        assert [sock.getsockname()[:2] for sock in listeners][0] == ("127.0.0.1", port)
        if len(listeners) == 1:
            with pytest.raises(OSError, match="cannot listen"):
                listen(Address(host="::1", port=0))  # no IPv6 here
        else:
            assert [sock.getsockname()[:2] for sock in listeners][1:] == [("::1", port)]
        for sock in listeners:
            socket.create_connection(sock.getsockname()[:2], DEADLINE).close()
    finally:
        for sock in listeners:
            sock.close()


def test_a_port_that_is_in_use_in_one_family_is_in_use(no_leaks):
    try:
        other = listen(Address(host="::1", port=0))
    except OSError:
        pytest.skip("no IPv6 loopback here")
    with other, pytest.raises(OSError, match="cannot listen on localhost:") as caught:
        listen_everywhere(Address(host="localhost", port=other.getsockname()[1]))
    assert caught.value.errno == errno.EADDRINUSE


def test_families_that_the_machine_does_not_have_are_left_out(monkeypatch, no_leaks):
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, 0)) for host in ("192.0.2.1", "127.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments, **options: found)
    (listener,) = listen_everywhere(Address(host="name", port=0))
    with listener:
        assert listener.getsockname()[0] == "127.0.0.1"
    del found[1]
    with pytest.raises(OSError, match="cannot listen on name:0") as caught:
        listen_everywhere(Address(host="name", port=0))
    assert caught.value.errno == errno.EADDRNOTAVAIL


def test_a_port_in_use_is_an_oserror_that_names_the_address():
    with listening() as (_, address), pytest.raises(OSError, match=f"cannot listen on {address}: ") as caught:
        listen(parse_address(address))
    assert caught.value.errno == errno.EADDRINUSE


def test_a_host_of_another_machine_is_an_oserror_that_names_the_address():
    with pytest.raises(OSError, match=r"cannot listen on 192\.0\.2\.1:0: ") as caught:
        listen(Address(host="192.0.2.1", port=0))
    assert caught.value.errno == errno.EADDRNOTAVAIL


def test_a_port_whose_last_connections_are_still_closing_can_be_listened_at_again():
    wanted = Address(host="127.0.0.1", port=0)
    with listen(wanted) as listener:
        address = bound_address(listener, wanted)
        client = dial(str(address))
        server = listener.accept()[0]
        server.close()  # first, so that the wait is on this side
        client.close()
    listen(address).close()


def test_a_unix_socket_may_be_used_by_its_owner_alone(tmp_path):
    address = Address(path=str(tmp_path / "socket"))
    with listen(address) as sock:
        assert stat.S_IMODE(os.stat(address.path).st_mode) == 0o600
        assert bound_address(sock, address) == address


@pytest.mark.parametrize(
    ("name", "number"), [("taken", errno.EADDRINUSE), ("no/such/folder", errno.ENOENT), ("x" * 200, None)]
)
def test_a_path_that_cannot_be_made_is_an_oserror_that_names_it(tmp_path, name, number):
    (tmp_path / "taken").write_text("not a socket, and somebody's own")
    address = Address(path=str(tmp_path / name))
    with pytest.raises(OSError, match="cannot listen on unix:") as caught:
        listen(address)
    assert caught.value.errno == number
    assert str(address) in str(caught.value)
    assert (tmp_path / "taken").read_text() == "not a socket, and somebody's own"


def test_a_socket_file_that_a_killed_server_left_is_taken_over_and_one_in_use_is_not(tmp_path):
    address = Address(path=str(tmp_path / "socket"))
    listen(address).close()
    assert os.path.exists(address.path)
    with listen(address):
        assert stat.S_IMODE(os.stat(address.path).st_mode) == 0o600
        with pytest.raises(OSError, match="cannot listen on unix:") as caught:
            listen(address)
        assert caught.value.errno == errno.EADDRINUSE


# -- dialling -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def pretending(*answers, key=KEY):
    """A server of the test's own, which does the handshake and gives these answers to the hello."""
    with listening() as (listener, address):

        def serve():
            with listener.accept()[0] as sock:
                sock.settimeout(DEADLINE)
                handshake = ServerHandshake({key: {Security.SEALED}}, bytes(NONCE_SIZE))
                while not handshake.done and not handshake.refused:
                    sock.sendall(handshake.receive_data(sock.recv(handshake.wanted)))
                if handshake.done:
                    sealed = SealedSocket(sock, handshake.secret, server_side=True)
                    sealed.recv(MAX_HELLO)
                    sealed.sendall(b"".join(map(bytes, answers)))

        with in_thread(serve):
            yield parse_address(address)


HELLO = {"role": "admin", "command": "ping"}


def test_connect_gives_the_connection_and_the_server_s_hello():
    with pretending(*encode_hello({"you": "are welcome"})) as address:
        connection, hello = connect(address, Key(KEY), HELLO, DEADLINE)
        connection.close()
    assert hello == {"you": "are welcome"}


def test_connect_with_another_key_is_an_authentication_error():
    with pretending() as address, pytest.raises(AuthenticationError):
        connect(address, Key(KEY + b"x"), HELLO, DEADLINE)


def test_connect_to_a_server_that_does_not_prove_the_key_is_an_authentication_error():
    """Whoever listens there must not get a hello, let alone a task."""
    heard = []
    with listening() as (listener, address):

        def serve():
            with listener.accept()[0] as sock:
                sock.settimeout(DEADLINE)
                sock.recv(48, socket.MSG_WAITALL)
                sock.sendall(b"FARM" + bytes([PROTOCOL_VERSION, PROTOCOL_VERSION, 4]) + bytes(41))
                sock.recv(32, socket.MSG_WAITALL)
                sock.sendall(b"\1" + bytes(32))
                with contextlib.suppress(ConnectionError):
                    heard.append(sock.recv(1))

        with in_thread(serve), pytest.raises(AuthenticationError, match="did not prove"):
            connect(parse_address(address), Key(KEY), HELLO, DEADLINE)
    assert heard in ([b""], [])


def test_connect_refused_for_a_passing_reason_is_an_oserror_with_that_reason():
    refusal = encode_hello({"code": "draining", "message": "come again"}, FrameType.REFUSED)
    with pretending(*refusal) as address, pytest.raises(ConnectionRefusedError, match="come again"):
        connect(address, Key(KEY), HELLO, DEADLINE)


def test_connect_refused_for_its_versions_lists_them():
    mismatches = {"python": ["3.10", "3.14"]}
    refusal = encode_hello({"code": "version", "message": "no", "mismatches": mismatches}, FrameType.REFUSED)
    with pretending(*refusal) as address, pytest.raises(VersionMismatchError) as caught:
        connect(address, Key(KEY), HELLO, DEADLINE)
    assert caught.value.mismatches == {"python": ("3.10", "3.14")}


@pytest.mark.parametrize(
    "mismatches", [5, "text", ["a"], [], {"python": 5}, {"python": ["1", "2", "3"]}, {"python": "x"}, None]
)
def test_connect_refused_in_a_malformed_way_is_still_one_of_the_errors_promised(mismatches):
    refusal = encode_hello({"code": "version", "message": 7, "mismatches": mismatches}, FrameType.REFUSED)
    with pretending(*refusal) as address, pytest.raises((VersionMismatchError, RemoteProtocolError)):
        connect(address, Key(KEY), HELLO, DEADLINE)


@pytest.mark.parametrize(
    "answer",
    [
        encode_frame(FrameType.BYE),
        encode_frame(FrameType.HELLO, body=b"no json"),
        encode_frame(FrameType.HELLO, body=b"[]"),
        encode_frame(FrameType.HELLO, body=b" " * (MAX_HELLO + 1)),
        [b"\xff" * 100],
    ],
    ids=["another frame", "no JSON", "no object", "too large", "garbage"],
)
def test_connect_to_a_server_that_answers_nonsense_is_a_protocol_error(answer):
    with pretending(*answer) as address, pytest.raises(RemoteProtocolError):
        connect(address, Key(KEY), HELLO, DEADLINE)


@pytest.mark.parametrize("answer", [b"", b"\0", joined(encode_hello({}))[:-1]], ids=["nothing", "a byte", "a part"])
def test_connect_to_a_server_that_hangs_up_is_an_eof_error(answer):
    with pretending(answer) as address, pytest.raises(EOFError):
        connect(address, Key(KEY), HELLO, DEADLINE)


@pytest.mark.parametrize(
    "said", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-OpenSSH\r\n", b"\0" * 100, b"F"], ids=repr
)
def test_connect_to_what_is_no_farm_server_is_a_protocol_error_or_the_end(said):
    with listening() as (listener, address):

        def serve():
            with listener.accept()[0] as sock:
                sock.settimeout(DEADLINE)
                sock.recv(48, socket.MSG_WAITALL)
                sock.sendall(said)

        with in_thread(serve), pytest.raises((RemoteProtocolError, EOFError)):
            connect(parse_address(address), Key(KEY), HELLO, DEADLINE)


def test_connect_to_a_silent_server_gives_up_in_time():
    with listening() as (_, address), pytest.raises(TimeoutError):
        connect(parse_address(address), Key(KEY), HELLO, 0.05)


def test_connect_where_nobody_listens_is_an_oserror():
    with pytest.raises(ConnectionRefusedError):
        connect(parse_address(free_address()), Key(KEY), HELLO, DEADLINE)


def test_connect_to_a_path_that_is_not_there_is_an_oserror(tmp_path):
    with pytest.raises(FileNotFoundError):
        connect(Address(path=str(tmp_path / "none")), Key(KEY), HELLO, DEADLINE)


def test_connect_can_be_given_up_from_another_thread():
    dialled = []
    with listening() as (_, address):

        def connected():
            with contextlib.suppress(OSError, IndexError):
                return dialled[0].getpeername()

        def give_up():
            wait_until(connected, "a connection")
            hang_up(dialled[0])

        with in_thread(give_up), pytest.raises((OSError, EOFError)):
            connect(parse_address(address), Key(KEY), HELLO, DEADLINE, dialled.append)


def test_a_connection_is_not_made_when_whoever_is_told_of_it_objects():
    def object_to(sock):
        raise ConnectionAbortedError("closing")

    with listening() as (_, address), pytest.raises(ConnectionAbortedError):
        connect(parse_address(address), Key(KEY), HELLO, DEADLINE, object_to)


def test_a_body_as_large_as_a_task_s_may_come_after_the_hello_and_not_as_one():
    with pretending(*encode_hello({})) as address:
        connection, _ = connect(address, Key(KEY), {"role": "lane"}, DEADLINE)
        with contextlib.closing(connection):
            assert connection.reader.max_body == MAX_BODY
            assert connection.socket._sock.gettimeout() is None


def test_a_server_that_says_nothing_large_elsewhere_cannot():
    """What it says on a control connection is bounded for its clients as what they say is for it."""
    promise = encode_frame(FrameType.PONG, flags=BULK, body=struct.pack("<IQ", 1, 1 << 40))
    with pretending(*encode_hello({}), *promise) as address:
        connection, _ = connect(address, Key(KEY), {"role": "control"}, DEADLINE)
        with contextlib.closing(connection):
            assert connection.reader.max_body == MAX_HELLO
            with pytest.raises(RemoteProtocolError, match="PONG frame with flags"):
                connection.receive()


class GivenUp(socket.socket):
    """A connection on which nothing is heard of the other machine, so that the system has given it up."""

    def recv_into(self, *args):
        raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))


@pytest.mark.parametrize("blocking", [True, False])
def test_a_connection_that_the_system_has_given_up_is_at_its_end(blocking):
    """Its error is a TimeoutError, too, and is not that of a deadline of ours."""
    with GivenUp() as sock:
        sock.setblocking(blocking)
        with pytest.raises(EOFError, match="timed out"):
            Connection(sock).receive()


def test_every_tcp_connection_sends_at_once_and_notices_a_lost_machine():
    with listening() as (listener, address), dial(address) as sock:
        listener.accept()[0].close()
        tune(sock)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


# -- waking -------------------------------------------------------------------------------------------------


def readable(waker):
    import select

    return bool(select.select([waker], [], [], 0)[0])


def test_a_waker_wakes_once_drained_sleeps_and_wakes_again():
    waker = Waker()
    try:
        assert not readable(waker)
        for _ in range(2):
            waker.wake()
            assert readable(waker)
            waker.drain()
            assert not readable(waker)
    finally:
        waker.close()


def test_a_waker_rung_without_end_neither_blocks_nor_stays_awake():
    waker = Waker()
    try:
        for _ in range(100_000):
            waker.wake()
        assert readable(waker)
        waker.drain()
        assert not readable(waker)
    finally:
        waker.close()


def test_a_closed_waker_may_be_rung_and_drained():
    waker = Waker()
    waker.close()
    waker.wake()
    waker.drain()


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_waker_wakes_at_a_signal():
    waker = Waker()
    handler = signal.signal(signal.SIGUSR1, lambda signum, frame: None)
    before = signal.set_wakeup_fd(waker.signal_fileno(), warn_on_full_buffer=False)
    try:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert wait_until(lambda: readable(waker), "awake")
    finally:
        signal.set_wakeup_fd(before)
        signal.signal(signal.SIGUSR1, handler)
        waker.close()


@pytest.mark.parametrize("segment", [b"x" * 200_000, bytearray(200_000)])
def test_a_connection_that_ends_within_a_segment_goes_without_a_word(segment):
    here, there = socket.socketpair()
    with here:
        connection = Connection(there)
        connection.itself = connection  # collected with all that it has, in any order
        here.sendall(joined(encode_payload(FrameType.FUNCTION, [b"pickle", segment]))[:100_000])
        connection.receive()
        assert connection.reader.mid_frame
        connection.close()
        del connection
        gc.collect()


def test_a_segment_is_collected_with_views_of_its_memory_without_a_word():
    # Such as one in the frames of a traceback, which refers to the error that refers to it.
    here, there = socket.socketpair()
    with here:
        connection = Connection(there)
        here.sendall(joined(encode_payload(FrameType.FUNCTION, [b"pickle", b"x" * 200_000]))[:100_000])
        connection.receive()
        held = [connection.reader.destination]
        held.append(held)
        connection.close()
        del connection, held
        gc.collect()


@pytest.mark.skipif(sys.platform != "linux", reason="dials a unix socket")
def test_who_dials_a_program_that_has_stopped_is_not_stopped_by_it(tmp_path):
    with socket.socket(socket.AF_UNIX) as listener, contextlib.ExitStack() as stack:
        listener.bind(str(tmp_path / "door"))
        listener.listen(1)
        with pytest.raises(OSError, match="unavailable"):
            for _ in range(10):
                stack.enter_context(dial_local(str(tmp_path / "door")))
