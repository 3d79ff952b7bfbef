"""Tasks that are not to run, or not to their end: cancelled, asked for back, killed.

This module owns what of a task's cancelling and killing is decided where: in the queues at once, on a lane by
asking for it back (`cancels`), in a worker by killing that (`kills`). It must not know frames and connections.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial

from farm_executor.client.farm.broadcasts import Broadcasts
from farm_executor.client.farm.cancels import Request
from farm_executor.client.farm.dispatch import Afterwards, Dispatch
from farm_executor.client.farm.future import FarmFuture
from farm_executor.client.farm.interrupt import HeldBack
from farm_executor.client.farm.kills import Kills
from farm_executor.client.farm.reactor import Reactor
from farm_executor.client.farm.settling import Settler
from farm_executor.core.task import Kill, Task
from farm_executor.errors import TaskKilledError

__all__ = ["Stopping"]

MAX_ROUNDS = 3  # of killing what runs, in case some of it has come to run elsewhere meanwhile


class Stopping:
    """See the module.

    Args:
        dispatch: Has the tasks.
        reactor: Does later what must not be done now.
        settler: Settles futures.
        kills: Order supervisors to kill.
        broadcasts: Their late calls are spared.
        follow_up: Does what `Dispatch.perform` returns.

    Attributes:
        cancelling: How many have cancelled what goes on, and are not over.

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
        """Kill the tasks of that category that run, and say how many there were; see `Kills.ask`."""
        with HeldBack(), self._dispatch.look():
            kills = self._dispatch.scheduler.kill(lambda task: task.category == category)
        return sum(kill.at_first for kill in kills) if dry_run else self._ask_to_kill(kills)

    def _may_wait(self) -> bool:
        return not self._dispatch.is_mine() and self._reactor.may_wait()

    def _ask_to_kill(self, kills: list[Kill]) -> int:
        return self._kills.ask(kills, wait=self._may_wait()) if kills else 0

    def cancel_all(self) -> None:
        """Cancel every task that has not begun, and kill those that run; see `FarmExecutor.cancel_all`."""
        if self._dispatch.is_mine():  # amid a decision nothing else can be decided
            self._reactor.post(self.cancel_all)
            return
        self.cancelling += 1
        try:
            with HeldBack(), self._dispatch.deciding:
                late = self._broadcasts.late()
                meant = {task for task in self._dispatch.scheduler.tasks() if task.call not in late}
            for _ in range(MAX_ROUNDS):
                with HeldBack(), self._dispatch.deciding:
                    ends = self._cancel_each(meant)
                    kills = self._dispatch.scheduler.kill(meant.__contains__)
                self._reactor.post(partial(_call_all, ends))
                if not kills:
                    break
                self._ask_to_kill(kills)
        finally:
            self.cancelling -= 1

    def _cancel_each(self, meant: set[Task]) -> list[Callable[[], None]]:
        """Forget those that no lane has, and have the others not come back from theirs; the lock is held.

        Returns:
            What is to be done about those forgotten, in a handler.
        """
        ends: list[Callable[[], None]] = []
        for task in [task for task in self._dispatch.scheduler.tasks() if task in meant]:
            if self._dispatch.scheduler.withdraw(task):
                ends.append(partial(self._settler.cancel, task))
            elif not self._dispatch.scheduler.drop(task):
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
        if self._dispatch.is_mine():  # amid a decision nothing else can be decided
            self._reactor.post(lambda: _ignore(self.kill_one(future)))
            return True
        with HeldBack(), self._dispatch.looking:
            if self._dispatch.scheduler.drop(task):  # it had been sent, and has come back
                error = TaskKilledError("the task was killed while it waited to be sent again")
                self._reactor.post(partial(self._settler.fail, task, error, "killed"))
                return True
            kills = self._dispatch.scheduler.kill(lambda task: task.call is future, task.lane)
            if kills and not kills[0].at_first:
                self._dispatch.timed = True
                task.timeout = 0.0
                return True
        return self._ask_to_kill(kills) > 0

    def withdraw(self, task: Task) -> None:
        """A future has been cancelled."""
        with self._dispatch.deciding:
            was_queued = self._dispatch.scheduler.withdraw(task)
        self._settler.cancel(task, told=not was_queued)  # else its future was told when its turn came

    def ask_back(self, request: Request) -> tuple[int, bool] | None:
        """For `Cancels`."""
        with self._dispatch.deciding:
            lane, decisions = self._dispatch.scheduler.take_back(request.task, request.grant)
            after = self._dispatch.perform(decisions)
        self._follow_up(after)
        return None if lane is None else (lane, bool(decisions))

    def cancel_queued(self, *, but: int) -> None:
        """Cancel what waits, but for the first so many, for good."""
        self.cancelling += 1  # and so is what would go on
        with self._dispatch.deciding:
            queued = self._dispatch.scheduler.withdraw_all(but=but)
        for task in queued:
            self._settler.cancel(task)


def _call_all(actions: list[Callable[[], None]]) -> None:
    for action in actions:
        action()


def _ignore(result: object) -> None:
    """For the inbox, which wants no results."""
