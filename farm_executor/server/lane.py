"""The worker's end of its lane: tasks in, outcomes out.

This module owns which thread reads the socket and when, which tasks are still to be run, when outcomes are sent,
and which of them might have to be sent again. It must not know what a task is, nor run one.

The main thread reads the socket itself while it has nothing to run: handing each task over from another thread
would cost a call a fifth of its time. It polls before it sleeps, while that pays. While it runs tasks, the
*helper* thread looks after the lane. It gives back recalled tasks, sends outcomes that would otherwise wait behind
a long task, and ends the process when the client is gone. It sleeps a few milliseconds between looks. When a task
lasts longer than that, it takes over the socket until the main thread wants it back. When nothing has come for a
few looks, it sleeps until something does.

A connection may break while both ends live. If the lane is *resumable*, the worker goes on with the tasks that it
has, keeps the outcomes that its client has not acknowledged, and waits for another connection, which the supervisor
passes on. Over that one the client says which outcome it lacks, the worker says which task it expects, and both
send again from there.

Locks, in the order in which they may be taken: ``_io`` (held to read), ``_send`` (held to send). Everything else
that both threads touch is either a deque, whose operations are atomic, or a flag. Where two flags could miss each
other, each thread sets its own first and then looks at the other's, so that at least one thread notices.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NoReturn, TypeVar

from farm_executor.core.features import DETAILS, HEADERS, RECORDS, REPORTS, RINGS, STREAMS
from farm_executor.core.frames import (
    ERROR,
    Buffer,
    Frame,
    FrameType,
    Payload,
    decode_number,
    encode_frame,
    encode_payload,
    is_bulk,
    payload_of,
    payload_size,
)
from farm_executor.core.levels import decode_levels
from farm_executor.core.liveness import CUT_EXIT_CODE
from farm_executor.core.outbox import Outbox
from farm_executor.core.shipment import Difference, Package, decode_offer, encode_differences
from farm_executor.current import Details
from farm_executor.data import kept
from farm_executor.errors import AuthenticationError, RemoteProtocolError
from farm_executor.server.asking import Question, Questions, is_called_within
from farm_executor.server.channel import RING, Channel, NoRingError
from farm_executor.server.marks import Marks
from farm_executor.server.outcomes import Outcome, copied, encode_outcomes
from farm_executor.server.progress import BEGUN, BUSY, RECALLS, RECEIVED, SENT, SINCE, SPENT, Progress
from farm_executor.server.reports import Report
from farm_executor.server.sent import Backlog, SentTask
from farm_executor.server.shared import SharedObjects
from farm_executor.server.streaming import Outgoing, Streams
from farm_executor.server.words import Words
from farm_executor.wire.connection import Connection
from farm_executor.wire.polling import Poller
from farm_executor.wire.sockets import AnySocket, Socket
from farm_executor.wire.waker import Waker

__all__ = ["WorkerLane"]

TASKS = FrameType.TASKS  # needed for each frame; before Python 3.12 the lookup of an enum member is slow
FLUSH_AFTER = 0.001  # seconds for which an outcome may wait for company while tasks follow
TICK = 0.005  # seconds between the helper's looks
# Seconds without a task after which the helper stops looking: to wake it costs little, 200 that look on a core.
REST = 0.05

_Asked = TypeVar("_Asked", bound=Question)


class WorkerLane:
    """The worker's end of a lane; see the module.

    Args:
        socket: The lane: authenticated, past the hellos, and blocking.
        progress: Tells the supervisor how far this is.
        channel: The line to the supervisor.
        resumable: Whether to go on when the connection breaks.
        secure: Seals or encrypts a connection that the supervisor has passed on, according to the number and the
            secret that came with it.

    Attributes:
        marks: Tells the output of tasks apart; None if it stays here.
        features: Those that the client and the server both have.
        shared: The shared objects; None if the client or the server has none.
        on_offer: Called with what the client offers; see `shipment.decode_offer`.
    """

    def __init__(
        self,
        socket: AnySocket,
        progress: Progress,
        channel: Channel,
        *,
        resumable: bool,
        secure: Callable[[Socket, int, bytes], AnySocket],
    ) -> None:
        self._connection = Connection(socket)
        self._progress, self._times = progress.cells, progress.times
        self._channel, self._line = channel, channel.fileno()
        self._resumable = resumable
        self._secure = secure
        self._io = threading.Lock()
        self._wanted = Waker()  # rings when the main thread wants to read and the helper may be asleep doing so
        self._backlog = Backlog()  # guarded by _io, like the reading itself
        self._tasks = self._backlog.tasks

        self._send = threading.Lock()
        self._outbox: Outbox[Outcome] = Outbox(resumable=resumable)  # guarded by _send
        self._outcomes = self._outbox.waiting  # any thread may append
        self._last_flush = 0.0

        self.marks: Marks | None = None
        self.features: frozenset[str] = frozenset()
        self._words = Words(lambda: self._progress[BEGUN], self._tell, self._wanted.wake)
        self._streams = Streams(self._wanted.wake)
        self._details: tuple[int, Details] = -1, Details()  # with the task that they are of
        self._unwanted = -2  # the task that was last said to be so
        self._questions = Questions()
        self.shared: SharedObjects | None = None
        self.on_offer: Callable[[dict[str, str], dict[str, Package]], None] | None = None
        self._spent = 0.0  # seconds in tasks that have ended; set by the main thread
        self._run = 0  # how many tasks and initializers the main thread has begun
        self._running = False  # set by the main thread: something has begun and not ended
        self._busy = False  # set by the main thread: it has something to run, or is about to take it
        self._ready = False  # the initializer has run
        self._ended = False  # set by the thread that reads
        self._resting, self._rest_over = False, threading.Event()  # the first is set by the helper
        self._last_task = 0.0

        self._poll = select.poll()
        self._poller, self._look = Poller(), partial(self._poll.poll, 0)  # the main thread's
        self._helper_poll = select.poll()
        for poll in (self._poll, self._helper_poll):
            poll.register(socket.fileno(), select.POLLIN)
            poll.register(channel.fileno(), select.POLLIN)
        self._helper_poll.register(self._wanted.fileno(), select.POLLIN)

    def start_helper(self) -> None:
        """Start the helper thread, which lives as long as the process does."""
        threading.Thread(target=self._help, name="farm-worker-helper", daemon=True).start()

    # -- the main thread -------------------------------------------------------------------------------

    def next(self) -> SentTask | Frame | None:
        """Wait for the next task, or the INIT frame; return None when the client is gone."""
        while True:
            # Set before the queue is looked at, so that the helper does not go to rest on a task just taken.
            self._busy = True
            try:
                task = self._tasks.popleft()
            except IndexError:
                if self._outcomes:  # the tasks that they were held back for have been recalled
                    self._flush()
                self._busy = False
                self._progress[BUSY] = False
                self._times[SINCE], self._times[SPENT] = 0.0, self._spent
                if self._ended:
                    return None
                self._read()
                continue
            # _end sets _ended and then looks at _running; in this order a task cannot slip between the two and run
            # for a client that is gone.
            self._running = True
            if self._ended:
                return None
            self._run += 1
            self._progress[BUSY] = True
            if self._resting:
                self._rest_over.set()
            return task

    def _read(self) -> None:
        if not self._io.acquire(blocking=False):
            # The helper may hold the lock while it sleeps in poll(), for as long as nothing comes.
            self._wanted.wake()
            self._io.acquire()
        try:
            if self._tasks or self._ended:  # the helper has read since we looked
                return
            ready = self._await(self._poll, None, self._poller.poll(self._look))
            self._last_flush = time.perf_counter()  # outcomes of the tasks just received may wait for one another
            if ready:  # it can only be the connection
                self._receive()
        finally:
            self._io.release()

    def begin(self, seq: int, began: float) -> None:
        """Record in shared memory that this task has begun, at that time by `time.perf_counter`."""
        if self._outbox.loose:
            self._settle_loose()
        if self.marks is not None and self.marks.talkative:
            self.marks.begin()
        self._times[SPENT], self._times[SINCE] = self._spent, began
        self._progress[BEGUN] = seq

    def ready(self, failure: Payload | None) -> None:
        """Report how the initializer ended."""
        self._running = False
        if self.marks is not None:
            self.marks.begin()  # what the initializer has written is no task's
        flags = ERROR if failure else 0
        self._say(self._words.records.take() + encode_payload(FrameType.READY, failure or [b""], flags=flags))
        self._ready = True

    def settle(self, outcome: Any, error: bool | None, began: float, *, once: bool) -> None:
        """Take the outcome of the task just run, which began at that time by `time.perf_counter`.

        The outcome is a payload, and whether it is a failure; or a plain value, and None.

        It is sent at once if no task follows; if the last send was a while ago; if it is bulk, whose memory the
        next task might change; if the task must not run again, so that a crash of the next one cannot lose its
        outcome; or if much was written, see `Marks.end`. Otherwise it waits for others, and the helper sees to it.
        """
        now = time.perf_counter()
        self._running = False
        if self.marks is not None and self.marks.talkative:
            once |= self.marks.end(self._progress)
        self._spent += (seconds := now - began)
        self._outcomes.append((outcome, error, seconds))
        if not self._tasks:
            self._last_task = now
        elif now - self._last_flush < FLUSH_AFTER and not once and (error is None or not is_bulk(outcome)):
            return
        self._last_flush = now
        self._flush(loose=error is not None and len(outcome) > 1)

    def close(self) -> None:
        """Close the socket."""
        self._connection.close()

    # -- any thread ------------------------------------------------------------------------------------

    def ask(self, name: str, own: str) -> Payload | None:
        """Ask the client for a module while a task or the initializer runs; see `shipment.encode_question`.

        Returns:
            Its files; None if the worker's own module is to be used.

        Raises:
            ModuleNotFoundError: The client does not have it, or cannot be asked.
        """
        if is_called_within():  # by a destructor or a signal handler: we would wait for a lock that we hold
            raise ModuleNotFoundError(
                f"No module named {name!r}: the client cannot be asked for it in a destructor; import it before",
                name=name,
            )
        return self._answered(self._questions.new(name, own)).result()

    def details(self) -> Details:
        """See `current.Worker`."""
        seq = self._progress[BEGUN]
        if self._details[0] == seq or DETAILS not in self.features:
            return self._details[1] if self._details[0] == seq else Details()
        if is_called_within():
            raise RuntimeError("the client cannot be asked here, in a destructor or a signal handler: ask before")
        self._details = seq, self._answered(self._questions.about(seq)).details()
        return self._details[1]

    def ask_function(self, number: int) -> Payload:
        """Ask the client for a function whole while its task is about to run."""
        return self._answered(self._questions.lacking(number)).function()

    def is_unwanted(self) -> bool:
        """See `current.Worker`."""
        return self._unwanted == self._progress[BEGUN]

    def _answered(self, question: _Asked) -> _Asked:
        """Ask the client something; return the question once it is answered."""
        self._flush()  # finished tasks need not wait for the answer
        # In one hold: else _resume, which asks all open questions, could send it as well.
        with self._send:
            self._questions.add(question)
            if not self._outbox.mute:
                self._send_all(question.encoded)
        self._wait_for(question.answered.is_set, question.answered)
        return question

    def _wait_for(self, done: Callable[[], bool], changed: threading.Event) -> None:
        """Wait until something has come; the event is set whenever that may be."""
        is_main = threading.current_thread() is threading.main_thread()
        # The main thread reads for itself if it can: the helper would take a tick or two to notice. If the helper
        # has the lock, it may let go of it before the answer comes, so the main thread tries again after a tick.
        while not done():
            if is_main and self._io.acquire(blocking=False):
                try:
                    while not (done() or self._ended):
                        if self._connection.fileno() in self._await(self._poll, None):
                            self._receive()
                finally:
                    self._io.release()
            else:  # the thread that reads takes the answer, too
                changed.wait(TICK if is_main else None)

    def open_stream(self) -> Outgoing:
        """Return the way out for the items of the running task."""
        return self._streams.open(
            self._progress[BEGUN], self._send_items, self._wait_for, self.is_unwanted, keep=self._resumable
        )

    def _send_items(self, stream: Outgoing, frames: list[Buffer], size: int) -> None:
        with self._send:
            stream.add_sent(frames, size)
            if not self._outbox.mute:  # otherwise it is sent once the client is back
                self._send_all(frames)

    def tell(self, differences: Iterable[Difference]) -> None:
        """Tell the client how this worker's packages differ from its own, if that can be done now."""
        if not is_called_within():  # else, as in `ask`, we may hold the lock that is needed
            self._say(encode_frame(FrameType.PACKAGES, body=encode_differences(differences)))

    def report(self, report: Report) -> None:
        """See `current.Worker`."""
        if REPORTS in self.features:
            self._words.report(report)

    def forward_records(self) -> None:
        """Send the client what is logged from now on."""
        self._words.records.install()

    # -- either thread ---------------------------------------------------------------------------------

    def _tell(self, take: Callable[[], list[Buffer]], *, wait: bool) -> None:
        # Taken with the lock held: else the other thread could send the outcome of their task before them.
        if self._send.acquire(wait):
            try:
                if not self._outbox.mute:
                    self._send_all(take())
            finally:
                self._send.release()

    def _flush(self, *, loose: bool = False) -> None:
        with self._send:
            first, outcomes = self._outbox.take(loose=loose)
            if outcomes:
                frames = encode_outcomes(first, outcomes)
                if self.marks is not None:
                    self.marks.end(self._progress, first)
                    frames = self.marks.take(keep=self._resumable) + frames
                if self._words.pending:
                    frames = self._words.take() + frames
                self._send_all(frames)

    def _say(self, buffers: list[Any]) -> None:
        with self._send:
            if not self._outbox.mute:  # otherwise the client asks again once it is back
                self._send_all(buffers)

    def _send_all(self, buffers: list[Any]) -> None:
        """Send the buffers; ``_send`` is held."""
        # Counted beforehand, as sending may block: bytes that the client lacks must show even then.
        self._progress[SENT] = self._connection.bytes_sent + payload_size(buffers)
        try:
            self._connection.send_all(buffers)
            if not self._connection.as_given:  # the client must notice if the last byte that travels is missing
                self._progress[SENT] = self._connection.bytes_sent
        except OSError:  # if the client is gone, the next read says so
            pass

    def _await(self, poll: select.poll, timeout: float | None, came: Any = ()) -> list[int]:
        """Return the descriptors that can be read, after handling what the supervisor says; ``_io`` is held.

        Does not wait if ``came`` holds what polling has found.
        """
        ready = [descriptor for descriptor, _ in came or poll.poll(None if timeout is None else timeout * 1000)]
        if self._line in ready:
            try:
                passed_on = self._channel.receive()
            except EOFError:
                os._exit(0)  # a worker does not outlive its supervisor
            except NoRingError:  # its client sees the connection's end, and goes on without
                return []
            except OSError as error:  # nor its client
                _die(f"its new connection cannot be taken: {error}")
            if passed_on is None:
                self._end()
            elif passed_on[1] == RING:
                from farm_executor.wire.ring import offer  # late: most workers never need it

                offer(passed_on[0], self._connection.expect_ring)
            else:
                self._change_connection(*passed_on)
            return []
        return ready

    def _end(self) -> None:
        """Stop, as the client has gone for good; ``_io`` is held."""
        self._ended = True
        self._questions.give_up()
        if self._running:
            os._exit(0)  # the task that runs has nobody to run for
        self._connection.hang_up()  # the main thread may be waiting for room to send an outcome

    # -- a connection that breaks, and the next one; all with _io held ---------------------------------

    def _on_cut(self) -> None:
        if not self._ready:
            os._exit(CUT_EXIT_CODE)
        if not self._resumable:
            self._end()
            return
        # A connection at its end is always ready to read: left registered, it would turn poll() into a busy loop.
        for poll in (self._poll, self._helper_poll):
            poll.unregister(self._connection.fileno())
        # The main thread may hold _send while it waits to send. This makes it fail, and only then is the lock free.
        self._connection.hang_up()
        with self._send:
            self._outbox.cut()

    def _change_connection(self, sock: Socket, secured: int, secret: bytes) -> None:
        """Continue over another socket; send nothing until the client has said which outcome it lacks."""
        old = self._connection
        for poll in (self._poll, self._helper_poll):
            with contextlib.suppress(KeyError):  # the old one was found broken before
                poll.unregister(old.fileno())
        old.hang_up()  # before the lock, as in _on_cut
        with self._send:
            self._outbox.cut()
        # Not under _send: TLS may take seconds, and the main thread need not wait, as all that it sends is muted.
        sock.setblocking(True)
        try:
            connection = Connection(self._secure(sock, secured, secret))
        except (AuthenticationError, RemoteProtocolError, EOFError, OSError):
            sock.close()  # the client dials again
            return
        with self._send:
            # A ring in use has its marks on the old connection. One that is not may be taken over the new one.
            connection.expect_ring(old.expect_ring(None))
            old.close()
            self._connection = connection
            self._progress[RECEIVED] = self._progress[SENT] = 0
        self._backlog.change_connection()  # some may have been lost on the way: the client starts over, too
        for poll in (self._poll, self._helper_poll):
            poll.register(sock.fileno(), select.POLLIN)

    def _resume(self, lacking: int) -> None:
        """Send again from that number on: the client has all outcomes before it."""
        with self._send:
            self._outbox.resume(lacking)
            self._streams.acknowledge(lacking)
            if self.marks is not None:
                self.marks.acknowledge(lacking)
                self.marks.say_again()
            # Tasks that were lost on the way are sent again, perhaps others under their numbers: kill orders that
            # were given before must not hit those.
            self._free_numbers()
            # RESUMED comes first: the client takes no outcomes before it.
            self._send_all(encode_frame(FrameType.RESUMED, seq=self._backlog.expected, count=self._backlog.recalls))
            for again in (*[question.encoded for question in self._questions.open()], *self._streams.unheard()):
                self._send_all(again)
        self._flush()

    def _acknowledge(self, number: int) -> None:
        """Let go of the outcomes before that one, which the client has; ``_send`` is held."""
        if self.marks is not None:
            self.marks.acknowledge(number)
        self._outbox.acknowledge(number)
        self._streams.acknowledge(number)

    def _settle_loose(self) -> None:
        """Copy outcomes that may still have to be sent, as the next task may write to their memory."""
        if self._io.acquire(blocking=False):
            try:  # the acknowledgement has most likely come, which saves the copy
                if self._connection.fileno() in self._await(self._poll, 0):
                    self._receive()
            finally:
                self._io.release()
        with self._send:
            self._outbox.fix(copied)

    def _receive(self) -> None:
        """Read and handle what has come; ``_io`` is held."""
        if self._ended:
            return
        try:
            frames = self._connection.receive()
            self._progress[RECEIVED] = self._connection.bytes_received
            for frame in frames:
                self._take(frame)
        except RemoteProtocolError as error:  # such as more data than there is memory for
            _die(str(error))
        except EOFError:
            self._on_cut()

    def _take(self, frame: Frame) -> None:
        if frame.type is TASKS:
            self._backlog.add(frame)
        elif frame.type is FrameType.FUNCTION:
            self._backlog.introduce(frame, self.shared, self._questions, self.ask_function)
        elif frame.type is FrameType.FORGET:
            self._backlog.functions.pop(decode_number(frame), None)
        elif frame.type is FrameType.RECALL:
            self._give_back(frame.count)
        elif frame.type is FrameType.ACK:
            with self._send:
                self._acknowledge(frame.seq)
        elif (frame.type is FrameType.MODULE and self.on_offer is not None) or (
            frame.type is FrameType.DETAILS and DETAILS in self.features
        ):
            self._questions.answer(frame)
        elif frame.type is FrameType.LEVELS and RECORDS in self.features:
            self._words.levels.set(decode_levels(frame))
        elif frame.type is FrameType.STOP and DETAILS in self.features:
            self._unwanted = frame.seq
            self._streams.changed.set()
        elif frame.type is FrameType.CREDIT and STREAMS in self.features:
            self._streams.credit(frame)
        elif frame.type is FrameType.CALL_HEADER and HEADERS in self.features:
            self._backlog.header = frame.body
        elif frame.type is FrameType.MODULES and self.on_offer is not None:
            self.on_offer(*decode_offer(b"".join(payload_of(frame))))
        elif frame.type is FrameType.RINGED and RINGS in self.features and self._connection.use_ring():
            pass
        elif frame.type is FrameType.INIT:
            self._tasks.append(frame)
        elif frame.type is FrameType.RESUME:
            self._resume(frame.seq)
        elif frame.type is FrameType.BYE:
            self._end()
        elif self.shared is None or not self.shared.heed(frame):
            raise RemoteProtocolError(f"{frame.type.name} frame on a lane")

    def _free_numbers(self) -> None:
        self._progress[RECALLS] = self._backlog.free_numbers()

    def _give_back(self, count: int) -> None:
        given = self._backlog.give_back(count)
        if given:
            self._free_numbers()
        self._say(encode_frame(FrameType.RECALLED, count=given, seq=self._backlog.expected))

    # -- the helper thread -----------------------------------------------------------------------------

    def _help(self) -> None:
        try:
            seen = 0
            while True:
                self._rest()
                time.sleep(TICK)
                # If nothing has begun since the last look, the main thread is within one long task.
                run = self._run
                if self._busy:
                    self._look_after(long=run == seen)
                seen = run
        except BaseException:  # a bug of ours: a dead worker is replaced, a deaf one is not
            sys.excepthook(*sys.exc_info())
            os._exit(70)

    def _rest(self) -> None:
        """Sleep until something comes, if nothing has come for a while."""
        if self._busy or time.perf_counter() - self._last_task < REST:
            return
        self._rest_over.clear()
        # The main thread sets _busy and then looks at _resting. Either it sees this flag and sets the event, or we
        # see its flag and do not wait; the event is cleared first, so that it cannot be lost.
        self._resting = True
        if not self._busy:
            kept.rest(self._rest_over)
        self._resting = False

    def _look_after(self, long: bool) -> None:
        """Look after the lane: once, or during a long task until the main thread wants it back."""
        if not self._io.acquire(blocking=False):
            return  # the main thread reads by itself
        try:
            while True:
                if self._outcomes:
                    self._flush()
                self._streams.flush()
                self._words.look()
                # While tasks wait, the main thread may leave an outcome to us at any moment, and wakes no one for
                # it. With no task behind the present one it flushes by itself, and we may sleep on.
                words = self._words.pending or self._streams.pending
                unattended = bool(self._tasks or self._outcomes or words) and not self._outbox.mute
                ready = self._await(self._helper_poll, (TICK if unattended else None) if long else 0)
                if self._connection.fileno() in ready:
                    self._receive()
                if self._wanted.fileno() in ready:
                    self._wanted.drain()
                    return
                if not long:
                    return
        finally:
            self._io.release()


def _die(why: str) -> NoReturn:
    print(f"farm_executor: worker {os.getpid()} ends: {why}", file=sys.stderr, flush=True)  # noqa: T201
    os._exit(70)
