"""Checks of arguments, by name: what a function is given that makes no sense is refused where it is given.

This module knows the words of these errors, and nothing else. It is not part of the table in `arguments`, for that
turns what it is given into plain values, as the standard library's executors would (0 and 1 into bools, numpy's
numbers into seconds). lfarm is stricter: its functions take other functions' arguments beside their own, as Lisp's
do, and a value of another type is more likely to be one of those in the wrong place. The options of a
`FarmExecutor` that pass through `make_kernel` are checked by `arguments` alone.
"""

from __future__ import annotations

import operator
import threading
from typing import Any

__all__ = ["check_bool", "check_callable", "check_category", "check_instance", "check_seconds", "checked_index"]


def check_bool(name: str, value: Any) -> None:
    """Whether or not.

    Raises:
        TypeError: It is not a bool, so that it may have been meant for another argument.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, not {_kind(value)}")


def check_callable(name: str, value: Any) -> None:
    """A function.

    Raises:
        TypeError: It cannot be called.
    """
    if not callable(value):
        raise TypeError(f"{name} must be a function or another callable, not {_kind(value)}")


def check_category(category: Any) -> None:
    """What `task_category` takes.

    Raises:
        ValueError: It is None, which is that of no task.
        TypeError: It is not hashable.
    """
    if category is None:
        raise ValueError("category must not be None")
    try:
        hash(category)
    except TypeError:
        raise TypeError(f"category must be hashable, which {_kind(category)} is not") from None


def check_instance(name: str, value: Any, kind: type, made_by: str) -> None:
    """An object of ours.

    Raises:
        TypeError: It is not one.
    """
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be a {kind.__name__}, which {made_by} makes, not {_kind(value)}")


def check_seconds(name: str, value: Any, *, or_none: bool = True, least: float | None = None) -> None:
    """A time to wait; where it may be less than 0, that is not to wait.

    Raises:
        TypeError: It is not a number.
        ValueError: It is not a time that can be waited for.
    """
    if value is None and or_none:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number of seconds{', or None' if or_none else ''}, not {_kind(value)}")
    if not value <= threading.TIMEOUT_MAX or (least is not None and value < least):  # not NaN either
        least_text = "" if least is None else f"at least {least:g} and "
        raise ValueError(f"{name} must be {least_text}at most {threading.TIMEOUT_MAX:.0f} seconds, not {value}")


def checked_index(name: str, value: Any, least: int) -> int:
    """A number of things, as an int.

    Raises:
        TypeError: It is not an integer.
        ValueError: It is too small.
    """
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an integer, not {_kind(value)}")
    number = operator.index(value)
    if number < least:
        raise ValueError(f"{name} must be at least {least}, not {number}")
    return number


def _kind(value: Any) -> str:
    return "None" if value is None else type(value).__qualname__
