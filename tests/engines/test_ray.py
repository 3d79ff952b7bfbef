"""A real Ray: see `ray_cluster`, which runs these tests; elsewhere they are skipped."""

import os
import signal
import subprocess
import sys
import time

import pytest
from server.processes import DEADLINE, wait_until

from farm_executor import FarmExecutor, TaskKilledError, TaskTimeoutError

pytestmark = [
    pytest.mark.skipif(not os.environ.get("FARM_EXECUTOR_TESTS_RAY"), reason="run by tests/engines/ray_cluster.py"),
    pytest.mark.usefixtures("no_leaks"),
]


@pytest.fixture
def farm():
    with FarmExecutor("ray://auto?workers=4&per=2", resume_timeout=2) as farm:
        yield farm


def both_up(farm):
    farm.submit(abs, -1)
    wait_until(lambda: sum(one.up for one in farm.statistics().servers) == 2, "both have come", 60)


def servers():
    """The processes of servers that jobs have become."""
    done = subprocess.run(["pgrep", "-f", "sys.stdin.buffer.readline"], capture_output=True, text=True)
    return [int(pid) for pid in done.stdout.split()]


def test_two_servers_compute(farm):
    both_up(farm)
    assert len(set(farm.broadcast(os.getpid, timeout=DEADLINE))) == 4
    assert list(farm.map(abs, range(-10_000, 0), timeout=DEADLINE)) == list(range(10_000, 0, -1))
    data = os.urandom(8 << 20)
    assert farm.submit(bytes, data).result(DEADLINE) == data


def test_a_task_is_killed_and_another_runs_out_of_time(farm):
    with pytest.raises(TaskTimeoutError):
        farm.with_options(timeout=0.2).submit(time.sleep, 600).result(60)
    future = farm.submit(time.sleep, 600)
    wait_until(future.running, "it runs")
    farm.kill(future)
    with pytest.raises(TaskKilledError):
        future.result(DEADLINE)


def test_a_process_of_rays_that_is_killed_loses_no_task(farm):
    both_up(farm)
    futures = [farm.submit(slow, number) for number in range(40)]
    supervisor = farm.submit(os.getppid).result(DEADLINE)
    with open(f"/proc/{supervisor}/stat") as file:
        holds = int(file.read().rpartition(")")[2].split()[1])
    os.kill(holds, signal.SIGKILL)
    assert [future.result(60) for future in futures] == list(range(40))
    both_up(farm)  # another has been asked for


def slow(number):
    time.sleep(0.1)
    return number


def test_by_ray_client_and_ray_goes_on_beside_it():
    where = os.environ["FARM_EXECUTOR_TESTS_RAY"]
    code = f"import ray; ray.init('ray://{where}'); print(ray.get(ray.remote(lambda: 1024).remote()))"
    with FarmExecutor(f"ray://{where}?workers=2&per=2") as farm:
        assert farm.submit(abs, -1).result(60) == 1
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=60
        )
        assert done.stdout == "1024\n"


def test_more_than_the_cluster_has(caplog):
    with FarmExecutor("ray://auto?workers=6&per=2", connect_timeout=60) as farm:
        both_up(farm)
        assert farm.submit(abs, -1).result(DEADLINE) == 1
        wait_until(lambda: "have=2 reason=ray has" in caplog.text, "it is told", 60)


def test_a_killed_program_leaves_nothing():
    code = "import time; from farm_executor import FarmExecutor; f = FarmExecutor('ray://auto?workers=2&per=2')\n"
    code += "print(f.submit(abs, -1).result(60), flush=True); f.submit(time.sleep, 600); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout.readline() == "1\n"
        assert servers()
        program.send_signal(signal.SIGKILL)
    wait_until(lambda: not servers(), "the server is gone")
