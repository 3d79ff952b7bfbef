"""A farm under asyncio: results are awaited, and the event loop stays free."""

import asyncio

from farm_executor import FarmExecutor


def fibonacci(n):
    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)


async def main():
    loop = asyncio.get_running_loop()
    with FarmExecutor(2) as farm:
        calls = [loop.run_in_executor(farm, fibonacci, n) for n in range(10, 20)]
        print(await asyncio.gather(*calls))


asyncio.run(main())
