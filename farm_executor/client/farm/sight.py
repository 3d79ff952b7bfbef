"""What a farm tells of itself: to its program, to its servers, and to people.

This module owns who is told what. It must not change anything, nor know how any of it is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from farm_executor.client.farm.budget import Budget
from farm_executor.client.farm.call import Call
from farm_executor.client.farm.dispatch import Dispatch
from farm_executor.client.farm.interrupt import HeldBack
from farm_executor.client.farm.lane import Lane
from farm_executor.client.farm.observer import Observer, SeenServer, SeenWorker, View
from farm_executor.client.farm.outcomes import Outcomes
from farm_executor.client.farm.servers import Servers
from farm_executor.client.farm.settling import Settler
from farm_executor.core.frames import Buffer
from farm_executor.core.messages import encode

if TYPE_CHECKING:
    from farm_executor.client.farm.statistics import FarmStatistics

__all__ = ["Sight"]


class Sight:
    """The view of one farm; see the module.

    Args:
        state: Returns the farm's state, as statistics call it.
        dispatch: Knows what waits and runs.
        lanes: The farm's workers by number.
        servers: Its servers.
        settler: Counts what has ended.
        outcomes: Counts what was moved to other workers.
        budget: Counts bytes; None if they are not counted.

    Thread safety: all methods but `pulse` may be called from any thread.
    """

    def __init__(
        self,
        state: Callable[[], str],
        dispatch: Dispatch,
        lanes: Mapping[int, Lane],
        servers: Servers,
        settler: Settler,
        outcomes: Outcomes,
        budget: Budget | None,
    ) -> None:
        self._state = state
        self._dispatch = dispatch
        self._lanes = lanes
        self._servers = servers
        self._settler = settler
        self._outcomes = outcomes
        self._budget = budget
        self._told: tuple[int, list[Buffer]] = -1, []  # before the first beat, which is number 0

    def statistics(self) -> FarmStatistics:
        """Take a snapshot of the farm."""
        from farm_executor.client.farm.statistics import snapshot  # late: most programs never ask

        return snapshot(self._state(), self._dispatch, self._servers, self._budget, self._counts())

    def observe(self, observer: Observer | None) -> None:
        """Tell somebody of results from now on; None for nobody."""
        # One assignment, as other threads settle futures meanwhile.
        self._settler.observer = observer

    def view(self) -> View:
        """Return what can be seen of the farm."""
        from farm_executor.client.farm.statistics import LANES_AT_ONCE, farm_status  # late, as above

        # Not a snapshot, which looks through all that waits: this is taken twice a second for each page.
        counts = farm_status(self._dispatch, list(self._lanes), self._counts())
        links = list(self._servers)
        sessions = [link.session for link in links]
        lanes = [[] if session is None else list(session.lanes.values()) for session in sessions]
        every = [lane for those in lanes for lane in those]
        running: dict[int, str] = {}
        for first in range(0, len(every), LANES_AT_ONCE):
            # An interrupt must not come while the lock is held. In large farms it is let go in between.
            with HeldBack(), self._dispatch.look():
                for lane in every[first : first + LANES_AT_ONCE]:
                    task: Any = self._dispatch.scheduler.running_on(lane.id)
                    running[lane.id] = "" if task is None else task.name or "?"
        return View(
            self._state(),
            counts,
            [
                SeenServer(str(link), link.up, link.last_error, [_seen(lane, running[lane.id]) for lane in those])
                for link, those in zip(links, lanes, strict=True)
            ],
        )

    def pulse(self, beat: int) -> list[Buffer]:
        """Return the frame of a heartbeat: what all servers are told of the farm, for those who look at them."""
        from farm_executor.client.farm.statistics import farm_status  # late, as above

        if self._told[0] != beat:  # one count for all servers
            self._told = beat, encode(farm_status(self._dispatch, list(self._lanes), self._counts()), beat)
        return self._told[1]

    def where(self, call: Call) -> str:
        """Return which worker has a call, for people; empty if none has."""
        # Without the lock, as a future may be shown anywhere: at worst this names the worker that has just had it.
        lane = self._lanes.get(call.lane) if call.started else None
        if lane is None:
            return ""
        return f"worker pid {lane.pid}" + ("" if lane.server.startswith("unix:") else f" of {lane.server}")

    def _counts(self) -> dict[str, int]:
        return {**self._settler.counts, "resubmitted": self._outcomes.resubmitted}


def _seen(lane: Lane, running: str) -> SeenWorker:
    return SeenWorker(lane.id, lane.slot, lane.pid, lane.calls_done, lane.busy_seconds, running, lane.sent)
