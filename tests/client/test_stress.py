"""Everything at once, for some seconds, and each single outcome is looked at."""

import os
import random
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import FIRST_COMPLETED, CancelledError, as_completed, wait

import pytest
from client import tasks

from farm_executor import FarmExecutor

SECONDS = 6.0
DEADLINE = 60.0
SIZES = (0, 1, 100, 65_535, 65_536, 1 << 20, 8 << 20)


class Caller(threading.Thread):
    """Calls the farm in all ways, in an order of its own."""

    def __init__(self, farm, seed, until):
        super().__init__(daemon=True)
        self.farm, self.random, self.until = farm, random.Random(seed), until
        self.calls = 0
        self.called_back = []
        self.error = None

    def run(self):
        ways = (
            [self.call_and_wait] * 8
            + [self.flood, self.flood_and_cancel, self.call_back, self.fail, self.wait_for_some, self.map] * 2
            + [self.large, self.slow_among_quick, self.busy_process]
        )
        try:
            while time.monotonic() < self.until:
                self.random.choice(ways)()
        except BaseException as error:
            self.error = error

    def submit(self, fn, *args):
        self.calls += 1
        return self.farm.submit(fn, *args)

    def call_and_wait(self):
        for number in range(20):
            assert self.submit(pow, number, 2).result(DEADLINE) == number**2

    def flood(self):
        futures = [self.submit(pow, number, 2) for number in range(self.random.randrange(1, 600))]
        assert [future.result(DEADLINE) for future in futures] == [n**2 for n in range(len(futures))]

    def flood_and_cancel(self):
        futures = [self.submit(tasks.after, 0.001, number) for number in range(60)]
        cancelled = {n for n, future in enumerate(futures) if n % 3 == 0 and future.cancel()}
        for number, future in enumerate(futures):
            if number in cancelled:
                with pytest.raises(CancelledError):
                    future.result(DEADLINE)
            else:
                assert future.result(DEADLINE) == number

    def call_back(self):
        futures = [self.submit(pow, number, 2) for number in range(50)]
        seen, done = [], threading.Event()

        def note(future):
            seen.append(future.result())
            if len(seen) == len(futures):
                done.set()

        for future in futures:
            future.add_done_callback(note)
        assert done.wait(DEADLINE)
        assert sorted(seen) == [n**2 for n in range(50)]

    def fail(self):
        futures = [self.submit(tasks.divide, 1, number % 3) for number in range(30)]
        for number, future in enumerate(futures):
            if number % 3:
                assert future.result(DEADLINE) == 1 / (number % 3)
            else:
                assert type(future.exception(DEADLINE)) is ZeroDivisionError

    def wait_for_some(self):
        pending = {self.submit(tasks.after, self.random.random() / 500, n): n for n in range(20)}
        while pending:
            done, _ = wait(pending, DEADLINE, return_when=FIRST_COMPLETED)
            for future in done:
                assert future.result() == pending.pop(future)
        futures = {self.submit(pow, 2, n): n for n in range(20)}
        assert {future.result(): n for future, n in futures.items()} == {2**n: n for n in range(20)}
        assert set(as_completed(futures, DEADLINE)) == set(futures)

    def map(self):
        count, size = self.random.randrange(1, 3000), self.random.choice([1, 1, 7, 100])
        assert list(self.farm.map(abs, range(-count, 0), chunksize=size)) == list(range(count, 0, -1))

    def large(self):
        data = self.random.randbytes(16) * (self.random.choice(SIZES) // 16) + b"end"
        futures = [self.submit(tasks.echo, data) for _ in range(3)]
        assert all(future.result(DEADLINE) == data for future in futures)

    def slow_among_quick(self):
        slow = self.submit(tasks.after, 0.05, "slow")
        quick = [self.submit(pow, n, 2) for n in range(100)]
        assert [future.result(DEADLINE) for future in quick] == [n**2 for n in range(100)]
        assert slow.result(DEADLINE) == "slow"

    def busy_process(self):
        self.calls += 1
        until = time.perf_counter() + 0.02
        future = self.farm.with_options(priority="high").submit(pow, 2, 2)
        while time.perf_counter() < until:
            pass
        assert future.result(DEADLINE) == 4


@pytest.mark.parametrize("leads", [True, False], ids=["led", "not led"])
def test_whatever_several_threads_do_at_once_every_outcome_is_right(leads, no_leaks):
    with FarmExecutor(3, caller_leads=leads, max_pending_bytes=64 << 20) as farm:
        until = time.monotonic() + SECONDS
        callers = [Caller(farm, seed, until) for seed in range(4)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join(SECONDS + DEADLINE)
        assert [caller.error for caller in callers] == [None] * len(callers)
        assert not any(caller.is_alive() for caller in callers)
        numbers = farm.statistics()

    assert numbers.submitted > sum(caller.calls for caller in callers), "and what map has made of its items"
    assert numbers.submitted == numbers.succeeded + numbers.failed + numbers.cancelled
    assert (numbers.lost, numbers.resubmitted, numbers.queued, numbers.running) == (0, 0, 0, 0)


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_at_any_moment_leaves_a_farm_that_works(tmp_path):
    """A program that is interrupted again and again, while it submits and waits, and goes on each time."""
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent(
            """
            import logging, os, random, signal, threading, time
            from farm_executor import FarmExecutor

            signal.signal(signal.SIGINT, signal.default_int_handler)
            interrupting = threading.Event()
            me = os.getpid()

            def interrupt():
                whim = random.Random(1)
                while True:
                    time.sleep(whim.random() / 300)
                    if interrupting.is_set():
                        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

            farm = FarmExecutor(2)
            assert farm.submit(pow, 2, 2).result() == 4
            threading.Thread(target=interrupt, daemon=True).start()
            until, interrupted, calls = time.monotonic() + 4, 0, 0
            while time.monotonic() < until:
                try:
                    interrupting.set()
                    while True:
                        futures = [farm.submit(pow, n, 2) for n in range(random.choice([1, 1, 1, 50, 500]))]
                        assert [future.result() for future in futures] == [n**2 for n in range(len(futures))]
                        calls += len(futures)
                        if time.monotonic() > until:
                            break
                except KeyboardInterrupt:
                    interrupted += 1
                finally:
                    while True:
                        try:
                            interrupting.clear()
                            time.sleep(0.01)  # what was sent just before has come by then
                            break
                        except KeyboardInterrupt:
                            interrupted += 1
            assert [future.result(30) for future in [farm.submit(pow, n, 2) for n in range(50)]] == [
                n**2 for n in range(50)
            ]
            farm.shutdown()
            numbers = farm.statistics()
            assert numbers.succeeded == numbers.submitted, numbers
            print(interrupted, calls)
            """
        )
    )
    # A group of its own, as the signal is for the program and not for its embedded farm.
    done = subprocess.run(
        [sys.executable, str(program)],
        capture_output=True,
        text=True,
        timeout=60,
        start_new_session=True,
        env=dict(os.environ),
    )

    assert (done.returncode, done.stderr) == (0, "")
    interrupted, calls = map(int, done.stdout.split())
    assert interrupted > 50
    assert calls > 100
