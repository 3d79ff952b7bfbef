"""lfarm's admin and launcher: servers here and elsewhere, started and ended by their addresses.

This module owns the names and the addresses. It must not know how servers are started, which is in `launch.local`
and `launch.ssh`, nor how commands are sent to them, which is in `admin`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable

from farm_executor.admin import end_server, ping
from farm_executor.errors import AddressError
from farm_executor.launch import background
from farm_executor.launch.local import Server, start_server
from farm_executor.launch.ssh import SshServer, end_servers, start_servers
from farm_executor.lfarm.checks import checked_index
from farm_executor.wire.address import Address, AddressLike, parse_address, parse_addresses

__all__ = [
    "end_local_servers",
    "end_remote_servers",
    "end_server",
    "ping",
    "start_local_servers",
    "start_remote_servers",
    "start_server",
]

_remote: dict[Address, SshServer] = {}  # by the addresses given to start them


def start_local_servers(
    addresses: Iterable[AddressLike],
    workers: int | None = 1,
    *,
    key: bytes | None = None,
    key_file: str | os.PathLike[str] | None = None,
) -> list[Server]:
    """Start a server at each address; all end with this process at the latest.

    Args:
        addresses: ``(host, port)`` pairs or "host:port", of this machine; with port 0, the system chooses a port.
        workers: The number of workers each server gives to each client; None for one per CPU.
        key: The servers' secret, as for `start_server`.
        key_file: A file that holds the secret; if it also has a certificate, the servers speak TLS.

    Returns:
        The servers, which clients may dial at once.

    Raises:
        AddressError: An address is invalid, or can be reached from other machines.
        OSError: A port is in use. The servers already started are ended.
        AuthenticationError, ValueError: As `start_server`.
    """
    if isinstance(addresses, str) or not isinstance(addresses, Iterable):
        raise AddressError(f"addresses must be a list of them, not {addresses!r}")
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
    return servers


def end_local_servers(
    addresses: AddressLike | Iterable[AddressLike],
    *,
    key: bytes | None = None,
    key_file: str | os.PathLike[str] | None = None,
) -> None:
    """End the server at each address; connected clients are served to their end, or to the end of this process.

    A warning is issued for each server that cannot be reached; the others are still ended.

    Raises:
        AddressError: An address is invalid.
    """
    for address in parse_addresses(addresses):
        try:
            end_server(address.host, address.port, key=key, key_file=key_file)
        except Exception as error:
            warnings.warn(f"end_local_servers: failed to end the server {address}: {error}", stacklevel=2)


def start_remote_servers(addresses: Iterable[AddressLike], workers: int | None = 1) -> list[SshServer]:
    """Start a server on each of the machines over ssh; all end with this process at the latest.

    The servers are reached through ssh's tunnels: pass the attribute ``address`` of each to `make_kernel`. Each has
    a key of its own, which is found automatically.

    Args:
        addresses: "ssh://[user@]host[:port][?workers=N&python=PATH&env=NAME=VALUE]", with the ssh server's port.
        workers: The number of workers each server gives to each client, unless its address says otherwise; None for
            one per CPU.

    Returns:
        The servers, once they are up.

    Raises:
        AddressError: An address is not one of a server over ssh.
        ValueError: ``workers`` is less than 1.
        AuthenticationError: ssh is not let in, or does not know a host's key.
        BrokenFarmError: There is no such Python, or no farm_executor, on a host.
        OSError: A host cannot be reached. Whatever the error, the servers already started are ended.
    """
    if workers is not None:
        workers = checked_index("workers", workers, 1)
    wanted = parse_addresses(addresses)
    targets = [_over_ssh(address, workers or 0) for address in wanted]
    servers = start_servers(targets)
    for server in servers:
        background.keep(server)
    _remote.update(zip(wanted, servers, strict=True))
    return servers


def end_remote_servers(addresses: AddressLike | Iterable[AddressLike]) -> None:
    """End the servers that `start_remote_servers` started at these addresses, at once, with their running tasks.

    A warning is issued for each address without such a server; the others are still ended.

    Args:
        addresses: The addresses given to `start_remote_servers`, or the ``address`` attributes of its servers.

    Raises:
        AddressError: An address is invalid.
    """
    ending = []
    for address in parse_addresses(addresses):
        known = address if address.grant else _known_as(str(address))
        server = _remote.pop(known, None) if known else None
        if server is None:
            warnings.warn(f"end_remote_servers: no server was started over ssh at {address}", stacklevel=2)
        else:
            ending.append(server)
    end_servers(ending)


def _over_ssh(address: Address, workers: int) -> Address:
    if address.ssh is None:
        raise AddressError(
            f"{str(address)!r} is no server over ssh: ssh://[user@]host[:port][?workers=N&python=PATH&env=NAME=VALUE]"
        )
    return address._replace(grant=address.ssh._replace(workers=address.ssh.workers or workers))


def _known_as(tunnel: str) -> Address | None:
    return next((address for address, server in _remote.items() if server.address == tunnel), None)
