"""Tasks of the fault tests, in a module that workers can import. Each notes each time that it runs."""

import ctypes
import logging
import mmap
import os
import time
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

from farm_executor import current_task

place: ContextVar[str] = ContextVar("place")
"""Travels with calls."""

logger = logging.getLogger(__name__)
logger.setLevel(logging.INFO)
logger.addHandler(logging.NullHandler())
logger.propagate = False


def note(book: str, name: Any) -> None:
    """Write one line, whole, whoever else writes: that is what O_APPEND promises for so few bytes."""
    descriptor = os.open(book, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, f"{name}\n".encode())
    finally:
        os.close(descriptor)


def echo(book: str, name: Any, value: Any = None) -> Any:
    note(book, name)
    return value


def echo_after(seconds: float, book: str, name: Any, value: Any = None) -> Any:
    note(book, name)
    time.sleep(seconds)
    return value


def fail(book: str, name: Any) -> None:
    note(book, name)
    raise LookupError(name)


def echo_at(book: str, name: str, number: int) -> int:
    """For maps: an item's name is made of the map's and its own number."""
    note(book, f"{name}-{number}")
    return number


def words_of(name: Any, size: int = 0) -> str:
    """What `say` prints."""
    return f"{name} says {'x' * size}\n"


def say(book: str, name: Any, value: Any = None, size: int = 0) -> Any:
    """Say something in each of the ways that there are; with a size, print that much."""
    note(book, name)
    print(words_of(name, size), end="")
    logger.info("%s logs", name)
    task = current_task()
    task.report(1, 2, f"{name} reports")
    assert task.id, "it knows itself"
    return value


def count(book: str, name: Any, items: int, pause: float = 0.0) -> Iterator[int]:
    """For streams."""
    note(book, name)
    for number in range(items):
        yield number
        time.sleep(pause)


def die(book: str, name: Any, how: str) -> None:
    """The ways in which tasks end their own workers."""
    note(book, name)
    if how == "exit":
        os._exit(7)
    elif how == "kill":
        os.kill(os.getpid(), 9)
    elif how == "segfault":
        ctypes.string_at(0)
    elif how == "fork":
        if os.fork() == 0:
            time.sleep(0.2)
            os._exit(0)
        os._exit(8)
    elif how == "memory":
        hog = mmap.mmap(-1, 256 << 20)
        hog[:: mmap.PAGESIZE] = b"x" * len(range(0, 256 << 20, mmap.PAGESIZE))
        os._exit(9)


def sleep_with_the_lock(book: str, name: Any, seconds: int) -> int:
    """In C, holding the interpreter's lock."""
    note(book, name)
    return int(ctypes.PyDLL(None).sleep(seconds))
