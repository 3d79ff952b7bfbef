"""What grows as a farm grows, in lanes, servers, sessions and tasks: ``python tests/bench/scale.py``.

Each row is one cost at three sizes, ten times as large from one to the next where the machine has room for that.
The last column is the power of the size by which the cost grows: 0 is flat, 1 in proportion. Costs of the client
are processor time, so that another program beside it disturbs them little; those with real servers are the clock's.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))
from contract.gate import Gate
from contract.tasks import pass_gate
from simulate import cost_per_task, farm_costs
from workloads import pending_bytes

from farm_executor import FarmExecutor, start_server

US, MS = 1e6, 1e3


def main() -> None:
    """Print a row for each cost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of each size")
    parser.add_argument("--only", default="", help="rows that have this in their names")
    options = parser.parse_args()
    print("| what | at | takes | grows as size to the |\n| --- | --- | --- | --- |")
    for what, sizes, measure, unit, factor in rows():
        if options.only in what:
            sizes = [max(size // 10, 1) for size in sizes] if options.quick else sizes
            costs = [measure(size) * factor for size in sizes]
            power = math.log(max(costs[-1], 1e-9) / max(costs[0], 1e-9)) / math.log(sizes[-1] / sizes[0])
            at, takes = (", ".join(f"{one:,.4g}" for one in column) for column in (sizes, costs))
            print(f"| {what} | {at} | {takes} {unit} | {power:.2f} |", flush=True)


def rows() -> Iterator[tuple[str, list[int], Callable[[int], float], str, float]]:
    """Yield each row: its name, the sizes, what gives the cost at one of them, its unit, and that unit's factor."""
    simulated: dict[int, dict[str, float]] = {}

    def of_farm(name: str) -> Callable[[int], float]:
        def measure(servers: int) -> float:
            if servers not in simulated:
                simulated[servers] = farm_costs(servers, 10, 20 * servers)
            return simulated[servers][name]

        return measure

    servers = [10, 100, 1_000]
    yield "servers of ten lanes: a task in the scheduler", servers, _of_scheduler, "us", US
    yield "servers of ten lanes: a heartbeat, all lanes busy", servers, of_farm("heartbeat of busy lanes"), "ms", MS
    yield "servers of ten lanes: statistics hold the lock", servers, of_farm("statistics"), "ms", MS
    yield "servers of ten lanes: a sent task is asked for", servers, of_farm("cancel"), "us", US
    pending = [10_000, 100_000, 1_000_000]
    yield "pending tasks: memory of each", pending, _pending_memory, "bytes", 1
    yield "pending tasks: submit, run and settle each", pending, _flood, "us", US
    yield "pending tasks: cancel each", pending, _cancel, "us", US
    yield "pending tasks: statistics", pending, _statistics_beside, "ms", MS
    slots = [2, 50, 200]
    real: dict[int, dict[str, float]] = {}

    def of_slots(name: str) -> Callable[[int], float]:
        def measure(slots: int) -> float:
            if slots not in real:
                real[slots] = _slots(slots)
            return real[slots][name]

        return measure

    yield "slots of a server: until all workers are ready, for each", slots, of_slots("up"), "ms", MS
    yield "slots of a server: a round trip", slots, of_slots("trip"), "us", US
    yield "slots of a server: a no-op of a flood", slots, of_slots("flood"), "us", US
    yield "slots of a server: until it has ended", slots, of_slots("end"), "ms", MS
    yield "sessions of a server: a round trip of one more", [1, 8, 64], _trip_among, "us", US


def _of_scheduler(servers: int) -> float:
    return cost_per_task(10 * servers, 200_000)


@contextmanager
def _stuck() -> Iterator[tuple[FarmExecutor, Gate]]:
    """A farm whose one worker waits at a gate, so that all tasks that follow are pending."""
    with FarmExecutor(1) as farm, Gate() as gate:
        farm.submit(pass_gate, gate.address)
        gate.wait_for_arrivals()
        yield farm, gate


def _pending_memory(tasks: int) -> float:
    with FarmExecutor(1) as farm:
        return pending_bytes(farm, tasks)


def _flood(tasks: int) -> float:
    with FarmExecutor(1) as farm:
        farm.submit(abs, 1).result()
        began = time.perf_counter()
        futures = [farm.submit(abs, number) for number in range(tasks)]
        for future in futures:
            future.result()
        return (time.perf_counter() - began) / tasks


def _cancel(tasks: int) -> float:
    with _stuck() as (farm, gate):
        futures = [farm.submit(abs, number) for number in range(tasks)]
        began = time.process_time()
        for future in futures:
            future.cancel()
        cost = (time.process_time() - began) / tasks
        gate.open()
    return cost


def _statistics_beside(tasks: int) -> float:
    with _stuck() as (farm, gate):
        futures = [farm.submit(abs, number) for number in range(tasks)]
        cost = _least(farm.statistics)
        for future in futures:
            future.cancel()
        gate.open()
    return cost


def _slots(slots: int) -> dict[str, float]:
    server = start_server("127.0.0.1", 0, background=True, workers=slots)
    with FarmExecutor(server.address) as farm:
        began = time.perf_counter()
        farm.connect(timeout=60)
        while sum(len(one.workers) for one in farm.statistics().servers) < slots:
            time.sleep(0.005)
        assert len(set(farm.broadcast(os.getpid))) == slots
        up = (time.perf_counter() - began) / slots
        trip = _median_trip(farm)
        began = time.perf_counter()
        wait([farm.submit(abs, number) for number in range(20_000)])
        flood = (time.perf_counter() - began) / 20_000
    began = time.perf_counter()
    server.end()
    return {"up": up, "trip": trip, "flood": flood, "end": time.perf_counter() - began}


def _trip_among(sessions: int) -> float:
    with ExitStack() as stack:
        server = stack.enter_context(start_server("127.0.0.1", 0, background=True, workers=sessions + 1))
        for _ in range(sessions):
            stack.enter_context(FarmExecutor(server.address, max_workers=1)).submit(abs, 1).result()
        return _median_trip(stack.enter_context(FarmExecutor(server.address, max_workers=1)))


def _median_trip(farm: FarmExecutor) -> float:
    trips = []
    for _ in range(1_000):
        began = time.perf_counter()
        farm.submit(abs, 1).result()
        trips.append(time.perf_counter() - began)
    return sorted(trips)[len(trips) // 2]


def _least(call: Callable[[], Any]) -> float:
    took = []
    for _ in range(5):
        began = time.process_time()
        call()
        took.append(time.process_time() - began)
    return min(took)


if __name__ == "__main__":
    main()
