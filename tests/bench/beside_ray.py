"""Calls over one large array that is put into Ray's object store, or shared by a farm, in turns.

    python tests/bench/beside_ray.py [--rounds 5] [--size 512]

Ray listens on the machine's own address, whatever it is told, so both run in a network that has loopback alone.
That takes root, `unshare` and `ip`, and the package ray. `compare` runs this with ``--asked``: then each line of
the input asks for a round, whose figures are a line of JSON.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS / "engines"), str(TESTS / "bench")]

import alone  # noqa: E402

CALLS, WORKERS = 200, 2
RAY, FARM = "Ray's put", "embedded"


def why_not() -> str:
    """What is lacking; empty if nothing is."""
    from importlib.util import find_spec

    return alone.why_not() if find_spec("ray") else "the package ray is not installed"


def rounds(size: int) -> Callable[[], dict[str, float]]:
    """Return a function that measures each once, in seconds: calls that only look at the array's size, warm."""
    import numpy as np
    import ray
    import workloads

    from farm_executor import FarmExecutor

    data = np.arange(size << 17, dtype=np.float64)
    folder = tempfile.mkdtemp(prefix="ray-")
    ray.init(
        num_cpus=WORKERS,
        include_dashboard=False,
        object_store_memory=3 * data.nbytes,
        _temp_dir=folder,
        _node_ip_address="127.0.0.1",
        log_to_driver=False,
        logging_level="error",
    )
    farm = FarmExecutor(WORKERS)
    size_of = ray.remote(workloads.size_of)

    def over_put() -> float:
        put = ray.put(data)
        ray.get([size_of.remote(put) for _ in range(10 * WORKERS)])
        started = time.perf_counter()
        for found in ray.get([size_of.remote(put) for _ in range(CALLS)]):
            assert found == len(data)
        return time.perf_counter() - started

    def over_shared() -> float:
        return workloads.over_shared(farm, data, CALLS)

    turn = 0

    def measure() -> dict[str, float]:
        nonlocal turn
        turn += 1
        both = [(RAY, over_put), (FARM, over_shared)]
        found = {name: measured() for name, measured in (both if turn % 2 else both[::-1])}
        return {RAY: found[RAY], FARM: found[FARM]}

    return measure


class Asked:
    """The same, measured by another process, each time that it is asked."""

    def __init__(self, size: int) -> None:
        command = [sys.executable, __file__, "--asked", "--size", str(size)]
        self._process: Any = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __call__(self) -> dict[str, float]:
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        for line in self._process.stdout:  # Ray may have its own say
            if line.startswith("{"):
                found: dict[str, float] = json.loads(line)
                return found
        raise RuntimeError("Ray could not be measured: see above")


def run(arguments: list[str]) -> int:
    """Measure, within the namespaces; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=512, help="of the array, in MiB (default: %(default)s)")
    parser.add_argument("--asked", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_AUTH_MODE="disabled", PYTHONPATH=os.pathsep.join(sys.path))
    measure = rounds(options.size)
    if options.asked:
        for _ in sys.stdin:
            print(json.dumps(measure()), flush=True)
        os._exit(0)  # all else ends with this process
    results = [measure() for _ in range(options.rounds)]
    ratios = sorted(result[FARM] / result[RAY] for result in results)
    print(f"{CALLS} calls over {options.size} MiB, ms, medians of {options.rounds} rounds:")
    for name in (RAY, FARM):
        print(f"    {name:12}{statistics.median(result[name] for result in results) * 1e3:>10.1f}")
    print(f"    ratio {statistics.median(ratios):.3f} ({ratios[0]:.3f}-{ratios[-1]:.3f})", flush=True)
    os._exit(0)


if __name__ == "__main__":
    sys.exit(alone.run("Ray", why_not, run))
