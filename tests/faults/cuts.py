"""A connection cut at a byte of a script, again and again, at every byte.

This module owns which cuts there are and plays the script under each, several at a time. It must not know what is
promised.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from faults import script, tasks
from faults.book import Book
from faults.promises import Verdict, judge
from faults.proxy import Cut, Direction, End, Proxy
from server.processes import DEADLINE, wait_until
from server.serving import KEY

from farm_executor import FarmExecutor
from farm_executor.core.frames import FrameType

__all__ = ["Case", "Played", "all_cuts", "play_each", "play_uncut"]

AT_ONCE = 4
SEGMENT_STRIDE = 16 * 1024


@dataclass(frozen=True)
class Case:
    """A cut, and whether the tasks are to run once at most."""

    cut: Cut
    once: bool


@dataclass(frozen=True)
class Played:
    """What came of the script in one case.

    Attributes:
        reached: Whether the byte was reached, so that there was a cut.
    """

    case: Case
    reached: bool
    verdict: Verdict


def play_uncut(address: str, *, once: bool) -> tuple[Proxy, Verdict]:
    """Play the script undisturbed; give the proxy, closed, with all that has passed."""
    with tempfile.TemporaryDirectory() as folder, Proxy(address, record=True) as proxy:
        return proxy, _play(proxy, Book(folder), once, slow=1.0)  # a busy machine may take long for the others


def _play(proxy: Proxy, book: Book, once: bool, *, slow: float = 0.05) -> Verdict:
    proxy.delay(script.DELAY, script.DELAY)
    tasks.place.set("here")
    with FarmExecutor([proxy.address], key=KEY, output=lambda line: None, context=[tasks.place]) as farm:
        verdict = judge(script.play(farm, book, once=once, slow=slow), book, DEADLINE)
    wait_until(lambda: not proxy.live, "the goodbye has passed")
    return verdict


def all_cuts(proxy: Proxy) -> list[Case]:
    """Every cut that there can be in what has passed; how it is made, and for which tasks, goes in turns."""
    places = [
        (link.number, direction, byte)
        for link in proxy.links
        for direction in Direction
        for byte in script.offsets(link, direction, SEGMENT_STRIDE)
    ]
    turns = itertools.cycle(itertools.product(End, (False, True)))
    return [Case(Cut(*place, end=end), once) for place, (end, once) in zip(places, turns, strict=False)]


def play_each(address: str, cases: Sequence[Case], report: Callable[[Played], object]) -> None:
    """Play the script under each of the cuts, with a farm of its own, over one server."""

    def play(case: Case) -> Played:
        cut = case.cut
        with tempfile.TemporaryDirectory() as folder, Proxy(address, cut) as proxy:
            verdict = _play(proxy, Book(folder), case.once)
            link = proxy.links[cut.connection] if len(proxy.links) > cut.connection else None
            return Played(case, link is not None and link.passed[cut.direction] >= cut.byte, verdict)

    with ThreadPoolExecutor(AT_ONCE) as threads:
        for played in threads.map(play, cases):
            report(played)


EVERYTHING = {
    *(FrameType.HELLO, FrameType.INIT, FrameType.READY, FrameType.FUNCTION, FrameType.TASKS, FrameType.RESULTS),
    *(FrameType.RECALL, FrameType.RECALLED, FrameType.BYE),
    *(FrameType.OUTPUT, FrameType.HEARD, FrameType.MARKS, FrameType.LEVELS, FrameType.RECORDS, FrameType.REPORT),
    *(FrameType.ABOUT, FrameType.DETAILS, FrameType.CALL_HEADER),
    *(FrameType.ITEMS, FrameType.CREDIT, FrameType.STOP),
}
"""Which frames the script must make travel."""
