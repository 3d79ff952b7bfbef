"""Faults that both checkers find in programs with ProcessPoolExecutor."""

from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import ProcessPoolExecutor as Pool
from functools import partial


def square(x: int) -> int:
    return x * x


def greet(name: str, times: int = 1, *, loud: bool = False) -> str:
    return (name.upper() if loud else name) * times


class Adder:
    def __init__(self, amount: int) -> None:
        self.amount = amount

    def add(self, x: int) -> str:
        return str(x + self.amount)


def prepare(a: int, b: str) -> None: ...


def submitted(pool: Pool) -> None:
    pool.submit(square, "wrong")  # E
    pool.submit(square)  # E
    pool.submit(square, 1, 2)  # E
    pool.submit(square, y=1)  # E
    pool.submit(greet, "x", laud=True)  # E
    pool.submit(greet, "x", 1, True)  # E
    pool.submit(Adder, "1")  # E
    pool.submit(Adder(1).add, "1")  # E
    pool.submit(partial(square, 3), 4)  # E: pyright
    pool.submit(square(3))  # E
    pool.submit(3, 1)  # E
    pool.submit(fn=square, x=1)  # E
    pool.submit()  # E
    a: str = pool.submit(square, 1).result()  # E
    b: Future[str] = pool.submit(square, 1)  # E
    c: list[Future[Adder]] = [pool.submit(square, x) for x in range(3)]  # E
    pool.submit(square, 1).result().upper()  # E
    print(pool.submit(square, 1) + 1)  # E
    pool.submit(square, 1).results()  # E
    print(a, b, c)


def mapped(pool: Pool, make: Callable[[int], Adder]) -> None:
    a: list[str] = list(pool.map(square, [1]))  # E
    pool.map(square, 3)  # E
    pool.map(3, [3])  # E
    pool.map(square, [1], chunksize="a")  # E
    pool.map(square, [1], time=3)  # E
    b: list[int] = list(pool.map(greet, ["a"], [1]))  # E
    for adder in pool.map(make, [1]):
        adder.amuont += 1  # E
    pool.map(square, [1])[0]  # E
    print(a, b)


def main() -> None:
    Pool(max_workers="2")  # E
    Pool(max_worker=2)  # E
    Pool(mp_context=3)  # E
    Pool(initializer=3)  # E
    Pool(initializer=prepare)  # E
    Pool(initializer=prepare, initargs=(1,))  # E
    Pool(initializer=prepare, initargs=("a", 1))  # E
    Pool(initargs=(1,))  # E
    Pool(2, None, prepare, (1,))  # E
    Pool(max_tasks_per_child="3")  # E
    with Pool(2) as pool:
        submitted(pool)
        mapped(pool)  # E
        pool.submt(square, 1)  # E
        pool.shutdown("now")  # E
        pool.shutdown(cancel=True)  # E
        pool.shutdown(True, True)  # E
