"""FarmExecutor beside ProcessPoolExecutor: the same work, taking turns, in one run.

Absolute figures follow the machine and its load; the ratios within a round are what counts. Run it as
``nox -s bench`` or ``python tests/bench/compare.py [--rounds N] [--quick]``.
"""

import argparse
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import ExitStack
from typing import Any

import numpy as np

from farm_executor import FarmExecutor, start_server

WORKERS = 2


def identity(value: Any = None) -> Any:
    """The least work there is."""
    return value


def round_trip(executor: Executor, calls: int) -> float:
    """Median seconds of a call whose result is awaited."""
    times = []
    for _ in range(calls):
        started = time.perf_counter()
        executor.submit(identity, 1).result()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def flood(executor: Executor, calls: int) -> float:
    """Seconds per call when all are submitted first."""
    started = time.perf_counter()
    futures = [executor.submit(identity, i) for i in range(calls)]
    for i, future in enumerate(futures):
        assert future.result() == i
    return (time.perf_counter() - started) / calls


def map_items(executor: Executor, calls: int) -> float:
    """Seconds per item of `map` with its default chunk size."""
    started = time.perf_counter()
    assert list(executor.map(identity, range(calls))) == list(range(calls))
    return (time.perf_counter() - started) / calls


def echo(executor: Executor, mebibytes: int) -> float:
    """Seconds for an array there and back."""
    array = np.arange(mebibytes << 17, dtype=np.float64)
    started = time.perf_counter()
    result = executor.submit(identity, array).result()
    elapsed = time.perf_counter() - started
    assert result[-1] == array[-1]
    return elapsed


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="less of everything, to see that it works")
    options = parser.parse_args()
    scale = 20 if options.quick else 1
    workloads: dict[str, Callable[[Executor], float]] = {
        "round trip of a no-op": lambda executor: round_trip(executor, 1000 // scale),
        "20,000 no-op submits, per call": lambda executor: flood(executor, 20_000 // scale),
        "200,000 no-op submits, per call": lambda executor: flood(executor, 200_000 // scale),
        "map of 20,000 items, per item": lambda executor: map_items(executor, 20_000 // scale),
        "64 MiB numpy echo": lambda executor: echo(executor, 64 // scale),
    }
    context = multiprocessing.get_context("fork")
    with ExitStack() as stack:
        # The pool forks first, before any thread of the farms exists.
        pool = stack.enter_context(ProcessPoolExecutor(WORKERS, mp_context=context))
        pool.submit(identity).result()
        servers = [
            stack.enter_context(start_server("127.0.0.1", 0, background=True, workers=1)) for _ in range(WORKERS)
        ]
        executors: dict[str, Executor] = {
            "ProcessPoolExecutor": pool,
            "embedded": stack.enter_context(FarmExecutor(WORKERS)),
            "TCP servers": stack.enter_context(FarmExecutor([server.address for server in servers])),
        }
        for executor in executors.values():
            list(executor.map(identity, range(200)))
        print(f"Python {sys.version.split()[0]}, {os.cpu_count()} CPUs, {WORKERS} workers, {options.rounds} rounds")
        print(f"{'microseconds, median of rounds':34}{'':>10}{'':>21}{'time relative to it, median (range)':>44}")
        print(f"{'workload':34}" + "".join(f"{name:>22}" for name in executors))
        for title, workload in workloads.items():
            rounds = [
                {name: workload(executor) for name, executor in executors.items()} for _ in range(options.rounds)
            ]
            base = [result["ProcessPoolExecutor"] for result in rounds]
            cells = [f"{statistics.median(base) * 1e6:.1f}"]
            for name in list(executors)[1:]:
                ratios = [result[name] / reference for result, reference in zip(rounds, base, strict=True)]
                cells.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})")
            print(f"{title:34}" + "".join(f"{cell:>22}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
