"""What holds on every cluster; run beside one by `dask_cluster`, `ray_cluster` and `slurm_cluster`."""

import contextlib
import operator
import os
import signal
import subprocess
import sys
import time

import pytest
from engines.alone import ON
from engines.conftest import both_up
from engines.load import Load
from server.processes import DEADLINE, alive, wait_until

from farm_executor import FarmExecutor, TaskKilledError, TaskTimeoutError, lfarm
from farm_executor.client.farm import discovery
from farm_executor.launch import slurm

pytestmark = pytest.mark.skipif(not os.environ.get(ON), reason="run by tests/engines/*_cluster.py")
KIND = os.environ.get(ON, "").partition(":")[0]
# After a program has been killed, until nothing of it is left. Dask does not end what it runs.
GONE = 15.0 if KIND == "dask" else 3.0


@pytest.fixture(scope="class")
def shared(address):
    with FarmExecutor(address) as farm:
        both_up(farm)
        yield farm


class TestsThatDoNoHarm:
    """They share one farm."""

    def test_two_servers_compute(self, shared):
        assert len(set(shared.broadcast(os.getpid, timeout=DEADLINE))) == 4
        assert len(set(shared.broadcast(os.getppid, timeout=DEADLINE))) == 2
        assert list(shared.map(abs, range(-10_000, 0), timeout=DEADLINE)) == list(range(10_000, 0, -1))
        data = os.urandom(8 << 20)
        assert shared.submit(bytes, data).result(DEADLINE) == data

    def test_a_task_is_killed_and_another_runs_out_of_time(self, shared):
        with pytest.raises(TaskTimeoutError):
            shared.with_options(timeout=0.2).submit(time.sleep, 600).result(DEADLINE)
        future = shared.submit(time.sleep, 600)
        wait_until(future.running, "it runs")
        shared.kill(future)
        with pytest.raises(TaskKilledError):
            future.result(DEADLINE)

    def test_channels(self, shared):
        with lfarm.use_kernel(lfarm.make_kernel(shared)):
            channel = lfarm.make_channel()
            for number in range(100):
                lfarm.submit_task(channel, operator.mul, number, number)
            assert sorted(lfarm.receive_result(channel) for _ in range(100)) == [number**2 for number in range(100)]
            assert lfarm.pmap(operator.neg, range(1000)) == [-number for number in range(1000)]
            assert len(set(lfarm.broadcast_task(os.getpid))) == 4

    def test_streams(self, shared):
        assert list(shared.stream(range, 5)) == [0, 1, 2, 3, 4]


def test_a_server_that_is_killed_under_load_loses_no_task_and_runs_none_twice(farm, tmp_path):
    load = Load(farm, tmp_path)
    load.wait_for_some()
    os.kill(farm.submit(os.getppid).result(DEADLINE), signal.SIGKILL)
    assert not load.broken()
    both_up(farm)  # another has been asked for


def test_what_holds_a_server_is_killed_under_load(farm, tmp_path, monkeypatch):
    """A process of the cluster's own, which has started the server."""
    monkeypatch.setattr(slurm, "LOST_SECONDS", 1.0)  # Slurm itself notices nothing, and srun waits
    monkeypatch.setattr(discovery, "RESOLVE_SECONDS", 1.0)
    load = Load(farm, tmp_path)
    load.wait_for_some()
    with open(f"/proc/{farm.submit(os.getppid).result(DEADLINE)}/stat") as file:
        holder = int(file.read().rpartition(")")[2].split()[1])
    os.kill(holder, signal.SIGKILL)
    assert not load.broken()
    both_up(farm)


def test_a_killed_program_leaves_nothing(address, no_leaks):
    code = f"""if True:
        import os, time
        from farm_executor import FarmExecutor
        farm = FarmExecutor({address!r})
        while sum(one.up for one in farm.statistics().servers) < 2:
            farm.submit(abs, -1).result(60)
        print(*farm.broadcast(os.getpid), *farm.broadcast(os.getppid), flush=True)
        for _ in range(8):
            farm.submit(time.sleep, 600)
        time.sleep(600)
    """
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as program:
        pids = [int(pid) for pid in program.stdout.readline().split()]
        program.kill()
    try:
        assert len(pids) == 8
        wait_until(lambda: not any(map(alive, pids)), "its servers and their workers are gone", GONE)
    finally:
        for pid in pids:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
