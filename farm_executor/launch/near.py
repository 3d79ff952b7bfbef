"""The near end of a server that an engine holds: in the gateway.

This module owns the calls to the far end, when they are given up and made again, and what is made of the far end's
words. It must not know the engine.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

from farm_executor.core.tunnel import Flight, TunnelError, heading, request
from farm_executor.launch.ends import Ends, Loop
from farm_executor.launch.far import GONE_SECONDS
from farm_executor.wire.sockets import Socket

__all__ = ["Near"]

FIRST_PAUSE, LONGEST_PAUSE = 0.2, 2.0  # seconds, after calls that have failed


class Near:
    """One server's.

    Args:
        loop: Waits for the sockets.
        call: Has the far end `exchange` a piece, in any thread; see `gateway.Grant`.
        dial: Connects to the program, which waits on this machine.
        hear: Called in a thread of any kind with each of the far end's words.

    Attributes:
        failure: Why calls fail at the moment; empty if they do not.
        answered: Whether the far end has been heard of in this epoch. If not, the server may be yet to be granted.
    """

    def __init__(
        self,
        loop: Loop,
        call: Callable[[bytes | memoryview], Future[Any]],
        dial: Callable[[], Socket],
        hear: Callable[[dict[str, Any]], None],
    ) -> None:
        self._loop = loop
        self._call = call
        self._hear = hear
        self._ends = Ends(loop, dial, self._on_news)
        self._epoch = 0
        self._flight = Flight()
        self._since: dict[Future[Any], float] = {}  # calls on their way, and since when
        self.answered = False
        self._failures = 0
        self._next: float | None = 0.0  # when to begin an epoch; None while there is one
        self._turns = False  # whether a turn has been asked for
        self._closed = False
        self.failure = ""

    def start(self) -> None:
        """Begin."""
        self._loop.ticks.append(self._tick)
        self._loop.call(partial(self._tick, time.monotonic()))

    def end(self) -> None:
        """Have the far end end its server."""
        self._loop.call(partial(self._ends.say, b"end"))

    def close(self) -> None:
        """Close all connections, and call no more."""
        self._loop.call(self._close)

    # -- all of this is done by the loop's thread --------------------------------------------------------------

    def _close(self) -> None:
        self._closed = True
        with contextlib.suppress(ValueError):
            self._loop.ticks.remove(self._tick)
        self._ends.begin(1 << 63)

    def _on_news(self) -> None:
        if not self._turns:
            self._turns = True
            self._loop.call(self._turn)

    def _turn(self) -> None:
        """Make the calls that are to be made now."""
        self._turns = False
        flight = self._flight
        while self._next is None and not self._closed and (piece := self._ends.take(flight=flight)):
            self._make(piece, pulls=False)
        while self._next is None and not self._closed and flight.may_pull:
            flight.pulls += 1
            self._make(request(self._epoch), pulls=True)

    def _make(self, piece: bytes | memoryview, *, pulls: bool) -> None:
        try:
            future = self._call(piece)
        except Exception as error:
            self._broken(f"{type(error).__name__}: {error}")
            return
        self._since[future] = time.monotonic()
        answer = partial(self._on_answer, future, self._flight, 0 if pulls else len(piece))
        future.add_done_callback(lambda future: self._loop.call(answer))

    def _on_answer(self, future: Future[Any], flight: Flight, sent: int) -> None:
        self._since.pop(future, None)
        if self._closed:
            return
        try:
            answer = memoryview(future.result())
            epoch, number = heading(answer) if answer else (0, 0)
            if sent:
                flight.landed(sent)
            else:
                flight.pulled(len(answer) if number else 0)
            # A call of an epoch that is over may bring a piece of this one.
            self._take_in(answer, epoch, number)
        except Exception as error:
            if flight is self._flight:
                self._broken(f"{type(error).__name__}: {error}")
            return
        if flight is self._flight:
            self._failures, self.failure = 0, ""
            self._turn()

    def _take_in(self, answer: bytes | memoryview, epoch: int, number: int) -> None:
        """Read what a call has brought, unless it is of an epoch that is over."""
        if answer and (epoch > self._epoch or (epoch == 0 and self.answered)):
            self._epoch = max(self._epoch, epoch)  # the next is to be newer than that
            raise TunnelError("the far end has begun again")
        if not answer or epoch != self._epoch:
            return
        self.answered = True
        if number:
            self._ends.give(answer)
        words = self._ends.tunnel.words
        while words:
            with contextlib.suppress(ValueError):
                self._hear(json.loads(words.popleft()))

    def _tick(self, now: float) -> None:
        if self._closed:
            return
        self._ends.rest(now)
        if self._next is not None and self._next <= now:
            self._next = None
            self._flight = Flight()
            self._epoch += 1
            self._ends.begin(self._epoch)
            self._turn()
        elif self._next is None and self.answered and now - min(self._since.values(), default=now) > GONE_SECONDS:
            self._broken(f"a call has had no answer for {GONE_SECONDS:g} s")

    def _broken(self, why: str) -> None:
        """End the epoch: what was on its way may be lost."""
        if self._next is not None:
            return
        self.failure = why
        pause = min(FIRST_PAUSE * 2**self._failures, LONGEST_PAUSE)
        self._failures = min(self._failures + 1, 10)
        self._next, self.answered = time.monotonic() + pause, False
        self._since.clear()
        self._flight = Flight()
        self._epoch += 1
        self._ends.begin(self._epoch)
