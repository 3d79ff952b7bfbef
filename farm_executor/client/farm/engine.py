"""The engine: carries out what the scheduler decides.

This module owns the lanes of one farm and the settling of futures. It must not decide which task goes where
(`core.scheduler`), who waits for the sockets (`reactor`), which servers there are (`servers`), nor what the public
contract is (`executor`).

    submit ──► Engine.submit ──► Scheduler ──► Lane.send_tasks          in the caller's thread
    Future ◄── settle        ◄── Scheduler ◄── Lane's connection        in a handler of the reactor's

One lock guards the scheduler, the lanes and all sending. Deciding and sending happen in the same hold of it, so
no event can come between a decision and its deed. Futures are settled, and so users' callbacks run, without it.

To submit never waits for that lock. A task is put down in ``_incoming``; whoever takes the lock admits first what
lies there, and whoever gives it back looks there once more if a worker idles. The submitting thread only tries the
lock, and only if a worker idles: it gets it, and sends, or whoever has it will. So a destructor or a signal handler
may submit, too, even if its own thread has been interrupted while it holds the lock. Whatever else users may call
there asks `may_wait` before it waits for the farm, and `_look` before it takes the lock.

Should the engine itself fail, every future settles with `BrokenFarmError`: nothing ever hangs.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import selectors
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from farm_executor.client.farm.broadcasts import Broadcast
from farm_executor.client.farm.budget import Budget
from farm_executor.client.farm.cancels import Cancels, Request
from farm_executor.client.farm.functions import Function, FunctionTable
from farm_executor.client.farm.future import MUST_NOT_WAIT, FarmFuture, start_all
from farm_executor.client.farm.interrupt import HeldBack
from farm_executor.client.farm.kills import Kills
from farm_executor.client.farm.lane import Lane, size_of
from farm_executor.client.farm.link import ServerLink, Settings
from farm_executor.client.farm.locks import OwnedLock
from farm_executor.client.farm.options import TaskOptions
from farm_executor.client.farm.reactor import Reactor
from farm_executor.client.farm.servers import Servers, Sources
from farm_executor.client.farm.settling import Settler
from farm_executor.client.farm.shipping import Shipping
from farm_executor.client.farm.wording import (
    caused,
    copy_of,
    describe_death,
    explain_pickling,
    initializer_failed,
    last_word,
    task_killed,
    task_overran,
    worker_lost,
)
from farm_executor.core.frames import (
    BULK,
    ERROR,
    TOGETHER,
    Frame,
    FrameType,
    Payload,
    decode_results,
    decode_results_together,
    payload_of,
    payload_size,
)
from farm_executor.core.lifecycle import LaneEvent, LaneState
from farm_executor.core.liveness import CUT_EXIT_CODE
from farm_executor.core.messages import KillOrder, Spared, WorkerDied
from farm_executor.core.scheduler import Assign, Cancel, Decision, Kill, Lose, Recall, Scheduler, Task
from farm_executor.data import payload
from farm_executor.data.byvalue import OwnObjects
from farm_executor.data.failure import Origin, load_failure, remote_traceback
from farm_executor.errors import BrokenFarmError, RemoteProtocolError, TaskKilledError, WorkerLostError
from farm_executor.wire.transport import Connection

if TYPE_CHECKING:
    from farm_executor.client.farm.statistics import FarmStatistics, ServerStatistics

__all__ = ["Engine", "EngineOptions"]

logger = logging.getLogger(__name__)

OPEN = LaneState.OPEN  # compared with for each frame; before Python 3.12 a member is slow to look up
AFTER_SHUTDOWN = "cannot schedule new futures after shutdown"
GLANCE_EVERY = 128  # submits: who floods the farm keeps its own thread from running, and so does its work
REPORT_SECONDS = 5.0  # for the supervisor's word on a worker whose lane has ended
IDLE_SECONDS = 1.0  # after which, or twice that, what is kept of large functions is forgotten
MAX_STILLBORN = 3
LONGEST_LOOK = 5.0  # seconds for the lock, which is held for milliseconds: longer than that it is for ever
MAX_ROUNDS = 3  # of killing what runs, in case some of it has come to run elsewhere meanwhile


class EngineOptions(NamedTuple):
    """What the executor was constructed with, as far as it concerns the engine.

    Attributes:
        end_servers: Called when all is over: ends the servers that were started for this farm alone.
        initializer: The pickled call that every worker runs first.
        ship: Which modules workers may have; see `ChosenModules`.
    """

    sources: Sources
    settings: Settings
    end_servers: Callable[[], None]
    initializer: Payload
    max_tasks_per_child: int | None
    connect_timeout: float | None
    caller_leads: bool
    budget: Budget | None
    ship: Sequence[str] = ()


class Engine:
    """One farm's client side, from the first submit to the end.

    Attributes:
        servers: The farm's.

    Thread safety: the methods for callers, and those of `future.Owner`, may be called from any thread.
    """

    def __init__(self, options: EngineOptions) -> None:
        self._options = options
        self._budget = options.budget
        self._lock = OwnedLock()
        self._deciding = _Deciding(self)
        self._looking = _Deciding(self, LONGEST_LOOK)
        self._scheduler = Scheduler(start=_start)
        self._incoming: deque[Task] = deque()
        self._ids = itertools.count(1)
        self._functions = FunctionTable()
        self._lanes: dict[int, tuple[ServerLink, str, Lane]] = {}
        self._lanes_by_link: dict[ServerLink, dict[int, Lane]] = {}  # the same: nothing scans the whole farm
        self._persistent: list[Broadcast] = []  # for workers that are still to come
        self._had_lane = False
        self._stillborn = 0  # workers in a row that died before they were ready
        self._shutdown = False
        self._cancelling = 0  # how many have cancelled what goes on, and are not over
        self._closed = False
        self._error: Callable[[], BaseException] | None = None
        self._submitted = self._resubmitted = 0
        self._reactor = Reactor(self._finished, self._fail, self._close, may_lead=options.caller_leads)
        self._settler = Settler(self._reactor, self._budget)
        self._kills = Kills(self._reactor, self._send_kill, self._aim)
        self._cancels = Cancels(self._reactor, self._ask_back)
        self._shipping = Shipping(options.ship, self._reactor, self)
        self._timed = False  # whether any task had a timeout
        self._will_forget = False  # whether somebody will look whether large functions are still used
        self.servers = Servers(options.sources, options.settings, self._reactor, self)

    def start(self) -> None:
        """Start the I/O thread and begin to dial.

        Raises:
            RuntimeError: No thread can be started, as from Python 3.12 on when the main thread has ended.
        """
        if self._options.connect_timeout is not None:
            self._reactor.after(self._options.connect_timeout, self._give_up_connecting)
        self._reactor.start()
        self.servers.start()

    # -- for callers -------------------------------------------------------------------------------------

    def prepare(self, fn: Callable[..., Any]) -> Function:
        """Pickle a function, as it is now, for many calls.

        Raises:
            Exception: It cannot be pickled.
        """
        return self._functions.find(fn)

    @property
    def counts_tasks(self) -> bool:
        """Whether workers are replaced after so many tasks."""
        return self._options.max_tasks_per_child is not None

    def submit(
        self,
        fn: Callable[..., Any] | Function,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: TaskOptions,
        *,
        goes_on: bool = False,
        calls: int = 1,
        before_settling: Callable[[Any, BaseException | None, Origin], dict[str, int] | None] | None = None,
    ) -> FarmFuture:
        """Send a call, or queue it.

        Args:
            fn: The function, or what `prepare` made of it.
            args: Its arguments.
            kwargs: Its arguments by name.
            options: The task's.
            goes_on: This is the rest of a task that was taken before, so that a shutdown is no obstacle.
            calls: For how many calls of the user's it stands.
            before_settling: See `FarmFuture`.

        Returns:
            Its future. If the call cannot be pickled, the future holds that error already.

        Raises:
            RuntimeError: The farm has been shut down.
            BrokenFarmError: It is broken; or whatever else broke it, such as AuthenticationError.
            FarmFullError: See `Budget`.
        """
        if self._shutdown and not goes_on:
            raise self._error() if self._error is not None else RuntimeError(AFTER_SHUTDOWN)
        future: FarmFuture = FarmFuture()
        try:
            future._function = fn if isinstance(fn, Function) else self._functions.find(fn)
            if self._budget is None and not kwargs and payload.all_plain(args):
                future._plain = args  # nobody can change them
            else:
                future._arguments = payload.dumps_call(args, kwargs)
        except BaseException as problem:  # whatever a user's reduction raises is its future's, and no other's
            error = explain_pickling(problem, fn, args, kwargs)
            future._release()
            future.set_running_or_notify_cancel()
            future.set_exception(error)
            return future
        if goes_on and self._cancelling:  # what would go on has been cancelled with all that was queued
            future._release()
            future.cancel()
            future.set_running_or_notify_cancel()
            if goes_on:  # and so had been counted as submitted
                self._settler.counts["cancelled"] += calls
            return future
        future._task = task = Task(
            next(self._ids), future, options.priority, options.category, options.max_attempts
        )
        if options.timeout is not None:
            self._timed = True
            task.timeout = options.timeout
        future._owner = self
        if before_settling is not None:
            future._before_settling = before_settling
            task.calls, task.goes_on = calls, goes_on
        if self._budget is None:
            self._incoming.append(task)
        else:
            # Who would make room must not wait for it; what goes on has been waited for.
            now = goes_on or not self.may_wait()
            self._append_within(self._budget, task, payload_size(future._arguments), now=now)
        if self._scheduler.has_idle_lane:
            self._admit()
        if not task.id % GLANCE_EVERY and not self._lock.is_mine():
            self._reactor.glance()
        if self._closed:  # since we looked
            self._refuse_incoming()
        return future

    def _append_within(self, budget: Budget, task: Task, size: int, *, now: bool) -> None:
        while True:
            with HeldBack():
                if budget.take(size, now=now):
                    self._incoming.append(task)
                    return
            budget.wait(size)

    def _admit(self) -> None:
        """Send what has been submitted, unless somebody else is about to."""
        with HeldBack():
            while self._incoming and not self._closed and not self._lock.is_mine() and self._lock.acquire(False):
                try:
                    self._take_incoming()
                except BaseException:  # another signal's handler raised in the midst of it: what was done?
                    self.abort("a submit was interrupted half-way; make a new executor")
                    raise
                finally:
                    self._lock.release()

    def _take_incoming(self) -> None:
        """Hand what has been submitted to the scheduler; the lock is held."""
        while self._incoming and not self._closed:
            tasks = [self._incoming.popleft() for _ in range(len(self._incoming))]
            self._submitted += sum([task.calls for task in tasks if not task.goes_on])
            self._perform(self._scheduler.submit(*tasks))

    def _refuse_incoming(self) -> None:
        """Settle what was submitted just when all was over."""
        while True:
            try:
                task = self._incoming.popleft()
            except IndexError:
                return
            self._settler.refuse(task, self._error() if self._error is not None else RuntimeError(AFTER_SHUTDOWN))

    def may_wait(self) -> bool:
        """Whether this thread may wait for the farm: not in a callback, nor amid the farm's work."""
        return not self._lock.is_mine() and self._reactor.may_wait()

    def check_may_wait(self) -> None:
        """Raise what speaks against waiting for all servers or workers."""
        if self._shutdown:
            raise self._error() if self._error is not None else RuntimeError(AFTER_SHUTDOWN)
        if not self.may_wait():
            raise RuntimeError(MUST_NOT_WAIT)

    def broadcast(
        self, fn: Callable[..., Any] | Function, args: tuple[Any, ...], options: TaskOptions, *, persistent: bool
    ) -> Broadcast:
        """Send a call to every worker of every server, also of those that have yet to answer.

        Args:
            fn: The function, or what `prepare` made of it.
            args: Its arguments.
            options: The calls'.
            persistent: Whether workers that come later make it, too, before any other task. If one fails to, the
                farm breaks, as when its initializer fails.

        Raises:
            RuntimeError: The farm has been shut down, or this is a callback, which must not wait for workers.
            Exception: The call cannot be pickled.
        """
        self.check_may_wait()
        arguments = payload.dumps((args, {}))
        function = fn if isinstance(fn, Function) else self._functions.find(fn)
        answers = dict(self.servers.answered)
        broadcast = Broadcast(function, arguments, options, {link: Future() for link in answers})
        if persistent:
            self._persistent.append(broadcast)
        for link, answered in answers.items():
            answered.add_done_callback(partial(self._cast, broadcast, link))
        return broadcast

    def forget(self, broadcast: Broadcast) -> None:
        """Workers that come later need not make the call."""
        if broadcast in self._persistent:
            self._persistent.remove(broadcast)

    def _cast(self, broadcast: Broadcast, link: ServerLink, answered: Future[int]) -> None:
        """The server has answered, or never will."""
        known = broadcast.calls[link]
        if not known.set_running_or_notify_cancel():
            return  # nobody waits for it any more
        error = answered.exception()
        if error is not None:
            known.set_exception(error)
            return
        with HeldBack(), self._deciding:
            calls = [self._call_at(broadcast, link, slot) for slot in range(self.servers.counts[link])]
            too_late = self._closed
            if not too_late:
                self._perform(self._scheduler.submit(*[call._task for call in calls]))
                self._submitted += len(calls)
        for call in calls if too_late else ():
            self._settler.refuse(call._task, self._error() if self._error else RuntimeError(AFTER_SHUTDOWN))
        known.set_result(list(calls))

    def _call_at(self, broadcast: Broadcast, link: ServerLink, slot: int, *, late: bool = False) -> FarmFuture:
        """A task for whoever is in that place, or for one who has come late."""
        call: FarmFuture = FarmFuture()
        call._function, call._arguments = broadcast.function, broadcast.arguments
        options = TaskOptions() if late else broadcast.options  # what is not the user's doing is not his to kill
        call._task = Task(
            next(self._ids), call, options.priority, options.category, options.max_attempts, (link, slot)
        )
        call._task.timeout = options.timeout
        self._timed = self._timed or options.timeout is not None
        call._owner = self
        if self._budget is not None:
            self._budget.take(payload_size(call._arguments), now=True)
        return call

    def kill(self, category: Hashable, *, dry_run: bool = False) -> int:
        """Kill the tasks of that category that run, and say how many there were; see `Kills.ask`."""
        with HeldBack(), self._look():
            kills = self._scheduler.kill(lambda task: task.category == category)
        return sum(kill.at_first for kill in kills) if dry_run else self._ask_to_kill(kills)

    def _ask_to_kill(self, kills: list[Kill]) -> int:
        return self._kills.ask(kills, wait=self.may_wait()) if kills else 0

    def cancel_all(self) -> None:
        """Cancel every task that has not begun, and kill those that run; see `FarmExecutor.cancel_all`."""
        if self._lock.is_mine():  # amid a decision nothing else can be decided
            self._reactor.post(self.cancel_all)
            return
        self._cancelling += 1
        try:
            with HeldBack(), self._deciding:
                late = {call for broadcast in self._persistent for call in broadcast.late.values()}
                meant = {task for task in self._scheduler.tasks() if task.call not in late}
            for _ in range(MAX_ROUNDS):
                with HeldBack(), self._deciding:
                    ends = self._cancel_each(meant)
                    kills = self._scheduler.kill(meant.__contains__)
                self._reactor.post(partial(_call_all, ends))
                if not kills:
                    break
                self._ask_to_kill(kills)
        finally:
            self._cancelling -= 1

    def _cancel_each(self, meant: set[Task]) -> list[Callable[[], None]]:
        """Forget those that no lane has, and have the others not come back from theirs; the lock is held.

        Returns:
            What is to be done about those forgotten, in a handler.
        """
        ends: list[Callable[[], None]] = []
        for task in [task for task in self._scheduler.tasks() if task in meant]:
            if self._scheduler.withdraw(task):
                ends.append(partial(self._settler.cancel, task))
            elif not self._scheduler.drop(task):
                task.unwanted = task.call._cancel_started
            elif not task.begun and task.call._cancel_started():
                ends.append(partial(self._settler.cancelled, task))
            else:
                error = TaskKilledError("the task was killed while it waited to be sent again")
                ends.append(partial(self._settler.fail, task, error, "killed"))
        return ends

    def kill_one(self, future: FarmFuture) -> bool:
        """Kill a future's task, now if it runs, and when its turn comes if a worker has it already."""
        task = future._task
        if task is None:
            return False  # it has just been settled
        if self._lock.is_mine():  # amid a decision nothing else can be decided
            self._reactor.post(lambda: _ignore(self.kill_one(future)))
            return True
        with HeldBack(), self._looking:
            if self._scheduler.drop(task):  # it had been sent, and has come back
                error = TaskKilledError("the task was killed while it waited to be sent again")
                self._reactor.post(partial(self._settler.fail, task, error, "killed"))
                return True
            kills = self._scheduler.kill(lambda task: task.call is future)
            if kills and not kills[0].at_first:
                self._timed = True
                task.timeout = 0.0
                return True
        return self._ask_to_kill(kills) > 0

    def lead(self, future: FarmFuture, timeout: float | None) -> float | None:
        """See `future.Owner`."""
        if not self.may_wait():
            if timeout is None and not future.done():
                raise RuntimeError(MUST_NOT_WAIT)
            return timeout
        return self._reactor.lead(future.done, timeout)

    def lead_until(self, done: Callable[[], bool]) -> None:
        """Do the farm's own work in this thread until that is so, if this thread may; it may be so or not then."""
        if self.may_wait():
            self._reactor.lead(done, None)

    def nudge(self) -> None:
        """Have who leads look once more whether he still needs to."""
        self._reactor.post(_nothing)

    def waiting(self, future: FarmFuture) -> AbstractContextManager[None]:
        """See `future.Owner`."""
        return self._reactor.waiting(future.done)

    def withdraw(self, task: Task) -> None:
        """See `future.Owner`."""
        self._reactor.post(partial(self._withdraw, task))

    def take_back(self, task: Task, cancel: Callable[[], bool]) -> None:
        """See `future.Owner`."""
        if self.may_wait():
            self._cancels.take_back(task, cancel)

    def shutdown(self, *, cancel_futures: bool = False) -> None:
        """Take no more tasks; end when those taken have settled.

        As cancelling a future does, this takes no lock: a destructor may call it, wherever the garbage collector
        has found the time.
        """
        self._shutdown = True
        self._reactor.may_lead = False  # its own thread is to see when all is over
        if not self._closed:
            self._reactor.post(self._cancel_queued if cancel_futures else _nothing)

    def abort(self, reason: str) -> None:
        """Give up: unsettled futures settle with `BrokenFarmError`, and the workers end at once."""
        if not self._closed:
            self._reactor.post(lambda: self._break(lambda: BrokenFarmError(reason)))

    def join(self, timeout: float | None = None) -> bool:
        """Wait until the end after `shutdown`, where that is allowed, see `may_wait`; say whether it has come."""
        return self._reactor.join(timeout if self.may_wait() else 0.0)

    @property
    def broken(self) -> bool:
        """Whether the farm has failed as a whole."""
        return self._error is not None

    @property
    def workers(self) -> int:
        """How many lanes the servers seen so far give us."""
        return sum(list(self.servers.counts.values()))

    def statistics(self) -> FarmStatistics:
        """A snapshot."""
        from farm_executor.client.farm.statistics import FarmStatistics  # late: most programs never ask

        with HeldBack(), self._look():  # who is interrupted must not have the lock
            servers = tuple(self._server_statistics(link) for link in self.servers)
            running = sum(self._scheduler.calls_on(lane) for lane in self._lanes)
            calls = sum(task.calls for task in self._scheduler.tasks())
            return FarmStatistics(
                state="broken" if self._error else "shut down" if self._shutdown else "open",
                servers=servers,
                queued=calls - running,
                running=running,
                pending_bytes=sum(size_of(task.call) for task in self._scheduler.tasks()),
                waiting_submitters=self._budget.waiting if self._budget else 0,
                submitted=self._submitted,
                resubmitted=self._resubmitted,
                **self._settler.counts,
            )

    def _server_statistics(self, link: ServerLink) -> ServerStatistics:
        from farm_executor.client.farm.statistics import ServerStatistics, WorkerStatistics

        workers = tuple(
            WorkerStatistics(
                slot=lane.slot,
                pid=lane.pid,
                tasks_done=lane.calls_done,
                busy_seconds=lane.busy_seconds,
                outstanding=self._scheduler.calls_on(lane.id),
                category=getattr(self._scheduler.running_on(lane.id), "category", None),
            )
            for lane in self._lanes_by_link.get(link, {}).values()
        )
        slots = self.servers.counts.get(link, 0)
        return ServerStatistics(str(link), link.up, workers, link.last_error, slots)

    @contextlib.contextmanager
    def _look(self) -> Iterator[None]:
        """Hold the lock in order to look and change nothing, also amid a decision of this very thread.

        Raises:
            RuntimeError: It cannot be had. The thread that has it may wait for a lock of a future's, which this one
                holds, as when a signal's handler has interrupted `concurrent.futures.wait`.
        """
        if self._lock.is_mine():
            yield
        else:
            with self._looking:
                yield

    # -- performing decisions, with the lock held ----------------------------------------------------------

    def _perform(self, decisions: list[Decision]) -> list[Lose]:
        """Do what was decided; return the losses, to be settled without the lock."""
        lost = []
        for decision in decisions:
            if isinstance(decision, Assign):
                lane = self._lanes[decision.lane][2]
                if lane.offered is not None:
                    self._shipping.offer(lane)
                sent = lane.send_tasks(decision.seq, decision.tasks)
                if self._timed:
                    self._watch_time(lane.id)
            elif isinstance(decision, Recall):
                lane = self._lanes[decision.lane][2]
                sent = lane.send_recall(decision.count)
            elif isinstance(decision, Lose):
                lost.append(decision)
                continue
            elif isinstance(decision, Cancel):
                self._reactor.post(partial(self._settler.cancelled, decision.task))
                continue
            else:
                lane = self._lanes[decision.lane][2]
                lane.change(LaneEvent.RETIRE)
                self._reactor.post(partial(self._end_lane, lane))
                continue
            if not sent:
                self._reactor.post(partial(self._watch, lane))
        return lost

    # -- for the reactor -----------------------------------------------------------------------------------

    def _finished(self) -> bool:
        if not self._shutdown:
            return False
        with self._deciding:
            if not self._scheduler.unsettled:
                self._stop_taking()  # in the same moment
        return self._closed

    def _stop_taking(self) -> None:
        """Admit no task any more; the lock is held."""
        self._shutdown = self._closed = True
        self._reactor.may_lead = False
        if self._budget is not None:
            self._budget.close()

    def _fail(self, bug: BaseException) -> None:
        logger.critical("the engine failed, which is a bug", exc_info=bug)
        reason = f"the farm's engine failed, which is a bug: {type(bug).__name__}: {bug}"
        self._break(lambda: caused(BrokenFarmError(reason), bug))

    def _close(self) -> None:
        self.servers.close(hurry=self._error is not None)
        for _, _, lane in self._lanes.values():
            lane.send_bye()
            lane.connection.close()
        with self._deciding:
            self._stop_taking()
        self._refuse_incoming()
        self._answer_no_more()
        self._shipping.close()
        self._lanes.clear()
        self._lanes_by_link.clear()
        self._options.end_servers()

    # -- what links tell, in their threads -----------------------------------------------------------------

    def lane_up(
        self, link: ServerLink, connection: Connection, session: str, slot: int, lane: int, pid: int
    ) -> None:
        """See `server.LaneListener`."""

        def adopt() -> None:
            if self._closed or session != link.session or self.servers.is_parting(link):
                connection.close()
                return
            connection.socket.setblocking(False)
            new = Lane(
                *(lane, connection, str(link), slot, pid),
                resumable=link.resumable,
                wants_modules=link.wants_modules,
            )
            with self._deciding:
                self._lanes[lane] = (link, session, new)
                self._lanes_by_link.setdefault(link, {})[lane] = new
                if new.offered is not None:
                    self._shipping.offer(new)
                new.send_init(self._options.initializer)
            self._reactor.register(connection, partial(self._on_lane, new))
            self._watch(new)

        self._reactor.post(adopt)

    def lane_resumed(self, link: ServerLink, connection: Connection, session: str, lane: int) -> None:
        """See `server.LaneListener`."""

        def adopt() -> None:
            entry = self._lanes.get(lane)
            if self._closed or entry is None or entry[2].state is not LaneState.CUT:
                connection.close()
                return
            connection.socket.setblocking(False)
            entry[2].change(LaneEvent.CONNECT)
            with self._deciding:
                entry[2].resume(connection, self._scheduler.first_seq(lane))
            self._reactor.register(connection, partial(self._on_lane, entry[2]))
            self._watch(entry[2])

        self._reactor.post(adopt)

    def send_module(self, lane: Lane, cuts: int, number: int, files: Payload | None, reason: str) -> None:
        """See `shipping.Answering`."""
        if self._is_gone(lane) or lane.cuts != cuts:
            return  # if the worker lives, it asks again over its next connection
        with self._deciding:
            lane.send_module(number, files, reason)
        self._watch(lane)

    def worker_gone(self, link: ServerLink, session: str, lane: int) -> None:
        """See `server.LaneListener`."""

        def await_report() -> None:
            if lane in self._lanes:
                self._reactor.after(REPORT_SECONDS, partial(self.lose_lane, self._lanes[lane][2]))

        self._reactor.post(await_report)

    # -- events, in handlers of the reactor's -----------------------------------------------------------------

    def _watch(self, lane: Lane) -> None:
        """Have the selector report when a lane's socket takes more, while there is more."""
        if lane.state.connected and lane.id in self._lanes:
            self._reactor.want_to_write(lane.connection, lane.connection.unsent)

    # -- what the servers tell: see `servers.Crew` -----------------------------------------------------------

    def lanes_of(self, link: ServerLink, session: str) -> list[Lane]:
        """See `servers.Crew`."""
        lanes = self._lanes_by_link.get(link, {})
        return [lane for lane in lanes.values() if self._lanes[lane.id][1] == session]

    def sending(self) -> AbstractContextManager[None]:
        """See `servers.Crew`."""
        return self._deciding

    def drain_lane(self, lane: Lane) -> None:
        """See `servers.Crew`."""
        with self._deciding:
            self._perform(self._scheduler.drain_lane(lane.id))

    def on_spared(self, spared: Spared) -> None:
        """See `servers.Crew`."""
        self._kills.spared(spared.lane, spared.order, spared.recalls)

    def on_return(self) -> None:
        """See `servers.Crew`."""
        self._kills.order_again()

    def on_seats_gone(self, seats: list[Hashable], why: str) -> None:
        """See `servers.Crew`."""
        with self._deciding:
            stranded = [task for seat in seats for task in self._scheduler.seat_gone(seat)]
        for task in stranded:
            self._settler.refuse(task, WorkerLostError(why))

    def on_refusal(self, error: Exception) -> None:
        """See `servers.Crew`."""
        self._break(lambda: copy_of(error))

    def on_stuck(self, lane: int) -> None:
        """See `servers.Crew`."""
        stuck = self._lanes[lane][2]
        if stuck.resumable and stuck.state.ready:
            self.cut_lane(stuck, "nothing of what is sent over it arrives")
        else:
            self.lose_lane(stuck)

    def cut_lane(self, lane: Lane, why: str) -> None:
        """The way to a worker is broken, and another is looked for, for a while."""
        if lane.state not in (LaneState.OPEN, LaneState.RESUMING):
            return
        logger.info("connection lost server=%s pid=%d reason=%s", lane.server, lane.pid, why)
        link, session, _ = self._lanes[lane.id]
        lane.change(LaneEvent.CUT)
        with self._deciding:
            self._reactor.unregister(lane.connection)
            lane.connection.close()
            self._scheduler.lane_cut(lane.id)
        seconds = self._options.settings.resume_seconds
        self._reactor.after(seconds, partial(self._give_up_lane, lane, lane.cuts))
        link.lane_cut(session, lane.id, lane.slot)

    def _give_up_lane(self, lane: Lane, cuts: int) -> None:
        if lane.state is LaneState.CUT and lane.cuts == cuts:
            self.lose_lane(lane)

    def on_death(self, death: WorkerDied) -> None:
        """See `servers.Crew`."""
        if death.lane not in self._lanes:
            return
        lane = self._lanes[death.lane][2]
        lane.death = death
        if not lane.state.connected:
            self.lose_lane(lane)
        else:
            self._await_end(lane, -1)

    def _await_end(self, lane: Lane, received: int) -> None:
        """Its worker has died: what it had sent may still come, and then the end, unless nothing comes any more."""
        if lane.connection.bytes_received == received:
            self.lose_lane(lane)
        elif not self._is_gone(lane):
            received = lane.connection.bytes_received
            self._reactor.after(REPORT_SECONDS, partial(self._await_end, lane, received))

    def _on_lane(self, lane: Lane, events: int) -> None:
        if self._is_gone(lane):
            return  # by an event of this same round
        if events & selectors.EVENT_WRITE:
            with self._deciding:
                lane.connection.flush()
            self._watch(lane)
        if not events & selectors.EVENT_READ:
            return
        try:
            for frame in lane.connection.receive():
                if self._is_gone(lane):
                    break  # by what the frame before it said
                self._on_frame(lane, frame)
        except EOFError as error:
            self._on_lane_end(lane, str(error))
        except RemoteProtocolError as error:
            logger.error("lane broken server=%s pid=%d error=%s", lane.server, lane.pid, error)
            self.lose_lane(lane)

    def _is_gone(self, lane: Lane) -> bool:
        return not lane.state.connected or lane.id not in self._lanes

    def _on_lane_end(self, lane: Lane, why: str) -> None:
        if lane.state is LaneState.RETIRED:
            self.lose_lane(lane)
        elif lane.resumable and lane.state is not LaneState.STARTING and lane.death is None:
            self.cut_lane(lane, why)
        else:
            lane.change(LaneEvent.END)
            self._reactor.unregister(lane.connection)
            if lane.death is not None:
                self.lose_lane(lane)
            else:  # the supervisor knows why, and will say so at once if it can
                self._reactor.after(REPORT_SECONDS, lambda: self.lose_lane(lane))

    def _on_frame(self, lane: Lane, frame: Frame) -> None:
        state = lane.state
        if frame.type is FrameType.RESULTS and state is OPEN:
            self._on_results(lane, frame)
        elif frame.type is FrameType.RECALLED and state is OPEN:
            with self._deciding:
                self._perform(self._scheduler.recalled(lane.id, frame.seq, frame.count))
            self._on_renumbering(lane)
        elif frame.type is FrameType.WANTED and lane.offered is not None:
            self._shipping.answer(lane, frame)
        elif frame.type is FrameType.READY and state is LaneState.STARTING:
            self._on_ready(lane, frame)
        elif frame.type is FrameType.RESUMED and state is LaneState.RESUMING:
            lane.change(LaneEvent.RESUME)
            with self._deciding:
                self._perform(self._scheduler.resumed(lane.id, frame.seq, frame.count))
            self._on_renumbering(lane)
            logger.info("lane resumed server=%s pid=%d", lane.server, lane.pid)
        else:
            raise RemoteProtocolError(f"{frame.type.name} frame from a worker, out of turn")

    def _on_renumbering(self, lane: Lane) -> None:
        """Tasks have come back from the lane: its oldest may be another one, and numbers may mean others."""
        with self._deciding:
            if self._timed:
                self._watch_time(lane.id)
        self._kills.renumbered(lane.id)
        self._cancels.answered(lane.id)

    def _on_ready(self, lane: Lane, frame: Frame) -> None:
        if frame.flags & ERROR:
            error = load_failure(payload_of(frame), Origin(lane.server, lane.pid), OwnObjects)
            self._break(lambda: caused(BrokenFarmError(initializer_failed(lane, remote_traceback(error))), error))
            return
        lane.change(LaneEvent.READY)
        self._had_lane = True
        self._stillborn = 0
        link = self._lanes[lane.id][0]
        late = [one for one in list(self._persistent) if one.has_been_made(link, lane.slot)]
        with self._deciding:
            calls = [self._call_at(broadcast, link, lane.slot, late=True) for broadcast in late]
            for broadcast, call in zip(late, calls, strict=True):
                call._before_settling = partial(self._on_late_call, lane)
                broadcast.late[link, lane.slot] = call
            self._submitted += len(calls)
            self._scheduler.prepend(*[call._task for call in calls])
            limit = self._options.max_tasks_per_child
            self._perform(self._scheduler.lane_up(lane.id, limit, (link, lane.slot)))

    def _on_results(self, lane: Lane, frame: Frame) -> None:
        together = bool(frame.flags & TOGETHER)
        if together:
            busy_us, data = decode_results_together(frame)
            values = payload.loads_together(data, frame.count)
        else:
            busy_us, results = decode_results(frame)
        with self._deciding:
            round_trip_us = lane.note_results(frame.count, busy_us)
            tasks, decisions = self._scheduler.finished(lane.id, frame.seq, frame.count, busy_us, round_trip_us)
            self._perform(decisions)  # before any code of the user's, so that the worker goes on meanwhile
            if not lane.acknowledge(frame.seq + frame.count, bulk=bool(frame.flags & BULK)):
                self._reactor.post(partial(self._watch, lane))
            if self._timed:
                self._watch_time(lane.id)
            if (lane.kept.large or self._functions.kept.large) and not self._scheduler.unsettled:
                self._forget_later()
        if together:
            self._settler.succeed(zip(tasks, values, strict=True), lane.server, lane.pid, lane.note_calls)
        else:
            self._settler.answer(zip(tasks, results, strict=True), lane.server, lane.pid, lane.note_calls)

    def _forget_later(self) -> None:
        """Nothing is to be done; the lock is held."""
        if not self._will_forget:
            self._will_forget = True
            self._reactor.after(IDLE_SECONDS, partial(self._forget_large, self._submitted))

    def _forget_large(self, submitted: int) -> None:
        self._will_forget = False
        with self._deciding:
            if self._closed or self._scheduler.unsettled:  # its results will come here
                return
            if self._submitted != submitted:
                self._forget_later()
                return
            self._functions.forget_large()
            lanes = [lane for _, _, lane in self._lanes.values() if lane.kept.large and lane.state.connected]
            full = [lane for lane in lanes if not lane.send_forget_large()]
        for lane in full:
            self._watch(lane)

    def _on_late_call(self, lane: Lane, value: Any, error: BaseException | None, origin: Origin) -> None:
        if error is not None:
            text = f"a persistent broadcast failed on server {lane.server}, worker pid {lane.pid}"
            self._reactor.post(
                lambda: self._break(
                    lambda: caused(BrokenFarmError(f"{text}: {type(error).__name__}: {error}"), error)
                )
            )

    def _send_kill(self, order: KillOrder) -> bool:
        """For `Kills`."""
        link = self._lanes[order.lane][0] if order.lane in self._lanes else None
        return link is not None and self.servers.send(link, order)

    def _aim(self, lane: int, meant: Callable[[Task], bool]) -> Kill | None:
        """For `Kills`: what to ask of a lane's supervisor now."""
        with self._deciding:
            return next(iter(self._scheduler.kill(meant, lane)), None)

    def _watch_time(self, lane: int) -> None:
        """The lane's oldest task may be another one; the lock is held."""
        self._kills.watch(lane, self._scheduler.running_on(lane))

    def _withdraw(self, task: Task) -> None:
        """A future has been cancelled."""
        with self._deciding:
            was_queued = self._scheduler.withdraw(task)
        self._settler.cancel(task, told=not was_queued)  # else its future was told when its turn came

    def _ask_back(self, request: Request) -> tuple[int, bool] | None:
        """For `Cancels`."""
        with self._deciding:
            lane, decisions = self._scheduler.take_back(request.task, request.grant)
            self._perform(decisions)
        return None if lane is None else (lane, bool(decisions))

    def _cancel_queued(self) -> None:
        """Cancel what waits; as long as no worker has come, not what those who are about to would have begun."""
        self._cancelling += 1  # for good
        begun = 0 if self._had_lane else self.servers.prospects()
        with self._deciding:
            queued = self._scheduler.withdraw_all(but=begun)
        for task in queued:
            self._settler.cancel(task)

    # -- ends ----------------------------------------------------------------------------------------------

    def _end_lane(self, lane: Lane) -> None:
        """A lane has run all the tasks it may: its worker ends when we hang up, and a fresh one is asked for."""
        if lane.id in self._lanes:
            self.lose_lane(lane)

    def lose_lane(self, lane: Lane, *, given_up: bool = False) -> None:
        """See `servers.Crew`: move its tasks, settle those that may not run again, ask for another worker."""
        if self._lanes.get(lane.id) is None:
            return
        before = lane.state
        lane.change(LaneEvent.LOSE)
        death = lane.death
        begun = death.begun if death else None
        with self._deciding:
            link, session, _ = self._lanes.pop(lane.id)
            del self._lanes_by_link[link][lane.id]
            if not self._lanes_by_link[link]:
                del self._lanes_by_link[link]
            if before.connected:
                lane.send_bye()
                self._reactor.unregister(lane.connection)
            lane.connection.close()
            had = self._scheduler.calls_on(lane.id)
            killed = death.killed if death else -1 if given_up else None
            victim = self._scheduler.task_at(lane.id, killed)
            if killed is not None and (victim is None or not self._kills.meant(lane.id, victim)):
                killed = -1  # it has ended, or has come back by a recall and another has its number
            decisions = self._scheduler.lane_lost(lane.id, begun, killed)
            had -= sum(decision.task.calls for decision in decisions if isinstance(decision, Cancel))
            losses = self._perform(decisions)
        self._cancels.answered(lane.id)
        if before is not LaneState.RETIRED:
            failures = [(loss.task, self._why_lost(lane, loss)) for loss in losses]
            origin = Origin(lane.server, lane.pid)
            goes_on = [self._settler.goes_on(task, error, origin) for task, error in failures]
            lost = sum(task.calls for (task, _), further in zip(failures, goes_on, strict=True) if not further)
            self._resubmitted += had - lost
            if death is not None and death.killed is not None:
                logger.info("worker killed server=%s pid=%d resubmitted=%d", lane.server, lane.pid, had - lost)
            else:
                logger.warning(
                    "worker lost server=%s slot=%d pid=%d reason=%s resubmitted=%d lost=%d peak=%s stderr=%r",
                    *(lane.server, lane.slot, lane.pid, describe_death(death), had - lost, lost),
                    *((death.peak, death.stderr) if death else (None, "")),
                )
            for loss, (task, error), further in zip(losses, failures, goes_on, strict=True):
                self._settler.fail(task, error, None if further else "killed" if loss.killed else "lost")
        self._kills.lane_lost(lane.id, next((loss.task for loss in losses if loss.killed), None))
        failed = before in (LaneState.STARTING, LaneState.STILLBORN)
        if death is not None and failed and death.code != CUT_EXIT_CODE:
            self._on_stillborn(death)
        self.servers.lane_lost(link, session, lane, failed=failed)

    def _why_lost(self, lane: Lane, loss: Lose) -> Exception:
        if not loss.killed:
            return worker_lost(lane, loss.task)
        if loss.task.timeout and self._kills.overran(lane.id, loss.task):
            return task_overran(lane, loss.task)
        return task_killed(lane, loss.task)

    def _on_stillborn(self, death: WorkerDied) -> None:
        """A worker has died before it was ready; if that is all they ever do, waiting does not help."""
        self._stillborn += 1
        if self._stillborn >= MAX_STILLBORN and not any(lane.state.ready for _, _, lane in self._lanes.values()):
            text = f"{self._stillborn} workers in a row died in their initializer or before"
            text += f"; the last {last_word(death)}"
            self._break(lambda: BrokenFarmError(text))

    def _give_up_connecting(self) -> None:
        if not self._had_lane:
            text = (
                f"no worker could be had within {self._options.connect_timeout} s from: {self.servers.describe()}"
            )
            self._break(lambda: TimeoutError(text))

    def _break(self, error: Callable[[], BaseException]) -> None:
        """Settle every future with an error of its own, and take no more."""
        with self._deciding:
            if self._error is not None:
                return
            self._error = error
            self._stop_taking()
            tasks = list(self._scheduler.tasks())
            self._scheduler = Scheduler(start=_start)
            lanes = [entry[2] for entry in self._lanes.values()]
            for lane in lanes:
                if lane.state.connected and lane.state is not LaneState.RETIRED:  # which is about to be lost
                    lane.change(LaneEvent.END)
                    self._reactor.unregister(lane.connection)
        for task in tasks:
            self._settler.refuse(task, error())
        self._answer_no_more()

    def _answer_no_more(self) -> None:
        """Tell those who wait for servers or their word that there will be none."""
        error = self._error
        self.servers.answer_no_more(error if error is not None else lambda: RuntimeError(AFTER_SHUTDOWN))
        self._kills.end()

    # -- fork ----------------------------------------------------------------------------------------------

    def abandon(self) -> None:
        """In a forked child: let go of the parent's connections, and of its futures with an error."""
        for connection in (*self.servers.abandon(), *(lane.connection for _, _, lane in self._lanes.values())):
            if connection.fileno() >= 0:
                os.close(connection.fileno())
            connection.socket.detach()
        self._reactor.abandon()
        error = BrokenFarmError("this future belongs to the process that this one was forked from")
        for task in [*self._incoming, *self._scheduler.tasks()]:
            if task.call is not None:
                task.call._abandon(error)


class _Deciding:
    """The engine's lock, held in order to decide and perform; what has been submitted is admitted first."""

    def __init__(self, engine: Engine, timeout: float = -1) -> None:
        self._engine = engine
        self._timeout = timeout

    def __enter__(self) -> None:
        engine = self._engine
        assert not engine._lock.is_mine(), "a decision within a decision"
        if not engine._lock.acquire(True, self._timeout):
            raise RuntimeError(MUST_NOT_WAIT)
        if engine._incoming:
            engine._take_incoming()

    def __exit__(self, *error: object) -> None:
        engine = self._engine
        engine._lock.release()
        if engine._incoming and engine._scheduler.has_idle_lane:
            engine._admit()


def _nothing() -> None:
    """For the inbox: wake up and see whether all is over."""


def _call_all(actions: list[Callable[[], None]]) -> None:
    for action in actions:
        action()


def _ignore(result: object) -> None:
    """For the inbox, which wants no results."""


def _start(tasks: list[Task]) -> list[bool]:
    """For the scheduler: which of the tasks' futures have not been cancelled."""
    return start_all([task.call for task in tasks])
