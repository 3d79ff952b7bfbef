"""One thing goes wrong, once; `nox -s faults` takes longer over it, and measures."""

import pytest
from faults import losses

WHY_NOT = losses.why_no_namespaces()


def test_every_result_comes_although_a_worker_is_killed(no_leaks):
    found = losses.killed_worker(rounds=1, count=30, seconds=0.02)
    assert found.wrong == 0
    assert found.again <= 1, "only what it ran runs again"


def test_a_network_that_swallows_packets_for_a_while_costs_nothing(no_leaks):
    found = losses.proxy_outage(0.5)
    assert found.verdict.broken(workers_lived=True) == {}
    assert found.workers_kept


@pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)
@pytest.mark.parametrize(
    ("seconds", "heartbeat"),
    [(1.0, losses.HEARTBEAT), pytest.param(5.0, 1.0, id="so long that the system gives up connections")],
)
def test_a_cable_that_is_pulled_for_a_while_costs_nothing(no_leaks, seconds, heartbeat):
    found = losses.cable_outage(seconds, heartbeat)
    assert found.verdict.broken(workers_lived=True) == {}
    assert found.workers_kept


def test_a_task_that_holds_the_interpreter_is_let_and_can_be_killed(no_leaks):
    found = losses.held_interpreter(2)
    assert found.kept
    assert found.others > 0
    assert found.lost == 0
