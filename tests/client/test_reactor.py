"""Who handles what comes over the sockets, and that nothing is left lying when they take turns."""

import signal
import socket
import sys
import threading
import time
from types import SimpleNamespace

import pytest
from interrupts import strike_at_line

from farm_executor.client.farm import reactor
from farm_executor.client.farm.reactor import Reactor
from farm_executor.wire.connection import Connection

DEADLINE = 20.0
LEADS = sys.platform != "win32"


class Driver:
    """A reactor with one socket; what comes there is noted with the thread that took it."""

    def __init__(self, may_lead=True):
        self.over = threading.Event()
        self.errors, self.ended = [], []
        self.changed = threading.Condition()
        self.got, self.threads = [], []
        self.reactor = Reactor(
            self.over.is_set, self.errors.append, lambda: self.ended.append(True), may_lead=may_lead
        )
        self.here, self.there = socket.socketpair()
        self.here.setblocking(False)
        self.connection = Connection(self.here)
        self.reactor.register(self.connection, self.on_data)
        self.reactor.start()

    def on_data(self, events):
        with self.changed:
            self.got += self.here.recv(100)
            self.threads.append(threading.current_thread().name)
            self.changed.notify_all()

    def send(self, number):
        self.there.sendall(bytes([number]))

    def lead(self, count, timeout=DEADLINE):
        """Lead until so much has come."""
        return self.reactor.lead(lambda: len(self.got) >= count, timeout)

    def wait(self, count):
        """As whoever does not lead does."""
        deadline = time.monotonic() + DEADLINE
        while len(self.got) < count and time.monotonic() < deadline:
            time.sleep(0.001)
        return len(self.got) >= count

    def close(self):
        self.over.set()
        self.reactor.may_lead = False
        self.reactor.post(lambda: None)
        assert self.reactor.join(DEADLINE)
        self.here.close()
        self.there.close()
        assert self.ended == [True]


@pytest.fixture(params=[True, False], ids=["led", "not led"])
def driver(request, no_leaks):
    driver = Driver(request.param)
    yield driver
    driver.close()


@pytest.fixture
def led(no_leaks):
    driver = Driver()
    yield driver
    driver.close()


MAIN, OWN = threading.main_thread().name, "farm-engine"


def test_the_own_thread_takes_what_comes_while_nobody_waits(driver):
    driver.send(1)

    assert driver.wait(1)
    assert driver.threads == [OWN]


def test_what_is_posted_and_what_is_timed_is_done_by_the_own_thread(driver):
    names, done = [], threading.Event()
    driver.reactor.post(lambda: names.append(threading.current_thread().name))
    driver.reactor.after(0.01, lambda: (names.append(threading.current_thread().name), done.set()))

    assert done.wait(DEADLINE)
    assert names == [OWN, OWN]


@pytest.mark.skipif(not LEADS, reason="nobody leads here")
def test_whoever_waits_takes_what_comes(led):
    for number in range(50):
        todo = [number]

        def done(todo=todo):  # asked by who leads, before it waits: nobody else takes what is sent now
            if todo:
                led.send(todo.pop())
            return len(led.got) > number

        while len(led.got) <= number:  # the own thread may be awake for a moment
            led.reactor.lead(done, DEADLINE)

    assert led.got == list(range(50))
    assert set(led.threads) == {MAIN}


@pytest.mark.skipif(not LEADS, reason="nobody leads here")
def test_who_waits_polls_before_it_sleeps(led, monkeypatch):
    looks = []

    def poll(look):
        looks.append(look())
        led.send(1)
        return look()

    monkeypatch.setattr(led.reactor, "_poller", SimpleNamespace(poll=poll))
    while not looks:  # the own thread may be awake for a moment
        led.lead(1)

    assert led.wait(1)
    assert looks == [[]]


def test_the_own_thread_does_not_poll(driver, monkeypatch):
    looks = []
    monkeypatch.setattr(driver.reactor, "_poller", SimpleNamespace(poll=looks.append))
    with driver.reactor.waiting(lambda: False):
        driver.send(1)
        assert driver.wait(1)
        driver.send(2)
        assert driver.wait(2)

    assert not looks


def test_where_leading_is_off_it_returns_at_once(no_leaks):
    driver = Driver(may_lead=False)
    assert driver.lead(1, 3600.0) == 3600.0
    assert driver.lead(1, None) is None
    driver.close()


def test_the_timeout_passes_and_what_is_left_is_told(led):
    assert led.lead(1, 0.01) == 0.0
    led.send(1)
    left = led.lead(1, 3600.0)

    assert led.wait(1)
    assert 3500.0 < left <= 3600.0


def test_after_leading_the_own_thread_takes_what_comes(led):
    for number in range(20):
        threading.Timer(0.001, led.send, [number]).start()
        led.lead(2 * number + 1)
        led.send(100 + number)
        assert led.wait(2 * number + 2)

    assert led.got == [n for number in range(20) for n in (number, 100 + number)]
    assert OWN in led.threads


def test_a_post_ends_the_leading(led):
    done = threading.Event()
    threading.Timer(0.02, lambda: led.reactor.post(done.set)).start()
    led.lead(1, 3600.0)

    assert done.wait(DEADLINE)


def test_a_timer_ends_the_leading_also_one_that_a_handler_sets(led):
    done = threading.Event()
    led.reactor.after(0.02, done.set)
    led.lead(1, 3600.0)
    assert done.wait(DEADLINE)

    done.clear()
    take = led.on_data
    led.reactor.unregister(led.connection)
    led.reactor.register(led.connection, lambda events: (take(events), led.reactor.after(0.01, done.set)))
    led.send(1)
    led.lead(2, 3600.0)
    assert done.wait(DEADLINE)


@pytest.mark.skipif(not LEADS, reason="nobody leads here")
def test_who_glances_takes_what_has_come_and_never_waits(led):
    while not led.reactor._turn.acquire(False):  # the own thread is about to stand by
        time.sleep(0.001)
    led.reactor._turn.release()
    led.reactor._standby.disarm()  # so that it sees nothing
    try:
        for number in range(50):
            led.send(number)
            led.reactor.glance()
    finally:
        led.reactor._standby.arm()

    assert led.got == list(range(50))
    assert set(led.threads) == {MAIN}


def test_after_the_last_glance_the_own_thread_takes_what_comes(driver):
    for _ in range(5):
        driver.reactor.glance()
    driver.send(1)

    assert driver.wait(1)
    assert driver.threads == [OWN]


def test_what_is_posted_or_timed_does_not_wait_for_an_end_of_glancing(driver):
    posted, timed = threading.Event(), threading.Event()
    driver.reactor.post(posted.set)
    driver.reactor.post(lambda: driver.reactor.after(0.01, timed.set))
    deadline = time.monotonic() + DEADLINE
    while not (posted.is_set() and timed.is_set()) and time.monotonic() < deadline:
        driver.reactor.glance()

    assert posted.is_set()
    assert timed.is_set()


def lead_in_a_row(led):
    """Lead until the own thread gives way."""
    while led.reactor._visits_end < time.monotonic():  # it may be awake for a moment
        led.reactor.lead(lambda: True, DEADLINE)


@pytest.mark.skipif(not LEADS, reason="nobody leads here")
def test_an_answer_that_is_there_before_its_caller_leads_is_left_to_it(led, monkeypatch):
    monkeypatch.setattr(reactor, "NAP", DEADLINE)
    lead_in_a_row(led)
    led.send(1)
    time.sleep(0.02)  # in which the own thread would have taken it
    led.lead(1)

    assert led.threads == [MAIN]


@pytest.mark.skipif(not LEADS, reason="nobody leads here")
def test_the_own_thread_naps_for_no_more_than_a_moment(led):
    lead_in_a_row(led)
    led.send(1)

    assert led.wait(1)
    assert led.threads == [OWN]


@pytest.mark.skipif(not LEADS, reason="nobody leads here")
@pytest.mark.parametrize("how", ["a post", "a wait"])
def test_a_nap_ends_where_somebody_needs_the_own_thread(led, monkeypatch, how):
    monkeypatch.setattr(reactor, "NAP", 10 * DEADLINE)
    lead_in_a_row(led)
    led.send(1)  # it naps from now on
    if how == "a wait":
        with led.reactor.waiting(lambda: bool(led.got)):
            assert led.wait(1)
    else:
        done = threading.Event()
        led.reactor.post(done.set)
        assert done.wait(DEADLINE)


@pytest.mark.skipif(not LEADS, reason="nobody leads here")
def test_one_leads_and_the_others_return_at_once(led):
    leading = threading.Event()

    def done():  # asked by who leads
        leading.set()
        return bool(led.got)

    def lead():
        while not led.got:  # the own thread may be awake for a moment
            led.reactor.lead(done, None)

    leader = threading.Thread(target=lead, name="the leader")
    leader.start()
    assert leading.wait(DEADLINE)
    assert led.lead(1, 3600.0) == 3600.0
    led.send(1)
    leader.join(DEADLINE)

    assert led.threads == ["the leader"]


@pytest.mark.skipif(not LEADS, reason="nobody leads here")
def test_nobody_leads_while_somebody_waits_otherwise(led):
    with led.reactor.waiting(lambda: False):
        assert led.lead(1, 3600.0) == 3600.0
    led.send(1)
    led.lead(1, 3600.0)
    assert led.wait(1)


@pytest.mark.skipif(not LEADS, reason="nobody leads here")
def test_nobody_leads_for_some_time_after_two_have_waited_at_once(led, monkeypatch):
    """Else two that call in turns would hand the sockets to and fro, which costs more than the calls."""
    monkeypatch.setattr("farm_executor.client.farm.reactor.CROWDED", 3600.0)
    with led.reactor.waiting(lambda: True), led.reactor.waiting(lambda: True):
        pass

    assert led.lead(1, 3600.0) == 3600.0
    led.send(1)
    assert led.wait(1)
    assert led.threads == [OWN]


@pytest.mark.skipif(not LEADS, reason="nobody leads here")
def test_who_has_what_he_waits_for_keeps_nobody_from_leading(led):
    """Else the own thread, faster than the one that it has woken, would take the sockets for itself ever after."""
    with led.reactor.waiting(lambda: len(led.got) >= 1):  # by a thread that has not gone on yet
        led.send(0)
        assert led.wait(1)
        assert led.threads == [OWN]
        todo = [1]

        def done():
            if todo:
                led.send(todo.pop())
            return len(led.got) >= 2

        deadline = time.monotonic() + DEADLINE
        while len(led.got) < 2 and time.monotonic() < deadline:
            led.reactor.lead(done, DEADLINE)
        assert led.threads == [OWN, MAIN]


def test_many_threads_and_the_own_one_take_turns_and_lose_nothing(led):
    """Each asks and waits, leading where it may, and else as one waits for a future."""
    count, threads = 300, 4
    echo = threading.Thread(target=_echo, args=(led.there,))
    echo.start()
    lock = threading.Lock()
    sent = 0

    def work():
        nonlocal sent
        for _ in range(count):
            with lock:
                sent += 1
                mine = sent
                led.here.send(b"x")
            led.lead(mine)
            with led.reactor.waiting(lambda n=mine: len(led.got) >= n), led.changed:
                assert led.changed.wait_for(lambda: len(led.got) >= mine, DEADLINE)

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(DEADLINE)
    assert len(led.got) == count * threads
    led.here.shutdown(socket.SHUT_WR)
    echo.join(DEADLINE)


def _echo(sock):
    while data := sock.recv(100):
        sock.sendall(data)


def _raise(error):
    raise error


def test_what_a_handler_raises_in_the_own_thread_ends_the_reactor(no_leaks):
    driver, error = Driver(), ValueError("a bug")
    driver.reactor.post(lambda: _raise(error))

    assert driver.reactor.join(DEADLINE)
    assert driver.errors == [error]
    driver.close()


@pytest.mark.skipif(not LEADS, reason="nobody leads here")
def test_what_a_handler_raises_in_a_leader_ends_the_reactor_too(no_leaks):
    driver, error = Driver(), ValueError("a bug")
    driver.reactor.unregister(driver.connection)
    driver.reactor.register(driver.connection, lambda events: _raise(error) if driver.here.recv(1) else None)
    sent = []

    def done():  # called by a leader alone
        if not sent:
            sent.append(driver.send(1))
        return False

    with pytest.raises(ValueError, match="a bug"):
        while not sent:
            driver.reactor.lead(done, None)
    assert driver.reactor.join(DEADLINE)
    assert driver.errors == [error]
    driver.close()


def test_posting_after_the_end_runs_at_once(no_leaks):
    driver, done = Driver(), []
    driver.close()
    driver.reactor.post(lambda: done.append(True))

    assert done == [True]
    assert driver.lead(1, 0.0) == 0.0


LINES = ("reactor.py", "interrupt.py", "polling.py", "patience.py")


@pytest.mark.skipif(not LEADS, reason="nobody leads here")
def test_an_interrupt_at_any_line_leaves_the_reactor_as_it_was(led):
    """Ctrl-C at one line of the leading after the other; afterwards all that was sent has come, once."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        struck, sent = 0, 0
        while True:
            sent += 1
            led.send(sent % 256)
            hit = strike_at_line(struck, lambda: led.lead(sent), LINES)
            led.lead(sent)
            assert led.wait(sent)
            assert led.got == [n % 256 for n in range(1, sent + 1)]
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
            struck += 1
            if not hit and struck > 60:
                break
    finally:
        signal.signal(signal.SIGINT, before)
    assert not led.errors


def test_an_interrupt_at_any_line_of_a_post_loses_none_that_follows(led):
    """Whoever finds something in the inbox must not take it for granted that somebody was woken for it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        line, struck = 0, True
        while struck:
            struck = strike_at_line(line, lambda: led.reactor.post(int))
            line += 1
            followed = threading.Event()
            led.reactor.post(followed.set)
            assert followed.wait(DEADLINE), line
        assert line > 10
    finally:
        signal.signal(signal.SIGINT, before)
