"""TLS over sockets: what goes in comes out, however it is cut, and nobody else's certificate is taken."""

import contextlib
import datetime as dt
import os
import select
import socket
import ssl
import threading
import time

import pytest
from certificates import Authority
from hypothesis import given, settings
from hypothesis import strategies as st
from server.processes import DEADLINE
from strategies import frames, joined

from farm_executor import AuthenticationError, RemoteProtocolError
from farm_executor.core.frames import FrameType, encode_frame
from farm_executor.core.handshake import NONCE_SIZE, ClientHandshake, Security
from farm_executor.wire.connection import Connection
from farm_executor.wire.dialling import _secure_client_side, secure_server_side
from farm_executor.wire.keygen import make_key_file_content
from farm_executor.wire.security import Key, read_key, server_keys, write_key
from farm_executor.wire.tls import PIECE, TlsSocket, explained, own_certificate, own_context, pinned

SECRET = b"of the dialogue in the clear ..."

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tls")


@pytest.fixture(scope="module")
def key(folder):
    write_key(folder / "key", make_key_file_content())
    return read_key(folder / "key")


def in_threads(*actions):
    """Run actions side by side; return what each returned or raised."""
    found = [None] * len(actions)

    def run(number, action):
        try:
            found[number] = action()
        except BaseException as error:
            found[number] = error

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(actions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
        assert not thread.is_alive()
    return found


def sockets(buffer=None):
    one, other = socket.socketpair()
    for sock in (one, other):
        sock.settimeout(DEADLINE)
        if buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
    return one, other


@contextlib.contextmanager
def tls_pair(key, buffer=None):
    """Two ends after the handshake, blocking with a deadline."""
    one, other = sockets(buffer)
    client = TlsSocket(one, key.tls.client, server_side=False)
    server = TlsSocket(other, key.tls.server, server_side=True)
    deadline = time.monotonic() + DEADLINE
    assert in_threads(lambda: client.do_handshake(deadline), lambda: server.do_handshake(deadline)) == [None, None]
    with contextlib.closing(client), contextlib.closing(server):
        yield client, server


def read_what_is_there(sock):
    """All that a non-blocking socket has, read as `Connection` does."""
    found = b""
    with contextlib.suppress(BlockingIOError):
        while data := sock.recv(3000):
            found += data
    return found


# -- what goes in comes out ---------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_bytes_arrive_as_sent_however_little_the_sockets_take_at_a_time(key, data):
    sizes = st.one_of(st.integers(0, 300), st.sampled_from([16384, 16385, 65536, PIECE, PIECE + 1, 3 * PIECE]))
    with tls_pair(key, buffer=data.draw(st.sampled_from([4096, None]))) as (one, other):
        one.setblocking(False)
        other.setblocking(False)
        sent = bytearray()
        came = bytearray()
        for size in data.draw(st.lists(sizes, max_size=6)):
            block = os.urandom(size)
            sent += block
            rest = memoryview(block)
            while rest:
                try:
                    rest = rest[one.send(rest) :]
                except BlockingIOError:
                    step = data.draw(st.sampled_from([1, 100, 100_000]))
                    with contextlib.suppress(BlockingIOError):
                        came += other.recv(step)
        while len(came) < len(sent):
            came += read_what_is_there(other)
        assert came == sent
        assert not other.pending


@settings(max_examples=30, deadline=None)
@given(sent=st.lists(frames, min_size=1, max_size=8), data=st.data())
def test_frames_arrive_over_tls_and_none_waits_where_no_selector_looks(key, sent, data):
    with tls_pair(key) as (one, other):
        sending, receiving = Connection(one), Connection(other)
        one.setblocking(False)
        for frame in sent:
            fields = {"flags": frame.flags, "count": frame.count, "seq": frame.seq, "body": frame.body}
            buffers = encode_frame(frame.type, **fields, segments=frame.segments)
            sending.send(buffers if data.draw(st.booleans()) else [joined(buffers)])
        found = []
        blocking = data.draw(st.booleans())
        other.setblocking(blocking)
        while len(found) < len(sent):
            sending.flush()
            assert select.select([receiving], [], [], DEADLINE)[0], "nothing to read, and frames missing"
            found += receiving.receive()
            assert not other.pending
        assert [(f.type, f.seq, bytes(f.body), tuple(map(bytes, f.segments))) for f in found] == [
            (f.type, f.seq, bytes(f.body), tuple(map(bytes, f.segments))) for f in sent
        ]
        assert not receiving.reader.mid_frame


def test_what_the_socket_does_not_take_is_unsent_and_is_flushed(key):
    with tls_pair(key) as (one, other):
        one.setblocking(False)
        connection = Connection(one)
        data = os.urandom(20 << 20)
        assert not connection.send([memoryview(data)[:7], memoryview(data)[7:]])
        assert connection.unsent

        def flush():
            while not connection.flush():
                select.select([], [connection], [], DEADLINE)

        def read():
            came = bytearray()
            while len(came) < len(data):
                came += other.recv(1 << 20)
            return bytes(came)

        came, _ = in_threads(read, flush)
        assert came == data
        assert not connection.unsent


def test_one_thread_may_receive_while_another_sends(key):
    data = os.urandom(24 << 20)

    def read(sock):
        came = bytearray()
        while len(came) < len(data):
            with contextlib.suppress(BlockingIOError):
                came += sock.recv(100_000)
        return bytes(came) == data

    def write(sock):
        view = memoryview(data)
        for begin in range(0, len(view), 70_001):
            sock.sendall(view[begin : begin + 70_001])

    with tls_pair(key) as (one, other):
        assert in_threads(lambda: write(one), lambda: write(other), lambda: read(one), lambda: read(other)) == [
            None,
            None,
            True,
            True,
        ]


def test_no_more_than_a_piece_is_encrypted_ahead_of_the_socket(key):
    with tls_pair(key) as (one, _):
        one.setblocking(False)
        with pytest.raises(BlockingIOError):
            while True:
                one.send(bytes(50 << 20))
        assert len(one._unsent) < PIECE + 10_000


def test_half_a_record_keeps_nobody_waiting_also_on_a_blocking_socket(key):
    with tls_pair(key) as (one, other):
        (raw_one, raw_other), (left, right) = (one._sock, other._sock), sockets()
        with left, right:
            one._sock = left
            one.sendall(b"a record of some bytes")
            record = right.recv(1000)
            raw_one.sendall(record[:-1])
            with pytest.raises(BlockingIOError):
                other.recv(100)
            assert Connection(other).unsent is False
            raw_one.sendall(record[-1:])
            assert other.recv(100) == b"a record of some bytes"
            one._sock = raw_one
    assert raw_other.fileno() == -1


# -- ends ---------------------------------------------------------------------------------------------------


def test_an_end_is_an_end_announced_or_not(key):
    with tls_pair(key) as (one, other):
        one.sendall(b"the last words")
        one.close()
        assert other.recv(100) == b"the last words"
        assert other.recv(100) == b""
        assert other.recv(100) == b""
    with tls_pair(key) as (one, other):
        with contextlib.suppress(ssl.SSLWantReadError):
            one._tls.unwrap()
        one._sock.sendall(one._outgoing.read())
        assert other.recv(100) == b""
        with pytest.raises(EOFError):
            Connection(other).receive()


@pytest.mark.parametrize("garbage", [b"\0" * 100, b"\x17\x03\x03\x00\x20" + b"x" * 32, b"GET / HTTP/1.1\r\n\r\n"])
def test_bytes_that_nobody_has_encrypted_end_the_connection(key, garbage):
    with tls_pair(key) as (one, other):
        one._sock.sendall(garbage)
        with pytest.raises(EOFError):
            Connection(other).receive()
        assert other.recv(100) == b""


def test_a_byte_changed_on_its_way_ends_the_connection_and_gives_nothing(key):
    with tls_pair(key) as (one, other):
        left, right = sockets()
        with left, right:
            raw, one._sock = one._sock, left
            one.sendall(b"".join(encode_frame(FrameType.BYE)))
            record = bytearray(right.recv(1000))
            record[-3] ^= 1
            raw.sendall(record)
            with pytest.raises(EOFError):
                Connection(other).receive()
            one._sock = raw


def test_a_socket_that_is_over_its_time_says_so(key):
    with tls_pair(key) as (one, _):
        one.settimeout(0.01)
        with pytest.raises(TimeoutError):
            one.recv(1)
        assert one.fileno() == one._sock.fileno()


# -- handshakes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hangs_up", [True, False])
def test_a_peer_that_says_nothing_is_given_up_in_time(key, hangs_up):
    one, other = sockets()
    with one, other:
        if hangs_up:
            other.shutdown(socket.SHUT_WR)
        for context, server_side in ((key.tls.client, False), (key.tls.server, True)):
            with pytest.raises(EOFError if hangs_up else TimeoutError):
                TlsSocket(one, context, server_side=server_side).do_handshake(time.monotonic() + 0.05)


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\n\r\n", b"\0" * 500, b"\x16\x03\x01\x00\x05\x01\x00\x00\x01x"])
def test_a_peer_that_speaks_something_else_is_told_off(key, said):
    one, other = sockets()
    with one, other:
        other.sendall(said)
        with pytest.raises(RemoteProtocolError, match="does not speak TLS"):
            TlsSocket(one, key.tls.server, server_side=True).do_handshake(time.monotonic() + DEADLINE)


def test_older_tls_is_not_spoken(key):
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    one, other = sockets()
    with one, other:
        client, server = (
            TlsSocket(one, old, server_side=False),
            TlsSocket(other, key.tls.server, server_side=True),
        )
        deadline = time.monotonic() + DEADLINE
        found = in_threads(lambda: client.do_handshake(deadline), lambda: server.do_handshake(deadline))
    assert [type(error) for error in found] == [RemoteProtocolError, RemoteProtocolError]


def secured(client_key, server_key, host="localhost", secrets=(SECRET, SECRET)):
    """What comes of both sides' securing a connection: the two sockets, or errors."""
    one, other = sockets()
    with one, other:
        deadline = time.monotonic() + DEADLINE

        def server():
            try:
                return secure_server_side(other, server_key, secrets[1], deadline)
            except BaseException:
                other.close()
                raise

        def client():
            try:
                return _secure_client_side(one, client_key, secrets[0], host, deadline)
            except BaseException:
                one.close()
                raise

        return in_threads(client, server)


def test_who_holds_one_key_file_gets_through(key):
    assert [type(found) for found in secured(key, key)] == [TlsSocket, TlsSocket]


def test_another_certificate_is_not_trusted_on_either_side(key, folder):
    write_key(folder / "other", make_key_file_content())
    other = Key(key.secret, read_key(folder / "other").tls)
    for found in (secured(key, other), secured(other, key)):
        assert isinstance(found[0], AuthenticationError), found
        assert "not trusted" in str(found[0])
        assert isinstance(found[1], AuthenticationError), found


def test_a_client_without_the_certificate_is_told_and_refused(key, folder):
    open_to_all = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    open_to_all.check_hostname, open_to_all.verify_mode = False, ssl.CERT_NONE
    client, server = secured(Key(key.secret, own_context(open_to_all)), key)
    assert isinstance(client, AuthenticationError)
    assert "does not trust our certificate" in str(client)
    assert isinstance(server, AuthenticationError)


def test_another_secret_with_the_right_certificate_is_refused_within(key):
    client, server = secured(Key(b"another secret altogether", key.tls), key)
    assert isinstance(client, AuthenticationError)
    assert "refused the key" in str(client)
    assert isinstance(server, AuthenticationError)


@pytest.fixture(scope="module")
def authority(folder):
    return Authority(folder, "ca")


def trusting(authority, certificate=None, check_hostname=True):
    context = ssl.create_default_context(cafile=authority.path)
    context.verify_flags &= ~getattr(ssl, "VERIFY_X509_STRICT", 0)
    context.check_hostname = check_hostname
    if certificate:
        context.load_cert_chain(certificate)
    return own_context(context)


def test_a_context_and_a_certificate_of_the_users_own(key, authority):
    server = Key(key.secret, own_certificate(authority.issue("server"), None, None))
    client = Key(key.secret, trusting(authority))
    assert [type(found) for found in secured(client, server)] == [TlsSocket, TlsSocket]
    assert [type(found) for found in secured(client, server, "127.0.0.1")] == [TlsSocket, TlsSocket]
    refused, _ = secured(client, server, "elsewhere.example")
    assert isinstance(refused, AuthenticationError)
    assert "elsewhere.example" in str(refused)


def test_clients_may_be_asked_for_certificates_too(key, authority, folder):
    server = Key(key.secret, own_certificate(authority.issue("server"), None, authority.path))
    with_one = Key(key.secret, trusting(authority, authority.issue("client")))
    assert [type(found) for found in secured(with_one, server)] == [TlsSocket, TlsSocket]
    stranger = Authority(folder, "another ca")
    for certificate in (None, stranger.issue("client")):
        client, _ = secured(Key(key.secret, trusting(authority, certificate)), server)
        assert isinstance(client, AuthenticationError), client


def test_an_expired_certificate_is_refused_and_said_to_be(key, authority):
    server = Key(key.secret, own_certificate(authority.issue("old", expired=True), None, None))
    client, _ = secured(Key(key.secret, trusting(authority)), server)
    assert isinstance(client, AuthenticationError)
    assert "expired" in str(client)


def test_an_expired_certificate_is_said_when_the_server_starts(key, authority, caplog):
    old, new = authority.issue("old", expired=True), authority.issue("new")
    server_keys(key.secret, certificate=new)
    assert not caplog.messages
    server_keys(key.secret, certificate=old)
    (said,) = caplog.messages
    yesterday = dt.datetime.now(dt.timezone.utc) - dt.timedelta(days=1)
    assert said.startswith(f"certificate expired file={old} since={yesterday:%Y-%m-%d}")


# -- somebody in between ------------------------------------------------------------------------------------


@pytest.mark.parametrize("has", ["a certificate that the client trusts", "the server's own"])
def test_who_terminates_tls_cannot_relay_the_proofs(key, authority, has):
    """He relays the dialogue between two TLS connections of his own; the proofs cover which one they are in."""
    certificate = authority.issue("server")
    server_key = Key(key.secret, own_certificate(certificate, None, None))
    client_key = Key(key.secret, trusting(authority))
    shown = certificate if has == "the server's own" else authority.issue("his own")
    his = Key(b"he knows no secret", own_certificate(shown, None, None))
    blind = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    blind.check_hostname, blind.verify_mode = False, ssl.CERT_NONE
    (client_end, to_client), (to_server, server_end) = sockets(), sockets()
    with client_end, to_client, to_server, server_end:
        deadline = time.monotonic() + DEADLINE

        def relay():
            near = TlsSocket(to_client, his.tls.server, server_side=True)
            far = TlsSocket(to_server, blind, server_side=False)
            near.do_handshake(deadline)
            far.do_handshake(deadline)
            try:
                far.sendall(near.recv(48))
                near.sendall(far.recv(48))
                far.sendall(near.recv(32))
                answer = far.recv(33)
                near.sendall(answer)
                return answer
            finally:
                near.close()
                far.close()

        client, server, answer = in_threads(
            lambda: _secure_client_side(client_end, client_key, SECRET, "localhost", deadline),
            lambda: secure_server_side(server_end, server_key, SECRET, deadline),
            relay,
        )
    assert isinstance(client, AuthenticationError)
    assert isinstance(server, AuthenticationError)
    assert answer == bytes(33)


def test_the_dialogue_within_tls_is_of_the_same_ends_as_the_one_before(key):
    client, server = secured(key, key, secrets=(SECRET, SECRET[::-1]))
    assert isinstance(client, AuthenticationError)
    assert isinstance(server, AuthenticationError)


def test_what_binds_is_of_one_connection_alone_and_of_tls_1_3(key):
    found = set()
    for _ in range(2):
        with tls_pair(key) as (one, other):
            assert one.binding() == other.binding()
            assert len(one.binding()) >= 32
            found.add(one.binding())
    assert len(found) == 2


def test_proofs_made_in_the_clear_are_of_no_use_within_tls(key, authority):
    """He lets a client, who has just dialled, answer what the server asks within TLS."""
    server_key = Key(key.secret, own_certificate(authority.issue("server"), None, None))
    blind = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    blind.check_hostname, blind.verify_mode = False, ssl.CERT_NONE
    to_server, server_end = sockets()
    with to_server, server_end:
        deadline = time.monotonic() + DEADLINE
        victim = ClientHandshake(key.secret, os.urandom(NONCE_SIZE), Security.TLS)

        def attack():
            far = TlsSocket(to_server, blind, server_side=False)
            far.do_handshake(deadline)
            said = victim.start()
            far.sendall(said[:6] + bytes([Security.WITHIN_TLS]) + said[7:])
            asked = far.recv(48)
            far.sendall(victim.receive_data(asked[:6] + bytes([Security.TLS]) + asked[7:]))
            return far.recv(33)

        server, answer = in_threads(lambda: secure_server_side(server_end, server_key, SECRET, deadline), attack)
    assert isinstance(server, AuthenticationError)
    assert answer == bytes(33)


# -- files --------------------------------------------------------------------------------------------------


def test_what_is_no_certificate_with_its_key_is_named(folder, authority):
    (folder / "empty").write_bytes(b"")
    (folder / "bad").write_bytes(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    one, other = authority.issue("one"), authority.issue("other")
    with pytest.raises(AuthenticationError, match="there is no certificate in .*empty"):
        own_certificate(folder / "empty", None, None)
    with pytest.raises(AuthenticationError, match="cannot read the certificate in .*missing: No such file"):
        own_certificate(folder / "missing", None, None)
    with pytest.raises(AuthenticationError, match="no certificate with its private key in .*bad"):
        own_certificate(folder / "bad", None, None)
    with pytest.raises(AuthenticationError, match="private key in .*one of ca.pem and .*other of ca.pem"):
        own_certificate(one, other, None)
    with pytest.raises(AuthenticationError, match="no certificate with its private key in .*ca.pem"):
        own_certificate(authority.path, None, None)
    with pytest.raises(AuthenticationError, match="cannot read certificates in .*empty"):
        own_certificate(one, None, folder / "empty")


def test_an_encrypted_private_key_is_refused_and_nobody_is_asked_for_the_password(authority):
    with pytest.raises(AuthenticationError, match="must not be encrypted"):
        own_certificate(authority.issue("locked", password=b"secret"), None, None)
    with pytest.raises(AuthenticationError, match="must not be encrypted"):
        path = authority.issue("locked", password=b"secret")
        pinned(path.read_bytes(), path)


def test_what_is_no_context_is_refused():
    for wrong in ("context", 5, ssl):
        with pytest.raises(TypeError, match="must be an ssl.SSLContext"):
            own_context(wrong)


def test_errors_that_are_not_of_tls_stay_as_they_are():
    error = ConnectionResetError("gone")
    assert explained(error) is error
    assert isinstance(explained(ssl.SSLEOFError(8, "EOF")), EOFError)
