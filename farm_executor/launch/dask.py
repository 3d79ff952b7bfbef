"""Dask, as the gateway speaks with it: a server beside each worker of the cluster's, held by a task there.

This module owns Dask's words. It runs in the gateway alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection
from typing import Any

import distributed

from farm_executor.launch.gateway import ANSWER_SECONDS, Room
from farm_executor.wire.sockets import own_host

__all__ = ["connect"]


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

    def place(self, place: str, slots: int, hold: Callable[..., dict[str, Any]], *arguments: str) -> Task:
        """See `gateway.Engine`."""
        options: dict[str, Any] = {"workers": [place]} if "://" in place else {}
        if self._resources:
            options["resources"] = {name: amount * slots for name, amount in self._resources.items()}
        return Task(self._client.submit(hold, *arguments, pure=False, retries=0, **options))

    def name(self, place: str) -> str:
        """See `gateway.Engine`."""
        return place.partition("://")[2]  # empty for a number

    def close(self) -> None:
        """See `gateway.Engine`."""
        self._client.close(ANSWER_SECONDS)


class Task:
    """A `gateway.Grant`."""

    def __init__(self, future: Any) -> None:
        self._future = future
        self.done = future.done
        self.cancel = future.cancel
        self.outcome = future.result
