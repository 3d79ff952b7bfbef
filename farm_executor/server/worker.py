"""The worker process: receive tasks from one client, run them, and send their outcomes.

This module owns the task loop: how a call is made, and how its outcome is formed. It must not know frames and
sockets, which belong to `lane`, nor the supervisor's bookkeeping. Tasks run in the main thread, one after another,
in the order in which they came.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
import time
import types
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from farm_executor._record import NamedTuple
from farm_executor.core.features import RECORDS, STREAMS
from farm_executor.core.frames import Frame, Payload, payload_of
from farm_executor.current import set_worker
from farm_executor.data import payload
from farm_executor.data.atoms import ATOMS
from farm_executor.data.awaiting import awaited
from farm_executor.data.failure import dump_failure, dump_unsendable, explain_unreadable
from farm_executor.data.streamed import Streamed
from farm_executor.errors import AuthenticationError, RemoteProtocolError
from farm_executor.server.childhood import WorkerMain
from farm_executor.server.lane import WorkerLane
from farm_executor.server.namespaces import SharedNamespaces, contents_of
from farm_executor.server.progress import Progress
from farm_executor.server.sent import SentFunction, SentTask
from farm_executor.server.shared import SharedObjects
from farm_executor.server.streaming import Outgoing, UnsendableItemError
from farm_executor.wire.dialling import HELLO_RECORDS, secure_server_side
from farm_executor.wire.sealed import SealedSocket
from farm_executor.wire.security import Key
from farm_executor.wire.sockets import AnySocket, Socket

if TYPE_CHECKING:
    from farm_executor.server.channel import Channel, Line
    from farm_executor.server.depot import Room
    from farm_executor.server.marks import Marks
    from farm_executor.server.modules import ModuleFinder

__all__ = ["WorkerStart", "is_reusable", "run_worker"]

SECURE_SECONDS = 10.0  # for the TLS handshake with the client


class WorkerStart(NamedTuple):
    """Everything that a worker gets from its supervisor.

    Attributes:
        socket: The lane, authenticated and past the hellos.
        keys: The server's keys; see `secured`.
        secured: The number of the key, counted from 1, with which the lane is encrypted before anything else is
            sent; 0 for no encryption.
        secret: The secret with which the lane is sealed, or bound to the hellos; empty if neither is needed.
        progress: Memory shared with the supervisor, which holds how far the worker has come.
        channel: The line to the supervisor.
        interruptible: Whether SIGINT interrupts the running call: not if an embedded farm's client ignores it.
        resumable: Whether the worker goes on when its lane's connection breaks.
        modules: The folder for the client's modules; None if the client sends none.
        marks: Tells its tasks' output apart; None if output stays on the server.
        features: Those that the client and the server both have.
        line: The line on which shared objects are spoken of; None if there are none.
        module_path: Folders that tasks search first for modules. The supervisor itself does not search them: it
            must not import user code.
    """

    socket: Socket
    keys: Sequence[Key]
    secured: int
    secret: bytes
    progress: Progress
    channel: Channel
    interruptible: bool
    resumable: bool
    module_path: Sequence[str]
    modules: Room | None = None
    marks: Marks | None = None
    features: frozenset[str] = frozenset()
    line: Line | None = None


def run_worker(start: WorkerStart) -> None:
    """Serve the client at the other end of the lane until it is gone; then return, for the process to end."""

    def secure(socket: Socket, number: int, secret: bytes) -> AnySocket:
        if number:
            key = start.keys[number - 1]
            return secure_server_side(socket, key, secret, time.monotonic() + SECURE_SECONDS)
        if secret:
            return SealedSocket(socket, secret, server_side=True, begun=HELLO_RECORDS)
        return socket

    try:
        socket = secure(start.socket, start.secured, start.secret)
    except (AuthenticationError, RemoteProtocolError, EOFError, OSError) as why:
        if not isinstance(why, (EOFError, ConnectionError)):  # a client that has gone, as at its end, is no news
            print(f"farm_executor: worker {os.getpid()} ends: {why}", file=sys.stderr, flush=True)  # noqa: T201
        return
    sys.path[:0] = [folder for folder in start.module_path if folder not in sys.path]
    lane = WorkerLane(socket, start.progress, start.channel, resumable=start.resumable, secure=secure)
    lane.marks = start.marks
    lane.features = start.features
    set_worker(lane)
    if RECORDS in start.features:
        lane.forward_records()
    finder: ModuleFinder | None = None
    if start.modules is not None:
        from farm_executor.server.modules import ModuleFinder  # late, like the next: an embedded farm needs neither
        from farm_executor.server.packages import PackageCheck

        finder = ModuleFinder(start.modules, lane.ask, PackageCheck(lane.tell))
        lane.on_offer = finder.set_offer
        finder.install()
    if start.line is not None:
        lane.shared = SharedObjects(start.line)
    runner = _Runner(lane, None if finder is None else finder.named_by_client)
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
        lane.begin(task.seq, began)
        try:
            outcome, error = runner.run(task)
        except KeyboardInterrupt as interrupt:  # it came between the end of the call and here
            outcome, error = runner.failed(interrupt)
        if os.getpid() != pid:
            os._exit(0)  # a child that the task has forked has returned from it, but the lane is its parent's
        lane.settle(outcome, error, began, once=task.once)
        # Keep nothing of this task alive while waiting for the next (CPython issue 16284).
        del task, outcome


class _Runner:
    """Runs calls, and turns their outcomes into payloads."""

    def __init__(self, lane: WorkerLane, named_by_client: Callable[[str], str] | None) -> None:
        self._lane = lane
        self._named_by_client = named_by_client
        self._namespaces = SharedNamespaces()
        if lane.shared is not None:
            lane.shared.serve(self._namespaces.resolver, self._namespaces.forget_shared)
        sys.modules["__main__"].__class__ = WorkerMain
        self._in_call = False
        self._whole = _Whole(self._interrupt)
        self._pid = os.getpid()

    def on_interrupt(self, signum: int, frame: Any) -> None:
        """Handle SIGINT: interrupt the running call; between calls there is nothing to interrupt.

        Ctrl-C in the terminal reaches only embedded workers: those of servers are in process groups of their own.
        """
        if os.getpid() != self._pid:  # a child that a task has forked is always interrupted
            raise KeyboardInterrupt
        if self._in_call and self._whole.entered:
            self._whole.came = True
        else:
            self._interrupt()

    def _interrupt(self) -> None:
        if self._in_call:
            # Once per call: a second Ctrl-C must not hit the code that reports the first.
            self._in_call = False
            raise KeyboardInterrupt

    def _whole_of(self, arguments: Payload) -> Payload:
        """Return arguments in full, some of whose buffers may be those of shared objects.

        Raises:
            SharedMemoryError: One cannot be had.
        """
        shared = self._lane.shared
        return arguments if shared is None else shared.filled(arguments)

    def initialize(self, frame: Frame) -> Payload | None:
        """Run the session's initializer; return its failure, or None."""
        try:
            call = payload.loads(payload_of(frame), self._namespaces.resolver)
            if call is not None:
                initializer, arguments = call
                awaited(initializer(*arguments))
        except BaseException as error:  # an initializer that calls sys.exit() has failed, too
            return dump_failure(error, skip_frames=1, named=self._named_by_client)
        return None

    def run(self, task: SentTask) -> tuple[Any, bool | None]:
        """Call the task's function with its arguments; return the outcome as `WorkerLane.settle` takes it."""
        if task.header:
            return self._run_carried(task)
        try:
            function = self._load_function(task.function)
            if task.plain:
                args, kwargs = task.arguments, {}
            elif len(task.arguments) == 1:
                args, kwargs = payload.loads(task.arguments, self._namespaces.resolver)
            else:
                args, kwargs = payload.loads(self._whole_of(task.arguments), self._namespaces.resolver)
        except BaseException as error:  # unpickling runs user code, which may raise anything
            return self.failed(error, explain_unreadable(error))
        try:
            self._in_call = True
            value = function(*args, **kwargs)
            if type(value) is types.CoroutineType:
                value = awaited(value)
            elif type(value) is Streamed:
                value = self._stream_out(value.items)
            self._in_call = False
        except BaseException as error:  # whatever it is, the future gets it, as in ProcessPoolExecutor
            self._in_call = False
            if type(error) is UnsendableItemError:
                what = f"item {error.number} of the stream"
                data = dump_unsendable(error.why, error.item, what, named=self._named_by_client)
                return _as_failure(error.why, data)
            return self.failed(error, skip_frames=1)
        finally:
            del args, kwargs
            _flush_output()
        if payload.is_plain(value):
            return value, None
        try:
            return payload.dumps(value), False
        except BaseException as error:  # pickling runs user code, too
            return _as_failure(error, dump_unsendable(error, value, named=self._named_by_client))

    def _stream_out(self, items: Any) -> Any:
        """Send items one by one, until there are no more, or nobody wants them; return what a generator returns."""
        if STREAMS not in self._lane.features:
            raise RuntimeError(
                "stream() needs a newer farm_executor on the server or in the client: update it, or return a list"
            )
        stream = self._lane.open_stream()
        stream.whole = self._whole
        try:
            if isinstance(items, types.CoroutineType):
                items = awaited(items)
            if hasattr(items, "__aiter__"):
                return awaited(_send_async(stream, items))
            iterator = iter(items)
            while True:
                try:
                    held = [next(iterator)]
                except StopIteration as end:
                    return end.value
                if not stream.put(held):
                    close = getattr(iterator, "close", None)
                    return close() if close is not None else None
        finally:
            stream.flush()  # what has been yielded comes, whatever follows

    def _run_carried(self, task: SentTask) -> tuple[Any, bool | None]:
        """Run a task with what travels beside its arguments."""
        from farm_executor.server.carried import within  # late: few programs need it

        try:
            header = payload.loads((task.header,), self._namespaces.resolver)
            return within(header, lambda: self.run(task._replace(header=b"")))
        except BaseException as error:  # it runs user code, too; the task's own errors have become its outcome
            return self.failed(error, explain_unreadable(error))

    def failed(self, error: BaseException, message: str = "", *, skip_frames: int = 0) -> tuple[Payload, bool]:
        """Return the outcome of a task that has raised this exception."""
        spans = sys.modules.get("farm_executor.server.spans")
        if spans is not None:  # there has been a traced task, and this may be another
            spans.failed(error)
        data = dump_failure(error, message, skip_frames=skip_frames, named=self._named_by_client)
        return _as_failure(error, data)

    def _load_function(self, function: SentFunction) -> Any:
        if function.data is None or function.generation == self._namespaces.generation:
            return function.loaded
        data = function.data
        if function.originals is not None:
            data = [*data, *function.originals.copies()]
        loaded = payload.loads(data, self._namespaces.resolver)
        if is_reusable(loaded):
            function.loaded, function.generation = loaded, self._namespaces.generation
            if not payload.by_value(function.data):  # nothing that the client sends later can change it
                function.data = function.originals = None
        return loaded


class _Whole:
    """A context in which an interrupt of the running call waits for the end; other threads have no part in it.

    Attributes:
        entered: Whether the main thread is in it.
        came: Whether an interrupt waits.
    """

    def __init__(self, interrupt: Callable[[], None]) -> None:
        self._interrupt = interrupt
        self.entered = self.came = False

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            self.came = False  # what is left of an interrupt that another has overtaken
            self.entered = True

    def __exit__(self, *error: object) -> None:
        if threading.current_thread() is threading.main_thread():
            self.entered = False
            if self.came:
                self._interrupt()


async def _send_async(stream: Outgoing, items: Any) -> None:
    iterator = aiter(items)
    try:
        async for item in iterator:
            held = [item]
            del item
            if not stream.put(held):
                return
    finally:
        close = getattr(iterator, "aclose", None)
        if close is not None:
            await close()


def _as_failure(error: BaseException, failure: Payload) -> tuple[Payload, bool]:
    # Its frames keep alive everything that the task had, and would grow if it were raised again. Called on
    # BaseException, as the exception's own class may define with_traceback as anything.
    BaseException.with_traceback(error, None)
    return failure, True


def is_reusable(function: Any) -> bool:
    """Return whether a call can leave nothing behind for the next one except what lasts in a process anyway.

    A module's function lasts, with its defaults and caches. But the object of a bound method, the arguments of a
    partial and the contents of a closure belong to one task, as its arguments do: each call gets them as sent.
    """
    return _is_reusable(function, set())


def _is_reusable(value: Any, seen: set[int]) -> bool:
    if type(value) in ATOMS or isinstance(value, (type, types.ModuleType)) or id(value) in seen:
        return True
    seen.add(id(value))  # closures may be recursive
    parts: tuple[Any, ...]
    match value:
        case types.FunctionType():
            local = "<" in value.__qualname__  # <lambda>, f.<locals>.g
            if local and _may_rebind(value.__code__):
                return False
            parts = tuple(contents_of(cell) for cell in value.__closure__ or ()) if local else ()
        case types.MethodType():
            parts = (value.__func__, value.__self__)
        case types.BuiltinFunctionType() | types.MethodWrapperType():
            parts = (value.__self__,)
        case functools.partial():
            parts = (value.func, *value.args, *value.keywords.values())
        case functools._lru_cache_wrapper():
            parts = (value.__wrapped__,)
        case tuple():
            parts = value
        case _:
            return False
    return all(_is_reusable(part, seen) for part in parts)


def _may_rebind(code: types.CodeType) -> bool:
    """Return whether the code may assign to a variable that it closes over, and so leave it changed."""
    if not code.co_freevars:
        return False
    from opcode import opmap  # late: few functions come here

    rebinding = (opmap["STORE_DEREF"], opmap["DELETE_DEREF"])
    # Every second byte is an opcode; the others are arguments, which may have any value.
    if any(instruction in rebinding for instruction in code.co_code[::2]):
        return True
    return any(_may_rebind(constant) for constant in code.co_consts if isinstance(constant, types.CodeType))


def _flush_output() -> None:
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except Exception:  # closed, or replaced by something else
        pass
