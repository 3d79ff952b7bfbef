"""Without sockets: what a task costs the scheduler with few lanes and with many, and a large farm its client."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.append(str(Path(__file__).parents[1]))
from fake_network import READ, Connection, Network

from farm_executor.core.liveness import encode_counts
from farm_executor.core.scheduler import Scheduler
from farm_executor.core.task import Assign, Task


def cost_per_task(lanes: int, tasks: int) -> float:
    """Seconds of CPU time that the scheduler takes for each task, from its submit to its end; each lasts 50 us."""
    scheduler = Scheduler()
    work: list[tuple[int, int, int]] = []

    def note(decisions: list) -> None:
        work.extend((d.lane, d.seq, len(d.tasks)) for d in decisions if isinstance(d, Assign))

    made = [Task(number) for number in range(tasks)]
    started = time.process_time()
    for lane in range(lanes):
        note(scheduler.lane_up(lane))
    for task in made:
        note(scheduler.submit(task))
    position = 0
    while position < len(work):
        lane, seq, count = work[position]
        position += 1
        note(scheduler.finished(lane, seq, count, 50.0 * count)[1])
    elapsed = time.process_time() - started
    assert not scheduler.unsettled
    return elapsed / tasks


def farm_costs(servers: int = 1_000, slots: int = 10, tasks: int = 20_000) -> dict[str, float]:
    """What a large farm costs its client, with the real engine and no network.

    Returns:
        The seconds of the I/O thread for one heartbeat with all its answers, of idle lanes and of busy ones; the
        longest that `statistics` holds the engine's lock; and those of asking for one task back that has been sent.
    """
    network = Network(slots=slots, servers=servers)
    try:
        network.connect_all()
        engine, dispatch = network.engine, network.engine._dispatch
        for _ in range(tasks):
            network.submit()
        idle = [_heartbeat(network) for _ in range(10)]
        busy = []
        for _ in range(10):
            for lane in engine._lanes.values():
                lane.connection.bytes_sent += 100
                lane.connection.bytes_received += 100
            busy.append(_heartbeat(network))
        longest = []
        for _ in range(5):  # the garbage collector may strike in any of them
            holds: list[float] = []
            with _timed(dispatch.looking, holds):
                engine.statistics()
            longest.append(max(holds))
        task = next(task for lane in engine._lanes for task in dispatch.scheduler.tasks_on(lane))
        started = time.process_time()
        for _ in range(1000):
            dispatch.scheduler.take_back(task, lambda: False)
        return {
            "heartbeat": min(idle),
            "heartbeat of busy lanes": min(busy),
            "statistics": min(longest),
            "cancel": (time.process_time() - started) / 1000,
        }
    finally:
        network.close()


def _heartbeat(network: Network) -> float:
    """The seconds of one heartbeat: all servers are asked, and answer that all bytes have arrived."""

    def send(connection: Connection, buffers: list[Any]) -> bool:
        """As costly as a socket's: one system call."""
        connection.bytes_sent += os.write(nowhere, b"".join(buffers))
        return True

    sessions = {lane.session for lane in network.engine._lanes.values()}
    timers, network.reactor.timers[:] = list(network.reactor.timers), []
    with open(os.devnull, "wb") as sink, mock.patch.object(Connection, "send", send):
        nowhere = sink.fileno()
        started = time.process_time()
        for _, action in timers:
            action()
        elapsed = time.process_time() - started
    for session in sessions:
        of_all = ((lane.id, lane.connection) for lane in session.lanes.values())
        session.control.say(encode_counts([(id, end.bytes_sent, end.bytes_received) for id, end in of_all], 1))
    handlers = [network.reactor.handlers[session.control] for session in sessions]
    started = time.process_time()
    for handler in handlers:
        handler(READ)
    return elapsed + time.process_time() - started


@contextmanager
def _timed(lock: Any, holds: list[float]) -> Iterator[None]:
    """Note for how long each hold of the lock lasts."""
    kind = type(lock)
    enter, leave, began = kind.__enter__, kind.__exit__, [0.0]

    def entered(self: Any) -> None:
        enter(self)
        began[0] = time.thread_time()

    def left(self: Any, *error: object) -> None:
        holds.append(time.thread_time() - began[0])
        leave(self, *error)

    with mock.patch.object(kind, "__enter__", entered), mock.patch.object(kind, "__exit__", left):
        yield


if __name__ == "__main__":
    for name, seconds in farm_costs().items():
        print(f"{name}: {seconds * 1e3:.3f} ms")
