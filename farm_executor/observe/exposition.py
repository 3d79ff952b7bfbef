"""What Prometheus scrapes: the figures of servers and of a program's farms, as families of metrics.

This module owns their names, labels and meanings. It must not know where they are served.

Every figure is read when it is scraped, and none is kept: counters are those that servers and farms have anyway.
No label has a value for each process, function or client, as their number has no bound.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from farm_executor._record import NamedTuple
from farm_executor.extras import needed
from farm_executor.observe.model import Server, workers_of

if TYPE_CHECKING:
    from farm_executor.client.backing import Backing
    from farm_executor.core.census import Status

__all__ = ["BackingCollector", "ServerCollector", "exposition"]

STATES = ("starting", "idle", "busy", "stopped")
CAUSES = ("ended", "killed", "held", "frozen", "oom", "signal", "exit")
OUTCOMES = ("succeeded", "failed", "cancelled", "lost", "killed")

_UP = (("up", True), ("away", False))
_ANSWERING = ("open", "draining")

Samples = list[tuple[Mapping[str, str], float]]
"""Labels beside those of the server or farm, and a value."""


class Family(NamedTuple):
    """One metric.

    Attributes:
        kind: "gauge" or "counter".
        name: Without ``_total``, which a counter gets.
        text: What it counts.
        samples: Reads the values.
        labels: The labels beside those of the server or farm.
    """

    kind: str
    name: str
    text: str
    samples: Callable[[Any], Samples]
    labels: tuple[str, ...] = ()


def _one(read: Callable[[Any], float]) -> Callable[[Any], Samples]:
    return lambda source: [({}, float(read(source)))]


def _by(label: str, read: Callable[[Any], Mapping[str, float]]) -> Callable[[Any], Samples]:
    return lambda source: [({label: value}, float(number)) for value, number in read(source).items()]


def _states(status: Status) -> dict[str, float]:
    workers = workers_of(status)
    return {state: sum(worker.state == state for worker in workers) for state in STATES}


def _info(status: Status) -> Samples:
    versions = status.versions
    return [({"version": versions.farm_executor, "python": versions.python, "host": status.host}, 1.0)]


OF_SERVERS = (
    Family("gauge", "farm_server_info", "What runs on the server.", _info, ("version", "python", "host")),
    Family(
        "gauge",
        "farm_server_start_time_seconds",
        "When the server was started, in seconds since 1970, by its clock.",
        _one(lambda status: status.now - status.seconds),
    ),
    Family("gauge", "farm_server_draining", "Whether it takes no new clients.", _one(lambda s: s.draining)),
    Family("gauge", "farm_server_slots", "Workers that each client may have.", _one(lambda s: s.slots)),
    Family("gauge", "farm_server_sessions", "Clients that it has now.", _one(lambda s: len(s.sessions))),
    Family("gauge", "farm_server_workers", "Workers, by state.", _by("state", _states), ("state",)),
    Family(
        "gauge",
        "farm_server_worker_memory_bytes",
        "Memory that all workers hold for themselves.",
        _one(lambda s: sum(worker.memory for worker in workers_of(s)) * 1024 * 1024),
    ),
    Family("counter", "farm_server_sessions_opened", "Clients so far.", _one(lambda s: s.totals.sessions)),
    Family("counter", "farm_server_workers_started", "Workers so far.", _one(lambda s: s.totals.workers_started)),
    Family(
        "counter",
        "farm_server_workers_ended",
        "Workers that have ended, by cause.",
        _by("cause", lambda s: {cause: s.totals.workers_ended.get(cause, 0) for cause in CAUSES}),
        ("cause",),
    ),
    Family(
        "counter",
        "farm_server_tasks_begun",
        "Tasks begun; a block of a map's items is one.",
        _one(lambda s: s.totals.tasks_begun),
    ),
    Family(
        "counter",
        "farm_server_busy_seconds",
        "Seconds in which workers have run tasks.",
        _one(lambda s: s.totals.busy_seconds),
    ),
    Family("counter", "farm_server_received_bytes", "Bytes to workers.", _one(lambda s: s.totals.received)),
    Family("counter", "farm_server_sent_bytes", "Bytes from workers.", _one(lambda s: s.totals.sent)),
)
OF_FARMS = (
    Family(
        "gauge",
        "farm_client_tasks",
        "Calls that have not ended, by state.",
        _by("state", lambda numbers: {"queued": numbers.queued, "running": numbers.running}),
        ("state",),
    ),
    Family(
        "gauge",
        "farm_client_workers",
        "Workers of this farm on all its servers.",
        _one(lambda numbers: sum(len(server.workers) for server in numbers.servers)),
    ),
    Family(
        "gauge",
        "farm_client_servers",
        "Servers of this farm, by whether there is a connection now.",
        _by("state", lambda n: {state: sum(one.up is up for one in n.servers) for state, up in _UP}),
        ("state",),
    ),
    Family(
        "gauge",
        "farm_client_pending_bytes",
        "Bytes held for the arguments of calls that have not ended.",
        _one(lambda numbers: numbers.pending_bytes),
    ),
    Family("counter", "farm_client_tasks_submitted", "Calls so far.", _one(lambda numbers: numbers.submitted)),
    Family(
        "counter",
        "farm_client_tasks_settled",
        "Calls that have ended, by outcome.",
        _by("outcome", lambda numbers: {outcome: getattr(numbers, outcome) for outcome in OUTCOMES}),
        ("outcome",),
    ),
    Family(
        "counter",
        "farm_client_tasks_resubmitted",
        "How often a call was moved away from a lost worker.",
        _one(lambda numbers: numbers.resubmitted),
    ),
)


def _families(families: Sequence[Family], label: str, sources: Sequence[tuple[str, Any]]) -> Iterator[Any]:
    core = needed("prometheus_client.core", "metrics", "What Prometheus scrapes")
    kinds = {"gauge": core.GaugeMetricFamily, "counter": core.CounterMetricFamily}
    for family in families:
        made = kinds[family.kind](family.name, family.text, labels=[label, *family.labels])
        for name, source in sources:
            for labels, value in family.samples(source):
                made.add_metric([name, *[labels[key] for key in family.labels]], value)
        yield made


class ServerCollector:
    """A collector of what servers count, with the label ``server``.

    Args:
        look: Returns the servers, as they are known now.
    """

    def __init__(self, look: Callable[[], Iterable[Server]]) -> None:
        self._look = look

    def collect(self) -> Iterator[Any]:
        """Return the families, for prometheus_client."""
        servers = list(self._look())
        up = Family("gauge", "farm_server_up", "Whether it answers.", _one(lambda s: s.state in _ANSWERING))
        yield from _families((up,), "server", [(server.name, server) for server in servers])
        known = [(server.name, server.status) for server in servers if server.state in _ANSWERING]
        yield from _families(OF_SERVERS, "server", known)


class BackingCollector:
    """A collector of what this program's farms count, with the label ``farm``; see `farm_executor.metrics`."""

    def __init__(self, farms: Iterable[Backing]) -> None:
        self._farms: dict[str, weakref.ref[Backing]] = {}
        for backing in farms:
            name = backing.settings.name or backing.supply.describe()
            if name in self._farms:
                raise ValueError(f"two farms are called {name!r}: make them with FarmExecutor(name=...)")
            # Weakly: an executor that nobody has any more ends, whoever counts.
            self._farms[name] = weakref.ref(backing)

    def collect(self) -> Iterator[Any]:
        """Return the families, for prometheus_client."""
        there = [(name, backing()) for name, backing in self._farms.items()]
        numbers = [(name, farm.statistics()) for name, farm in there if farm is not None]
        yield from _families(OF_FARMS, "farm", numbers)


def exposition(*collectors: Any) -> bytes:
    """Return what a scrape of these collectors returns, in Prometheus' text format.

    Raises:
        ModuleNotFoundError: prometheus_client is not installed.
    """
    prometheus = needed("prometheus_client", "metrics", "What Prometheus scrapes")
    # A registry of its own: the default one is the program's, and may have families of its own choice.
    registry = prometheus.CollectorRegistry()
    for collector in collectors:
        registry.register(collector)
    text: bytes = prometheus.generate_latest(registry)
    return text
