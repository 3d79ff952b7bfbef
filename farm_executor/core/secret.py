"""Secrets that must not be shown by accident.

This module owns how a secret prints, and when it is too easy to guess. It must not know what a secret is used for.
"""

from __future__ import annotations

__all__ = ["MIN_KEY_SIZE", "Secret", "is_random", "monitor_secret", "weakness"]

MIN_KEY_SIZE = 16
MIN_DIFFERENT = 6  # different bytes: 16 random decimal digits have fewer than that once in 10,000 times


class Secret(bytes):
    """Bytes that stay hidden when variables are printed, as by a tool that reports exceptions."""

    def __repr__(self) -> str:
        """Return a text that reveals nothing."""
        return "<a secret>"

    __str__ = __repr__


def weakness(key: bytes) -> str:
    """Return why ``key`` is not fit to be a key, as the end of a sentence; empty if it is."""
    if len(key) < MIN_KEY_SIZE:
        return f"must have at least {MIN_KEY_SIZE} bytes, not {len(key)}"
    if len(set(key)) < MIN_DIFFERENT:
        return f"must not be so easy to guess: it is made of {len(set(key))} different bytes only"
    return ""


def monitor_secret(secret: bytes) -> Secret:
    """Return the secret that lets its holder look at a server with this one, and do nothing else.

    It does not tell the other secret, unless that can be guessed: it allows guesses to be tried at leisure.
    """
    import hashlib  # late, like the next: a client is on its way to start a server
    import hmac

    return Secret(hmac.new(secret, b"farm monitor key", hashlib.sha256).hexdigest().encode())


def is_random(secret: bytes) -> bool:
    """Return whether a plain secret is one that we, or our documentation's commands, have made: 64 hex digits."""
    return len(secret) == 64 and not secret.strip(b"0123456789abcdef")
