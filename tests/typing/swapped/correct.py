"""What programs do with ProcessPoolExecutor, and both checkers find right."""

import asyncio
import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, as_completed, wait
from concurrent.futures import ProcessPoolExecutor as Pool
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")


def square(x: int) -> int:
    return x * x


def greet(name: str, times: int = 1, *, loud: bool = False) -> str:
    return (name.upper() if loud else name) * times


def first(items: list[T]) -> T:
    return items[0]


class Adder:
    def __init__(self, amount: int) -> None:
        self.amount = amount

    def add(self, x: int) -> str:
        return str(x + self.amount)

    @classmethod
    def make(cls, amount: int) -> "Adder":
        return cls(amount)

    @staticmethod
    def listed(x: float) -> list[float]:
        return [x]

    def __call__(self, x: int) -> bytes:
        return bytes(x)


def prepare() -> None: ...


def prepare_with(a: int, b: str = "") -> int:
    return len(b) + a


def submitted(pool: Pool) -> None:
    a: int = pool.submit(square, 3).result()
    b: str = pool.submit(greet, "x", loud=True).result()
    c: str = pool.submit(Adder(1).add, 3).result()
    d: Adder = pool.submit(Adder, 3).result()
    e: Adder = pool.submit(Adder.make, amount=3).result()
    f: list[float] = pool.submit(Adder.listed, 3).result()
    g: bytes = pool.submit(Adder(2), 3).result(timeout=1)
    h: int = pool.submit(partial(square, 3)).result()
    i: str = pool.submit(first, ["a"]).result()
    pool.submit(print, "a", 1, sep="").add_done_callback(lambda future: future.result())
    error: BaseException | None = pool.submit(square, 3).exception()
    print(a, b, c, d, e, f, g, h, i, error)


def mapped(pool: Pool, rows: list[list[int]], holes: list[int | None], anything: Any) -> None:
    a: list[int] = list(pool.map(square, range(3), chunksize=2, timeout=3.0))
    b: list[str] = list(pool.map(greet, ["a"], [1]))
    c: list[int] = list(pool.map(max, *rows))
    d: float = sum(pool.map(pow, [2.0], [3.0]))
    e: list[int] = list(pool.map(int, ["1"]))
    f: Iterator[str] = pool.map(Adder(1).add, (x for x in range(3)))
    g: dict[str, int] = dict(zip("ab", pool.map(len, ["a", "b"]), strict=True))
    h: list[float] = list(pool.map(square, [1, 2]))
    i: list[bytes] = list(pool.map(Adder(1), anything))
    j: int = sum(pool.map(square, holes))  # typeshed does not look at what map is given
    k: Iterable[int] = pool.map(anything, [1], [2], [3], [4])
    for text in pool.map(partial(greet, times=2), ["a"]):
        print(text.upper())
    print(a, b, c, d, e, f, g, h, i, j, k)


def waited(pool: Pool) -> int:
    futures: list[Future[int]] = [pool.submit(square, x) for x in range(3)]
    inputs: dict[Future[int], int] = {pool.submit(square, x): x for x in range(3)}
    done, pending = wait(futures, timeout=1)
    return sum(inputs[future] for future in as_completed(inputs)) + len(done) + len(pending)


def used(use: Callable[[Executor], T], executor: Executor) -> T:
    return use(executor)


async def awaited() -> int:
    loop = asyncio.get_running_loop()
    with Pool() as pool:
        return await loop.run_in_executor(pool, square, 3) + await asyncio.wrap_future(pool.submit(square, 4))


class Logged(Pool):
    def __init__(self, name: str, max_workers: int | None = None) -> None:
        super().__init__(max_workers, initializer=prepare)
        self.name = name


def main() -> None:
    executor: Executor
    with Pool(max_workers=2, initializer=prepare) as pool:
        submitted(pool)
        mapped(pool, [[1], [2]], [1, None], [1])
        executor = pool
        x: int = used(lambda given: given.submit(square, 1).result(), pool)
        print(executor, x, waited(pool), asyncio.run(awaited()))
        pool.shutdown(wait=False, cancel_futures=True)
    with Logged("a") as logged:
        logged.submit(square, 3)
    Pool(4).shutdown(True)
    Pool(2, multiprocessing.get_context("spawn"), prepare_with, (1, "a"))
    Pool(initializer=prepare_with, initargs=(1, "a"), mp_context=multiprocessing.get_context())
    Pool(None, initializer=prepare_with, initargs=(1,))
