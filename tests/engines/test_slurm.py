"""A real Slurm: see `slurm_cluster`, which runs these tests; elsewhere they are skipped."""

import os
import signal
import subprocess
import sys
import time

import pytest
from server.processes import DEADLINE, wait_until

from farm_executor import BrokenFarmError, FarmExecutor, TaskKilledError, TaskTimeoutError
from farm_executor.client.farm import discovery

pytestmark = [
    pytest.mark.skipif(not os.environ.get("SLURM_CONF"), reason="run by tests/engines/slurm_cluster.py"),
    pytest.mark.usefixtures("no_leaks"),
]


def said(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def job():
    return os.environ["SLURM_JOB_ID"]


def nap(seconds):
    time.sleep(seconds)
    return job()


def both_up(farm):
    farm.submit(abs, -1)
    wait_until(lambda: sum(one.up for one in farm.statistics().servers) == 2, "both nodes have come")


@pytest.fixture
def farm():
    with FarmExecutor("slurm://debug?nodes=2&per=4&env=FARM_TEST={slot}", resume_timeout=2) as farm:
        yield farm
    wait_until(lambda: not said("squeue", "-h", "-o", "%i", "-t", "PENDING,RUNNING"), "no job is left")


def test_two_nodes_compute(farm):
    both_up(farm)
    assert set(farm.broadcast(os.getenv, "SLURMD_NODENAME", timeout=DEADLINE)) == {"n1", "n2"}
    assert sorted(farm.broadcast(os.getenv, "FARM_TEST")) == ["0", "0", "1", "1", "2", "2", "3", "3"]
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


def test_a_cancelled_job_loses_no_task_and_runs_none_twice(farm):
    both_up(farm)
    once = farm.with_options(max_attempts=1)
    futures = [once.submit(nap, 0.2) for _ in range(40)]
    cancelled = farm.submit(job).result(DEADLINE)
    said("scancel", cancelled)
    assert len([future.result(DEADLINE) for future in futures]) == 40
    assert farm.statistics().resubmitted == 0
    both_up(farm)  # another has been asked for
    assert cancelled not in farm.broadcast(job, timeout=DEADLINE)


def test_what_slurm_refuses_comes_with_its_words():
    with FarmExecutor("slurm://nope") as farm, pytest.raises(BrokenFarmError, match="srun: error: .*partition"):
        farm.submit(abs, -1).result(DEADLINE)


def test_more_nodes_than_there_are(caplog, monkeypatch):
    monkeypatch.setattr(discovery, "RESOLVE_SECONDS", 1.0)
    with FarmExecutor("slurm://debug?nodes=3&per=4", connect_timeout=60) as farm:
        both_up(farm)
        assert farm.submit(abs, -1).result(DEADLINE) == 1
        wait_until(lambda: "have=2 reason=1 waiting in Slurm's queue (job" in caplog.text, "it is told", 60)


def test_a_killed_program_leaves_nothing():
    code = "import sys, time; from farm_executor import FarmExecutor; f = FarmExecutor('slurm://debug?nodes=2')\n"
    code += "print(f.submit(abs, -1).result(60), flush=True); f.submit(time.sleep, 600); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout.readline() == "1\n"
        program.send_signal(signal.SIGKILL)
    wait_until(lambda: not said("squeue", "-h", "-o", "%i", "-t", "PENDING,RUNNING"), "no job is left")


def test_a_wall_time_costs_no_attempt():
    with FarmExecutor("slurm://debug?time=0:01:10", max_attempts=1) as farm:
        first = farm.submit(job).result(DEADLINE)
        futures = [farm.submit(nap, 1) for _ in range(15)]
        jobs = {future.result(60) for future in futures}
        assert farm.statistics().resubmitted == 0
        assert first in jobs
