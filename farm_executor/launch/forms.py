"""The addresses of clusters, as users write them.

This module owns their forms: what stands behind ``slurm://``, and the options after the question mark, which one
table has for all. It must not know how servers are started there, nor open anything.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import quote, unquote

from farm_executor._record import NamedTuple
from farm_executor.core.environment import variable
from farm_executor.errors import AddressError
from farm_executor.wire.address import parse_address, wrong

__all__ = ["WAYS", "Dask", "Ray", "Slurm", "read_dask", "read_dask_tls", "read_ray", "read_slurm"]

MAX_NUMBER = 99_999
MAX_NODES = 1_000  # each is a job, with an srun of its own here
IDLE = 60  # seconds
WAYS = ("direct", "back", "engine")
"""How a program and its server may meet: the program dials, the server does, or the engine carries their bytes."""
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def _number(text: str) -> int | None:
    fits = text.isascii() and text.isdigit() and len(text) <= len(str(MAX_NUMBER))
    return int(text) if fits and int(text) else None


def _nodes(text: str) -> int | None:
    number = _number(text)
    return number if number is None or number <= MAX_NODES else None


def _memory(text: str) -> int | None:
    found = re.fullmatch(r"([1-9][0-9]{0,9})([KMGT])", text, re.ASCII)
    return int(found[1]) * _UNITS[found[2]] if found else None


def _time(text: str) -> str | None:
    found = re.fullmatch(r"([0-9]{1,4}-)?[0-9]{1,7}(:[0-9]{1,2}){0,2}", text, re.ASCII)
    return text if found else None


def _word(text: str) -> str | None:
    return text if re.fullmatch(r"[A-Za-z0-9_.+,@][A-Za-z0-9_.+,@-]{0,99}", text, re.ASCII) else None


def _feature(text: str) -> str | None:
    return text if text[0] != "-" and text.isprintable() and not any(map(str.isspace, text)) else None


def _python(text: str) -> str | None:
    return text if text[0] != "-" and text.isprintable() else None


def _way(text: str) -> str | None:
    return text if text in WAYS else None


def _env(text: str) -> tuple[str, str] | None:
    try:
        return variable(text)
    except ValueError:
        return None


class Option(NamedTuple):
    """What may stand after the question mark.

    Attributes:
        read: Returns the value; None for a text that has none.
        meaning: What a value is, for the error.
        several: Whether it may be given several times.
    """

    read: Callable[[str], Any]
    meaning: str
    several: bool = False


OPTIONS = {
    "workers": Option(_number, f"a number of workers in all, from 1 to {MAX_NUMBER}"),
    "per": Option(_number, f"a number of workers of each server, from 1 to {MAX_NUMBER}"),
    "cpus": Option(_number, f"a number of CPUs of each worker, from 1 to {MAX_NUMBER}"),
    "gpus": Option(_number, f"a number of GPUs of each worker, from 1 to {MAX_NUMBER}"),
    "memory": Option(_memory, "the memory of each worker, such as 500M or 4G"),
    "python": Option(_python, "the name or the path of an interpreter"),
    "env": Option(_env, "NAME=VALUE, a variable of each worker", several=True),
    "nodes": Option(_nodes, f"a number of nodes, from 1 to {MAX_NODES}"),
    "time": Option(_time, "a time as Slurm has it: 30 minutes, 1:30:00, 2-12"),
    "account": Option(_word, "the name of an account"),
    "qos": Option(_word, "the name of a quality of service"),
    "min": Option(_number, f"how many servers there are at least, from 1 to {MAX_NUMBER}"),
    "max": Option(_nodes, f"how many servers there may be, from 1 to {MAX_NODES}"),
    "idle": Option(_number, f"seconds without a task after which a server is let go, from 1 to {MAX_NUMBER}"),
    "via": Option(_way, "direct, back or engine, the way between this program and the servers"),
    "constraint": Option(_feature, "features of nodes, as Slurm has them"),
}


class Slurm(NamedTuple):
    """Servers on nodes that Slurm grants: ``slurm://[partition][?options]``.

    Attributes:
        partition: The partition; empty for Slurm's default.
        nodes: How many nodes, each with one server.
        per: How many workers each server has.
        cpus: CPUs of each worker.
        gpus: GPUs of each worker.
        memory: Bytes of each worker; 0 for Slurm's default.
        time: The longest time that each job may take; empty for Slurm's default.
        account: Whom it is charged to; empty for Slurm's default.
        qos: The quality of service; empty for Slurm's default.
        constraint: Features that nodes must have.
        python: The interpreter there; empty for this program's own.
        env: Variables of each worker; see `core.environment`.
        min: See `Dask`; likewise ``max`` and ``idle``.
        via: "direct" or "back"; empty for whichever leads there.
    """

    partition: str = ""
    nodes: int = 1
    per: int = 1
    cpus: int = 1
    gpus: int = 0
    memory: int = 0
    time: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    python: str = ""
    env: tuple[tuple[str, str], ...] = ()
    min: int = 0
    max: int = 0
    idle: int = IDLE
    via: str = ""

    @property
    def scheme(self) -> str:
        """See `Address.scheme`."""
        return "slurm"

    def __str__(self) -> str:
        return f"slurm://{self.partition}{_query(self, self._fields[1:])}"


class Dask(NamedTuple):
    """Servers beside the workers of a Dask cluster: ``dask://host:port[?options]``.

    Attributes:
        host: The scheduler's host.
        port: Its port.
        tls: Whether it speaks TLS, as dask's own configuration has it: ``dask+tls://``.
        workers: How many workers in all; 0 for as many as the cluster has threads.
        per: How many workers each server has; 0 for as many as the Dask worker beside it has threads.
        gpus: Of the resource "GPU", for each worker.
        memory: Of the resource "MEMORY", in bytes, for each worker.
        python: The interpreter there; empty for that of the Dask worker.
        env: Variables of each worker; see `core.environment`.
        min: How many servers there always are, if they come and go as they are needed.
        max: How many there may be then; 0 if they do not.
        idle: Seconds without a task after which one is let go.
        via: The one of `WAYS` on which program and servers meet; empty for whichever leads there.
    """

    host: str
    port: int
    tls: bool = False
    workers: int = 0
    per: int = 0
    gpus: int = 0
    memory: int = 0
    python: str = ""
    env: tuple[tuple[str, str], ...] = ()
    min: int = 0
    max: int = 0
    idle: int = IDLE
    via: str = ""

    @property
    def scheme(self) -> str:
        """See `Address.scheme`."""
        return "dask"

    @property
    def cluster(self) -> str:
        """The scheduler's address as dask has it."""
        return f"{'tls' if self.tls else 'tcp'}://{_host_and_port(self.host, self.port)}"

    def __str__(self) -> str:
        where = _host_and_port(self.host, self.port)
        return f"dask{'+tls' if self.tls else ''}://{where}{_query(self, self._fields[3:])}"


class Ray(NamedTuple):
    """Servers that a Ray cluster holds: ``ray://host:port[?options]``, or ``ray://auto[?options]``.

    Attributes:
        host: The host of Ray Client's server; empty for the cluster that this machine belongs to.
        port: Its port.
        workers: How many workers in all; 0 for as many as the cluster has CPUs for now.
        per: How many workers each server has.
        cpus: CPUs of each worker.
        gpus: GPUs of each worker.
        memory: Bytes of each worker; 0 to ask for none.
        python: The interpreter there; empty for Ray's.
        env: Variables of each worker; see `core.environment`.
        min: See `Dask`; likewise ``max``, ``idle`` and ``via``.
    """

    host: str
    port: int
    workers: int = 0
    per: int = 1
    cpus: int = 1
    gpus: int = 0
    memory: int = 0
    python: str = ""
    env: tuple[tuple[str, str], ...] = ()
    min: int = 0
    max: int = 0
    idle: int = IDLE
    via: str = ""

    @property
    def scheme(self) -> str:
        """See `Address.scheme`."""
        return "ray"

    @property
    def cluster(self) -> str:
        """The cluster's address as Ray has it."""
        return f"ray://{_host_and_port(self.host, self.port)}" if self.host else "auto"

    def __str__(self) -> str:
        where = _host_and_port(self.host, self.port) if self.host else "auto"
        return f"ray://{where}{_query(self, self._fields[2:])}"


def read_dask(value: str, rest: str) -> Dask:
    """Read what stands behind ``dask://``.

    Raises:
        AddressError: It has not the form; the message says why.
    """
    return _read_dask(value, rest, tls=False)


def read_dask_tls(value: str, rest: str) -> Dask:
    """Read what stands behind ``dask+tls://``, like `read_dask`."""
    return _read_dask(value, rest, tls=True)


def _read_dask(value: str, rest: str, *, tls: bool) -> Dask:
    where, _, query = rest.partition("?")
    host, port = _head(value, where, "after dask:// stands the scheduler's host and port")
    options = _options(value, query, Dask._fields[3:])
    _check_elastic(value, options)
    if {"gpus", "memory"} & options.keys() and not {"workers", "max"} & options.keys():
        raise wrong(value, "with gpus= or memory=, workers= or max= says how many there are to be")
    return Dask(host, port, tls, **options)


def read_ray(value: str, rest: str) -> Ray:
    """Read what stands behind ``ray://``, like `read_dask`."""
    where, _, query = rest.partition("?")
    words = "after ray:// stands the host and the port of Ray Client's server, or auto"
    host, port = ("", 0) if where == "auto" else _head(value, where, words)
    if host == "auto":
        raise wrong(value, words)
    options = _options(value, query, Ray._fields[2:])
    _check_elastic(value, options)
    return Ray(host, port, **options)


def _head(value: str, where: str, words: str) -> tuple[str, int]:
    """Read the host and the port of an engine's head."""
    try:
        if not re.search(r":[0-9]+$", where, re.ASCII) or "//" in where:
            raise AddressError
        head = parse_address(where)
    except AddressError:
        raise wrong(value, words) from None
    if head.path or head.every:
        raise wrong(value, words)
    return head.host, head.port


def _host_and_port(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _query(form: Any, names: Sequence[str]) -> str:
    """Write those of the options that are not as they are by default."""
    given = []
    for name in names:
        value = getattr(form, name)
        if value == form._field_defaults[name]:
            continue
        texts = [f"{key}={text}" for key, text in value] if name == "env" else [_written(name, value)]
        given += [f"{name}={quote(text, safe='/:=,{}~+')}" for text in texts]
    return f"{'?' if given else ''}{'&'.join(given)}"


def _written(name: str, value: Any) -> str:
    if name != "memory":
        return str(value)
    unit = max((unit for unit, size in _UNITS.items() if value % size == 0), key=_UNITS.__getitem__)
    return f"{value // _UNITS[unit]}{unit}"


def read_slurm(value: str, rest: str) -> Slurm:
    """Read what stands behind ``slurm://``.

    Raises:
        AddressError: It has not the form; the message says why.
    """
    partition, _, query = rest.partition("?")
    if partition and _word(partition) is None:
        raise wrong(value, "after slurm:// stands the name of a partition, or nothing for the default one")
    options = _options(value, query, (*Slurm._fields[1:], "workers"))
    _check_elastic(value, options, "nodes")
    if options.get("via") == "engine":
        raise wrong(value, "Slurm carries no bytes for programs: via= is direct or back, both by default")
    workers = options.pop("workers", None)
    if workers is not None:
        if "nodes" in options:
            raise wrong(value, "workers= says how many nodes there are, as does nodes=: give one of them")
        options["nodes"] = -(-workers // options.get("per", 1))
        if options["nodes"] > MAX_NODES:
            raise wrong(value, f"that takes more than {MAX_NODES} nodes: give each more workers, with per=")
    return Slurm(partition, **options)


def _check_elastic(value: str, options: Mapping[str, Any], *fixed: str) -> None:
    """Refuse numbers of servers that go with each other in no way."""
    if "max" not in options:
        if "min" in options or "idle" in options:
            raise wrong(value, "min= and idle= are for servers that come and go, of which max= says how many")
    elif any(name in options for name in (*fixed, "workers")):
        names = " and ".join(f"{name}=" for name in (*fixed, "workers"))
        raise wrong(value, f"max= says how many servers there may be: leave out {names}")
    elif options["max"] < options.get("min", 0):
        raise wrong(value, "max= is less than min=")


def _options(value: str, query: str, names: Sequence[str]) -> dict[str, Any]:
    """Read the options after the question mark; those that may be given several times become tuples."""
    known = {name: OPTIONS[name] for name in names}
    found: dict[str, Any] = {}
    for pair in query.split("&") if query else ():
        name, _, text = pair.partition("=")
        if name not in known or (name in found and not known[name].several) or not text:
            listed = ", ".join(f"{one}=" for one in known)
            raise wrong(value, f"after the question mark come {listed} each at most once, but for env=")
        try:
            read = known[name].read(unquote(text, errors="strict"))
        except UnicodeError:
            raise wrong(value, "what is percent-encoded is not UTF-8") from None
        if read is None:
            raise wrong(value, f"{name}= is {known[name].meaning}")
        found[name] = (*found.get(name, ()), read) if known[name].several else read
    return found
