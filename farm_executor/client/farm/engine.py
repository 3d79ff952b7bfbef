"""The engine: one farm's client half, put together, and what its callers may ask of it.

This module owns what becomes of tasks: their futures are made, settled, cancelled and killed here, and the farm
breaks and ends here. It must not decide which task goes where (`core.scheduler`), when that may be decided
(`dispatch`), what is said on lanes (`crew`), who waits for the sockets (`reactor`), which servers there are
(`servers`), nor what the public contract is (`executor`).

    submit ──► Engine.submit ──► Dispatch ──► Scheduler ──► Lane.send_tasks         in the caller's thread
    Future ◄── Settler       ◄── Engine   ◄── Dispatch  ◄── Crew ◄── connection     in a handler of the reactor's

Whatever users may call in a destructor, a callback or a signal handler asks `may_wait` before it waits for the
farm, and takes the dispatch's lock by its `look`.

Should the engine itself fail, every future settles with `BrokenFarmError`: nothing ever hangs.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from farm_executor.client.farm.broadcasts import Broadcast, Broadcasts
from farm_executor.client.farm.budget import Budget
from farm_executor.client.farm.cancels import Cancels
from farm_executor.client.farm.crew import Crew
from farm_executor.client.farm.dispatch import Afterwards, Dispatch, Unsent
from farm_executor.client.farm.functions import Function, FunctionTable
from farm_executor.client.farm.future import MUST_NOT_WAIT, FarmFuture
from farm_executor.client.farm.interrupt import HeldBack
from farm_executor.client.farm.kills import Kills
from farm_executor.client.farm.lane import Lane
from farm_executor.client.farm.link import Settings
from farm_executor.client.farm.options import TaskOptions
from farm_executor.client.farm.outcomes import Outcomes
from farm_executor.client.farm.reactor import Reactor
from farm_executor.client.farm.servers import Servers, Sources
from farm_executor.client.farm.settling import Settler
from farm_executor.client.farm.shipping import Shipping
from farm_executor.client.farm.stopping import Stopping
from farm_executor.client.farm.wording import (
    caused,
    copy_of,
    explain_pickling,
)
from farm_executor.core.frames import Payload, payload_size
from farm_executor.core.messages import KillOrder
from farm_executor.core.task import Cancel, Retire, Task
from farm_executor.data import payload
from farm_executor.data.failure import Origin
from farm_executor.errors import BrokenFarmError, WorkerLostError

if TYPE_CHECKING:
    from farm_executor.client.farm.statistics import FarmStatistics

__all__ = ["Engine", "EngineOptions"]

logger = logging.getLogger(__name__)

AFTER_SHUTDOWN = "cannot schedule new futures after shutdown"
GLANCE_EVERY = 128  # submits: who floods the farm keeps its own thread from running, and so does its work
IDLE_SECONDS = 1.0  # after which, or twice that, what is kept of large functions is forgotten
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
        self._functions = FunctionTable()
        self._shutdown = False
        self._error: Callable[[], BaseException] | None = None
        self._lanes: dict[int, Lane] = {}
        self._reactor = reactor = Reactor(self._finished, self._fail, self._close, may_lead=options.caller_leads)
        self._settler = settler = Settler(reactor, self._budget)
        self._kills = kills = Kills(reactor, self._send_kill, lambda lane, meant: self._dispatch.aim(lane, meant))
        self._cancels = Cancels(reactor, lambda request: self._stopping.ask_back(request))
        self._shipping = shipping = Shipping(options.ship, reactor, lambda *answer: self._crew.send_module(*answer))
        self._dispatch = dispatch = Dispatch(self._lanes, kills.watch, shipping.offer, self._follow_up, self.abort)
        self._broadcasts = Broadcasts(
            dispatch,
            self,
            self._budget,
            self._refuse,
            lambda lane, error: self._outcomes.on_late_failure(lane, error),
        )
        self._stopping = Stopping(dispatch, reactor, settler, kills, self._broadcasts, self._follow_up)
        self._outcomes = Outcomes(reactor, settler, kills, self._cancels, self._broadcasts, self._break)
        self._crew = Crew(
            self._lanes,
            dispatch,
            reactor,
            self._outcomes,
            self._follow_up,
            self._functions,
            shipping,
            initializer=options.initializer,
            max_tasks_per_child=options.max_tasks_per_child,
            resume_seconds=options.settings.resume_seconds,
        )
        self.servers = Servers(
            options.sources,
            options.settings,
            reactor,
            self._crew,
            kills,
            self._on_seats_gone,
            self._on_refusal,
        )

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
        if goes_on and self._stopping.cancelling:  # what would go on has been cancelled with all that was queued
            future._release()
            future.cancel()
            future.set_running_or_notify_cancel()
            if goes_on:  # and so had been counted as submitted
                self._settler.counts["cancelled"] += calls
            return future
        dispatch = self._dispatch
        future._task = task = Task(
            next(dispatch.ids), future, options.priority, options.category, options.max_attempts
        )
        if options.timeout is not None:
            dispatch.timed = True
            task.timeout = options.timeout
        future._owner = self
        if before_settling is not None:
            future._before_settling = before_settling
            task.calls, task.goes_on = calls, goes_on
        if self._budget is None:
            dispatch.incoming.append(task)
        else:
            # Who would make room must not wait for it; what goes on has been waited for.
            now = goes_on or not self.may_wait()
            self._append_within(self._budget, task, payload_size(future._arguments), now=now)
        if dispatch.scheduler.has_idle_lane:
            dispatch.admit()
        if not task.id % GLANCE_EVERY and not dispatch.is_mine():
            self._reactor.glance()
        if dispatch.closed:  # since we looked
            self._refuse_incoming()
        return future

    def _append_within(self, budget: Budget, task: Task, size: int, *, now: bool) -> None:
        while True:
            with HeldBack():
                if budget.take(size, now=now):
                    self._dispatch.incoming.append(task)
                    return
            budget.wait(size)

    def _refuse_incoming(self) -> None:
        """Settle what was submitted just when all was over."""
        while True:
            try:
                task = self._dispatch.incoming.popleft()
            except IndexError:
                return
            self._refuse(task)

    def _refuse(self, task: Task) -> None:
        """Settle a task that has come too late."""
        self._settler.refuse(task, self._error() if self._error is not None else RuntimeError(AFTER_SHUTDOWN))

    def may_wait(self) -> bool:
        """Whether this thread may wait for the farm: not in a callback, nor amid the farm's work."""
        return not self._dispatch.is_mine() and self._reactor.may_wait()

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
        return self._broadcasts.make(function, arguments, options, self.servers, persistent=persistent)

    def forget(self, broadcast: Broadcast) -> None:
        """Workers that come later need not make the call."""
        self._broadcasts.forget(broadcast)

    def kill(self, category: Hashable, *, dry_run: bool = False) -> int:
        """Kill the tasks of that category that run, and say how many there were; see `Kills.ask`."""
        return self._stopping.kill(category, dry_run=dry_run)

    def kill_one(self, future: FarmFuture) -> bool:
        """Kill a future's task, now if it runs, and when its turn comes if a worker has it already."""
        return self._stopping.kill_one(future)

    def cancel_all(self) -> None:
        """Cancel every task that has not begun, and kill those that run; see `FarmExecutor.cancel_all`."""
        self._stopping.cancel_all()

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
        self._reactor.post(partial(self._stopping.withdraw, task))

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
        if not self._dispatch.closed:
            self._reactor.post(self._cancel_queued if cancel_futures else _nothing)

    def abort(self, reason: str) -> None:
        """Give up: unsettled futures settle with `BrokenFarmError`, and the workers end at once."""
        if not self._dispatch.closed:
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
        from farm_executor.client.farm.statistics import snapshot  # late: most programs never ask

        state = "broken" if self._error else "shut down" if self._shutdown else "open"
        counts = {**self._settler.counts, "resubmitted": self._outcomes.resubmitted}
        return snapshot(state, self._dispatch, self.servers, self._budget, counts)

    # -- for the reactor -----------------------------------------------------------------------------------

    def _follow_up(self, after: list[Afterwards]) -> None:
        """Do what is to be done about decisions; what callers' threads have brought about, with the lock held."""
        for deed in after:
            if isinstance(deed, Unsent):
                self._reactor.post(partial(self._crew.watch_by_number, deed.lane))
            elif isinstance(deed, Cancel):
                self._reactor.post(partial(self._settler.cancelled, deed.task))
            elif isinstance(deed, Retire):  # only handlers bring that about
                self._crew.retire_lane(deed.lane)

    def _cancel_queued(self) -> None:
        """As long as no worker has come, what those who are about to would have begun is not cancelled."""
        self._stopping.cancel_queued(but=0 if self._crew.had_lane else self.servers.prospects())

    def _finished(self) -> bool:
        if not self._shutdown:
            return False
        with self._dispatch.deciding:
            if not self._dispatch.scheduler.unsettled:
                self._stop_taking()  # in the same moment
        return self._dispatch.closed

    def _stop_taking(self) -> None:
        """Admit no task any more; the lock is held."""
        self._shutdown = self._dispatch.closed = True
        self._reactor.may_lead = False
        if self._budget is not None:
            self._budget.close()

    def _fail(self, bug: BaseException) -> None:
        logger.critical("the engine failed, which is a bug", exc_info=bug)
        reason = f"the farm's engine failed, which is a bug: {type(bug).__name__}: {bug}"
        self._break(lambda: caused(BrokenFarmError(reason), bug))

    def _close(self) -> None:
        self.servers.close(hurry=self._error is not None)
        self._crew.close()
        with self._dispatch.deciding:
            self._stop_taking()
        self._refuse_incoming()
        self._answer_no_more()
        self._shipping.close()
        self._crew.forget()
        self._options.end_servers()

    # -- what servers tell ---------------------------------------------------------------------------------

    def _on_seats_gone(self, seats: list[Hashable], why: str) -> None:
        """There are no such places any more."""
        with self._dispatch.deciding:
            stranded = [task for seat in seats for task in self._dispatch.scheduler.seat_gone(seat)]
        for task in stranded:
            self._settler.refuse(task, WorkerLostError(why))

    def _on_refusal(self, error: Exception) -> None:
        """No server wants us, and it is no use to try again."""
        self._break(lambda: copy_of(error))

    def _send_kill(self, order: KillOrder) -> bool:
        """For `Kills`."""
        lane = self._lanes.get(order.lane)
        return lane is not None and lane.session.send(order)

    # -- ends ----------------------------------------------------------------------------------------------

    def _give_up_connecting(self) -> None:
        if not self._crew.had_lane:
            text = (
                f"no worker could be had within {self._options.connect_timeout} s from: {self.servers.describe()}"
            )
            self._break(lambda: TimeoutError(text))

    def _break(self, error: Callable[[], BaseException]) -> None:
        """Settle every future with an error of its own, and take no more."""
        with self._dispatch.deciding:
            if self._error is not None:
                return
            self._error = error
            self._stop_taking()
            tasks = self._dispatch.forget_all()
        self._crew.stop_listening()
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
        for connection in (*self.servers.abandon(), *self._crew.connections()):
            if connection.fileno() >= 0:
                os.close(connection.fileno())
            connection.socket.detach()
        self._reactor.abandon()
        error = BrokenFarmError("this future belongs to the process that this one was forked from")
        for task in [*self._dispatch.incoming, *self._dispatch.scheduler.tasks()]:
            if task.call is not None:
                task.call._abandon(error)


def _nothing() -> None:
    """For the inbox: wake up and see whether all is over."""
