"""The client's end of one worker.

This module owns the record of what a lane has been sent: which functions its worker knows by number. It must not
decide which lane gets which task, nor settle futures.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from itertools import groupby
from typing import Any, Protocol

from farm_executor._version import __version__
from farm_executor.client.farm.call import Call
from farm_executor.client.farm.carrying import again
from farm_executor.client.farm.functions import Kept
from farm_executor.client.farm.hearing import Host, LaneHearing
from farm_executor.client.farm.records import Levels
from farm_executor.client.farm.repeated import Standing
from farm_executor.client.farm.spreading import encode_function, encode_whole
from farm_executor.core.batches import encode_task, encode_tasks, encode_tasks_together, fit_together
from farm_executor.core.deliveries import Deliveries
from farm_executor.core.features import DETAILS, RECORDS, STREAMS
from farm_executor.core.frames import ERROR, Buffer, FrameType, Payload, encode_frame, encode_payload, payload_size
from farm_executor.core.lifecycle import LANE, LaneEvent, LaneState, after
from farm_executor.core.messages import KillOrder, LaneHello, WorkerDied
from farm_executor.core.spread import Spread
from farm_executor.core.streams import encode_credit
from farm_executor.data import payload
from farm_executor.wire.connection import Connection
from farm_executor.wire.sockets import Socket

__all__ = ["Home", "Lane", "size_of"]

logger = logging.getLogger(__name__)

# A worker keeps its outcomes until it hears that they have arrived, in case the connection breaks and it has to
# send them again. An acknowledgement for each one would cost more than keeping this many bytes.
ACKNOWLEDGE_BYTES = 64 * 1024


def _header_of(call: Call) -> bytes:
    header = call.options.header or b""
    return again(header, call.losses) if header and call.losses else header


def size_of(call: Call) -> int:
    """Return the size of a call's pickled arguments in bytes; for a plain call, an estimate."""
    # Read once: another thread may settle the call, and so clear both, at any moment.
    plain, arguments = call.plain, call.arguments
    if plain is not None:
        return sum([len(value) if isinstance(value, (str, bytes)) else 8 for value in plain])
    return 0 if arguments is None else payload_size(arguments)


class Home(Host, Protocol):
    """The session that a lane belongs to, as the lane's crew sees it."""

    lanes: dict[int, Lane]
    id: str
    version: str
    dial_ring: Callable[[LaneHello, Callable[[Socket], None]], Connection] | None
    deliveries: Deliveries | None
    spread: Spread | None

    def seat(self, slot: int) -> tuple[Any, int]:
        """Return the scheduler's name for a slot."""

    def send(self, order: KillOrder) -> bool:
        """Send the server a kill order; return whether there is a connection to send it over."""

    def lane_cut(self, lane: Lane) -> None:
        """Have another connection dialled for a lane whose own is broken."""

    def lane_lost(self, lane: Lane, *, failed: bool) -> None:
        """Note that the lane is lost; with ``failed``, it was never ready."""


class Lane:
    """One worker, seen from the client.

    Args:
        id: Unique in this farm and for ever: a later worker in the same slot is another lane.
        connection: Non-blocking, after the hellos. Another one takes its place when the lane is resumed.
        session: The session that the lane belongs to.
        slot: The worker's place on its server.
        pid: The worker's process ID there.
        resumable: Whether the worker goes on if the connection breaks.
        wants_modules: Whether the worker may ask for modules.
        takes_headers: Whether the worker takes what travels with calls beside their arguments.

    Attributes:
        state: Changed only by `change`, in handlers of the reactor.
        death: The supervisor's report of the worker's death, once it has come.
        cuts: How often the connection has broken.
        tasks_done: The number of tasks answered.
        calls_done: The number of calls answered.
        levels: The version of the loggers' levels that the worker was last told; None if it sends no records.
        unwanted: The number of the task of which the worker was last told that nobody wants it.
        kept: The functions that the worker has, by number.
        sent: When the oldest task was sent, by `time.perf_counter`; None if the worker was not idle then.
        carrying: Whether more is to be sent of a shared object, as soon as the socket takes it.
        offered: The version of the list of modules that the worker was last told; None if it never asks for any.
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
        takes_headers: bool = False,
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
        self.sent: float | None = None
        self.kept = Kept()
        self.hearing: LaneHearing | None = None  # made once the worker has said anything
        self.offered: int | None = 0 if wants_modules else None
        self.unwanted = -1
        self.carrying = False
        self.levels: int | None = 0 if RECORDS in session.features else None
        self._takes_headers = takes_headers
        self._header = b""  # of the tasks sent last
        self._acknowledged = 0  # of the bytes received over the connection

    def __repr__(self) -> str:
        return f"<Lane {self.id} to {self.server} slot {self.slot}, pid {self.pid}: {self.state.value}>"

    def change(self, event: LaneEvent) -> None:
        """Move to the state that follows from an event.

        Must not be called with the engine's lock held: this may log, and so run a logging handler of the user's.

        Raises:
            RuntimeError: See `core.lifecycle.after`.
        """
        before, self.state = self.state, after(LANE, self.state, event)
        self.cuts += event is LaneEvent.CUT
        if logger.isEnabledFor(logging.DEBUG):
            logger.debug("lane changed lane=%d was=%s now=%s", self.id, before.value, self.state.value)

    def send_init(self, call: Payload) -> bool:
        """Send the initializer; like the other methods here, return whether the socket took all of it."""
        return self.connection.send(encode_payload(FrameType.INIT, call))

    def send_offer(self, names: bytes) -> bool:
        """Tell the worker which modules it may ask for."""
        return self.connection.send(encode_payload(FrameType.MODULES, (names,)))

    def send_levels(self, levels: Levels) -> None:
        """Tell the worker the levels of the program's loggers, unless it knows them."""
        if self.levels is not None and self.levels != levels.version:
            self.levels = levels.version
            self.connection.send(levels.frame)

    def send_module(self, number: int, files: Payload | None, reason: str) -> bool:
        """Answer a request for a module: with its files, with the reason why there are none, or with neither."""
        if files is not None:
            return self.connection.send(encode_payload(FrameType.MODULE, files, seq=number))
        flags = ERROR if reason else 0
        return self.connection.send(encode_frame(FrameType.MODULE, flags=flags, seq=number, body=reason.encode()))

    def send_tasks(self, seq: int, calls: list[Call]) -> bool:
        """Send calls, preceded by any functions that the worker does not have."""
        # Only a batch for an idle lane tells how long a round trip takes: others wait behind what is running.
        if seq == self.tasks_done:
            self.sent = time.perf_counter()
        buffers: list[Buffer] = []
        if self._takes_headers:
            # One header holds for all that follow: a batch is cut where it changes.
            for header, some in groupby(calls, _header_of):
                if header != self._header:
                    self._header = header
                    buffers += encode_frame(FrameType.CALL_HEADER, body=header)
                together = list(some)
                self._encode(seq, together, buffers)
                seq += len(together)
        else:
            self._encode(seq, calls, buffers)
        # After the calls, which may still use the functions that are forgotten here. A single buffer brings no new
        # function, so that there are no more than before.
        if len(buffers) > 1:
            for number in self.kept.trim():
                buffers += encode_frame(FrameType.FORGET, body=number.to_bytes(4, "little"))
        return self.connection.send(buffers)

    def _encode(self, seq: int, calls: list[Call], buffers: list[Buffer]) -> None:
        if len(calls) == 1:  # a call whose result is awaited, which the lists below would take longer than all else
            (call,) = calls
            function = call.function
            assert function is not None
            number = function.number
            if self.kept.use(number, function.weight):
                buffers += encode_function(function, self.session, self.id)
            buffers += encode_task(seq, number, self._arguments(call), once=call.options.max_attempts == 1)
            return
        numbers = []
        last = None
        for call in calls:
            function = call.function
            assert function is not None
            if function is not last:
                last = function
                if self.kept.use(function.number, function.weight):
                    buffers += encode_function(function, self.session, self.id)
            numbers.append(function.number)
        once = 1 in [call.options.max_attempts for call in calls]
        plain = [call.plain for call in calls]
        # Plain arguments of several calls travel in a single pickle, which is cheaper at both ends than one each.
        pickle = payload.dumps_together(plain) if None not in plain else b""
        if pickle and fit_together(len(calls), pickle):
            buffers += encode_tasks_together(seq, numbers, pickle, once=once)
        else:
            buffers += encode_tasks(seq, list(zip(numbers, map(self._arguments, calls), strict=True)), once=once)

    def _arguments(self, call: Call) -> Payload:
        arguments = call.arguments
        if arguments is None:
            return payload.dumps_call(call.plain or (), {})
        # Decided as late as this: it may be another server's lane than the one that the call was first meant for.
        return arguments.sent_to(self.session) if type(arguments) is Standing else arguments

    def send_stop(self, seq: int) -> bool:
        """Tell the worker that nobody wants the result of the task with that number."""
        self.unwanted = seq
        return DETAILS not in self.session.features or self.connection.send(encode_frame(FrameType.STOP, seq=seq))

    def send_credit(self, seq: int, taken: int) -> bool:
        """Tell the worker how many frames of a task's items have been taken."""
        return self.connection.send(encode_credit(seq, taken))

    def send_details(self, number: int, details: Buffer) -> bool:
        """Answer a worker's question for what is known of a task."""
        return self.connection.send(encode_frame(FrameType.DETAILS, seq=number, body=details))

    def send_forget_large(self) -> bool:
        """Make the worker drop its large functions."""
        buffers: list[Buffer] = []
        for number in self.kept.forget_large():
            buffers += encode_frame(FrameType.FORGET, body=number.to_bytes(4, "little"))
        return self.connection.send(buffers)

    def send_bye(self) -> None:
        """Tell the worker that it is no longer needed, as far as that is possible without waiting."""
        self.connection.send(encode_frame(FrameType.BYE))

    def acknowledge(self, number: int, *, bulk: bool) -> bool:
        """Let the worker forget the outcomes before a number, if enough has come to be worth a frame."""
        received = self.connection.bytes_received
        if not self.resumable or (not bulk and received - self._acknowledged < ACKNOWLEDGE_BYTES):
            return True
        self._acknowledged = received
        return self.connection.send(encode_frame(FrameType.ACK, seq=number))

    def probe(self) -> bool:
        """Send a frame without any effect, to see whether it arrives."""
        return self.connection.send(encode_frame(FrameType.ACK, seq=0))

    def resume(self, connection: Connection, lacking: int) -> bool:
        """Go on over another connection, and ask for the outcomes from number ``lacking`` on, which are missing."""
        self.connection = connection
        # Functions sent just before the cut may not have arrived, so every function is sent again.
        self.kept.clear()
        self._header = b""
        self.levels = None if self.levels is None else 0
        # The new connection counts its bytes from 0. A round trip that spans the cut tells nothing of the network.
        self._acknowledged = 0
        self.sent = None
        return connection.send(encode_frame(FrameType.RESUME, seq=lacking))

    def note_results(self, count: int, busy_us: int) -> float | None:
        """Count answers; return the time of a round trip in microseconds, or None if they do not tell."""
        self.tasks_done += count
        self.calls_done += count
        self.busy_seconds += busy_us / 1e6
        sent = self.sent
        if sent is None:
            return None
        self.sent = None
        return (time.perf_counter() - sent) * 1e6 - busy_us

    def explain_stream(self, error: BaseException) -> BaseException:
        """Return the error of a stream's task; if the worker is too old for streams, one that says what to do."""
        if STREAMS in self.session.features:
            return error
        # Its own error tells of nothing but a module of ours that it could not import.
        explained = RuntimeError(
            f"stream() needs a newer farm_executor on server {self.server}, which has {self.session.version}, "
            f"while this program has {__version__}: update it there and restart the server, or submit() a function "
            "that returns a list"
        )
        explained.__cause__ = error
        return explained

    def note_calls(self, more: int) -> None:
        """Count the calls by which answered tasks that stand for several calls outnumber the answers."""
        self.calls_done += more

    def send_whole(self, number: int, calls: Iterable[Call]) -> bool:
        """Send a function of one of the calls to a worker that cannot have its buffers from its server."""
        return self.connection.send(encode_whole(number, calls, self.kept))

    def send_recall(self, count: int) -> bool:
        """Ask for tasks back."""
        return self.connection.send(encode_frame(FrameType.RECALL, count=count))
