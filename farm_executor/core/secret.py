"""Secrets, as far as they must not be seen by accident.

This module owns what a secret looks like, and when it is too easy to guess. It must not know what it is good for.
"""

from __future__ import annotations

__all__ = ["MIN_KEY_SIZE", "Secret", "weakness"]

MIN_KEY_SIZE = 16
MIN_DIFFERENT = 6  # of 16 random decimal digits there are fewer once in 10,000 times


class Secret(bytes):
    """Bytes that tell nothing of themselves to who prints variables, such as a reporter of exceptions."""

    def __repr__(self) -> str:
        """Tell nothing."""
        return "<a secret>"

    __str__ = __repr__


def weakness(key: bytes) -> str:
    """Why that is no key, as the end of a sentence; empty if it may be one."""
    if len(key) < MIN_KEY_SIZE:
        return f"must have at least {MIN_KEY_SIZE} bytes, not {len(key)}"
    if len(set(key)) < MIN_DIFFERENT:
        return f"must not be so easy to guess: it is made of {len(set(key))} different bytes only"
    return ""
