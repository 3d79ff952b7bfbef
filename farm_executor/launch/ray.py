"""Ray, as the gateway speaks with it: servers that are each held by an actor of Ray's, wherever Ray puts it.

This module owns Ray's words. It runs in the gateway alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection
from concurrent.futures import Future
from typing import Any

import ray

from farm_executor.launch.far import CALLS, text
from farm_executor.launch.gateway import RefusedError, Room
from farm_executor.wire.sockets import own_host

__all__ = ["connect"]

# In a process of Ray's, where farm_executor may be missing: so this travels by value, and `far.Far` as text, since
# not all that it uses can be pickled.
_TEXT = """
class Far:
    def __init__(self, text):
        names = {"__name__": "far"}
        exec(text, names)
        self._far = names["Far"]()

    def hold(self, *arguments):
        return self._far.hold(*arguments)

    def exchange(self, piece):
        return bytes(self._far.exchange(piece))
"""

KINDS = ("CPU", "GPU")  # of resources, to tell people of


def connect(config: dict[str, Any]) -> Ray:
    """Return a client of the cluster.

    Raises:
        RefusedError: It asks for a token that this program lacks, or does not take the one that it has.
        Exception: It does not answer.
    """
    try:
        ray.init(config["cluster"], log_to_driver=False, logging_level="ERROR")
    except ray.exceptions.AuthenticationError as error:
        raise RefusedError(str(error)) from None
    except ConnectionError as error:
        if "unauthenticated" in str(error).lower():
            raise RefusedError(str(error)) from None
        raise
    return Ray(config["wanted"])


class Ray:
    """A `gateway.Engine`: its places are numbers, as Ray decides where each server is."""

    def __init__(self, wanted: dict[str, Any]) -> None:
        self._wanted = wanted
        names: dict[str, Any] = {"__name__": "__main__"}  # so that it travels by value
        exec(_TEXT, names)
        self._kind, self._text = names["Far"], text()
        self._numbers = map(str, itertools.count())
        host = wanted["host"] or ray.get_runtime_context().gcs_address.rpartition(":")[0]
        self.here = own_host(host)

    def room(self, taken: Collection[str], most: int | None) -> Room:
        """See `gateway.Engine`."""
        has, free = ray.cluster_resources(), ray.available_resources()
        cpus, per, workers = int(has.get("CPU", 0)), self._wanted["per"], self._wanted["workers"]
        servers = -(-workers // per) if workers else cpus // (self._wanted["cpus"] * per)
        lacking = max((servers if most is None else most) - len(taken), 0)
        places = dict.fromkeys(itertools.islice(self._numbers, lacking), per)
        said = ", ".join(f"{free.get(kind, 0):g} of {has[kind]:g} {kind}s free" for kind in KINDS if kind in has)
        # None is gone of those that are taken: what Ray has lost ends, as Ray sees to, and others must go on.
        return Room(places, [], f"ray has {said or 'nothing'}")

    def place(self, place: str, slots: int, *arguments: str) -> Actor:
        """See `gateway.Engine`."""
        options = {
            "num_cpus": self._wanted["cpus"] * slots,
            "num_gpus": self._wanted["gpus"] * slots,
            "memory": self._wanted["memory"] * slots or None,
            "max_concurrency": 1 + CALLS,
            "max_restarts": 0,  # what is lost is asked for again by the gateway
        }
        actor = ray.remote(**options)(self._kind).remote(self._text)
        return Actor(actor, actor.hold.remote(*arguments))

    def name(self, place: str) -> str:
        """See `gateway.Engine`."""
        return ""

    def close(self) -> None:
        """See `gateway.Engine`."""
        ray.shutdown()


class Actor:
    """A `gateway.Grant`."""

    def __init__(self, actor: Any, reference: Any) -> None:
        self._actor = actor
        self._reference = reference

    def call(self, piece: bytes | memoryview) -> Future[Any]:
        """See `gateway.Grant`."""
        future: Future[Any] = self._actor.exchange.remote(bytes(piece)).future()
        return future

    def done(self) -> bool:
        """See `gateway.Grant`."""
        return bool(ray.wait([self._reference], timeout=0)[0])

    def outcome(self) -> dict[str, Any]:
        """See `gateway.Grant`."""
        said: dict[str, Any] = ray.get(self._reference)
        return said

    def cancel(self) -> None:
        """See `gateway.Grant`."""
        ray.kill(self._actor)
