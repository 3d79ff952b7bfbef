"""Notices servers that have fallen silent, and lanes on which no bytes move.

This module owns the beats: at each one it asks every server for a sign of life, and judges the last answers. It
must not know what follows from that. The judgements are `core.liveness`'s.

A server with bytes moving on its lanes is alive, even if its answers queue behind those bytes on a slow network.

A server answers with how many bytes each of its lanes has received and sent. So a task that keeps its worker's
other threads from running cannot be mistaken for a network that swallows everything.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Generic, Protocol, TypeVar

from farm_executor.core.liveness import MAX_MISSED, Counts, Flow, Pulse

__all__ = ["Liveness", "Watched"]


_Server = TypeVar("_Server", bound=Hashable)


class Watched(Protocol):
    """The part of a lane's connection that is watched."""

    @property
    def bytes_received(self) -> int:
        """How many bytes this end has received so far."""

    @property
    def bytes_sent(self) -> int:
        """How many bytes this end has sent so far."""


class Liveness(Generic[_Server]):
    """The heartbeats of one farm; see the module.

    Args:
        seconds: The time between two beats.
        after: Calls an action after that many seconds.
        ask: Asks a server for a sign of life, with the number of the beat.
        moved: Returns how many bytes a server's lanes have received and sent so far, as this end counts them.
        silent: Called for a server that has not answered for too long, and is not watched any more.
        stuck: Called for a lane on which no bytes move; it goes on being watched.

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
        """Start, or restart, watching a server that has just sent something."""
        self._pulses[server] = Pulse()
        if not self._beating:
            self._beating = True
            self._after(self._seconds, self._beat)

    def forget(self, server: _Server) -> None:
        """Stop watching a server."""
        self._pulses.pop(server, None)
        self._moves.pop(server, None)

    def heard(self, server: _Server) -> None:
        """Note that the server has sent something."""
        if server in self._pulses:
            self._pulses[server].heard()

    def _beat(self) -> None:
        self._beating = bool(self._pulses)
        if not self._beating:
            return
        self._beats += 1
        self._after(self._seconds, self._beat)
        for server, pulse in list(self._pulses.items()):
            # Bytes on a lane count as an answer; the first look has nothing to compare with.
            moved = self._moved(server)
            if self._moves.get(server, moved) != moved:
                pulse.heard()
            self._moves[server] = moved
            if pulse.beat():
                self.forget(server)
                self._silent(server)
            else:
                self._ask(server, self._beats)

    def answered(self, counts: Iterable[Counts], connections: Mapping[int, Watched]) -> None:
        """Judge each lane by how many bytes its server says it has received and sent, and by its connection."""
        all_flows = self._flows
        for lane, received, sent in counts:
            connection = connections.get(lane)
            if connection is None:
                continue
            flows = all_flows.get(lane)
            # After a cut the lane has another connection, whose bytes are counted from zero.
            if flows is None or flows.connection is not connection:
                flows = all_flows[lane] = _Flows(connection)
            given, taken = connection.bytes_sent, connection.bytes_received
            # The short way for lanes that are fine, of which there may be ten thousand: all that is due has come.
            there, back = flows.there, flows.back
            if flows.steady and received >= there.due and taken >= back.due:
                there.due, there.arrived, back.due, back.arrived = given, received, sent, taken
            elif flows.beat(given, received, sent, taken):
                del all_flows[lane]
                self._stuck(lane)

    def doubt(self, connections: Mapping[int, Watched]) -> None:
        """Expect bytes that have just been sent on these lanes to move by the second answer from now."""
        for lane, connection in connections.items():
            self._flows[lane] = _Flows(connection, patience=1)

    def forget_lane(self, lane: int) -> None:
        """Stop watching a lane."""
        self._flows.pop(lane, None)


class _Flows:
    """Both directions of one lane, over one connection.

    Attributes:
        steady: Whether neither direction has missed anything of late.
    """

    __slots__ = ("back", "connection", "steady", "there")

    def __init__(self, connection: Watched, patience: int = MAX_MISSED) -> None:
        self.connection = connection
        self.there = Flow(patience)
        self.back = Flow(patience)
        self.steady = False

    def beat(self, given: int, received: int, sent: int, taken: int) -> bool:
        """Return whether no bytes move in one direction, given what each end has sent and received."""
        # Both are always called, never short-circuited: each counts its own beats.
        there = self.there.beat(given, received)
        back = self.back.beat(sent, taken)
        self.steady = self.there.steady and self.back.steady
        return there or back
