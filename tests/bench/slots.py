"""How long a server takes to give a client many workers, and to end with them: ``python tests/bench/slots.py``."""

from __future__ import annotations

import argparse
import os
import resource
import time

from farm_executor import FarmExecutor, start_server


def _used() -> tuple[float, float]:
    """The processor's time that this process has used, and its children."""
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime, children.ru_utime + children.ru_stime


def main() -> None:
    """Print the seconds until all workers of one client are ready, and until the server has ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slots", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    for _ in range(options.rounds):
        began, before = time.perf_counter(), _used()
        server = start_server("127.0.0.1", 0, background=True, workers=options.slots)
        serving = time.perf_counter()
        farm = FarmExecutor(server.address)
        farm.connect(timeout=60)
        while sum(len(one.workers) for one in farm.statistics().servers) < options.slots:
            time.sleep(0.005)
        assert len(set(farm.broadcast(os.getpid))) == options.slots
        up = time.perf_counter()
        farm.shutdown()
        left = time.perf_counter()
        server.end()
        ended = time.perf_counter()
        print(
            f"{options.slots} slots: server {serving - began:.2f} s, all workers ready {up - serving:.2f} s, "
            f"farm left {left - up:.2f} s, server ended {ended - left:.2f} s; "
            f"processor: client {_used()[0] - before[0]:.2f} s, server and workers {_used()[1] - before[1]:.2f} s"
        )


if __name__ == "__main__":
    main()
