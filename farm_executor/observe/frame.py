"""A frame of `farm-executor top`: what is known of servers as lines of text with styles.

This module owns the layout: which columns there are, and which go first where there is no room. It must not know
terminals. A frame is a function of what is known, what the user has chosen, and the size. No line is wider than
that, and no character of a peer's is one that steers a terminal.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from farm_executor._record import NamedTuple
from farm_executor.core.census import Death
from farm_executor.core.text import cut, one_line, width_of
from farm_executor.observe.model import Client, Server, Worker, clients_of, workers_of

__all__ = ["SORTS", "Choices", "Line", "frame", "shown_servers"]

Line = list[tuple[str, str]]
"""Texts with a style each: "", "bold", "dim", "red", "alarm", "green", "yellow", "cyan", "head" or "chosen"."""

LEFT, RIGHT = "<", ">"
MAX_CELL = 200  # characters of a peer's that are looked at
STRIP_FROM = 40  # servers, from which there is a strip with a character for each
CLIENTS, DEATHS = 5, 3  # lines
MIN_BODY = 3
HELP = " q quit  up/down select  enter open  esc back  s sort  / filter  p pause  +/- interval"


@dataclass
class Choices:
    """What the user has chosen.

    Attributes:
        sort: One of `SORTS`.
        selected: The number of the line.
        opened: The server whose workers are shown; empty for all servers.
        filter: Only servers whose names contain this.
        typing: Whether the filter is being typed.
        paused: Whether nothing is asked.
        interval: Seconds between two questions.
        live: Whether the frame is of a screen that stays.
        blocks: Whether the terminal can show blocks; else bars are of ASCII.
    """

    sort: str = "attention"
    selected: int = 0
    opened: str = ""
    filter: str = ""
    typing: bool = False
    paused: bool = False
    interval: float = 1.0
    live: bool = True
    blocks: bool = True


class Column(NamedTuple):
    """A column; that with the lowest priority goes first when there is no room. One that gives may be cut."""

    title: str
    align: str
    priority: int
    least: int = 0
    gives: bool = False


Cell = tuple[str, str]


def _attention(server: Server) -> tuple[int, str]:
    return ({"down": 0, "draining": 1, "connecting": 2}.get(server.state, 3 if server.deaths else 4), server.name)


SORTS = {
    "attention": _attention,
    "busy": lambda server: (-server.rates.busy, server.name),
    "name": lambda server: (0, server.name),
    "tasks": lambda server: (-server.rates.tasks, server.name),
}


def shown_servers(servers: Iterable[Server], choices: Choices) -> list[Server]:
    """Return the servers that the filter lets through, sorted."""
    return sorted((one for one in servers if choices.filter in one.name), key=SORTS[choices.sort])


def frame(servers: Sequence[Server], choices: Choices, width: int, height: int, clock: str = "") -> list[Line]:
    """Return at most ``height`` lines of at most ``width`` columns."""
    shown = shown_servers(servers, choices)
    opened = next((one for one in servers if one.name == choices.opened), None)
    if opened is None and len(servers) == 1:
        opened = servers[0]
    if opened is not None:
        shown = [opened]
    lines = [_summary(servers, choices, clock)]
    if opened is None and len(servers) > STRIP_FROM:
        lines += _strip(servers, width, choices.blocks)
    if opened is not None:
        lines.append(_machine(opened))
    clients = clients_of(shown)
    told = clients[: min(CLIENTS, max(height - len(lines) - MIN_BODY - 6, 0))]
    if told:
        lines += [[], *_table(CLIENT, [_client(one) for one in told], width)]
        if len(clients) > len(told):
            lines[-1] = [*lines[-1], (f"  and {len(clients) - len(told)} more", "dim")]
    found = sorted(
        ((death, one) for one in shown if one.status is not None for death in one.status.deaths),
        key=lambda pair: -pair[0].at,
    )[:DEATHS]
    below = (len(found) + 2 if found else 0) + choices.live
    room = max(height - len(lines) - below - 3, MIN_BODY)
    if opened is not None and opened.status is not None and not opened.error:
        names = {one.id: one.label or one.program for one in opened.status.sessions}
        workers = workers_of(opened.status)
        first = _first(choices, len(workers), room)
        rows = [_worker(opened, one, names, choices.blocks) for one in workers[first : first + room]]
        lines += [[], *_table(WORKER, rows, width, chosen=choices.selected - first if choices.live else None)]
        hidden = len(workers) - len(rows)
    else:
        first = _first(choices, len(shown), room)
        rows = [_server(one, choices.blocks) for one in shown[first : first + room]]
        lines += [[], *_table(SERVER, rows, width, chosen=choices.selected - first if choices.live else None)]
        hidden = len(shown) - len(rows)
    if hidden > 0:
        lines.append([(f" {hidden:,} more; by {choices.sort}", "dim")])
    if found:
        lines += [[], *_table(DEATH, [_death(death, one) for death, one in found], width)]
    if choices.live:
        lines = lines[: height - 1]
        lines.append([(f" filter: {choices.filter}_", "bold")] if choices.typing else [(HELP, "dim")])
    return [_cut(line, width) for line in lines[:height]]


def _first(choices: Choices, count: int, room: int) -> int:
    return max(0, min(choices.selected - room // 2, count - room))


def _summary(servers: Sequence[Server], choices: Choices, clock: str) -> Line:
    up = [one for one in servers if one.state in ("open", "draining")]
    workers = [worker for one in up if one.status is not None for worker in workers_of(one.status)]
    busy = sum(worker.state == "busy" for worker in workers)
    queued = sum(client.farm.queued for client in clients_of(up) if client.farm is not None)
    tasks, received, sent = (sum(getattr(one.rates, name) for one in up) for name in ("tasks", "received", "sent"))
    figures = f"  {busy}/{len(workers)} workers busy   {queued:,} queued   {tasks:,.0f} tasks/s"
    return [
        (f" {len(up)}/{len(servers)} servers", "alarm" if len(up) < len(servers) else "bold"),
        (f"{figures}   in {_size(received)}/s  out {_size(sent)}/s", ""),
        (f"   {clock}" + ("  PAUSED" if choices.paused else ""), "dim"),
    ]


def _strip(servers: Sequence[Server], width: int, blocks: bool) -> list[Line]:
    """Return a character for each server, in the order given, so that each keeps its place."""
    levels = "▁▂▃▄▅▆▇█" if blocks else "12345678"
    cells: Line = []
    for one in servers:
        if one.state in ("down", "connecting"):
            cells.append(("x", "alarm") if one.state == "down" else (".", "dim"))
        else:
            style = "yellow" if one.state == "draining" else "cyan"
            cells.append((levels[min(int(one.rates.busy * 8), 7)], style))
    step = max(width - 1, 1)
    return [[(" ", ""), *cells[start : start + step]] for start in range(0, len(cells), step)]


def _machine(server: Server) -> Line:
    status = server.status
    if status is None or server.error:
        return [(f" {server.name} {server.state} ", "alarm"), (_clean(server.error), "red")]
    machine = status.machine
    load = f"load {machine.load[0]:.1f} of {machine.cpus:g} cpus, " if machine.load else f"{machine.cpus:g} cpus, "
    memory = ""
    if machine.memory is not None and machine.available is not None:
        memory = f"memory {_size(machine.memory - machine.available)} of {_size(machine.memory)}, "
    text = (
        f" {server.name} {_clean(status.name)} {server.state}, pid {status.pid}, up {_span(status.seconds)}, {load}"
        f"{memory}{_clean(status.versions.python)}, farm_executor {_clean(status.versions.farm_executor)}"
    )
    return [(text, "dim")]


# -- tables -------------------------------------------------------------------------------------------

SERVER = (
    *(Column("SERVER", LEFT, 9, 24, gives=True), Column("STATE", LEFT, 9), Column("WORKERS", RIGHT, 8)),
    *(Column("BUSY", LEFT, 6), Column("%", RIGHT, 8), Column("TASKS/s", RIGHT, 7), Column("LOAD", RIGHT, 6)),
    *(Column("MEM%", RIGHT, 6), Column("CLIENTS", RIGHT, 3), Column("DEATHS", RIGHT, 7)),
    *(Column("IN/s", RIGHT, 2), Column("OUT/s", RIGHT, 2), Column("UP", RIGHT, 4)),
)
CLIENT = (
    *(Column("CLIENT", LEFT, 9, 16, gives=True), Column("USER", LEFT, 8), Column("FROM", LEFT, 5, 6, gives=True)),
    *(Column("PID", RIGHT, 5), Column("WORKERS", RIGHT, 8), Column("BUSY", RIGHT, 7), Column("QUEUED", RIGHT, 9)),
    *(Column("DONE", RIGHT, 7), Column("FAILED", RIGHT, 6), Column("LOST", RIGHT, 6), Column("SERVERS", RIGHT, 2)),
    Column("UP", RIGHT, 3),
)
WORKER = (
    *(Column("SLOT", RIGHT, 9), Column("PID", RIGHT, 8), Column("CLIENT", LEFT, 8, 8, gives=True)),
    *(Column("STATE", LEFT, 9), Column("FOR", RIGHT, 9), Column("BUSY", LEFT, 6), Column("%", RIGHT, 7)),
    *(Column("CPU%", RIGHT, 7), Column("MEM", RIGHT, 7), Column("TASKS/s", RIGHT, 5), Column("BEGUN", RIGHT, 4)),
    *(Column("IN", RIGHT, 2), Column("OUT", RIGHT, 2), Column("UP", RIGHT, 3)),
)
DEATH = (
    *(Column("WHEN", LEFT, 9), Column("SERVER", LEFT, 9, 24, gives=True), Column("SLOT", RIGHT, 5)),
    *(Column("PID", RIGHT, 5), Column("CAUSE", LEFT, 9), Column("PEAK", RIGHT, 5)),
)
CAUSES = {
    "oom": "out of memory",
    "held": "held too much memory",
    "killed": "killed by its client",
    "frozen": "stood still",
}


def _server(server: Server, blocks: bool) -> list[Cell]:
    status = server.status
    if status is None or server.error:
        style = "alarm" if server.state == "down" else "dim"
        return [(server.name, ""), (server.state, style), (server.error, "red")]
    machine, rates = status.machine, server.rates
    workers = workers_of(status)
    load = machine.load[0] if machine.load else 0.0
    share = load / machine.cpus if machine.cpus else 0.0
    memory = 1 - (machine.available or 0) / machine.memory if machine.memory else 0.0
    return [
        *((server.name, ""), (server.state, "green" if server.state == "open" else "yellow")),
        (f"{sum(worker.state == 'busy' for worker in workers)}/{len(workers)}", ""),
        *(_bar(rates.busy, blocks), (f"{rates.busy * 100:.0f}", ""), (f"{rates.tasks:,.0f}", "")),
        *((f"{load:.1f}/{machine.cpus:g}", _hot(share)), (f"{memory * 100:.0f}", _hot(memory))),
        *((str(len(status.sessions) + status.sessions_left_out), ""), _bad(server.deaths)),
        *((_size(rates.received), ""), (_size(rates.sent), ""), (_span(status.seconds), "")),
    ]


def _client(client: Client) -> list[Cell]:
    farm = client.farm
    told: list[Cell] = [("-", "dim")] * 4
    if farm is not None:
        told = [(f"{farm.queued:,}", ""), (f"{farm.succeeded:,}", ""), _bad(farm.failed), _bad(farm.lost)]
    return [
        *((client.name, ""), (client.user, ""), (client.host, ""), (client.pid, "")),
        *((str(client.workers), ""), (str(client.busy), ""), *told, (str(client.servers), "")),
        (_span(client.seconds), ""),
    ]


def _worker(server: Server, worker: Worker, names: dict[int, str], blocks: bool) -> list[Cell]:
    busy, cpu, tasks = server.rates.workers.get(worker.pid, (0.0, 0.0, 0.0))
    runs = worker.state == "busy"
    style = "cyan" if runs else "yellow" if worker.state == "stopped" else "dim"
    return [
        *((f"{worker.slot:.0f}", ""), (f"{worker.pid:.0f}", ""), (names.get(worker.session, "?"), "")),
        *((worker.state, style), (_span(worker.running_for) if runs else "", "")),
        *(_bar(busy, blocks), (f"{busy * 100:.0f}", ""), (f"{cpu * 100:.0f}", "")),
        *((_size(worker.memory * 2**20), ""), (f"{tasks:,.0f}", ""), (f"{worker.begun:,.0f}", "")),
        *((_size(worker.received), ""), (_size(worker.sent), ""), (_span(worker.up), "")),
    ]


def _death(death: Death, server: Server) -> list[Cell]:
    code = death.code
    why = CAUSES.get(death.cause) or (f"signal {-code}" if code < 0 else f"exit code {code}")
    return [
        *((_time(death.at), ""), (server.name, ""), (str(death.slot), ""), (str(death.pid), "")),
        *((why, "red"), (_size(death.peak), "")),
    ]


def _table(
    columns: Sequence[Column], rows: list[list[Cell]], width: int, *, chosen: int | None = None
) -> list[Line]:
    """Return a title and a line for each row. A row that is too short ends with a text in place of figures."""
    rows = [[(_clean(text), style) for text, style in row] for row in rows]
    whole = [row for row in rows if len(row) == len(columns)]
    need = [
        max([width_of(column.title), *(width_of(row[i][0]) for row in whole)]) for i, column in enumerate(columns)
    ]
    for row in rows:
        if len(row) < len(columns):
            for i, (text, _) in enumerate(row[:-1]):
                need[i] = max(need[i], width_of(text))
    kept = list(range(len(columns)))
    for i in [i for i, column in enumerate(columns) if column.gives]:
        excess = sum(need[at] + 2 for at in kept) - 2 - width
        if excess > 0:
            need[i] = max(columns[i].least, need[i] - excess)
    for i in sorted(kept, key=lambda i: (columns[i].priority, i)):
        if sum(need[at] + 2 for at in kept) - 2 <= width:
            break
        kept.remove(i)

    def line(cells: list[Cell], style: str) -> Line:
        out: Line = []
        for i in kept:
            if i >= len(cells):
                break
            text, own = cells[i]
            if len(cells) < len(columns) and i == len(cells) - 1:
                out += [(text, own)]
                break
            text = text if width_of(text) <= need[i] else cut(text, need[i])
            room = " " * (need[i] - width_of(text))
            out += [(room + text if columns[i].align == RIGHT else text + room, style or own), ("  ", style)]
        return out

    return [
        line([(column.title, "") for column in columns], "head"),
        *(line(row, "chosen" if number == chosen else "") for number, row in enumerate(rows)),
    ]


def _cut(line: Line, width: int) -> Line:
    out: Line = []
    for text, style in line:
        if width_of(text) > width:
            text = cut(text, width)
        width -= width_of(text)
        if text:
            out.append((text, style))
    return out


# -- words --------------------------------------------------------------------------------------------


def _clean(text: str) -> str:
    return one_line(text, MAX_CELL)


def _bar(fraction: float, blocks: bool, width: int = 10) -> Cell:
    full = min(max(fraction, 0.0), 1.0) * width
    if not blocks:
        return ("#" * int(full)).ljust(width, "."), "cyan"
    part = "" if full >= width else " ▏▎▍▌▋▊▉"[int(full % 1 * 8)]
    return ("█" * int(full) + part).ljust(width), "cyan"


def _hot(share: float) -> str:
    return "yellow" if share > 0.9 else ""


def _bad(count: int) -> Cell:
    return f"{count:,}", "red" if count else "dim"


def _size(number: float) -> str:
    for unit in ("", "K", "M", "G", "T"):
        if number < 1000:
            return f"{number:.0f}{unit}" if not unit or number >= 100 else f"{number:.1f}{unit}"
        number /= 1024
    return f"{number:,.0f}P"


def _span(seconds: float) -> str:
    if seconds < 10:
        return f"{seconds:.1f}s"
    if seconds < 120:
        return f"{seconds:.0f}s"
    if seconds < 2 * 3600:
        return f"{seconds // 60:.0f}m"
    return f"{seconds // 3600:.0f}h" if seconds < 48 * 3600 else f"{seconds // 86400:,.0f}d"


def _time(at: float) -> str:
    try:
        return time.strftime("%H:%M:%S", time.localtime(at))
    except (OverflowError, OSError, ValueError):  # a year that this machine does not know
        return "?"
