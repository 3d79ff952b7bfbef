"""In distributed's place: a cluster whose workers are threads of the process that asks it.

The file that ``FAKE_DASK`` names says, in JSON, what there is: ``lacking`` for a package that is not installed,
``unreachable`` for a scheduler that does not answer, ``threads`` of each worker by its address, what a task
``says`` in place of running, and what becomes of ``calls``: they "fail", "stall", or are answered out of "order".
The same with ``queues``, the calls to the scheduler's, and ``direct``, those to the workers themselves.
"""

import asyncio
import itertools
import json
import os
import threading
import types
from concurrent.futures import Future as _Future


def _cluster():
    with open(os.environ["FAKE_DASK"]) as file:
        return json.load(file)


if lacking := _cluster().get("lacking"):
    raise ImportError(f"No module named {lacking!r}", name=lacking)

_here = threading.local()
_handlers = {}
_numbers = itertools.count()


async def _call_passes(kind):
    cluster, number = _cluster(), next(_numbers)
    how = cluster.get(kind) or cluster.get("calls")
    if how == "fail":
        raise OSError("the engine has hung up")
    if how == "stall":
        await asyncio.Event().wait()
    if how == "order":
        await asyncio.sleep((0.02, 0.0, 0.01)[number % 3])


def get_worker():
    return _here.worker


class Future(_Future):
    @property
    def status(self):
        return "error" if self.done() and self.exception() else "finished"


class _Worker:
    """Seen by a task that runs there."""

    def __init__(self, address, client):
        self.contact_address = address
        self.handlers = _handlers
        self.scheduler = client.scheduler
        self.loop = client.loop


class _Scheduler:
    """Has the queues."""

    def __init__(self):
        self._queues = {}

    def queue_create(self, name):
        self._queues[name] = asyncio.Queue()

    async def queue_put(self, name, data):
        await _call_passes("queues")
        self._queues[name].put_nowait(data)

    async def queue_get(self, name):
        return {"value": await self._queues[name].get()}

    def queue_release(self, name):
        del self._queues[name]


class Queue:
    def __init__(self, name, client):
        self._name, self._scheduler = name, client.scheduler

    def __await__(self):
        self._scheduler.queue_create(self._name)
        return self
        yield

    def close(self):
        self._scheduler.queue_release(self._name)


class _Rpc:
    """Calls to a worker."""

    def __getattr__(self, name):
        async def call(piece):
            await _call_passes("direct")
            return await _handlers[name](piece)

        return call


class Client:
    def __init__(self, address, timeout, set_as_default):
        if words := _cluster().get("unreachable"):
            raise OSError(words)
        self.scheduler = _Scheduler()
        self.loop = types.SimpleNamespace(asyncio_loop=asyncio.new_event_loop())
        threading.Thread(target=self.loop.asyncio_loop.run_forever, daemon=True).start()

    def nthreads(self):
        if words := _cluster().get("unreachable"):
            raise OSError(words)
        return _cluster()["threads"]

    def rpc(self, address):
        return _Rpc()

    def submit(self, function, *args, key, pure, retries, workers=None, resources=None):
        if resources:
            with open(os.environ["FAKE_DASK"] + ".asked", "a") as file:
                file.write(json.dumps(resources) + "\n")
        future = Future()
        address = workers[0] if workers else f"tcp://{key}"
        worker = _Worker(address, self)

        def run():
            _here.worker = worker
            try:
                future.set_result(_cluster().get("says") or function(*args))
            except Exception as error:
                future.set_exception(error)

        threading.Thread(target=run, daemon=True).start()
        return future

    def close(self, timeout):
        pass
