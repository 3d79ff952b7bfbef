"""Connect to the first of a host's addresses that answers.

This module owns the order and the timing of the attempts, which follow RFC 8305 ("Happy Eyeballs"): addresses of
both families alternate, each attempt starts a quarter of a second after the previous one or as soon as that fails,
and the first connection wins. So a dead address costs a moment, not the whole timeout. It must not know what is
said over the connection.
"""

from __future__ import annotations

import errno
import os
import selectors
import socket
import time
from collections.abc import Callable, Sequence
from itertools import chain, zip_longest
from typing import Any, TypeAlias

__all__ = ["Candidate", "candidates", "race"]

ATTEMPT_SECONDS = 0.25  # "Connection Attempt Delay", RFC 8305, section 5

Candidate: TypeAlias = "tuple[int, Any]"
"""An address family, and an address in the form that its sockets take."""

_UNDER_WAY = {errno.EINPROGRESS, errno.EWOULDBLOCK, errno.EAGAIN}


def candidates(host: str, port: int) -> list[Candidate]:
    """Return the addresses of a host, with alternating families, beginning with the one the system prefers.

    Raises:
        OSError: The name does not exist, or cannot be resolved.
    """
    found = [(family, where) for family, *_, where in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    found = list(dict.fromkeys(found))
    first = [one for one in found if one[0] == found[0][0]]
    others = [one for one in found if one[0] != found[0][0]]
    return [one for one in chain(*zip_longest(first, others)) if one is not None]


def race(
    candidates: Sequence[Candidate], deadline: float, starting: Callable[[socket.socket], None]
) -> socket.socket:
    """Connect to one of the candidates over TCP and abandon the others.

    Args:
        candidates: At least one, in order of preference.
        deadline: Monotonic time.
        starting: Called with each socket before it is connected, so that another thread can shut it down. An
            exception from it ends the race.

    Returns:
        A connected, non-blocking socket.

    Raises:
        TimeoutError: No candidate answered in time.
        OSError: All candidates failed; the error is that of the last one.
    """
    racing: list[socket.socket] = []
    try:
        with selectors.DefaultSelector() as selector:
            return _run(list(candidates), deadline, starting, racing, selector)
    finally:
        for loser in racing:
            loser.close()


def _run(
    waiting: list[Candidate],
    deadline: float,
    starting: Callable[[socket.socket], None],
    racing: list[socket.socket],
    selector: selectors.BaseSelector,
) -> socket.socket:
    failure: OSError = TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
    next_start = 0.0
    while True:
        now = time.monotonic()
        if now >= deadline:
            raise TimeoutError(errno.ETIMEDOUT, "no answer in time")
        if waiting and (now >= next_start or not racing):
            family, where = waiting.pop(0)
            try:
                sock = socket.socket(family, socket.SOCK_STREAM)
                racing.append(sock)
                sock.setblocking(False)
            except OSError as error:  # the system lacks this family, or is out of descriptors
                failure = error
                continue
            starting(sock)
            code = sock.connect_ex(where)
            if code in _UNDER_WAY:
                selector.register(sock, selectors.EVENT_WRITE)
                next_start = now + ATTEMPT_SECONDS
            elif code:
                failure = OSError(code, os.strerror(code))
                _let_go(sock, racing)
                continue
            else:
                racing.remove(sock)
                return sock
        elif not racing:
            raise failure
        until = min(deadline, next_start) if waiting else deadline
        for key, _ in selector.select(max(until - time.monotonic(), 0.0)):
            connected: Any = key.fileobj
            selector.unregister(connected)
            code = connected.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if not code:
                racing.remove(connected)
                return connected  # type: ignore[no-any-return]
            failure = OSError(code, os.strerror(code))
            _let_go(connected, racing)


def _let_go(sock: socket.socket, racing: list[socket.socket]) -> None:
    racing.remove(sock)
    sock.close()
