"""The window: how much is queued on a lane follows from how long its tasks last."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farm_executor.core.window import HORIZON_US, MAX_WINDOW, Window

unhurried = settings(deadline=None)

counts = st.integers(1, 65_535)
busy_times = st.one_of(st.integers(0, 2**32 - 1), st.floats(0, 2.0**32))
reports = st.tuples(counts, busy_times)


def test_a_new_lane_gets_one_task() -> None:
    assert Window().size == 1


@unhurried
@given(st.lists(reports, max_size=60))
def test_whatever_is_reported_the_window_keeps_its_bounds_and_at_most_doubles(
    history: list[tuple[int, float]],
) -> None:
    window = Window()
    for tasks, busy in history:
        before = window.size
        window.report(tasks, busy)
        assert isinstance(window.size, int)
        assert 1 <= window.size <= min(2 * before, MAX_WINDOW)


@unhurried
@given(st.lists(reports, max_size=60), counts, st.floats(HORIZON_US, 1e9))
def test_a_task_longer_than_the_horizon_gets_nothing_behind_it(
    history: list[tuple[int, float]], tasks: int, each: float
) -> None:
    window = Window()
    for report in history:
        window.report(*report)
    window.report(tasks, tasks * each)
    assert window.size == 1


@unhurried
@given(st.lists(reports, max_size=60), counts, st.floats(1, 1e9))
def test_the_window_never_holds_more_work_than_the_horizon(
    history: list[tuple[int, float]], tasks: int, each: float
) -> None:
    """Measured by the newest duration, unless a single task is already more."""
    window = Window()
    for report in history:
        window.report(*report)
    window.report(tasks, tasks * each)
    assert window.size == 1 or window.size * each <= HORIZON_US * (1 + 1e-9)


@pytest.mark.parametrize("each", [0, 1, 3, 100, 999, 1000, 1999, 2000, 10_000])
def test_tasks_of_one_duration_bring_the_window_to_the_horizon(each: int) -> None:
    window = Window()
    for _ in range(12):
        window.report(10, 10 * each)
    assert window.size == max(1, min(MAX_WINDOW, int(HORIZON_US / max(each, 1))))


def test_the_window_grows_by_doubling_and_falls_at_once() -> None:
    window = Window()
    sizes: list[int] = []
    for _ in range(5):
        window.report(window.size, 0)
        sizes.append(window.size)
    assert sizes == [2, 4, 8, 16, 32]
    window.report(1, 10 * HORIZON_US)
    assert window.size == 1


def test_the_slower_of_the_newest_and_the_average_counts() -> None:
    """Each report halves what earlier ones weigh."""
    window = Window()
    sizes: list[int] = []
    for each in (400, 100, 50, 150, 400):
        for _ in range(10 if not sizes else 1):
            window.report(3, 3 * each)
        sizes.append(window.size)
    # the averages are 400, 250, 150, 150, 275
    assert sizes == [5, 8, 13, 13, 5]


def test_the_window_is_never_wider_than_512() -> None:
    assert MAX_WINDOW == 512, "what the documentation says"


@unhurried
@given(st.floats(HORIZON_US, 1e9))
def test_one_slow_task_is_forgotten_in_the_end(slow: float) -> None:
    window = Window()
    window.report(1, slow)
    for _ in range(60):
        window.report(1, 10)
    assert window.size >= HORIZON_US / 10 - 1
