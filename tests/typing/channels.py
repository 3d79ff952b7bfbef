"""lfarm's names for kernels, tasks, channels and promises, and faults in their use."""

import operator
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

from typing_extensions import assert_type

from farm_executor import lfarm


def square(x: int) -> int:
    return x * x


def greet(name: str, times: int = 1, *, loud: bool = False) -> str:
    return (name.upper() if loud else name) * times


async def fetch(x: int) -> str:
    return str(x)


@lfarm.deftask
async def fetch_there(x: int) -> bytes:
    return bytes(x)


@lfarm.deftask
def add(x: int, y: int = 0) -> int:
    return x + y


@lfarm.deftask(local=False)
def there(x: int) -> str:
    return str(x)


class Job:
    @lfarm.deftask
    def run(self, x: int, *, loud: bool = False) -> str:
        return greet("x", x, loud=loud)


def kernels(executor: Executor) -> None:
    lfarm.set_kernel(lfarm.make_kernel([("127.0.0.1", 11111), "b:22222"], "b", timeout=3))
    lfarm.set_kernel(None)
    with lfarm.use_kernel(lfarm.make_kernel(executor)) as kernel, lfarm.task_priority("low"):
        assert_type(kernel, lfarm.Kernel)
        assert_type(kernel.submit(square, 3), Future[int])
        assert_type(kernel.submit("os:getpid"), Future[Any])
        assert_type(kernel.broadcast(greet, "x", persistent=True), list[str])
        assert_type(lfarm.broadcast_task(square, 3), list[int])
        assert_type(lfarm.broadcast_task(greet, "x", 2, timeout=3), list[str])
        assert_type(lfarm.broadcast_task(add, 3), list[int])
        assert_type(lfarm.broadcast_task("os:getpid", timeout=3), list[Any])
        assert_type(kernel.submit(fetch, 3), Future[str])
        assert_type(kernel.broadcast(fetch, 3), list[str])
        assert_type(lfarm.broadcast_task(fetch, 3), list[str])
        kernel.submit(square, "a")  # E
        kernel.broadcast(square, "a")  # E
        lfarm.broadcast_task(square)  # E
        lfarm.broadcast_task(square, 1, persistant=True)  # E
    lfarm.make_kernel(3)  # E
    lfarm.set_kernel("a:1")  # E
    with lfarm.task_priority("high"):  # E
        pass


def deftasks() -> None:
    assert_type(add(1, 2), int)
    assert_type(there(1), str)
    assert_type(Job().run(3, loud=True), str)
    assert_type(Job.run(Job(), 3), str)
    assert_type(add.function(1), int)
    add("a")  # E
    there()  # E
    Job().run("a")  # E
    Job().run(3, laud=True)  # E
    lfarm.deftask(3)  # E


def channels(either: Callable[[int], int] | str) -> None:
    with lfarm.make_channel(fixed_capacity=3) as channel:
        lfarm.submit_task(channel, operator.add, 3, 4)
        lfarm.submit_task(channel, "os:getpid")
        lfarm.submit_task(channel, add, 3)
        lfarm.submit_task(channel, greet, "x", loud=True)
        lfarm.submit_task(channel, Job().run, 3)
        lfarm.submit_task(channel, either, 3)
        assert_type(lfarm.try_receive_result(channel, timeout=0.1), tuple[Any, bool])
        print(lfarm.receive_result(channel), list(channel))
        lfarm.submit_task(channel, square, "wrong")  # E
        lfarm.submit_task(channel, square)  # E
        lfarm.submit_task(channel, there, "a")  # E
        lfarm.submit_task(channel, greet, "x", laud=True)  # E
        lfarm.submit_task(channel, 3)  # E
        lfarm.submit_task(square, 3)  # E
        channel.submit(square, x="a")  # E
    lfarm.make_channel(3)  # E


def promises() -> None:
    future = lfarm.future(square, 3)
    assert_type(future, lfarm.Promise[int])
    assert_type(lfarm.force(future, timeout=3), int)
    assert_type(lfarm.force(lfarm.speculate(greet, "x")), str)
    assert_type(lfarm.force(lfarm.future(add, 3)), int)
    assert_type(lfarm.force(lfarm.future(Job().run, 3)), str)
    assert_type(lfarm.force(lfarm.future("os:getpid")), Any)
    assert_type(lfarm.force(lfarm.delay(square, 3)), int)
    assert_type(lfarm.force(lfarm.future(square, 3).future), int)
    assert_type(lfarm.force(Job()), Job)
    assert_type(lfarm.future(fetch, 3), lfarm.Promise[str])
    assert_type(lfarm.force(lfarm.speculate(fetch_there, 3)), bytes)
    promise: lfarm.Promise[str] = lfarm.promise()
    lfarm.fulfill(promise, lfarm.chain(lfarm.delay(greet, "x")))
    if lfarm.fulfill(promise, "a") and lfarm.fulfilledp(promise):
        assert_type(lfarm.force(promise), str)
    assert_type(lfarm.force(lfarm.chain(promise)), Any)
    assert_type(lfarm.force(lfarm.delay(lfarm.chain, promise)), Any)
    lfarm.future(square, "a")  # E
    lfarm.speculate(square)  # E
    lfarm.delay(greet, "x", laud=True)  # E
    lfarm.future(there, "a")  # E
    a: str = lfarm.force(lfarm.future(square, 3))  # E
    promise.fulfill(3)  # E
    print(a)
