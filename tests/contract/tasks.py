"""What the contract tests run in executors: importable by name in every worker."""

import os
import pickle
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from contract.gate import DEADLINE, Address

state: Any = "never set"


def identity(value: Any) -> Any:
    return value


def call_with(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, kwargs


def add(left: int, right: int) -> int:
    return left + right


def negate(value: int) -> int:
    return -value


def invert(number):
    return 1 / number


def pass_gate(address: Address, value: Any = None) -> Any:
    """Comes to the gate, waits until it opens, and returns the value."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(DEADLINE)
            connection.connect(address)
            connection.recv(1)
    except (ConnectionError, FileNotFoundError):
        pass  # it has opened already
    return value


def pass_gate_and_raise(address: Address) -> None:
    pass_gate(address)
    raise ValueError("behind the gate")


def pass_gate_when_first(address: Address, number: int) -> int:
    """Number 0 waits at the gate, the others do not."""
    return pass_gate(address, number) if number == 0 else number


def write_line(path: str, text: object) -> None:
    """Appends one line: how a task leaves a trace that the test can read, wherever it ran."""
    with Path(path).open("a") as file:
        file.write(f"{text}\n")


def pass_gate_after_first(address: Address, path: str, number: int) -> int:
    """Number 0 returns at once; the others sign the book and wait at the gate."""
    if number:
        write_line(path, number)
        pass_gate(address)
    return number


def report_and_wait(queue: Any, event: Any, text: str) -> str:
    """With the queue and the event of a manager."""
    queue.put(text)
    return "told to stop" if event.wait(DEADLINE) else "forgotten"


def process_and_thread() -> tuple[int, int]:
    return os.getpid(), threading.get_ident()


def set_state(value: Any = "set without arguments") -> None:
    global state
    state = value


def get_state() -> Any:
    return state


def fail_to_start() -> None:
    raise LookupError("no place to work in")


def raise_it(error: BaseException) -> None:
    raise error


def raise_in_depth(error: BaseException) -> None:
    """The frame whose name the client wants to read in the traceback is the one below."""

    def the_very_place() -> None:
        raise error

    the_very_place()


def raise_from_cause() -> None:
    try:
        raise KeyError("the deeper reason")
    except KeyError as error:
        raise ValueError("the consequence") from error


def raise_in_context() -> None:
    try:
        raise KeyError("the circumstance")
    except KeyError:
        raise ValueError("what went wrong meanwhile")  # noqa: B904 - the implicit context is the point


def raise_from_none() -> None:
    try:
        raise KeyError("hidden")
    except KeyError:
        raise ValueError("on its own") from None


def raise_with_notes(*notes: str) -> None:
    error = ValueError("annotated")
    for note in notes:
        error.add_note(note)  # type: ignore[attr-defined, unused-ignore]  # Python 3.11
    raise error


def raise_group() -> None:
    raise ExceptionGroup("both", [ValueError(1), KeyError("two")])  # type: ignore[name-defined, unused-ignore]  # noqa: F821


class PlainError(Exception):
    pass


class DetailedError(Exception):
    """Needs two arguments but keeps one: what pickle makes of it cannot be built again."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{reason} ({code})")
        self.code = code
        self.reason = reason


def raise_with_attribute() -> None:
    error = PlainError("with an attribute")
    error.detail = {"rows": [1, 2]}  # type: ignore[attr-defined]
    raise error


def raise_detailed() -> None:
    raise DetailedError(7, "too long")


def return_lock() -> object:
    return threading.Lock()


def raise_with_lock() -> None:
    raise PlainError(threading.Lock())


class FailsToLoad:
    """Pickles well and fails to unpickle."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _refuse_to_load, ()


def _refuse_to_load() -> None:
    raise pickle.UnpicklingError("refused")


def clear(values: list[int]) -> int:
    """Empties the caller's list, where the task and the caller share it."""
    values.clear()
    return len(values)


def double_in_place(array: Any) -> Any:
    array *= 2
    return array


class Counter:
    """Callables of every kind."""

    def __init__(self, start: int) -> None:
        self.start = start

    def __call__(self, step: int) -> int:
        return self.start + step

    def above(self, step: int) -> int:
        return self.start + step

    @classmethod
    def make(cls, start: int) -> "Counter":
        return cls(start)

    @staticmethod
    def twice(value: int) -> int:
        return 2 * value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Counter) and self.start == other.start

    def __hash__(self) -> int:
        return hash(self.start)


def size_after(data: bytes, seconds: float) -> int:
    time.sleep(seconds)
    return len(data)
