"""How much output may be on its way to a client that has not shown it, and when a client counts as deaf.

This module owns these limits, which both ends go by: the server stops reading from workers, and the client knows
that nothing more will come. It must not know what is written, nor how it travels.
"""

from __future__ import annotations

__all__ = ["DEAF_SECONDS", "TELL_EVERY", "WINDOW"]

WINDOW = 1024 * 1024
"""Bytes of frames of one connection that the client has not said it has shown: with more, its workers wait."""

TELL_EVERY = WINDOW // 8
"""Bytes of frames shown after which the server hears of it."""

DEAF_SECONDS = 1.0
"""How long workers wait for a client that shows nothing. Then what they write is dropped until it does."""
