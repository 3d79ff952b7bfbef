"""Ping servers, ask for their status, and shut them down: what lfarm-admin is to lfarm.

This module owns the questions; it must not know executors. All need the server's key, found as everywhere (see
`farm_executor.wire.security`), and raise `AuthenticationError` if it is not the right one.
"""

from __future__ import annotations

import os
import time
from typing import Any

from farm_executor.arguments import checked
from farm_executor.core.messages import AdminHello, Status, from_json, to_json
from farm_executor.errors import RemoteProtocolError
from farm_executor.wire.address import Address, parse_address
from farm_executor.wire.dialling import connect
from farm_executor.wire.security import client_key

__all__ = ["ask", "ask_until_answered", "end_server", "ping", "status"]

RETRY_SECONDS = 0.1


def ask(
    address: Address,
    command: str,
    timeout: float,
    key: bytes | None = None,
    key_file: str | os.PathLike[str] | None = None,
    ssl_context: Any = None,
) -> dict[str, Any]:
    """Put one question to a server.

    Raises:
        OSError: It cannot be reached within the timeout.
        AuthenticationError: It holds another key, or only one of the two speaks TLS.
        RemoteProtocolError: It is no farm server.
    """
    hello = to_json(AdminHello(command))
    try:
        connection, answer = connect(address, client_key(key, key_file, address, ssl_context), hello, timeout)
    except EOFError as error:
        raise ConnectionResetError(f"server {address}: {error}") from None
    connection.close()
    return to_json(from_json(Status, answer)) if command == "status" else {}


def ask_until_answered(
    address: Address,
    command: str,
    timeout: float | None,
    key: bytes | None = None,
    key_file: str | os.PathLike[str] | None = None,
    ssl_context: Any = None,
) -> dict[str, Any]:
    """Put one question to a server, repeatedly until it answers.

    Args:
        address: The server.
        command: The question.
        timeout: Seconds for which to try; None for ever.
        key: See `ping`.
        key_file: See `ping`.
        ssl_context: See `ping`.

    Raises:
        OSError: It could not be reached in time; why the last attempt failed.
        RemoteProtocolError: What answered last is not a farm server.
        AuthenticationError: At once: it holds another key, or only one of the two speaks TLS.
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
    """Whether a server answers at that address.

    Args:
        host: The server's host.
        port: Its port.
        timeout: Seconds for which to try, again and again; None for ever.
        key: Its secret, if it is not found by itself.
        key_file: A file that holds it.
        ssl_context: See `FarmExecutor`.

    Returns:
        True as soon as it has answered, False if it has not in time, or if what answers is no farm server.

    Raises:
        AddressError: There is no such address.
        AuthenticationError: It holds another key, or only one of the two speaks TLS.
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
    """The status of a server: its name, pid, age, slots, versions, and its clients with their workers.

    Raises:
        AddressError: There is no such address.
        OSError: It cannot be reached within the timeout.
        AuthenticationError: It holds another key, or only one of the two speaks TLS.
        RemoteProtocolError: It is no farm server.
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
    """End a server: it takes no new clients from now on; those that are connected are served to their end.

    Raises:
        AddressError: There is no such address.
        OSError: It cannot be reached within the timeout.
        AuthenticationError: It holds another key, or only one of the two speaks TLS.
        RemoteProtocolError: It is no farm server.
    """
    address = parse_address((host, port))
    ask(
        address,
        "end",
        *checked("end_server", timeout=timeout, key=key, key_file=key_file, ssl_context=ssl_context),
    )
