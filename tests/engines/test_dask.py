"""A real Dask: a scheduler and two workers, as their commands start them."""

import os
import signal
import subprocess
import sys
import time

import pytest
from server.peers import free_address
from server.processes import DEADLINE, wait_until

from farm_executor import FarmExecutor, TaskKilledError, TaskTimeoutError

pytest.importorskip("distributed")
pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.fixture(scope="module")
def scheduler():
    where = free_address()
    host, _, port = where.partition(":")
    dask = [sys.executable, "-m", "distributed.cli.dask_scheduler"]
    worker = [sys.executable, "-m", "distributed.cli.dask_worker", f"tcp://{where}"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    options = ["--host", host, "--no-dashboard"]
    with (
        subprocess.Popen([*dask, *options, "--port", port], **quiet) as first,
        subprocess.Popen([*worker, *options, "--nworkers", "2", "--nthreads", "2"], **quiet) as second,
    ):
        yield where
        for process in (second, first):
            process.terminate()
            process.wait(DEADLINE)


@pytest.fixture
def farm(scheduler):
    with FarmExecutor(f"dask://{scheduler}", resume_timeout=2) as farm:
        yield farm


def test_two_workers_compute(farm):
    farm.submit(abs, -1)
    wait_until(lambda: sum(one.up for one in farm.statistics().servers) == 2, "both have come")
    assert len(set(farm.broadcast(os.getpid, timeout=DEADLINE))) == 4
    assert list(farm.map(abs, range(-10_000, 0), timeout=DEADLINE)) == list(range(10_000, 0, -1))
    data = os.urandom(8 << 20)
    assert farm.submit(bytes, data).result(DEADLINE) == data


def test_a_task_is_killed_and_another_runs_out_of_time(farm):
    with pytest.raises(TaskTimeoutError):
        farm.with_options(timeout=0.2).submit(time.sleep, 600).result(DEADLINE)
    future = farm.submit(time.sleep, 600)
    wait_until(future.running, "it runs")
    farm.kill(future)
    with pytest.raises(TaskKilledError):
        future.result(DEADLINE)


def test_dask_goes_on_beside_it(scheduler, farm):
    code = f"from distributed import Client; print(Client('tcp://{scheduler}').submit(pow, 2, 10).result(30))"
    assert farm.submit(abs, -1).result(DEADLINE) == 1
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "1024\n"


def test_a_worker_of_dasks_that_is_killed_loses_no_task(farm):
    farm.submit(abs, -1)
    wait_until(lambda: sum(one.up for one in farm.statistics().servers) == 2, "both have come")
    futures = [farm.submit(time.sleep, 0.2) for _ in range(20)]
    supervisor = farm.submit(os.getppid).result(DEADLINE)
    with open(f"/proc/{supervisor}/stat") as file:
        beside = int(file.read().rpartition(")")[2].split()[1])
    os.kill(beside, signal.SIGKILL)  # a nanny starts another
    assert [future.result(DEADLINE) for future in futures] == [None] * 20
    assert farm.submit(abs, -1).result(DEADLINE) == 1
