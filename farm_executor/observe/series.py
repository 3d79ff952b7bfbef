"""What both kinds of dashboards are made of: series of which only what is new is told, and tables.

This module owns the shapes that the page knows. It must not know what is shown with them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import islice
from typing import Any, Generic, TypeVar

from farm_executor._record import NamedTuple

__all__ = ["Cursor", "Series", "Table", "bad", "cells", "digit", "part", "seconds", "tile"]

T = TypeVar("T")

MAX_CELLS = 64  # workers of a server that have a cell each


class Cursor(NamedTuple):
    """How much of each series a page has been told."""

    pieces: int = 0
    failures: int = 0
    history: int = 0
    heat: int = 0


class Series(Generic[T]):
    """The last items of a series, each with a number that stays. Not thread-safe."""

    def __init__(self, most: int) -> None:
        self._items: deque[T] = deque(maxlen=most)
        self._count = 0

    def __len__(self) -> int:
        return len(self._items)

    @property
    def last(self) -> T:
        """The last item."""
        return self._items[-1]

    def append(self, item: T) -> None:
        """Add an item; the oldest goes if there are too many."""
        self._items.append(item)
        self._count += 1

    def since(self, number: int) -> tuple[list[T], int]:
        """Return the items from a number on, as far as they are still there, and the number of the next."""
        first = self._count - len(self._items)
        return list(islice(self._items, max(number - first, 0), None)), self._count


class Table(NamedTuple):
    """A table; a cell is a text, a number, or one of the kinds below."""

    title: str
    columns: list[str]
    rows: list[list[Any]]


def tile(value: Any, text: str, *, wrong: bool = False) -> list[Any]:
    """Return a figure with what it is."""
    return [value, text, wrong]


def bad(value: Any) -> dict[str, Any]:
    """Return a cell for what is wrong."""
    return {"bad": value}


def cells(levels: Iterable[str]) -> dict[str, Any]:
    """Return a cell with a small bar for each worker; a level is a digit."""
    every = "".join(levels)
    return {"cells": every[:MAX_CELLS], "busy": sum(level > "0" for level in every), "of": len(every)}


def part(fraction: float, colour: int) -> dict[str, Any]:
    """Return a cell with a bar that fills a part of it."""
    return {"part": round(fraction, 4), "colour": colour}


def digit(fraction: float) -> str:
    """Return a level from 0 to 9."""
    return str(min(max(int(fraction * 9.99), 0), 9))


def seconds(value: float) -> str:
    """Return a time for people."""
    if value < 1e-3:
        return f"{value * 1e6:.0f} µs"
    if value < 1:
        return f"{value * 1e3:.3g} ms"
    if value < 120:
        return f"{value:.3g} s"
    return f"{value / 60:.0f} min" if value < 7200 else f"{value / 3600:.1f} h"
