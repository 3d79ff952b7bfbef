"""Environment variables that each worker of a server gets, as users write them.

This module owns their form, and what ``{slot}`` in them stands for. It must not know how a process is given them.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["SLOT", "for_slot", "variable"]

SLOT = "{slot}"
"""In a value: the number of the worker's slot, from 0 on. So k workers can share k GPUs."""


def variable(text: str) -> tuple[str, str]:
    """Read ``NAME=VALUE``.

    Raises:
        ValueError: The text has no name, no equals sign, or a character that no variable can hold.
    """
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise ValueError(f"{text!r} is not an environment variable: write it as NAME=VALUE")
    try:
        held = text.encode("utf-8", "surrogateescape")  # as the system will be given it
    except UnicodeError:
        held = b"\0"
    if b"\0" in held:
        raise ValueError(f"{text!r} is not an environment variable: it has a character that none can hold")
    return name, value


def for_slot(variables: Iterable[tuple[str, str]], slot: int) -> dict[str, str]:
    """Return the variables of the worker at a slot; of two with one name, the later one."""
    return {name: value.replace(SLOT, str(slot)) for name, value in variables}
