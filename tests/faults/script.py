"""A short life of a farm, always the same: what travels in it is of every kind that there is.

This module owns the script and where in its bytes connections can be cut. It must not judge what comes of that.
"""

from __future__ import annotations

import struct
from bisect import bisect
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from operator import itemgetter
from typing import Any

from faults import tasks
from faults.book import Book
from faults.promises import MANY, Expectation
from faults.proxy import TO_CLIENT, TO_SERVER, Direction, Link
from server.processes import DEADLINE

from farm_executor import FarmExecutor
from farm_executor.core.frames import BULK, FrameType
from farm_executor.core.seal import RECORD_HEAD, record_length

__all__ = ["DELAY", "WORKERS", "offsets", "play", "types"]

WORKERS = 2
DELAY = 0.003  # seconds each way that it needs: the longer the way, the more a lane is sent ahead
BULK_BYTES = 200 * 1024
BATCH = 20
ITEMS = 24
SAID = 150 * 1024  # bytes of output, after which the server hears how much has been shown
LARGE = 4096  # bytes of a frame from which on only its beginning is cut at every byte
BEGINNING = 64

_HANDSHAKE = {TO_SERVER: 48 + 32, TO_CLIENT: 48 + 33}
_HEADER = struct.Struct("<IBBHQ")
_SIZE_MASK = (1 << 62) - 1  # of an entry in a table of segments; the bits above are its kind


def play(farm: FarmExecutor, book: Book, *, once: bool, slow: float) -> list[Expectation]:
    """Play it on two workers, with tasks that run once at most or with such as are tried again.

    Each step waits for the one before it, so that the same travels every time. The slow task takes that many
    seconds, in which the other lane has to be done with its own.
    """
    executor = farm.with_options(max_attempts=1 if once else MANY)
    expected: list[Expectation] = []

    def expect(name: str, future: Future[Any] | None, value: Any) -> None:
        expected.append(Expectation(name, future, value, once))

    def call(name: str, value: Any) -> None:
        expect(name, executor.submit(tasks.echo, book.path, name, value), value)

    def settle() -> None:
        wait([one.future for one in expected if one.future is not None], DEADLINE)

    call("small", 1)
    settle()
    expect("error", executor.submit(tasks.fail, book.path, "error"), LookupError)
    settle()
    call("bulk", bytes(BULK_BYTES))
    settle()
    for number in range(BATCH):
        call(f"batch-{number}", number)
    settle()
    # Whoever gets the slow one gets some of the others behind it, which the other lane then recalls.
    for number in range(BATCH + 10):
        if number == 4:
            expect("slow", executor.submit(tasks.echo_after, slow, book.path, "slow", "slow"), "slow")
        call(f"beside-{number}", number)
    settle()
    with ThreadPoolExecutor(1) as thread:
        items = executor.map(tasks.echo_at, [book.path] * ITEMS, ["map"] * ITEMS, range(ITEMS), timeout=DEADLINE)
        expect("map", thread.submit(list, items), list(range(ITEMS)))
        for number in range(ITEMS):
            expect(f"map-{number}", None, number)
        settle()
        for name, size in ("says", 0), ("says-much", SAID):
            said = executor.submit(tasks.say, book.path, name, name, size)
            expect(name, thread.submit(_with_its_own_words, said, tasks.words_of(name, size)), name)
            settle()
        stream = executor.stream(tasks.count, book.path, "stream", ITEMS)
        expect("stream", thread.submit(list, stream), list(range(ITEMS)))
        settle()
    with executor.stream(tasks.count, book.path, "closed", 10**9, 0.002) as stream:
        next(stream)
    expect("closed", stream.future, None)
    settle()
    return expected


def _with_its_own_words(future: Future[Any], words: str) -> Any:
    """Return a future's result, if its output is that of its task, or what connections have left of that."""
    value = future.result()
    return value if future.output in words else f"output {future.output!r:.100}"  # type: ignore[attr-defined]


def _unsealed(data: bytes | bytearray, place: int) -> tuple[bytes, list[tuple[int, int]]]:
    """What is in records: the bytes, and from which of them on how many others have travelled before."""
    found = bytearray()
    shifts = []
    while place + RECORD_HEAD <= len(data):
        size = record_length(data, place)
        place += RECORD_HEAD
        shifts.append((len(found), place - len(found)))
        found += data[place : place + size]
        place += size
    return bytes(found), shifts


def _frames(link: Link, direction: Direction) -> Iterator[tuple[int, FrameType, int, int]]:
    """What has gone one way: where each frame begins, its type, its size, and that of its segments after it."""
    data, shifts = _unsealed(link.transcript.get(direction, b""), _HANDSHAKE[direction])
    place = 0
    while place + _HEADER.size <= len(data):
        length, kind, flags, _, _ = _HEADER.unpack_from(data, place)
        segments = 0
        if flags & BULK:
            count = int.from_bytes(data[place + _HEADER.size : place + _HEADER.size + 4], "little")
            table = struct.unpack_from(f"<{count}Q", data, place + _HEADER.size + 4)
            segments = sum(entry & _SIZE_MASK for entry in table)
        yield (
            place + shifts[bisect(shifts, place, key=itemgetter(0)) - 1][1],
            FrameType(kind),
            _HEADER.size + length,
            segments,
        )
        place += _HEADER.size + length + segments


def types(links: list[Link]) -> set[FrameType]:
    """Which frames have passed."""
    return {kind for link in links for direction in Direction for _, kind, _, _ in _frames(link, direction)}


def offsets(link: Link, direction: Direction, stride: int) -> list[int]:
    """Every place in what has gone one way at which it can be cut, but with a stride within what is large."""
    places = list(range(_HANDSHAKE[direction]))
    for start, _, size, segments in _frames(link, direction):
        whole = size if size < LARGE else BEGINNING
        places += range(start, start + whole)
        places += range(start + whole, start + size + segments, stride)
    return places
