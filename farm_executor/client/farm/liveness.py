"""Notices a server that has fallen silent, and a lane on which nothing moves.

This module owns the beats: at each one it asks every server for a sign of life, and judges what the last ones were.
It must not know what follows from it. The judgements are `core.liveness`'s.

A server whose lanes move is alive, even if its answers queue behind what they carry over a slow network.

A server answers with how many bytes have come and gone on each of its lanes. So what a task does to its worker,
such as to keep its other threads from running, cannot be mistaken for a network that swallows all.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Generic, Protocol, TypeVar

from farm_executor.core.liveness import MAX_MISSED, Flow, Pulse
from farm_executor.core.messages import Pong

__all__ = ["Liveness", "Watched"]


_Server = TypeVar("_Server", bound=Hashable)


class Watched(Protocol):
    """A lane's connection, as far as it is watched."""

    @property
    def bytes_received(self) -> int:
        """So far."""

    @property
    def bytes_sent(self) -> int:
        """So far."""


class Liveness(Generic[_Server]):
    """See the module.

    Args:
        seconds: Between two beats.
        after: Calls something later.
        ask: Asks a server for a sign of life; is given the number of the beat.
        moved: How many bytes have come and gone on a server's lanes so far, as far as this end knows.
        silent: Told of a server that has not answered for too long; it is not watched any more.
        stuck: Told of a lane on which nothing moves; it is watched on.

    Thread safety: none but that of the reactor's handlers.
    """

    def __init__(
        self,
        seconds: float,
        after: Callable[[float, Callable[[], None]], None],
        ask: Callable[[_Server, int], None],
        moved: Callable[[_Server], int],
        silent: Callable[[_Server], None],
        stuck: Callable[[int], None],
    ) -> None:
        self._seconds = seconds
        self._after = after
        self._ask = ask
        self._moved = moved
        self._silent = silent
        self._stuck = stuck
        self._beats = 0
        self._beating = False
        self._pulses: dict[_Server, Pulse] = {}
        self._moves: dict[_Server, int] = {}
        self._flows: dict[int, _Flows] = {}

    def watch(self, server: _Server) -> None:
        """Begin, or begin anew, with a server that has just spoken."""
        self._pulses[server] = Pulse()
        if not self._beating:
            self._beating = True
            self._after(self._seconds, self._beat)

    def forget(self, server: _Server) -> None:
        """Watch that server no more."""
        self._pulses.pop(server, None)
        self._moves.pop(server, None)

    def heard(self, server: _Server) -> None:
        """It has said something."""
        if server in self._pulses:
            self._pulses[server].heard()

    def _beat(self) -> None:
        self._beating = bool(self._pulses)
        if not self._beating:
            return
        self._beats += 1
        self._after(self._seconds, self._beat)
        for server, pulse in list(self._pulses.items()):
            moved = self._moved(server)
            if self._moves.get(server, moved) != moved:
                pulse.heard()
            self._moves[server] = moved
            if pulse.beat():
                self.forget(server)
                self._silent(server)
            else:
                self._ask(server, self._beats)

    def answered(self, report: Pong, connections: Mapping[int, Watched]) -> None:
        """A server says how many bytes have come and gone on its lanes, whose connections these are."""
        for lane, received, sent in report.lanes:
            connection = connections.get(lane)
            if connection is None:
                continue
            flows = self._flows.get(lane)
            if flows is None or flows.connection is not connection:
                flows = self._flows[lane] = _Flows(connection)
            if flows.beat(received, sent):
                del self._flows[lane]
                self._stuck(lane)

    def doubt(self, connections: Mapping[int, Watched]) -> None:
        """Something has been sent on these lanes just now: by the second answer from here on it must have moved."""
        for lane, connection in connections.items():
            self._flows[lane] = _Flows(connection, patience=1)

    def forget_lane(self, lane: int) -> None:
        """There is no such lane any more."""
        self._flows.pop(lane, None)


class _Flows:
    """Both directions of one lane, over one connection."""

    def __init__(self, connection: Watched, patience: int = MAX_MISSED) -> None:
        self.connection = connection
        self._there = Flow(patience)
        self._back = Flow(patience)
        self._before: tuple[int, int, int, int] | None = None

    def beat(self, received: int, sent: int) -> bool:
        """The worker has received and sent so many bytes: whether nothing moves in one of the directions."""
        now = self.connection.bytes_sent, received, sent, self.connection.bytes_received
        # An idle lane, of which there may be ten thousand: all had arrived a beat ago, and nothing was sent since.
        if now == self._before and now[0] == now[1] and now[2] == now[3]:
            return False
        self._before = now
        there = self._there.beat(now[0], received)
        back = self._back.beat(sent, now[3])
        return there or back
