"""What only Slurm does; run beside one by `slurm_cluster`. What holds on every cluster is in `test_everywhere`."""

import os
import subprocess
import time

import pytest
from engines.alone import ON
from engines.conftest import both_up
from engines.load import Load
from server.processes import DEADLINE, wait_until

from farm_executor import BroadcastError, BrokenFarmError, FarmExecutor, WorkerLostError
from farm_executor.client.farm import discovery
from farm_executor.launch import cluster

pytestmark = [
    pytest.mark.skipif(
        not os.environ.get(ON, "").startswith("slurm:"), reason="run by tests/engines/slurm_cluster.py"
    ),
    pytest.mark.usefixtures("no_leaks"),
]


def said(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def no_job_is_left():
    return not said("squeue", "-h", "-o", "%i", "-t", "PENDING,RUNNING")


def job():
    return os.environ["SLURM_JOB_ID"]


def nap(seconds):
    time.sleep(seconds)
    return job()


def jobs_that_answer(farm):
    try:
        return set(farm.broadcast(job, timeout=DEADLINE))
    except BroadcastError as error:  # a server has left meanwhile, and its workers' calls with it
        assert {type(outcome.error) for outcome in error.outcomes} <= {type(None), WorkerLostError}
        return {outcome.value for outcome in error.outcomes}


def test_nodes_have_their_names_and_workers_their_slots_and_no_job_is_left():
    with FarmExecutor("slurm://debug?nodes=2&per=4&env=FARM_TEST={slot}") as farm:
        both_up(farm)
        assert set(farm.broadcast(os.getenv, "SLURMD_NODENAME", timeout=DEADLINE)) == {"n1", "n2"}
        assert sorted(farm.broadcast(os.getenv, "FARM_TEST")) == ["0", "0", "1", "1", "2", "2", "3", "3"]
    wait_until(no_job_is_left, "no job is left")


@pytest.mark.parametrize("via", ["direct", "back"])
def test_each_way_leads_there(via):
    with FarmExecutor(f"slurm://debug?via={via}") as farm:
        assert farm.submit(pow, 2, 10).result(DEADLINE) == 1024


def test_a_job_that_is_cancelled_under_load_costs_nothing(farm, tmp_path):
    load = Load(farm, tmp_path)
    load.wait_for_some()
    cancelled = farm.submit(job).result(DEADLINE)
    said("scancel", cancelled)
    assert not load.broken(workers_lived=True)
    assert farm.statistics().resubmitted == 0
    wait_until(lambda: cancelled not in jobs_that_answer(farm), "its server has gone")
    both_up(farm)  # another has been asked for


def test_what_slurm_refuses_comes_with_its_words():
    with FarmExecutor("slurm://nope") as farm, pytest.raises(BrokenFarmError, match="srun: error: .*partition"):
        farm.submit(abs, -1).result(DEADLINE)


def test_more_nodes_than_there_are(caplog, monkeypatch):
    monkeypatch.setattr(discovery, "RESOLVE_SECONDS", 1.0)
    monkeypatch.setattr(cluster, "REPORT_EVERY", 1.0)
    with FarmExecutor("slurm://debug?nodes=3&per=4", connect_timeout=60) as farm:
        both_up(farm)
        assert farm.submit(abs, -1).result(DEADLINE) == 1
        wait_until(lambda: "have=2 reason=1 waiting in Slurm's queue (job" in caplog.text, "it is told", 60)


def test_a_wall_time_costs_no_attempt():
    with FarmExecutor("slurm://debug?time=0:01:10", max_attempts=1) as farm:
        first = farm.submit(job).result(DEADLINE)
        futures = [farm.submit(nap, 1) for _ in range(15)]
        jobs = {future.result(60) for future in futures}
        assert farm.statistics().resubmitted == 0
        assert first in jobs
