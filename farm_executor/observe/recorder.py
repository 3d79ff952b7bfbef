"""What a dashboard shows of a program's own farm, kept as it happens: bounded, whatever the farm does.

This module owns what is kept and for how long. It must not know how it is shown, nor who is told.

A *piece* is a call, or calls of one function one after another on one worker: a flood of short ones makes at most
four pieces a second and worker. A farm of more than `MAX_ROWS` workers has a heat map instead, one digit for each
worker and second.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from farm_executor._record import NamedTuple
from farm_executor.client.farm.observer import SeenWorker, View
from farm_executor.observe.series import Cursor, Series, Table, bad, cells, digit, part, seconds, tile

if TYPE_CHECKING:
    from farm_executor.client.farm.call import Call
    from farm_executor.client.farm.lane import Lane

__all__ = ["Recorder"]

MAX_PIECES = 20_000
MAX_ROWS = 100  # workers with pieces
MERGED = 0.02  # seconds between two results that are drawn as one piece
LONGEST = 0.25  # seconds of a piece of several calls
MAX_NAMES = 200  # functions that are told apart
MAX_FAILURES, MAX_TRACEBACK, MAX_OUTPUT = 100, 6000, 2000
TRACEBACKS_A_SECOND = 20  # of failures; of further ones only the numbers are kept
MAX_MAPS, OVER_MAPS = 12, 3
OTHERS = "(other functions)"


class Function:
    """What is known of one function."""

    __slots__ = ("calls", "failed", "number", "seconds", "slowest")

    def __init__(self, number: int) -> None:
        self.number = number
        self.calls = self.failed = 0
        self.seconds = self.slowest = 0.0


class Mapping:
    """How far one map has come. It is a `progress.Show`."""

    def __init__(self, label: str, started: float) -> None:
        self.label = label
        self.started = started
        self.done = self.failed = 0
        self.total: int | None = None
        self.over = False

    def draw(self, done: int, failed: int, total: int | None) -> None:
        """See `progress.Show`."""
        self.done, self.failed, self.total = done, failed, total

    def close(self) -> None:
        """See `progress.Show`."""
        self.over = True


class Answered(NamedTuple):
    """What is known of a worker from its last result."""

    calls: int
    busy: float
    at: float


class Recorder:
    """An `observer.Observer`; see the module.

    Args:
        view: Returns what can be seen of the farm now; None if it has not been started, or is gone.
        title: What the farm is.

    Thread safety: any thread may call any method.
    """

    def __init__(self, view: Callable[[], View | None], title: str) -> None:
        self._view = view
        self._title = title
        # Reentrant, as a handler of the user's may come at any point.
        self._lock = threading.RLock()
        self._began = time.perf_counter()
        self.started = time.time()
        self._pieces: Series[list[Any]] = Series(MAX_PIECES)
        self._growing: dict[int, list[Any]] = {}  # by lane
        self._answered: dict[int, Answered] = {}  # by lane
        self._rows: dict[tuple[str, int], int] = {}
        self._functions: dict[str, Function] = {}
        self._failures: Series[dict[str, Any]] = Series(MAX_FAILURES)
        self._told = 0, 0  # the second, and the tracebacks in it
        self._maps: deque[Mapping] = deque(maxlen=MAX_MAPS)
        self._history: Series[list[float]] = Series(600)
        self._heat: Series[str] = Series(600)
        self._busy: dict[int, float] = {}  # by lane, at the last sample
        self._calls = self._failing = 0
        self._were: dict[int, list[Any]] = {}  # by lane, what ran at the last sample, as a piece
        self._sampled = 0.0, 0

    # -- told by the farm ----------------------------------------------------------------------------------

    def answered(self, lane: Lane, calls: list[Call], settle: Callable[[], None]) -> None:
        """See `observer.Observer`."""
        # Before: a call that is settled has dropped its function.
        names = Counter([call.name for call in calls])
        self._failing = 0  # counted by `failed`, which is called meanwhile, in this thread
        settle()
        now = time.perf_counter() - self._began
        with self._lock:
            before = self._answered.get(lane.id) or Answered(0, 0.0, 0.0)
            # A worker may give back a part of a block, so what it has done is known only now.
            count, busy = lane.calls_done - before.calls, max(lane.busy_seconds - before.busy, 0.0)
            self._answered[lane.id] = Answered(lane.calls_done, lane.busy_seconds, now)
            self._calls += count
            for name, number in names.items():
                share = number / len(calls)
                function = self._function(name)
                function.calls += round(count * share)
                function.seconds += busy * share
                if count > 0:
                    function.slowest = max(function.slowest, busy / count)
            (name, _), *_ = names.most_common(1)
            self._draw(lane, self._function(name).number, now, count, busy)

    def _draw(self, lane: Lane, number: int, now: float, count: int, busy: float) -> None:
        """Add calls to the last piece of a worker, or begin another."""
        if len(self._rows) > MAX_ROWS:
            return
        began = max(now - busy, self._growing[lane.id][2] if lane.id in self._growing else 0.0)
        piece = self._growing.get(lane.id)
        near = piece is not None and began - piece[2] < MERGED and piece[2] - piece[1] < LONGEST
        if piece is not None and near and piece[3] == number and not piece[6] and not self._failing:
            piece[2], piece[4], piece[5] = now, piece[4] + count, piece[5] + busy
            return
        row = self._row(lane.server, lane.slot)
        self._growing[lane.id] = piece = [row, began, now, number, count, busy, self._failing]
        self._pieces.append(piece)

    def failed(self, name: str, calls: int, error: BaseException, end: str, output: str) -> None:
        """See `observer.Observer`."""
        now = time.time()
        self._failing += calls
        with self._lock:
            self._function(name).failed += calls
            second, told = self._told
            told = told + 1 if second == int(now) else 1
            self._told = int(now), told
            if told > TRACEBACKS_A_SECOND:
                return
        text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        failure = {
            "at": round(now, 1),
            "function": name,
            "end": end,
            "type": type(error).__qualname__,
            "message": _text(error)[:300],
            "traceback": text[-MAX_TRACEBACK:],
            "output": output[-MAX_OUTPUT:],
        }
        with self._lock:
            self._failures.append(failure)

    def mapping(self, label: str) -> Mapping:
        """See `observer.Observer`."""
        mapping = Mapping(label, time.perf_counter() - self._began)
        with self._lock:
            self._maps.append(mapping)
        return mapping

    def _function(self, name: str) -> Function:
        name = name or "?"
        if name not in self._functions:
            if len(self._functions) >= MAX_NAMES:
                name = OTHERS
            self._functions.setdefault(name, Function(len(self._functions)))
        return self._functions[name]

    def _row(self, server: str, slot: int) -> int:
        return self._rows.setdefault((server, slot), len(self._rows))

    # -- asked by the page ---------------------------------------------------------------------------------

    def sample(self) -> None:
        """Note a moment: for the curves and the heat map, once a second."""
        view = self._view()
        if view is None:
            return
        now = time.perf_counter() - self._began
        with self._lock:
            before, calls = self._sampled
            passed = max(now - before, 0.001)
            self._sampled = now, self._calls
            rate = (self._calls - calls) / passed
            self._history.append([round(now, 2), round(rate, 1), view.counts.queued, view.counts.running])
            levels = {}
            busy = {}
            were: dict[int, list[Any]] = {}
            for server in view.servers:
                for worker in server.workers:
                    busy[worker.lane] = worker.busy
                    share = (worker.busy - self._busy.get(worker.lane, worker.busy)) / passed
                    since = self._since(worker)
                    if worker.running and since is not None:
                        share = max(share, (now - max(since, before)) / passed)
                    row = self._row(server.address, worker.slot)
                    levels[row] = digit(share)
                    if since is not None:
                        number = self._function(worker.running).number
                        were[worker.lane] = [row, since, now, number, 1, now - since, 1]
            # Those that have died of what they ran: no result says so.
            self._pieces_of([self._were[lane] for lane in set(self._were) - set(busy)], now)
            self._busy, self._were = busy, were
            self._heat.append("".join(levels.get(row, " ") for row in range(len(self._rows))))
            for gone in set(self._answered) - set(busy):
                self._answered.pop(gone)
                self._growing.pop(gone, None)

    def _pieces_of(self, lost: list[list[Any]], now: float) -> None:
        for row, since, _, number, *_ in lost:
            if len(self._rows) <= MAX_ROWS:
                self._pieces.append([row, since, now, number, 1, now - since, 1])

    def _since(self, worker: SeenWorker) -> float | None:
        """Return since when a worker has run what it runs, by our clock."""
        if not worker.running:
            return None
        known = self._answered.get(worker.lane)
        sent = 0.0 if worker.sent is None else worker.sent - self._began
        return max(sent, 0.0 if known is None else known.at)

    def document(self, cursor: Cursor) -> tuple[dict[str, Any], Cursor]:
        """Return what is new since a cursor, for JSON, and the cursor that follows."""
        view = self._view()
        now = time.perf_counter() - self._began
        with self._lock:
            servers = [] if view is None else view.servers
            running = []
            for server in servers:
                for worker in server.workers:
                    since = self._since(worker)
                    if since is not None:
                        number = self._function(worker.running).number
                        running.append([self._row(server.address, worker.slot), round(since, 4), number])
            hot = len(self._rows) > MAX_ROWS
            # The last pieces may still grow, so they are told again.
            pieces, behind = self._pieces.since(cursor.pieces)
            growing = min(len(self._growing) + 20, len(pieces))
            failures, failed = self._failures.since(cursor.failures)
            history, noted = self._history.since(cursor.history)
            heat, warmed = self._heat.since(cursor.heat)
            document = {
                "started": self.started,
                "now": round(now, 4),  # as exactly as what has begun before
                "title": self._title,
                "state": "not started" if view is None else view.state,
                "names": list(self._functions),
                "rows": [f"{_place(server)} #{slot}" for server, slot in self._rows],
                "hot": hot,
                "pieces": {"first": behind - len(pieces), "new": [] if hot else [_rounded(one) for one in pieces]},
                "running": running,
                "history": {"first": noted - len(history), "new": history},
                "heat": {"first": warmed - len(heat), "new": heat if hot else []},
                "tiles": self._tiles(view),
                "maps": self._shown_maps(),
                "tables": [self._function_table(), _server_table(servers), *self._worker_table(servers, now, hot)],
                "failures": {"first": failed - len(failures), "new": failures},
            }
        return document, Cursor(behind - growing, failed, noted, warmed)

    def _shown_maps(self) -> list[dict[str, Any]]:
        """Return the maps that go on, and the last that are over; the newest comes first."""
        last = [one for one in self._maps if one.over][-OVER_MAPS:]
        return [_map(one) for one in reversed(self._maps) if not one.over or one in last]

    def _tiles(self, view: View | None) -> list[Any]:
        if view is None:
            return [tile("not started", "the farm starts with its first task")]
        workers = [worker for server in view.servers for worker in server.workers]
        counts = view.counts
        wrong = counts.failed + counts.lost + counts.killed
        rate = self._history.last[1] if len(self._history) else 0.0
        return [
            tile(f"{sum(bool(worker.running) for worker in workers)} / {len(workers)}", "workers busy"),
            tile(round(rate), "calls a second"),
            tile(counts.queued, "calls waiting"),
            tile(counts.running, "sent to workers"),
            tile(counts.succeeded, "succeeded"),
            tile(wrong, "failed, lost, killed", wrong=wrong > 0),
            tile(counts.resubmitted, "tried again"),
        ]

    def _function_table(self) -> Table:
        total = sum(one.seconds for one in self._functions.values()) or 1.0
        most = sorted(self._functions.items(), key=lambda item: -item[1].seconds)[:20]
        rows = [
            [
                name,
                one.calls,
                seconds(one.seconds / one.calls) if one.calls else "-",
                seconds(one.slowest),
                bad(one.failed) if one.failed else 0,
                part(one.seconds / total, one.number),
            ]
            for name, one in most
        ]
        return Table("Functions", ["function", "calls", "mean", "slowest", "failed", "share of time"], rows)

    def _worker_table(self, servers: Iterable[Any], now: float, hot: bool) -> list[Table]:
        if hot:
            return []
        rows = [
            [
                f"{_place(server.address)} #{worker.slot}",
                worker.pid,
                worker.running or "idle",
                "" if (since := self._since(worker)) is None else seconds(now - since),
                worker.calls,
            ]
            for server in servers
            for worker in server.workers
        ]
        return [Table("Workers", ["worker", "pid", "runs", "for", "calls"], rows)] if rows else []


def _server_table(servers: Iterable[Any]) -> Table:
    rows = [
        [
            _place(server.address),
            "up" if server.up else bad(f"away: {server.error or 'not connected'}"),
            cells("9" if worker.running else "0" for worker in server.workers),
            sum(worker.calls for worker in server.workers),
            seconds(sum(worker.busy for worker in server.workers)),
        ]
        for server in servers
    ]
    return Table("Servers", ["server", "state", "workers", "calls", "busy"], rows)


def _place(server: str) -> str:
    return "this machine" if server.startswith("unix:") else server


def _rounded(piece: list[Any]) -> list[Any]:
    return [piece[0], round(piece[1], 4), round(piece[2], 4), piece[3], piece[4], round(piece[5], 5), piece[6]]


def _map(one: Mapping) -> dict[str, Any]:
    return {"label": one.label, "done": one.done, "total": one.total, "failed": one.failed, "over": one.over}


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException:  # the class's own code, which may even try to exit
        return "(its text could not be had)"
