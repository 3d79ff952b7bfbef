"""Administration of servers: ping them, ask for their status, end them. The counterpart of lfarm-admin.

This module owns the commands; it must not know executors. All of them need the server's key, found in the usual
places (see `farm_executor.wire.security`), and raise `AuthenticationError` if it is the wrong one.
"""

from __future__ import annotations

import os
import time
from typing import Any

from farm_executor.arguments import checked
from farm_executor.core.census import MAX_DOCUMENT, Status
from farm_executor.core.frames import FrameType, encode_frame
from farm_executor.core.handshake import decode_hello
from farm_executor.core.messages import AdminHello, from_json, to_json
from farm_executor.errors import RemoteProtocolError
from farm_executor.wire.address import Address, parse_address
from farm_executor.wire.connection import Connection, no_segment
from farm_executor.wire.dialling import connect
from farm_executor.wire.security import Key, client_key

__all__ = ["Watch", "ask", "ask_until_answered", "end_server", "ping", "status"]

RETRY_SECONDS = 0.1


def ask(
    address: Address,
    command: str,
    timeout: float,
    key: bytes | None = None,
    key_file: str | os.PathLike[str] | None = None,
    ssl_context: Any = None,
) -> dict[str, Any]:
    """Send one command to a server and return its answer.

    Raises:
        OSError: The server cannot be reached within the timeout.
        AuthenticationError: The server holds another key, or only one of the two speaks TLS.
        RemoteProtocolError: The peer is not a farm server.
    """
    hello = to_json(AdminHello(command))
    try:
        connection, answer = connect(address, client_key(key, key_file, address, ssl_context), hello, timeout)
    except EOFError as error:
        raise ConnectionResetError(f"server {address}: {error}") from None
    connection.close()
    return to_json(from_json(Status, answer)) if command == "status" else {}


class Watch:
    """A connection on which a server is asked for its status again and again.

    It is for a selector: `ask`, and `take` when it can be read. Not thread-safe.

    Args:
        address: The server.
        key: See `client_key`.
        timeout: Seconds for the connection.

    Raises:
        OSError, AuthenticationError, RemoteProtocolError: See `ask`.
    """

    def __init__(self, address: Address, key: Key, timeout: float) -> None:
        try:
            connection, _ = connect(address, key, to_json(AdminHello("watch")), timeout)
        except EOFError as error:
            raise ConnectionResetError(f"server {address}: {error}") from None
        self._connection = Connection(connection.socket, MAX_DOCUMENT, no_segment)
        connection.socket.setblocking(False)
        self._asked = 0
        self._known: tuple[dict[str, Any], Status] | None = None  # what came last

    def fileno(self) -> int:
        """Return the file descriptor, for selectors."""
        return self._connection.fileno()

    def ask(self) -> None:
        """Ask for the server's status."""
        self._asked += 1
        self._connection.send(encode_frame(FrameType.PING, seq=self._asked))

    def take(self) -> Status | None:
        """Return the answer if it is whole by now.

        Raises:
            EOFError: The server is gone.
            RemoteProtocolError: The peer is not a farm server.
        """
        status = None
        for frame in self._connection.receive():
            if frame.type is not FrameType.PONG:
                raise RemoteProtocolError(f"{frame.type.name} frame on a connection that only watches")
            data = decode_hello(frame)
            # Most of a document is what it was a second ago, and checking it costs more than all else.
            status = from_json(Status, data, self._known)
            self._known = data, status
        return status

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def ask_until_answered(
    address: Address,
    command: str,
    timeout: float | None,
    key: bytes | None = None,
    key_file: str | os.PathLike[str] | None = None,
    ssl_context: Any = None,
) -> dict[str, Any]:
    """Send one command to a server, repeatedly until it answers.

    Args:
        address: The server.
        command: The command.
        timeout: Seconds for which to try; None to try forever.
        key: See `ping`.
        key_file: See `ping`.
        ssl_context: See `ping`.

    Raises:
        OSError: The server could not be reached in time; the error is that of the last attempt.
        RemoteProtocolError: In the last attempt, the peer was not a farm server.
        AuthenticationError: The server holds another key, or only one of the two speaks TLS; raised at once.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        remaining = 10.0 if deadline is None else deadline - time.monotonic()
        try:
            return ask(address, command, max(remaining, 0.001), key, key_file, ssl_context)
        except (OSError, RemoteProtocolError):
            if deadline is not None and time.monotonic() + RETRY_SECONDS >= deadline:
                raise
            time.sleep(RETRY_SECONDS)


def ping(
    host: str,
    port: int,
    timeout: float | None = 3.0,
    *,
    key: bytes | None = None,
    key_file: str | os.PathLike[str] | None = None,
    ssl_context: Any = None,
) -> bool:
    """Return whether a server answers at that address.

    Args:
        host: The server's host.
        port: The server's port.
        timeout: Seconds for which to keep trying; None to try forever.
        key: The server's secret; None to look for it in the usual places.
        key_file: A file that holds the secret.
        ssl_context: See `FarmExecutor`.

    Returns:
        True as soon as the server has answered; False if it has not in time, or if the peer is not a farm server.

    Raises:
        AddressError: The address is invalid.
        AuthenticationError: The server holds another key, or only one of the two speaks TLS.
    """
    address = parse_address((host, port))
    timeout, key, key_file, ssl_context = checked(
        "ping", timeout=timeout, key=key, key_file=key_file, ssl_context=ssl_context
    )
    try:
        ask_until_answered(address, "ping", timeout, key, key_file, ssl_context)
    except (OSError, RemoteProtocolError):
        return False
    return True


def status(
    host: str,
    port: int,
    *,
    timeout: float = 3.0,
    key: bytes | None = None,
    key_file: str | os.PathLike[str] | None = None,
    ssl_context: Any = None,
) -> dict[str, Any]:
    """Return the status of a server: its name, pid, age, slots, versions, and its clients with their workers.

    Raises:
        AddressError: The address is invalid.
        OSError: The server cannot be reached within the timeout.
        AuthenticationError: The server holds another key, or only one of the two speaks TLS.
        RemoteProtocolError: The peer is not a farm server.
    """
    address = parse_address((host, port))
    return ask(
        address,
        "status",
        *checked("status", timeout=timeout, key=key, key_file=key_file, ssl_context=ssl_context),
    )


def end_server(
    host: str,
    port: int,
    *,
    timeout: float = 3.0,
    key: bytes | None = None,
    key_file: str | os.PathLike[str] | None = None,
    ssl_context: Any = None,
) -> None:
    """End a server: it accepts no new clients from now on, and serves those that are connected to their end.

    Raises:
        AddressError: The address is invalid.
        OSError: The server cannot be reached within the timeout.
        AuthenticationError: The server holds another key, or only one of the two speaks TLS.
        RemoteProtocolError: The peer is not a farm server.
    """
    address = parse_address((host, port))
    ask(
        address,
        "end",
        *checked("end_server", timeout=timeout, key=key, key_file=key_file, ssl_context=ssl_context),
    )
