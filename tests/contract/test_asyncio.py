"""asyncio takes the executors and their futures."""

import asyncio

import pytest
from contract import tasks
from contract.gate import DEADLINE


def run(coroutine):
    """Runs a coroutine under the deadline."""

    async def limited():
        return await asyncio.wait_for(coroutine, DEADLINE)

    return asyncio.run(limited())


def test_a_wrapped_future_gives_the_result(executor):
    async def main():
        return await asyncio.wrap_future(executor.submit(pow, 2, 8))

    assert run(main()) == 256


def test_a_wrapped_future_raises_the_exception(executor):
    async def main():
        return await asyncio.wrap_future(executor.submit(tasks.raise_it, KeyError("awaited")))

    with pytest.raises(KeyError, match="awaited"):
        run(main())


def test_run_in_executor(executor):
    async def main():
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(executor, tasks.add, 1, 2)

    assert run(main()) == 3


def test_many_awaited_at_once(executor):
    async def main():
        loop = asyncio.get_running_loop()
        return await asyncio.gather(*(loop.run_in_executor(executor, tasks.negate, n) for n in range(200)))

    assert run(main()) == [-number for number in range(200)]


def test_the_loop_runs_on_while_a_task_does(executor, gate):
    async def main():
        future = asyncio.get_running_loop().run_in_executor(executor, tasks.pass_gate, gate.address, "passed")
        await asyncio.sleep(0)
        assert not future.done()
        gate.open()
        return await future

    assert run(main()) == "passed"


def test_cancelling_the_awaitable_cancels_a_task_that_waits(executor_factory, gate):
    executor = executor_factory(max_workers=1)

    async def main():
        held = executor.submit(tasks.pass_gate, gate.address, "held")
        futures = [executor.submit(tasks.identity, number) for number in range(1000)]
        awaited = asyncio.wrap_future(futures[-1])
        awaited.cancel()
        with pytest.raises(asyncio.CancelledError):
            await awaited
        await asyncio.sleep(0)  # the loop tells the future in its next round
        assert futures[-1].cancelled()
        gate.open()
        return await asyncio.wrap_future(held)

    assert run(main()) == "held"


def test_a_cancelled_future_cancels_the_awaitable(executor_factory, gate):
    executor = executor_factory(max_workers=1)

    async def main():
        executor.submit(tasks.pass_gate, gate.address)
        futures = [executor.submit(tasks.identity, number) for number in range(1000)]
        awaited = asyncio.wrap_future(futures[-1])
        assert futures[-1].cancel()
        with pytest.raises(asyncio.CancelledError):
            await awaited
        gate.open()

    run(main())
