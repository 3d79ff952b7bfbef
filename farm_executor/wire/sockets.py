"""Plain sockets: listening, name resolution, and the options that every connection has.

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

from farm_executor.wire.address import Address

if TYPE_CHECKING:
    from farm_executor.wire.sealed import SealedSocket
    from farm_executor.wire.tls import TlsSocket

__all__ = [
    "HEARTBEAT_SECONDS",
    "AnySocket",
    "Socket",
    "UnknownHostError",
    "beside",
    "bound_address",
    "dial_at_once",
    "dial_local",
    "end_sending",
    "ends",
    "hang_up",
    "is_tcp",
    "listen",
    "listen_beside",
    "listen_everywhere",
    "own_host",
    "resolve",
    "send_datagram",
    "tune",
    "unread",
]

Socket = socket.socket
AnySocket: TypeAlias = "Socket | SealedSocket | TlsSocket"
UnknownHostError = socket.gaierror

HEARTBEAT_SECONDS = 5.0  # between signs of life, unless a client asks for another interval

# Connections that may wait to be accepted. All workers of a farm may dial one server in the same instant; Linux
# drops those that do not fit, and each retries only after a second. The system lowers this to its own limit.
_BACKLOG = 1024
FREE_PORT_ATTEMPTS = 10  # a port that is free at one address may be in use at the next


def listen(address: Address) -> Socket:
    """Open a listening socket, at the first address that the host name resolves to.

    Args:
        address: Where to listen; port 0 means any free one. A unix socket's file may only be used by this user.

    Raises:
        OSError: The port is in use, the host is not this machine, or the path cannot be made.
    """
    return _listen(address, None if address.path else _places(address)[0])


def listen_beside() -> tuple[str, Socket | None]:
    """Listen, on Linux, where only programs on this machine can connect: at an abstract unix socket.

    Returns:
        What makes its name its own, see `beside`, and the socket; nothing and None if there can be none.
    """
    if sys.platform != "linux":
        return "", None
    name = os.urandom(16).hex()
    try:
        return name, listen(beside(name))
    except OSError:  # no descriptor is left: everything goes on by TCP
        return "", None


def beside(name: str) -> Address:
    """Return the address of the abstract socket with that name."""
    return Address(path=f"\0farm-executor-{name}")


def listen_everywhere(address: Address) -> list[Socket]:
    """Listen at each address that the host name resolves to, such as 127.0.0.1 and ::1 for localhost.

    All get the same port. Addresses that this machine does not have at the moment, as without IPv6, are skipped.

    Raises:
        OSError: There is no such address, or the port is in use at one of them.
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
    # RFC 6761 makes localhost both, but /etc/hosts may list only one, and not the one that clients resolve it to.
    hosts = ("127.0.0.1", "::1") if address.host == "localhost" else (address.host,)
    found: list[Any] = []
    for host in hosts:
        with contextlib.suppress(socket.gaierror) if host != hosts[0] else contextlib.nullcontext():
            found += socket.getaddrinfo(host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return list(dict.fromkeys(found))  # /etc/hosts may list the same address twice


def _listen(address: Address, place: Any) -> Socket:
    """Open a listening socket at one result of `getaddrinfo`; at None for the address's path."""
    family, kind, protocol, _, where = place or (socket.AF_UNIX, socket.SOCK_STREAM, 0, "", address.path)
    sock = None
    try:
        sock = socket.socket(family, kind, protocol)
        if address.path:
            _bind_path(sock, where)
        else:
            if sys.platform != "win32":  # on Windows, it would let two servers share a port
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(where)
        sock.listen(_BACKLOG)
    except OSError as error:
        if sock is not None:
            sock.close()
        raise OSError(error.errno, f"cannot listen on {address}: {error.strerror or error}") from None
    return sock


def _bind_path(sock: Socket, path: str) -> None:
    """Bind, replacing the file that a killed server left behind, and let only this user connect."""
    try:
        sock.bind(path)
    except OSError as error:
        # A file that is not a socket refuses connections, too, but is not ours to remove.
        if error.errno != errno.EADDRINUSE or not stat.S_ISSOCK(os.stat(path).st_mode):
            raise
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(path) != errno.ECONNREFUSED:
                raise
        os.unlink(path)
        sock.bind(path)
    if not path.startswith("\0"):  # an abstract socket (Linux) has no file
        os.chmod(path, 0o600)


def send_datagram(path: str, data: bytes) -> None:
    """Send a datagram to a unix socket, without waiting.

    Raises:
        OSError: Nothing listens there, or the datagram does not fit.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.sendto(data, path)


def bound_address(sock: Socket, address: Address) -> Address:
    """Return the address, with the port that the system chose if it was 0."""
    return address if address.path else Address(host=address.host, port=sock.getsockname()[1])


def resolve(address: Address) -> list[Address]:
    """Return one address for each machine that the host name resolves to, in a fixed order.

    Raises:
        OSError: The name does not exist, or cannot be resolved.
    """
    found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    family = found[0][0]  # only one family: a machine may have an address in each
    return sorted({Address(str(where[0]), address.port) for kind, *_, where in found if kind == family}, key=str)


_RTO_MAX_MS = 44  # TCP_RTO_MAX_MS, in Linux 6.15 and later; Python does not name it yet
_SLOWEST_RETRY_MS = 1000


def is_tcp(sock: Socket) -> bool:
    """Return whether there is a network between the two ends, which may fail while both live."""
    return sock.family != getattr(socket, "AF_UNIX", None)


def tune(sock: Socket, heartbeat: float = HEARTBEAT_SECONDS) -> None:
    """Set the options that every connection has.

    Over TCP, the system probes a silent peer after ``heartbeat`` seconds and again after each further interval, and
    gives up after the third probe. Unacknowledged data is retransmitted at least once per second, so that a network
    that recovers is noticed at once.

    Args:
        sock: A connected socket.
        heartbeat: The interval in seconds.
    """
    if not is_tcp(sock):
        return
    from farm_executor.core.liveness import MAX_MISSED  # late: a program that starts an embedded farm waits for it

    seconds = max(1, round(heartbeat))
    idle = getattr(socket, "TCP_KEEPIDLE", getattr(socket, "TCP_KEEPALIVE", None))  # its name on macOS
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
            with contextlib.suppress(OSError):  # an older system, or the peer is gone, as reading will tell
                sock.setsockopt(level, option, value)


def ends(sock: Socket) -> str:
    """Return the two ends of a TCP connection if both are on this machine; else nothing.

    The peer finds the same, unless something that relays the connection stands in between. Where there are no
    abstract sockets, or nobody can tell whose they are, nobody need know: then nothing is returned, too.
    """
    if not is_tcp(sock) or not hasattr(socket, "SO_PEERCRED"):
        return ""
    (host, port, *_), (other, other_port, *_) = sock.getsockname(), sock.getpeername()
    return "{} {} {}".format(host.removeprefix("::ffff:"), *sorted((port, other_port))) if host == other else ""


def hang_up(sock: AnySocket) -> None:
    """End a connection for every process that has it open, but keep its file descriptor here valid."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def end_sending(sock: Socket) -> None:
    """Tell the peer that nothing more comes.

    Raises:
        OSError: The peer is gone.
    """
    sock.shutdown(socket.SHUT_WR)


def own_host(host: str) -> str:
    """Return this machine's address on the way to a host; nothing is sent.

    Raises:
        OSError: There is no such host, or no way to it.
    """
    family, kind, protocol, _, where = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as sock:
        sock.connect(where)
        return str(sock.getsockname()[0])


def dial_at_once(host: str, port: int, seconds: float) -> Socket:
    """Connect to an address that has been told by what listens there.

    Raises:
        OSError: Nothing answers there in time.
    """
    return socket.create_connection((host, port), seconds)


def dial_local(path: str) -> Socket:
    """Connect to a unix socket that what listens there has told of; the socket returned does not block.

    Raises:
        OSError: Nothing listens there, or too many wait there to be let in.
    """
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.setblocking(False)  # or else a program that has stopped would stop whoever dials it, too
        sock.connect(path)
    except BaseException:
        sock.close()
        raise
    return sock


def unread(sock: Socket) -> int:
    """Return the number of bytes that have arrived and that no process has read yet."""
    import fcntl  # late: missing on Windows, where there are no servers
    import termios

    count = bytearray(4)
    with contextlib.suppress(OSError):
        fcntl.ioctl(sock, termios.FIONREAD, count)
    return int.from_bytes(count, sys.byteorder)
