"""What a call costs, in what does not depend on the machine: the calls of Python functions that it takes.

To enter a function takes as long as most of those on the way of a call do besides.
"""

import statistics
import time

from client.cost_tasks import start_counting, stop_counting

from farm_executor import FarmExecutor


def test_a_call_whose_result_is_awaited_takes_few_functions_in_the_client(no_leaks):
    counts = []
    with FarmExecutor(1) as farm:
        farm.submit(time.sleep, 0).result()
        for _ in range(20):
            start_counting()
            farm.submit(time.sleep, 0.002).result()
            counts.append(stop_counting())
    assert statistics.median(counts) <= 70


def test_a_call_takes_few_functions_in_the_worker(no_leaks):
    counts = []
    with FarmExecutor(1) as farm:
        for _ in range(20):
            farm.submit(start_counting).result()
            farm.submit(abs, -1).result()
            counts.append(farm.submit(stop_counting).result())
    assert statistics.median(counts) <= 106  # of two calls, and of the end of the first of the three here
