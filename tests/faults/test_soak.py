"""Random faults for some seconds; `nox -s faults` keeps it up for ten minutes."""

import pytest
from faults.soak import SERVERS, SLOTS, soak


@pytest.mark.parametrize("seed", ["one", "two"])
def test_random_faults_cost_nothing_that_was_promised(seed, no_leaks):
    report = soak(1200, 6.0, seed, pause=0.3)

    assert report.verdict.broken(workers_lived=False) == {}
    assert report.verdict.settled == report.tasks
    assert sum(report.faults.values()) > 20, "else nothing was shown"
    assert report.left_behind == []
    assert report.alarms == []
    numbers = report.statistics
    assert (
        numbers.submitted == numbers.succeeded + numbers.failed + numbers.cancelled + numbers.lost + numbers.killed
    )
    assert (numbers.queued, numbers.running) == (0, 0)
    assert [len(server.workers) for server in numbers.servers] == [SLOTS] * SERVERS
