"""The messages that the two ends exchange in JSON: hellos and refusals, reports, orders, questions and answers.

This module owns the table of these messages: the fields of each, their types and ranges. It must not know who sends
them, when, or what follows. Both ends write with `to_json` and read with `from_json`, so a value that violates the
table is an error of the connection that it came by, and of nothing else.

A field with a default may be missing; a field that the table does not have is ignored. Texts for people are cut and
filtered by `text`. The table is that of ``docs/reference/protocol.md``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

from farm_executor._record import NamedTuple
from farm_executor.core.census import ClientStatus, Death, FarmStatus, Machine, Status, Totals, WorkerTable
from farm_executor.core.features import MAX_FEATURE, MAX_FEATURES, is_feature
from farm_executor.core.frames import Buffer, Frame, FrameType
from farm_executor.core.handshake import MAX_VERSION, MIN_MEMORY_LIMIT, Role, Versions, decode_hello, encode_hello
from farm_executor.core.text import MAX_STDERR, MAX_STDERR_LINES, one_line, some_lines
from farm_executor.errors import RemoteProtocolError

__all__ = [
    "AdminHello",
    "BackHello",
    "ClientHello",
    "ControlHello",
    "Done",
    "Draining",
    "KillOrder",
    "LaneHello",
    "Pong",
    "Refused",
    "Spared",
    "Welcome",
    "WorkerDied",
    "WorkerHello",
    "decode",
    "encode",
    "from_json",
    "read_client_hello",
    "to_json",
]

MAX_COUNT = 2**63 - 1  # of bytes, tasks, lanes and orders
MAX_PID = 2**31 - 1
MAX_SECONDS = 1e10
MAX_LABEL = 100  # characters in a name, or in a text that is only compared
MAX_MESSAGE = 1000  # characters in a sentence


class ControlHello(NamedTuple):
    """A client's request to open a session, or to resume the one named by ``resume``.

    Attributes:
        client: The client's name, for people.
        heartbeat: Seconds between its signs of life.
        resume_seconds: For how many seconds the session is to outlive its control connection.
        max_memory: How many bytes a worker may hold; None for any number.
        features: What the client can do beyond the protocol's version; see `features`.
        host: The name of its machine, for people, as are the next three.
        user: Who runs it.
        program: The file name of its program.
        label: What the user calls the farm.
    """

    versions: Versions
    allow_version_mismatch: bool = False
    client: str = ""
    heartbeat: float = 5.0
    resume_seconds: float = 0.0
    max_memory: int | None = None
    resume: str | None = None
    features: tuple[str, ...] = ()
    host: str = ""
    user: str = ""
    program: str = ""
    label: str = ""


class LaneHello(NamedTuple):
    """A client's request for a worker in a slot, or for another connection to a lane's worker, or for its ring."""

    session: str
    lane: int
    slot: int | None = None
    resume: bool = False
    ring: bool = False


class AdminHello(NamedTuple):
    """An administrator's request."""

    command: str


class BackHello(NamedTuple):
    """A server's word to the client that it has dialled, and for which it waits on this connection from now on.

    Attributes:
        server: Names the server, the same on all its connections.
        name: What people call it.
    """

    server: str
    name: str


ClientHello: TypeAlias = ControlHello | LaneHello | AdminHello | BackHello


class Welcome(NamedTuple):
    """The server's answer to `ControlHello`.

    Attributes:
        features: What it can do beyond the protocol's version, in this session.
        beside: The name of an abstract unix socket of its own, for clients on its machine; empty if there is none.
        ends: The two ends of this connection if both are on one machine; see `wire.sockets.ends`.
    """

    session: str
    slots: int
    name: str
    versions: Versions
    resume_seconds: float
    features: tuple[str, ...] = ()
    beside: str = ""
    ends: str = ""


class WorkerHello(NamedTuple):
    """The server's answer to `LaneHello`."""

    pid: int


class Refused(NamedTuple):
    """The server's refusal: a code, and the reason for people.

    Attributes:
        mismatches: The client's and the server's version for each name in which they differ.
    """

    code: str
    message: str
    mismatches: dict[str, tuple[str, str]] | None = None


class Done(NamedTuple):
    """The server's answer to a request that asks for no data."""


class Pong(NamedTuple):
    """The server's answer to a PING of a client without the feature `COUNTS`; see `liveness.Counts`."""

    lanes: list[tuple[int, int, int]]


class WorkerDied(NamedTuple):
    """The server's report of the end of a worker.

    Attributes:
        code: The exit code; a negative one is the signal that killed it.
        begun: The number of the last task that it began, -1 for none.
        killed: The number of the task because of which it was killed on request; None if it was not.
        frozen: For how many seconds it had stood still, if it was killed for that.
        held: How many bytes of memory it held, if it was killed for that.
        limit: How many bytes it was allowed to hold, if it was killed for holding more.
        oom: Whether the system killed processes for lack of memory while the worker lived; None if that is unknown,
            or if the worker did not die the way such a process does.
        peak: The most bytes that it had in memory; None if the server does not say.
        stderr: The last lines that it wrote to standard error, if the server sees them.
    """

    lane: int
    slot: int
    pid: int
    code: int
    begun: int
    killed: int | None = None
    frozen: float | None = None
    held: int | None = None
    limit: int | None = None
    oom: bool | None = None
    peak: int | None = None
    stderr: str = ""


class Draining(NamedTuple):
    """The server's notice that it was told to end; with ``leave`` its clients should leave as well."""

    leave: bool


class KillOrder(NamedTuple):
    """The client's order to kill the lane's worker if it runs one of these tasks; it runs none before ``first``."""

    order: int
    lane: int
    first: int
    recalls: int
    ranges: list[tuple[int, int]]


class Spared(NamedTuple):
    """The server's answer to a `KillOrder` that has not killed a worker."""

    order: int
    lane: int
    recalls: int


# -- checks: each returns the value to use, or raises a ValueError that says what it should have been ------------
#
# Types are compared by ``type(value) is``, not isinstance, by which JSON's true and false would pass as integers.

Check: TypeAlias = Callable[[Any], Any]


def _integer(least: int, most: int) -> Check:
    def check(value: Any) -> int:
        if type(value) is not int or not least <= value <= most:
            raise ValueError(f"an integer from {least} to {most}")
        return value

    return check


def _seconds(value: Any) -> float:
    if type(value) not in (int, float) or not 0 <= value <= MAX_SECONDS:
        raise ValueError(f"seconds, from 0 to {MAX_SECONDS:.0f}")
    return float(value)


def _flag(value: Any) -> bool:
    if type(value) is not bool:
        raise ValueError("true or false")
    return value


def _text(limit: int) -> Check:
    def check(value: Any) -> str:
        if type(value) is not str:
            raise ValueError("a string")
        return one_line(value, limit)

    return check


def _stderr(value: Any) -> str:
    if type(value) is not str:
        raise ValueError("a string")
    return some_lines(value, MAX_STDERR_LINES, MAX_STDERR)


def _rows(*checks: Check) -> Check:
    """Return a check for an array of arrays, each with one value per given check."""

    def check(value: Any) -> list[tuple[Any, ...]]:
        if type(value) is not list or not all(type(row) is list and len(row) == len(checks) for row in value):
            raise ValueError(f"an array of arrays of {len(checks)}")
        return [tuple([check(item) for check, item in zip(checks, row, strict=True)]) for row in value]

    return check


def _counts(width: int) -> Check:
    """Return a check for an array of arrays of ``width`` counts each.

    It runs no Python code per value, as `_rows` does: a farm reads thousands of rows at each heartbeat.
    """

    def check(value: Any) -> list[tuple[int, ...]]:
        # Types before lengths, and before anything is compared: a peer may have put any values there.
        if type(value) is not list or not {*map(type, value)} <= {list} or not {*map(len, value)} <= {width}:
            raise ValueError(f"an array of arrays of {width}")
        items = list(itertools.chain.from_iterable(value))
        if not {*map(type, items)} <= {int} or (items and not 0 <= min(items) <= max(items) <= MAX_COUNT):
            raise ValueError(f"an integer from 0 to {MAX_COUNT}")
        return list(map(tuple, value))

    return check


def _features(value: Any) -> tuple[str, ...]:
    if type(value) is not list or len(value) > MAX_FEATURES:
        raise ValueError(f"an array of at most {MAX_FEATURES} strings")
    if not all(type(name) is str and is_feature(name) for name in value):
        raise ValueError(f"names of at most {MAX_FEATURE} lower-case letters, digits and hyphens")
    return tuple(value)


def _messages(kind: type[NamedTuple]) -> Check:
    def check(value: Any) -> list[Any]:
        if type(value) is not list:
            raise ValueError("an array of objects")
        return [from_json(kind, item) for item in value]

    return check


def _message(kind: type[NamedTuple]) -> Check:
    return lambda value: from_json(kind, value)


def _numbers(value: Any) -> list[float]:
    if type(value) is not list or len(value) > MAX_LABEL:
        raise ValueError("a short array of numbers")
    return [_seconds(item) for item in value]


def _tally(value: Any) -> dict[str, int]:
    if type(value) is not dict or len(value) > MAX_LABEL:
        raise ValueError("an object with a few counts")
    return {one_line(name, MAX_LABEL): _COUNT(count) for name, count in value.items()}


def _labels(value: Any) -> list[str]:
    if type(value) is not list or len(value) > MAX_LABEL:
        raise ValueError("a short array of strings")
    return [_LABEL(item) for item in value]


def _cells(value: Any) -> list[list[Any]]:
    if type(value) is not list or not all(type(row) is list and len(row) <= MAX_LABEL for row in value):
        raise ValueError("an array of short arrays")
    return [[_cell(item) for item in row] for row in value]


def _cell(value: Any) -> Any:
    if value is None:
        return None
    if type(value) is str:
        return one_line(value, MAX_LABEL)
    return _COUNT(value) if type(value) is int else _seconds(value)


def _mismatches(value: Any) -> dict[str, tuple[str, str]]:
    if type(value) is not dict:
        raise ValueError("an object")
    pair = _rows(_VERSION, _VERSION)
    return {one_line(name, MAX_VERSION): pair([versions])[0] for name, versions in value.items()}


_COUNT = _integer(0, MAX_COUNT)
_PID = _integer(1, MAX_PID)
_SLOT = _integer(0, MAX_PID)
_SLOTS = _integer(1, MAX_PID)
_CODE = _integer(-MAX_PID, MAX_PID)
_RECALLS = _integer(0, 0xFFFF)
_MEMORY = _integer(MIN_MEMORY_LIMIT, MAX_COUNT)
_LABEL = _text(MAX_LABEL)
_VERSION = _text(MAX_VERSION)
_PLACE = _text(MAX_MESSAGE)
_VERSIONS = Versions.from_json
_ATOMS = {int, float, str, type(None)}

# -- the table ---------------------------------------------------------------------------------------------------

# For each message the type of its frame (None if it is only a part of other messages), and its fields' checks.
TABLE: dict[Any, tuple[FrameType | None, dict[str, Check]]] = {
    ControlHello: (
        FrameType.HELLO,
        {
            "versions": _VERSIONS,
            "allow_version_mismatch": _flag,
            "client": _LABEL,
            "heartbeat": _seconds,
            "resume_seconds": _seconds,
            "max_memory": _MEMORY,
            "resume": _LABEL,
            "features": _features,
            "host": _LABEL,
            "user": _LABEL,
            "program": _LABEL,
            "label": _LABEL,
        },
    ),
    LaneHello: (
        FrameType.HELLO,
        {"session": _LABEL, "lane": _COUNT, "slot": _SLOT, "resume": _flag, "ring": _flag},
    ),
    AdminHello: (FrameType.HELLO, {"command": _LABEL}),
    BackHello: (FrameType.HELLO, {"server": _LABEL, "name": _LABEL}),
    Welcome: (
        FrameType.HELLO,
        {
            "session": _LABEL,
            "slots": _SLOTS,
            "name": _LABEL,
            "versions": _VERSIONS,
            "resume_seconds": _seconds,
            "features": _features,
            "beside": _LABEL,
            "ends": _LABEL,
        },
    ),
    WorkerHello: (FrameType.HELLO, {"pid": _PID}),
    Refused: (FrameType.REFUSED, {"code": _LABEL, "message": _text(MAX_MESSAGE), "mismatches": _mismatches}),
    FarmStatus: (FrameType.PING, dict.fromkeys(FarmStatus._fields, _COUNT)),
    ClientStatus: (
        None,
        {
            "id": _COUNT,
            "client": _text(2 * MAX_LABEL),
            "host": _LABEL,
            "user": _LABEL,
            "program": _LABEL,
            "label": _LABEL,
            "seconds": _seconds,
            "state": _LABEL,
            "workers": _COUNT,
            "farm": _message(FarmStatus),
        },
    ),
    Machine: (None, {"cpus": _seconds, "load": _numbers, "memory": _COUNT, "available": _COUNT}),
    Totals: (
        None,
        {
            "sessions": _COUNT,
            "workers_started": _COUNT,
            "workers_ended": _tally,
            "tasks_begun": _COUNT,
            "busy_seconds": _seconds,
            "received": _COUNT,
            "sent": _COUNT,
        },
    ),
    Death: (
        None,
        {
            "at": _seconds,
            "session": _COUNT,
            "slot": _SLOT,
            "pid": _PID,
            "cause": _LABEL,
            "code": _CODE,
            "peak": _COUNT,
        },
    ),
    WorkerTable: (None, {"columns": _labels, "rows": _cells}),
    Status: (
        FrameType.HELLO,
        {
            "farm_status": _COUNT,
            "address": _PLACE,
            "name": _LABEL,
            "host": _LABEL,
            "user": _LABEL,
            "pid": _PID,
            "seconds": _seconds,
            "now": _seconds,
            "slots": _SLOTS,
            "draining": _flag,
            "versions": _VERSIONS,
            "machine": _message(Machine),
            "totals": _message(Totals),
            "sessions": _messages(ClientStatus),
            "sessions_left_out": _COUNT,
            "workers": _message(WorkerTable),
            "deaths": _messages(Death),
        },
    ),
    Done: (FrameType.HELLO, {}),
    Pong: (FrameType.PONG, {"lanes": _counts(3)}),
    WorkerDied: (
        FrameType.WORKER_DIED,
        {
            "lane": _COUNT,
            "slot": _SLOT,
            "pid": _PID,
            "code": _CODE,
            "begun": _integer(-1, MAX_COUNT),
            "killed": _COUNT,
            "frozen": _seconds,
            "held": _COUNT,
            "limit": _COUNT,
            "oom": _flag,
            "peak": _COUNT,
            "stderr": _stderr,
        },
    ),
    Draining: (FrameType.DRAINING, {"leave": _flag}),
    KillOrder: (
        FrameType.KILL,
        {"order": _COUNT, "lane": _COUNT, "first": _COUNT, "recalls": _RECALLS, "ranges": _rows(_COUNT, _COUNT)},
    ),
    Spared: (FrameType.SPARED, {"order": _COUNT, "lane": _COUNT, "recalls": _RECALLS}),
}

ROLES: dict[Any, Role] = {
    ControlHello: Role.CONTROL,
    LaneHello: Role.LANE,
    AdminHello: Role.ADMIN,
    BackHello: Role.BACK,
}

_Message = TypeVar("_Message", bound=NamedTuple)


def to_json(message: NamedTuple) -> dict[str, Any]:
    """Return the message as a JSON object, without the fields that have their default values."""
    kind = type(message)
    defaults = kind._field_defaults
    data: dict[str, Any] = {"role": ROLES[kind].value} if kind in ROLES else {}
    for name, value in zip(kind._fields, message, strict=True):
        if name not in defaults or value != defaults[name]:
            data[name] = _plain(value)
    return data


def _plain(value: Any) -> Any:
    if type(value) in _ATOMS:  # most of them, in a table of workers
        return value
    if isinstance(value, Versions):
        return value._asdict()
    if type(value) in TABLE:
        return to_json(value)
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def from_json(kind: type[_Message], data: Any, known: tuple[dict[str, Any], _Message] | None = None) -> _Message:
    """Read a peer's object as a message of that kind.

    Args:
        kind: The kind.
        data: The object.
        known: An object read before and its message, of which fields that are the same are not checked again.

    Raises:
        RemoteProtocolError: A field is missing, or not what the table says.
    """
    if type(data) is not dict:
        raise RemoteProtocolError(f"malformed {kind.__name__}: not an object")
    fields: dict[str, Any] = {}
    before, made = known or ({}, None)
    for name, check in TABLE[kind][1].items():
        if name in before and name in data and before[name] == data[name]:
            # The value made before, never this one: JSON's true equals 1, and would come through unchecked.
            fields[name] = getattr(made, name)
        elif name in data:
            try:
                fields[name] = check(data[name])
            except ValueError as error:
                raise RemoteProtocolError(
                    f"malformed {kind.__name__}: {name} should be {error}, not {_described(data[name])}"
                ) from None
        elif name not in kind._field_defaults:
            raise RemoteProtocolError(f"malformed {kind.__name__}: {name} is missing")
    make: Callable[..., _Message] = kind
    return make(**fields)


def _described(value: Any) -> str:
    """Describe a peer's value for people; of a value that may be deep or huge only the type."""
    if value is None or type(value) in (bool, float):
        return repr(value)
    if type(value) is int and abs(value) <= MAX_COUNT:
        return repr(value)
    return repr(value[:MAX_LABEL]) if type(value) is str else f"a value of type {type(value).__name__}"


def read_client_hello(data: dict[str, Any]) -> ClientHello:
    """Read a client's hello as a message of the kind that its role says.

    Raises:
        RemoteProtocolError: There is no such role, or a field is missing, or not what the table says.
    """
    role = data.get("role")
    for kind in ROLES:
        if ROLES[kind] == role:
            hello: ClientHello = from_json(kind, data)
            return hello
    raise RemoteProtocolError(f"no such role: {_described(role)}")


def encode(message: NamedTuple, seq: int = 0) -> list[Buffer]:
    """Encode the message as a frame."""
    kind = TABLE[type(message)][0]
    assert kind is not None
    return encode_hello(to_json(message), kind, seq)


def decode(kind: type[_Message], frame: Frame) -> _Message:
    """Decode a frame as a message of that kind.

    Raises:
        RemoteProtocolError: The frame does not hold one, see `from_json`.
    """
    return from_json(kind, decode_hello(frame))
