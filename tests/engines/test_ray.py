"""What only Ray does; run beside one by `ray_cluster`. What holds on every cluster is in `test_everywhere`."""

import os
import subprocess
import sys

import pytest
from engines import ray_cluster
from engines.alone import ON
from engines.conftest import both_up
from engines.load import Load
from server.processes import DEADLINE, wait_until

from farm_executor import FarmExecutor
from farm_executor.client.farm import discovery
from farm_executor.launch import cluster

pytestmark = [
    pytest.mark.skipif(not os.environ.get(ON, "").startswith("ray:"), reason="run by tests/engines/ray_cluster.py"),
    pytest.mark.usefixtures("no_leaks"),
]


def test_by_ray_client_and_ray_goes_on_beside_it():
    where = f"ray://{ray_cluster.CLIENT}"
    code = "import ray; ray.init('auto'); print(ray.get(ray.remote(lambda: 1024).remote()))"
    with FarmExecutor(f"{where}?workers=2&per=2") as farm:
        # On a busy machine Ray Client's server gives up after half a minute, and is asked again.
        assert farm.submit(abs, -1).result(150) == 1
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=60
        )
        assert done.stdout == "1024\n", done.stderr


def test_more_than_the_cluster_has(caplog, monkeypatch):
    monkeypatch.setattr(discovery, "RESOLVE_SECONDS", 1.0)
    monkeypatch.setattr(cluster, "REPORT_EVERY", 1.0)
    with FarmExecutor("ray://auto?workers=6&per=2", connect_timeout=60) as farm:
        both_up(farm)
        assert farm.submit(abs, -1).result(DEADLINE) == 1
        wait_until(lambda: "have=2 reason=ray has" in caplog.text, "it is told", 60)


def test_a_head_that_is_killed_and_starts_again_loses_no_task(farm, tmp_path):
    load = Load(farm, tmp_path)
    load.wait_for_some()
    ray_cluster.kill_head()
    ray_cluster.start()
    assert not load.broken()
    both_up(farm)
