"""What calls cost on a cluster, beside a server of one's own and beside the cluster's own executor, in one run.

    python tests/bench/clusters.py dask://127.0.0.1:8786
    python tests/engines/slurm_cluster.py python tests/bench/clusters.py 'slurm://?nodes=2'
    python tests/engines/ray_cluster.py python tests/bench/clusters.py 'ray://auto?workers=2&per=2'

Each figure is the best of several, as a busy machine makes all others worse.
"""

import statistics
import sys
import time
from concurrent.futures import Executor

from farm_executor import FarmExecutor, start_server

ROUND_TRIPS = 2_000
CALLS = 10_000
OWN_CALLS = 300  # of the cluster's own executor, which takes its time
TIMES = 3


def round_trip(executor: Executor, count: int = ROUND_TRIPS) -> float:
    """The median microseconds from submit to the result."""
    taken = []
    for _ in range(count):
        begin = time.perf_counter()
        executor.submit(abs, -1).result()
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken) * 1e6


def rate(executor: Executor, calls: int = CALLS) -> float:
    """Calls per second of one map over short calls."""
    begin = time.perf_counter()
    assert sum(executor.map(abs, range(-calls, 0))) == calls * (calls + 1) // 2
    return calls / (time.perf_counter() - begin)


def measure(executor: Executor) -> tuple[float, float]:
    executor.submit(abs, -1).result()
    return min(round_trip(executor) for _ in range(TIMES)), max(rate(executor) for _ in range(TIMES))


def row(name: str, *figures: str) -> None:
    print(f"{name:46} " + " ".join(f"{figure:>14}" for figure in figures), flush=True)


def main(addresses: list[str]) -> None:
    row("", "first result", "round trip", "calls/s")
    with start_server("127.0.0.1", 0, background=True, workers=2) as server, FarmExecutor(server.address) as farm:
        alone, calls = measure(farm)
    row("own server, TCP", "", f"{alone:.0f} us", f"{calls:,.0f}")
    for address in addresses:
        begin = time.perf_counter()
        with FarmExecutor(address) as farm:
            farm.submit(abs, -1).result()
            first = time.perf_counter() - begin
            trip, calls = measure(farm)
        row(address, f"{first:.1f} s", f"{trip:.0f} us", f"{calls:,.0f}")
        row("  to own server", "", f"{trip / alone:.2f} x", "")
        if address.startswith("dask://"):
            from distributed import Client

            with Client(f"tcp://{address.removeprefix('dask://').partition('?')[0]}") as client:
                own = client.get_executor(pure=False)
                trip = round_trip(own, OWN_CALLS // 3)
                theirs = max(rate(own, OWN_CALLS) for _ in range(TIMES))
            row("  Dask's own executor", "", f"{trip:.0f} us", f"{theirs:,.0f}")
            row("  ours to theirs", "", "", f"{calls / theirs:,.0f} x")


if __name__ == "__main__":
    main(sys.argv[1:])
