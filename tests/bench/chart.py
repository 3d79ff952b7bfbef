"""The chart of the documentation, drawn from the figures of one run of the benchmark.

It owns which rows are shown and how; it measures nothing, so that the same figures always give the same picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Any


@dataclass(frozen=True)
class Group:
    """Some bars: one row of the benchmark."""

    title: str  # in the table of figures
    shown: str
    unit: str


GROUPS = (
    Group("no-op round trip, p50, us", "one call and its result, median", "µs"),
    Group("20,000 no-op submits and results, us a task", "20,000 small tasks, each", "µs"),
    Group("map, chunksize 1, 100,000 items, us an item", "map of 100,000 items, each", "µs"),
    Group("numpy 64 MiB there and back, ms", "an array of 64 MiB there and back", "ms"),
)
NAMES = {
    "PPE": "ProcessPoolExecutor",
    "Pool": "multiprocessing.Pool",
    "loky": "loky",
    "dask": "dask.distributed",
    "embedded": "farm, this machine",
    "TCP servers": "farm, TCP servers",
}
FARMS = ("embedded", "TCP servers")
FIRST_PAGE = ("PPE", *FARMS)

LEFT, WIDTH, ROW, GAP = 165, 700, 20, 34

STYLE = """\
svg:root{color:#24292e}
@media(prefers-color-scheme:dark){svg:root{color:#d8dee4}}
.bench text{fill:currentColor;font:12px system-ui,sans-serif}
.bench .head{font-weight:600;font-size:13px}
.bench .name{text-anchor:end;opacity:.8}
.bench .note{opacity:.7;font-size:11px}
.bench .other{fill:#9aa7a0}
.bench .farm{fill:#2f7d4f}
.bench .spread{stroke:currentColor;stroke-width:1}"""


def written(value: float, unit: str) -> str:
    """A figure with three significant digits."""
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:,.{digits}f} {unit}"


def draw(figures: dict[str, Any], names: tuple[str, ...] = tuple(NAMES)) -> str:
    """An SVG of horizontal bars, for each row one for each of the executors that were measured.

    A bar is the median of the rounds; the line through its end is their range, of ratios to the first executor.
    """
    rows = {row["title"]: row for row in figures["rows"]}
    parts, y, said = [], 0, []
    for group in (group for group in GROUPS if group.title in rows):
        row = rows[group.title]
        measured = {name: row["figures"][name] for name in names if name in row["figures"]}
        base = row["figures"][row["base"]]
        slowest = [ratio[2] * base for name, ratio in row["ratios"].items() if name in measured]
        scale = (WIDTH - LEFT - 90) / max(*measured.values(), *slowest)
        y += 18
        parts.append(f'<text class="head" x="0" y="{y}">{escape(group.shown)}</text>')
        y += 8
        for name, value in measured.items():
            kind = "farm" if name in FARMS else "other"
            end = LEFT + value * scale
            parts.append(f'<text class="name" x="{LEFT - 8}" y="{y + 12}">{escape(NAMES[name])}</text>')
            parts.append(
                f'<rect class="{kind}" x="{LEFT}" y="{y}" width="{max(end - LEFT, 1):.1f}" height="15" rx="2"/>'
            )
            if name in row["ratios"]:
                _, low, high = (ratio * base * scale for ratio in row["ratios"][name])
                parts.append(
                    f'<path class="spread" d="M{LEFT + low:.1f} {y + 7.5}H{LEFT + max(high, low + 1):.1f}"/>'
                )
                end = max(end, LEFT + high)
            text = written(value, group.unit)
            parts.append(f'<text x="{end + 7:.1f}" y="{y + 12}">{text}</text>')
            said.append(f"{NAMES[name]} {text}")
            y += ROW
        y += GAP - 18
    machine = f"{figures['about']}, {figures['machine']}; {figures['date']}; medians of {figures['rounds']} rounds"
    parts.append(f'<text class="note" x="0" y="{y + 6}">{escape(machine)}</text>')
    label = escape("Less is better. " + "; ".join(said), quote=True)
    return (
        f'<svg class="bench" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y + 14}" role="img" '
        f'aria-label="{label}">\n<style>\n{STYLE}\n</style>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def pictures(figures: dict[str, Any]) -> dict[str, str]:
    """The files to write beside the figures: for the first page, and with all that was measured."""
    return {"bench.svg": draw(figures, FIRST_PAGE), "bench-peers.svg": draw(figures)}
