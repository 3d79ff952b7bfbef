"""Dial a server: connect, prove the key to each other, exchange hellos. TLS begins here at either end.

It must not know what the hellos say, nor decide when to dial; encryption itself is in `tls`.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from farm_executor.core.frames import MAX_HELLO, FrameType
from farm_executor.core.handshake import (
    NONCE_SIZE,
    ClientHandshake,
    Role,
    Security,
    ServerHandshake,
    binding_within,
    decode_hello,
    encode_hello,
)
from farm_executor.core.messages import Refused, from_json
from farm_executor.errors import AuthenticationError, RemoteProtocolError, VersionMismatchError
from farm_executor.wire.address import Address
from farm_executor.wire.connection import Connection, no_segment
from farm_executor.wire.race import Candidate, candidates, race
from farm_executor.wire.sealed import SealedSocket
from farm_executor.wire.security import Key
from farm_executor.wire.sockets import HEARTBEAT_SECONDS, AnySocket, Socket, ends, is_tcp, tune
from farm_executor.wire.trace import trace_of
from farm_executor.wire.trusted import check_peer, check_socket

if TYPE_CHECKING:
    from farm_executor.wire.tls import TlsSocket

__all__ = [
    "HELLO_RECORDS",
    "WAITS",
    "RefusedError",
    "begin_tls",
    "connect",
    "handshake_within",
    "offer",
    "secure_server_side",
]

WAITS = b"\x01"  # from a server that has dialled: it has read the answer to its hello
HELLO_RECORDS = 1  # in each direction of a lane; the worker's records follow


class RefusedError(ConnectionRefusedError):
    """The server has refused the connection, for a reason that may pass.

    Attributes:
        code: The reason; see the protocol.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def connect(
    address: Address,
    key: Key,
    hello: dict[str, Any],
    timeout: float,
    dialling: Callable[[Socket], None] = lambda sock: None,
    *,
    answered: Callable[[], None] = lambda: None,
    heartbeat: float = HEARTBEAT_SECONDS,
    via: Candidate | None = None,
) -> tuple[Connection, dict[str, Any]]:
    """Dial a server, prove the key to each other and exchange hellos.

    Args:
        address: The server.
        key: The key shared with it. Over TCP, the rest is encrypted if the key has certificates, else sealed.
        hello: The hello to send; the server's answer decides what the connection is good for.
        timeout: Seconds for all steps together.
        dialling: See `_dial`.
        answered: Called when the server has answered, whether with a hello or a refusal. An error raised before
            that may have been forged by anybody who can tamper with the traffic.
        heartbeat: See `tune`.
        via: The one of the host's addresses to dial; None for the first that answers.

    Returns:
        The connection, blocking, and the server's hello.

    Raises:
        RefusedError: The server refused for a passing reason.
        OSError: There was no connection, or no answer in time.
        EOFError: The server ended the connection.
        AuthenticationError: The keys differ, a certificate is not trusted, or only one of the two speaks TLS.
        VersionMismatchError: The server refused our versions.
        RemoteProtocolError: The peer is not a farm server.
    """
    connection, answer, _ = _connect(address, key, hello, timeout, dialling, answered, heartbeat, via)
    return connection, answer


def offer(address: Address, key: Key, hello: dict[str, Any], timeout: float) -> Socket:
    """As a server, dial a client that waits for servers, and prove the key to each other.

    The hellos are sealed whatever the key; all that the client says afterwards begins with a handshake of its own,
    as on a connection that it has dialled itself.

    Returns:
        The connection, blocking, on which nothing but that is still to come.

    Raises:
        Exception: See `connect`.
    """
    sock = _connect(address, key, hello, timeout, lambda sock: None, lambda: None, HEARTBEAT_SECONDS, None)[2]
    try:
        # Only now may the client begin: what it says must not be read along with its answer.
        sock.sendall(WAITS)
    except BaseException:
        sock.close()
        raise
    return sock


def _connect(
    address: Address,
    key: Key,
    hello: dict[str, Any],
    timeout: float,
    dialling: Callable[[Socket], None],
    answered: Callable[[], None],
    heartbeat: float,
    via: Candidate | None,
) -> tuple[Connection, dict[str, Any], Socket]:
    """See `connect`; the socket is the one below the connection."""
    deadline = time.monotonic() + timeout
    lane, back = hello.get("role") == Role.LANE, hello.get("role") == Role.BACK
    raw = _dial(address, deadline, dialling, heartbeat, via)
    sock: AnySocket = raw
    # A server that dials does so before it is known how it will be spoken to.
    if back:
        security = Security.SEALED
    elif not is_tcp(raw):
        security = Security.PLAIN
    elif key.tls is not None and key.tls.client is not None:
        security = Security.TLS_LANE if lane else Security.TLS
    else:
        security = Security.SEALED
    try:
        handshake = ClientHandshake(key.secret, os.urandom(NONCE_SIZE), security)
        try:
            _prove(sock, handshake, deadline)
        except AuthenticationError as error:
            if not str(error).startswith("the server refused the key"):
                raise
            raise AuthenticationError(
                f"{error} than {key.origin}. Copy the key file from the server's machine, mode 600, and name it "
                "with key_file= or --key-file"
            ) from None
        if security is Security.TLS:
            sock = _secure_client_side(raw, key, handshake.secret, address.host, deadline)
        elif security is not Security.PLAIN:
            sock = SealedSocket(raw, handshake.secret, server_side=False)
        connection = Connection(sock, MAX_HELLO, no_segment)
        trace = trace_of(f"server={address} lane={hello.get('lane')}" if lane else f"server={address}")
        connection.trace = trace
        connection.send_all(encode_hello(hello))
        frame = connection.receive_frame(deadline)
        answered()
        if frame.type is FrameType.REFUSED:
            raise _refusal(decode_hello(frame))
        if frame.type is not FrameType.HELLO:
            raise RemoteProtocolError(f"{frame.type.name} frame instead of a hello")
        if (lane or back) and isinstance(sock, SealedSocket) and not sock.is_after(HELLO_RECORDS):
            raise RemoteProtocolError("more or less than one record for the hello")
        # A lane's hello goes in a sealed record before TLS begins, which is then set up on the raw socket.
        if security is Security.TLS_LANE:
            sock = _secure_client_side(raw, key, handshake.secret, address.host, deadline)
        if lane:  # from now on, large frames and segments are allowed
            connection = Connection(sock)
            connection.trace = trace
        sock.settimeout(None)
        connection.count_anew()
        connection.peer = (raw.family, raw.getpeername()) if is_tcp(raw) else None
        connection.ends = ends(raw)
        return connection, decode_hello(frame), raw
    except BaseException:
        sock.close()
        raise


def _dial(
    address: Address,
    deadline: float,
    dialling: Callable[[Socket], None],
    heartbeat: float,
    via: Candidate | None,
) -> Socket:
    """Connect a blocking socket.

    Args:
        address: Where to connect.
        deadline: Monotonic time.
        dialling: Called with each socket before it is connected, so that another thread can shut it down.
        heartbeat: See `tune`.
        via: The one of the host's addresses to use; None for the first that answers.

    Raises:
        OSError: Nothing listens there, or there was no answer in time.
        AuthenticationError: The unix socket belongs to another user.
    """
    take = getattr(address.grant, "take", None)
    if take is not None:  # the server has dialled us: it waits at the other end of a connection that is there
        taken: Socket = take(deadline)
        try:
            dialling(taken)
            taken.settimeout(max(deadline - time.monotonic(), 0.001))
            tune(taken, heartbeat)
        except BaseException:
            taken.close()
            raise
        return taken
    if not address.path:
        sock = race([via] if via else candidates(address.host, address.port), deadline, dialling)
        sock.settimeout(max(deadline - time.monotonic(), 0.001))
        tune(sock, heartbeat)
        return sock
    check_socket(address.path)
    sock = socket.socket(socket.AF_UNIX)
    try:
        dialling(sock)
        sock.settimeout(max(deadline - time.monotonic(), 0.001))
        sock.connect(address.path)
        if sys.platform == "linux" and address.path.startswith("\0"):
            size = struct.calcsize("3i")
            _, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
            check_peer(uid, str(address))
    except BaseException:
        sock.close()
        raise
    return sock


def _prove(sock: AnySocket, handshake: ClientHandshake | ServerHandshake, deadline: float) -> None:
    """Run one side of `core.handshake` over a blocking socket.

    A failure to send is ignored: the peer may have said why it hung up, and only reading tells.
    """
    if isinstance(handshake, ClientHandshake):
        with contextlib.suppress(ConnectionError):
            sock.sendall(handshake.start())
    while not handshake.done:
        sock.settimeout(max(deadline - time.monotonic(), 0.001))
        try:
            data = sock.recv(handshake.wanted)
        except BlockingIOError:  # less than a TLS record
            continue
        if not data:
            raise EOFError("the other end hung up during the handshake")
        answer = handshake.receive_data(data)
        with contextlib.suppress(ConnectionError):
            sock.sendall(answer)
        if isinstance(handshake, ServerHandshake) and handshake.refused:
            raise AuthenticationError(handshake.refused)


def _secure_client_side(sock: Socket, key: Key, secret: bytes, host: str, deadline: float) -> TlsSocket:
    from farm_executor.wire.tls import TlsSocket, explained

    assert key.tls is not None
    assert key.tls.client is not None
    secured = TlsSocket(sock, key.tls.client, server_side=False, host=host)
    secured.do_handshake(deadline)
    binding = binding_within(secret, secured.binding())
    try:
        _prove(secured, ClientHandshake(key.secret, os.urandom(NONCE_SIZE), Security.WITHIN_TLS, binding), deadline)
    except OSError as error:  # only now is a client told that its certificate is not trusted
        raise explained(error) from None
    secured.count_anew()
    return secured


def _refusal(data: dict[str, Any]) -> Exception:
    refused = from_json(Refused, data)
    if refused.code == "version":
        return VersionMismatchError(refused.message, refused.mismatches or {})
    if refused.code == "read-only":  # waiting does not mend that
        return AuthenticationError(f"{refused.message}; name the farm's own key file")
    return RefusedError(refused.code, refused.message)


def secure_server_side(sock: Socket, key: Key, secret: bytes, deadline: float) -> TlsSocket:
    """Begin TLS on a blocking socket whose client has proven the key in the clear; verify a second proof within.

    Args:
        sock: The connection.
        key: The key that the client has named, with a certificate for servers.
        secret: The secret that both ends have from the handshake in the clear.
        deadline: Monotonic time for all steps together.

    Returns:
        The connection, blocking and without a timeout, in place of the socket.

    Raises:
        AuthenticationError: Either end does not trust a certificate, or the client has not proven the key.
        EOFError: The client hung up.
        RemoteProtocolError: The client does not speak TLS 1.3, or not this protocol within it.
        OSError: The connection is lost, or the deadline has passed.
    """
    from farm_executor.wire.tls import explained

    secured = begin_tls(sock, key)
    secured.do_handshake(deadline)
    try:
        _prove(secured, handshake_within(key, secret, secured), deadline)
    except OSError as error:
        raise explained(error) from None
    secured.settimeout(None)
    secured.count_anew()
    return secured


def begin_tls(sock: Socket, key: Key) -> TlsSocket:
    """Wrap a server's connection in TLS, before the TLS handshake."""
    from farm_executor.wire.tls import TlsSocket

    assert key.tls is not None
    assert key.tls.server is not None
    return TlsSocket(sock, key.tls.server, server_side=True)


def handshake_within(key: Key, secret: bytes, secured: TlsSocket) -> ServerHandshake:
    """Return the server's side of the handshake within TLS; ``secret`` is from the handshake before TLS."""
    binding = binding_within(secret, secured.binding())
    return ServerHandshake({key.secret: {Security.WITHIN_TLS}}, os.urandom(NONCE_SIZE), binding)
