"""Servers that this program has started in the background. Each lives until it, or the program, is ended.

This module owns the references that keep them alive, and ends them with the program. It must not know what kinds of
servers there are, nor when executors end. Since executors need the servers until then, the package's top level
calls `end_all` after the executors have ended.
"""

from __future__ import annotations

import os
from typing import Protocol

__all__ = ["end_all", "forget", "keep"]


class Kept(Protocol):
    """A server in the background."""

    @property
    def ended(self) -> bool:
        """Whether the server has already ended."""

    def let_go(self) -> None:
        """Make the server end, without waiting for it."""

    def end(self) -> None:
        """End the server, wait for its end, and `forget` it."""

    def abandon(self) -> None:
        """Release the server in a forked child; it belongs to the parent."""


_kept: set[Kept] = set()


def keep(server: Kept) -> None:
    """Keep the server alive even if nothing else refers to it."""
    for other in list(_kept):
        if other.ended:  # perhaps by its address or a signal, so that `forget` was never called
            other.end()
    _kept.add(server)


def forget(server: Kept) -> None:
    """Drop the reference to a server that has ended or is about to."""
    _kept.discard(server)


def end_all() -> None:
    """End all servers at the same time, and wait for their ends."""
    servers = list(_kept)
    for server in servers:
        server.let_go()
    for server in servers:
        server.end()


def _after_fork_in_child() -> None:
    for server in list(_kept):
        server.abandon()
    _kept.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
