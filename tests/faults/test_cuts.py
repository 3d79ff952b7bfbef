"""A connection is cut at some byte of a script; `nox -s faults` cuts it at every one."""

import json

import pytest
from faults import cuts, script
from faults.proxy import TO_CLIENT, Cut, End, Proxy
from server.processes import children, wait_until
from server.serving import KEY

from farm_executor import FarmExecutor

EVERY = 331  # of these places one is cut here; a prime, so that no pattern of the frames is followed


@pytest.mark.parametrize("once", [False, True])
def test_the_script_makes_every_kind_of_frame_travel(serving, once, no_leaks):
    proxy, verdict = cuts.play_uncut(serving.address, once=once)

    assert verdict.broken(workers_lived=True) == {}
    assert script.types(proxy.links) >= cuts.EVERYTHING
    assert len(proxy.links) == 1 + script.WORKERS


@pytest.mark.parametrize("part", range(4))
def test_a_cut_costs_nothing_that_was_promised(serving, part, no_leaks):
    proxy, _ = cuts.play_uncut(serving.address, once=False)
    played = []
    cuts.play_each(serving.address, cuts.all_cuts(proxy)[part * EVERY // 4 :: EVERY], played.append)

    broken = {one.case: bad for one in played if (bad := one.verdict.broken(workers_lived=True))}
    assert broken == {}
    assert sum(one.reached for one in played) > len(played) / 8, "else nothing was cut"
    wait_until(lambda: not children(serving.pid), "no worker is left behind")


def first_word(serving):
    """After how many bytes a worker says its first word: the handshake's, and those of the answer to its hello."""
    return 81 + 16 + len(json.dumps({"pid": serving.pid}))


@pytest.mark.parametrize("end", End)
def test_a_network_that_ends_young_connections_does_not_break_the_farm(serving, end, no_leaks):
    """Lanes end before their workers have heard a word: that was the network, and not the initializer."""
    cuts = [Cut(number, TO_CLIENT, first_word(serving), end) for number in range(1, 6)]
    with Proxy(serving.address, *cuts) as proxy, FarmExecutor([proxy.address], key=KEY, max_workers=1) as farm:
        assert farm.submit(pow, 2, 10).result(30) == 1024
