"""Servers that a Ray cluster holds, with a small module in Ray's place."""

import json
import logging
import os
import signal
import sys
from pathlib import Path

import pytest
from server.processes import DEADLINE, children, command_line, wait_until

from farm_executor import AddressError, AuthenticationError, BrokenFarmError, FarmExecutor
from farm_executor.client.farm import discovery
from farm_executor.launch import cluster as cluster_module
from farm_executor.launch import errand, far

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"),
    pytest.mark.usefixtures("no_leaks"),
]
WHERE = "ray://127.0.0.1:10001"
ALWAYS = {"max_concurrency": 1 + far.CALLS, "max_restarts": 0}


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """Says what the cluster has; returns what has been asked of it."""
    monkeypatch.setattr(errand, "LISTEN", "127.0.0.1")
    monkeypatch.setenv("FAKE_RAY", str(tmp_path / "cluster"))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent / "fake_ray"), prepend=os.pathsep)

    def become(cpus=0, **has):
        (tmp_path / "new").write_text(json.dumps({"resources": {"CPU": cpus}, **has}))
        (tmp_path / "new").replace(tmp_path / "cluster")
        return lambda: [json.loads(line) for line in (tmp_path / "cluster.asked").read_text().splitlines()]

    return become


def servers(pid):
    """The servers that a gateway of this process has placed."""
    return [server for gateway in children(pid) for server in children(gateway) if is_server(server)]


def is_server(pid):
    try:
        return b"sys.stdin.buffer" in command_line(pid)
    except OSError:
        return False


def up(farm):
    return [one.slots for one in farm.statistics().servers if one.up]


def test_there_are_as_many_workers_as_the_cluster_has_cpus_and_nothing_is_left(cluster):
    asked = cluster(cpus=3)
    with FarmExecutor("ray://auto?env=FARM_TEST=x{slot}") as farm:
        assert farm.submit(pow, 2, 10).result(DEADLINE) == 1024
        wait_until(lambda: up(farm) == [1, 1, 1], "all have come")
        assert farm.broadcast(os.getenv, "FARM_TEST", timeout=DEADLINE) == ["x0", "x0", "x0"]
        placed = servers(os.getpid())
        assert len(placed) == len(set(placed)) == 3
        assert {one.address for one in farm.statistics().servers} == {
            f"ray://auto/{os.uname().nodename}:{pid}" for pid in placed
        }
    wait_until(lambda: not any(map(is_server, placed)), "the servers are gone")
    task = {"num_cpus": 1, "num_gpus": 0, "memory": None, **ALWAYS}
    assert asked() == [{"address": "auto"}, task, task, task]


def test_what_each_worker_needs_is_asked_for(cluster):
    asked = cluster(cpus=99)
    with FarmExecutor(f"{WHERE}?workers=3&per=2&cpus=2&gpus=1&memory=1G") as farm:
        farm.submit(abs, -1)
        wait_until(lambda: sorted(up(farm)) == [1, 2], "they have come")
    two = {"num_cpus": 4, "num_gpus": 2, "memory": 2 << 30, **ALWAYS}
    one = {"num_cpus": 2, "num_gpus": 1, "memory": 1 << 30, **ALWAYS}
    assert asked() == [{"address": WHERE}, two, one]


def test_a_server_that_dies_is_asked_for_again_and_others_go_on(cluster):
    cluster(cpus=2)
    with FarmExecutor(WHERE, resume_timeout=0) as farm:
        farm.submit(abs, -1)
        wait_until(lambda: up(farm) == [1, 1], "both have come")
        one, other = servers(os.getpid())
        os.kill(one, signal.SIGKILL)
        wait_until(lambda: len(set(servers(os.getpid())) - {one}) == 2, "another has been asked for")
        assert other in servers(os.getpid())
        assert farm.submit(abs, -2).result(DEADLINE) == 2


def test_what_the_cluster_has_no_room_for_is_told(cluster, caplog, monkeypatch):
    monkeypatch.setattr(cluster_module, "FIRST_REPORT", 0.0)
    monkeypatch.setattr(cluster_module, "REPORT_EVERY", 0.0)
    monkeypatch.setattr(discovery, "RESOLVE_SECONDS", 0.1)
    cluster(cpus=1, room=1)
    with caplog.at_level(logging.WARNING), FarmExecutor(f"{WHERE}?workers=2") as farm:
        assert farm.submit(abs, -1).result(DEADLINE) == 1
        words = "reason=ray has 0 of 1 CPUs free, and 2 servers have been asked for"
        told = f"waiting for more servers of={WHERE}?workers=2 have=1 {words}"
        wait_until(lambda: told in caplog.text, "it is told")


def test_a_head_that_does_not_answer_is_told_of_in_its_words_and_used_later(cluster, caplog, monkeypatch):
    monkeypatch.setattr(discovery, "FIRST_REPORT", 0.0)
    monkeypatch.setattr(discovery, "RETRY_SECONDS", 0.05)
    monkeypatch.setattr(discovery, "REPORT_EVERY", 0.01)
    cluster(unreachable="ray client connection timeout")
    with caplog.at_level(logging.WARNING), FarmExecutor(WHERE) as farm:
        future = farm.submit(abs, -1)
        wait_until(lambda: "ConnectionError: ray client connection timeout" in caplog.text, "it is told")
        cluster(cpus=1)
        assert future.result(DEADLINE) == 1


@pytest.mark.parametrize("how", [{"refused": "no token"}, {"unreachable": "StatusCode.UNAUTHENTICATED: no token"}])
def test_one_that_does_not_let_the_program_in_says_why_at_once(cluster, how):
    cluster(**how)
    with FarmExecutor(WHERE) as farm, pytest.raises(AuthenticationError, match="ray://127.*: .*no token"):
        farm.submit(abs, -1).result(DEADLINE)


def test_without_the_package_it_names_the_extra(cluster):
    cluster(lacking="ray")
    with FarmExecutor(WHERE) as farm, pytest.raises(BrokenFarmError, match=r"farm_executor\[ray,tls\]"):
        farm.submit(abs, -1).result(DEADLINE)


def test_where_farm_executor_is_lacking_it_says_so(cluster):
    cluster(cpus=1, says={"error": "ModuleNotFoundError: x", "missing": "farm_executor"})
    with FarmExecutor(WHERE) as farm, pytest.raises(BrokenFarmError, match="there lacks farm_executor"):
        farm.submit(abs, -1).result(DEADLINE)


def test_another_interpreter_can_be_named(cluster):
    cluster(cpus=1)
    with (
        FarmExecutor(f"{WHERE}?python=/no/such") as farm,
        pytest.raises(BrokenFarmError, match="cannot run /no/such"),
    ):
        farm.submit(abs, -1).result(DEADLINE)
    with FarmExecutor(f"{WHERE}?python={sys.executable}") as farm:
        assert farm.submit(abs, -1).result(DEADLINE) == 1


@pytest.mark.parametrize("method", ["add_server", "remove_server"])
def test_it_is_given_to_the_constructor_alone(method):
    with FarmExecutor("127.0.0.1:1") as farm, pytest.raises(AddressError, match="servers that come and go"):
        getattr(farm, method)("ray://auto")
