"""Stops tasks before they run or while they run: cancels them, asks for them back, kills them.

This module owns the choice of how a task is stopped: in a queue at once, on a lane by asking for it back
(`cancels`), in a worker by killing the worker (`kills`). It must not know frames and connections.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

from farm_executor.client.farm.broadcasts import Broadcasts
from farm_executor.client.farm.call import Call
from farm_executor.client.farm.cancels import Request
from farm_executor.client.farm.dispatch import Afterwards, Dispatch
from farm_executor.client.farm.interrupt import HeldBack
from farm_executor.client.farm.kills import Kills
from farm_executor.client.farm.reactor import Reactor
from farm_executor.client.farm.settling import Settler
from farm_executor.core.task import Kill
from farm_executor.errors import TaskKilledError

__all__ = ["Stopping"]

MAX_ROUNDS = 3  # of killing running tasks, in case some have started to run elsewhere in the meantime


class Stopping:
    """Cancels and kills tasks; see the module.

    Args:
        dispatch: Holds the tasks.
        reactor: Runs later what must not be done now.
        settler: Settles futures.
        kills: Orders supervisors to kill.
        broadcasts: Its late calls are spared.
        follow_up: Does what `Dispatch.perform` returns.

    Attributes:
        cancelling: The number of operations in progress that also cancel the rest of tasks which would go on.

    Thread safety: `kill`, `kill_one` and `cancel_all` may be called from any thread, the others from handlers.
    """

    def __init__(
        self,
        dispatch: Dispatch,
        reactor: Reactor,
        settler: Settler,
        kills: Kills,
        broadcasts: Broadcasts,
        follow_up: Callable[[list[Afterwards]], None],
    ) -> None:
        self._dispatch = dispatch
        self._reactor = reactor
        self._settler = settler
        self._kills = kills
        self._broadcasts = broadcasts
        self._follow_up = follow_up
        self.cancelling = 0

    def kill(self, category: Hashable, *, dry_run: bool = False) -> int:
        """Kill the running tasks of a category and return how many there were; see `Kills.ask`."""
        with HeldBack(), self._dispatch.look():
            kills = self._dispatch.scheduler.kill(lambda task: task.options.category == category)
        return sum(kill.at_first for kill in kills) if dry_run else self._ask_to_kill(kills)

    def _may_wait(self) -> bool:
        return not self._dispatch.is_mine() and self._reactor.may_wait()

    def _ask_to_kill(self, kills: list[Kill]) -> int:
        return self._kills.ask(kills, wait=self._may_wait()) if kills else 0

    def cancel_all(self) -> None:
        """Cancel every task that has not begun, and kill the running ones; see `FarmExecutor.cancel_all`."""
        if self._dispatch.is_mine():  # nothing else can be decided in the middle of a decision
            self._reactor.post(self.cancel_all)
            return
        self.cancelling += 1
        try:
            # Decided once, before the first round: tasks submitted while the rounds go on are not meant.
            with HeldBack(), self._dispatch.deciding:
                late = self._broadcasts.late()
                calls: list[Any] = list(self._dispatch.scheduler.tasks())
                meant = {call for call in calls if call.future not in late}
            for _ in range(MAX_ROUNDS):
                with HeldBack(), self._dispatch.deciding:
                    ends = self._cancel_each(meant)
                    kills = self._dispatch.scheduler.kill(meant.__contains__)
                # Posted, as it runs users' callbacks, which belong in the I/O thread.
                self._reactor.post(partial(_call_all, ends))
                if not kills:
                    break
                # Killing takes a round trip, in which a meant task may have moved to another lane and begun there:
                # hence the rounds.
                self._ask_to_kill(kills)
        finally:
            self.cancelling -= 1

    def _cancel_each(self, meant: set[Call]) -> list[Callable[[], None]]:
        """Forget the calls that no lane has, and have the others not queued again. The lock is held.

        Returns:
            What settles the forgotten calls, to be made in a handler.
        """
        # Four cases, in order: never sent; on a lane now; sent and back, certainly not begun; sent and back, but
        # possibly begun on a worker that is gone. The last cannot be called cancelled, so it counts as killed.
        ends: list[Callable[[], None]] = []
        scheduler = self._dispatch.scheduler
        # A list first: `withdraw` and `drop` change what `tasks` iterates over.
        calls: list[Any] = [task for task in scheduler.tasks() if task in meant]
        for call in calls:
            if scheduler.withdraw(call):
                ends.append(partial(self._settler.cancel, call))
            elif not scheduler.drop(call):
                call.unwanted = call.future._cancel_started
            elif not call.begun and call.future._cancel_started():
                ends.append(partial(self._settler.cancelled, call))
            else:
                error = TaskKilledError("the task was killed while it waited to be sent again")
                ends.append(partial(self._settler.fail, call, error, "killed"))
        return ends

    def kill_one(self, call: Call) -> bool:
        """Kill a call: at once if it runs, or when its turn comes if a worker already has it."""
        if self._dispatch.is_mine():  # nothing else can be decided in the middle of a decision
            self._reactor.post(lambda: _ignore(self.kill_one(call)))
            return True
        with HeldBack(), self._dispatch.looking:
            if self._dispatch.scheduler.drop(call):  # it was sent before, and has come back
                error = TaskKilledError("the task was killed while it waited to be sent again")
                self._reactor.post(partial(self._settler.fail, call, error, "killed"))
                return True
            kills = self._dispatch.scheduler.kill(lambda task: task is call, call.lane)
            # Not the oldest on its lane, so not running yet. A timeout of 0 kills it when its turn comes, and
            # spares the task that runs there now.
            if kills and not kills[0].at_first:
                self._dispatch.timed = True
                call.options = call.options._replace(timeout=0.0)
                return True
        return self._ask_to_kill(kills) > 0

    def withdraw(self, call: Call) -> None:
        """Let go of the call of a future that has been cancelled."""
        with self._dispatch.deciding:
            was_queued = self._dispatch.scheduler.withdraw(call)
        # If it is no longer queued, its turn has come: its future was told then, and must not be told twice.
        self._settler.cancel(call, told=not was_queued)

    def tell(self, call: Call) -> None:
        """Tell a call that most likely runs that nobody wants its result."""
        self._follow_up(self._dispatch.stop(call))

    def ask_back(self, request: Request) -> tuple[int, bool] | None:
        """Ask for a task back on behalf of `Cancels`.

        Returns:
            The lane whose answer is to be awaited, and whether anything was sent to it just now; None if there is
            no answer to wait for.
        """
        with self._dispatch.deciding:
            lane, decisions = self._dispatch.scheduler.take_back(request.task, request.grant)
            after = self._dispatch.perform(decisions)
        self._follow_up(after)
        return None if lane is None else (lane, bool(decisions))

    def cancel_queued(self, *, but: int) -> None:
        """Cancel the queued tasks except for the first ``but``, and from now on every task that would go on."""
        self.cancelling += 1  # never decremented: the farm is shutting down
        with self._dispatch.deciding:
            queued: list[Any] = self._dispatch.scheduler.withdraw_all(but=but)
        for call in queued:
            self._settler.cancel(call)


def _call_all(actions: list[Callable[[], None]]) -> None:
    for action in actions:
        action()


def _ignore(result: object) -> None:
    """Discard a result, for the reactor's inbox, which takes functions that return None."""
