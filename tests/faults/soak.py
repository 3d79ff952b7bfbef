"""Random faults at random moments, for as long as one likes, while tasks of all kinds run.

This module owns the faults, the tasks and what is measured of them. What each task is follows from the seed and
its number, what is done to each server from the seed; only when it strikes is left to the machine.

    servers, each behind a proxy  ◄── one agent each does harm, undoes it, pauses, does harm
            ▲
            └── a farm, which is fed at an even pace; every outcome is looked at as it comes
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import random
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from faults import tasks
from faults.book import Book
from faults.promises import MANY, Expectation, Verdict
from faults.proxy import TO_CLIENT, TO_SERVER, End, Proxy
from server.processes import DEADLINE, children, descriptors, resident_bytes, wait_until
from server.serving import KEY, Serving

from farm_executor import FarmExecutor, TaskTimeoutError

__all__ = ["SERVERS", "SLOTS", "Report", "soak"]

SERVERS = 3
SLOTS = 2
IN_FLIGHT = 400
HEARTBEAT, RESUME = 0.3, 10.0  # seconds; so that most faults last long enough to be noticed
BURST = 50  # tasks that come at once, so that some wait on lanes
WARM_UP = 0.2  # of the tasks come before the resources are counted for the first time


@dataclass(frozen=True)
class Resources:
    """What the client and its servers hold at a quiet moment."""

    descriptors: int
    threads: int
    bytes: int
    server_descriptors: int
    server_bytes: int


@dataclass
class Report:
    """What came of a soak.

    Attributes:
        tasks: How many were submitted.
        seconds: How long it took.
        faults: How many there were of each kind.
        unsettled_seconds: How long it took to settle what was left when the faults were over.
        early, late: What was held after the warm-up and at the end.
        left_behind: What was still there when all had been shut down, in words.
        alarms: What a farm or a server logged that it must not: tracebacks, our bugs.
    """

    tasks: int
    seconds: float
    verdict: Verdict
    faults: dict[str, int]
    unsettled_seconds: float
    early: Resources
    late: Resources
    left_behind: list[str]
    alarms: list[str]
    statistics: Any


class Target:
    """A server that can be killed and started anew, at one address for its clients."""

    def __init__(self, stack: ExitStack) -> None:
        # It dies with the thread that has started it, which the system takes for its parent.
        self._parent = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="parent"))
        self._stack = stack.enter_context(ExitStack())
        self.serving = self._start()
        self.proxy = stack.enter_context(Proxy(self.serving.address))
        self.logs: list[str] = []

    def _start(self) -> Serving:
        made = self._parent.submit(Serving, before="import faults.tasks", workers=SLOTS)
        return self._stack.enter_context(made.result(DEADLINE))

    def end(self) -> None:
        """End what is there of it."""
        self.logs.append(self.serving.log)
        self._stack.close()

    def start(self) -> None:
        """Start anew."""
        self.serving = self._start()
        self.proxy.lead_to(self.serving.address)

    @property
    def workers(self) -> list[int]:
        """Their pids."""
        return sorted(children(self.serving.pid))


class Agent:
    """Does harm to one server, and undoes it before it goes on."""

    def __init__(self, target: Target, seed: str, pause: float, *, workers_live: bool) -> None:
        self._target = target
        self._workers_live = workers_live
        self._random = random.Random(seed)
        self._pause = pause
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="agent")
        self._error: BaseException | None = None
        self.done: dict[str, int] = {}

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Wait until the last harm is undone."""
        self._over.set()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        harms: list[tuple[Callable[[], None], int]] = [
            (self._cut_one, 5),
            (self._cut_all, 2),
            (self._stall, 3),
            (self._stall_one_way, 3),
            (self._go_away, 2),
            (self._delay, 2),
            (self._pause_supervisor, 2),
        ]
        if not self._workers_live:
            harms += [
                (self._kill_worker, 8),
                (self._pause_worker, 4),
                (self._freeze_worker, 2),
                (self._kill_supervisor, 2),
                (self._end_supervisor, 1),
            ]
        kinds, weights = zip(*harms, strict=True)
        try:
            while not self._over.wait(self._random.expovariate(1 / self._pause)):
                (harm,) = self._random.choices(kinds, weights)
                name = harm.__name__.strip("_").replace("_", " ")
                self.done[name] = self.done.get(name, 0) + 1
                harm()
        except BaseException as error:
            self._error = error

    def _for_a_while(self, longest: float) -> None:
        self._over.wait(self._random.uniform(0.02, longest))

    def _a_worker(self) -> int | None:
        workers = self._target.workers
        return self._random.choice(workers) if workers else None

    def _kill_worker(self) -> None:
        _signal(self._a_worker(), signal.SIGKILL)

    def _pause_worker(self) -> None:
        pid = self._a_worker()
        _signal(pid, signal.SIGSTOP)
        self._for_a_while(1.0)
        _signal(pid, signal.SIGCONT)

    def _freeze_worker(self) -> None:
        _signal(self._a_worker(), signal.SIGSTOP)  # its supervisor will see to it

    def _kill_supervisor(self) -> None:
        _signal(self._target.serving.pid, signal.SIGKILL)
        self._restart()

    def _end_supervisor(self) -> None:
        self._restart()

    def _restart(self) -> None:
        self._target.end()
        self._for_a_while(1.0)
        self._target.start()

    def _pause_supervisor(self) -> None:
        pid = self._target.serving.pid
        _signal(pid, signal.SIGSTOP)
        self._for_a_while(2.0)
        _signal(pid, signal.SIGCONT)

    def _how(self) -> End:
        return self._random.choice(list(End))

    def _cut_one(self) -> None:
        live = [link.number for link in self._target.proxy.links if not link.ended]
        if live:
            self._target.proxy.cut(self._how(), [self._random.choice(live)])

    def _cut_all(self) -> None:
        self._target.proxy.cut(self._how())

    def _stall(self) -> None:
        self._target.proxy.stall()
        self._for_a_while(2.0)
        self._target.proxy.flow()

    def _stall_one_way(self) -> None:
        self._target.proxy.stall(self._random.choice([TO_SERVER, TO_CLIENT]))
        self._for_a_while(2.0)
        if self._random.random() < 0.5:  # what was said into it is lost
            self._target.proxy.cut(self._how())
        self._target.proxy.flow()

    def _go_away(self) -> None:
        self._target.proxy.refuse()
        self._target.proxy.cut(self._how())
        self._for_a_while(1.5)
        self._target.proxy.admit()

    def _delay(self) -> None:
        self._target.proxy.delay(self._random.uniform(0, 0.02), self._random.uniform(0, 0.02))
        self._for_a_while(2.0)
        self._target.proxy.delay()


def _signal(pid: int | None, number: int) -> None:
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


@dataclass
class Feed:
    """Submits tasks, each by its number, and looks at what comes of them."""

    farm: FarmExecutor
    taker: ThreadPoolExecutor  # of the items of streams
    book: Book
    seed: str
    count: int
    verdict: Verdict = field(default_factory=Verdict)
    cancelled: set[str] = field(default_factory=set)
    _waiting: dict[Future[Any], Expectation] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._must_have_run = bytearray(self.count)  # taken at once: what grows is to be the farm's

    def run(self, numbers: range, seconds: float) -> None:
        """Submit these evenly over that time, or later if no more may be under way; some are cancelled."""
        began = time.monotonic()
        whim = random.Random(f"{self.seed}-{numbers}")
        for number in numbers:
            due = began + seconds * (number - number % BURST - numbers.start) / len(numbers)
            while (ahead := due - time.monotonic()) > 0 or len(self._waiting) >= IN_FLIGHT:
                wait(self._waiting, max(ahead, 0.0) if ahead > 0 else 1.0, return_when=FIRST_COMPLETED)
                if ahead > 0:
                    time.sleep(min(ahead, 0.01))  # the pace is the plan's, not a state to be waited for
                self._collect()
            self._submit(number)
            if whim.random() < 0.05:
                self._cancel_one(whim)

    def settle(self, seconds: float) -> float:
        """Wait for all that is under way; return for how long that was."""
        began = time.monotonic()
        wait(self._waiting, seconds)
        took = time.monotonic() - began
        self._collect(all_of_them=True)
        return took

    def _submit(self, number: int) -> None:
        name = str(number)
        whim = random.Random(f"{self.seed}-{number}")
        once = bool(number % 2)
        options: dict[str, Any] = {"max_attempts": 1 if once else MANY}
        kind, value = whim.random(), None
        if kind < 0.04:
            value, call = LookupError, (tasks.fail,)
        elif kind < 0.042:
            options["timeout"] = 0.05
            value, call = TaskTimeoutError, (tasks.echo_after, 60.0)
        elif kind < 0.1:
            value, call = name, (tasks.say,)
        elif kind < 0.13 and once:  # as streams are, once their first items have come
            items = int(3000 ** whim.random())
            self._waiting[self.taker.submit(self._take, name, items)] = Expectation(
                name, None, list(range(items)), once
            )
            return
        else:
            size = int(300_000 ** whim.random()) if kind < 0.2 else 8
            value = whim.randbytes(8) + bytes(size)
            slow = whim.random()
            longest = 0.15 if slow < 0.1 else 0.04
            call = (tasks.echo_after, whim.uniform(0.0, longest)) if slow < 0.4 else (tasks.echo,)
        given = () if isinstance(value, type) else (value,)
        future = self.farm.with_options(**options).submit(*call, self.book.path, name, *given)
        self._waiting[future] = Expectation(name, future, value, once)

    def _take(self, name: str, items: int) -> list[int]:
        return list(self.farm.with_options(max_attempts=1).stream(tasks.count, self.book.path, name, items))

    def _cancel_one(self, whim: random.Random) -> None:
        future = whim.choice(list(self._waiting))
        if future.cancel():
            self.cancelled.add(self._waiting[future].name)

    def _collect(self, *, all_of_them: bool = False) -> None:
        for future in list(self._waiting) if all_of_them else [one for one in self._waiting if one.done()]:
            one = self._waiting.pop(future)
            cancelled = one.name in self.cancelled
            one = Expectation(one.name, future, one.value, one.once, cancelled)
            if self.verdict.take_outcome(one):
                self._must_have_run[int(one.name)] = True
            # Broken connections take output along; what has come is the task's own.
            output = getattr(future, "output", "")
            if output not in tasks.words_of(one.name):
                self.verdict.wrong.append(f"{one.name}: output {output!r:.100}")

    def count_runs(self) -> None:
        """Look at how often each has run, when all is over."""
        runs = self.book.runs()
        for number in range(self.count):
            name = str(number)
            one = Expectation(name, None, None, bool(number % 2), name in self.cancelled)
            self.verdict.take_runs(one, runs[name], must_have_run=bool(self._must_have_run[number]))


class Alarms(logging.Handler):
    """Keeps what a farm logs as a bug of ours."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@contextlib.contextmanager
def _alarms() -> Iterator[Alarms]:
    alarms = Alarms()
    logging.getLogger("farm_executor").addHandler(alarms)
    try:
        yield alarms
    finally:
        logging.getLogger("farm_executor").removeHandler(alarms)


def soak(
    count: int,
    seconds: float,
    seed: str,
    *,
    servers: int = SERVERS,
    pause: float = 0.5,
    workers_live: bool = False,
) -> Report:
    """Run so many tasks over that time, on servers that suffer.

    Args:
        count: How many tasks.
        seconds: How long they are submitted.
        seed: Determines the tasks and the faults.
        servers: How many there are, with two workers each.
        pause: Seconds between two faults of one server, on average.
        workers_live: Whether only networks fail, and supervisors for a moment, so that no worker may be lost.
    """
    began = time.monotonic()
    parts = (range(int(count * WARM_UP)), range(int(count * WARM_UP), count))
    done: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder, _alarms() as alarms, ExitStack() as stack:
        targets = [Target(stack) for _ in range(servers)]
        addresses = [target.proxy.address for target in targets]
        farm = FarmExecutor(
            addresses, key=KEY, heartbeat=HEARTBEAT, resume_timeout=RESUME, output=lambda line: None
        )
        taker = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="taker"))
        feed = Feed(farm, taker, Book(folder), seed, count)
        quiet: list[Resources] = []
        unsettled = 0.0
        with farm:
            for part in parts:
                agents = [
                    Agent(target, f"{seed}-{part.start}-{number}", pause, workers_live=workers_live)
                    for number, target in enumerate(targets)
                ]
                for agent in agents:
                    agent.start()
                try:
                    feed.run(part, seconds * len(part) / count)
                finally:
                    for agent in agents:
                        agent.stop()
                unsettled = max(unsettled, feed.settle(2 * DEADLINE))
                for agent in agents:
                    done = {kind: done.get(kind, 0) + agent.done.get(kind, 0) for kind in {*done, *agent.done}}
                quiet.append(_measure(targets))
            statistics = farm.statistics()
        left = _left_behind(targets)
        for target in targets:
            target.end()
        feed.count_runs()
        logs = [line for target in targets for log in target.logs for line in log.splitlines()]
    alarming = [line for line in logs if line.startswith(("Traceback", "Fatal")) or " ERROR " in line]
    return Report(
        *(count, time.monotonic() - began, feed.verdict, done, unsettled, *quiet, left),
        alarms=alarms.lines + alarming,
        statistics=statistics,
    )


def _measure(targets: list[Target]) -> Resources:
    """When everybody has all his workers again, and no dialler is under way."""
    wait_until(lambda: all(len(target.workers) == SLOTS for target in targets), "every slot has one worker", 60.0)
    wait_until(lambda: not [t for t in threading.enumerate() if t.name == "farm-dialler"], "nobody dials", 60.0)
    _trim()
    return Resources(
        descriptors=len(descriptors(os.getpid())),
        threads=threading.active_count(),
        bytes=resident_bytes(os.getpid()),
        server_descriptors=max(len(descriptors(target.serving.pid)) for target in targets),
        server_bytes=max(resident_bytes(target.serving.pid) for target in targets),
    )


def _trim() -> None:
    """Give back what the C library keeps though nothing holds it: each of its arenas, of which a thread that reads
    large data has one, keeps as much as it has ever had."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)


def _left_behind(targets: list[Target]) -> list[str]:
    """After the farm's end."""
    found = []
    for what, there in {
        "workers": lambda: [pid for target in targets for pid in target.workers],
        "threads": lambda: [thread.name for thread in threading.enumerate() if thread.name.startswith("farm-")],
    }.items():
        try:
            wait_until(lambda: not there(), what)  # noqa: B023
        except AssertionError:
            found.append(f"{what}: {there()}")
    return found
