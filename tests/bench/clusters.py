"""What calls cost on real clusters, beside a server of one's own and the clusters' own executors, as a table.

    python tests/bench/clusters.py                  all of it, each part beside a cluster that is started for it
    python tests/bench/clusters.py dask joblib      some parts: dask, ray, slurm, joblib
    python tests/bench/clusters.py --on ADDRESS     a cluster that is there, such as dask://scheduler:8786

``nox -s clusters`` installs what it needs. What can be compared are the ratios within one run; their sides take
turns. Times are the best of several rounds, as a busy machine makes all others worse.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from engines.alone import ON

from farm_executor import AddressError, FarmExecutor, start_server

PARTS = ("dask", "ray", "slurm", "joblib")
WORKERS = 2
ROUND_TRIPS = 1_000
CALLS = 10_000
ROUNDS = 5
STARTS = 3
FIRST = {"dask": 3.0, "ray": 2.0, "slurm": 2.0}  # seconds
TIMES = {"dask": 300, "ray": 100}  # as fast as the engine's own
TUNNEL_TIMES = 50
TUNNEL_LARGE = 1.5  # as long as the engine itself needs


BARE: dict[str, Callable[[str], list[str]]] = {
    "dask": lambda address: _python(
        f"import distributed; print(distributed.Client({_schedulers(address)!r}).submit(abs, -1).result())"
    ),
    "ray": lambda address: _python(
        f"import ray; ray.init({_rays(address)!r}); print(ray.get(ray.remote(lambda: abs(-1)).remote()))"
    ),
    "slurm": lambda address: ["srun", "true"],
}


def _python(program: str) -> list[str]:
    return [sys.executable, "-c", program]


def _schedulers(address: str) -> str:
    return address.replace("dask:", "tcp:")


def _rays(address: str) -> str:
    return "auto" if address == "ray://auto" else address


class Figure(NamedTuple):
    """One line of the table."""

    figure: str
    target: str
    measured: str
    met: bool | None = None

    def __str__(self) -> str:
        verdict = {True: "yes", False: "NO", None: ""}[self.met]
        return f"| {self.figure} | {self.target} | {self.measured} | {verdict} |"


def round_trip(executor: Executor) -> float:
    """The median microseconds from submit to the result."""
    taken = []
    for _ in range(ROUND_TRIPS):
        begin = time.perf_counter()
        executor.submit(abs, -1).result()
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken) * 1e6


def rate(results: Callable[[], Any]) -> float:
    """Calls per second of one map over short calls."""
    begin = time.perf_counter()
    assert sum(results()) == CALLS * (CALLS + 1) // 2
    return CALLS / (time.perf_counter() - begin)


def our_rate(farm: FarmExecutor) -> float:
    return max(rate(lambda: farm.map(abs, range(-CALLS, 0))) for _ in range(ROUNDS))


def started(address: str) -> tuple[FarmExecutor, float]:
    """A farm, and the seconds that it took until the first result."""
    begin = time.perf_counter()
    farm = FarmExecutor(address)
    farm.submit(abs, -1).result()
    return farm, time.perf_counter() - begin


def bare_start(kind: str, address: str) -> float:
    """The seconds that the engine needs for a first result of its own, without anything of ours."""
    begin = time.perf_counter()
    subprocess.run(BARE[kind](address), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - begin


def all_up(farm: FarmExecutor) -> None:
    farm.submit(abs, -1).result()
    while sum(one.slots for one in farm.statistics().servers if one.up) < WORKERS:
        time.sleep(0.05)
    farm.broadcast(os.getpid)


def on_cluster(address: str) -> Iterator[Figure]:
    """The figures of a cluster that is there; its address has no options."""
    kind = address.partition(":")[0]
    wanted = f"{address}?workers={WORKERS}&per=1"
    first, bare = [], []
    for _ in range(STARTS):
        farm, seconds = started(wanted)
        first.append(seconds)
        farm.shutdown()
        bare.append(bare_start(kind, address))
    ours, theirs = (", ".join(f"{seconds:.2f}" for seconds in each) + " s" for each in (first, bare))
    met = statistics.median(first) <= FIRST[kind]
    yield Figure(f"{kind}: first result from an idle cluster", f"<= {FIRST[kind]:.0f} s", ours, met)
    yield Figure(f"{kind}: the engine's own, of a process that has just begun", "", theirs)
    with (
        start_server("127.0.0.1", 0, background=True, workers=WORKERS) as server,
        FarmExecutor(server.address) as own,
    ):
        all_up(own)
        with started(wanted)[0] as farm:
            all_up(farm)
            # The sides take turns, and each round is compared with itself.
            pairs = [(round_trip(farm), round_trip(own)) for _ in range(ROUNDS)]
            ratio = statistics.median(ours / theirs for ours, theirs in pairs)
            best, own_best = (min(side) for side in zip(*pairs, strict=True))
            told = f"{ratio:.2f} x: {best:.0f} us beside {own_best:.0f} us"
            yield Figure(f"{kind}: round trip beside an own TCP server", "<= 1.2 x", told, ratio <= 1.2)
            calls = our_rate(farm)
            yield Figure(f"{kind}: {CALLS:,} short calls by map", "", f"{calls:,.0f} calls/s")
    tunnel = through_the_tunnel(wanted)
    for name, theirs in THEIRS.get(kind, lambda address: {})(address).items():
        target = TIMES[kind] if name in COMPARED else None
        told = f"{calls / theirs:,.0f} x: {theirs:,.0f} calls/s"
        yield Figure(
            f"{kind}: the same, ours beside {name}",
            f">= {target} x" if target else "",
            told,
            None if target is None else calls >= target * theirs,
        )
        if tunnel and target:
            told = f"{tunnel / theirs:,.0f} x: {tunnel:,.0f} calls/s"
            fast = tunnel >= TUNNEL_TIMES * theirs
            yield Figure(f"{kind}: the same through the tunnel", f">= {TUNNEL_TIMES} x", told, fast)
    if tunnel:
        from bench import tunnels

        for name, taken, theirs in tunnels.there_and_back(kind, address):
            target = TUNNEL_LARGE if "tunnel" in name.split()[-1] and "bare" not in name else None
            yield Figure(
                f"{kind}: an array of 64 MiB there and back {name}, beside the engine's own way",
                f"<= {target} x" if target else "",
                f"{taken / theirs:.2f} x: {taken:.0f} ms beside {theirs:.0f} ms",
                None if target is None else taken <= target * theirs,
            )


def through_the_tunnel(address: str) -> float:
    """Calls per second through the engine's own connections; 0 where there is no such way."""
    try:
        farm = FarmExecutor(f"{address}&via=engine")
    except AddressError:
        return 0.0
    with farm:
        all_up(farm)
        return our_rate(farm)


def dasks_own(address: str) -> dict[str, float]:
    from distributed import Client

    with Client(_schedulers(address)) as client:
        executor = client.get_executor(pure=False)
        executor.submit(abs, -1).result()
        return {"Client.get_executor().map": rate(lambda: executor.map(abs, range(-CALLS, 0)))}


def rays_own(address: str) -> dict[str, float]:
    import ray
    from ray.util.multiprocessing import Pool

    ray.init(_rays(address), log_to_driver=False, logging_level="ERROR")
    remote = ray.remote(lambda number: abs(number))
    ray.get(remote.remote(-1))
    found = {"ray.remote": rate(lambda: ray.get([remote.remote(number) for number in range(-CALLS, 0)]))}
    with Pool(WORKERS) as pool:
        pool.map(abs, range(WORKERS))
        found["ray's Pool.map, chunksize=1"] = rate(lambda: pool.map(abs, range(-CALLS, 0), chunksize=1))
        found["ray's Pool.map, in chunks of its own"] = rate(lambda: pool.map(abs, range(-CALLS, 0)))
    ray.shutdown()
    return found


THEIRS: dict[str, Callable[[str], dict[str, float]]] = {"dask": dasks_own, "ray": rays_own}
COMPARED = ("Client.get_executor().map", "ray.remote")


def joblibs() -> Iterator[Figure]:
    """scikit-learn and large arrays beside loky."""
    from bench import backends

    for name, work, most in (
        ("grid search of scikit-learn", backends.search, 1.1),
        ("8 sums of one array of 64 MiB", backends.sums, 1.5),
    ):
        seconds = backends.in_turns(work, ROUNDS)
        loky, farm = (min(seconds[backend]) for backend in ("loky", "farm"))
        told = f"{farm / loky:.2f} x: {farm:.3f} s beside {loky:.3f} s"
        yield Figure(f"joblib: {name}, beside loky, best of {ROUNDS}", f"<= {most} x", told, farm <= most * loky)


def main() -> int:
    """Print the table; the exit code says whether all that was measured meets its target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; all of them by default")
    parser.add_argument("--on", default=os.environ.get(ON, ""), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.on:
        return show(on_cluster(options.on))
    print("| figure | target | measured | met |\n| --- | --- | --- | --- |", flush=True)
    failed = 0
    for part in options.parts or PARTS:
        if part == "joblib":
            failed += show(joblibs())
        else:
            cluster = Path(__file__).parents[1] / "engines" / f"{part}_cluster.py"
            failed += bool(subprocess.run([sys.executable, cluster, sys.executable, __file__]).returncode)
    return min(failed, 1)


def show(figures: Iterator[Figure]) -> int:
    failed = 0
    for figure in figures:
        print(figure, flush=True)
        failed += figure.met is False
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
