"""lfarm's admin and launcher: servers on this machine, started and ended by their addresses.

This module owns the names and the addresses; what a server is and does is `launch.local`'s, what can be asked of
one `admin`'s.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable

from farm_executor.address import Address, AddressLike, parse_address, parse_addresses
from farm_executor.admin import end_server, ping
from farm_executor.launch.local import Server, start_server

__all__ = ["end_local_servers", "end_server", "ping", "start_local_servers", "start_server"]

_started: dict[Address, Server] = {}  # so that they live until they are ended, or this process is


def start_local_servers(
    addresses: Iterable[AddressLike],
    workers: int | None = 1,
    *,
    key: bytes | None = None,
    key_file: str | os.PathLike[str] | None = None,
) -> list[Server]:
    """Start a server at each address; all end with this process at the latest.

    Args:
        addresses: ``(host, port)`` pairs or "host:port", of this machine; with port 0 the system chooses one.
        workers: How many workers each gives to each client; None for one per CPU.
        key: Their secret, as for `start_server`.
        key_file: A file that holds it.

    Returns:
        The servers, which clients may dial at once.

    Raises:
        AddressError: An address is none, or is exposed to others than this machine.
        OSError: A port is in use. Those that were started before it are ended.
        AuthenticationError, ValueError: As `start_server`.
    """
    servers: list[Server] = []
    try:
        for address in [parse_address(address, any_port=True) for address in addresses]:
            servers.append(
                start_server(
                    address.host, address.port, background=True, workers=workers, key=key, key_file=key_file
                )
            )
    except BaseException:
        for server in servers:
            server.end()
        raise
    _started.update({parse_address(server.address): server for server in servers})
    return servers


def end_local_servers(
    addresses: AddressLike | Iterable[AddressLike],
    *,
    key: bytes | None = None,
    key_file: str | os.PathLike[str] | None = None,
) -> None:
    """End the server at each address; those who are connected are served to their end, or to this process's.

    A server that cannot be reached is warned of, and the others are ended all the same.

    Raises:
        AddressError: An address is none.
    """
    for address in parse_addresses(addresses):
        try:
            end_server(address.host, address.port, key=key, key_file=key_file)
        except Exception as error:
            warnings.warn(f"end_local_servers: failed to end the server {address}: {error}", stacklevel=2)
        _started.pop(address, None)
