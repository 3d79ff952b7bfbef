"""One worker's process, as the supervisor knows it.

This module owns what can be known of a worker from outside. It must not act on it, except to tell a worker to end.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from farm_executor._record import NamedTuple
from farm_executor.core.messages import KillOrder
from farm_executor.server.channel import Channel, Line
from farm_executor.server.progress import NOT_BEGUN, Progress
from farm_executor.wire.sockets import Socket, hang_up

if TYPE_CHECKING:
    from farm_executor.server.forwarding import WorkerOutput

__all__ = ["Figures", "Measured", "Worker"]


class Figures(NamedTuple):
    """What a worker has done so far.

    Attributes:
        begun: How many tasks it has begun.
        since: When the present one began, by `time.perf_counter`; 0 if it runs none.
        spent: Seconds in tasks before that.
        received: Bytes, over all connections of its lane.
        sent: The same for those sent.
        busy: Whether it has something to run.
    """

    begun: int
    since: float
    spent: float
    received: int
    sent: int
    busy: bool


class Measured(NamedTuple):
    """What the system has said of a worker.

    Attributes:
        of: The worker's state, and how many tasks it had begun.
        at: When, by `time.monotonic`.
        memory: Bytes; None if the system does not say.
        cpu: Seconds; None likewise.
    """

    of: tuple[str, int]
    at: float
    memory: int | None
    cpu: float | None


class Worker:
    """One worker's process, as the supervisor knows it."""

    def __init__(
        self,
        pid: int,
        slot: int,
        lane: int,
        socket: Socket,
        channel: Channel,
        progress: Progress,
        pipes: WorkerOutput,
        oom_kills: int | None,
        line: Line | None = None,
    ) -> None:
        self.pid = pid
        self.slot = slot
        self.lane = lane
        self.socket = socket  # our own descriptor of the lane
        self.channel = channel
        self.line = line  # on which it speaks of shared objects
        self.progress = progress
        self.pipes = pipes
        self.oom_kills = oom_kills  # the system's count when this worker was started
        self.started = time.time()
        self.stopped = False  # whether it stands still, whatever has stopped it
        self.thaw_by = 0.0  # if it still stands still by then, it is killed; 0 for no such time
        self.frozen = False  # that time has passed once, and it has a last chance
        self.condemned: list[KillOrder] = []  # orders to judge as soon as it has stopped
        self.killed: int | None = None  # the number of the task because of which we have killed it
        self.held: int | None = None  # the bytes because of which we have killed it
        # The bytes of connections before the present one, and of that one when last looked at: see `figures`.
        self._carried = (0, 0)
        self._passed = (0, 0)
        self.measured: Measured | None = None  # when somebody last looked
        self.looked_at = NOT_BEGUN  # the last task begun when we last looked at its memory

    def __repr__(self) -> str:
        if self.killed is not None or self.held is not None:
            state = "killed"
        elif self.stopped:
            state = "stopped"
        elif self.progress.closed:  # reaped: there is nothing left to read
            state = "gone"
        else:
            state = "busy" if self.progress.busy else "idle"
        return f"<Worker pid {self.pid}, slot {self.slot}, lane {self.lane}: {state}>"

    def figures(self) -> Figures:
        """Return what it has done so far. No counter ever falls."""
        progress = self.progress
        received, sent = progress.received, progress.sent
        # A lane that is resumed counts from zero. What has come between our last look and that is not seen; to be
        # told of it would cost each worker more than the figure is worth.
        if received < self._passed[0] or sent < self._passed[1]:
            self._carried = (self._carried[0] + self._passed[0], self._carried[1] + self._passed[1])
        self._passed = (received, sent)
        return Figures(
            *(progress.begun + 1, progress.since, progress.spent),
            *(self._carried[0] + received, self._carried[1] + sent, progress.busy),
        )

    def end(self) -> None:
        """Let the worker see that its client is gone."""
        hang_up(self.socket)
        self.channel.say_end()

    def has_run(self) -> bool:
        """Return whether the worker runs something, or has run something since the last call."""
        before, self.looked_at = self.looked_at, self.progress.begun
        return self.progress.busy or before != self.looked_at

    def runs_one_of(self, order: KillOrder) -> int | None:
        """Return the number of the running task if the order names it, and None otherwise."""
        if self.progress.recalls != order.recalls:
            return None  # numbers have become free since: the order may mean another task
        current = max(order.first, self.progress.begun)
        return current if any(begin <= current <= end for begin, end in order.ranges) else None
