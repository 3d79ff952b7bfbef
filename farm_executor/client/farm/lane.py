"""The client's end of one worker.

This module owns what a lane has been sent: which functions it knows by number. It must not decide who gets which
task, nor settle futures.
"""

from __future__ import annotations

import logging
import time
from typing import Any, Protocol

from farm_executor.client.farm.functions import Function, Kept
from farm_executor.client.farm.future import FarmFuture
from farm_executor.core.frames import (
    ERROR,
    Buffer,
    FrameType,
    Payload,
    encode_frame,
    encode_payload,
    encode_tasks,
    encode_tasks_together,
    fit_together,
    payload_size,
)
from farm_executor.core.lifecycle import LANE, LaneEvent, LaneState, after
from farm_executor.core.messages import KillOrder, WorkerDied
from farm_executor.core.task import Task
from farm_executor.data import payload
from farm_executor.wire.connection import Connection

__all__ = ["Home", "Lane", "arguments_of", "size_of"]

logger = logging.getLogger(__name__)

ACKNOWLEDGE_BYTES = 64 * 1024  # of outcomes that a worker keeps until it hears that they have come


def arguments_of(call: FarmFuture) -> Payload:
    """What the call is made with, pickled."""
    arguments: Payload = call._arguments if call._plain is None else payload.dumps_call(call._plain, {})
    return arguments


def size_of(call: FarmFuture | None) -> int:
    """How many bytes that is; of a plain call about as many."""
    if call is None:
        return 0
    plain, arguments = call._plain, call._arguments
    if plain is not None:
        return sum([len(value) if isinstance(value, (str, bytes)) else 8 for value in plain])
    return 0 if arguments is None else payload_size(arguments)  # it may be settled just now


class Home(Protocol):
    """The session that a lane belongs to, as far as the lane's crew has to do with it."""

    lanes: dict[int, Lane]

    def seat(self, slot: int) -> tuple[Any, int]:
        """The place of that slot, as the scheduler knows it."""

    def send(self, order: KillOrder) -> bool:
        """Tell the server whom to kill; say whether there is a way to it."""

    def lane_cut(self, lane: Lane) -> None:
        """The lane's connection is broken, and another is to be dialled."""

    def lane_lost(self, lane: Lane, *, failed: bool) -> None:
        """The lane is no more; with ``failed`` it was never ready."""


class Lane:
    """One worker, seen from the client.

    Args:
        id: Unique in this farm and for ever: a later connection to the same slot is another lane.
        connection: Non-blocking, after the hellos; it may be another one later.
        session: Where it belongs.
        slot: The worker's place on its server.
        pid: The worker's process there.
        resumable: Whether the worker goes on if the connection breaks.
        wants_modules: Whether the worker may ask for modules.

    Attributes:
        state: Changed by `change` alone, in handlers of the reactor's.
        death: The supervisor's report, once it has come.
        cuts: How often the connection has broken.
        tasks_done: How many tasks it has answered.
        calls_done: How many calls.
        kept: Which functions the worker has, by number.
        offered: Which version of what there is of modules it has been told; None if it does not ask for any.
    """

    def __init__(
        self,
        id: int,
        connection: Connection,
        session: Home,
        slot: int,
        pid: int,
        *,
        resumable: bool = False,
        wants_modules: bool = False,
    ) -> None:
        self.id = id
        self.connection = connection
        self.session = session
        self.server = str(session)
        self.slot = slot
        self.pid = pid
        self.state = LaneState.STARTING
        self.resumable = resumable
        self.cuts = 0
        self.death: WorkerDied | None = None
        self.tasks_done = self.calls_done = 0
        self.busy_seconds = 0.0
        self._sent: float | None = None  # when the oldest task was sent, if the lane was idle then
        self.kept = Kept()
        self.offered: int | None = 0 if wants_modules else None
        self._acknowledged = 0  # of the bytes received over the connection

    def __repr__(self) -> str:
        return f"<Lane {self.id} to {self.server} slot {self.slot}, pid {self.pid}: {self.state.value}>"

    def change(self, event: LaneEvent) -> None:
        """Something has befallen the lane: be in the state that follows.

        Not with the engine's lock held: it may log, and so run a handler of the user's.

        Raises:
            RuntimeError: See `core.lifecycle.after`.
        """
        before, self.state = self.state, after(LANE, self.state, event)
        self.cuts += event is LaneEvent.CUT
        if logger.isEnabledFor(logging.DEBUG):
            logger.debug("lane changed lane=%d was=%s now=%s", self.id, before.value, self.state.value)

    def send_init(self, call: Payload) -> bool:
        """Send the initializer; as the others here, say whether the socket took it all."""
        return self.connection.send(encode_payload(FrameType.INIT, call))

    def send_offer(self, names: bytes) -> bool:
        """Say which modules the worker may ask for."""
        return self.connection.send(encode_payload(FrameType.MODULES, (names,)))

    def send_module(self, number: int, files: Payload | None, reason: str) -> bool:
        """Answer a question for a module: with its files, or with why there are none, or with neither."""
        if files is not None:
            return self.connection.send(encode_payload(FrameType.MODULE, files, seq=number))
        flags = ERROR if reason else 0
        return self.connection.send(encode_frame(FrameType.MODULE, flags=flags, seq=number, body=reason.encode()))

    def send_tasks(self, seq: int, tasks: list[Task]) -> bool:
        """Send tasks, and before them the functions that the worker does not have."""
        if seq == self.tasks_done:
            self._sent = time.perf_counter()
        buffers: list[Buffer] = []
        numbers = []
        last = None
        for task in tasks:
            call: FarmFuture = task.call
            function = call._function
            if function is not last:
                self._introduce(function, buffers)
                last = function
            numbers.append(function.number)
        once = 1 in [task.max_attempts for task in tasks]
        calls = [task.call for task in tasks]
        plain = [call._plain for call in calls]
        pickle = payload.dumps_together(plain) if len(tasks) > 1 and None not in plain else b""
        if pickle and fit_together(len(tasks), pickle):
            buffers += encode_tasks_together(seq, numbers, pickle, once=once)
        else:
            buffers += encode_tasks(seq, list(zip(numbers, map(arguments_of, calls), strict=True)), once=once)
        for number in self.kept.trim():
            buffers += encode_frame(FrameType.FORGET, body=number.to_bytes(4, "little"))
        return self.connection.send(buffers)

    def send_forget_large(self) -> bool:
        """Have the worker keep nothing of large functions."""
        buffers: list[Buffer] = []
        for number in self.kept.forget_large():
            buffers += encode_frame(FrameType.FORGET, body=number.to_bytes(4, "little"))
        return self.connection.send(buffers)

    def send_bye(self) -> None:
        """Tell the worker that it is not needed any more, as far as that goes without waiting."""
        self.connection.send(encode_frame(FrameType.BYE))

    def acknowledge(self, number: int, *, bulk: bool) -> bool:
        """Let the worker forget the outcomes before that number, if it is worth the while."""
        received = self.connection.bytes_received
        if not self.resumable or (not bulk and received - self._acknowledged < ACKNOWLEDGE_BYTES):
            return True
        self._acknowledged = received
        return self.connection.send(encode_frame(FrameType.ACK, seq=number))

    def probe(self) -> bool:
        """Send something that is of no consequence, so that it can be seen whether it arrives."""
        return self.connection.send(encode_frame(FrameType.ACK, seq=0))

    def resume(self, connection: Connection, lacking: int) -> bool:
        """Go on over another connection; the outcome of that number, and those behind it, have not come."""
        self.connection = connection
        self.kept.clear()
        self._acknowledged = 0
        self._sent = None
        return connection.send(encode_frame(FrameType.RESUME, seq=lacking))

    def note_results(self, count: int, busy_us: int) -> float | None:
        """Take note of answers; return the microseconds of a whole round trip, if these tell how long one is."""
        self.tasks_done += count
        self.calls_done += count
        self.busy_seconds += busy_us / 1e6
        sent, self._sent = self._sent, None
        return None if sent is None else (time.perf_counter() - sent) * 1e6 - busy_us

    def note_calls(self, more: int) -> None:
        """Those answers were to so many more calls than they are answers."""
        self.calls_done += more

    def _introduce(self, function: Function, buffers: list[Buffer]) -> None:
        if self.kept.use(function.number, function.weight):
            buffers += encode_payload(FrameType.FUNCTION, function.data, seq=function.number)

    def send_recall(self, count: int) -> bool:
        """Ask for tasks back."""
        return self.connection.send(encode_frame(FrameType.RECALL, count=count))
