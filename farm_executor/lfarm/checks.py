"""Checks of arguments by name, so that invalid ones are refused where they are given.

This module owns the wording of these errors, and nothing else. It is separate from the table in `arguments`, which
converts its arguments to plain values, as the standard library's executors would (0 and 1 to bools, numpy's numbers
to seconds). lfarm is stricter: like Lisp's functions, its functions take other functions' arguments beside their
own, and a value of a wrong type is more likely to be one of those in the wrong place. The options of a
`FarmExecutor` that pass through `make_kernel` are checked by `arguments` alone.
"""

from __future__ import annotations

import operator
import threading
from typing import Any

__all__ = ["check_bool", "check_callable", "check_category", "check_instance", "check_seconds", "checked_index"]


def check_bool(name: str, value: Any) -> None:
    """Check that the value is a bool.

    Raises:
        TypeError: The value is not a bool, so that it may have been meant for another argument.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, not {_kind(value)}")


def check_callable(name: str, value: Any) -> None:
    """Check that the value is callable.

    Raises:
        TypeError: The value is not callable.
    """
    if not callable(value):
        raise TypeError(f"{name} must be a function or another callable, not {_kind(value)}")


def check_category(category: Any) -> None:
    """Check that the value can be a task category.

    Raises:
        ValueError: The category is None, which stands for no task.
        TypeError: The category is not hashable.
    """
    if category is None:
        raise ValueError("category must not be None")
    try:
        hash(category)
    except TypeError:
        raise TypeError(f"category must be hashable, which {_kind(category)} is not") from None


def check_instance(name: str, value: Any, kind: type, made_by: str) -> None:
    """Check that the value is an instance of one of our classes.

    Raises:
        TypeError: The value is not an instance of it.
    """
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be a {kind.__name__}, which {made_by} makes, not {_kind(value)}")


def check_seconds(name: str, value: Any, *, or_none: bool = True, least: float | None = None) -> None:
    """Check that the value is a time to wait; where it may be negative, that means not to wait.

    Raises:
        TypeError: The value is not a number.
        ValueError: The value is too small, too large or NaN.
    """
    if value is None and or_none:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number of seconds{', or None' if or_none else ''}, not {_kind(value)}")
    if not value <= threading.TIMEOUT_MAX or (least is not None and value < least):  # not NaN either
        least_text = "" if least is None else f"at least {least:g} and "
        raise ValueError(f"{name} must be {least_text}at most {threading.TIMEOUT_MAX:.0f} seconds, not {value}")


def checked_index(name: str, value: Any, least: int) -> int:
    """Return an integer argument as an int.

    Raises:
        TypeError: The value is not an integer.
        ValueError: The value is too small.
    """
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an integer, not {_kind(value)}")
    number = operator.index(value)
    if number < least:
        raise ValueError(f"{name} must be at least {least}, not {number}")
    return number


def _kind(value: Any) -> str:
    return "None" if value is None else type(value).__qualname__
