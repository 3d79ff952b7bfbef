"""The worker process: receive tasks from one client, run them, send what came of them.

This module owns the task loop. It must not know the supervisor's bookkeeping nor other workers.

Two threads share the lane. The main thread runs tasks, one after the other in the order in which they came, and
sends outcomes. The reader thread receives: it fills the queue, gives back what is recalled, sends outcomes that
would otherwise wait behind a long task, and ends the process when the client or the supervisor is gone. The
reader sleeps unless there is something for it to do.

Outcomes of short tasks are collected and sent together; see `_Lane.settle`.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import struct
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from farm_executor import payload
from farm_executor.byvalue import SharedNamespaces
from farm_executor.core.frames import (
    ERROR,
    Frame,
    FrameType,
    Payload,
    Result,
    decode_number,
    decode_tasks,
    encode_frame,
    encode_payload,
    encode_results,
    is_bulk,
    payload_of,
)
from farm_executor.errors import RemoteProtocolError
from farm_executor.failure import dump_failure
from farm_executor.transport import Connection, Socket

if TYPE_CHECKING:
    import mmap

__all__ = ["NOT_BEGUN", "WorkerStart", "run_worker"]

FLUSH_AFTER = 0.001  # seconds for which an outcome may wait for company while tasks follow
TICK = 0.005  # seconds between the reader's looks while tasks are queued

BEGUN = struct.Struct("<q")
NOT_BEGUN = -1


@dataclass(frozen=True)
class WorkerStart:
    """What a worker gets from its supervisor.

    Attributes:
        socket: The lane, authenticated, after the hellos.
        begun: Shared with the supervisor: the number of the last task begun, so that it outlives a crash.
        lifeline: A file descriptor that reaches its end when the supervisor is gone.
        interruptible: Whether Ctrl-C in the terminal shall interrupt the running task, as it does a child's.
    """

    socket: Socket
    begun: mmap.mmap
    lifeline: int
    interruptible: bool


@dataclass
class _Function:
    data: Payload
    loaded: Any = None
    generation: int = -1  # of the namespaces when it was loaded; -1 before


@dataclass
class _Task:
    seq: int
    function: _Function
    arguments: Payload


def run_worker(start: WorkerStart) -> None:
    """Serve the client at the other end of the lane until it is gone; returns to let the interpreter end."""
    lane = _Lane(start)
    runner = _Runner()
    signal.signal(signal.SIGINT, runner.on_interrupt if start.interruptible else signal.SIG_IGN)
    threading.Thread(target=lane.read, name="farm-worker-reader", daemon=True).start()
    while True:
        task = lane.next()
        if task is None:
            start.socket.close()
            return
        if isinstance(task, Frame):
            lane.ready(runner.initialize(task))
            continue
        began = time.perf_counter()
        lane.begin(task.seq)
        try:
            result = runner.run(task)
        except KeyboardInterrupt as error:  # it came in the short time between the task and us
            result = Result(dump_failure(error), error=True)
        lane.settle(result, time.perf_counter() - began)
        # Nothing of this task is kept alive while waiting for the next (CPython issue 16284).
        del task, result


class _Runner:
    """Runs calls, and turns whatever comes of them into a payload."""

    def __init__(self) -> None:
        self._namespaces = namespaces = SharedNamespaces()
        self._resolver = lambda: namespaces
        self._in_call = False

    def on_interrupt(self, signum: int, frame: Any) -> None:
        """SIGINT: interrupts the call that runs; between calls there is nothing to interrupt."""
        if self._in_call:
            self._in_call = False
            raise KeyboardInterrupt

    def initialize(self, frame: Frame) -> Payload | None:
        """Run the session's initializer; return its failure."""
        try:
            call = payload.loads(payload_of(frame), self._resolver)
            if call is not None:
                initializer, arguments = call
                initializer(*arguments)
        except BaseException as error:  # an initializer that exits has failed, too
            return dump_failure(_without_our_frame(error))
        return None

    def run(self, task: _Task) -> Result:
        """Call the task's function with its arguments."""
        try:
            function = self._load_function(task.function)
            args, kwargs = payload.loads(task.arguments, self._resolver)
        except BaseException as error:  # unpickling runs code of the user's, which may raise anything
            return Result(dump_failure(error, _explain_load(error)), error=True)
        try:
            self._in_call = True
            value = function(*args, **kwargs)
            self._in_call = False
        except BaseException as error:  # all of it belongs to the future, as in ProcessPoolExecutor
            self._in_call = False
            return Result(dump_failure(_without_our_frame(error)), error=True)
        finally:
            del args, kwargs
            _flush_output()
        try:
            return Result(payload.dumps(value))
        except BaseException as error:  # pickling runs code of the user's, too
            message = f"the task's result, of type {type(value).__qualname__}, could not be pickled: {error}"
            return Result(dump_failure(error, message), error=True)

    def _load_function(self, function: _Function) -> Any:
        stale = function.generation != self._namespaces.generation and payload.by_value(function.data)
        if function.generation < 0 or stale:
            function.loaded = payload.loads(function.data, self._resolver)
            function.generation = self._namespaces.generation
        return function.loaded


def _without_our_frame(error: BaseException) -> BaseException:
    traceback = error.__traceback__
    return error.with_traceback(traceback.tb_next if traceback and traceback.tb_next else traceback)


def _explain_load(error: BaseException) -> str:
    message = f"the task's function or arguments could not be read on the worker: {type(error).__name__}: {error}"
    if isinstance(error, ModuleNotFoundError):
        message += (
            f"; install the module {error.name} on the server, or send it along with "
            "cloudpickle.register_pickle_by_value(module)"
        )
    return message


def _flush_output() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # closed, or replaced by something else
            stream.flush()


class _Lane:
    """The worker's end of the lane: the queue of tasks and the outcomes not yet sent."""

    def __init__(self, start: WorkerStart) -> None:
        self._connection = Connection(start.socket)
        self._begun = start.begun
        self._lifeline = start.lifeline
        self._lock = threading.Lock()  # guards all that follows
        self._waiting = threading.Lock()  # held while the main thread has nothing to do
        self._waiting.acquire()
        self._idle = False  # the main thread waits, or is about to
        self._busy = False  # the main thread runs a task
        self._ended = False
        self._tasks: deque[_Task | Frame] = deque()
        self._functions: dict[int, _Function] = {}
        self._expected = 0
        self._send_lock = threading.Lock()  # guards the socket and the outcomes not yet sent
        self._outcomes: list[Result] = []
        self._outcomes_seq = 0
        self._outcomes_busy = 0.0
        self._last_flush = 0.0

    # -- the main thread -------------------------------------------------------------------------------

    def next(self) -> _Task | Frame | None:
        """The next task, or the INIT frame, when there is one; None when the lane has ended."""
        while True:
            with self._lock:
                if self._tasks:
                    self._busy = True
                    return self._tasks.popleft()
                if self._ended:
                    return None
                self._idle = True
            self._waiting.acquire()  # released by the reader, once for each time that _idle was set

    def begin(self, seq: int) -> None:
        """Note in shared memory that this task has begun."""
        BEGUN.pack_into(self._begun, 0, seq)

    def ready(self, failure: Payload | None) -> None:
        """Say what came of the initializer."""
        with self._lock:
            self._busy = False
        flags = ERROR if failure else 0
        with self._send_lock, contextlib.suppress(OSError):
            self._connection.send_all(encode_payload(FrameType.READY, failure or [b""], flags=flags))

    def settle(self, result: Result, busy: float) -> None:
        """Take the outcome of the task just run.

        It is sent at once if no task follows, if the last sending was a while ago, or if it is bulk, whose
        memory the next task might change; else it waits for company, and the reader sees that it does not wait
        long.
        """
        now = time.perf_counter()
        with self._send_lock:
            if not self._outcomes:
                (self._outcomes_seq,) = BEGUN.unpack_from(self._begun, 0)
            self._outcomes.append(result)
            self._outcomes_busy += busy
            with self._lock:
                last = not self._tasks
                if last:
                    self._busy = False
            if last or now - self._last_flush > FLUSH_AFTER or is_bulk(result.payload):
                self._last_flush = now
                self._flush()

    def _flush(self) -> None:
        outcomes, self._outcomes = self._outcomes, []
        busy, self._outcomes_busy = self._outcomes_busy, 0.0
        with contextlib.suppress(OSError):  # a client that is gone is the reader's business
            self._connection.send_all(encode_results(self._outcomes_seq, outcomes, int(busy * 1e6)))

    # -- the reader thread -----------------------------------------------------------------------------

    def read(self) -> None:
        """Receive until the client is gone."""
        try:
            while True:
                self._wait()
                for frame in self._connection.receive():
                    self._take(frame)
        except (EOFError, RemoteProtocolError):
            self._end()
        except BaseException:  # a bug of ours: better a dead worker, which is replaced, than a deaf one
            sys.excepthook(*sys.exc_info())
            os._exit(70)

    def _wait(self) -> None:
        """Sleep until something can be received, doing meanwhile what must not wait for the main thread."""
        poll = select.poll()
        poll.register(self._connection.fileno(), select.POLLIN)
        poll.register(self._lifeline, select.POLLIN)
        while True:
            unattended = bool(self._tasks or self._outcomes)
            ready = poll.poll(TICK * 1000 if unattended else None)
            if any(descriptor == self._lifeline for descriptor, _ in ready):
                os._exit(0)  # the supervisor is gone, and nobody would end us otherwise
            if ready:
                return
            with self._send_lock:
                if self._outcomes:
                    self._flush()

    def _take(self, frame: Frame) -> None:
        if frame.type is FrameType.TASKS:
            self._queue_tasks(frame)
        elif frame.type is FrameType.FUNCTION:
            self._functions[frame.seq] = _Function(payload_of(frame))
        elif frame.type is FrameType.FORGET:
            self._functions.pop(decode_number(frame), None)
        elif frame.type is FrameType.RECALL:
            self._give_back(frame.count)
        elif frame.type is FrameType.INIT:
            self._queue([frame])
        else:
            raise RemoteProtocolError(f"{frame.type.name} frame on a lane")

    def _queue_tasks(self, frame: Frame) -> None:
        if frame.seq != self._expected:
            raise RemoteProtocolError(f"tasks from {frame.seq} on, when {self._expected} was due")
        tasks: list[_Task | Frame] = []
        for item in decode_tasks(frame):
            function = self._functions.get(item.function)
            if function is None:
                raise RemoteProtocolError(f"task {self._expected} names function {item.function}, which never came")
            # The task holds its function: a FORGET behind it concerns later ones only.
            tasks.append(_Task(self._expected, function, item.payload))
            self._expected += 1
        self._queue(tasks)

    def _queue(self, tasks: list[_Task | Frame]) -> None:
        with self._lock:
            self._tasks.extend(tasks)
            self._wake()

    def _wake(self) -> None:
        if self._idle:
            self._idle = False
            self._waiting.release()

    def _give_back(self, count: int) -> None:
        with self._lock:
            given = min(count, len(self._tasks))
            for _ in range(given):
                self._tasks.pop()
            self._expected -= given
            seq = self._expected
        with self._send_lock, contextlib.suppress(OSError):
            self._connection.send_all(encode_frame(FrameType.RECALLED, count=given, seq=seq))

    def _end(self) -> None:
        """The client is gone: a task that still runs has nobody to run for."""
        with self._lock:
            self._tasks.clear()
            self._ended = True
            if self._busy:
                os._exit(0)
            self._wake()
