"""The lanes of one farm, and the frames exchanged on them.

This module owns the lanes: their connections and frames, their cuts, and how they end. It must not know futures,
nor which task goes where: it tells the `dispatch` what has happened, and its listener what came of it.

Everything here runs in handlers of the reactor, one at a time, so a lane's state needs no lock. Callers' threads
may send in the meantime, with the dispatch's lock held. So that lock is taken wherever a connection is opened,
given up or exchanged.
"""

from __future__ import annotations

import logging
import selectors
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Protocol

from farm_executor.client.farm.about import asked_about, details_of
from farm_executor.client.farm.call import Call
from farm_executor.client.farm.dispatch import Afterwards, Dispatch
from farm_executor.client.farm.functions import FunctionTable
from farm_executor.client.farm.hearing import Hearing
from farm_executor.client.farm.inlets import Inlets
from farm_executor.client.farm.lane import Lane
from farm_executor.client.farm.reactor import Reactor
from farm_executor.client.farm.records import Levels
from farm_executor.client.farm.ringing import Rings
from farm_executor.client.farm.session import Session
from farm_executor.client.farm.sharing import Sharing
from farm_executor.client.farm.shipping import Shipping
from farm_executor.client.farm.wording import last_word
from farm_executor.core.batches import decode_results, decode_results_together
from farm_executor.core.features import DETAILS, FUNCTIONS, HEADERS, MODULES, RECORDS
from farm_executor.core.frames import BULK, ERROR, TOGETHER, Frame, FrameType, Payload, payload_of
from farm_executor.core.lifecycle import LaneEvent, LaneState
from farm_executor.core.liveness import CUT_EXIT_CODE
from farm_executor.core.messages import KillOrder, WorkerDied
from farm_executor.core.ring import is_large
from farm_executor.core.task import Cancel, Lose, Task
from farm_executor.data import payload
from farm_executor.errors import RemoteProtocolError
from farm_executor.wire.connection import Connection

__all__ = ["Crew", "CrewListener"]

logger = logging.getLogger(__name__)

# Needed for each frame; before Python 3.12 the lookup of an enum member is slow.
OPEN, RESULTS = LaneState.OPEN, FrameType.RESULTS
REPORT_SECONDS = 5.0  # to wait for the supervisor's report on a worker whose lane has ended
MAX_STILLBORN = 3  # workers in a row that died before they were ready, while none is ready
IDLE_SECONDS = 1.0  # the copies kept of large functions are dropped after one to two times this long


class CrewListener(Protocol):
    """The receiver of a crew's events, which settles the answers of lanes.

    Every method is called in a handler of the reactor, without the lock unless noted.
    """

    def on_ready(self, lane: Lane) -> list[Call]:
        """Note that a worker is ready; return the tasks that it has to run before all others."""

    def on_values(self, lane: Lane, calls: list[Any], values: Sequence[Any]) -> None:
        """Settle calls that were answered with these values."""

    def on_answers(self, lane: Lane, calls: list[Any], answers: Sequence[tuple[Payload, bool]]) -> None:
        """Settle calls that were answered, each with a pickled value or, if the flag says so, a failure."""

    def on_renumbered(self, lane: Lane) -> None:
        """Note that tasks have come back from the lane, so its numbers may now stand for other tasks."""

    def was_to_be_killed(self, lane: Lane, task: Task) -> bool:
        """Return whether the lane's worker, killed while it ran this task, was meant to be. With the lock held."""

    def seconds_left(self, lane: Lane, task: Task) -> float | None:
        """Return for how long a task that runs on the lane may go on; None for ever."""

    def on_lost(self, lane: Lane, before: LaneState, had: int, losses: list[Lose], running: Task | None) -> None:
        """Settle what a lost lane leaves behind.

        Args:
            lane: The lane.
            before: Its state before the loss.
            had: How many calls it had.
            losses: The tasks among these that must not run again.
            running: The task that most likely ran; None if there is none.
        """

    def on_failed_initializer(self, lane: Lane, failure: Payload) -> None:
        """Note that a worker's initializer has failed, so that it cannot become ready."""

    def on_stillborn(self, text: str) -> None:
        """Note that worker after worker dies before it is ready, so that waiting does not help."""


def _takes_more(lane: Lane) -> bool:
    """Return whether to send more as soon as the socket has room: what waits for a ring has its bell."""
    return lane.connection.unsent or (lane.carrying and not lane.connection.starved)


class Crew:
    """The lanes of one farm; see the module.

    Args:
        lanes: The lanes by number: the same mapping that the dispatch uses for sending.
        dispatch: Decides which task goes where.
        reactor: Reports when sockets can be read or written.
        listener: See `CrewListener`.
        follow_up: Does what `Dispatch.perform` returns, except for losses.
        functions: The functions that lanes may be sent.
        shipping: Offers the program's modules to workers.
        hearing: Takes what workers say beside their outcomes.
        sharing: Brings shared objects to servers.
        levels: Those of the program's loggers.
        inlets: Takes the items of streams.
        rings: Gives lanes rings of shared memory.
        initializer: The pickled call that every worker runs first.
        carries: Whether anything travels with calls beside their arguments.
        max_tasks_per_child: The number of tasks that a worker may run; None for any number.
        resume_seconds: How long to keep dialling for a broken connection, in seconds.

    Attributes:
        had_lane: Whether any worker has ever been ready.

    Thread safety: none; everything is for the reactor's handlers, which run one at a time.
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
        hearing: Hearing,
        sharing: Sharing,
        *,
        levels: Levels,
        inlets: Inlets,
        rings: Rings,
        initializer: Payload,
        carries: bool,
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
        self._hearing = hearing
        hearing.read = lambda lane: self._on_lane(lane, selectors.EVENT_READ)
        self.sharing = sharing
        self._will_forget = False  # whether a timer is set to check if large functions are still in use
        self._levels = levels
        self._inlets = inlets
        self._rings = rings
        self._levels_told = 0
        self._initializer = initializer
        self._carries = carries
        self._max_tasks_per_child = max_tasks_per_child
        self._resume_seconds = resume_seconds
        self._stillborn = 0  # workers in a row that died before they were ready
        self.had_lane = False

    # -- they come -----------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """See `session.SessionCrew`."""
        self._shipping.prepare()

    def lane_up(self, session: Session, connection: Connection, slot: int, lane: int, pid: int) -> None:
        """See `session.SessionCrew`."""
        # The dialling thread posted this; the session, or the whole farm, may have ended since.
        if self._dispatch.closed or not session.wants_lanes:
            connection.close()
            return
        connection.socket.setblocking(False)
        if self._carries and HEADERS not in session.features and not session.lanes:
            logger.warning("context not sent server=%s: update farm_executor there", session)
        new = Lane(
            *(lane, connection, session, slot, pid),
            resumable=session.resumable,
            wants_modules=MODULES in session.features,
            takes_headers=self._carries and HEADERS in session.features,
        )
        with self._dispatch.deciding:
            self._lanes[lane] = session.lanes[lane] = new
            # The initializer may already need the program's modules, so they are offered before it is sent.
            if new.offered is not None:
                self._shipping.offer(new)
            self._levels.look()
            new.send_levels(self._levels)
            new.send_init(self._initializer)
        # The scheduler hears of the lane only when its worker is ready: until then it gets no tasks.
        self._reactor.register(connection, partial(self._on_lane, new))
        self.watch(new)

    def lane_resumed(self, connection: Connection, lane: int) -> None:
        """See `session.SessionCrew`."""
        found = self._lanes.get(lane)
        # It may have been given up for lost while the dialling thread was busy.
        if self._dispatch.closed or found is None or found.state is not LaneState.CUT:
            connection.close()
            return
        connection.socket.setblocking(False)
        found.change(LaneEvent.CONNECT)
        # The scheduler still takes the lane for cut off, so it sends no tasks before the worker has said which one
        # it expects next (RESUMED). Numbers sent before that might repeat or skip some.
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
        # The supervisor's report, which comes over the control connection, says how the worker died and what it had
        # begun. Without it every outstanding task counts as possibly begun, so give it time to arrive.
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
            # Before the scheduler knows the lane: its first batch then begins with these tasks.
            scheduler.prepend(*first)
            seat = lane.session.seat(lane.slot)
            after = self._dispatch.perform(scheduler.lane_up(lane.id, self._max_tasks_per_child, seat))
        self._follow_up(after)
        self.sharing.lane_ready(lane)

    # -- what they say -------------------------------------------------------------------------------------

    def watch(self, lane: Lane) -> None:
        """Have the selector report when a lane's socket takes more, as long as there is more to send."""
        if lane.state.connected and lane.id in self._lanes:
            self._reactor.want_to_write(lane.connection, _takes_more(lane))
            if lane.connection.laden:
                self._rings.want(lane)

    def watch_by_number(self, lane: int) -> None:
        """Do the same for a lane that may be gone by now."""
        found = self._lanes.get(lane)
        if found is not None:
            self.watch(found)

    def _on_lane(self, lane: Lane, events: int) -> None:
        if not lane.state.connected:
            return  # an earlier event of the same round has ended it
        if events & selectors.EVENT_WRITE:
            # Callers' threads send on this connection, too, so its buffer is flushed under the lock.
            with self._dispatch.deciding:
                lane.connection.flush()
            self.sharing.go_on(lane)
            self.watch(lane)
        if not events & selectors.EVENT_READ:
            return
        try:
            for frame in lane.connection.receive():
                if frame.type is RESULTS and lane.state is OPEN:  # what comes for each call
                    self._on_results(lane, frame)
                elif self._is_gone(lane):
                    break  # the frame before this one has ended it
                else:
                    self._on_frame(lane, frame)
        except EOFError as error:
            self._on_lane_end(lane, str(error))
        except RemoteProtocolError as error:
            logger.error("lane broken server=%s pid=%d error=%s", lane.server, lane.pid, error)
            self.lose_lane(lane)

    def send_kill(self, order: KillOrder) -> bool:
        """Send a kill order; return whether it could be sent."""
        lane = self._lanes.get(order.lane)
        return lane is not None and lane.session.send(order)

    def tell_levels(self) -> None:
        """Tell workers of loggers' levels that have changed: no task may be about to be sent to them."""
        with self._dispatch.deciding:
            self._levels.look()
            if self._levels.version != self._levels_told:
                self._levels_told = self._levels.version
                for lane in self._lanes.values():
                    if lane.state.ready and lane.state.connected:
                        lane.send_levels(self._levels)

    def _is_gone(self, lane: Lane) -> bool:
        return not lane.state.connected

    def _on_lane_end(self, lane: Lane, why: str) -> None:
        # A retired lane has nothing left to lose. One whose worker is known to be dead, or that was not yet ready,
        # has nothing to resume.
        if lane.state is LaneState.RETIRED:
            self.lose_lane(lane)
        elif lane.resumable and lane.state is not LaneState.STARTING and lane.death is None:
            self.cut_lane(lane, why)
        else:
            lane.change(LaneEvent.END)
            self._reactor.unregister(lane.connection)
            self.sharing.lane_gone(lane)
            if lane.death is not None:
                self.lose_lane(lane)
            else:  # the supervisor knows why, and reports it at once if it can
                self._reactor.after(REPORT_SECONDS, partial(self.lose_lane, lane))

    def _on_frame(self, lane: Lane, frame: Frame) -> None:
        dispatch, state = self._dispatch, lane.state
        if frame.type is FrameType.REPORT and state is OPEN:
            self._hearing.on_report(lane, frame, dispatch.scheduler.task_at(lane.id, frame.seq))
        elif frame.type is FrameType.ITEMS and state is OPEN:
            self._inlets.on_items(lane, frame, dispatch.scheduler.task_at(lane.id, frame.seq))
        elif frame.type is FrameType.RECORDS and RECORDS in lane.session.features:
            self._hearing.on_records(lane, frame, dispatch.scheduler.task_at(lane.id, frame.seq))
        elif frame.type is FrameType.MARKS and state is OPEN:
            self._hearing.of(lane).mark(frame, partial(dispatch.scheduler.task_at, lane.id))
        elif frame.type is FrameType.RECALLED and state is OPEN:
            with dispatch.deciding:
                after = dispatch.perform(dispatch.scheduler.recalled(lane.id, frame.seq, frame.count))
                dispatch.watch_time(lane.id)
            self._follow_up(after)
            self._listener.on_renumbered(lane)
        elif frame.type is FrameType.WANTED and lane.offered is not None:
            self._shipping.answer(lane, frame)
        elif frame.type is FrameType.PACKAGES and lane.offered is not None:
            self._shipping.note_packages(lane, frame)
        elif frame.type is FrameType.ABOUT and DETAILS in lane.session.features:
            self._tell_about(lane, frame)
        elif frame.type is FrameType.LACKING and FUNCTIONS in lane.session.features:
            with dispatch.deciding:
                calls: list[Any] = dispatch.scheduler.tasks_on(lane.id)
                lane.send_whole(frame.seq, calls)
            self.watch(lane)
        elif frame.type is FrameType.READY and state is LaneState.STARTING:
            self._on_ready(lane, frame)
        elif frame.type is FrameType.RESUMED and state is LaneState.RESUMING:
            lane.change(LaneEvent.RESUME)
            with dispatch.deciding:
                after = dispatch.perform(dispatch.scheduler.resumed(lane.id, frame.seq, frame.count))
                # It may have been lost with the connection. The number is still that task's: the oldest one of a
                # lane is given back by nobody.
                if dispatch.scheduler.first_seq(lane.id) == lane.unwanted < frame.seq:
                    lane.send_stop(lane.unwanted)
                dispatch.watch_time(lane.id)
            self._follow_up(after)
            self.sharing.lane_resumed(lane)
            self._inlets.lane_resumed(dispatch.scheduler.running_on(lane.id))
            self._listener.on_renumbered(lane)
            logger.info("lane resumed server=%s pid=%d", lane.server, lane.pid)
        else:
            raise RemoteProtocolError(f"{frame.type.name} frame from a worker, out of turn")

    def _on_results(self, lane: Lane, frame: Frame) -> None:
        dispatch, connection = self._dispatch, lane.connection
        _, flags, count, seq, _, _ = frame
        values: Sequence[Any] | None = None
        answers: Sequence[tuple[Payload, bool]] = ()
        if flags & TOGETHER:
            busy_us, data = decode_results_together(frame)
            values = payload.loads_together(data, count)
        else:
            busy_us, answers = decode_results(frame)
        with dispatch.deciding:
            round_trip_us = lane.note_results(count, busy_us)
            calls, decisions = dispatch.scheduler.finished(lane.id, seq, count, busy_us, round_trip_us)
            # New tasks are sent before any user code runs, such as callbacks, so that the worker goes on meanwhile.
            after = dispatch.perform(decisions) if decisions else ()
            # After the tasks, so that these leave first: the worker may be waiting for them, and not for the ACK.
            unsent = lane.resumable and not lane.acknowledge(seq + count, bulk=bool(flags & BULK))
            if dispatch.timed:
                dispatch.watch_time(lane.id)
        if after:
            self._follow_up(after)
        if unsent:
            self.watch(lane)
        if connection.laden or (flags & BULK and is_large(frame)):
            self._rings.want(lane)
        large = lane.kept.large or self._functions.kept.large or self.sharing.repeated.unowned
        if large and not dispatch.scheduler.unsettled:
            self._forget_later()
        if lane.hearing is not None:
            tell = self._listener.on_answers if values is None else self._listener.on_values
            lane.hearing.settle(seq, calls, partial(tell, lane, calls, answers if values is None else values))
        elif values is not None:
            self._listener.on_values(lane, calls, values)
        else:
            self._listener.on_answers(lane, calls, answers)

    def _tell_about(self, lane: Lane, frame: Frame) -> None:
        """Answer a task that asks what is known of it."""
        seq = asked_about(frame)
        # With the lock: the thread that has just sent the task may not have set its deadline yet.
        with self._dispatch.deciding:
            call: Any = self._dispatch.scheduler.task_at(lane.id, seq)
            left = None if call is None else self._listener.seconds_left(lane, call)
        # Without it, as this pickles the user's category. There is no call where a thread asks that its task has
        # left behind.
        details = b"" if call is None else details_of(call, left)
        with self._dispatch.deciding:
            lane.send_details(frame.seq, details)
        self.watch(lane)

    def _forget_later(self) -> None:
        """Check after a while whether the farm is still idle."""
        if not self._will_forget:
            self._will_forget = True
            self._reactor.after(IDLE_SECONDS, partial(self._forget_large, self._dispatch.submitted))

    def _forget_large(self, submitted: int) -> None:
        self._will_forget = False
        dispatch = self._dispatch
        with dispatch.deciding:
            # Busy: the results of those tasks will set the timer again.
            if dispatch.closed or dispatch.scheduler.unsettled:
                return
            # Idle now, but not all the time: a program that submits, waits and submits again would have to send its
            # large functions each time.
            if dispatch.submitted != submitted:
                self._forget_later()
                return
            self._functions.forget_large()
            self.sharing.repeated.forget_unowned()
            lanes = [lane for lane in self._lanes.values() if lane.kept.large and lane.state.connected]
            full = [lane for lane in lanes if not lane.send_forget_large()]
        for lane in full:
            self.watch(lane)

    # -- what sessions tell --------------------------------------------------------------------------------

    def on_output(self, session: Session, frame: Frame) -> None:
        """See `session.SessionCrew`."""
        self._hearing.on_output(session, session.lanes, frame)

    def sending(self) -> AbstractContextManager[None]:
        """See `session.SessionCrew`."""
        return self._dispatch.deciding

    def drain_lane(self, lane: Lane) -> None:
        """See `session.SessionCrew`."""
        if lane.state is LaneState.RETIRED:
            return  # about to end, and the scheduler has forgotten it: a server may announce twice that it drains
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
        """Give up a worker's broken connection, and have another one dialled for up to ``resume_seconds``."""
        if lane.state not in (LaneState.OPEN, LaneState.RESUMING):
            return
        logger.info("connection lost server=%s pid=%d reason=%s", lane.server, lane.pid, why)
        lane.change(LaneEvent.CUT)
        with self._dispatch.deciding:
            # In one hold: a caller's thread that gets the lock next must already find that the lane takes nothing.
            self._reactor.unregister(lane.connection)
            lane.connection.close()
            self._dispatch.scheduler.lane_cut(lane.id)
        self.sharing.lane_gone(lane)
        self._reactor.after(self._resume_seconds, partial(self._give_up_lane, lane, lane.cuts))
        lane.session.lane_cut(lane)

    def _give_up_lane(self, lane: Lane, cuts: int) -> None:
        # The count tells this cut from a later one, which has a timer of its own.
        if lane.state is LaneState.CUT and lane.cuts == cuts:
            self.lose_lane(lane)

    def on_death(self, death: WorkerDied) -> None:
        """See `session.SessionCrew`."""
        lane = self._lanes.get(death.lane)
        if lane is None:
            return
        lane.death = death
        # The report comes over the control connection and may overtake the worker's last results, which are on
        # their way over the lane's. Those count: losing the lane now would run their tasks again.
        if lane.state.connected:
            self._await_end(lane, -1)
        else:
            self.lose_lane(lane)

    def _await_end(self, lane: Lane, received: int) -> None:
        """Wait for the last bytes of a dead worker and the end of its connection, as long as any bytes come."""
        # The end need not come, such as when a process that a task has forked still has the socket open.
        if lane.connection.bytes_received == received:
            self.lose_lane(lane)
        elif lane.state.connected:
            received = lane.connection.bytes_received
            self._reactor.after(REPORT_SECONDS, partial(self._await_end, lane, received))

    # -- they go -------------------------------------------------------------------------------------------

    def retire_lane(self, number: int) -> None:
        """Retire a lane that has run all the tasks it may: hang up, so that a fresh worker replaces its own."""
        lane = self._lanes.get(number)
        if lane is not None:
            # Do not hang up in this same turn: the handler that called this may still be reading the connection.
            lane.change(LaneEvent.RETIRE)
            self._reactor.post(partial(self.lose_lane, lane))

    def lose_lane(self, lane: Lane, *, given_up: bool = False) -> None:
        """Move a lane's tasks elsewhere, report those that may not run again, and ask for another worker."""
        before = lane.state
        if before is LaneState.GONE:
            return
        lane.change(LaneEvent.LOSE)
        death = lane.death
        begun = death.begun if death else None
        with self._dispatch.deciding:
            scheduler = self._dispatch.scheduler
            # In one hold with `lane_lost`: the scheduler must not assign tasks to a lane that cannot be sent any.
            del self._lanes[lane.id], lane.session.lanes[lane.id]
            self._rings.forget(lane.id)
            if before.connected:
                lane.send_bye()
                self._reactor.unregister(lane.connection)
            lane.connection.close()
            # Before `lane_lost`, which empties the lane.
            had = sum(task.calls for task in scheduler.tasks_on(lane.id))
            killed = death.killed if death else -1 if given_up else None
            victim = scheduler.task_at(lane.id, killed)
            # Without a report, the oldest is the one that most likely ran.
            running = scheduler.task_at(lane.id, scheduler.first_seq(lane.id) if begun is None else begun)
            # A kill order names a number. By now that task may have ended, or have come back by a recall so that
            # another task has its number: then the worker was killed for none of the tasks it still had.
            if killed is not None and (victim is None or not self._listener.was_to_be_killed(lane, victim)):
                killed = -1
            decisions = scheduler.lane_lost(lane.id, begun, killed)
            # Cancelled tasks are neither resubmitted nor lost, so they are left out of these figures.
            had -= sum(decision.task.calls for decision in decisions if isinstance(decision, Cancel))
            after = self._dispatch.perform(decisions)
        self._follow_up(after)
        self._listener.on_lost(lane, before, had, [loss for loss in after if isinstance(loss, Lose)], running)
        self._hearing.lane_gone(lane)
        self.sharing.lane_gone(lane)
        failed = before in (LaneState.STARTING, LaneState.STILLBORN)
        # A worker that ended only because its connection broke says nothing about the initializer.
        if death is not None and failed and death.code != CUT_EXIT_CODE:
            self._on_stillborn(death)
        lane.session.lane_lost(lane, failed=failed)

    def _on_stillborn(self, death: WorkerDied) -> None:
        """Count a worker that died before it was ready; report it if too many have and none is ready."""
        self._stillborn += 1
        if self._stillborn >= MAX_STILLBORN and not any(lane.state.ready for lane in self._lanes.values()):
            text = f"{self._stillborn} workers in a row died in their initializer or before"
            self._listener.on_stillborn(f"{text}; the last {last_word(death)}")

    def stop_listening(self) -> None:
        """Stop reading from lanes, as the farm is broken and their answers no longer matter."""
        for lane in self._lanes.values():
            if lane.state.connected and lane.state is not LaneState.RETIRED:  # that one is about to be lost
                lane.change(LaneEvent.END)
                self._reactor.unregister(lane.connection)

    def close(self) -> None:
        """Hang up on all workers, as the farm ends."""
        self._rings.close()
        for lane in self._lanes.values():
            lane.change(LaneEvent.LOSE)
            lane.send_bye()
            lane.connection.close()

    def forget(self) -> None:
        """Forget all lanes, after `close`."""
        for lane in self._lanes.values():
            lane.session.lanes.pop(lane.id, None)
        self._lanes.clear()

    def connections(self) -> list[Connection]:
        """Return the connections to the workers. Any thread may call this."""
        return [*self._rings.connections(), *(lane.connection for lane in list(self._lanes.values()))]
