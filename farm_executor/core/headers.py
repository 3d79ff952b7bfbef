"""The names of what a call's header may hold, and its limit.

This module owns these alone: each end has its own idea of what to do with a part.
"""

from __future__ import annotations

__all__ = ["MAX_HEADER", "VARS"]

MAX_HEADER = 64 * 1024  # bytes: what is larger is an argument

VARS = "vars"
"""Context variables, by name."""
