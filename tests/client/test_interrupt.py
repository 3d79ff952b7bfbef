"""Ctrl-C waits while it is held back, wherever it strikes, and is never lost."""

import os
import signal
import threading

import pytest
from interrupts import strike_at_line

from farm_executor.client.farm.interrupt import HeldBack, let_go


@pytest.fixture(autouse=True)
def handler():
    """Whatever runs the tests may have set another one, or ignore the signal."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_comes_at_the_end():
    done = []

    with pytest.raises(KeyboardInterrupt), HeldBack():
        signal.raise_signal(signal.SIGINT)
        done.append(True)

    assert done


def test_several_interrupts_are_one():
    with pytest.raises(KeyboardInterrupt), HeldBack():
        for _ in range(3):
            signal.raise_signal(signal.SIGINT)


def test_without_one_nothing_happens():
    with HeldBack():
        pass


def test_it_may_pass_where_that_is_said():
    done = []

    with pytest.raises(KeyboardInterrupt), HeldBack() as held:
        held.passing = True
        signal.raise_signal(signal.SIGINT)
        done.append(True)

    assert not done


def test_an_error_takes_nothing_from_the_interrupt():
    with pytest.raises(KeyboardInterrupt) as caught, HeldBack():
        signal.raise_signal(signal.SIGINT)
        raise ValueError

    assert type(caught.value.__context__) is ValueError


def test_it_can_be_nested():
    done = []

    with pytest.raises(KeyboardInterrupt), HeldBack():
        with HeldBack():
            signal.raise_signal(signal.SIGINT)
        done.append(True)

    assert done


def test_a_handler_of_the_users_own_is_what_is_called():
    calls = []
    signal.signal(signal.SIGINT, lambda signum, frame: calls.append((signum, frame.f_code.co_name)))
    try:
        with HeldBack():
            signal.raise_signal(signal.SIGINT)
            assert not calls
        assert len(calls) == 1
        assert calls[0][0] == signal.SIGINT
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.parametrize("disposition", [signal.SIG_IGN, signal.SIG_DFL])
def test_what_is_ignored_or_deadly_stays_so(disposition):
    signal.signal(signal.SIGINT, disposition)
    try:
        with HeldBack():
            assert signal.getsignal(signal.SIGINT) == disposition
        assert signal.getsignal(signal.SIGINT) == disposition
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def test_in_other_threads_it_has_no_effect():
    seen = []

    def enter():
        with HeldBack():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()

    assert seen == [signal.default_int_handler]


def test_wherever_it_strikes_the_deed_is_done_whole_or_not_at_all():
    """Strikes at each line of the way in, of the deed and of the way out, one after the other."""
    path = []

    def deed():
        path.append("begun")
        path.append("done")

    def attempt():
        with HeldBack():
            deed()

    strikes = 0
    while True:
        path.clear()
        struck = strike_at_line(strikes, attempt)
        assert path in ([], ["begun", "done"])
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if not struck:
            break
        strikes += 1
    assert strikes > 10


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_child_forked_by_another_thread_meanwhile_is_interrupted_as_ever():
    """There that thread is the main one, and whoever was held back does not exist."""
    codes = []

    def fork():
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                let_go()
                signal.raise_signal(signal.SIGINT)
            except KeyboardInterrupt:
                code = 7
            finally:
                os._exit(code)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

    thread = threading.Thread(target=fork)
    with HeldBack(), HeldBack():
        thread.start()
        thread.join()

    assert codes == [7]
    let_go()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
