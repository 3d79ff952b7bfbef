"""The engine: the client half of one farm, assembled from its parts, and the calls it offers.

This module owns the fate of tasks: their futures are created, settled, cancelled and killed here, and the farm
breaks and ends here. It must not decide which task goes where (`core.scheduler`), when that may be decided
(`dispatch`), what is said on lanes (`crew`), which thread waits for the sockets (`reactor`), which servers there
are (`servers`), nor what the public contract is (`executor`).

    submit ──► Engine.submit ──► Dispatch ──► Scheduler ──► Lane.send_tasks         in the caller's thread
    Future ◄── Settler       ◄── Engine   ◄── Dispatch  ◄── Crew ◄── connection     in a handler of the reactor's

Every method that users may call from a destructor, a callback or a signal handler checks `may_wait` before it
waits for the farm, and takes the dispatch's lock through `look`.

If the engine itself fails, every future settles with `BrokenFarmError`: nothing ever hangs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any

from farm_executor._record import NamedTuple
from farm_executor.client.farm.broadcasts import Broadcast, Broadcasts
from farm_executor.client.farm.budget import Budget
from farm_executor.client.farm.call import BeforeSettling, Call
from farm_executor.client.farm.cancels import Cancels
from farm_executor.client.farm.carrying import Carrier, Carriers
from farm_executor.client.farm.crew import Crew
from farm_executor.client.farm.dispatch import Afterwards, Dispatch, Unsent
from farm_executor.client.farm.functions import Function, FunctionTable
from farm_executor.client.farm.future import (
    MUST_NOT_WAIT,
    FarmFuture,
    call_of,
    cancel_waiting,
    cancelled,
    failed,
)
from farm_executor.client.farm.hearing import Hearing
from farm_executor.client.farm.inlet import Inlet
from farm_executor.client.farm.inlets import Inlets
from farm_executor.client.farm.interrupt import HeldBack
from farm_executor.client.farm.kills import Kills
from farm_executor.client.farm.lane import Lane
from farm_executor.client.farm.link import Settings
from farm_executor.client.farm.outcomes import Outcomes
from farm_executor.client.farm.output import Output, OutputLine
from farm_executor.client.farm.reactor import Reactor
from farm_executor.client.farm.records import Levels
from farm_executor.client.farm.ringing import Rings
from farm_executor.client.farm.servers import Servers, Sources
from farm_executor.client.farm.settling import Settler
from farm_executor.client.farm.sharing import Sharing
from farm_executor.client.farm.shipping import Shipping
from farm_executor.client.farm.sight import Sight
from farm_executor.client.farm.stopping import Stopping
from farm_executor.client.farm.wording import (
    caused,
    copy_of,
    explain_pickling,
)
from farm_executor.core.frames import Buffer, Payload, payload_size
from farm_executor.core.options import TaskOptions
from farm_executor.core.task import Cancel, Retire
from farm_executor.data import kept, payload
from farm_executor.data.failure import Origin
from farm_executor.errors import BrokenFarmError, WorkerLostError

if TYPE_CHECKING:
    from farm_executor.client.farm.statistics import FarmStatistics

__all__ = ["Engine", "EngineOptions"]

logger = logging.getLogger(__name__)

AFTER_SHUTDOWN = "cannot schedule new futures after shutdown"
# In submits. A thread that floods the farm with submits starves the I/O thread, so it does some of its work.
GLANCE_EVERY = 128
IDLE_SECONDS = 1.0  # the copies kept of large functions are dropped after one to two times this long
MAX_ROUNDS = 3  # of killing running tasks, in case some have started to run elsewhere in the meantime


class EngineOptions(NamedTuple):
    """The executor's constructor arguments that concern the engine.

    Attributes:
        end_servers: Called once everything is over: ends the servers that were started for this farm alone.
        initializer: The pickled call that every worker runs first.
        ship: The modules that workers may have; see `ChosenModules`.
        carriers: What travels with each call beside its arguments.
        take_output: Called with each line that tasks write; None to write it to this program's own output.
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
    take_output: Callable[[OutputLine], object] | None = None
    carriers: Sequence[Carrier] = ()


class Engine:
    """The client side of one farm, from the first submit to the end.

    Attributes:
        servers: The farm's servers.
        counts_tasks: Whether workers are replaced after a fixed number of tasks.
        sight: What the farm tells of itself.
        sharing: Its shared objects.

    Thread safety: the methods for callers, and those of `future.Owner`, may be called from any thread.
    """

    def __init__(self, options: EngineOptions) -> None:
        self._options = options
        self._budget = options.budget
        self.counts_tasks = options.max_tasks_per_child is not None
        self._functions = FunctionTable(lambda parts: self.sharing.common(parts))
        self._carriers = Carriers(options.carriers)
        self._shutdown = False
        self._error: Callable[[], BaseException] | None = None
        self._lanes: dict[int, Lane] = {}
        self.sight: Sight
        self._reactor = reactor = Reactor(self._finished, self._fail, self._close, may_lead=options.caller_leads)
        # The parts refer to each other in a circle. The lambdas look up those that do not exist yet when they are
        # called, which is not before the reactor has been started.
        self._settler = settler = Settler(reactor, self._budget, lambda *failure: self._shipping.explain(*failure))
        self._kills = kills = Kills(
            reactor, lambda order: self._crew.send_kill(order), lambda lane, meant: self._dispatch.aim(lane, meant)
        )
        self._cancels = Cancels(reactor, lambda request: self._stopping.ask_back(request))
        self._shipping = shipping = Shipping(options.ship, reactor, lambda *answer: self._crew.send_module(*answer))
        levels = Levels()
        self._hearing = Hearing(reactor, Output(options.take_output))
        self._dispatch = dispatch = Dispatch(
            self._lanes, kills.watch, shipping.offer, self._follow_up, self.abort, levels
        )
        self.sharing = Sharing(
            reactor, lambda: dispatch.deciding, lambda lane: self._crew.watch(lane), lambda: self._shutdown
        )
        self._inlets = inlets = Inlets(dispatch, reactor, self._follow_up)
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
            self._hearing,
            self.sharing,
            levels=levels,
            inlets=inlets,
            rings=Rings(reactor, dispatch.deciding, self.sharing.found_far),
            initializer=options.initializer,
            carries=bool(options.carriers),
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
            # Every server refuses us, and trying again is pointless.
            lambda error: self._break(lambda: copy_of(error)),
            self._pulse,
        )
        self.sight = Sight(
            lambda: "broken" if self._error else "shut down" if self._shutdown else "open",
            dispatch,
            self._lanes,
            self.servers,
            settler,
            self._outcomes,
            self._budget,
        )

    def start(self) -> None:
        """Start the I/O thread and begin to dial.

        Raises:
            RuntimeError: No thread can be started, such as on Python 3.12 and later once the main thread has ended.
        """
        # Before the I/O thread starts: from then on timers may be set in handlers only.
        if self._options.connect_timeout is not None:
            self._reactor.after(self._options.connect_timeout, self._give_up_connecting)
        self._reactor.start()
        kept.join(id(self))
        self.servers.start()

    # -- for callers -------------------------------------------------------------------------------------

    def prepare(self, fn: Callable[..., Any]) -> Function:
        """Pickle a function in its current state, for many calls.

        Raises:
            Exception: The function cannot be pickled.
        """
        return self.sharing.pickled(self._functions, fn, (), {}, plain=True)[0]

    def laden(self, options: TaskOptions) -> TaskOptions:
        """Return the options for calls that carry what a call would that is submitted now, whenever they are.

        Raises:
            Exception: It cannot be pickled, or is too large.
        """
        return options._replace(header=self._carriers.header()) if self._carriers else options

    def submit(
        self,
        fn: Callable[..., Any] | Function,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: TaskOptions,
        *,
        goes_on: bool = False,
        calls: int = 1,
        before_settling: BeforeSettling | None = None,
        inlet: Inlet | None = None,
    ) -> FarmFuture:
        """Send a call, or queue it.

        Args:
            fn: The function, or the result of `prepare` for it.
            args: Its positional arguments.
            kwargs: Its keyword arguments.
            options: The options of the task.
            goes_on: Whether this is the rest of a task accepted earlier, which a shutdown does not stop.
            calls: The number of user calls that the task stands for.
            before_settling: See `BeforeSettling`.
            inlet: Where the items go that it yields.

        Returns:
            The future of the call. If the call cannot be pickled, the future already holds that error.

        Raises:
            RuntimeError: The farm has been shut down.
            BrokenFarmError: The farm is broken. If another error broke it, such as AuthenticationError, that one
                is raised.
            FarmFullError: See `Budget`.
        """
        # Checked without the lock, as a submit never waits for that. A shutdown that comes after this check is
        # noticed at the end, by `dispatch.closed`.
        if self._shutdown and not goes_on:
            raise self._error() if self._error is not None else RuntimeError(AFTER_SHUTDOWN)
        plain = self._budget is None and not kwargs and payload.all_plain(args)
        try:
            if self._options.carriers and options.header is None:
                options = self.laden(options)
            # Plain arguments are immutable, so they can be pickled as late as when they are sent, and then together
            # with those of other tasks.
            if self.sharing.live:
                function, arguments = self.sharing.pickled(self._functions, fn, args, kwargs, plain=plain)
            else:
                function = fn if isinstance(fn, Function) else self._functions.find(fn)
                arguments = () if plain else payload.dumps_call(args, kwargs)
            if len(arguments) > 1:
                arguments = self.sharing.repeated.standing(arguments)
        except BaseException as problem:  # an error raised by a user's __reduce__ belongs to this future alone
            with self.sharing.pickling():
                error = explain_pickling(problem, fn, args, kwargs)
            if before_settling is not None:
                before_settling(None, error, Origin())
            return failed(error)
        # The rest of a task is submitted while that task settles. If everything queued is being cancelled
        # meanwhile, the rest is in no queue yet and would escape.
        if goes_on and self._stopping.cancelling:
            # These calls were counted as submitted with the original task.
            self._settler.counts["cancelled"] += calls
            return cancelled()
        dispatch = self._dispatch
        call = Call(next(dispatch.ids), self, function, arguments or None, args if plain else None, options)
        if options.timeout is not None:
            dispatch.timed = True
        if before_settling is not None:
            call.before_settling, call.calls, call.goes_on = before_settling, calls, goes_on
        if inlet is not None:
            call.inlet = inlet
            inlet.let_go = partial(self._reactor.post, partial(self._stopping.tell, call))
        future = call.future
        assert future is not None
        # The call must be complete by now: as soon as it is in `incoming`, any thread may send it.
        if self._budget is None:
            dispatch.incoming.append(call)
        else:
            # A thread that has to make room by its own work must not wait for room. The rest of an earlier task
            # does not wait either: the original submit did.
            now = goes_on or not self.may_wait()
            self._append_within(self._budget, call, payload_size(arguments or ()), now=now)
        # Only after the append: a lane that becomes idle after this check finds the task in `incoming`.
        if dispatch.scheduler.has_idle_lane:
            dispatch.admit()
        if not call.id % GLANCE_EVERY and not dispatch.is_mine():
            self._reactor.glance()
        # The farm may have closed after the check at the top. Nobody admits the task then, so refuse it here, or
        # its future would never settle.
        if dispatch.closed:
            self._refuse_incoming()
        return future

    def _append_within(self, budget: Budget, call: Call, size: int, *, now: bool) -> None:
        while True:
            # An interrupt between taking the bytes and appending the task would leak the bytes. Waiting is outside,
            # so that Ctrl-C can end it.
            with HeldBack():
                if budget.take(size, now=now):
                    self._dispatch.incoming.append(call)
                    return
            budget.wait(size)

    def _refuse_incoming(self) -> None:
        """Settle the tasks that were submitted just as the farm closed."""
        # Several threads may do this at once: each task is popped by exactly one of them.
        while True:
            try:
                task = self._dispatch.incoming.popleft()
            except IndexError:
                return
            self._refuse(task)

    def _refuse(self, call: Call) -> None:
        """Settle a task that came too late."""
        self._settler.refuse(call, self._error() if self._error is not None else RuntimeError(AFTER_SHUTDOWN))

    def may_wait(self) -> bool:
        """Return whether this thread may wait for the farm: not in a callback, nor amid the farm's own work."""
        return not self._dispatch.is_mine() and self._reactor.may_wait()

    def check_may_wait(self) -> None:
        """Raise if the caller must not block until all servers or workers have answered."""
        if self._shutdown:
            raise self._error() if self._error is not None else RuntimeError(AFTER_SHUTDOWN)
        if not self.may_wait():
            raise RuntimeError(MUST_NOT_WAIT)

    def broadcast(
        self, fn: Callable[..., Any] | Function, args: tuple[Any, ...], options: TaskOptions, *, persistent: bool
    ) -> Broadcast:
        """Send a call to every worker of every server, including servers that have not answered yet.

        Args:
            fn: The function, or the result of `prepare` for it.
            args: Its arguments.
            options: The options of the calls.
            persistent: Whether workers that come later also make the call, before any other task. If the call fails
                on one of them, the farm breaks, as it does when an initializer fails.

        Raises:
            RuntimeError: The farm has been shut down, or this is a callback, which must not wait for workers.
            Exception: The call cannot be pickled.
        """
        self.check_may_wait()
        options = self.laden(options)
        function, arguments = self.sharing.pickled(self._functions, fn, args, {})
        return self._broadcasts.make(function, arguments, options, self.servers, persistent=persistent)

    def forget(self, broadcast: Broadcast) -> None:
        """Stop making this call on workers that come later."""
        self._broadcasts.forget(broadcast)

    def kill(self, category: Hashable, *, dry_run: bool = False) -> int:
        """Kill the running tasks of a category and return how many there were; see `Kills.ask`."""
        return self._stopping.kill(category, dry_run=dry_run)

    def kill_one(self, future: Future[Any]) -> bool:
        """End one call: cancel it if it waits, or kill it; see `FarmExecutor.kill`."""
        call = call_of(future)
        if call is None or call.owner is not self:
            return False  # it has just been settled, or is not ours
        # Without telling it to stop: it might end by itself before it is killed, and return something.
        return cancel_waiting(future) or self._stopping.kill_one(call)

    def cancel_all(self) -> None:
        """Cancel every task that has not begun, and kill the running ones; see `FarmExecutor.cancel_all`."""
        self._stopping.cancel_all()

    def lead(self, future: FarmFuture, timeout: float | None) -> float | None:
        """See `future.Owner`."""
        if self._dispatch.is_mine() or not self._reactor.may_wait():
            if timeout is None and not future.done():
                raise RuntimeError(MUST_NOT_WAIT)
            return timeout
        return self._reactor.lead(future.done, timeout)

    def lead_until(self, done: Callable[[], bool]) -> None:
        """Do the farm's own work in this thread, if it may, until ``done`` returns True.

        This may return early, so the caller has to check the condition again.
        """
        if self.may_wait():
            self._reactor.lead(done, None)

    def nudge(self) -> None:
        """Make the leading thread check once more whether it still needs to lead."""
        self._reactor.post(_nothing)

    def waiting(self, future: FarmFuture) -> AbstractContextManager[None]:
        """See `future.Owner`."""
        return self._reactor.waiting(future.done)

    def withdraw(self, call: Call) -> None:
        """See `future.Owner`."""
        self._reactor.post(partial(self._stopping.withdraw, call))

    def take_back(self, call: Call, cancel: Callable[[], bool]) -> None:
        """See `future.Owner`."""
        if self.may_wait():
            self._cancels.take_back(call, cancel)

    def tell_unwanted(self, call: Call) -> None:
        """See `future.Owner`."""
        if call.future is not None:
            self._reactor.post(partial(self._stopping.tell, call))

    def shutdown(self, *, cancel_futures: bool = False) -> None:
        """Accept no more tasks, and end once those accepted have settled.

        Like cancelling a future, this takes no lock: a destructor may call it at whatever point the garbage
        collector happens to run.
        """
        self._shutdown = True
        self._reactor.may_lead = False  # only the I/O thread checks whether everything is over
        if not self._dispatch.closed:
            self._reactor.post(self._cancel_queued if cancel_futures else _nothing)

    def abort(self, reason: str) -> None:
        """Give up: settle all unsettled futures with `BrokenFarmError`, and end the workers at once."""
        if not self._dispatch.closed:
            self._reactor.post(lambda: self._break(lambda: BrokenFarmError(reason)))

    def join(self, timeout: float | None = None) -> bool:
        """Wait for the end after `shutdown`, if `may_wait` allows it; return whether the end has come."""
        return self._reactor.join(timeout if self.may_wait() else 0.0)

    @property
    def broken(self) -> bool:
        """Whether the farm has failed as a whole."""
        return self._error is not None

    @property
    def workers(self) -> int:
        """The number of lanes that the servers seen so far give this farm."""
        return sum(list(self.servers.counts.values()))

    def statistics(self) -> FarmStatistics:
        """Take a snapshot of the farm's figures."""
        return self.sight.statistics()

    # -- for the reactor -----------------------------------------------------------------------------------

    def _follow_up(self, after: list[Afterwards]) -> None:
        """Do what follows from decisions. For decisions made in callers' threads, the lock is held."""
        # With the lock held, nothing may be done here that runs users' code or takes the lock again, so it is
        # posted. Losses are left to `Crew.lose_lane`, the only place they come from: it tells its listener.
        for deed in after:
            if isinstance(deed, Unsent):
                self._reactor.post(partial(self._crew.watch_by_number, deed.lane))
            elif isinstance(deed, Cancel):
                call: Any = deed.task
                self._reactor.post(partial(self._settler.cancelled, call))
            elif isinstance(deed, Retire):  # only handlers cause this, so the lock is not held
                self._crew.retire_lane(deed.lane)

    def _cancel_queued(self) -> None:
        """Cancel the queued tasks, except for those that expected workers would already have begun.

        The exception applies only as long as no worker has ever been ready.
        """
        self._stopping.cancel_queued(but=0 if self._crew.had_lane else self.servers.prospects())

    def _finished(self) -> bool:
        if not self._shutdown:
            return False
        self._inlets.end_full()
        with self._dispatch.deciding:
            # In the same hold of the lock: a task admitted between the check and the close would be forgotten.
            if not self._dispatch.scheduler.unsettled and not self._hearing.pending:
                self._stop_taking()
        return self._dispatch.closed

    def _stop_taking(self) -> None:
        """Stop admitting tasks. The lock is held."""
        self._shutdown = self._dispatch.closed = True
        self._reactor.may_lead = False
        if self._budget is not None:
            self._budget.close()

    def _fail(self, bug: BaseException) -> None:
        logger.critical("the engine failed, which is a bug", exc_info=bug)
        reason = f"the farm's engine failed, which is a bug: {type(bug).__name__}: {bug}"
        self._break(lambda: caused(BrokenFarmError(reason), bug))

    def _close(self) -> None:
        # Stop dialling first, so that no connection comes while the rest is torn down.
        self.servers.close(hurry=self._error is not None)
        self._crew.close()
        with self._dispatch.deciding:
            self._stop_taking()
        # Only once the dispatch is closed: a submit that comes later sees that, and refuses its own task.
        self._refuse_incoming()
        self._answer_no_more()
        self._shipping.close()
        self.sharing.close()
        self._hearing.close()
        self._crew.forget()
        kept.leave(id(self))
        # Last, so that embedded servers have been sent their goodbyes before they are ended.
        self._options.end_servers()

    # -- what servers tell ---------------------------------------------------------------------------------

    def _on_seats_gone(self, seats: list[Hashable], why: str) -> None:
        """Refuse the tasks that wait for seats which no longer exist."""
        with self._dispatch.deciding:
            stranded: list[Any] = [task for seat in seats for task in self._dispatch.scheduler.seat_gone(seat)]
        # Without the lock: settling runs users' callbacks.
        for call in stranded:
            self._settler.refuse(call, WorkerLostError(why))

    def _pulse(self, beat: int) -> list[Buffer]:
        kept.look()
        self._crew.tell_levels()
        return self.sight.pulse(beat)

    # -- ends ----------------------------------------------------------------------------------------------

    def _give_up_connecting(self) -> None:
        if not self._crew.had_lane:
            text = (
                f"no worker could be had within {self._options.connect_timeout} s from: {self.servers.describe()}"
            )
            self._break(lambda: TimeoutError(text))

    def _break(self, error: Callable[[], BaseException]) -> None:
        """Settle every future with an error of its own, and accept no more tasks."""
        # Each future gets its own error object: raising one adds a traceback to it, which would grow with each
        # thread that raised a shared one.
        with self._dispatch.deciding:
            if self._error is not None:
                return
            self._error = error
            self._stop_taking()
            calls = self._dispatch.forget_all()
        self._crew.stop_listening()
        for call in calls:
            self._settler.refuse(call, error())
        self._answer_no_more()

    def _answer_no_more(self) -> None:
        """Tell threads that wait for servers, or for their answers to kill orders, that there will be none."""
        error = self._error
        self.servers.answer_no_more(error if error is not None else lambda: RuntimeError(AFTER_SHUTDOWN))
        self._kills.end()

    # -- fork ----------------------------------------------------------------------------------------------

    def abandon(self) -> None:
        """Let go of the parent's connections in a forked child, and settle the parent's futures with an error."""
        # Only this process's descriptors are closed. The sockets are shared with the parent, whose connections a
        # goodbye or a shutdown would end, too.
        for connection in (*self.servers.abandon(), *self._crew.connections()):
            connection.abandon()
        self._reactor.abandon()
        self.sharing.close()
        error = BrokenFarmError("this future belongs to the process that this one was forked from")
        calls: list[Any] = [*self._dispatch.incoming, *self._dispatch.scheduler.tasks()]
        for call in calls:
            if call.future is not None:
                call.release()._abandon(error)


def _nothing() -> None:
    """Do nothing; posted to wake the I/O thread, which then checks whether everything is over."""
