"""Dask, as the gateway speaks with it: a server beside each worker of the cluster's, held by a task there.

This module owns Dask's words. It runs in the gateway alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
import time
import weakref
from collections.abc import Collection, Coroutine
from concurrent.futures import Future, wait
from typing import Any

import distributed
from distributed.protocol import to_serialize

from farm_executor.core.tunnel import heading, request
from farm_executor.launch.far import text
from farm_executor.launch.gateway import ANSWER_SECONDS, END_SECONDS, Room, say
from farm_executor.wire.sockets import own_host

__all__ = ["connect"]

DIRECT_SECONDS = 1.0  # for a worker to answer, before all goes through the scheduler
CALL_SECONDS = 6.0  # for a call to a worker: short enough for its server to be found again before it gives us up
WORKER_SECONDS = 2.0  # of these, for something to come
CARRIERS = 4  # of pieces in either direction, each of which waits for one or has one on its way
PULL_SECONDS = 5.0  # that a call of the tunnel's waits for something to come
TELL_SECONDS = 2.0  # after which the far end is told again that this one is there

# In a worker of Dask's: `far.Far`, whose pieces come in calls to that worker where these lead there, or else by two
# of Dask's queues, which are in the scheduler. A call that the scheduler passes on would make a connection to
# the worker each time. Each epoch has one way, that on which the far end hears of it. It is text, run by `eval`,
# since farm_executor may be missing there.
_RUN = "(exec(text, names), names['run'](*arguments))[1]"
_TEXT = """
def run(token, up, down, carriers, seconds, *arguments):
    import asyncio
    from distributed import get_worker
    from distributed.protocol import to_serialize
    far, worker = Far(), get_worker()
    scheduler = worker.scheduler
    told, heard = asyncio.Event(), 0  # of which epoch, by the queue

    async def exchange(piece):
        if not piece:  # to see whether calls lead here
            return b""
        loop = asyncio.get_running_loop()
        epoch, number = heading(piece)
        answer = await loop.run_in_executor(far.threads, far.give, piece)
        if not answer and not number:
            answer = await loop.run_in_executor(far.threads, far.take, epoch, seconds)
            if answer:
                far.landed(len(answer))
        return to_serialize(memoryview(answer or request(epoch)))

    async def put(name, piece):
        # As a view it comes out as one of the memory that it was received in, and is not copied once more.
        await scheduler.queue_put(name=name, data=to_serialize(memoryview(piece)))

    async def greet(loop):
        await scheduler.queue_put(name=down, data=worker.contact_address)

    async def hear(loop):
        nonlocal heard
        epoch = far.epoch
        try:
            piece = (await scheduler.queue_get(name=up))["value"]
        except Exception:  # one may have been lost
            far.begin_again(epoch)
            raise
        if piece:
            answer = await loop.run_in_executor(far.threads, far.give, piece)
            heard = max(heard, heading(piece)[0])
            told.set()
            if answer:
                await put(down, answer)
        return bool(piece)

    async def tell(loop):
        await told.wait()
        if not (piece := await loop.run_in_executor(far.threads, far.take, heard)):
            if far.epoch > heard:
                told.clear()
        else:
            try:
                await put(down, piece)
            except Exception:  # it is lost
                far.begin_again(heading(piece)[0])
                raise
            finally:
                far.landed(len(piece))
        return not far.closed

    async def repeat(way, loop):
        while True:
            try:
                if not await way(loop):
                    return
            except Exception:
                if far.closed:
                    return
                await asyncio.sleep(1.0)

    async def carry():
        loop = asyncio.get_running_loop()
        await repeat(greet, loop)
        await asyncio.gather(*(repeat(way, loop) for way in (hear, tell) for _ in range(carriers)))

    async def end():
        told.set()
        del worker.handlers[token]
        for name in (up, down):
            for _ in range(carriers):
                await put(name, b"")

    loop = worker.loop.asyncio_loop
    worker.handlers[token] = exchange
    carried = asyncio.run_coroutine_threadsafe(carry(), loop)
    try:
        return far.hold(*arguments)
    finally:
        asyncio.run_coroutine_threadsafe(end(), loop)
        carried.add_done_callback(lambda carried: far.threads.shutdown(wait=False))
"""


def connect(config: dict[str, Any]) -> Dask:
    """Return a client of the scheduler.

    Raises:
        Exception: It does not answer.
    """
    client = distributed.Client(config["cluster"], timeout=ANSWER_SECONDS, set_as_default=False)
    return Dask(client, config["wanted"])


class Dask:
    """A `gateway.Engine`: its places are the workers of the cluster's."""

    def __init__(self, client: Any, wanted: dict[str, Any]) -> None:
        self._client = client
        self._per: int = wanted["per"]
        self._workers: int = wanted["workers"]
        self._numbers = map(str, itertools.count())
        # Under the names that Dask's documentation has; a worker is started with what it has of them.
        amounts = {"GPU": wanted["gpus"], "MEMORY": wanted["memory"]}
        self._resources = {name: amount for name, amount in amounts.items() if amount}
        self.here = own_host(wanted["host"])
        self._text = text() + _TEXT
        self._tasks: weakref.WeakSet[Task] = weakref.WeakSet()

    def room(self, taken: Collection[str], most: int | None) -> Room:
        """See `gateway.Engine`."""
        threads: dict[str, int] = self._client.nthreads()
        if most is None and self._resources:
            most = -(-self._workers // (self._per or 1))
        if most is not None:
            # Dask decides where each is, and what waits makes a cluster grow that can.
            numbers = itertools.islice(self._numbers, max(most - len(taken), 0))
            return Room(dict.fromkeys(numbers, self._per or 1), [], f"dask has {sum(threads.values())} threads")
        free = {worker: self._per or count for worker, count in threads.items() if worker not in taken}
        gone = [worker for worker in taken if worker not in threads]
        return Room(free, gone, f"dask has {sum(threads.values())} threads")

    def place(self, place: str, slots: int, *arguments: str) -> Task:
        """See `gateway.Engine`."""
        options: dict[str, Any] = {"workers": [place]} if "://" in place else {}
        if self._resources:
            options["resources"] = {name: amount * slots for name, amount in self._resources.items()}
        token = f"farm_executor-{secrets.token_hex(16)}"
        task = Task(self._client, token)
        self._tasks.add(task)
        names: dict[str, Any] = {"text": self._text, "names": {"__name__": "far"}}
        names["arguments"] = (token, task.up, task.down, CARRIERS, WORKER_SECONDS, *arguments)
        task.future = self._client.submit(eval, _RUN, names, key=token, pure=False, retries=0, **options)
        return task

    def name(self, place: str) -> str:
        """See `gateway.Engine`."""
        return place.partition("://")[2]  # empty for a number

    def close(self) -> None:
        """See `gateway.Engine`."""
        wait([task.close() for task in self._tasks], END_SECONDS)
        self._client.close(ANSWER_SECONDS)


class Task:
    """A `gateway.Grant`, with the near ends of its two queues, and calls to the worker that it runs in."""

    future: Any

    def __init__(self, client: Any, token: str) -> None:
        self.up, self.down = f"{token}-up", f"{token}-down"
        self._client = client
        self._token = token
        self._met = asyncio.Event()  # set once the far end has said where it is
        self._address = ""  # of that worker
        self._worker: Any = None  # where calls lead to the worker: makes them
        self._way: Any = None  # the same in this epoch, in which nothing goes by another way
        self._epoch = 0
        self._loop: asyncio.AbstractEventLoop = client.loop.asyncio_loop
        self._told = (0, 0.0)  # the epoch that the far end has been told of, and when
        self._come: asyncio.Queue[memoryview] = asyncio.Queue()  # as much as windows let come
        self._do(self._open()).result(ANSWER_SECONDS)
        self._hearing = [self._do(self._hear()) for _ in range(CARRIERS)]
        self._closed = False

    def _do(self, deed: Coroutine[Any, Any, Any]) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(deed, self._loop)

    async def _open(self) -> None:
        self._queues = [await distributed.Queue(name, client=self._client) for name in (self.up, self.down)]

    async def _put(self, name: str, piece: bytes | memoryview) -> None:
        await self._client.scheduler.queue_put(name=name, data=to_serialize(memoryview(piece)))

    async def _hear(self) -> None:
        while piece := (await self._client.scheduler.queue_get(name=self.down))["value"]:
            if isinstance(piece, str):
                await self._meet(piece)
                piece = memoryview(request(0))
            self._come.put_nowait(piece)

    async def _meet(self, address: str) -> None:
        """See whether calls lead to the worker that the far end is in."""
        self._address = address
        try:
            call = getattr(self._client.rpc(address), self._token)
            await asyncio.wait_for(call(piece=b""), DIRECT_SECONDS)
            self._worker = call
        except Exception as error:
            self._leave_worker(error)
        self._met.set()

    def _leave_worker(self, error: Exception) -> None:
        """Have all go by the queues from the next epoch on."""
        self._worker = None
        say(indirect=self._address, why=f"{type(error).__name__}: {error}")

    def call(self, piece: bytes | memoryview) -> Future[Any]:
        """See `gateway.Grant`."""
        return self._do(self._call(piece))

    async def _call(self, piece: bytes | memoryview) -> bytes | memoryview:
        epoch, number = heading(piece)
        if not self._met.is_set():
            return await self._await_far() if not number else await self._later(piece)
        if epoch > self._epoch:
            self._epoch, self._way = epoch, self._worker
        if self._way is not None:
            return await self._call_worker(self._way, piece)
        if number:
            await self._put(self.up, piece)
            return b""
        await self._tell(piece)
        try:
            return await asyncio.wait_for(self._come.get(), PULL_SECONDS)
        except asyncio.TimeoutError:
            return b""

    async def _await_far(self) -> bytes:
        """Wait for the far end's first word, which tells by what way it is to be heard of first."""
        await self._tell(request(0))  # that it can be sent shows what there is of the scheduler
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._met.wait(), PULL_SECONDS)
        return b""

    async def _later(self, piece: bytes | memoryview) -> bytes | memoryview:
        await self._met.wait()
        return await self._call(piece)

    async def _call_worker(self, way: Any, piece: bytes | memoryview) -> bytes | memoryview:
        try:
            # With a limit, as a network that drops packets ends no connection.
            brought: bytes | memoryview = await asyncio.wait_for(
                way(piece=to_serialize(memoryview(piece))), CALL_SECONDS
            )
        except Exception as error:
            if self._worker is way:  # the first of those on their way to find out
                self._leave_worker(error)
            raise
        return brought

    async def _tell(self, piece: bytes | memoryview) -> None:
        """Put a piece that only asks, unless one of its epoch has just been; raise what those who hear have met."""
        epoch, now = heading(piece)[0], time.monotonic()
        if self._told[0] != epoch or now - self._told[1] > TELL_SECONDS:
            self._told = (epoch, now)
            await self._put(self.up, piece)
        for hearing in self._hearing:
            if hearing.done() and (error := hearing.exception()) is not None:
                self._hearing.remove(hearing)
                self._hearing.append(self._do(self._hear()))
                raise error

    def done(self) -> bool:
        """See `gateway.Grant`."""
        return bool(self.future.done())

    def outcome(self) -> dict[str, Any]:
        """See `gateway.Grant`."""
        self.close()
        said: dict[str, Any] = self.future.result()
        return said

    def cancel(self) -> None:
        """See `gateway.Grant`."""
        self.close()
        self.future.cancel()

    def close(self) -> Future[None]:
        """Remove the queues, and have nobody wait at them. May be called twice."""
        return self._do(self._close())

    async def _close(self) -> None:
        if self._closed:
            return
        self._closed = True
        for name in (self.up, self.down):
            for _ in range(CARRIERS):
                await self._put(name, b"")
        for queue in self._queues:
            queue.close()
