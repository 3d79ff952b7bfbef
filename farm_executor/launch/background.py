"""The servers that this program has started in the background: each lives until it is ended, or the program is.

This module owns the references that keep them, and their end with the program. It must not know what kinds of
servers there are, nor when executors end, which need the servers until then: whoever puts the package together
calls `end_all` after that.
"""

from __future__ import annotations

import os
from typing import Protocol

__all__ = ["end_all", "forget", "keep"]


class Kept(Protocol):
    """Such a server."""

    @property
    def ended(self) -> bool:
        """Whether it has ended already."""

    def let_go(self) -> None:
        """Have it end, without waiting for that."""

    def end(self) -> None:
        """End it, wait for its end, and `forget` it."""

    def abandon(self) -> None:
        """In a forked child: let go of it; it is the parent's."""


_kept: set[Kept] = set()


def keep(server: Kept) -> None:
    """Let it live on, even if nobody refers to it."""
    for other in list(_kept):
        if other.ended:  # by its address, perhaps, so that nobody has come here
            other.end()
    _kept.add(server)


def forget(server: Kept) -> None:
    """It has ended, or is about to."""
    _kept.discard(server)


def end_all() -> None:
    """End them all, at the same time, and wait for their ends."""
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
