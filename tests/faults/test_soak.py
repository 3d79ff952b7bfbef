"""Random faults for some seconds; `nox -s faults` keeps it up for ten minutes."""

import pytest
from faults.soak import SERVERS, SLOTS, soak


@pytest.mark.parametrize("workers_live", [True, False], ids=["networks fail", "anything fails"])
def test_random_faults_cost_nothing_that_was_promised(workers_live, no_leaks):
    report = soak(1500, 8.0, "any seed", pause=0.3, workers_live=workers_live)

    assert report.verdict.broken(workers_lived=workers_live) == {}
    assert report.verdict.settled == report.tasks
    assert sum(report.faults.values()) >= 10, "else nothing was shown"
    assert report.left_behind == []
    assert report.alarms == []
    numbers = report.statistics
    assert (
        numbers.submitted == numbers.succeeded + numbers.failed + numbers.cancelled + numbers.lost + numbers.killed
    )
    assert (numbers.queued, numbers.running) == (0, 0)
    assert [len(server.workers) for server in numbers.servers] == [SLOTS] * SERVERS
