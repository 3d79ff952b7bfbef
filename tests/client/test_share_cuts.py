"""Shared objects over connections that break."""

import sys

import pytest
from client import share_tasks as tasks
from client.test_resume import LANE, proxied
from client.test_share import Plain, data
from faults.proxy import TO_SERVER
from server.processes import DEADLINE, wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


def test_an_object_that_is_cut_off_on_its_way_is_sent_again():
    with proxied() as (proxy, farm):
        proxy.stall(TO_SERVER, numbers=[LANE, LANE + 1])  # so that some of it has left, and not all
        shared = farm.share(Plain(data(size=16 << 20)))
        futures = [farm.submit(tasks.first, shared, number) for number in range(20)]
        proxy.cut()
        proxy.flow()

        assert [future.result(DEADLINE) for future in futures] == list(range(7, 27))


def test_what_was_closed_while_the_connections_were_cut_is_freed_once_they_are_back():
    with proxied() as (proxy, farm):
        shared = farm.share(Plain(data()))
        pids = {farm.submit(tasks.supervisor).result()} | {
            pid for pid, _ in farm.broadcast(tasks.identity_of, shared)
        }
        proxy.refuse()
        proxy.cut()
        shared.close()
        proxy.admit()

        wait_until(lambda: not any(tasks.count(pid) for pid in pids), "it is freed")
        assert farm.submit(tasks.kinds, farm.share([1])).result(DEADLINE) == "list"
