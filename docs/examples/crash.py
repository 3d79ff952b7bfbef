"""A task that kills its worker costs only itself."""

import os

from farm_executor import FarmExecutor, WorkerLostError


def square(number):
    if number == 13:
        os._exit(1)  # as a segmentation fault would end the process
    return number * number


with FarmExecutor(2) as farm:
    futures = [farm.submit(square, number) for number in range(20)]
    for number, future in enumerate(futures):
        try:
            print(number, future.result())
        except WorkerLostError as error:
            print(number, "failed:", error)
