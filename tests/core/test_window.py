"""The window: how much is queued on a lane follows from how long its tasks last."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farm_executor.core.window import GROWTH, HORIZON_US, LONGEST_ROUND_TRIP_US, MAX_WINDOW, Window

unhurried = settings(deadline=None)

counts = st.integers(1, 65_535)
busy_times = st.one_of(st.integers(0, 2**32 - 1), st.floats(0, 2.0**32))
reports = st.tuples(counts, busy_times)
round_trips = st.one_of(st.none(), st.floats(-1e6, 1e9))


def test_a_new_lane_gets_one_task() -> None:
    assert Window().size == 1


@unhurried
@given(st.lists(st.tuples(counts, busy_times, round_trips), max_size=60))
def test_whatever_is_reported_the_window_keeps_its_bounds_and_grows_by_steps(
    history: list[tuple[int, float, float | None]],
) -> None:
    window = Window()
    for report in history:
        before = window.size
        window.report(*report)
        assert isinstance(window.size, int)
        assert 1 <= window.size <= min(GROWTH * before, MAX_WINDOW)


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


def test_the_window_grows_fourfold_and_falls_at_once() -> None:
    window = Window()
    sizes: list[int] = []
    for _ in range(5):
        window.report(window.size, 0)
        sizes.append(window.size)
    assert sizes == [4, 16, 64, 256, 1024]
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


@pytest.mark.parametrize("round_trip", [0, 100, HORIZON_US / 2])
def test_a_short_way_changes_nothing(round_trip: float) -> None:
    near, here = Window(), Window()
    for _ in range(12):
        near.report(10, 1000, round_trip)
        here.report(10, 1000)
    assert near.size == here.size == 20


@unhurried
@given(st.floats(HORIZON_US / 2, LONGEST_ROUND_TRIP_US), st.floats(300, 1e6))
def test_a_lane_far_away_has_work_for_a_whole_round_trip_when_half_its_window_is_free(
    round_trip: float, each: float
) -> None:
    window = Window()
    for _ in range(20):
        window.report(10, 10 * each, round_trip)
    if window.size < MAX_WINDOW:
        assert (window.size + 1) * each >= 2 * round_trip
        assert window.size == 1 or window.size * each <= 2 * round_trip * (1 + 1e-9)


def test_one_answer_that_came_late_does_not_count_as_the_way() -> None:
    window = Window()
    for _ in range(12):
        window.report(10, 1000, 100)
    window.report(10, 1000, 1e6)
    assert window.size == 20
    window.report(10, 1000)
    assert window.size == 20, "it stays as it is while nobody knows better"


def test_no_round_trip_counts_for_more_than_a_second() -> None:
    window = Window()
    for _ in range(20):
        window.report(1, 1e6, 1e12)
    assert window.size == 2 * LONGEST_ROUND_TRIP_US / 1e6


@unhurried
@given(st.floats(HORIZON_US, 1e9))
def test_one_slow_task_is_forgotten_in_the_end(slow: float) -> None:
    window = Window()
    window.report(1, slow)
    for _ in range(60):
        window.report(1, 10)
    assert window.size >= HORIZON_US / 10 - 1
