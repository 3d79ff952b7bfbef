"""Elastic farms: servers come while tasks wait and go when they have none, with scripts in the clusters' places."""

import contextlib
import json
import os
import sys
import threading
from pathlib import Path
from unittest import mock

import pytest
from server.processes import DEADLINE, children, command_line, wait_until

from farm_executor import BrokenFarmError, FarmExecutor
from farm_executor.core import elastic
from farm_executor.launch import attending, errand
from farm_executor.launch.cluster import ClusterServers
from farm_executor.wire.address import Address, parse_addresses

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"),
    pytest.mark.usefixtures("no_leaks"),
]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(errand, "LISTEN", "127.0.0.1")
    monkeypatch.setattr(attending, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(elastic, "PATIENCE", 0.1)


@pytest.fixture(params=["ray", "dask"])
def engine(request, tmp_path, monkeypatch):
    """The address of a cluster that has nothing yet, and room for as much as is wanted."""
    has = {"resources": {"CPU": 0}, "threads": {}}
    (tmp_path / "cluster").write_text(json.dumps(has))
    monkeypatch.setenv(f"FAKE_{request.param.upper()}", str(tmp_path / "cluster"))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent / f"fake_{request.param}"), prepend=os.pathsep)
    return f"{request.param}://127.0.0.1:10001"


def up(farm):
    return sum(one.up for one in farm.statistics().servers)


def wait_for(path):
    wait_until(lambda: os.path.exists(path), "the gate is open")
    return os.getppid()


def jobs():
    lines = []
    for child in children(os.getpid()):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended
            lines.append(command_line(child))
    return [line for line in lines if b"sys.stdin.buffer" in line or b"sleep" in line]


def test_servers_come_while_tasks_wait_and_go_when_they_have_none(engine, tmp_path):
    gate = tmp_path / "gate"
    with FarmExecutor(f"{engine}?max=3&idle=1", max_attempts=1) as farm:
        futures = [farm.submit(wait_for, str(gate)) for _ in range(8)]
        wait_until(lambda: up(farm) == 3, "as many as may be have come")
        gate.touch()
        assert len({future.result(DEADLINE) for future in futures}) <= 3
        wait_until(lambda: up(farm) == 0, "all are gone")
        wait_until(lambda: not any(map(children, children(os.getpid()))), "and their processes, too")
        assert farm.submit(abs, -1).result(DEADLINE) == 1
        assert farm.statistics().resubmitted == 0


def test_some_are_always_there(engine, tmp_path):
    gate = tmp_path / "gate"
    with FarmExecutor(f"{engine}?min=1&max=2&idle=1&per=2") as farm:
        futures = [farm.submit(wait_for, str(gate)) for _ in range(4)]
        wait_until(lambda: up(farm) == 2, "both have come")
        gate.touch()
        last = futures[-1].result(DEADLINE)
        wait_until(lambda: up(farm) == 1, "one is gone")
        assert last
        assert len(farm.broadcast(os.getpid, timeout=DEADLINE)) == 2


def test_a_job_that_waits_is_taken_back_and_one_that_is_idle_ends(srun, tmp_path, monkeypatch):
    asked = srun(f"mkdir {tmp_path}/first 2>/dev/null || [[ -e {tmp_path}/room ]] || exec sleep 600")
    gate = tmp_path / "gate"
    with FarmExecutor("slurm://?max=2&idle=1", max_attempts=1) as farm:
        futures = [farm.submit(wait_for, str(gate)) for _ in range(3)]
        wait_until(lambda: len(asked()) == 2, "another is asked for")
        gate.touch()
        assert len({future.result(DEADLINE) for future in futures}) == 1
        wait_until(lambda: not jobs(), "neither job is left")
        assert len(asked()) == 2
        monkeypatch.setattr(elastic, "PATIENCE", DEADLINE)  # on a busy machine one is slow to come
        (tmp_path / "room").touch()
        assert farm.submit(abs, -1).result(DEADLINE) == 1
        assert len(asked()) == 3
        assert farm.statistics().resubmitted == 0


def test_one_that_takes_the_name_of_another_is_used_though_both_are_heard_of_at_once(srun, caplog, monkeypatch):
    """As Dask's do, and those of the fake, which all have the same number."""
    caplog.set_level("INFO", "farm_executor")
    may_look, look = threading.Event(), ClusterServers.look

    def held(servers):
        may_look.wait(DEADLINE)
        return look(servers)

    def come():
        return sum("server can be dialled" in record.getMessage() for record in caplog.records)

    monkeypatch.setattr(ClusterServers, "look", held)
    srun("")
    may_look.set()
    with FarmExecutor("slurm://?max=1&idle=1") as farm:
        assert farm.submit(abs, -1).result(DEADLINE) == 1
        may_look.clear()
        wait_until(lambda: not jobs(), "it has gone")
        future = farm.submit(abs, -2)
        wait_until(lambda: come() == 2, "another has come")
        may_look.set()
        assert future.result(DEADLINE) == 2


@pytest.mark.parametrize("kind", [BrokenFarmError, OSError])
def test_a_cluster_that_cannot_be_asked_is_told_of_by_the_next_look(kind):
    asker = mock.Mock(failure=None, told=False, listen=[Address("127.0.0.1", 0)])
    servers = ClusterServers(parse_addresses(["slurm://?max=2"])[0], lambda address: None, asker)
    looked = []
    servers.watch(lambda: looked.append(True))
    try:
        with pytest.raises(ConnectionError):
            servers.look()
        asker.ask.side_effect = kind("srun is not there any more")
        servers.want(2)  # an error here would end the thread that attends
        assert looked
        with pytest.raises(kind, match="not there any more"):
            servers.look()
    finally:
        servers.end()
