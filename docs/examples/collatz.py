"""The longest Collatz chain below a limit, searched by a farm: python collatz.py [HOST:PORT ...]."""

import sys
import time

from farm_executor import FarmExecutor

LIMIT = 50_000
STEP = 2_500


def longest(start):
    """The longest chain that begins in this step, as its length and its first number."""
    best = (0, 0)
    for first in range(start, start + STEP):
        length, number = 1, first
        while number != 1:
            number = number // 2 if number % 2 == 0 else 3 * number + 1
            length += 1
        best = max(best, (length, first))
    return best


began = time.perf_counter()
with FarmExecutor(sys.argv[1:] or None) as farm:
    length, first = max(farm.map(longest, range(1, LIMIT, STEP)))
    print(f"{first} takes {length} numbers to reach 1")
    for server in farm.statistics().servers:
        for worker in server.workers:
            print(f"worker {worker.pid} did {worker.tasks_done} tasks in {worker.busy_seconds:.2f} s")
print(f"{time.perf_counter() - began:.2f} s in all")
