"""64 MiB there and back through the tunnel, beside the engine's own way and the bare calls that carry the tunnel.

``clusters.py`` prints it. The bare calls are the floor: they bring pieces of the same size to a worker of the
engine's and back, by the verb that the tunnel uses, as many at once, and nothing of ours around them.
"""

from __future__ import annotations

import asyncio
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from farm_executor import FarmExecutor
from farm_executor.core.tunnel import MAX_PUSHES, PIECE

SIZE = 64 << 20
ROUNDS = 7
Way = Callable[[], None]


def milliseconds(way: Way) -> float:
    begin = time.perf_counter()
    way()
    return (time.perf_counter() - begin) * 1e3


def there_and_back(kind: str, address: str) -> Iterator[tuple[str, float, float]]:
    """What each of our ways needs beside the engine's own, in milliseconds; the sides take turns."""
    import numpy as np

    array = np.random.default_rng(1).random(SIZE // 8)

    def through(farm: FarmExecutor) -> Way:
        def way() -> None:
            array[0] += 1  # one that has been sent before may be held there
            assert farm.submit(np.asarray, array).result()[0] == array[0]

        return way

    tunnelled = f"{address}?workers=1&per=1&via=engine"
    with ENGINES[kind](address, array) as (own, bare), FarmExecutor(tunnelled) as farm:
        ways = {"through the tunnel": through(farm), "by bare calls, without the tunnel": bare}
        for way in (own, *ways.values()):
            way()
        rounds = [[milliseconds(way) for way in (own, *ways.values())] for _ in range(ROUNDS)]
    theirs, *ours = (statistics.median(column) for column in zip(*rounds, strict=True))
    for name, taken in zip(ways, ours, strict=True):
        yield name, taken, theirs


@contextmanager
def dasks(address: str, array: Any) -> Iterator[tuple[Way, Way]]:
    import distributed
    import numpy as np
    from distributed.protocol import to_serialize

    def echo(up: str, down: str) -> None:
        worker = distributed.get_worker()

        async def carry() -> None:
            while piece := (await worker.scheduler.queue_get(name=up))["value"]:
                await worker.scheduler.queue_put(name=down, data=to_serialize(piece))

        async def carry_all() -> None:
            await asyncio.gather(*(carry() for _ in range(MAX_PUSHES)))

        asyncio.run_coroutine_threadsafe(carry_all(), worker.loop.asyncio_loop).result()

    with distributed.Client(address.replace("dask:", "tcp:")) as client:
        warnings.filterwarnings("ignore", "Sending large graph")  # it asks for another way, which is slower here

        def own() -> None:
            assert client.submit(np.asarray, array, pure=False).result()[-1] == array[-1]

        up, down = (distributed.Queue(client=client) for _ in range(2))
        pieces = [array.data.cast("B")[at : at + PIECE] for at in range(0, SIZE, PIECE)]

        async def put(pieces: Iterator[memoryview]) -> None:
            for piece in pieces:
                await client.scheduler.queue_put(name=up.name, data=to_serialize(piece))

        async def get(pieces: Iterator[memoryview]) -> None:
            for _ in pieces:
                await client.scheduler.queue_get(name=down.name)

        async def pass_all(pieces: list[memoryview]) -> None:
            there, back = iter(pieces), iter(pieces)
            await asyncio.gather(*(way for _ in range(MAX_PUSHES) for way in (put(there), get(back))))

        def run(way: Any) -> None:
            asyncio.run_coroutine_threadsafe(way, client.loop.asyncio_loop).result()

        echoing = client.submit(echo, up.name, down.name, pure=False)
        try:
            yield own, lambda: run(pass_all(pieces))
        finally:
            run(put(iter([memoryview(b"")] * MAX_PUSHES)))
            echoing.result()


@contextmanager
def rays(address: str, array: Any) -> Iterator[tuple[Way, Way]]:
    import ray

    ray.init("auto" if address == "ray://auto" else address, log_to_driver=False, logging_level="ERROR")
    try:
        identity = ray.remote(lambda array: array)

        def own() -> None:
            assert ray.get(identity.remote(array))[-1] == array[-1]

        class Echo:
            def exchange(self, piece: Any) -> Any:
                return piece

        echo = ray.remote(max_concurrency=MAX_PUSHES)(Echo).remote()
        pieces = [array[at : at + PIECE // 8] for at in range(0, len(array), PIECE // 8)]

        def bare() -> None:
            on_their_way: list[Any] = []
            for piece in pieces:
                on_their_way.append(echo.exchange.remote(piece))
                if len(on_their_way) == MAX_PUSHES:
                    ray.get(on_their_way.pop(0))
            ray.get(on_their_way)

        yield own, bare
    finally:
        ray.shutdown()


ENGINES: dict[str, Callable[[str, Any], AbstractContextManager[tuple[Way, Way]]]] = {"dask": dasks, "ray": rays}
