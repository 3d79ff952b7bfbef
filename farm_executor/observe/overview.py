"""What a dashboard shows of servers that are watched: no tasks, as servers read none.

This module owns which of their figures are shown. It must not know how, nor who is told.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from farm_executor.observe.model import Server, clients_of, workers_of
from farm_executor.observe.series import Cursor, Series, Table, bad, cells, digit, seconds, tile
from farm_executor.observe.watching import Watching

__all__ = ["Overview"]

MAX_ROWS = 2000  # workers of the heat map
MAX_DEATHS = 50
STATES = {"down": True, "draining": False, "open": False, "connecting": False}


class Overview:
    """The counterpart of `Recorder` for servers.

    Args:
        watching: The servers.

    Thread safety: any thread may call any method.
    """

    def __init__(self, watching: Watching) -> None:
        self._watching = watching
        self._lock = threading.Lock()
        self._began = time.perf_counter()
        self.started = time.time()
        self._rows: dict[tuple[str, int], int] = {}
        self._history: Series[list[float]] = Series(600)
        self._heat: Series[str] = Series(600)

    def sample(self) -> None:
        """Ask all servers, and note what they say, once a second."""
        with self._lock:
            self._watching.tick(0.3)
            now = time.perf_counter() - self._began
            up = self._up()
            rate = sum(server.rates.tasks for server in up)
            queued, running = self._waiting(up)
            self._history.append([round(now, 2), round(rate, 1), queued, running])
            levels = {}
            for server in up:
                assert server.status is not None
                for worker in workers_of(server.status):
                    # A task that began before the last look, and has not ended, has kept it busy all the time.
                    share = server.rates.workers.get(int(worker.pid), (0.0,))[0]
                    share = 1.0 if worker.state == "busy" and worker.running_for > 1.0 else share
                    key = (server.name, int(worker.slot) + 1000 * int(worker.session))
                    if key in self._rows or len(self._rows) < MAX_ROWS:
                        levels[self._rows.setdefault(key, len(self._rows))] = digit(share)
            self._heat.append("".join(levels.get(row, " ") for row in range(len(self._rows))))

    def document(self, cursor: Cursor) -> tuple[dict[str, Any], Cursor]:
        """Return what is new since a cursor, for JSON, and the cursor that follows."""
        with self._lock:
            servers = list(self._watching.servers.values())
            history, noted = self._history.since(cursor.history)
            heat, warmed = self._heat.since(cursor.heat)
            document = {
                "started": self.started,
                "now": round(time.perf_counter() - self._began, 3),
                "title": f"{len(servers)} server{'' if len(servers) == 1 else 's'}",
                "state": "",
                "names": [],
                "rows": [f"{name} #{slot % 1000}" for name, slot in self._rows],
                "hot": True,
                "pieces": {"first": 0, "new": []},
                "running": [],
                "history": {"first": noted - len(history), "new": history},
                "heat": {"first": warmed - len(heat), "new": heat},
                "tiles": self._tiles(servers),
                "maps": [],
                "tables": [_server_table(servers), _client_table(servers), *_death_tables(servers)],
                "failures": None,
            }
        return document, Cursor(0, 0, noted, warmed)

    def _up(self) -> list[Server]:
        servers = self._watching.servers.values()
        return [server for server in servers if server.status is not None and not server.error]

    def _waiting(self, up: list[Server]) -> tuple[int, int]:
        farms = [client.farm for client in clients_of(up) if client.farm is not None]
        return sum(farm.queued for farm in farms), sum(farm.running for farm in farms)

    def _tiles(self, servers: list[Server]) -> list[Any]:
        up = self._up()
        workers = [worker for server in up if server.status is not None for worker in workers_of(server.status)]
        queued, _ = self._waiting(up)
        deaths = sum(server.deaths for server in up)
        return [
            tile(f"{len(up)} / {len(servers)}", "servers answer", wrong=len(up) < len(servers)),
            tile(f"{sum(worker.state == 'busy' for worker in workers)} / {len(workers)}", "workers busy"),
            tile(round(sum(server.rates.tasks for server in up)), "tasks a second"),
            tile(queued, "calls waiting"),
            tile(len(clients_of(up)), "clients"),
            tile(deaths, "workers died", wrong=deaths > 0),
        ]


def _server_table(servers: list[Server]) -> Table:
    rows: list[list[Any]] = []
    for server in sorted(servers, key=lambda one: (list(STATES).index(one.state), -one.deaths, one.name)):
        status = server.status
        if status is None or server.error:
            rows.append([server.name, bad(f"{server.state}: {server.error}"), "", "", "", "", ""])
            continue
        machine = status.machine
        load = f"{machine.load[0]:.1f} of {machine.cpus:g}" if machine.load else ""
        memory = f"{1 - machine.available / machine.memory:.0%}" if machine.memory and machine.available else ""
        workers = workers_of(status)
        busy = cells("9" if worker.state == "busy" else "0" for worker in workers)
        died = bad(server.deaths) if server.deaths else 0
        rows.append([server.name, server.state, busy, round(server.rates.tasks), load, memory, died])
    return Table("Servers", ["server", "state", "workers", "tasks/s", "load", "memory", "deaths"], rows)


def _client_table(servers: list[Server]) -> Table:
    rows = []
    for client in clients_of(servers):
        farm = client.farm
        said: list[Any] = ["", "", ""]
        if farm is not None:
            said = [farm.queued, farm.succeeded, bad(farm.failed) if farm.failed else 0]
        whose = f"{client.user}@{client.host}, pid {client.pid}"
        rows.append([client.name, whose, client.workers, client.busy, *said, seconds(client.seconds)])
    columns = ["client", "of", "workers", "busy", "waiting", "succeeded", "failed", "up"]
    return Table("Clients", columns, rows)


def _death_tables(servers: list[Server]) -> list[Table]:
    found = [(death, one.name) for one in servers if one.status is not None for death in one.status.deaths]
    found.sort(key=lambda pair: -pair[0].at)
    rows: list[list[Any]] = []
    for death, name in found[:MAX_DEATHS]:
        when = time.strftime("%H:%M:%S", time.localtime(death.at))
        rows.append([when, name, death.slot, death.pid, bad(death.cause), death.code])
    return [Table("Deaths of workers", ["when", "server", "slot", "pid", "cause", "code"], rows)] if rows else []
