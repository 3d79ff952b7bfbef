"""Signal handlers and destructors may use the farm, whatever their own thread is in the midst of.

Python runs them between any two bytecodes, on top of a thread that may hold the engine's lock, lead the reactor, or
settle a future. Most tests here run such code at *each* bytecode of a call, one after the other.
"""

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import TimeoutError as FutureTimeoutError
from concurrent.futures import wait

import pytest
from client import tasks
from contract.gate import Gate
from interrupts import at_each_step, strike_at_line
from server.processes import DEADLINE, wait_until

from farm_executor import FarmExecutor

CLIENT = (os.path.join("farm_executor", "client"), os.path.join("farm_executor", "core", "scheduler"))


@pytest.fixture
def farm(no_leaks):
    with FarmExecutor(2) as farm:
        assert farm.submit(abs, -1).result(DEADLINE) == 1
        yield farm


class Handler:
    """Does one thing at each call, and holds what must hold then."""

    def __init__(self, farm):
        self.farm = farm
        self.futures = []
        self.refused = self.waited = 0

    def submit(self):
        self.futures.append(self.farm.submit(abs, -3))

    def submit_and_wait(self):
        future = self.farm.submit(abs, -3)
        self.futures.append(future)
        try:
            assert future.result() == 3
            self.waited += 1
        except RuntimeError as error:
            assert "would wait for ever" in str(error)
            self.refused += 1

    def submit_and_wait_for_a_moment(self):
        future = self.farm.submit(abs, -3)
        self.futures.append(future)
        with contextlib.suppress(FutureTimeoutError):
            assert future.result(0.0001) == 3

    def submit_to_a_view(self):
        self.futures.append(self.farm.with_options(priority="high", timeout=60).submit(abs, -3))

    def map(self):
        self.results = self.farm.map(abs, [-3, -3])
        self.futures.append(self.farm.submit(abs, -3))

    def cancel(self):
        future = self.farm.submit(abs, -3)
        if not future.cancel():
            self.futures.append(future)

    def cancel_what_was_submitted_before(self):
        future = self.farm.submit(abs, -3)
        self.futures.append(future)
        if len(self.futures) > 8 and self.futures[-8].cancel():
            del self.futures[-8]

    def statistics(self):
        try:
            numbers = self.farm.statistics()
        except RuntimeError:  # the thread holds a future's lock, and the one that has the farm's waits for that
            return
        assert numbers.state == "open"
        assert numbers.queued >= 0
        repr(self.farm)

    def kill_a_category(self):
        with contextlib.suppress(RuntimeError):  # as in `statistics`
            assert self.farm.kill_tasks("nothing that runs") == 0

    def kill_what_has_ended(self):
        self.futures.append(self.farm.submit(abs, -3))
        if len(self.futures) > 8 and self.futures[-8].done():
            assert not self.farm.kill(self.futures[-8])

    def call_back(self):
        future = self.farm.submit(abs, -3)
        future.add_done_callback(lambda future: None)
        self.futures.append(future)

    def connect(self):
        with contextlib.suppress(RuntimeError):
            self.farm.connect()

    def broadcast(self):
        with contextlib.suppress(RuntimeError):
            assert len(self.farm.broadcast(abs, -3)) == 2


ACTIONS = [name for name in vars(Handler) if not name.startswith("_")]


def _submit_and_wait(farm):
    for number in range(2):
        assert farm.submit(pow, number, 2).result() == number**2


def _flood(farm):
    """So many that it glances at the sockets."""
    futures = [farm.submit(abs, -number) for number in range(3)]
    for _ in range(140):
        next(farm._engine._dispatch.ids)
    futures += [farm.submit(abs, -number) for number in range(3, 6)]
    assert [future.result() for future in futures] == list(range(6))


def _wait(farm):
    futures = [farm.submit(abs, -1) for _ in range(2)]
    assert wait(futures, DEADLINE).not_done == set()


def _look(farm):
    farm.statistics()
    farm.submit(tasks.after, 0.001, 1).cancel()
    farm.kill_tasks("nothing that runs")


CALLS = {"submit and wait": _submit_and_wait, "flood": _flood, "wait": _wait, "look": _look}
WAITING = {"submit_and_wait", "cancel_what_was_submitted_before", "connect", "broadcast"}
# While `concurrent.futures.wait`, or `Future.cancel`, holds futures' own locks, no executor can settle these.
PAIRS = [
    (action, call) for action in ACTIONS for call in CALLS if action not in WAITING or call not in ("wait", "look")
]


@pytest.mark.parametrize(("action", "call"), PAIRS)
def test_at_each_step_of_a_call_a_handler_may_use_the_farm(farm, action, call):
    handler, call = Handler(farm), CALLS[call]

    steps = at_each_step(getattr(handler, action), lambda: call(farm), CLIENT)

    assert steps > 100
    assert [future.result(DEADLINE) for future in handler.futures] == [3] * len(handler.futures)
    assert farm.submit(pow, 2, 3).result(DEADLINE) == 8
    if action == "submit_and_wait" and call is _submit_and_wait:
        assert handler.waited > handler.refused, "it is refused only where nothing can help"


needs_signals = pytest.mark.skipif(sys.platform == "win32", reason="signals")


@contextlib.contextmanager
def handling(signum, handler):
    before = signal.signal(signum, lambda signum, frame: handler())
    try:
        yield
    finally:
        signal.signal(signum, before)


@needs_signals
@pytest.mark.parametrize("leads", [True, False], ids=["led", "not led"])
def test_a_handler_may_wait_for_a_task_while_its_thread_waits_for_another(no_leaks, leads):
    """The thread that sleeps below it must not keep the farm from being heard, nor sleep on for ever."""
    main = threading.main_thread().ident
    results = []

    def interrupt(gate, number):
        signal.pthread_kill(main, signal.SIGUSR1)
        wait_until(lambda: len(results) == number, "the handler has its result")
        gate.open()

    with (
        FarmExecutor(2, caller_leads=leads) as farm,
        handling(signal.SIGUSR1, lambda: results.append(farm.submit(abs, -3).result())),
    ):
        for number in range(1, 6):
            with Gate() as gate:
                future = farm.submit(tasks.pass_gate, gate.address)
                gate.wait_for_arrivals()
                thread = threading.Thread(target=interrupt, args=(gate, number))
                thread.start()
                future.result()
                thread.join(DEADLINE)
                assert results == [3] * number


@needs_signals
def test_a_handler_waits_until_the_first_submit_has_started_the_farm(no_leaks):
    """Else it would start a second one, or wait for the lock that its own thread holds."""
    futures, line, struck = [], 0, True
    with handling(signal.SIGUSR1, lambda: futures.append(farm.submit(abs, -3))):
        for line in itertools.count(0, 23):
            with FarmExecutor(1) as farm:
                struck = strike_at_line(
                    line,
                    lambda farm=farm: futures.append(farm.submit(abs, -3)),
                    ("front.py", "backing.py", "supply.py", "local.py", "interrupt.py"),
                    signal.SIGUSR1,
                )
                assert [future.result(DEADLINE) for future in futures] == [3] * (1 + struck)
                futures.clear()
            if not struck:
                break
    assert line > 50


@needs_signals
def test_a_handler_that_comes_again_and_again_submits_while_its_thread_does(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent(
            """
            import faulthandler, signal, time
            from farm_executor import FarmExecutor

            faulthandler.dump_traceback_later(60, exit=True)
            farm = FarmExecutor(2)
            mine = []
            signal.signal(signal.SIGALRM, lambda *_: mine.append(farm.submit(abs, -3)))
            signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
            until = time.monotonic() + 3
            while time.monotonic() < until:
                futures = [farm.submit(abs, -number) for number in range(300)]
                assert [future.result() for future in futures] == list(range(300))
                assert list(farm.map(abs, range(100))) == list(range(100))
            signal.setitimer(signal.ITIMER_REAL, 0)
            assert all(future.result() == 3 for future in mine)
            farm.shutdown()
            numbers = farm.statistics()
            assert numbers.succeeded == numbers.submitted, numbers
            print(len(mine))
            """
        )
    )
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) > 100
