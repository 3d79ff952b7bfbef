"""Strangers and hostile neighbours; `nox -s faults` has more of them, and a clock."""

import pytest
from faults import crowds
from server.processes import children, descriptors, wait_until
from server.serving import KEY

from farm_executor.server.door import MAX_GUESTS


@pytest.mark.parametrize(("kind", "count"), [(crowds.HALF_OPEN, MAX_GUESTS + 100), (crowds.PASSING, 600)])
def test_who_has_the_key_is_served_beside_strangers(serving, kind, count, no_leaks):
    crowds.first_result_seconds(serving.address, KEY)  # a server keeps its folder for modules from then on
    wait_until(lambda: not children(serving.pid), "the worker has gone")
    before = len(descriptors(serving.pid))
    with crowds.strangers(kind, serving.address, count) as process:
        assert crowds.seconds_while(process, serving.address, KEY)
        crowds.first_result_seconds(serving.address, KEY)
        assert len(descriptors(serving.pid)) <= before + MAX_GUESTS + 10

    wait_until(lambda: len(descriptors(serving.pid)) <= before, "nothing is kept of those who have gone")


def test_a_client_that_mistreats_its_workers_is_nobody_elses_trouble(serving, no_leaks):
    found = crowds.neighbours(serving.address, KEY, clients=5, calls=60)

    assert (found.wrong, found.losses, found.results) == ([], 0, 4 * 60)
    assert found.deaths >= 5, "else nobody was mistreated"
    wait_until(lambda: not children(serving.pid), "all workers have gone with their clients")
