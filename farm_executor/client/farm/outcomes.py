"""Translates the answers and losses of lanes into outcomes of tasks and their futures.

This module owns what follows once the dispatch's lock has been released: results are settled, losses explained.
It must not know frames and connections, nor decide which task may run again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from farm_executor.client.farm.broadcasts import Broadcasts
from farm_executor.client.farm.call import Call
from farm_executor.client.farm.cancels import Cancels
from farm_executor.client.farm.kills import Kills
from farm_executor.client.farm.lane import Lane
from farm_executor.client.farm.reactor import Reactor
from farm_executor.client.farm.settling import Settler
from farm_executor.client.farm.wording import (
    caused,
    describe_death,
    initializer_failed,
    task_killed,
    task_overran,
    worker_lost,
)
from farm_executor.core.frames import Payload
from farm_executor.core.lifecycle import LaneState
from farm_executor.core.task import Lose, Task
from farm_executor.data.byvalue import OwnObjects
from farm_executor.data.failure import Origin, load_failure, remote_traceback
from farm_executor.errors import BrokenFarmError

__all__ = ["Outcomes"]

logger = logging.getLogger(__name__)


class Outcomes:
    """The listener of a crew; see the module, and `crew.CrewListener` for its methods.

    Args:
        reactor: Runs later what must not be done now.
        settler: Settles futures.
        kills: Knows which tasks were to be killed.
        cancels: Waits for tasks that lanes give back.
        broadcasts: Knows the calls that a late worker has to make.
        break_farm: Called when the farm cannot go on, with a function that makes an error for each future.

    Attributes:
        resubmitted: How often a call was moved away from a lost worker.

    Thread safety: that of `crew.CrewListener`.
    """

    def __init__(
        self,
        reactor: Reactor,
        settler: Settler,
        kills: Kills,
        cancels: Cancels,
        broadcasts: Broadcasts,
        break_farm: Callable[[Callable[[], BaseException]], None],
    ) -> None:
        self._reactor = reactor
        self._settler = settler
        self._kills = kills
        self._cancels = cancels
        self._broadcasts = broadcasts
        self._break = break_farm
        self.resubmitted = 0

    def on_ready(self, lane: Lane) -> list[Call]:
        """See `crew.CrewListener`."""
        return self._broadcasts.late_calls(lane)

    def on_values(self, lane: Lane, calls: list[Call], values: Sequence[Any]) -> None:
        """See `crew.CrewListener`."""
        settler = self._settler
        ended = zip(calls, values, strict=True)
        if settler.observer is None:  # as always where nobody looks, so nothing is made for it before
            settler.succeed(ended, lane.server, lane.pid, lane.note_calls)
        else:
            settle = partial(settler.succeed, ended, lane.server, lane.pid, lane.note_calls)
            settler.observer.answered(lane, calls, settle)

    def on_answers(self, lane: Lane, calls: list[Call], answers: Sequence[tuple[Payload, bool]]) -> None:
        """See `crew.CrewListener`."""
        settler = self._settler
        ended = zip(calls, answers, strict=True)
        if settler.observer is None:  # as always where nobody looks, so nothing is made for it before
            # The lane's methods, and not the lane: the settler knows futures alone.
            settler.answer(ended, lane.server, lane.pid, lane.note_calls, lane.explain_stream)
        else:
            settle = partial(settler.answer, ended, lane.server, lane.pid, lane.note_calls, lane.explain_stream)
            settler.observer.answered(lane, calls, settle)

    def on_renumbered(self, lane: Lane) -> None:
        """See `crew.CrewListener`."""
        self._kills.renumbered(lane.id)
        self._cancels.answered(lane.id)

    def was_to_be_killed(self, lane: Lane, task: Task) -> bool:
        """See `crew.CrewListener`."""
        return self._kills.meant(lane.id, task)

    def seconds_left(self, lane: Lane, task: Task) -> float | None:
        """See `crew.CrewListener`."""
        return self._kills.seconds_left(lane.id, task)

    def on_lost(self, lane: Lane, before: LaneState, had: int, losses: list[Lose], running: Task | None) -> None:
        """See `crew.CrewListener`."""
        # Threads that wait for this lane to give a task back would wait in vain from now on.
        self._cancels.answered(lane.id)
        # A retired lane had no tasks left, and its end is no loss to be logged.
        if before is not LaneState.RETIRED:
            self._settle_lost(lane, had, losses, running)
        # Only after the losses are explained: this forgets whether the lane's oldest task had overrun its time.
        self._kills.lane_lost(lane.id, next((loss.task for loss in losses if loss.killed), None))

    def on_failed_initializer(self, lane: Lane, failure: Payload) -> None:
        """See `crew.CrewListener`."""
        error = load_failure(failure, Origin(lane.server, lane.pid), OwnObjects)
        self._break(lambda: caused(BrokenFarmError(initializer_failed(lane, remote_traceback(error))), error))

    def on_stillborn(self, text: str) -> None:
        """See `crew.CrewListener`."""
        self._break(lambda: BrokenFarmError(text))

    def on_late_failure(self, lane: Lane, error: BaseException) -> None:
        """Break the farm: a worker failed to make a persistent call, without which no other task may run there."""
        text = f"a persistent broadcast failed on server {lane.server}, worker pid {lane.pid}"
        # Posted, because this is called while that same call is being settled.
        self._reactor.post(
            lambda: self._break(lambda: caused(BrokenFarmError(f"{text}: {type(error).__name__}: {error}"), error))
        )

    def _settle_lost(self, lane: Lane, had: int, losses: list[Lose], running: Task | None) -> None:
        failures: list[tuple[Any, Exception]] = [(loss.task, self._why_lost(lane, loss)) for loss in losses]
        origin = Origin(lane.server, lane.pid)
        # Asked before anything is counted: a task of several calls may go on as others, and then is not lost.
        goes_on = [self._settler.goes_on(task, error, origin) for task, error in failures]
        lost = sum(task.calls for (task, _), further in zip(failures, goes_on, strict=True) if not further)
        self.resubmitted += had - lost
        death = lane.death
        if death is not None and death.killed is not None:
            logger.info("worker killed server=%s pid=%d resubmitted=%d", lane.server, lane.pid, had - lost)
        else:
            logger.warning(
                "worker lost server=%s slot=%d pid=%d reason=%s resubmitted=%d lost=%d peak=%s stderr=%r",
                *(lane.server, lane.slot, lane.pid, describe_death(death), had - lost, lost),
                *((death.peak, death.stderr) if death else (None, "")),
            )

        def settle() -> None:
            for loss, (task, error), further in zip(losses, failures, goes_on, strict=True):
                self._settler.fail(task, error, None if further else "killed" if loss.killed else "lost")

        if lane.hearing is None:
            settle()
        else:
            lane.hearing.lost(running if any(running is task for task, _ in failures) else None, settle)

    def _why_lost(self, lane: Lane, loss: Lose) -> Exception:
        if not loss.killed:
            return worker_lost(lane, loss.task)
        if loss.task.options.timeout and self._kills.overran(lane.id, loss.task):
            return task_overran(lane, loss.task)
        return task_killed(lane, loss.task)
