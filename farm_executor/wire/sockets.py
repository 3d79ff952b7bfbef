"""Plain sockets: listening, names and their addresses, and the options that every connection has.

It must not know of keys, frames or encryption, nor dial: see `dialling`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import sys
from typing import TYPE_CHECKING, Any, TypeAlias

from farm_executor.core.liveness import MAX_MISSED
from farm_executor.wire.address import Address

if TYPE_CHECKING:
    from farm_executor.wire.sealed import SealedSocket
    from farm_executor.wire.tls import TlsSocket

__all__ = [
    "HEARTBEAT_SECONDS",
    "AnySocket",
    "Socket",
    "UnknownHostError",
    "bound_address",
    "hang_up",
    "is_tcp",
    "listen",
    "listen_everywhere",
    "resolve",
    "send_datagram",
    "tune",
    "unread",
]

Socket = socket.socket
AnySocket: TypeAlias = "Socket | SealedSocket | TlsSocket"
UnknownHostError = socket.gaierror

HEARTBEAT_SECONDS = 5.0  # between signs of life, unless a client wants others

# As many as may wait to be accepted: the workers of a whole farm may dial one server in the same instant, and Linux
# drops what does not fit, which costs the one who dialled a second. The system lowers it to its own limit.
_BACKLOG = 1024
FREE_PORT_ATTEMPTS = 10  # a port that is free at one address may be in use at the next


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


def hang_up(sock: AnySocket) -> None:
    """End a connection for every process that has it open; its file descriptor here stays valid."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def unread(sock: Socket) -> int:
    """How many bytes have come that nobody has read, in whatever process."""
    import fcntl  # only servers ask, which are on systems that have it
    import termios

    count = bytearray(4)
    with contextlib.suppress(OSError):
        fcntl.ioctl(sock, termios.FIONREAD, count)
    return int.from_bytes(count, sys.byteorder)
