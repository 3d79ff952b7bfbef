"""The lanes of one farm, and what is said on them.

This module owns the lanes: their connections and frames, their cuts, and how they end. It must not know futures,
nor which task goes where: it tells the `dispatch` what has happened, and its listener what came of it.

All of it runs in handlers of the reactor's, one at a time, so that a lane's state needs no lock. What callers'
threads may do meanwhile is to send, with the dispatch's lock held; so that lock is taken where a connection is
opened, given up or exchanged.
"""

from __future__ import annotations

import logging
import selectors
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Protocol

from farm_executor.client.farm.dispatch import Afterwards, Dispatch
from farm_executor.client.farm.functions import FunctionTable
from farm_executor.client.farm.lane import Lane
from farm_executor.client.farm.reactor import Reactor
from farm_executor.client.farm.session import Session
from farm_executor.client.farm.shipping import Shipping
from farm_executor.client.farm.wording import last_word
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
)
from farm_executor.core.lifecycle import LaneEvent, LaneState
from farm_executor.core.liveness import CUT_EXIT_CODE
from farm_executor.core.messages import WorkerDied
from farm_executor.core.task import Cancel, Lose, Task
from farm_executor.data import payload
from farm_executor.errors import RemoteProtocolError
from farm_executor.wire.connection import Connection

__all__ = ["Crew", "CrewListener"]

logger = logging.getLogger(__name__)

OPEN = LaneState.OPEN  # compared with for each frame; before Python 3.12 a member is slow to look up
REPORT_SECONDS = 5.0  # for the supervisor's word on a worker whose lane has ended
MAX_STILLBORN = 3
IDLE_SECONDS = 1.0  # after which, or twice that, what is kept of large functions is forgotten


class CrewListener(Protocol):
    """Who settles what lanes answer. Every method is called in a handler of the reactor's, without the lock."""

    def on_ready(self, lane: Lane) -> list[Task]:
        """A worker is ready: what it has to do before all else."""

    def on_values(self, lane: Lane, tasks: list[Task], values: Sequence[Any]) -> None:
        """Tasks have been answered with these values."""

    def on_answers(self, lane: Lane, tasks: list[Task], answers: Sequence[tuple[Payload, bool]]) -> None:
        """Tasks have been answered, each with a pickled value or, if so marked, a failure."""

    def on_renumbered(self, lane: Lane) -> None:
        """Tasks have come back from the lane, so that its numbers may mean others."""

    def was_to_be_killed(self, lane: Lane, task: Task) -> bool:
        """The lane's worker was killed while it ran that task: whether that was meant. With the lock held."""

    def on_lost(self, lane: Lane, before: LaneState, had: int, losses: list[Lose]) -> None:
        """A lane is gone that was in that state and had so many calls, of which these tasks must not run again."""

    def on_failed_initializer(self, lane: Lane, failure: Payload) -> None:
        """A worker cannot be made ready."""

    def on_stillborn(self, text: str) -> None:
        """Workers die before they are ready, one after the other: waiting does not help."""


class Crew:
    """See the module.

    Args:
        lanes: By number, the very mapping that the dispatch sends by.
        dispatch: Decides.
        reactor: Reads and writes.
        listener: See there.
        follow_up: Does what `Dispatch.perform` returns, except for losses.
        functions: Those that lanes may be sent.
        shipping: Offers workers the program's modules.
        initializer: The pickled call that every worker runs first.
        max_tasks_per_child: How many tasks a worker may run; None for any number.
        resume_seconds: How long a broken connection is dialled for.

    Attributes:
        had_lane: Whether any worker has ever been ready.

    Thread safety: none but that of the reactor's handlers.
    """

    def __init__(
        self,
        lanes: dict[int, Lane],
        dispatch: Dispatch,
        reactor: Reactor,
        listener: CrewListener,
        follow_up: Callable[[list[Afterwards]], None],
        functions: FunctionTable,
        shipping: Shipping,
        *,
        initializer: Payload,
        max_tasks_per_child: int | None,
        resume_seconds: float,
    ) -> None:
        self._lanes = lanes
        self._dispatch = dispatch
        self._reactor = reactor
        self._listener = listener
        self._follow_up = follow_up
        self._functions = functions
        self._shipping = shipping
        self._will_forget = False  # whether somebody will look whether large functions are still used
        self._initializer = initializer
        self._max_tasks_per_child = max_tasks_per_child
        self._resume_seconds = resume_seconds
        self._stillborn = 0  # workers in a row that died before they were ready
        self.had_lane = False

    # -- they come -----------------------------------------------------------------------------------------

    def lane_up(self, session: Session, connection: Connection, slot: int, lane: int, pid: int) -> None:
        """See `session.SessionCrew`."""
        # The thread that dialled has left word of this; meanwhile the session may have ended.
        if self._dispatch.closed or not session.wants_lanes:
            connection.close()
            return
        connection.socket.setblocking(False)
        new = Lane(
            *(lane, connection, session, slot, pid),
            resumable=session.resumable,
            wants_modules=session.wants_modules,
        )
        with self._dispatch.deciding:
            self._lanes[lane] = session.lanes[lane] = new
            if new.offered is not None:
                self._shipping.offer(new)
            new.send_init(self._initializer)
        self._reactor.register(connection, partial(self._on_lane, new))
        self.watch(new)

    def lane_resumed(self, connection: Connection, lane: int) -> None:
        """See `session.SessionCrew`."""
        found = self._lanes.get(lane)
        if self._dispatch.closed or found is None or found.state is not LaneState.CUT:
            connection.close()
            return
        connection.socket.setblocking(False)
        found.change(LaneEvent.CONNECT)
        with self._dispatch.deciding:
            found.resume(connection, self._dispatch.scheduler.first_seq(lane))
        self._reactor.register(connection, partial(self._on_lane, found))
        self.watch(found)

    def send_module(self, lane: Lane, cuts: int, number: int, files: Payload | None, reason: str) -> None:
        """See `Shipping`."""
        if self._is_gone(lane) or lane.cuts != cuts:
            return  # if the worker lives, it asks again over its next connection
        with self._dispatch.deciding:
            lane.send_module(number, files, reason)
        self.watch(lane)

    def worker_gone(self, lane: int) -> None:
        """See `session.SessionCrew`."""
        if lane in self._lanes:
            self._reactor.after(REPORT_SECONDS, partial(self.lose_lane, self._lanes[lane]))

    def _on_ready(self, lane: Lane, frame: Frame) -> None:
        if frame.flags & ERROR:
            self._listener.on_failed_initializer(lane, payload_of(frame))
            return
        lane.change(LaneEvent.READY)
        self.had_lane = True
        self._stillborn = 0
        first = self._listener.on_ready(lane)
        with self._dispatch.deciding:
            scheduler = self._dispatch.scheduler
            self._dispatch.submitted += len(first)
            scheduler.prepend(*first)
            seat = lane.session.seat(lane.slot)
            after = self._dispatch.perform(scheduler.lane_up(lane.id, self._max_tasks_per_child, seat))
        self._follow_up(after)

    # -- what they say -------------------------------------------------------------------------------------

    def watch(self, lane: Lane) -> None:
        """Have the selector report when a lane's socket takes more, while there is more."""
        if lane.state.connected and lane.id in self._lanes:
            self._reactor.want_to_write(lane.connection, lane.connection.unsent)

    def watch_by_number(self, lane: int) -> None:
        """The same, of a lane that may be gone by now."""
        found = self._lanes.get(lane)
        if found is not None:
            self.watch(found)

    def _on_lane(self, lane: Lane, events: int) -> None:
        if self._is_gone(lane):
            return  # by an event of this same round
        if events & selectors.EVENT_WRITE:
            with self._dispatch.deciding:
                lane.connection.flush()
            self.watch(lane)
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
        return not lane.state.connected

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
                self._reactor.after(REPORT_SECONDS, partial(self.lose_lane, lane))

    def _on_frame(self, lane: Lane, frame: Frame) -> None:
        dispatch, state = self._dispatch, lane.state
        if frame.type is FrameType.RESULTS and state is OPEN:
            self._on_results(lane, frame)
        elif frame.type is FrameType.RECALLED and state is OPEN:
            with dispatch.deciding:
                after = dispatch.perform(dispatch.scheduler.recalled(lane.id, frame.seq, frame.count))
                dispatch.watch_time(lane.id)
            self._follow_up(after)
            self._listener.on_renumbered(lane)
        elif frame.type is FrameType.WANTED and lane.offered is not None:
            self._shipping.answer(lane, frame)
        elif frame.type is FrameType.READY and state is LaneState.STARTING:
            self._on_ready(lane, frame)
        elif frame.type is FrameType.RESUMED and state is LaneState.RESUMING:
            lane.change(LaneEvent.RESUME)
            with dispatch.deciding:
                after = dispatch.perform(dispatch.scheduler.resumed(lane.id, frame.seq, frame.count))
                dispatch.watch_time(lane.id)
            self._follow_up(after)
            self._listener.on_renumbered(lane)
            logger.info("lane resumed server=%s pid=%d", lane.server, lane.pid)
        else:
            raise RemoteProtocolError(f"{frame.type.name} frame from a worker, out of turn")

    def _on_results(self, lane: Lane, frame: Frame) -> None:
        dispatch = self._dispatch
        values: Sequence[Any] | None = None
        if frame.flags & TOGETHER:
            busy_us, data = decode_results_together(frame)
            values = payload.loads_together(data, frame.count)
        else:
            busy_us, answers = decode_results(frame)
        with dispatch.deciding:
            round_trip_us = lane.note_results(frame.count, busy_us)
            tasks, decisions = dispatch.scheduler.finished(lane.id, frame.seq, frame.count, busy_us, round_trip_us)
            after = dispatch.perform(
                decisions
            )  # before any code of the user's, so that the worker goes on meanwhile
            unsent = not lane.acknowledge(frame.seq + frame.count, bulk=bool(frame.flags & BULK))
            if dispatch.timed:
                dispatch.watch_time(lane.id)
        if after:
            self._follow_up(after)
        if unsent:
            self.watch(lane)
        if (lane.kept.large or self._functions.kept.large) and not dispatch.scheduler.unsettled:
            self._forget_later()
        if values is not None:
            self._listener.on_values(lane, tasks, values)
        else:
            self._listener.on_answers(lane, tasks, answers)

    def _forget_later(self) -> None:
        """Look after a while whether the farm is still idle."""
        if not self._will_forget:
            self._will_forget = True
            self._reactor.after(IDLE_SECONDS, partial(self._forget_large, self._dispatch.submitted))

    def _forget_large(self, submitted: int) -> None:
        self._will_forget = False
        dispatch = self._dispatch
        with dispatch.deciding:
            if dispatch.closed or dispatch.scheduler.unsettled:  # its results will come here
                return
            if dispatch.submitted != submitted:
                self._forget_later()
                return
            self._functions.forget_large()
            lanes = [lane for lane in self._lanes.values() if lane.kept.large and lane.state.connected]
            full = [lane for lane in lanes if not lane.send_forget_large()]
        for lane in full:
            self.watch(lane)

    # -- what sessions tell --------------------------------------------------------------------------------

    def sending(self) -> AbstractContextManager[None]:
        """See `session.SessionCrew`."""
        return self._dispatch.deciding

    def drain_lane(self, lane: Lane) -> None:
        """See `session.SessionCrew`."""
        if lane.state is LaneState.RETIRED:
            return  # the scheduler has forgotten it, and it is about to end: a server may say twice that it drains
        with self._dispatch.deciding:
            after = self._dispatch.perform(self._dispatch.scheduler.drain_lane(lane.id))
        self._follow_up(after)

    def on_stuck(self, lane: int) -> None:
        """See `session.SessionCrew`."""
        stuck = self._lanes[lane]
        if stuck.resumable and stuck.state.ready:
            self.cut_lane(stuck, "nothing of what is sent over it arrives")
        else:
            self.lose_lane(stuck)

    def cut_lane(self, lane: Lane, why: str) -> None:
        """The way to a worker is broken, and another is looked for, for a while."""
        if lane.state not in (LaneState.OPEN, LaneState.RESUMING):
            return
        logger.info("connection lost server=%s pid=%d reason=%s", lane.server, lane.pid, why)
        lane.change(LaneEvent.CUT)
        with self._dispatch.deciding:
            # In one hold: a caller's thread that is given the lock next must find that the lane takes nothing.
            self._reactor.unregister(lane.connection)
            lane.connection.close()
            self._dispatch.scheduler.lane_cut(lane.id)
        self._reactor.after(self._resume_seconds, partial(self._give_up_lane, lane, lane.cuts))
        lane.session.lane_cut(lane)

    def _give_up_lane(self, lane: Lane, cuts: int) -> None:
        if lane.state is LaneState.CUT and lane.cuts == cuts:
            self.lose_lane(lane)

    def on_death(self, death: WorkerDied) -> None:
        """See `session.SessionCrew`."""
        lane = self._lanes.get(death.lane)
        if lane is None:
            return
        lane.death = death
        if lane.state.connected:
            self._await_end(lane, -1)
        else:
            self.lose_lane(lane)

    def _await_end(self, lane: Lane, received: int) -> None:
        """Its worker has died: what it had sent may still come, and then the end, unless nothing comes any more."""
        if lane.connection.bytes_received == received:
            self.lose_lane(lane)
        elif lane.state.connected:
            received = lane.connection.bytes_received
            self._reactor.after(REPORT_SECONDS, partial(self._await_end, lane, received))

    # -- they go -------------------------------------------------------------------------------------------

    def retire_lane(self, number: int) -> None:
        """A lane has run all the tasks it may: its worker ends when we hang up, and a fresh one is asked for."""
        lane = self._lanes.get(number)
        if lane is not None:
            # Not hung up in this very turn: its connection may have more to say, and may be about to break.
            lane.change(LaneEvent.RETIRE)
            self._reactor.post(partial(self.end_lane, lane))

    def end_lane(self, lane: Lane) -> None:
        """Hang up, if that has not been done."""
        self.lose_lane(lane)

    def lose_lane(self, lane: Lane, *, given_up: bool = False) -> None:
        """Move its tasks, tell of those that may not run again, ask for another worker."""
        before = lane.state
        if before is LaneState.GONE:
            return
        lane.change(LaneEvent.LOSE)
        death = lane.death
        begun = death.begun if death else None
        with self._dispatch.deciding:
            scheduler = self._dispatch.scheduler
            del self._lanes[lane.id], lane.session.lanes[lane.id]
            if before.connected:
                lane.send_bye()
                self._reactor.unregister(lane.connection)
            lane.connection.close()
            had = sum(task.calls for task in scheduler.tasks_on(lane.id))
            killed = death.killed if death else -1 if given_up else None
            victim = scheduler.task_at(lane.id, killed)
            if killed is not None and (victim is None or not self._listener.was_to_be_killed(lane, victim)):
                killed = -1  # it has ended, or has come back by a recall and another has its number
            decisions = scheduler.lane_lost(lane.id, begun, killed)
            had -= sum(decision.task.calls for decision in decisions if isinstance(decision, Cancel))
            after = self._dispatch.perform(decisions)
        self._follow_up(after)
        self._listener.on_lost(lane, before, had, [loss for loss in after if isinstance(loss, Lose)])
        failed = before in (LaneState.STARTING, LaneState.STILLBORN)
        if death is not None and failed and death.code != CUT_EXIT_CODE:
            self._on_stillborn(death)
        lane.session.lane_lost(lane, failed=failed)

    def _on_stillborn(self, death: WorkerDied) -> None:
        """A worker has died before it was ready; if that is all they ever do, waiting does not help."""
        self._stillborn += 1
        if self._stillborn >= MAX_STILLBORN and not any(lane.state.ready for lane in self._lanes.values()):
            text = f"{self._stillborn} workers in a row died in their initializer or before"
            self._listener.on_stillborn(f"{text}; the last {last_word(death)}")

    def stop_listening(self) -> None:
        """The farm is broken: what lanes have to say does not matter any more."""
        for lane in self._lanes.values():
            if lane.state.connected and lane.state is not LaneState.RETIRED:  # which is about to be lost
                lane.change(LaneEvent.END)
                self._reactor.unregister(lane.connection)

    def close(self) -> None:
        """The farm ends: hang up on all workers."""
        for lane in self._lanes.values():
            lane.change(LaneEvent.LOSE)
            lane.send_bye()
            lane.connection.close()

    def forget(self) -> None:
        """They have been hung up on."""
        for lane in self._lanes.values():
            lane.session.lanes.pop(lane.id, None)
        self._lanes.clear()

    def connections(self) -> list[Connection]:
        """Those to the workers. Any thread may ask."""
        return [lane.connection for lane in list(self._lanes.values())]
