"""An executor as a notebook shows it: a table of its servers and their workers.

This module owns that piece of HTML. It must not know how the figures come about. There is no script in it, as
notebooks run none of a notebook that is not trusted, and every text is escaped: addresses and errors are of others.
"""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from farm_executor.client.farm.statistics import FarmStatistics, ServerStatistics

__all__ = ["table"]

MAX_SERVERS, MAX_WORKERS = 40, 64  # that are shown
COUNTS = ("running", "queued", "succeeded", "failed", "cancelled", "lost", "killed")
BUSY, IDLE, AWAY = "#2f7d4f", "#8b979255", "#c0392b"


def table(title: str, numbers: FarmStatistics, link: str = "") -> str:
    """Return a farm's figures as HTML.

    Args:
        title: What the farm is.
        numbers: The figures.
        link: The address of its dashboard; empty for none.
    """
    counts = ", ".join(f"{getattr(numbers, name):,} {name}" for name in COUNTS if getattr(numbers, name))
    state = f"{html.escape(numbers.state)}{': ' if counts else ''}{counts}"
    rows = "".join(map(_row, numbers.servers[:MAX_SERVERS]))
    if len(numbers.servers) > MAX_SERVERS:
        rows += f'<tr><td colspan="4">and {len(numbers.servers) - MAX_SERVERS} more servers</td></tr>'
    head = "".join(f'<th style="text-align:left">{name}</th>' for name in ("server", "workers", "calls", "busy"))
    body = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>" if rows else ""
    page = f' <a href="{html.escape(link)}" target="_blank" rel="noopener">dashboard</a>' if link else ""
    return f"<div><b>{html.escape(title)}</b> {state}{page}{body}</div>"


def _row(server: ServerStatistics) -> str:
    busy = sum(worker.outstanding > 0 for worker in server.workers)
    cells = "".join(
        f'<span title="slot {worker.slot}, pid {worker.pid}" style="display:inline-block;width:.6em;height:1em;'
        f'margin-right:2px;background:{BUSY if worker.outstanding else IDLE}"></span>'
        for worker in server.workers[:MAX_WORKERS]
    )
    address = "this machine" if server.address.startswith("unix:") else server.address
    # Beside the cells, so that nothing is said by colour alone.
    told = f" {busy} of {len(server.workers)} busy"
    if not server.up:
        told += f' <span style="color:{AWAY}">away: {html.escape(server.last_error or "not connected")}</span>'
    calls = sum(worker.tasks_done for worker in server.workers)
    seconds = sum(worker.busy_seconds for worker in server.workers)
    columns = (html.escape(address), cells + told, f"{calls:,}", f"{seconds:.1f} s")
    return "<tr>" + "".join(f'<td style="text-align:left">{column}</td>' for column in columns) + "</tr>"
