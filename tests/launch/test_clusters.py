"""What becomes of wrong or unlucky input, on any cluster that an engine has, with small modules in their places."""

import logging
import os
import pickle
import re
import sys

import pytest
from launch.test_ssh import other_python
from launch.test_ways import DEADLINE, become, engine, one_will_do, servers, where
from server.processes import wait_until

from farm_executor import FarmExecutor
from farm_executor.client.farm import discovery
from farm_executor.launch import cluster as cluster_module

__all__ = ["become", "engine", "where"]  # fixtures

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"),
    pytest.mark.usefixtures("no_leaks"),
]


@one_will_do
def test_a_cluster_that_does_not_answer_is_waited_for_as_long_as_it_may_take(where, become):
    become(unreachable="the head is not there")
    with (
        FarmExecutor(where, connect_timeout=5) as farm,
        pytest.raises(TimeoutError, match="the head is not there"),
    ):
        farm.submit(abs, -1).result(DEADLINE)


@one_will_do
def test_a_key_of_the_executors_is_not_used_for_it(where):
    with FarmExecutor(where, key=os.urandom(32)) as farm:
        assert farm.submit(abs, -1).result(DEADLINE) == 1


@one_will_do
@pytest.mark.skipif(other_python() is None, reason="there is no other Python")
def test_another_minor_version_of_python_is_named_with_this_one(where, caplog):
    other = other_python()
    here = f"client cpython {sys.version_info[0]}.{sys.version_info[1]}"
    there = "server cpython " + ".".join(other.parent.parent.name.split(".")[:2])
    # Others may come that are of this one, so it is waited for them.
    with caplog.at_level(logging.WARNING), FarmExecutor(f"{where}?python={other}") as farm:
        future = farm.submit(abs, -1)
        wait_until(
            lambda: f"versions differ from the client's: python ({here}, {there})" in caplog.text, "it is told"
        )
        assert future.cancel()


@one_will_do
def test_fewer_than_were_asked_for_are_used_and_told_of(where, caplog, monkeypatch):
    monkeypatch.setattr(cluster_module, "FIRST_REPORT", 0.0)
    monkeypatch.setattr(cluster_module, "REPORT_EVERY", 0.0)
    monkeypatch.setattr(discovery, "RESOLVE_SECONDS", 0.1)
    with caplog.at_level(logging.WARNING), FarmExecutor(f"{where}?workers=9") as farm:
        assert farm.submit(abs, -1).result(DEADLINE) == 1
        told = r"waiting for more servers of=dask://\S+ have=1 reason=dask has 1 threads"
        wait_until(lambda: re.search(told, caplog.text), "it is told")


@one_will_do
def test_an_engine_that_is_gone_for_a_while_is_asked_again(where, become):
    with FarmExecutor(where, resume_timeout=0) as farm:
        assert farm.submit(abs, -1).result(DEADLINE) == 1
        before = servers_here()
        become(unreachable="it restarts")
        wait_until(lambda: servers_here() != before, "its gateway has ended")
        become()
        assert farm.submit(abs, -2).result(DEADLINE) == 2


def servers_here():
    return servers(os.getpid())


@one_will_do
def test_an_executor_that_is_pickled_asks_for_servers_of_its_own(where):
    with FarmExecutor(f"{where}?via=direct") as farm:
        other = pickle.loads(pickle.dumps(farm))
        with other:
            assert other.submit(abs, -1).result(DEADLINE) == 1
