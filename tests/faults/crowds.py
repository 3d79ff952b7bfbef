"""Crowds: of strangers at the door, and of clients of which one mistreats its workers.

This module owns how crowds are made and what is measured of those who must not suffer. Strangers are processes of
their own: ``python crowds.py half-open|passing HOST:PORT COUNT`` is one; it prints a line when all have come, and
goes, or lets go, when its standard input ends.
"""

from __future__ import annotations

import contextlib
import resource
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

SPARE = 200  # descriptors for what else a process has open

HALF_OPEN, PASSING = "half-open", "passing"


@contextlib.contextmanager
def strangers(kind: str, address: str, count: int) -> Iterator[subprocess.Popen[str]]:
    """So many of them, in a process of their own, from before they come until the end of the block."""
    command = [sys.executable, __file__, kind, address, str(count)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.communicate(timeout=60)
    assert process.returncode == 0, f"the {kind} strangers failed"


def all_have_come(process: subprocess.Popen[str]) -> None:
    """Wait for them."""
    assert process.stdout is not None
    assert process.stdout.readline() == "there\n"


def first_result_seconds(address: str, key: bytes) -> float:
    """How long a client takes that comes now, from nothing to a task's result."""
    from farm_executor import FarmExecutor

    began = time.perf_counter()
    with FarmExecutor([address], key=key, max_workers=1) as farm:
        assert farm.submit(pow, 2, 10).result(30) == 1024
        return time.perf_counter() - began


def seconds_while(process: subprocess.Popen[str], address: str, key: bytes) -> list[float]:
    """The same, of one client after the other, for as long as the strangers are coming."""
    come = threading.Event()

    def watch() -> None:
        all_have_come(process)
        come.set()

    watcher = threading.Thread(target=watch)
    watcher.start()
    times = []
    while not come.is_set():
        times.append(first_result_seconds(address, key))
    watcher.join()
    return times


@dataclass(frozen=True)
class Neighbours:
    """What came of clients beside a hostile one.

    Attributes:
        results: How many of the good clients' tasks came out right.
        wrong: Those that did not, in words.
        losses: How often a worker of theirs was lost.
        deaths: How many workers the hostile one has lost.
        seconds: How long the slowest took.
    """

    results: int
    wrong: list[str]
    losses: int
    deaths: int
    seconds: float


def neighbours(address: str, key: bytes, clients: int, calls: int) -> Neighbours:
    """So many clients on one server, each with so many calls, beside one whose tasks end their own workers."""
    from faults import tasks
    from faults.book import Book

    from farm_executor import FarmExecutor

    wrong: list[str] = []
    results, losses, deaths = [0], [0], [0]
    lock = threading.Lock()
    over = threading.Event()

    with tempfile.TemporaryDirectory() as folder:

        def good(number: int) -> None:
            book = Book(folder, f"book-{number}")
            with FarmExecutor([address], key=key, max_workers=2) as farm:
                futures = [farm.submit(tasks.echo_after, 0.001, book.path, n, n * number) for n in range(calls)]
                bad = [n for n, future in enumerate(futures) if future.result(120) != n * number]
                bad += [int(n) for n, times in book.runs().items() if times != 1]
                statistics = farm.statistics()
            with lock:
                wrong.extend(f"client {number}, call {n}" for n in bad)
                results[0] += calls - len(bad)
                losses[0] += statistics.resubmitted + statistics.lost

        def hostile() -> None:
            book = Book(folder, "hostile")
            with FarmExecutor([address], key=key, max_workers=2, max_attempts=1) as farm:
                while not over.is_set():
                    for how in ("exit", "kill", "segfault", "fork", "memory"):
                        error = farm.submit(tasks.die, book.path, how, how).exception(60)
                        deaths[0] += error is not None

        enemy = threading.Thread(target=hostile)
        friends = [threading.Thread(target=good, args=(number,)) for number in range(clients - 1)]
        began = time.perf_counter()
        for thread in [enemy, *friends]:
            thread.start()
        for thread in friends:
            thread.join()
        seconds = time.perf_counter() - began
        over.set()
        enemy.join()
    return Neighbours(results[0], wrong, losses[0], deaths[0], seconds)


def _be_strangers(kind: str, address: str, count: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    host, _, port = address.rpartition(":")
    if kind == HALF_OPEN:
        count = min(count, hard - SPARE)
        held = []
        for number in range(count):
            held.append(socket.create_connection((host, int(port)), timeout=60))
            held[-1].sendall(b"FARM\1\1"[: number % 7])
    else:
        for number in range(count):
            with socket.create_connection((host, int(port)), timeout=60) as sock:
                sock.sendall((b"", b"FARM", b"GET / HTTP/1.1\r\n\r\n")[number % 3])
    print("there", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    _be_strangers(sys.argv[1], sys.argv[2], int(sys.argv[3]))
