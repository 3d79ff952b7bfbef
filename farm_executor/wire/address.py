"""Parsing of server addresses as users write them.

This module owns the accepted forms. It must not resolve names or open anything.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

from farm_executor._record import NamedTuple
from farm_executor.core.environment import variable
from farm_executor.errors import AddressError

__all__ = [
    "DEFAULT_PORT",
    "Address",
    "AddressLike",
    "Back",
    "Ssh",
    "forms",
    "parse_address",
    "parse_addresses",
    "wrong",
]

DEFAULT_PORT = 11111
"""The port used when an address does not give one."""

forms: dict[str, Callable[[str, str], Any]] = {}
"""Further schemes, of servers that are to be granted, each with a function. It is given the whole text and what is
behind ``://``, and returns an `Address.grant`, or raises what `wrong` returns. The package adds them."""

_MAX_SHOWN = 200  # characters of the given value in an error message
_FORMS = (
    '"host:port", "[ipv6]:port", "unix:/path", "farm://name:port?all", or ("host", port), '
    f"with a port from 1 to 65535 ({DEFAULT_PORT} where a string names none), "
    'for servers to be started "ssh://[user@]host[:port]", for servers that dial this program "back://host:port", '
    'and for servers on a cluster "slurm://[partition]", "dask://host:port" or "ray://host:port"'
)
_SHELL = frozenset("'`\"$\\;&<>|(){}")  # ssh may hand names to a shell, for a ProxyCommand


class Ssh(NamedTuple):
    """A server to start over ssh: ``ssh://[user@]host[:port][?workers=N&python=PATH&env=NAME=VALUE]``.

    Attributes:
        host: A host name, or an alias from ssh's configuration.
        user: The remote user; empty to leave it to ssh's configuration.
        port: The port of the ssh server; 0 to leave it to ssh's configuration.
        workers: The number of workers for each client; 0 for one per CPU.
        python: The remote interpreter; empty for ``python3``.
        env: Variables of each worker; see `core.environment`.
    """

    host: str
    user: str = ""
    port: int = 0
    workers: int = 0
    python: str = ""
    env: tuple[tuple[str, str], ...] = ()

    @property
    def scheme(self) -> str:
        """See `Address.scheme`."""
        return "ssh"

    def __str__(self) -> str:
        from urllib.parse import quote  # late: few programs need it

        user = f"{quote(self.user, safe='')}@" if self.user else ""
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = f":{self.port}" if self.port else ""
        options = [f"workers={self.workers}"] if self.workers else []
        options += [f"python={quote(self.python)}"] if self.python else []
        options += [f"env={quote(f'{name}={text}', safe='/:=,{}~+')}" for name, text in self.env]
        return f"ssh://{user}{host}{port}{'?' if options else ''}{'&'.join(options)}"


class Back(NamedTuple):
    """Where this program waits for servers that dial it: ``back://host:port``."""

    host: str
    port: int

    @property
    def scheme(self) -> str:
        """See `Address.scheme`."""
        return "back"

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"back://{host}:{self.port}"


class Address(NamedTuple):
    """Where a server listens: ``host`` and ``port`` for TCP, or ``path`` for a unix socket.

    With ``every``, it stands for servers that come and go: one on each machine that the host name resolves to.

    With ``grant``, a named tuple with a ``scheme``, the server is to be started, such as over ssh; ``path`` is then
    the local end of the tunnel to it, empty until the tunnel exists.
    """

    host: str = ""
    port: int = 0
    path: str = ""
    every: bool = False
    grant: Any = None

    def __str__(self) -> str:
        if self.grant:
            return str(self.grant)
        if self.path:
            if self.path.startswith("\0"):  # an abstract socket; other programs show it the same way
                return f"unix:@{self.path[1:]}"
            return f"unix:{self.path}"
        bracketed = ":" in self.host or self.host == "unix"  # "unix:1" would read as a path
        text = f"[{self.host}]:{self.port}" if bracketed else f"{self.host}:{self.port}"
        return f"farm://{text}?all" if self.every else text

    @property
    def scheme(self) -> str:
        """What decides how its servers are found or started; see `client.launching.registry`."""
        if self.grant:
            return str(self.grant.scheme)
        return "unix" if self.path else "farm" if self.every else "tcp"

    @property
    def ssh(self) -> Ssh | None:
        """What is to be started over ssh, if that is how it is started."""
        return self.grant if isinstance(self.grant, Ssh) else None

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it: a unix socket or a loopback address."""
        if self.path or self.host == "localhost":
            return True
        import ipaddress  # late: an embedded farm has no host

        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


AddressLike = str | tuple[str, int] | Address


def parse_address(value: Any, *, any_port: bool = False, ssh: bool = False) -> Address:
    """Parse one address.

    Args:
        value: One of the accepted forms, or an `Address`.
        any_port: Whether to accept port 0, by which a server means any free port.
        ssh: Whether to accept a server that is yet to be started over ssh.

    Raises:
        AddressError: The value has none of the accepted forms; the message shows it and lists them.
    """
    if isinstance(value, Address):
        return value
    if isinstance(value, str):
        return _from_text(value, any_port, ssh)
    if isinstance(value, (tuple, list)) and len(value) == 2:
        host, number = value
        if isinstance(host, str) and isinstance(number, int) and not isinstance(number, bool):
            return _tcp(value, host, number, any_port)
    raise wrong(value, "")


def parse_addresses(value: Any) -> list[Address]:
    """Parse one address or an iterable of them, as `FarmExecutor` takes; keep the order and drop duplicates.

    Raises:
        AddressError: The value is neither, or is empty.
    """
    if isinstance(value, (str, Address)) or (
        isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int)
    ):
        return [parse_address(value, ssh=True)]
    if isinstance(value, (bytes, bytearray, dict)) or not isinstance(value, Iterable):
        raise wrong(value, "")
    addresses = list(dict.fromkeys(parse_address(item, ssh=True) for item in value))
    if not addresses:
        raise AddressError(f"no address given: pass one or more of {_FORMS}, or None for a farm on this machine")
    return addresses


def _from_text(value: str, any_port: bool, ssh: bool) -> Address:
    scheme, separator, rest = value.partition("://")
    if value.startswith("unix:"):
        return _unix(value, value[5:])
    if separator and scheme == "farm":
        return _farm(value, rest, any_port)
    if separator and scheme == "ssh":
        if not ssh:
            raise wrong(value, "servers are started over ssh by FarmExecutor and by farm-executor launch")
        return Address(grant=_ssh(value, rest))
    if separator and scheme == "back":
        if not ssh:
            raise wrong(value, "it is a program, FarmExecutor, that waits for servers; they dial HOST:PORT")
        return _back(value, rest)
    if separator and scheme in forms:
        if not ssh:
            raise wrong(value, "servers are granted to FarmExecutor, in its list of addresses")
        return Address(every=True, grant=forms[scheme](value, rest))
    if separator:
        raise wrong(value, "it is written without a scheme if a server listens there")
    if "," in value:
        raise wrong(value, 'several addresses are given as a list, ["hostA:1", "hostB:1"]')
    if "/" in value:
        raise wrong(value, 'a host has no slash, and the path of a unix socket is written "unix:/path"')
    host, _, port = _host_and_port(value, value, 0 if any_port else 1)
    if port is None and host.isdecimal():
        raise wrong(value, "it is only a number; a number of workers is given as an int")
    return _tcp(value, host, DEFAULT_PORT if port is None else port, any_port)


def _tcp(value: Any, host: str, port: int, any_port: bool) -> Address:
    if not host:
        raise wrong(value, "the host is missing")
    if not host.isprintable() or any(character in " []" for character in host):
        raise wrong(value, "a host has no spaces, brackets or control characters")
    try:
        host.encode("idna")  # resolving would do this, too, and fail late with a bare UnicodeError
    except UnicodeError as error:
        raise wrong(value, f"no name of a host: {error}") from None
    if not (0 if any_port else 1) <= port <= 65535:
        raise wrong(value, "there is no such port")
    return Address(host=host, port=port)


def _farm(value: str, rest: str, any_port: bool) -> Address:
    where, mark, query = rest.partition("?")
    if query != ("all" if mark else ""):
        raise wrong(value, "?all is the only option there is")
    try:
        address = parse_address(where, any_port=any_port)
    except AddressError:
        raise wrong(value, "after farm:// stands a host and a port") from None
    if address.path or address.every:
        raise wrong(value, "after farm:// stands a host and a port")
    return address._replace(every=bool(mark))


def _back(value: str, rest: str) -> Address:
    try:
        where = parse_address(rest)
    except AddressError:
        raise wrong(value, "after back:// stands a host and a port") from None
    if where.path or where.every:
        raise wrong(value, "after back:// stands a host and a port")
    return Address(every=True, grant=Back(where.host, where.port))


def _unix(value: Any, path: str) -> Address:
    if not path:
        raise wrong(value, "the path is missing")
    try:
        raw = os.fsencode(path)
    except UnicodeError:
        raise wrong(value, "no name of a file") from None
    if b"\0" in raw:
        raise wrong(value, "no name of a file")
    return Address(path=path)


# `urllib.parse.urlsplit` will not do: it silently drops tabs and newlines, and lower-cases the host.
def _ssh(value: str, text: str) -> Ssh:
    place, _, query = text.partition("?")
    user, at, where = place.rpartition("@")
    host, bracketed, port = _host_and_port(value, where, 1)
    if bracketed:
        _check_ipv6(value, host)
    elif not _is_plain(host):
        raise wrong(value, "the host is missing, or has characters that no host has")
    user = _decoded(value, user)
    if at and not _is_plain(user):
        raise wrong(value, "the user is missing, or has characters that no user has")
    return Ssh(host, user, port or 0, **_ssh_options(value, query))


def _ssh_options(value: str, query: str) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for pair in query.split("&") if query else ():
        name, _, given = pair.partition("=")
        if name not in _SSH_OPTIONS or (name in options and name != "env") or not given:
            raise wrong(
                value,
                "after the question mark come workers=NUMBER and python=PATH, at most once, and env=NAME=VALUE",
            )
        read, meaning = _SSH_OPTIONS[name]
        found = read(_decoded(value, given))
        if found is None:
            raise wrong(value, f"{name} is {meaning}")
        options[name] = (*options.get(name, ()), found) if name == "env" else found
    return options


def _workers(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 5 and int(text) else None


def _python(text: str) -> str | None:
    return text if text[0] != "-" and text.isprintable() else None


def _env(text: str) -> tuple[str, str] | None:
    try:
        return variable(text)
    except ValueError:
        return None


_SSH_OPTIONS: dict[str, tuple[Callable[[str], Any], str]] = {
    "workers": (_workers, "a number from 1 on"),
    "python": (_python, "the name or the path of an interpreter"),
    "env": (_env, "NAME=VALUE, a variable of each worker"),
}


def _host_and_port(value: str, where: str, lowest: int) -> tuple[str, bool, int | None]:
    """Return the host, whether it was in brackets, and the port, or None if there is none."""
    if where.startswith("["):
        host, closed, rest = where[1:].partition("]")
        if not closed or (rest and rest[0] != ":"):
            raise wrong(value, "an IPv6 address must be in brackets")
        colon, port = rest[:1], rest[1:]
    else:
        host, colon, port = where.rpartition(":") if ":" in where else (where, "", "")
        if ":" in host:
            raise wrong(value, "an IPv6 address must be in brackets")
    if not colon:
        return host, where.startswith("["), None
    if not port:
        raise wrong(value, "the port is missing behind the colon")
    if not (port.isascii() and port.isdigit()):
        raise wrong(value, "the port is not a number")
    # Check the length first: int() raises an error of its own on thousands of digits.
    if len(port) > 5 or not lowest <= int(port) <= 65535:
        raise wrong(value, "there is no such port")
    return host, where.startswith("["), int(port)


def _check_ipv6(value: str, host: str) -> None:
    import ipaddress

    number, percent, zone = host.partition("%")  # ipaddress accepts any zone
    try:
        ipaddress.IPv6Address(number)
    except ValueError:
        raise wrong(value, "only an IPv6 address is put in brackets") from None
    if percent and not (zone.isascii() and zone.replace("-", "").replace("_", "").replace(".", "").isalnum()):
        raise wrong(value, "a zone has only letters, digits, dots, hyphens and underscores")


def _is_plain(name: str) -> bool:
    """Return whether neither ssh nor a shell could take the text for anything but a name."""
    if not name or name[0] == "-" or not name.isprintable():
        return False
    return not any(char in _SHELL or char.isspace() or char in "/[]%#" for char in name)


def _decoded(value: str, text: str) -> str:
    from urllib.parse import unquote

    try:
        return unquote(text, errors="strict")
    except UnicodeError:
        raise wrong(value, "what is percent-encoded is no UTF-8") from None


def wrong(value: Any, why: str) -> AddressError:
    """Return the error for a value that is not an address: it shows the value, says why, and names the forms."""
    try:
        shown = repr(value)
    except Exception:  # the value may be any object, with any __repr__
        shown = f"an object of type {type(value).__qualname__}"
    if len(shown) > _MAX_SHOWN:
        shown = shown[:_MAX_SHOWN] + "..."
    return AddressError(f"{shown} is no server address{': ' + why if why else ''}; the forms are {_FORMS}")
