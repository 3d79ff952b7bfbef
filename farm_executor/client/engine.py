"""The engine: carries out what the scheduler decides.

This module owns the I/O thread, the sockets of one farm and the settling of futures. It must not decide which task
goes where (`core.scheduler`), when to dial (`server`), nor what the public contract is (`executor`).

    submit ──► Engine.submit ──► Scheduler ──► Lane.send_tasks          in the caller's thread
    Future ◄── settle        ◄── Scheduler ◄── Lane's connection        in the I/O thread

One lock guards the scheduler, the lanes and all sending. Deciding and sending happen in the same hold of it, so
no event can come between a decision and its deed. Futures are settled, and so users' callbacks run, without it.
The I/O thread alone receives; other threads reach it by `Engine.post`, which takes no lock.

Should the I/O thread itself fail, every future settles with `BrokenFarmError`: nothing ever hangs.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import os
import selectors
import threading
import time
import types
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

from farm_executor import payload
from farm_executor.byvalue import OwnObjects
from farm_executor.client.future import FarmFuture
from farm_executor.client.lane import Call, Function, Lane, WorkerDeath
from farm_executor.client.outcome import (
    caused,
    copy_of,
    describe_death,
    explain_pickling,
    initializer_failed,
    unreadable_result,
    worker_lost,
)
from farm_executor.client.server import ServerLink, Settings
from farm_executor.client.statistics import FarmStatistics, ServerStatistics, WorkerStatistics
from farm_executor.core.frames import (
    ERROR,
    Frame,
    FrameType,
    Payload,
    Result,
    decode_results,
    encode_frame,
    payload_of,
)
from farm_executor.core.handshake import decode_hello
from farm_executor.core.scheduler import Assign, Decision, Lose, Recall, Scheduler, Task
from farm_executor.errors import BrokenFarmError, RemoteProtocolError
from farm_executor.failure import Origin, load_failure, remote_traceback
from farm_executor.transport import Connection, Waker

__all__ = ["Engine", "EngineOptions", "TaskOptions"]

logger = logging.getLogger(__name__)

REPORT_SECONDS = 5.0  # for the supervisor's word on a worker whose lane has ended
MAX_STILLBORN = 3
MAX_FUNCTIONS = 512  # known by content; each lane forgets by itself what it does not use
MAX_FUNCTION_BYTES = 64 * 1024 * 1024  # of those: a bound method is as large as its object


@dataclass(frozen=True)
class TaskOptions:
    """What a view of the executor sets for its tasks."""

    priority: int = 0
    category: Hashable = None
    max_attempts: int = 3


@dataclass(frozen=True)
class EngineOptions:
    """What the executor was constructed with, as far as it concerns the engine.

    Attributes:
        locations: For each server a function that gives its address, starting it if need be.
        quotas: For each server the most lanes to open, None for all its slots.
        end_servers: Called when all is over: ends the servers that were started for this farm alone.
        initializer: The pickled call that every worker runs first.
    """

    locations: list[Callable[[], Any]]
    quotas: list[int | None]
    settings: Settings
    end_servers: Callable[[], None]
    initializer: Payload
    max_tasks_per_child: int | None
    connect_timeout: float | None


class Engine:
    """One farm's client side, from the first submit to the end.

    Thread safety: `submit`, `prepare`, `shutdown`, `join`, `post` and `statistics` may be called from any thread.
    """

    def __init__(self, options: EngineOptions) -> None:
        self._options = options
        self._lock = threading.Lock()
        self._scheduler = Scheduler(start=_start)
        self._ids = itertools.count(1)
        self._function_numbers = itertools.count(1)
        self._functions: dict[bytes, Function] = {}
        self._function_bytes = 0
        self._named_functions: dict[Callable[..., Any], Function] = {}  # those that need not be pickled again
        self._lanes: dict[int, tuple[ServerLink, str, Lane]] = {}
        self._controls: dict[ServerLink, Connection] = {}
        self._lane_counts: dict[ServerLink, int] = {}
        self._had_lane = False
        self._stillborn = 0  # workers in a row that died before they were ready
        self._shutdown = False
        self._closed = False
        self._error: Callable[[], BaseException] | None = None
        self._counts = dict.fromkeys(("submitted", "succeeded", "failed", "cancelled", "resubmitted", "lost"), 0)
        # The I/O thread's own
        self._selector = selectors.DefaultSelector()
        self._waker = Waker()
        self._inbox: deque[Callable[[], None]] = deque()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._timer_ids = itertools.count()
        self._links = [
            ServerLink(locate, quota, options.settings, self)
            for locate, quota in zip(options.locations, options.quotas, strict=True)
        ]
        self._thread = threading.Thread(target=self._run, name="farm-engine", daemon=True)

    def start(self) -> None:
        """Start the I/O thread and begin to dial.

        Raises:
            RuntimeError: No thread can be started, as from Python 3.12 on when the main thread has ended.
        """
        try:
            self._thread.start()
        except RuntimeError:
            self._close()
            raise
        for link in self._links:
            link.start()

    # -- for callers -------------------------------------------------------------------------------------

    def prepare(self, fn: Callable[..., Any]) -> Function:
        """Pickle a function, as it is now, for one or many calls.

        Raises:
            Exception: It cannot be pickled.
        """
        known = self._named_functions.get(fn) if type(fn) is types.FunctionType else None
        if known is not None and payload.names_itself(fn):
            return known
        data = bytes(payload.dumps(fn, out_of_band=False)[0])
        function = self._functions.get(data)
        if function is None:
            if len(self._functions) >= MAX_FUNCTIONS or self._function_bytes > MAX_FUNCTION_BYTES:
                self._functions.clear()  # costs those still used a new number, nothing else
                self._named_functions.clear()
                self._function_bytes = 0
            self._function_bytes += len(data)
            function = self._functions.setdefault(data, Function(next(self._function_numbers), [data]))
        if payload.names_itself(fn) and not payload.by_value(function.data):
            self._named_functions[fn] = function
        return function

    def submit(
        self, fn: Callable[..., Any] | Function, args: tuple[Any, ...], kwargs: dict[str, Any], options: TaskOptions
    ) -> FarmFuture:
        """Send a call, or queue it.

        Returns:
            Its future. If the call cannot be pickled, the future holds that error already.

        Raises:
            RuntimeError: The farm has been shut down.
            BrokenFarmError: It is broken; or whatever else broke it, such as AuthenticationError.
        """
        self._check_open()
        future = FarmFuture()
        try:
            function = fn if isinstance(fn, Function) else self.prepare(fn)
            arguments = payload.dumps((args, kwargs))
        except Exception as error:  # whatever a user's reduction raises is its future's, and no other's
            future.set_running_or_notify_cancel()
            future.set_exception(explain_pickling(error, fn, args, kwargs))
            return future
        task = Task(
            next(self._ids),
            Call(function, arguments, future),
            priority=options.priority,
            category=options.category,
            max_attempts=options.max_attempts,
        )
        future.on_cancel = lambda: self.post(lambda: self._withdraw(task))
        with self._lock:
            self._check_open()
            try:
                self._counts["submitted"] += 1
                self._perform(self._scheduler.submit(task))
            except BaseException:  # Ctrl-C, somewhere between deciding and sending: nobody knows what was done
                self.abort("a submit was interrupted half-way; make a new executor")
                raise
        return future

    def _check_open(self) -> None:
        if self._error is not None:
            raise self._error()
        if self._shutdown:
            raise RuntimeError("cannot schedule new futures after shutdown")

    def shutdown(self, *, cancel_futures: bool = False) -> None:
        """Take no more tasks; end when those taken have settled.

        As cancelling a future does, this takes no lock: a destructor may call it, wherever the garbage collector
        has found the time.
        """
        self._shutdown = True
        if not self._closed:
            self.post(self._cancel_queued if cancel_futures else _nothing)

    def abort(self, reason: str) -> None:
        """Give up: unsettled futures settle with `BrokenFarmError`, and the workers end at once."""
        if not self._closed:
            self.post(lambda: self._break(lambda: BrokenFarmError(reason)))

    def join(self, timeout: float | None = None) -> bool:
        """Wait until the end after `shutdown`; say whether it has come. From a callback it is not waited for."""
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def post(self, action: Callable[[], None]) -> None:
        """Have the I/O thread call something. Takes no lock."""
        self._inbox.append(action)
        if len(self._inbox) == 1:  # else whoever was first has woken it
            self._waker.wake()
        if self._closed:
            self._run_inbox()

    def _run_inbox(self) -> None:
        while self._inbox:
            self._inbox.popleft()()

    @property
    def broken(self) -> bool:
        """Whether the farm has failed as a whole."""
        return self._error is not None

    @property
    def workers(self) -> int:
        """How many lanes the servers seen so far give us."""
        return sum(list(self._lane_counts.values()))

    def statistics(self) -> FarmStatistics:
        """A snapshot."""
        with self._lock:
            servers = tuple(self._server_statistics(link) for link in self._links)
            return FarmStatistics(
                state="broken" if self._error else "shut down" if self._shutdown else "open",
                servers=servers,
                queued=self._scheduler.queued,
                running=self._scheduler.outstanding,
                **self._counts,
            )

    def _server_statistics(self, link: ServerLink) -> ServerStatistics:
        workers = tuple(
            WorkerStatistics(
                slot=lane.slot,
                pid=lane.pid,
                tasks_done=lane.tasks_done,
                busy_seconds=lane.busy_seconds,
                outstanding=self._scheduler.outstanding_on(lane.id),
            )
            for owner, _, lane in self._lanes.values()
            if owner is link
        )
        return ServerStatistics(address=str(link), up=link.up, workers=workers, last_error=link.last_error)

    # -- performing decisions, with the lock held ----------------------------------------------------------

    def _perform(self, decisions: list[Decision]) -> list[Task]:
        """Do what was decided; return the tasks to settle as lost, which takes no lock."""
        lost = []
        for decision in decisions:
            if isinstance(decision, Lose):
                lost.append(decision.task)
                continue
            lane = self._lanes[decision.lane][2]
            if isinstance(decision, Assign):
                sent = lane.send_tasks(decision.seq, decision.tasks)
            elif isinstance(decision, Recall):
                sent = lane.send_recall(decision.count)
            else:
                lane.retired = True
                self.post(lambda lane=lane: self._end_lane(lane))  # type: ignore[misc]
                continue
            if not sent:
                self.post(lambda lane=lane: self._watch(lane))  # type: ignore[misc]
        return lost

    # -- the I/O thread ------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._selector.register(self._waker, selectors.EVENT_READ, lambda events: self._waker.drain())
            if self._options.connect_timeout is not None:
                self._after(self._options.connect_timeout, self._give_up_connecting)
            while not self._finished():
                for key, events in self._selector.select(self._next_timer()):
                    key.data(events)
                self._run_inbox()
                self._run_timers()
        except BaseException as error:  # the last resort: nobody may wait for a thread that has died
            logger.critical("the engine failed, which is a bug", exc_info=True)
            bug = error
            reason = f"the farm's engine failed, which is a bug: {type(error).__name__}: {error}"
            self._break(lambda: caused(BrokenFarmError(reason), bug))
        finally:
            self._close()

    def _finished(self) -> bool:
        with self._lock:
            return self._shutdown and not self._inbox and not self._scheduler.unsettled

    def _after(self, seconds: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._timer_ids), action))

    def _next_timer(self) -> float | None:
        return max(self._timers[0][0] - time.monotonic(), 0.0) if self._timers else None

    def _run_timers(self) -> None:
        while self._timers and self._timers[0][0] <= time.monotonic():
            heapq.heappop(self._timers)[2]()

    def _close(self) -> None:
        for link in self._links:
            link.close()
        for connection in self._controls.values():
            if self._error is None:  # else the workers need no time to end well
                connection.send(encode_frame(FrameType.BYE))
            connection.close()
        for _, _, lane in self._lanes.values():
            lane.connection.close()
        self._closed = True
        self._run_inbox()  # closes connections that were made in the last moment
        self._lanes.clear()
        self._controls.clear()
        self._selector.close()
        self._waker.close()
        self._options.end_servers()

    # -- what links tell, in their threads -----------------------------------------------------------------

    def control_up(self, link: ServerLink, connection: Connection, session: str, lanes: int) -> None:
        """See `server.Listener`."""

        def adopt() -> None:
            if self._closed or session != link.session:
                connection.close()
                return
            connection.socket.setblocking(False)
            self._controls[link] = connection
            self._lane_counts[link] = lanes
            self._selector.register(
                connection, selectors.EVENT_READ, lambda events: self._on_control(link, session, connection)
            )

        self.post(adopt)

    def lane_up(
        self, link: ServerLink, connection: Connection, session: str, slot: int, lane: int, pid: int
    ) -> None:
        """See `server.Listener`."""

        def adopt() -> None:
            if self._closed or session != link.session:
                connection.close()
                return
            connection.socket.setblocking(False)
            new = Lane(lane, connection, str(link), slot, pid)
            with self._lock:
                self._lanes[lane] = (link, session, new)
                new.send_init(self._options.initializer)
            self._selector.register(connection, selectors.EVENT_READ, lambda events: self._on_lane(new, events))
            self._watch(new)

        self.post(adopt)

    def refused(self, link: ServerLink, error: Exception) -> None:
        """See `server.Listener`."""
        self.post(lambda: self._break(lambda: copy_of(error)))

    # -- events, in the I/O thread -------------------------------------------------------------------------

    def _watch(self, lane: Lane) -> None:
        """Have the selector report when a lane's socket takes more, while there is more."""
        if lane.id in self._lanes and not lane.ended:
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if lane.connection.unsent else 0)
            self._selector.modify(lane.connection, events, lambda events: self._on_lane(lane, events))

    def _on_control(self, link: ServerLink, session: str, connection: Connection) -> None:
        try:
            for frame in connection.receive():
                if frame.type is FrameType.WORKER_DIED:
                    self._on_death(decode_hello(frame))
                elif frame.type is FrameType.DRAINING:
                    logger.info("draining server=%s", link)
                else:
                    raise RemoteProtocolError(f"{frame.type.name} frame on a control connection")
        except (EOFError, RemoteProtocolError) as error:
            logger.warning("session lost server=%s error=%s", link, error)
            self._selector.unregister(connection)
            connection.close()
            del self._controls[link]
            for owner, of, lane in list(self._lanes.values()):
                if owner is link and of == session:
                    self._lose_lane(lane)
            link.control_lost(session)

    def _on_death(self, report: dict[str, Any]) -> None:
        entry = self._lanes.get(report.get("lane", 0))
        if entry is None:
            return
        try:
            lane, death = entry[2], WorkerDeath(int(report["pid"]), int(report["code"]), int(report["begun"]))
        except (KeyError, TypeError, ValueError) as error:
            raise RemoteProtocolError(f"malformed report of a worker's death: {error!r}") from None
        lane.death = death
        if lane.ended:
            self._lose_lane(lane)

    def _on_lane(self, lane: Lane, events: int) -> None:
        if self._is_gone(lane):
            return  # by an event of this same round
        if events & selectors.EVENT_WRITE:
            with self._lock:
                lane.connection.flush()
            self._watch(lane)
        if not events & selectors.EVENT_READ:
            return
        try:
            for frame in lane.connection.receive():
                if self._is_gone(lane):
                    break  # by what the frame before it said
                self._on_frame(lane, frame)
        except EOFError:
            self._on_lane_end(lane)
        except RemoteProtocolError as error:
            logger.error("lane broken server=%s pid=%d error=%s", lane.server, lane.pid, error)
            self._lose_lane(lane)

    def _is_gone(self, lane: Lane) -> bool:
        return lane.ended or lane.id not in self._lanes

    def _on_lane_end(self, lane: Lane) -> None:
        lane.ended = True
        self._selector.unregister(lane.connection)
        if lane.death is not None or lane.retired:
            self._lose_lane(lane)
        else:  # the supervisor knows why, and will say so at once if it can
            self._after(REPORT_SECONDS, lambda: self._lose_lane(lane))

    def _on_frame(self, lane: Lane, frame: Frame) -> None:
        serving = lane.ready and not lane.retired
        if frame.type is FrameType.RESULTS and serving:
            self._on_results(lane, frame)
        elif frame.type is FrameType.RECALLED and serving:
            with self._lock:
                self._perform(self._scheduler.recalled(lane.id, frame.seq, frame.count))
        elif frame.type is FrameType.READY and not lane.ready:
            self._on_ready(lane, frame)
        else:
            raise RemoteProtocolError(f"{frame.type.name} frame from a worker, out of turn")

    def _on_ready(self, lane: Lane, frame: Frame) -> None:
        if frame.flags & ERROR:
            error = load_failure(payload_of(frame), Origin(lane.server, lane.pid), OwnObjects)
            self._break(lambda: caused(BrokenFarmError(initializer_failed(lane, remote_traceback(error))), error))
            return
        lane.ready = self._had_lane = True
        self._stillborn = 0
        with self._lock:
            self._perform(self._scheduler.lane_up(lane.id, self._options.max_tasks_per_child))

    def _on_results(self, lane: Lane, frame: Frame) -> None:
        busy_us, results = decode_results(frame)
        with self._lock:
            tasks, decisions = self._scheduler.finished(lane.id, frame.seq, len(results), busy_us)
            self._perform(decisions)  # first of all, so that the worker goes on while we unpickle
            lane.tasks_done += len(results)
            lane.busy_seconds += busy_us / 1e6
        for task, result in zip(tasks, results, strict=True):
            self._settle(lane, task, result)

    def _settle(self, lane: Lane, task: Task, result: Result) -> None:
        error: BaseException | None = None
        value = None
        if result.error:
            error = load_failure(result.payload, Origin(lane.server, lane.pid, task.losses + 1), OwnObjects)
        else:
            try:
                value = payload.loads(result.payload, OwnObjects)
            except BaseException as problem:  # rebuilding runs the user's code, which may even try to exit
                error = unreadable_result(lane, task, problem)
        future = _release(task)
        self._count("failed" if error is not None else "succeeded")
        _set(future, value, error)

    def _count(self, name: str) -> None:
        self._counts[name] += 1

    def _withdraw(self, task: Task) -> None:
        """A future has been cancelled."""
        with self._lock:
            if not self._scheduler.withdraw(task):
                return
        self._count("cancelled")
        task.call.future.set_running_or_notify_cancel()  # says no, and tells those who wait

    def _cancel_queued(self) -> None:
        with self._lock:
            queued = self._scheduler.withdraw_all()
        for task in queued:
            future = _release(task)
            if future.cancel():
                self._count("cancelled")
                future.set_running_or_notify_cancel()

    # -- ends ----------------------------------------------------------------------------------------------

    def _end_lane(self, lane: Lane) -> None:
        """A lane has run all the tasks it may: its worker ends when we hang up, and a fresh one is asked for."""
        if lane.id in self._lanes:
            self._lose_lane(lane)

    def _lose_lane(self, lane: Lane) -> None:
        """A lane is no more: move its tasks, settle those that may not run again, ask for another worker."""
        if self._lanes.get(lane.id) is None:
            return
        death = lane.death
        begun = death.begun if death else None
        with self._lock:
            link, session, _ = self._lanes.pop(lane.id)
            if not lane.ended:
                lane.ended = True
                self._selector.unregister(lane.connection)
            lane.connection.close()
            had = self._scheduler.outstanding_on(lane.id)
            decisions = self._scheduler.lane_lost(lane.id, begun)
            losses = self._perform(decisions)
            self._counts["resubmitted"] += had - len(losses)
            self._counts["lost"] += len(losses)
        if not lane.retired:
            reason = describe_death(death)
            logger.warning(
                "worker lost server=%s pid=%d reason=%s resubmitted=%d lost=%d",
                *(lane.server, lane.pid, reason, had - len(losses), len(losses)),
            )
            for task in losses:
                _set(_release(task), None, worker_lost(lane, task, reason))
        if death is not None and not lane.ready:
            self._on_stillborn(describe_death(death))
        link.lane_gone(session, lane.slot, failed=not lane.ready)

    def _on_stillborn(self, reason: str) -> None:
        """A worker has died before it was ready; if that is all they ever do, waiting does not help."""
        self._stillborn += 1
        if self._stillborn >= MAX_STILLBORN and not any(lane.ready for _, _, lane in self._lanes.values()):
            text = f"{self._stillborn} workers in a row died in their initializer or before; the last {reason}"
            self._break(lambda: BrokenFarmError(text))

    def _give_up_connecting(self) -> None:
        if not self._had_lane:
            reasons = "; ".join(f"{link} ({link.last_error or 'no answer'})" for link in self._links)
            seconds = self._options.connect_timeout
            self._break(lambda: TimeoutError(f"no worker could be had within {seconds} s from: {reasons}"))

    def _break(self, error: Callable[[], BaseException]) -> None:
        """Settle every future with an error of its own, and take no more."""
        with self._lock:
            if self._error is not None:
                return
            self._error = error
            self._shutdown = True
            tasks = list(self._scheduler.tasks())
            self._scheduler = Scheduler(start=_start)
            lanes = [entry[2] for entry in self._lanes.values()]
            for lane in lanes:
                lane.ended = True
                self._selector.unregister(lane.connection)
        for task in tasks:
            future = _release(task)
            if task.started or future.set_running_or_notify_cancel():
                self._count("failed")
                _set(future, None, error())

    # -- fork ----------------------------------------------------------------------------------------------

    def abandon(self) -> None:
        """In a forked child: let go of the parent's connections, and of its futures with an error."""
        descriptors = [connection.fileno() for connection in self._controls.values()]
        descriptors += [lane.connection.fileno() for _, _, lane in self._lanes.values()]
        descriptors += [self._waker.fileno(), self._waker.signal_fileno()]
        for descriptor in descriptors:
            if descriptor >= 0:
                os.close(descriptor)
        for connection in [*self._controls.values(), *(lane.connection for _, _, lane in self._lanes.values())]:
            connection.socket.detach()
        self._selector.close()
        error = BrokenFarmError("this future belongs to the process that this one was forked from")
        for task in list(self._scheduler.tasks()):
            task.call.future.abandon(error)


def _nothing() -> None:
    """For the inbox: wake up and see whether all is over."""


def _start(task: Task) -> bool:
    """For the scheduler: whether the task's future has not been cancelled."""
    started: bool = task.call.future.set_running_or_notify_cancel()
    return started


def _release(task: Task) -> FarmFuture:
    """The task's future; nothing else of the call is kept alive."""
    future: FarmFuture = task.call.future
    future.on_cancel = None
    task.call = None
    return future


def _set(future: FarmFuture, value: Any, error: BaseException | None) -> None:
    try:
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)
    except (
        BaseException
    ):  # settled by somebody else, or a callback that exits: a user's error must not end the farm
        logger.exception("a future could not be settled")
