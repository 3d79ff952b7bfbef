"""What FarmExecutor has beyond ProcessPoolExecutor, and faults in its use."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from contextvars import ContextVar
from functools import partial
from typing import Any, ParamSpec, TypeVar

from typing_extensions import assert_type

from farm_executor import (
    BroadcastError,
    CurrentTask,
    FarmExecutor,
    FarmFuture,
    FarmStatistics,
    OptionsView,
    OutputLine,
    Progress,
    Stream,
    TaskExecutionError,
    WorkerLostError,
    current_task,
    end_server,
    ping,
    progress,
    start_server,
)

P = ParamSpec("P")
T = TypeVar("T")


def square(x: int) -> int:
    return x * x


def greet(name: str, times: int = 1, *, loud: bool = False) -> str:
    return (name.upper() if loud else name) * times


def same(executor: FarmExecutor | OptionsView) -> Future[int]:
    return executor.submit(square, 3)


def views(farm: FarmExecutor) -> None:
    view = farm.with_options(priority="high", category="a", timeout=3).with_options(max_attempts=1)
    assert_type(view, OptionsView)
    assert_type(view.submit(greet, "x", loud=True), Future[str])
    assert_type(view.map(square, [1], buffersize=3), Iterator[int])
    assert_type(view.broadcast(greet, "x", 2, timeout=None), list[str])
    view.submit(square, "wrong")  # E
    view.submit(square)  # E
    view.map(square, 3)  # E
    view.broadcast(square)  # E
    farm.with_options(priorty="high")  # E
    farm.with_options(timeout="3")  # E
    farm.with_options("high")  # E


def lambdas(farm: FarmExecutor) -> None:
    """They cannot be given to ProcessPoolExecutor, and so typeshed's `map` tells checkers nothing about them."""
    assert_type(farm.submit(lambda: 3), Future[int])
    assert_type(list(farm.map(lambda x, y: f"{x}{y}", [1], [2.0])), list[str])
    list(farm.map(lambda x: x.upper(), ["a"]))
    list(farm.map(lambda x, y: x + y, [1], [2]))
    list(farm.map(lambda x, y, z: x + y + z, [1], [2], [3], timeout=3))
    list(farm.with_options(timeout=3).map(lambda x: x + 1, [1]))
    farm.submit(lambda: 3, 4)  # E


async def fetch(x: int, *, loud: bool = False) -> str:
    return greet("x", x, loud=loud)


def coroutines(farm: FarmExecutor, anything: Any, any_function: Callable[..., Any]) -> None:
    """A worker runs them to their result."""
    assert_type(farm.submit(fetch, 3, loud=True), Future[str])
    assert_type(farm.with_options(timeout=3).submit(fetch, 3), Future[str])
    assert_type(farm.submit(lambda: fetch(3)), Future[str])
    assert_type(farm.submit(partial(fetch, 3)), Future[str])
    assert_type(farm.map(fetch, [1]), Iterator[str])
    assert_type(farm.map(fetch, [1], chunksize=3, progress=True), Iterator[str])
    list(farm.map(lambda x: fetch(x), [1]))
    assert_type(farm.map(pair, [1], [2]), Iterator[tuple[int, int]])
    assert_type(farm.map(pair, [1], [2], [3], [4]), Iterator[tuple[int, int]])
    assert_type(farm.broadcast(fetch, 3), list[str])
    assert_type(farm.submit(anything, 3), Future[Any])
    assert_type(farm.submit(any_function, 3), Future[Any])
    assert_type(farm.map(any_function, [3]), Iterator[Any])
    assert_type(farm.submit(json.loads, "3"), Future[Any])
    farm.submit(fetch, "a")  # E
    farm.submit(fetch)  # E
    farm.broadcast(fetch, "a")  # E
    a: Future[int] = farm.submit(fetch, 3)  # E
    print(a)


async def pair(*items: int) -> tuple[int, int]:
    return items[0], items[1]


async def awaited(farm: FarmExecutor) -> None:
    assert_type(await asyncio.wrap_future(farm.submit(fetch, 3)), str)


def forwarded(farm: FarmExecutor, fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
    return farm.submit(fn, *args, **kwargs)


def broadcasts(farm: FarmExecutor) -> None:
    assert_type(farm.broadcast(square, 3), list[int])
    assert_type(farm.broadcast(greet, "x"), list[str])
    assert_type(farm.broadcast(greet, "x", 2, persistent=True, timeout=3), list[str])
    assert_type(farm.broadcast(partial(greet, "x", loud=True)), list[str])
    assert_type(farm.broadcast(print, 1, "a"), list[None])
    farm.broadcast(square, "a")  # E
    farm.broadcast(square)  # E
    farm.broadcast(square, 1, 2)  # E
    farm.broadcast(square, 1, persistant=True)  # E
    farm.broadcast(greet, "x", loud=True)  # E
    a: list[str] = farm.broadcast(square, 1)  # E
    print(a)


def ends(farm: FarmExecutor) -> None:
    assert_type(farm.kill(farm.submit(square, 3)), bool)
    assert_type(farm.kill_tasks("a", dry_run=True), int)
    assert_type(farm.statistics(), FarmStatistics)
    print(farm.statistics().servers[0].workers[0].pid)
    farm.shutdown(timeout=3)
    farm.kill(3)  # E
    farm.kill_tasks([1])  # E


def errors(farm: FarmExecutor) -> None:
    try:
        farm.broadcast(square, 1)
    except WorkerLostError as error:
        print(error.exit_code, error.stderr, error.eixt_code)  # E
    except BroadcastError as error:
        print([outcome.value for outcome in error.outcomes])


def main() -> None:
    FarmExecutor(4)
    FarmExecutor(("a", 1))
    FarmExecutor(["a:1", ("b", 2)])
    with FarmExecutor("a:1", max_workers=3, key_file="key", when_full="raise", heartbeat=1) as farm:
        farm.connect(timeout=3)
        farm.add_server(("b", 1))
        farm.remove_server("b:1", drain=False)
        same(farm.with_options(category=3))
        farm.add_server(3)  # E
    FarmExecutor(3.5)  # E
    FarmExecutor(max_pending_bytes="1 MB")  # E
    FarmExecutor(when_full="rise")  # E
    FarmExecutor(key="secret")  # E
    with start_server("127.0.0.1", 0, background=True) as server:
        print(server.address, ping("127.0.0.1", 11111, timeout=1))
        end_server("127.0.0.1", "11111")  # E


def progresses(farm: FarmExecutor) -> None:
    assert_type(farm.map(square, [1], progress=True), Iterator[int])
    assert_type(farm.map(square, [1], progress="label"), Iterator[int])
    farm.map(square, [1], progress=lambda done, total: print(done + 1, total))
    farm.map(square, [1], progress=3)  # E
    futures = [farm.submit(square, 3)]
    assert_type(progress.as_completed(futures), Iterator[Future[int]])
    assert_type(progress.wait(futures)[0], set[Future[int]])


def count(n: int) -> Iterator[int]:
    yield from range(n)


async def count_slowly(n: int) -> AsyncIterator[str]:
    for i in range(n):
        yield str(i)


def streams(farm: FarmExecutor) -> None:
    assert_type(farm.stream(count, 3), Stream[int])
    assert_type(farm.with_options(timeout=3).stream(count, n=3), Stream[int])
    assert_type(farm.stream(count_slowly, 3), Stream[str])
    assert_type(farm.stream(lambda: [1.5]), Stream[float])
    with farm.stream(count, 3) as stream:
        assert_type(next(stream), int)
        assert_type(list(stream), list[int])
        stream.close()
        stream.future.cancel()
    farm.stream(count)  # E
    farm.stream(count, "3")  # E
    farm.stream(square, 3)  # E
    farm.stream(3)  # E


async def async_streams(farm: FarmExecutor) -> None:
    async for item in farm.stream(count_slowly, 3):
        assert_type(item, str)
    assert_type(await anext(farm.stream(count, 3)), int)


user: ContextVar[str] = ContextVar("user")


def said() -> None:
    FarmExecutor(2, context=[user], logs="server", output="forward", name="nightly")
    FarmExecutor(output=lambda line: print(line.text, line.stream, line.slot + 1))
    lines: list[OutputLine] = []
    FarmExecutor(output=lines.append)
    FarmExecutor(output="nowhere")  # E
    FarmExecutor(logs="nowhere")  # E
    FarmExecutor(context=["user"])  # E
    FarmExecutor(output=3)  # E


def outputs(farm: FarmExecutor, error: TaskExecutionError) -> None:
    assert_type(error.output, str)
    future = farm.submit(square, 3)
    print(future.output)  # E
    assert isinstance(future, FarmFuture)
    assert_type(future.output, str)
    assert_type(future.progress, Progress | None)
    result: int = future.result()
    future.add_progress_callback(lambda future: print(future.progress, result))
    future.add_progress_callback(3)  # E


def inside() -> None:
    task = current_task()
    assert_type(task, CurrentTask)
    assert_type(task.id, int | None)
    assert_type(task.attempt, int)
    assert_type(task.deadline, float | None)
    assert_type(task.cancelled, bool)
    assert_type(Progress(1).total, float | None)
    task.report(1, 2, "half")
    task.report("half")  # E
    task.report(1, message=2)  # E
