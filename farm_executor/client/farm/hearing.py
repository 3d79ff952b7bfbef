"""What workers say beside their outcomes, in its order: an outcome comes after the output of its task.

This module owns which bytes of a worker's output belong to which task, and when an outcome may be settled. It must
not know how lines are made and shown, except that a `Voice` does it, nor how outcomes are settled.

Output comes over the control connection and outcomes over the lane, so either may be first. Before the outcomes of
tasks that have written something, the worker sends *marks*: where in its two streams each task's output begins and
ends. Such an outcome waits until that much has come, which only a broken connection can prevent, or a program that
shows nothing; so what is bound to a future is complete, however busy the machines are. Then it waits until all of
it has been shown, but for a second at most, and not at all if the thread that shows it is stuck.

Nothing of this exists for a worker that says nothing: its lane's `hearing` is None.
"""

from __future__ import annotations

import logging
import struct
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import NoneType
from typing import TYPE_CHECKING, Any, Protocol

from farm_executor.client.farm.output import Output, Source
from farm_executor.client.farm.records import handle, number_of, records_of
from farm_executor.client.farm.voice import Voice
from farm_executor.core.features import OUTPUT
from farm_executor.core.frames import HEADER_SIZE, Frame
from farm_executor.core.lines import Lines
from farm_executor.core.text import one_line
from farm_executor.current import MAX_MESSAGE, Progress
from farm_executor.data import payload
from farm_executor.errors import RemoteProtocolError

if TYPE_CHECKING:
    from farm_executor.client.farm.future import FarmFuture
    from farm_executor.client.farm.reactor import Reactor
    from farm_executor.core.task import Task

__all__ = ["Hearing", "Host", "LaneHearing", "Speaker"]

logger = logging.getLogger(__name__)

PATIENCE = 1.0  # seconds for which an outcome waits for output that has come to be shown
ARRIVAL = 15.0  # seconds for it to come: a server that lives sends it, and one that does not is noticed before
LINGER = 1.0  # seconds after which a line that has not ended is shown as it stands
KEPT_OF_TASK = 8 * 1024  # bytes of each stream, for `FarmFuture.output`
KEPT_OF_LANE = 128 * 1024  # bytes of each stream that await their marks: twice what a worker writes before one
MAX_UNSHOWN = 256 * 1024 * 1024  # bytes of memory, for what all servers together have said
PIECE_COST = 512  # bytes of memory that a piece takes beside its own: a server may send them with nothing in them
MAX_UNHANDLED = 50_000  # records of all servers together
MAX_GONE = 256  # lanes that are gone, of which processes that tasks have left behind may still write
_LANE = struct.Struct("<Q")
_MARK = struct.Struct("<5Q")

_Offsets = tuple[int, int]  # in standard output, and in standard error
_Ranges = tuple[_Offsets, _Offsets]  # from, to


class Host(Protocol):
    """The session in which a worker speaks.

    Attributes:
        control: The control connection, over which output comes; None while it is broken.
        features: Those that the client and the server both have.
    """

    control: Any
    features: frozenset[str]

    @property
    def is_own(self) -> bool:
        """Whether the server is this program's own."""

    @property
    def hears_nothing(self) -> bool:
        """Whether no output comes: there is no connection, or the program has shown too little for too long."""

    def count_received(self, size: int) -> None:
        """Count bytes of output that have come over the present connection."""

    def count_shown(self, connection: Any, size: int) -> int:
        """Count bytes of output that have been shown; return their number if it is time to tell the server."""

    def tell_heard(self, connection: Any, shown: int) -> None:
        """Tell the server how many bytes of output that came over this connection have been shown."""


class Speaker(Protocol):
    """A worker, as far as its lane tells who speaks."""

    id: int
    server: str
    slot: int
    pid: int
    hearing: LaneHearing | None

    @property
    def session(self) -> Host:
        """The session that the lane belongs to."""


class Hearing:
    """What all workers of a farm say; see the module.

    Args:
        reactor: Runs later what must not be done now.
        output: Where output goes.

    Attributes:
        pending: How many outcomes wait.
        voice: The thread that shows and tells.
        read: Takes what has come on a lane, now.

    Thread safety: none but that of the reactor's handlers. What runs in the voice's thread says so.
    """

    def __init__(self, reactor: Reactor, output: Output) -> None:
        self.reactor = reactor
        self.output = output
        self.voice = Voice(self._rest)
        self.pending = 0
        self.read: Callable[[Any], None] = lambda lane: None
        self._waiting: dict[LaneHearing, None] = {}  # those with outcomes that wait
        self._timer_set = False
        self._unshown = 0  # bytes of memory; those that come add here, and those shown are counted in `_shown`
        self._shown = 0
        self._came = self._told = 0  # bytes of output as tasks have written it, counted likewise
        # Bytes of which nothing is kept, by connection, until the voice counts them; and the lock for both threads.
        self._dropped: dict[tuple[Host, Any], int] = {}
        self._dropping = threading.Lock()
        self._begun: dict[Lines, tuple[float, LaneHearing, int]] = {}  # lines not ended; of the voice's thread
        self._gone: OrderedDict[int, LaneHearing] = OrderedDict()
        self._unhandled = self._handled = 0  # records, counted as above
        self._lost_records, self._said_lost = 0, 0.0
        self._to_tell: set[FarmFuture] = set()  # futures with progress of which the program has not been told

    # -- handlers ------------------------------------------------------------------------------------------

    def of(self, lane: Speaker) -> LaneHearing:
        """Return the lane's, which is made when it is first needed."""
        if lane.hearing is None:
            lane.hearing = LaneHearing(self, lane)
        return lane.hearing

    def on_output(self, session: Host, lanes: Mapping[int, Speaker], frame: Frame) -> None:
        """Take a piece of output from a server.

        Raises:
            RemoteProtocolError: The frame is malformed.
        """
        if len(frame.body) < _LANE.size or frame.count not in (1, 2) or frame.seq >= 1 << 63:
            raise RemoteProtocolError(f"OUTPUT frame of stream {frame.count}, {len(frame.body)} bytes")
        (number,) = _LANE.unpack_from(frame.body)
        data = bytes(memoryview(frame.body)[_LANE.size :])
        lane = lanes.get(number)
        hearing = self._gone.get(number) if lane is None else self.of(lane)
        said = HEADER_SIZE + len(frame.body)
        session.count_received(said)
        # Of a lane that was lost before it said anything, or so many lanes ago that it is forgotten; or there is no
        # more room, as nobody reads what the program writes.
        if hearing is None or self._unshown - self._shown > MAX_UNSHOWN:
            self._drop(session, said)
        else:
            cost = said + PIECE_COST
            self._unshown += cost
            self._came += len(data)
            count = partial(self._count_told, session, session.control, said, cost, len(data))
            hearing.hear(frame.count - 1, frame.seq, data, count)

    def _drop(self, session: Host, said: int) -> None:
        """Count a piece as shown, in its turn, without keeping anything of it."""
        key = session, session.control
        with self._dropping:
            waiting = key in self._dropped
            self._dropped[key] = self._dropped.get(key, 0) + said
        if not waiting:
            self.voice.put(partial(self._count_dropped, key))

    def on_report(self, lane: Speaker, frame: Frame, call: Any) -> None:
        """Take a task's word on how far it has come.

        Raises:
            RemoteProtocolError: The frame is malformed.
        """
        done, total, message = payload.loads_together(frame.body, 3)
        if type(done) not in (int, float) or type(total) not in (int, float, NoneType) or type(message) is not str:
            raise RemoteProtocolError("a report that is not of two numbers and a text")
        # None where the task has been taken from the lane meanwhile, as by a recall: then another attempt reports.
        future: FarmFuture | None = None if call is None else call.future
        if future is not None:
            future._progress = Progress(done, total, one_line(message, MAX_MESSAGE))
            # Once for all reports that come before it is told: a callback that takes its time would otherwise have
            # them pile up, as fast as the server likes.
            if future._progress_callbacks and future not in self._to_tell:
                self._to_tell.add(future)
                self.of(lane).note(partial(self._tell, future))

    def on_records(self, lane: Speaker, frame: Frame, call: Any) -> None:
        """Take what a task has logged.

        Raises:
            RemoteProtocolError: The frame is malformed.
        """
        records = records_of(frame)
        hearing = self.of(lane)
        self._lost_records += hearing.lost_before(number_of(records), len(records))
        room = MAX_UNHANDLED - (self._unhandled - self._handled)
        if len(records) > room:  # nobody takes them, as a handler is stuck
            self._lost_records += len(records) - room
            records = records[:room]
        if self._lost_records and records and time.monotonic() - self._said_lost > 1.0:
            logger.warning("log records lost count=%d", self._lost_records)
            self._lost_records, self._said_lost = 0, time.monotonic()
        if not records:
            return  # even of nothing the voice would keep something for each frame
        self._unhandled += len(records)
        task = None if call is None else call.id
        hearing.note(partial(handle, hearing.source, task, records, self._count_handled))

    def lane_gone(self, lane: Speaker) -> None:
        """Note that a lane is lost."""
        if OUTPUT in lane.session.features:
            self._gone[lane.id] = self.of(lane)
            self._gone[lane.id].forget_lane()
            if len(self._gone) > MAX_GONE:
                self._gone.popitem(last=False)

    def waits(self, hearing: LaneHearing) -> None:
        """Note that a lane's outcome waits."""
        self.pending += 1
        self._waiting[hearing] = None
        # One timer for all of them: a timer for each outcome would wake the farm's own thread each time.
        if not self._timer_set:
            self._timer_set = True
            self.reactor.after(PATIENCE, self._on_time)

    def _on_time(self) -> None:
        now = time.monotonic()
        for hearing in list(self._waiting):
            hearing.lose_patience(now)
            if not hearing.has_waiting:
                del self._waiting[hearing]
        self._timer_set = bool(self._waiting)
        if self._timer_set:
            first = min(hearing.deadline for hearing in self._waiting)
            # Again within a second: by then an outcome may have its output, which it must be shown within that, or
            # the program may have stopped to show any.
            self.reactor.after(min(max(first - now, 0.0), PATIENCE), self._on_time)

    def close(self) -> None:
        """Settle all outcomes that wait, and end the thread; called as the farm ends."""
        # Before the outcomes: most of them are only waiting for this thread, and are settled in order if it ends.
        self.voice.close(PATIENCE)
        # What has been written, not the memory that it takes here; and what is left to do may be none of it, but a
        # record's handling, or the end of a line.
        if self._came > self._told:
            logger.warning("output lost bytes=%d", self._came - self._told)
        for hearing in self._waiting:
            hearing.lose_patience(float("inf"))

    # -- the voice's thread --------------------------------------------------------------------------------

    def show(self, hearing: LaneHearing, stream: int, lines: Lines, found: list[str]) -> None:
        """Write lines, and keep an eye on the one that has begun."""
        if not lines.has_rest:
            self._begun.pop(lines, None)
        elif found or lines not in self._begun:
            self._begun[lines] = (time.monotonic() + LINGER, hearing, stream)
        if found:
            self.output.write(hearing.source, stream + 1, found)

    def _tell(self, future: FarmFuture) -> None:
        """Call a future's callbacks with its progress."""
        self._to_tell.discard(future)  # before they look: what comes from now on is told again
        problem = None
        for fn in list(future._progress_callbacks or ()):
            try:
                fn(future)
            except BaseException as error:  # the user's code: the others are called all the same
                problem = error
        if problem is not None:
            raise problem

    def _count_handled(self) -> None:
        self._handled += 1

    def _rest(self, closing: bool) -> float | None:
        # A copy, as showing a line takes it out.
        now = time.monotonic()
        for lines, (when, hearing, stream) in list(self._begun.items()):
            if when <= now or closing:
                self.show(hearing, stream, lines, lines.end())
        self.output.flush()
        return min([when - now for when, _, _ in self._begun.values()], default=None)

    def _count_told(self, session: Host, connection: Any, said: int, cost: int, size: int) -> None:
        self._told += size
        self._count(session, connection, said, cost)

    def _count_dropped(self, key: tuple[Host, Any]) -> None:
        with self._dropping:
            size = self._dropped.pop(key)
        self._count(*key, size)

    def _count(self, session: Host, connection: Any, size: int, cost: int = 0) -> None:
        # Counted per connection, as the server does: after a cut neither knows what has been lost on the way.
        self._shown += cost
        total = session.count_shown(connection, size)
        if total:
            self.reactor.post(partial(session.tell_heard, connection, total))


class _Tail:
    """The last bytes of a stream, by their offsets."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._begin = 0

    def add(self, offset: int, data: bytes) -> None:
        # What is missing is not filled up: a task that it belongs to has less of its output, and none of another's.
        if offset != self._begin + len(self._data):
            self._data.clear()
            self._begin = offset
        self._data += data

    @property
    def is_long(self) -> bool:
        """Whether it is to be shortened, which is not done for each piece, as it may move the rest."""
        return len(self._data) > KEPT_OF_LANE * 5 // 4

    def shorten(self) -> None:
        surplus = max(len(self._data) - KEPT_OF_LANE, 0)
        del self._data[:surplus]
        self._begin += surplus

    def between(self, begin: int, end: int) -> str:
        """Return the last bytes between two offsets, as far as they are still here."""
        begin = max(begin, end - KEPT_OF_TASK, self._begin)
        found = bytes(self._data[begin - self._begin : max(end - self._begin, 0)])
        return found.decode("utf-8", "replace")


class _Outcome:
    """The outcomes of one frame, which wait for the output of their tasks."""

    __slots__ = ("deadline", "handed_over", "need", "outputs", "settle", "told")

    def __init__(
        self, need: _Offsets, outputs: list[tuple[FarmFuture | None, _Ranges]], settle: Callable[[], None]
    ) -> None:
        self.need = need
        self.outputs = outputs
        self.settle = settle
        self.deadline = time.monotonic() + ARRIVAL
        self.handed_over = self.told = False


class LaneHearing:
    """What one worker says; see the module.

    Attributes:
        source: What its lines are marked with.
    """

    def __init__(self, farm: Hearing, lane: Speaker) -> None:
        self._farm = farm
        self._lane: Speaker | None = lane  # None once it is lost
        self._session = lane.session
        self.source = Source.of(lane.server, lane.slot, lane.pid, own=lane.session.is_own)
        self._lines = (Lines(), Lines())
        self._tails = (_Tail(), _Tail())
        self._records_due = 0  # how many have been sent, as far as is known
        self._shortening = False  # whether that is about to happen
        self._received = [0, 0]  # up to where each stream has come
        self._shown = [0, 0]  # up to where it has been shown; written by the voice's thread
        self._need: _Offsets = (0, 0)  # up to where it belongs to tasks that have ended
        self._marks: dict[int, _Ranges] = {}  # by task
        self._waiting: deque[_Outcome] = deque()
        self._untold = False  # whether something was noted that no outcome has been put behind

    # -- handlers ------------------------------------------------------------------------------------------

    def hear(self, stream: int, offset: int, data: bytes, count: Callable[[], None]) -> None:
        """Take a piece of output; ``count`` is called once it has been shown."""
        if offset < self._received[stream]:
            raise RemoteProtocolError(f"output at offset {offset} after {self._received[stream]}")
        self._received[stream] = offset + len(data)
        tail = self._tails[stream]
        tail.add(offset, data)
        # In a handler of its own, as it reads from the lane.
        if tail.is_long and not self._shortening:
            self._shortening = True
            self._farm.reactor.post(self._shorten)
        # Shown before any outcome that waits for it is handed over, as the voice keeps the order.
        self._farm.voice.put(partial(self._show, stream, offset, data, count))
        self._advance()
        if self._waiting and self._farm.voice.is_stuck:
            self._farm.reactor.post(self._on_told)

    def forget_lane(self) -> None:
        """Let go of the lane, which is lost: its connection, with all its memory, would live on as long as this."""
        self._lane = None

    def _shorten(self) -> None:
        self._shortening = False
        # The outcomes of tasks that have written the first of this have left their worker before it wrote the last.
        # So they are here by now, if this thread was kept from reading them, and need it.
        if self._lane is not None:
            self._farm.read(self._lane)
        for tail in self._tails:
            tail.shorten()

    def mark(self, frame: Frame, task_at: Callable[[int], Task | None]) -> None:
        """Take the worker's word on where its tasks' output begins and ends.

        Raises:
            RemoteProtocolError: It names a task that it does not have, or the frame is malformed.
        """
        if len(frame.body) != _MARK.size * frame.count:
            raise RemoteProtocolError(f"MARKS frame of {frame.count} marks in {len(frame.body)} bytes")
        # Nothing of an offset's size is ever allocated: a wrong one delays an outcome by a second, and no more.
        for seq, out0, err0, out1, err1 in _MARK.iter_unpack(frame.body):
            if not (out0 <= out1 < 1 << 63 and err0 <= err1 < 1 << 63) or task_at(seq) is None:
                raise RemoteProtocolError(f"a mark of task {seq} from {out0}, {err0} to {out1}, {err1}")
            # The worker may have looked while the task ran, and may repeat itself over another connection.
            known = self._marks.get(seq)
            if known is not None:
                (old_out0, old_err0), (old_out1, old_err1) = known
                out0, err0 = min(out0, old_out0), min(err0, old_err0)
                out1, err1 = max(out1, old_out1), max(err1, old_err1)
            self._marks[seq] = (out0, err0), (out1, err1)

    def note(self, deed: Callable[[], object]) -> None:
        """Have something done in the voice's thread before any outcome that follows is settled."""
        self._untold = True
        self._farm.voice.put(deed)

    def lost_before(self, number: int | None, count: int) -> int:
        """Return how many log records are missing before the next ones: a connection has taken them along."""
        if number is None:
            return 0
        due, self._records_due = self._records_due, number + count
        return max(number - due, 0)

    def settle(self, first: int, calls: Sequence[Any], settle: Callable[[], None]) -> None:
        """Settle the outcomes of the calls numbered from ``first`` on, now or once their output has been shown."""
        outputs: list[tuple[FarmFuture | None, _Ranges]] = []
        # Marks of tasks that were answered before these are those of a lane that was resumed in between: they still
        # say up to where the streams belong to tasks that have ended.
        if self._marks:
            for seq in sorted(seq for seq in self._marks if seq < first + len(calls)):
                ranges = self._marks.pop(seq)
                self._need_up_to(ranges[1])
                if seq >= first:
                    outputs.append((calls[seq - first].future, ranges))
        self._put(_Outcome(self._need, outputs, settle), ends=bool(outputs))

    def lost(self, running: Any, settle: Callable[[], None]) -> None:
        """Settle what follows from a worker's death, once what it wrote last has been shown.

        Args:
            running: The call that it has last begun, if that has not ended, and may not run again.
            settle: Settles the tasks that it takes with it.
        """
        # The server sends all that the worker has written before it reports the death, over the same connection.
        before, end = self._need, (self._received[0], self._received[1])
        self._marks.clear()
        self._need_up_to(end)
        outputs = [] if running is None else [(running.future, (before, end))]
        self._put(_Outcome(self._need, outputs, settle), ends=True)

    @property
    def has_waiting(self) -> bool:
        """Whether any outcome waits."""
        return bool(self._waiting)

    @property
    def deadline(self) -> float:
        """When the first of them has waited long enough."""
        return self._waiting[0].deadline

    def lose_patience(self, now: float) -> None:
        """Settle the outcomes that have waited long enough."""
        # Nobody takes what is shown, or nothing can come: to wait would delay each outcome, in vain.
        is_stuck, hears_nothing = self._farm.voice.is_stuck, self._session.hears_nothing
        while self._waiting:
            first = self._waiting[0]
            if first.deadline > now and not (is_stuck if first.handed_over else hears_nothing):
                return
            self._finish(self._waiting.popleft())

    def _need_up_to(self, end: _Offsets) -> None:
        self._need = max(self._need[0], end[0]), max(self._need[1], end[1])

    def _put(self, outcome: _Outcome, *, ends: bool) -> None:
        """Settle it, now or later; with ``ends``, after lines that have begun and not ended."""
        has_ended = not ends or not any(lines.has_rest for lines in self._lines)
        # The usual case of a task that writes nothing, on a lane of which something has been heard before. Not
        # while others wait: outcomes of one lane are settled in the order in which they have come.
        if not (self._waiting or self._untold) and has_ended and self._is_shown(outcome.need):
            self._bind(outcome)
            outcome.settle()
            return
        self._untold = False
        self._waiting.append(outcome)
        self._farm.waits(self)
        self._advance()
        self.lose_patience(time.monotonic())

    def _is_shown(self, need: _Offsets) -> bool:
        return self._shown[0] >= need[0] and self._shown[1] >= need[1]

    def _advance(self) -> None:
        """Hand the outcomes over to the voice whose output has all come."""
        for outcome in self._waiting:
            if outcome.handed_over:
                continue
            if self._received[0] < outcome.need[0] or self._received[1] < outcome.need[1]:
                return
            outcome.handed_over = True
            # Now, not when it is settled: by then so much may have come that the tail has lost these bytes.
            self._bind(outcome)
            outcome.deadline = time.monotonic() + PATIENCE
            self._farm.voice.put(partial(self._end_lines, outcome))

    def _on_told(self) -> None:
        while self._waiting and self._waiting[0].told:
            self._finish(self._waiting.popleft())
        self.lose_patience(time.monotonic())

    def _finish(self, outcome: _Outcome) -> None:
        self._farm.pending -= 1
        if not outcome.handed_over:
            self._bind(outcome)
        outcome.settle()

    def _bind(self, outcome: _Outcome) -> None:
        for future, ((out0, err0), (out1, err1)) in outcome.outputs:
            if future is not None:
                future._output = self._tails[0].between(out0, out1) + self._tails[1].between(err0, err1)

    # -- the voice's thread --------------------------------------------------------------------------------

    def _show(self, stream: int, offset: int, data: bytes, count: Callable[[], None]) -> None:
        lines = self._lines[stream]
        try:
            self._farm.show(self, stream, lines, lines.feed(offset, data))
        finally:  # what could not be shown will not be
            self._shown[stream] = lines.offset
            count()

    def _end_lines(self, outcome: _Outcome) -> None:
        """Show lines that a task has begun and not ended, unless what follows them has come already."""
        try:
            # Pieces are cut anywhere. If more has come than is this task's, the line may be that of the next one.
            for stream, lines in enumerate(self._lines):
                if lines.offset <= outcome.need[stream] and lines.has_rest:
                    self._farm.show(self, stream, lines, lines.end())
            self._farm.output.flush()
        finally:
            outcome.told = True
            self._farm.reactor.post(self._on_told)
