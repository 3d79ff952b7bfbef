"""Checks of the public functions' arguments: one table, with a row for each function.

This module owns what each parameter accepts. A function first passes its arguments to `checked`. So a mistake
raises a TypeError or ValueError there, which names the parameter, and never surfaces later as the error of a future
or as a farm that waits forever. Whatever the standard library's executors accept is accepted where it means the
same, such as numpy's integers by ``__index__``; these become plain numbers here. This module must not know what is
done with the values.
"""

from __future__ import annotations

import math
import operator
import os
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from contextvars import ContextVar
from typing import Any

from farm_executor.core.environment import variable
from farm_executor.wire.address import parse_address, parse_addresses

__all__ = ["ROWS", "anything", "checked"]

_PRIORITIES = {"low": -1, "default": 0, "high": 1}
_MAX_PRIORITY = 2**50  # as a float, it still differs from itself plus one half
_MAX_SHOWN = 100

Check = Callable[[str, Any], Any]
"""Takes a parameter's name and a value; returns the value to use, or raises TypeError or ValueError."""


def checked(function: str, **given: Any) -> list[Any]:
    """Return a public function's arguments in the form to be used, in the same order.

    Raises:
        TypeError, ValueError: One of the arguments is not accepted.
    """
    row = ROWS[function]
    return [row[name](name, value) for name, value in given.items()]


# -- kinds of values ----------------------------------------------------------------------------------


def anything(name: str, value: Any) -> Any:
    """Accept any value: a wrong task function or task argument is reported by its future, as elsewhere."""
    return value


def _optional(check: Check) -> Check:
    return lambda name, value: None if value is None else check(name, value)


def _integer(least: int, *, kind: str = "an integer", small: str = "", most: int | None = None) -> Check:
    def check(name: str, value: Any) -> int:
        if isinstance(value, bool) or not hasattr(type(value), "__index__"):
            hint = "; // divides without a remainder" if isinstance(value, float) else ""
            raise TypeError(f"{name} must be {kind}, not {_shown(value)}{hint}")
        try:
            number = operator.index(value)
        except TypeError:  # from an array
            raise TypeError(f"{name} must be {kind}, not {_shown(value)}") from None
        if number < least:
            raise ValueError(f"{name} must be {small or f'>= {least}'}, not {_shown(value)}")
        if most is not None and number > most:
            raise ValueError(f"{name} must be <= {most}, not {_shown(value)}")
        return number

    return check


def _memory(name: str, value: Any) -> int:
    from farm_executor.core.handshake import MIN_MEMORY_LIMIT  # late, with what is needed to dial

    small = f">= {MIN_MEMORY_LIMIT} bytes, which is 1 MiB"
    number: int = _integer(MIN_MEMORY_LIMIT, kind="an integer, a number of bytes", small=small)(name, value)
    return number


def _seconds(least: float, *, more: bool = False, endless: bool = False) -> Check:
    """Return a check for seconds: at least ``least``, or above it with ``more``; unlimited with ``endless``."""

    def check(name: str, value: Any) -> Any:
        kind = type(value)
        if kind is not float and (issubclass(kind, bool) or not hasattr(kind, "__float__")):
            raise TypeError(f"{name} must be a number of seconds, not {_shown(value)}")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        except (TypeError, ValueError):  # for instance, an array of several numbers
            raise TypeError(f"{name} must be a number of seconds, not {_shown(value)}") from None
        if math.isnan(number) or not (endless or number < threading.TIMEOUT_MAX):
            raise ValueError(f"{name} must be a finite number of seconds, not {_shown(value)}")
        if number < least or (more and number == least):
            raise ValueError(f"{name} must be {'>' if more else '>='} {least:g}, not {_shown(value)}")
        return value if kind in (int, float) and number != math.inf else number

    return check


def _flag(name: str, value: Any) -> bool:
    """Accept True or False, including numpy's, and 0 or 1; reject text, which would always count as True."""
    try:
        if value == bool(value):
            return bool(value)
    except Exception:  # its == or its truth value fails
        pass
    raise TypeError(f"{name} must be True or False, not {_shown(value)}")


def _truth(name: str, value: Any) -> bool:
    try:
        return bool(value)
    except Exception:  # from an array
        raise TypeError(f"{name} must be True or False, not {_shown(value)}") from None


def _callable(name: str, value: Any) -> Any:
    if not callable(value):
        raise TypeError(f"{name} must be a callable, not {_shown(value)}")
    return value


def _task(name: str, value: Any) -> Any:
    if not callable(value):
        from farm_executor.errors import InvalidTaskError

        raise InvalidTaskError(f"{name} must be a callable, not {_shown(value)}")
    return value


def _tuple(name: str, value: Any) -> tuple[Any, ...]:
    if not isinstance(value, Iterable):
        raise TypeError(f"{name} must be a tuple of arguments, not {_shown(value)}")
    return tuple(value)


def _context(name: str, value: Any) -> Any:
    if not hasattr(value, "get_start_method"):
        raise TypeError(
            f"{name} must be a context of multiprocessing, not {_shown(value)}; where the first argument is "
            "addresses, max_workers= is given by its name"
        )
    return value


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, not {_shown(value)}")
    return value


def _progress(name: str, value: Any) -> Any:
    if value is not None and not isinstance(value, (bool, str)) and not callable(value):
        raise TypeError(f"{name} must be True, a label, or a callable for (done, total), not {_shown(value)}")
    return value


def _choice(*choices: str) -> Check:
    def check(name: str, value: Any) -> str:
        if not isinstance(value, str):
            raise TypeError(f"{name} must be {_or(choices)}, not {_shown(value)}")
        if value not in choices:
            raise ValueError(f"{name} must be {_or(choices)}, not {_shown(value)}")
        return value

    return check


def _output(name: str, value: Any) -> Any:
    if value is None or callable(value):
        return value
    if not isinstance(value, str):
        raise TypeError(f'{name} must be "forward", "server", a callable or None, not {_shown(value)}')
    if value not in ("forward", "server"):
        raise ValueError(f'{name} must be "forward", "server", a callable or None, not {_shown(value)}')
    return value


def _variables(name: str, value: Any) -> tuple[str, ...]:
    """Return where each of the context variables is found, as ``module:name``: by that it can travel."""
    wrong = f"{name} must be a list of contextvars.ContextVar, not {_shown(value)}"
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise TypeError(wrong)
    variables = list(value)
    if not all(type(variable) is ContextVar for variable in variables):
        raise TypeError(wrong)
    return tuple(_place(name, variable) for variable in variables)


def _place(name: str, variable: ContextVar[Any]) -> str:
    # What is in __main__ is something else in a worker; and most modules that have it have it from another.
    for module in sorted(set(sys.modules) - {"__main__"}, key=lambda module: (module.count("."), module)):
        attributes = getattr(sys.modules.get(module), "__dict__", {})
        for attribute, found in list(attributes.items()):
            if found is variable:
                return f"{module}:{attribute}"
    raise ValueError(
        f"{name}: {variable!r:.100} is not a global of any imported module, so that workers could not find it; "
        "define it in a module, and not in __main__"
    )


_level = _integer(-_MAX_PRIORITY, most=_MAX_PRIORITY)


def _priority(name: str, value: Any) -> Any:
    if not isinstance(value, str):
        return _level(name, value)
    if value not in _PRIORITIES:
        names = ", ".join(_PRIORITIES)
        raise ValueError(f"{name}: no such priority: {_shown(value)}; there are {names}, and integers")
    return _PRIORITIES[value]


def _hashable(name: str, value: Any) -> Any:
    try:
        hash(value)
    except Exception:  # whatever its method raises
        raise TypeError(f"{name} must be hashable, which {_shown(value)} is not") from None
    return value


def _category(name: str, value: Any) -> Any:
    if value is None:
        raise ValueError(f"a {name} must be given: None is that of tasks without one")
    return _hashable(name, value)


def _future(name: str, value: Any) -> Any:
    if not isinstance(value, Future):
        raise TypeError(f"{name} must be a concurrent.futures.Future, as submit gives it, not {_shown(value)}")
    return value


def _secret(name: str, value: Any) -> bytes:
    """Check a secret, without ever showing it."""
    if not isinstance(value, (bytes, bytearray)):
        raise TypeError(f"{name} must be bytes, not {type(value).__qualname__}; a file is named by key_file=")
    from farm_executor.core.secret import Secret, weakness  # late, with what is needed to dial

    if why := weakness(bytes(value)):
        raise ValueError(f"{name} {why}")
    return Secret(value)


def _path(name: str, value: Any) -> Any:
    if not isinstance(value, (str, os.PathLike)) or not isinstance(os.fspath(value), str):
        raise TypeError(f"{name} must be a path, a str or an os.PathLike, not {_shown(value)}")
    if "\0" in os.fspath(value) or not os.fspath(value):
        raise ValueError(f"{name}: {_shown(value)} is not a path")
    return value


def _paths(name: str, value: Any) -> Any:
    if isinstance(value, (str, os.PathLike)) or not isinstance(value, Iterable) or isinstance(value, bytes):
        return _path(name, value)
    return [_path(name, one) for one in value]


def _env(name: str, value: Any) -> list[tuple[str, str]]:
    if value is None:
        return []
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} must be a mapping of names to values, not {_shown(value)}")
    pairs = []
    for key, text in value.items():
        if not isinstance(key, str) or not isinstance(text, str):
            raise TypeError(f"{name} must map str to str, not {_shown(key)} to {_shown(text)}")
        if "=" in key:
            raise ValueError(f"{name}: {_shown(key)} is not the name of an environment variable")
        try:
            pairs.append(variable(f"{key}={text}"))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return pairs


def _ship(name: str, value: Any) -> tuple[str, ...]:
    """Return the modules to send, none for "off"; paths become absolute, as the program may change directory."""
    one = isinstance(value, (str, os.PathLike))
    if (not one and not isinstance(value, Iterable)) or isinstance(value, bytes):
        raise TypeError(f'{name} must be "auto", "off", or names and paths of modules, not {_shown(value)}')
    if isinstance(value, str) and value == "off":
        return ()
    found = []
    for each in [value] if one else value:
        if not isinstance(each, (str, os.PathLike)) or not isinstance(os.fspath(each), str):
            raise TypeError(f'{name} must be "auto", "off", or names and paths of modules, not {_shown(value)}')
        text = os.fspath(each)
        is_path = not isinstance(each, str) or os.sep in text or (text != "auto" and os.path.exists(text))
        found.append(os.path.abspath(text) if is_path else text)
    return tuple(found)


def _key_file(name: str, value: Any) -> Any:
    """Check that the file holds a key now. It is read again for each connection, since keys may be replaced."""
    from farm_executor.errors import AuthenticationError
    from farm_executor.wire.security import read_key  # late: few programs name a file

    try:
        read_key(_path(name, value))
    except AuthenticationError as error:
        raise ValueError(f"{name}: {error}") from error
    # The program may change its directory before the file is read again.
    return value if os.path.isabs(value) else os.path.abspath(value)


def _ssl_context(name: str, value: Any) -> Any:
    from farm_executor.wire.tls import own_context  # late, as it imports ssl

    own_context(value)
    return value


def _addresses(name: str, value: Any) -> Any:
    return parse_addresses(value)


def _address(name: str, value: Any) -> Any:
    return parse_address(value, ssh=True)


def _or(choices: Iterable[str]) -> str:
    return " or ".join(f'"{choice}"' for choice in choices)


def _shown(value: Any) -> str:
    try:
        shown = repr(value)
    except Exception:  # the value may be any object, with any __repr__
        return f"an object of type {type(value).__qualname__}"
    return shown if len(shown) <= _MAX_SHOWN else shown[:_MAX_SHOWN] + "..."


# -- the table ----------------------------------------------------------------------------------------

_TIMEOUT = _optional(_seconds(0.0))
_DEADLINE = _optional(_seconds(-math.inf))  # one in the past is accepted, as in the standard library
_POSITIVE = _seconds(0.0, more=True)
_LIMIT = _seconds(0.0, more=True, endless=True)  # for a timer, which may never fire
_ANSWER = {
    "host": anything,  # host and port are checked together, with AddressError
    "port": anything,
    "key": _optional(_secret),
    "key_file": _optional(_path),
    "ssl_context": _optional(_ssl_context),
}

ROWS: dict[str, dict[str, Check]] = {
    "FarmExecutor": {
        "addresses": _optional(_addresses),
        "mp_context": _optional(_context),
        "initializer": _optional(_callable),
        "initargs": _tuple,
        "max_workers": _optional(_integer(1, small="greater than 0")),
        "max_tasks_per_child": _optional(_integer(1)),
        "max_memory_per_worker": _optional(_memory),
        "key": _optional(_secret),
        "key_file": _optional(_key_file),
        "ssl_context": _optional(_ssl_context),
        "connect_timeout": _optional(_LIMIT),
        "heartbeat": _POSITIVE,
        "resume_timeout": _seconds(0.0),
        "max_attempts": _integer(1),
        "allow_version_mismatch": _flag,
        "max_pending_bytes": _optional(_integer(1)),
        "when_full": _choice("wait", "raise"),
        "caller_leads": _flag,
        "ship": _ship,
        "name": _optional(_text),
        "output": _output,
        "context": _variables,
        "logs": _choice("forward", "server"),
        "max_shared": _optional(_integer(0, kind="an integer, a number of bytes")),
    },
    "FarmExecutor.submit": {"fn": anything},
    "FarmExecutor.stream": {"fn": _task},
    "FarmExecutor.map": {
        "fn": anything,
        "timeout": _DEADLINE,
        "chunksize": _integer(1),
        "buffersize": _optional(_integer(1, kind="an integer or None", small="None or > 0")),
        "progress": _progress,
    },
    "FarmExecutor.share": {"value": anything, "frozen": _flag},
    "FarmExecutor.shutdown": {"wait": _truth, "cancel_futures": _truth, "timeout": _TIMEOUT},
    "FarmExecutor.with_options": {
        "priority": _optional(_priority),
        "category": _hashable,
        "max_attempts": _optional(_integer(1)),
        "timeout": _optional(_LIMIT),
    },
    "FarmExecutor.add_server": {"address": _address},
    "FarmExecutor.remove_server": {"address": _address, "drain": _flag, "timeout": _TIMEOUT},
    "FarmExecutor.connect": {"timeout": _TIMEOUT},
    "FarmExecutor.broadcast": {"fn": anything, "persistent": _flag, "timeout": _TIMEOUT},
    "FarmExecutor.check": {"timeout": _TIMEOUT},
    "FarmExecutor.dashboard": {"listen": _text, "insecure": _flag, "open": _flag},
    "FarmExecutor.kill": {"future": _future},
    "FarmExecutor.kill_tasks": {"category": _category, "dry_run": _flag},
    "FarmExecutor.cancel_all": {},
    "FarmExecutor.kill_workers": {},
    "FarmExecutor.terminate_workers": {},
    "FarmExecutor.statistics": {},
    "Server.abandon": {},
    "Server.drain": {},
    "Server.end": {},
    "Server.let_go": {},
    "Server.wait": {"timeout": _TIMEOUT},
    "start_server": {
        "host": anything,
        "port": anything,
        "background": _flag,
        "name": _optional(_text),
        "workers": _optional(_integer(1)),
        "key": _optional(_secret),
        "key_file": _optional(_paths),
        "certificate": _optional(_path),
        "private_key": _optional(_path),
        "client_ca": _optional(_path),
        "insecure": _flag,
        "env": _env,
        "max_shared": _optional(_integer(0, kind="an integer, a number of bytes")),
    },
    "progress.wait": {"fs": anything, "timeout": _DEADLINE, "return_when": anything, "progress": _progress},
    "progress.as_completed": {"fs": anything, "timeout": _DEADLINE, "progress": _progress},
    "ping": {**_ANSWER, "timeout": _DEADLINE},
    "status": {**_ANSWER, "timeout": _POSITIVE},
    "end_server": {**_ANSWER, "timeout": _POSITIVE},
}
"""The parameters of each public function. ``*args`` and ``**kwargs`` belong to the tasks."""
