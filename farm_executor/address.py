"""What users write for a server's address, and what it means.

This module owns the accepted forms. It must not resolve names or open anything.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from farm_executor.errors import AddressError

__all__ = ["Address", "AddressLike", "parse_address", "parse_addresses"]

_FORMS = '"host:port", "[ipv6]:port", "unix:/path", or ("host", port), with a port from 1 to 65535'


@dataclass(frozen=True)
class Address:
    """Where a server listens: ``host`` and ``port`` for TCP, or ``path`` for a unix socket."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_local(self) -> bool:
        """Whether it can only be reached from this machine: a unix socket or a loopback address."""
        if self.path or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


AddressLike = str | tuple[str, int] | Address


def parse_address(value: Any, *, any_port: bool = False) -> Address:
    """Read one address.

    Args:
        value: One of the accepted forms, or an `Address`.
        any_port: Whether port 0 is accepted, which means a free one to a server.

    Raises:
        AddressError: It is none of the accepted forms; the message names it and them.
    """
    if isinstance(value, Address):
        return value
    if isinstance(value, str):
        if value.startswith("unix:"):
            if len(value) > 5:
                return Address(path=value[5:])
            raise _error(value, "the path is missing")
        host, colon, port = value.rpartition(":")
        if not colon:
            raise _error(value, "the port is missing")
        bracketed = host.startswith("[") and host.endswith("]")
        if ":" in host and not bracketed:
            raise _error(value, "an IPv6 address must be in brackets")
        if not port.isascii() or not port.isdigit():
            raise _error(value, f"the port {port!r} is not a number")
        return _tcp(value, host[1:-1] if bracketed else host, int(port), any_port)
    if isinstance(value, (tuple, list)) and len(value) == 2:
        host, number = value
        if isinstance(host, str) and isinstance(number, int) and not isinstance(number, bool):
            return _tcp(value, host, number, any_port)
    raise _error(value, "")


def parse_addresses(value: Any) -> list[Address]:
    """Read what `FarmExecutor` takes: one address or an iterable of them, in order, each only once.

    Raises:
        AddressError: It is neither, or there is none.
    """
    if isinstance(value, (str, Address)) or (
        isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int)
    ):
        return [parse_address(value)]
    if isinstance(value, (bytes, bytearray, dict)) or not isinstance(value, Iterable):
        raise _error(value, "")
    addresses = list(dict.fromkeys(parse_address(item) for item in value))
    if not addresses:
        raise AddressError(f"no address given: pass one or more of {_FORMS}, or None for a farm on this machine")
    return addresses


def _tcp(value: Any, host: str, port: int, any_port: bool) -> Address:
    if not host or any(character.isspace() for character in host):
        raise _error(value, "the host is missing" if not host else "a host has no spaces")
    if not (0 if any_port else 1) <= port <= 65535:
        raise _error(value, f"there is no port {port}")
    return Address(host=host, port=port)


def _error(value: Any, why: str) -> AddressError:
    return AddressError(f"{value!r} is no server address{': ' + why if why else ''}; the forms are {_FORMS}")
