"""Servers beside the workers of a Dask cluster, with a small module in distributed's place."""

import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from server.processes import DEADLINE, children, command_line, wait_until

from farm_executor import AddressError, BrokenFarmError, FarmExecutor
from farm_executor.client.farm import discovery
from farm_executor.launch import errand

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"),
    pytest.mark.usefixtures("no_leaks"),
]
WHERE = "dask://127.0.0.1:8786"
ONE, TWO = "tcp://127.0.0.1:1001", "tcp://127.0.0.1:1002"


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """Says what the cluster has."""
    monkeypatch.setattr(errand, "LISTEN", "127.0.0.1")
    monkeypatch.setenv("FAKE_DASK", str(tmp_path / "cluster"))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent / "fake_dask"), prepend=os.pathsep)

    def become(**has):
        (tmp_path / "new").write_text(json.dumps({"threads": {}, **has}))
        (tmp_path / "new").replace(tmp_path / "cluster")

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
    return {one.address: one.slots for one in farm.statistics().servers if one.up}


def test_there_is_a_server_beside_each_worker_and_nothing_is_left(cluster):
    cluster(threads={ONE: 2, TWO: 1})
    with FarmExecutor(f"{WHERE}?env=FARM_TEST=x{{slot}}") as farm:
        assert farm.submit(pow, 2, 10).result(DEADLINE) == 1024
        wanted = {f"{WHERE}/127.0.0.1:1001": 2, f"{WHERE}/127.0.0.1:1002": 1}
        wait_until(lambda: up(farm) == wanted, "both have come")
        assert sorted(farm.broadcast(os.getenv, "FARM_TEST", timeout=DEADLINE)) == ["x0", "x0", "x1"]
        placed = servers(os.getpid())
        assert len(placed) == 2
    wait_until(lambda: not any(map(is_server, placed)), "the servers are gone")


def test_no_more_workers_than_were_asked_for(cluster):
    cluster(threads={ONE: 4, TWO: 4})
    with FarmExecutor(f"{WHERE}?workers=5&per=3") as farm:
        farm.submit(abs, -1)
        wait_until(lambda: sorted(up(farm).values()) == [2, 3], "they have come")


def test_what_each_worker_needs_is_asked_for_wherever_dask_has_it(cluster, tmp_path):
    cluster(threads={ONE: 4, TWO: 4})
    with FarmExecutor(f"{WHERE}?workers=3&per=2&gpus=1&memory=1G") as farm:
        farm.submit(abs, -1)
        wait_until(lambda: sorted(up(farm).values()) == [1, 2], "they have come")
    asked = [json.loads(line) for line in (tmp_path / "cluster.asked").read_text().splitlines()]
    assert asked == [{"GPU": 2, "MEMORY": 2 << 30}, {"GPU": 1, "MEMORY": 1 << 30}]


def test_a_worker_that_joins_is_used_and_a_server_that_dies_is_placed_again(cluster):
    cluster(threads={})
    with FarmExecutor(WHERE, resume_timeout=0) as farm:
        future = farm.submit(abs, -1)
        cluster(threads={ONE: 1})
        assert future.result(DEADLINE) == 1
        (server,) = servers(os.getpid())
        os.kill(server, signal.SIGKILL)
        # Its worker may still have taken this one, and died with it.
        assert farm.with_options(max_attempts=3).submit(abs, -2).result(DEADLINE) == 2
        wait_until(lambda: servers(os.getpid()) not in ([], [server]), "another is there")


def test_without_the_package_it_names_the_extra(cluster):
    cluster(lacking="distributed")
    with FarmExecutor(WHERE) as farm, pytest.raises(BrokenFarmError, match=r"farm_executor\[dask,tls\]"):
        farm.submit(abs, -1).result(DEADLINE)


def test_where_farm_executor_is_lacking_it_says_so(cluster):
    cluster(threads={ONE: 1}, says={"error": "ModuleNotFoundError: x", "missing": "farm_executor"})
    with FarmExecutor(WHERE) as farm, pytest.raises(BrokenFarmError, match="there lacks farm_executor"):
        farm.submit(abs, -1).result(DEADLINE)


def test_a_scheduler_that_does_not_answer_is_told_of_in_its_words(cluster, caplog, monkeypatch):
    monkeypatch.setattr(discovery, "FIRST_REPORT", 0.0)
    monkeypatch.setattr(discovery, "REPORT_EVERY", 0.01)
    monkeypatch.setattr(discovery, "RETRY_SECONDS", 0.05)
    cluster(unreachable="Timed out trying to connect to tcp://127.0.0.1:8786")
    with caplog.at_level(logging.WARNING), FarmExecutor(WHERE) as farm:
        future = farm.submit(abs, -1)
        told = f"waiting for servers of={WHERE} reason=OSError: Timed out trying to connect to tcp://127.0.0.1:8786"
        wait_until(lambda: told in caplog.text, "it is told")
        assert future.cancel()


def test_a_wait_ends_with_its_deadline(cluster):
    cluster(threads={})
    with FarmExecutor(WHERE, connect_timeout=0.2) as farm, pytest.raises(TimeoutError, match="dask://"):
        farm.submit(abs, -1).result(DEADLINE)


def test_a_scheduler_that_comes_later_is_used(cluster):
    cluster(unreachable="not yet")
    with FarmExecutor(WHERE) as farm:
        future = farm.submit(abs, -1)
        cluster(threads={ONE: 1})
        assert future.result(DEADLINE) == 1


def test_a_killed_program_leaves_nothing(cluster):
    cluster(threads={ONE: 1})
    code = [
        "import sys, time",
        "from farm_executor import FarmExecutor",
        "from farm_executor.launch import engine, errand",
        "engine.PATIENCE_SECONDS, errand.LISTEN = 600, '127.0.0.1'",
        f"farm = FarmExecutor('{WHERE}', resume_timeout=600)",
        "print(farm.submit(abs, -1).result(60), flush=True)",
        "farm.submit(time.sleep, 600)",
        "time.sleep(600)",
    ]
    with subprocess.Popen([sys.executable, "-c", "\n".join(code)], stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout.readline() == "1\n"
        placed = servers(program.pid)
        assert placed
        program.send_signal(signal.SIGKILL)
        wait_until(lambda: not any(map(is_server, placed)), "the server is gone, long before its patience is over")


@pytest.mark.parametrize("method", ["add_server", "remove_server"])
def test_it_is_given_to_the_constructor_alone(method):
    with FarmExecutor("127.0.0.1:1") as farm, pytest.raises(AddressError, match="servers that come and go"):
        getattr(farm, method)(WHERE)
