"""Patience: polling goes on while it pays, and costs next to nothing when it does not."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farm_executor.core.patience import ENOUGH_MISSES, LONGEST, MARGIN, MOST_MISSES, RARELY, Patience

unhurried = settings(deadline=None)
waits = st.lists(st.floats(0, 0.01), max_size=200)


def wait(patience: Patience, seconds: float) -> float:
    """Go through one wait that takes so long; return for how long it was polled, in seconds."""
    window = patience.window()
    if not window:
        return 0.0
    if seconds <= window:
        patience.came(seconds)
        return seconds
    patience.missed()
    return window


def polled(patience: Patience, seconds: float, times: int) -> list[float]:
    return [wait(patience, seconds) for _ in range(times)]


def test_it_begins_by_polling() -> None:
    assert Patience(2).window() == LONGEST


@unhurried
@given(st.floats(0, 2, exclude_max=True), waits)
def test_with_fewer_than_two_cores_nothing_is_polled_for(cores: float, before: list[float]) -> None:
    patience = Patience(cores)
    assert not any(wait(patience, seconds) for seconds in before)


@unhurried
@given(waits)
def test_no_window_is_longer_than_the_longest(before: list[float]) -> None:
    patience = Patience(2)
    for seconds in before:
        assert 0.0 <= wait(patience, seconds) <= LONGEST


@unhurried
@given(waits, st.floats(LONGEST, 10.0, exclude_min=True))
def test_whatever_came_before_long_waits_are_soon_polled_for_only_rarely(before: list[float], long: float) -> None:
    patience = Patience(2)
    for seconds in before:
        wait(patience, seconds)
    polled(patience, long, 4 * RARELY)  # to learn it
    assert math.fsum(polled(patience, long, 10 * RARELY)) <= 10 * LONGEST


@unhurried
@given(waits, st.floats(0, LONGEST / MARGIN))
def test_whatever_came_before_short_waits_are_soon_polled_for_each_time(before: list[float], short: float) -> None:
    patience = Patience(2)
    for seconds in before:
        wait(patience, seconds)
    polled(patience, short, (MOST_MISSES + 1) * RARELY)
    assert [patience.window() > 0 and patience.came(short) is None for _ in range(100)] == [True] * 100


def test_a_single_long_wait_among_short_ones_does_not_stop_the_polling() -> None:
    patience = Patience(2)
    for _ in range(20):
        polled(patience, 30e-6, 10)
        assert wait(patience, 0.01) > 0.0
        assert wait(patience, 30e-6) > 0.0


def test_where_one_wait_in_three_is_short_most_are_slept_through() -> None:
    patience = Patience(2)
    spent = [sum(wait(patience, seconds) > 0 for seconds in (30e-6, 0.01, 0.01)) for _ in range(300)]
    assert sum(spent) < 300 / 3


def test_the_window_follows_the_usual_wait() -> None:
    patience = Patience(2)
    polled(patience, 20e-6, 100)
    assert patience.window() == pytest.approx(MARGIN * 20e-6, rel=0.01)


def test_a_miss_widens_the_window() -> None:
    patience = Patience(2)
    polled(patience, 20e-6, 100)
    narrow = patience.window()
    patience.missed()
    assert patience.window() == pytest.approx(2 * narrow, rel=0.01)


def test_the_first_misses_are_forgiven() -> None:
    patience = Patience(2)
    for _ in range(ENOUGH_MISSES):
        assert patience.window() > 0.0
        patience.missed()
    assert patience.window() == 0.0
