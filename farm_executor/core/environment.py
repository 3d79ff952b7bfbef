"""Environment variables that each worker of a server gets, as users write them.

This module owns their form, and what ``{slot}`` in them stands for. It must not know how a process is given them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["SLOT", "for_slot", "shares", "variable"]

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
    # Checked here, where the user is told: in a worker it would come to light for each one that starts.
    try:
        held = text.encode("utf-8", "surrogateescape")  # as the system will be given it
    except UnicodeError:
        held = b"\0"
    if b"\0" in held:
        raise ValueError(f"{text!r} is not an environment variable: it has a character that none can hold")
    return name, value


def for_slot(variables: Iterable[tuple[str, str | Sequence[str]]], slot: int) -> dict[str, str]:
    """Return the variables of the worker at a slot; of two with one name, the later one.

    Args:
        variables: Each a name, and a value, or the values of slots 0, 1, 2 and so on.
        slot: The worker's.
    """
    return {
        name: value.replace(SLOT, str(slot)) if isinstance(value, str) else value[slot % len(value)]
        for name, value in variables
    }


def shares(devices: str, each: int) -> list[str]:
    """Divide a list of devices, such as ``0,1,2,3``, among workers: what slots 0, 1, 2 and so on get of it."""
    names = [name.strip() for name in devices.split(",") if name.strip()]
    return [",".join(names[first : first + each]) for first in range(0, len(names), each)]
