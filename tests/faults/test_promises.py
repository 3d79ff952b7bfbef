"""The judge notices every way in which a promise can be broken."""

from concurrent.futures import CancelledError, Future

import pytest
from faults import tasks
from faults.book import Book
from faults.promises import Expectation, judge

from farm_executor import WorkerLostError


def future_of(outcome):
    future = Future()
    if isinstance(outcome, BaseException):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
    return future


def verdict_on(folder, outcome, *, value=1, runs=1, **options):
    book = Book(folder)
    for _ in range(runs):
        tasks.note(book.path, "it")
    future = Future() if outcome is None else future_of(outcome)
    expected = Expectation("it", future, value, **{"once": False, **options})
    return judge([expected], book, 0.01)


@pytest.mark.parametrize(("outcome", "value"), [(1, 1), (LookupError("it"), LookupError)])
def test_what_is_as_promised(tmp_path, outcome, value):
    assert verdict_on(tmp_path, outcome, value=value).broken(workers_lived=True) == {}


@pytest.mark.parametrize(
    ("outcome", "options", "broken"),
    [
        (2, {}, "wrong"),
        (True, {}, "wrong"),
        (ValueError("it"), {}, "wrong"),
        (ValueError("it"), {"value": LookupError}, "wrong"),
        (TimeoutError("it"), {}, "wrong"),
        (CancelledError(), {}, "wrong"),
        (None, {}, "hung"),
        (WorkerLostError("it"), {}, "lost"),
        (1, {"runs": 0}, "unrun"),
        (1, {"runs": 2, "once": True}, "twice"),
        (WorkerLostError("it"), {"runs": 2, "once": True}, "twice"),
    ],
)
def test_what_is_never_promised(tmp_path, capfd, outcome, options, broken):
    found = verdict_on(tmp_path, outcome, **options)
    assert set(found.broken(workers_lived=False)) == {broken}
    assert ("Thread" in capfd.readouterr().err) is (broken == "hung"), "who hangs shows where"


@pytest.mark.parametrize(
    ("outcome", "options", "broken"),
    [(WorkerLostError("it"), {"once": True}, "given_up"), (1, {"runs": 2}, "again")],
)
def test_what_is_promised_only_while_workers_live(tmp_path, outcome, options, broken):
    found = verdict_on(tmp_path, outcome, **options)
    assert found.broken(workers_lived=False) == {}
    assert set(found.broken(workers_lived=True)) == {broken}


@pytest.mark.parametrize(
    ("outcome", "runs", "broken"),
    [(CancelledError(), 0, set()), (CancelledError(), 1, {"wrong"}), (1, 0, {"wrong"}), (None, 0, {"hung"})],
)
def test_what_was_cancelled_does_not_run(tmp_path, outcome, runs, broken):
    found = verdict_on(tmp_path, outcome, runs=runs, cancelled=True)
    assert set(found.broken(workers_lived=True)) == broken


def test_an_item_of_a_map_is_judged_by_its_runs(tmp_path):
    book = Book(tmp_path)
    for _ in range(2):
        tasks.note(book.path, "map-1")
    found = judge([Expectation("map-1", None, 1, once=True)], book, 0.01)
    assert set(found.broken(workers_lived=False)) == {"twice"}
