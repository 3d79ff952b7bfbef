"""What only Dask does; run beside one by `dask_cluster`. What holds on every cluster is in `test_everywhere`."""

import os
import subprocess
import sys

import pytest
from engines.alone import ON
from engines.conftest import both_up
from engines.dask_cluster import Cluster
from engines.load import Load
from server.processes import DEADLINE

from farm_executor import FarmExecutor

pytestmark = [
    pytest.mark.skipif(
        not os.environ.get(ON, "").startswith("dask:"), reason="run by tests/engines/dask_cluster.py"
    ),
    pytest.mark.usefixtures("no_leaks"),
]


def test_there_are_as_many_workers_as_the_cluster_has_threads():
    with FarmExecutor(os.environ[ON]) as farm:
        both_up(farm)
        assert len(set(farm.broadcast(os.getpid, timeout=DEADLINE))) == 8


def test_dask_goes_on_beside_it(farm):
    where = os.environ[ON].replace("dask:", "tcp:")
    code = f"from distributed import Client; print(Client('{where}').submit(pow, 2, 10).result(30))"
    assert farm.submit(abs, -1).result(DEADLINE) == 1
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "1024\n", done.stderr


def test_a_scheduler_that_is_killed_and_starts_again_loses_no_task(tmp_path):
    with Cluster() as cluster, FarmExecutor(f"{cluster.address}?workers=4&per=2", resume_timeout=2) as farm:
        both_up(farm)
        load = Load(farm, tmp_path)
        load.wait_for_some()
        cluster.kill_scheduler()
        cluster.end()
        cluster.start()
        assert not load.broken()
        both_up(farm)
