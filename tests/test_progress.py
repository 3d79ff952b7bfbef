"""How far a map and futures are: what is counted, how it is shown, and that it never costs a result."""

import _thread
import gc
import io
import logging
import os
import sys
import threading
import time
import types
import weakref
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from functools import partial

import pytest
from client import tasks
from contract.gate import Gate
from hypothesis import example, given
from hypothesis import strategies as st
from server.processes import wait_until as _wait_until

from farm_executor import BrokenFarmError, FarmExecutor, lfarm, progress
from farm_executor.core.text import cut, width_of
from farm_executor.progress import INTERVAL, Tally, _Bar, _Line, line, tally_for


def wait_until(condition):
    _wait_until(condition, "the figures are shown")


@pytest.fixture(scope="module")
def farm():
    with FarmExecutor(2) as farm:
        yield farm


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    gc.collect()
    wait_until(lambda: not [t for t in threading.enumerate() if t.name == "farm-executor-progress"])


class Told(list):
    """A callable for ``progress=`` that keeps what it is told."""

    def __call__(self, done, total):
        self.append((done, total))


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


# -- what is counted ----------------------------------------------------------------------------------

PATHS = {
    "blocks": {},
    "chunks": {"chunksize": 7},
    "buffered": {"buffersize": 5},
    "buffered chunks": {"buffersize": 3, "chunksize": 7},
    "at most once": {"max_attempts": 1},
    "timed": {"timeout": 60.0},
}


def mapped(farm, fn, items, told, **how):
    options = {name: how.pop(name) for name in ("max_attempts", "timeout") if name in how}
    return (farm.with_options(**options) if options else farm).map(fn, items, progress=told, **how)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("sized", [True, False])
def test_the_last_figures_are_all_of_all_on_every_path(farm, path, sized):
    told = Told()

    assert list(mapped(farm, abs, range(500) if sized else iter(range(500)), told, **PATHS[path])) == list(
        range(500)
    )

    assert told[-1] == (500, 500)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    if sized:
        assert {total for _, total in told} == {500}


@pytest.mark.parametrize("path", PATHS)
def test_no_items(farm, path):
    told = Told()
    assert list(mapped(farm, abs, [], told, **PATHS[path])) == []
    assert told == [(0, 0)]


def test_the_shortest_iterable_counts(farm):
    told = Told()
    assert list(farm.map(pow, range(3), range(5), progress=told)) == [1, 1, 4]
    assert told[-1] == (3, 3)


def test_calls_count_when_they_end_and_not_when_their_results_are_taken(farm):
    told = Told()
    with Gate() as gate:
        results = farm.map(partial(tasks.pass_first, gate.address), range(50), progress=told)
        wait_until(lambda: told and told[-1][0] == 49)
    assert list(results) == list(range(50))
    assert told[-1] == (50, 50)


class Shown:
    """A way to show figures that keeps them."""

    def __init__(self):
        self.drawn = []
        self.closed = False

    def draw(self, done, failed, total):
        self.drawn.append((done, failed, total))

    def close(self):
        self.closed = True


@pytest.fixture
def shown(monkeypatch):
    """What a bar shows; `Shown.drawn` has the failures, too."""
    show = Shown()
    monkeypatch.setattr("farm_executor.progress._Told", lambda tell: show)
    return show


@pytest.mark.parametrize("path", ["at most once", "timed"])
def test_failures_count_beside(farm, shown, path):
    results = mapped(farm, partial(tasks.fail_at, os.devnull, 0), range(40), print, **PATHS[path])
    wait_until(lambda: shown.closed)
    assert shown.drawn[-1] == (40, 1, 40)
    with pytest.raises(ZeroDivisionError):
        list(results)


def test_an_item_that_fails_in_a_block_counts_as_one(farm, shown):
    with pytest.raises(ZeroDivisionError):
        list(farm.map(partial(tasks.fail_at, os.devnull, 700), range(1000), progress=print))
    done, failed, total = shown.drawn[-1]
    assert (failed, total) == (1, 1000)
    assert 701 <= done < 1000


def test_a_chunk_that_fails_counts_with_all_of_its_items(farm, shown):
    with pytest.raises(ZeroDivisionError):
        list(farm.map(partial(tasks.fail_at, os.devnull, 3), range(8), chunksize=4, progress=print))
    wait_until(lambda: shown.closed)
    assert shown.drawn[-1][1] == 4


def test_items_of_a_lost_block_count_once(farm, shown, tmp_path):
    path = str(tmp_path / "died")
    assert list(farm.map(partial(tasks.die_once_at, path, 900), range(1000), progress=print)) == list(range(1000))
    assert os.path.exists(path)
    assert shown.drawn[-1] == (1000, 0, 1000)


def test_items_that_a_slow_block_gives_back_count_once(farm, shown):
    waits = partial(tasks.after, 0.002)
    assert len(list(farm.map(waits, range(300), progress=print))) == 300
    assert shown.drawn[-1] == (300, 0, 300)


def test_an_item_that_cannot_be_pickled_counts_as_failed(farm, shown):
    items = [threading.Lock() if number == 5 else number for number in range(30)]
    results = farm.map(tasks.echo, items, progress=print)
    wait_until(lambda: shown.closed)
    assert shown.drawn[-1] == (30, 1, 30)
    with pytest.raises(TypeError):
        list(results)


def test_a_function_that_cannot_be_pickled_fails_them_all(farm, shown):
    lock = threading.Lock()
    results = farm.map(lambda x: lock, range(200), progress=print)
    wait_until(lambda: shown.closed)
    assert shown.drawn[-1] == (200, 200, 200)
    with pytest.raises(TypeError):
        list(results)


def test_views_show_it_too(farm):
    told = Told()
    assert list(farm.with_options(priority="high").map(abs, range(3), progress=told)) == [0, 1, 2]
    assert told[-1] == (3, 3)


def test_a_map_of_lfarm(farm):
    told = Told()
    lfarm.set_kernel(lfarm.make_kernel(farm))
    try:
        assert lfarm.pmap(abs, range(-100, 0), parts=10, progress=told) == list(range(100, 0, -1))
        assert told[-1] == (100, 100)
        with pytest.raises(TypeError, match="progress must be True, a label"):
            lfarm.pmap(abs, [1], progress=3)
    finally:
        lfarm.set_kernel(None)


# -- the end, whatever it is ---------------------------------------------------------------------------


def test_an_iterator_that_is_left_early_closes_its_bar(farm, shown):
    with Gate() as gate:
        results = farm.map(partial(tasks.pass_first, gate.address), [1, 0, *range(2, 200)], progress=print)
        assert next(results) == 1
        results.close()
        wait_until(lambda: shown.closed)


@pytest.mark.parametrize("path", PATHS)
def test_an_iterator_that_is_collected_closes_its_bar(farm, shown, path):
    with Gate() as gate:
        results = mapped(
            farm, partial(tasks.pass_first, gate.address), [1, 0, *range(2, 200)], print, **PATHS[path]
        )
        if "chunks" not in path:
            assert next(results) == 1
        reference = weakref.ref(results) if "chunks" not in path else lambda: None
        del results
        gc.collect()
        assert reference() is None
    wait_until(lambda: shown.closed)


def test_a_map_whose_results_nobody_takes_is_shown_to_its_end(farm):
    told = Told()
    farm.map(abs, range(100), progress=told)
    wait_until(lambda: told and told[-1] == (100, 100))


def test_items_that_raise_close_the_bar(farm, shown):
    def items():
        yield 1
        raise LookupError

    with pytest.raises(LookupError):
        farm.map(abs, items(), progress=print)
    wait_until(lambda: shown.closed)


def test_an_interrupt_closes_the_bar(farm, shown):
    with Gate() as gate:

        def interrupt():
            gate.wait_for_arrivals()
            _thread.interrupt_main()

        results = farm.map(partial(tasks.pass_first, gate.address), [1, 0], progress=print)
        assert next(results) == 1
        thread = threading.Thread(target=interrupt)
        with pytest.raises(KeyboardInterrupt):
            thread.start()
            next(results)
        thread.join()
        results.close()  # in case it came before that
        wait_until(lambda: shown.closed)


def test_a_shutdown_that_cancels_closes_the_bar(shown):
    with Gate() as gate, FarmExecutor(1) as farm:
        results = farm.map(partial(tasks.pass_first, gate.address), range(100), progress=print, chunksize=2)
        farm.shutdown(wait=False, cancel_futures=True)
        gate.open()
        with pytest.raises(CancelledError):
            list(results)
        assert shown.closed


def test_a_broken_farm_closes_the_bar(shown):
    with Gate() as gate, FarmExecutor(1) as farm:
        results = farm.map(partial(tasks.pass_first, gate.address), range(100), progress=print)
        farm.kill_workers()
        with pytest.raises((BrokenFarmError, CancelledError)):
            list(results)
        assert shown.closed


def test_a_callable_that_raises_costs_no_result(farm, caplog):
    def tell(done, total):
        raise SystemExit(3)

    with caplog.at_level(logging.WARNING, "farm_executor"):
        assert list(farm.map(abs, range(1000), progress=tell)) == list(range(1000))
    (record,) = caplog.records
    assert "progress cannot be shown any more" in record.message


def test_a_callable_may_take_the_results(farm):
    """Foolish, but it must not wait for itself."""
    taken = []
    ready = threading.Event()

    def tell(done, total):
        if done == total:
            ready.wait()
            taken.extend(results)

    results = farm.map(abs, range(5), progress=tell)
    ready.set()
    wait_until(lambda: taken == [0, 1, 2, 3, 4])


def test_a_flood_draws_seldom():
    show = Shown()
    tally = Tally(show, 100_000)
    since = time.monotonic()
    for _ in range(100_000):
        tally.add(1)
    tally.finish()
    assert len(show.drawn) <= (time.monotonic() - since) / INTERVAL + 2
    assert show.drawn[-1] == (100_000, 0, 100_000)


def test_counts_of_several_threads_add_up():
    show = Shown()
    tally = Tally(show, 40_000)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: [tally.add(1, 1) for _ in range(5_000)], range(8)))
    tally.finish()
    assert show.drawn[-1] == (40_000, 40_000, 40_000)


# -- futures -------------------------------------------------------------------------------------------


def test_wait_is_that_of_the_standard_library(farm):
    told = Told()
    futures = [farm.submit(abs, number) for number in range(50)]
    done, not_done = progress.wait(futures, progress=told)
    assert done == set(futures)
    assert not not_done
    assert told[-1] == (50, 50)


def test_wait_counts_futures_of_any_executor_whatever_becomes_of_them(shown):
    good, bad, cancelled, pending = Future(), Future(), Future(), Future()
    good.set_result(1)
    bad.set_exception(ValueError())
    assert cancelled.cancel()
    assert not cancelled.set_running_or_notify_cancel()
    done, not_done = progress.wait([good, bad, cancelled, pending], timeout=0, progress=print)
    assert (done, not_done) == ({good, bad, cancelled}, {pending})
    assert shown.drawn[-1] == (3, 1, 4)


def test_as_completed_counts_what_is_done_and_not_what_is_taken(farm):
    told = Told()
    futures = [farm.submit(abs, number) for number in range(50)]
    completed = progress.as_completed(futures, progress=told)
    wait_until(lambda: told and told[-1][0] == 50)
    assert set(completed) == set(futures)
    assert told[-1] == (50, 50)


def test_as_completed_in_time(shown):
    with pytest.raises(TimeoutError if sys.version_info >= (3, 11) else Exception):
        list(progress.as_completed([Future()], timeout=0, progress=print))
    assert shown.drawn[-1] == (0, 0, 1)
    assert shown.closed


def test_as_completed_that_is_left_early(shown):
    done = Future()
    done.set_result(1)
    for _ in progress.as_completed([done, Future()], progress=print):
        break
    wait_until(lambda: shown.closed)


# -- how it is shown -----------------------------------------------------------------------------------


def test_no_terminal_no_bar(farm, capsys):
    assert list(farm.map(abs, range(100), progress=True)) == list(range(100))
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("closed", [True, False])
def test_a_standard_error_that_is_closed_or_missing(farm, monkeypatch, closed):
    stderr = Terminal()
    stderr.close()
    monkeypatch.setattr(sys, "stderr", stderr if closed else None)
    assert list(farm.map(abs, range(100), progress=True)) == list(range(100))


def test_a_standard_error_that_is_closed_in_between(farm, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    monkeypatch.setattr(sys, "stderr", Terminal())
    with Gate() as gate:
        results = farm.map(partial(tasks.pass_first, gate.address), range(100), progress=True)
        wait_until(lambda: sys.stderr.getvalue())
        sys.stderr.close()
        gate.open()
        assert list(results) == list(range(100))
    assert "progress cannot be shown any more" in caplog.text


def test_without_tqdm_there_is_one_line(farm, monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("COLUMNS", "60")

    assert list(farm.map(abs, range(100), progress="the label")) == list(range(100))

    text = sys.stderr.getvalue()
    assert text.endswith("\n")
    assert text.count("\n") == 1
    lines = text.strip().split("\r")
    assert lines[-1].startswith("the label 100% ")
    assert "100/100" in lines[-1]
    assert all(len(one.strip()) < 60 for one in lines)


def test_the_label_is_the_functions_name_unless_it_is_given(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    monkeypatch.setattr(sys, "stderr", Terminal())
    for given_, label in ((True, "after"), ("mine\x1b]0;x\n", "mine?]0;x ")):
        tally_for(given_, partial(tasks.after, 3), 1).finish()
        assert f"\r{label} " in sys.stderr.getvalue()
    assert "\x1b" not in sys.stderr.getvalue()


def test_a_terminal_without_unicode_gets_none():
    stderr = Terminal()
    stderr.encoding = "ascii"
    bar = _Line(stderr, "größe")
    bar.draw(1, 0, 2)
    assert stderr.getvalue().isascii()
    assert "#" in stderr.getvalue()


def test_a_shorter_line_wipes_out_the_one_before(monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    stderr = Terminal()
    bar = _Line(stderr, "x")
    bar.draw(123456, 0, None)
    bar.draw(1, 0, None)
    _, first, second = stderr.getvalue().split("\r")
    assert len(second) >= len(first)


@example("", 1, 0, 2, 0.0, 80)  # the first call may end before a coarse clock has moved
@given(
    st.text(st.characters(exclude_categories=["Cs", "Cc", "Cf", "Zl", "Zp"]), max_size=60),
    *(st.integers(0, 10**7), st.integers(0, 10**7), st.none() | st.integers(0, 10**7)),
    *(st.floats(0, 1e6), st.integers(1, 200)),
)
def test_no_line_is_wider_than_the_terminal(label, done, failed, total, seconds, width):
    done = done if total is None else min(done, total)
    assert width_of(line(label, done, failed, total, seconds, width)) <= width


def test_a_line_says_what_there_is_to_say():
    assert (
        line("fit", 450, 2, 1000, 30.0, 70)
        == "fit  45% ██████████░░░░░░░░░░░░░░ 450/1,000  2 failed  15/s  36 s left"
    )
    assert line("fit", 0, 0, 10, 5.0, 40).endswith(" 0/10  0/s  5 s")
    assert line("fit", 3, 0, None, 7300.0, 60) == "fit 3  0.00041/s  2:01:40"
    assert line("fit", 10, 0, 10, 5.0, 20) == "fit 100% 10/10  2/s "


def test_text_is_cut_by_columns():
    assert cut("abc", 2) == "ab"
    assert cut("日本語", 5) == "日本"
    assert cut("e\u0301e", 1) == "e\u0301"
    assert cut("abc", -1) == ""


class FakeTqdm:
    """What this module calls of tqdm's."""

    made = []

    def __init__(self, total, desc, **options):
        self.total, self.desc, self.n, self.start_t, self.postfix, self.closed = total, desc, 0, 0.0, "", False
        self.made.append(self)

    def update(self, more):
        self.n += more

    def reset(self, total):
        self.total, self.n, self.start_t = total, 0, 1.0

    def set_postfix_str(self, text, refresh):
        self.postfix = text

    def close(self):
        self.closed = True


def test_tqdm_shows_it_where_it_is_installed(monkeypatch):
    module = types.ModuleType("tqdm.auto")
    module.tqdm = FakeTqdm
    monkeypatch.setitem(sys.modules, "tqdm", types.ModuleType("tqdm"))
    monkeypatch.setitem(sys.modules, "tqdm.auto", module)
    monkeypatch.setattr(sys, "stderr", Terminal())
    tally = tally_for("fit", "", None)
    tally.expect(10)
    tally.add(3, 1)
    tally.complete()
    tally.add(7)
    tally.finish()
    bar = FakeTqdm.made.pop()
    assert (bar.desc, bar.total, bar.n, bar.start_t, bar.closed) == ("fit", 10, 10, 0.0, True)
    assert bar.postfix == "1 failed"


def test_the_real_tqdm():
    tqdm = pytest.importorskip("tqdm")
    file = Terminal()
    bar = _Bar(partial(tqdm.tqdm, file=file), "fit", None)
    bar.draw(2, 1, None)
    bar.draw(10, 1, 10)
    bar.close()
    assert "fit: 100%" in file.getvalue()
    assert "10/10" in file.getvalue()
    assert "1 failed" in file.getvalue()


def test_a_notebook_shows_it_though_it_is_no_terminal(monkeypatch):
    stderr = io.StringIO()
    shell = types.SimpleNamespace(config={"IPKernelApp": {}})
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    monkeypatch.setattr(sys, "stderr", stderr)
    tally_for(True, "cells", 1).finish()
    assert "cells" in stderr.getvalue()


# -- bad input -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [3, 0.5, b"label", object(), ["x"]])
def test_what_is_no_progress_is_refused(farm, wrong):
    for call in (
        lambda: farm.map(abs, [1], progress=wrong),
        lambda: progress.wait([], progress=wrong),
        lambda: progress.as_completed([], progress=wrong),
    ):
        with pytest.raises(TypeError, match="progress must be True, a label, or a callable"):
            call()


@pytest.mark.parametrize("nothing", [None, False])
def test_none_and_false_show_nothing(farm, nothing, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert list(farm.map(abs, range(9), progress=nothing)) == list(range(9))
    assert not sys.stderr.getvalue()
