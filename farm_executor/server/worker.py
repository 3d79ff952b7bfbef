"""The worker process: receive tasks from one client, run them, send what came of them.

This module owns the task loop: what a call is, and what comes of it. It must not know frames and sockets, which are
`lane`'s, nor the supervisor's bookkeeping. Tasks run in the main thread, one after the other, in the order in which
they came.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from farm_executor import payload
from farm_executor.byvalue import SharedNamespaces
from farm_executor.core.frames import Frame, Payload, Result, payload_of
from farm_executor.failure import dump_failure
from farm_executor.server.lane import SentFunction, SentTask, WorkerLane
from farm_executor.transport import Socket

if TYPE_CHECKING:
    import mmap

__all__ = ["WorkerStart", "run_worker"]


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


def run_worker(start: WorkerStart) -> None:
    """Serve the client at the other end of the lane until it is gone; returns to let the interpreter end."""
    lane = WorkerLane(start.socket, start.begun, start.lifeline)
    runner = _Runner()
    signal.signal(signal.SIGINT, runner.on_interrupt if start.interruptible else signal.SIG_IGN)
    lane.start_helper()
    pid = os.getpid()
    while True:
        task = lane.next()
        if task is None:
            lane.close()
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
        if os.getpid() != pid:
            os._exit(0)  # a child that the task has forked comes back from it, but the lane is its parent's
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

    def run(self, task: SentTask) -> Result:
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

    def _load_function(self, function: SentFunction) -> Any:
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
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except Exception:  # closed, or replaced by something else
        pass
