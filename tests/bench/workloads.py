"""What is measured: each workload takes an executor and returns seconds, or what else it says. Less is better."""

import os
import random
import statistics
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor
from operator import neg
from typing import Any

import numpy as np

from farm_executor import TaskKilledError, lfarm


def identity(value: Any = None) -> Any:
    """The least work there is."""
    return value


def sleep(seconds: float) -> None:
    """Take time and no CPU."""
    time.sleep(seconds)


def burn(seconds: float) -> None:
    """Take so much CPU time."""
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


def size_of(value: Any) -> int:
    """Take a large value and return a small one."""
    return len(value)


def round_trips(executor: Executor, calls: int) -> list[float]:
    """Seconds of each call whose result is awaited, sorted."""
    times = []
    for _ in range(calls):
        started = time.perf_counter()
        executor.submit(identity, 1).result()
        times.append(time.perf_counter() - started)
    return sorted(times)


def flood(executor: Executor, calls: int) -> tuple[float, float]:
    """Seconds per call when all are submitted first: of the submits, and of all."""
    started = time.perf_counter()
    futures = [executor.submit(identity, i) for i in range(calls)]
    submitted = time.perf_counter()
    for i, future in enumerate(futures):
        assert future.result() == i
    return (submitted - started) / calls, (time.perf_counter() - started) / calls


def pending_bytes(executor: Executor, calls: int) -> float:
    """Bytes of the client's memory for each task that waits: all workers are kept busy meanwhile."""
    blockers = [executor.submit(sleep, 1.5) for _ in range(8)]
    time.sleep(0.2)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    futures = [executor.submit(identity, i) for i in range(calls)]
    held = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    for future in [*blockers, *futures]:
        future.result()
    return held / calls


def map_items(executor: Executor, items: int, chunksize: int = 1) -> float:
    """Seconds per item of `map`."""
    started = time.perf_counter()
    count = 0
    for result in executor.map(identity, range(items), chunksize=chunksize):
        assert result == count
        count += 1
    assert count == items
    return (time.perf_counter() - started) / items


def best_map(executor: Executor, items: int) -> float:
    """The same with the best of some chunk sizes."""
    return min(map_items(executor, items, chunksize) for chunksize in (100, 1000, 5000))


def echo(executor: Executor, mebibytes: int) -> float:
    """Seconds for an array there and back, several times one after the other if it is small."""
    return _echo(executor, np.arange(mebibytes << 17, dtype=np.float64), max(128 // mebibytes, 1))


def echo_bytes(executor: Executor, mebibytes: int) -> float:
    """Seconds for bytes there and back, likewise."""
    return _echo(executor, random.Random(0).randbytes(mebibytes << 20), max(128 // mebibytes, 1))


def _echo(executor: Executor, data: Any, times: int) -> float:
    started = time.perf_counter()
    for _ in range(times):
        result = executor.submit(identity, data).result()
        assert result[-1] == data[-1]
        del result
    return (time.perf_counter() - started) / times


def one_way(executor: Executor, mebibytes: int) -> float:
    """Seconds for an array there, and a number back, several times one after the other."""
    array = np.arange(mebibytes << 17, dtype=np.float64)
    started = time.perf_counter()
    for _ in range(4):
        assert executor.submit(size_of, array).result() == len(array)
    return (time.perf_counter() - started) / 4


def large_closure(executor: Executor, calls: int, mebibytes: int) -> float:
    """Seconds for calls of one function that closes over so many bytes."""
    return _calls_over(executor, calls, random.Random(0).randbytes(mebibytes << 20))


def array_closure(executor: Executor, calls: int, mebibytes: int) -> float:
    """Seconds for calls of one function that closes over an array, which might change between them."""
    return _calls_over(executor, calls, np.arange(mebibytes << 17, dtype=np.float64))


def _calls_over(executor: Executor, calls: int, data: Any) -> float:
    if isinstance(executor, ProcessPoolExecutor):
        from functools import partial

        fn: Callable[[int], int] = partial(_take, data)
    else:
        fn = lambda i: len(data) + i  # noqa: E731 - the workload is a lambda
    started = time.perf_counter()
    futures = [executor.submit(fn, i) for i in range(calls)]
    assert [future.result() for future in futures] == [len(data) + i for i in range(calls)]
    return time.perf_counter() - started


def _take(data: Any, i: int) -> int:
    return len(data) + i


def unbalanced_durations(seed: int) -> list[float]:
    """One task of 2 s and 199 of 10 ms, in some order."""
    durations = [2.0] + [0.01] * 199
    random.Random(seed).shuffle(durations)
    return durations


def ideal(durations: list[float], workers: int) -> float:
    """Seconds if each task, in this order, begins the moment that a worker is free."""
    free = [0.0] * workers
    for duration in durations:
        free.sort()
        free[0] += duration
    return max(free)


def unbalanced(executor: Executor, durations: list[float]) -> float:
    """Seconds for tasks of these durations."""
    started = time.perf_counter()
    for future in [executor.submit(sleep, duration) for duration in durations]:
        future.result()
    return time.perf_counter() - started


def cpu_bound(executor: Executor) -> float:
    """Seconds for 400 tasks of 20 ms of CPU time."""
    started = time.perf_counter()
    for future in [executor.submit(burn, 0.02) for _ in range(400)]:
        future.result()
    return time.perf_counter() - started


def short_tasks(executor: Executor, tasks: int, seconds: float) -> float:
    """Seconds for so many short tasks."""
    started = time.perf_counter()
    for future in [executor.submit(sleep, seconds) for _ in range(tasks)]:
        future.result()
    return time.perf_counter() - started


def six_threads(executor: Executor, calls: int) -> float:
    """Seconds per call when six threads call and wait."""

    def work() -> None:
        for _ in range(calls):
            executor.submit(identity, 1).result()

    threads = [threading.Thread(target=work) for _ in range(6)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return (time.perf_counter() - started) / calls / 6


def beside_a_busy_thread(executor: Executor, calls: int) -> float:
    """Median seconds of a call while another thread of the client runs Python code without a pause."""
    over = False

    def spin() -> None:
        while not over:
            sum(range(100))

    spinner = threading.Thread(target=spin)
    spinner.start()
    try:
        return statistics.median(round_trips(executor, calls))
    finally:
        over = True
        spinner.join()


def by_channel(farm: Executor, calls: int) -> float:
    """Seconds per task of submitting many to a channel and then receiving the results."""
    with lfarm.use_kernel(lfarm.make_kernel(farm)), lfarm.make_channel() as channel:
        started = time.perf_counter()
        for number in range(calls):
            lfarm.submit_task(channel, identity, number)
        received = [lfarm.receive_result(channel) for _ in range(calls)]
        elapsed = time.perf_counter() - started
    assert sorted(received) == list(range(calls))
    return elapsed / calls


def negated_by_map(farm: Executor, items: int) -> float:
    """Seconds of `map` over integers, with the best of some chunk sizes."""
    numbers, elapsed = list(range(items)), []
    for chunksize in (1, 1000, 4000):
        started = time.perf_counter()
        assert list(farm.map(neg, numbers, chunksize=chunksize))[-1] == 1 - items
        elapsed.append(time.perf_counter() - started)
    return min(elapsed)


def negated_by_pmap(farm: Executor, items: int) -> float:
    """Seconds of `lfarm.pmap` over integers."""
    numbers = list(range(items))
    with lfarm.use_kernel(lfarm.make_kernel(farm)):
        started = time.perf_counter()
        assert lfarm.pmap(neg, numbers)[-1] == 1 - items
        return time.perf_counter() - started


def kill_and_serve(farm: Any) -> float:
    """Seconds of killing a task in C on each worker, until all workers have run another task."""
    futures = [farm.with_options(category="victims").submit(sum, range(10**12)) for _ in range(2)]
    while farm.kill_tasks("victims", dry_run=True) < 2:
        time.sleep(0.001)
    started = time.perf_counter()
    assert farm.kill_tasks("victims") == 2
    farm.broadcast(identity, 1)
    elapsed = time.perf_counter() - started
    assert all(isinstance(future.exception(), TaskKilledError) for future in futures)
    return elapsed


def start_up(program: str) -> float:
    """Seconds of a fresh interpreter that runs this program.

    It may keep compiled modules, as an installed package has them: to compile all of this one takes longer than the
    rest.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)
    return time.perf_counter() - started


FARM_PROGRAM = "from farm_executor import FarmExecutor\nwith FarmExecutor(2) as e: e.submit(pow, 2, 2).result()"
SPAWN_PROGRAM = (
    "import multiprocessing\nfrom concurrent.futures import ProcessPoolExecutor\n"
    "if __name__ == '__main__':\n"
    " with ProcessPoolExecutor(2, multiprocessing.get_context('spawn')) as e: e.submit(pow, 2, 2).result()"
)


def over_shared(executor: Any, data: Any, calls: int) -> float:
    """Seconds of that many calls over one shared object, which the workers have mapped before."""
    with executor.share(data) as shared:
        executor.broadcast(size_of, shared)
        started = time.perf_counter()
        futures = [executor.submit(size_of, shared) for _ in range(calls)]
        for future in futures:
            assert future.result() == len(data)
        return time.perf_counter() - started


def held_of_shared(executor: Any, data: Any) -> float:
    """Bytes that the workers, and with them their server, hold of a shared object that all have read."""
    before = sum(executor.broadcast(_held))
    with executor.share(data, frozen=True) as shared:
        executor.broadcast(_sum, shared)
        return float(sum(executor.broadcast(_held)) - before)


def _sum(data: Any) -> float:
    return float(data.sum())


def _held() -> int:
    """This worker's private memory, and its part of what it shares with others."""
    with open("/proc/self/smaps_rollup") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("Pss:"))
