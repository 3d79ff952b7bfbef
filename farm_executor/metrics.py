"""A program's farms for Prometheus: the extra ``metrics``, which brings prometheus_client.

::

    import prometheus_client

    from farm_executor import FarmExecutor, metrics

    farm = FarmExecutor(["hostA:11111", "hostB:11111"], name="gridsearch")
    prometheus_client.REGISTRY.register(metrics.collector(farm))
    prometheus_client.start_http_server(9100)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from farm_executor.client.front import Front, backing_of
from farm_executor.extras import needed
from farm_executor.observe.exposition import BackingCollector

__all__ = ["Collector", "collector"]


class Collector(Protocol):
    """What a registry of prometheus_client's accepts."""

    def collect(self) -> Iterator[Any]:
        """Return the families of metrics as they are now."""


def collector(*farms: Front) -> Collector:
    """Return a collector to be registered with prometheus_client, of one farm or several.

    Each figure has the label ``farm``: the executor's ``name``, or else where its servers are. The farms are not
    kept alive by it; one that is gone has no figures any more.

    Args:
        farms: The executors. Give all of a program's to one collector, as a metric may be registered once.

    Raises:
        ModuleNotFoundError: prometheus_client is not installed; the message names the extra that brings it.
        TypeError: A farm is no executor.
        ValueError: Two farms have the same name, or there is none.

    Thread safety: it may be asked from any thread; a scrape takes as long as `FarmExecutor.statistics`.
    """
    needed("prometheus_client", "metrics", "A collector")
    if not farms:
        raise ValueError("a collector needs a farm: collector(farm)")
    for farm in farms:
        if not isinstance(farm, Front):
            raise TypeError(f"a farm must be a FarmExecutor, not {farm!r:.100}")
    return BackingCollector(map(backing_of, farms))
