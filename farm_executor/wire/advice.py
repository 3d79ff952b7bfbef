"""Explanations of connection errors, with advice on what to do next.

This module owns the advice given to users. It must not connect, nor decide whether to retry.
"""

from __future__ import annotations

import errno

from farm_executor.errors import FarmError, RemoteProtocolError
from farm_executor.wire.address import Address
from farm_executor.wire.dialling import RefusedError
from farm_executor.wire.sockets import UnknownHostError

__all__ = ["explained"]

_NO_ROUTE = {errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN}


def explained(error: Exception, address: Address | None) -> str:
    """Return the error as one line: its type, its text, and advice where there is any.

    Args:
        error: The reason a server could not be reached.
        address: The server's address; None if it does not have one yet.
    """
    advice = "" if address is None else _advice(error, address)
    text = str(error)
    return f"{type(error).__name__}{': ' if text else ''}{text}{'; ' if advice else ''}{advice}"


def _advice(error: Exception, address: Address) -> str:
    if isinstance(error, RefusedError):
        return ""  # the server has given the reason itself
    if isinstance(error, RemoteProtocolError):
        return "what listens there is not a farm server, or one of another version"
    if isinstance(error, FarmError):
        return ""  # its text already says what to do
    if isinstance(error, UnknownHostError):
        return f"no machine is known by the name {address.host}: check its spelling, or give its IP address"
    if isinstance(error, (ConnectionRefusedError, FileNotFoundError)):
        where = "at that socket" if address.path else f"at port {address.port} there"
        return f"no server listens {where}: start one with `farm-executor serve`, or check the address"
    if isinstance(error, TimeoutError):
        return (
            "the machine may be off or unreachable, a firewall may swallow what is sent to that port, "
            "or the server may be stopped"
        )
    if isinstance(error, (ConnectionError, EOFError)):
        return "it hung up: it may have ended, or what listens there is not a farm server"
    if isinstance(error, OSError) and error.errno in _NO_ROUTE:
        return "no way leads to that machine: check the network, the VPN and the address"
    return ""
