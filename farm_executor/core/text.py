"""Clean up a peer's text for a log, a terminal or an exception.

This module owns which part of a text is passed on: printable characters, on one line, and not too many. It must not
know what the text is about. All text from peers is read through these functions, so that escape sequences, forged
log lines and lone surrogates get no further, and no more of it is kept than somebody would read.
"""

from __future__ import annotations

import re
import unicodedata
from functools import partial
from typing import Any

__all__ = [
    "MAX_STDERR",
    "MAX_STDERR_LINES",
    "cut",
    "last_lines",
    "name_of",
    "one_line",
    "plain_lines",
    "some_lines",
    "width_of",
]

_ESCAPE_SEQUENCE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")

MAX_STDERR_LINES = 20
MAX_NAME = 200
MAX_STDERR = 2048  # characters of what a worker wrote to standard error, in a report of its death


def one_line(text: str, limit: int) -> str:
    """Return the first ``limit`` characters, with other white space as spaces and unprintable ones as ``?``."""
    # Cut first: the cost must not depend on how much a peer has sent.
    text = text[:limit]
    return text if text.isprintable() else "".join([_shown(character) for character in text])


def some_lines(text: str, lines: int, limit: int) -> str:
    """Return the last ``lines`` lines of the last ``limit`` characters, each as by `one_line` but with its tabs."""
    kept = text[-limit:].split("\n")[-lines:]
    return "\n".join("\t".join(one_line(part, limit) for part in line.split("\t")) for line in kept)


def width_of(text: str) -> int:
    """Return how many columns of a terminal a printable text takes."""
    return len(text) if text.isascii() else sum(map(_width, text))


def cut(text: str, width: int) -> str:
    """Return the beginning of a printable text that takes at most ``width`` columns."""
    if text.isascii():
        return text[: max(width, 0)]
    taken = 0
    for index, character in enumerate(text):
        taken += _width(character)
        if taken > width:
            return text[:index]
    return text


def _width(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def last_lines(text: str, lines: int, limit: int) -> str:
    """Return the last of the lines that `plain_lines` returns, of which no more than ``limit`` characters."""
    return "\n".join(plain_lines(text)[-lines:])[-limit:]


def plain_lines(text: str) -> list[str]:
    """Return the lines that are not empty as a terminal would show them, without anything that controls one."""
    text = _ESCAPE_SEQUENCE.sub("", text)
    shown = [line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n")]  # a progress bar's last state
    lines = ["".join([c for c in line if c == "\t" or c.isprintable()]).rstrip() for line in shown]
    return [line for line in lines if line]


def _shown(character: str) -> str:
    if character.isprintable():
        return character
    return " " if character.isspace() else "?"


def name_of(fn: Any) -> str:
    """Return what people call a function: its name, also if it is partly applied, or applied to many items."""
    while isinstance(fn, partial):
        # Those of the package that call another, such as for each of a block's items, take it, or its name, first.
        ours = str(getattr(fn.func, "__module__", "")).startswith("farm_executor.")
        first = fn.args[0] if fn.args else None
        fn = first if ours and (callable(first) or type(first) is str) else fn.func
    if type(fn) is str:
        return one_line(fn, MAX_NAME)
    name = getattr(fn, "__qualname__", None) or getattr(fn, "__name__", None) or type(fn).__qualname__
    return one_line(str(name).rpartition("<locals>.")[2], MAX_NAME)
