"""A peer's words, made fit for a log, a terminal and an exception.

This module owns what of a text is passed on: printable characters, in one line, and not too many. It must not know
what the text is about. Whoever reads a peer's text does it by these functions, so that no escape sequence, forged
line of a log or lone surrogate gets any further, and no more of it is kept than somebody would read.
"""

from __future__ import annotations

__all__ = ["MAX_STDERR", "MAX_STDERR_LINES", "one_line", "some_lines"]

MAX_STDERR_LINES = 20
MAX_STDERR = 2048  # characters of what a worker wrote to standard error, in a report of its death


def one_line(text: str, limit: int) -> str:
    """The first ``limit`` characters, a space for any white space, and ``?`` for all else that is not printable."""
    text = text[:limit]
    return text if text.isprintable() else "".join([_shown(character) for character in text])


def some_lines(text: str, lines: int, limit: int) -> str:
    """The same of the last lines of a text, which stay lines, with their tabs."""
    kept = text[-limit:].split("\n")[-lines:]
    return "\n".join("\t".join(one_line(part, limit) for part in line.split("\t")) for line in kept)


def _shown(character: str) -> str:
    if character.isprintable():
        return character
    return " " if character.isspace() else "?"
