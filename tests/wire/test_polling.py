"""Polling before sleeping: what comes is returned at once, and the clock ends it."""

from __future__ import annotations

import itertools

import pytest

from farm_executor.core.patience import LONGEST
from farm_executor.wire import polling
from farm_executor.wire.polling import Poller

LOOK = 10e-6  # seconds, what the fake clock says a look takes


@pytest.fixture
def poller(monkeypatch: pytest.MonkeyPatch) -> Poller:
    ticks = itertools.count()
    monkeypatch.setattr(polling.time, "perf_counter", lambda: next(ticks) * LOOK)
    monkeypatch.setattr(polling, "usable_cores", lambda: 2.0)
    return Poller()


def test_it_returns_what_is_found_at_once(poller: Poller) -> None:
    assert poller.poll(lambda: ["found"]) == ["found"]


def test_it_looks_until_something_is_found(poller: Poller) -> None:
    looks = iter([[], [], ["found"], ["later"]])
    assert poller.poll(lambda: next(looks)) == ["found"]
    assert next(looks) == ["later"]


def test_it_gives_up_after_the_window(poller: Poller) -> None:
    looks: list[None] = []
    assert poller.poll(lambda: looks.append(None) or []) == []  # type: ignore[func-returns-value]
    assert len(looks) == pytest.approx(LONGEST / LOOK, abs=1)


def test_it_does_not_look_where_polling_has_not_paid(poller: Poller) -> None:
    looks: list[None] = []
    for _ in range(10):
        before = len(looks)
        poller.poll(lambda: looks.append(None) or [])  # type: ignore[func-returns-value]
    assert len(looks) == before


def test_an_exception_of_a_signal_handler_leaves_it_usable(poller: Poller) -> None:
    def interrupted() -> list[str]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        poller.poll(interrupted)
    assert poller.poll(lambda: ["found"]) == ["found"]
