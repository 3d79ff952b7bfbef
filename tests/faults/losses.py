"""One thing goes wrong, once, and what that costs is measured.

This module owns the experiments and their figures. It must not judge them: that is for tests and `figures`.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass

from faults import tasks
from faults.book import Book
from faults.promises import Expectation, Verdict, judge
from faults.proxy import Proxy
from server.processes import DEADLINE, children, wait_until
from server.serving import KEY, Serving

from farm_executor import FarmExecutor, TaskKilledError

WORKERS = 2
HEARTBEAT = 0.3  # seconds; so that much less than a second of silence is noticed


# -- a worker is killed ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class KilledWorker:
    """A map with and without the loss of a worker in its midst.

    Attributes:
        with_, without: Seconds of each round.
        wrong: Rounds whose results were not all right.
        again: Tasks that ran again, in all rounds.
    """

    with_: list[float]
    without: list[float]
    wrong: int
    again: int

    @property
    def ratio(self) -> float:
        return statistics.median(self.with_) / statistics.median(self.without)


def killed_worker(rounds: int, count: int = 100, seconds: float = 0.05) -> KilledWorker:
    """Paired: the same map, once undisturbed, once with a worker killed when half of it is done."""
    times: dict[bool, list[float]] = {True: [], False: []}
    wrong = again = 0
    with Serving(before="import faults.tasks", workers=WORKERS) as serving, tempfile.TemporaryDirectory() as folder:
        for number in range(2 * rounds):
            kill = bool(number % 2)
            book = Book(folder, f"book-{number}")
            with FarmExecutor([serving.address], key=KEY) as farm:
                farm.broadcast(os.getpid)
                began = time.perf_counter()
                futures = [farm.submit(tasks.echo_after, seconds, book.path, n, n) for n in range(count)]
                if kill:
                    futures[count // 2].result(DEADLINE)
                    os.kill(random.Random(number).choice(sorted(children(serving.pid))), signal.SIGKILL)
                verdict = judge([Expectation(str(n), f, n, False) for n, f in enumerate(futures)], book, DEADLINE)
                times[kill].append(time.perf_counter() - began)
            wrong += bool(verdict.broken(workers_lived=False))
            again += len(verdict.again)
    return KilledWorker(times[True], times[False], wrong, again)


# -- the network goes away ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outage:
    """A network that was gone for a while, under load.

    Attributes:
        verdict: On all tasks, half of which were to run once at most.
        first_seconds: From its return to the first result.
        all_seconds: From its return to the last result of what was submitted before it.
        workers_kept: Whether the same workers served before and after.
    """

    verdict: Verdict
    first_seconds: float
    all_seconds: float
    workers_kept: bool


def outage(
    address: str, seconds: float, vanish: Callable[[], object], back: Callable[[], object], heartbeat: float
) -> Outage:
    """Tasks run and go on being submitted; the network vanishes; it comes back after so long.

    Args:
        address: Where clients reach it.
        seconds: For how long it is gone.
        vanish, back: Make it so.
        heartbeat: The farm's.
    """
    expected: list[Expectation] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        FarmExecutor([address], key=KEY, heartbeat=heartbeat) as farm,
    ):
        book = Book(folder)

        def load(count: int) -> list[Future[int]]:
            made = []
            for _ in range(count):
                n = len(expected)
                executor = farm.with_options(max_attempts=1 if n % 2 else 3)
                future = executor.submit(tasks.echo_after, 0.01, book.path, n, n)
                expected.append(Expectation(str(n), future, n, bool(n % 2)))
                made.append(future)
            return made

        before = set(farm.broadcast(os.getpid))
        load(20)[10].result(DEADLINE)
        under_way = load(100)
        vanish()
        returned = time.monotonic() + seconds
        while (left := returned - time.monotonic()) > 0:  # for as long as the experiment says
            load(5)
            threading.Event().wait(min(left, 0.1))
        under_way += [one.future for one in expected if one.future is not None and not one.future.done()]
        first, came = threading.Event(), []
        for future in under_way:
            if not future.done():
                future.add_done_callback(lambda _: (came.append(time.monotonic()), first.set()))
        began = time.monotonic()
        back()
        first.wait(2 * DEADLINE)
        wait(under_way, 2 * DEADLINE)
        ended = time.monotonic()
        load(20)
        verdict = judge(expected, book, DEADLINE)
        after = set(farm.broadcast(os.getpid, timeout=DEADLINE))
    return Outage(verdict, (min(came) if came else ended) - began, ended - began, before == after)


def proxy_outage(seconds: float, heartbeat: float = HEARTBEAT) -> Outage:
    """The network swallows every packet and delivers them late: what TCP makes of that is not in it."""
    with Serving(before="import faults.tasks", workers=WORKERS) as serving, Proxy(serving.address) as proxy:
        return outage(proxy.address, seconds, proxy.stall, proxy.flow, heartbeat)


def why_no_namespaces() -> str:
    """Why a network of one's own cannot be made here; empty if it can."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "network namespaces need root"
    if not shutil.which("ip"):
        return "there is no `ip`, of iproute2"
    name = f"farm-probe-{os.getpid()}"
    for command in (["add", name], ["exec", name, "true"]):  # in a chroot, one can be made and not entered
        tried = subprocess.run(["ip", "netns", *command], capture_output=True, text=True, check=False)
        if tried.returncode:
            break
    subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    return f"no network namespace can be used: {tried.stderr.strip()}" if tried.returncode else ""


class Namespace:
    """A network of its own, with one cable to this one.

    Attributes:
        within: What a command is to be put behind to run in there.
        address: Its end of the cable.
    """

    def __init__(self) -> None:
        self._name = f"farm-{os.getpid()}"
        self.within = ["ip", "netns", "exec", self._name]
        number = os.getpid() % (1 << 14)  # so that several such tests may run at once
        network = f"10.213.{number >> 6}."
        self._here = f"{network}{(number & 63) * 4 + 1}"
        self.address = f"{network}{(number & 63) * 4 + 2}"

    def __enter__(self) -> Namespace:
        cable = f"fx{os.getpid()}"
        _ip("netns", "add", self._name)
        try:
            _ip("link", "add", cable, "type", "veth", "peer", "name", "cable", "netns", self._name)
            _ip("addr", "add", f"{self._here}/30", "dev", cable)
            _ip("link", "set", cable, "up")
            _ip("-n", self._name, "addr", "add", f"{self.address}/30", "dev", "cable")
            _ip("-n", self._name, "link", "set", "lo", "up")
            self.plug()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        _ip("netns", "del", self._name)  # and the cable with it

    def pull(self) -> None:
        """Pull the cable: what is sent from now on is lost, and nobody is told."""
        _ip("-n", self._name, "link", "set", "cable", "down")

    def plug(self) -> None:
        """Put it back."""
        _ip("-n", self._name, "link", "set", "cable", "up")


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def cable_outage(seconds: float, heartbeat: float = HEARTBEAT) -> Outage:
    """A cable is pulled and put back."""
    with (
        Namespace() as network,
        Serving(
            "--insecure",
            at=f"{network.address}:0",
            before="import faults.tasks",
            workers=WORKERS,
            within=network.within,
        ) as serving,
    ):
        return outage(serving.address, seconds, network.pull, network.plug, heartbeat)


# -- a task holds the interpreter ----------------------------------------------------------------------------


@dataclass(frozen=True)
class HeldInterpreter:
    """A task that holds its interpreter's lock, in C.

    Attributes:
        kept: Whether its worker was there all the time, and its result came.
        others: How many other tasks ran meanwhile.
        killed_seconds: How long it took to kill another one.
        back_seconds: And until its slot had a worker again.
        lost: How many tasks lost their worker.
    """

    kept: bool
    others: int
    killed_seconds: float
    back_seconds: float
    lost: int


def held_interpreter(seconds: int) -> HeldInterpreter:
    """One such task to its end, beside others; and one that is killed."""
    with (
        Serving(before="import faults.tasks", workers=WORKERS) as serving,
        tempfile.TemporaryDirectory() as folder,
        FarmExecutor([serving.address], key=KEY, heartbeat=HEARTBEAT) as farm,
    ):
        book = Book(folder)
        pids = set(farm.broadcast(os.getpid))
        holder = farm.with_options(max_attempts=1).submit(tasks.sleep_with_the_lock, book.path, "long", seconds)
        others = 0
        while not holder.done():
            others += farm.submit(tasks.echo_after, 0.01, book.path, "other", 1).result(DEADLINE)
        kept = holder.exception(0) is None and set(farm.broadcast(os.getpid)) == pids

        doomed = farm.submit(tasks.sleep_with_the_lock, book.path, "doomed", 600)
        wait_until(lambda: book.runs()["doomed"], "it runs")
        began = time.perf_counter()
        assert farm.kill(doomed)
        assert isinstance(doomed.exception(DEADLINE), TaskKilledError)
        killed = time.perf_counter() - began
        assert len(set(farm.broadcast(os.getpid))) == WORKERS
        return HeldInterpreter(kept, others, killed, time.perf_counter() - began, farm.statistics().lost)
