"""FarmExecutor beside ProcessPoolExecutor: the same work, taking turns, in one run.

Absolute figures follow the machine and its load; the ratios within a round are what counts. Run it as
``nox -s bench``, or as ``python tests/bench/compare.py``, which says with ``--help`` what there is to choose.
"""

import argparse
import datetime as dt
import importlib.metadata
import itertools
import json
import multiprocessing
import os
import platform
import socket
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import beside_ray
import chart
import floors
import numpy as np
import workloads
from machine import (
    DelayingProxy,
    beside_busy_processes,
    cores_awake,
    cpu_seconds,
    descendants,
    peak_memory,
    raw_echo,
    raw_one_way,
    resident_bytes,
    wait_until_idle,
)
from simulate import cost_per_task
from workloads import identity

from farm_executor import FarmExecutor, start_server
from farm_executor.wire import dialling, memfd
from farm_executor.wire.address import parse_address

WORKERS = 2
PUBLISHED = Path(__file__).parents[2] / "docs" / "_static"
POOL, EMBEDDED, SERVERS = "PPE", "embedded", "TCP servers"
FAMILIES = {EMBEDDED: socket.AF_UNIX, SERVERS: socket.AF_INET}
MACHINE = {name: f"bare, {name}" for name in FAMILIES}
"""The columns of what the machine itself takes for the same, see `floors`."""

Measured = dict[str, float]
"""One round's figures by executor; less is better."""


@dataclass
class Row:
    """One line of the table.

    Attributes:
        title: What is measured, with its unit.
        limit: How large a farm's figure may be, relative to ``base``'s; None for what is only reported.
        round: Measures all of it once.
        base: Whose figure is 1.
        scale: What the figures are multiplied with for the table.
    """

    title: str
    limit: float | None
    round: Callable[[], Measured]
    base: str = POOL
    scale: float = 1e6


class Bench:
    """The executors, side by side, and what is measured with them."""

    def __init__(self, stack: ExitStack, *, quick: bool, peers: bool) -> None:
        self.quick, self.peers = quick, peers
        # The pool forks first, before any thread of the farms exists.
        context = multiprocessing.get_context("fork")
        pool = stack.enter_context(ProcessPoolExecutor(WORKERS, mp_context=context))
        pool.submit(identity).result()
        self.pools: dict[str, Executor] = {POOL: pool}
        if peers:
            self.pools |= {name: stack.enter_context(make()) for name, make in PEERS.items()}
        servers = [
            stack.enter_context(start_server("127.0.0.1", 0, background=True, workers=1)).address
            for _ in range(WORKERS)
        ]
        self.farms: dict[str, Executor] = {
            EMBEDDED: stack.enter_context(FarmExecutor(WORKERS)),
            SERVERS: stack.enter_context(FarmExecutor(servers)),
        }
        with mock.patch.object(dialling, "ends", lambda sock: ""):  # as if a tunnel were in between
            self.by_tcp = stack.enter_context(FarmExecutor(servers))
            self.by_tcp.broadcast(identity)
        with mock.patch.object(memfd, "AVAILABLE", False):  # as with an older peer: it has no rings
            self.by_socket = stack.enter_context(FarmExecutor(WORKERS))
            self.by_socket.submit(identity).result()
        self.all = self.pools | self.farms
        self._pids = [os.getpid(), *descendants(os.getpid())]  # without those that some rows keep busy
        for executor in self.all.values():
            for _ in executor.map(identity, range(200)):
                pass

    def n(self, count: int) -> int:
        """So many, or fewer for a quick look."""
        return max(count // 50, 4) if self.quick else count

    def each(self, measure: Callable[[Executor], float], but: str = "") -> Callable[[], Measured]:
        """A round in which every executor does the same, each round in another order: who comes second finds the
        machine's memory and caches as the first has left them. One may be left out, which would take minutes.
        """
        first = itertools.count()

        def round() -> Measured:
            names = [name for name in self.all if name != but]
            start = next(first) % len(names)
            measured = {}
            for name in names[start:] + names[:start]:
                if self.peers:
                    wait_until_idle(self._pids)
                measured[name] = measure(self.all[name])
            return {name: measured[name] for name in names}

        return round

    def rows(self) -> Iterator[Row]:
        """The table."""
        n, each = self.n, self.each

        def at(quantile: float) -> Callable[[Executor], float]:
            def measure(executor: Executor) -> float:
                times = workloads.round_trips(executor, n(2000))
                return times[int(len(times) * quantile)]

            return measure

        def awake(measure: Callable[[], Measured]) -> Callable[[], Measured]:
            def round() -> Measured:
                with cores_awake():
                    return measure()

            return round

        def beside(count: int, measure: Callable[[], Measured]) -> Callable[[], Measured]:
            def round() -> Measured:
                with beside_busy_processes(count):
                    return measure()

            return round

        def with_floor(measure: Callable[[], Measured], floor: Callable[[int], float]) -> Callable[[], Measured]:
            return lambda: measure() | {MACHINE[name]: floor(family) for name, family in FAMILIES.items()}

        def copied(measure: Callable[[], Measured], mebibytes: int) -> Callable[[], Measured]:
            return lambda: measure() | {name: 2 * seconds for name, seconds in floors.copies(mebibytes).items()}

        def compared(measure: Callable[[], Measured]) -> Callable[[], Measured]:
            return lambda: measure() | {"compared": floors.comparisons(8, n(200))}

        def polled(family: int) -> float:
            return floors.echo_of_calls(family, n(2000))

        def slept_for(family: int) -> float:
            return floors.echo_of_calls(family, n(2000), polls=False)

        def beside_raw_echo() -> Measured:
            with cores_awake():
                raw = statistics.median(raw_echo(socket.AF_INET, 64, n(2000)))
                farms = self.farms | {"all by TCP": self.by_tcp}
                return {"raw echo": raw} | {name: at(0.5)(farm) for name, farm in farms.items()}

        yield Row("no-op round trip, p50, cores asleep, us", None, each(at(0.5)))
        yield Row("no-op round trip, p50, us", 0.25, awake(with_floor(each(at(0.5)), polled)))
        yield Row("no-op round trip, p99, us", 1.0, awake(each(at(0.99))))
        for count, busy in enumerate(("one busy process", "two busy processes"), 1):
            busily = beside(count, with_floor(each(at(0.5)), slept_for))
            yield Row(f"no-op round trip beside {busy}, p50, us", None, busily)
        yield Row("processor time of client and workers for a call, us", 1.0, self._call_cpu)
        yield Row("no-op round trip beside a raw TCP echo, us", 2.2, beside_raw_echo, base="raw echo")
        for count in (20_000, 200_000):
            yield Row(f"{count:,} no-op submits and results, us a task", 1 / 15, each(self._flood(count, 1)))
        yield Row("20,000 no-op submits, the submit loop, us a task", 0.3, each(self._flood(20_000, 0)))
        yield Row("client's memory of a pending task, bytes", 0.5, self._pending, scale=1)
        yield Row(
            "map, chunksize 1, 100,000 items, us an item",
            0.01,
            each(lambda e: workloads.map_items(e, n(100_000)), "dask"),
        )
        yield Row(
            "map, the best of some chunk sizes, us an item", 1.0, each(lambda e: workloads.best_map(e, n(200_000)))
        )
        yield Row(
            "map, the best of some chunk sizes, beside mp.Pool, us an item", 1.0, self._beside_pool, "mp.Pool"
        )
        for size in (1, 64, 512):
            if not self.quick or size == 1:
                yield Row(
                    f"numpy {size} MiB there and back, ms",
                    0.25 if size == 1 else 1 / 15,
                    copied(each(lambda e, s=size: workloads.echo(e, s)), size),
                    scale=1e3,
                )
        yield Row(
            "numpy 64 MiB there and back beside the same over the unix socket, ms",
            0.6,
            self._beside_socket,
            base="unix socket",
            scale=1e3,
        )
        yield Row(
            "bytes 64 MiB there and back, ms",
            1 / 8,
            copied(each(lambda e: workloads.echo_bytes(e, 1 if self.quick else 64)), 1 if self.quick else 64),
            scale=1e3,
        )
        for name, family in FAMILIES.items():
            yield Row(
                f"numpy 64 MiB one way beside a raw socket, {name}, ms",
                1 / 0.8,
                self._one_way(name, family, fresh=False),
                "raw",
                1e3,
            )
            yield Row(
                f"numpy 64 MiB one way beside a raw socket that receives into fresh memory, {name}, ms",
                None,
                self._one_way(name, family, fresh=True),
                "raw",
                1e3,
            )
        yield Row(
            "client's peak memory at 64 MiB there and back, payloads", 1.2, self._peak, base="one payload", scale=1
        )
        yield Row(
            "200 calls of a lambda that closes over 8 MiB, ms",
            0.02,
            each(lambda e: workloads.large_closure(e, n(200), 8)),
            scale=1e3,
        )
        yield Row(
            "200 calls of a lambda that closes over a new array of 8 MiB, ms",
            0.012,
            compared(each(lambda e: workloads.array_closure(e, n(200), 8))),
            scale=1e3,
        )
        yield from self._shared()
        yield Row(
            "the first of these, bytes on the wire, MiB",
            1.1,
            self._wire,
            base="workers x 8 MiB",
            scale=1 / (1 << 20),
        )
        if not self.quick:
            yield Row("one task of 2 s and 199 of 10 ms, s", 1.05, self._unbalanced(), base="ideal", scale=1)
            yield Row(
                "CPU-bound, 400 x 20 ms, s", 1 / 0.97, self._beside(4.0, workloads.cpu_bound), base="ideal", scale=1
            )
            yield Row("2,000 tasks of 1 ms over a link of 50 ms, s", 1 / 0.8, self._far_away, base="ideal", scale=1)
        yield Row("fresh interpreter to first result, ms", 0.8, self._start, base="PPE, spawn", scale=1e3)
        yield Row("import, ms", 2.0, self._import, base="import concurrent.futures.process", scale=1e3)
        yield Row(
            "six threads that call and wait, us a call",
            0.5,
            with_floor(
                each(lambda e: workloads.six_threads(e, n(500))), lambda f: floors.echo_in_threads(f, 6, n(500))
            ),
        )
        yield Row(
            "round trip beside a busy thread, us", 0.5, each(lambda e: workloads.beside_a_busy_thread(e, n(150)))
        )
        for name, farm in self.farms.items():
            yield Row(
                f"20,000 no-ops by a channel, {name}, us a task",
                1.15,
                lambda name=name, farm=farm: {
                    "submit and result": workloads.flood(farm, n(20_000))[1],
                    name: workloads.by_channel(farm, n(20_000)),
                },
                base="submit and result",
            )
            yield Row(
                f"pmap of 1,000,000 integers, {name}, ms",
                1.0,
                lambda name=name, farm=farm: {
                    "the farm's best map": workloads.negated_by_map(farm, n(1_000_000)),
                    name: workloads.negated_by_pmap(farm, n(1_000_000)),
                },
                base="the farm's best map",
                scale=1e3,
            )
        yield Row(
            "kill_tasks, until the slot serves again, ms",
            1.0,
            lambda: {"300 ms": 0.3} | {name: workloads.kill_and_serve(farm) for name, farm in self.farms.items()},
            base="300 ms",
            scale=1e3,
        )
        yield Row("the scheduler with 10,000 lanes, us a task", 1.5, self._scale, base="with 10 lanes")

    def long_rows(self) -> Iterator[Row]:
        """What takes minutes."""
        yield Row("memory after 1,000,000 tasks, MiB", 1.03, self._million, "after 100,000", 1 / (1 << 20))
        yield Row("CPU of client, server and workers, idle for ten minutes, s", 0.0005, self._idle, "the time", 1)

    def _shared(self) -> Iterator[Row]:
        """What is sent once, for all workers; a pool gets it with each call, of which it makes four."""
        size = 8 if self.quick else 512
        data = np.arange(size << 17, dtype=np.float64)
        pool, embedded = self.pools[POOL], self.farms[EMBEDDED]

        def calls() -> Measured:
            started = time.perf_counter()
            for _ in range(4):
                pool.submit(workloads.size_of, data).result()
            each = (time.perf_counter() - started) / 4
            return {"200 arguments of PPE": 200 * each, EMBEDDED: workloads.over_shared(embedded, data, 200)}

        def held() -> Measured:
            return {"the object": float(data.nbytes), EMBEDDED: workloads.held_of_shared(embedded, data)}

        yield Row(f"200 calls over a shared array of {size} MiB, ms", 0.01, calls, "200 arguments of PPE", 1e3)
        if self.peers and not beside_ray.why_not():
            title = f"200 calls over a shared array of {size} MiB, beside Ray's put, ms"
            yield Row(title, 0.3, beside_ray.Asked(size), beside_ray.RAY, 1e3)
        if sys.platform == "linux":
            yield Row("memory of its server and workers, MiB", 1.1, held, "the object", 1 / (1 << 20))

    # -- rounds that are not one function of each executor ---------------------------------------------------

    def _flood(self, count: int, which: int) -> Callable[[Executor], float]:
        return lambda executor: workloads.flood(executor, self.n(count))[which]

    def _call_cpu(self) -> Measured:
        # All descendants: the processes of the others sleep meanwhile. The servers' are nobody's here.
        calls, found = self.n(5000), {}
        for name in (POOL, EMBEDDED):
            pids = [os.getpid(), *descendants(os.getpid())]
            before = cpu_seconds(pids)
            workloads.round_trips(self.all[name], calls)
            found[name] = (cpu_seconds(pids) - before) / calls
        return found

    def _pending(self) -> Measured:
        return {name: workloads.pending_bytes(executor, self.n(20_000)) for name, executor in self.all.items()}

    def _beside_pool(self) -> Measured:
        items = self.n(200_000)
        with _MultiprocessingPool() as pool:
            for _ in pool.map(identity, range(200)):  # until its processes are there
                pass
            found = {"mp.Pool": workloads.best_map(pool, items)}
        return found | {name: workloads.best_map(farm, items) for name, farm in self.farms.items()}

    def _one_way(self, name: str, family: int, *, fresh: bool) -> Callable[[], Measured]:
        def round() -> Measured:
            workloads.one_way(self.farms[name], 64)
            return {
                "raw": raw_one_way(family, 64 << 20, fresh=fresh),
                name: workloads.one_way(self.farms[name], 64),
            }

        return round

    def _beside_socket(self) -> Measured:
        size = 1 if self.quick else 64
        both = {"unix socket": self.by_socket, EMBEDDED: self.farms[EMBEDDED]}
        return {name: workloads.echo(farm, size) for name, farm in both.items()}

    def _peak(self) -> Measured:
        size, found = 64 << 20, {"one payload": 1.0}
        for name, farm in self.farms.items():
            peak: list[int] = []
            with peak_memory(peak):
                workloads.echo(farm, 64)
            found[name] = (peak[0] - 2 * size) / size  # beyond the argument and the result
        return found

    def _wire(self) -> Measured:
        with start_server("127.0.0.1", 0, background=True, workers=WORKERS) as server:
            address = parse_address(server.address)
            proxy = DelayingProxy((address.host, address.port), 0.0)
            with FarmExecutor([proxy.address]) as farm:
                workloads.large_closure(farm, self.n(200), 8)
            proxy.close()
        return {"workers x 8 MiB": WORKERS * 8 << 20, SERVERS: proxy.bytes_forth}

    def _unbalanced(self) -> Callable[[], Measured]:
        seeds = iter(range(1000))

        def round() -> Measured:
            durations = workloads.unbalanced_durations(next(seeds))
            ideal = workloads.ideal(durations, WORKERS)
            return {"ideal": ideal} | {name: workloads.unbalanced(e, durations) for name, e in self.all.items()}

        return round

    def _beside(self, ideal: float, measure: Callable[[Executor], float]) -> Callable[[], Measured]:
        return lambda: {"ideal": ideal} | {name: measure(executor) for name, executor in self.all.items()}

    def _far_away(self) -> Measured:
        with start_server("127.0.0.1", 0, background=True, workers=WORKERS) as server:
            address = parse_address(server.address)
            proxy = DelayingProxy((address.host, address.port), 0.025)
            with FarmExecutor([proxy.address]) as farm:
                farm.submit(identity).result()
                seconds = workloads.short_tasks(farm, 2000, 0.001)
            proxy.close()
        here = (
            workloads.short_tasks(self.farms[SERVERS], 200, 0.001) / 200
        )  # what the workers can do: sleeps overshoot
        return {"ideal": here * 2000, SERVERS: seconds}

    def _start(self) -> Measured:
        return {
            "PPE, spawn": workloads.start_up(workloads.SPAWN_PROGRAM),
            EMBEDDED: workloads.start_up(workloads.FARM_PROGRAM),
            MACHINE[EMBEDDED]: floors.two_interpreters(),
        }

    def _import(self) -> Measured:
        nothing = min(workloads.start_up("pass") for _ in range(5))
        return {
            base: min(workloads.start_up(program) for _ in range(5)) - nothing
            for base, program in {
                "import concurrent.futures.process": "import concurrent.futures.process",
                EMBEDDED: "from farm_executor import FarmExecutor",
            }.items()
        }

    def _million(self) -> Measured:
        farm = self.farms[EMBEDDED]
        for _ in range(5):
            workloads.flood(farm, self.n(20_000))
        before = resident_bytes()
        for _ in range(45):
            workloads.flood(farm, self.n(20_000))
        return {"after 100,000": before, EMBEDDED: resident_bytes()}

    def _idle(self) -> Measured:
        workloads.flood(self.farms[EMBEDDED], 1000)
        time.sleep(3)
        pids = [os.getpid(), *descendants(os.getpid())]
        before, seconds = cpu_seconds(pids), self.n(600)
        time.sleep(seconds)
        return {"the time": seconds, EMBEDDED: cpu_seconds(pids) - before}

    def _scale(self) -> Measured:
        tasks = self.n(1_000_000)
        return {"with 10 lanes": cost_per_task(10, tasks), EMBEDDED: cost_per_task(self.n(10_000), tasks)}


# -- peers ------------------------------------------------------------------------------------------------


class _MultiprocessingPool(Executor):
    """multiprocessing.Pool with an executor's methods."""

    def __init__(self) -> None:
        self._pool = multiprocessing.get_context("spawn").Pool(WORKERS)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self._pool.apply_async(fn, args, kwargs, future.set_result, future.set_exception)
        return future

    def map(
        self, fn: Callable[..., Any], *iterables: Any, timeout: Any = None, chunksize: int = 1, **_: Any
    ) -> Any:
        return self._pool.imap(fn, *iterables, chunksize=chunksize)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._pool.terminate()


@contextmanager
def _loky() -> Iterator[Executor]:
    import loky

    with loky.ProcessPoolExecutor(WORKERS) as executor:
        yield executor


@contextmanager
def _dask() -> Iterator[Executor]:
    import distributed

    with distributed.Client(n_workers=WORKERS, threads_per_worker=1, dashboard_address=None) as client:
        yield client.get_executor()


PEERS: dict[str, Callable[[], Any]] = {
    "Pool": _MultiprocessingPool,
    "loky": _loky,
    "dask": _dask,
}

# -- what the documentation shows -------------------------------------------------------------------------


def describe_machine() -> str:
    """The processor and the system."""
    processor = platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            processor = next(
                (line.partition(": ")[2].strip() for line in file if line.startswith("model name")), ""
            )
    return f"{processor}, {platform.system()} {platform.release().partition('-')[0]}"


def versions_of(packages: list[str]) -> dict[str, str]:
    """The version of each package that was measured."""
    return {name: importlib.metadata.version(name) for name in packages}


def publish(figures: dict[str, Any], folder: Path) -> None:
    """Write the figures, and the pictures drawn from them."""
    (folder / "bench.json").write_text(json.dumps(figures, indent=1) + "\n", "utf-8")
    for name, picture in chart.pictures(figures).items():
        (folder / name).write_text(picture, "utf-8")
        print(f"wrote {folder / name}")


# -- the table --------------------------------------------------------------------------------------------


def measure(row: Row, rounds: int) -> dict[str, Any]:
    """Repeat the row; figures are medians, ratios are medians of the rounds' ratios."""
    results = [row.round() for _ in range(rounds)]
    out: dict[str, Any] = {
        "title": row.title,
        "limit": row.limit,
        "base": row.base,
        "figures": {},
        "ratios": {},
        "met": {},
    }
    for name in results[0]:
        values = [result[name] * row.scale for result in results]
        out["figures"][name] = statistics.median(values)
        if name != row.base:
            ratios = sorted(result[name] / result[row.base] for result in results)
            out["ratios"][name] = (statistics.median(ratios), ratios[0], ratios[-1])
    if row.limit is not None:
        out["met"] = {name: ratio[0] <= row.limit for name, ratio in out["ratios"].items() if name in FAMILIES}
    return out


def show(result: dict[str, Any]) -> None:
    """Print a row."""
    limit = result["limit"]
    target = "" if limit is None else f", target <= {limit:.3g}"
    print(f"\n{result['title']}: {result['base']} {result['figures'][result['base']]:.4g}{target}")
    for name, (middle, low, high) in result["ratios"].items():
        verdict = {True: "met", False: "MISSED"}.get(result["met"].get(name), "") if target else ""
        print(
            f"    {name:14}{result['figures'][name]:>12.4g}  x {middle:.3f} ({low:.3f}-{high:.3f})  {verdict}",
            flush=True,
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="less of everything, to see that it works")
    parser.add_argument("--only", default="", help="rows whose title holds this")
    parser.add_argument("--json", help="write the results to this file")
    parser.add_argument(
        "--svg",
        nargs="?",
        type=Path,
        const=PUBLISHED,
        metavar="FOLDER",
        help="measure the rows of the documentation's chart alone, and write bench.json and its pictures there "
        "(default: docs/_static)",
    )
    parser.add_argument(
        "--peers", action="store_true", help="also measure other executors, which must be installed"
    )
    parser.add_argument("--long", action="store_true", help="also what takes minutes")
    options = parser.parse_args()
    about = f"Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} CPUs, {WORKERS} workers"
    print(f"{about}, medians of {options.rounds} rounds; x: relative to the first, median (range)")
    results = []
    shown = {group.title for group in chart.GROUPS}
    with ExitStack() as stack:
        bench = Bench(stack, quick=options.quick, peers=options.peers)
        for row in [*bench.rows(), *(bench.long_rows() if options.long else ())]:
            if options.only in row.title and (not options.svg or row.title in shown):
                results.append(measure(row, options.rounds))
                show(results[-1])
    figures = {
        "about": about,
        "machine": describe_machine(),
        "date": dt.date.today().isoformat(),
        "versions": versions_of(["loky", "distributed"] if options.peers else []),
        "rounds": options.rounds,
        "rows": results,
    }
    if options.json:
        with open(options.json, "w") as file:
            json.dump(figures, file, indent=1)
    if options.svg:
        publish(figures, options.svg)
    judged = [result for result in results if result["met"]]
    missed = [result["title"] for result in results if not all(result["met"].values())]
    print(
        f"\n{len(judged) - len(missed)} of {len(judged)} rows with a target met"
        + "".join(f"\n  missed: {title}" for title in missed)
    )


if __name__ == "__main__":
    sys.exit(main())
