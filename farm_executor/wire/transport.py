"""Sockets: dialling, listening, proving keys, and frames over a connection.

It must not know what the frames mean, nor decide when to dial; what encryption is, is `tls`'s.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeAlias

from farm_executor.core.frames import MAX_BODY, MAX_HELLO, Buffer, Frame, FrameReader, FrameType
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
from farm_executor.core.liveness import MAX_MISSED
from farm_executor.core.messages import Refused, from_json
from farm_executor.data import payload
from farm_executor.errors import AuthenticationError, RemoteProtocolError, VersionMismatchError
from farm_executor.wire.address import Address
from farm_executor.wire.layered import LayeredSocket
from farm_executor.wire.race import Candidate, candidates, race
from farm_executor.wire.sealed import SealedSocket
from farm_executor.wire.security import Key
from farm_executor.wire.trusted import check_socket

if TYPE_CHECKING:
    from farm_executor.wire.tls import TlsSocket

__all__ = [
    "HELLO_RECORDS",
    "AnySocket",
    "Channel",
    "Connection",
    "RefusedError",
    "Socket",
    "UnknownHostError",
    "Waker",
    "bound_address",
    "connect",
    "listen",
    "listen_everywhere",
    "secure_server_side",
]

Socket = socket.socket
AnySocket: TypeAlias = "Socket | SealedSocket | TlsSocket"
UnknownHostError = socket.gaierror

HELLO_RECORDS = 1  # in each direction of a lane; those of its worker come after them

HEARTBEAT_SECONDS = 5.0  # between signs of life, unless a client wants others

_CHUNK = 64 * 1024
_BACKLOG = 1024
FREE_PORT_ATTEMPTS = 10  # a port that is free at one address may be in use at the next
_HAS_SENDMSG = hasattr(socket.socket, "sendmsg")  # not on Windows
_VECTOR = 64  # buffers in one sendmsg; the system's limit is 1024
_BULK_READS = 32  # reads of one segment before other connections get their turn


def listen(address: Address) -> Socket:
    """Open a listening socket; if the host's name stands for several addresses, at the first of them.

    Args:
        address: Where; port 0 means a free one. A unix socket's file may be used by the user alone.

    Raises:
        OSError: The port is in use, the host is not of this machine, or the path cannot be made.
    """
    return _listen(address, None if address.path else _places(address)[0])


def listen_everywhere(address: Address) -> list[Socket]:
    """As `listen`, at each address that the host's name stands for, such as 127.0.0.1 and ::1 for localhost.

    All have the same port. Addresses that this machine does not have at the moment, as without IPv6, are left out.

    Raises:
        OSError: There is no such address, or the port is in use at one.
    """
    if address.path:
        return [listen(address)]
    attempts = FREE_PORT_ATTEMPTS if address.port == 0 else 1
    while True:
        attempts -= 1
        try:
            return _listen_at(address, _places(address))
        except OSError as error:
            if attempts == 0 or error.errno != errno.EADDRINUSE:
                raise


def _listen_at(address: Address, places: list[Any]) -> list[Socket]:
    found: list[Socket] = []
    missing: OSError | None = None
    try:
        for family, kind, protocol, name, (host, port, *scope) in places:
            port = found[0].getsockname()[1] if found else port
            try:
                found.append(_listen(address, (family, kind, protocol, name, (host, port, *scope))))
            except OSError as error:
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
                missing = error
        if missing is not None and not found:
            raise missing
    except BaseException:
        for sock in found:
            sock.close()
        raise
    return found


def _places(address: Address) -> list[Any]:
    # localhost is both by RFC 6761, though /etc/hosts may know one alone, or another than clients' resolvers do.
    hosts = ("127.0.0.1", "::1") if address.host == "localhost" else (address.host,)
    found: list[Any] = []
    for host in hosts:
        with contextlib.suppress(socket.gaierror) if host != hosts[0] else contextlib.nullcontext():
            found += socket.getaddrinfo(host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return list(dict.fromkeys(found))  # a name may have the same address twice in /etc/hosts


def _listen(address: Address, place: Any) -> Socket:
    """Open a listening socket at one of the address's places, as `getaddrinfo` has them; at None for its path."""
    family, kind, protocol, _, where = place or (socket.AF_UNIX, socket.SOCK_STREAM, 0, "", address.path)
    sock = None
    try:
        sock = socket.socket(family, kind, protocol)
        if address.path:
            _bind_path(sock, where)
        else:
            if sys.platform != "win32":  # there it would let two servers share a port
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(where)
        sock.listen(_BACKLOG)
    except OSError as error:
        if sock is not None:
            sock.close()
        raise OSError(error.errno, f"cannot listen on {address}: {error.strerror or error}") from None
    return sock


def _bind_path(sock: Socket, path: str) -> None:
    """Bind, also over a file that a server left behind when it was killed, and let nobody else use it."""
    try:
        sock.bind(path)
    except OSError as error:
        # A file that is no socket refuses connections, too; it is not ours to remove.
        if error.errno != errno.EADDRINUSE or not stat.S_ISSOCK(os.stat(path).st_mode):
            raise
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(path) != errno.ECONNREFUSED:
                raise
        os.unlink(path)
        sock.bind(path)
    if not path.startswith("\0"):  # as Linux has them without a file
        os.chmod(path, 0o600)


def send_datagram(path: str, data: bytes) -> None:
    """Send it to a unix socket, if that takes it at once.

    Raises:
        OSError: Nobody listens there, or it does not fit.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.sendto(data, path)


def bound_address(sock: Socket, address: Address) -> Address:
    """The address with the port that the system chose, if it was 0."""
    return address if address.path else Address(host=address.host, port=sock.getsockname()[1])


def resolve(address: Address) -> list[Address]:
    """One address for each machine that the host's name stands for, in a fixed order.

    Raises:
        OSError: There is no such name, or nobody can say.
    """
    found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    family = found[0][0]  # the system's choice: a machine may have an address of each kind
    return sorted({Address(str(where[0]), address.port) for kind, *_, where in found if kind == family}, key=str)


def _dial(
    address: Address,
    deadline: float,
    dialling: Callable[[Socket], None],
    heartbeat: float,
    via: Candidate | None,
) -> Socket:
    """Connect a blocking socket.

    Args:
        address: Where to.
        deadline: On the monotonic clock.
        dialling: Told each socket before it is connected, so that another thread can shut it down.
        heartbeat: See `tune`.
        via: The one of the host's addresses to use; None for the first that answers.

    Raises:
        OSError: Nobody listens there, or nobody answered in time.
        AuthenticationError: Another user has made the unix socket.
    """
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
    except BaseException:
        sock.close()
        raise
    return sock


_RTO_MAX_MS = 44  # TCP_RTO_MAX_MS, of Linux 6.15 and later; no Python has a name for it yet
_SLOWEST_RETRY_MS = 1000


def is_tcp(sock: Socket) -> bool:
    """Whether there is a network between the two ends, which may break while both live."""
    return sock.family != getattr(socket, "AF_UNIX", None)


def tune(sock: Socket, heartbeat: float = HEARTBEAT_SECONDS) -> None:
    """Set the options that every connection has.

    Over TCP the system asks a silent peer after that many seconds, and again, and gives up with the third one. What
    is on its way is sent again each second at least, so that a network that comes back is noticed at once.

    Args:
        sock: Connected.
        heartbeat: Seconds.
    """
    if not is_tcp(sock):
        return
    seconds = max(1, round(heartbeat))
    idle = getattr(socket, "TCP_KEEPIDLE", getattr(socket, "TCP_KEEPALIVE", None))  # so called on macOS
    options = [
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, idle, seconds),
        (socket.IPPROTO_TCP, getattr(socket, "TCP_KEEPINTVL", None), seconds),
        (socket.IPPROTO_TCP, getattr(socket, "TCP_KEEPCNT", None), MAX_MISSED),
        (socket.IPPROTO_TCP, _RTO_MAX_MS if sys.platform == "linux" else None, _SLOWEST_RETRY_MS),
    ]
    for level, option, value in options:
        if option is not None:
            with contextlib.suppress(OSError):  # an older system; or the peer is gone, which reading will tell
                sock.setsockopt(level, option, value)


class RefusedError(ConnectionRefusedError):
    """The server itself has refused, for a reason that may pass.

    Attributes:
        code: Which; see the protocol.
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
        key: The one shared with it. Over TCP, what follows is encrypted if it has certificates, or else sealed.
        hello: What to say; the server's answer decides what the connection is good for.
        timeout: Seconds for all of it.
        dialling: See `_dial`.
        answered: Called when the server has, whether with a hello or a refusal. What is raised before may be the
            word of anybody who is able to change what travels.
        heartbeat: See `tune`.
        via: The one of the host's addresses to dial; None for the first that answers.

    Returns:
        The connection, blocking, and the server's hello.

    Raises:
        RefusedError: The server refused for a passing reason.
        OSError: No connection, or no answer in time.
        EOFError: The server ended the connection.
        AuthenticationError: The keys differ, a certificate is not trusted, or only one of the two speaks TLS.
        VersionMismatchError: The server refused our versions.
        RemoteProtocolError: It is no farm server.
    """
    deadline = time.monotonic() + timeout
    encrypted = not address.path and key.tls is not None and key.tls.client is not None
    lane = hello.get("role") == Role.LANE
    if encrypted:
        security = Security.TLS_LANE if lane else Security.TLS
    else:
        security = Security.PLAIN if address.path else Security.SEALED
    raw = _dial(address, deadline, dialling, heartbeat, via)
    sock: AnySocket = raw
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
        connection.send_all(encode_hello(hello))
        frame = connection.receive_frame(deadline)
        answered()
        if frame.type is FrameType.REFUSED:
            raise _refusal(decode_hello(frame))
        if frame.type is not FrameType.HELLO:
            raise RemoteProtocolError(f"{frame.type.name} frame instead of a hello")
        if lane and isinstance(sock, SealedSocket) and not sock.is_after(HELLO_RECORDS):
            raise RemoteProtocolError("more or less than one record for the hello")
        if security is Security.TLS_LANE:
            sock = _secure_client_side(raw, key, handshake.secret, address.host, deadline)
        if lane:  # from now on there may be much, and large things
            connection = Connection(sock)
        sock.settimeout(None)
        connection.count_anew()
        connection.peer = None if address.path else (raw.family, raw.getpeername())
        return connection, decode_hello(frame)
    except BaseException:
        sock.close()
        raise


def _prove(sock: AnySocket, handshake: ClientHandshake | ServerHandshake, deadline: float) -> None:
    """Hold one half of the dialogue of `core.handshake` over a blocking socket.

    That the other end is gone is left for reading to tell, because what it has said before may tell why.
    """
    if isinstance(handshake, ClientHandshake):
        with contextlib.suppress(ConnectionError):
            sock.sendall(handshake.start())
    while not handshake.done:
        sock.settimeout(max(deadline - time.monotonic(), 0.001))
        try:
            data = sock.recv(handshake.wanted)
        except BlockingIOError:  # less than a record of TLS
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


def secure_server_side(sock: Socket, key: Key, secret: bytes, deadline: float) -> TlsSocket:
    """Begin TLS on a blocking socket whose other end has proven the key in the clear, and does so once more within.

    Args:
        sock: The connection.
        key: The key that the client has named, with a certificate for servers.
        secret: What the dialogue in the clear has given both ends.
        deadline: For all of it, on the monotonic clock.

    Returns:
        The connection, blocking and without a timeout, in place of the socket.

    Raises:
        AuthenticationError: A certificate is not trusted, here or there, or the client has not proven the key.
        EOFError: The client hung up.
        RemoteProtocolError: It does not speak TLS 1.3, or not this protocol within.
        OSError: The connection is lost, or the time is over.
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
    """The connection as its server sees it, with TLS, of which nothing has been said yet."""
    from farm_executor.wire.tls import TlsSocket

    assert key.tls is not None
    assert key.tls.server is not None
    return TlsSocket(sock, key.tls.server, server_side=True)


def handshake_within(key: Key, secret: bytes, secured: TlsSocket) -> ServerHandshake:
    """The server's half of the dialogue within TLS; ``secret`` is that of the one before."""
    binding = binding_within(secret, secured.binding())
    return ServerHandshake({key.secret: {Security.WITHIN_TLS}}, os.urandom(NONCE_SIZE), binding)


def _refusal(data: dict[str, Any]) -> Exception:
    refused = from_json(Refused, data)
    if refused.code == "version":
        return VersionMismatchError(refused.message, refused.mismatches or {})
    return RefusedError(refused.code, refused.message)


class Connection:
    """Frames over a connected socket.

    Args:
        sock: The socket.
        max_body: See `FrameReader`.
        allocate: See `FrameReader`.

    Attributes:
        peer: Where the other end was reached, if it was dialled over TCP.

    Thread safety: one thread receives; sending is for one thread at a time, which may be another one.
    """

    def __init__(
        self, sock: AnySocket, max_body: int = MAX_BODY, allocate: Callable[[int], Buffer] = payload.allocate
    ) -> None:
        self.socket = sock
        self._layer = sock if isinstance(sock, LayeredSocket) else None
        self._fill = sock.recv_into if self._layer is None else self._layer.fill
        self._received = self._sent = 0
        self.reader = FrameReader(max_body, allocate)
        self._chunk = memoryview(bytearray(4096 if max_body == MAX_HELLO else _CHUNK))
        self._unsent: deque[memoryview] = deque()
        self.peer: Candidate | None = None

    def fileno(self) -> int:
        """For selectors; -1 when closed."""
        return self.socket.fileno()

    @property
    def layered(self) -> bool:
        """Whether more bytes travel than are sent, because they are sealed or encrypted."""
        return self._layer is not None

    @property
    def bytes_received(self) -> int:
        """All that has been read from the socket after the hellos, as it travelled, in whole records if it does."""
        return self._received if self._layer is None else self._layer.bytes_received

    @property
    def bytes_sent(self) -> int:
        """All that the socket has taken after the hellos, as it travels."""
        return self._sent if self._layer is None else self._layer.bytes_sent

    def count_anew(self) -> None:
        """Count bytes from here."""
        self._received = self._sent = 0
        if self._layer is not None:
            self._layer.count_anew()

    @property
    def pending(self) -> bool:
        """Whether there is something to receive of which no selector knows."""
        return self._layer is not None and self._layer.pending

    @property
    def unsent(self) -> bool:
        """Whether buffers wait for the socket to take them."""
        return bool(self._unsent)

    @property
    def backlog(self) -> int:
        """How many there are."""
        return len(self._unsent)

    def receive(self) -> list[Frame]:
        """Read what is there; a blocking socket waits for at least one byte.

        Raises:
            EOFError: The peer is gone, in whatever way.
            TimeoutError: The socket has a timeout, and it is over.
            RemoteProtocolError: See `FrameReader.receive_data`.
        """
        frames = self._receive()
        while self._layer is not None and self._layer.pending:
            frames += self._receive()
        return frames

    def _receive(self) -> list[Frame]:
        for _ in range(_BULK_READS):
            target = self.reader.destination
            if target is None:
                return self._receive_into(self._chunk)
            count = self._read(target, self._fill)
            frames = self.reader.received_into(count) if count else []
            if frames or count < len(target):
                return frames
        return []

    def _receive_into(self, chunk: memoryview) -> list[Frame]:
        count = self._read(chunk, self.socket.recv_into)
        return self.reader.receive_data(chunk[:count]) if count else []

    def _read(self, target: memoryview, receive: Callable[[memoryview], int]) -> int:
        """Read into that memory; 0 means that nothing is there yet."""
        try:
            count = receive(target)
        except (BlockingIOError, InterruptedError):
            return 0
        except TimeoutError as error:
            if error.errno is not None:  # not the socket's timeout: the system has given the connection up
                raise EOFError(str(error)) from None
            raise TimeoutError("no answer in time") from None
        except OSError as error:
            raise EOFError(str(error)) from None
        if not count:
            raise EOFError("connection closed within a frame" if self.reader.mid_frame else "connection closed")
        self._received += count
        return count

    def send(self, buffers: Sequence[Buffer]) -> bool:
        """Send as much as the non-blocking socket takes, keep the rest for `flush`; say whether all is sent.

        A lost connection is not reported here: the receiving side will see it.
        """
        if not self._unsent and len(buffers) == 1:  # the most frequent case by far
            try:
                count = self.socket.send(buffers[0])
            except (BlockingIOError, InterruptedError):
                count = 0
            except OSError:
                return True
            self._sent += count
            if count == len(buffers[0]):
                return True
            buffers = [memoryview(buffers[0])[count:]]
        self._queue(buffers)
        return self.flush()

    def _queue(self, buffers: Sequence[Buffer]) -> None:
        self._unsent.extend([memoryview(buffer).cast("B") for buffer in buffers if len(buffer)])

    def flush(self) -> bool:
        """Go on sending; say whether all is sent."""
        try:
            while self._unsent:
                self._send_some()
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            self._unsent.clear()
        return True

    def send_all(self, buffers: Sequence[Buffer]) -> None:
        """Send over a blocking socket.

        Raises:
            OSError: The connection is lost, or the socket's timeout is over.
        """
        if len(buffers) == 1 and not self._unsent:
            self.socket.sendall(buffers[0])
            self._sent += len(buffers[0])
            return
        self._queue(buffers)
        while self._unsent:
            self._send_some()

    def _send_some(self) -> None:
        if len(self._unsent) > 1 and (_HAS_SENDMSG or self._layer is not None):
            count = self.socket.sendmsg(list(islice(self._unsent, _VECTOR)))
        else:
            count = self.socket.send(self._unsent[0])
        self._sent += count
        while count:
            first = self._unsent[0]
            if count < len(first):
                self._unsent[0] = first[count:]
                return
            count -= len(first)
            self._unsent.popleft()

    def receive_frame(self, deadline: float) -> Frame:
        """Wait for the next frame on a blocking socket, until a time of the monotonic clock, and read no further.

        Raises:
            EOFError: The peer is gone.
            TimeoutError: It said nothing in time.
            RemoteProtocolError: It said nonsense.
        """
        frames: list[Frame] = []
        while not frames:
            if self.reader.destination is not None:
                raise RemoteProtocolError("a segment where there is none to be")
            self.socket.settimeout(max(deadline - time.monotonic(), 0.001))
            frames = self._receive_into(self._chunk[: self.reader.wanted])
        return frames[0]

    def hang_up(self) -> None:
        """End the connection; its file descriptor stays valid."""
        hang_up(self.socket)

    def close(self) -> None:
        """Close the socket; buffers not yet sent are dropped."""
        self._unsent.clear()
        self.socket.close()


def hang_up(sock: AnySocket) -> None:
    """End a connection for every process that has it open; its file descriptor here stays valid."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def no_segment(size: int) -> Buffer:
    """For `Connection`: where no bulk travels, no memory is taken for what is promised."""
    raise RemoteProtocolError(f"a segment of {size} bytes where there is none to be")


def unread(sock: Socket) -> int:
    """How many bytes have come that nobody has read, in whatever process."""
    import fcntl  # only servers ask, which are on systems that have it
    import termios

    count = bytearray(4)
    with contextlib.suppress(OSError):
        fcntl.ioctl(sock, termios.FIONREAD, count)
    return int.from_bytes(count, sys.byteorder)


_SECRET = 32
_END = bytes([0, 255]) + bytes(_SECRET)  # every word is as long: they may arrive together


class Channel:
    """One end of a supervisor's line to one of its workers: a lane's new socket comes over it, or the worker's end.

    It has reached its end when the supervisor is gone.
    """

    def __init__(self, sock: Socket) -> None:
        self._socket = sock

    @classmethod
    def pair(cls) -> tuple[Channel, Channel]:
        """Both ends."""
        mine, theirs = socket.socketpair()
        mine.setblocking(False)
        return cls(mine), cls(theirs)

    def fileno(self) -> int:
        """For `select.poll`."""
        return self._socket.fileno()

    def pass_on(self, sock: Socket, note: int, secret: bytes) -> None:
        """Give the other end a socket, and a byte and 32 more or none that say something about it; ours stays open.

        Raises:
            OSError: It is gone, or deaf.
        """
        socket.send_fds(self._socket, [bytes([note, len(secret)]) + secret.ljust(_SECRET, b"\0")], [sock.fileno()])

    def say_end(self) -> None:
        """Tell the other end to end."""
        with contextlib.suppress(OSError):
            self._socket.send(_END)

    def receive(self) -> tuple[Socket, int, bytes] | None:
        """What was said: a socket and what came with it; or None, to end.

        Raises:
            EOFError: The other end is gone.
            OSError: A socket came, and this process has as many files open as it may.
        """
        try:
            word, descriptors, _, _ = socket.recv_fds(self._socket, len(_END), 1)
        except OSError as error:
            raise EOFError(str(error)) from None
        if not word:
            raise EOFError("the supervisor is gone")
        if word == _END:
            return None
        if not descriptors:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        os.set_inheritable(descriptors[0], False)
        return Socket(fileno=descriptors[0]), word[0], word[2 : 2 + word[1]]

    def close(self) -> None:
        """Close this end."""
        self._socket.close()


class Waker:
    """Makes a selector in another thread, or below a signal handler, wake up."""

    def __init__(self) -> None:
        self._in, self._out = socket.socketpair()
        self._in.setblocking(False)
        self._out.setblocking(False)

    def fileno(self) -> int:
        """The end that becomes readable."""
        return self._in.fileno()

    def signal_fileno(self) -> int:
        """The end for `signal.set_wakeup_fd`."""
        return self._out.fileno()

    def wake(self) -> None:
        """Wake the selector. Takes no lock: safe in a destructor and in a signal handler."""
        with contextlib.suppress(OSError):  # full means that it is awake; closed, that nobody sleeps any more
            self._out.send(b"\0")

    def drain(self) -> None:
        """Take note of having woken up."""
        with contextlib.suppress(OSError):
            while len(self._in.recv(4096)) == 4096:
                pass

    def close(self) -> None:
        """Close both ends."""
        self._in.close()
        self._out.close()
